"""What holds for every stage? Each step once, after what it waits for; the same order every time."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from p2p_bootstrap.cloudconfig.nodes import Mark
from p2p_bootstrap.stages import gpt
from p2p_bootstrap.stages.configured import ConfiguredStep
from p2p_bootstrap.stages.model import After, Step
from p2p_bootstrap.stages.plan import plan
from p2p_network.core.errors import BootError

NAMES = st.sampled_from("abcdefg")
WRITTEN = st.lists(
    st.tuples(NAMES, st.sampled_from(["f", "g", "h"]), st.lists(NAMES, max_size=2)),
    max_size=7,
    unique_by=lambda one: one[0],
).map(lambda steps: sorted(steps, key=lambda one: one[1]))


def configured(written: list[tuple[str, str, list[str]]]) -> list[ConfiguredStep]:
    return [
        ConfiguredStep(
            "boot", file, f"{file}.{name}", frozenset({f"{file}.{name}", name}), name,
            Step(Mark(file, 1, 1), name=name, after=tuple(After(one) for one in after)),
        )
        for name, file, after in written
    ]  # fmt: skip


@given(WRITTEN)
def test_an_order_keeps_every_promise(written: list[tuple[str, str, list[str]]]) -> None:
    steps = configured(written)
    planned = plan("boot", steps)
    assert planned == plan("boot", steps), "the same every time"
    order = [one.configured.id for one in planned.steps]
    assert len(set(order)) == len(order)
    ringed = {problem.message.partition(":")[0] for problem in planned.problems}
    assert {one.id for one in steps} == set(order) | {one.id for one in steps if one.label in ringed}
    for place, one in enumerate(planned.steps):
        for wait in one.waits_for:
            assert wait in order[:place] or wait not in order, "what it waits for came before, or never runs"
    for name, file, after in written:
        if f"{file}.{name}" in order:
            for other in after:
                found = [one.id for one in steps if one.step.name == other and one.id in order]
                assert all(order.index(one) < order.index(f"{file}.{name}") for one in found)


@given(
    st.lists(WRITTEN.map(lambda steps: [(name, file, []) for name, file, _ in steps]), min_size=1, max_size=1)
)
def test_without_after_the_files_order_counts(lists: list[list[tuple[str, str, list[str]]]]) -> None:
    steps = configured(lists[0])
    assert [one.configured for one in plan("boot", steps).steps] == steps


SIZES = st.lists(st.integers(0, 40), max_size=6)


@given(SIZES, st.integers(4, 256), st.sampled_from([512, 4096]))
def test_a_partition_table_reads_as_it_was_written(sizes: list[int], disk_mib: int, sector: int) -> None:
    import uuid

    table = gpt.Table(uuid.UUID(int=1), disk_mib * gpt.MIB // sector, sector)
    for number, size in enumerate(sizes):
        try:
            table, _ = table.added(f"p{number}", size, gpt.LINUX, uuid.UUID(int=number + 2))
            table = table.expanded(0 if number % 3 == 2 else 1)
        except BootError:
            break
    image = bytearray(64 * sector)
    for offset, data in table.writes():
        assert offset + len(data) <= disk_mib * gpt.MIB
        if offset < len(image):
            image[offset : offset + len(data)] = data
    assert gpt.parse(bytes(image), table.sectors, sector) == table
    spans = sorted((one.first, one.last) for one in table.slices)
    assert all(first <= last for first, last in spans)
    assert all(one[1] < other[0] for one, other in pairwise(spans)), "no overlap"
    assert all(table.first_usable <= first and last <= table.last_usable for first, last in spans)
