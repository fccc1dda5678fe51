"""What does the agent answer about services and files? `api.services.ServicesApi`, by the columns."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import trio

from p2p_bootstrap.api.services import ServiceDoc
from p2p_bootstrap.config.fields import split_target
from p2p_bootstrap.node.files import Files
from p2p_bootstrap.node.proxy import Proxy
from p2p_bootstrap.node.services import Services
from p2p_network.core.errors import UsageError
from p2p_network.tubes.flow import Protocol
from p2p_network.tubes.ports import Carry, Datagrams, TcpDoor, UdpDoor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2p_bootstrap.api.services import Say, Work


class ServiceAnswers:
    """Services and files, as the local API sees them."""

    def __init__(self, services: Services, files: Files, proxy: Proxy) -> None:
        self._proxy = proxy
        self._services = services
        self._files = files

    def services(self) -> list[ServiceDoc]:
        """Every service of every node."""
        return [
            ServiceDoc(
                name=row.offer.item.name,
                protocol=row.offer.item.protocol,
                port=row.offer.item.port,
                peer=row.offer.peer,
                hostname=row.hostname,
                region=row.region,
                alive=row.alive,
                allowed=row.allowed,
                target=row.target,
                error=row.error,
            )
            for row in self._services.rows()
        ]

    async def expose(self, name: str, protocol: str, to: str, port: int) -> None:
        """Offer a service."""
        host, target_port = endpoint_of(to)
        await self._services.expose(name, cast(Protocol, protocol), host, target_port, port or target_port)

    async def remove(self, name: str, protocol: str) -> None:
        """Offer it no longer."""
        await self._services.remove(name, cast(Protocol, protocol))

    async def connect(self, name: str, protocol: str, listen: str, node: str) -> Work:
        """Listen, and carry each connection there."""
        kind = cast(Protocol, protocol)
        name, _, region = name.partition(".")
        first = self._services.find(name, kind, region=region, node=node)[0]
        host, port = endpoint_of(listen, free=True) if listen else ("127.0.0.1", first.item.port)
        open_one = partial(self._services.open, name, kind, region=region, node=node)
        return await hold_door(
            host, port, kind, self._services.carry(name, region=region, node=node), open_one
        )

    async def socks(self, listen: str) -> Work:
        """A SOCKS5 proxy."""
        host, port = endpoint_of(listen, free=True)
        return await hold_door(host, port, "tcp", self._proxy.answer_socks, None)

    async def forward(self, listen: str, to: str, protocol: str) -> Work:
        """A local port that leads to an address."""
        kind = cast(Protocol, protocol)
        host, port = endpoint_of(listen, free=True)
        return await hold_door(host, port, kind, *self._proxy.forward(*endpoint_of(to), kind))

    async def send_file(self, path: str, name: str, node: str) -> Work:
        """Offer a file."""
        if not Path(path).is_absolute():
            raise UsageError("name the file by its whole path")
        return partial(self._files.send, Path(path), name, node)

    async def get_file(self, name: str, path: str, node: str, *, force: bool) -> Work:
        """Fetch one."""
        if not Path(path).is_absolute():
            raise UsageError("name the target by its whole path")
        return partial(self._files.get, name, Path(path), node, force)


async def hold_door(
    host: str, port: int, kind: Protocol, carry: Carry, open_one: Callable[[], Awaitable[Datagrams]] | None
) -> Work:
    """A port that is listened on for as long as the work goes on. Raises MeshError if that can't be."""
    door = await (TcpDoor if kind == "tcp" else UdpDoor).bind(host, port)

    async def work(say: Say) -> None:
        sent, received = trio.open_memory_channel[str](16)

        def note(text: str) -> None:
            with contextlib.suppress(trio.WouldBlock):
                sent.send_nowait(text)

        try:
            shown = f"[{host}]" if ":" in host else host
            await say({"listening": f"{shown}:{door.port}", "protocol": kind})
            async with trio.open_nursery() as nursery:
                if isinstance(door, TcpDoor):
                    nursery.start_soon(door.run, carry, note)
                else:
                    assert open_one is not None
                    nursery.start_soon(door.run, open_one, note)
                async for text in received:
                    await say({"failed": text})
        finally:
            door.close()

    return work


def endpoint_of(text: str, *, free: bool = False) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``PORT``; `free`: port 0 takes any. Raises UsageError."""
    if free and text.endswith(":0"):
        return text[:-2].removeprefix("[").removesuffix("]") or "127.0.0.1", 0
    try:
        return split_target(text)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc
