"""How does a fault of a plan come about in a world, and how does everything heal?"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, assert_never

from p2p_network.ledger.entry import Entry
from p2p_simulations.sim import byzantine, operator, programs, slots, snapshots
from p2p_simulations.sim.plan import (
    BreakK3s,
    Byzantine,
    ChangeWeather,
    CorruptCopy,
    CorruptDurable,
    CorruptLedger,
    Cut,
    Depart,
    Drain,
    DriftClock,
    Fault,
    Flap,
    Freeze,
    FullDisk,
    JumpClock,
    KillAgent,
    LoseLedger,
    MakeBackup,
    OneWay,
    Partition,
    PowerCut,
    Recover,
    Reimage,
    RestoreBackup,
    Revoke,
    Rotate,
    Slow,
    Upgrade,
    UpgradeK3s,
)
from p2p_simulations.sim.store import DURABLE, STORED, damaged_row
from p2p_simulations.sim.trust import change_trust, hand_out
from p2p_simulations.sim.writing import describe
from p2p_simulations.world.net import CALM, groups_cut

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine
    from p2p_simulations.sim.world import World


def happen(world: World, fault: Fault) -> None:
    """A fault of the plan happens now; nothing happens any more once everything heals."""
    if world.healing:
        return
    world.note("(fault)", describe(fault))
    if world.recorder is not None:
        for_s = getattr(fault, "for_s", None) or getattr(fault, "down_s", None)
        world.recorder.happened(world.engine.now, describe(fault), for_s)
    match fault:
        case PowerCut(nodes, down_s):
            for name in nodes:
                power_cut(world, world.machines[name], down_s)
        case KillAgent(nodes, down_s):
            for name in nodes:
                kill_agent(world, world.machines[name], down_s)
        case Partition() | OneWay() | Cut() | Flap() | ChangeWeather():
            _disturb_network(world, fault)
        case Upgrade(nodes, is_good, every_s):
            for number, name in enumerate(nodes):
                world.engine.after(
                    number * every_s,
                    lambda name=name: slots.upgrade(world.machines[name], is_good),  # type: ignore[misc]
                )
        case UpgradeK3s():
            programs.order(world, fault)
        case Recover(node, snapshot):
            operator.recover(world, node, snapshot)
        case MakeBackup(node):
            operator.back_up(world, node)
        case RestoreBackup(node):
            operator.restore(world, node)
        case JumpClock() | DriftClock() | Freeze() | Slow() | FullDisk() | BreakK3s():
            _hamper(world, world.machines[fault.node], fault)
        case CorruptCopy(node):
            snapshots.corrupt(world.machines[node])
        case LoseLedger() | CorruptDurable() | CorruptLedger() | Reimage() | Depart() | Byzantine():
            _strike(world, world.machines[fault.node], fault)
        case Rotate() | Revoke():
            change_trust(world, world.machines[fault.node], fault)
        case Drain(node, for_s):
            operator.drain(world, world.machines[node], for_s)
        case _:
            assert_never(fault)


def _hamper(
    world: World, machine: SimMachine, fault: JumpClock | DriftClock | Freeze | Slow | FullDisk | BreakK3s
) -> None:
    """What makes a machine worse for a while."""
    after = world.engine.after
    match fault:
        case JumpClock(_, by_s):
            machine.clock_offset_s += by_s
        case DriftClock(_, rate):
            machine.drift(rate)
        case Freeze(_, for_s):
            machine.freeze(for_s)
        case Slow(_, what, factor, slow_s):
            machine.slow_down(what, factor)
            if slow_s is not None:
                after(slow_s, lambda: machine.slow_down(what, 1.0))
        case FullDisk(_, full_s):
            machine.disk_full = True
            if full_s is not None:
                after(full_s, lambda: _free_disk(machine))
        case BreakK3s(_, broken_s):
            machine.k3s_broken = True
            if broken_s is not None:
                after(broken_s, lambda: _mend_k3s(machine))
        case _:
            assert_never(fault)


def _strike(
    world: World,
    machine: SimMachine,
    fault: LoseLedger | CorruptDurable | CorruptLedger | Reimage | Depart | Byzantine,
) -> None:
    """What a machine doesn't get over by waiting."""
    if machine.gone:
        return
    match fault:
        case LoseLedger(node, down_s):
            power_cut(world, machine, down_s)
            machine.disk.lose(STORED)
            world.lost_ledger.add(node)
        case CorruptDurable(_, down_s):
            power_cut(world, machine, down_s)
            _corrupt_durable(world, machine)
        case CorruptLedger(node, down_s):
            power_cut(world, machine, down_s)
            _corrupt_ledger(world, machine)
        case Reimage(_, down_s):
            reimage(world, machine, down_s)
        case Depart(node, said):
            world.departed.add(node)
            if said and machine.agent is not None:
                agent = machine.agent
                agent.tasks.start(agent.leave())
            else:
                machine.gone = True
                machine.power_off()
        case Byzantine(_, how):
            byzantine.lie(world, machine, how)
        case _:
            assert_never(fault)


