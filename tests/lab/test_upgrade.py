"""Does another k3s come to all nodes through the mesh, and back again where it does not start?

Real agents; each node has a k3s of its own, as a release would be: the stand-in, saying another version.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from clusters import ca_hashes, facts_for_ever, statuses, wait_ready

from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import kairos_p2p
from p2p_simulations.lab.topology import make_topology

LabFactory = Callable[..., Lab]
pytestmark = pytest.mark.timeout(600)
OLD, NEW, BAD, NEXT = (f"v1.36.{patch}+k3s1" for patch in (1, 2, 3, 4))
PLACE = "/var/lib/rancher/bin/k3s"
FAST = {"k3s": {"args": ["--etcd-arg=heartbeat-interval=200", "--etcd-arg=election-timeout=1500"]}}


def program(version: str, *, not_on: str = "") -> str:
    """A k3s of that version; it does not start on one node."""
    return f"""#!/bin/sh
[ "$1" = --version ] && echo "k3s version {version} (of the lab)" && exit 0
[ "$(hostname)" = "{not_on}" ] && echo "level=fatal msg=\\"this release has a bug\\"" && exit 1
export K3S_SIMULATED_VERSION={version}
exec "{sys.executable}" -m p2p_simulations.k3s "$@"
"""


def verb(lab: Lab, at: str, *words: str, timeout_s: float = 170.0) -> tuple[int, str, str]:
    done = lab.node(at).exec([*kairos_p2p(), "k3s", "upgrade", *words], timeout_s)
    return done.returncode, done.stdout, done.stderr


def look(lab: Lab, at: str) -> dict[str, Any]:
    code, out, err = verb(lab, at, "-o", "json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def on_disk(lab: Lab, name: str) -> str:
    return lab.node(name).exec([PLACE, "--version"]).stdout.split()[2]


def kubelets(lab: Lab, at: str) -> dict[str, str]:
    """The version that each Kubernetes Node says."""
    done = lab.node(at).exec(["sh", "-c", "$K3S_BIN kubectl get nodes -o json"], 30)
    items = json.loads(done.stdout)["items"]
    said = {i["metadata"]["name"]: i["status"]["nodeInfo"]["kubeletVersion"] for i in items}
    return {name: version.removesuffix("-simulated") for name, version in said.items()}


def test_k3s_is_upgraded_through_the_mesh_and_a_bad_release_goes_back(
    lab: LabFactory,
) -> None:
    names = ("n1", "n2", "n3", "n4")
    topology = make_topology({"here": names}, servers=3, config=FAST)
    mine = lab(topology, env={"K3S_BIN": PLACE})
    for name in names:
        folder = mine.node(name).folder / "disk" / "var-lib-rancher" / "bin"
        folder.mkdir()
        (folder / "k3s").write_text(program(OLD))
        (folder / "k3s").chmod(0o755)
        mine.start_agent(name)
    formed = wait_ready(mine)
    before = facts_for_ever(formed)
    servers = sorted(n for n, s in formed.items() if s["role"]["role"] == "server")
    (agent,) = set(names) - set(servers)
    plan = [*kairos_p2p(), "plan", "-o", "json"]

    def holders() -> set[str]:
        return {json.loads(mine.node(name).exec(plan).stdout or "{}").get("holder", "") for name in servers}

    (holder,) = mine.wait(lambda: len(found := holders()) == 1 and "" not in found and found, 60, "a holder")
    first, second = sorted(set(servers) - {holder})  # who decides goes last
    at = first
    mine.wait(lambda: {n["k3s"] for n in look(mine, at)["nodes"]} == {OLD}, 60, "all to say what they run")

    def release(version: str, not_on: str = "") -> tuple[str, ...]:
        """The options for a release that only the node `at` has."""
        text = program(version, not_on=not_on)
        (mine.node(at).folder / "disk" / "oem" / f"k3s-{version}").write_text(text)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        return ("--version", version, "--from", f"/oem/k3s-{version}", "--sha256", sha256)

    good = release(NEW)
    code, out, _ = verb(mine, at, *good, "--plan")
    assert code == 6
    turns = [line.split()[1] for line in out.splitlines() if f"goes on to {NEW}" in line]
    assert turns == [first, second, holder, agent]
    code, _, err = verb(mine, agent, *good, "--yes")
    assert code == 1
    assert "no server" in err
    code, _, err = verb(mine, at, "--version", "v1.38.0+k3s1", "--yes")
    assert code == 1
    assert "more than one minor version" in err

    code, _, err = verb(mine, at, *good, "--yes", "--patience", "40s")
    assert code == 0, err
    assert f"all nodes run {NEW}" in err
    assert facts_for_ever(wait_ready(mine)) == before
    assert {on_disk(mine, name) for name in names} == {NEW}
    mine.wait(lambda: set(kubelets(mine, at).values()) == {NEW}, 60, "Kubernetes to see the new version")
    assert {s["k3s"]["version"] for s in statuses(mine).values()} == {NEW}

    # a release that does not start on one server: it puts the old one back, and who was before it returns too
    bad = release(BAD, not_on=second)
    code, _, err = verb(mine, at, *bad, "--yes", "--patience", "12s")
    assert code == 1
    assert f"{second}: k3s was not ready" in err
    assert "those that had changed are back" in err
    again = wait_ready(mine)
    assert facts_for_ever(again) == before
    assert {on_disk(mine, name) for name in names} == {NEW}
    assert len(ca_hashes(mine)) == 1
    rows = {n["hostname"]: n for n in look(mine, at)["nodes"]}
    assert {n: rows[n]["phase"] for n in names} == {
        first: "returned", second: "failed", holder: "staged", agent: "staged",
    }  # fmt: skip
    saved = mine.node(at).exec([*kairos_p2p(), "cluster", "snapshot", "list", "-o", "name"]).stdout
    assert "before-upgrade" in saved

    # an order that a person takes back while the first server is at it, by the word of another server
    code, _, err = verb(mine, at, *release(NEXT), "--yes", "--no-wait", "--patience", "40s")
    assert code == 0, err

    def changing() -> bool:
        return next(n["phase"] for n in look(mine, holder)["nodes"] if n["hostname"] == first) in (
            "trying",
            "done",
        )

    mine.wait(changing, 90, "the first server's turn")
    code, _, err = verb(mine, holder, "--abort")
    assert code == 0, err
    assert facts_for_ever(wait_ready(mine)) == before
    assert {on_disk(mine, name) for name in names} == {NEW}
    assert look(mine, holder)["state"] == "stopped"
    code, _, err = verb(mine, holder, "--abort", "--version", NEXT)
    assert code == 2
