"""What does a scenario of the simulator mean for a lab of real processes? Pure.

The same file: its nodes become a topology, its faults what the lab can do to them. What does not exist in a
lab is refused with its name and the reason, all of it at once, before anything is started.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from p2p_network.addressing import DEFAULT_NETWORK
from p2p_network.core.errors import ConfigError, Problem
from p2p_simulations.lab.topology import NAT_KINDS, Topology, check_nat, make_topology
from p2p_simulations.sim.plan import ChangeWeather, Fault, K3sPlan, NodePlan, Plan
from p2p_simulations.sim.writing import describe
from p2p_simulations.world.net import CALM, Weather

_CLOCK: Final = "the nodes of a lab share this machine's clock"
_ONE_MACHINE: Final = "the nodes of a lab share this machine's processors and disk"
_NO_BOOT: Final = "a lab's nodes boot no images: tests/boot does"
_NO_LIES: Final = "a lab runs the agent as it is, and that does not lie"
ABSENT: Final[dict[str, str]] = {
    "clock": _CLOCK,
    "drift": _CLOCK,
    "slow_disk": _ONE_MACHINE,
    "slow_cpu": _ONE_MACHINE,
    "full_disk": _ONE_MACHINE,
    "break_k3s": "k3s in a lab is the one that is installed; kill_agent and power_cut are there",
    "upgrade": _NO_BOOT,
    "bad_upgrade": _NO_BOOT,
    "upgrade_k3s": "all nodes of a lab run the same k3s",
    "forge": _NO_LIES,
    "replay": _NO_LIES,
    "equivocate": _NO_LIES,
    "backdate": _NO_LIES,
    "recover": "an operator is asked there: kairos-p2p cluster recover",
    "backup": "an operator is asked there: kairos-p2p backup FILE",
    "restore": "an operator is asked there: kairos-p2p restore FILE",
    "corrupt_snapshot": "nobody goes back to a snapshot there without `recover`",
}
"""Faults of the simulator that a lab has not, and why."""


def topology_of(plan: Plan, file: str) -> Topology:
    """The nodes of a scenario as a lab's. Raises ConfigError that names everything a lab has not."""
    problems = [Problem(file, 0, 0, key, f"does not exist in a lab: {why}") for key, why in _absent(plan)]
    if problems:
        raise ConfigError(problems, hint="the simulator has it: kairos-p2p sim run")
    regions: dict[str, list[str]] = {}
    for node in plan.nodes:
        regions.setdefault(node.region, []).append(node.name)
    p2p: dict[str, Any] = {"placement": plan.placement.kind}
    if plan.placement.home_region:
        p2p["home_region"] = plan.placement.home_region
    if plan.per_region:
        p2p["cluster"] = "region"
    if not plan.relays:
        p2p["relay"] = False
    if plan.replaces:
        p2p["dynamic_roles"] = True
    if plan.infers_regions:
        p2p["region"] = "auto"
    if plan.network != DEFAULT_NETWORK:
        p2p["vpn"] = {"address_range": str(plan.network)}
    return make_topology(
        regions,
        servers=plan.servers,
        minimum_nodes=plan.minimum_nodes,
        nat=_nat(plan),
        config={"p2p": p2p},
        nodes={node.name: {"p2p": own} for node in plan.nodes if (own := _own(node))},
    )


def _nat(plan: Plan) -> dict[str, str]:
    """Regions that stand behind a router. A `closed` node has a firewall of its own (`lab.weather`)."""
    return {node.region: node.nat for node in plan.nodes if node.nat in NAT_KINDS}


def _wrong_nat(plan: Plan) -> Iterator[tuple[str, str]]:
    regions: dict[str, list[str]] = {}
    for node in plan.nodes:
        regions.setdefault(node.region, []).append(node.name)
    nat = _nat(plan)
    for node in plan.nodes:
        meant = nat.get(node.region, "closed" if node.nat == "closed" else "open")
        if node.nat != meant:
            yield f"nodes.{node.name}.nat", "a region of a lab stands behind one router, as a whole"
    for region, kind in nat.items():
        if wrong := check_nat(regions, region, kind):
            yield f"nodes.{regions[region][0]}.nat", wrong


def _own(node: NodePlan) -> dict[str, Any]:
    own: dict[str, Any] = {}
    if node.wish != "auto":
        own["role"] = node.wish
    if node.zone:
        own["zone"] = node.zone
    if node.minimum_nodes is not None:
        own["minimum_nodes"] = node.minimum_nodes
    return own


def _absent(plan: Plan) -> Iterator[tuple[str, str]]:
    """Key and reason of everything that a lab has not."""
    for node in plan.nodes:
        where = f"nodes.{node.name}"
        if node.clock_offset_s:
            yield f"{where}.clock", _CLOCK
        if node.slowness != 1.0:
            yield f"{where}.slowness", _ONE_MACHINE
        if node.k3s_broken or node.stale_k3s:
            yield f"{where}.k3s", ABSENT["break_k3s"]
    if plan.chaos:
        yield "chaos", "nobody stops a real process between two of its effects; kill_agent is there"
    if plan.k3s.failure:
        yield "k3s.failure", ABSENT["break_k3s"]
    yield from _wrong_nat(plan)
    yield from _weather("network", plan.weather)
    for number, fault in enumerate((*(f for _, f in plan.faults), *(t.fault for t in plan.triggers))):
        word = kind_of(fault)
        if word in ABSENT:
            yield f"faults[{number}].{word}", ABSENT[word]
        elif isinstance(fault, ChangeWeather):
            yield from _weather(f"faults[{number}].network", fault.weather)


def kind_of(fault: Fault) -> str:
    """The word for a fault in a scenario file."""
    return describe(fault).partition(":")[0]


def _weather(key: str, weather: Weather) -> Iterator[tuple[str, str]]:
    if weather.base_delay_s != CALM.base_delay_s:
        yield (
            f"{key}.delay",
            "frames within a region are switched at once; region_delay, tail and links are there",
        )
    if any(link.one == link.other for link in weather.links):
        yield (
            f"{key}.links",
            "frames within a region are switched at once; links between two regions are there",
        )
    if weather.duplication:
        yield f"{key}.duplication", "packets of a lab's network come once"


def unused(plan: Plan) -> tuple[str, ...]:
    """What of a plan has no meaning in a lab and does no harm: said, not refused."""
    said = []
    if plan.k3s.start_s != K3sPlan().start_s:
        said.append("k3s.start: k3s takes the time it takes")
    if plan.weather.tail_delay_s != CALM.tail_delay_s:
        said.append("network.tail: within a region, where frames are switched at once; between regions it is")
    return tuple(said)
