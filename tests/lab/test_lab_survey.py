"""Does the demo read what the APIs say, and does it notice everything that is missing?"""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import permutations
from typing import Any

from p2p_simulations.lab import survey as seen
from p2p_simulations.lab.progress import PlainProgress
from p2p_simulations.lab.rendering import node_table, report
from p2p_simulations.lab.survey import Survey
from p2p_simulations.lab.topology import default_topology

TOPOLOGY = default_topology()


def status_of(name: str, number: int, **role: Any) -> dict[str, Any]:
    """A status document as the agent answers it."""
    return {
        "node": {
            "peer": f"12D3KooW{name}",
            "hostname": name,
            "region": TOPOLOGY.place(name).region,
            "zone": "",
            "version": "0.1.0",
            "pid": 7,
        },
        "mesh": {"mesh_id": "ab", "network_id": "kairos", "state": "joined", "peers": 4, "known": 4},
        "vpn": {
            "state": "up",
            "device": "kp2p0",
            "ipv4": f"10.144.3.{number}",
            "ipv6": f"fd00::{number}/64",
            "mtu": 1420,
            "error": "",
        },
        "role": {
            "state": "MEMBER",
            "role": "server" if number < 4 else "agent",
            "reason": f"{name} is number {number} by rank",
            "epoch": 1,
            "cluster_id": "c",
            "ready": True,
        }
        | role,
        "k3s": {"state": "running", "version": "v1.36.0+k3s1-simulated", "pid": 9, "error": ""},
        "phases": [{"name": name_, "at_s": at_s + number} for at_s, name_ in enumerate(seen.PHASES)],
    }


def api_node(name: str, number: int, ready: str = "True") -> dict[str, Any]:
    """An item of a Kubernetes NodeList."""
    return {
        "metadata": {
            "name": name,
            "labels": {
                "node-role.kubernetes.io/control-plane": "true",
                "node-role.kubernetes.io/etcd": "true",
                "topology.kubernetes.io/region": "east",
            },
        },
        "status": {
            "conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": ready}],
            "addresses": [
                {"type": "InternalIP", "address": f"10.144.3.{number}"},
                {"type": "Hostname", "address": name},
            ],
            "nodeInfo": {"kubeletVersion": "v1.36.0+k3s1"},
        },
    }


def whole() -> Survey:
    """A demo that saw everything."""
    nodes = tuple(seen.node_view(place, status_of(place.name, place.index)) for place in TOPOLOGY.places)
    pings = dict.fromkeys(permutations(TOPOLOGY.names, 2), 0.25)
    items = [api_node(place.name, place.index) for place in TOPOLOGY.places]
    return Survey(
        nodes=nodes,
        api_nodes=seen.api_nodes({"kind": "NodeList", "items": items}),
        api_url="https://10.144.3.1:6443",
        pings_v4=pings,
        pings_v6=pings,
        times=(("genesis", 8.1), ("all nodes ready", 9.5), ("API checked", 10.0)),
        memory={"agent": [90_000_000, 110_000_000, 100_000_000], "dataplane": []},
    )


def test_a_whole_demo_has_no_problems() -> None:
    assert seen.problems(whole()) == ()


def test_the_report_shows_everything() -> None:
    text = report(whole())
    for word in (
        *TOPOLOGY.names,
        "10.144.3.1",
        "n4 is number 4 by rank",
        "control-plane,etcd",
        "v1.36.0+k3s1",
        "https://10.144.3.1:6443",
        "0.25",
        "IPv6: 20 of 20 pairs answered, 0.25 to 0.25 ms",
        "API checked",
        "agent    100 MB  110 MB",
        "k3s was SIMULATED",
    ):
        assert word in text, word
    assert ["genesis", "3.0", "s", "7.0", "s", "8.1", "s"] in [line.split() for line in text.splitlines()]
    assert "LOST" not in text


def test_a_real_k3s_is_called_real() -> None:
    survey = whole()
    nodes = tuple(replace(node, k3s_version="v1.36.0+k3s1") for node in survey.nodes)
    assert seen.k3s_kind(replace(survey, nodes=nodes)) == "k3s was real (v1.36.0+k3s1)"
    assert seen.k3s_kind(Survey(())) == "k3s: none was started"


def test_everything_that_is_missing_is_a_problem() -> None:
    survey = whole()
    waiting = seen.node_view(
        TOPOLOGY.places[3], status_of("n4", 4, ready=False, state="JOIN", reason="waits for a server")
    )
    silent = seen.node_view(TOPOLOGY.places[4], None)
    nodes = (*survey.nodes[:3], waiting, silent)
    rows = seen.api_nodes(
        {"items": [api_node("n1", 1), api_node("n2", 2, "Unknown"), api_node("x", 4), api_node("n3", 3)]}
    )
    pings = {pair: None if pair == ("n1", "n3") else 0.1 for pair in survey.pings_v4}
    found = seen.problems(replace(survey, nodes=nodes, api_nodes=rows, pings_v6=pings))
    assert found == (
        "n4 is not ready: JOIN: waits for a server",
        "n5: its agent does not answer",
        "n2 is NotReady in the cluster's node list",
        "n5 is not in the cluster's node list",
        "ping over the VPN (IPv6) was lost: n1 -> n3",
    )
    text = report(replace(survey, nodes=nodes, api_nodes=rows, pings_v6=pings))
    assert "silent" in text
    assert "join" in text
    assert "IPv6: 19 of 20 pairs" in text


def test_a_stranger_in_the_cluster_is_a_problem() -> None:
    survey = whole()
    stranger = replace(survey.api_nodes[0], name="stranger", ipv4="10.144.3.99")
    found = seen.problems(replace(survey, api_nodes=(*survey.api_nodes, stranger)))
    assert found == ("the cluster lists 6 nodes, the lab has 5",)


def test_an_api_that_was_not_read_is_told_with_its_reason() -> None:
    survey = replace(whole(), api_nodes=(), api_url="", api_error="n1 hands out no kubeconfig: not yet")
    assert "n1 hands out no kubeconfig: not yet" in seen.problems(survey)
    assert "not read: n1 hands out no kubeconfig" in report(survey)


def test_odd_documents_read_as_empty() -> None:
    place = TOPOLOGY.places[0]
    for document in ({}, {"vpn": None, "role": [], "phases": [1, {"name": "mesh", "at_s": "x"}]}):
        view = seen.node_view(place, document)
        assert (view.answers, view.ready, view.ipv4, dict(view.phases)) == (True, False, "", {})
    for document in (None, [], "text"):
        assert not seen.node_view(place, document).answers
    for document in (None, {}, {"items": None}, []):
        assert seen.api_nodes(document) == ()


def test_a_nodes_words_cannot_steer_the_terminal() -> None:
    view = seen.node_view(TOPOLOGY.places[0], status_of("n1", 1, reason="red \x1b[31m and\nnew line"))
    assert "\x1b" not in node_table([view])
    assert len(node_table([view]).splitlines()) == 2


def test_plain_progress_says_each_thing_once() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream)
    early = status_of("n1", 1, state="WAIT", reason="waits for n2", ready=False)
    early["phases"] = early["phases"][:1]
    for document in (None, early, early, status_of("n1", 1), status_of("n1", 1)):
        progress.show([seen.node_view(TOPOLOGY.places[0], document)])
    lines = [line.split(" s  ", 1)[1] for line in stream.getvalue().splitlines()]
    assert lines == [
        "n1  mesh",
        "n1  WAIT      waits for n2",
        "n1  vpn       10.144.3.1",
        "n1  genesis",
        "n1  role      server",
        "n1  ready",
    ]
