"""How is this node seen from outside, and what does it tell the others about themselves?

Once a second it looks how it sees each connected peer (the other end of the mesh's connection and of the
data plane's) and tells the peer, if that changed since the last time; what it hears itself is judged by
`p2p_network.nat`. Then it asks two members to dial it back, at its own addresses and the one it is seen
under: where strangers get through, that address is announced like any other. What follows for the data plane:
how often an idle path is asked, and where a peer behind NAT may be called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.runtime import Runtime
from p2p_network import nat, wire
from p2p_network.core import log
from p2p_network.core.errors import MeshError, RemoteViolation
from p2p_network.core.ids import PeerId
from p2p_network.host.addresses import Endpoint, endpoints_of
from p2p_network.membership import MemberState

if TYPE_CHECKING:
    from p2p_network.dataplane.messages import PeerStats
    from p2p_network.host.mesh import MeshHost

logger = log.get(__name__)

TOLD_METHOD: Final = "nat.told"
DIAL_BACK_METHOD: Final = "nat.dial_back"
LOOK_EVERY_S: Final = 1.0
OWN_EVERY_S: Final = 5.0
AGAIN_S: Final = 5.0
"""After words that did not arrive."""
DIAL_BACK_EVERY_S: Final = 600.0
DIAL_BACK_AGAIN_S: Final = 30.0
DIAL_BACK_LIMIT_S: Final = 12.0
ASKED: Final = 2
ASKED_EVERY_S: Final = 5.0
"""So often at most one peer may have itself dialled."""
MAX_ERROR_CHARS: Final = 160


@dataclass(slots=True)
class _Peer:
    """What we told one peer, and when it had itself dialled. Moments are monotonic."""

    told: nat.Told | None = None
    next_at: float = float("-inf")
    busy: bool = False
    dialled_at: float = float("-inf")


@dataclass(slots=True)
class _Tried:
    """Our last dial-back."""

    wanted: tuple[Endpoint, ...] = ()
    next_at: float = float("-inf")
    busy: bool = False
    reached: dict[Endpoint, None] = field(default_factory=dict)
    answered: bool = False
    error: str = ""


class Outside:
    """The view of one node from outside.

    Args:
        udp_port: of the data plane; 0 without one.
        planes: what the data plane says of each peer.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        self_id: PeerId,
        host: MeshHost,
        replication: Replication,
        udp_port: int,
        planes: Callable[[], Mapping[str, PeerStats]],
    ) -> None:
        self.nat = nat.UNKNOWN
        self.changed = runtime.signal()
        self._runtime = runtime
        self._self_id = self_id
        self._host = host
        self._replication = replication
        self._udp_port = udp_port
        self._planes = planes
        self._words = nat.Outside()
        self._peers: dict[PeerId, _Peer] = {}
        self._tried = _Tried()
        self._own: tuple[float, tuple[Endpoint, ...]] = (float("-inf"), ())
        host.serve(TOLD_METHOD, self._was_told)
        host.serve(DIAL_BACK_METHOD, self._dial_back)

    # ------------------------------------------------------------ what follows

    @property
    def reachable(self) -> bool | None:
        """Whether a member could dial this node; None: nobody tried yet."""
        return bool(self._tried.reached) if self._tried.answered else None

    @property
    def reached(self) -> tuple[str, ...]:
        """The addresses at which it was dialled back."""
        return tuple(map(str, self._tried.reached))

    @property
    def why_unreached(self) -> str:
        """What went wrong when it was dialled back; "" if nothing did."""
        return "" if self._tried.reached else self._tried.error

    def question_s(self, peer: PeerId) -> float:
        """How often the data plane is to ask an idle path with a peer: see `nat.question_s`."""
        return nat.question_s(
            told=self._words.told_by(peer),
            own_ips=self._own_ips(),
            is_here=self._is_here(peer),
            reachable=self.reachable,
        )

    def _is_here(self, peer: PeerId) -> bool:
        """Whether somebody watches it: this node's channel with it, or others'."""
        member = self._replication.view.get(peer)
        alive = member is not None and member.state is MemberState.ALIVE
        return alive or peer in self._host.connected()

    def told_by(self, peer: PeerId) -> nat.Told | None:
        """What a peer said last."""
        return self._words.told_by(peer)

    def punch(self, peer: PeerId) -> tuple[str, ...]:
        """Where a peer's datagrams come out of its NAT, if it could say."""
        told = self._words.told_by(peer)
        return (told.own_udp,) if told is not None and told.own_udp else ()

    # ------------------------------------------------------------ running

    async def run(self) -> None:
        """Tell, listen and judge until cancelled."""
        tick = self._runtime.signal()
        async with self._runtime.task_group() as group:
            while True:
                self._judge()
                here = self._host.connected()
                for peer in self._peers.keys() - here:
                    del self._peers[peer]
                for peer in self._words.peers():  # a channel may rest: what was said still counts
                    if not self._is_here(peer):
                        self._words.forget(peer)
                for peer in here:
                    self._tell(peer, group.start_soon)
                self._have_dialled(group.start_soon)
                await tick.wait(LOOK_EVERY_S)

    def _judge(self) -> None:
        found = self._words.judge(self._own_ips(), self._udp_port)
        if (found.kind, found.udp, found.ip) != (self.nat.kind, self.nat.udp, self.nat.ip):
            self._runtime.log(
                logger, "mesh.seen_from_outside", from_=self.nat.kind, to=found.kind, reason=found.reason
            )
            self.changed.raise_()
        self.nat = found

    def dial_back_soon(self) -> None:
        """Something changed on the way from outside."""
        self._tried.next_at = float("-inf")

    def own_endpoints(self) -> tuple[Endpoint, ...]:
        """Where this node listens, by addresses of this machine."""
        at, found = self._own
        now = self._runtime.monotonic()
        if now - at >= OWN_EVERY_S or not found:
            found = self._host.own_endpoints()
            self._own = (now, found)
        return found

    def _own_ips(self) -> frozenset[str]:
        return frozenset(endpoint.host for endpoint in self.own_endpoints())

    def _told_to(self, peer: PeerId) -> nat.Told:
        stats = self._planes().get(peer)
        seen = stats.seen if stats is not None and stats.connected else {}
        return nat.Told(
            udp=seen.get("udp", ""),
            tcp=seen.get("tcp", ""),
            mesh=self._host.other_end(peer),
            kind=self.nat.kind,
            own_udp=self.nat.udp,
        )

    def _tell(self, peer: PeerId, start: Callable[..., object]) -> None:
        state = self._peers.setdefault(peer, _Peer())
        now = self._runtime.monotonic()
        told = self._told_to(peer)
        if not state.busy and told != state.told and now >= state.next_at:
            state.busy, state.next_at = True, now + LOOK_EVERY_S
            start(self._say, peer, state, told)

    async def _say(self, peer: PeerId, state: _Peer, told: nat.Told) -> None:
        try:
            await self._host.request(peer, TOLD_METHOD, wire.encode(told))
            state.told = told
        except MeshError as exc:
            state.next_at = self._runtime.monotonic() + AGAIN_S
            self._runtime.log(logger, "mesh.words_lost", logging.DEBUG, peer=peer, error=exc.message)
        finally:
            state.busy = False

    async def _was_told(self, peer: PeerId, payload: bytes) -> bytes:
        try:
            told = nat.checked(wire.decode(payload, nat.Told))
        except ValueError as exc:
            raise RemoteViolation(f"how it sees this node: {exc}", peer=peer) from exc
        if told != self._words.told_by(peer) and not self._tried.reached:  # perhaps another router
            self._tried.next_at = min(self._tried.next_at, self._runtime.monotonic() + ASKED_EVERY_S)
        self._words.note(peer, told, nat.ip_of(self._host.other_end(peer)))
        self._judge()
        self.changed.raise_()
        return b""

    # ------------------------------------------------------------ dialling back

    def _have_dialled(self, start: Callable[..., object]) -> None:
        tried, now = self._tried, self._runtime.monotonic()
        wanted = nat.to_dial_back(self.nat, self.own_endpoints())
        if tried.busy or not wanted or not self.nat.observers:
            return
        if wanted == tried.wanted and now < tried.next_at:
            return
        asked = [peer for peer in self._words.peers() if self._host.other_end(peer)]
        # those that see another address stand outside
        own = self._own_ips()
        asked.sort(key=lambda peer: nat.sees_own(self._words.told_by(peer), own))
        if asked:
            tried.busy = True
            start(self._ask_dial_back, wanted, asked[:ASKED])

    async def _ask_dial_back(self, wanted: tuple[Endpoint, ...], asked: list[PeerId]) -> None:
        tried = self._tried
        payload = wire.encode(nat.DialBack(tuple(map(str, wanted))))
        reached: dict[Endpoint, None] = {}
        answered, error = False, ""
        try:
            for peer in asked:
                try:
                    raw = await self._host.request(
                        peer, DIAL_BACK_METHOD, payload, timeout_s=DIAL_BACK_LIMIT_S
                    )
                    said = wire.decode(raw, nat.DialledBack)
                except (MeshError, ValueError) as exc:
                    self._runtime.log(
                        logger, "mesh.dial_back_failed", logging.DEBUG, peer=peer, error=str(exc)
                    )
                    continue
                answered, error = True, error or said.error[:MAX_ERROR_CHARS]
                reached.update(dict.fromkeys(e for e in endpoints_of(said.reached) if e in wanted))
        finally:
            tried.busy = False
        pause_s = DIAL_BACK_EVERY_S if reached else DIAL_BACK_AGAIN_S if answered else AGAIN_S
        tried.wanted, tried.next_at = wanted, self._runtime.monotonic() + pause_s
        if not answered:
            return
        if not tried.answered or bool(reached) != bool(tried.reached):
            where = ", ".join(map(str, reached))
            self._runtime.log(
                logger,
                "mesh.dialled_back",
                reason=f"members reach this node at {where}" if reached else f"no member reaches it: {error}",
            )
        tried.reached, tried.answered, tried.error = reached, True, error
        own = self._own_ips()
        self._host.announce(tuple(e for e in reached if e.host not in own))
        self.changed.raise_()

    async def _dial_back(self, peer: PeerId, payload: bytes) -> bytes:
        try:
            asked = wire.decode(payload, nat.DialBack)
        except ValueError as exc:
            raise RemoteViolation(f"where to dial it: {exc}", peer=peer) from exc
        state, now = self._peers.setdefault(peer, _Peer()), self._runtime.monotonic()
        if now - state.dialled_at < ASKED_EVERY_S:
            return wire.encode(nat.DialledBack((), "it was dialled just now"))
        state.dialled_at = now
        reached: dict[Endpoint, None] = {}
        errors: list[str] = []

        async def attempt(endpoint: Endpoint) -> None:
            try:
                await self._host.probe(endpoint, peer)
                reached[endpoint] = None
            except MeshError as exc:
                errors.append(exc.message)

        async with self._runtime.task_group() as group:
            for endpoint in nat.may_be_dialled(endpoints_of(asked.addresses), self._known_ips(peer)):
                group.start_soon(attempt, endpoint)
        error = errors[0] if errors else "" if reached else "none of these addresses is known to be its own"
        return wire.encode(nat.DialledBack(tuple(map(str, reached)), error[:MAX_ERROR_CHARS]))

    def _known_ips(self, peer: PeerId) -> frozenset[str]:
        """Under which a peer is seen, or says in the ledger that it lives."""
        told, member = self._told_to(peer), self._replication.view.get(peer)
        said = member.record.addresses if member is not None and member.record is not None else ()
        seen = (nat.ip_of(text) for text in (told.udp, told.tcp, told.mesh))
        return frozenset(ip for ip in (*seen, *(e.host for e in endpoints_of(said))) if ip)
