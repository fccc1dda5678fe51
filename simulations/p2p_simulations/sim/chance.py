"""Which world does a seed stand for?

`random_plan(seed)`: three to seven nodes with random rules, a random mix of the kinds of fault ("swarm
testing": each world has some kinds and lacks others, so that rare combinations meet), a random timeline.
The plan keeps to what the protocol promises: never more identities than N covers, and most nodes with
clocks that are wrong by minutes at most.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Network
from typing import Final, Literal

from p2p_network.addressing import DEFAULT_NETWORK
from p2p_network.records import Wish
from p2p_roles.genesis.messages import covered
from p2p_roles.placement import Placement
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
    K3sPlan,
    KillAgent,
    LoseLedger,
    MakeBackup,
    NodePlan,
    OneWay,
    Partition,
    Plan,
    PowerCut,
    Recover,
    Reimage,
    RestoreBackup,
    Revoke,
    Rotate,
    Slow,
    Trigger,
    Upgrade,
    UpgradeK3s,
)
from p2p_simulations.world.net import DIALLED, Nat, PairWeather, Weather

SMALL_NETWORK: Final = IPv4Network("10.144.0.0/28")
_FOUNDS_NONE: Final = 64  # nodes before a genesis, for a machine that comes later
_STATES: Final = ("ELECT", "INIT", "WAIT", "JOIN", "MEMBER", "FENCED")


def random_plan(seed: int, *, dice: int = 8) -> Plan:
    """The plan of a seed: the same on every machine. `dice`: with fewer, as it was before there were more."""
    die = _Dice(seed)
    plan = die.plan()
    throws = (die.more, die.later, die.operated, die.went_back, die.drained, die.spared, die.lingers)
    for throw in throws[: dice - 1]:
        plan = throw(plan)
    return plan


class _Dice:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(f"plan {seed}")
        self.names: tuple[str, ...] = ()

    def plan(self) -> Plan:
        chance = self.chance
        count = chance.choice((3, 3, 4, 5, 5, 6, 7))
        self.names = tuple(f"n{number}" for number in range(1, count + 1))
        minimum = chance.choice([n for n in range(1, count + 1) if covered(n) >= count])
        per_region = count >= 6 and chance.random() < 0.2
        nodes = self._nodes(per_region)
        if per_region:  # three or four nodes each; N = 3 covers three, so all declare the smaller number
            sizes = [sum(node.region == region for node in nodes) for region in ("r1", "r2")]
            per_region = covered(min(sizes)) >= max(sizes)
            minimum = min(sizes) if per_region else minimum
        heal_at_s = chance.choice((30.0, 60.0, 120.0, 240.0, 400.0))
        lossy = self._has(0.4)
        return Plan(
            name="chance",
            nodes=nodes,
            servers=chance.choice((1, 3, 3, 3, 2)),
            minimum_nodes=minimum,
            per_region=per_region,
            placement=self._placement() if not per_region else Placement(),
            network=SMALL_NETWORK if self._has(0.1) else DEFAULT_NETWORK,
            weather=self._weather() if lossy else Weather(),
            k3s=K3sPlan(
                start_s=chance.choice(((1.0, 4.0), (3.0, 15.0), (10.0, 60.0), (30.0, 110.0))),
                failure=chance.choice((0.0, 0.0, 0.1, 0.4)),
            ),
            faults=self._timeline(heal_at_s, covered(minimum) > count and not per_region),
            triggers=self._triggers(),
            chaos=chance.choice((0.0, 0.0, 0.005, 0.02, 0.06)),
            max_chaos=chance.choice((3, 10, 20)),
            heal_at_s=heal_at_s,
        )

    def _placement(self) -> Placement:
        """Mostly none said; a chance of its own, so that the rest of a seed's world stays as it is."""
        chance = random.Random(f"placement {self.seed}")
        home = chance.choice(("", "", "r1"))
        return chance.choice((Placement(), Placement(), Placement("spread", home), Placement("pack", home)))

    def _has(self, probability: float) -> bool:
        return self.chance.random() < probability

    def _nodes(self, per_region: bool) -> tuple[NodePlan, ...]:
        chance = self.chance
        regions = 2 if per_region else chance.choice((1, 2, 3))
        forced = self._has(0.25)
        clocks = self._has(0.3)
        broken = self._has(0.15)
        stale = self._has(0.08) and not forced
        late = self._has(0.3)
        slow = self._has(0.2)
        nodes = []
        for index, name in enumerate(self.names):
            wish: Wish = "auto"
            if forced and index >= 2 * regions:  # so that somebody may be a server everywhere
                wish = chance.choice(("auto", "server", "agent"))
            nodes.append(
                NodePlan(
                    name=name,
                    region=f"r{index % regions + 1}",
                    zone=chance.choice(("", "a", "b")),
                    wish=wish,
                    clock_offset_s=chance.uniform(-280, 280) if clocks else 0.0,
                    slowness=chance.choice((1.0, 10.0, 60.0)) if slow else 1.0,
                    k3s_broken=broken and self._has(0.4),
                    stale_k3s=stale and index == 0,
                    boots_at_s=chance.uniform(0, 60) if late else chance.uniform(0, 2),
                )
            )
        return tuple(nodes)

    def _weather(self) -> Weather:
        chance = self.chance
        return Weather(
            base_delay_s=chance.choice((0.001, 0.01)),
            region_delay_s=chance.choice((0.02, 0.1, 0.3)),
            tail_delay_s=chance.choice((0.002, 0.02, 0.2)),
            loss=chance.choice((0.0, 0.01, 0.05, 0.2, 0.4)),
            duplication=chance.choice((0.0, 0.02, 0.2)),
        )

    # ------------------------------------------------------------ faults

    def _timeline(self, heal_at_s: float, spare: bool) -> tuple[tuple[float, Fault], ...]:
        chance = self.chance
        kinds: list[Callable[[], Fault]] = [
            kind
            for kind in (
                self._power_cut,
                self._kill_agent,
                self._partition,
                self._one_way,
                self._flap,
                self._change_weather,
                self._jump_clock,
                self._freeze,
                self._lose_ledger,
                self._break_k3s,
                self._lie,
            )
            if self._has(0.35)
        ]
        faults: list[tuple[float, Fault]] = []
        if kinds:
            for _ in range(chance.choice((1, 3, 6, 12, 20))):
                # most of what matters happens in the first minute
                at_s = min(heal_at_s, chance.choice((chance.uniform(0, 40), chance.uniform(0, heal_at_s))))
                faults.append((at_s, chance.choice(kinds)()))
        if spare and self._has(0.3):
            faults.append((chance.uniform(0, heal_at_s), Reimage(self._one(), chance.uniform(1, 30))))
        return tuple(sorted(faults, key=lambda planned: planned[0]))

    def _triggers(self) -> tuple[Trigger, ...]:
        chance = self.chance
        if not self._has(0.5):
            return ()
        found = []
        for _ in range(chance.choice((1, 2, 4))):
            fault = chance.choice(
                (
                    PowerCut((), self._down_s()),
                    KillAgent((), self._down_s()),
                    Partition((), chance.uniform(2, 60)),
                    PowerCut(self.names, chance.uniform(0.5, 5)),
                    self._partition(),
                )
            )
            found.append(Trigger(chance.choice(_STATES), chance.choice((0.0, chance.uniform(0, 30))), fault))
        return tuple(found)

    def _one(self) -> str:
        return self.chance.choice(self.names)

    def _some(self) -> tuple[str, ...]:
        return tuple(sorted(self.chance.sample(self.names, self.chance.randint(1, len(self.names)))))

    def _down_s(self) -> float | None:
        return self.chance.choice((self.chance.uniform(0.1, 5), self.chance.uniform(1, 60), None))

    def _power_cut(self) -> Fault:
        return PowerCut(self._some() if self._has(0.3) else (self._one(),), self._down_s())

    def _kill_agent(self) -> Fault:
        return KillAgent((self._one(),), self._down_s())

    def _partition(self) -> Partition:
        shuffled = self.chance.sample(self.names, len(self.names))
        cut = self.chance.randint(1, len(shuffled) - 1)
        return Partition((tuple(shuffled[:cut]),), self.chance.uniform(1, 90))

    def _one_way(self) -> Fault:
        return OneWay(self._some(), self._some(), self.chance.uniform(1, 60))

    def _flap(self) -> Fault:
        one, other = self.chance.sample(self.names, 2)
        return Flap(one, other, self.chance.choice((0.5, 3.0, 10.0)), self.chance.uniform(5, 60))

    def _change_weather(self) -> Fault:
        return ChangeWeather(self._weather())

    def _jump_clock(self) -> Fault:
        return JumpClock(self._one(), self.chance.uniform(-240, 240))

    def _freeze(self) -> Fault:
        return Freeze(self._one(), self.chance.choice((1.0, 4.0, 8.0, 30.0)))

    def _lose_ledger(self) -> Fault:
        return LoseLedger(self._one(), self.chance.uniform(0.5, 10))

    def _break_k3s(self) -> Fault:
        return BreakK3s(self._one(), self.chance.choice((None, self.chance.uniform(5, 120))))

    def _lie(self) -> Fault:
        return Byzantine(self._one(), self.chance.choice(("forge", "replay", "equivocate", "backdate")))

    # ------------------------------------------------------------ of a second die

    def _cut(self) -> Fault:
        pairs = [(a, b) for a in self.names for b in self.names if a < b]
        chosen = self.chance.sample(pairs, self.chance.randint(1, max(1, len(pairs) // 2)))
        return Cut(tuple(sorted(chosen)), self.chance.uniform(1, 90))

    def _slow(self) -> Fault:
        what: Literal["disk", "cpu"] = self.chance.choice(("disk", "cpu"))
        return Slow(self._one(), what, self.chance.choice((10.0, 100.0, 600.0)), self.chance.uniform(5, 90))

    def _full_disk(self) -> Fault:
        return FullDisk(self._one(), self.chance.choice((None, self.chance.uniform(1, 60))))

    def _drift(self) -> Fault:
        return DriftClock(self._one(), self.chance.uniform(-0.05, 0.05))

    def _upgrade(self) -> Fault:
        return Upgrade(self._some(), self.chance.random() < 0.7, self.chance.choice((0.0, 5.0, 40.0)))

    def _depart(self) -> Fault:
        return Depart(self._one(), self.chance.random() < 0.6)

    def more(self, plan: Plan) -> Plan:
        """Later kinds of fault have a die of their own: the worlds of kept seeds stay what they were."""
        self.chance = chance = random.Random(f"more {self.seed}")
        if chance.random() < 0.5:
            return plan
        kinds = [
            kind
            for kind in (self._cut, self._slow, self._full_disk, self._drift, self._upgrade, self._depart)
            if self._has(0.4)
        ]
        faults = list(plan.faults)
        for _ in range(chance.choice((1, 2, 5)) if kinds else 0):
            faults.append((chance.uniform(0, plan.heal_at_s), chance.choice(kinds)()))
        spare = covered(plan.minimum_nodes) - len(plan.nodes)
        spare -= sum(isinstance(fault, Reimage) for _, fault in faults)
        if spare > 0 and not plan.per_region and self._has(0.1):
            faults.append((chance.uniform(0, plan.heal_at_s), CorruptDurable(self._one(), 2.0)))
        if self._has(0.15) and {"r1", "r2"} <= {node.region for node in plan.nodes}:
            links = (
                PairWeather(
                    "r1",
                    "r2",
                    chance.uniform(0.05, 0.4),
                    chance.uniform(0.01, 0.3),
                    chance.choice((0.0, 0.1)),
                ),
            )
            plan = dataclasses.replace(plan, weather=dataclasses.replace(plan.weather, links=links))
        if self._has(0.15):  # one region behind a NAT: everybody has still a connection with everybody
            plan = dataclasses.replace(plan, nodes=_behind(plan.nodes, {"r1": "closed"}))
        return dataclasses.replace(plan, faults=tuple(sorted(faults, key=lambda planned: planned[0])))

    # ------------------------------------------------------------ of a third die

    def _corrupt_ledger(self) -> Fault:
        return CorruptLedger(self._one(), self.chance.uniform(0.5, 10))

    def later(self, plan: Plan) -> Plan:
        """Routers that let nobody in, members that lead around them, damaged rows and votes, machines that
        are replaced, and that come and go for ever."""
        self.chance = chance = random.Random(f"later {self.seed}")
        plan = dataclasses.replace(plan, relays=self._has(0.6))
        if self._has(0.3):
            plan = self._behind_nats(plan)
        faults = list(plan.faults)
        if self._has(0.25):
            faults += [(chance.uniform(0, plan.heal_at_s), self._corrupt_ledger()) for _ in range(2)]
        spare = covered(plan.minimum_nodes) - len(plan.nodes)
        spare -= sum(isinstance(fault, Reimage | CorruptDurable) for _, fault in faults)
        if spare > 0 and not plan.per_region and self._has(0.25):
            faults.append(
                (chance.uniform(0, plan.heal_at_s), CorruptDurable(self._one(), chance.uniform(1, 20)))
            )
        plan = dataclasses.replace(plan, replaces=self._has(0.3))
        if self._has(0.3):
            plan, goes = self._machines_come_and_go(plan)
            faults += goes
        return dataclasses.replace(plan, faults=tuple(sorted(faults, key=lambda planned: planned[0])))

    def _behind_nats(self, plan: Plan) -> Plan:
        """Each region behind a router of some kind; with relays at least one is in the open, without at most
        one is not: so everybody has a way to everybody."""
        regions = sorted({node.region for node in plan.nodes})
        kinds: tuple[Nat, ...] = ("open", "full-cone", "port-restricted", "symmetric", "closed")
        nats = {region: self.chance.choice(kinds) for region in regions}
        hidden = [region for region in regions if nats[region] not in DIALLED]
        for region in hidden[(len(regions) - 1 if plan.relays else 1) :]:
            nats[region] = self.chance.choice(DIALLED)
        return dataclasses.replace(plan, nodes=_behind(plan.nodes, nats))

    def _machines_come_and_go(self, plan: Plan) -> tuple[Plan, list[tuple[float, Fault]]]:
        """Nodes that join a cluster that stands, some in place of others that go for ever.

        They declare that they found none (N must cover all that might): else those that know of the cluster
        could all be away when they come, and they would be enough for another one.
        """
        chance = self.chance
        regions = sorted({node.region for node in plan.nodes})
        nat = {node.region: node.nat for node in plan.nodes}
        nodes = list(plan.nodes)
        faults: list[tuple[float, Fault]] = []
        for number in range(chance.choice((1, 1, 2, 3))):
            region = chance.choice(regions)
            name = f"n{len(plan.nodes) + number + 1}"
            comes_s = chance.choice((chance.uniform(0, 20), chance.uniform(0, plan.heal_at_s)))
            nodes.append(
                NodePlan(
                    name,
                    region,
                    minimum_nodes=_FOUNDS_NONE,
                    boots_at_s=comes_s,
                    joins_later=True,
                    nat=nat[region],
                )
            )
            if chance.random() < 0.5:
                at_s = chance.uniform(plan.heal_at_s / 3, plan.heal_at_s)
                goes = chance.choice((*self.names, name))
                faults.append((at_s, Depart(goes, chance.random() < 0.5)))
        heal_at_s = plan.heal_at_s + chance.choice((0.0, 120.0, 300.0))
        return dataclasses.replace(plan, nodes=tuple(nodes), heal_at_s=heal_at_s), faults

    # ------------------------------------------------------------ of a fourth die

    def _recover(self) -> Fault:
        return Recover(self._one(), self.chance.choice(("", "latest")))

    def _rotate(self) -> Fault:
        return Rotate(self._one())

    def _upgrade_k3s(self) -> Fault:
        chance = self.chance
        bad = tuple(sorted(chance.sample(self.names, chance.choice((0, 0, 1)))))
        return UpgradeK3s(self._one(), chance.choice(("v1.36.1+k3s1", "v1.36.2+k3s1")), bad)

    def operated(self, plan: Plan) -> Plan:
        """Snapshots, and operators who recover, go back, rotate, upgrade and put out; several at once, who
        know nothing of each other. One node at most is put out: who has the token is no enemy."""
        self.chance = chance = random.Random(f"operated {self.seed}")
        if not self._has(0.4):
            return plan
        k3s = dataclasses.replace(plan.k3s, snapshots_s=chance.choice((0.0, 15.0, 40.0)))
        heal_at_s = plan.heal_at_s + chance.choice((0.0, 60.0, 180.0))
        faults = list(plan.faults)
        kinds = [
            kind for kind in (self._recover, self._recover, self._rotate, self._upgrade_k3s) if self._has(0.5)
        ]
        for _ in range(chance.choice((1, 2, 4)) if kinds else 0):
            at_s, kind = chance.uniform(heal_at_s / 4, heal_at_s), chance.choice(kinds)
            faults.append((at_s, kind()))
            if self._has(0.4):  # somebody else has the same idea, or another one
                faults.append((at_s + chance.choice((0.0, chance.uniform(0, 10))), chance.choice(kinds)()))
        if any(
            isinstance(fault, UpgradeK3s) for _, fault in faults
        ):  # one node after the other starts k3s anew
            each_s = 30.0 + 2 * plan.k3s.start_s[1]
            expect = dataclasses.replace(plan.expect, within_s=900.0 + len(plan.nodes) * each_s)
            plan = dataclasses.replace(plan, expect=expect)
        if self._has(0.25):
            faults.append((chance.uniform(heal_at_s / 4, heal_at_s), Revoke(self._one())))
        return dataclasses.replace(
            plan,
            k3s=k3s,
            recovers=self._has(0.2),
            heal_at_s=heal_at_s,
            faults=tuple(sorted(faults, key=lambda planned: planned[0])),
        )

    # ------------------------------------------------------------ of a fifth die

    def went_back(self, plan: Plan) -> Plan:
        """Where there are snapshots, some of their copies are damaged before somebody goes back to one, and a
        backup is made, and restored; over what is there, too."""
        self.chance = chance = random.Random(f"went back {self.seed}")
        faults = list(plan.faults)
        if plan.k3s.snapshots_s and self._has(0.5):
            whom = chance.sample(self.names, chance.randint(1, max(1, len(self.names) // 2)))
            at_s = chance.uniform(plan.heal_at_s / 4, plan.heal_at_s)
            faults += [(at_s, CorruptCopy(name)) for name in sorted(whom)]
            if self._has(0.5):
                faults.append((at_s + chance.uniform(0, 20), Recover(self._one(), "latest")))
        if plan.k3s.snapshots_s and self._has(0.5):
            at_s = chance.uniform(plan.heal_at_s / 4, plan.heal_at_s)
            faults += [(at_s, MakeBackup(name)) for name in self.names]
            faults.append((chance.uniform(at_s, plan.heal_at_s), RestoreBackup(self._one())))
            if self._has(0.2):
                faults.append((chance.uniform(at_s, plan.heal_at_s), RestoreBackup(self._one())))
        return dataclasses.replace(plan, faults=tuple(sorted(faults, key=lambda planned: planned[0])))

    # ------------------------------------------------------------ of a sixth die

    def drained(self, plan: Plan) -> Plan:
        """Operators announce that machines will be away, and switch most of them off, some for too long."""
        self.chance = chance = random.Random(f"drained {self.seed}")
        if not self._has(0.2):
            return plan
        faults = list(plan.faults)
        for _ in range(chance.choice((1, 1, 2))):
            name, at_s = self._one(), chance.uniform(plan.heal_at_s / 4, plan.heal_at_s)
            for_s = chance.choice((20.0, 60.0, 150.0))
            faults.append((at_s, Drain(name, for_s)))
            if self._has(0.8):
                faults.append(
                    (at_s + chance.uniform(0, 5), PowerCut((name,), for_s * chance.uniform(0.2, 1.4)))
                )
        return dataclasses.replace(plan, faults=tuple(sorted(faults, key=lambda planned: planned[0])))

    # ------------------------------------------------------------ of a seventh die

    def spared(self, plan: Plan) -> Plan:
        """In most worlds as many stay as a genesis needs: of a world where too few are left nothing can be
        demanded but safety."""
        self.chance = random.Random(f"spared {self.seed}")
        if self._has(0.25):
            return plan
        region = {node.name: node.region if plan.per_region else "" for node in plan.nodes}
        first = Counter(region[node.name] for node in plan.nodes if not node.joins_later)
        later = {node.name for node in plan.nodes if node.joins_later}
        gone: set[str] = set()
        faults = []
        for at_s, fault in plan.faults:
            if isinstance(fault, Depart | Revoke) and fault.node not in gone | later:
                if first[region[fault.node]] <= plan.minimum_nodes:
                    continue
                first[region[fault.node]] -= 1
                gone.add(fault.node)
            faults.append((at_s, fault))
        return dataclasses.replace(plan, faults=tuple(faults))

    # ------------------------------------------------------------ of an eighth die

    def lingers(self, plan: Plan) -> Plan:
        """In some worlds k3s's pods take long to end: what is asked again meanwhile waits in line."""
        self.chance = random.Random(f"lingers {self.seed}")
        if not self._has(0.1):
            return plan
        lingers_s = self.chance.choice(((2.0, 20.0), (10.0, 90.0)))
        expect = dataclasses.replace(plan.expect, within_s=plan.expect.within_s + 8 * lingers_s[1])
        return dataclasses.replace(
            plan, k3s=dataclasses.replace(plan.k3s, lingers_s=lingers_s), expect=expect
        )


def _behind(nodes: Iterable[NodePlan], nats: Mapping[str, Nat]) -> tuple[NodePlan, ...]:
    """The nodes, each behind what its region stands behind."""
    return tuple(dataclasses.replace(node, nat=nats.get(node.region, "open")) for node in nodes)
