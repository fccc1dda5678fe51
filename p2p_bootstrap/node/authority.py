"""Who decides over roles once the cluster is up, and what does it do?

On every server: try to hold the Kubernetes Lease. Whoever holds it gathers the facts, takes the next one
step (`p2p_roles.reconcile`), and mirrors the assignments into the ledger, with the datastore's version
as fence. The datastore is the authority; a pass that fails is simply made again. The declaration is
shown and changed here too, on any server.
"""

from __future__ import annotations

import datetime
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from p2p_bootstrap.node.cordons import Cordons
from p2p_bootstrap.node.policy import speaks_for
from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.runtime import Runtime
from p2p_bootstrap.node.scope import ClusterOptions, first_ipv4
from p2p_network import drains
from p2p_network.core import log
from p2p_network.core.errors import P2PError, RoleError
from p2p_network.core.ids import PeerId
from p2p_network.ledger.reading import left_peers, read_by_peer, revoked_peers
from p2p_network.records import NodeRecord, Wish
from p2p_roles import assign, grants, placement
from p2p_roles.assign import Assignment
from p2p_roles.genesis.messages import MAX_SERVERS, Genesis
from p2p_roles.k3s import kube as api
from p2p_roles.reconcile import ahead, objects
from p2p_roles.reconcile.lease import LEASE_NAME, Lease
from p2p_roles.reconcile.model import Assigned, Declaration, Facts, KubeNode, Member, NodeFact, Step
from p2p_roles.reconcile.objects import Json
from p2p_roles.reconcile.steps import next_step
from p2p_roles.view import View

if TYPE_CHECKING:
    from p2p_bootstrap.node.ports import KubeApi

logger = log.get(__name__)

PASS_S: Final = 3.0
HURRY_S: Final = 0.5  # after a step: there may be more to do
_NOT_LOOKED: Final = "the cluster's members were not looked at yet"
LEASE: Final = api.below(api.LEASES, LEASE_NAME)


@dataclass(frozen=True, slots=True)
class Standing:
    """What this server knows of its cluster while it is ready."""

    view: View
    genesis: Genesis
    epoch: int
    assignments: Mapping[PeerId, Assignment]


@dataclass(frozen=True, slots=True)
class Change:
    """What an operator wants to be different. Roles by peer id; "auto" takes a force back."""

    servers: int | None = None
    roles: Mapping[PeerId, Wish] | None = None
    replace: frozenset[PeerId] = frozenset()

    def of(self, declared: Declaration) -> Declaration:
        """The declaration with this change."""
        roles = {**declared.roles, **(self.roles or {})}
        return replace(
            declared,
            servers=self.servers or declared.servers,
            roles={peer: role for peer, role in roles.items() if role != "auto"},
            replace=declared.replace | self.replace,
        )


@dataclass(frozen=True, slots=True)
class Outlook:
    """The declaration and the way there. `by`: who declared it last; `holder`: who takes the steps."""

    declaration: Declaration
    by: str
    holder: str
    facts: Facts
    steps: tuple[Step, ...]


class Contradiction(RoleError):
    """Somebody else changed the declaration meanwhile."""


