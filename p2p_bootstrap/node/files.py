"""How does a file get from one node to another, because a person said so on both?

`send` offers a file under a name, to all members or to one, for as long as the caller stays; `get` asks the
connected nodes who offers it, and fetches it: in checked pieces, going on where an earlier attempt ended, put
in place whole. Nothing is written on a node where nobody asked for it. Access rules count.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import trio

from p2p_bootstrap.node.blobs import Blobs
from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.routing import Routing
from p2p_bootstrap.node.runtime import Runtime
from p2p_network import wire
from p2p_network.blobs.transfer import MAX_BLOB_BYTES, MAX_NAME_CHARS, PIECE_BYTES
from p2p_network.core.errors import MeshError, RemoteViolation, UsageError
from p2p_network.core.ids import PeerId, short
from p2p_network.host.mesh import MeshHost

SPACE: Final = "files"
ASK_METHOD: Final = "files.ask"
GOT_METHOD: Final = "files.got"
MAX_OFFERS: Final = 64
ASK_TIMEOUT_S: Final = 5.0
PROGRESS_EVERY_S: Final = 0.5


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """Who has a file of this name?"""

    name: str


class Has(msgspec.Struct, frozen=True, array_like=True):
    """This node, for the one who asks. `sha256`: hexadecimal digits, "" for no."""

    sha256: str = ""
    size_bytes: int = 0


@dataclass(slots=True, eq=False)
class _Offer:
    path: Path
    size_bytes: int
    sha256: str
    only: PeerId | None
    got: list[PeerId] = field(default_factory=list)
    moved: trio.Event = field(default_factory=trio.Event)


Say = Callable[[dict[str, object]], Awaitable[None]]
"""Tells the person who waits."""


class Files:
    """Files offered and fetched by people."""

    def __init__(
        self, *, runtime: Runtime, host: MeshHost, replication: Replication, routing: Routing, blobs: Blobs,
        self_id: PeerId,
    ) -> None:  # fmt: skip
        self._runtime = runtime
        self._host = host
        self._replication = replication
        self._routing = routing
        self._blobs = blobs
        self._self_id = self_id
        self._offers: dict[str, _Offer] = {}
        blobs.offer(SPACE, self._find)
        host.serve(ASK_METHOD, self._asked)
        host.serve(GOT_METHOD, self._got)

    def _for(self, peer: PeerId, name: str) -> _Offer | None:
        """The offer that this peer may have."""
        offer = self._offers.get(name)
        if offer is None or offer.only not in (None, peer):
            return None
        return offer if self._routing.may(peer, self._self_id).allowed else None

    def _find(self, peer: PeerId, name: str) -> Path | None:
        offer = self._for(peer, name)
        return offer.path if offer is not None else None

    async def _asked(self, peer: PeerId, payload: bytes) -> bytes:
        offer = self._for(peer, _name(peer, payload))
        return wire.encode(Has() if offer is None else Has(offer.sha256, offer.size_bytes))

    async def _got(self, peer: PeerId, payload: bytes) -> bytes:
        offer = self._for(peer, _name(peer, payload))
        if offer is not None and len(offer.got) < MAX_OFFERS:
            offer.got.append(peer)
            offer.moved.set()
        return b""

    def _hostname(self, peer: PeerId) -> str:
        member = self._replication.view.get(peer)
        return (member.record.hostname if member and member.record else "") or short(peer)

    def _peer(self, name: str) -> PeerId:
        members = [m for m in self._replication.view.members if m.peer != self._self_id]
        found = [m.peer for m in members if name in (m.peer, m.record.hostname if m.record else "")]
        found = found or [m.peer for m in members if len(name) >= 4 and m.peer.endswith(name)]
        if len(found) != 1:
            raise UsageError(
                f"{len(found) or 'no'} nodes go by the name {name}", hint="see them with: kairos-p2p peers"
            )
        return found[0]

    async def send(self, path: Path, name: str, node: str, say: Say) -> None:
        """Offer a file until cancelled; to one node only, until that has it. Raises UsageError, MeshError."""
        name = name or path.name
        check_name(name)
        if name in self._offers:
            raise UsageError(f"a file is being offered as {name} already", hint="choose another with --name")
        if len(self._offers) >= MAX_OFFERS:
            raise UsageError(f"{MAX_OFFERS} files are being offered already")
        only = self._peer(node) if node else None
        try:
            size_bytes, sha256 = await self._runtime.in_thread(_look_at, path)
        except OSError as exc:
            raise UsageError(f"{path}: {exc.strerror or exc}") from exc
        offer = self._offers[name] = _Offer(path, size_bytes, sha256, only)
        try:
            await say({"offered": name, "size_bytes": size_bytes, "sha256": sha256, "to": node})
            while True:
                await offer.moved.wait()
                offer.moved = trio.Event()
                while offer.got:
                    peer = offer.got.pop(0)
                    await say({"got_by": self._hostname(peer)})
                    if peer == only:
                        return
        finally:
            self._offers.pop(name, None)

    async def get(self, name: str, target: Path, node: str, force: bool, say: Say) -> None:
        """Fetch a file from whoever offers it. Raises UsageError, MeshError."""
        check_name(name)
        target = await self._runtime.in_thread(_target, target, name, force)
        peer, has = await self._ask_all(name, self._peer(node) if node else None)
        await say({"from": self._hostname(peer), "size_bytes": has.size_bytes, "sha256": has.sha256})
        began_at = trio.current_time()
        await self._runtime.in_thread(_check_room, target, has.size_bytes)
        await self._fetch(peer, name, target, has, say)
        await self._host.request(peer, GOT_METHOD, wire.encode(Asked(name)), timeout_s=ASK_TIMEOUT_S)
        await say(
            {
                "path": str(target),
                "size_bytes": has.size_bytes,
                "sha256": has.sha256,
                "seconds": round(trio.current_time() - began_at, 2),
            }
        )

    async def _fetch(self, peer: PeerId, name: str, target: Path, has: Has, say: Say) -> None:
        done, failure = 0, None

        async def tell() -> None:
            while True:
                await trio.sleep(PROGRESS_EVERY_S)
                await say({"done_bytes": done, "size_bytes": has.size_bytes})

        def note(done_bytes: int, _total: int) -> None:
            nonlocal done
            done = done_bytes

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            try:
                await self._blobs.fetch(
                    peer, SPACE, name, target, max_bytes=has.size_bytes, sha256=has.sha256, progress=note
                )
            except MeshError as exc:
                again = "get it again: what came already is kept, and not sent again"
                failure = MeshError(exc.message, hint=exc.hint or again)
            except OSError as exc:
                failure = MeshError(
                    f"{exc.filename or target}: {exc.strerror or exc}", hint="nothing was put in place"
                )
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _ask_all(self, name: str, only: PeerId | None) -> tuple[PeerId, Has]:
        """Who offers it; of several the one that answers first."""
        asked = self._host.connected() if only is None else frozenset({only})
        found: list[tuple[PeerId, Has]] = []

        async def ask(peer: PeerId, scope: trio.CancelScope) -> None:
            try:
                raw = await self._host.request(
                    peer, ASK_METHOD, wire.encode(Asked(name)), timeout_s=ASK_TIMEOUT_S
                )
                has = wire.decode(raw, Has)
            except (MeshError, ValueError):
                return
            if len(has.sha256) == 64 and 0 <= has.size_bytes <= MAX_BLOB_BYTES:
                found.append((peer, has))
                scope.cancel()

        async with trio.open_nursery() as nursery:
            for peer in asked:
                nursery.start_soon(ask, peer, nursery.cancel_scope)
        if not found:
            who = "no connected node" if only is None else self._hostname(only)
            raise MeshError(
                f"{who} offers {'a' if only is None else 'no'} file {name} to this node",
                hint=f"on the node that has it: kairos-p2p file send PATH --name {name}",
            )
        return found[0]


def check_name(name: str) -> None:
    """Raises UsageError for a name that can't be one file's."""
    sound = 0 < len(name) <= MAX_NAME_CHARS and name.isprintable() and "/" not in name
    if not sound or name.startswith("."):
        raise UsageError(f"{name[:60]!r} can't be a file's name here", hint="choose one with --name")


def _target(target: Path, name: str, force: bool) -> Path:
    """The file to make. Raises UsageError if it is there."""
    if target.is_dir():
        target = target / name
    if not force and target.exists():
        raise UsageError(f"{target} exists", hint="add --force to replace it, or name another with --to")
    return target


def _check_room(target: Path, size_bytes: int) -> None:
    """Raises MeshError where the file can't fit; what an earlier attempt left counts as there."""
    part = target.with_name(f"{target.name}.part")
    try:
        there = part.stat().st_size if part.exists() else 0
        room = os.statvfs(target.parent)
    except OSError as exc:
        raise MeshError(f"{exc.filename}: {exc.strerror}", hint="name a folder that is there") from exc
    free = room.f_bavail * room.f_frsize
    if free < size_bytes - there:
        raise MeshError(
            f"{target.parent} has room for {free} bytes, the file has {size_bytes}",
            hint="make room, or choose another folder with --to",
        )


def _name(peer: PeerId, payload: bytes) -> str:
    try:
        return wire.decode(payload, Asked).name
    except ValueError as exc:
        raise RemoteViolation(f"file: {exc}", peer=peer) from exc


def _look_at(path: Path) -> tuple[int, str]:
    """Size and SHA-256; reads it whole. Raises OSError, UsageError."""
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while data := file.read(PIECE_BYTES):
            digest.update(data)
            size_bytes += len(data)
    if size_bytes > MAX_BLOB_BYTES:
        raise UsageError(f"{path} has {size_bytes} bytes; at most {MAX_BLOB_BYTES} can be sent")
    return size_bytes, digest.hexdigest()
