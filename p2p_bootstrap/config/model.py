"""What can a node's configuration say about the mesh and its cluster?

The frozen model of the sections that this program acts on. Every field says what it does; a key that
Kairos documents and that has no effect here says so in `notes`. Old words are understood: ``master`` and
``worker`` are server and agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from p2p_bootstrap.boot.slots import DEFAULT_WITHIN_S
from p2p_bootstrap.config.fields import (
    AddressRange,
    Bootstrap,
    Carrier,
    Entrance,
    Env,
    Flag,
    Health,
    Interface,
    Label,
    ListenList,
    LogLevel,
    Mebibytes,
    MoreServers,
    Mtu,
    NetworkId,
    NodeCount,
    NodeLabels,
    PlacementKind,
    Port,
    Preference,
    RecoveryKind,
    Role,
    Schedule,
    Scope,
    Seconds,
    Secret,
    ServerCount,
    ServiceName,
    Silence,
    SnapshotCount,
    Speed,
    Subnet,
    Taint,
    Target,
    Text,
    Transport,
    VpnMode,
    split_target,
)
from p2p_bootstrap.config.names import KUBE_VIP_FIELDS
from p2p_network.meeting.kad import PUBLIC_ENTRANCES
from p2p_network.services import MAX_SERVICES
from p2p_network.subnets import MAX_NETWORKS
from p2p_network.token import DEFAULT_NETWORK_ID, MAX_BOOTSTRAP

DEFAULT_LISTEN: Final = ("0.0.0.0:4701", "[::]:4701")
DEFAULT_DATA_PORT: Final = 4702
_KAIROS_MINIMUM_NODES: Final = 2
_HA_SERVERS: Final = 3
REGION_AUTO: Final = "auto"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, populate_by_name=True)


class HA(_Section):
    """`p2p.auto.ha`: more than one server."""

    enable: Flag | None = Field(default=None, description="Several servers. Implied by master_nodes.")
    master_nodes: MoreServers | None = Field(
        default=None,
        description="Servers in addition to the first one: 2 means 3 servers. Same as p2p.servers minus one.",
    )
    external_db: Secret | None = Field(
        default=None,
        description="Datastore of the servers instead of the embedded etcd, e.g. postgres://...; the same "
        "on all nodes that may be servers.",
    )

    @property
    def servers(self) -> int | None:
        """How many servers this asks for; None if it doesn't say. Switched on without a number: 3."""
        if self.enable is False:
            return None
        if self.master_nodes is not None:
            return self.master_nodes + 1
        return _HA_SERVERS if self.enable else None


class Auto(_Section):
    """`p2p.auto`: whether the nodes agree on the roles."""

    enable: Flag = Field(default=True, description="The nodes agree on the roles. false: mesh and VPN only.")
    ha: HA = Field(default_factory=HA, description="More than one server.")


class VPN(_Section):
    """`p2p.vpn`: the network between the nodes."""

    create: Flag = Field(default=True, description="Create the VPN device of this node.")
    use: Flag = Field(default=True, description="Let k3s use the VPN for all its traffic between nodes.")
    env: Env = Field(
        default_factory=dict,
        repr=False,
        description="Environment of EdgeVPN's daemon. Only EDGEVPNDHT has an effect here.",
    )
    mode: VpnMode = Field(
        default="auto",
        description="tun: a network device. userspace: none; this node reaches the mesh through p2p.socks "
        "and p2p.forwards, and is reached by its services. auto: tun where the machine can, else userspace, "
        "unless it is to be a node of a cluster.",
    )
    interface: Interface = Field(default="kp2p0", description="Name of the VPN device.")
    mtu: Mtu | None = Field(
        default=None,
        description="MTU of the VPN device in bytes. Unset: 1420, or 1400 when an outer address is IPv6.",
    )
    address_range: AddressRange = Field(
        default="10.144.0.0/16",
        description="Private IPv4 network of the VPN; the same on all nodes.",
    )
    port: Port = Field(
        default=DEFAULT_DATA_PORT,
        description="TCP and UDP port for VPN packets of other nodes.",
    )
    carrier: Carrier = Field(
        default="auto",
        description="How VPN packets travel: tcp (records), udp (datagrams), or auto: what measures best, "
        "and through the mesh where neither reaches a peer.",
    )
    routes: tuple[Subnet, ...] = Field(
        default=(),
        max_length=MAX_NETWORKS,
        description="Networks that this node can reach and would carry for others, such as 192.168.7.0/24. "
        "They are used once an administrator accepts them: kairos-p2p routes accept NODE.",
    )
    offer_exit: Flag = Field(
        default=False,
        description="This node would carry what others send to the internet; to be accepted as routes are.",
    )
    exit: Text | None = Field(
        default=None,
        max_length=253,
        description="Node through which this machine reaches the internet: host name, or peer id or its end. "
        "It counts once the node is accepted as an exit and was reached.",
    )


