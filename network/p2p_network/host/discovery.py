"""How do members find each other without telling anybody else?

Three ways besides bootstrap addresses and what the owner teaches (`MeshHost.learn`):

- mDNS on the local network, through python-zeroconf in threads of its own. The service type is a hash of
  the rendezvous key, the instance name is random, and the TXT record is sealed (ChaCha20-Poly1305 under a key
  derived from the rendezvous key): a listener learns that something is announced, not what nor by whom.
- DHT rendezvous: members provide one key, a hash of the rendezvous key and of the day, in a Kademlia DHT that
  exists only inside the private mesh. They look up that of the day before and of the day after too, so clocks
  may differ, and whoever learned a key of the past learns nothing of the mesh of today.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from zeroconf import (
    BadTypeInNameException,
    IPVersion,
    ServiceBrowser,
    ServiceInfo,
    ServiceStateChange,
    Zeroconf,
)
from zeroconf import Error as ZeroconfError

import p2p_network.host.lean  # noqa: F401  (first: imports libp2p without what we never use)

# isort: split
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from p2p_network import wire
from p2p_network.core import log
from p2p_network.core.ids import PeerId, public_key_of
from p2p_network.host.connections import FencedTasks
from p2p_network.host.guards import MeshBasicHost

logger = log.get(__name__)

Learn = Callable[[PeerId, Sequence[str], str], None]

MDNS_PORT: Final = 5353
_CHUNK_BYTES: Final = 240
_MAX_CHUNKS: Final = 4
_RESOLVE_MS: Final = 3000
DHT_GATHER_S: Final = 0.5
DHT_LOOK_OVER_S: Final = 300.0
DHT_TRIES: Final = 10
DHT_PROVIDERS: Final = 20
"""How many providers of one key a Kademlia node keeps."""
DHT_ADDRESS_TTL_S: Final = 3600
DHT_LIMIT_S: Final = 15.0
DHT_KEY_S: Final = 86_400
"""How long a key of the DHT is in use."""


class _Announcement(msgspec.Struct, frozen=True, array_like=True):
    peer: str
    addresses: tuple[str, ...]


def derived(rendezvous: bytes, use: str) -> bytes:
    """A 32-byte value for one use of the rendezvous key; tells nothing about it."""
    return hashlib.blake2s(use.encode(), key=rendezvous[:32], digest_size=32).digest()


def service_type(rendezvous: bytes) -> str:
    """The mDNS service type of a mesh: ``_`` and 13 characters that start with a letter."""
    return f"_x{derived(rendezvous, 'mdns-type').hex()[:12]}._tcp.local."


def seal(rendezvous: bytes, peer: PeerId, addresses: Sequence[str], nonce: bytes) -> bytes:
    """An announcement that only members can read. `nonce`: 12 random bytes."""
    body = wire.encode(_Announcement(peer, tuple(addresses)))
    return nonce + ChaCha20Poly1305(derived(rendezvous, "mdns-seal")).encrypt(nonce, body, None)


def unseal(rendezvous: bytes, sealed: bytes) -> tuple[PeerId, tuple[str, ...]]:
    """Inverse of `seal`. Raises ValueError on anything that no member sealed."""
    try:
        cipher = ChaCha20Poly1305(derived(rendezvous, "mdns-seal"))
        body = cipher.decrypt(sealed[:12], sealed[12:], None)
    except (InvalidTag, ValueError) as exc:
        raise ValueError("sealed by nobody of this mesh") from exc
    found = wire.decode(body, _Announcement)
    public_key_of(found.peer)
    return PeerId(found.peer), found.addresses


def dht_keys(rendezvous: bytes, wall_s: float) -> tuple[bytes, bytes, bytes]:
    """The keys to use in the DHT: that of now, the previous and the next. Multihashes (SHA-256)."""
    period = int(wall_s // DHT_KEY_S)

    def key(number: int) -> bytes:
        digest = hashlib.sha256(derived(rendezvous, f"dht-key/{number}")).digest()
        return b"\x12\x20" + digest  # as provider records want it

    return key(period), key(period - 1), key(period + 1)


class LocalDiscovery:
    """mDNS. `addresses` of this node are announced; others' go to `learn`, in the trio thread."""

    def __init__(self, peer: PeerId, rendezvous: bytes, learn: Learn, *, loopback_only: bool) -> None:
        self._peer = peer
        self._rendezvous = rendezvous
        self._learn = learn
        self._loopback_only = loopback_only
        self._type = service_type(rendezvous)
        self._announced: tuple[str, ...] = ()
        self._zeroconf: Zeroconf | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    async def announce(self, addresses: Sequence[str], hosts: Sequence[str]) -> None:
        """Start, or start again if the addresses changed; `hosts`: this machine's IP addresses to use."""
        if tuple(addresses) == self._announced or not addresses:
            return
        await self.stop()
        self._token = trio.lowlevel.current_trio_token()
        await trio.to_thread.run_sync(self._start, tuple(addresses), tuple(hosts))
        self._announced = tuple(addresses)

    async def stop(self) -> None:
        """Withdraw the announcement and end the threads."""
        if self._zeroconf is not None:
            zeroconf, self._zeroconf = self._zeroconf, None
            self._announced = ()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(zeroconf.close)

    def _start(self, addresses: tuple[str, ...], hosts: tuple[str, ...]) -> None:
        interfaces = ["127.0.0.1"] if self._loopback_only else list(hosts)
        versions = {6 if ":" in host else 4 for host in interfaces}
        version = (
            IPVersion.All if len(versions) > 1 else IPVersion.V6Only if 6 in versions else IPVersion.V4Only
        )
        zeroconf = Zeroconf(interfaces=interfaces, ip_version=version)
        try:
            sealed = seal(self._rendezvous, self._peer, addresses, secrets.token_bytes(12))
            chunks = [sealed[i : i + _CHUNK_BYTES] for i in range(0, len(sealed), _CHUNK_BYTES)]
            while len(chunks) > _MAX_CHUNKS:
                addresses = addresses[:-1]
                sealed = seal(self._rendezvous, self._peer, addresses, secrets.token_bytes(12))
                chunks = [sealed[i : i + _CHUNK_BYTES] for i in range(0, len(sealed), _CHUNK_BYTES)]
            name = secrets.token_hex(8)
            packed = [
                socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
                for host in interfaces
            ]
            info = ServiceInfo(
                self._type,
                f"{name}.{self._type}",
                port=9,  # discard: the real ports are inside the seal
                addresses=packed,
                properties={str(number): chunk for number, chunk in enumerate(chunks)},
                server=f"{name}.local.",
            )
            # the name is random, so probing for conflicts would only cost time
            zeroconf.register_service(info, cooperating_responders=True)
            ServiceBrowser(zeroconf, self._type, handlers=[self._changed])
        except BaseException:
            zeroconf.close()
            raise
        self._zeroconf = zeroconf

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """Called in zeroconf's browser thread."""
        if state_change is ServiceStateChange.Removed:
            return
        try:
            info = zeroconf.get_service_info(service_type, name, timeout=_RESOLVE_MS)
            chunks = info.properties if info is not None else {}
            sealed = b"".join(chunks.get(str(n).encode()) or b"" for n in range(_MAX_CHUNKS))
            peer, addresses = unseal(self._rendezvous, sealed)
        except (ValueError, BadTypeInNameException, ZeroconfError, OSError) as exc:
            log.event(logger, "discovery.mdns_ignored", level=10, detail=repr(exc))
            return
        if peer != self._peer and self._token is not None:
            try:
                self._token.run_sync_soon(self._learn, peer, addresses, "mdns")
            except trio.RunFinishedError:
                return


