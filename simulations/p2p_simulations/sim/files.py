"""What does a scenario file say?

A scenario is a small YAML file: nodes by region, what their cloud-configs declare, a timeline of faults, when
everything heals, and what is expected. Every problem is reported at once, with file, line and key; the
reader is that of cloud-configs, so duplicates and YAML's traps are refused in the same words. The keys are
described in simulations/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from p2p_bootstrap.cloudconfig.document import parse
from p2p_bootstrap.cloudconfig.nodes import ListNode, MapNode, Node
from p2p_network.addressing import DEFAULT_NETWORK
from p2p_network.core.errors import ConfigError, Problem
from p2p_network.records import Wish
from p2p_roles.placement import Placement
from p2p_simulations.sim.fault_files import FaultReader
from p2p_simulations.sim.plan import Expectations, K3sPlan, NodePlan, Plan
from p2p_simulations.world.net import CALM, Nat

MAX_FILE_BYTES: Final = 64 * 1024
MAX_NODES: Final = 64

_TOP: Final = (
    "description", "regions", "servers", "minimum_nodes", "cluster", "placement",
    "home_region", "infer_regions", "relay", "dynamic_roles", "recovery", "nodes", "network", "vpn",
    "k3s", "chaos", "max_chaos", "faults", "heal", "expect",
)  # fmt: skip
_NODE_KEYS: Final = (
    "role", "zone", "minimum_nodes", "clock", "slowness", "k3s", "boots", "joins", "nat",
)  # fmt: skip
_NATS: Final[tuple[Nat, ...]] = ("open", "full-cone", "port-restricted", "symmetric", "closed")
_EXPECT_KEYS: Final = ("cluster", "within", "clusters_before_heal", "alarm")


def parse_scenario(data: bytes, file: str) -> Plan:
    """Read a scenario. `file`: its name, for messages. Raises ConfigError with every problem."""
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError([Problem(file, 0, 0, "", f"the file is larger than {MAX_FILE_BYTES // 1024} KiB")])
    document = parse(data, file, header=False)
    return _ScenarioReader(file, document.checked()).plan()


class _ScenarioReader(FaultReader):
    """Walks the tree and collects every problem with its place."""

    def __init__(self, file: str, root: MapNode) -> None:
        super().__init__(file)
        self._root = root

    def plan(self) -> Plan:
        top = self.map(self._root, "", _TOP)
        regions = self._regions(top)
        self.regions = regions
        count = max(len(regions), 1)
        nodes = self._nodes(top, regions)
        faults, triggers = self.faults(top)
        plan_of = Plan(
            name=self.file,
            nodes=nodes,
            servers=self.take(top, "servers", self.whole(1, 31), min(3, count)),
            minimum_nodes=self.take(top, "minimum_nodes", self.whole(1, 1024), count),
            network=self.take(top, "vpn", self.network, DEFAULT_NETWORK),
            per_region=self.take(top, "cluster", self.choice(("network", "region")), "network") == "region",
            placement=Placement(
                "pack"
                if self.take(top, "placement", self.choice(("spread", "pack")), "spread") == "pack"
                else "spread",
                self.take(top, "home_region", self.choice(tuple(dict.fromkeys(regions.values()))), ""),
            ),
            infers_regions=self.take(top, "infer_regions", self.flag, False),
            relays=self.take(top, "relay", self.flag, True),
            replaces=self.take(top, "dynamic_roles", self.flag, False),
            recovers=self.take(top, "recovery", self.choice(("manual", "automatic")), "manual")
            == "automatic",
            weather=self.take(top, "network", self.weather, CALM),
            k3s=self.take(top, "k3s", self._k3s, K3sPlan()),
            faults=faults,
            triggers=triggers,
            chaos=self.take(top, "chaos", self.probability, 0.0),
            max_chaos=self.take(top, "max_chaos", self.whole(0, 1000), 10),
            heal_at_s=self.take(top, "heal", self.seconds, 60.0),
            expect=self.take(top, "expect", self._expect, Expectations()),
        )
        if self.problems:
            raise ConfigError(self.problems, hint="the keys are described in simulations/README.md")
        return plan_of

    # ------------------------------------------------------------ parts

    def _regions(self, top: Mapping[str, Node]) -> dict[str, str]:
        """Node -> region."""
        if "regions" not in top:
            self.fail(self._root.mark, "regions", "is missing", "for example regions: {east: 2, west: 1}")
            return {}
        found: dict[str, str] = {}
        counted = 0
        for region, node in self.map(top["regions"], "regions").items():
            key = f"regions.{region}"
            if isinstance(node, ListNode):
                names = [self.text(item, key) for item in node.items]
            else:
                wanted = self.whole(1, MAX_NODES)(node, key) or 0
                names = [f"n{counted + number}" for number in range(1, wanted + 1)]
                counted += wanted
            for name in names:
                if name in found:
                    self.fail(node.mark, key, f"there are two nodes called {name}")
                found[name] = region
        if not 0 < len(found) <= MAX_NODES and not self.problems:
            self.fail(top["regions"].mark, "regions", f"1 to {MAX_NODES} nodes are needed, not {len(found)}")
        return found

    def _nodes(self, top: Mapping[str, Node], regions: Mapping[str, str]) -> tuple[NodePlan, ...]:
        said = self.map(top["nodes"], "nodes", tuple(regions)) if "nodes" in top else {}
        return tuple(self._node(name, region, said.get(name)) for name, region in regions.items())

    def _node(self, name: str, region: str, node: Node | None) -> NodePlan:
        key = f"nodes.{name}"
        facts = self.map(node, key, _NODE_KEYS) if node is not None else {}
        role = self.take(facts, "role", self.choice(("auto", "server", "agent")), "auto", key)
        wish: Wish = "server" if role == "server" else "agent" if role == "agent" else "auto"
        k3s = self.take(facts, "k3s", self.choice(("good", "broken", "stale")), "good", key)
        return NodePlan(
            name=name,
            region=region,
            zone=self.take(facts, "zone", self.text, "", key),
            wish=wish,
            minimum_nodes=self.take(facts, "minimum_nodes", self.whole(1, 1024), None, key),
            clock_offset_s=self.take(facts, "clock", self.signed_seconds, 0.0, key),
            slowness=self.take(facts, "slowness", self.number(1, 1000), 1.0, key),
            joins_later=self.take(facts, "joins", self.choice(("first", "later")), "first", key) == "later",
            nat=self._nat(facts, key),
            k3s_broken=k3s == "broken",
            stale_k3s=k3s == "stale",
            boots_at_s=self.take(facts, "boots", self.seconds, 0.0, key),
        )

    def _nat(self, facts: Mapping[str, Node], key: str) -> Nat:
        said = self.take(facts, "nat", self.choice(_NATS), "open", key)
        return next((kind for kind in _NATS if kind == said), "open")

    def _k3s(self, node: Node, key: str) -> K3sPlan:
        facts = self.map(node, key, ("start", "lingers", "failure", "snapshots"))
        return K3sPlan(
            start_s=self.take(facts, "start", self.span, K3sPlan().start_s, key),
            lingers_s=self.take(facts, "lingers", self.span, K3sPlan().lingers_s, key),
            failure=self.take(facts, "failure", self.probability, 0.0, key),
            snapshots_s=self.take(facts, "snapshots", self.seconds, 0.0, key),
        )

    def _expect(self, node: Node, key: str) -> Expectations:
        facts = self.map(node, key, _EXPECT_KEYS)
        return Expectations(
            converges=self.take(facts, "cluster", self.flag, True, key),
            within_s=self.take(facts, "within", self.seconds, Expectations().within_s, key),
            alarm=self.take(facts, "alarm", self.text, "", key),
            clusters_before_healing=self.take(facts, "clusters_before_heal", self.whole(0, 64), None, key),
        )
