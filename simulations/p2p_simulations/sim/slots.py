"""Which image does a simulated machine boot, and what if the power fails while one is written?

The pure core of the boot slots (`p2p_bootstrap.boot.slots`) on a state partition in memory: pointer, journal
and images. Its actions are done one by one, each takes time, and a power cut tears the one under way: an
image is half there, a replaced file is the old one or the new one. What boots is chosen as by the loader.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from p2p_bootstrap.boot import slots
from p2p_bootstrap.boot.slots import Action, SlotTable
from p2p_simulations.world.tasks import Tasks

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine

BLESS_AFTER_S = 20.0
_BAD_BOOT_S = 30.0  # until a watchdog resets a machine whose image does not come up
_IMAGE_S = (5.0, 20.0)
_USUAL_S = (0.005, 0.5)


@dataclass(slots=True)
class Image:
    """One image file. `is_whole`: all of it is there; `is_good`: the agent in it starts."""

    is_whole: bool = True
    is_good: bool = True


class SlotDisk:
    """The state partition of one machine. `running`: the slot that booted; `is_healthy`: its image runs."""

    def __init__(self) -> None:
        table = SlotTable()
        self.images = {table.active: Image(), table.passive: Image()}
        self.pointer = slots.render(table)
        self.journal = ""
        self.running, self.booted = "active", table.active
        self.is_healthy = True
        self.is_upgrading = False
        self.upgrading: Tasks | None = None  # the last one, for whoever ends the world
        self._under_way: Action | None = None
        self._next_is_good = True

    @property
    def table(self) -> SlotTable:
        """What the pointer says."""
        return slots.parse(self.pointer.decode())

    def boot(self) -> str:
        """What boot loader and initramfs do. Returns what is wrong, "" if something whole was booted."""
        self.is_upgrading = False
        for action in slots.replay(self.journal, self.table, self.images.keys()):
            self.perform(action)
        table = self.table
        self.running = "passive" if table.spent else "active"
        self.booted = table.image(self.running)
        image = self.images.get(self.booted)
        self._set(slots.count_try(table))
        self.is_healthy = image is not None and image.is_good
        if image is None or not image.is_whole:
            return (
                f"boots {table.image(self.running) or 'nothing'}, which is {'torn' if image else 'not there'}"
            )
        return ""

    def begin(self, is_good: bool) -> tuple[Action, ...]:
        """The actions of an upgrade to an image that will work, or not."""
        self._next_is_good, self.is_upgrading = is_good, True
        return slots.upgrade_actions(slots.intend_upgrade(self.table, self.running, ""))

    def started(self, action: Action) -> None:
        """An action is under way."""
        self._under_way = action

    def perform(self, action: Action) -> None:
        """An action is done, and durable."""
        self._under_way = None
        match action:
            case slots.WriteJournal(intent):
                self.journal = slots.render_intent(intent).decode()
            case slots.WriteImage(path, _):
                self.images[path] = Image(is_good=self._next_is_good)
            case slots.FlipPointer(table):
                self._set(table)
            case slots.RemoveImage(path):
                self.images.pop(path, None)
            case slots.RemoveJournal():
                self.journal = ""
            case _:
                assert_never(action)

    def crash(self, chance: random.Random) -> None:
        """The power fails: the action under way is done, not done, or (an image) half done."""
        action, self._under_way = self._under_way, None
        if isinstance(action, slots.WriteImage):
            self.images[action.path] = Image(is_whole=False, is_good=False)
        elif isinstance(action, slots.WriteJournal) and chance.random() < 0.3:
            self.journal = slots.render_intent(action.intent).decode()[: chance.randrange(200)]
        elif action is not None and chance.random() < 0.5:
            self.perform(action)

    def bless(self) -> str:
        """The running slot proved healthy. Returns one sentence."""
        table, reason = slots.bless(self.table, self.running, self.booted)
        self._set(table)
        return reason

    def problem(self) -> str:
        """What is wrong with the slots whenever the power may fail; "" if something always boots."""
        table = self.table
        named = (table.active, table.passive) if not table.spent else (table.passive,)
        for path in filter(None, named):
            image = self.images.get(path)
            if image is None or not image.is_whole:
                return f"the pointer names {path}, which is {'torn' if image else 'not there'}"
        return (
            "no slot boots: active is spent and there is no passive"
            if table.spent and not table.passive
            else ""
        )

    def _set(self, table: SlotTable) -> None:
        self.pointer = slots.render(table)


def upgrade(machine: SimMachine, is_good: bool) -> None:
    """Write a new image, then reboot into it; nothing if the machine is off."""
    if not machine.is_on or machine.slots.is_upgrading:
        return
    tasks = machine.slots.upgrading = Tasks(machine.world.engine, machine.resume_at, machine.touched)
    tasks.start(_upgrade(machine, tasks, is_good))


async def _upgrade(machine: SimMachine, tasks: Tasks, is_good: bool) -> None:
    world, boots = machine.world, machine.boots
    chance = world.engine.random
    for action in machine.slots.begin(is_good):
        machine.slots.started(action)
        await tasks.sleep(chance.uniform(*(_IMAGE_S if isinstance(action, slots.WriteImage) else _USUAL_S)))
        if machine.boots != boots or not machine.is_on:
            return  # the power failed meanwhile: the next boot cleans up
        machine.slots.perform(action)
        world.slot_booted(machine, machine.slots.problem())
    world.note(machine.name, f"reboots into {machine.slots.table.active}")
    machine.power_off()
    await tasks.sleep(3.0)
    machine.boot()


def booted(machine: SimMachine) -> None:
    """After each boot: a good image is blessed in a while, a bad one is reset by the watchdog."""
    world, boots = machine.world, machine.boots

    def later() -> None:
        if machine.boots != boots or not machine.is_on:
            return
        if machine.slots.is_healthy:
            before = machine.slots.table
            reason = machine.slots.bless()
            if machine.slots.table != before:
                world.note(machine.name, reason)
        else:
            world.note(machine.name, "the watchdog resets it: its image does not come up")
            machine.power_off()
            world.engine.after(1.0, machine.boot)

    world.engine.after(BLESS_AFTER_S if machine.slots.is_healthy else _BAD_BOOT_S, later)
