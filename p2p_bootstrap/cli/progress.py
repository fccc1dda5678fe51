"""How does a person see a node come up, and when is it there?

Waits in short slices of the agent's own ``wait``, so the goal is noticed at once; between slices it says on
stderr what changed since it last looked. An agent that restarts meanwhile is part of the way, not its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from p2p_bootstrap.api.service import Goal, StatusDoc
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import format_duration
from p2p_bootstrap.cli.output import note, printable
from p2p_network.core.errors import DaemonNotRunning, TimedOut

SLICE_S: Final = 1.0
RETRY_S: Final = 0.25


class Reporter:
    """Says what changed, with the seconds since it began."""

    def __init__(
        self, say: Callable[[str], None] = note, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say = say
        self._clock = clock
        self._began = clock()
        self._said: dict[str, str] = {}

    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._began

    def report(self, document: StatusDoc) -> None:
        """One line for each part of the status that reads otherwise than before."""
        for label, text in steps(document):
            if self._said.get(label, "") != text:
                self._said[label] = text
                self._say(printable(f"{self.elapsed_s():6.1f} s  {label:<4}  {text}"))


def steps(document: StatusDoc) -> list[tuple[str, str]]:
    """What a status says of each part of the way, in a few words; "" for what has not begun."""
    mesh, vpn, role, k3s = document["mesh"], document["vpn"], document["role"], document["k3s"]
    company = {0: "no peer yet", 1: "1 peer"}.get(mesh["peers"], f"{mesh['peers']} peers")
    words = {
        "mesh": "" if mesh["state"] == "starting" else f"{mesh['state']}, {company}",
        "vpn": {
            "off": "",
            "starting": "",
            "userspace": f"in user space: {vpn.get('reason', '')}",
            "up": f"up, {vpn['ipv4']} on {vpn['device']}",
            "failed": f"failed: {vpn['error']}",
        }[vpn["state"]],
        "role": ", ".join(filter(None, (role["role"], role["state"])))
        + (f": {role['reason']}" if role["reason"] else ""),
        "k3s": {
            "absent": f"absent: {k3s['error']}" if k3s["error"] else "",
            "stopped": "",
            "starting": "starting",
            "running": "running" + (", ready" if role["ready"] else ""),
            "failed": f"failed: {k3s['error']}",
        }[k3s["state"]],
    }
    return [(label, text) for label, text in words.items() if text]


def wait_until(
    client: AgentClient, goal: Goal, timeout_s: float, *, agent_is_starting: bool = False
) -> StatusDoc:
    """The status once `goal` is reached, reporting on the way.

    Args:
        agent_is_starting: a socket that is not there yet is waited for too.

    Raises TimedOut with what the node was doing last; DaemonNotRunning if there was no agent to begin with.
    """
    reporter = Reporter()
    last: StatusDoc | None = None
    while True:
        left_s = timeout_s - reporter.elapsed_s()
        try:
            if left_s <= 0:
                raise _too_late(goal, timeout_s, last)
            try:
                last = client.wait(goal, min(SLICE_S, left_s))
            except TimedOut:
                last = client.status()
                reporter.report(last)
            else:
                reporter.report(last)
                return last
        except DaemonNotRunning:
            if last is None and not agent_is_starting:
                raise
            time.sleep(RETRY_S)


def reached(goal: Goal, document: StatusDoc) -> str:
    """One line that says the goal is reached, and after how long."""
    at_s = next((phase["at_s"] for phase in document["phases"] if phase["name"] == goal), None)
    after = f", {format_duration(at_s)} after the agent's start" if at_s is not None else ""
    what = {"mesh": "in the mesh", "role": f"{document['role']['role']} of the cluster", "ready": "ready"}[
        goal
    ]
    return f"{document['node']['hostname']} is {what}{after}"


def _too_late(goal: Goal, timeout_s: float, last: StatusDoc | None) -> TimedOut:
    waited = format_duration(timeout_s)
    if last is None:
        return TimedOut(f"no agent came up within {waited}", hint="its log says why")
    doing = "; ".join(f"{label} {text}" for label, text in steps(last)) or "it has not begun"
    return TimedOut(
        f"{goal} was not reached within {waited}: {doing}",
        hint="the node goes on trying; look at it with: kairos-p2p status, kairos-p2p events",
    )
