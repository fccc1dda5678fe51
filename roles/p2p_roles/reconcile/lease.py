"""Which server decides? The one that holds the Kubernetes Lease; pure.

The rules of client-go's leader election: a lease that its holder does not renew for its duration may be
taken, and the time is measured from when this node saw it change last, never by comparing the clocks of
two machines. The API's resourceVersion decides between two who take it at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

LEASE_NAME: Final = "kairos-p2p"
DURATION_S: Final = 15
RENEW_S: Final = 5.0
LET_GO_S: Final = 10.0
"""A holder that could not renew for so long takes no step any more."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a look at the lease says. `write`: the object to write now, None for nothing to write;
    `is_new`: it has to be created. `holder`: who has it as far as seen."""

    holder: str
    write: dict[str, Any] | None = None
    is_new: bool = False


class Lease:
    """One server's part in it. `self_id`: its peer id, the holder's name in the lease."""

    def __init__(self, self_id: str) -> None:
        self._self_id = self_id
        self._seen: object = None
        self._seen_at = 0.0
        self._renewed_at = float("-inf")

    def look(self, now: float, stored: dict[str, Any] | None, wall: str) -> Held:
        """The lease as stored is this. `wall`: this machine's time, RFC 3339 with microseconds."""
        if stored is None:
            return Held("", _lease(self._self_id, wall, 1, None), True)
        spec = stored.get("spec")
        spec = spec if isinstance(spec, dict) else {}
        holder = str(spec.get("holderIdentity") or "")
        seen = (holder, spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        turns = spec.get("leaseTransitions")
        turns = turns if isinstance(turns, int) else 0
        if holder == self._self_id:
            if now - self._renewed_at < RENEW_S:
                return Held(holder)
            return Held(holder, _lease(holder, wall, turns, stored))
        duration = spec.get("leaseDurationSeconds")
        duration_s = min(max(duration, 1), 3600) if isinstance(duration, int) else DURATION_S
        if holder and now - self._seen_at < duration_s:
            return Held(holder)
        return Held(holder, _lease(self._self_id, wall, turns + 1, stored))

    def written(self, now: float) -> None:
        """What `look` wanted written is written; `now`: from before it was sent."""
        self._renewed_at = now

    def lost(self) -> None:
        """Somebody else was faster."""
        self._renewed_at = float("-inf")

    def is_held(self, now: float) -> bool:
        """Whether this server may take a step at this moment."""
        return now - self._renewed_at < LET_GO_S


def _lease(holder: str, wall: str, turns: int, stored: dict[str, Any] | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": LEASE_NAME, "namespace": "kube-system"}
    acquired = wall
    if stored is not None:
        metadata = stored["metadata"]
        spec = stored.get("spec")
        if isinstance(spec, dict) and spec.get("holderIdentity") == holder:
            acquired = str(spec.get("acquireTime") or wall)
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": DURATION_S,
            "leaseTransitions": turns,
            "acquireTime": acquired,
            "renewTime": wall,
        },
    }
