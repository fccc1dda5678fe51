"""How does one simulated world run: its nodes, its faults, its healing, its end?

`run_world` plays a plan with a seed: faults first, then everything heals, then one READY cluster with every
node in it must come about within the stated time, and stay. The checkers look after every event. A
violation carries the seed and the plan's name; the same seed gives the same trace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from p2p_bootstrap.node.backup import Backup
from p2p_network.core.ids import PeerId, short
from p2p_network.ledger.entry import Entry
from p2p_network.token import NetworkToken, mesh_keys
from p2p_roles.bootstrap import Bootstrap
from p2p_simulations.sim import faults
from p2p_simulations.sim.checkers import Checkers
from p2p_simulations.sim.etcd import Etcd, Image
from p2p_simulations.sim.machine import SimMachine
from p2p_simulations.sim.plan import Plan, UpgradeK3s
from p2p_simulations.sim.record import Record, Recorder
from p2p_simulations.sim.trust import knows_revoked
from p2p_simulations.sim.users import Users
from p2p_simulations.sim.verdict import Verdict
from p2p_simulations.sim.violation import Violation
from p2p_simulations.world.engine import Engine
from p2p_simulations.world.net import Network
from p2p_simulations.world.sectors import Script
from p2p_simulations.world.tasks import Future, Tasks

TOKEN = NetworkToken(bytes(range(32)))
MESH_ID = mesh_keys(TOKEN).mesh_id
_STAYS_S = 30.0
_CONVERGES_S = 120.0
_LOOKS_EVERY_S = 0.1
_HOPELESS_S = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a world ended. `violation`: "" if everything held; `virtual_s`: of the whole run."""

    plan: Plan
    seed: int
    violation: str
    events: int
    virtual_s: float
    messages: int
    healed_after_s: float
    exempt: str
    trace_hash: str
    trace: tuple[str, ...]
    alarms: tuple[tuple[str, str], ...]
    bytes: int = 0
    record: Record | None = None


class _Limit(Exception):
    """Nobody wants to know how it goes on."""


