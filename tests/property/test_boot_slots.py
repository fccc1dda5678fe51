"""Interrupted at every point, an upgrade leaves a disk that boots, and replaying it leaves nothing behind."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2p_bootstrap.boot import slots
from p2p_bootstrap.boot.slots import Action, SlotTable


class Disk:
    """A state partition in memory: images that are whole or torn, the pointer, the journal."""

    def __init__(self, table: SlotTable) -> None:
        self.images: dict[str, str] = {path: "whole" for path in (table.active, table.passive) if path}
        self.pointer = slots.render(table).decode()
        self.journal = ""

    @property
    def table(self) -> SlotTable:
        return slots.parse(self.pointer)

    def perform(self, action: Action, *, torn: bool = False) -> None:
        """Do an action; `torn`: the power fails in the middle of it."""
        match action:
            case slots.WriteJournal(intent):  # atomic replace: torn means not done
                self.journal = self.journal if torn else slots.render_intent(intent).decode()
            case slots.WriteImage(path, _):
                self.images[path] = "torn" if torn else "whole"
            case slots.FlipPointer(table):
                self.pointer = self.pointer if torn else slots.render(table).decode()
            case slots.RemoveImage(path):
                if not torn:
                    self.images.pop(path, None)
            case slots.RemoveJournal():
                self.journal = self.journal if torn else ""

    def check(self) -> None:
        """Something boots, and everything that the pointer names is whole."""
        table = self.table
        assert self.images.get(table.active) == "whole"
        assert not table.passive or self.images.get(table.passive) == "whole"
        assert not table.spent or table.passive

    def recover(self) -> None:
        for action in slots.replay(self.journal, self.table, self.images.keys()):
            self.perform(action)
            self.check()


tables = st.builds(
    SlotTable,
    active=st.sampled_from(("/cOS/active.img", "/cOS/slot-7-abc.img")),
    passive=st.just("/cOS/passive.img"),
    generation=st.integers(0, 10),
)


@given(
    tables,
    st.sampled_from(("active", "passive")),
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=6),
)
def test_interrupted_anywhere_any_number_of_times_it_boots(
    table: SlotTable, running: str, cuts: list[tuple[int, bool]]
) -> None:
    disk = Disk(table)
    for number, (cut, torn) in enumerate(cuts):
        disk.recover()
        intent = slots.intend_upgrade(disk.table, running, f"{number:064x}")
        for index, action in enumerate(slots.upgrade_actions(intent)):
            if index == cut:
                disk.perform(action, torn=torn)
                break
            disk.perform(action)
            disk.check()
        disk.check()
    disk.recover()
    assert disk.journal == ""
    assert set(disk.images) == {disk.table.active, disk.table.passive} - {""}
    again = slots.replay(disk.journal, disk.table, disk.images.keys())
    assert again == ()


class Node(Disk):
    """A machine over many boots. `proven`: the images that somebody blessed; `good`: those that come up."""

    def __init__(self) -> None:
        super().__init__(SlotTable())
        self.proven, self.bad = set(self.images), set[str]()
        self.boot()

    def boot(self) -> None:
        table = self.table
        self.running = "passive" if table.spent or table.active in self.bad else "active"
        self.image = table.image(self.running)
        self.pointer = slots.render(slots.count_try(table)).decode()

    def settle(self) -> None:
        """What the agent does once the node is healthy."""
        for action in slots.replay(self.journal, self.table, self.images.keys(), self.image):
            self.perform(action)
            self.check()
        table, _ = slots.bless(self.table, self.running, self.image)
        if table.trial < self.table.trial:
            assert table.active == self.image, "only what runs can be blessed"
        self.proven.add(self.image)
        self.pointer = slots.render(table).decode()

    def upgrade(self, number: int, cut: int, torn: bool, good: bool) -> None:
        for action in slots.replay(self.journal, self.table, self.images.keys(), self.image):
            self.perform(action)
        intent = slots.intend_upgrade(self.table, self.running, f"{number:064x}", in_use=self.image)
        self.bad |= set() if good else {intent.image}
        for index, action in enumerate(slots.upgrade_actions(intent, self.image)):
            self.perform(action, torn=torn and index == cut)
            self.check()
            if index == cut:
                break

    def check(self) -> None:
        super().check()
        assert self.table.passive in self.proven, "an image that nobody blessed is no image to fall back to"
        assert self.images[self.image] == "whole", "the image that runs is never removed"


@example([("upgrade", 2, False, False), ("upgrade", 1, False, False)])
@given(
    st.lists(
        st.just(("boot",))
        | st.just(("settle",))
        | st.tuples(st.just("upgrade"), st.integers(0, 9), st.booleans(), st.booleans()),
        max_size=12,
    )
)
def test_the_slot_to_fall_back_to_is_always_a_blessed_one(life: list[tuple[object, ...]]) -> None:
    node = Node()
    for number, (verb, *args) in enumerate(life, start=1):
        if verb == "upgrade":
            node.upgrade(number, *args)  # type: ignore[arg-type]
        elif verb == "settle":
            node.settle()
        else:
            node.boot()
        node.check()
    # nothing is forgotten on the disk: two boots later only the slots are left
    for _ in range(2):
        node.boot()
        node.settle()
    assert set(node.images) == {node.table.active, node.table.passive}
    assert node.journal == ""


@given(tables, st.sampled_from(("active", "passive")), st.integers(1, 3))
def test_a_slot_on_trial_boots_as_often_as_it_may_and_no_more(
    table: SlotTable, running: str, tries: int
) -> None:
    after = slots.intend_upgrade(table, running, "ab" * 32, tries=tries).after
    for _ in range(tries):
        assert not after.spent
        after = slots.count_try(after)
    assert after.spent
    assert slots.count_try(after) == after
    blessed, _ = slots.bless(after, "active")
    assert not blessed.trial
    assert not blessed.spent
    kept, _ = slots.bless(after, "passive")
    assert kept == after


@given(tables, st.lists(st.sampled_from(("upgrade", "boot", "bless")), max_size=20))
def test_only_what_ran_and_was_blessed_is_fallen_back_to(table: SlotTable, steps: list[str]) -> None:
    """Also when one upgrade follows another before a reboot, and if the old one is blessed after a flip."""
    booted, running = table.active, "active"
    proven = {table.active, table.passive}
    for number, step in enumerate(steps):
        match step:
            case "upgrade":
                table = slots.intend_upgrade(table, running, f"{number:064x}").after
            case "boot":
                running = "passive" if table.spent else "active"
                booted, table = table.image(running), slots.count_try(table)  # type: ignore[arg-type]
            case "bless":
                before, (table, _) = table, slots.bless(table, running, booted)
                if table != before:
                    proven.add(booted)
        assert table.passive in proven
        assert table.trial or table.active in proven


@given(st.builds(SlotTable, active=st.just("/cOS/a.img"), passive=st.sampled_from(("", "/cOS/b.img")),
                 trial=st.booleans(), tries_left=st.integers(0, 999),
                 generation=st.integers(0, 10**9 - 1)))  # fmt: skip
def test_the_pointer_is_a_grub_environment_block(table: SlotTable) -> None:
    raw = slots.render(table)
    assert len(raw) == 1024
    assert slots.parse(raw.decode()) == table


@given(st.text())
def test_damaged_pointers_and_journals_are_refused_or_ignored(text: str) -> None:
    if text:
        with pytest.raises(slots.BootError):
            slots.parse(text)
    assert slots.parse_intent(text) is None
