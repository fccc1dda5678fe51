"""Does a cluster come back that lost its majority, its disks, its power, or all of its machines?

Real agents and (stand-in) k3s in namespaces; every test ends with the same question: exactly one cluster,
and what people had stored is there.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable

import pytest
from clusters import (
    ca_hashes,
    cluster_ids,
    cluster_inits,
    facts_for_ever,
    is_stored,
    statuses,
    store,
    wait_ready,
)

from p2p_bootstrap.api.service import StatusDoc
from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import kairos_p2p
from p2p_simulations.lab.topology import make_topology

LabFactory = Callable[..., Lab]
pytestmark = pytest.mark.timeout(600)
FAST = {"k3s": {"args": ["--etcd-arg=heartbeat-interval=200", "--etcd-arg=election-timeout=1500"]}}
PASSPHRASE = "correct horse battery staple"


def verb(lab: Lab, name: str, *words: str, code: int = 0, timeout_s: float = 90.0) -> str:
    """What a verb says on a node; it must end with `code`."""
    done = lab.node(name).exec([*kairos_p2p(), *words], timeout_s)
    assert done.returncode == code, (
        f"{' '.join(words)} on {name}: {done.returncode} {done.stderr} {done.stdout}"
    )
    return done.stdout + done.stderr


def servers_of(seen: dict[str, StatusDoc]) -> list[str]:
    return sorted(name for name, s in seen.items() if s["role"]["role"] == "server")


def lose_disk(lab: Lab, name: str) -> None:
    """The machine is off, and its disk is an empty one afterwards."""
    disk = lab.node(name).folder / "disk"
    for child in disk.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()


def copies(lab: Lab, name: str, snapshot: str) -> list[str]:
    rows = json.loads(verb(lab, name, "cluster", "snapshot", "list", "-o", "json"))
    return next((row["held_by"] for row in rows if row["name"] == snapshot), [])


def put(lab: Lab, name: str, path: str, text: str) -> None:
    done = lab.node(name).exec(["sh", "-c", f"umask 077; cat > {path}"], stdin=text)
    assert done.returncode == 0, done.stderr


def test_two_of_three_servers_and_then_all_machines_are_lost(lab: LabFactory) -> None:
    topology = make_topology({"here": ("n1", "n2", "n3", "n4")}, servers=3, config=FAST)
    mine = lab(topology, agents=True)
    formed = wait_ready(mine)
    a, b, survivor = servers_of(formed)
    agent = next(name for name in formed if name not in (a, b, survivor))
    store(mine, survivor, "before")
    saved = verb(mine, survivor, "cluster", "snapshot", "save", "--name", "evening").split()[0]
    mine.wait(lambda: len(copies(mine, agent, saved)) >= 3, 60, "the snapshot to be copied to other servers")
    store(mine, survivor, "after")

    for name in (a, b):
        mine.kill(name, "node")
        lose_disk(mine, name)
    began = time.monotonic()
    mine.wait(
        lambda: "1 of 3 servers is in sight" in statuses(mine, [survivor])[survivor]["role"]["reason"],
        60,
        "the survivor to say that it is a minority",
    )
    print(f"quorum loss told after {time.monotonic() - began:.1f} s")
    refused = verb(mine, agent, "cluster", "recover", "--yes", code=1)
    assert "could keep the cluster going" in refused
    plan = verb(mine, agent, "cluster", "recover", "--lost", f"{a},{b}", "--plan")
    assert survivor in plan
    assert "would be lost" in plan
    began = time.monotonic()
    verb(mine, agent, "cluster", "recover", "--lost", f"{a},{b}", "--yes")
    mine.wait(
        lambda: all(
            s["role"]["epoch"] == 2 and s["role"]["ready"] for s in statuses(mine, [survivor, agent]).values()
        ),
        120,
        "the cluster to be back",
    )
    print(f"recovered after {time.monotonic() - began:.1f} s")
    assert is_stored(mine, survivor, "before")
    assert is_stored(mine, survivor, "after")
    kept = mine.node(survivor).exec(["sh", "-c", "ls -d /var/lib/rancher/k3s/server/db/etcd-before-*"]).stdout
    assert kept.strip(), "etcd's data was copied aside before the reset"

    for name in (a, b):
        mine.boot(name)  # with empty disks: the same host names, new identities
    mine.wait(
        lambda: len(servers_of({n: s for n, s in statuses(mine).items() if s["role"]["ready"]})) == 3,
        180,
        "three servers again",
    )
    again = wait_ready(mine)
    a, b, survivor = servers_of(again)  # whoever the authority made one meanwhile
    assert len(cluster_ids(again)) == 1
    assert len(ca_hashes(mine)) == 1
    assert cluster_inits(mine) == []
    assert is_stored(mine, a, "after")

    before = facts_for_ever(again)
    chance = random.Random(int(time.time()))
    names = list(mine.topology.names)
    for name in names:
        mine.kill(name, "node")
    chance.shuffle(names)
    began = time.monotonic()
    for name in names:
        mine.boot(name)
    assert facts_for_ever(wait_ready(mine)) == before
    print(f"cold restart in order {names}: {time.monotonic() - began:.1f} s")
    assert is_stored(mine, b, "after")

    # back to the snapshot, while everything works: an operator's wish
    verb(mine, a, "cluster", "recover", "--from-snapshot", saved, "--yes")
    mine.wait(
        lambda: all(s["role"]["epoch"] == 3 and s["role"]["ready"] for s in statuses(mine).values()),
        120,
        "the snapshot to be restored",
    )
    assert is_stored(mine, a, "before")
    assert not is_stored(mine, a, "after")

    put(mine, survivor, "/run/pass", PASSPHRASE)
    verb(mine, survivor, "backup", "/var/cluster.backup", "--passphrase-file", "/run/pass")
    ca = ca_hashes(mine)
    raw = mine.node(survivor).exec(["base64", "/var/cluster.backup"]).stdout
    assert mine.node(survivor).exec(["grep", "-ac", "a user", "/var/cluster.backup"]).stdout.strip() == "0"
    mine.down()

    new = lab(make_topology({"here": ("n1",), "there": ("m2",)}, servers=1, config=FAST), agents=True)
    wait_ready(new)
    put(new, "m2", "/run/backup.b64", raw)
    new.node("m2").exec(["sh", "-c", "base64 -d /run/backup.b64 > /run/backup"])
    put(new, "m2", "/run/wrong", "another passphrase")
    put(new, "m2", "/run/pass", PASSPHRASE)
    said = verb(new, "m2", "restore", "/run/backup", "--passphrase-file", "/run/wrong", "--yes", code=1)
    assert "right passphrase" in said
    new.node("m2").exec(["sh", "-c", "head -c 9000 /run/backup > /run/torn"])
    said = verb(new, "m2", "restore", "/run/torn", "--passphrase-file", "/run/pass", "--yes", code=1)
    assert "torn" in said
    right = ("restore", "/run/backup", "--passphrase-file", "/run/pass", "--yes")
    said = verb(new, "m2", *right, "--lost", "m2,m9", code=2)
    assert "nodes go by the name m9" in said
    verb(new, "m2", *right)
    new.wait(
        lambda: all(s["role"]["epoch"] == 2 and s["role"]["ready"] for s in statuses(new).values()),
        120,
        "the backup to be restored",
    )
    assert is_stored(new, "m2", "before")
    assert ca_hashes(new) == ca, "kubeconfigs of the old cluster stay valid"
    assert len(cluster_ids(statuses(new))) == 1


def test_two_clusters_of_one_mesh_wait_for_a_person_and_become_one(lab: LabFactory) -> None:
    """p2p.minimum_nodes says 2, there are four, and the network is broken while they form."""
    topology = make_topology(
        {"left": ("n1", "n2"), "right": ("n3", "n4")}, servers=1, minimum_nodes=2, config=FAST
    )
    mine = lab(topology)
    mine.partition([["n1", "n2"], ["n3", "n4"]])
    for name in topology.names:
        mine.start_agent(name)
    formed = wait_ready(mine)
    assert len(cluster_ids(formed)) == 2
    left, right = (next(s for s in servers_of(formed) if s in half) for half in (("n1", "n2"), ("n3", "n4")))
    store(mine, left, "of-left")
    store(mine, right, "of-right")
    mine.heal()
    began = time.monotonic()
    mine.wait(
        lambda: {s["role"]["state"] for s in statuses(mine).values()} == {"CONTESTED"},
        60,
        "every node to see that there are two clusters",
    )
    print(f"two clusters told after {time.monotonic() - began:.1f} s")
    assert is_stored(mine, left, "of-left"), "both go on"
    assert is_stored(mine, right, "of-right")
    assert "given up" in verb(mine, "n2", "cluster", "resolve", "--keep", right, "--plan")
    began = time.monotonic()
    verb(mine, "n2", "cluster", "resolve", "--keep", right, "--yes")
    mine.wait(
        lambda: all(s["role"]["epoch"] == 2 and s["role"]["ready"] for s in statuses(mine).values()),
        120,
        "all to be in the one that was kept",
    )
    print(f"one cluster again after {time.monotonic() - began:.1f} s")
    assert len(cluster_ids(statuses(mine))) == 1
    assert is_stored(mine, right, "of-right")
    aside = (
        mine.node(left).exec(["sh", "-c", "ls -d /var/lib/rancher/k3s/set-aside-kept-*/server/db/*"]).stdout
    )
    assert "snapshots" in aside, "a snapshot was taken before the data was set aside"
    assert "etcd" in aside
