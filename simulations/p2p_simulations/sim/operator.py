"""What does a person do when a cluster has lost its majority, or its data? Orders its recovery, or a restore.
(And before a machine goes on purpose? Drains it.)

By the production's own column (`node.recovery`), on any node that runs: it asks those in reach, makes the
plan and has it decided. The operator is honest: only machines that are off, or whose disk is gone, are
declared lost; but nothing keeps several from ordering different things at once.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from p2p_bootstrap.node.backup import Backup
from p2p_network import drains, wire
from p2p_network.core.errors import P2PError
from p2p_roles.transitions import State
from p2p_simulations.sim.etcd import Image
from p2p_simulations.sim.k3s import SNAPSHOTS

_LOOKS_EVERY_S: Final = 45.0

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine
    from p2p_simulations.sim.world import World


def recover(world: World, name: str, snapshot: str) -> None:
    """``cluster recover [--snapshot NAME]`` at the machine `name`; nothing if no agent runs there."""
    asker = world.machines[name]
    if asker.agent is None:
        return world.note(name, "the operator finds no agent here")
    asker.agent.tasks.start(_order(world, asker, snapshot))
    return None


def look_after(world: World) -> None:
    """Where a recovery was given up, since two operators wanted different ones, or what it was to begin from
    is gone, nothing goes on before a person orders another; nor where most of etcd's members are lost for
    ever. One does, at the first node that says so, and looks again."""
    world.engine.after(_LOOKS_EVERY_S, lambda: look_after(world))
    busy = set()
    for scope in sorted({machine.scope for machine in world.machines.values()}):
        if _redeclare(world, world.verdict.declares_too_many(scope), scope):
            busy.add(scope)
        elif world.checkers.votes.ready(scope) and not world.verdict.survivors(scope):
            busy.add(scope)
            _restore_somewhere(world, scope)  # its backup is all that there is of it
    waiting: dict[str, SimMachine] = {}
    for machine in world.machines.values():
        agent = machine.agent
        if agent is None or machine.peer in world.revoked or not agent.witness.started:
            continue
        state, reason = agent.bootstrap.state, agent.bootstrap.reason
        health = agent.bootstrap.quorum.health
        is_minority = health in ("minority", "lost") and world.verdict.has_lost_majority(machine.scope)
        is_given_up = state in (State.HELD, State.DISCOVER) and "given up" in reason
        has_nothing = state is State.RECOVER and "(last attempt: no " in reason
        if "order it again: kairos-p2p restore" in reason and machine.scope not in busy:
            busy.add(machine.scope)
            _restore_somewhere(world, machine.scope)
        elif is_given_up or has_nothing or is_minority or "order it" in reason:
            waiting.setdefault(machine.scope, machine)
    for machine in waiting.values():
        if machine.scope not in busy:
            recover(world, machine.name, "")


def _redeclare(world: World, machines: list[SimMachine], scope: str) -> bool:
    """Say in their cloud-configs how many nodes there are, and start their agents anew. True if one was."""
    there = sum(m.scope == scope and m.agent is not None for m in world.machines.values())
    for machine in machines:
        world.note(machine.name, f"p2p.minimum_nodes was {machine.minimum_nodes}, and is {there} now")
        machine.minimum_nodes = there
        machine.crash_agent()
        world.engine.after(1.0, machine.start_agent)
    return bool(machines)


def lost(world: World, asker: SimMachine) -> tuple[str, ...]:
    """Of those that the machine knows, the identities that have no power or no disk any more, or were put out
    and are not heard any more."""
    assert asker.agent is not None, "an agent knows"
    view = asker.agent.bootstrap.view
    found = [(node.peer, world.machine_of(node.peer)) for node in view.nodes]
    return tuple(
        peer
        for peer, machine in found
        if machine is None or not machine.is_on or (peer in world.revoked and peer not in view.alive)
    )


def back_up(world: World, name: str) -> None:
    """``backup FILE`` at the machine `name`; nothing if no agent runs there."""
    asker = world.machines[name]
    if asker.agent is None:
        return world.note(name, "the operator finds no agent here")
    asker.agent.tasks.start(_back_up(world, asker))
    return None


async def _back_up(world: World, asker: SimMachine) -> None:
    """As `Upkeep.backup` does it, into a file that no fault reaches."""
    agent = asker.agent
    assert agent is not None, "it was there when this was ordered"
    member = agent.bootstrap.member
    if agent.snapshots is None or member is None or member.role != "server" or not member.joined:
        return world.note(asker.name, "no backup: this node is no server of a cluster that is up")
    try:
        facts = await agent.snapshots.save("backup")
    except P2PError as exc:
        return world.note(asker.name, f"no backup: {exc.message}")
    image: Image | None = asker.disk.read(f"{SNAPSHOTS}{facts.name}")
    secrets = agent.k3s.cluster_secrets(member.genesis.ca_hash)
    if image is None or image.digest != facts.digest or secrets is None:
        return world.note(asker.name, "no backup: it is gone again")
    made_s, nodes = asker.wall_s(), tuple(sorted(image.kube.nodes))
    whole = Backup(1, made_s, member.genesis, world.plan.servers, nodes, facts, secrets)
    world.backups.setdefault(asker.scope, []).append((whole, image))
    return world.note(asker.name, f"a backup is written: {len(image.log)} writes")


def restore(world: World, name: str) -> None:
    """``restore FILE --abandon`` of the newest backup at the machine `name`."""
    asker = world.machines[name]
    if asker.agent is None or not world.backups.get(asker.scope):
        return world.note(name, "the operator finds no agent here, or has no backup")
    asker.agent.tasks.start(_restore(world, asker, *world.backups[asker.scope][-1]))
    return None


def _restore_somewhere(world: World, scope: str) -> None:
    """As the agent said: at the first machine that can be a first server."""
    for machine in world.machines.values():
        restoring = machine.agent.restoring if machine.agent is not None else None
        if machine.scope == scope and restoring is not None and machine.peer not in world.revoked:
            with suppress(P2PError):
                restoring.check()
                return restore(world, machine.name)
    return None


async def _restore(world: World, asker: SimMachine, whole: Backup, image: Image) -> None:
    agent = asker.agent
    assert agent is not None, "it was there when this was ordered"
    if agent.restoring is None:
        return world.note(asker.name, "no restore: there are no snapshots in this world")
    file = Path("from-backup")
    try:
        await asker.fsync(agent.tasks, asker.disk.write({str(file): image}))
        world.note(asker.name, f"an operator restores a backup: {len(image.log)} writes")
        decided = await agent.restoring.begin(whole, file, abandon=True, lost=lost(world, asker))
    except P2PError as exc:
        return world.note(asker.name, f"the restore was not decided: {exc.message}")
    return world.note(asker.name, f"the restore was decided: cluster {decided.cluster_id}")


async def _order(world: World, asker: SimMachine, snapshot: str) -> None:
    agent = asker.agent
    assert agent is not None, "it was there when this was ordered"
    try:
        look = await agent.recovery.look(lost=lost(world, asker), snapshot=snapshot)
        plan = look.plan
        if plan.genesis is None or plan.forbidden:
            world.note(asker.name, f"no recovery: {'; '.join(plan.forbidden)}")
            if world.healing and any("restore a backup" in why for why in plan.forbidden):
                _restore_somewhere(world, asker.scope)
            return None
        back = (
            f" from the snapshot {plan.genesis.continues.snapshot[:12]}"
            if snapshot and plan.genesis.continues
            else ""
        )
        world.note(asker.name, f"an operator orders a recovery by {world.name(plan.genesis.initiator)}{back}")
        await agent.recovery.approve(plan)
    except P2PError as exc:
        world.note(asker.name, f"the recovery was not decided: {exc.message}")
        if world.healing and "restore" in (exc.hint or ""):
            _restore_somewhere(world, asker.scope)
        return None
    return world.note(asker.name, "the recovery was decided")


def drain(world: World, machine: SimMachine, for_s: float) -> None:
    """``peer drain --for ...`` at the machine itself; nothing if no agent runs there."""
    agent = machine.agent
    if agent is None:
        return world.note(machine.name, "the operator finds no agent here")
    word = drains.Drain(agent.replication.now_ms() + int(for_s * 1000), "the plan says so", machine.name)
    world.drained[machine.peer] = world.engine.now + for_s
    agent.tasks.start(agent.replication.write(drains.key_of(machine.peer), wire.encode(word)))
    return None
