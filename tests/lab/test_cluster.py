"""Do machines with nothing but a token in common become one cluster, and stay it?

Real agents, libp2p, TUN devices and (stand-in or real) k3s, in namespaces. Every test ends with the same
question: exactly one cluster, nobody lost, nothing decided twice.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clusters import (
    ask,
    ca_hashes,
    cluster_ids,
    cluster_inits,
    facts_for_ever,
    statuses,
    store,
    wait_ready,
    wait_stored,
)

from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import kairos_p2p
from p2p_simulations.lab.topology import Discovery, make_topology

LabFactory = Callable[..., Lab]
THREE = {"east": ("n1",), "west": ("n2",), "north": ("n3",)}


def test_five_nodes_become_one_cluster_and_survive_everything_killed(lab: LabFactory) -> None:
    """Agents killed, a data plane, then the whole site without power: same identities, addresses, roles."""
    mine = lab(agents=True)
    formed = wait_ready(mine)
    before = facts_for_ever(formed)
    assert len(cluster_ids(formed)) == 1
    assert sorted(s["role"]["role"] for s in formed.values()) == ["agent"] * 2 + ["server"] * 3
    regions = {s["node"]["region"] for s in formed.values() if s["role"]["role"] == "server"}
    assert len(regions) == 3, "three servers stand in three regions"
    assert len({s["vpn"]["ipv4"] for s in formed.values()}) == 5
    assert cluster_inits(mine) == [], "cluster-init is on the disk only while initialising"
    server = min(name for name, s in formed.items() if s["role"]["role"] == "server")
    store(mine, server, "precious")

    pids = {name: [p.pid for p in mine.node(name).processes() if p.kind == "k3s"] for name in formed}
    target = formed["n5"]["vpn"]["ipv4"]
    ping = ["ping", "-i", "0.1", "-c", "60", "-W", "2", target]
    with subprocess.Popen(mine.node("n1").enter_argv(ping), stdout=subprocess.PIPE, text=True) as pinging:
        for name in formed:
            mine.kill(name, "agent")
        out, _ = pinging.communicate(timeout=30)
    assert "60 received" in out, f"packets flow while no agent runs: {out}"
    assert facts_for_ever(wait_ready(mine)) == before
    after = {name: [p.pid for p in mine.node(name).processes() if p.kind == "k3s"] for name in formed}
    assert after == pids, "k3s was adopted, not started again"

    mine.kill("n5", "dataplane")
    mine.wait(
        lambda: mine.node("n1").exec(["ping", "-c1", "-W1", target]).returncode == 0,
        30,
        "packets to n5 to flow again",
    )

    for name in formed:
        mine.kill(name, "node")
    for name in sorted(formed, reverse=True):
        mine.boot(name)
    assert facts_for_ever(wait_ready(mine)) == before
    assert len(ca_hashes(mine)) == 1
    wait_stored(mine, server, "precious")


def test_two_halves_before_the_genesis_become_one_cluster_after_it(lab: LabFactory) -> None:
    """The minority can't elect, whenever the cut comes; after healing there is exactly one cluster."""
    mine = lab()
    mine.partition([["n1", "n2"], ["n3", "n4", "n5"]])
    for name in mine.topology.names:
        mine.start_agent(name)

    def halves_wait() -> bool:
        seen = statuses(mine)
        return len(seen) == 5 and all("of 5 nodes are here" in s["role"]["reason"] for s in seen.values())

    mine.wait(halves_wait, 60, "both halves to wait for the rest")
    assert {s["mesh"]["peers"] for s in statuses(mine).values()} <= {0, 1, 2}
    mine.heal()
    # cut again in the middle of the election: at most one side may go on
    mine.wait(
        lambda: any(s["role"]["state"] in ("ELECT", "INIT", "WAIT") for s in statuses(mine).values()),
        60,
        "the election to begin",
    )
    mine.partition([["n1", "n2"], ["n3", "n4", "n5"]])
    until = time.monotonic() + 8
    while time.monotonic() < until:
        assert len(cluster_ids(statuses(mine))) <= 1
        time.sleep(0.5)
    mine.heal()
    formed = wait_ready(mine)
    assert len(cluster_ids(formed)) == 1
    assert len(ca_hashes(mine)) == 1


