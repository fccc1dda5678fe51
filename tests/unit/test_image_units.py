"""Are the files that an image carries right, by the word of the tools that read them?"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from p2p_bootstrap.cli.main import main
from p2p_bootstrap.units import INITS, Init, image_files, inits_of, write


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_units_and_their_order_has_no_ring(tmp_path: Path) -> None:
    write(tmp_path, image_files("systemd", "/bin/true"))
    folder = tmp_path / "usr/lib/systemd/system"
    units = [str(path) for path in folder.iterdir() if path.is_file()]
    assert len(units) == 6
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if "kairos-p2p" in line]
    assert (done.returncode, complaints) == (0, [])
    for link in folder.glob("*.wants/*"):
        assert link.is_symlink()
        assert link.resolve().is_file() or link.name.startswith("systemd-"), link
    assert len(list(folder.glob("*.wants/*"))) == 7


@pytest.mark.parametrize("init", ["openrc", "busybox"])
def test_a_shell_reads_the_scripts(init: Init, tmp_path: Path) -> None:
    for file in image_files(init):
        if file.text.startswith("#!"):
            subprocess.run(["sh", "-n"], input=file.text, text=True, check=True)
            assert file.mode == 0o755


@pytest.mark.parametrize("init", INITS)
def test_no_init_gets_a_shell_and_all_run_every_stage(init: Init) -> None:
    text = "\n".join(file.text for file in image_files(init))
    for word in ("askfirst", "getty", "sulogin", "/bin/sh\n::", "emergency"):
        assert word not in text
    assert ("ip link set lo up" in text) == (init != "systemd")  # which does it by itself
    for stage in ("fs", "boot", "network", "reconcile"):
        assert stage in text
    assert "agent --system" in text


def test_writing_twice_changes_nothing_and_an_own_inittab_stays(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/busybox").touch()
    assert inits_of(root) == ("busybox",)
    (root / "sbin").mkdir()
    (root / "sbin/openrc").touch()
    assert inits_of(root) == ("openrc",)
    (root / "etc").mkdir()
    (root / "etc/inittab").write_text("mine\n")
    assert "/usr/lib/kairos-p2p/rc" in write(root, image_files("busybox"))
    assert (root / "etc/inittab").read_text() == "mine\n"
    for init in INITS:
        write(root, image_files(init))
        assert write(root, image_files(init)) == ()


def test_the_command_line_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "build", "units", "--root", str(tmp_path)]) == 1
    assert "no init that we know" in capsys.readouterr().err
    assert main(["boot", "build", "units", "--root", str(tmp_path), "--init", "openrc"]) == 0
    assert "/etc/init.d/kairos-p2p" in capsys.readouterr().out.splitlines()
    link = tmp_path / "etc/runlevels/default/kairos-p2p"
    assert str(link.readlink()) == "/etc/init.d/kairos-p2p"
