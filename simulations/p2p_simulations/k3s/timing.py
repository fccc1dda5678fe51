"""How long does what take? k3s's own figures scaled down, so that tests of minutes take seconds.

Only waiting is scaled, never an order of events. k3s's own value stands behind each; heartbeat and
election are overridden by `etcd-arg`, the node figures by `kubelet-arg` and `kube-controller-manager-arg`.
"""

from __future__ import annotations

import os

from p2p_simulations.k3s.errors import K3sError
from p2p_simulations.k3s.flags import Settings

HEARTBEAT_MS = 300  # k3s: 500
ELECTION_MS = 1500  # k3s: 5000
TEST_ETCD_S = 0.25  # k3s: 5
JOIN_RETRY_S = 0.4  # k3s: 1
HEALTH_S = 0.5  # etcd: 5; so long must all voters have been connected before a member may come or go
CONNECT_RETRY_S = 1.0  # k3s: 2
CONFIG_RETRY_S = 1.0  # k3s: 5, with as much jitter
SERVERS_REFRESH_S = 2.0  # k3s: a watch
NODE_STATUS_S = 10.0  # kubelet: node-status-update-frequency
NODE_GRACE_S = 40.0  # kube-controller-manager: node-monitor-grace-period
REQUEST_S = 7.0  # etcd: 5 s and twice the election timeout
CONTROLLER_S = 0.5  # kube-controller-manager: node-monitor-period 5


def promotion_tick_s() -> float:
    """k3s: 15. `K3S_SIMULATED_PROMOTION_TICK_S` overrides."""
    return float(os.environ.get("K3S_SIMULATED_PROMOTION_TICK_S", "0.5"))


def seconds(text: str) -> float:
    """A Go duration such as "40s", "1m30s", "500ms". Raises K3sError."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    total, rest = 0.0, text.strip()
    if not rest:
        raise K3sError('invalid duration ""')
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        unit = next((u for u in units if rest[digits:].startswith(u)), None)
        if not digits or unit is None:
            raise K3sError(f'invalid duration "{text}"')
        total += float(rest[:digits]) * units[unit]
        rest = rest[digits + len(unit) :]
    return total


def milliseconds(settings: Settings, name: str, default: int) -> int:
    """The `etcd-arg` of this name. Raises K3sError."""
    text = settings.component("etcd-arg", name)
    if text is None:
        return default
    if not text.isdigit() or int(text) == 0:
        raise K3sError(f'starting kubernetes: invalid argument "{text}" for "--{name}" flag')
    return int(text)