def test_agents_killed_at_random_moments_while_the_cluster_forms(lab: LabFactory) -> None:
    """kill -9 at any moment and restart: same identity, same address, no second genesis."""
    mine = lab(agents=True)
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    identities: dict[str, str] = {}
    until = time.monotonic() + 12
    while time.monotonic() < until:
        for name in mine.topology.names:  # from the disk: an agent may not live long enough to be asked
            if peer := peer_on_disk(mine, name):
                assert identities.setdefault(name, peer) == peer
        victim = mine.node(chance.choice(mine.topology.names))
        if any(p.kind == "agent" for p in victim.processes()):
            victim.kill("agent")
        time.sleep(chance.uniform(0.1, 1.0))
    assert identities, "an identity is made at the first start"
    formed = wait_ready(mine)
    after = {name: s["node"]["peer"] for name, s in formed.items()}
    assert identities.items() <= after.items()
    assert len(cluster_ids(formed)) == 1
    assert len(ca_hashes(mine)) == 1
    assert len({s["vpn"]["ipv4"] for s in formed.values()}) == 5


def test_a_stranger_gets_in_nowhere_and_a_kairos_token_works(lab: LabFactory, kairos_token: str) -> None:
    """Four nodes with an old Kairos token and old words form a cluster; the fifth has another token."""
    topology = make_topology(
        {"here": ("n1", "n2", "n3", "n4"), "there": ("n5",)},
        minimum_nodes=4,
        discovery=Discovery(bootstrap=False),
        config={"p2p": {"network_token": kairos_token, "auto": {"ha": {"master_nodes": 0}}}},
        nodes={
            "n2": {"p2p": {"role": "master"}},
            "n3": {"p2p": {"role": "worker"}},
            "n5": {
                "p2p": {
                    "network_token": fresh_token(),
                    "bootstrap": ["198.18.1.11:4701", "198.18.1.12:4701"],
                }
            },
        },
        servers=1,
    )
    mine = lab(topology, agents=True)
    formed = wait_ready(mine, ["n1", "n2", "n3", "n4"])
    assert formed["n2"]["role"]["role"] == "server"
    assert formed["n3"]["role"]["role"] == "agent"
    stranger = mine.node("n5").observe()
    assert stranger is not None
    assert stranger["mesh"]["peers"] == 0
    assert stranger["mesh"]["known"] == 0, "a stranger learns nothing, not even who is there"
    assert stranger["role"]["cluster_id"] == ""
    for name in formed:
        assert all(peer["hostname"] != "n5" for peer in ask(mine, name, "peers"))


def test_what_a_person_does_with_it(lab: LabFactory) -> None:
    """The verbs, on a formed cluster: answers on stdout, refusals with the right exit code."""
    mine = lab(make_topology(THREE, servers=1), agents=True)
    formed = wait_ready(mine)
    server = next(name for name, s in formed.items() if s["role"]["role"] == "server")
    agent = next(name for name, s in formed.items() if s["role"]["role"] == "agent")

    rows = ask(mine, agent, "roles", "list")
    assert {row["hostname"] for row in rows} == {"n1", "n2", "n3"}
    assert all(row["reason"] for row in rows)
    done = mine.node(agent).exec([*kairos_p2p(), "kubeconfig"])
    assert done.returncode == 1
    assert server in done.stderr, "an agent names the servers"
    done = mine.node(server).exec([*kairos_p2p(), "kubeconfig"])
    assert done.returncode == 0
    assert formed[server]["vpn"]["ipv4"] in done.stdout
    assert mine.node(agent).exec([*kairos_p2p(), "wait", "ready", "--timeout", "5s"]).returncode == 0

    token_text = (
        mine.node(agent).exec(["cat", "/oem/90_custom.yaml"]).stdout.split("network_token")[1].split()[1]
    )
    token = token_text.strip("'\"")
    for argv in (["ps", "-eo", "args"], [*kairos_p2p(), "status", "-o", "json"], [*kairos_p2p(), "events"]):
        assert token not in mine.node(agent).exec(argv).stdout
    assert token not in mine.node(agent).log_path.read_text()

    left = mine.node(agent).exec([*kairos_p2p(), "leave", "--yes"], 60)
    assert left.returncode == 0, left.stderr
    mine.wait(
        lambda: all(row["hostname"] != agent for row in ask(mine, server, "roles", "list")),
        20,
        "the others to know that it left",
    )
    assert not [p for p in mine.node(agent).processes() if p.kind in ("k3s", "dataplane")]


