"""The queues of the data plane: order within a flow, a fair share for each, a budget for all."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from p2p_network.dataplane.queues import BUDGET_BYTES, FLOOR_BYTES, WAIT_S, FairQueue, QueueBudget, flow_of
from p2p_network.dataplane.records import entries, packet_entry


def entry(flow: int, number: int, size: int = 100, *, fragment: int = 0, protocol: int = 6) -> bytes:
    """A packet of a flow (its source port) with a number in its payload."""
    head = bytes([0x45, 0]) + size.to_bytes(2, "big") + bytes(2) + fragment.to_bytes(2, "big")
    head += bytes([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2])
    body = flow.to_bytes(2, "big") + b"\0\x50" + number.to_bytes(4, "big")
    return packet_entry(bytes(10), (head + body).ljust(size, b"\0"))


def numbers(batch: bytes) -> list[tuple[int, int]]:
    """(flow, number) of each packet of a batch."""
    found = []
    for _, at, size in entries(bytearray(batch), len(batch)):
        packet = batch[at + 10 : at + 10 + size]
        found.append((int.from_bytes(packet[20:22], "big"), int.from_bytes(packet[24:28], "big")))
    return found


def pull_all(queue: FairQueue, limit: int = 20_000) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    while queue:
        found += numbers(queue.pull(limit))
    return found


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(28, 60_000) | st.none()), max_size=60
    )
)
def test_a_flow_keeps_its_order_and_the_budget_is_kept(steps: list[tuple[int, int, int | None]]) -> None:
    budget = QueueBudget(600_000)
    queues = [FairQueue(budget) for _ in range(3)]
    put = taken = dropped = 0
    seen: dict[tuple[int, int], int] = defaultdict(lambda: -1)

    def take(which: int, batch: bytes) -> None:
        nonlocal taken
        for flow, number in numbers(batch):
            taken += 1
            assert number > seen[which, flow], "overtaken"
            seen[which, flow] = number

    for number, (which, flow, size) in enumerate(steps):
        if size is None:
            take(which, queues[which].pull(100_000))
        else:
            put += 1
            dropped += queues[which].push(memoryview(entry(flow, number, size)), 5.0)
        for queue in queues:
            assert queue.size_bytes <= max(FLOOR_BYTES, budget.free_bytes)
        assert budget.free_bytes == 600_000 - sum(q.size_bytes for q in queues)
    left = queues[0].clear()
    for which in (1, 2):
        while queues[which]:
            take(which, queues[which].pull(100_000))
    assert put == taken + dropped + left
    assert budget.free_bytes == 600_000
    assert not any(queues)


def test_a_small_flow_passes_a_large_one() -> None:
    queue = FairQueue(QueueBudget())
    queue.push(memoryview(b"".join(entry(1, n, 1400) for n in range(60))), 1.0)
    numbers(queue.pull(20_000))
    queue.push(memoryview(entry(2, 0)), 1.0)
    assert numbers(queue.pull(20_000))[0] == (2, 0)


def test_large_flows_share_by_bytes() -> None:
    queue = FairQueue(QueueBudget())
    for n in range(400):
        queue.push(memoryview(entry(1, n, 1400)), 1.0)
    for n in range(2000):
        queue.push(memoryview(entry(2, n, 280)), 1.0)
    first = pull_all(queue)[:1000]
    bytes_of = {1: 1400 * sum(f == 1 for f, _ in first), 2: 280 * sum(f == 2 for f, _ in first)}
    assert 0.8 < bytes_of[1] / bytes_of[2] < 1.25


def test_the_longest_line_is_cut_at_its_head() -> None:
    queue = FairQueue(QueueBudget(2 * FLOOR_BYTES))
    queue.push(memoryview(entry(2, 0)), 1.0)
    dropped = sum(queue.push(memoryview(entry(1, n, 1400)), 1.0) for n in range(200))
    assert dropped > 50
    left = pull_all(queue)
    assert (2, 0) in left
    assert [n for f, n in left if f == 1] == list(range(dropped, 200))


def test_a_line_that_stands_still_keeps_the_newest() -> None:
    queue = FairQueue(QueueBudget())
    queue.push(memoryview(entry(1, 0)), 5.0)
    assert queue.push(memoryview(entry(1, 1)), 5.0 + WAIT_S / 2) == 0
    assert queue.push(memoryview(entry(1, 2)), 5.0 + 2 * WAIT_S) == 2
    assert pull_all(queue) == [(1, 2)]


def test_a_flow_that_comes_and_goes_starves_nobody() -> None:
    queue = FairQueue(QueueBudget())
    queue.push(memoryview(b"".join(entry(1, n, 1400) for n in range(50))), 1.0)
    large = 0
    for n in range(400):  # always one small packet just in time
        queue.push(memoryview(entry(2, n, 1400)), 1.0)
        large += sum(flow == 1 for flow, _ in numbers(queue.pull(1500)))
    assert large == 50


def test_fragments_of_a_packet_are_one_flow() -> None:
    assert flow_of(entry(1, 0, fragment=0x2000)) == flow_of(entry(999, 0, fragment=0x00B9))
    assert flow_of(entry(1, 0)) != flow_of(entry(2, 0))
    assert flow_of(entry(1, 0, protocol=1)) == flow_of(entry(2, 0, protocol=1)), "ICMP has no ports"
    assert flow_of(b"") == b""


def test_the_budget_is_what_it_says() -> None:
    assert QueueBudget().free_bytes == BUDGET_BYTES
