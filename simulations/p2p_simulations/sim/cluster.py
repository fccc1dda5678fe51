"""Which role has a simulated node? The twin of the agent's `Cluster`.

The bootstrap machine runs unchanged and gets to know the same things in the same way: the view, certificates
and assignments from the ledger, votes from peers, what k3s does. What it wants done is done on the
simulated disk, mesh and k3s, and shown to the checkers.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, assert_never

from p2p_bootstrap.node.cluster import JOIN_METHOD, JOIN_TIMEOUT_S, VOTE_TIMEOUT_S
from p2p_network import wire
from p2p_network.core.errors import MeshError, RemoteViolation
from p2p_network.core.ids import PeerId
from p2p_network.ledger.reading import read_by_peer
from p2p_network.membership import MemberState
from p2p_network.records import RoleRecord
from p2p_roles import assign, events
from p2p_roles.assign import Role
from p2p_roles.bootstrap import Bootstrap
from p2p_roles.genesis import messages
from p2p_roles.genesis.acceptor import Asked, Reply
from p2p_roles.genesis.proposer import Answered, Ask
from p2p_roles.view import View, ViewNode
from p2p_simulations.sim.runner import SimRunner
from p2p_simulations.sim.unit import SimK3sUnit
from p2p_simulations.world.tasks import Signal

if TYPE_CHECKING:
    from p2p_simulations.sim.agent import SimAgent

DURABLE = "durable/"


class SimCluster:
    """One agent's part in forming and keeping its cluster. `started`: it has read its own state."""

    def __init__(self, agent: SimAgent, vpn_changed: Signal) -> None:
        self._agent, self._node, self._tasks = agent, agent.machine, agent.tasks
        self._world = agent.machine.world
        self._vpn_changed = vpn_changed
        self.scope = agent.machine.scope
        self._durable_name = f"{DURABLE}bootstrap/{self.scope}"
        self._last_view: tuple[ViewNode, ...] = ()
        self._vpn_said = False
        self.started = False
        self.unit = SimK3sUnit(agent)
        identity = agent.machine.identity
        self.machine: Bootstrap = self._world.make_bootstrap(
            self_id=agent.peer,
            scope=self.scope,
            mesh_id=self._world.mesh_id,
            sign=lambda message: identity.sign(messages.VOTE_PURPOSE, message),
            rules=self._world.rules_of(agent.machine),
        )
        self.runner = SimRunner(
            self._tasks,
            agent.machine.monotonic,
            self.machine,
            self._carry_out,
            events.Tick,
            self._noted,
            after=self._publish,
        )
        agent.host.serve(messages.METHOD, self._answer_vote)
        agent.host.serve(JOIN_METHOD, self._answer_join)

    @property
    def is_idle(self) -> bool:
        """Whether everything decided so far is also done."""
        return self.started and not self.runner.is_busy and not self.unit.is_busy

    # ------------------------------------------------------------ running

    async def run(self) -> None:
        """Form, join and keep the cluster."""
        raw: bytes | None = self._node.disk.read(self._durable_name)
        prefix = f"genesis/{self.scope}/"
        known = tuple(e.value for e in self._agent.replication.ledger.items(prefix) if e.value is not None)
        await self.runner.feed(events.Started(raw, known))
        self.started = True
        self._world.checkers.started(self._node, self.machine)
        self.unit.adopt()
        self.runner.run()
        for job in (
            self._watch_view(),
            self._watch_certificates(prefix),
            self._watch_assignments(),
            self._watch_vpn(),
            self._watch_k3s(),
        ):
            self._tasks.start(job)

    async def _feed(self, event: events.Event) -> None:
        await self.runner.feed(event)

    async def _publish(self) -> None:
        status = self.machine.status
        record = RoleRecord(
            state=status.state.value,
            role=status.role or "",
            reason=status.reason[:500],
            epoch=status.epoch,
            ready=status.ready,
            cluster_id=status.cluster_id,
        )
        await self._agent.replication.write(f"role/{self._agent.peer}", wire.encode(record))

    def _noted(self, reason: str) -> None:
        self._agent.note(reason)

    # ------------------------------------------------------------ what the machine gets to know

    async def _watch_view(self) -> None:
        changed = Signal(self._tasks)
        changed.raise_()
        self._agent.replication.subscribe_view(changed)
        self._agent.replication.subscribe("role/", changed)
        while True:
            await changed.wait()
            view = self._view()
            if view is not None and view.nodes != self._last_view:
                self._last_view = view.nodes
                await self._feed(events.ViewChanged(view))

    def _view(self) -> View | None:
        said = read_by_peer(self._agent.replication.ledger, "role/", RoleRecord)
        nodes = []
        for member in self._agent.replication.view.members:
            record = member.record
            if record is None or member.state is MemberState.LEFT:
                continue
            if self._world.plan.per_region and record.region != self._node.plan.region:
                continue
            role = said.get(member.peer)
            nodes.append(
                ViewNode(
                    peer=member.peer,
                    hostname=record.hostname,
                    region=record.region,
                    zone=record.zone,
                    wish=record.wish,
                    alive=member.state is MemberState.ALIVE,
                    vpn_ipv4=member.ipv4,
                    vpn_ipv6=member.ipv6,
                    minimum_nodes=record.minimum_nodes,
                    servers=record.servers,
                    role=role.role if role else "",
                    ready=role.ready if role else False,
                    cluster_id=role.cluster_id if role else "",
                )
            )
        if not any(node.peer == self._agent.peer for node in nodes):
            return None
        return View(self._agent.peer, self.scope, tuple(nodes), self._node.monotonic())

    async def _watch_certificates(self, prefix: str) -> None:
        changed = Signal(self._tasks)
        changed.raise_()
        self._agent.replication.subscribe(prefix, changed)
        seen: set[bytes] = set()
        while True:
            await changed.wait()
            for entry in self._agent.replication.ledger.items(prefix):
                if entry.value is not None and entry.value not in seen:
                    seen.add(entry.value)
                    await self._feed(events.CertificateLearned(entry.value))

    async def _watch_assignments(self) -> None:
        changed = Signal(self._tasks)
        changed.raise_()
        prefix = f"assign/{self.scope}/"
        self._agent.replication.subscribe(prefix, changed)
        seen: dict[PeerId, assign.Assignment] = {}
        while True:
            await changed.wait()
            found = read_by_peer(self._agent.replication.ledger, prefix, assign.Assignment)
            for peer, assignment in found.items():
                if seen.get(peer) != assignment:
                    seen[peer] = assignment
                    await self._feed(events.AssignmentChanged(peer, assignment))

    async def _watch_vpn(self) -> None:
        vpn = self._agent.vpn
        while not vpn.is_settled:
            await self._vpn_changed.wait(0.25 if vpn.is_up else 5.0)
        self._world.checkers.address_settled(self._node, vpn.ipv4)
        await self._feed(events.VpnReady(vpn.ipv4))

    async def _watch_k3s(self) -> None:
        while True:
            await self.unit.changed.wait()
            await self._feed(self.unit.observed)

    # ------------------------------------------------------------ what the machine wants

    async def _carry_out(self, effect: events.Effect) -> None:
        checkers = self._world.checkers
        match effect:
            case events.Persist(state):
                ticket = self._node.disk.write({self._durable_name: state})
                await self._world.chaos(self._node, "written, not synced")
                await self._world.persist(self._node, self._tasks, ticket)
                await self._world.chaos(self._node, "synced, nothing said yet")
                checkers.persisted(self._node, self.machine)
            case Reply(message):
                checkers.answered(self._node, self.machine, message)
            case Ask(peer, message):
                self._tasks.start(self._ask(peer, message))
            case events.PublishCertificate(key, raw):
                await self._world.chaos(self._node, "certified, not published")
                checkers.certificate(self._node, raw)
                await self._agent.replication.write(key, raw)
            case events.PublishAssignment(key, assignment):
                await self._agent.replication.write(key, assign.encode(assignment))
            case events.MakeSecrets(epoch):
                self._tasks.start(self._make_secrets(epoch))
            case events.StartK3s(kind):
                checkers.start_wanted(self._node, self.machine, effect)
                self._agent.note(f"starts k3s: {kind}")
                self._k3s_job(self.unit.start(effect))
            case events.ReplaceInitDropIn():
                await self.unit.replace_init_drop_in(effect)
            case events.FetchJoinSecret(peer, role):
                self._tasks.start(self._fetch_join_secret(peer, role))
            case events.StopK3s():
                self._k3s_job(self.unit.stop())
            case events.WipeK3s(epoch, certificate):
                checkers.wipe_wanted(self._node, epoch, certificate)
                self._agent.note(f"sets aside what k3s has of epoch {epoch}")
                self._k3s_job(self._wipe(epoch))
            case events.Alarm(message):
                self._agent.alarm(message)
            case _:
                assert_never(effect)
        await self._world.chaos(self._node, "between two effects")

    def _k3s_job(self, job: Coroutine[Any, Any, None]) -> None:
        self.unit.will()
        self._tasks.start(job)

    async def _make_secrets(self, epoch: int) -> None:
        ca_hash = await self.unit.make_secrets(epoch)
        await self._feed(events.SecretsMade(epoch, ca_hash))

    async def _wipe(self, epoch: int) -> None:
        await self.unit.wipe()
        await self._feed(events.K3sWiped(epoch))

    # ------------------------------------------------------------ votes

    async def _ask(self, peer: PeerId, message: messages.Request) -> None:
        answer: messages.Answer | None = None
        if peer == self._agent.peer:
            answer = await self._vote(peer, message)
        else:
            try:
                raw = await self._agent.host.request(
                    peer, messages.METHOD, messages.encode(message), timeout_s=VOTE_TIMEOUT_S
                )
                answer = messages.decode_answer(raw)
            except (MeshError, ValueError):
                pass
        await self._feed(Answered(peer, message, answer))

    async def _answer_vote(self, peer: PeerId, payload: bytes) -> bytes:
        if not self.started:
            return b""
        try:
            request = messages.decode_request(payload)
        except ValueError as exc:
            raise RemoteViolation(f"genesis: {exc}", peer=peer) from exc
        return messages.encode(await self._vote(peer, request))

    async def _vote(self, peer: PeerId, request: messages.Request) -> messages.Answer:
        decision = await self.runner.feed(Asked(peer, request))
        (reply,) = (effect for effect in decision.effects if isinstance(effect, Reply))
        return reply.message

    # ------------------------------------------------------------ join secrets

    async def _fetch_join_secret(self, peer: PeerId, role: Role) -> None:
        event: events.Event
        try:
            raw = await self._agent.host.request(peer, JOIN_METHOD, role.encode(), timeout_s=JOIN_TIMEOUT_S)
            ca_hash, reason = wire.decode(raw, tuple[str, str])
            if not ca_hash:
                event = events.JoinSecretRefused(peer, reason)
            else:
                await self.unit.keep_join_secret(ca_hash)
                event = events.JoinSecretReceived(peer, role, ca_hash)
        except (MeshError, ValueError) as exc:
            event = events.JoinSecretRefused(peer, str(exc))
        await self._feed(event)

    async def _answer_join(self, peer: PeerId, payload: bytes) -> bytes:
        if not self.started:
            return wire.encode(("", "this node has not read its own state yet"))
        role: Role = "server" if payload == b"server" else "agent"
        verdict = self.machine.authorize_join(peer, role)
        if verdict.granted is None:
            return wire.encode(("", verdict.reason))
        secret = self.unit.join_secret()
        return wire.encode((secret or "", verdict.reason if secret else "k3s has no token here"))
