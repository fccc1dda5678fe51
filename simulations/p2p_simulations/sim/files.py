"""What does a scenario file say?

A scenario is a small YAML file: nodes by region, what their cloud-configs declare, a timeline of faults, when
everything heals, and what is expected. Every problem is reported at once, with file, line and key; the
reader is that of cloud-configs, so duplicates and YAML's traps are refused in the same words. The keys are
described in simulations/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from p2p_bootstrap.cli.options import parse_duration
from p2p_bootstrap.cloudconfig.document import parse
from p2p_bootstrap.cloudconfig.nodes import ListNode, MapNode, Mark, Node, ScalarNode, kind
from p2p_network.core.errors import ConfigError, Problem, nearest
from p2p_network.records import Wish
from p2p_roles.placement import Placement
from p2p_simulations.sim.plan import (
    BreakK3s,
    ChangeWeather,
    Expectations,
    Fault,
    Flap,
    Forge,
    Freeze,
    JumpClock,
    K3sPlan,
    KillAgent,
    LoseLedger,
    NodePlan,
    OneWay,
    Partition,
    Plan,
    PowerCut,
    Reimage,
    Trigger,
)
from p2p_simulations.world.net import CALM, Weather

T = TypeVar("T")

MAX_FILE_BYTES: Final = 64 * 1024
MAX_NODES: Final = 64
MAX_FAULTS: Final = 1000

_TOP: Final = (
    "description", "regions", "servers", "minimum_nodes", "cluster", "placement", "home_region", "nodes",
    "network", "k3s", "chaos", "faults", "heal", "expect",
)  # fmt: skip
_NODE_KEYS: Final = ("role", "minimum_nodes", "clock", "slowness", "k3s", "boots")
_NETWORK_KEYS: Final = ("delay", "region_delay", "tail", "loss", "duplication")
_EXPECT_KEYS: Final = ("cluster", "within", "clusters_before_heal", "alarm")
_KINDS: Final = (
    "power_cut", "kill_agent", "partition", "one_way", "flap", "network", "clock", "freeze", "lose_ledger",
    "reimage", "break_k3s", "forge",
)  # fmt: skip
_STATES: Final = ("DISCOVER", "ELECT", "INIT", "WAIT", "JOIN", "MEMBER", "FENCED")


def parse_scenario(data: bytes, file: str) -> Plan:
    """Read a scenario. `file`: its name, for messages. Raises ConfigError with every problem."""
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError([Problem(file, 0, 0, "", f"the file is larger than {MAX_FILE_BYTES // 1024} KiB")])
    document = parse(data, file, header=False)
    return _Reader(file, document.checked()).plan()


class _Reader:
    """Walks the tree and collects every problem with its place."""

    def __init__(self, file: str, root: MapNode) -> None:
        self._file, self._root = file, root
        self._problems: list[Problem] = []
        self._names: tuple[str, ...] = ()

    def plan(self) -> Plan:
        top = self._map(self._root, "", _TOP)
        regions = self._regions(top)
        self._names = tuple(regions)
        count = max(len(regions), 1)
        nodes = self._nodes(top, regions)
        faults, triggers = self._faults(top)
        plan_of = Plan(
            name=self._file,
            nodes=nodes,
            servers=self._take(top, "servers", self._whole(1, 31), min(3, count)),
            minimum_nodes=self._take(top, "minimum_nodes", self._whole(1, 1024), count),
            per_region=self._take(top, "cluster", self._choice(("network", "region")), "network") == "region",
            placement=Placement(
                "pack"
                if self._take(top, "placement", self._choice(("spread", "pack")), "spread") == "pack"
                else "spread",
                self._take(top, "home_region", self._choice(tuple(dict.fromkeys(regions.values()))), ""),
            ),
            weather=self._take(top, "network", self._weather, CALM),
            k3s=self._take(top, "k3s", self._k3s, K3sPlan()),
            faults=faults,
            triggers=triggers,
            chaos=self._take(top, "chaos", self._probability, 0.0),
            heal_at_s=self._take(top, "heal", self._seconds, 60.0),
            expect=self._take(top, "expect", self._expect, Expectations()),
        )
        if self._problems:
            raise ConfigError(self._problems, hint="the keys are described in simulations/README.md")
        return plan_of

    # ------------------------------------------------------------ parts

    def _regions(self, top: Mapping[str, Node]) -> dict[str, str]:
        """Node -> region."""
        if "regions" not in top:
            self._fail(self._root.mark, "regions", "is missing", "for example regions: {east: 2, west: 1}")
            return {}
        found: dict[str, str] = {}
        counted = 0
        for region, node in self._map(top["regions"], "regions").items():
            key = f"regions.{region}"
            if isinstance(node, ListNode):
                names = [self._text(item, key) for item in node.items]
            else:
                wanted = self._whole(1, MAX_NODES)(node, key) or 0
                names = [f"n{counted + number}" for number in range(1, wanted + 1)]
                counted += wanted
            for name in names:
                if name in found:
                    self._fail(node.mark, key, f"there are two nodes called {name}")
                found[name] = region
        if not 0 < len(found) <= MAX_NODES and not self._problems:
            self._fail(top["regions"].mark, "regions", f"1 to {MAX_NODES} nodes are needed, not {len(found)}")
        return found

    def _nodes(self, top: Mapping[str, Node], regions: Mapping[str, str]) -> tuple[NodePlan, ...]:
        said = self._map(top["nodes"], "nodes", self._names) if "nodes" in top else {}
        return tuple(self._node(name, region, said.get(name)) for name, region in regions.items())

    def _node(self, name: str, region: str, node: Node | None) -> NodePlan:
        key = f"nodes.{name}"
        facts = self._map(node, key, _NODE_KEYS) if node is not None else {}
        role = self._take(facts, "role", self._choice(("auto", "server", "agent")), "auto", key)
        wish: Wish = "server" if role == "server" else "agent" if role == "agent" else "auto"
        k3s = self._take(facts, "k3s", self._choice(("good", "broken", "stale")), "good", key)
        return NodePlan(
            name=name,
            region=region,
            wish=wish,
            minimum_nodes=self._take(facts, "minimum_nodes", self._whole(1, 1024), None, key),
            clock_offset_s=self._take(facts, "clock", self._signed_seconds, 0.0, key),
            slowness=self._take(facts, "slowness", self._number(1, 1000), 1.0, key),
            k3s_broken=k3s == "broken",
            stale_k3s=k3s == "stale",
            boots_at_s=self._take(facts, "boots", self._seconds, 0.0, key),
        )

    def _weather(self, node: Node, key: str) -> Weather:
        facts = self._map(node, key, _NETWORK_KEYS)
        return Weather(
            base_delay_s=self._take(facts, "delay", self._seconds, CALM.base_delay_s, key),
            region_delay_s=self._take(facts, "region_delay", self._seconds, CALM.region_delay_s, key),
            tail_delay_s=max(1e-6, self._take(facts, "tail", self._seconds, CALM.tail_delay_s, key)),
            loss=self._take(facts, "loss", self._probability, 0.0, key),
            duplication=self._take(facts, "duplication", self._probability, 0.0, key),
        )

    def _k3s(self, node: Node, key: str) -> K3sPlan:
        facts = self._map(node, key, ("start", "failure"))
        return K3sPlan(
            start_s=self._take(facts, "start", self._span, K3sPlan().start_s, key),
            failure=self._take(facts, "failure", self._probability, 0.0, key),
        )

    def _expect(self, node: Node, key: str) -> Expectations:
        facts = self._map(node, key, _EXPECT_KEYS)
        return Expectations(
            converges=self._take(facts, "cluster", self._flag, True, key),
            within_s=self._take(facts, "within", self._seconds, Expectations().within_s, key),
            alarm=self._take(facts, "alarm", self._text, "", key),
            clusters_before_healing=self._take(facts, "clusters_before_heal", self._whole(0, 64), None, key),
        )

    # ------------------------------------------------------------ faults

    def _faults(self, top: Mapping[str, Node]) -> tuple[tuple[tuple[float, Fault], ...], tuple[Trigger, ...]]:
        faults: list[tuple[float, Fault]] = []
        triggers: list[Trigger] = []
        if "faults" not in top:
            return (), ()
        items = self._list(top["faults"], "faults")
        if len(items) > MAX_FAULTS:
            self._fail(top["faults"].mark, "faults", f"at most {MAX_FAULTS} faults")
            return (), ()
        for number, item in enumerate(items):
            key = f"faults[{number}]"
            facts = self._map(item, key, ("at", "when", "after", "for", *_KINDS))
            kinds = [name for name in _KINDS if name in facts]
            if len(kinds) != 1:
                self._fail(item.mark, key, "must name exactly one fault", f"one of: {', '.join(_KINDS)}")
                continue
            for_s = self._take(facts, "for", self._seconds, None, key)
            fault = self._fault(kinds[0], facts[kinds[0]], f"{key}.{kinds[0]}", for_s, "when" in facts)
            if fault is None:
                continue
            if "when" not in facts:
                faults.append((self._take(facts, "at", self._seconds, 0.0, key), fault))
                continue
            state = self._take(facts, "when", self._choice(_STATES), "INIT", key)
            if isinstance(fault, PowerCut | KillAgent | Partition):
                triggers.append(Trigger(state, self._take(facts, "after", self._seconds, 0.0, key), fault))
            else:
                self._fail(item.mark, key, "`when` goes with power_cut, kill_agent and partition only")
        return tuple(sorted(faults, key=lambda planned: planned[0])), tuple(triggers)

    def _fault(self, name: str, node: Node, key: str, for_s: float | None, triggered: bool) -> Fault | None:
        match name:
            case "power_cut":
                return PowerCut(self._node_names(node, key, triggered), for_s)
            case "kill_agent":
                return KillAgent(self._node_names(node, key, triggered), for_s)
            case "partition":
                if triggered and isinstance(node, ScalarNode) and node.text == "it":
                    return Partition((), for_s)
                groups = tuple(self._node_names(group, key, False) for group in self._list(node, key))
                return Partition(groups, for_s)
            case "one_way":
                ends = self._map(node, key, ("from", "to"))
                sources, targets = (
                    self._take(ends, end, lambda n, k: self._node_names(n, k, False), self._names, key)
                    for end in ("from", "to")
                )
                return OneWay(sources, targets, for_s)
            case "flap":
                pair = self._node_names(node, key, False)
                if len(pair) != 2:
                    self._fail(node.mark, key, "must name two nodes")
                    return None
                return Flap(pair[0], pair[1], 3.0, for_s if for_s is not None else 60.0)
            case "network":
                return ChangeWeather(self._weather(node, key))
            case "clock":
                jump = self._map(node, key, self._names)
                if len(jump) != 1:
                    self._fail(node.mark, key, "must name one node and by how much, e.g. {n1: -5m}")
                    return None
                ((who, by),) = jump.items()
                return JumpClock(who, self._signed_seconds(by, key) or 0.0)
            case _:
                return self._fault_of_one(name, node, key, for_s)

    def _fault_of_one(self, name: str, node: Node, key: str, for_s: float | None) -> Fault | None:
        names = self._node_names(node, key, False)
        if len(names) != 1:
            self._fail(node.mark, key, "must name one node")
            return None
        match name:
            case "freeze":
                return Freeze(names[0], for_s if for_s is not None else 10.0)
            case "lose_ledger":
                return LoseLedger(names[0], for_s if for_s is not None else 1.0)
            case "reimage":
                return Reimage(names[0], for_s if for_s is not None else 30.0)
            case "break_k3s":
                return BreakK3s(names[0], for_s)
            case _:
                return Forge(names[0])

    def _node_names(self, node: Node, key: str, triggered: bool) -> tuple[str, ...]:
        """``all``, one name or a list; () for ``it``, the node that pulled a trigger."""
        if isinstance(node, ScalarNode) and node.text == "all":
            return self._names
        if isinstance(node, ScalarNode) and node.text == "it" and triggered:
            return ()
        names = []
        for item in node.items if isinstance(node, ListNode) else [node]:
            name = self._text(item, key)
            if name not in self._names:
                near = nearest(name, self._names)
                hint = f"did you mean {near}?" if near else f"nodes: {', '.join(self._names)}"
                self._fail(item.mark, key, f"there is no node {name!r}", hint)
            names.append(name)
        return tuple(names)

    # ------------------------------------------------------------ values

    def _take(
        self,
        facts: Mapping[str, Node],
        name: str,
        read: Callable[[Node, str], T | None],
        default: T,
        key: str = "",
    ) -> T:
        if name not in facts:
            return default
        value = read(facts[name], f"{key}.{name}" if key else name)
        return default if value is None else value

    def _map(self, node: Node, key: str, known: Sequence[str] | None = None) -> dict[str, Node]:
        if not isinstance(node, MapNode):
            self._fail(node.mark, key, f"must be a map, is {kind(node)}")
            return {}
        found: dict[str, Node] = {}
        for name, entry in node.entries.items():
            if known is not None and name not in known:
                near = nearest(name, known)
                hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
                self._fail(entry.mark, f"{key}.{name}" if key else name, "unknown key", hint)
            elif not (isinstance(entry.value, ScalarNode) and entry.value.is_null):
                found[name] = entry.value
        return found

    def _list(self, node: Node, key: str) -> Sequence[Node]:
        if isinstance(node, ListNode):
            return node.items
        self._fail(node.mark, key, f"must be a list, is {kind(node)}")
        return ()

    def _text(self, node: Node, key: str) -> str:
        if isinstance(node, ScalarNode):
            return node.text
        self._fail(node.mark, key, f"must be a text, is {kind(node)}")
        return ""

    def _flag(self, node: Node, key: str) -> bool | None:
        if isinstance(node, ScalarNode) and isinstance(node.value, bool):
            return node.value
        self._fail(node.mark, key, "must be true or false")
        return None

    def _choice(self, words: Sequence[str]) -> Callable[[Node, str], str | None]:
        def read(node: Node, key: str) -> str | None:
            text = self._text(node, key)
            if text in words:
                return text
            self._fail(node.mark, key, f"must be one of {', '.join(words)}")
            return None

        return read

    def _whole(self, low: int, high: int) -> Callable[[Node, str], int | None]:
        def read(node: Node, key: str) -> int | None:
            value = node.value if isinstance(node, ScalarNode) else None
            if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
                return value
            self._fail(node.mark, key, f"must be a whole number from {low} to {high}")
            return None

        return read

    def _number(self, low: float, high: float) -> Callable[[Node, str], float | None]:
        def read(node: Node, key: str) -> float | None:
            value = node.value if isinstance(node, ScalarNode) else None
            if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
                return float(value)
            self._fail(node.mark, key, f"must be a number from {low:g} to {high:g}")
            return None

        return read

    def _probability(self, node: Node, key: str) -> float | None:
        return self._number(0, 1)(node, key)

    def _seconds(self, node: Node, key: str) -> float | None:
        try:
            return parse_duration(self._text(node, key).removesuffix("ms")) / (
                1000 if self._text(node, key).endswith("ms") else 1
            )
        except ValueError:
            self._fail(node.mark, key, "must be a duration", "write it like 300ms, 90s, 5m or 1h")
            return None

    def _signed_seconds(self, node: Node, key: str) -> float | None:
        text = self._text(node, key)
        sign = -1 if text.startswith("-") else 1
        plain = ScalarNode(text.lstrip("+-"), node.mark)
        seconds = self._seconds(plain, key)
        return None if seconds is None else sign * seconds

    def _span(self, node: Node, key: str) -> tuple[float, float] | None:
        ends = [self._seconds(item, key) for item in self._list(node, key)]
        if len(ends) == 2 and ends[0] is not None and ends[1] is not None and ends[0] <= ends[1]:
            return ends[0], ends[1]
        self._fail(node.mark, key, "must be two durations, the shorter first", "for example [3s, 15s]")
        return None

    def _fail(self, mark: Mark, key: str, message: str, hint: str = "") -> None:
        self._problems.append(Problem(self._file, mark.line, mark.column, key, message, hint))
