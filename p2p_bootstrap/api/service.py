"""What can a program on this machine ask the agent, and in which words does it answer?

`AgentService` is what the composition root implements; the TypedDicts are the JSON documents of the local
socket API, the same on both sides of it (`server` sends them, `cli.client` reads them). Standard library
only: the command line imports this file at every start.

A method raises a `P2PError` for everything a person should read; `server` turns it into an HTTP status and
``{"error", "hint", "exit_code"}``, and `cli.client` turns that back into the same error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NotRequired, Protocol, TypedDict

from p2p_network.core.errors import P2PError, nearest
from p2p_network.core.ids import short

Goal = Literal["mesh", "role", "ready"]
GOALS: Final[tuple[Goal, ...]] = ("mesh", "role", "ready")
MAX_WAIT_S: Final = 24 * 3600.0

MeshState = Literal["starting", "alone", "joined"]
VpnState = Literal["off", "starting", "up", "failed", "userspace"]
K3sState = Literal["absent", "stopped", "starting", "running", "failed"]
PeerState = Literal["alive", "suspect", "dead", "away", "left"]
RoleName = Literal["server", "agent", ""]
PhaseName = Literal["mesh", "vpn", "genesis", "role", "ready"]


class NodeDoc(TypedDict):
    """Who this node is. `zone` and `region` are "" when unknown."""

    peer: str
    hostname: str
    region: str
    zone: str
    version: str
    pid: int


class MeshDoc(TypedDict):
    """`peers`: with a live channel; `known`: ever heard of and not gone for good, without this node."""

    mesh_id: str
    network_id: str
    state: MeshState
    peers: int
    known: int


class AdmissionDoc(TypedDict):
    """This node's own admission. `state`: member, waiting (for its join token to be redeemed) or out;
    `generation`: of the keys in force; `issuer`: it holds the root; `role`, `region`: what its certificate
    confines it to ("any", ""); `expires_ms`: 0: never; `refused`: connections that ended at the gate, by
    cause; `revoked`: nodes that were put out."""

    state: str
    reason: str
    generation: int
    issuer: bool
    role: str
    region: str
    expires_ms: int
    refused: dict[str, int]
    revoked: int


class InviteDoc(TypedDict):
    """One row of ``GET /v1/invites``. `state`: open, used up, expired, withdrawn or rotated away."""

    id: str
    state: str
    role: str
    region: str
    uses: int
    used_by: list[str]
    created_ms: int
    expires_ms: int


class InvitedDoc(TypedDict):
    """``POST /v1/invites``: `token` is secret, and nowhere else."""

    token: str
    invite: InviteDoc


class RevokedDoc(TypedDict):
    """``POST /v1/peers/NAME/revoke``: who is out now. `hostname`: "" if it was never seen."""

    peer: str
    hostname: str


class RotatedDoc(TypedDict):
    """``POST /v1/rotate``: the new network token, secret."""

    token: str
    generation: int


class VpnDoc(TypedDict):
    """`ipv4`, `ipv6`: addresses without prefix length, "" before one is held; `error`: "" unless failed;
    `reason`: why there is no device, in user space."""

    state: VpnState
    device: str
    ipv4: str
    ipv6: str
    mtu: int
    error: str
    reason: NotRequired[str]


class NatDoc(TypedDict):
    """How this node is seen from outside. `kind`: none, cone, symmetric, unknown (see `p2p_network.nat`);
    `seen_as`: "ip:port" or address, "" if it has that itself; `reachable`: whether a member could dial it,
    None if none tried; `reached_at`: where; `error`: why not; `reason`: of `kind`, one sentence."""

    kind: str
    seen_as: str
    observers: int
    reachable: bool | None
    reached_at: list[str]
    error: str
    reason: str


class RoleDoc(TypedDict):
    """Where this node stands. `state`: of the bootstrap machine; `reason`: one sentence; `epoch`: 0: none;
    `quorum`: none, healthy, minority or lost, with the servers known and those in sight."""

    state: str
    role: RoleName
    reason: str
    epoch: int
    cluster_id: str
    ready: bool
    quorum: NotRequired[str]
    servers: NotRequired[int]
    servers_in_sight: NotRequired[int]


class K3sDoc(TypedDict):
    """`pid`: 0 unless it runs; `error`: k3s's own words and what to do, "" unless failed."""

    state: K3sState
    version: str
    pid: int
    error: str


class PhaseDoc(TypedDict):
    """A milestone that was reached, `at_s` seconds after the agent's start."""

    name: PhaseName
    at_s: float


class ClusterDoc(TypedDict):
    """One cluster of the mesh. `name`: network id, or network id/region; `ready`: nodes that are alive and
    ready; `self`: this node belongs to it."""

    name: str
    cluster_id: str
    servers: int
    agents: int
    ready: int
    self: bool


