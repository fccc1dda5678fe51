"""What would bringing the cluster back cost, and who does it?

Asks every reachable node for its facts (`ClusterFacts`), has the pure `p2p_roles.recovery` make a plan, and,
when a person approved it, hands the plan's GENESIS to the bootstrap machine to have it decided. What is done
then follows from the certificate, on every node by itself. With ``p2p.recovery: automatic`` the node with the
newest data approves by itself, but only what needs no word on what can't be seen: nobody declared lost, no
silent majority of servers.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from p2p_bootstrap.node.runtime import Runtime
from p2p_network import wire
from p2p_network.core import log
from p2p_network.core.errors import P2PError, QuorumMissing, RoleError, UsageError, nearest
from p2p_network.core.ids import PeerId
from p2p_roles.genesis.messages import Continuation, Genesis
from p2p_roles.quorum import servers_of
from p2p_roles.recovery import (
    FACTS_METHOD,
    ClusterFacts,
    Plan,
    SnapshotFacts,
    could_decide,
    plan_recovery,
    plan_resolution,
    replaced_by,
)
from p2p_roles.view import View, ViewNode

if TYPE_CHECKING:
    from p2p_bootstrap.node.cluster import Cluster
    from p2p_bootstrap.node.ports import Facts, Mesh

logger = log.get(__name__)

FACTS_TIMEOUT_S: Final = 6.0
AUTOMATIC_EVERY_S: Final = 15.0
FENCE_TRIES: Final = 5
AUTOMATIC_AFTER: Final = 4  # looks in a row at which nothing worked


@dataclass(frozen=True, slots=True)
class Look:
    """A plan, with what it rests on."""

    plan: Plan
    view: View
    facts: dict[PeerId, ClusterFacts]


class Recovery:
    """Brings this node's cluster back, or keeps one of two.

    Args:
        facts: of this node's k3s.
        automatic: `p2p.recovery`.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        self_id: PeerId,
        host: Mesh,
        cluster: Cluster,
        facts: Facts,
        automatic: bool,
    ) -> None:
        self._runtime = runtime
        self._self_id = self_id
        self._host = host
        self._cluster = cluster
        self._own = facts
        self._automatic = automatic
        host.serve(FACTS_METHOD, self._answer)
        cluster.chores.before_reset = self.who_could_go_on

    # ------------------------------------------------------------ facts

    async def facts(self) -> ClusterFacts:
        """What this node tells of its k3s."""
        machine = self._cluster.machine
        member, observed = machine.member, self._cluster.k3s.observed.event
        etcd = await self._own.facts()
        return ClusterFacts(
            state=machine.status.state.value,
            role=member.role if member is not None else "",
            k3s=observed.state,
            genesis=member.genesis if member is not None else None,
            epoch=member.epoch if member is not None else 0,
            has_data=etcd.has_data,
            is_ready=member is not None and member.role == "server" and observed.state == "ready",
            term=etcd.term,
            index=etcd.index,
            revision=etcd.revision,
            workloads=machine.workloads,
            snapshots=tuple(await self._own.snapshots()),
        )

    async def _answer(self, peer: PeerId, payload: bytes) -> bytes:
        return wire.encode(await self.facts())

    async def ask_all(self) -> dict[PeerId, ClusterFacts]:
        """The facts of every node in reach, this one's included."""
        found: dict[PeerId, ClusterFacts] = {self._self_id: await self.facts()}

        async def ask(peer: PeerId) -> None:
            try:
                raw = await self._host.request(peer, FACTS_METHOD, b"", timeout_s=FACTS_TIMEOUT_S)
                found[peer] = wire.decode(raw, ClusterFacts)
            except (P2PError, ValueError) as exc:
                self._runtime.log(logger, "roles.facts_missing", logging.DEBUG, peer=peer, detail=str(exc))

        async with self._runtime.task_group() as tasks:
            for peer in sorted(self._cluster.machine.view.alive - {self._self_id}):
                tasks.start_soon(ask, peer)
        return found

    # ------------------------------------------------------------ plans

    async def look(self, *, lost: tuple[str, ...] = (), survivor: str = "", snapshot: str = "") -> Look:
        """The plan of a recovery; names are host names or ends of peer ids. Raises RoleError, UsageError."""
        machine, facts = self._cluster.machine, await self.ask_all()
        view = machine.view
        epoch = machine.up_epoch()
        known = [f for f in facts.values() if f.genesis is not None]
        if machine.member is not None:
            known.insert(0, facts[self._self_id])
        # what a restore has begun that was never certified is nothing to carry on
        current = max((f for f in known if f.epoch <= epoch), key=lambda f: f.epoch, default=None)
        if current is None or current.genesis is None or not epoch:
            raise RoleError(
                "no node in reach has anything of the cluster that was up here"
                if epoch
                else "no cluster was ever up here, so there is nothing to recover",
                hint="to begin from a backup: kairos-p2p restore FILE",
            )
        genesis = current.genesis
        if current.epoch < epoch:  # they answered before it was certified, or who is in it can't be reached
            genesis = machine.certified_genesis(epoch) or genesis
        wanted, holders = find_snapshot(facts, snapshot) if snapshot else (None, ())
        plan = plan_recovery(
            view,
            facts,
            genesis,
            epoch,
            nodes=machine.voting.acceptor.nodes,
            lost=[find_peer(view, name) for name in lost],
            survivor=find_peer(view, survivor) if survivor else None,
            snapshot=wanted,
            holders=holders,
        )
        return Look(plan, view, facts)

    async def look_at_twins(self, keep: str) -> Look:
        """The plan of keeping one of two clusters: an id, or a host name in it. Raises UsageError."""
        machine, facts = self._cluster.machine, await self.ask_all()
        ids = sorted({f.genesis.cluster_id for f in facts.values() if f.genesis is not None})
        found = [name for name in ids if keep and name.startswith(keep)]
        if not found and keep:
            told = facts.get(find_peer(machine.view, keep))
            found = [told.genesis.cluster_id] if told is not None and told.genesis is not None else []
        if len(found) != 1:
            raise UsageError(
                f"{keep!r} names no cluster" if not found else f"{keep!r} names {len(found)} clusters",
                hint=f"clusters in reach: {', '.join(ids) or 'none'}",
            )
        plan = plan_resolution(
            machine.view, facts, found[0], machine.up_epoch(), nodes=machine.voting.acceptor.nodes
        )
        return Look(plan, machine.view, facts)

    async def approve(self, plan: Plan) -> str:
        """Have the plan decided; a sentence. Raises QuorumMissing with what stands in the way."""
        if plan.genesis is None or plan.forbidden:
            raise QuorumMissing("; ".join(plan.forbidden) or "there is nothing to do")
        after = plan.genesis.continues
        assert after is not None, "a plan carries something on"
        genesis = replace(plan.genesis, continues=replace(after, approved_by=self._self_id))
        self._runtime.log(
            logger, "roles.recovery_approved", cluster=genesis.cluster_id, peer=genesis.initiator
        )
        refusal = await self._cluster.recover(genesis)
        if refusal:
            raise QuorumMissing(
                f"no quorum decided it: {refusal}", hint="look again: kairos-p2p cluster recover"
            )
        return f"decided: {plan.survivor.hostname if plan.survivor else 'a server'} carries the cluster on"

    async def who_could_go_on(self, genesis: Genesis) -> str:
        """Which servers could still decide without this one, which begins their etcd anew; "" if too few.

        A quorum of nodes signed the recovery; the servers need not be among them. One that has not heard of
        it (a cut came in between) goes on, and a majority of such would be a second cluster with its keys.
        They are asked for some seconds: to stop k3s takes as long.
        """
        after = genesis.continues
        if after is None or not after.reset or not replaced_by(after):
            return ""
        for _ in range(FENCE_TRIES):
            view, facts = self._cluster.machine.view, await self.ask_all()
            free: list[ViewNode] = []
            for cluster_id in replaced_by(after):
                servers = servers_of(view, cluster_id)
                able = self._free(after, cluster_id, servers, facts)
                free += able if len(able) >= len(servers) // 2 + 1 else []
            if not free:
                return ""
            await self._runtime.signal().wait(timeout_s=1.0)
        names = ", ".join(sorted(node.hostname for node in free))
        return (
            f"{names} did not say yet that k3s stays down there, and could go on without this server. If they"
            " are lost for ever, order it again and say so: --lost"
        )

    def _free(
        self,
        after: Continuation,
        cluster_id: str,
        servers: tuple[ViewNode, ...],
        facts: dict[PeerId, ClusterFacts],
    ) -> list[ViewNode]:
        return [
            node
            for node in servers
            if node.peer != self._self_id
            and node.peer not in after.lost
            and ((told := facts.get(node.peer)) is None or could_decide(told, cluster_id))
        ]

    # ------------------------------------------------------------ by itself

    async def run(self) -> None:
        """Where it was opted in: bring the cluster back without a person; until cancelled."""
        if not self._automatic:
            return
        bad = 0
        while True:
            await self._runtime.signal().wait(timeout_s=AUTOMATIC_EVERY_S)
            quorum = self._cluster.machine.quorum
            bad = bad + 1 if quorum.health in ("minority", "lost") else 0
            if bad < AUTOMATIC_AFTER:
                continue
            bad = 0
            try:
                look = await self.look()
                survivor = look.plan.survivor
                if look.plan.is_needed and survivor is not None and survivor.peer == self._self_id:
                    await self.approve(look.plan)
            except P2PError as exc:
                self._runtime.log(logger, "roles.not_recovered", logging.WARNING, error=exc.message)


