"""How is a plan carried out, and what if it fails?

Steps whose needs are met run side by side. At a horizon (`Look`) the facts are observed and planned anew. A
step that fails ends the slot's attempt: everything mounted for it is unmounted, the failure becomes a fact,
and the plan for those facts is the next slot; without one the boot stops and says why. It never goes on
with less than was required, and never starts a shell. Every step is recorded with its duration.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, Protocol

from p2p_bootstrap.boot import cmdline, devices, files, record, steps
from p2p_bootstrap.boot.facts import Facts, Places, SlotFailure
from p2p_bootstrap.boot.plan import Plan, plan
from p2p_bootstrap.boot.ports import Kernel, MountEntry
from p2p_bootstrap.boot.record import Entry, Record
from p2p_bootstrap.boot.steps import Step
from p2p_network.core.errors import BootError, P2PError

WORKERS: Final = 4
DEFAULT_WAIT_S: Final = 30.0
POLL_S: Final = 0.1
KEPT_ON: Final = ("/usr/local", "/oem")


class Machine(Kernel, Protocol):
    """A kernel that can also take mounts away."""

    def unmount(self, target: str) -> None:
        """Unmount, as soon as it is free."""


class Source(Protocol):
    """Where facts come from."""

    places: Places

    def facts(self, *, layout_ready: bool = False, failures: tuple[SlotFailure, ...] = ()) -> Facts: ...


class StepFailed(Exception):
    """A step could not be done."""

    def __init__(self, step: Step, cause: Exception) -> None:
        super().__init__(step.name)
        self.step = step
        self.reason = cause.message if isinstance(cause, P2PError) else str(cause)
        self.hint = cause.hint if isinstance(cause, P2PError) else "the kernel's log (dmesg) tells more"


class Runner:
    """Boots one machine.

    Args:
        clock: monotonic seconds; `sleep`: waits for devices, in seconds.
        before: called with each step's name before it is done (tests interrupt there).
        last: whether to take the last step, the switch; without it `run` returns when all is proved.
    """

    def __init__(
        self,
        kernel: Machine,
        source: Source,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        before: Callable[[str], None] = lambda name: None,
        last: bool = True,
    ) -> None:
        self._kernel, self._source = kernel, source
        self._clock, self._sleep, self._before, self._last = clock, sleep, before, last
        self._started_s = clock()
        self._failures: tuple[SlotFailure, ...] = ()
        self._entries: list[Entry] = []
        self._remarks: list[str] = []
        self._planning_s = 0.0
        self._waited: set[str] = set()
        self._facts = Facts()
        self._pointer: str | None = None

    def run(self) -> Record:
        """Boot. Returns only if there was no way (or `last` is False)."""
        while True:
            self._remarks = []
            current = self._plan(layout_ready=False)
            if current.mode == "stop":
                return self._stop(current)
            try:
                return self._attempt(current)
            except StepFailed as exc:
                failure = SlotFailure(current.slot, exc.step.name, exc.reason, exc.hint)
                self._failures = (*self._failures, failure)
                self._undo()

    def _plan(self, *, layout_ready: bool) -> Plan:
        """Observe and plan; wait for devices that may still appear, once each."""
        deadline_s: float | None = None
        while True:
            begun_s = self._clock()
            self._facts = self._source.facts(layout_ready=layout_ready, failures=self._failures)
            if self._facts.images is not None:
                # what counts is the pointer as this boot found it: our own try must not look like a spent one
                self._pointer = self._facts.pointer if self._pointer is None else self._pointer
                self._facts = replace(self._facts, pointer=self._pointer)
            made = plan(self._facts)
            self._planning_s += self._clock() - begun_s
            fresh = set(made.awaits) - self._waited
            if not fresh:
                break
            if deadline_s is None:
                deadline_s = self._clock() + self._patience_s(fresh)
            if self._clock() >= deadline_s:
                self._waited |= fresh
                break
            self._sleep(POLL_S)
        return made

    def _patience_s(self, selectors: set[str]) -> float:
        command = cmdline.parse(self._facts.cmdline)
        if command.oem_timeout_s and selectors == {f"LABEL={command.oem_label or 'COS_OEM'}"}:
            return float(command.oem_timeout_s)
        return float(command.sysroot_wait_s) or DEFAULT_WAIT_S

    def _attempt(self, current: Plan) -> Record:
        done: set[str] = set()
        layout_ready = False
        while True:
            horizon = current.horizon()
            final = isinstance(horizon[-1].action, steps.SwitchRoot)
            todo = [s for s in horizon if s.name not in done]
            self._execute(todo[:-1], current.slot, done)
            self._remarks += [remark for remark in current.remarks if remark not in self._remarks]
            if final:
                return self._finish(current, horizon[-1])
            looked = horizon[-1]
            self._before(looked.name)
            layout_ready = layout_ready or looked.name == "look-layout"
            done.add(looked.name)
            again = self._plan(layout_ready=layout_ready)
            if (again.mode, again.slot) != (current.mode, current.slot):
                raise StepFailed(looked, BootError(again.reason, hint=again.hint))
            current = _without_looks(again, done)

    def _execute(self, todo: list[Step], slot: str, done: set[str]) -> None:
        """Do steps, side by side where their needs allow. Raises StepFailed after all running ones ended."""
        waiting = list(todo)
        running: dict[Future[tuple[str, ...]], tuple[Step, float]] = {}
        failed: StepFailed | None = None
        with ThreadPoolExecutor(WORKERS) as pool:
            while running or (waiting and failed is None):
                ready = [s for s in waiting if done.issuperset(s.needs)] if failed is None else []
                for step in ready[: WORKERS - len(running)]:
                    self._before(step.name)
                    waiting.remove(step)
                    running[pool.submit(step.action.execute, self._kernel)] = step, self._clock()
                assert running, f"steps wait for each other: {[s.name for s in waiting]}"
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    step, start_s = running.pop(future)
                    try:
                        self._remarks += future.result()
                    except (OSError, P2PError) as exc:
                        failed = failed or StepFailed(step, exc)
                        self._enter(slot, step, start_s, failed.reason)
                        continue
                    self._enter(slot, step, start_s, "")
                    done.add(step.name)
        if failed:
            raise failed

    def _enter(self, slot: str, step: Step, start_s: float, error: str) -> None:
        now_s = self._clock()
        self._entries.append(
            Entry(slot, step.name, step.action.describe(), start_s - self._started_s, now_s - start_s,
                  "failed" if error else "done", error)
        )  # fmt: skip

    def _finish(self, current: Plan, switch: Step) -> Record:
        made = self._record(current, "booted")
        self._keep(made, [self._source.places.inside(path) for path in KEPT_ON])
        if self._last:
            self._before(switch.name)
            try:
                switch.action.execute(self._kernel)
            except (OSError, P2PError) as exc:
                raise StepFailed(switch, exc) from exc
        return made

    def _stop(self, current: Plan) -> Record:
        made = self._record(current, "stopped")
        folder = f"{self._source.places.run}/initramfs/oem"
        try:
            oem = devices.need(self._facts.devices, "LABEL=COS_OEM")
            self._kernel.make_directory(folder)
            self._kernel.mount(oem.path, folder, oem.fstype, ("rw",))
        except (OSError, P2PError):
            self._keep(made, [])
            return made
        try:
            self._keep(made, [folder])
        finally:
            self._kernel.unmount(folder)
        return made

    def _record(self, current: Plan, outcome: Literal["booted", "stopped"]) -> Record:
        remarks = tuple(dict.fromkeys((*self._remarks, *current.remarks)))
        return Record(
            wall_s=self._facts.now_s, outcome=outcome, mode=current.mode, slot=current.slot,
            reason=current.reason, hint=current.hint, failures=self._failures, remarks=remarks,
            entries=tuple(self._entries), planning_s=self._planning_s,
            total_s=self._clock() - self._started_s, image=current.image, within_s=current.within_s,
            peak_kib=_peak_kib(),
        )  # fmt: skip

    def _keep(self, made: Record, candidates: list[str]) -> None:
        """Write the record for this boot, and once where it survives. A full disk doesn't stop a boot."""
        text = record.to_json(made)
        self._kernel.make_directory(self._source.places.cos)
        self._kernel.write_file(f"{self._source.places.cos}/{record.NAME}", text, 0o600)
        mounted = {entry.target for entry in self._kernel.mounts()}
        for place in candidates:
            if place in mounted:
                try:
                    keep(Path(place, record.FOLDER), text)
                    return
                except OSError:
                    continue

    def _undo(self) -> None:
        """Take away everything that was mounted for a slot; the slot partitions stay."""
        places = self._source.places
        ours = (places.sysroot, f"{places.run}/overlay", f"{places.run}/initramfs/image",
                places.memory, places.esp, places.live)  # fmt: skip

        def is_ours(entry: MountEntry) -> bool:
            return any(entry.target == one or entry.target.startswith(f"{one}/") for one in ours)

        for entry in reversed([entry for entry in self._kernel.mounts() if is_ours(entry)]):
            self._kernel.unmount(entry.target)


def _peak_kib() -> int:
    """The most memory that this process had, in KiB; 0 if the kernel does not say."""
    for line in files.read_text(Path("/proc/self/status"), 65536).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def _without_looks(current: Plan, done: set[str]) -> Plan:
    """The plan with the horizons that were passed already taken for granted."""
    return replace(current, steps=tuple(s for s in current.steps if s.name not in done))


def keep(folder: Path, text: str) -> None:
    """Add a record to those kept, and drop the oldest beyond `record.KEPT`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = sorted(folder.glob("*.json"), key=lambda path: int(path.stem) if path.stem.isdigit() else 0)
    number = int(kept[-1].stem) + 1 if kept and kept[-1].stem.isdigit() else 1
    files.replace(folder / f"{number}.json", text.encode())
    for old in kept[: max(0, len(kept) + 1 - record.KEPT)]:
        old.unlink(missing_ok=True)


def kept(folder: Path) -> list[Record]:
    """The records kept in a folder, oldest first; torn ones are left out."""
    paths = sorted(folder.glob("*.json"), key=lambda path: int(path.stem) if path.stem.isdigit() else 0)
    found = (record.from_json(files.read_text(path)) for path in paths)
    return [one for one in found if one]
