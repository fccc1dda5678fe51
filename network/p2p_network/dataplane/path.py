"""What does a path carry: how large a datagram, how fast, with how much loss?

Pure. `PathMtu` sends padded probes of the common sizes and believes the largest that came through; until
then it believes in 1500, since a wrong "too big" would be remembered by the kernel for ten minutes.
`Quality` keeps what heartbeats and the receiver's reports say.
"""

from __future__ import annotations

from typing import Final

from p2p_network.dataplane.datagrams import OVERHEAD_BYTES
from p2p_network.dataplane.packet import VNET_BYTES
from p2p_network.dataplane.records import ENTRY_BYTES

SIZES: Final = (1500, 1492, 1480, 1460, 1440, 1420, 1400, 1360, 1320, 1280)
"""Ethernet, PPPoE, tunnels in tunnels, and what IPv6 asks for at least."""
ROUNDS: Final = 3
AGAIN_S: Final = 60.0
_OUTER4: Final = 28
_OUTER6: Final = 48
_WEIGHT: Final = 0.25
LEAST_SAMPLE: Final = 50


class PathMtu:
    """The largest datagram that one path carries."""

    __slots__ = ("_answers", "_next_at", "_rounds", "bytes", "outer_bytes")

    def __init__(self, *, is_ip6: bool) -> None:
        self.bytes = SIZES[0]
        self.outer_bytes = _OUTER6 if is_ip6 else _OUTER4
        self._answers: set[int] = set()
        self._rounds = 0
        self._next_at = 0.0

    @property
    def plain_bytes(self) -> int:
        """What one datagram may carry before it is sealed."""
        return self.bytes - self.outer_bytes - OVERHEAD_BYTES

    @property
    def inner_mtu(self) -> int:
        """The largest packet inside."""
        return self.plain_bytes - ENTRY_BYTES - VNET_BYTES

    def probes(self, now: float) -> tuple[int, ...]:
        """Sizes (bytes, with the outer headers) to try now; called about once a second."""
        if now < self._next_at:
            return ()
        if self._rounds < ROUNDS:
            self._rounds += 1
            return SIZES
        if self._answers:
            self.bytes = max(self._answers)
        self._answers = set()
        self._rounds, self._next_at = 0, now + AGAIN_S
        return ()

    def answered(self, size: int) -> None:
        """A probe of this size came through."""
        if size in SIZES:
            self._answers.add(size)


class Quality:
    """How well one association does."""

    __slots__ = ("_expected", "_received", "loss", "rtt_ms")

    def __init__(self) -> None:
        self.rtt_ms: float | None = None
        self.loss: float | None = None
        """Share of our datagrams that did not arrive, lately; None before enough were sent."""
        self._expected = self._received = 0

    def round_trip(self, ms: float) -> None:
        """A heartbeat came back."""
        self.rtt_ms = ms

    def reported(self, expected: int, received: int) -> None:
        """The receiver's counters, modulo 2^32."""
        sent = (expected - self._expected) & 0xFFFFFFFF
        came = (received - self._received) & 0xFFFFFFFF
        if sent < LEAST_SAMPLE or sent >= 1 << 31:
            return
        self._expected, self._received = expected, received
        sample = min(1.0, max(0.0, 1 - came / sent))
        self.loss = sample if self.loss is None else self.loss + _WEIGHT * (sample - self.loss)
