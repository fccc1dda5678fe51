"""How is a fault of a scenario file read, and what are the words for it?

One table (`KINDS`) for reading; `writing` renders the same words. Where nodes are named, the name of a region
stands for all of its nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Network
from typing import Final

from p2p_bootstrap.cloudconfig.nodes import ListNode, MapNode, Node, ScalarNode
from p2p_network.core.errors import nearest
from p2p_roles.upgrade.model import minor_of
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
    Trigger,
    Upgrade,
    UpgradeK3s,
)
from p2p_simulations.sim.reading import Reader
from p2p_simulations.world.net import CALM, PairWeather, Weather

MAX_FAULTS: Final = 1000
STATES: Final = ("DISCOVER", "ELECT", "INIT", "WAIT", "JOIN", "MEMBER", "FENCED")
_NETWORK_KEYS: Final = ("delay", "region_delay", "tail", "loss", "duplication", "links")
_LINK_KEYS: Final = ("between", "delay", "tail", "loss")
_MAX_FACTOR: Final = 10_000.0

KINDS: Final = (
    "power_cut", "kill_agent", "partition", "one_way", "cut", "flap", "network", "clock", "drift", "freeze",
    "slow_disk", "slow_cpu", "full_disk", "corrupt", "corrupt_ledger", "corrupt_snapshot", "lose_ledger",
    "reimage", "break_k3s", "leave", "vanish", "upgrade", "bad_upgrade", "upgrade_k3s", "recover", "rotate",
    "revoke", "forge", "replay", "equivocate", "backdate", "drain", "backup", "restore",
)  # fmt: skip


class FaultReader(Reader):
    """Reads faults. `regions`: node -> region."""

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self.regions: dict[str, str] = {}

    def faults(self, top: Mapping[str, Node]) -> tuple[tuple[tuple[float, Fault], ...], tuple[Trigger, ...]]:
        """The timeline and the triggers."""
        faults: list[tuple[float, Fault]] = []
        triggers: list[Trigger] = []
        if "faults" not in top:
            return (), ()
        items = self.list(top["faults"], "faults")
        if len(items) > MAX_FAULTS:
            self.fail(top["faults"].mark, "faults", f"at most {MAX_FAULTS} faults")
            return (), ()
        for number, item in enumerate(items):
            key = f"faults[{number}]"
            facts = self.map(item, key, ("at", "when", "after", "for", "period", *KINDS))
            kinds = [name for name in KINDS if name in facts]
            if len(kinds) != 1:
                self.fail(item.mark, key, "must name exactly one fault", f"one of: {', '.join(KINDS)}")
                continue
            fault = self._fault(kinds[0], facts, f"{key}.{kinds[0]}")
            if fault is None:
                continue
            if "when" not in facts:
                faults.append((self.take(facts, "at", self.seconds, 0.0, key), fault))
                continue
            state = self.take(facts, "when", self.choice(STATES), "INIT", key)
            if isinstance(fault, PowerCut | KillAgent | Partition):
                triggers.append(Trigger(state, self.take(facts, "after", self.seconds, 0.0, key), fault))
            else:
                self.fail(item.mark, key, "`when` goes with power_cut, kill_agent and partition only")
        return tuple(sorted(faults, key=lambda planned: planned[0])), tuple(triggers)

    def _fault(self, name: str, facts: Mapping[str, Node], key: str) -> Fault | None:
        node, triggered = facts[name], "when" in facts
        for_s = self.take(facts, "for", self.seconds, None, key)
        match name:
            case "power_cut":
                return PowerCut(self._nodes_named(node, key, triggered), for_s)
            case "kill_agent":
                return KillAgent(self._nodes_named(node, key, triggered), for_s)
            case "partition":
                if triggered and isinstance(node, ScalarNode) and node.text == "it":
                    return Partition((), for_s)
                return Partition(tuple(self._nodes_named(g, key) for g in self.list(node, key)), for_s)
            case "one_way":
                ends = self.map(node, key, ("from", "to"))
                everybody = tuple(self.regions)
                sources, targets = (
                    self.take(ends, end, self._nodes_named, everybody, key) for end in ("from", "to")
                )
                return OneWay(sources, targets, for_s)
            case "cut":
                pairs = [self._two_sides(item, key) for item in self.list(node, key)]
                return Cut(tuple((a, b) for one, other in pairs for a in one for b in other if a != b), for_s)
            case "flap":
                pair = self._nodes_named(node, key)
                if len(pair) != 2:
                    self.fail(node.mark, key, "must name two nodes")
                    return None
                period_s = max(0.1, self.take(facts, "period", self.seconds, 3.0, key))
                return Flap(pair[0], pair[1], period_s, for_s if for_s is not None else 60.0)
            case "network":
                return ChangeWeather(self.weather(node, key))
            case "clock" | "drift" | "slow_disk" | "slow_cpu":
                return self._measured(name, node, key, for_s)
            case "upgrade" | "bad_upgrade":
                every_s = self.take(facts, "period", self.seconds, 60.0, key)
                return Upgrade(self._nodes_named(node, key), name == "upgrade", every_s)
            case "upgrade_k3s":
                return self._upgrade_k3s(node, key)
            case "recover" if isinstance(node, MapNode):
                return self._recover(node, key)
            case _:
                return self._fault_of_one(name, node, key, for_s)

    def _upgrade_k3s(self, node: Node, key: str) -> Fault | None:
        """``{at: n1, version: v1.36.1+k3s1, bad: [n3]}``."""
        nobody: tuple[str, ...] = ()
        words = self.map(node, key, ("at", "version", "bad"))
        at, bad = (self.take(words, name, self._nodes_named, nobody, key) for name in ("at", "bad"))
        version = self.take(words, "version", self.text, "", key)
        if len(at) != 1 or minor_of(version) is None:
            example = "{at: n1, version: v1.36.1+k3s1}"
            self.fail(node.mark, key, f"must name one node and a version, e.g. {example}")
            return None
        return UpgradeK3s(at[0], version, bad)

    def _recover(self, node: Node, key: str) -> Fault | None:
        """``{at: n1, snapshot: latest}``; ``n1`` alone goes on with what the survivor has."""
        nobody: tuple[str, ...] = ()
        words = self.map(node, key, ("at", "snapshot"))
        at = self.take(words, "at", self._nodes_named, nobody, key)
        if len(at) != 1:
            self.fail(node.mark, key, "must name one node, e.g. {at: n1, snapshot: latest}")
            return None
        return Recover(at[0], self.take(words, "snapshot", self.text, "", key))

    def _measured(self, name: str, node: Node, key: str, for_s: float | None) -> Fault | None:
        """A fault of one node with a number: ``{n1: -5m}``, ``{n1: 0.001}``, ``{n1: 50}``."""
        facts = self.map(node, key, tuple(self.regions))
        if len(facts) != 1:
            example = {"clock": "-5m", "drift": "0.001"}.get(name, "50")
            self.fail(node.mark, key, f"must name one node and by how much, e.g. {{n1: {example}}}")
            return None
        ((who, by),) = facts.items()
        match name:
            case "clock":
                return JumpClock(who, self.signed_seconds(by, key) or 0.0)
            case "drift":
                return DriftClock(who, self.number(-0.5, 0.5)(by, key) or 0.0)
            case _:
                factor = self.number(1, _MAX_FACTOR)(by, key) or 1.0
                return Slow(who, "disk" if name == "slow_disk" else "cpu", factor, for_s)

    def _fault_of_one(self, name: str, node: Node, key: str, for_s: float | None) -> Fault | None:
        names = self._nodes_named(node, key)
        if len(names) != 1:
            self.fail(node.mark, key, "must name one node")
            return None
        (who,) = names
        makers: dict[str, Callable[[], Fault]] = {
            "freeze": lambda: Freeze(who, for_s if for_s is not None else 10.0),
            "lose_ledger": lambda: LoseLedger(who, for_s if for_s is not None else 1.0),
            "corrupt_ledger": lambda: CorruptLedger(who, for_s if for_s is not None else 1.0),
            "corrupt": lambda: CorruptDurable(who, for_s if for_s is not None else 1.0),
            "backup": lambda: MakeBackup(who),
            "restore": lambda: RestoreBackup(who),
            "corrupt_snapshot": lambda: CorruptCopy(who),
            "reimage": lambda: Reimage(who, for_s if for_s is not None else 30.0),
            "rotate": lambda: Rotate(who),
            "revoke": lambda: Revoke(who),
            "recover": lambda: Recover(who),
            "drain": lambda: Drain(who, for_s if for_s is not None else 3600.0),
            "break_k3s": lambda: BreakK3s(who, for_s),
            "full_disk": lambda: FullDisk(who, for_s),
            "leave": lambda: Depart(who, True),
            "vanish": lambda: Depart(who, False),
            "forge": lambda: Byzantine(who, "forge"),
            "replay": lambda: Byzantine(who, "replay"),
            "equivocate": lambda: Byzantine(who, "equivocate"),
            "backdate": lambda: Byzantine(who, "backdate"),
        }
        return makers[name]()

    # ------------------------------------------------------------ nodes, weather, networks

    def _two_sides(self, node: Node, key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        sides = self.list(node, key)
        if len(sides) != 2:
            self.fail(node.mark, key, "each link is two nodes or regions, e.g. [[n1, n2], [n3, west]]")
            return (), ()
        return self._nodes_named(sides[0], key), self._nodes_named(sides[1], key)

    def _nodes_named(self, node: Node, key: str, triggered: bool = False) -> tuple[str, ...]:
        """``all``, one name or a list, of nodes or regions; () for ``it``, the node that pulled a trigger."""
        if isinstance(node, ScalarNode) and node.text == "all":
            return tuple(self.regions)
        if isinstance(node, ScalarNode) and node.text == "it" and triggered:
            return ()
        names: list[str] = []
        known = [*self.regions, *self.regions.values()]
        for item in node.items if isinstance(node, ListNode) else [node]:
            name = self.text(item, key)
            if name in self.regions:
                names.append(name)
            elif name in known:
                names.extend(who for who, region in self.regions.items() if region == name)
            else:
                near = nearest(name, known)
                hint = f"did you mean {near}?" if near else f"nodes: {', '.join(self.regions)}"
                self.fail(item.mark, key, f"there is no node {name!r}", hint)
        return tuple(dict.fromkeys(names))

    def weather(self, node: Node, key: str) -> Weather:
        """How bad the network is."""
        facts = self.map(node, key, _NETWORK_KEYS)
        return Weather(
            base_delay_s=self.take(facts, "delay", self.seconds, CALM.base_delay_s, key),
            region_delay_s=self.take(facts, "region_delay", self.seconds, CALM.region_delay_s, key),
            tail_delay_s=max(1e-6, self.take(facts, "tail", self.seconds, CALM.tail_delay_s, key)),
            loss=self.take(facts, "loss", self.probability, 0.0, key),
            duplication=self.take(facts, "duplication", self.probability, 0.0, key),
            links=tuple(self._link(item, f"{key}.links") for item in self.list(facts["links"], key))
            if "links" in facts
            else (),
        )

    def _link(self, node: Node, key: str) -> PairWeather:
        facts = self.map(node, key, _LINK_KEYS)
        pair = [self.text(item, key) for item in self.list(facts.get("between", node), key)]
        if len(pair) != 2 or not set(pair) <= set(self.regions.values()):
            self.fail(node.mark, key, "`between` must name two regions", "for example [east, west]")
            pair = ["", ""]
        return PairWeather(
            pair[0],
            pair[1],
            delay_s=self.take(facts, "delay", self.seconds, CALM.region_delay_s, key),
            tail_s=max(1e-6, self.take(facts, "tail", self.seconds, CALM.tail_delay_s, key)),
            loss=self.take(facts, "loss", self.probability, 0.0, key),
        )

    def network(self, node: Node, key: str) -> IPv4Network | None:
        """An IPv4 network."""
        try:
            return IPv4Network(self.text(node, key))
        except ValueError as exc:
            self.fail(node.mark, key, f"is no IPv4 network: {exc}", "for example 10.144.0.0/16")
            return None
