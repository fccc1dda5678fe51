"""What do the control process and the data-plane process say to each other?

Length-framed MessagePack (u32 big-endian, at most 1 MiB) over a unix socket: one request, one reply, in
order. The client sends `Hello` first; a data plane that speaks another `PROTOCOL` is replaced instead of
adopted.
"""

from __future__ import annotations

from typing import Final

import msgspec

from p2p_network.dataplane.pulse import IDLE_S
from p2p_network.session import PeerSession

PROTOCOL: Final = 5
FRAME_HEAD_BYTES: Final = 4
MAX_FRAME_BYTES: Final = 1 << 20
ALREADY_RUNNING: Final = 7
"""Exit status of a data plane whose socket path another one holds."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """Who are you? Answered with `Welcome`."""


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """Open the TUN device and listen. Sent again with the same values it changes nothing; answered with
    `Configured`.

    Attributes:
        device: name of the TUN device, up to 15 characters.
        mtu: inner MTU in bytes; the device gets the minimum of it and every session's.
        listen: "ip:port" or "[ip]:port"; port 0 takes a free one.
        self_id: this node's peer id.
        addresses: this node's VPN addresses or networks (CIDR); a peer's packet to anything else is dropped.
        networks: the mesh's networks (CIDR): their broadcast addresses are dropped, and no carrier is dialled
            through them (a tunnel inside itself).
        carriers: the kinds to accept and to dial.
    """

    device: str
    mtu: int
    listen: tuple[str, ...]
    self_id: str
    addresses: tuple[str, ...]
    networks: tuple[str, ...]
    carriers: tuple[str, ...] = ("tcp", "udp")


class PutPeer(msgspec.Struct, frozen=True, tag="put_peer"):
    """Add or change a peer. A new `session.session_id` is set up beside the old session and then takes over.

    Attributes:
        endpoints: "ip:port" or "[ip]:port" of its data plane, at most 16.
        allowed_ips: the addresses and networks (CIDR) it may send from and gets packets for.
        dial: whether this side connects; exactly one side should.
        guarded: it may not begin anything here; only answers to what this side began come through.
        idle_s: seconds between two questions to an idle path; 0: none (see `pulse`).
        punch: where its datagrams come out of its NAT, as `endpoints`: called there by the side that dials,
            and knocked at by the other one, so that both NATs let the calls in; at most 4.
    """

    peer: str
    session: PeerSession
    endpoints: tuple[str, ...]
    allowed_ips: tuple[str, ...]
    dial: bool
    guarded: bool = False
    idle_s: float = IDLE_S
    punch: tuple[str, ...] = ()


class SetReach(msgspec.Struct, frozen=True, tag="set_reach"):
    """Change what a peer may send from and reach, and how often an idle path is asked, without a new session.
    Unknown peers are no error.

    Attributes: as `PutPeer` has them.
    """

    peer: str
    allowed_ips: tuple[str, ...]
    guarded: bool
    idle_s: float = IDLE_S


class DropPeer(msgspec.Struct, frozen=True, tag="drop_peer"):
    """Forget a peer, its sessions and connections. Unknown peers are no error."""

    peer: str


class Carry(msgspec.Struct, frozen=True, tag="carry"):
    """Let a connection of this peer's newest session run over the socket that says this, once `Done` came.

    Attributes:
        dial: whether this side says the preface; exactly one side should.
    """

    peer: str
    dial: bool


class GetStats(msgspec.Struct, frozen=True, tag="get_stats"):
    """Answered with `Stats`."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End the process; the TUN device goes with it. Answered before it ends."""


class HandOver(msgspec.Struct, frozen=True, tag="hand_over"):
    """Give everything to the process that asks, and end. Answered with `Estate`; the TUN device's descriptor,
    if there is one, comes beside it (SCM_RIGHTS).
    """


Request = Hello | Configure | PutPeer | SetReach | DropPeer | Carry | GetStats | Stop | HandOver


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """Who this data plane is. `edition`: of the code that it runs (`edition`), "" if unknown."""

    protocol: int
    pid: int
    edition: str = ""


class Configured(msgspec.Struct, frozen=True, tag="configured"):
    """What this node can do: the values for `session.offer` and `session.answer`.

    Attributes:
        device: the TUN device's name.
        offloads: TUN_F bits the kernel takes.
        ciphers: best first for this CPU.
        listen: the addresses actually listened on.
    """

    device: str
    offloads: int
    ciphers: tuple[str, ...]
    listen: tuple[str, ...]


class Done(msgspec.Struct, frozen=True, tag="done"):
    """It was done."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It was not done; becomes a MeshError in the client."""

    message: str
    hint: str


class PeerStats(msgspec.Struct, frozen=True):
    """One peer.

    Attributes:
        session_id: of the session that carries, or else the newest.
        pending_session_id: of a session that is to take over; empty for none.
        carrier: "tcp", "udp", "mesh" or "none".
        reason: why this carrier.
        loss: share of what was sent and did not arrive, lately; None if unknown.
        endpoint: the other end of the carrying connection; "" without one.
        rx_bytes, tx_bytes: inner bytes (IP packets); rx_packets, tx_packets: super-packets count once.
        drops: reason -> packets.
        queued_bytes: waiting for a full connection.
        rtt_ms: of the last heartbeat; None before the first.
        last_seen_s: age of the last record from it; None before the first.
        connects: connections that carried, since the peer was put.
        rx_rate_bps, tx_rate_bps: inner bits per second during the last second.
        seen: by kind of direct carrier, the other end of a live connection, whether it carries or not.
        idle_s: in force, as `PutPeer` has it.
    """

    peer: str
    session_id: bytes
    pending_session_id: bytes
    carrier: str
    endpoint: str
    connected: bool
    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int
    drops: dict[str, int]
    queued_bytes: int
    rtt_ms: float | None
    last_seen_s: float | None
    connects: int
    loss: float | None = None
    reason: str = ""
    rx_rate_bps: float = 0.0
    tx_rate_bps: float = 0.0
    seen: dict[str, str] = {}
    idle_s: float = IDLE_S


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """The whole data plane.

    Attributes:
        rss_bytes: resident memory.
        configured: what is in force; None before `Configure` or after the device was lost.
        capability: as `Configured` said; None likewise.
        offloads: TUN_F bits in force, common to all peers.
        mtu: in force on the device.
        drops: reason -> packets that belong to no peer.
        refused: connections that could not prove a session.
    """

    pid: int
    uptime_s: float
    rss_bytes: int
    configured: Configure | None
    capability: Configured | None
    offloads: int
    mtu: int
    drops: dict[str, int]
    refused: int
    peers: tuple[PeerStats, ...]


class Heritage(msgspec.Struct, frozen=True):
    """One peer, as it was put last, and what must not happen twice or be forgotten.

    Attributes:
        dialled, taken: by kind of carrier, the numbers of the session's connections so far.
        flows: what a guard remembers (`guard.Flow` and when it was used last).
    """

    peer: PutPeer
    dialled: dict[str, int]
    taken: dict[str, int]
    flows: tuple[tuple[int, bytes, bytes, int, int, float], ...] = ()


class Estate(msgspec.Struct, frozen=True, tag="estate"):
    """All that a data plane leaves to its successor."""

    config: Configure | None
    peers: tuple[Heritage, ...]


Reply = Welcome | Configured | Done | Failed | Stats | Estate
