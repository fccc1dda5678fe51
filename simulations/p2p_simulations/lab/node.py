"""How is one node of a lab handled: run in it, start and stop its agent, kill parts of it?

A `Node` holds no state but its place: the holder is looked up in the process list every time, so two
processes can work on one lab and a reused pid is never trusted.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from p2p_bootstrap.api.service import StatusDoc
from p2p_bootstrap.cli.client import AgentClient
from p2p_network.core.errors import P2PError, TimedOut
from p2p_simulations.lab import processes
from p2p_simulations.lab.commands import LabError
from p2p_simulations.lab.topology import Place

SOCKET: Final = "/run/kairos-p2p/agent.sock"
STATE_DIR: Final = "/var/lib/kairos-p2p"
CLOUD_CONFIG: Final = "/oem/90_custom.yaml"

What = Literal["agent", "dataplane", "k3s", "node"]
T = TypeVar("T")


def kairos_p2p() -> list[str]:
    """The command line program of the environment that this process runs in."""
    script = Path(sys.executable).parent / "kairos-p2p"
    return [str(script)] if script.exists() else [sys.executable, "-m", "p2p_bootstrap.cli.main"]


def agent_argv() -> list[str]:
    """How a node runs its agent."""
    return [
        *kairos_p2p(),
        "agent",
        "--cloud-config",
        CLOUD_CONFIG,
        "--state-dir",
        STATE_DIR,
        "--socket",
        SOCKET,
    ]


def wait_until(predicate: Callable[[], T], timeout_s: float, what: str, hint: str = "") -> T:
    """Poll until the predicate is true; its value. Raises TimedOut that says what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise TimedOut(f"waited {timeout_s:g} s for {what}, in vain", hint=hint)
        time.sleep(0.02)
    return value


class Node:
    """One node of a lab.

    Attributes:
        place: where it stands.
        folder: its files on the host: disk/, agent.log, holder.log, holder.json.
    """

    def __init__(self, lab_folder: Path, place: Place, env: Mapping[str, str]) -> None:
        self.place = place
        self.name = place.name
        self.folder = lab_folder / "nodes" / place.name
        self._lab_folder = lab_folder
        self._env = dict(env)

    @property
    def log_path(self) -> Path:
        """What the agent wrote to standard error, and when the lab started it."""
        return self.folder / "agent.log"

    def find_pid(self) -> int | None:
        """The holder's pid on the host, None if the node has no power."""
        for holder in processes.holders(self._lab_folder):
            if holder.place == self.name:
                return holder.pid
        return None

    @property
    def pid(self) -> int:
        """The holder's pid on the host. Raises LabError if the node has no power."""
        pid = self.find_pid()
        if pid is None:
            raise LabError(
                f"node {self.name} is not running", hint=f"start it with: kairos-p2p lab boot {self.name}"
            )
        return pid

    def enter_argv(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in all of the node's namespaces, with its environment."""
        env = [f"{key}={value}" for key, value in self._env.items()]
        enter = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p"]
        return [*enter, "--", "/usr/bin/env", "-i", *env, *argv]

    def exec(
        self, argv: Sequence[str], timeout_s: float = 30.0, *, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the node to its end; output is captured. Raises TimedOut after killing it."""
        with subprocess.Popen(
            self.enter_argv(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that a time-out reaches the program, not only nsenter
        ) as process:
            try:
                out, err = process.communicate(stdin, timeout=timeout_s)
            except BaseException as exc:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if isinstance(exc, subprocess.TimeoutExpired):
                    raise TimedOut(
                        f"{' '.join(argv)} on {self.name} did not end within {timeout_s:g} s"
                    ) from exc
                raise
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def processes(self) -> list[processes.Process]:
        """All processes of the node, its holder included; [] without power."""
        pid = self.find_pid()
        return processes.members(pid) if pid else []

    def start_agent(self) -> None:
        """Start the agent; from now on it is restarted when it fails. No effect if it runs."""
        self._ask({"do": "start"})

    def stop_agent(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 15.0) -> None:
        """Send a signal to the agent, wait for its end and don't restart it. Raises TimedOut."""
        self._ask({"do": "stop", "signal": int(number)})
        if number == signal.SIGSTOP:
            return
        wait_until(
            lambda: not self.agent_state()["pid"],
            timeout_s,
            f"the agent of {self.name} to end after {number.name}",
            f"its log: {self.log_path}",
        )

    def agent_state(self) -> dict[str, Any]:
        """wanted, pid (inside; 0: not running), starts, failures (in a row), last_exit."""
        return self._ask({"do": "state"})

    def kill(self, what: What) -> None:
        """kill -9, without a word of warning. Raises LabError if there is nothing of that kind.

        A killed agent is restarted by its supervisor; "node" is a power cut (`Lab.boot` ends it).
        """
        if what == "node":
            doomed = [h for h in processes.holders(self._lab_folder) if h.place == self.name]
            processes.kill_holders(doomed)
        elif not self._signal(what, signal.SIGKILL):
            raise LabError(f"no {what} runs on {self.name}", hint=f"the agent's log: {self.log_path}")

    def freeze(self) -> None:
        """Stop the agent in its tracks (SIGSTOP): it is silent, but its connections stay."""
        if not self._signal("agent", signal.SIGSTOP):
            raise LabError(f"no agent runs on {self.name}", hint=f"its log: {self.log_path}")

    def thaw(self) -> None:
        """Let a frozen agent go on."""
        self._signal("agent", signal.SIGCONT)

    def status(self) -> StatusDoc:
        """What ``kairos-p2p status -o json`` says inside the node. Raises LabError if it fails."""
        done = self.exec([*kairos_p2p(), "status", "-o", "json"])
        if done.returncode != 0:
            raise LabError(f"status on {self.name} failed: {done.stderr.strip()}")
        document: StatusDoc = json.loads(done.stdout)
        return document

    def observe(self, timeout_s: float = 2.0) -> StatusDoc | None:
        """The agent's status over its own socket; None if it does not answer. Cheap enough to poll."""
        pid = self.find_pid()
        if pid is None:
            return None
        try:
            return AgentClient(f"/proc/{pid}/root{SOCKET}", timeout_s=timeout_s).status()
        except P2PError:
            return None

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the agent's log."""
        try:
            with open(self.log_path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 65_536))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _signal(self, kind: str, number: signal.Signals) -> bool:
        holder_pid = self.pid
        hit = [p for p in processes.members(holder_pid) if p.kind == kind]
        sent = [processes.send(holder_pid, p.pid, number) for p in hit]  # all of them, not up to the first
        return any(sent)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One question to the holder."""
        asked = self.pid
        folder = os.open(self.folder, os.O_PATH | os.O_DIRECTORY)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5.0)
                # through /proc: a deep folder exceeds the limit of sun_path
                connection.connect(f"/proc/self/fd/{folder}/holder.sock")
                connection.sendall(json.dumps(request).encode() + b"\n")
                reply: dict[str, Any] = json.loads(connection.recv(4096))
        except (OSError, ValueError) as exc:
            raise LabError(f"the holder of {self.name} (process {asked}) does not answer: {exc}") from exc
        finally:
            os.close(folder)
        if "error" in reply:
            raise LabError(f"the holder of {self.name} refused: {reply['error']}")
        return reply