def find_peer(view: View, name: str) -> PeerId:
    """The node of that host name, peer id or end of one. Raises UsageError."""
    exact = [n for n in view.nodes if name in (n.hostname, n.peer)]
    found = exact or [n for n in view.nodes if len(name) >= 4 and n.peer.endswith(name)]
    if len(found) != 1:
        near = nearest(name, [n.hostname for n in view.nodes])
        raise UsageError(
            f"{len(found) or 'no'} nodes go by the name {name}",
            hint=f"did you mean {near}?" if near else "see them with: kairos-p2p roles list",
        )
    return found[0].peer


def find_snapshot(facts: dict[PeerId, ClusterFacts], name: str) -> tuple[SnapshotFacts, tuple[PeerId, ...]]:
    """The snapshot of that name or beginning of its digest, and who has it; "latest" is the newest.

    Raises UsageError.
    """
    everywhere = [(peer, snapshot) for peer, f in facts.items() for snapshot in f.snapshots]
    if name == "latest" and everywhere:
        digest = max(everywhere, key=lambda item: (item[1].created_s, item[1].digest))[1].digest
    else:
        matching = {
            s.digest
            for _, s in everywhere
            if s.name == name or (len(name) >= 6 and s.digest.startswith(name))
        }
        if len(matching) != 1:
            raise UsageError(
                f"{len(matching) or 'no'} snapshots go by the name {name}",
                hint="see them with: kairos-p2p cluster snapshot list",
            )
        (digest,) = matching
    holders = tuple(peer for peer, snapshot in everywhere if snapshot.digest == digest)
    return next(s for _, s in everywhere if s.digest == digest), holders
