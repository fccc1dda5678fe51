"""Does a node that can't do its work say what is wrong and what to do, and go on once that is done?"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from clusters import ask, cluster_ids, wait_ready

from p2p_bootstrap.api.service import StatusDoc
from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import Node, kairos_p2p
from p2p_simulations.lab.topology import Topology, make_topology

LabFactory = Callable[..., Lab]


def alone() -> Topology:
    """One node that may form a cluster by itself."""
    return make_topology({"here": ("n1",)}, servers=1)


def wait_status(lab: Lab, condition: Callable[[StatusDoc], bool], what: str) -> StatusDoc:
    """Wait until n1's status is such."""

    def look() -> StatusDoc | None:
        status = lab.node("n1").observe()
        return status if status is not None and condition(status) else None

    found = lab.wait(look, 60, what)
    assert found is not None
    return found


@contextmanager
def running(node: Node, argv: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A program in the node, which ends with the block."""
    with subprocess.Popen(
        node.enter_argv(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def listening(node: Node, port: int) -> Iterator[None]:
    """Another program uses this TCP port in the node."""
    listen = f"s = socket.create_server(('0.0.0.0', {port}))"
    code = f"import socket, sys; {listen}; print('up', flush=True); sys.stdin.read()"
    with running(node, ["python3", "-c", code]) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "up\n"
        yield


def test_k3s_is_not_installed(lab: LabFactory) -> None:
    mine = lab(alone(), agents=True, env={"K3S_BIN": "/nowhere/k3s"})
    status = wait_status(mine, lambda s: s["k3s"]["state"] == "absent", "the absence to be noticed")
    assert "k3s is not installed" in status["k3s"]["error"]
    assert "K3S_BIN" in status["k3s"]["error"]
    done = mine.node("n1").exec([*kairos_p2p(), "wait", "ready", "--timeout", "1s"])
    assert done.returncode == 4
    assert "k3s is not installed" in done.stderr


def test_k3s_ends_at_once(lab: LabFactory) -> None:
    script = (
        '/bin/sh -c \'[ "$1" = --version ] && echo k3s version v1.30.0+k3s1 || '
        '{ echo level=fatal msg=\\"Error: no space left on device\\" >&2; exit 1; }\' k3s'
    )
    mine = lab(alone(), agents=True, env={"K3S_BIN": script})
    status = wait_status(mine, lambda s: s["k3s"]["state"] == "failed", "the failure to be noticed")
    assert "no space left on device" in status["k3s"]["error"]
    assert status["k3s"]["version"] == "v1.30.0+k3s1"


def test_the_mesh_port_is_taken(lab: LabFactory) -> None:
    mine = lab(alone())
    node = mine.node("n1")
    with listening(node, 4701):
        mine.start_agent("n1")
        mine.wait(lambda: "another program uses TCP port 4701" in node.log_tail(), 30, "the agent to say so")
        assert "ss -ltnp" in node.log_tail()
    wait_ready(mine)


def test_the_data_port_is_taken(lab: LabFactory) -> None:
    mine = lab(alone())
    with listening(mine.node("n1"), 4702):
        mine.start_agent("n1")
        status = wait_status(mine, lambda s: s["vpn"]["state"] == "failed", "the VPN to fail")
        assert "4702" in status["vpn"]["error"]
    wait_ready(mine)


def test_there_is_no_tun_device(lab: LabFactory) -> None:
    mine = lab(alone())
    node = mine.node("n1")
    assert node.exec(["mount", "-t", "tmpfs", "tmpfs", "/dev/net"]).returncode == 0
    mine.start_agent("n1")
    status = wait_status(mine, lambda s: s["vpn"]["state"] == "failed", "the VPN to fail")
    assert "/dev/net/tun" in status["vpn"]["error"]
    assert "modprobe tun" in status["vpn"]["error"]
    assert node.exec(["umount", "/dev/net"]).returncode == 0
    wait_ready(mine)


def test_the_state_folder_is_read_only(lab: LabFactory) -> None:
    mine = lab(alone())
    node = mine.node("n1")
    assert node.exec(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "/var/lib/kairos-p2p"]).returncode == 0
    mine.start_agent("n1")
    mine.wait(lambda: "its file system is read-only" in node.log_tail(), 30, "the agent to say so")
    assert "--state-dir" in node.log_tail()


def test_the_agent_may_not_administer_the_network(lab: LabFactory) -> None:
    mine = lab(alone())
    node = mine.node("n1")
    agent = [
        *kairos_p2p(),
        *("agent", "--cloud-config", "/oem/90_custom.yaml"),
        *("--state-dir", "/run/weak/state", "--socket", "/run/weak/agent.sock"),
    ]
    # as in a container: root by name, but the kernel refuses network administration
    with running(node, ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-all", *agent]):

        def vpn_error() -> str:
            done = node.exec([*kairos_p2p(), "status", "-o", "json", "--socket", "/run/weak/agent.sock"])
            return str(json.loads(done.stdout)["vpn"]["error"]) if done.returncode == 0 else ""

        error = mine.wait(vpn_error, 30, "the VPN to fail")
    assert "not permitted" in error
    assert "root" in error


def test_a_machine_joins_by_hand(lab: LabFactory) -> None:
    """`join` with a token file, in the foreground, on a machine that knows nothing else."""
    topology = make_topology({"here": ("n1", "n2"), "there": ("n3",)}, servers=1, minimum_nodes=2)
    mine = lab(topology)
    for name in ("n1", "n2"):
        mine.start_agent(name)
    formed = wait_ready(mine, ["n1", "n2"])
    node = mine.node("n3")
    text = node.exec(["cat", "/oem/90_custom.yaml"]).stdout
    token = next(line.split()[1] for line in text.splitlines() if "network_token" in line).strip("'\"")
    # the hand that types has the token on standard input; it is never an argument
    join = [*kairos_p2p(), "join", "-", "--region", "there", "--timeout", "90s"]
    dry = node.exec([*join, "--dry-run"], stdin=token)
    assert dry.returncode == 0, dry.stderr
    assert token not in dry.stdout + dry.stderr
    assert node.exec(["test", "-e", "/etc/kairos-p2p/config.yaml"]).returncode == 1, (
        "a dry run changes nothing"
    )
    with running(node, join) as process:
        assert process.stdin is not None
        process.stdin.write(token)
        process.stdin.close()
        joined = wait_ready(mine, ["n3"])
        assert cluster_ids(joined) == cluster_ids(formed)
        assert token not in node.exec(["ps", "-eo", "args"]).stdout
        assert len(ask(mine, "n3", "peers")) == 2
        left = node.exec([*kairos_p2p(), "leave", "--yes"], 60)
        assert left.returncode == 0, left.stderr
