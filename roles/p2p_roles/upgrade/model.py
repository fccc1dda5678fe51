"""What is an upgrade of k3s, and how far is each node with it?

Two records. The `Order` says which version all nodes shall run and whose turn it is; it lies in a ConfigMap
and is mirrored into the ledger (``upgrade/<scope>``), with the datastore's version as fence. The `Progress`
is what a node says of itself (``k3s/<peer>``), and what it must not forget. Both come from others: bounded
and checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from p2p_network import wire
from p2p_network.core.ids import PeerId
from p2p_network.ledger.entry import MAX_FENCE
from p2p_roles.assign import Role

OBJECT: Final = "kairos-p2p-upgrade"
MAX_TURNS: Final = 64
"""So many nodes at most are upgraded at the same time."""
MAX_ORDER_BYTES: Final = 16 << 10
MAX_REASON_CHARS: Final = 500
MIN_PATIENCE_S: Final = 5.0
MAX_PATIENCE_S: Final = 3600.0
_VERSION: Final = re.compile(r"v(\d{1,4})\.(\d{1,4})\.(\d{1,4})([-+][A-Za-z0-9.+-]{1,40})?")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")

OrderState = Literal[
    "running",  # nodes take turns
    "back",  # those that have the new version return to the one before
    "done",  # all run it; who comes later gets it too
    "stopped",  # nothing is done any more
]
Phase = Literal[
    "",  # nothing yet
    "staged",  # the program is here, checked
    "trying",  # it was put into place and k3s started again; is it well?
    "done",  # it is
    "falling",  # it is not: the one before is put back
    "failed",  # the one before runs again, or the program could not be had
    "returning",  # the one before is put back, since the whole cluster goes back
    "returned",  # it runs again
]
UNDER_WAY: Final = ("trying", "falling", "returning")


class Program(msgspec.Struct, frozen=True):
    """k3s for one kind of machine. `arch`: as upstream calls it, e.g. "amd64"."""

    arch: str
    sha256: str
    size_bytes: int


class Order(msgspec.Struct, frozen=True):
    """Which k3s all nodes shall run, and who changes now.

    Attributes:
        number: of this upgrade; a later one's is higher.
        turns: the nodes whose turn it is.
        wave: how many agents at the same time; 0: a quarter of them.
        patience_s: so long k3s may take to be ready again.
        reason: one sentence: where it stands. by: who ordered it.
        source: the node that has all programs from the beginning.
        fence: see `assign.Assignment`.
    """

    number: int
    version: str
    programs: tuple[Program, ...]
    cluster_id: str
    state: OrderState = "running"
    turns: tuple[str, ...] = ()
    wave: int = 0
    patience_s: float = 300.0
    reason: str = ""
    by: str = ""
    source: str = ""
    fence: int = 0

    def program_for(self, arch: str) -> Program | None:
        """The program for such a machine, if there is one."""
        return next((program for program in self.programs if program.arch == arch), None)


class Progress(msgspec.Struct, frozen=True):
    """Where one node stands.

    Attributes:
        version: of the k3s that is installed, "" if there is none.
        order: number of the order that `phase` is about.
        before: the version that was there before.
        error: why it failed, or what is in the way.
    """

    version: str
    arch: str
    order: int = 0
    phase: Phase = ""
    before: str = ""
    error: str = ""

    def of(self, order: Order) -> Phase:
        """How far it is with this order."""
        return self.phase if self.order == order.number else ""


def key_of(scope: str) -> str:
    """The ledger key of a cluster's order."""
    return f"upgrade/{scope}"


def encode(order: Order) -> bytes:
    """An order as a ledger value."""
    return wire.encode(order)


def decode(raw: bytes) -> Order:
    """An order from untrusted bytes. Raises ValueError."""
    if len(raw) > MAX_ORDER_BYTES:
        raise ValueError(f"an upgrade has at most {MAX_ORDER_BYTES} bytes, this has {len(raw)}")
    return _checked(wire.decode(raw, Order))


def fence_of(raw: bytes) -> int:
    """The fence of a ledger value; 0 if it is no order. Never raises."""
    try:
        return decode(raw).fence
    except ValueError:
        return 0


