"""Who may say anything at all on a connection?

The adapter around `admission`: one stream, two messages, before any other protocol is dispatched. The guard
around the swarm's stream handler (`guards.MeshBasicHost`) lets a connection without a verdict do nothing but
this; `guards.MeshSwarm` hands a connection on only once both sides have been admitted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from p2p_network.admission.handshake import MAX_CLAIM_BYTES
from p2p_network.core.errors import PeerUnreachable
from p2p_network.core.ids import PeerId
from p2p_network.host.channel import ByteStream

ADMISSION_LIMIT_S: Final = 5.0
HEADER_BYTES: Final = 4


class Refused(PeerUnreachable):
    """One side of a connection does not admit the other. `cause`: `admission.trust.Cause`, one word.

    `by_peer`: the other side refused us.
    """

    def __init__(self, message: str, *, cause: str, by_peer: bool = False) -> None:
        super().__init__(message)
        self.cause = cause
        self.by_peer = by_peer


class Gate(Protocol):
    """Who is a member. All bytes come from peers and may be anything."""

    def keys(self) -> tuple[bytes, ...]:
        """Pre-shared keys that are taken from a dialler; the first is the one to dial with."""
        ...

    def may_dial(self, peer: PeerId) -> bool:
        """False for a peer that is known to be out."""
        ...

    def claim(self, peer: PeerId) -> bytes:
        """What to show a peer that we dialled."""
        ...

    async def answer(self, peer: PeerId, claim: bytes) -> tuple[bytes, str]:
        """The answer to a dialler's claim, and why it is not admitted ("" if it is)."""
        ...

    def conclude(self, peer: PeerId, answer: bytes) -> tuple[str, bool]:
        """Why we go no further with a peer that we dialled ("" if we do), and whether it was its wish."""
        ...


@dataclass(slots=True, eq=False)
class Passage:
    """How far the admission of one connection has come."""

    claimed: bool = False
    admitted: bool = False
    settled: trio.Event = field(default_factory=trio.Event)
    error: Refused | None = None

    def settle(self, error: Refused | None) -> None:
        """The verdict; the first one counts."""
        if not self.settled.is_set():
            self.admitted, self.error = error is None, error
            self.settled.set()


async def ask_admission(stream: ByteStream, gate: Gate, peer: PeerId) -> None:
    """The dialler's side. Raises Refused, PeerUnreachable."""
    await _send(stream, gate.claim(peer))
    cause, by_peer = gate.conclude(peer, await _receive(stream))
    if cause:
        who = "it does not admit us" if by_peer else "it is not admitted"
        raise Refused(f"{who}: {cause}", cause=cause, by_peer=by_peer)


async def give_admission(stream: ByteStream, gate: Gate, peer: PeerId, passage: Passage) -> None:
    """The other side; `passage` is settled before the answer goes out. Raises PeerUnreachable."""
    answer, cause = await gate.answer(peer, await _receive(stream))
    error = Refused(f"it is not admitted: {cause}", cause=cause) if cause else None
    if error is None:
        passage.settle(None)
    await _send(stream, answer)
    passage.settle(error)


async def _send(stream: ByteStream, message: bytes) -> None:
    try:
        await stream.write(len(message).to_bytes(HEADER_BYTES, "big") + message)
    except trio.BrokenResourceError as exc:
        raise PeerUnreachable("it went away in the middle of the admission") from exc


async def _receive(stream: ByteStream) -> bytes:
    data = bytearray()
    while len(data) < HEADER_BYTES or len(data) < HEADER_BYTES + _size(data):
        more = await stream.read()
        if not more:
            raise PeerUnreachable("it went away in the middle of the admission")
        data += more
        if len(data) > HEADER_BYTES + MAX_CLAIM_BYTES:
            raise PeerUnreachable("it says too much")
    if len(data) > HEADER_BYTES + _size(data):
        raise PeerUnreachable("it says more than the admission asks for")
    return bytes(data[HEADER_BYTES:])


def _size(data: bytearray) -> int:
    size = int.from_bytes(data[:HEADER_BYTES], "big")
    if size > MAX_CLAIM_BYTES:
        raise PeerUnreachable(f"a claim of {size} bytes")
    return size
