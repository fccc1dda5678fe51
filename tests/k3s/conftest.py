"""Which k3s stands in these tests, and on which hosts?

Two binaries: our stand-in, and a real k3s where there is one (`K3S_BIN`, or `k3s` on PATH that does not call
itself simulated). Everything a fixture made is gone when the test is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from k3s_hosts import STAND_IN, Hosts, no_namespaces, real_k3s

BINARIES = [
    pytest.param("stand-in", id="stand-in"),
    pytest.param(
        "real",
        id="real",
        marks=pytest.mark.skipif(not real_k3s(), reason="no real k3s: neither K3S_BIN nor k3s on PATH"),
    ),
]


@pytest.fixture(scope="session")
def mount_points() -> Iterator[None]:
    """The folders that every host mounts its own over."""
    if reason := no_namespaces():
        pytest.skip(reason)
    wanted = [Path("/etc/rancher"), Path("/var/lib/rancher")]
    made = [path for path in wanted if not path.exists()]
    for path in made:
        path.mkdir()
    yield
    for path in made:
        path.rmdir()


def _hosts(kind: str, folder: Path) -> Iterator[Hosts]:
    hosts = Hosts(folder, STAND_IN if kind == "stand-in" else real_k3s())
    try:
        yield hosts
    finally:
        hosts.close()


@pytest.fixture(params=BINARIES)
def hosts(request: pytest.FixtureRequest, mount_points: None, tmp_path: Path) -> Iterator[Hosts]:
    """Hosts that run the stand-in, and again with a real k3s."""
    yield from _hosts(request.param, tmp_path)


@pytest.fixture(scope="module", params=BINARIES)
def shared_hosts(
    request: pytest.FixtureRequest, mount_points: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hosts]:
    """As `hosts`, kept for all tests of a module."""
    yield from _hosts(request.param, tmp_path_factory.mktemp("hosts"))


@pytest.fixture
def simulated_hosts(mount_points: None, tmp_path: Path) -> Iterator[Hosts]:
    """Hosts of the stand-in, for what only it can do (crash points)."""
    yield from _hosts("stand-in", tmp_path)
