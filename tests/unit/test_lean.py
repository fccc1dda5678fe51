"""What a process does not load at its start, and whether all it has loaded is as it would be otherwise."""

from __future__ import annotations

import ctypes.util
import dataclasses
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any

import pytest

from p2p_network import lean

PROGRAM = """
import gc, sys
from p2p_network.lean import loading, without_plugins, without_searches
import p2p_bootstrap.cli.foreground
with loading(), without_plugins(), without_searches():
    from p2p_bootstrap import logs
    from p2p_bootstrap.node import agent, local_k3s
print(*sys.modules)
"""
HEAVY = {
    "Crypto.PublicKey", "OpenSSL", "aioquic", "cffi.cparser", "dns", "fastecdsa", "httpx", "miniupnpc",
    "netaddr", "prometheus_client", "psutil", "pycparser", "pygments", "requests", "rich", "trio_websocket",
    "libp2p.bitswap", "libp2p.crypto.rsa", "libp2p.discovery.mdns", "libp2p.peer.persistent", "libp2p.pubsub",
    "libp2p.rcmgr.manager", "libp2p.relay", "libp2p.security.tls", "libp2p.transport.quic",
    "libp2p.transport.tcp", "libp2p.transport.websocket",
}  # fmt: skip


def test_the_agent_loads_none_of_what_it_never_uses() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"p2p_bootstrap.node.agent", "libp2p.host.basic_host"} <= loaded
    assert not HEAVY & loaded


def test_the_data_plane_loads_little() -> None:
    code = "import sys, p2p_network.dataplane.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"trio", "asyncio", "ctypes", "json", "argparse", "ssl", "p2p_bootstrap", "pydantic", "http"}
    assert not heavy & set(done.stdout.split())


with lean.late_methods():

    @dataclass(frozen=True, slots=True)
    class Point:
        x: int
        y: int = 2
        tags: tuple[str, ...] = field(default_factory=tuple, kw_only=True, compare=False)

    @dataclass(order=True)
    class Base:
        n: int
        double: int = field(init=False)

        def __post_init__(self) -> None:
            self.double = 2 * self.n

    @dataclass(order=True)
    class Derived(Base):
        m: int = 0


def test_late_methods_are_what_they_stand_for() -> None:
    one = Point(1)
    assert (one.x, one.y, one.tags) == (1, 2, ())
    assert repr(one) == "Point(x=1, y=2, tags=())"
    assert one == Point(1, 2, tags=("a",)) != Point(1, 3)
    assert one != (1, 2)
    assert hash(one) == hash(Point(1, 2)) == hash((1, 2))
    assert dataclasses.replace(one, y=5) == Point(1, 5)
    assert pickle.loads(pickle.dumps(one)) == one
    assert len({one, Point(1), Point(2)}) == 2
    match one:
        case Point(x, y):
            assert (x, y) == (1, 2)
    for change in (lambda: setattr(one, "x", 2), lambda: delattr(one, "x")):
        with pytest.raises(FrozenInstanceError):
            change()
    with pytest.raises(TypeError, match=r"Point\.__init__\(\) missing 1 required positional argument: 'x'"):
        Point()  # type: ignore[call-arg]


def test_a_late_method_is_compiled_once_and_for_the_class_that_has_it() -> None:
    low, high = Derived(1, 2), Derived(2, 0)
    assert (low.double, high.double) == (2, 4)
    assert low < high
    assert Base(1) < Base(3)
    assert vars(Base)["__init__"].__code__.co_varnames[:2] == ("self", "n")
    assert vars(Derived)["__init__"].__code__.co_varnames[:3] == ("self", "n", "m")
    assert vars(Base)["__lt__"] is not vars(Derived)["__lt__"]


def test_outside_nothing_is_late() -> None:
    before = vars(dataclasses).get("_create_fn")
    with pytest.raises(ZeroDivisionError), lean.late_methods():
        raise ZeroDivisionError
    assert vars(dataclasses).get("_create_fn") is before


def test_hollow_modules_are_gone_afterwards() -> None:
    assert "tarfile" not in sys.modules or sys.modules.pop("tarfile")
    with lean.hollow("tarfile", "not_installed"):
        import tarfile

        import not_installed.below  # type: ignore[import-not-found]

        assert issubclass(tarfile.TarError, Exception)
        with pytest.raises(NotImplementedError, match=r"tarfile\.TarFile"):
            tarfile.TarFile("x")
        with pytest.raises(NotImplementedError):
            not_installed.below.Thing.made_by(3)
    assert "not_installed" not in sys.modules
    assert "not_installed.below" not in sys.modules
    import tarfile as real

    assert real.__file__


def test_what_is_absent_can_be_imported_afterwards() -> None:
    sys.modules.pop("quopri", None)
    with lean.absent("quopri"), pytest.raises(ImportError):
        __import__("quopri")
    assert __import__("quopri").__file__


def test_no_library_is_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    found = ctypes.util.find_library
    with lean.without_searches():
        assert ctypes.util.find_library("c") is None
    assert ctypes.util.find_library is found