class Service(_Section):
    """`p2p.services`: a program of this node that the others reach by name."""

    name: ServiceName = Field(description="Its name: 1 to 63 of a-z, 0-9 and -.")
    to: Target = Field(description="Where its program listens: HOST:PORT, or PORT of 127.0.0.1.")
    protocol: Transport = Field(default="tcp", description="tcp or udp.")
    port: Port | None = Field(
        default=None, description="Port on this node's VPN address. Unset: that of the program."
    )

    @property
    def target(self) -> tuple[str, int]:
        """Host and port of `to`."""
        return split_target(self.to)

    @property
    def public_port(self) -> int:
        """The port on the VPN address."""
        return self.port or self.target[1]


class Forward(_Section):
    """`p2p.forwards`: a port of this machine that leads into the mesh."""

    listen: Target = Field(description="Where to listen: HOST:PORT, or PORT of 127.0.0.1.")
    to: Target = Field(description="HOST:PORT; a name of the mesh, a VPN address, one that a node carries.")
    protocol: Transport = Field(default="tcp", description="tcp or udp.")

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        return split_target(self.listen)

    @property
    def target(self) -> tuple[str, int]:
        """Host and port of `to`."""
        return split_target(self.to)


class Bless(_Section):
    """`p2p.bless`: when the agent says that the boot slot it runs from is healthy."""

    when: Health = Field(
        default="role",
        description="What the node must have reached: mesh (another node), role, ready (its k3s), or never: "
        "somebody else runs kairos-p2p boot bless.",
    )
    hold_s: Seconds = Field(default=10, description="For how many seconds without a break.")
    within_s: Seconds = Field(
        default=DEFAULT_WITHIN_S,
        description="The machine restarts by itself if nobody blessed a slot on trial so many seconds after "
        "its start, and takes the slot before once the tries are spent. 0: it waits for a person. From a "
        "config_url this comes too late: write it on the disk or on the command line.",
    )


class Snapshots(_Section):
    """`p2p.snapshots`: copies of the cluster's data."""

    schedule: Schedule = Field(
        default="0 */12 * * *",
        description="When every server's etcd writes a snapshot: minute hour day month weekday, in the "
        "machine's time zone; off for never.",
    )
    keep: SnapshotCount = Field(
        default=5,
        description="How many snapshots of each server are kept, by k3s and as sealed copies on other nodes.",
    )
    max_mib: Mebibytes = Field(
        default=2048, description="How much disk the sealed copies may take on a node, in MiB."
    )


