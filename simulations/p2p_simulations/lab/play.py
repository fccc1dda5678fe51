"""How is a scenario of the simulator played with real processes, and how does it end?

The plan's timeline in real seconds: what the simulator does to a model is done here to agents, their
network and their power. Then everything heals, and within the expected time all must be ready in one
cluster. The end has the form of a simulated one (`sim.ending`), so the two can be laid side by side.
"""

from __future__ import annotations

import contextlib
import heapq
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterable
from itertools import count, permutations
from pathlib import Path
from typing import Final, assert_never

from p2p_bootstrap.api.service import StatusDoc
from p2p_network.core.errors import TimedOut
from p2p_simulations.lab.carrier import Carrier
from p2p_simulations.lab.commands import LabError
from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import kairos_p2p
from p2p_simulations.lab.outfit import DISKS
from p2p_simulations.lab.scenario import kind_of
from p2p_simulations.lab.weather import Pair, weather_script
from p2p_simulations.sim import plan as faults
from p2p_simulations.sim.ending import Ending, NodeEnding
from p2p_simulations.sim.faults import aimed
from p2p_simulations.sim.plan import Fault, Plan
from p2p_simulations.sim.writing import describe
from p2p_simulations.world.net import CALM, groups_cut

POLL_S: Final = 0.2
ORDER_TIMEOUT_S: Final = 30.0


