"""Does a lab leave nothing behind, whatever ended it?"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from p2p_network.core.errors import NotPermitted
from p2p_simulations.lab import processes, state
from p2p_simulations.lab.lab import Lab, down_all
from p2p_simulations.lab.node import wait_until
from p2p_simulations.lab.topology import make_topology

LabFactory = Callable[..., Lab]
PAIR = make_topology({"here": ("a", "b")})


def traces(root: Path) -> list[str]:
    """Everything on this machine that belongs to labs in `root`: processes, mounts, devices, names, files."""
    found = [str(entry) for entry in root.rglob("*")] if root.exists() else []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdecimal()):
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if (str(root) in argv or f"sleep {os.getpid()}0815" in argv) and pid != os.getpid():
            found.append(f"process {pid}: {argv}")
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(root) in line]
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    found += [line for line in links.splitlines() if ": p1-" in line or ": region" in line]
    return found


def host_mounts() -> list[str]:
    """This machine's mounts, without the named namespaces that other tests make meanwhile."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "/netns" not in line]


def holders_of_network(inode: int) -> list[str]:
    """Processes and names that keep a network namespace alive."""
    found = []
    for path in (*Path("/proc").glob("[0-9]*/ns/net"), *Path("/run/netns").glob("*")):
        with contextlib.suppress(OSError):
            if path.stat().st_ino == inode:
                found.append(str(path))
    return found


def test_down_leaves_nothing(lab: LabFactory, lab_root: Path) -> None:
    before = host_mounts()
    mine = lab()
    for node in mine.nodes.values():
        daemon = f"setsid -f sleep {os.getpid()}0815 >/dev/null 2>&1 </dev/null"
        assert node.exec(["sh", "-c", f"{daemon}; ip link add dummy7 type bridge"]).returncode == 0
    mine.partition([["n1"]])
    mine.kill("n2", "node")
    networks = [Path(f"/proc/{found.pid}/ns/net").stat().st_ino for found in processes.holders(lab_root)]
    assert len(traces(lab_root)) > 20
    assert len(set(networks)) == 5
    assert all(holders_of_network(inode) for inode in networks)
    assert host_mounts() == before, "a running lab is not seen on the host"
    mine.down()
    assert traces(lab_root) == []
    assert host_mounts() == before
    assert not any(holders_of_network(inode) for inode in networks)
    mine.down()


def test_a_lab_ends_with_its_block(lab_root: Path) -> None:
    def fail() -> None:
        with Lab.create(PAIR, "left", root=lab_root) as mine:
            mine.up(agents=False)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert traces(lab_root) == []


CREATOR = """
import os, signal, sys
from p2p_simulations.lab import lab, network, state
from p2p_simulations.lab.topology import default_topology

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

stage, bound = sys.argv[1], sys.argv[2] == "bound"
if stage == "while its folder is made":
    state.write = die
elif stage == "before its folder has its name":
    state.Path.rename = lambda self, to: os.rename(self, to) if self.name.startswith("state") else die()
made = lab.Lab.create(default_topology(), "crashed", bound=bound)
if stage == "after it was created":
    die()
elif stage == "while holders start":
    made._wait_ready = die
elif stage == "before the network":
    network.Network.build = die
elif stage == "while nodes are plugged in":
    network.node_batch = die
made.up(agents=False)
die()
"""
STAGES = (
    "while its folder is made",
    "before its folder has its name",
    "after it was created",
    "while holders start",
    "before the network",
    "while nodes are plugged in",
    "when it was up",
)


def crash(stage: str, *, bound: bool) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(CREATOR), stage, "bound" if bound else "free"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_down_all_removes_what_a_crashed_creator_left(stage: str, lab_root: Path) -> None:
    before = host_mounts()
    crash(stage, bound=False)
    if stage == "when it was up":
        assert len(processes.holders(lab_root)) == 6
        assert Lab.attach().node("n5").exec(["ping", "-q", "-c1", "-W1", "n1"]).returncode == 0
    else:
        assert traces(lab_root)
    down_all(lab_root)
    assert traces(lab_root) == []
    assert host_mounts() == before
    assert down_all(lab_root) == []


@pytest.mark.parametrize("stage", ["while holders start", "when it was up"])
def test_a_bound_lab_dies_with_its_creator(stage: str, lab_root: Path) -> None:
    crash(stage, bound=True)
    wait_until(lambda: not processes.holders(lab_root), 10, "the holders to notice")
    assert down_all(lab_root) == ["crashed"]
    assert traces(lab_root) == []


def test_a_released_lab_outlives_its_creator(lab_root: Path) -> None:
    mine = Lab.create(PAIR, "released", root=lab_root, bound=True)
    mine.up(agents=False)
    mine.release()
    assert mine.node("a").exec(["ping", "-q", "-c1", "-W1", "b"]).returncode == 0
    assert Lab.attach("released").node("b").exec(["true"]).returncode == 0


def test_down_all_finds_a_lab_whose_folder_is_lost(lab_root: Path) -> None:
    mine = Lab.create(PAIR, "lost", root=lab_root)
    mine.up(agents=False)
    shutil.rmtree(mine.folder)
    assert len(processes.holders(lab_root)) == 3
    assert down_all(lab_root) == ["lost"]
    assert traces(lab_root) == []


def test_down_all_touches_neither_strangers_nor_other_folders(lab: LabFactory, tmp_path: Path) -> None:
    mine = lab(PAIR)
    other = tmp_path / "other"
    for precious in (other / "precious", other / ".new-precious"):
        precious.mkdir(parents=True)
        (precious / "file").write_text("x")
    mark = processes.mark_of(other / "precious", "a")
    impostor = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "x", mark, "y", "free"])
    try:
        assert down_all(other) == []
        assert impostor.poll() is None
    finally:
        impostor.kill()
        impostor.wait()
    assert (other / "precious" / "file").exists()
    assert (other / ".new-precious" / "file").exists()
    assert mine.node("a").exec(["true"]).returncode == 0


def test_a_folder_that_others_can_write_is_refused(
    can_hold_labs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for make in (lambda path: path.mkdir(mode=0o777), lambda path: path.symlink_to(tmp_path)):
        root = tmp_path / "root"
        make(root)
        if not root.is_symlink():
            root.chmod(0o777)
        monkeypatch.setenv("KAIROS_P2P_LAB_DIR", str(root))
        with pytest.raises(NotPermitted, match="could be written by others"):
            state.lab_root()
        root.unlink() if root.is_symlink() else root.rmdir()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_run_that_is_ended_cleans_up(number: signal.Signals, status: int, lab_root: Path) -> None:
    program = Path(sys.executable).parent / "kairos-p2p"
    with subprocess.Popen(
        [program, "lab", "run", "--timeout", "60s"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        wait_until(lambda: len(processes.holders(lab_root)) == 6 or run.poll() is not None, 20, "the lab")
        run.send_signal(number)
        out, err = run.communicate(timeout=20)
    assert run.returncode == status, (out, err)
    wait_until(lambda: not processes.holders(lab_root), 10, "the holders to be gone")
    if number == signal.SIGKILL:
        down_all(lab_root)
    assert traces(lab_root) == []
    assert "Traceback" not in err
