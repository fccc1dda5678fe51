"""Datagrams and segments: whatever is lost, doubled or swapped, what comes out was put in, once."""

from __future__ import annotations

import itertools
import socket
import struct
from dataclasses import dataclass

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from p2p_network.dataplane import choice, icmp, records
from p2p_network.dataplane.datagrams import (
    OVERHEAD_BYTES,
    WINDOW,
    DatagramOpener,
    DatagramSealer,
    ReplayWindow,
    head_of,
)
from p2p_network.dataplane.packet import GSO_TCP4, GSO_TCP6, GSO_UDP, VNET_BYTES, inspect
from p2p_network.dataplane.path import ROUNDS, SIZES, PathMtu, Quality
from p2p_network.dataplane.records import RecordViolation
from p2p_network.dataplane.segments import NotSegmentable, mend, shape_of
from p2p_network.session import AES, CHACHA

KEY = bytes(range(32))


# --- the replay window ----------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 5)), max_size=60))
def test_every_number_is_taken_once(arrivals: list[tuple[int, int]]) -> None:
    window, taken = ReplayWindow(), set()
    for number, count in arrivals:
        wanted = set(range(number, number + count))
        assert window.is_fresh(number, count) == (not wanted & taken)
        if window.is_fresh(number, count):
            window.take(number, count)
            taken |= wanted
            assert window.expected == max(taken) + 1


def test_numbers_far_behind_are_refused() -> None:
    window = ReplayWindow()
    window.take(WINDOW + 10)
    assert not window.is_fresh(10)
    assert window.is_fresh(11)
    window.take(10 * WINDOW)
    assert not window.is_fresh(WINDOW + 11)
    assert window.is_fresh(9 * WINDOW + 1)


# --- segments -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Super:
    """A super-packet as a TUN device hands it out: virtio-net header, headers, payload."""

    data: bytes
    is_tcp: bool

    @property
    def size(self) -> int:
        return len(self.data) - VNET_BYTES


@st.composite
def super_packets(draw: st.DrawFn) -> Super:
    six, is_tcp = draw(st.booleans()), draw(st.booleans())
    segment = draw(st.integers(8, 1400))
    payload = draw(st.binary(min_size=1, max_size=64)) * draw(st.integers(1, 300))
    payload = payload[: segment * 60]
    options = bytes(4 * draw(st.integers(0, 10))) if is_tcp else b""
    flags = draw(st.integers(0, 255))
    transport_bytes = (20 + len(options) if is_tcp else 8) + len(payload)
    addresses = draw(st.binary(min_size=32, max_size=32)) if six else draw(st.binary(min_size=8, max_size=8))
    if six:
        ip = struct.pack("!IHBB", 6 << 28, transport_bytes, 6 if is_tcp else 17, 64) + addresses
    else:
        head = struct.pack(
            *("!BBHHHBBH", 0x45, 0, 20 + transport_bytes, draw(st.integers(0, 65535)), 0x4000, 64),
            *(6 if is_tcp else 17, 0),
        )
        ip = head[:10] + struct.pack("!H", icmp.checksum(head + addresses)) + head[12:] + addresses
    partial = fold(words(addresses) + (6 if is_tcp else 17) + transport_bytes)
    if is_tcp:
        offset = (20 + len(options)) // 4 << 4
        sequence = draw(st.integers(0, 2**32 - 1))
        transport = struct.pack("!HHIIBBHHH", 1, 2, sequence, 3, offset, flags, 500, partial, 0) + options
        gso = GSO_TCP6 if six else GSO_TCP4
    else:
        transport = struct.pack("!HHHH", 1, 2, transport_bytes, partial)
        gso = GSO_UDP
    vnet = struct.pack("<BBHHHH", 1, gso, 0, segment, len(ip), 16 if is_tcp else 6)
    return Super(vnet + ip + transport + payload, is_tcp)


def words(data: bytes) -> int:
    return sum(struct.unpack(f"!{len(data) // 2}H", data))


def fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def finished(data: bytes, is_tcp: bool) -> list[bytes]:
    """The packets on the wire that the kernel would make of it (its checksum field is checked, too)."""
    _, gso, _, segment, start, offset = struct.unpack_from("<BBHHHH", data)
    packet = data[VNET_BYTES:]
    six = packet[0] >> 4 == 6
    addresses = packet[8:40] if six else packet[12:20]
    header = start + ((packet[start + 12] >> 4) * 4 if is_tcp else 8)
    pseudo = words(addresses) + (6 if is_tcp else 17)
    assert struct.unpack_from("!H", packet, start + offset)[0] == fold(pseudo + len(packet) - start)
    payload = packet[header:]
    segment = segment if gso else len(payload)
    pieces = [payload[at : at + segment] for at in range(0, len(payload), segment)]
    made = []
    for index, piece in enumerate(pieces):
        out = bytearray(packet[:header] + piece)
        if six:
            struct.pack_into("!H", out, 4, len(out) - 40)
        else:
            identification = struct.unpack_from("!H", out, 4)[0]
            struct.pack_into("!HH", out, 2, len(out), (identification + index) & 0xFFFF)
            struct.pack_into("!H", out, 10, 0)
            struct.pack_into("!H", out, 10, icmp.checksum(bytes(out[:20])))
        if is_tcp:
            sequence = struct.unpack_from("!I", out, start + 4)[0]
            struct.pack_into("!I", out, start + 4, (sequence + index * segment) & 0xFFFFFFFF)
            if index + 1 < len(pieces):
                out[start + 13] &= ~0x09 & 0xFF
            if index:
                out[start + 13] &= ~0x80 & 0xFF
        else:
            struct.pack_into("!H", out, start + 4, len(out) - start)
        struct.pack_into("!H", out, start + offset, 0)
        body = bytes(out[start:])
        total = pseudo + len(body) + words(body + bytes(len(body) % 2))
        struct.pack_into("!H", out, start + offset, ~fold(total) & 0xFFFF)
        made.append(bytes(out))
    return made


def seal(packet: Super) -> list[bytes]:
    """The datagrams of a super-packet."""
    sealer = DatagramSealer(AES, KEY, 4711)
    frame = memoryview(bytearray(1 << 18))
    shape = shape_of(packet.data, 0, packet.size)
    total, step = sealer.seal_segments(memoryview(bytearray(packet.data)), shape, frame)
    return [bytes(frame[at : min(total, at + step)]) for at in range(0, total, step)]


def open_runs(runs: list[list[bytes]]) -> list[bytes]:
    """What a receiver makes of runs of neighbours, each as one super-packet."""
    opener = DatagramOpener(AES, KEY)
    made = []
    for run in runs:
        data = memoryview(b"".join(run))
        _, number, index, total, header = head_of(data, 0)
        step, head = len(run[0]), VNET_BYTES + header
        plain = memoryview(bytearray(1 << 17))
        size = opener.open_run(data, step, len(run), number, step - OVERHEAD_BYTES - head, plain)
        if len(run) != total:
            mend(plain, 0, index, len(run), total, size - head)
        inspect(plain, 0, size - VNET_BYTES)
        made.append(bytes(plain[:size]))
    return made


@given(super_packets(), st.data())
def test_any_runs_of_segments_are_the_same_packets(packet: Super, data: st.DataObject) -> None:
    assume(packet.data[1] != GSO_UDP or packet.size - 48 <= 128 * 8)
    datagrams = seal(packet)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(datagrams)), max_size=4)) | {0, len(datagrams)})
    runs = [datagrams[a:b] for a, b in itertools.pairwise(cuts)]
    kept = data.draw(st.permutations(range(len(runs)))) if len(runs) > 1 else [0]
    whole = finished(packet.data, packet.is_tcp)
    for place, made in zip(kept, open_runs([runs[i] for i in kept]), strict=True):
        assert finished(made, packet.is_tcp) == whole[cuts[place] : cuts[place + 1]]


@given(super_packets())
def test_a_whole_run_is_the_super_packet_itself(packet: Super) -> None:
    assert open_runs([seal(packet)]) == [packet.data]


@given(super_packets(), st.integers(0, 10_000), st.integers(0, 7))
def test_a_changed_bit_spoils_its_datagram_only(packet: Super, where: int, bit: int) -> None:
    datagrams = seal(packet)
    bad = bytearray(datagrams[-1])
    bad[where % len(bad)] ^= 1 << bit
    opener, plain = DatagramOpener(AES, KEY), memoryview(bytearray(1 << 17))
    for number, datagram in enumerate([*datagrams[:-1], bytes(bad), datagrams[-1]]):
        data = memoryview(datagram)
        if bytes(datagram) == bytes(bad):
            if bytes(bad[:4]) == datagrams[-1][:4]:  # the receiver's id only finds the association
                number = head_of(data, 0)[1]
                with pytest.raises(RecordViolation):
                    opener.open_bundle(data, number, plain)
            continue
        opener.open_bundle(data, min(number, len(datagrams) - 1), plain)
        with pytest.raises(RecordViolation):
            opener.open_bundle(data, min(number, len(datagrams) - 1), plain)


@given(st.binary(min_size=60, max_size=200), st.integers(0, 63), st.integers(1, 64), st.integers(0, 1400))
def test_mending_nonsense_raises_or_stays_inside(junk: bytes, first: int, count: int, payload: int) -> None:
    buffer = bytearray(junk + bytes(2000))
    try:
        mend(buffer, 0, first, count, 64, payload)
    except (NotSegmentable, struct.error, IndexError):
        return
    assert buffer[len(junk) + 255 + VNET_BYTES :] == bytes(len(buffer) - len(junk) - 255 - VNET_BYTES)