class Authority:
    """One server's part in keeping the cluster as declared.

    Args:
        kube: makes the API's client.
        standing: None while this node is no server that is ready.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        self_id: PeerId,
        options: ClusterOptions,
        replication: Replication,
        kube: Callable[[], KubeApi],
        uses_vpn: bool,
        standing: Callable[[], Standing | None],
    ) -> None:
        self._runtime = runtime
        self._self_id = self_id
        self._options = options
        self._replication = replication
        self._kube = kube
        self._uses_vpn = uses_vpn
        self._standing = standing
        self._lease = Lease(self_id)
        self._quiet: dict[PeerId, float] = {}
        self._met: dict[str, PeerId] = {}  # VPN address -> whose it is, or was before it was revoked
        self._joining: dict[PeerId, float] = {}
        self._overtaken: set[str] = set()
        self._assigned_version = ""  # of what the last look saw
        self._hurry = runtime.signal()
        self._cordons = Cordons(runtime)
        self._items: list[Json] = []  # the Nodes that the last look saw
        self.holder = ""
        self.reason = ""
        self.busy = _NOT_LOOKED
        """What is being changed in the membership, as decided last; "" for nothing, or if nothing can be."""
        self._lost: tuple[str, ...] = ()
        self._voters: dict[PeerId, str] = {}  # with their names in the datastore, as seen last

    @property
    def is_deciding(self) -> bool:
        """Whether this server holds the lease, at this moment."""
        return self._lease.is_held(self._runtime.monotonic())

    def lost(self, view: View) -> tuple[str, ...]:
        """See `Facts.lost`: those of the last look, and whoever has gone from the mesh since."""
        gone = (name for peer, name in self._voters.items() if peer not in view.by_peer)
        return tuple(sorted({*self._lost, *gone}))

    # ------------------------------------------------------------ for people

    async def outlook(self, change: Change) -> Outlook:
        """What would follow if the declaration were changed like this. Raises RoleError."""
        standing = self._need_standing()
        facts, stored = await self._look(standing)
        declared = change.of(facts.declaration)
        holder = PeerId(self.holder) if self.holder else self._self_id
        facts = facts.but(declaration=declared, self_id=holder)
        return Outlook(declared, objects.declared_by(stored), self.holder, facts, ahead.plan(facts))

    async def declare(self, change: Change, *, version: str | None, by: str) -> Declaration:
        """Change the declaration; the holder of the lease carries it out.

        `version`: of the declaration that the operator saw (`Outlook`). Raises Contradiction if it is
        another one by now, RoleError.
        """
        standing = self._need_standing()
        if change.servers is not None and not 1 <= change.servers <= MAX_SERVERS:
            raise RoleError(
                f"a cluster can't have {change.servers} servers", hint=f"a number from 1 to {MAX_SERVERS}"
            )
        configured = self._configured(standing, ())
        declared = await self._runtime.in_thread(_declare, self._kube(), change, version, by, configured)
        self._runtime.log(logger, "roles.declared", reason=f"{declared.servers} servers, by {by}")
        self._hurry.raise_()
        return declared

    def _need_standing(self) -> Standing:
        standing = self._standing()
        if standing is None:
            raise RoleError(
                "this node is no server of a cluster that is ready, and only those know the declaration",
                hint="see who is one with: kairos-p2p roles list",
            )
        return standing

    # ------------------------------------------------------------ running

    async def run(self) -> None:
        """Take part until cancelled."""
        while True:
            standing, pause_s = self._standing(), PASS_S
            if standing is None:
                self._lease.lost()
                self.holder = ""
                self._quiet.clear()
                self._joining.clear()
            else:
                self._note_quiet(standing.view, ())
                self._addresses(standing.view)  # whose each is, should it be revoked before we decide
                try:
                    pause_s = await self._pass(standing)
                except (api.Conflict, api.AlreadyExists):
                    self._lease.lost()
                except P2PError as exc:
                    self._runtime.log(logger, "roles.pass_failed", logging.DEBUG, error=exc.message)
            if not self.is_deciding:
                self.busy = _NOT_LOOKED
            await self._hurry.wait(timeout_s=pause_s)

    async def _pass(self, standing: Standing) -> float:
        """One look, and perhaps one step. Returns when to look again."""
        await self._keep_lease(self._runtime.monotonic())
        if not self._lease.is_held(self._runtime.monotonic()):
            return PASS_S
        facts, stored = await self._look(standing)
        if stored is None or facts.declaration.configured != objects.declaration(stored, 0).configured:
            item = objects.declaration_map(facts.declaration, "the servers' configuration")
            await self._runtime.in_thread(_put, self._kube(), api.CONFIG_MAPS, objects.DECLARATION, item)
            return HURRY_S
        step = next_step(facts)
        self.busy = "" if step.action == "none" or step.pending else step.reason
        self._lost = facts.lost
        self._voters = {peer: member.name for peer, member in facts.voters.items()}
        if step.reason != self.reason:
            self.reason = step.reason
            self._runtime.log(logger, "roles.authority_decided", reason=step.reason)
        if not self._lease.is_held(self._runtime.monotonic()):
            return PASS_S
        await self._take(standing, facts, step)
        words = {peer: drains.sentence(drain) for peer, drain in self._replication.drained.items()}
        await self._cordons.keep(self._kube(), self._items, facts.kube_nodes, words)
        return PASS_S if step.action in ("none", "wait") else HURRY_S

    async def _keep_lease(self, now: float) -> None:
        kube = self._kube()
        stored = await self._runtime.in_thread(_get, kube, LEASE)
        wall = datetime.datetime.fromtimestamp(self._runtime.wall_s(), datetime.UTC)
        seen = self._lease.look(now, stored, wall.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
        self.holder = seen.holder
        if seen.write is None:
            return
        if seen.is_new:
            await self._runtime.in_thread(kube.create, api.LEASES, seen.write)
        else:
            await self._runtime.in_thread(kube.replace, LEASE, seen.write)
        if self.holder != self._self_id:
            reason = "nobody held the lease" if not self.holder else "its holder did not renew it"
            self._runtime.log(logger, "roles.authority_taken", reason=reason)
        self._lease.written(now)
        self.holder = self._self_id

    async def _take(self, standing: Standing, facts: Facts, step: Step) -> None:
        """Carry a step out; what it leaves undone is the next pass's step again."""
        given = dict(facts.assigned)
        if step.action == "delete-node":
            await self._runtime.in_thread(_delete_node, self._kube(), step.node)
        else:
            given = dict(ahead.carried_out(facts, step).assigned)
        version = self._assigned_version
        if given != dict(facts.assigned) or not version:
            given = {p: replace(a, reason=_word(a)) for p, a in given.items()}
            stored = await self._runtime.in_thread(
                _put,
                self._kube(),
                api.CONFIG_MAPS,
                objects.ASSIGNMENTS,
                objects.assignments_map(given, version, standing.epoch),
            )
            version = objects.version_of(stored)
        await self._mirror(standing, given, int(version) if version.isdigit() else 0)

    async def _mirror(self, standing: Standing, given: Mapping[PeerId, Assigned], fence: int) -> None:
        """What the datastore says into the ledger, in the name of a server that is one."""
        ledger, scope = self._replication.ledger, self._options.scope
        for peer, word in given.items():
            # before the assignment: from then on it may hold the lease, and must be believed by whoever comes
            if word.role == "server" and not speaks_for(scope, peer, ledger):
                await self._replication.write(grants.key_of(scope, peer, self._self_id), grants.VALUE)
        behind: set[str] = set()
        for peer, word in given.items():
            key = assign.key_of(scope, peer)
            entry = ledger.get(key)
            known = standing.assignments.get(peer)
            wanted = Assignment(
                word.role, word.reason, standing.epoch, standing.genesis.cluster_id, word.leaving, fence
            )
            if known is not None and entry is not None and entry.value is not None:
                same = replace_fence(known, fence) == wanted
                if same and speaks_for(scope, entry.author, ledger):
                    continue
                if known.fence >= fence and not same:
                    # a datastore restored from a snapshot counts from there again; a server that only slept
                    # reads the newer one at its next pass
                    behind.add(key)
                    if key not in self._overtaken:
                        continue
                    wanted = replace_fence(wanted, known.fence + 1)
            await self._replication.write(key, assign.encode(wanted))
        self._overtaken = behind

    # ------------------------------------------------------------ facts

    async def _look(self, standing: Standing) -> tuple[Facts, Json | None]:
        """The facts, and the stored declaration. Raises KubeError."""
        declared, stored, items, raw = await self._runtime.in_thread(_read, self._kube())
        self._items = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
        self._assigned_version = objects.version_of(stored)
        peers = self._addresses(standing.view)
        kube_nodes = objects.nodes(items, peers)
        if raw is not None:
            members = objects.members(raw, peers)
        else:
            members = tuple(Member(k.name, k.peer) for k in kube_nodes if k.server and k.peer)
        if stored is None:
            known = standing.assignments.items()
            given = {p: Assigned(a.role, a.reason, a.leaving) for p, a in known}
        else:
            named = frozenset(map(PeerId, standing.genesis.servers))
            given = objects.of_epoch(stored, standing.epoch, named)
        return self._facts(standing, declared, given, kube_nodes, members), declared

    def _facts(
        self,
        standing: Standing,
        declared: Json | None,
        given: dict[PeerId, Assigned],
        kube_nodes: tuple[KubeNode, ...],
        members: tuple[Member, ...],
    ) -> Facts:
        genesis, options = standing.genesis, self._options
        configured = self._configured(standing, members)
        declaration = objects.declaration(declared, configured)
        if declaration.configured != configured:
            declaration = replace(declaration, servers=configured, configured=configured)
        facts = Facts(
            self_id=self._self_id,
            declaration=declaration,
            nodes=(),
            kube_nodes=kube_nodes,
            members=members,
            assigned=given,
            first=frozenset(map(PeerId, genesis.servers)),
            datastore=genesis.datastore,
            placement=placement.of_genesis(genesis),
            replaces=options.replaces,
            silence_s=options.silence_s,
        )
        return facts.but(nodes=self._nodes(standing.view, facts))

    def _nodes(self, view: View, facts: Facts) -> tuple[NodeFact, ...]:
        now = self._runtime.monotonic()
        self._note_quiet(view, facts.kube_nodes)
        records = read_by_peer(self._replication.ledger, "node/", NodeRecord)
        drained = self._replication.drained
        found = []
        for node in view.nodes:
            record = records.get(node.peer)
            is_joining = facts.role_of(node.peer) == "server" and node.peer not in facts.voters
            if not is_joining:
                self._joining.pop(node.peer, None)
            found.append(
                NodeFact(
                    node.peer,
                    node.hostname,
                    region=node.region,
                    zone=node.zone,
                    wish=node.wish,
                    prefer=record.prefer if record else "",
                    memory_mib=record.memory_mib if record else 0,
                    alive=node.alive,
                    ready=node.ready,
                    quiet_s=now - self._quiet.get(node.peer, now),
                    joining_s=now - self._joining.setdefault(node.peer, now) if is_joining else 0.0,
                    drained=drains.sentence(drained[node.peer]) if node.peer in drained else "",
                )
            )
        known = {node.peer for node in found}
        concerned = {*facts.assigned, *facts.first, *(m.peer for m in facts.members)}
        concerned |= {k.peer for k in facts.kube_nodes}
        gone = left_peers(self._replication.ledger) | revoked_peers(self._replication.ledger)
        for peer in sorted((gone & concerned) - known):
            kube = facts.kube_of(peer)
            name = kube.name if kube is not None else f"...{peer[-8:]}"
            found.append(NodeFact(peer, name, alive=False, left=True))
        return tuple(found)

    def _note_quiet(self, view: View, kube_nodes: Sequence[KubeNode]) -> None:
        """Since when neither the mesh nor Kubernetes has heard of a node, by this machine's clock."""
        now = self._runtime.monotonic()
        heard = {node.peer for node in kube_nodes if node.ready}
        for node in view.nodes:
            if node.alive or node.peer in heard:
                self._quiet.pop(node.peer, None)
            else:
                self._quiet.setdefault(node.peer, now)

    def _addresses(self, view: View) -> dict[str, PeerId]:
        if self._uses_vpn:
            current = {ipv4: p for p, (ipv4, _) in self._replication.addresses().items() if ipv4}
            revoked = revoked_peers(self._replication.ledger)  # their words are gone, their members are not
            self._met = {ipv4: p for ipv4, p in self._met.items() if p in revoked} | current
            return self._met
        records = read_by_peer(self._replication.ledger, "node/", NodeRecord)
        found = {first_ipv4(r.addresses): peer for peer, r in records.items()}
        found |= {node.vpn_ipv4: node.peer for node in view.nodes}
        found.pop("", None)
        return found

    def _configured(self, standing: Standing, members: Sequence[Member]) -> int:
        """How many servers the configuration of most servers says; this node's where there is no most."""
        servers = {m.peer for m in members} or {self._self_id}
        said = Counter(n.servers for n in standing.view.nodes if n.peer in servers)
        value, count = said.most_common(1)[0] if said else (self._options.servers, 0)
        return value if 2 * count > len(servers) else self._options.servers


