"""Which role has this node, and does its k3s do it?

Owns the bootstrap machine of this node's cluster scope. Everything the machine may know is handed to it as
events (the view, certificates and assignments from the ledger, votes from peers, what k3s does), and its
effects are carried out here: votes and requests over the mesh, words into the ledger, k3s through
`node.k3s`. What it must not forget is durable before anything that rests on it is said.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVarTuple, assert_never

from msgspec.structs import replace

from p2p_bootstrap.node.authority import Authority, Standing
from p2p_bootstrap.node.chores import Chores
from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.runner import Runner
from p2p_bootstrap.node.runtime import Runtime, Signal, TaskGroup
from p2p_bootstrap.node.scope import ClusterOptions, cluster_nodes, first_ipv4
from p2p_network import wire
from p2p_network.admission.trust import limit_of
from p2p_network.core import log
from p2p_network.core.errors import MeshError, P2PError, RemoteViolation
from p2p_network.core.ids import PeerId
from p2p_network.identity import Identity
from p2p_network.ledger.reading import read_by_peer
from p2p_network.records import RoleRecord
from p2p_roles import assign, events
from p2p_roles.assign import Role
from p2p_roles.bootstrap import Bootstrap, Status
from p2p_roles.durable import restore
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis import messages
from p2p_roles.genesis.acceptor import Asked, Reply
from p2p_roles.genesis.proposer import Answered, Ask
from p2p_roles.k3s import pki
from p2p_roles.rules import Rules
from p2p_roles.transitions import State
from p2p_roles.view import View, ViewNode

if TYPE_CHECKING:
    from p2p_bootstrap.node.places import Places
    from p2p_bootstrap.node.ports import Durable, K3s, Mesh, Vpn

logger = log.get(__name__)

Ts = TypeVarTuple("Ts")

JOIN_METHOD = "cluster.join"
VOTE_TIMEOUT_S = 2.0
JOIN_TIMEOUT_S = 5.0
OFF = "p2p.auto.enable is false: mesh and VPN only"


async def _nothing(genesis: messages.Genesis) -> None:
    pass


@dataclasses.dataclass(slots=True)
class _Ordered:
    """Who waits for a recovery to be decided. `refusal`: None while it is not known."""

    genesis: messages.Genesis
    ended: Signal
    refusal: str | None = None


class Cluster:
    """This node's part in forming and keeping its cluster.

    Args:
        runtime: time, tasks and chance.
        vpn_changed: raised by the VPN column.
        changed: to be raised when the role, its reason or k3s changed.
        machine: makes the bootstrap machine; the simulator also tries broken ones.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        identity: Identity,
        mesh_id: str,
        options: ClusterOptions,
        host: Mesh,
        replication: Replication,
        vpn: Vpn,
        vpn_changed: Signal,
        k3s: K3s,
        durable: Durable,
        places: Places,
        changed: Signal,
        machine: Callable[..., Bootstrap] = Bootstrap,
    ) -> None:
        self.scope = options.scope
        self.k3s = k3s
        self._runtime = runtime
        self._self_id = identity.peer_id
        self._options = options
        self._host = host
        self._replication = replication
        self._vpn = vpn
        self._vpn_changed = vpn_changed
        self._durable = durable
        self._places = places
        self._durable_key = f"bootstrap/{self.scope}"
        self._changed = changed
        self._ordered: list[_Ordered] = []
        self.chores = Chores(runtime, k3s, self._feed)
        self.before_certified: Callable[[messages.Genesis], Awaitable[None]] = _nothing
        self._tasks: TaskGroup | None = None
        self._started = False
        self._last_view: tuple[ViewNode, ...] = ()
        self._machine = machine(
            self_id=self._self_id,
            scope=self.scope,
            mesh_id=mesh_id,
            sign=lambda message: identity.sign(messages.VOTE_PURPOSE, message),
            rules=Rules(
                servers=options.servers,
                minimum_nodes=options.minimum_nodes,
                placement=options.placement,
                timing=options.timing,
                datastore=options.datastore,
                args_hash=k3s.args_hash,
            ),
        )
        self._runner = Runner(
            runtime, "roles.bootstrap", self._machine, self._carry_out, events.Tick, after=self._publish
        )
        self.authority = Authority(
            runtime=runtime,
            self_id=self._self_id,
            options=options,
            replication=replication,
            kube=lambda: k3s.kube,
            uses_vpn=k3s.uses_vpn,
            standing=self.standing,
        )
        host.serve(messages.METHOD, self._answer_vote)
        host.serve(JOIN_METHOD, self._answer_join)

    # ------------------------------------------------------------ for the other columns

    @property
    def status(self) -> Status:
        """Where this node stands."""
        status = self._machine.status
        return status if self._options.auto else dataclasses.replace(status, reason=OFF)

    @property
    def machine(self) -> Bootstrap:
        """What decides, for those who only look."""
        return self._machine

    @property
    def genesis_known(self) -> bool:
        """Whether a quorum has decided who initialises, as far as this node knows."""
        return self._machine.open_genesis() is not None or self._machine.ready_genesis() is not None

    @property
    def ready(self) -> bool:
        """Whether this node is a member and its k3s is ready."""
        return self.status.ready

    @property
    def genesis(self) -> messages.Genesis | None:
        """Of the cluster that this node is a member of."""
        return self._machine.member.genesis if self._machine.member is not None else None

    def standing(self) -> Standing | None:
        """What the authority rests on, while this node is a server that is ready."""
        member = self._machine.member
        if not self.ready or member is None or member.role != "server":
            return None
        return Standing(self._machine.view, member.genesis, member.epoch, dict(self._machine.assignments))

    async def stop_k3s(self) -> None:
        """Stop k3s on this machine; its data stays."""
        await self.k3s.stop()

    async def leave(self) -> None:
        """Stop k3s, set its data aside and forget the role. Votes are never forgotten."""
        await self.k3s.set_aside("left")
        raw = await self._runtime.in_thread(self._durable.get, self._durable_key)
        kept = replace(restore(raw, self.scope), member=None)
        await self._runtime.in_thread(self._durable.set, self._durable_key, wire.encode(kept))

    # ------------------------------------------------------------ running

    async def run(self) -> None:
        """Form, join and keep the cluster until cancelled."""
        if not self._options.auto:
            await self.k3s.find()
            self._runtime.log(logger, "roles.off", reason=OFF)
            return
        raw = await self._runtime.in_thread(self._durable.get, self._durable_key)
        async with self._runtime.task_group() as tasks:
            self._tasks = tasks
            prefix = certificates.prefix_of(self.scope)
            known = tuple(e.value for e in self._replication.ledger.items(prefix) if e.value is not None)
            await self._runner.feed(events.Started(raw, known))
            await self._look_at_assignments({})
            self._started = True
            tasks.start_soon(self._runner.run)
            tasks.start_soon(self._watch_view)
            tasks.start_soon(self._watch_certificates, prefix)
            tasks.start_soon(self._watch_assignments)
            tasks.start_soon(self._watch_ledger)
            tasks.start_soon(self._watch_vpn)
            tasks.start_soon(self._watch_places)
            tasks.start_soon(self.authority.run)
            tasks.start_soon(self._watch_k3s)
            tasks.start_soon(self.k3s.run)

    async def _feed(self, event: events.Event) -> None:
        await self._runner.feed(event)

    async def _publish(self) -> None:
        """Tell everyone where this node stands, whenever that changed."""
        status = self.status
        record = RoleRecord(
            state=status.state.value,
            role=status.role or "",
            reason=status.reason[:500],
            epoch=status.epoch,
            ready=status.ready,
            cluster_id=status.cluster_id,
            scope=self.scope,
        )
        await self._replication.write(f"role/{self._self_id}", wire.encode(record))
        self._changed.raise_()

    # ------------------------------------------------------------ what the machine gets to know

    async def _watch_view(self) -> None:
        changed = self._runtime.signal()
        changed.raise_()
        self._replication.subscribe_view(changed)
        self._replication.subscribe("role/", changed)
        while True:
            await changed.wait()
            nodes = cluster_nodes(
                self._replication.view, self._replication.ledger, self._options, uses_vpn=self.k3s.uses_vpn
            )
            known = any(node.peer == self._self_id for node in nodes)  # not before our own record is there
            if known and nodes != self._last_view:
                self._last_view = nodes
                view = View(self._self_id, self.scope, nodes, self._runtime.monotonic())
                await self._feed(events.ViewChanged(view))

    async def _watch_certificates(self, prefix: str) -> None:
        changed = self._runtime.signal()
        changed.raise_()
        self._replication.subscribe(prefix, changed)
        seen: set[bytes] = set()
        while True:
            await changed.wait()
            held = [e.value for e in self._replication.ledger.items(prefix) if e.value is not None]
            news = [raw for raw in held if raw not in seen]
            seen = set(held)
            for raw in news:
                await self._feed(events.CertificateLearned(raw))

    async def _watch_assignments(self) -> None:
        changed = self._runtime.signal()
        changed.raise_()
        prefix = f"assign/{self.scope}/"
        self._replication.subscribe(prefix, changed)
        seen: dict[PeerId, assign.Assignment] = {}
        while True:
            await changed.wait()
            await self._look_at_assignments(seen)

    async def _look_at_assignments(self, seen: dict[PeerId, assign.Assignment]) -> None:
        prefix = f"assign/{self.scope}/"
        for peer, assignment in read_by_peer(self._replication.ledger, prefix, assign.Assignment).items():
            if seen.get(peer) != assignment:
                seen[peer] = assignment
                await self._feed(events.AssignmentChanged(peer, assignment))

    async def _watch_ledger(self) -> None:
        await self._replication.settled.wait()
        await self._feed(events.LedgerCompared())

    async def _watch_vpn(self) -> None:
        if self.k3s.uses_vpn:
            while not self._vpn.is_settled:
                await self._vpn_changed.wait()
            ipv4 = self._vpn.status.ipv4
        else:
            ipv4 = first_ipv4(self._host.addresses())
        self.k3s.use_address(ipv4)
        await self._feed(events.VpnReady(ipv4))

    async def _watch_places(self) -> None:
        """How far the others are: asked for by the genesis and by who joins, so a member is not told."""
        while not self._machine.status.cluster_id:
            await self._places.changed.wait()
            await self._feed(events.RoundTripsMeasured(self._places.measured, self._places.coordinates))

    async def _watch_k3s(self) -> None:
        tidied = 0
        await self.k3s.find()  # meanwhile the mesh comes up; only a genesis tells the version
        self._machine.rules = dataclasses.replace(self._machine.rules, k3s_version=self.k3s.version)
        while True:
            await self.k3s.changed.wait()
            event = self.k3s.observed.event
            if event.state == "ready" and self._machine.state is State.RECOVER:
                decided = self._machine.open_genesis()
                if decided is not None and tidied != self._machine.epoch:
                    await self.before_certified(decided)
                    tidied = self._machine.epoch
            await self._feed(event)

    # ------------------------------------------------------------ what the machine wants

    async def _carry_out(self, effect: events.Effect) -> None:
        match effect:
            case events.Persist(state):
                await self._runtime.in_thread(self._durable.set, self._durable_key, state)
            case Reply():
                pass  # picked out of the decision by `_answer_vote`
            case Ask(peer, message):
                self._spawn(self._ask, peer, message)
            case events.PublishCertificate(key, raw):
                await self._replication.write(key, raw)
            case events.MakeSecrets(epoch):
                self._spawn(self.chores.make_secrets, epoch)
            case events.StartK3s():
                self.k3s.want(effect)
            case events.ReplaceInitDropIn():
                await self.k3s.replace_init_drop_in(effect)
            case events.FetchJoinSecret(peer, role):
                self._spawn(self._fetch_join_secret, peer, role)
            case events.StopK3s():
                self.k3s.want(None)
            case events.WipeK3s():
                self._spawn(self.chores.wipe, effect, partial(self._machine.is_due, effect))
            case events.ResetK3s():
                self._spawn(
                    self.chores.reset, effect, self._machine.open_genesis(), self._machine.open_genesis
                )
            case events.RecoveryEnded():
                self._recovery_ended(effect)
            case events.CountWorkloads():
                self._spawn(self.chores.count_workloads)
            case events.QuorumChanged(quorum):
                level = logging.INFO if quorum.health in ("none", "healthy") else logging.ERROR
                self._runtime.log(
                    logger, "roles.quorum_changed", level, to=quorum.health, reason=quorum.reason
                )
            case events.HoldK3s():
                self.k3s.hold()
            case events.SetAsideK3s():
                self._spawn(self.chores.set_aside, effect, partial(self._machine.is_due, effect))
            case events.Alarm(message, hint):
                self._runtime.log(logger, "roles.alarm", logging.ERROR, error=message, hint=hint)
            case _:
                assert_never(effect)

    def _spawn(self, job: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        assert self._tasks is not None
        self._tasks.start_soon(job, *args)

    async def recover(self, genesis: messages.Genesis) -> str:
        """Have a recovery decided that an operator approved; "" when it is, else why not."""
        ended = self._runtime.signal()
        waiting = _Ordered(genesis, ended)
        self._ordered.append(waiting)
        try:
            await self._feed(events.RecoveryOrdered(genesis))
            while waiting.refusal is None:
                await ended.wait()
        finally:
            self._ordered.remove(waiting)
        return waiting.refusal

    def _recovery_ended(self, effect: events.RecoveryEnded) -> None:
        for waiting in self._ordered:  # the automatic one and an operator may have ordered the same
            if waiting.genesis == effect.genesis:
                waiting.refusal = effect.refusal
                waiting.ended.raise_()

    # ------------------------------------------------------------ votes

    async def _ask(self, peer: PeerId, message: messages.Request) -> None:
        answer: messages.Answer | None = None
        if peer == self._self_id:
            answer = await self._vote(peer, message)
        else:
            try:
                raw = await self._host.request(
                    peer, messages.METHOD, messages.encode(message), timeout_s=VOTE_TIMEOUT_S
                )
                answer = messages.decode_answer(raw)
            except (MeshError, ValueError) as exc:
                self._runtime.log(logger, "roles.vote_missing", logging.DEBUG, peer=peer, detail=str(exc))
        await self._feed(Answered(peer, message, answer))

    async def _answer_vote(self, peer: PeerId, payload: bytes) -> bytes:
        if not self._started:
            return b""  # no answer, as good as none in time
        try:
            request = messages.decode_request(payload)
        except ValueError as exc:
            raise RemoteViolation(f"genesis: {exc}", peer=peer) from exc
        return messages.encode(await self._vote(peer, request))

    async def _vote(self, peer: PeerId, request: messages.Request) -> messages.Answer:
        decision = await self._runner.feed(Asked(peer, request))
        (reply,) = (effect for effect in decision.effects if isinstance(effect, Reply))
        return reply.message

    # ------------------------------------------------------------ join secrets

    async def _fetch_join_secret(self, peer: PeerId, role: Role) -> None:
        event: events.Event
        try:
            raw = await self._host.request(peer, JOIN_METHOD, role.encode(), timeout_s=JOIN_TIMEOUT_S)
            reply = wire.decode(raw, pki.JoinAnswer)
            if reply.secret is None:
                event = events.JoinSecretRefused(peer, reply.reason)
            else:
                ca_hash = await self._runtime.in_thread(self.k3s.keep_join_secret, reply.secret)
                event = events.JoinSecretReceived(peer, role, ca_hash)
        except (P2PError, ValueError) as exc:
            event = events.JoinSecretRefused(peer, str(exc))
        await self._feed(event)

    async def _answer_join(self, peer: PeerId, payload: bytes) -> bytes:
        """Hand out the join secret of a role, if the peer may have it: servers' secrets to servers only."""
        asked = payload.decode(errors="replace")
        if asked not in ("server", "agent"):
            raise RemoteViolation("cluster.join: the role is server or agent", peer=peer)
        if not self._started:
            return wire.encode(pki.JoinAnswer(None, "this node has not read its own state yet"))
        role: Role = "server" if asked == "server" else "agent"
        certificate = limit_of(self._replication.ledger, peer)
        if role == "server" and certificate is not None and certificate.limit == "agent":
            return wire.encode(pki.JoinAnswer(None, "its certificate confines it to the role of an agent"))
        verdict = self._machine.authorize_join(peer, role)
        member = self._machine.member
        ca_hash = member.genesis.ca_hash if member is not None else ""
        answer = await self._runtime.in_thread(self.k3s.hand_out, verdict, ca_hash)
        if answer.secret is not None:
            self._runtime.log(logger, "roles.join_secret_given", peer=peer, role=role, reason=answer.reason)
        return wire.encode(answer)
