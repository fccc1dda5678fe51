"""Are a lab's nodes machines of their own, and do faults do what they say?"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2p_network.core.errors import TimedOut, UsageError
from p2p_simulations.lab import lab as lab_module
from p2p_simulations.lab.commands import LabError
from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.topology import make_topology

LabFactory = Callable[..., Lab]
PAIR = make_topology({"here": ("a", "b")})


def reaches(lab: Lab, pairs: Iterable[tuple[str, str]], *, by: str = "both") -> set[tuple[str, str]]:
    """Those of `pairs` in which the first node can ping the second: by "both" IPv4 and IPv6, or by "any"."""

    def one(pair: tuple[str, str]) -> bool:
        place = lab.topology.place(pair[1])
        answers = [
            lab.node(pair[0]).exec(["ping", "-q", "-n", "-c1", "-W0.5", address]).returncode == 0
            for address in (place.ipv4, place.ipv6)
        ]
        return all(answers) if by == "both" else any(answers)

    pairs = list(pairs)
    with ThreadPoolExecutor(8) as pool:
        return {pair for pair, yes in zip(pairs, pool.map(one, pairs), strict=True) if yes}


def all_pairs(names: Iterable[str]) -> set[tuple[str, str]]:
    names = list(names)
    return {(a, b) for a in names for b in names if a != b}


def out(lab: Lab, name: str, script: str) -> str:
    done = lab.node(name).exec(["sh", "-c", script])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_node_is_a_machine_of_its_own(lab: LabFactory) -> None:
    mine = lab(PAIR)
    for name in ("a", "b"):
        assert out(mine, name, "hostname; cat /etc/hostname; uname -n").split() == [name] * 3
        assert "holder.py" in out(mine, name, "cat /proc/1/cmdline | tr '\\0' ' '")
    assert out(mine, "a", "cat /etc/machine-id") != out(mine, "b", "cat /etc/machine-id")
    assert out(mine, "a", "ls /run") == ""
    assert "eth0" in out(mine, "a", "ls /sys/class/net")
    # only the holder, the shell and ps
    assert len(out(mine, "a", "ps -e -o pid=").split()) == 3
    assert "mtu 1500" in out(mine, "a", "ip link show eth0")


def test_a_node_boots_from_its_cloud_config(lab: LabFactory) -> None:
    mine = lab(PAIR)
    text = out(mine, "a", "cat /oem/90_custom.yaml; stat -c %a /oem/90_custom.yaml")
    assert text.startswith("#cloud-config\nhostname: a\n")
    assert text.endswith("\n600")
    assert "region: here" in text
    assert "minimum_nodes: 2" in text


def test_a_node_changes_nothing_on_the_host(lab: LabFactory) -> None:
    mine = lab(PAIR)
    mark = f"kairos-p2p-lab-test-{os.getpid()}"
    own = ("/etc", "/etc/rancher", "/var", "/var/lib/rancher", "/root", "/tmp", "/run", "/oem", "/dev/shm")
    for folder in own:
        out(mine, "a", f"echo x > {folder}/{mark}")
        assert not Path(folder, mark).exists(), folder
        assert out(mine, "b", f"ls {folder} | grep -c {mark} || true") == "0", folder
    for folder in ("/usr", "/opt", "/srv"):
        done = mine.node("a").exec(["touch", f"{folder}/{mark}"])
        assert "Read-only file system" in done.stderr, folder


def test_every_node_reaches_every_other(lab: LabFactory) -> None:
    mine = lab()
    assert reaches(mine, all_pairs(mine.topology.names)) == all_pairs(mine.topology.names)


def test_a_partition_cuts_inside_and_between_regions_until_it_heals(lab: LabFactory) -> None:
    mine = lab()
    everyone = all_pairs(mine.topology.names)
    groups = mine.partition([["n1"], ["n3", "n4"]])
    assert groups == (("n1",), ("n3", "n4"), ("n2", "n5"))
    left = all_pairs(["n3", "n4"]) | all_pairs(["n2", "n5"])
    assert reaches(mine, left) == left
    assert reaches(mine, everyone - left, by="any") == set()
    neighbour = "fe80::6c:61ff:fe62:102%eth0"  # n2 on the same bridge, not through the router
    assert mine.node("n1").exec(["ping", "-c1", "-W0.5", neighbour]).returncode != 0
    mine.partition([["n1", "n2"]])
    # a neighbour that could not be resolved is asked for again only after a second
    mine.wait(lambda: reaches(mine, [("n1", "n2")]), 10, "n1 and n2 to be joined again")
    assert reaches(mine, [("n2", "n3")], by="any") == set()
    assert Lab.attach(mine.name).groups == (("n1", "n2"), ("n3", "n4", "n5"))
    mine.heal()
    mine.wait(lambda: reaches(mine, everyone) == everyone, 10, "all nodes to reach each other again")
    ping = ["ping", "-c1", "-W0.5", neighbour]
    mine.wait(lambda: mine.node("n1").exec(ping).returncode == 0, 10, "n2 on n1's own bridge")
    mine.heal()


def test_a_power_cut_takes_all_but_the_disks(lab: LabFactory) -> None:
    mine = lab(PAIR)
    node = mine.node("b")
    out(
        mine, "b", "for d in /var/lib/kairos-p2p /etc/rancher /run /tmp /etc; do echo 1 > $d/mark; done; sync"
    )
    out(mine, "b", "setsid -f sleep 1000 >/dev/null 2>&1; ip link add dummy7 type bridge")
    before = {process.pid for process in node.processes()}
    assert len(before) == 2
    mine.kill("b", "node")
    assert node.processes() == []
    assert reaches(mine, [("a", "b")], by="any") == set()
    with pytest.raises(LabError, match="node b is not running"):
        node.exec(["true"])
    mine.boot("b")
    assert out(mine, "b", "ls /var/lib/kairos-p2p/mark /etc/rancher/mark").count("mark") == 2
    assert mine.node("b").exec(["ls", "/run/mark", "/tmp/mark", "/etc/mark"]).stdout == ""
    assert "dummy7" not in out(mine, "b", "ip link")
    assert len(node.processes()) == 1
    assert reaches(mine, [("a", "b"), ("b", "a")]) == {("a", "b"), ("b", "a")}
    with pytest.raises(LabError, match="node b is running"):
        mine.boot("b")


def test_a_partition_outlives_a_power_cut(lab: LabFactory) -> None:
    mine = lab(PAIR)
    mine.partition([["a"]])
    mine.kill("b", "node")
    mine.boot("b")
    assert reaches(mine, [("a", "b")], by="any") == set()


def test_exec_gives_output_status_and_input(lab: LabFactory) -> None:
    mine = lab(PAIR)
    done = mine.node("a").exec(["sh", "-c", "cat; echo bad >&2; exit 3"], stdin="good")
    assert (done.returncode, done.stdout, done.stderr) == (3, "good", "bad\n")
    with pytest.raises(UsageError):
        mine.node("c")


def test_exec_that_takes_too_long_is_killed_inside_the_node(lab: LabFactory) -> None:
    mine = lab(PAIR)
    with pytest.raises(TimedOut):
        mine.node("a").exec(["sh", "-c", "sleep 1000; true"], timeout_s=0.2)
    mine.wait(lambda: len(mine.node("a").processes()) == 1, 5, "the program to end")


def test_wait_says_what_it_waited_for(lab: LabFactory) -> None:
    mine = lab(PAIR)
    assert mine.wait(lambda: 7, 1, "seven") == 7
    with pytest.raises(TimedOut, match=r"waited 0\.05 s for a miracle"):
        mine.wait(lambda: None, 0.05, "a miracle")


AGENT = """#!/bin/sh
echo "agent says hello" >&2
setsid -f sleep 1000
[ -e /var/lib/kairos-p2p/broken ] && exit 3
exec sleep 1001
"""


@pytest.fixture
def with_agent(lab: LabFactory, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab whose agent is a shell script that passes for one; not started."""
    program = "/var/lib/kairos-p2p/kairos-p2p"
    monkeypatch.setattr(lab_module, "agent_argv", lambda: [program, "agent"])
    mine = lab(PAIR)
    for name in ("a", "b"):
        done = mine.node(name).exec(["sh", "-c", f"cat > {program}; chmod 755 {program}"], stdin=AGENT)
        assert done.returncode == 0, done.stderr
    return mine