class NamesDoc(TypedDict):
    """The mesh's names here. `state`: "off", "starting", "up" or "failed"; `origin`: what they all
    end in; `error`: "" unless failed."""

    state: str
    origin: str
    error: str


class StatusDoc(TypedDict):
    """``GET /v1/status``."""

    node: NodeDoc
    mesh: MeshDoc
    admission: AdmissionDoc
    nat: NotRequired[NatDoc]
    vpn: VpnDoc
    names: NamesDoc
    role: RoleDoc
    k3s: K3sDoc
    clusters: list[ClusterDoc]
    drained: NotRequired[str]
    phases: list[PhaseDoc]


class PeerDoc(TypedDict):
    """One row of ``GET /v1/peers``. `address`: the multiaddress in use, "" if none; `rtt_ms`: None if
    unknown; `cluster`: the name of its cluster; `carrier`: what packets travel on, "none" if nothing does,
    `carrier_reason` why, `carrier_rtt_ms` and `loss` (share of what was sent) what is known of its path; byte
    counts are of VPN packets; `relay`: the member that its channel runs through, "" if none, `relay_reason`
    why; `nat`: what it says that it stands behind, `seen_as`: where this node sees it, "" if nowhere;
    `keepalive_s`: between two questions of this node to its idle path, 0: none;
    `admission`: member, or why it is none; `generation`: of its certificate, or 0;
    `reason`: of state; `drained`: until when and why it may be away, "" if it is not drained."""

    peer: str
    hostname: str
    region: str
    zone: str
    state: PeerState
    drained: NotRequired[str]
    ipv4: str
    ipv6: str
    address: str
    rtt_ms: float | None
    carrier: str
    carrier_reason: str
    carrier_rtt_ms: float | None
    loss: float | None
    rx_rate_bps: float
    tx_rate_bps: float
    relay: str
    relay_reason: str
    nat: str
    seen_as: str
    keepalive_s: float
    cluster: str
    role: RoleName
    rx_bytes: int
    tx_bytes: int
    admission: str
    generation: int
    reason: str


class RoleRow(TypedDict):
    """One row of ``GET /v1/roles``; the node that answers has `self` set."""

    peer: str
    hostname: str
    region: str
    cluster: str
    ipv4: str
    role: RoleName
    state: str
    ready: bool
    reason: str
    self: bool


class RegionRow(TypedDict):
    """One node in ``GET /v1/regions``. `region`: that counts, "" if none does; `how`: "declared",
    "confirmed", "auto" or ""; `inferred`: from round trips, "" if it can't be told; `why`: one sentence;
    `error`: of its coordinate, None if it has none; times in milliseconds from the node that answers."""

    peer: str
    hostname: str
    region: str
    zone: str
    how: str
    inferred: str
    why: str
    error: float | None
    measured_ms: float | None
    estimated_ms: float | None
    self: bool


class PairDoc(TypedDict):
    """The round trip between two nodes, milliseconds: measured by one of them, estimated by coordinates."""

    a: str
    b: str
    measured_ms: float | None
    estimated_ms: float | None


class RegionsDoc(TypedDict):
    """``GET /v1/regions``."""

    nodes: list[RegionRow]
    pairs: list[PairDoc]


class ConfirmedDoc(TypedDict):
    """One row of ``POST /v1/regions/confirm``. `error`: why this node has no region, "" if it has."""

    peer: str
    hostname: str
    region: str
    how: str
    error: str


class KubeconfigsDoc(TypedDict):
    """``GET /v1/kubeconfigs``. `missing`: clusters that are not in it, and why."""

    kubeconfig: str
    missing: dict[str, str]


class StepDoc(TypedDict):
    """One step of a plan. `action`: what is done; "wait": what is in the way; `node`: a host name or ""."""

    action: str
    node: str
    reason: str


class PlanDoc(TypedDict):
    """``GET /v1/plan``: the declaration and the way there.

    `version`: of the stored declaration, to apply a change on exactly it; `by`: who changed it last;
    `holder`: host name of the server that takes the steps; `servers`: how many are declared; `now`: host
    names of those there
    are; `forced`: role by host name; `steps`: none if all is as declared; `blocked`: the last step waits for
    something that doesn't come by itself.
    """

    version: str
    by: str
    holder: str
    servers: int
    now: list[str]
    forced: dict[str, str]
    steps: list[StepDoc]
    blocked: bool


class EventDoc(TypedDict):
    """One line of ``GET /v1/events``. `time`: UTC, RFC 3339, milliseconds; `seq`: from 1, without gaps."""

    seq: int
    time: str
    name: str
    reason: str
    fields: dict[str, str | int | float | bool | None]


class VersionDoc(TypedDict):
    """``GET /v1/version``: of the agent that answers."""

    version: str
    python: str
    pid: int


