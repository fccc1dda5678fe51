"""What does a lab make of a scenario, and which packets does it lose?"""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from p2p_bootstrap.cli.main import main
from p2p_network.core.errors import ConfigError
from p2p_simulations.lab.distance import Distances, ends_of, line_of, weather_of
from p2p_simulations.lab.scenario import ABSENT, topology_of, unused
from p2p_simulations.lab.topology import make_topology
from p2p_simulations.lab.weather import weather_script
from p2p_simulations.sim.ending import Ending, NodeEnding, differences
from p2p_simulations.sim.fault_files import KINDS
from p2p_simulations.sim.files import parse_scenario
from p2p_simulations.sim.plan import Plan
from p2p_simulations.world.net import PairWeather, Weather

HEAD = "regions: {a: [n1, n2], b: [n3]}\n"


def plan_of(text: str) -> Plan:
    return parse_scenario((HEAD + text).encode(), "x.yaml")


def test_nodes_and_rules_become_a_topology() -> None:
    shape = topology_of(
        plan_of("servers: 1\nminimum_nodes: 2\nplacement: pack\nhome_region: b\ncluster: region\n"
                "nodes: {n1: {role: server, zone: z, minimum_nodes: 1}}\nvpn: 10.144.0.0/28\n"),
        "x.yaml",
    )  # fmt: skip
    assert shape.names == ("n1", "n2", "n3")
    assert (shape.regions, shape.servers, shape.minimum_nodes) == (("a", "b"), 1, 2)
    assert shape.config["p2p"] == {
        "placement": "pack", "home_region": "b", "cluster": "region",
        "vpn": {"address_range": "10.144.0.0/28"},
    }  # fmt: skip
    assert shape.places[0].config == {"p2p": {"role": "server", "zone": "z", "minimum_nodes": 1}}
    assert shape.places[1].config == {}


def test_everything_that_a_lab_has_not_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        topology_of(
            plan_of("chaos: 0.1\nk3s: {failure: 0.1}\nnodes: {n1: {clock: 5m, slowness: 3, k3s: broken}}\n"
                    "network: {delay: 1s, region_delay: 1s, duplication: 0.1, links: [{between: [a, a]}]}\n"
                    "faults: [{at: 1s, forge: n1}, {at: 2s, power_cut: n1}, {at: 3s, drift: {n2: 0.1}}]\n"),
            "x.yaml",
        )  # fmt: skip
    assert {problem.key for problem in caught.value.problems} == {
        "nodes.n1.clock", "nodes.n1.slowness", "nodes.n1.k3s", "chaos", "k3s.failure", "network.delay",
        "network.links", "network.duplication", "faults[0].forge", "faults[2].drift",
    }  # fmt: skip
    assert set(ABSENT) - {"recover"} < set(KINDS)


def test_loss_and_cuts_are_rules_by_port_within_a_region_and_by_address_between_two() -> None:
    shape = make_topology({"a": ("n1", "n2"), "b": ("n3",)})
    script = weather_script(shape, {("n1", "n2"): 1.0, ("n1", "n3"): 0.05, ("n3", "n1"): 0.0}, ["n3"])
    assert 'iifname "p1-n1" oifname "p2-n2" drop' in script
    assert "ip saddr 198.18.1.11 ip daddr 198.18.2.11 numgen random mod 1000 < 50 drop" in script
    assert "ip saddr 198.18.2.11" not in script, "a share of nothing is no rule"
    assert "ip daddr 198.18.2.11 ct state new drop" in script
    calm = weather_script(shape, {})
    assert "drop" not in calm
    assert "delete table inet weather" in calm


