"""What do nodes publish about themselves in the ledger?

Values of ledger entries (see `ledger.policy` for who may write which key). Unknown fields are ignored
when decoding, so that an old node understands a newer one; a field is never given a new meaning.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from p2p_network.coordinates import Coordinate

Wish = Literal["auto", "server", "agent"]


class NodeRecord(msgspec.Struct, frozen=True):
    """Key ``node/<peer>``: what a node says of itself. Changes only when the node's facts do.

    Attributes:
        hostname: its host name; unique names are a wish, the peer id is the identity.
        region, zone: failure domains; "" when unknown.
        addresses: libp2p multiaddresses without ``/p2p``, reachable ones first.
        carriers: ``ip:port`` of the data plane's TCP listener.
        wish: the role its operator forces, or "auto".
        minimum_nodes: how many nodes its cloud-config declares (`p2p.minimum_nodes`).
        servers: how many servers its cloud-config declares.
        program: version of kairos-p2p.
        region_how: who says the region: "declared", "confirmed", "auto"; "" while it is unknown.
        region_pending: the region is being found out and will be built upon (``p2p.region: auto``).
        prefer: the role it would rather have where both are possible, "" for none.
        memory_mib: its memory, 0 if unknown.
    """

    hostname: str
    region: str
    zone: str
    addresses: tuple[str, ...]
    carriers: tuple[str, ...]
    wish: Wish
    minimum_nodes: int
    servers: int
    program: str
    region_how: str = ""
    region_pending: bool = False
    prefer: str = ""
    memory_mib: int = 0


class PlaceRecord(msgspec.Struct, frozen=True):
    """Key ``place/<peer>``: where a node stands in the network; see `coordinates`."""

    coordinate: Coordinate


class AddressClaim(msgspec.Struct, frozen=True):
    """Key ``address/<peer>``: the VPN address a node holds.

    Attributes:
        ipv4: dotted quad inside the mesh's network.
        attempt: how many candidates it gave up before this one.
        claimed_ms: mesh time (stamp) of the first claim of this address; the older claim wins.
    """

    ipv4: str
    attempt: int
    claimed_ms: int


class RoleRecord(msgspec.Struct, frozen=True):
    """Key ``role/<peer>``: where a node stands, for ``roles list`` on every other node.

    Attributes:
        state: the bootstrap machine's state, e.g. "DISCOVER", "JOIN", "MEMBER".
        role: "server", "agent" or "".
        reason: one sentence.
        epoch: genesis epoch it belongs to, 0 for none.
        ready: k3s on this node reports ready.
        cluster_id: the cluster it is a member of, "" for none.
        scope: the name of the cluster it belongs to or waits for: network id, or network id/region.
    """

    state: str
    role: str
    reason: str
    epoch: int
    ready: bool
    cluster_id: str
    scope: str = ""


class RoutesRecord(msgspec.Struct, frozen=True):
    """Key ``routes/<peer>``: what a node offers to carry for the others. Has effect only once accepted.

    Attributes:
        networks: subnets behind it (CIDR).
        exit: it would carry what goes to the internet.
    """

    networks: tuple[str, ...] = ()
    exit: bool = False


class AcceptedRecord(msgspec.Struct, frozen=True):
    """Key ``accepted/<peer>``: an administrator's word on which of a node's offers the mesh uses."""

    networks: tuple[str, ...] = ()
    exit: bool = False


class AccessRecord(msgspec.Struct, frozen=True):
    """Key ``access/rules``: an administrator's word on who may reach whom (see `access`)."""

    rules: tuple[str, ...] = ()


class ServiceItem(msgspec.Struct, frozen=True):
    """One service of a node.

    Attributes:
        name: a DNS label.
        port: where it answers on the node's VPN address, if it has one.
    """

    name: str
    protocol: Literal["tcp", "udp"]
    port: int


class ServicesRecord(msgspec.Struct, frozen=True):
    """Key ``services/<peer>``: what a node offers to the others by name."""

    services: tuple[ServiceItem, ...] = ()