class Player:
    """Plays one plan in a lab that is not up yet.

    Args:
        say: told what happens, for people.
        timeout_s: real seconds after the healing, at most; the plan may want less.
        seed: of what is left to chance: how long a link flaps.
    """

    def __init__(
        self, lab: Lab, plan: Plan, say: Callable[[str], None], timeout_s: float, seed: int = 1
    ) -> None:
        self._lab, self._plan, self._say = lab, plan, say
        self._timeout_s = min(timeout_s, plan.expect.within_s)
        self._seed, self._random = seed, random.Random(seed)
        self._names = tuple(node.name for node in plan.nodes)
        self._began = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._triggers = list(plan.triggers)
        self._cuts: dict[str, frozenset[Pair]] = {}
        self._weather = plan.weather
        self._carrier: Carrier | None = None
        self._off: set[str] = set()  # agents that were stopped, or that were never started yet
        self._gone: set[str] = set()
        self._reimaged: set[str] = set()
        self._frozen: set[str] = set()
        self._damaged: set[str] = set()
        self._unvoted: set[str] = set()  # their votes are to be damaged, once there are some
        self._ready_at: float | None = None
        self._waiting = {node.name: node.boots_at_s for node in plan.nodes if node.joins_later}
        self._first: dict[str, tuple[str, str]] = {}  # peer id and address when first seen
        self._healing = False

    def play(self) -> Ending:
        """From power-on to the end. Raises TimedOut, LabError if it does not end as the plan expects."""
        self._lab.up(agents=False)
        if len(self._lab.topology.regions) == 1:
            return self._play()
        with Carrier(self._lab, self._seed) as self._carrier:
            return self._play()

    def _play(self) -> Ending:
        self._apply()
        self._began = time.monotonic()
        for node in self._plan.nodes:
            self._off.add(node.name)
            if node.name in self._waiting:
                continue
            self._at(node.boots_at_s, lambda name=node.name: self._start(name))  # type: ignore[misc]
        for at_s, fault in self._plan.faults:
            self._at(at_s, lambda fault=fault: self._happen(fault))  # type: ignore[misc]
        heal_at_s = self._plan.heal_at_s
        while (now := self._now()) < heal_at_s or (self._unvoted and now < heal_at_s + self._timeout_s):
            self._do_what_is_due()
            self._look()
            self._let_in()
            time.sleep(min(POLL_S, max(POLL_S / 10, heal_at_s - now)))
        limit = self._plan.expect.clusters_before_healing
        if limit is not None and (seen := len(self._clusters())) > limit:
            raise LabError(f"{seen} clusters were ready before everything healed, not {limit} at most")
        self._heal()
        if self._plan.expect.converges:
            self._converge()
        if (alarm := self._plan.expect.alarm) and not self._alarmed(alarm):
            raise LabError(f"nobody raised an alarm with {alarm!r}", hint=f"logs: {self._lab.folder}/nodes")
        return self.ending()

    def ending(self) -> Ending:
        """How it stands now."""
        nodes, clusters = {}, set()
        for name in self._left():
            said = self._lab.node(name).observe()
            if said is None:
                nodes[name] = NodeEnding("", False, name not in self._reimaged, False)
                continue
            peer, ipv4 = _who(said)
            before = self._first.get(name, (peer, ipv4))
            nodes[name] = NodeEnding(
                said["role"]["role"] or "", said["role"]["ready"], peer == before[0], (peer, ipv4) == before
            )
            clusters |= {said["role"]["cluster_id"]} - {""}
        return Ending(nodes, len(clusters))

    # ------------------------------------------------------------ time

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _at(self, at_s: float, job: Callable[[], None]) -> None:
        heapq.heappush(self._due, (at_s, next(self._order), job))

    def _after(self, delay_s: float | None, job: Callable[[], None]) -> None:
        if delay_s is not None:
            self._at(self._now() + delay_s, job)

    def _do_what_is_due(self) -> None:
        while self._due and self._due[0][0] <= self._now() and not self._healing:
            heapq.heappop(self._due)[2]()

    def _look(self) -> None:
        """What nodes say while it goes on: who they are, and whether a trigger is pulled."""
        for name in self._left():
            if name in self._first and not self._triggers:
                continue
            said = self._lab.node(name).observe(timeout_s=0.5)
            if said is None:
                continue
            peer, ipv4 = _who(said)
            if peer and ipv4:
                self._first.setdefault(name, (peer, ipv4))
            for trigger in [t for t in self._triggers if t.state == said["role"]["state"]]:
                self._triggers.remove(trigger)
                fault = aimed(trigger.fault, name)
                self._after(trigger.after_s, lambda fault=fault: self._happen(fault))  # type: ignore[misc]

    def _let_in(self) -> None:
        """Nodes that were to come to a cluster that stands."""
        if not self._waiting:
            return
        if self._ready_at is None:
            seen = (self._lab.node(name).observe(timeout_s=0.5) for name in self._left())
            if any(said is not None and said["role"]["ready"] for said in seen):
                self._ready_at = self._now()
            return
        for name in [n for n, after_s in self._waiting.items() if self._now() >= self._ready_at + after_s]:
            del self._waiting[name]
            self._start(name)

    # ------------------------------------------------------------ faults

    def _happen(self, fault: Fault) -> None:
        self._say(f"{self._now():6.1f} s  {describe(fault)}")
        match fault:
            case faults.PowerCut(nodes, down_s):
                for name in nodes:
                    self._cut_power(name, down_s)
            case faults.KillAgent(nodes, down_s):
                for name in nodes:
                    self._kill_agent(name, down_s)
            case faults.Partition(groups, for_s):
                named = {name for group in groups for name in group}
                rest = tuple(name for name in self._names if name not in named)
                self._cut(groups_cut((*groups, rest)), for_s)
            case faults.OneWay(sources, targets, for_s):
                self._cut({(a, b) for a in sources for b in targets if a != b}, for_s)
            case faults.Cut(pairs, for_s):
                self._cut({way for a, b in pairs for way in ((a, b), (b, a))}, for_s)
            case faults.Flap():
                self._flap(fault, self._now() + fault.for_s)
            case faults.ChangeWeather(weather):
                self._weather = weather
                self._apply()
            case faults.Freeze(node, for_s):
                self._freeze(node, for_s)
            case faults.LoseLedger(node, down_s):
                self._cut_power(node, down_s)
                for file in self._disk(node, "/var/lib/kairos-p2p").glob("**/store.sqlite*"):
                    file.unlink()
            case faults.CorruptLedger(node, down_s):
                self._cut_power(node, down_s)
                self._corrupt_rows(node)
            case faults.CorruptDurable(node, down_s):
                self._corrupt_votes(node, down_s)
            case faults.Reimage(node, down_s):
                self._reimage(node, down_s)
            case faults.Depart(node, said):
                self._depart(node, said)
            case faults.Rotate(node):
                self._order_at([node], "token", "rotate", "--yes")
            case faults.Revoke(node):
                others = [name for name in self._left() if name != node and name not in self._off]
                self._gone.add(node)
                self._order_at(others, "peer", "revoke", node, "--yes")
            case faults.Drain(node, for_s):
                self._order_at([node], "peer", "drain", "--for", f"{for_s:g}s", "--force")
            case (
                faults.JumpClock()
                | faults.DriftClock()
                | faults.Slow()
                | faults.FullDisk()
                | faults.BreakK3s()
                | faults.Byzantine()
                | faults.Upgrade()
                | faults.UpgradeK3s()
                | faults.Recover()
                | faults.CorruptCopy()
                | faults.MakeBackup()
                | faults.RestoreBackup()
            ):
                raise AssertionError(f"{kind_of(fault)} was refused before anything was started")
            case _:
                assert_never(fault)

    def _cut_power(self, name: str, down_s: float | None) -> None:
        if self._lab.node(name).find_pid() is None:
            return
        self._lab.kill(name, "node")
        self._frozen.discard(name)
        self._after(down_s, lambda: self._boot(name))

    def _boot(self, name: str) -> None:
        if name not in self._gone and self._lab.node(name).find_pid() is None:
            self._lab.boot(name)

    def _start(self, name: str) -> None:
        self._off.discard(name)
        if self._lab.node(name).find_pid() is not None:
            self._lab.start_agent(name)

    def _kill_agent(self, name: str, down_s: float | None) -> None:
        node = self._lab.node(name)
        if node.find_pid() is None or not node.agent_state()["pid"]:
            return
        node.stop_agent(signal.SIGKILL)
        self._off.add(name)
        self._after(down_s, lambda: self._start(name))

    def _freeze(self, name: str, for_s: float) -> None:
        node = self._lab.node(name)
        if node.find_pid() is None or not node.agent_state()["pid"]:
            return
        node.freeze()
        self._frozen.add(name)
        self._after(for_s, lambda: self._thaw(name))

    def _thaw(self, name: str) -> None:
        if name in self._frozen and self._lab.node(name).find_pid() is not None:
            self._lab.node(name).thaw()
        self._frozen.discard(name)

    def _reimage(self, name: str, down_s: float) -> None:
        self._cut_power(name, down_s)
        for path in DISKS:
            if path != "/oem":  # where an installer puts the cloud-config
                for item in self._disk(name, path).iterdir():
                    shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        self._reimaged.add(name)
        self._first.setdefault(name, ("", ""))  # never seen before: whoever comes back is another

    def _corrupt_rows(self, name: str) -> None:
        """Some rows of the ledger read as something else: the agent leaves them out and says so."""
        for file in self._disk(name, "/var/lib/kairos-p2p").glob("**/store.sqlite"):
            with contextlib.closing(sqlite3.connect(file)) as database, database:
                rows = database.execute("SELECT id, raw FROM entry ORDER BY id").fetchall()
                for row, raw in self._random.sample(rows, min(len(rows), 3)):
                    at = self._random.randrange(len(raw))
                    bad = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
                    database.execute("UPDATE entry SET raw = ? WHERE id = ?", (bad, row))

    def _corrupt_votes(self, name: str, down_s: float) -> None:
        """A byte of what it must never forget is another: the agent refuses, until it is imaged anew.

        Agents of a lab vote later than those of the simulator: until it has voted, the fault waits, and with
        it the healing.
        """
        files = list(self._disk(name, "/var/lib/kairos-p2p").glob("**/durable/bootstrap*"))
        if not files:
            if name not in self._unvoted:
                self._say(f"          {name} has not voted yet: waiting for its votes")
            self._unvoted.add(name)
            self._after(POLL_S, lambda: self._corrupt_votes(name, down_s))
            return
        self._unvoted.discard(name)
        self._cut_power(name, down_s)
        for file in files:
            raw = file.read_bytes()
            at = self._random.randrange(len(raw))
            file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            self._damaged.add(name)
            self._say(f"          {name}: {file.name} is damaged")

    def _depart(self, name: str, said: bool) -> None:
        self._gone.add(name)
        if said:
            self._order_at([name], "leave", "-y")
        if self._lab.node(name).find_pid() is not None:
            self._lab.kill(name, "node")

    def _order_at(self, names: Iterable[str], *words: str) -> None:
        """What a person types on the first of these nodes that has power; a refusal is said."""
        for name in names:
            node = self._lab.node(name)
            if node.find_pid() is None:
                continue
            done = node.exec([*kairos_p2p(), *words], ORDER_TIMEOUT_S)
            if done.returncode != 0:
                self._say(f"          {name} refuses {' '.join(words)}: {done.stderr.strip()}")
            return

    def _disk(self, name: str, path: str) -> Path:
        return self._lab.node(name).folder / "disk" / path.strip("/").replace("/", "-")

    # ------------------------------------------------------------ network

    def _cut(self, pairs: Iterable[Pair], for_s: float | None) -> str:
        label = str(next(self._order))
        self._cuts[label] = frozenset(pairs)
        self._apply()
        self._after(for_s, lambda: self._mend(label))
        return label

    def _mend(self, label: str) -> None:
        if self._cuts.pop(label, None) is not None:
            self._apply()

    def _flap(self, fault: faults.Flap, end: float) -> None:
        if self._now() >= end:
            return
        down_s, up_s = (self._random.expovariate(1 / fault.period_s) for _ in range(2))
        self._cut({(fault.one, fault.other), (fault.other, fault.one)}, min(down_s, end - self._now()))
        self._after(down_s + up_s, lambda: self._flap(fault, end))

    def _apply(self) -> None:
        lost = {pair: loss for pair in permutations(self._names, 2) if (loss := self._loss(*pair))}
        lost |= dict.fromkeys((pair for cut in self._cuts.values() for pair in cut), 1.0)
        closed = [node.name for node in self._plan.nodes if node.nat == "closed"]
        self._lab.disturb(weather_script(self._lab.topology, lost, closed))
        if self._carrier is not None:
            self._carrier.change(self._weather)

    def _loss(self, source: str, target: str) -> float:
        """As in the simulator: what is lost everywhere, and of the rest what this pair of regions loses."""
        regions = {self._lab.node(name).place.region for name in (source, target)}
        kept = 1.0 - self._weather.loss
        for link in self._weather.links:
            if {link.one, link.other} == regions:
                kept *= 1.0 - link.loss
        return 1.0 - kept

    # ------------------------------------------------------------ healing

    def _heal(self) -> None:
        self._say(f"{self._now():6.1f} s  everything heals")
        self._healing = True
        self._cuts.clear()
        self._weather = CALM
        self._apply()
        for name in [name for name in self._left() if name not in self._waiting]:
            self._thaw(name)
            if name in self._damaged:
                self._reimage(name, 0.0)
            self._boot(name)
            self._start(name)

    def _converge(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        while missing := self._missing():
            self._let_in()
            if time.monotonic() > deadline:
                raise TimedOut(
                    f"not healed after {self._timeout_s:g} s: {missing}",
                    hint=f"the nodes' logs: {self._lab.folder}/nodes/*/agent.log (--keep)",
                )
            time.sleep(POLL_S)
        self._say(f"{self._now():6.1f} s  everybody is ready")

    def _missing(self) -> str:
        clusters: dict[str, set[str]] = {}
        for name in self._left():
            said = self._lab.node(name).observe()
            if said is None:
                return f"{name} does not answer"
            if not said["role"]["ready"]:
                return f"{name} is in {said['role']['state']}: {said['role']['reason']}"
            place = self._lab.node(name).place
            scope = place.region if self._plan.per_region else ""
            clusters.setdefault(scope, set()).add(said["role"]["cluster_id"])
        several = [scope for scope, ids in clusters.items() if len(ids) != 1]
        return f"several clusters{' in ' if several[0] else ''}{', '.join(several)}" if several else ""

    def _clusters(self) -> set[str]:
        seen = (self._lab.node(name).observe() for name in self._left())
        return {said["role"]["cluster_id"] for said in seen if said is not None} - {""}

    def _alarmed(self, text: str) -> bool:
        return any(
            text in line
            for name in self._names
            for line in self._lab.node(name).log_path.read_text(errors="replace").splitlines()
        )

    def _left(self) -> list[str]:
        return [name for name in self._names if name not in self._gone]


def _who(said: StatusDoc) -> tuple[str, str]:
    return said["node"]["peer"], said["vpn"]["ipv4"]
