"""By which times do etcd and the leader elections of a cluster go? Pure.

They must be equal on all servers, so they follow from what was measured between the first servers, once, and
are certified with the genesis; ``p2p.timing`` sets them by hand. Three steps:

- lan: k3s's own (etcd heartbeat 500 ms, election 5 s; good to about 300 ms of round trip);
- wan (above `WAN_S`): leases of the controllers' elections last 60 s, renewed within 40 s, so that a slow
  answer of the API costs no leader;
- slow (above `SLOW_S`): etcd's heartbeat 1 s and election 10 s as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from p2p_network.coordinates import Coordinate, rtt_s
from p2p_network.core.ids import PeerId
from p2p_network.regions import SETTLED_ERROR
from p2p_roles.genesis.messages import Timing

Speed = Literal["auto", "lan", "wan", "slow"]

WAN_S: Final = 0.050
SLOW_S: Final = 0.300
"""Seconds of round trip between two servers."""

LAN: Final = Timing()
WAN: Final = Timing(lease_s=60, renew_s=40)
SLOW: Final = Timing(heartbeat_ms=1000, election_ms=10_000, lease_s=60, renew_s=40)
_BY_NAME: Final[Mapping[str, Timing]] = {"lan": LAN, "wan": WAN, "slow": SLOW}


def timing_of(speed: Speed, worst_s: float | None) -> Timing:
    """The times: as set by hand, else by the largest round trip between servers (None: not measured)."""
    if speed != "auto":
        return _BY_NAME[speed]
    if worst_s is None or worst_s <= WAN_S:
        return LAN
    return WAN if worst_s <= SLOW_S else SLOW


def worst_rtt_s(
    self_id: PeerId,
    servers: Sequence[PeerId],
    measured: Mapping[PeerId, float],
    places: Mapping[PeerId, Coordinate],
) -> float | None:
    """The largest round trip between any two of the servers, seconds; None if nothing is known.

    Measured where this node is one of the two; else what the coordinates say where both are settled; else
    the way over this node, which can't be shorter.
    """
    known = []
    for a, b in itertools.combinations(servers, 2):
        if self_id in (a, b):
            known.append(measured.get(b if a == self_id else a))
            continue
        at_a, at_b = places.get(a), places.get(b)
        if at_a is not None and at_b is not None and max(at_a.error, at_b.error) <= SETTLED_ERROR:
            known.append(rtt_s(at_a, at_b))
        elif a in measured and b in measured:
            known.append(measured[a] + measured[b])
    found = [value for value in known if value is not None]
    return max(found) if found else None


def k3s_arguments(timing: Timing, *, etcd: bool) -> dict[str, list[str]]:
    """k3s's options for these times, as in its configuration file; nothing where its own times are good."""
    found: dict[str, list[str]] = {}
    if etcd and timing.heartbeat_ms and timing.election_ms:
        found["etcd-arg+"] = [
            f"heartbeat-interval={timing.heartbeat_ms}",
            f"election-timeout={timing.election_ms}",
        ]
    if timing.lease_s and timing.renew_s:
        leases = [
            f"leader-elect-lease-duration={timing.lease_s}s",
            f"leader-elect-renew-deadline={timing.renew_s}s",
        ]
        for component in ("kube-controller-manager", "kube-scheduler", "kube-cloud-controller-manager"):
            found[f"{component}-arg+"] = leases
    return found
