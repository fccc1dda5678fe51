"""How does a new connection prove which session it belongs to, and get keys that were never used before?

Pure. Three flights:

1. dialer -> acceptor, 72 bytes: `session id 16 | dialer's salt 32 | sealed u64 number`. The number grows with
   every connection of a session, and the acceptor takes only one above all it took before: a recorded preface
   is refused.
2. acceptor -> dialer, 56 bytes: `acceptor's salt 32 | sealed u64 number`. Sent only after flight 1 was
   authenticated; a stranger gets no byte back.
3. dialer -> acceptor: the first record. Only now the acceptor uses the connection.

Every key is HKDF(session key of the direction, salts), so it is fresh even if an acceptor forgot all numbers:
whoever replays flight 1 cannot know the acceptor's new salt, hence cannot make or replay flight 3. Each of
these keys seals one message (flights 1 and 2, nonce 0) or one direction of one connection (records).
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2p_network.dataplane.datagrams import LOWEST_ID, DatagramOpener, DatagramSealer
from p2p_network.dataplane.records import TAG_BYTES, Opener, RecordViolation, Sealer, cipher
from p2p_network.session import KEY_BYTES, SESSION_ID_BYTES, PeerSession

SALT_BYTES: Final = 32
_NUMBER_BYTES: Final = 8
PREFACE_BYTES: Final = SESSION_ID_BYTES + SALT_BYTES + _NUMBER_BYTES + TAG_BYTES
WELCOME_BYTES: Final = SALT_BYTES + _NUMBER_BYTES + TAG_BYTES
_NONCE: Final = bytes(12)


def session_id_of(preface: bytes) -> bytes:
    """Which session a preface claims; nothing is authenticated yet."""
    return preface[:SESSION_ID_BYTES]


def make_preface(session: PeerSession, salt: bytes, number: int, carrier: str = "tcp") -> bytes:
    """Flight 1. `salt`: 32 fresh random bytes; `number`: of the session's connections of this kind."""
    assert len(salt) == SALT_BYTES
    aead = cipher(session.cipher, _key(session, session.send_key, _flight("preface", carrier), salt))
    return session.session_id + salt + aead.encrypt(_NONCE, number.to_bytes(_NUMBER_BYTES, "big"), None)


def open_preface(session: PeerSession, preface: bytes, carrier: str = "tcp") -> tuple[bytes, int]:
    """(dialer's salt, number) of flight 1. Raises RecordViolation."""
    if len(preface) != PREFACE_BYTES or session_id_of(preface) != session.session_id:
        raise RecordViolation("not a preface of this session")
    salt = preface[SESSION_ID_BYTES : SESSION_ID_BYTES + SALT_BYTES]
    sealed = preface[SESSION_ID_BYTES + SALT_BYTES :]
    return salt, _open(session, _key(session, session.receive_key, _flight("preface", carrier), salt), sealed)


def make_welcome(
    session: PeerSession, dialer_salt: bytes, salt: bytes, number: int, carrier: str = "tcp"
) -> bytes:
    """Flight 2. `salt`: 32 fresh random bytes; `number`: that of flight 1."""
    assert len(salt) == SALT_BYTES
    aead = cipher(
        session.cipher, _key(session, session.send_key, _flight("welcome", carrier), dialer_salt + salt)
    )
    return salt + aead.encrypt(_NONCE, number.to_bytes(_NUMBER_BYTES, "big"), None)


def open_welcome(
    session: PeerSession, dialer_salt: bytes, number: int, welcome: bytes, carrier: str = "tcp"
) -> bytes:
    """The acceptor's salt.

    Raises RecordViolation unless it is an answer to flight 1 with this salt and number.
    """
    if len(welcome) != WELCOME_BYTES:
        raise RecordViolation("not a welcome")
    salt = welcome[:SALT_BYTES]
    key = _key(session, session.receive_key, _flight("welcome", carrier), dialer_salt + salt)
    if _open(session, key, welcome[SALT_BYTES:]) != number:
        raise RecordViolation("a welcome to another connection")
    return salt


def record_keys(session: PeerSession, dialer_salt: bytes, acceptor_salt: bytes) -> tuple[Sealer, Opener]:
    """Sealer and opener of one connection, on either end."""
    salts = dialer_salt + acceptor_salt
    return (
        Sealer(session.cipher, _key(session, session.send_key, "records", salts)),
        Opener(session.cipher, _key(session, session.receive_key, "records", salts)),
    )


def datagram_keys(
    session: PeerSession, dialer_salt: bytes, acceptor_salt: bytes
) -> tuple[DatagramSealer, DatagramOpener, int]:
    """Sealer, opener and own receiver's id of one UDP association, on either end."""
    salts = dialer_salt + acceptor_salt
    return (
        DatagramSealer(
            session.cipher,
            _key(session, session.send_key, "datagrams", salts),
            _receiver_id(session, session.send_key, salts),
        ),
        DatagramOpener(session.cipher, _key(session, session.receive_key, "datagrams", salts)),
        _receiver_id(session, session.receive_key, salts),
    )


def _receiver_id(session: PeerSession, root: bytes, salts: bytes) -> int:
    value = int.from_bytes(_key(session, root, "receiver's id", salts)[:4], "big")
    return value if value >= LOWEST_ID else value + LOWEST_ID


def _flight(name: str, carrier: str) -> str:
    """A flight on one kind of carrier is none on another."""
    return name if carrier == "tcp" else f"{name} {carrier}"


def _key(session: PeerSession, root: bytes, purpose: str, salts: bytes) -> bytes:
    info = b"kairos-p2p connection v1 " + purpose.encode() + b" " + session.session_id
    return HKDF(SHA256(), KEY_BYTES, salt=salts, info=info).derive(root)


def _open(session: PeerSession, key: bytes, sealed: bytes) -> int:
    try:
        return int.from_bytes(cipher(session.cipher, key).decrypt(_NONCE, sealed, None), "big")
    except InvalidTag:
        raise RecordViolation("sealed with another key") from None
