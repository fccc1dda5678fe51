"""How does this node hand files to others, and get theirs?

The thin side of `p2p_network.blobs`: whoever has files to offer registers a space with a function that says
which file a name is; `fetch` gets one from a peer, goes on where an earlier attempt ended, and puts it in
place whole. Disk work runs in threads; one piece is in flight at a time, so a transfer takes no more than
half a mebibyte of memory and leaves the channel to others in between.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from p2p_bootstrap.node.runtime import Runtime
from p2p_network import wire
from p2p_network.blobs import files, transfer
from p2p_network.blobs.transfer import Answer, Manifest
from p2p_network.core.errors import MeshError, RemoteViolation
from p2p_network.core.ids import PeerId

if TYPE_CHECKING:
    from p2p_bootstrap.node.ports import Mesh

PIECE_TIMEOUT_S: Final = 30.0
_KEPT_MANIFESTS: Final = 16

Progress = Callable[[int, int], None]
"""Bytes that are there, and bytes in all."""

Find = Callable[[PeerId, str], Path | None]
"""Which file is this, for this peer? None: it has no such file, or may not have it. Blocks."""


class Blobs:
    """Files offered and fetched."""

    def __init__(self, *, runtime: Runtime, host: Mesh) -> None:
        self._runtime = runtime
        self._host = host
        self._spaces: dict[str, Find] = {}
        self._manifests: dict[tuple[str, int, int], Manifest] = {}
        host.serve(transfer.METHOD, self._answer)

    def offer(self, space: str, find: Find) -> None:
        """Hand out the files of a space."""
        self._spaces[space] = find

    async def fetch(
        self,
        peer: PeerId,
        space: str,
        name: str,
        target: Path,
        *,
        max_bytes: int,
        sha256: str = "",
        progress: Progress = lambda _done, _total: None,
    ) -> None:
        """Get a blob from a peer into `target`. Raises MeshError, OSError.

        What came before a failure stays beside the target, and the next call goes on there. `sha256`: of the
        whole, in hexadecimal digits, checked before the target is put in place; "": not checked.
        """
        session = transfer.Fetch(space, name, max_bytes=max_bytes)
        partial: files.Partial | None = None
        try:
            while (request := session.next_request()) is not None:
                raw = await self._host.request(peer, transfer.METHOD, request, timeout_s=PIECE_TIMEOUT_S)
                piece = session.take(raw)
                if partial is None:
                    assert session.manifest is not None, "the first answer is the manifest"
                    partial = await self._runtime.in_thread(files.Partial, target, session.manifest)
                    session.resume(await self._runtime.in_thread(partial.have))
                elif piece is not None:
                    await self._runtime.in_thread(partial.write, piece)
                progress(session.done_bytes, session.total_bytes)
            assert partial is not None, "there is always a first request"
            if sha256 and await self._runtime.in_thread(partial.digest) != sha256:
                raise MeshError(
                    f"{name} came, but is not what was offered: its checksum differs",
                    hint="the file was changed on the other node meanwhile: offer it again, and get it again",
                )
            await self._runtime.in_thread(partial.finish)
        except transfer.Gone as exc:
            raise MeshError(f"{name}: {exc}") from exc
        except ValueError as exc:
            raise RemoteViolation(f"blob: {exc}", peer=peer) from exc
        finally:
            if partial is not None:
                partial.close()

    async def _answer(self, peer: PeerId, payload: bytes) -> bytes:
        try:
            ask = transfer.decode_ask(payload)
        except ValueError as exc:
            raise RemoteViolation(f"blob: {exc}", peer=peer) from exc
        find = self._spaces.get(ask.space)
        if find is None:
            return wire.encode(Answer(missing="there is no such space"))
        return wire.encode(await self._runtime.in_thread(self._read, find, peer, ask))

    def _read(self, find: Find, peer: PeerId, ask: transfer.Ask) -> Answer:
        try:
            path = find(peer, ask.name)
            if path is None:
                return Answer(missing="no such blob")
            if ask.piece >= 0:
                return Answer(data=files.read_piece(path, ask.piece))
            return Answer(manifest=self._manifest(path))
        except OSError as exc:
            return Answer(missing=exc.strerror or "it cannot be read")

    def _manifest(self, path: Path) -> Manifest:
        info = path.stat()
        key = (str(path), info.st_size, info.st_mtime_ns)
        if key not in self._manifests:
            while len(self._manifests) >= _KEPT_MANIFESTS:
                self._manifests.pop(next(iter(self._manifests)))
            self._manifests[key] = files.manifest_of(path)
        return self._manifests[key]