def test_an_agent_is_restarted_on_failure_and_not_after_a_stop(with_agent: Lab) -> None:
    lab, node = with_agent, with_agent.node("a")
    lab.start_agent("a")
    first = node.agent_state()
    assert first["pid"]
    assert first["starts"] == 1
    node.start_agent()
    assert node.agent_state() == first
    assert node.exec(["kill", "-9", str(first["pid"])]).returncode == 0
    again = lab.wait(
        lambda: (state := node.agent_state())["starts"] == 2 and state, 10, "the agent to be restarted"
    )
    assert again["last_exit"] == -9
    assert again["pid"] != first["pid"]

    def left_running() -> int:
        return sum(process.argv == ("sleep", "1000") for process in node.processes())

    lab.wait(lambda: left_running() == 2, 10, "the second agent to start what it starts")
    node.stop_agent(signal.SIGTERM)
    stopped = node.agent_state()
    assert (stopped["pid"], stopped["wanted"], stopped["last_exit"]) == (0, False, -15)
    # what it left running goes on, as a data plane would
    assert left_running() == 2
    assert "agent says hello" in node.log_tail()
    assert "ended with signal 9" in node.log_tail()


def test_an_agent_that_keeps_failing_is_counted(with_agent: Lab) -> None:
    lab, node = with_agent, with_agent.node("a")
    node.exec(["touch", "/var/lib/kairos-p2p/broken"])
    lab.start_agent("a")
    state = lab.wait(
        lambda: (state := node.agent_state())["failures"] >= 2 and state, 10, "the agent to fail twice"
    )
    assert state["last_exit"] == 3
    assert state["wanted"]
    node.stop_agent()


