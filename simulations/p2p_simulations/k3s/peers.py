"""How do members' messages reach each other? Length-framed JSON over mutual TLS on port 2380.

Each member dials every other and only sends on what it dialled, as etcd does. Messages may be lost and
are never queued for long: Raft repeats what matters, and old news would only delay new. A silent peer is
noticed by the kernel (TCP_USER_TIMEOUT), so that a healed partition is used at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from p2p_simulations.k3s import raft, wal

MAX_FRAME_BYTES = 32 << 20
QUEUE = 256
MEMBER_REMOVED = "the member has been permanently removed from the cluster"

_TYPES = {
    t.__name__: t for t in (raft.VoteAsked, raft.VoteGiven, raft.Append, raft.AppendAnswer, raft.Install)
}


def encode(message: raft.Message) -> bytes:
    fields: dict[str, Any] = {name: getattr(message, name) for name in type(message).__dataclass_fields__}
    if isinstance(message, raft.Append):
        fields["entries"] = [wal.entry_to_json(e) for e in message.entries]
    elif isinstance(message, raft.Install):
        fields["snapshot"] = wal.snapshot_to_json(message.snapshot)
    return json.dumps([type(message).__name__, fields], separators=(",", ":")).encode()


def decode(raw: bytes) -> raft.Message:
    """Raises ValueError on anything that is no message."""
    try:
        name, fields = json.loads(raw)
        kind = _TYPES[name]
        if kind is raft.Append:
            fields["entries"] = tuple(wal.entry_from_json(e) for e in fields["entries"])
        elif kind is raft.Install:
            fields["snapshot"] = wal.snapshot_from_json(fields["snapshot"])
        message: raft.Message = kind(**fields)
    except (TypeError, KeyError) as exc:
        raise ValueError(f"not a message: {exc}") from exc
    return message


class Peers:
    """The connections of one member.

    Args:
        received: called with sender and message.
        removed: asks whether a member id was removed; such a one is told so.
        expelled: called when another member says that we were removed.
    """

    def __init__(
        self,
        *,
        self_id: int,
        self_url: str,
        context: ssl.SSLContext,
        silence_s: float,
        received: Callable[[int, raft.Message], None],
        removed: Callable[[int], bool],
        expelled: Callable[[], None],
    ) -> None:
        self._self_id = self_id
        self._self_url = self_url
        self._context = context
        self._silence_s = silence_s
        self._received = received
        self._removed = removed
        self._expelled = expelled
        self._senders: dict[int, tuple[str, asyncio.Queue[bytes], asyncio.Task[None]]] = {}
        self._urls: dict[int, str] = {}
        self._callers: dict[int, str] = {}
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def listen(self, hosts: list[str], context: ssl.SSLContext) -> None:
        """Raises OSError if port 2380 is taken."""
        self._server = await asyncio.start_server(self._serve, hosts, 2380, ssl=context)

    def close(self) -> None:
        if self._server:
            self._server.close()
        for _, _, task in self._senders.values():
            task.cancel()
        for writer in list(self._writers):
            writer.close()

    def know(self, urls: dict[int, str]) -> None:
        """From now on these are the members and their peer URLs; {}: not known yet, so whoever called."""
        self._urls = urls
        urls = urls or self._callers
        for member in list(self._senders):
            if urls.get(member) != self._senders[member][0]:
                self._senders.pop(member)[2].cancel()
        for member, url in urls.items():
            if member not in self._senders and member != self._self_id:
                queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE)
                task = asyncio.get_running_loop().create_task(self._keep_sending(member, url, queue))
                self._senders[member] = (url, queue, task)

    def send(self, member: int, message: raft.Message) -> None:
        """Best effort; never blocks."""
        sender = self._senders.get(member)
        if sender:
            with contextlib.suppress(asyncio.QueueFull):
                sender[1].put_nowait(encode(message))

    async def _keep_sending(self, member: int, url: str, queue: asyncio.Queue[bytes]) -> None:
        pause_s = 0.05
        while True:
            with contextlib.suppress(
                OSError, ssl.SSLError, TimeoutError, asyncio.IncompleteReadError, ValueError
            ):
                async with asyncio.timeout(self._silence_s):
                    address = urlsplit(url)
                    reader, writer = await asyncio.open_connection(
                        address.hostname, address.port, ssl=self._context
                    )
                try:
                    pause_s = 0.05
                    await self._converse(member, reader, writer, queue)
                finally:
                    writer.close()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.5)
            while not queue.empty():
                queue.get_nowait()  # stale: Raft has newer ones to say

    async def _converse(
        self,
        member: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        queue: asyncio.Queue[bytes],
    ) -> None:
        sock: Any = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._silence_s * 1000))
        _write_frame(
            writer, json.dumps({"from": self._self_id, "to": member, "url": self._self_url}).encode()
        )
        complaint = asyncio.ensure_future(_read_frame(reader))
        try:
            while not complaint.done():
                frame = asyncio.ensure_future(queue.get())
                await asyncio.wait((frame, complaint), return_when=asyncio.FIRST_COMPLETED)
                if not frame.done():
                    frame.cancel()
                    break
                _write_frame(writer, frame.result())
                async with asyncio.timeout(self._silence_s):
                    await writer.drain()
            if json.loads(await complaint).get("error") == MEMBER_REMOVED:
                self._expelled()
        finally:
            complaint.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            hello = json.loads(await _read_frame(reader))
            sender = int(hello["from"])
            if hello["to"] != self._self_id:
                return
            if not self._urls:
                self._callers[sender] = str(hello["url"])
                self.know({})
            while True:
                message = decode(await _read_frame(reader))
                if self._removed(sender):
                    _write_frame(writer, json.dumps({"error": MEMBER_REMOVED}).encode())
                    await writer.drain()
                    return
                self._received(sender, message)
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError, ValueError, KeyError, TypeError):
            return  # the peer, or the network: it will dial again
        finally:
            self._writers.discard(writer)
            writer.close()


def _write_frame(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(len(body).to_bytes(4, "big") + body)


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {size} bytes")
    return await reader.readexactly(size)