def test_ctrl_c_ends_everything_and_sigterm_only_the_agent(lab: LabFactory) -> None:
    mine = lab(make_topology({"here": ("n1",)}, servers=1), agents=True)
    wait_ready(mine)
    node = mine.node("n1")
    node.stop_agent(signal.SIGTERM)
    assert {p.kind for p in node.processes()} >= {"k3s", "dataplane"}
    node.start_agent()
    wait_ready(mine)
    node.stop_agent(signal.SIGINT, timeout_s=30)
    assert not {p.kind for p in node.processes()} & {"agent", "k3s", "dataplane"}


def peer_on_disk(lab: Lab, name: str) -> str:
    """The peer id that a node's key belongs to, "" before there is a key."""
    return (
        lab.node(name).exec(["sed", "-n", "s/^peer //p", "/var/lib/kairos-p2p/identity.key"]).stdout.strip()
    )


def fresh_token() -> str:
    """A token that nobody else has."""
    done = subprocess.run(
        [*kairos_p2p(), "token", "generate"], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.strip()


@pytest.fixture
def kairos_token() -> str:
    """base64(YAML), as Kairos makes them, with fresh secrets."""
    import base64
    import secrets

    document = "\n".join(
        [
            "otp:",
            *(
                f"  {use}:\n    interval: 9000\n    key: {secrets.token_hex(21)}\n    length: 43"
                for use in ("dht", "crypto")
            ),
            f"room: {secrets.token_hex(21)}",
            f"rendezvous: {secrets.token_hex(21)}",
            f"mdns: {secrets.token_hex(21)}",
            "max_message_size: 20971520",
        ]
    )
    return base64.b64encode(document.encode()).decode()


def test_k3s_switched_on_by_hand(lab: LabFactory) -> None:
    """No token: a server of its own and an agent that is told its server; beside a mesh without roles too."""
    arguments = {"K3S_TOKEN": "a shared word"}
    config: dict[str, Any] = {"p2p": {"auto": {"enable": False}}}
    alone = {"p2p": {"network_token": None}}
    join = {"K3S_URL": "https://198.18.1.11:6443", **arguments}
    hook = {"provider-kairos.bootstrap.after.server": [{"commands": ["touch /run/hook"]}]}
    topology = make_topology(
        {"here": ("n1", "n2", "n3")},
        servers=1,
        config=config,
        nodes={
            "n1": {**alone, "k3s": {"enabled": True, "env": arguments}, "stages": hook},
            "n2": {**alone, "k3s-agent": {"enabled": True, "env": join}},
            "n3": {"k3s": {"enabled": True, "args": ["--node-name=third"]}},
        },
    )
    mine = lab(topology, agents=True)
    formed = wait_ready(mine)
    assert {n: (s["role"]["state"], s["role"]["role"]) for n, s in formed.items()} == {
        "n1": ("LOCAL", "server"),
        "n2": ("LOCAL", "agent"),
        "n3": ("LOCAL", "server"),
    }
    shown = mine.node("n1").exec(["sh", "-c", '"$K3S_BIN" kubectl get nodes -o name'], 60).stdout.split()
    assert set(shown) == {"node/n1", "node/n2"}
    shown = mine.node("n3").exec(["sh", "-c", '"$K3S_BIN" kubectl get nodes -o name'], 60).stdout.split()
    assert shown == ["node/third"]
    mine.wait(lambda: mine.node("n1").exec(["ls", "/run/hook"]).returncode == 0, 30, "the hook to have run")
    done = mine.node("n1").exec([*kairos_p2p(), "kubeconfig"])
    assert "https://127.0.0.1:6443" in done.stdout
    assert mine.node("n2").exec([*kairos_p2p(), "kubeconfig"]).returncode == 1
    assert "in no mesh" in mine.node("n1").exec([*kairos_p2p(), "regions"]).stderr

    # the agent is no part of it: k3s outlives it and is adopted; ended, it is started again
    pids = [p.pid for p in mine.node("n1").processes() if p.kind == "k3s"]
    mine.kill("n1", "agent")
    wait_ready(mine)
    assert [p.pid for p in mine.node("n1").processes() if p.kind == "k3s"] == pids
    mine.kill("n1", "k3s")
    mine.wait(
        lambda: (now := [p.pid for p in mine.node("n1").processes() if p.kind == "k3s"]) and now != pids,
        60,
        "k3s to run again",
    )
    wait_ready(mine)


def test_k3s_without_the_vpn(lab: LabFactory) -> None:
    """`p2p.vpn.create: false`: no device, no data plane; k3s goes by the machines' own addresses."""
    config = {
        "p2p": {"vpn": {"create": False}},
        "k3s": {
            "args": ["--node-taint=a=b:NoSchedule"],
            "env": {"GREETING": "hello"},
            "embedded_registry": True,
        },
        "kubevip": {"eip": "198.18.1.200", "interface": "eth0", "enableServices": True},
        "stages": {
            f"provider-kairos.bootstrap.{when}.{role}": [
                {"name": f"{when} {role}", "commands": [f"echo {when} {role} >> /run/hooks"]}
            ]
            for when in ("before", "after")
            for role in ("master", "server", "worker")
        }
        | {"provider-kairos.bootstrap.after.agent": [{"name": "it fails", "commands": ["exit 3"]}]},
    }
    topology = make_topology({"here": ("n1", "n2")}, servers=1, config=config)
    mine = lab(topology, agents=True)
    formed = wait_ready(mine)
    server = next(name for name, s in formed.items() if s["role"]["role"] == "server")
    agent = next(name for name, s in formed.items() if s["role"]["role"] == "agent")

    def hooks(name: str) -> list[str]:
        return mine.node(name).exec(["cat", "/run/hooks"]).stdout.splitlines()

    expected = [f"{when} {role}" for when in ("before", "after") for role in ("server", "master")]
    mine.wait(lambda: hooks(server) == expected, 30, "the server's hooks to have run")
    mine.wait(lambda: hooks(agent) == ["before worker", "after worker"], 30, "the agent's hooks to have run")
    mine.wait(
        lambda: "it fails" in statuses(mine, [agent])[agent]["k3s"]["error"],
        30,
        "the failed hook to be shown",
    )
    assert "it fails" in mine.node(agent).exec([*kairos_p2p(), "events"]).stdout
    mine.kill(server, "agent")
    wait_ready(mine)
    assert hooks(server) == expected, "hooks run around the first start only"

    # the virtual IP: its manifest, and a name in the API's certificate; the user's arguments and environment
    folder = "/var/lib/rancher/k3s"
    manifest = mine.node(server).exec(["cat", f"{folder}/server/manifests/kairos-p2p-kube-vip.yaml"]).stdout
    assert "value: 198.18.1.200" in manifest
    assert "name: svc_enable" in manifest
    drop_in = mine.node(server).exec(["cat", "/etc/rancher/k3s/config.yaml.d/90-kairos-p2p.yaml"]).stdout
    assert "198.18.1.200" in drop_in
    assert "embedded-registry: true" in drop_in
    (pid,) = [p.pid for p in mine.node(server).processes() if p.kind == "k3s"][:1]
    assert "GREETING=hello" in (Path("/proc") / str(pid) / "environ").read_text()
    assert "--node-taint=a=b:NoSchedule" in (Path("/proc") / str(pid) / "cmdline").read_text()
    assert "GREETING" not in "".join(
        (Path("/proc") / str(p.pid) / "environ").read_text()
        for p in mine.node(agent).processes()
        if p.kind == "k3s"
    )
    mirrors = mine.node(agent).exec(["cat", "/etc/rancher/k3s/registries.yaml"]).stdout
    assert "mirrors:" in mirrors, "agents use the embedded registry too"
    assert mine.node(agent).exec(["ls", f"{folder}/server/manifests"]).returncode != 0
    assert len(cluster_ids(formed)) == 1
    assert {s["vpn"]["state"] for s in formed.values()} == {"off"}
    assert not [p for n in formed for p in mine.node(n).processes() if p.kind == "dataplane"]