class ErrorDoc(TypedDict):
    """Body of every answer that is not 2xx. `exit_code`: what a command should exit with."""

    error: str
    hint: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an operator wants of the declaration; nodes by host name, peer id or the end of one.

    Attributes:
        servers: how many; None: as it is.
        roles: node -> server, agent, or auto (no force any more).
        replace: nodes to give up as servers.
    """

    servers: int | None = None
    roles: Mapping[str, Literal["auto", "server", "agent"]] = field(default_factory=dict)
    replace: tuple[str, ...] = ()


class UnknownNode(P2PError):
    """No node, or more than one, goes by the name that was asked for."""


class AgentService(Protocol):
    """What the agent offers. Called in the trio thread; what isn't async must return at once."""

    def status(self) -> StatusDoc:
        """The state of this node, now."""
        ...

    def peers(self) -> Sequence[PeerDoc]:
        """Every peer known, whatever its state; this node is not among them."""
        ...

    def roles(self) -> Sequence[RoleRow]:
        """Every node's role as the ledger tells it, this node's included."""
        ...

    def role_of(self, name: str) -> RoleRow:
        """The row of one node (`find_node` picks it). Raises UnknownNode."""
        ...

    def events_since(self, seq: int) -> Sequence[EventDoc]:
        """The kept events with a number above `seq`, oldest first."""
        ...

    async def wait_events(self, seq: int) -> None:
        """Return once there is an event with a number above `seq`."""
        ...

    async def kubeconfig(self) -> str:
        """The cluster-admin kubeconfig. Raises RoleError on an agent node, naming the servers."""
        ...

    async def kubeconfigs(self) -> KubeconfigsDoc:
        """One kubeconfig for all clusters of the mesh. Raises RoleError on an agent node."""
        ...

    async def regions(self) -> RegionsDoc:
        """Who is where, and how far apart."""
        ...

    async def confirm_regions(self) -> Sequence[ConfirmedDoc]:
        """Make what every reachable node infers of itself durable there."""
        ...

    async def plan(self, wanted: Wanted) -> PlanDoc:
        """What is declared, what would be with this change, and the steps there. Raises RoleError on a node
        that is no server, naming the servers; UnknownNode."""
        ...

    async def apply(self, wanted: Wanted, version: str | None) -> PlanDoc:
        """Change the declaration; the steps are taken by themselves from then on. Raises RoleError, also if
        the declaration is not of this version any more; UnknownNode."""
        ...

    async def wait_for(self, goal: Goal, timeout_s: float) -> StatusDoc:
        """The status once `goal` is reached. Raises TimedOut with the reason it was not."""
        ...

    async def revoke(self, name: str, reason: str) -> RevokedDoc:
        """Put a node out for ever: host name, peer id or its end. Raises UnknownNode, NotPermitted."""
        ...

    async def invite(
        self, *, role: str, region: str, uses: int, ttl_s: float, member_ttl_s: float
    ) -> InvitedDoc:
        """A join token. Raises NotPermitted on a node without the root, UsageError."""
        ...

    def invites(self) -> Sequence[InviteDoc]:
        """All invitations, the latest first."""
        ...

    async def withdraw(self, invite: str) -> None:
        """Make an invitation void; `invite`: its id or the start of it. Raises NotPermitted, UsageError."""
        ...

    async def rotate(self, *, force: bool) -> RotatedDoc:
        """Move all members to new keys. Raises NotPermitted; MeshError without `force` while most holders of
        the root are out of sight."""
        ...

    async def leave(self) -> None:
        """Stop k3s and the data plane and tell the mesh that this node left. The process lives on until
        `stop` is called, so that the caller gets its answer."""
        ...

    async def stop(self) -> None:
        """End the control process as SIGTERM does: returns at once, packets and k3s go on."""
        ...

    def metrics_text(self) -> str:
        """Prometheus text format, version 0.0.4."""
        ...


def find_node(rows: Sequence[RoleRow], name: str) -> RoleRow:
    """The row whose host name or peer id is `name`, or whose peer id ends with it (4 characters or more).

    Raises UnknownNode if there is none (naming the nearest) or more than one (naming all).
    """
    exact = [row for row in rows if name in (row["hostname"], row["peer"])]
    found = exact or [row for row in rows if len(name) >= 4 and row["peer"].endswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(sorted(short(row["peer"]) for row in found))
        raise UnknownNode(
            f"{len(found)} nodes go by the name {name}", hint=f"use the end of the peer id: one of {ids}"
        )
    near = nearest(name, [row["hostname"] for row in rows])
    raise UnknownNode(
        f"no node goes by the name {name}",
        hint=f"did you mean {near}?" if near else "see the names with: kairos-p2p roles list",
    )
