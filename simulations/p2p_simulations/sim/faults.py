"""How does a fault of a plan come about in a world, and how does everything heal?"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, assert_never

from p2p_network import wire
from p2p_network.core.clock import Stamp
from p2p_network.ledger import sync
from p2p_network.ledger.entry import sign_entry
from p2p_network.ledger.events import Hint
from p2p_network.records import AddressClaim
from p2p_roles import assign
from p2p_simulations.sim.plan import (
    BreakK3s,
    ChangeWeather,
    Fault,
    Flap,
    Forge,
    Freeze,
    JumpClock,
    KillAgent,
    LoseLedger,
    OneWay,
    Partition,
    PowerCut,
    Reimage,
)
from p2p_simulations.sim.store import STORED
from p2p_simulations.world.net import CALM, groups_cut

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine
    from p2p_simulations.sim.world import World


def happen(world: World, fault: Fault) -> None:
    """A fault of the plan happens now; nothing happens any more once everything heals."""
    if world.healing:
        return
    world.note("(fault)", describe(fault))
    match fault:
        case PowerCut(nodes, down_s):
            for name in nodes:
                power_cut(world, world.machines[name], down_s)
        case KillAgent(nodes, down_s):
            for name in nodes:
                kill_agent(world, world.machines[name], down_s)
        case Partition() | OneWay() | Flap() | ChangeWeather():
            _disturb_network(world, fault)
        case JumpClock(node, by_s):
            world.machines[node].clock_offset_s += by_s
        case Freeze(node, for_s):
            world.machines[node].freeze(for_s)
        case LoseLedger(node, down_s):
            machine = world.machines[node]
            power_cut(world, machine, down_s)
            machine.disk.lose(STORED)
            world.lost_ledger.add(node)
        case Reimage(node, down_s):
            _reimage(world, world.machines[node], down_s)
        case BreakK3s(node, for_s):
            world.machines[node].k3s_broken = True
            if for_s is not None:
                world.engine.after(for_s, lambda: _mend_k3s(world.machines[node]))
        case Forge(node):
            _forge(world, world.machines[node])
        case _:
            assert_never(fault)


def describe(fault: Fault) -> str:
    """One line for people."""
    values = ", ".join(f"{field.name}={getattr(fault, field.name)!r}" for field in dataclasses.fields(fault))
    return f"{type(fault).__name__}({values})"


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
    world.healing = True
    world.network.mend()
    world.network.weather = CALM
    for machine in world.machines.values():
        machine.clock_offset_s = 0.0
        machine.k3s_broken = False
        machine.thaw()
        machine.boot()


def _disturb_network(world: World, fault: Partition | OneWay | Flap | ChangeWeather) -> None:
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


def _reimage(world: World, machine: SimMachine, down_s: float) -> None:
    world.reimaged.add(machine.peer)
    machine.reimage()
    world.named(machine)
    world.identities += 1
    world.engine.after(down_s, machine.boot)


def _mend_k3s(machine: SimMachine) -> None:
    machine.k3s_broken = False


def _forge(world: World, machine: SimMachine) -> None:
    """Entries that this node has no right to write, signed by itself and newer than all others."""
    agent = machine.agent
    if agent is None:
        return
    chance = world.engine.random
    victim = chance.choice([m for m in world.machines.values() if m is not machine])
    stamp = Stamp(int(machine.wall_s() * 1000) + 60_000, 0)
    claim = wire.encode(AddressClaim("10.144.0.77", 0, 1))
    word = assign.encode(assign.Assignment("server", "because I say so", 1, "0" * 16))
    entries = [
        sign_entry(machine.identity, world.mesh_id, key, stamp, value)
        for key, value in (
            (f"address/{victim.peer}", claim),
            (f"node/{victim.peer}", None),
            (f"assign/{machine.scope}/{victim.peer}", word),
            (f"genesis/{machine.scope}/1/1", b"\x01"),
            (f"genesis/{machine.scope}/1/2", b""),
        )
    ]
    payload = sync.encode_hint(Hint(bytes(16), tuple(entries)))
    for peer in sorted(agent.host.connected()):
        agent.host.notify(peer, sync.HINT_METHOD, payload)
