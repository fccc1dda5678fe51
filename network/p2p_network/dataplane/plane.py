"""What is the data plane told to do, and how do its parts fit together?

The composition root of the process: one loop, one peer table, the forwarder, the carriers, at most one TUN
device. `answer` carries out one request of the control process. A request that fails leaves what was in
force in force.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Final, TypeVar, assert_never

from p2p_network.core import log
from p2p_network.core.errors import MeshError
from p2p_network.dataplane import sockets
from p2p_network.dataplane.carriers import Carriers
from p2p_network.dataplane.choice import KINDS, MESH
from p2p_network.dataplane.cpu import ciphers_by_speed
from p2p_network.dataplane.edition import edition
from p2p_network.dataplane.forward import Forwarder
from p2p_network.dataplane.guard import MAX_FLOWS, Guard
from p2p_network.dataplane.loop import READ, Loop
from p2p_network.dataplane.messages import (
    PROTOCOL,
    Carry,
    Configure,
    Configured,
    Done,
    DropPeer,
    Estate,
    Failed,
    GetStats,
    HandOver,
    Hello,
    Heritage,
    PutPeer,
    Reply,
    Request,
    SetReach,
    Stats,
    Stop,
    Welcome,
)
from p2p_network.dataplane.peers import Peer, PeerTable, Session
from p2p_network.dataplane.routes import Network, contains, parse_networks
from p2p_network.dataplane.tun import Tun
from p2p_network.session import CIPHERS, KEY_BYTES, MTU_MAX, MTU_MIN, SESSION_ID_BYTES

MAX_ENDPOINTS: Final = 16
MAX_PUNCH: Final = 4
OVERLAP_S: Final = 30.0
"""How long a session that was replaced may carry while its successor has no connection."""

T = TypeVar("T")

logger = log.get(__name__)


class Plane:
    """Everything the process does, behind `answer`."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._started_at = loop.now()
        self._edition = edition()
        self._table = PeerTable()
        self._forwarder = Forwarder(self._table, self._device_lost)
        self._carriers = Carriers(loop, self._table, self._forwarder)
        self._ciphers = ciphers_by_speed(_read_or_empty("/proc/cpuinfo"))
        self._tun: Tun | None = None
        self._config: Configure | None = None
        self._networks: tuple[Network, ...] = ()

    def answer(self, request: Request) -> Reply:
        """Do what is asked; `Failed` says why not and what to do."""
        try:
            match request:
                case Hello():
                    return Welcome(protocol=PROTOCOL, pid=os.getpid(), edition=self._edition)
                case Configure():
                    return self._configure(request)
                case PutPeer():
                    return self._put_peer(request)
                case SetReach():
                    return self._set_reach(request)
                case DropPeer():
                    return self._drop_peer(request)
                case Carry():
                    return self._may_carry(request)
                case GetStats():
                    return self._stats()
                case HandOver():
                    self._loop.stop()
                    return self._estate()
                case Stop():
                    self._loop.stop()
                    return Done()
                case _:
                    assert_never(request)
        except MeshError as exc:
            return Failed(exc.message, exc.hint)

    def rate_bps(self) -> float:
        """What all peers sent and got during the last second, inner bits."""
        return sum(peer.rx_rate_bps + peer.tx_rate_bps for peer in self._table.by_name.values())

    def close(self) -> None:
        """Close all connections; the device goes away."""
        self._carriers.close()
        self._close_device()

    # --- succession ------------------------------------------------------------------------------

    @property
    def device(self) -> int | None:
        """The TUN device's descriptor."""
        return self._tun.fd if self._tun is not None else None

    def _estate(self) -> Estate:
        peers = []
        left = MAX_FLOWS  # of all peers: it has to fit into one frame
        for peer in self._table.by_name.values():
            carrying = peer.carrier.session if peer.carrier is not None else None
            session = carrying or peer.newest
            flows = peer.guard.flows()[-left:] if peer.guard is not None and left else []
            left -= len(flows)
            told = PutPeer(
                peer=peer.name,
                session=session.keys,
                endpoints=peer.endpoints,
                allowed_ips=tuple(str(network) for network in self._table.routes.owned_by(peer)),
                dial=peer.dial,
                guarded=peer.guard is not None,
                idle_s=peer.idle_s,
                punch=peer.punch,
            )
            peers.append(Heritage(told, *session.numbers(), tuple(flows)))
        return Estate(self._config, tuple(peers))

    def inherit(self, estate: Estate, device: int | None) -> None:
        """Go on where another data plane stopped. Raises MeshError: what can't be had again."""
        if estate.config is None:
            return
        self._configure(estate.config, device)
        for each in estate.peers:
            self._put_peer(each.peer, each)

    # --- configuration ---------------------------------------------------------------------------

    def _configure(self, wanted: Configure, given: int | None = None) -> Reply:
        if wanted == self._config:
            return self._capability()
        _check_config(wanted)
        new_tun = self._tun is None or self._tun.name != wanted.device
        fresh = Tun(wanted.device, given) if new_tun else self._tun
        assert fresh is not None
        try:
            self._carriers.listen(wanted.listen, wanted.carriers)
        except MeshError:
            if new_tun:
                fresh.close()
            raise
        if new_tun:
            self._close_device()
            self._loop.watch(fresh.fd, READ, self._forwarder.on_tun_ready)
        self._tun, self._config = fresh, wanted
        self._networks = parse_networks(wanted.networks)
        self._forwarder.attach(fresh, wanted)
        self._suit_all_peers()
        log.event(logger, "network.plane_configured", device=wanted.device, address=" ".join(wanted.listen))
        return self._capability()

    def _capability(self) -> Configured:
        assert self._tun is not None
        return Configured(
            device=self._tun.name,
            offloads=self._tun.capability,
            ciphers=self._ciphers,
            listen=self._carriers.listening(),
        )

    def _close_device(self) -> None:
        if self._tun is not None:
            self._forwarder.detach()
            self._loop.forget(self._tun.fd)
            self._tun.close()
            self._tun = None

    def _device_lost(self) -> None:
        """Somebody removed it; `Configure` makes a new one."""
        if self._tun is not None:
            log.event(
                logger, "network.device_lost", device=self._tun.name, reason="somebody removed the device"
            )
            self._close_device()
            self._config = None

    def _suit_all_peers(self) -> None:
        """Offloads and MTU that every peer can take."""
        if self._tun is not None and self._config is not None:
            self._tun.set_offloads(self._table.common_offloads(self._tun.capability))
            self._tun.set_mtu(self._table.common_mtu(self._config.mtu))

    # --- peers -----------------------------------------------------------------------------------

    def _put_peer(self, wanted: PutPeer, left: Heritage | None = None) -> Reply:
        allowed = _check_peer(wanted)
        if self._config is not None and wanted.peer == self._config.self_id:
            raise MeshError("a node is no peer of itself", hint="leave this node out of the peers")
        peer = self._table.by_name.get(wanted.peer)
        holder = self._table.find_session(wanted.session.session_id)
        if holder is not None and holder[0] is not peer:
            raise MeshError(
                "that session id belongs to another peer", hint="make a new session for each peer"
            )
        if peer is None:
            peer = self._table.by_name[wanted.peer] = Peer(wanted.peer, self._table.budget)
        if holder is None:
            session = Session(wanted.session)
            if left is not None:
                session.go_on(left.dialled, left.taken)
            peer.sessions.append(session)
            self._forget_overtaken(peer)
        # A carrier dialled through the mesh's own device would carry itself.
        peer.endpoints = tuple(e for e in wanted.endpoints if not self._is_inside(e))
        peer.punch = tuple(e for e in wanted.punch if not self._is_inside(e))
        peer.dial, peer.idle_s = wanted.dial, wanted.idle_s
        self._table.routes.assign(peer, allowed)
        _set_guard(peer, guarded=wanted.guarded)
        if peer.guard is not None and left is not None:
            peer.guard.remember(left.flows)
        self._suit_all_peers()
        self._carriers.put(peer)
        return Done()

    def _set_reach(self, wanted: SetReach) -> Reply:
        allowed = _checked("address", lambda: parse_networks(wanted.allowed_ips))
        peer = self._table.by_name.get(wanted.peer)
        if peer is not None:
            self._table.routes.assign(peer, allowed)
            _set_guard(peer, guarded=wanted.guarded)
            peer.idle_s = wanted.idle_s
        return Done()

    def _forget_overtaken(self, peer: Peer) -> None:
        """Of the sessions before the newest only one that carries may stay, and not for ever."""
        newest = peer.newest
        carrying = peer.carrier.session if peer.carrier is not None else None
        for old in peer.sessions[:-1]:
            if old is not carrying:
                self._drop_session(peer, old)
        if len(peer.sessions) > 1:
            self._loop.call_at(self._loop.now() + OVERLAP_S, lambda: self._end_overlap(peer, newest))

    def _end_overlap(self, peer: Peer, newest: Session) -> None:
        if newest in peer.sessions:
            for old in peer.sessions[: peer.sessions.index(newest)]:
                self._drop_session(peer, old)
            self._suit_all_peers()

    def _drop_session(self, peer: Peer, session: Session) -> None:
        peer.sessions.remove(session)
        self._carriers.drop_session(peer, session, "its session was replaced")

    def _is_inside(self, endpoint: str) -> bool:
        return contains(self._networks, sockets.packed_ip(endpoint))

    def _drop_peer(self, wanted: DropPeer) -> Reply:
        peer = self._table.by_name.pop(wanted.peer, None)
        if peer is not None:
            self._table.routes.remove(peer)
            self._carriers.drop(peer)
            self._suit_all_peers()
        return Done()

    def _may_carry(self, wanted: Carry) -> Reply:
        peer = self._table.by_name.get(wanted.peer)
        if peer is None or self._config is None:
            raise MeshError("it has no session with that peer yet", hint="it is agreed on in a moment")
        if MESH not in self._config.carriers or MESH not in peer.newest.keys.carriers:
            raise MeshError("this session does not go through the mesh", hint="see p2p.vpn.carrier")
        return Done()

    def carry(self, wanted: Carry, sock: socket.socket) -> None:
        """A `Carry` was answered with `Done`: the socket is a carrier's now."""
        self._carriers.carry(self._table.by_name[wanted.peer], sock, dial=wanted.dial)

    # --- what is shown ---------------------------------------------------------------------------

    def _stats(self) -> Stats:
        now = self._loop.now()
        return Stats(
            pid=os.getpid(),
            uptime_s=now - self._started_at,
            rss_bytes=_rss_bytes(),
            configured=self._config,
            capability=self._capability() if self._tun is not None else None,
            offloads=self._tun.offloads if self._tun is not None else 0,
            mtu=self._table.common_mtu(self._config.mtu) if self._config is not None else 0,
            drops=dict(self._forwarder.drops),
            refused=self._carriers.refused,
            peers=tuple(peer.stats(now, self._carriers.seen(peer)) for peer in self._table.by_name.values()),
        )


