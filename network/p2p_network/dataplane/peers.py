"""Who are the peers, which sessions do they have, and what waits for them?

No I/O. A `Peer` has sessions in the order they were put; one of its connections, the carrier, takes its
packets. What a full carrier can't take waits, still unsealed, in the peer's own bounded queue (`queues`); it
belongs to the peer, not to a connection, so a change of carrier or session loses nothing.
"""

from __future__ import annotations

from typing import Protocol

from p2p_network.dataplane.choice import Path
from p2p_network.dataplane.guard import Guard
from p2p_network.dataplane.messages import PeerStats
from p2p_network.dataplane.pulse import IDLE_S
from p2p_network.dataplane.queues import FairQueue, QueueBudget
from p2p_network.dataplane.routes import RouteTable
from p2p_network.session import PeerSession


class Session:
    """A session with what must never repeat: the numbers of its connections."""

    __slots__ = ("_dialled", "_taken", "is_far", "keys")

    def __init__(self, keys: PeerSession) -> None:
        self.keys = keys
        self.is_far = False
        """A TCP connection of it found its way grown: the next ones need not look."""
        self._dialled: dict[str, int] = {}
        self._taken: dict[str, int] = {}

    def next_number(self, kind: str) -> int:
        """Of the next connection of this kind that this side dials; from 1."""
        number = self._dialled[kind] = self._dialled.get(kind, 0) + 1
        return number

    def numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        """What was dialled and what was taken so far, by kind."""
        return dict(self._dialled), dict(self._taken)

    def go_on(self, dialled: dict[str, int], taken: dict[str, int]) -> None:
        """Go on where another process stopped."""
        for known, heard in ((self._dialled, dialled), (self._taken, taken)):
            for kind, number in heard.items():
                known[kind] = max(number, known.get(kind, 0))

    def take_number(self, kind: str, number: int) -> bool:
        """Whether a dialer's connection number is new; each is good once, and none below an accepted one."""
        if number <= self._taken.get(kind, 0):
            return False
        self._taken[kind] = number
        return True


class Carrier(Protocol):
    """A way for batches to reach a peer."""

    @property
    def kind(self) -> str:
        """One of `choice.KINDS`."""

    @property
    def endpoint(self) -> str:
        """The other end's address."""

    @property
    def session(self) -> Session | None:
        """Whose keys it uses."""

    @property
    def ready(self) -> bool:
        """Takes a batch now; while False batches go to the peer's queue."""

    def path_facts(self) -> Path:
        """What is known of its path."""

    def send(self, batch: memoryview | bytes) -> None:
        """Take a batch of entries; only while `ready`. A writable batch may be used up."""

    def retire(self, reason: str) -> None:
        """Another carrier took over: send what was begun, keep delivering what arrives, then close."""

    def close(self, reason: str) -> None:
        """End at once."""


