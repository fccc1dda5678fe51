"""Frames of tubes survive any cutting, garbage never passes, and no credit is ever overdrawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_network.core.ids import PeerId
from p2p_network.records import ServiceItem, ServicesRecord
from p2p_network.services import Standing, nearest_first, offers
from p2p_network.tubes.flow import (
    CHUNK_BYTES,
    WINDOW_BYTES,
    Kind,
    Ledger,
    Opening,
    Reader,
    Violation,
    cost,
    decode_opening,
    frame,
    open_frame,
)


@given(st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=300))), st.lists(st.integers(1, 40)))
def test_frames_are_read_however_they_are_cut(frames: list[tuple[Kind, bytes]], cuts: list[int]) -> None:
    data = b"".join(frame(kind, payload) for kind, payload in frames)
    reader, found = Reader(), []
    while data:
        size = cuts.pop() if cuts else len(data)
        found += list(reader.feed(data[:size]))
        data = data[size:]
    assert found == frames
    assert not reader.is_cut


@given(st.binary(max_size=200))
def test_garbage_is_a_violation_or_waits(data: bytes) -> None:
    reader = Reader()
    try:
        for kind, payload in reader.feed(data):
            assert isinstance(kind, Kind)
            if kind is Kind.OPEN:
                decode_opening(payload)
            if kind is Kind.CREDIT:
                Ledger().granted(payload)
    except Violation:
        pass


@given(st.lists(st.integers(0, CHUNK_BYTES), max_size=200), st.integers(0, 6))
def test_what_is_sent_never_exceeds_what_was_granted(sizes: list[int], lag: int) -> None:
    """The receiver's program is `lag` chunks behind; the sender waits where it must, and always gets on."""
    sender, receiver = Ledger(), Ledger()
    waiting: list[bytes] = []

    def take() -> None:
        if credit := receiver.taken(waiting.pop(0)):
            ((_, payload),) = Reader().feed(credit)
            sender.granted(payload)

    for size in sizes:
        data = bytes(size)
        while not sender.may_send(data) or len(waiting) > lag:
            assert waiting, "nothing is under way, and there is no credit: stuck"
            take()
        sender.sent(data)
        receiver.received(data)
        waiting.append(data)
        assert sender.credit >= 0
        assert receiver.left >= 0
    assert sum(map(cost, waiting)) <= WINDOW_BYTES


def test_an_overdraft_and_absurd_credit_are_violations() -> None:
    ledger = Ledger()
    for _ in range(WINDOW_BYTES // cost(bytes(CHUNK_BYTES))):
        ledger.received(bytes(CHUNK_BYTES))
    with pytest.raises(Violation):
        ledger.received(bytes(CHUNK_BYTES))
    for credit in (b"", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1"):
        with pytest.raises(Violation):
            Ledger().granted(credit)


@pytest.mark.parametrize(
    "bad",
    [Opening("tcp"), Opening("tcp", service="a", host="b", port=1), Opening("udp", host="h", port=70_000)],
)
def test_an_opening_names_one_thing(bad: Opening) -> None:
    ((_, payload),) = Reader().feed(open_frame(bad))
    with pytest.raises(Violation):
        decode_opening(payload)


def test_the_nearest_living_node_is_asked_first() -> None:
    records = {
        PeerId(name): ServicesRecord((ServiceItem("web", "tcp", 80), ServiceItem("Bad name", "tcp", 1)))
        for name in ("far", "near", "dead", "home")
    }
    standing = {
        PeerId("far"): Standing("west", True, 0.2),
        PeerId("near"): Standing("west", True, 0.01),
        PeerId("dead"): Standing("east", False, None),
        PeerId("home"): Standing("east", True, 0.5),
    }
    known = offers(records)
    assert len(known) == 4
    order = [o.peer for o in nearest_first(known, "web", "tcp", standing, own_region="east")]
    assert order == ["home", "near", "far"]
    assert nearest_first(known, "web", "udp", standing, own_region="east") == []
    only = nearest_first(known, "web", "tcp", standing, own_region="east", region="west")
    assert [o.peer for o in only] == ["near", "far"]
