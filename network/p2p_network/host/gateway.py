"""How is a home router found and told to lead ports to this machine?

The adapter of `igd`: datagrams of the search, and one HTTP request per connection, bounded in time and size.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import h11
import trio

from p2p_network import igd
from p2p_network.core.errors import MeshError
from p2p_network.marks import mark

SEARCH_S: Final = 6.0
REQUEST_S: Final = 5.0
MAX_ANSWERS: Final = 8


@dataclass(frozen=True, slots=True)
class Gateway:
    """A router that maps ports. `client`: this machine's address on the way to it."""

    service: igd.Service
    client: str

    async def add(self, mapping: igd.Mapping) -> None:
        """Lead a port here, for `igd.LEASE_S` or for good if it knows no leases. Raises MeshError."""
        try:
            await self._call(igd.add(self.service, mapping, self.client, igd.LEASE_S))
        except _Fault as exc:
            if exc.code != igd.PERMANENT_ONLY:
                raise
            await self._call(igd.add(self.service, mapping, self.client, 0))

    async def delete(self, mapping: igd.Mapping) -> None:
        """Lead it here no more. Raises MeshError."""
        await self._call(igd.delete(self.service, mapping))

    async def _call(self, call: igd.Call) -> None:
        status, answer, _ = await _request(self.service.url, "POST", call)
        if status == 200:
            return
        try:
            code, text = igd.fault_in(answer)
        except ValueError:
            code, text = 0, ""
        why = "another machine has that port" if code == igd.TAKEN else text or f"status {status}"
        raise _Fault(code, f"the router {self.service.url.host} refuses: {why}")


class _Fault(MeshError):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message, hint="forward the ports by hand, or see the router's settings for UPnP")
        self.code = code


async def find(own_ips: Sequence[str], address: tuple[str, int] = igd.SEARCH_ADDRESS) -> Gateway | None:
    """The first router that answers a search from these IPv4 addresses and maps ports; None without one."""
    found: list[Gateway] = []

    async def ask(ip: str, scope: trio.CancelScope) -> None:
        with contextlib.suppress(OSError), trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            mark(sock)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
            await sock.bind((ip, 0))
            await sock.sendto(igd.search(), address)
            for _ in range(MAX_ANSWERS):
                data, sender = await sock.recvfrom(igd.MAX_DATAGRAM_BYTES + 1)
                url = igd.found_at(data, str(sender[0]))
                router = await _described(url) if url is not None else None
                if router is not None:
                    found.append(router)
                    scope.cancel()

    with trio.move_on_after(SEARCH_S):
        async with trio.open_nursery() as nursery:
            for ip in own_ips:
                nursery.start_soon(ask, ip, nursery.cancel_scope)
    return found[0] if found else None


async def _described(url: igd.Url) -> Gateway | None:
    """The router whose description is there, if it maps ports."""
    with contextlib.suppress(MeshError, ValueError):
        status, text, client = await _request(url, "GET", None)
        service = igd.service_in(text, url) if status == 200 else None
        if service is not None:
            return Gateway(service, client)
    return None


async def _request(url: igd.Url, method: str, call: igd.Call | None) -> tuple[int, bytes, str]:
    """(status, body, our address) of one HTTP request. Raises MeshError."""
    try:
        with trio.fail_after(REQUEST_S):
            return await _exchange(url, method, call)
    except (OSError, trio.TooSlowError, trio.BrokenResourceError, h11.ProtocolError, ValueError) as exc:
        raise MeshError(f"the router {url.host} does not answer as it should: {exc!r}"[:200]) from exc


async def _exchange(url: igd.Url, method: str, call: igd.Call | None) -> tuple[int, bytes, str]:
    headers = [("Host", f"{url.host}:{url.port}"), ("Connection", "close")]
    if call is not None:
        headers += [
            ("Content-Type", 'text/xml; charset="utf-8"'),
            ("SOAPAction", call.action),
            ("Content-Length", str(len(call.body))),
        ]
    with trio.socket.socket(socket.AF_INET6 if ":" in url.host else socket.AF_INET) as sock:
        mark(sock)
        await sock.connect((url.host, url.port))
        client, stream = str(sock.getsockname()[0]), trio.SocketStream(sock)
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=16 << 10)
        out = http.send(h11.Request(method=method, target=url.path, headers=headers)) or b""
        if call is not None:
            out += http.send(h11.Data(call.body)) or b""
        await stream.send_all(out + (http.send(h11.EndOfMessage()) or b""))
        status, body = 0, bytearray()
        while True:
            event = http.next_event()
            match event:
                case h11.NEED_DATA:
                    http.receive_data(await stream.receive_some(1 << 14))
                case h11.Response():
                    status = event.status_code
                case h11.Data():
                    body += event.data
                    if len(body) > igd.MAX_XML_BYTES:
                        raise ValueError("an answer that is too long")
                case h11.EndOfMessage() | h11.ConnectionClosed():
                    return status, bytes(body), client
                case _:
                    pass