class P2P(_Section):
    """`p2p`: the mesh, the VPN and the roles."""

    network_token: Secret | None = Field(
        default=None,
        description="The shared secret of the mesh: kairos-p2p's (kp2p1_...) or Kairos's. "
        "Make one with: kairos-p2p token generate. A join token is understood here too. A node that was "
        "admitted once needs neither.",
    )
    network_id: NetworkId = Field(
        default=DEFAULT_NETWORK_ID,
        description="Name of the network; other names on one token are other meshes.",
    )
    join_token: Secret | None = Field(
        default=None,
        description="A join token (KP2PJ1-...) instead of the network token: it expires, may limit role and "
        "region, and admits nobody else. Make one with: kairos-p2p token invite",
    )
    role: Role = Field(
        default="auto",
        description="Force this node's role: server (old: master) or agent (old: worker).",
    )
    dns: Flag = Field(
        default=False, description="Let this machine's programs use the mesh's names: HOST.NETWORK_ID.p2p."
    )
    disable_dht: Flag = Field(
        default=False, description="Find nodes by bootstrap and on the local network only."
    )
    rendezvous: tuple[Bootstrap, ...] = Field(
        default=(),
        max_length=MAX_BOOTSTRAP,
        description="Machines where the nodes find each other, that need not be nodes: host:port or "
        "multiaddress. One runs: kairos-p2p rendezvous serve",
    )
    public_dht: Flag | None = Field(
        default=None,
        description="Find each other through the public DHT of libp2p, where sealed notes say nothing to "
        "others. Unset: on where nothing else is named to find others by (bootstrap, rendezvous, "
        "seed_file, a token's addresses). disable_dht turns it off too.",
    )
    public_dht_bootstrap: tuple[Entrance, ...] = Field(
        default=PUBLIC_ENTRANCES,
        max_length=MAX_BOOTSTRAP,
        description="Where the public DHT is entered: /ip4/HOST/tcp/PORT/p2p/ID or /dnsaddr/NAME.",
    )
    upnp: Flag = Field(
        default=True,
        description="Ask the router before this node to lead its ports here (UPnP), if others see it behind "
        "one and can't dial it. They are given back at the end.",
    )
    relay: Flag = Field(
        default=True,
        description="Carry connections between two members that can't reach each other; sealed end to end, "
        "and limited. false: this node carries nothing for others.",
    )
    labels: NodeLabels = Field(
        default_factory=dict,
        description="Labels of this node in Kubernetes, set whenever k3s starts: {example.com/disk: ssd}.",
    )
    taints: tuple[Taint, ...] = Field(
        default=(),
        max_length=64,
        description="Taints of this node in Kubernetes, KEY=VALUE:NoSchedule. k3s sets them when the node "
        "registers; on a node that is registered they change with kubectl taint.",
    )
    prefer: Preference | None = Field(
        default=None,
        description="The role this node would rather have where both are possible: server or agent. "
        "p2p.role forces one.",
    )
    dynamic_roles: Flag = Field(
        default=False,
        description="A server that stays silent is replaced by another node. false: only when an operator "
        "says so (kairos-p2p apply --replace NODE).",
    )
    replace_after: Silence = Field(
        default=300.0,
        description="For how long a server must be silent, for the mesh and for Kubernetes, before it is "
        "replaced: 90s, 5m, 1h. Counts on the servers.",
    )
    minimum_nodes: NodeCount | None = Field(
        default=None,
        description="The cluster is formed when this many nodes see each other; the quorum that decides is a "
        "majority of it. Unset: 2, or the number of servers if that is higher. A single node needs 1.",
    )
    loglevel: LogLevel = Field(default="info", description="debug, info, warning or error.")
    vpn: VPN = Field(default_factory=VPN, description="The network between the nodes.")
    services: tuple[Service, ...] = Field(
        default=(),
        max_length=MAX_SERVICES,
        description="Programs of this node that the others reach by name, with or without a VPN.",
    )
    socks: Target | None = Field(
        default=None,
        description="Where to offer a SOCKS5 proxy into the mesh, such as 127.0.0.1:1080; needs no VPN. "
        "Whoever reaches it acts as this node.",
    )
    forwards: tuple[Forward, ...] = Field(
        default=(), max_length=MAX_SERVICES, description="Ports of this machine that lead into the mesh."
    )
    auto: Auto = Field(default_factory=Auto, description="Whether the nodes agree on the roles.")
    bless: Bless = Field(
        default_factory=Bless,
        description="When a boot slot on trial has proved healthy; one that never does is left.",
    )
    region: Label | None = Field(
        default=None,
        description="Failure domain; servers are spread over regions. Becomes the node's region label. "
        "auto: found out from measured round trips, and then kept.",
    )
    zone: Label | None = Field(
        default=None,
        description="Failure domain inside the region. Becomes the node's zone label.",
    )
    servers: ServerCount | None = Field(
        default=None,
        description="How many servers the cluster shall have: 1, 3 or 5.",
    )
    cluster: Scope = Field(
        default="mesh",
        description="mesh: one cluster over all regions. region: one cluster per region; servers and "
        "minimum_nodes then count within a region.",
    )
    placement: PlacementKind = Field(
        default="spread",
        description="spread: servers even over the regions, so that the loss of any one leaves a majority; "
        "where the regions cannot give that (two of them), the cluster starts with fewer servers and says "
        "why. pack: all servers in the home region.",
    )
    home_region: Label | None = Field(
        default=None,
        description="spread: the region that may hold the majority of the servers. pack: the region in which "
        "they stand; unset: where most nodes are.",
    )
    timing: Speed = Field(
        default="auto",
        description="By which times etcd and the leader elections go, on all servers. auto: by round trips "
        "measured between the first servers. lan: k3s's own. wan: longer leases. slow: above 300 ms.",
    )
    share_kubeconfig: Flag = Field(
        default=True,
        description="Servers of other clusters of this mesh may have this cluster's kubeconfig, for "
        "kubeconfig --merge.",
    )
    recovery: RecoveryKind = Field(
        default="manual",
        description="What happens when the servers have lost their majority for good. manual: a person "
        "decides, with: kairos-p2p cluster recover. automatic: it is brought back without asking where that "
        "is safe whatever can't be seen: a majority of its servers is in reach, and nobody is declared lost.",
    )
    snapshots: Snapshots = Field(default_factory=Snapshots, description="Copies of the cluster's data.")
    seal_identity: Flag = Field(
        default=False,
        description="Keep this node's key sealed by the machine's TPM, if it has one: a copied disk is no "
        "node then.",
    )
    listen: ListenList = Field(
        default=DEFAULT_LISTEN, max_length=16, description="IP:port on which to take peers."
    )
    bootstrap: tuple[Bootstrap, ...] = Field(
        default=(),
        max_length=MAX_BOOTSTRAP,
        description="Addresses to dial first, beside the token's: host:port or multiaddress.",
    )

    seed_file: Text = Field(
        default="",
        description="A file with addresses to dial first, one a line: for sites without a network to find "
        "others in.",
    )

    @property
    def named_region(self) -> str:
        """The region as written; "" if there is none or it is to be found out (``auto``)."""
        return "" if self.region in (None, REGION_AUTO) else str(self.region)

    @property
    def declared_servers(self) -> int:
        """How many servers the cluster shall have: `servers`, else what `auto.ha` asks for, else 1."""
        return self.servers or self.auto.ha.servers or 1

    @property
    def nodes_before_genesis(self) -> int:
        """How many nodes must see each other before a cluster is formed.

        `minimum_nodes` as written; unset, Kairos's default of 2. But a file that declares three servers
        and says nothing of `minimum_nodes` means at least three nodes: with 2, the quorum would be 2 of
        2 and the cluster could start with fewer nodes than it has servers, so the default rises to the
        number of servers. Written out, a lower number is respected (`notes` remarks on it).
        """
        if self.minimum_nodes is not None:
            return self.minimum_nodes
        return max(_KAIROS_MINIMUM_NODES, self.declared_servers)

    @property
    def dht(self) -> bool:
        """Whether this node may use the DHT, as far as the cloud-config says."""
        return not self.disable_dht and self.vpn.env.get("EDGEVPNDHT", "").lower() not in ("false", "0")

    def entrances(self, *, has_addresses: bool) -> tuple[str, ...]:
        """Where to enter the public DHT; empty: not at all.

        `has_addresses`: others can be found by addresses that somebody wrote down for this mesh.
        """
        wanted = self.public_dht if self.public_dht is not None else not (has_addresses or self.seed_file)
        return self.public_dht_bootstrap if wanted and self.dht else ()