def test_two_endings_are_told_apart_by_what_matters() -> None:
    plan = plan_of("nodes: {n3: {role: agent}}\n")
    ready = NodeEnding("server", True, True, True)
    agent = NodeEnding("agent", True, True, True)
    one = Ending({"n1": ready, "n2": agent, "n3": agent}, 1)
    swapped = Ending({"n1": agent, "n2": ready, "n3": agent}, 1)
    assert differences(plan, one, swapped, ("x", "y")) == (), "which of two equals is the server is chance"
    forced = Ending({"n1": agent, "n2": agent, "n3": ready}, 1)
    assert differences(plan, one, forced, ("x", "y")) == ("n3 is agent in x, server in y",)
    other = Ending({"n1": NodeEnding("server", False, True, False), "n2": agent}, 2)
    assert differences(plan, one, other, ("x", "y")) == (
        "there are n1, n2, n3 in x, n1, n2 in y",
        "1 clusters in x, 2 clusters in y",
        "2 agent, 1 server in x, 1 agent, 1 server in y",
        "n1: it is ready in x, and not in y",
        "n1: its address stayed in x, and not in y",
    )


def test_a_scenario_brings_its_own_topology(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "run", "shape.yaml", "--scenario", "x.yaml"]) == 2
    assert "brings its own topology" in capsys.readouterr().err


def test_a_region_stands_behind_one_router_and_a_firewall_is_a_nodes_own() -> None:
    shape = topology_of(
        plan_of("nodes: {n1: {nat: symmetric}, n2: {nat: symmetric}, n3: {nat: closed}}\n"), "x"
    )
    assert shape.nat == {"a": "symmetric"}
    shape = topology_of(plan_of("nodes: {n3: {nat: full-cone}}\nrelay: false\ndynamic_roles: true\n"), "x")
    assert shape.nat == {"b": "full-cone"}
    assert shape.config["p2p"] == {"placement": "spread", "relay": False, "dynamic_roles": True}
    for nodes, keys in (
        ("{n1: {nat: symmetric}}", {"nodes.n2.nat"}),
        ("{n1: {nat: full-cone}, n2: {nat: full-cone}}", {"nodes.n1.nat"}),
        ("{n1: {nat: symmetric}, n2: {nat: closed}}", {"nodes.n2.nat"}),
    ):
        with pytest.raises(ConfigError) as caught:
            topology_of(plan_of(f"nodes: {nodes}\n"), "x")
        assert {problem.key for problem in caught.value.problems} == keys


def test_a_packet_between_regions_takes_as_long_as_a_message_there_in_the_simulator() -> None:
    shape = make_topology({"a": ("n1",), "b": ("n2",), "c": ("n3",)})
    weather = Weather(0.001, 0.2, 1e-6, links=(PairWeather("a", "c", 0.5, 1e-6, 0.1),))
    told = weather_of(line_of(weather, shape))
    assert told.links == (PairWeather("1", "3", 0.5, 1e-6, 0.1),)
    distances = Distances(seed=1)
    distances.change(told)
    for source, target, delay_s in (
        ("198.18.1.11", "198.18.2.11", 0.201),
        ("198.19.3.1", "198.18.1.11", 0.501),  # from behind a NAT
        ("fd6c:6162:0:1::b", "fd6c:6162:0:3::b", 0.501),
    ):
        packet = packet_between(source, target)
        assert distances.delay_s(packet) == pytest.approx(delay_s, abs=0.001)
        assert distances.delay_s(packet[:15]) is None
    for source, target in (
        ("fe80::1", "ff02::2"),
        ("198.18.1.11", "198.19.2.1"),
        ("10.0.0.1", "198.18.2.11"),
    ):
        assert ends_of(packet_between(source, target)) is None
    assert ends_of(b"") is None


def packet_between(source: str, target: str) -> bytes:
    ends = ip_address(source).packed + ip_address(target).packed
    return b"\x45" + bytes(11) + ends if len(ends) == 8 else b"\x60" + bytes(7) + ends


def test_what_a_lab_does_not_delay_is_said() -> None:
    assert unused(plan_of("network: {region_delay: 1s}\n")) == ()
    assert [said.split(":")[0] for said in unused(plan_of("network: {tail: 50ms}\n"))] == ["network.tail"]
