"""Is a topology read as meant, and does every mistake in one get its file, line and key?"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import p2p_simulations
from p2p_network.core.errors import ConfigError, UsageError
from p2p_network.token import parse_token
from p2p_simulations.lab.nat import nat_script
from p2p_simulations.lab.network import bridges_batch, cable_batch, partition_script, port
from p2p_simulations.lab.outfit import cloud_config
from p2p_simulations.lab.topology import (
    Topology,
    as_document,
    default_topology,
    from_document,
    make_topology,
    parse_groups,
    parse_topology,
)

WHOLE = """\
regions:
  east: 2
  west: [lyon, n3]
  north: 1
servers: 1
minimum_nodes: 4
discovery: {bootstrap: false, mdns: true}
config:
  k3s: {args: [--debug]}
nodes:
  lyon:
    p2p: {role: worker}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_topology(text, "lab.yaml")
    return [str(problem) for problem in caught.value.problems]


def test_the_default_has_five_nodes_in_three_regions() -> None:
    topology = default_topology()
    assert topology.names == ("n1", "n2", "n3", "n4", "n5")
    assert [place.region for place in topology.places] == ["east", "east", "west", "west", "north"]
    assert topology.bootstrap() == ("198.18.1.11:4701", "198.18.2.11:4701", "198.18.3.11:4701")


def test_a_file_is_read_whole() -> None:
    topology = parse_topology(WHOLE, "lab.yaml")
    assert topology.names == ("n1", "n2", "lyon", "n3", "n4")
    assert (topology.servers, topology.minimum_nodes) == (1, 4)
    assert topology.bootstrap() == ()
    assert topology.discovery.dht
    assert topology.discovery.mdns
    assert topology.place("lyon").config == {"p2p": {"role": "worker"}}
    assert len({place.ipv4 for place in topology.places} | {place.ipv6 for place in topology.places}) == 10


@pytest.mark.parametrize("topology", [default_topology(), parse_topology(WHOLE, "lab.yaml")])
def test_the_state_file_keeps_a_topology(topology: Topology) -> None:
    assert from_document(as_document(topology)) == topology


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "lab.yaml: the file is empty"),
        ("servers: 1\n", "lab.yaml: regions: is missing"),
        ("regions: {a: 1}\nregoins: 2\n", "lab.yaml:2:1: regoins: unknown key (did you mean regions?)"),
        ("regions: {a: 1, a: 2}\n", "lab.yaml:1:17: regions.a: stands here a second time"),
        ("regions:\n  a: two\n", "lab.yaml:2:6: regions.a: must be a number of nodes or a list"),
        ("regions: {a: 65}\n", "lab.yaml:1:14: regions.a: must be between 1 and 64, is 65"),
        ("regions: {a: []}\n", "lab.yaml:1:14: regions.a: a region has at least one node"),
        ("regions: {a: [x, x]}\n", "lab.yaml:1:18: regions.a: there are two nodes called x"),
        ("regions: {a: [x_y]}\n", "lab.yaml:1:15: regions.a: 'x_y' is no name of a node"),
        ("regions: {A!: 1}\n", "regions.A!: is no name of a region"),
        ("regions: {a: 1}\nservers: 2\n", "lab.yaml:2:10: servers: must be between 1 and 1, is 2"),
        ("regions: {a: 1}\nservers: -1\n", "lab.yaml:2:10: servers: must be a whole number"),
        ("regions: {a: 1}\ndiscovery: {dht: no}\n", "lab.yaml:2:18: discovery.dht: must be true or false"),
        ("regions: {a: 1}\nnodes: {n2: {}}\n", "lab.yaml:2:9: nodes.n2: unknown key (known: n1)"),
        ("regions: {a: 1}\nconfig: {p2p: {a: 1, a: 2}}\n", "lab.yaml:2:22: config.p2p.a: stands here a"),
        ("regions: {a: 1}\nconfig: [x]\n", "lab.yaml:2:9: config: must be a mapping"),
        ("regions: &r {a: 1}\nnodes: *r\n", "lab.yaml:2:8: aliases (*r) are not accepted"),
        ("regions: {a: 1\n", "lab.yaml:2:1: this is not YAML"),
        ("regions:\n\ta: 1\n", "lab.yaml:2:1: this is not YAML"),
        ("- a\n", "lab.yaml:1:1: must be a mapping"),
        ("regions: {a: 1}\n" + "#" * 70_000, "the file is larger than 64 KiB"),
        ("regions: " + "[" * 60_000, "lab.yaml:1:29: nested deeper than 20 levels"),
    ],
)
def test_a_mistake_names_its_place(text: str, expected: str) -> None:
    found = problems(text)
    assert any(expected in problem for problem in found), found


def test_the_example_on_the_door_plate_is_a_topology() -> None:
    plate = Path(p2p_simulations.__path__[0]).parent / "README.md"
    example = plate.read_text().partition("```yaml\n")[2].partition("```")[0]
    assert parse_topology(example, "README.md").names == ("n1", "n2", "lyon", "metz", "n3")


