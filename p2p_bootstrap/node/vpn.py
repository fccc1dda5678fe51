"""How do this node's packets reach the others?

Owns the node's address and the data-plane process. An address that is ours is put on the TUN device;
for every member that is here, keys are agreed over the mesh (`p2p_network.session`) and handed to the data
plane, which then forwards by itself, also while this process restarts: sessions that are still up are
adopted. Of two nodes the one that dialled the other in the mesh makes the offer and dials; if that does not
connect, they take turns, since only one of them may be able to reach the other. Where neither can, packets go
through the mesh (`detour`).
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Literal

import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from p2p_bootstrap.config.model import VPN
from p2p_bootstrap.node.address import ALONE_S, Address
from p2p_bootstrap.node.detour import Detours
from p2p_bootstrap.node.outside import Outside
from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.routing import Routing
from p2p_bootstrap.node.runtime import Runtime
from p2p_bootstrap.node.signal import Signal
from p2p_network import addressing, netlink, session, wire
from p2p_network.core import log
from p2p_network.core.errors import MeshError, P2PError, RemoteViolation
from p2p_network.core.ids import PeerId
from p2p_network.dataplane.choice import KINDS, MESH
from p2p_network.dataplane.client import DataPlane
from p2p_network.dataplane.messages import (
    Configure,
    Configured,
    PeerStats,
    PutPeer,
    SetReach,
    Stats,
)
from p2p_network.host.mesh import MeshHost
from p2p_network.membership import Member, MemberState

logger = log.get(__name__)

OFFER_METHOD = "session.offer"
ASK_METHOD = "session.ask"  # "please make me an offer"
NOT_YET = b""  # the answer of a node whose VPN is not up, or that does not know the peer's address yet
LOOK_EVERY_S = 1.0
CONNECT_PATIENCE_S = 5.0
REKEY_AFTER_S = 3600.0
RETRY_S = 5.0
TURN_S = 10.0
"""While packets go through the mesh the two sides take turns at dialling so often."""
MAX_TURN_S = 120.0
MTU_IPV4_OUTER = 1420
MTU_IPV6_OUTER = 1400

VpnState = Literal["off", "starting", "up", "failed", "userspace"]


@dataclass(slots=True)
class _Link:
    """What we did about one peer's session. Moments are trio's clock."""

    agreed_at: float = float("-inf")
    tried_at: float = float("-inf")
    attempts: int = 0
    allowed: tuple[str, ...] = ()
    barred: bool | None = None
    idle_s: float | None = None
    punch: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    busy: bool = False
    was_relayed: bool = False


@dataclass(slots=True)
class VpnStatus:
    """For `status`. `error`: message and hint of what went wrong last, "" while all is well. `reason`: why
    there is no device, in user space."""

    state: VpnState = "off"
    ipv4: str = ""
    ipv6: str = ""
    error: str = ""
    reason: str = ""
    peers: dict[str, PeerStats] = field(default_factory=dict)
    rss_bytes: int = 0


class Vpn:
    """The VPN of one node.

    Args:
        options: the cloud-config's `p2p.vpn`.
        socket_path: of the data plane's control socket.
        ready: raised when `status.state` or the address changed.
        rotated: raised when the mesh's keys were rotated: every session then gets new keys too.
        routing: which networks are behind which peer, and who may begin to talk to this node.
        outside: how the peers see this node, and it them.
        alone_s: see `Address`.
        userspace: why this node does without a device; "" if it doesn't.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        self_id: PeerId,
        mesh_id: str,
        options: VPN,
        host: MeshHost,
        replication: Replication,
        socket_path: Path,
        log_path: Path,
        ready: Signal,
        rotated: Signal,
        routing: Routing,
        outside: Outside,
        alone_s: float = ALONE_S,
        userspace: str = "",
    ) -> None:
        self.status = VpnStatus(
            "starting" if options.create else "userspace" if userspace else "off", reason=userspace
        )
        self._self_id = self_id
        self._mesh_id = mesh_id
        self._options = options
        self._network = IPv4Network(options.address_range)
        self._host = host
        self._replication = replication
        self._socket_path = socket_path
        self._log_path = log_path
        self._ready = ready
        self._rotated = rotated
        self._changed = Signal()
        self._routing = routing
        routing.moved = self._changed.raise_
        self._outside = outside
        self._own_networks: tuple[str, ...] = ()
        self._plane: DataPlane | None = None
        self._capability: Configured | None = None
        self._links: dict[PeerId, _Link] = {}
        self._nursery: trio.Nursery | None = None
        self.address = Address(
            runtime=runtime,
            self_id=self_id,
            mesh_id=mesh_id,
            network=self._network,
            host=host,
            replication=replication,
            moved=self._address_moved,
            stood=ready.raise_,
            failed=self._fail,
            alone_s=alone_s,
        )
        self._detours = Detours(self_id, host, lambda: self._plane if self._capability is not None else None)
        host.serve(OFFER_METHOD, self._answer_offer)
        host.serve(ASK_METHOD, self._asked)

    @property
    def mtu(self) -> int:
        """Inner MTU in bytes."""
        if self._options.mtu is not None:
            return self._options.mtu
        outer_ipv6 = any("/ip6/" in address for address in self._host.addresses())
        return MTU_IPV6_OUTER if outer_ipv6 else MTU_IPV4_OUTER

    @property
    def _kinds(self) -> tuple[str, ...]:
        """The kinds of carrier this node uses."""
        wanted = self._options.carrier
        return KINDS if wanted == "auto" else (wanted,)

    def carriers(self) -> tuple[str, ...]:
        """``ip:port`` where this node's data plane takes connections; for the node's record."""
        if not self._options.create:
            return ()
        found = []
        for address in self._host.addresses():
            _, family, host, *_ = address.split("/")
            found.append(
                f"[{host}]:{self._options.port}" if family == "ip6" else f"{host}:{self._options.port}"
            )
        return tuple(dict.fromkeys(found))

    @property
    def is_settled(self) -> bool:
        """Whether the address is up and its claim stands: it may be built upon."""
        return self.status.state == "up" and self.address.stands

    # ------------------------------------------------------------ running

    async def run(self) -> None:
        """Claim an address and keep packets flowing until cancelled."""
        if not self._options.create:
            return
        self._replication.subscribe_view(self._changed)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.address.run)
            nursery.start_soon(self._renew_sessions)
            await self._keep_up()

    async def _renew_sessions(self) -> None:
        """After a rotation every session gets new keys too; the old one carries until the new one does."""
        while True:
            if await self._rotated.wait():
                for link in self._links.values():
                    link.agreed_at = float("-inf")
                self._changed.raise_()

    async def stop(self) -> None:
        """End the data-plane process; its device goes with it."""
        if self._plane is not None:
            try:
                await self._plane.stop()
            except P2PError as exc:
                log.event(logger, "vpn.stop_failed", logging.WARNING, error=exc.message)
            self._plane = None
        if self._options.create:
            await self._routing.release()

    def _address_moved(self) -> None:
        self.status.ipv4, self.status.ipv6 = self.address.held or ("", self.status.ipv6)
        self._capability = None  # configure anew
        if self.status.state == "up":
            self.status.state = "starting"  # nothing may be built on an address before the device has it
        if self.address.held is not None:
            self._changed.raise_()

    # ------------------------------------------------------------ the data plane

    async def _keep_up(self) -> None:
        """Bring the device up, look after every session, and start over when the process is gone."""
        while True:
            wait_s = LOOK_EVERY_S
            try:
                if self.address.held is not None:
                    if self._capability is None or self._own_networks != self._routing.own_networks():
                        await self._bring_up(*self.address.held)
                    await self._look()
            except P2PError as exc:
                # a data plane that died is started again at once; what can't even start is tried in a while
                wait_s = 0.0 if self.status.state == "up" else RETRY_S
                self._fail(exc)
                self._capability = None
            await self._changed.wait(wait_s)

    async def _bring_up(self, ipv4: str, ipv6: str) -> None:
        plane = await DataPlane.start_or_adopt(self._socket_path, log_path=self._log_path)
        self._plane = plane
        net6 = addressing.ipv6_network_of(self._mesh_id)
        listen = tuple(self._listen())
        own = self._routing.own_networks()
        capability = await plane.configure(
            Configure(
                device=self._options.interface,
                mtu=self.mtu,
                listen=listen,
                self_id=self._self_id,
                addresses=(f"{ipv4}/32", f"{ipv6}/128", *own),
                networks=(str(self._network), str(net6)),
                carriers=self._kinds,
            )
        )
        await trio.to_thread.run_sync(
            netlink.bring_up,
            capability.device,
            (f"{ipv4}/{self._network.prefixlen}", f"{ipv6}/{net6.prefixlen}"),
            self.mtu,
        )
        is_new = self._capability is None
        self._capability, self._own_networks = capability, own
        self.status.state, self.status.error = "up", ""
        if not is_new:
            return
        self._routing.device_is_new()
        log.event(logger, "vpn.up", device=capability.device, ipv4=ipv4, ipv6=ipv6)
        self._ready.raise_()

    def _listen(self) -> list[str]:
        families = {address.split("/")[1] for address in self._host.addresses()}
        listen = [f"0.0.0.0:{self._options.port}"]
        return [*listen, f"[::]:{self._options.port}"] if "ip6" in families else listen

    def _fail(self, exc: P2PError) -> None:
        text = f"{exc.message} ({exc.hint})" if exc.hint else exc.message
        if text != self.status.error:
            log.event(logger, "vpn.failed", logging.ERROR, error=exc.message, hint=exc.hint)
        self.status.state, self.status.error = "failed", text
        self._ready.raise_()

    # ------------------------------------------------------------ sessions

    async def _look(self) -> None:
        """See how every session is, and agree on a new one where that helps."""
        assert self._plane is not None
        stats: Stats = await self._plane.stats()
        if stats.configured is None:
            raise MeshError("the data plane has lost its device", hint="it is configured again by itself")
        self.status.rss_bytes = stats.rss_bytes
        self.status.peers = {peer.peer: peer for peer in stats.peers}
        await self._routing.keep(
            self._options.interface, {PeerId(peer.peer) for peer in stats.peers if peer.connected}
        )
        for member in self._replication.view.members:
            if member.peer == self._self_id:
                continue
            if member.state is MemberState.LEFT:
                await self._forget(member.peer)
            elif member.peer in self._host.connected() and member.ipv4 and member.record is not None:
                await self._set_reach(member)
                stats_of = self.status.peers.get(member.peer)
                self._tend(member, stats_of)
                if MESH in self._kinds and self._nursery is not None:
                    self._detours.tend(member.peer, stats_of, self._nursery)
            elif member.ipv4:
                await self._set_reach(member)
                if member.state is MemberState.ALIVE and not self._carries(member.peer):
                    self._host.want(member.peer)  # it has a channel with others only: packets need a session

    def _carries(self, peer: PeerId) -> bool:
        stats = self.status.peers.get(peer)
        return stats is not None and stats.connected

    async def _set_reach(self, member: Member) -> None:
        """Tell the data plane what a peer may, if that changed since its session was put."""
        link = self._links.get(member.peer)
        if link is None or self._plane is None or member.peer not in self.status.peers:
            return
        allowed, barred = self._allowed(member), self._routing.is_barred(member.peer)
        idle_s = self._outside.question_s(member.peer)
        if (link.allowed, link.barred, link.idle_s) != (allowed, barred, idle_s):
            await self._plane.set_reach(SetReach(member.peer, allowed, barred, idle_s))
            link.allowed, link.barred, link.idle_s = allowed, barred, idle_s

    async def _forget(self, peer: PeerId) -> None:
        if peer in self.status.peers and self._plane is not None:
            await self._plane.drop_peer(peer)
        self._links.pop(peer, None)

    def _tend(self, member: Member, peer_stats: PeerStats | None) -> None:
        now = trio.current_time()
        link = self._links.get(member.peer)
        if link is None:
            link = self._links[member.peer] = _Link()
            if peer_stats is not None and peer_stats.connected:  # adopted from before our restart
                link.agreed_at = now
                link.endpoints = self._endpoints(member)
        if link.busy or now - link.tried_at < CONNECT_PATIENCE_S:
            return
        carries = peer_stats is not None and peer_stats.connected
        unchanged = link.endpoints == self._endpoints(member)
        fresh = now - link.agreed_at < REKEY_AFTER_S
        if carries and unchanged and (fresh or self._self_id > member.peer):
            assert peer_stats is not None
            if peer_stats.carrier != MESH:
                link.attempts = 0
                return
            if link.punch != self._outside.punch(member.peer) and now - link.agreed_at > CONNECT_PATIENCE_S:
                link.punch = self._outside.punch(member.peer)
                link.agreed_at, link.attempts = float("-inf"), 0  # it may be reached another way now
            # perhaps the other side can dial: a new session, and it is its turn
            turn_s = min(MAX_TURN_S, TURN_S * max(1, link.attempts - 1))
            is_relayed = self._host.relay_of(member.peer) is not None
            if link.was_relayed and not is_relayed:  # the mesh reaches it now: its packets may too
                link.agreed_at, link.attempts = float("-inf"), 0
            link.was_relayed = is_relayed
            if self._self_id > member.peer or now - link.agreed_at < turn_s:
                return
        link.busy, link.tried_at = True, now
        link.attempts += 1
        assert self._nursery is not None
        # who dialled the mesh's connection begins, as it can reach the other; then they take turns
        dialled = self._host.dialled(member.peer)
        begins = self._self_id < member.peer if dialled is None else dialled
        my_turn = begins == (link.attempts % 2 == 1)
        self._nursery.start_soon(self._agree if my_turn else self._ask, member, link)

    def _allowed(self, member: Member) -> tuple[str, ...]:
        return (f"{member.ipv4}/32", f"{member.ipv6}/128", *self._routing.networks_of(member.peer))

    def _endpoints(self, member: Member) -> tuple[str, ...]:
        return member.record.carriers[:16] if member.record is not None else ()

    async def _ask(self, member: Member, link: _Link) -> None:
        try:
            await self._host.request(member.peer, ASK_METHOD, b"")
        except MeshError as exc:
            log.event(logger, "vpn.session_failed", logging.DEBUG, peer=member.peer, error=exc.message)
        finally:
            link.busy = False

    async def _asked(self, peer: PeerId, payload: bytes) -> bytes:
        """A peer has no session with us that carries: make it an offer."""
        member = self._replication.view.get(peer)
        link = self._links.setdefault(peer, _Link())
        ready = (
            self._capability is not None and member is not None and member.record is not None and member.ipv4
        )
        if ready and not link.busy and self._nursery is not None:
            assert member is not None
            link.busy, link.tried_at = True, trio.current_time()
            self._nursery.start_soon(self._agree, member, link)
        return b""

    async def _agree(self, member: Member, link: _Link) -> None:
        """Offer a session and hand it to the data plane; this side dials."""
        capability, plane = self._capability, self._plane
        private = X25519PrivateKey.generate()
        try:
            if capability is None or plane is None:
                return
            offered = session.offer(
                private,
                os.urandom(session.SESSION_ID_BYTES),
                ciphers=capability.ciphers,
                offloads=capability.offloads,
                carriers=self._kinds,
                mtu=self.mtu,
            )
            raw = await self._host.request(member.peer, OFFER_METHOD, wire.encode(offered))
            if raw == NOT_YET:
                link.tried_at = trio.current_time() - CONNECT_PATIENCE_S + LOOK_EVERY_S
                return
            try:
                answered = wire.decode(raw, session.SessionAnswer)
            except ValueError as exc:
                raise RemoteViolation(f"session answer: {exc}", peer=member.peer) from exc
            agreed = session.conclude(
                private,
                offered,
                answered,
                self_id=self._self_id,
                peer_id=member.peer,
                mesh_id=self._mesh_id,
            )
            await self._install(member, link, agreed, dial=True)
        except MeshError as exc:
            log.event(logger, "vpn.session_failed", logging.DEBUG, peer=member.peer, error=exc.message)
        finally:
            link.busy = False

    async def _answer_offer(self, peer: PeerId, payload: bytes) -> bytes:
        try:
            offered = wire.decode(payload, session.SessionOffer)
        except ValueError as exc:
            raise RemoteViolation(f"session offer: {exc}", peer=peer) from exc
        member, capability = self._replication.view.get(peer), self._capability
        if capability is None or member is None or not member.ipv4 or member.record is None:
            return NOT_YET
        answered, agreed = session.answer(
            X25519PrivateKey.generate(),
            offered,
            self_id=self._self_id,
            peer_id=peer,
            mesh_id=self._mesh_id,
            ciphers=capability.ciphers,
            offloads=capability.offloads,
            carriers=self._kinds,
            mtu=self.mtu,
        )
        await self._install(member, self._links.setdefault(peer, _Link()), agreed, dial=False)
        return wire.encode(answered)

    async def _install(self, member: Member, link: _Link, agreed: session.PeerSession, *, dial: bool) -> None:
        assert self._plane is not None
        allowed, endpoints = self._allowed(member), self._endpoints(member)
        barred = self._routing.is_barred(member.peer)
        idle_s, punch = self._outside.question_s(member.peer), self._outside.punch(member.peer)
        await self._plane.put_peer(
            PutPeer(member.peer, agreed, endpoints if dial else (), allowed, dial, barred, idle_s, punch)
        )
        link.allowed, link.barred, link.endpoints = allowed, barred, self._endpoints(member)
        link.idle_s, link.punch = idle_s, punch
        link.agreed_at = link.tried_at = trio.current_time()
