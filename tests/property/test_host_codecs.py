"""Whatever bytes come in which pieces: what was sent comes out, and nothing else does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_network.core.ids import peer_id_of
from p2p_network.host.addresses import Endpoint, endpoints_of, parse_endpoint
from p2p_network.host.frames import (
    Failure,
    Frame,
    FrameReader,
    Hello,
    Notify,
    Ping,
    Pong,
    Reply,
    Request,
    Welcome,
    frame_bytes,
)
from p2p_network.host.psk import KeyStream
from p2p_network.wire import MAX_FRAME_BYTES

counts = st.integers(0, 2**63 - 1)
texts = st.text(max_size=64)
payloads = st.binary(max_size=300)
addresses = st.lists(texts, max_size=4).map(tuple)
frames: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Hello, addresses),
    st.builds(Welcome, addresses),
    st.builds(Request, counts, texts, payloads),
    st.builds(Notify, texts, payloads),
    st.builds(Reply, counts, payloads),
    st.builds(Failure, counts, texts),
    st.builds(Ping, counts),
    st.builds(Pong, counts),
)


def pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 10_000), max_size=12))
def test_frames_survive_any_cutting(sent: list[Frame], cuts: list[int]) -> None:
    reader = FrameReader()
    data = b"".join(map(frame_bytes, sent))
    assert [f for piece in pieces(data, cuts) for f in reader.feed(piece)] == sent
    assert not reader.cut_short


@given(frames, st.integers(1, 400))
def test_an_end_inside_a_frame_is_noticed(frame: Frame, missing: int) -> None:
    reader = FrameReader()
    data = frame_bytes(frame)
    assert list(reader.feed(data[: max(1, len(data) - missing)])) == []
    assert reader.cut_short


@given(st.binary(max_size=400))
def test_garbage_is_a_value_error_or_waits_for_more(data: bytes) -> None:
    reader = FrameReader()
    try:
        for frame in reader.feed(data):
            assert isinstance(frame, Frame)
    except ValueError:
        pass


@given(st.integers(MAX_FRAME_BYTES + 1, 2**32 - 1))
def test_an_oversized_frame_is_refused_at_its_header(size: int) -> None:
    with pytest.raises(ValueError, match="allowed"):
        list(FrameReader().feed(size.to_bytes(4, "big")))


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed"):
        list(FrameReader().feed(bytes(4)))


def test_we_never_make_an_oversized_frame() -> None:
    with pytest.raises(ValueError, match="at most"):
        frame_bytes(Reply(1, bytes(MAX_FRAME_BYTES)))


@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=24, max_size=24),
    st.binary(max_size=500),
    st.lists(st.integers(0, 500), max_size=6),
)
def test_the_key_stream_undoes_itself_in_any_pieces(
    key: bytes, nonce: bytes, data: bytes, cuts: list[int]
) -> None:
    writing, reading = KeyStream(key, nonce), KeyStream(key, nonce)
    secret = b"".join(writing.apply(piece) for piece in pieces(data, cuts))
    assert reading.apply(secret) == data
    if len(data) > 16:
        assert secret != data


@given(st.ip_addresses(), st.integers(1, 65535), st.binary(min_size=32, max_size=32))
def test_addresses_mean_what_they_print(ip: object, port: int, public_key: bytes) -> None:
    endpoint, peer = Endpoint(str(ip), port), peer_id_of(public_key)
    assert parse_endpoint(str(endpoint)) == (endpoint, None)
    assert parse_endpoint(f"{endpoint}/p2p/{peer}") == (endpoint, peer)
    bracketed = f"[{ip}]:{port}" if ":" in str(ip) else f"{ip}:{port}"
    assert parse_endpoint(bracketed) == (endpoint, None)


@given(st.lists(st.text(max_size=80), max_size=40))
def test_untrusted_addresses_never_raise_and_are_bounded(found: list[str]) -> None:
    assert len(endpoints_of(found)) <= 16


@given(st.text(alphabet="/:.[]abip46dnstcp2p0123456789-", max_size=60))
def test_an_address_parses_or_is_refused(text: str) -> None:
    try:
        endpoint, _ = parse_endpoint(text)
    except ValueError:
        return
    assert 0 < endpoint.port < 65536
    assert parse_endpoint(str(endpoint)) == (endpoint, None)
