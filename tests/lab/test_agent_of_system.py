"""Does the agent of a booted machine (``agent --system``) read that machine, and stay out once it left?

Its configuration is not a file that ``leave`` could remove: here it is the kernel command line. A namespace
shows the agent a command line of the test's own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2p_bootstrap.service import LEFT

LIMIT_S = 240.0  # some 5 s on a quiet machine
PROGRAM = (sys.executable, "-c", "import sys; from p2p_bootstrap.cli.main import main; sys.exit(main())")


class Machine:
    """What a service unit starts on a machine with this kernel command line."""

    def __init__(self, folder: Path, words: str) -> None:
        self.folder, self.state = folder, folder / "state"
        self.socket = folder / "agent.sock"
        (folder / "cmdline").write_text(f"quiet {words}\n")
        self.log = folder / "log"
        self._agents: list[subprocess.Popen[bytes]] = []

    def start(self, notify: str = "") -> subprocess.Popen[bytes]:
        script = 'mount --bind "$1" /proc/cmdline && ip link set lo up && shift && exec "$@"'
        argv = ["sh", "-c", script, "sh", self.folder / "cmdline", *PROGRAM, "agent", "--system",
                "--state-dir", self.state, "--socket", self.socket]  # fmt: skip
        with self.log.open("ab") as log:
            agent = subprocess.Popen(
                ["unshare", "--mount", "--net", "--kill-child", "--fork", *argv], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env={**os.environ, "NOTIFY_SOCKET": notify}, cwd=self.folder,
            )  # fmt: skip
        self._agents.append(agent)
        return agent

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not holds():
            assert time.monotonic() < deadline, f"not {what}:\n{self.log.read_text()[-4000:]}"
            time.sleep(0.05)

    def stop(self) -> None:
        for agent in self._agents:
            agent.kill()
            agent.wait()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[[str], Machine]]:
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    made: list[Machine] = []

    def make(words: str) -> Machine:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Machine(folder, words))
        return made[-1]

    yield make
    for machine in made:
        machine.stop()


def test_a_node_that_left_stays_out_until_somebody_takes_it_back(
    machines: Callable[[str], Machine], tmp_path: Path
) -> None:
    token = subprocess.run([*PROGRAM, "token", "generate"], capture_output=True, text=True, check=True).stdout
    machine = machines(f"p2p.network_token={token.strip()} p2p.minimum_nodes=3 p2p.vpn.create=false")
    first = machine.start()
    machine.until(machine.socket.exists, "listening")
    leave = [*PROGRAM, "leave", "--yes", "--socket", str(machine.socket)]
    done = subprocess.run(leave, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + machine.log.read_text()[-3000:]
    machine.until(lambda: first.poll() is not None, "ended")
    assert (machine.state / LEFT).exists()
    # whatever starts it anew: it says that it is up, and does nothing
    place = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(place)
        ear.settimeout(LIMIT_S)
        again = machine.start(place)
        assert ear.recv(100) == b"READY=1"
    assert again.poll() is None
    assert "this node left its mesh, and stays out" in machine.log.read_text()
    assert not machine.socket.exists()
    (machine.state / LEFT).unlink()
    machine.until(machine.socket.exists, "back in the mesh")


def test_what_is_wrong_with_the_command_line_is_said(machines: Callable[[str], Machine]) -> None:
    machine = machines("p2p.minimum_nodes=many")
    assert machine.start().wait(LIMIT_S) == 1
    said = machine.log.read_text()
    assert "minimum_nodes" in said
    assert "command line" in said
