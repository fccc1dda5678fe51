"""Do records of several connections come whole out of the one buffer, however they arrive?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2p_network.dataplane.inbox import Inbox, Unfinished
from p2p_network.dataplane.records import MAX_PLAIN_BYTES, SIZE_BYTES, TAG_BYTES, sealed_size

SIZES = st.one_of(st.integers(TAG_BYTES, 300), st.sampled_from((70_000, MAX_PLAIN_BYTES + TAG_BYTES)))


def stream(number: int, sizes: list[int]) -> bytes:
    records = (bytes([number, at % 251]) + bytes(size - 2) for at, size in enumerate(sizes))
    return b"".join(len(r).to_bytes(SIZE_BYTES, "big") + r for r in records)


@given(
    st.lists(st.lists(SIZES, max_size=6), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.one_of(st.integers(1, 50), st.just(1 << 20))), max_size=40),
)
def test_every_record_comes_out_whole_and_in_order(
    sizes: list[list[int]], arrivals: list[tuple[int, int]]
) -> None:
    inbox = Inbox()
    streams = [stream(number, each) for number, each in enumerate(sizes)]
    begun = [Unfinished() for _ in sizes]
    came: list[list[tuple[int, int, int]]] = [[] for _ in sizes]
    taken = [0] * len(sizes)
    for number, most in [*arrivals, *((n, 1 << 20) for n in range(len(sizes)) for _ in range(200))]:
        if number >= len(sizes) or taken[number] == len(streams[number]):
            continue
        what = begun[number]
        room = inbox.take_up(what)
        chunk = streams[number][taken[number] :][: min(most, len(room))]
        assert len(room) > 0
        room[: len(chunk)] = chunk
        taken[number] += len(chunk)
        at, end = what.at, what.end + len(chunk)
        while (size := sealed_size(inbox.buffer, at, end)) is not None:
            first = inbox.buffer[at + SIZE_BYTES], inbox.buffer[at + SIZE_BYTES + 1]
            came[number].append((*first, size))
            at += SIZE_BYTES + size
        inbox.leave(what, at, end)
    assert not any(begun)
    for number, each in enumerate(sizes):
        assert came[number] == [(number, at % 251, size) for at, size in enumerate(each)]