def replace_fence(word: Assignment, fence: int) -> Assignment:
    """The same word with another fence."""
    return Assignment(word.role, word.reason, word.epoch, word.cluster_id, word.leaving, fence)


def _word(given: Assigned) -> str:
    """The sentence of an assignment, from that of the step which gave it."""
    if given.reason.startswith(("agent: ", "server: ")):
        return given.reason
    return f"{given.role}: {given.reason.partition(': ')[2] or given.reason}"


def _contradiction(stored: Json | None) -> Contradiction:
    by = objects.declared_by(stored)
    return Contradiction(
        "the declaration was changed meanwhile" + (f" by {by}" if by else ""),
        hint="look at it again: kairos-p2p plan",
    )


def _read(kube: KubeApi) -> tuple[Json | None, Json | None, object, list[Json] | None]:
    """Declaration, assignments, Nodes and etcd's members. Blocks."""
    declared = _get(kube, api.below(api.CONFIG_MAPS, objects.DECLARATION))
    stored = _get(kube, api.below(api.CONFIG_MAPS, objects.ASSIGNMENTS))
    return declared, stored, kube.get(api.NODES).get("items"), kube.etcd_members()


def _declare(kube: KubeApi, change: Change, version: str | None, by: str, configured: int) -> Declaration:
    """Blocks."""
    stored = _get(kube, api.below(api.CONFIG_MAPS, objects.DECLARATION))
    if version is not None and version != objects.version_of(stored):
        raise _contradiction(stored)
    declared = change.of(objects.declaration(stored, configured))
    try:
        _put(kube, api.CONFIG_MAPS, objects.DECLARATION, objects.declaration_map(declared, by))
    except (api.Conflict, api.AlreadyExists) as exc:
        raise _contradiction(_get(kube, api.below(api.CONFIG_MAPS, objects.DECLARATION))) from exc
    return declared


def _get(kube: KubeApi, path: str) -> Json | None:
    try:
        return kube.get(path)
    except api.NotFound:
        return None


def _put(kube: KubeApi, collection: str, name: str, item: Json) -> Json:
    """Create it if it bears no version, else replace exactly that version."""
    if item["metadata"].get("resourceVersion"):
        return kube.replace(api.below(collection, name), item)
    return kube.create(collection, item)


def _delete_node(kube: KubeApi, name: str) -> None:
    with suppress(api.NotFound):
        kube.delete(api.below(api.NODES, name))