class Peer:
    """A peer, its sessions (oldest first), its carrier and its counters. Compared by identity."""

    __slots__ = (
        "_counted",
        "active_at",
        "carrier",
        "connects",
        "dial",
        "drops",
        "endpoints",
        "guard",
        "idle_s",
        "last_received",
        "name",
        "punch",
        "queue",
        "reason",
        "rx_bytes",
        "rx_packets",
        "rx_rate_bps",
        "sessions",
        "tx_bytes",
        "tx_packets",
        "tx_rate_bps",
    )

    def __init__(self, name: str, budget: QueueBudget) -> None:
        self.name = name
        self.sessions: list[Session] = []
        self.endpoints: tuple[str, ...] = ()
        self.punch: tuple[str, ...] = ()
        self.idle_s = IDLE_S
        self.dial = False
        self.carrier: Carrier | None = None
        self.queue = FairQueue(budget)
        self.drops: dict[str, int] = {}
        self.rx_bytes = self.rx_packets = self.tx_bytes = self.tx_packets = 0
        self.connects = 0
        self.rx_rate_bps = self.tx_rate_bps = 0.0
        self._counted = (0, 0)
        self.active_at = float("-inf")
        self.reason = ""
        self.last_received: float | None = None
        self.guard: Guard | None = None

    @property
    def newest(self) -> Session:
        """The session that was put last."""
        return self.sessions[-1]

    def drop(self, reason: str, packets: int = 1) -> None:
        """Count packets that were not forwarded."""
        if packets:
            self.drops[reason] = self.drops.get(reason, 0) + packets

    def measure(self, seconds: float, now: float) -> None:
        """Take the rates of the last `seconds` from the counters, and whether anything moved."""
        rx, tx = self._counted
        if self._counted != (self.rx_bytes, self.tx_bytes) or self.queue:
            self.active_at = now
        self._counted = (self.rx_bytes, self.tx_bytes)
        self.rx_rate_bps = (self.rx_bytes - rx) * 8 / seconds
        self.tx_rate_bps = (self.tx_bytes - tx) * 8 / seconds

    def send(self, batch: memoryview, packets: int, now: float) -> None:
        """Forward a batch of entries now, later or never."""
        carrier = self.carrier
        if carrier is None:
            self.drop("no_carrier", packets)
        elif carrier.ready and not self.queue:
            carrier.send(batch)
        else:
            self.drop("queue_full", self.queue.push(batch, now))

    def pump(self, limit_bytes: int) -> None:
        """Give the carrier what waits, as far as it takes it; `limit_bytes` per record."""
        while self.carrier is not None and self.carrier.ready and self.queue:
            self.carrier.send(self.queue.pull(limit_bytes))

    def stats(self, now: float, seen: dict[str, str]) -> PeerStats:
        """The peer as shown outside; `seen`: as `PeerStats` has it."""
        carrier = self.carrier
        facts = carrier.path_facts() if carrier is not None else None
        carrying = carrier.session if carrier is not None and carrier.session is not None else self.newest
        return PeerStats(
            peer=self.name,
            session_id=carrying.keys.session_id,
            pending_session_id=b"" if carrying is self.newest else self.newest.keys.session_id,
            carrier=carrier.kind if carrier is not None else "none",
            endpoint=carrier.endpoint if carrier is not None else "",
            connected=carrier is not None,
            rx_bytes=self.rx_bytes,
            rx_packets=self.rx_packets,
            tx_bytes=self.tx_bytes,
            tx_packets=self.tx_packets,
            drops=dict(self.drops),
            queued_bytes=self.queue.size_bytes,
            rtt_ms=facts.rtt_ms if facts is not None else None,
            loss=facts.loss if facts is not None else None,
            reason=self.reason if carrier is not None else "",
            last_seen_s=None if self.last_received is None else now - self.last_received,
            connects=self.connects,
            rx_rate_bps=self.rx_rate_bps,
            tx_rate_bps=self.tx_rate_bps,
            seen=seen,
            idle_s=self.idle_s,
        )


class PeerTable:
    """All peers, by name and by session id, and the addresses they own."""

    def __init__(self) -> None:
        self.by_name: dict[str, Peer] = {}
        self.routes: RouteTable[Peer] = RouteTable()
        self.budget = QueueBudget()

    def find_session(self, session_id: bytes) -> tuple[Peer, Session] | None:
        """Whose session that is."""
        for peer in self.by_name.values():
            for session in peer.sessions:
                if session.keys.session_id == session_id:
                    return peer, session
        return None

    def common_offloads(self, capability: int) -> int:
        """TUN_F bits that this node and every peer can take."""
        for peer in self.by_name.values():
            for session in peer.sessions:
                capability &= session.keys.offloads
        return capability

    def common_mtu(self, mtu: int) -> int:
        """The largest inner MTU that suits this node and every peer, bytes."""
        return min([mtu, *(session.keys.mtu for peer in self.by_name.values() for session in peer.sessions)])
