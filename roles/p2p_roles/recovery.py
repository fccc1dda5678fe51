"""How does a cluster that lost its quorum (or has a twin) come back, and what would that cost?

Pure. `plan_recovery` and `plan_resolution` look at what every reachable node told of its k3s (`ClusterFacts`)
and say who would bring the cluster back, what would be lost and what forbids it; `order_of` makes the
GENESIS that carries the cluster on, for a quorum to decide; `objection` is what every voter holds against
such a proposal from its own point of view. Nothing is done here.

A recovery is the next epoch with the same CA. It is safe against a living majority elsewhere, since voters
refuse while the servers that can't be seen could be one, unless an operator declared them lost; and against
a second recovery, since one epoch has one GENESIS. Who comes back later finds a newer epoch and is fenced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec.structs import replace

from p2p_network.core.ids import PeerId, stable_hash
from p2p_roles.genesis.messages import MAX_SERVERS, Continuation, Genesis, covered, quorum
from p2p_roles.quorum import could_be_elsewhere, servers_of
from p2p_roles.transitions import State
from p2p_roles.view import MAX_NODES, View

FACTS_METHOD: Final = "cluster.facts"
MAX_LINEAGE: Final = 32
_NOT_IN: Final = frozenset(
    {State.JOIN, State.CHANGE, State.FENCED}
)  # these set their data aside by themselves


class SnapshotFacts(msgspec.Struct, frozen=True):
    """One etcd snapshot on a node. `digest`: hex SHA-256; `created_s`: Unix time; `holder`: host name."""

    name: str
    digest: str
    size_bytes: int
    created_s: float
    node: str = ""


class ClusterFacts(msgspec.Struct, frozen=True):
    """What one node tells of its k3s.

    Attributes:
        state: of its bootstrap machine; `k3s`: of its k3s.
        genesis: of the cluster it is a member of; None if of none.
        epoch: of that genesis.
        has_data: a server's datastore is on its disk.
        is_ready: etcd decides there.
        term, index, revision: of its etcd; 0 while unknown (k3s does not run).
        workloads: objects besides k3s's own; None while unknown.
        snapshots: whose bytes it has, newest first.
    """

    state: str
    role: str
    k3s: str
    genesis: Genesis | None
    epoch: int
    has_data: bool
    is_ready: bool
    term: int = 0
    index: int = 0
    revision: int = 0
    workloads: int | None = None
    snapshots: tuple[SnapshotFacts, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server that could bring the cluster back."""

    peer: PeerId
    hostname: str
    facts: ClusterFacts

    @property
    def order(self) -> tuple[int, int, int, str]:
        """The newest data last: as Raft compares logs, then by what etcd has stored."""
        return (self.facts.term, self.facts.index, self.facts.revision, self.peer)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recovery or a resolution would do.

    Attributes:
        genesis: what would be decided; None if nothing can be.
        survivor: who brings the cluster back.
        candidates: best first.
        forbidden: why it can't be done now; () if it can.
        losses: sentences, what would be lost or set aside.
        steps: sentences, what would be done.
        is_needed: the cluster does not work as it is.
    """

    genesis: Genesis | None
    survivor: Candidate | None
    candidates: tuple[Candidate, ...]
    forbidden: tuple[str, ...]
    losses: tuple[str, ...]
    steps: tuple[str, ...]
    is_needed: bool


def plan_recovery(
    view: View,
    facts: Mapping[PeerId, ClusterFacts],
    current: Genesis,
    epoch: int,
    *,
    nodes: int,
    lost: Collection[PeerId] = (),
    survivor: PeerId | None = None,
    snapshot: SnapshotFacts | None = None,
    holders: Collection[PeerId] = (),
) -> Plan:
    """How the cluster of `current` would be brought back.

    Args:
        facts: of the nodes that answered.
        epoch: the newest one with a READY, or that of a recovery that was given up.
        nodes: N, as far as it is known.
        lost: declared lost by the operator.
        survivor: the operator's choice; default: the newest data.
        snapshot: to restore instead of the survivor's data; `holders`: who has it.
    """
    gone = frozenset(PeerId(p) for p in lost)
    servers = servers_of(view, current.cluster_id, current.servers)
    found = sorted(
        (
            Candidate(node.peer, node.hostname, facts[node.peer])
            for node in view.nodes
            if node.peer in facts
            and node.alive
            and node.vpn_ipv4
            and (found_here := facts[node.peer]).role == "server"
            and found_here.state not in _NOT_IN
            and found_here.genesis is not None
            and found_here.genesis.cluster_id == current.cluster_id
            and (found_here.has_data or (snapshot is not None and node.peer in holders))
        ),
        key=lambda c: c.order,
        reverse=True,
    )
    if snapshot is not None and not survivor:
        found.sort(key=lambda c: c.peer not in holders)
    chosen = next((c for c in found if survivor in (None, c.peer)), None)
    forbidden = [*_not_lost(view, gone), *_living_majority(servers, facts, snapshot)]
    elsewhere = could_be_elsewhere(servers, gone)
    if elsewhere:
        names = ", ".join(sorted(node.hostname for node in elsewhere))
        forbidden.append(
            f"{names} cannot be reached and could keep the cluster going without us: look at them. If they "
            f"are lost for ever, say so: --lost {names.replace(' ', '')}"
        )
    if chosen is None:
        forbidden.append("no server in reach has the cluster's data: restore a backup, kairos-p2p restore")
    counted = max(nodes, len(view.nodes)) - len(gone)
    if len(view.alive) < quorum(counted):
        forbidden.append(
            f"{len(view.alive)} of {counted} nodes are in reach, {quorum(counted)} must agree; name those "
            f"that are lost for ever with --lost{_declared_by(view)}"
        )
    is_needed = not any(f.is_ready for f in facts.values() if _is_of(f, current))
    if chosen is None:
        return Plan(None, None, tuple(found), tuple(forbidden), (), (), is_needed)
    node = view.by_peer[chosen.peer]
    others = tuple(
        n.peer
        for n in servers
        if n.alive and n.peer != chosen.peer and n.peer not in gone and n.peer in facts
    )
    genesis = replace(
        current,
        cluster_id=f"{stable_hash('recovery', view.scope, epoch + 1, chosen.peer, current.cluster_id):016x}",
        initiator=chosen.peer,
        vpn_ip=node.vpn_ipv4,
        servers=(chosen.peer, *others)[:MAX_SERVERS],
        continues=Continuation(
            epoch,
            current.cluster_id,
            reset=True,
            snapshot=snapshot.digest if snapshot is not None else "",
            lost=tuple(sorted(gone)),
            lineage=lineage_of(current),
            abandons=abandons_of(current),
        ),
    )
    losses = _losses(view, chosen, found, servers, gone, snapshot)
    steps = _steps(view, chosen, others, snapshot)
    return Plan(genesis, chosen, tuple(found), tuple(forbidden), losses, steps, is_needed)


def _declared_by(view: View) -> str:
    """Who declares more nodes than were ever seen: that may be a slip, and can be taken back."""
    names = ", ".join(
        f"{node.hostname} {node.minimum_nodes}" for node in view.nodes if node.minimum_nodes > len(view.nodes)
    )
    return (
        f". {len(view.nodes)} are known, and p2p.minimum_nodes declares more ({names}): if that is too many, "
        "correct it there and start the agent anew"
        if names
        else ""
    )


def lineage_of(genesis: Genesis) -> tuple[str, ...]:
    """The ids that a cluster had before its present one, newest first."""
    before = genesis.continues
    return (
        (before.cluster_id, *before.lineage)[:MAX_LINEAGE] if before is not None and before.cluster_id else ()
    )


def abandons_of(genesis: Genesis) -> tuple[str, ...]:
    """The clusters that were set aside for it, for whoever slept meanwhile."""
    return genesis.continues.abandons[:MAX_LINEAGE] if genesis.continues is not None else ()


def ended_with(genesis: Genesis) -> tuple[str, ...]:
    """What is set aside with this cluster: it, what it was before, and what had been set aside for it."""
    return (genesis.cluster_id, *lineage_of(genesis), *abandons_of(genesis))


def given_up(ended: Iterable[Genesis], kept: Genesis | None = None) -> tuple[str, ...]:
    """The ids of all clusters that end when these are set aside. `kept`: for which, if that was there."""
    ids = [name for genesis in ended for name in ended_with(genesis)]
    ids += abandons_of(kept) if kept is not None else ()
    spared = (kept.cluster_id, *lineage_of(kept)) if kept is not None else ()
    return tuple(name for name in sorted(set(ids[:MAX_NODES])) if name not in spared)


def is_kin(old: Genesis, new: Genesis) -> bool:
    """Whether `new` carries the cluster of `old` on, perhaps after others did."""
    after = new.continues
    return after is not None and old.cluster_id in (after.cluster_id, *after.lineage)


def _is_of(facts: ClusterFacts, current: Genesis) -> bool:
    return facts.genesis is not None and facts.genesis.cluster_id == current.cluster_id


def _not_lost(view: View, gone: frozenset[PeerId]) -> list[str]:
    return [
        f"{view.name(peer)} was declared lost, but it is here: it cannot be left out"
        for peer in sorted(gone)
        if peer in view.alive
    ]


def _living_majority(
    servers: Collection[object], facts: Mapping[PeerId, ClusterFacts], snapshot: SnapshotFacts | None
) -> list[str]:
    if snapshot is not None:
        return []  # going back to a snapshot is a wish of its own
    if any(f.role == "server" and f.is_ready for f in facts.values()):
        return ["the cluster works: etcd decides on at least one server, so there is nothing to recover"]
    return []


def _losses(
    view: View,
    chosen: Candidate,
    found: list[Candidate],
    servers: tuple[object, ...],
    gone: frozenset[PeerId],
    snapshot: SnapshotFacts | None,
) -> tuple[str, ...]:
    said = []
    if snapshot is not None:
        said.append(
            f"everything written after the snapshot {snapshot.name} ({snapshot.size_bytes} bytes) is lost"
        )
    elif chosen.facts.index:
        said.append(
            f"everything that {chosen.hostname} has not got: it knows the log up to term "
            f"{chosen.facts.term}, index {chosen.facts.index} (revision {chosen.facts.revision})"
        )
    else:
        said.append(
            f"everything that {chosen.hostname} has not got; how new its data is cannot be told, its k3s "
            "does not run"
        )
    for other in found:
        if other.peer != chosen.peer and other.order[:3] > chosen.order[:3] and snapshot is None:
            said.append(f"{other.hostname} has newer data than {chosen.hostname}: it will be set aside")
    said += [f"{view.name(peer)} is struck off; it comes back as a new server" for peer in sorted(gone)]
    return tuple(said)


def _steps(
    view: View, chosen: Candidate, others: tuple[PeerId, ...], snapshot: SnapshotFacts | None
) -> tuple[str, ...]:
    names = ", ".join(sorted(view.name(peer) for peer in others))
    back = f"from the snapshot {snapshot.name}" if snapshot is not None else "from its own data"
    said = [
        "a quorum of the nodes in reach signs the recovery; whoever comes back later is fenced by it",
        f"k3s stops on {', '.join(filter(None, (chosen.hostname, names)))}",
        f"{chosen.hostname} copies its etcd data aside and begins a cluster of one {back} (cluster-reset)",
    ]
    if others:
        said.append(f"{names}: etcd's data is set aside (nothing is deleted), then joined anew")
    return (*said, "agents go on; they find the new control plane by themselves")


def plan_resolution(
    view: View,
    facts: Mapping[PeerId, ClusterFacts],
    keep: str,
    epoch: int,
    *,
    nodes: int,
) -> Plan:
    """How one of two clusters would be kept, and the other given up.

    Args:
        keep: cluster id of the one to keep.
        epoch: the newest one with a READY that is known here.
    """
    kept = [
        Candidate(node.peer, node.hostname, facts[node.peer])
        for node in view.nodes
        if node.alive and node.vpn_ipv4 and node.peer in facts and _keeps(facts[node.peer], keep)
    ]
    kept.sort(key=lambda c: (c.facts.genesis is None or c.facts.genesis.initiator != c.peer, c.peer))
    abandoned = {
        f.genesis.cluster_id: f for f in facts.values() if f.genesis is not None and not _keeps_id(f, keep)
    }
    forbidden = []
    if not kept:
        forbidden.append(f"no server of the cluster {keep} is ready and in reach")
    if not abandoned:
        forbidden.append("all nodes in reach are of one cluster: there is nothing to resolve")
    counted = max(nodes, len(view.nodes))
    if len(view.alive) < quorum(counted):
        forbidden.append(f"{len(view.alive)} of {counted} nodes are in reach, {quorum(counted)} must agree")
    if not kept:
        return Plan(None, None, (), tuple(forbidden), (), (), True)
    chosen = kept[0]
    old = chosen.facts.genesis
    assert old is not None, "it was found by its genesis"
    genesis = replace(
        old,
        cluster_id=f"{stable_hash('kept', view.scope, epoch + 1, keep):016x}",
        initiator=chosen.peer,
        vpn_ip=view.by_peer[chosen.peer].vpn_ipv4,
        servers=(chosen.peer, *(p for p in old.servers if p != chosen.peer))[:MAX_SERVERS],
        continues=Continuation(
            epoch,
            keep,
            lineage=lineage_of(old),
            abandons=given_up((f.genesis for f in abandoned.values() if f.genesis is not None), old),
        ),
    )
    losses = tuple(
        f"the cluster {cluster_id} is given up, with "
        + (f"{f.workloads} objects of users" if f.workloads is not None else "an unknown number of objects")
        + ": a snapshot is taken where etcd still answers, and all its data is set aside"
        for cluster_id, f in sorted(abandoned.items())
    )
    steps = (
        f"a quorum signs that {chosen.hostname} carries the cluster {keep} on; its servers go on as they are",
        "the other nodes stop k3s, set its data aside and join",
    )
    return Plan(genesis, chosen, tuple(kept), tuple(forbidden), losses, steps, True)


def _keeps_id(facts: ClusterFacts, keep: str) -> bool:
    return facts.genesis is not None and facts.genesis.cluster_id == keep


def _keeps(facts: ClusterFacts, keep: str) -> bool:
    return _keeps_id(facts, keep) and facts.role == "server" and facts.is_ready


def replaced_by(continues: Continuation) -> tuple[str, ...]:
    """The clusters whose etcd may not go on once this one begins: that of the data, and those set aside."""
    return tuple(dict.fromkeys(filter(None, (continues.cluster_id, *continues.abandons))))


def could_decide(facts: ClusterFacts, cluster_id: str) -> bool:
    """Whether that node may be a working server of the cluster: it has not put k3s down for a recovery."""
    if facts.genesis is None or facts.genesis.cluster_id != cluster_id or facts.role != "server":
        return False
    is_down = facts.k3s in ("stopped", "absent") and not facts.term  # whose etcd answers, runs still
    return facts.state != "HELD" or not is_down


def objection(view: View, value: Genesis, nodes: int, known: int, *, is_serving: bool) -> str:
    """What this voter holds against a proposed recovery; "" if nothing.

    Args:
        nodes: N of the proposal, which leaves the lost ones out.
        known: N as this node knows it.
        is_serving: this node is a server of that cluster, and etcd decides here.
    """
    continues = value.continues
    assert continues is not None, "only of a GENESIS that carries something on"
    gone = frozenset(map(PeerId, continues.lost))
    for peer in sorted(gone):
        if peer in view.alive:
            return f"{view.name(peer)} was declared lost, but I hear it"
    counted = min(MAX_NODES, max(known, len(view.nodes))) - len(gone)
    if covered(nodes) < counted:
        return f"the proposal counts on {nodes} nodes, I know of {counted}"
    if continues.reset:
        if is_serving and not continues.snapshot:
            return "etcd decides here: there is nothing to recover"
        for cluster_id in replaced_by(continues):
            if elsewhere := could_be_elsewhere(servers_of(view, cluster_id), gone):
                names = ", ".join(sorted(node.hostname for node in elsewhere))
                return f"{names} could keep the cluster going without us, and nobody declared them lost"
    return ""