# --- bundles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cipher", [AES, CHACHA])
@given(plain=st.binary(max_size=1400))
def test_bundles_come_back(cipher: str, plain: bytes) -> None:
    sealer, opener = DatagramSealer(cipher, KEY, 300), DatagramOpener(cipher, KEY)
    frame, out = memoryview(bytearray(2000)), memoryview(bytearray(2000))
    for expected in range(3):
        size = sealer.seal_bundle(plain, frame)
        assert head_of(frame, 0) == (300, expected, 0, 0, 0)
        assert bytes(out[: opener.open_bundle(frame[:size], expected, out)]) == plain
    assert opener.received == opener.window.expected == 3


@given(st.integers(0, 2**64 - 1), st.integers(12, 3000).filter(lambda n: not 12 < n < 16))
def test_padding_is_passed_over(value: int, size: int) -> None:
    entry = records.padded_entry(records.PROBE, value, size)
    assert len(entry) == size
    assert list(records.entries(bytearray(entry), size)) == [(records.PROBE, 0, value)]


# --- paths ----------------------------------------------------------------------------------------


@given(st.sampled_from(SIZES), st.booleans())
def test_the_largest_size_that_comes_through_is_found(limit: int, is_ip6: bool) -> None:
    path = PathMtu(is_ip6=is_ip6)
    for second in range(ROUNDS + 1):
        for size in path.probes(float(second)):
            if size <= limit:
                path.answered(size)
    assert path.bytes == limit
    assert path.inner_mtu == limit - (48 if is_ip6 else 28) - OVERHEAD_BYTES - 12
    assert not path.probes(ROUNDS + 2.0), "not again at once"
    assert path.probes(ROUNDS + 120.0)


def test_a_path_that_answers_nothing_is_believed_in() -> None:
    path = PathMtu(is_ip6=False)
    for second in range(20):
        path.probes(float(second))
    path.answered(9000)
    assert path.bytes == 1500


def test_loss_is_what_the_receiver_misses() -> None:
    quality = Quality()
    assert quality.loss is None
    quality.reported(10, 10)
    assert quality.loss is None, "too few to tell"
    quality.reported(100, 90)
    assert quality.loss == pytest.approx(0.1)
    for count in range(2, 40):
        quality.reported(100 * count, 90 + 100 * (count - 1))
    assert quality.loss == pytest.approx(0, abs=1e-4)
    quality.reported(0, 0)  # a report that came late
    assert quality.loss == pytest.approx(0, abs=1e-4)


# --- the choice -----------------------------------------------------------------------------------

TCP_BBR = choice.Path("tcp", "bbr", 0.02, 10.0)
TCP_CUBIC = choice.Path("tcp", "cubic", 0.0, 10.0)
UDP_GOOD = choice.Path("udp", "", 0.0, 10.0, 1420)


@pytest.mark.parametrize(
    ("paths", "current", "kind"),
    [
        ([UDP_GOOD], "tcp", "udp"),
        ([TCP_CUBIC], "", "tcp"),
        ([TCP_BBR, UDP_GOOD], "udp", "tcp"),
        ([TCP_CUBIC, UDP_GOOD], "", "tcp"),
        ([TCP_CUBIC, choice.Path("udp", "", 0.01, 10.0, 1420)], "tcp", "udp"),
        ([TCP_CUBIC, choice.Path("udp", "", 0.0002, 10.0, 1420)], "tcp", "tcp"),
        ([TCP_CUBIC, choice.Path("udp", "", 0.0002, 10.0, 1420)], "udp", "udp"),
        ([TCP_CUBIC, choice.Path("udp", "", 0.5, 10.0, 1100)], "udp", "tcp"),
    ],
)
def test_choice(paths: list[choice.Path], current: str, kind: str) -> None:
    chosen, reason = choice.choose(paths, current)
    assert chosen == kind
    assert reason


# --- too big --------------------------------------------------------------------------------------


@given(st.binary(max_size=1500), st.integers(0, 9000))
def test_answers_are_whole_packets_or_nothing(packet: bytes, mtu: int) -> None:
    answer = icmp.too_big(packet, mtu)
    if answer:
        inspect(bytes(VNET_BYTES) + answer, 0, len(answer))


def test_too_big_names_the_mtu_and_quotes_the_packet() -> None:
    one, two = socket.inet_aton("10.144.0.1"), socket.inet_aton("10.144.0.2")
    packet = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 1400, 7, 0x4000, 64, 17, 0, one, two) + bytes(1380)
    answer = icmp.too_big(packet, 1300)
    assert answer[12:20] == two + one
    assert answer[20:22] == bytes([3, 4])
    assert struct.unpack_from("!H", answer, 26)[0] == 1300
    assert answer[28:] == packet[:28]
    assert icmp.checksum(answer[:20]) == icmp.checksum(answer[20:]) == 0
    assert icmp.too_big(answer, 1200) == b"", "no error about an error"