class World:
    """One world. Tests make broken variants by overriding `persist`, `make_bootstrap` and `fences`."""

    fences = True

    def __init__(self, plan: Plan, seed: int, *, keep_trace: bool = False, draw: bool = False) -> None:
        self.plan = plan
        self.progress: Callable[[float], None] | None = None
        self.limit_s: float | None = None
        self.recorder = Recorder({node.name: node.region for node in plan.nodes}) if draw else None
        self.engine = Engine(seed, keep_trace=keep_trace)
        self.network = Network(self.engine, plan.weather)
        if self.recorder is not None:
            self.network.on_cut = self.recorder.cut
        self.token = TOKEN
        self.mesh_id = MESH_ID
        self.etcds: dict[str, Etcd] = {}
        self.alarms: list[tuple[str, str]] = []
        self.readdressed: set[str] = set()
        self.lost_ledger: set[str] = set()
        self.reimaged: set[PeerId] = set()
        self.rotations = 0
        self.revoked: dict[PeerId, str] = {}  # with the machine's name
        self.drained: dict[PeerId, float] = {}  # until when on the engine's clock
        self.backups: dict[str, list[tuple[Backup, Image]]] = {}  # by scope, oldest first
        self.departed: set[str] = set()  # nodes that left, or were switched off, for ever
        self.recorded: dict[str, list[Entry]] = {}  # what a node that replays has kept
        self.touched: dict[str, SimMachine] = {}
        self.bad_programs = {
            (name, fault.version)
            for _, fault in plan.faults
            if isinstance(fault, UpgradeK3s)
            for name in fault.bad
        }
        self.healing = False
        self._is_hopeless = False
        self._chaos_left = plan.max_chaos if plan.chaos else 0
        self._names: dict[str, str] = {}
        self.machines: dict[str, SimMachine] = {}
        for node in plan.nodes:
            self.network.place(node.name, node.region, node.nat)
            machine = self.machines[node.name] = SimMachine(self, node)
            self.named(machine)
        self.checkers = Checkers(self)
        self.verdict = Verdict(self)
        self.users = Users(self)
        self._triggers = list(plan.triggers)
        self.identities = len(plan.nodes)
        self.waiting = [self.machines[node.name] for node in plan.nodes if node.joins_later]

    # ------------------------------------------------------------ for the nodes

    def note(self, who: str, what: str) -> None:
        """A line of the trace."""
        self.engine.note(who, what)

    def name(self, peer: str) -> str:
        """A peer's name for people."""
        return self._names.get(peer) or f"...{short(peer)}"

    def named(self, machine: SimMachine) -> None:
        """A machine has an identity (another one, if it was re-imaged)."""
        suffix = f"'{machine.generation}" if machine.generation else ""
        self._names[machine.peer] = f"{machine.name}{suffix}"

    def knows(self, peer: str) -> bool:
        """Whether some machine has, or had, this identity."""
        return peer in self._names

    def machine_of(self, peer: str) -> SimMachine | None:
        """The machine that has this identity now."""
        name = self._names.get(peer, "").partition("'")[0]
        machine = self.machines.get(name)
        return machine if machine is not None and machine.peer == peer else None

    def etcd_of(self, ca_hash: str) -> Etcd | None:
        """The datastore of a cluster: the one that it was reset to last, if it was."""
        stores = [etcd for etcd in self.etcds.values() if etcd.ca_hash == ca_hash]
        return max(stores, key=lambda etcd: etcd.reset, default=None)

    def make_bootstrap(self, **arguments: Any) -> Bootstrap:
        """A node's bootstrap machine."""
        return Bootstrap(**arguments)

    async def persist(self, machine: SimMachine, tasks: Tasks, script: Script) -> None:
        """Make the bootstrap machine's state durable: the rest of its calls, from the first sync on."""
        await machine.keep(tasks, script)

    def refuses(self, machine: SimMachine) -> None:
        """An agent does not start on a damaged file. A person images the machine anew: once all heals."""
        machine.refuses = True
        if self.healing:
            self.engine.after(0.0, lambda: faults.reimage(self, machine, 1.0))

    def joined(self, one: SimMachine, other: SimMachine) -> bool:
        """Whether packets of the VPN get from one to the other: directly, or through the mesh by a relay."""
        ends = ((one, other), (other, one))
        if any(b.peer in self.revoked and knows_revoked(a, b.peer) for a, b in ends):
            return False
        if self.network.linked(one.name, other.name):
            return True
        return one.agent is not None and any(
            a.agent is not None and a.agent.host.leads_to(b) for a, b in ends
        )

    async def chaos(self, machine: SimMachine, where: str) -> None:
        """A dangerous point: perhaps the node crashes right here."""
        chance = self.engine.random
        if self.healing or self._chaos_left <= 0 or chance.random() >= self.plan.chaos:
            return
        self._chaos_left -= 1
        down_s = chance.uniform(0.5, 20.0)
        if chance.random() < 0.7:
            self.note(machine.name, f"POWER CUT ({where})")
            self.engine.after(0.0, lambda: faults.power_cut(self, machine, down_s))
        else:
            self.note(machine.name, f"AGENT KILLED ({where})")
            self.engine.after(0.0, lambda: faults.kill_agent(self, machine, down_s))
        nothing: Future[None] = Future()
        await nothing

    def slot_booted(self, machine: SimMachine, problem: str) -> None:
        """A machine booted, or its boot slots changed. `problem`: "" if something whole boots."""
        if problem:
            raise Violation(f"{machine.name} {problem}")

    def count_message(self, name: str, size_bytes: int) -> None:
        """A node sends something."""
        self.checkers.bounds.message(name, size_bytes)

    # ------------------------------------------------------------ running

    def run(self) -> float:
        """Play the plan to its end. Returns how long convergence took. Raises Violation or a core's own."""
        plan, engine = self.plan, self.engine
        for node in plan.nodes:
            machine = self.machines[node.name]
            if machine not in self.waiting:
                engine.at(node.boots_at_s, lambda machine=machine: self._boot(machine))  # type: ignore[misc]
        for at_s, fault in plan.faults:
            engine.at(at_s, lambda fault=fault: faults.happen(self, fault))  # type: ignore[misc]
        if plan.k3s.snapshots_s:
            self.users.begin()
        self._go(plan.heal_at_s)
        limit = plan.expect.clusters_before_healing
        if limit is not None and (count := self._ready_clusters()) > limit:
            raise Violation(f"{count} clusters were READY before everything healed, not {limit} at most")
        self.checkers.bounds.memory()
        faults.heal(self)
        healed_at = engine.now
        took_s = self._converge(healed_at) if plan.expect.converges else 0.0
        if self.verdict.is_torn_apart():  # so there is nothing that all of them could know
            return took_s
        ledgers = self.checkers.ledgers
        settled = self._go(engine.now + _CONVERGES_S, until=lambda: not ledgers.converged())
        if not settled and (why := ledgers.converged()):  # if nobody is left, nothing happens any more
            raise Violation(f"{why} {_CONVERGES_S:.0f} s after everything settled")
        self.checkers.bounds.memory()
        ledgers.addresses_unique()
        if not (self._is_hopeless or self.verdict.exempt()):  # without a majority no upgrade comes to an end
            self.checkers.clusters.one_k3s()
        self.users.settled()
        ledgers.revoked_are_gone()
        if plan.expect.alarm and not any(plan.expect.alarm in text for _, text in self.alarms):
            raise Violation(f"nobody raised an alarm with {plan.expect.alarm!r}")
        return took_s

    def _converge(self, healed_at: float) -> float:
        """Until every node is a ready member and stays one. Returns after how long they were."""
        deadline = healed_at + self.plan.expect.within_s
        possible_at = healed_at  # what nobody can do anything about stays so
        while self.engine.now < deadline:
            if not self.verdict.exempt():
                possible_at = self.engine.now
            elif self.engine.now >= possible_at + _HOPELESS_S:
                break
            step_s = min(deadline, self.engine.now + 5.0)
            if self._go(step_s, until=lambda: not self.verdict.missing()) and not self._go(
                self.engine.now + _STAYS_S, until=lambda: bool(self.verdict.missing())
            ):
                return self.engine.now - healed_at - _STAYS_S
        if not self.verdict.exempt():
            within = self.plan.expect.within_s
            raise Violation(f"not healed after {within:.0f} virtual seconds: {self.verdict.missing()}")
        self._is_hopeless = True
        return self.engine.now - healed_at

    def _go(self, until_s: float, until: Callable[[], bool] | None = None) -> bool:
        stop = None if until is None else self._now_and_then(until)
        if self.limit_s is None or until_s < self.limit_s:
            return self.engine.run(until_s, stop=stop, after_each=self._after_each)
        if self.engine.run(self.limit_s, stop=stop, after_each=self._after_each):
            return True
        raise _Limit

    def _now_and_then(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        """Looking at all nodes after every event would take longer than all that the nodes do."""
        look_at_s = self.engine.now

        def stop() -> bool:
            nonlocal look_at_s
            if self.engine.now < look_at_s:
                return False
            look_at_s = self.engine.now + _LOOKS_EVERY_S
            return asked()

        return stop

    def _after_each(self) -> None:
        if self.progress is not None and self.engine.events % 4096 == 0:
            self.progress(self.engine.now)
        if self.touched:
            self.checkers.clusters.look(self.touched.values())
            if self.recorder is not None:
                for machine in self.touched.values():
                    self.recorder.looked(self.engine.now, machine)
            self.touched.clear()
        if self._triggers and not self.healing:
            self._pull()
        if self.waiting and self.checkers.votes.is_any_ready:
            self._let_in()

    def _pull(self) -> None:
        for trigger in [*self._triggers]:
            for machine in self.machines.values():
                if machine.agent is not None and machine.agent.bootstrap.state == trigger.state:
                    self._triggers.remove(trigger)
                    fault = faults.aimed(trigger.fault, machine.name)
                    self.engine.after(
                        trigger.after_s,
                        lambda fault=fault: None if self.healing else faults.happen(self, fault),  # type: ignore[misc]
                    )
                    break

    def _let_in(self) -> None:
        """Machines that were to come to a cluster that stands."""
        for machine in [m for m in self.waiting if self.checkers.votes.ready(m.scope)]:
            self.waiting.remove(machine)
            self.engine.after(machine.plan.boots_at_s, lambda machine=machine: self._boot(machine))  # type: ignore[misc]

    def mark(self, what: str, text: str) -> None:
        """Something that the picture of this world must show."""
        if self.recorder is not None:
            self.recorder.mark(self.engine.now, what, text)

    def close(self) -> None:
        """Drop everything that still goes on."""
        for machine in self.machines.values():
            machine.crash_agent()
            machine.k3s.power_off()
            if machine.slots.upgrading is not None:
                machine.slots.upgrading.end()

    def _boot(self, machine: SimMachine) -> None:
        self.note(machine.name, "is switched on")
        machine.boot()

    # ------------------------------------------------------------ who is gone

    def is_out(self, machine: SimMachine) -> bool:
        """It left, is gone for ever, or was put out."""
        return machine.name in self.departed or machine.peer in self.revoked

    def is_gone(self, peer: str) -> bool:
        """Whether this identity was put out, or its machine left or is gone for ever."""
        return peer in self.revoked or self._names.get(peer, "").partition("'")[0] in self.departed

    def _ready_clusters(self) -> int:
        found = {m.scope for m in self.machines.values() if self.checkers.votes.ready(m.scope)}
        return len(found)


def run_world(
    plan: Plan,
    seed: int,
    *,
    keep_trace: bool = False,
    draw: bool = False,
    world_type: type[World] = World,
    progress: Callable[[float], None] | None = None,
    limit_s: float | None = None,
) -> Outcome:
    """Play one plan; never raises for what goes wrong inside: that is the outcome's `violation`.

    Args:
        keep_trace: keep a line per transition, in `trace`.
        draw: keep what reports are made of, in `record`. Changes nothing of what happens.
        progress: told the virtual time now and then.
        limit_s: end there, as if all were well: for whoever looks for a violation before that.
    """
    world = world_type(plan, seed, keep_trace=keep_trace, draw=draw)
    world.progress, world.limit_s = progress, limit_s
    violation, took_s = "", 0.0
    try:
        took_s = world.run()
    except _Limit:
        world.note("(world)", "is not played any further")
    except Exception as exc:  # of a checker, or of a core: whatever it is, the seed must be told
        violation = str(exc) if isinstance(exc, Violation) else f"{type(exc).__name__}: {exc}"
        world.note("(world)", f"VIOLATION: {violation}")
        world.mark("violation", violation)
    finally:
        record = world.recorder.end(world.engine.now, world.machines.values()) if world.recorder else None
        world.close()
    engine = world.engine
    return Outcome(
        plan=plan,
        seed=seed,
        violation=violation,
        events=engine.events,
        virtual_s=engine.now,
        messages=world.network.sent,
        healed_after_s=took_s,
        exempt=world.verdict.exempt(),
        trace_hash=engine.trace_hash,
        trace=tuple(engine.trace),
        alarms=tuple(world.alarms),
        bytes=world.network.sent_bytes,
        record=record,
    )