class K3s(_Section):
    """`k3s`: what k3s gets when this node is a server."""

    enabled: Flag | None = Field(
        default=None,
        description="Run k3s by itself, where there is no network token or p2p.auto.enable is false: k3s is "
        "a server, k3s-agent an agent of the server that its K3S_URL names.",
    )
    args: tuple[Text, ...] = Field(
        default=(), max_length=256, repr=False, description="More arguments for k3s."
    )
    env: Env = Field(default_factory=dict, repr=False, description="More environment variables for k3s.")
    replace_args: Flag = Field(default=False, description="args replace this program's own.")
    replace_env: Flag = Field(default=False, description="env replaces this program's own.")
    embedded_registry: Flag = Field(default=False, description="Nodes hand images on to each other.")


class K3sAgent(K3s):
    """`k3s-agent`: what k3s gets when this node is an agent."""


class K0s(_Section):
    """`k0s` and `k0s-worker`: known, not supported yet."""

    enabled: Flag | None = Field(default=None, description="Run k0s. Not supported yet: true is an error.")
    args: tuple[Text, ...] = Field(default=(), max_length=256, repr=False, description="No effect.")
    env: Env = Field(default_factory=dict, repr=False, description="No effect.")
    replace_args: Flag = Field(default=False, description="No effect.")
    replace_env: Flag = Field(default=False, description="No effect.")


class KubeVip(_Section):
    """`kubevip`: a virtual IP for the servers, for those who come from outside."""

    enable: Flag | None = Field(default=None, description="Run kube-vip. Implied by eip.")
    eip: Text | None = Field(default=None, description="The virtual IP.")
    interface: Text | None = Field(default=None, description="Device that carries the virtual IP.")
    version: Text | None = Field(default=None, description="Version of kube-vip.")
    image: Text | None = Field(default=None, description="Image of kube-vip.")
    static_pod: Flag = Field(default=False, description="A static pod instead of a daemon set.")
    manifest_url: Text | None = Field(
        default=None,
        description="A manifest in place of ours: an absolute path, an https address, or an http address "
        "with a checksum (#sha256=...) behind it.",
    )

    @property
    def wanted(self) -> bool:
        """Whether the file asks for kube-vip."""
        return bool(self.eip) if self.enable is None else self.enable

    @model_validator(mode="before")
    @classmethod
    def _without_upstream_fields(cls, data: Any) -> Any:
        """Fields of kube-vip's own configuration are known by name only."""
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if key not in KUBE_VIP_FIELDS}


MODELS: Final[Mapping[str, type[_Section]]] = {
    "p2p": P2P,
    "k3s": K3s,
    "k3s-agent": K3sAgent,
    "k0s": K0s,
    "k0s-worker": K0s,
    "kubevip": KubeVip,
}