def test_all_mistakes_are_told_at_once() -> None:
    assert len(problems("regions: {a: 0, b: [x, x]}\nservers: many\nfoo: 1\n")) == 4


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("n1,n2|n3,n4,n5", (("n1", "n2"), ("n3", "n4", "n5"))),
        (" n1 , n2 | n3 ", (("n1", "n2"), ("n3",), ("n4", "n5"))),
        ("n4", (("n4",), ("n1", "n2", "n3", "n5"))),
        ("n1|n2|n3|n4|n5", (("n1",), ("n2",), ("n3",), ("n4",), ("n5",))),
    ],
)
def test_a_partition_is_read(text: str, groups: tuple[tuple[str, ...], ...]) -> None:
    assert parse_groups(text, default_topology().names) == groups


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty name or group"),
        ("n1,|n2", "empty name or group"),
        ("n1||n2", "empty name or group"),
        ("n1|n6", "'n6', which is no node"),
        ("n1|n1", "names n1 twice"),
        ("n1,n2,n3,n4,n5", "cuts nothing"),
    ],
)
def test_a_bad_partition_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_groups(text, default_topology().names)
    assert caught.value.hint


def test_an_unknown_node_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError) as caught:
        make_topology({"r": ("paris", "lyon")}).place("pari")
    assert "paris" in caught.value.hint


def test_devices_have_names_that_the_kernel_takes() -> None:
    names = tuple(f"a-very-long-name-of-a-node-{i:02}" for i in range(1, 65))
    topology = make_topology({"somewhere": names})
    ports = [port(place) for place in topology.places]
    assert len(set(ports)) == 64
    assert all(len(name) <= 15 for name in ports)
    assert "type bridge" in bridges_batch(topology)
    assert "netns 4711" in cable_batch(topology.places[0], 4711)


def test_a_partition_cuts_each_pair_in_both_directions() -> None:
    script = partition_script(default_topology(), (("n1",), ("n2", "n3", "n4", "n5")))
    assert 'iifname "p1-n1" oifname "p2-n2" drop' in script
    assert 'iifname "p2-n2" oifname "p1-n1" drop' in script
    assert "ip saddr 198.18.1.11 ip daddr 198.18.3.11 drop" in script
    assert "ip6 saddr fd6c:6162:0:3::b ip6 daddr fd6c:6162:0:1::b drop" in script
    assert "198.18.2.12 ip daddr 198.18.3.11" not in script
    assert "drop" not in partition_script(default_topology(), ())


def test_a_cloud_config_says_what_the_topology_says() -> None:
    topology = parse_topology(WHOLE, "lab.yaml")
    text = cloud_config(topology, topology.place("lyon"), "kp2p1_x")
    assert text.startswith("#cloud-config\n")
    assert yaml.safe_load(text) == {
        "hostname": "lyon",
        "p2p": {
            "network_token": "kp2p1_x",
            "public_dht": False,
            "region": "west",
            "minimum_nodes": 4,
            "role": "worker",
        },
        "k3s": {"args": ["--debug"]},
    }
    other = yaml.safe_load(cloud_config(default_topology(), default_topology().places[0], "kp2p1_x"))
    assert other["p2p"]["auto"] == {"ha": {"master_nodes": 2}}


def test_a_labs_token_is_one_that_nodes_read(lab_root: object) -> None:
    from p2p_simulations.lab.lab import Lab

    lab = Lab.create(parse_topology(WHOLE, "lab.yaml"), "token")
    token = parse_token(lab._meant.token)
    assert (token.bootstrap, token.dht, token.mdns) == ((), True, True)


def test_regions_behind_nat_are_read_kept_and_never_dialled_first() -> None:
    topology = parse_topology("regions: {a: 1, b: 1, c: 2}\nnat: {b: full-cone, c: symmetric}\n", "lab.yaml")
    assert topology.nat == {"b": "full-cone", "c": "symmetric"}
    assert from_document(as_document(topology)) == topology
    assert topology.bootstrap() == ("198.18.1.11:4701",)
    script = nat_script(topology, topology.nat)
    assert 'iifname != { "region2", "region3" } ip daddr 198.19.2.1 dnat ip to 198.18.2.11' in script
    assert "198.19.3.1 fully-random" in script
    assert "region1" not in script
    assert 'iifname "region3" ct zone set 3003 return' in script
    assert 'oifname "wan0" iifname != { "region2", "region3" } drop' in script
    assert "route add 198.19.2.1/32 dev wan0" in bridges_batch(topology)
    cut = partition_script(topology, ((topology.names[0], topology.names[1]), topology.names[2:]))
    assert "ip saddr 198.19.2.1 ip daddr 198.18.3.11 drop" in cut
    assert "ip saddr 198.19.3.1" not in cut, "two nodes share that address"
    assert nat_script(topology, {}).splitlines() == [
        "table inet nat-regions",
        "delete table inet nat-regions",
    ]


@pytest.mark.parametrize(
    ("nat", "why"),
    [
        ("{d: symmetric}", "there is no region 'd'"),
        ("{a: conical}", "'conical' is no kind of NAT"),
        ("{c: full-cone}", "full-cone NAT stands before a region of one node"),
        ("[a]", "must be a mapping"),
    ],
)
def test_a_mistake_about_nat_is_told(nat: str, why: str) -> None:
    assert any(why in problem for problem in problems(f"regions: {{a: 1, c: 2}}\nnat: {nat}\n"))