def test_a_booted_node_starts_the_agent_that_it_had(with_agent: Lab) -> None:
    lab = with_agent
    lab.start_agent("a")
    for name in ("a", "b"):
        lab.kill(name, "node")
        lab.boot(name)
    assert lab.node("a").agent_state()["pid"]
    assert not lab.node("b").agent_state()["pid"]


def test_there_is_nothing_to_kill_on_an_empty_node(lab: LabFactory) -> None:
    mine = lab(PAIR)
    for what in ("agent", "dataplane", "k3s"):
        with pytest.raises(LabError, match=f"no {what} runs on a"):
            mine.kill("a", what)
    with pytest.raises(UsageError):
        mine.kill("a", "everything")


def test_two_labs_live_side_by_side_and_a_name_is_taken_once(lab: LabFactory, lab_root: Path) -> None:
    one, two = lab(PAIR), lab(PAIR)
    out(one, "a", "touch /etc/rancher/mark")
    assert out(two, "a", "ls /etc/rancher") == ""
    assert reaches(one, [("a", "b")])
    assert reaches(two, [("a", "b")])
    with pytest.raises(LabError, match="there is a lab 'test1' already"):
        Lab.create(PAIR, "test1", root=lab_root)
    with pytest.raises(UsageError, match="there are 2 labs"):
        Lab.attach()
    one.down()
    assert reaches(two, [("a", "b")])
    assert Lab.attach().name == "test2"
    with pytest.raises(LabError, match="there is no lab in"):
        Lab.attach("test1")


@pytest.mark.parametrize("name", ["", "UP", "a/b", "..", "-x", "x" * 33])
def test_a_bad_name_of_a_lab_is_refused(name: str, lab_root: Path) -> None:
    with pytest.raises(UsageError):
        Lab.create(PAIR, name, root=lab_root)
    assert list(lab_root.iterdir()) == []
