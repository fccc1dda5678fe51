"""Is every list of steps safe when the power goes at any call, any number of times?

A machine of dictionaries: what is on its disk stays, what is mounted goes with the power. Each call that
changes something may be its last. Whatever happened before, an undisturbed boot ends in the same state as if
nothing had, has every required mount, and a slot on trial never gets more tries than it was given.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_bootstrap.boot import slots
from p2p_bootstrap.boot import steps as do
from p2p_bootstrap.boot.facts import BlockDevice, Efi, Facts, SlotImage, TextFile, UkiRoot
from p2p_bootstrap.boot.plan import Plan, plan
from p2p_bootstrap.boot.ports import BindRequest, CanaryRequest, MountEntry

LABELS = ("COS_STATE", "COS_OEM", "COS_PERSISTENT", "COS_RECOVERY", "OTHER")
DEVICES = tuple(BlockDevice(f"/dev/vda{n}", "ext4", label) for n, label in enumerate(LABELS))
ESP = BlockDevice("/dev/vda9", "vfat", partuuid="u")
IMAGES = tuple(SlotImage(f"/cOS/{name}.img", "squashfs", name) for name in ("active", "passive"))
NODE = Facts(
    devices=(*DEVICES, ESP), images=IMAGES, efi=Efi(True, "active.conf", "u"),
    recovery_images=(SlotImage("/cOS/recovery.img", "squashfs", "r"),), layout=(),
    uki_root=UkiRoot("", "/EFI/kairos-p2p/x.img", "00", "erofs", "00"),
)  # fmt: skip
LAYOUTS = (
    "",
    'RW_PATHS="/var /etc"\nPERSISTENT_STATE_PATHS="/etc/ssh /var/lib/a-b"\nPERSISTENT_STATE_BIND=true',
    'RW_PATHS="/etc"\nPERSISTENT_STATE_PATHS="/opt"\n'
    'VOLUMES="LABEL=COS_PERSISTENT:/usr/local LABEL=OTHER:/srv"',
)
WORDS = (
    "root=LABEL=COS_ACTIVE", "root=LABEL=COS_PASSIVE", "root=LABEL=COS_RECOVERY", "rd.immucore.uki",
    "root=LABEL=COS_ACTIVE kairos.ram", "root=LABEL=COS_ACTIVE rd.cos.mount=LABEL=OTHER:/data",
    "root=LABEL=COS_ACTIVE kairos.counted",
)  # fmt: skip


class PowerCut(Exception):
    """The end of this boot."""


@dataclass
class Disk:
    """What stays. `filled`: folders that last -> the image they were last merged with."""

    table: slots.SlotTable
    filled: dict[str, str] = field(default_factory=dict)
    canary: bool = False
    memory_of_canary: bool = False
    machine_id: bool = False


class Machine:
    """A `Kernel` whose power goes after `calls` changes."""

    def __init__(self, disk: Disk, calls: int) -> None:
        self.disk, self.left = disk, calls
        self.table: list[MountEntry] = []
        self.files: dict[str, str] = {}
        self.counted = 0
        self.init = ""

    def _change(self) -> None:
        if self.left == 0:
            raise PowerCut
        self.left -= 1

    def _on(self, path: str) -> MountEntry | None:
        """What carries a path: the nearest mount point above it, the latest of that."""
        inside = [e for e in self.table if path == e.target or path.startswith(f"{e.target.rstrip('/')}/")]
        return max(inside, key=lambda e: (len(e.target), self.table.index(e)), default=None)

    def mount(self, source: str, target: str, fstype: str, options: tuple[str, ...]) -> None:
        self._change()
        number = source if source.startswith("/dev/") else f"{fstype}{len(self.table)}"
        assert not any(e.target.startswith(f"{target}/") for e in self.table), f"{target} hides others"
        self.table.append(MountEntry(target, "/", number, fstype, source, options))

    def mount_image(self, file: str, target: str, fstype: str, options: tuple[str, ...]) -> None:
        assert self._on(file) or file in self.files, f"{file} is not at hand"
        self.mount(f"/dev/loop{len(self.table)}", target, fstype, options)

    def bind(self, source: str, target: str) -> None:
        self._change()
        carrier = self._on(source)
        assert carrier, f"nothing carries {source}"
        root = source.removeprefix(carrier.target)
        self.table.append(replace(carrier, target=target, root=root or "/"))

    def remount(self, target: str, *, read_only: bool) -> None:
        self._change()
        self.table = [
            replace(e, options=("ro" if read_only else "rw",)) if e.target == target else e
            for e in self.table
        ]

    def mounts(self) -> tuple[MountEntry, ...]:
        return tuple(self.table)

    def device_number(self, path: str) -> str:
        return path

    def carrier(self, path: str) -> str:
        found = self._on(path)
        return found.device if found else "none"

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        self._change()

    def write_file(self, path: str, text: str) -> None:
        self._change()
        self.files[path] = text

    def remove_file(self, path: str) -> None:
        self._change()
        self.files.pop(path, None)

    def is_directory(self, path: str) -> bool:
        return True

    def copy_tree_attributes(self, source: str, target: str) -> None:
        self._change()

    def check_file_system(self, device: str, fstype: str, *, repair: bool, force: bool) -> str:
        self._change()
        return ""

    def prepare_bind(self, request: BindRequest) -> tuple[str, ...]:
        assert self.disk.canary, "nothing is filled on a partition that is not proved"
        self._change()
        self.disk.filled[request.name] = request.identity
        self._change()
        return ()

    def check_canary(self, request: CanaryRequest) -> str:
        assert self.disk.canary or not self.disk.memory_of_canary, "our own canary would look strange to us"
        self._change()
        self.disk.canary = True
        self._change()
        self.disk.memory_of_canary = True
        return ""

    def machine_id(self, state: str, target: str) -> None:
        self._change()
        self.disk.machine_id = True
        self.bind(f"{state}/machine-id", target)

    def unlock(self, record: str, esp: str, *, secrets: bool) -> tuple[str, ...]:
        self._change()
        return ()

    def count_try(self, state: str) -> str:
        self._change()
        before = self.disk.table
        self.disk.table = slots.count_try(before)
        self.counted += before != self.disk.table
        self._change()
        return ""

    def copy_to_memory(self, source: str, target: str) -> None:
        self._change()
        self.files[target] = source

    def copy_proved(self, source: str, target: str, sha256: str) -> None:
        self.copy_to_memory(source, target)

    def run_stage(self, name: str, root: str) -> tuple[str, ...]:
        self._change()
        return ()

    def offer_extensions(self, root: str, run: str, profile: str, *, trusted: bool) -> tuple[str, ...]:
        self._change()
        return ()

    def switch_root(self, sysroot: str, init: str, within_s: float | None) -> None:
        self._change()
        self.init = init


def boot(facts: Facts, disk: Disk, calls: int, *, twice: bool = False) -> tuple[Plan, Machine, bool]:
    """One boot. Returns the plan, the machine, and whether it came up."""
    made = plan(replace(facts, pointer=slots.render(disk.table).decode()))
    machine = Machine(disk, calls)
    try:
        for step in made.steps:
            for _ in range(2 if twice and not isinstance(step.action, do.CountTry) else 1):
                step.action.execute(machine)
    except PowerCut:
        return made, machine, False
    return made, machine, True


tables = st.builds(
    slots.SlotTable, st.just("/cOS/active.img"), st.just("/cOS/passive.img"), st.booleans(),
    st.integers(0, 4), st.just(3),
)  # fmt: skip


@settings(max_examples=60)
@given(
    st.sampled_from(WORDS),
    st.sampled_from(LAYOUTS),
    tables,
    st.lists(st.integers(0, 140), max_size=5),
    st.booleans(),
)
def test_interrupted_anywhere_and_any_number_of_times(
    words: str, text: str, table: slots.SlotTable, cuts: list[int], twice: bool
) -> None:
    facts = replace(NODE, cmdline=words, layout=(TextFile("cos-layout.env", text),) if text else ())
    disk, counted = Disk(table), 0
    for calls in cuts:
        _, machine, _ = boot(facts, disk, calls)
        counted += machine.counted
        assert machine.counted <= 1
    assert counted <= max(0, table.tries_left)
    made, machine, up = boot(facts, disk, 10_000, twice=twice)
    assert up, made.reason
    assert machine.init == "/sbin/init"
    for one in made.required:
        do.prove(one, machine)
    # the same as a machine that nothing ever happened to, but for the tries
    fresh = Disk(disk.table)
    again, undisturbed, _ = boot(facts, fresh, 10_000)
    if (again.mode, again.slot) == (made.mode, made.slot):
        assert [e.target for e in undisturbed.table] == [e.target for e in machine.table]
        assert undisturbed.files == machine.files
        assert fresh.filled.items() <= disk.filled.items()


@given(st.sampled_from(WORDS), st.sampled_from(LAYOUTS))
def test_each_step_done_twice_is_done_once(words: str, text: str) -> None:
    facts = replace(NODE, cmdline=words, layout=(TextFile("cos-layout.env", text),) if text else ())
    once, twice = Disk(slots.SlotTable()), Disk(slots.SlotTable())
    _, first, _ = boot(facts, once, 10_000)
    _, second, _ = boot(facts, twice, 10_000, twice=True)
    assert [(e.target, e.root, e.fstype, e.options) for e in first.table] == [
        (e.target, e.root, e.fstype, e.options) for e in second.table
    ]
    assert (once, first.files) == (twice, second.files)