def _set_guard(peer: Peer, *, guarded: bool) -> None:
    """A guard that is there keeps the flows it knows."""
    if not guarded:
        peer.guard = None
    elif peer.guard is None:
        peer.guard = Guard()


def _check_config(wanted: Configure) -> None:
    if (
        not 0 < len(wanted.device.encode()) < 16
        or "/" in wanted.device
        or wanted.device.strip() != wanted.device
    ):
        raise MeshError(
            f"{wanted.device!r} is no device name", hint="use 1 to 15 letters and digits, such as kp2p0"
        )
    if not MTU_MIN <= wanted.mtu <= MTU_MAX:
        raise MeshError(f"an inner MTU of {wanted.mtu} is not possible", hint=f"use {MTU_MIN} to {MTU_MAX}")
    if not wanted.carriers or not set(wanted.carriers) <= set(KINDS):
        raise MeshError(
            f"carriers {wanted.carriers!r} are not possible", hint=f"use some of {', '.join(KINDS)}"
        )
    _checked("address", lambda: parse_networks((*wanted.addresses, *wanted.networks)))
    _checked("endpoint", lambda: [sockets.parse_endpoint(text) for text in wanted.listen])


def _check_peer(wanted: PutPeer) -> tuple[Network, ...]:
    keys = wanted.session
    whole = (
        len(keys.session_id) == SESSION_ID_BYTES and len(keys.send_key) == len(keys.receive_key) == KEY_BYTES
    )
    if (
        not whole
        or keys.send_key == keys.receive_key
        or keys.cipher not in CIPHERS
        or not set(keys.carriers) & set(KINDS)
    ):
        raise MeshError("the session is not usable", hint="make it with p2p_network.session")
    if not MTU_MIN <= keys.mtu <= MTU_MAX:
        raise MeshError(f"an inner MTU of {keys.mtu} is not possible", hint=f"use {MTU_MIN} to {MTU_MAX}")
    if len(wanted.endpoints) > MAX_ENDPOINTS:
        raise MeshError(
            f"{len(wanted.endpoints)} endpoints are too many",
            hint=f"name the {MAX_ENDPOINTS} most likely ones",
        )
    if len(wanted.punch) > MAX_PUNCH:
        raise MeshError(f"{len(wanted.punch)} holes to punch are too many", hint=f"name at most {MAX_PUNCH}")
    _checked("endpoint", lambda: [sockets.parse_endpoint(e) for e in (*wanted.endpoints, *wanted.punch)])
    return _checked("address", lambda: parse_networks(wanted.allowed_ips))


def _checked(what: str, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except ValueError as exc:
        raise MeshError(
            f"not usable as {what}: {exc}", hint="use ip:port for endpoints, ip/length for networks"
        ) from exc


def _rss_bytes() -> int:
    fields = _read_or_empty("/proc/self/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def _read_or_empty(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
