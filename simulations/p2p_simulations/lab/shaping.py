"""When does a packet leave a bad link, if at all?

Pure; randomness is passed in. One direction of a link: a queue of bounded length in front of a wire of some
rate (tail drop), then loss, delay with jitter, and now and then a packet that takes so much longer that those
behind it overtake.
"""

from __future__ import annotations

import dataclasses
from random import Random


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """What a direction of a link does to packets.

    Attributes:
        delay_ms: one way.
        jitter_ms: up to so much more, evenly spread; order is kept.
        loss: share of packets that vanish.
        reorder: share of packets that come `reorder_ms` later than they should.
        reorder_ms: see `reorder`.
        rate_mbit: of the wire; 0 for no limit.
        queue_ms: what may wait for the wire before packets are dropped.
        mtu: larger packets vanish, as behind a router that answers nothing; 0 for no limit.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    reorder_ms: float = 5.0
    rate_mbit: float = 0.0
    queue_ms: float = 50.0
    mtu: int = 0


def parse(text: str, base: Shape = Shape()) -> Shape:
    """`base` with the settings of "delay_ms=20 loss=0.01". Raises ValueError naming the bad one."""
    fields = {f.name: f for f in dataclasses.fields(Shape)}
    changes: dict[str, float] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals or name not in fields:
            raise ValueError(f"{word!r} is no setting of a link; there are {', '.join(fields)}")
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"{word!r}: {value!r} is no number") from None
        if not 0 <= number < 1e6 or (name in ("loss", "reorder") and number > 1):
            raise ValueError(f"{word!r} is out of range")
        changes[name] = number
    if "mtu" in changes:
        changes["mtu"] = int(changes["mtu"])
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


class Direction:
    """One direction of a link."""

    def __init__(self, shape: Shape, random: Random) -> None:
        self.shape = shape
        self.dropped = 0
        self._random = random
        self._wire_free_at = 0.0
        self._last_out = 0.0

    def leaves_at(self, now: float, size_bytes: int) -> float | None:
        """When the packet comes out (monotonic seconds), or None if it is lost."""
        shape = self.shape
        out = now
        if shape.rate_mbit:
            begin = max(now, self._wire_free_at)
            if begin - now > shape.queue_ms / 1e3:
                self.dropped += 1
                return None
            out = self._wire_free_at = begin + size_bytes * 8 / (shape.rate_mbit * 1e6)
        if (shape.mtu and size_bytes > shape.mtu) or (shape.loss and self._random.random() < shape.loss):
            self.dropped += 1
            return None
        out += shape.delay_ms / 1e3
        if shape.jitter_ms:
            out = max(out + self._random.random() * shape.jitter_ms / 1e3, self._last_out)
        if shape.reorder and self._random.random() < shape.reorder:
            return out + shape.reorder_ms / 1e3
        self._last_out = max(self._last_out, out)
        return out
