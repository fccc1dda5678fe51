"""Records, prefaces and packet headers: what honest peers send survives, nothing else does harm."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_network.dataplane import packet, preface, records
from p2p_network.dataplane.packet import Forged
from p2p_network.dataplane.records import Opener, RecordViolation, Sealer
from p2p_network.session import AES, CHACHA, PeerSession

KEY = bytes(range(32))
packets = st.tuples(st.binary(min_size=10, max_size=10), st.binary(min_size=1, max_size=300))
controls = st.tuples(st.sampled_from([records.PING, records.PONG]), st.integers(0, 2**64 - 1))
items = st.lists(st.one_of(packets.map(lambda p: ("packet", p)), controls.map(lambda c: ("beat", c))))
ciphers = st.sampled_from([AES, CHACHA])


def encode(batch: list[tuple[str, Any]]) -> bytes:
    return b"".join(
        records.packet_entry(*body) if kind == "packet" else records.control_entry(*body)
        for kind, body in batch
    )


def session(*, dialer: bool, cipher: str = CHACHA) -> PeerSession:
    one, other = bytes([1]) * 32, bytes([2]) * 32
    keys = (one, other) if dialer else (other, one)
    return PeerSession(bytes(16), cipher, *keys, 0x67, ("tcp",), 1420)


@given(items)
def test_entries_round_trip(batch: list[tuple[str, Any]]) -> None:
    plain = bytearray(encode(batch))
    seen: list[tuple[str, Any]] = []
    for kind, at, value in records.entries(plain, len(plain)):
        if kind:
            seen.append(("beat", (kind, value)))
        else:
            seen.append(("packet", (bytes(plain[at : at + 10]), bytes(plain[at + 10 : at + 10 + value]))))
    assert seen == batch


@given(st.binary(max_size=400))
def test_any_bytes_are_entries_or_a_violation(raw: bytes) -> None:
    plain = bytearray(raw)
    try:
        for kind, at, value in records.entries(plain, len(plain)):
            assert kind or at + 10 + value <= len(plain)
    except RecordViolation:
        pass


@given(items, st.integers(200, 255), st.binary(max_size=255))
def test_unknown_control_entries_are_passed_over(
    batch: list[tuple[str, Any]], kind: int, body: bytes
) -> None:
    unknown = bytes([0, 0, kind, len(body)]) + body
    plain = bytearray(unknown + encode(batch) + unknown)
    assert len(list(records.entries(plain, len(plain)))) == len(batch)


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=5), ciphers)
def test_records_round_trip_in_order_only(batches: list[bytes], cipher: str) -> None:
    sealer, opener = Sealer(cipher, KEY), Opener(cipher, KEY)
    stream = bytearray()
    frame = memoryview(bytearray(4096))
    for batch in batches:
        stream += frame[: sealer.seal_into(batch, frame)]
    plain = memoryview(bytearray(4096))
    view, at, seen = memoryview(stream), 0, []
    while (size := records.sealed_size(stream, at, len(stream))) is not None:
        sealed = view[at + 4 : at + 4 + size]
        seen.append(bytes(plain[: opener.open_into(sealed, plain)]))
        with pytest.raises(RecordViolation):
            opener.open_into(sealed, plain)  # the same once more
        at += 4 + size
    assert at == len(stream)
    assert seen == batches


@given(st.binary(min_size=1, max_size=100), st.integers(0), st.integers(0, 7), ciphers)
def test_a_flipped_bit_is_a_violation(batch: bytes, where: int, bit: int, cipher: str) -> None:
    frame = memoryview(bytearray(200))
    size = Sealer(cipher, KEY).seal_into(batch, frame)
    frame[4 + where % (size - 4)] ^= 1 << bit
    with pytest.raises(RecordViolation):
        Opener(cipher, KEY).open_into(frame[4:size], memoryview(bytearray(200)))


@given(st.binary(max_size=64))
def test_sizes_of_any_stream_are_bounded(stream: bytes) -> None:
    try:
        size = records.sealed_size(bytearray(stream), 0, len(stream))
    except RecordViolation:
        assert not 16 <= int.from_bytes(stream[:4], "big") <= records.MAX_PLAIN_BYTES + 16
    else:
        assert size is None or 16 <= size <= len(stream) - 4


@given(
    st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.integers(0, 2**63), ciphers
)
def test_greeting_gives_both_ends_the_same_keys(salt: bytes, other: bytes, number: int, cipher: str) -> None:
    dialer, acceptor = session(dialer=True, cipher=cipher), session(dialer=False, cipher=cipher)
    flight = preface.make_preface(dialer, salt, number)
    assert len(flight) == preface.PREFACE_BYTES
    assert preface.open_preface(acceptor, flight) == (salt, number)
    welcome = preface.make_welcome(acceptor, salt, other, number)
    assert preface.open_welcome(dialer, salt, number, welcome) == other
    (sealer, opener), (other_sealer, other_opener) = (
        preface.record_keys(dialer, salt, other),
        preface.record_keys(acceptor, salt, other),
    )
    for seal, unseal in ((sealer, other_opener), (other_sealer, opener)):
        frame, plain = memoryview(bytearray(100)), memoryview(bytearray(100))
        size = seal.seal_into(b"hello", frame)
        assert bytes(plain[: unseal.open_into(frame[4:size], plain)]) == b"hello"
    with pytest.raises(RecordViolation):
        preface.open_welcome(dialer, salt, number + 1, welcome)
    with pytest.raises(RecordViolation):
        preface.open_preface(dialer, flight)  # reflected


@given(st.binary(max_size=100), st.booleans())
def test_any_bytes_are_no_greeting(raw: bytes, whole: bool) -> None:
    flight = bytes(16) + raw.ljust(56, b"\0")[:56] if whole else raw
    with pytest.raises(RecordViolation):
        preface.open_preface(session(dialer=False), flight)
    with pytest.raises(RecordViolation):
        preface.open_welcome(session(dialer=True), bytes(32), 1, raw)


@given(st.binary(max_size=120), st.integers(0, 130))
def test_any_bytes_are_a_packet_or_forged(raw: bytes, size: int) -> None:
    try:
        source, target = packet.inspect(raw, 0, size)
    except Forged:
        return
    assert len(source) == len(target)
    assert len(raw) >= 10 + size


@given(
    st.binary(min_size=40, max_size=80),
    st.sampled_from([0x45, 0x46, 0x60]),
    st.binary(min_size=10, max_size=10),
)
def test_honest_lengths_and_any_header_are_a_packet_or_forged(raw: bytes, first: int, vnet: bytes) -> None:
    """Past the length checks: whatever is believed keeps the kernel inside the packet."""
    body = bytearray(raw)
    body[0] = first
    struct.pack_into("!H", body, 2 if first < 0x60 else 4, len(body) - (0 if first < 0x60 else 40))
    try:
        packet.inspect(vnet + body, 0, len(body))
    except Forged:
        return
    flags, gso, hint, segment, start, offset = struct.unpack("<BBHHHH", vnet)
    assert hint <= len(body) or not (flags or gso)
    if flags & 1:
        assert 20 <= start <= len(body) - offset - 2
    if gso:
        assert flags & 1
        assert segment > 0
        assert offset == (6 if gso == packet.GSO_UDP else 16)


def header(version: int, protocol: int, payload: int) -> bytes:
    if version == 4:
        return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + payload, 0, 0, 64, protocol, 0, b"srce", b"dest")
    return struct.pack("!IHBB16s16s", 0x60000000, payload, protocol, 64, b"s" * 16, b"d" * 16)


@pytest.mark.parametrize(
    ("version", "protocol", "gso", "offset"),
    [(4, 6, 1, 16), (6, 6, 4, 16), (4, 6, 0x81, 16), (4, 17, 5, 6), (6, 17, 5, 6)],
)
def test_super_packets_as_the_kernel_makes_them(version: int, protocol: int, gso: int, offset: int) -> None:
    start = 20 if version == 4 else 40
    body = header(version, protocol, 5000) + bytes(5000)
    vnet = struct.pack("<BBHHHH", 1, gso, start + 20, 1368, start, offset)
    source, target = packet.inspect(vnet + body, 0, len(body))
    assert (source[:1], target[:1]) == (b"s", b"d")
    assert packet.destination(vnet + body, 10, len(body)) == target
    wrong_ones = (
        struct.pack("<BBHHHH", 0, gso, start, 1368, start, offset),  # no checksum to finish
        struct.pack("<BBHHHH", 1, gso, start, 0, start, offset),  # no segment size
        struct.pack("<BBHHHH", 1, gso, start, 1, start, offset),  # thousands of segments
        struct.pack("<BBHHHH", 1, gso, start, 1368, start + 1, offset),
        struct.pack("<BBHHHH", 1, gso, start, 1368, start, offset + 2),
        struct.pack("<BBHHHH", 1, 4 if version == 4 else 1, start, 1368, start, offset),
        struct.pack("<BBHHHH", 1, 0x85, start, 1368, start, offset),
        struct.pack("<BBHHHH", 1, 3, start, 1368, start, offset),
    )
    for wrong in wrong_ones:
        with pytest.raises(Forged):
            packet.inspect(wrong + body, 0, len(body))


def test_a_fragment_is_no_super_packet() -> None:
    body = bytearray(header(4, 6, 1000) + bytes(1000))
    vnet = struct.pack("<BBHHHH", 1, 1, 40, 500, 20, 16)
    packet.inspect(vnet + body, 0, len(body))
    body[6] = 0x20
    with pytest.raises(Forged):
        packet.inspect(vnet + body, 0, len(body))
    packet.inspect(bytes(10) + body, 0, len(body))
