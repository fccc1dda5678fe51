"""Does a cluster form by itself, and is it whole? The work of ``lab run``.

Starts the agents of a lab that is up, watches them until all are ready, and then looks at the result from
outside: the cluster's node list through the Kubernetes API with the kubeconfig that the tool hands out, and
a ping between all pairs over the VPN. Looks only: what was seen is a `Survey`, and `survey.problems` judges
it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any, Final

from p2p_network.core.errors import P2PError, TimedOut
from p2p_simulations.lab import survey as seen
from p2p_simulations.lab.commands import LabError
from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.node import Node, kairos_p2p
from p2p_simulations.lab.progress import Progress
from p2p_simulations.lab.survey import ApiNode, NodeView, Survey

POLL_S: Final = 0.25
API_POLL_S: Final = 0.5
PING_PATIENCE_S: Final = 15.0
MAX_FAILURES: Final = 4  # of an agent in a row; then it is no use to wait
_KUBE_NODES: Final = Path(__file__).with_name("kube_nodes.py")
_ROUND_TRIP = re.compile(r"time[=<]([0-9.]+) ms")


class Demo:
    """One run over a lab that is up and whose agents are not started yet."""

    def __init__(self, lab: Lab, progress: Progress, timeout_s: float) -> None:
        self._lab = lab
        self._progress = progress
        self._timeout_s = timeout_s
        self._started_at = time.monotonic()
        self._pool = ThreadPoolExecutor(max_workers=8)
        self._few = ThreadPoolExecutor(max_workers=2)  # for pings: many at once would measure each other
        self.survey = Survey(
            tuple(NodeView(p.name, p.region) for p in lab.topology.places),
            without_kubelet=frozenset(p.name for p in lab.topology.places if not lab.topology.has_kubelet(p)),
        )

    def run(self) -> Survey:
        """All of it. `survey` holds what was seen so far if it raises TimedOut or LabError."""
        self._started_at = time.monotonic()
        try:
            for name in self._lab.topology.names:
                self._lab.start_agent(name)
            self._progress.say(f"{len(self._lab.nodes)} agents started; nothing more is typed in")
            self._wait_ready()
            self._mark("all nodes ready")
            self._read_api()
            self._mark("API checked")
            self._ping_all()
            self._mark("ping matrix checked")
        finally:
            for pool in (self._pool, self._few):
                pool.shutdown(wait=False, cancel_futures=True)  # a Ctrl-C does not wait for pings
        kinds = ("agent", "dataplane", "k3s")
        running = [p for node in self._lab.nodes.values() for p in node.processes()]
        memory = {kind: [p.resident_bytes for p in running if p.kind == kind] for kind in kinds}
        self.survey = replace(self.survey, memory=memory)
        return self.survey

    def observe(self) -> tuple[NodeView, ...]:
        """All nodes' own words, now."""
        nodes = list(self._lab.nodes.values())
        documents = self._pool.map(Node.observe, nodes)
        return tuple(seen.node_view(node.place, doc) for node, doc in zip(nodes, documents, strict=True))

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_at

    def _mark(self, what: str) -> None:
        self._note_time(what)
        self._progress.say(what)

    def _note_time(self, what: str) -> None:
        self.survey = replace(self.survey, times=(*self.survey.times, (what, self._elapsed_s())))

    def _wait_ready(self) -> None:
        checked_at = 0.0
        while True:
            self.survey = replace(self.survey, nodes=self.observe())
            self._progress.show(self.survey.nodes)
            for phase in seen.PHASES:
                everywhere = all(phase in node.phases for node in self.survey.nodes)
                if everywhere and phase not in dict(self.survey.times):
                    self._note_time(phase)
            waiting = seen.waiting_for(self.survey.nodes)
            if not waiting:
                return
            if self._elapsed_s() > self._timeout_s:
                raise self._timed_out(waiting)
            if self._elapsed_s() - checked_at > 1.0:
                checked_at = self._elapsed_s()
                self._give_up_on_failing()
            time.sleep(POLL_S)

    def _give_up_on_failing(self) -> None:
        for node in self._lab.nodes.values():
            if node.find_pid() is None:
                raise LabError(f"node {node.name} died", hint=f"see {node.folder}/holder.log")
            state = node.agent_state()
            if state["failures"] >= MAX_FAILURES:
                raise LabError(
                    f"the agent of {node.name} failed {state['failures']} times in a row, "
                    f"last with status {state['last_exit']}",
                    hint=f"look into it with: kairos-p2p lab run --keep, then: lab exec {node.name} -- bash",
                )

    def _read_api(self) -> None:
        """Ask until every node is Ready in the cluster's own list."""
        said = ""
        while True:
            url, rows, error = self._ask_api()
            self.survey = replace(self.survey, api_url=url, api_nodes=rows, api_error=error)
            missing = seen.missing_in_api(self.survey)
            if not missing:
                return
            if self._elapsed_s() > self._timeout_s:
                raise self._timed_out(missing)
            if missing[0] != said:
                said = missing[0]
                self._progress.say(said)
            time.sleep(API_POLL_S)

    def _ask_api(self) -> tuple[str, tuple[ApiNode, ...], str]:
        """(URL, rows, error) from the first server that hands out a kubeconfig that works."""
        error = "no node is a server"
        for view in self.survey.nodes:
            if view.role != "server":
                continue
            node = self._lab.node(view.name)
            try:
                kubeconfig = node.exec([*kairos_p2p(), "kubeconfig"])
                if kubeconfig.returncode != 0:
                    error = f"{view.name} hands out no kubeconfig: {kubeconfig.stderr.strip()}"
                    continue
                asked = node.exec([sys.executable, "-I", str(_KUBE_NODES)], stdin=kubeconfig.stdout)
                if asked.returncode != 0:
                    error = f"the Kubernetes API on {view.name} cannot be read: {asked.stderr.strip()}"
                    continue
                answer: Any = json.loads(asked.stdout)
            except (P2PError, ValueError) as exc:
                error = f"{view.name}: {exc}"
                continue
            return str(answer["url"]), seen.api_nodes(answer["nodes"]), ""
        return "", (), error

    def _ping_all(self) -> None:
        self.survey = replace(self.survey, pings_v4=self._pings({n.name: n.ipv4 for n in self.survey.nodes}))
        self.survey = replace(self.survey, pings_v6=self._pings({n.name: n.ipv6 for n in self.survey.nodes}))

    def _pings(self, address_of: Mapping[str, str]) -> dict[tuple[str, str], float | None]:
        pairs = list(permutations(address_of, 2))
        times = self._few.map(lambda pair: self._ping(pair[0], address_of[pair[1]]), pairs)
        return dict(zip(pairs, times, strict=True))

    def _ping(self, name: str, address: str) -> float | None:
        """Round trip in ms; None if nothing came back for a long time."""
        if not address:
            return None
        deadline = time.monotonic() + PING_PATIENCE_S
        while time.monotonic() < deadline:
            done = self._lab.node(name).exec(["ping", "-n", "-c1", "-W1", address])
            if found := _ROUND_TRIP.search(done.stdout):
                return float(found[1])
        return None

    def _timed_out(self, waiting: Iterable[str]) -> TimedOut:
        return TimedOut(
            f"the cluster was not whole after {self._timeout_s:g} s:\n  " + "\n  ".join(waiting),
            hint="look into it with: kairos-p2p lab run --keep, then: kairos-p2p lab exec NODE -- bash",
        )
