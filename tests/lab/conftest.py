"""Labs for tests: real namespaces, in a folder of the test's own, gone afterwards.

`lab` is a factory: ``lab()`` is a lab of five nodes that is up; ``lab(agents=True)`` also starts the agents.
When a test fails, the end of each agent's log is shown. A machine that can't hold a lab skips, and says why.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from p2p_network.core.errors import P2PError
from p2p_simulations.lab.commands import require
from p2p_simulations.lab.lab import Lab, down_all
from p2p_simulations.lab.topology import Topology, default_topology

LabFactory = Callable[..., Lab]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


_FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def can_hold_labs() -> None:
    """Skips if this machine cannot. Asks the kernel by other means than the lab's own."""
    try:
        require()
    except P2PError as exc:
        pytest.skip(f"no lab on this machine: {exc}")
    probe = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "nft", "list", "tables"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no lab on this machine: {' '.join(probe)}: {done.stderr.strip()}")


@pytest.fixture
def lab_root(can_hold_labs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the test's labs, also for programs that it starts. Emptied afterwards."""
    root = tmp_path / "labs"
    root.mkdir(mode=0o700)
    monkeypatch.setenv("KAIROS_P2P_LAB_DIR", str(root))
    yield root
    down_all(root)


@pytest.fixture
def lab(lab_root: Path, request: pytest.FixtureRequest) -> Iterator[LabFactory]:
    """Makes labs that are up; they die with the test's process."""
    made: list[Lab] = []

    def make(
        topology: Topology | None = None, *, agents: bool = False, env: Mapping[str, str] | None = None
    ) -> Lab:
        name = f"test{len(made) + 1}"
        new = Lab.create(topology or default_topology(), name, root=lab_root, env=env, bound=True)
        made.append(new)
        new.up(agents=agents)
        return new

    yield make
    for old in made:
        if request.node.stash.get(_FAILED, False):
            for node in old.nodes.values():
                if tail := node.log_tail(40):
                    print(f"--- agent of {node.name} in {old.name}\n{tail}")
        old.down()
