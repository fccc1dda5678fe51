"""How do tests that mostly wait run at the same time?

A test with ``pytestmark = pytest.mark.side_by_side(about_s=60)`` and no fixture but `lab` runs in a thread of
a small pool, the longest first, begun by the first of them; each is reported when its turn comes, with what
it printed. A lab waits for processes and silences far more than it computes, so two cores hold several. They
come last in their folder, so that no other test runs beside them.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from p2p_simulations.lab.lab import Lab, down_all
from p2p_simulations.lab.topology import Topology, default_topology

MARK: Final = "side_by_side"
AT_ONCE: Final = 3
_LOG_LINES: Final = 40


class Scenario:
    """One test in its thread. `log`: the end of each agent's log, if it failed."""

    def __init__(self, item: pytest.Function, root: Path) -> None:
        self._item, self._root = item, root
        self._labs: list[Lab] = []
        self.log = ""

    def make(
        self, topology: Topology | None = None, *, agents: bool = False, env: Mapping[str, str] | None = None
    ) -> Lab:
        """As the fixture `lab`."""
        name = f"test{len(self._labs) + 1}"
        new = Lab.create(topology or default_topology(), name, root=self._root, env=env, bound=True)
        self._labs.append(new)
        new.up(agents=agents)
        return new

    def run(self) -> None:
        """From beginning to end; nothing of it is left afterwards."""
        self._root.mkdir(mode=0o700)
        try:
            self._item.obj(lab=self.make)
        except BaseException:
            self.log = "\n".join(
                f"--- agent of {node.name} in {lab.name}\n{tail}"
                for lab in self._labs
                for node in lab.nodes.values()
                if (tail := node.log_tail(_LOG_LINES))
            )
            raise
        finally:
            for lab in self._labs:
                lab.down()
            down_all(self._root)


class Pool:
    """All of them. `folder`: makes the folder of one."""

    def __init__(self, items: list[pytest.Function], folder: Callable[[str], Path]) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._begun: dict[str, tuple[Scenario, Future[None]]] = {}
        for number, item in enumerate(sorted(items, key=_about_s, reverse=True)):
            scenario = Scenario(item, folder(f"labs{number}") / "labs")
            self._begun[item.nodeid] = (scenario, self._pool.submit(scenario.run))

    def wait(self, item: pytest.Function) -> None:
        """Until this one is over; raises what it raised."""
        scenario, future = self._begun[item.nodeid]
        try:
            future.result()
        except BaseException as exc:
            item.add_report_section("call", "thread", "".join(traceback.format_exception(exc)))
            item.add_report_section("call", "agents", scenario.log)
            raise

    def close(self) -> None:
        """Begin no more of them."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _about_s(item: pytest.Function) -> float:
    marker = item.get_closest_marker(MARK)
    return float(marker.kwargs.get("about_s", 0)) if marker is not None else 0.0