def aimed(fault: PowerCut | KillAgent | Partition, name: str) -> Fault:
    """The fault of a trigger, at the node that pulled it where the plan names none."""
    if isinstance(fault, PowerCut | KillAgent) and not fault.nodes:
        return dataclasses.replace(fault, nodes=(name,))
    if isinstance(fault, Partition) and not fault.groups:
        return dataclasses.replace(fault, groups=((name,),))
    return fault


def power_cut(world: World, machine: SimMachine, down_s: float | None) -> None:
    """Pull the plug."""
    if not machine.is_on:
        return
    machine.power_off()
    if down_s is not None:
        world.engine.after(down_s, machine.boot)


def kill_agent(world: World, machine: SimMachine, down_s: float | None) -> None:
    """Kill -9."""
    if machine.agent is None:
        return
    machine.crash_agent()
    if down_s is not None:
        world.engine.after(down_s, machine.start_agent)


def heal(world: World) -> None:
    """No fault any more: the network works, clocks are right, everything is switched on."""
    world.note("(world)", "everything heals")
    world.mark("healing", "everything heals")
    world.healing = True
    world.engine.after(30.0, lambda: operator.look_after(world))
    if world.rotations:
        hand_out(world)
        for minute in range(15):
            world.engine.after(1.0 + 60.0 * minute, lambda: hand_out(world))
    world.network.mend()
    world.network.weather = CALM
    for machine in world.machines.values():
        machine.drift(0.0)
        machine.clock_offset_s = 0.0
        machine.k3s_broken = machine.disk_full = False
        for what in ("disk", "cpu"):
            machine.slow_down(what, 1.0)
        machine.thaw()
        if machine.refuses:
            reimage(world, machine, 1.0)
        elif machine not in world.waiting:
            machine.boot()


def _disturb_network(world: World, fault: Partition | OneWay | Cut | Flap | ChangeWeather) -> None:
    network, engine = world.network, world.engine
    label = f"{engine.events}"
    for_s: float | None = None
    match fault:
        case Partition(groups, for_s):
            named = {name for group in groups for name in group}
            rest = tuple(name for name in world.machines if name not in named)
            network.cut(label, groups_cut((*groups, rest)))
        case OneWay(sources, targets, for_s):
            network.cut(label, {(a, b) for a in sources for b in targets if a != b})
        case Cut(pairs, for_s):
            network.cut(label, {(a, b) for one, other in pairs for a, b in ((one, other), (other, one))})
        case Flap():
            _flap(world, fault, label, engine.now + fault.for_s)
        case ChangeWeather(weather):
            network.weather = weather
        case _:
            assert_never(fault)
    if for_s is not None:
        engine.after(for_s, lambda: network.mend(label))


def _flap(world: World, flap: Flap, label: str, end: float) -> None:
    engine, network = world.engine, world.network
    if world.healing or engine.now >= end:
        network.mend(label)
        return
    network.cut(label, groups_cut(((flap.one,), (flap.other,))))
    down_s, up_s = (engine.random.expovariate(1 / flap.period_s) for _ in range(2))
    engine.after(down_s, lambda: network.mend(label))
    engine.after(down_s + up_s, lambda: _flap(world, flap, label, end))


def reimage(world: World, machine: SimMachine, down_s: float) -> None:
    """Another disk in the same machine, which has the same name."""
    world.reimaged.add(machine.peer)
    machine.reimage()
    world.named(machine)
    world.identities += 1
    world.engine.after(down_s, machine.boot)


def _corrupt_durable(world: World, machine: SimMachine) -> None:
    """A sector of one file: most often of the votes."""
    files = [name for name in machine.files.names(f"{DURABLE}/") if "/.tmp-" not in name]
    votes = [name for name in files if name.startswith(f"{DURABLE}/bootstrap")]
    chance = world.engine.random
    if files:
        name = chance.choice(votes if votes and chance.random() < 0.6 else files)
        world.note(machine.name, f"a sector under {name} goes bad: {machine.files.corrupt(name)}")


def _corrupt_ledger(world: World, machine: SimMachine) -> None:
    """Some rows; with its own claim a node loses how old it was."""
    chance, disk = world.engine.random, machine.disk
    rows = disk.names(STORED)
    for name in chance.sample(rows, min(len(rows), chance.choice((1, 2, 5)))):
        row = disk.read(name)
        if isinstance(row, Entry):
            bad = damaged_row(row, chance.randrange(1 << 16), chance.randint(1, 255))
            disk.sync(disk.write({name: bad}))
            if row.author == machine.peer:
                world.lost_ledger.add(machine.name)


def _free_disk(machine: SimMachine) -> None:
    machine.disk_full = False


def _mend_k3s(machine: SimMachine) -> None:
    machine.k3s_broken = False