def to_object(order: Order, version: str) -> dict[str, Any]:
    """The ConfigMap. `version`: the resourceVersion of the one that it replaces, "" for a new one."""
    metadata: dict[str, Any] = {
        "name": OBJECT,
        "namespace": "kube-system",
        "labels": {"app.kubernetes.io/managed-by": "kairos-p2p"},
    }
    if version:
        metadata["resourceVersion"] = version
    words = msgspec.to_builtins(order)
    del words["fence"]
    data = {"order": json.dumps(words, sort_keys=True)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def from_object(stored: dict[str, Any]) -> Order:
    """The order in a ConfigMap, its fence the object's version. Raises ValueError."""
    data, metadata = stored.get("data"), stored.get("metadata")
    text = data.get("order") if isinstance(data, dict) else None
    if not isinstance(text, str) or len(text) > MAX_ORDER_BYTES:
        raise ValueError(f"the ConfigMap {OBJECT} holds no upgrade")
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else ""
    fence = int(version) if isinstance(version, str) and version.isdigit() else 0
    order = msgspec.json.decode(text, type=Order)
    return _checked(msgspec.structs.replace(order, fence=min(fence, MAX_FENCE)))


def _checked(order: Order) -> Order:
    if not 0 < order.number < 1 << 53 or not 0 <= order.fence <= MAX_FENCE:
        raise ValueError("number or fence of the upgrade is out of range")
    if _VERSION.fullmatch(order.version) is None:
        raise ValueError(f"{order.version[:40]!r} is no version")
    if len(order.turns) > MAX_TURNS or not 0 <= order.wave <= MAX_TURNS or len(order.programs) > 8:
        raise ValueError("the upgrade has too many turns or programs")
    if not MIN_PATIENCE_S <= order.patience_s <= MAX_PATIENCE_S:
        raise ValueError("the upgrade's patience is out of range")
    for program in order.programs:
        if _SHA256.fullmatch(program.sha256) is None or program.size_bytes < 0:
            raise ValueError(f"the program for {program.arch[:20]} has no checksum")
    return order


# ---------------------------------------------------------------- which version may follow which


def minor_of(version: str) -> tuple[int, int] | None:
    """(major, minor); None if it is no version."""
    match = _VERSION.fullmatch(version)
    return (int(match[1]), int(match[2])) if match is not None else None


def refusal(version: str, running: Iterable[str]) -> str:
    """Why a cluster of these versions can't get that one; "" if it can.

    Kubernetes goes from one minor version to the next, never over one and never back.
    """
    wanted = minor_of(version)
    if wanted is None:
        return f"{version} is no version"
    for one in sorted({v for v in running if v}):
        now = minor_of(one)
        if now is None:
            continue
        if wanted < now:
            return f"{version} is older than {one}: Kubernetes does not go back to a minor version before"
        if wanted[0] != now[0] or wanted[1] > now[1] + 1:
            return f"{version} is more than one minor version after {one}: go by the versions between"
    return ""


def may_return(version: str, before: Iterable[str]) -> bool:
    """Whether nodes that run `version` may go back: only its own minor version reads all that it wrote."""
    return all(minor_of(one) == minor_of(version) for one in before if one)


# ---------------------------------------------------------------- facts


@dataclass(frozen=True, slots=True)
class UpgradeNode:
    """One node as the holder of the lease sees it. `turn_s`: for how long it has been its turn."""

    peer: PeerId
    name: str
    role: Role
    progress: Progress | None
    alive: bool = True
    ready: bool = True
    turn_s: float = 0.0


@dataclass(frozen=True, slots=True)
class UpgradeFacts:
    """What the next turn rests on.

    Attributes:
        self_id: who decides: of the servers it goes last.
        nodes: all nodes of the cluster.
        busy: what else is being changed in the cluster's membership; "" for nothing.
        lost: members of the datastore that are no nodes of the mesh any more: they count in its quorum.
    """

    self_id: PeerId
    order: Order
    nodes: tuple[UpgradeNode, ...]
    busy: str = ""
    lost: tuple[str, ...] = ()