class DhtRendezvous:
    """Kademlia inside the mesh, used for one key.

    Every peer we connect with is told that we provide the key, and asked who else does: a newcomer finds all
    others through the first one it meets. A full look-up over the DHT follows seldom.
    """

    def __init__(self, host: MeshBasicHost, rendezvous: bytes, learn: Learn) -> None:
        self._host = host
        self._learn = learn
        self._rendezvous = rendezvous
        self._dht = KadDHT(host, DHTMode.SERVER, max_peers_per_subnet=0)
        self._store = self._dht.provider_store
        self._new: dict[ID, int] = {}  # peers not yet introduced to, and how often that was tried
        self._met = trio.Event()

    async def know(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """A peer was connected: put it into the routing table (nothing else does), and talk to it soon."""
        peer_id = ID.from_base58(peer)
        found = [Multiaddr(text) for text in addresses]
        if not found:
            return
        peerstore = self._host.get_peerstore()
        peerstore.clear_addrs(peer_id)
        peerstore.add_addrs(peer_id, found, DHT_ADDRESS_TTL_S)
        await self._dht.routing_table.add_peer(PeerInfo(peer_id, found), skip_server_mode_check=True)
        self._new[peer_id] = 0
        self._met.set()

    async def run(self, nursery: trio.Nursery) -> None:
        """Introduce ourselves to new peers, and look the whole DHT over now and then, for ever."""
        self._dht._manager = FencedTasks(nursery)
        nursery.start_soon(self._look_over)
        while True:
            await self._met.wait()
            await trio.sleep(DHT_GATHER_S)
            self._met = trio.Event()
            met, self._new = self._new, {}
            for peer_id, tried in met.items():
                if self._host.get_network().get_connections(peer_id):
                    await self._guarded(self._introduce, peer_id, tried + 1)

    async def _look_over(self) -> None:
        while True:
            await trio.sleep(DHT_LOOK_OVER_S)
            await self._guarded(self._round)

    async def _guarded(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        with trio.move_on_after(DHT_LIMIT_S):
            try:
                await work(*args)
            except Exception as exc:
                log.event(logger, "discovery.dht_failed", level=10, detail=repr(exc))

    async def _introduce(self, peer_id: ID, tried: int) -> None:
        """Tell and ask one peer; again soon if it refused (it serves 12 at a time)."""
        now, *others = self._keys()
        await self._store._send_add_provider(peer_id, now)
        providers = await self._ask(peer_id, now)
        for key in others:
            await self._ask(peer_id, key)
        known = len(providers) >= DHT_PROVIDERS or self._host.get_id() in providers
        if not known and tried < DHT_TRIES:
            self._new.setdefault(peer_id, tried)
            self._met.set()

    async def _round(self) -> None:
        now, *others = self._keys()
        await self._store.provide(now)
        closest = await self._dht.peer_routing.find_closest_peers_network(now)
        for peer_id in closest:
            if peer_id != self._host.get_id():
                for key in (now, *others):
                    await self._ask(peer_id, key)
        self._store.cleanup_expired()

    def _keys(self) -> tuple[bytes, bytes, bytes]:
        return dht_keys(self._rendezvous, time.time())

    async def _ask(self, peer_id: ID, key: bytes) -> list[ID]:
        """Ask one peer who provides. (The library's own look-up stops at what this node knows itself.)"""
        providers, _ = await self._store._get_providers_from_peer_with_closers(peer_id, key)
        for provider in providers:
            self._learn(PeerId(str(provider.peer_id)), _texts(provider), "dht")
        return [provider.peer_id for provider in providers]


def _texts(provider: Any) -> list[str]:
    return [str(address).partition("/p2p/")[0] for address in provider.addrs]
