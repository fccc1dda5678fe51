"""How is something looked up, or put, in a Kademlia DHT of strangers?

The messages of libp2p's kad-dht (specs/kad-dht) and one iterative look-up, pure: `LookUp` says whom to ask
next, hears what they answered, and ends when the closest that answer are known. Everything that comes back is
untrusted: bounded, and an answer can only add candidates, never remove or delay others'.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from p2p_network.core.ids import base58_decode
from p2p_network.host.addresses import Endpoint, parse_endpoint
from p2p_network.meeting import protobuf

PROTOCOL: Final = "/ipfs/kad/1.0.0"
MAX_MESSAGE_BYTES: Final = 64 * 1024
MAX_CLOSER: Final = 32
MAX_PEER_ADDRESSES: Final = 8
MAX_CANDIDATES: Final = 512
MAX_ASKED: Final = 96
AT_ONCE: Final = 8
CLOSEST: Final = 20
"""How many nodes keep a value (Kademlia's k)."""
_MAX_ID_BYTES: Final = 64
PUBLIC_ENTRANCES: Final = (
    "/dnsaddr/bootstrap.libp2p.io",
    "/ip4/104.131.131.82/tcp/4001/p2p/QmaCpDMGvV2BGHeYERUEnRQAwe3N8SzbUtfsmvsqQLuvuJ",
)
"""Where the DHT that all libp2p programs share is entered: by name, and without one."""

_PUT_VALUE, _GET_VALUE, _FIND_NODE = 0, 1, 4
_TYPE, _KEY, _RECORD, _CLOSER = 1, 2, 3, 8
_RECORD_KEY, _RECORD_VALUE = 1, 2
_PEER_ID, _PEER_ADDRESS = 1, 2
_IP4, _TCP, _IP6, _P2P = 4, 6, 41, 421


@dataclass(frozen=True, slots=True)
class Peer:
    """A node of the DHT: its id (a multihash) and where it may be dialled."""

    id: bytes
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node said: the value it has under the key (b"": none), and whom it knows that is closer."""

    value: bytes
    closer: tuple[Peer, ...]


def get_value(key: bytes) -> bytes:
    """Ask for a value, and for nodes closer to it."""
    return protobuf.message((_TYPE, _GET_VALUE), (_KEY, key))


def find_node(key: bytes) -> bytes:
    """Ask for nodes closer to a key."""
    return protobuf.message((_TYPE, _FIND_NODE), (_KEY, key))


def put_value(key: bytes, value: bytes) -> bytes:
    """Ask to keep a value."""
    record = protobuf.message((_RECORD_KEY, key), (_RECORD_VALUE, value))
    return protobuf.message((_TYPE, _PUT_VALUE), (_KEY, key), (_RECORD, record))


def read_answer(raw: bytes, *, private_too: bool) -> Answer:
    """What a stranger answered. Raises ValueError.

    `private_too`: take addresses of private networks; else only such as are routed on the Internet, so that
    nobody makes a node knock at its own network's doors.
    """
    value = b""
    closer: list[Peer] = []
    for number, field in protobuf.fields(raw):
        if number == _RECORD:
            value = _value_of(protobuf.a_string(field, MAX_MESSAGE_BYTES))
        elif number == _CLOSER and len(closer) < MAX_CLOSER:
            peer = _peer(protobuf.a_string(field, MAX_MESSAGE_BYTES), private_too)
            if peer is not None:
                closer.append(peer)
    return Answer(value, tuple(closer))


def _value_of(raw: bytes) -> bytes:
    value = b""
    for number, field in protobuf.fields(raw):
        if number == _RECORD_VALUE:
            value = protobuf.a_string(field, MAX_MESSAGE_BYTES)
    return value


def _peer(raw: bytes, private_too: bool) -> Peer | None:
    """A node that can be dialled over TCP; None for another."""
    peer_id = b""
    endpoints: list[Endpoint] = []
    for number, field in protobuf.fields(raw):
        if number == _PEER_ID:
            peer_id = protobuf.a_string(field, _MAX_ID_BYTES)
        elif number == _PEER_ADDRESS and len(endpoints) < MAX_PEER_ADDRESSES:
            endpoint = endpoint_in(protobuf.a_string(field, MAX_MESSAGE_BYTES), private_too=private_too)
            if endpoint is not None:
                endpoints.append(endpoint)
    return Peer(peer_id, tuple(dict.fromkeys(endpoints))) if peer_id and endpoints else None


def endpoint_in(raw: bytes, *, private_too: bool) -> Endpoint | None:
    """A binary multiaddress if it is ``/ip4|ip6/ADDRESS/tcp/PORT`` with or without ``/p2p/ID``, else None."""
    try:
        code, at = protobuf.read_varint(raw)
        size = {_IP4: 4, _IP6: 16}.get(code)
        if size is None or len(raw) < at + size:
            return None
        address = ipaddress.ip_address(raw[at : at + size])
        code, at = protobuf.read_varint(raw, at + size)
        port = int.from_bytes(raw[at : at + 2], "big")
        if code != _TCP or len(raw) < at + 2 or not port:
            return None
        if len(raw) > at + 2 and protobuf.read_varint(raw, at + 2)[0] != _P2P:
            return None  # another transport on top
    except ValueError:
        return None
    if address.is_unspecified or address.is_multicast or not (private_too or address.is_global):
        return None
    return Endpoint(str(address), port)


class LookUp:
    """One look-up of a key. Give it whom to begin with; ask whom `ask` says; tell it what came."""

    def __init__(self, key: bytes, first: Iterable[Peer], *, enough: int = CLOSEST) -> None:
        self._target = int.from_bytes(hashlib.sha256(key).digest(), "big")
        self._enough = enough
        self._known: dict[bytes, Peer] = {}
        self._asked: set[bytes] = set()
        self._waiting: set[bytes] = set()
        self._answered: set[bytes] = set()
        self._failed: set[bytes] = set()
        self._add(first)

    @property
    def is_over(self) -> bool:
        """Whether there is nobody left to ask, or to wait for: who is silent and not close isn't awaited."""
        if self._next() is not None:
            return False
        ahead = 0
        for peer_id in sorted(self._known, key=self._distance):
            if peer_id in self._waiting:
                return False
            ahead += peer_id in self._answered
            if ahead >= self._enough:
                return True
        return True

    def ask(self) -> Peer | None:
        """Whom to ask now; None if enough answers are awaited, or the look-up is over."""
        if len(self._waiting) >= AT_ONCE:
            return None
        peer = self._next()
        if peer is not None:
            self._asked.add(peer.id)
            self._waiting.add(peer.id)
        return peer

    def answered(self, peer: Peer, closer: Iterable[Peer]) -> None:
        """A node answered, and named others."""
        self._waiting.discard(peer.id)
        self._answered.add(peer.id)
        self._add(closer)

    def failed(self, peer: Peer) -> None:
        """A node could not be asked."""
        self._waiting.discard(peer.id)
        self._failed.add(peer.id)

    def closest(self) -> tuple[Peer, ...]:
        """Those that answered, the closest to the key first; at most `CLOSEST`."""
        found = sorted(self._answered, key=self._distance)
        return tuple(self._known[peer_id] for peer_id in found[:CLOSEST])

    def _next(self) -> Peer | None:
        """The closest that was not asked, unless `enough` that are closer have answered or will."""
        if len(self._asked) >= MAX_ASKED:
            return None
        ahead = 0
        for peer_id in sorted(self._known, key=self._distance):
            if peer_id not in self._asked:
                return self._known[peer_id]
            if peer_id not in self._failed:
                ahead += 1
            if ahead >= self._enough:
                return None
        return None

    def _add(self, peers: Iterable[Peer]) -> None:
        for peer in peers:
            if peer.id in self._known or len(peer.id) > _MAX_ID_BYTES:
                continue
            self._known[peer.id] = peer
            if len(self._known) > MAX_CANDIDATES:
                fresh = [known for known in self._known if known not in self._asked]
                del self._known[max(fresh, key=self._distance)]

    def _distance(self, peer_id: bytes) -> int:
        return self._target ^ int.from_bytes(hashlib.sha256(peer_id).digest(), "big")


@dataclass(frozen=True, slots=True)
class Entrance:
    """Where a DHT is entered: a node of it, or (`name`) a DNS name whose TXT records say where (dnsaddr)."""

    id: bytes
    endpoint: Endpoint | None
    name: str = ""


def entrance(text: str) -> Entrance:
    """``/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT/p2p/ID`` or ``/dnsaddr/NAME[/p2p/ID]``. Raises ValueError."""
    parts = text.strip().strip("/").split("/")
    wrong = ValueError(f"{text[:200]!r} is not /ip4|ip6|dns/HOST/tcp/PORT/p2p/ID or /dnsaddr/NAME/p2p/ID")
    if len(text) > 320 or not text.strip().startswith("/"):
        raise wrong
    named = len(parts) >= 2 and parts[-2] in ("p2p", "ipfs")
    peer_id = _id_of(parts[-1]) if named else b""
    rest = parts[:-2] if named else parts
    if len(rest) == 2 and rest[0] == "dnsaddr" and 0 < len(rest[1]) <= 253:
        return Entrance(peer_id, None, rest[1])
    if len(rest) != 4 or not peer_id:
        raise wrong
    endpoint, _ = parse_endpoint("/" + "/".join(rest))
    return Entrance(peer_id, endpoint)


def dnsaddr_texts(txt_records: Iterable[bytes]) -> tuple[str, ...]:
    """The addresses in the TXT records of a ``_dnsaddr.NAME``; other transports than TCP are passed over."""
    found: dict[str, None] = {}
    for record in txt_records:
        text = record.decode("ascii", errors="replace")
        if text.startswith("dnsaddr="):
            try:
                entrance(text[len("dnsaddr=") :])
            except ValueError:
                continue
            found[text[len("dnsaddr=") :]] = None
    return tuple(found)[:MAX_CLOSER]


def _id_of(text: str) -> bytes:
    """The multihash of a peer id in base58; of any kind of key."""
    raw = base58_decode(text) if len(text) <= 100 else b""
    is_hash, is_key = raw[:2] == b"\x12\x20" and len(raw) == 34, raw[:1] == b"\0" and len(raw) <= 44
    if not (is_hash or (is_key and len(raw) > 2 and raw[1] == len(raw) - 2)):
        raise ValueError(f"{text[:100]!r} is not a peer id")
    return raw
