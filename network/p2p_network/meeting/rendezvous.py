"""What do nodes and a rendezvous server say to each other, and what does a server keep?

The messages of libp2p's rendezvous protocol (specs/rendezvous), with one difference that its users want: what
is registered is not a signed peer record, which would tell the server who is where, but a sealed note
(`notes.py`) in the same field. `Registry` is the server's memory, pure and bounded: it judges, keeps, and
lets expire.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from p2p_network.core.ids import stable_hash
from p2p_network.meeting import protobuf

PROTOCOL: Final = "/rendezvous/1.0.0"
MAX_MESSAGE_BYTES: Final = 256 * 1024
MAX_NAMESPACE_CHARS: Final = 255
MAX_RECORD_BYTES: Final = 2048
MIN_TTL_S: Final = 60
MAX_TTL_S: Final = 72 * 3600
DEFAULT_TTL_S: Final = 2 * 3600
MAX_PER_NAMESPACE: Final = 512
MAX_PER_CLIENT: Final = 8
MAX_REGISTRATIONS: Final = 8192
MAX_DISCOVERED: Final = 100
KEY_PREFIX: Final = "kp2pr1_"
_CHECKSUM_BYTES: Final = 4

REGISTER, REGISTERED, UNREGISTER, DISCOVER, DISCOVERED = range(5)
OK: Final = 0
INVALID_NAMESPACE: Final = 100
INVALID_RECORD: Final = 101
INVALID_TTL: Final = 102
INVALID_COOKIE: Final = 103
UNAVAILABLE: Final = 400
_TYPE, _BODIES = 1, {REGISTER: 2, REGISTERED: 3, UNREGISTER: 4, DISCOVER: 5, DISCOVERED: 6}
_STATUS_TEXTS: Final = {
    INVALID_NAMESPACE: "no namespace, or too long a one",
    INVALID_RECORD: "no record, or too large a one",
    INVALID_TTL: f"a ttl is {MIN_TTL_S} to {MAX_TTL_S} seconds",
    INVALID_COOKIE: "that cookie is of another server or namespace",
    UNAVAILABLE: "it keeps as many as it can",
}


@dataclass(frozen=True, slots=True)
class Register:
    """Keep this record under a namespace for so long."""

    namespace: str
    record: bytes
    ttl_s: int = DEFAULT_TTL_S


@dataclass(frozen=True, slots=True)
class Registered:
    """Kept, for so long; or why not."""

    status: int
    ttl_s: int = 0


@dataclass(frozen=True, slots=True)
class Unregister:
    """Forget mine."""

    namespace: str


@dataclass(frozen=True, slots=True)
class Discover:
    """Who is there? `cookie`: only what came since the answer that had it."""

    namespace: str
    limit: int = MAX_DISCOVERED
    cookie: bytes = b""


@dataclass(frozen=True, slots=True)
class Discovered:
    """Records under a namespace."""

    status: int
    records: tuple[bytes, ...] = ()
    cookie: bytes = b""


Message = Register | Registered | Unregister | Discover | Discovered


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    match message:
        case Register():
            kind, body = REGISTER, _registration(message)
        case Registered():
            text = _STATUS_TEXTS.get(message.status, "").encode()
            kind = REGISTERED
            body = protobuf.message((1, message.status), (2, text or None), (3, message.ttl_s))
        case Unregister():
            kind, body = UNREGISTER, protobuf.message((1, message.namespace.encode()))
        case Discover():
            kind = DISCOVER
            body = protobuf.message(
                (1, message.namespace.encode()), (2, message.limit), (3, message.cookie or None)
            )
        case Discovered():
            text = _STATUS_TEXTS.get(message.status, "").encode()
            kept = [(1, protobuf.message((2, record))) for record in message.records]
            kind = DISCOVERED
            body = protobuf.message(
                *kept, (2, message.cookie or None), (3, message.status), (4, text or None)
            )
    return protobuf.message((_TYPE, kind), (_BODIES[kind], body))


def decode(raw: bytes) -> Message:
    """A message from untrusted bytes. Raises ValueError."""
    kind, bodies = REGISTER, dict[int, bytes]()
    for number, value in protobuf.fields(raw):
        if number == _TYPE:
            kind = protobuf.a_number(value)
        elif number in _BODIES.values():
            bodies[number] = protobuf.a_string(value, MAX_MESSAGE_BYTES)
    if kind not in _BODIES or _BODIES[kind] not in bodies:
        raise ValueError("a message without a body")
    text, many, numbers = _sorted(bodies[_BODIES[kind]])
    namespace = (text.get(1) or b"").decode("utf-8", errors="replace")
    if kind == REGISTER:
        return Register(namespace, text.get(2, b""), numbers.get(3, DEFAULT_TTL_S))
    if kind == REGISTERED:
        return Registered(numbers.get(1, OK), numbers.get(3, 0))
    if kind == UNREGISTER:
        return Unregister(namespace)
    if kind == DISCOVER:
        return Discover(namespace, numbers.get(2, MAX_DISCOVERED), text.get(3, b""))
    records = (_sorted(one)[0].get(2, b"") for one in many[:MAX_DISCOVERED])
    return Discovered(
        numbers.get(3, OK), tuple(r for r in records if 0 < len(r) <= MAX_RECORD_BYTES), text.get(2, b"")
    )


def _registration(message: Register) -> bytes:
    return protobuf.message((1, message.namespace.encode()), (2, message.record), (3, message.ttl_s))


def _sorted(body: bytes) -> tuple[dict[int, bytes], list[bytes], dict[int, int]]:
    """The last string of each number, all strings of number 1, the last number of each number."""
    strings: dict[int, bytes] = {}
    many: list[bytes] = []
    numbers: dict[int, int] = {}
    for number, value in protobuf.fields(body):
        if isinstance(value, int):
            numbers[number] = value
        else:
            strings[number] = value
            if number == 1:
                many.append(value)
    return strings, many, numbers


@dataclass(frozen=True, slots=True)
class _Kept:
    record: bytes
    until: float
    serial: int


class Registry:
    """What a rendezvous server keeps. `client`: whoever asks, as the connection proved; monotonic seconds.

    `born`: 8 random bytes; a cookie of another start of the server is refused.
    """

    def __init__(self, born: bytes) -> None:
        self._born = born
        self._kept: dict[str, dict[str, _Kept]] = {}
        self._serial = 0

    def __len__(self) -> int:
        return sum(map(len, self._kept.values()))

    def answer(self, now: float, client: str, message: Message) -> Message | None:
        """What to answer; None for what is not answered."""
        self._expire(now)
        match message:
            case Register():
                return self._register(now, client, message)
            case Unregister():
                self._forget(message.namespace, client)
                return None
            case Discover():
                return self._discover(message)
            case Registered() | Discovered():
                raise ValueError("an answer that nobody asked for")

    def _register(self, now: float, client: str, message: Register) -> Registered:
        space = self._kept.get(message.namespace, {})
        if not 0 < len(message.namespace) <= MAX_NAMESPACE_CHARS:
            return Registered(INVALID_NAMESPACE)
        if not 0 < len(message.record) <= MAX_RECORD_BYTES:
            return Registered(INVALID_RECORD)
        if not MIN_TTL_S <= message.ttl_s <= MAX_TTL_S:
            return Registered(INVALID_TTL)
        theirs = sum(1 for kept in self._kept.values() if client in kept)
        full = len(space) >= MAX_PER_NAMESPACE or len(self) >= MAX_REGISTRATIONS or theirs >= MAX_PER_CLIENT
        if full and client not in space:
            return Registered(UNAVAILABLE)
        self._serial += 1
        self._kept.setdefault(message.namespace, {})[client] = _Kept(
            message.record, now + message.ttl_s, self._serial
        )
        return Registered(OK, message.ttl_s)

    def _discover(self, message: Discover) -> Discovered:
        after = 0
        if message.cookie:
            mark = self._mark(message.namespace)
            if len(message.cookie) != 16 or message.cookie[8:] != mark:
                return Discovered(INVALID_COOKIE)
            after = int.from_bytes(message.cookie[:8], "big")
        limit = min(message.limit, MAX_DISCOVERED) or MAX_DISCOVERED
        space = self._kept.get(message.namespace, {}).values()
        found = sorted((kept for kept in space if kept.serial > after), key=lambda kept: kept.serial)[:limit]
        last = found[-1].serial if found else after
        cookie = last.to_bytes(8, "big") + self._mark(message.namespace)
        return Discovered(OK, tuple(kept.record for kept in found), cookie)

    def _mark(self, namespace: str) -> bytes:
        return stable_hash("cookie", self._born, namespace).to_bytes(8, "big")

    def _forget(self, namespace: str, client: str) -> None:
        space = self._kept.get(namespace, {})
        space.pop(client, None)
        if not space:
            self._kept.pop(namespace, None)

    def _expire(self, now: float) -> None:
        for namespace, space in list(self._kept.items()):
            gone: Sequence[str] = [client for client, kept in space.items() if kept.until <= now]
            for client in gone:
                self._forget(namespace, client)


def why(answer: Message) -> str:
    """What an answer that is no OK says."""
    status = getattr(answer, "status", None)
    return (
        _STATUS_TEXTS.get(status, f"status {status}") if status is not None else "it answers something else"
    )


def format_key(psk: bytes) -> str:
    """The pre-shared key of a mesh's rendezvous servers, as a line of text."""
    raw = hashlib.blake2s(psk, digest_size=_CHECKSUM_BYTES).digest() + psk
    return KEY_PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def parse_key(text: str) -> bytes:
    """Inverse of `format_key`. Raises ValueError that never quotes the key."""
    text = "".join(text.split())
    wrong = ValueError("this is no key of a rendezvous server; print it with: kairos-p2p rendezvous key")
    if not text.startswith(KEY_PREFIX) or len(text) > 100:
        raise wrong
    body = text[len(KEY_PREFIX) :]
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise wrong from None
    check, psk = raw[:_CHECKSUM_BYTES], raw[_CHECKSUM_BYTES:]
    if len(psk) != 32 or hashlib.blake2s(psk, digest_size=_CHECKSUM_BYTES).digest() != check:
        raise wrong
    return psk
