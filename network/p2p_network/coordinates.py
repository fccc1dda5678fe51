"""How far are two nodes apart that may never have talked to each other?

Network coordinates (Vivaldi with a height; Dabek, Cox, Kaashoek, Morris: "Vivaldi: a decentralized network
coordinate system", SIGCOMM 2004): a node moves its own point a little with every round trip it measures, as
if springs as long as the round trips lay between the nodes. The point stands for the place in the wide
network, the height for what every packet of this node pays on top (its access link, a busy processor). Pure:
the measurement and the direction in which two nodes on one spot part are passed in.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

_CE: Final = 0.25  # how fast the error follows a sample
_CC: Final = 0.25  # how fast the point follows a sample
_MAX_ERROR: Final = 1.5
_MIN_HEIGHT_S: Final = 0.000_01
_FINE_S: Final = 0.005
"""Below this a millisecond more or less is no error: it is a machine that was busy."""
_TILT: Final = 0.1
"""So much to the side is a young point pushed (as a share, times its error): nodes that begin on one spot and
part along one line would stay on it, with nothing to push them off, however wrong all distances are there."""
_BOUND_S: Final = 30.0
"""Nothing on Earth is so far away: what says so is not believed."""

MAX_RTT_S: Final = 10.0


class Coordinate(msgspec.Struct, frozen=True, array_like=True):
    """Where a node stands in the network.

    Attributes:
        x, y, z: the point, seconds of round trip.
        height: what its own access adds to every round trip, seconds.
        error: how far to trust this, as a share of a round trip: 1.5 at first, well below 0.3 when settled.
    """

    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    height: float = _MIN_HEIGHT_S
    error: float = _MAX_ERROR

    @property
    def is_sound(self) -> bool:
        """Whether the numbers can be true; what a peer says is checked by this."""
        numbers = (self.x, self.y, self.z, self.height, self.error)
        return (
            all(math.isfinite(number) and abs(number) <= _BOUND_S for number in numbers)
            and self.height >= 0
            and 0 <= self.error <= _MAX_ERROR
        )


ORIGIN: Final = Coordinate()
"""Where every node begins."""


def apart_s(a: Coordinate, b: Coordinate) -> float:
    """The round trip between the places of two nodes, without what their own access costs; seconds."""
    return _length(a.x - b.x, a.y - b.y, a.z - b.z)


def rtt_s(a: Coordinate, b: Coordinate) -> float:
    """The round trip to expect between two nodes, seconds."""
    return apart_s(a, b) + a.height + b.height


def moved(
    own: Coordinate, other: Coordinate, measured_s: float, direction: tuple[float, float, float]
) -> Coordinate:
    """The own coordinate after one measured round trip to a node at `other`.

    Args:
        measured_s: more than `MAX_RTT_S` counts as that.
        direction: in which to part from a node on the same spot, a little also from any other; not all zero.
    """
    assert other.is_sound, "a peer's coordinate is checked before it is used"
    measured_s = min(max(measured_s, 1e-6), MAX_RTT_S)
    expected_s = rtt_s(own, other)
    weight = own.error / max(own.error + other.error, 1e-9)
    wrong = abs(expected_s - measured_s) / max(measured_s, _FINE_S)
    error = min(_MAX_ERROR, wrong * _CE * weight + own.error * (1 - _CE * weight))
    force = _CC * weight * (measured_s - expected_s)
    away = (own.x - other.x, own.y - other.y, own.z - other.z)
    aside = _unit(direction)
    length = _length(*away)
    height = own.height
    if length > 1e-9:
        height = max(_MIN_HEIGHT_S, height + (own.height + other.height) * force / length)
        tilt = _TILT * own.error
        straight = _unit(away)
        ux, uy, uz = _unit(tuple(s + tilt * a for s, a in zip(straight, aside, strict=True)))
    else:
        ux, uy, uz = aside
    new = Coordinate(own.x + ux * force, own.y + uy * force, own.z + uz * force, height, error)
    return new if new.is_sound else ORIGIN


def _length(x: float, y: float, z: float) -> float:
    """As `math.hypot` says it, to the same last bit on every machine and by every Python."""
    return math.sqrt(x * x + y * y + z * z)


def _unit(vector: tuple[float, ...]) -> tuple[float, ...]:
    largest = max(map(abs, vector))  # its square may be too small for a float
    x, y, z = (part / largest for part in vector)
    length = _length(x, y, z)
    return x / length, y / length, z / length
