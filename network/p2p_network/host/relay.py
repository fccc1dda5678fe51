"""Which member carries a circuit between two that can't dial each other, and how much may it carry?

A *circuit* is a connection that runs through one other member, the relay, as two streams that it splices.
The three sides say one frame each before bytes flow:

    dialler -- Ask(target) --> relay -- Call(source) --> target
    dialler <---- Word ------- relay <---- Word -------- target

Exactly one hop: an Ask or a Call counts only on a direct connection, and the relay uses only a direct
connection to the target. So there are no loops, and whoever carries knows both ends. What is carried is what
a TCP connection would carry (pre-shared key, Noise, certificates), end to end: the relay sees ciphertext and
can only drop it. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from p2p_network import wire
from p2p_network.core.ids import PeerId

HEADER_BYTES: Final = 2
MAX_FRAME_BYTES: Final = 512
MAX_CIRCUITS: Final = 256
MAX_PER_MEMBER: Final = 32
"""Circuits that one member asked for, or that lead to it."""
RATE_BYTES_S: Final = 8 << 20
"""What the circuits that one member asked for may carry together, both ways."""
BURST_BYTES: Final = 1 << 20
STRANGE_RTT_MS: Final = 1000.0
"""Assumed for a round trip that nobody has measured yet."""


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Dialler to relay: lead me to `target`."""

    target: str


class Call(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Relay to target: `source` wants to talk to you, through me."""

    source: str


class Word(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Yes if `refusal` is "", else why not, in one sentence."""

    refusal: str


class Look(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Request to a member that might be a relay: do you see `target`?"""

    target: str


class Sight(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Its answer. `sees`: it has a direct channel to the target, and room; `rtt_ms`: over that channel."""

    sees: bool
    rtt_ms: float | None = None


Frame = Ask | Call | Word


def frame_bytes(frame: Frame) -> bytes:
    """The wire form, with its length."""
    body = wire.encode(frame)
    assert len(body) <= MAX_FRAME_BYTES, "ids and refusals are short"
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def read_frame(data: bytes | bytearray) -> tuple[Frame, int] | None:
    """The frame at the start of `data` and its bytes; None while it is incomplete. Raises ValueError."""
    if len(data) < HEADER_BYTES:
        return None
    end = HEADER_BYTES + int.from_bytes(data[:HEADER_BYTES], "big")
    if end > HEADER_BYTES + MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {end - HEADER_BYTES} bytes")
    if len(data) < end:
        return None
    frame: Frame = wire.decode(bytes(data[HEADER_BYTES:end]), Frame)  # type: ignore[arg-type]
    return frame, end


@dataclass(frozen=True, slots=True)
class Candidate:
    """A member that might carry. `rtt_ms`: from here to it; None if unknown."""

    peer: PeerId
    rtt_ms: float | None
    sight: Sight


def ranked(candidates: Iterable[Candidate]) -> tuple[PeerId, ...]:
    """Those that see the target, the shortest way over both legs first."""

    def way_ms(candidate: Candidate) -> float:
        legs = (candidate.rtt_ms, candidate.sight.rtt_ms)
        # a peer says what it likes: nonsense is as bad as unknown
        return sum(leg if leg is not None and 0 <= leg < STRANGE_RTT_MS else STRANGE_RTT_MS for leg in legs)

    return tuple(c.peer for c in sorted(candidates, key=lambda c: (way_ms(c), c.peer)) if c.sight.sees)


class Bucket:
    """How long must these bytes wait so that a rate is kept? (token bucket)"""

    __slots__ = ("_at", "_burst", "_debt", "_rate")

    def __init__(self, rate_bytes_s: float = RATE_BYTES_S, burst_bytes: float = BURST_BYTES) -> None:
        self._rate, self._burst = rate_bytes_s, burst_bytes
        self._debt = 0.0
        self._at = 0.0

    def wait_s(self, now: float, size_bytes: int) -> float:
        """Seconds to wait after these bytes were taken; 0 while the burst isn't used up."""
        self._debt = max(0.0, self._debt - (now - self._at) * self._rate) + size_bytes
        self._at = now
        return max(0.0, (self._debt - self._burst) / self._rate)


class Carriage:
    """The circuits that this node carries for others. Refuses by one table, and keeps each member's rate."""

    def __init__(self, self_id: PeerId) -> None:
        self._self_id = self_id
        self._sources: Counter[PeerId] = Counter()
        self._targets: Counter[PeerId] = Counter()
        self._buckets: dict[PeerId, Bucket] = {}

    def __len__(self) -> int:
        return self._sources.total()

    def refusal(self, source: PeerId, target: PeerId, *, asked_directly: bool, sees_target: bool) -> str:
        """Why this circuit is not carried; "" if it is."""
        if not asked_directly:
            return "it was asked over a circuit: one hop only"
        if target in (source, self._self_id):
            return "a circuit leads to another member"
        if not sees_target:
            return "it has no direct connection with that member"
        if self._sources[source] >= MAX_PER_MEMBER or self._targets[target] >= MAX_PER_MEMBER:
            return f"it carries {MAX_PER_MEMBER} circuits for that member already"
        if len(self) >= MAX_CIRCUITS:
            return f"it carries {MAX_CIRCUITS} circuits already"
        return ""

    def enter(self, source: PeerId, target: PeerId) -> Bucket:
        """A circuit begins; the source's rate."""
        self._sources[source] += 1
        self._targets[target] += 1
        return self._buckets.setdefault(source, Bucket())

    def leave(self, source: PeerId, target: PeerId) -> None:
        """It has ended."""
        for counter, peer in ((self._sources, source), (self._targets, target)):
            counter[peer] -= 1
            if not counter[peer]:
                del counter[peer]
        if source not in self._sources:
            self._buckets.pop(source, None)
