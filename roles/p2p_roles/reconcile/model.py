"""What does the authority of a cluster know when it decides, and what can it decide?

Immutable facts of one moment: the declaration, the nodes as the mesh and Kubernetes see them, the
members of the datastore, and who was assigned what. Whoever gathers them
(`p2p_bootstrap.node.authority`) measures every silence with one clock, its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Literal

from p2p_network.core.ids import PeerId
from p2p_network.records import Wish
from p2p_roles.assign import Role
from p2p_roles.genesis.messages import Datastore
from p2p_roles.placement import SPREAD, Placement

SMALL_MIB: Final = 1536
"""A machine with less memory than this becomes a server only if no other can."""

NOBODY: Final = PeerId("")

Action = Literal[
    "assign",  # a node that has no role yet gets one
    "promote",  # an agent is to become a server
    "demote",  # one that is or was to be a server is given up as one: first its word, then its Node
    "delete-node",  # the Kubernetes Node, and with it the member of etcd
    "release",  # the member is gone: the node may be an agent now
    "forget",  # the node left, and nothing of it is there any more
    "wait",  # something is under way, or in the way
    "none",  # all is as declared
]


@dataclass(frozen=True, slots=True)
class Step:
    """What to do next. `peer`, `node`: whom and which Kubernetes Node it is about; "" for none.

    `reason` is one sentence. `pending`: of a "wait": the declaration can't be reached for now.
    """

    action: Action
    reason: str
    peer: PeerId = NOBODY
    node: str = ""
    role: Role = "agent"
    pending: bool = False


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the cluster shall be.

    Attributes:
        servers: how many.
        roles: forced by an operator, over a node's own wish.
        replace: nodes that an operator gave up: they are replaced as soon as they are silent.
        configured: what most servers' configurations said when `servers` was set; a change of that wins.
        version: the stored object's resourceVersion, "" before there is one.
    """

    servers: int
    roles: Mapping[PeerId, Wish] = field(default_factory=dict)
    replace: frozenset[PeerId] = frozenset()
    configured: int = 0
    version: str = ""


@dataclass(frozen=True, slots=True)
class Assigned:
    """The authority's word on one node.

    Attributes:
        leaving: it is still a member of the datastore; it becomes what `role` says when it is none.
    """

    role: Role
    reason: str
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class NodeFact:
    """One node of the cluster's scope.

    Attributes:
        name: its host name.
        wish: the role its own configuration forces; `prefer`: the one it would rather have, "" for either.
        memory_mib: 0 if unknown.
        alive: the mesh hears of it. left: it said good-bye.
        ready: its k3s says so.
        quiet_s: for how long neither the mesh nor Kubernetes has heard of it; 0 while one does.
        joining_s: for how long it has been assigned as a server without being a voter.
        drained: until when and why its absence is announced, in words; "" if it is not. It keeps its place.
    """

    peer: PeerId
    name: str
    region: str = ""
    zone: str = ""
    wish: Wish = "auto"
    prefer: str = ""
    memory_mib: int = 0
    alive: bool = True
    left: bool = False
    ready: bool = False
    quiet_s: float = 0.0
    joining_s: float = 0.0
    drained: str = ""


@dataclass(frozen=True, slots=True)
class KubeNode:
    """A Kubernetes Node. `peer`: of the node that holds its address, "" if none is known to."""

    name: str
    peer: PeerId
    ready: bool = False
    server: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """A server of the datastore. `peer`: "" if its address is nobody's."""

    name: str
    peer: PeerId
    learner: bool = False


@dataclass(frozen=True)
class Facts:
    """Everything that a decision rests on.

    Attributes:
        self_id: who decides; it holds the lease.
        first: the servers that the genesis certified; they need no other word.
        placement: in which regions servers may stand.
        replaces: dead servers are replaced without being asked (`p2p.dynamic_roles`).
        silence_s: so long a server must be quiet before it is replaced.
        stuck_s: so long a living one may take to become a voter.
    """

    self_id: PeerId
    declaration: Declaration
    nodes: tuple[NodeFact, ...]
    kube_nodes: tuple[KubeNode, ...]
    members: tuple[Member, ...]
    assigned: Mapping[PeerId, Assigned]
    first: frozenset[PeerId]
    datastore: Datastore = "etcd"
    placement: Placement = SPREAD
    replaces: bool = False
    silence_s: float = 300.0
    stuck_s: float = 900.0

    @cached_property
    def by_peer(self) -> dict[PeerId, NodeFact]:
        """The nodes by peer id."""
        return {node.peer: node for node in self.nodes}

    @cached_property
    def voters(self) -> dict[PeerId, Member]:
        """Servers that count, by peer id; strangers under their names."""
        return {m.peer or PeerId(f"?{m.name}"): m for m in self.members if not m.learner}

    @cached_property
    def lost(self) -> tuple[str, ...]:
        """Names of servers that count and are no nodes of the mesh, or no more: nobody brings them back."""
        found = ((member.name, self.by_peer.get(peer)) for peer, member in self.voters.items())
        return tuple(sorted(name for name, node in found if node is None or node.left))

    @cached_property
    def learners(self) -> frozenset[PeerId]:
        """Who is being added."""
        return frozenset(m.peer for m in self.members if m.learner)

    @cached_property
    def names_alive(self) -> dict[str, PeerId]:
        """Host names in use."""
        return {node.name.lower(): node.peer for node in self.nodes if node.alive and node.name}

    def role_of(self, peer: PeerId) -> Role | None:
        """What this node is assigned as; the genesis counts until another word is said."""
        given = self.assigned.get(peer)
        if given is not None:
            return given.role
        return "server" if peer in self.first else None

    def name(self, peer: PeerId) -> str:
        """A node's name for sentences."""
        node = self.by_peer.get(peer)
        return node.name if node is not None and node.name else f"...{peer[-8:]}"

    def wish_of(self, node: NodeFact) -> Wish:
        """What the operator forces, else its own configuration."""
        return self.declaration.roles.get(node.peer, node.wish)

    def is_healthy(self, peer: PeerId) -> bool:
        """Whether a server does its work."""
        node = self.by_peer.get(peer)
        return node is not None and node.alive and node.ready and not node.left

    def is_gone(self, node: NodeFact) -> bool:
        """Whether this identity is not coming back: it left, or its machine has a new one."""
        if node.left:
            return True
        other = self.names_alive.get(node.name.lower(), node.peer)
        return not node.alive and other != node.peer and node.quiet_s >= self.silence_s

    def may_lose(self, peer: PeerId) -> bool:
        """Whether the servers that remain without this one have a healthy majority among them."""
        rest = [p for p in self.voters if p != peer]
        healthy = sum(self.is_healthy(p) for p in rest)
        if self.datastore != "etcd":
            return healthy > 0
        return bool(rest) and 2 * healthy > len(rest)

    def kube_of(self, peer: PeerId) -> KubeNode | None:
        """The Node object of a node."""
        return next((node for node in self.kube_nodes if node.peer == peer), None)

    def but(self, **changes: object) -> Facts:
        """The same facts with some of them changed."""
        return replace(self, **changes)  # type: ignore[arg-type]
