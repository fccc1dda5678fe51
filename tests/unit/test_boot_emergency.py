"""What does a machine do that can't boot, and is only an initramfs ever emptied?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2p_bootstrap.boot import emergency, kernel
from p2p_bootstrap.boot.cmdline import parse
from p2p_bootstrap.boot.ports import MountEntry


@pytest.mark.parametrize(
    ("line", "counted", "verb", "wait_s"),
    [
        ("", False, "wait", 10),
        ("", True, "reboot", 10),
        ("rd.emergency=wait", True, "wait", 10),
        ("rd.immucore.rebootonfailure", False, "reboot", 10),
        ("panic=30", False, "reboot", 30),
        ("rd.emergency=poweroff panic=5", False, "poweroff", 5),
        ("rd.emergency=HALT", False, "halt", 10),
        ("rd.emergency=shell", False, "wait", 10),
        ("rd.shell rd.break emergency single", False, "wait", 10),
    ],
)
def test_the_command_line_says_what_becomes_of_the_machine(
    line: str, counted: bool, verb: str, wait_s: int
) -> None:
    assert emergency.what_next(parse(line), counted=counted) == (verb, wait_s)


def test_there_is_no_emergency_shell_to_be_asked_for() -> None:
    (remark,) = parse("rd.emergency=shell").unknown
    assert "left out" in remark


def test_every_console_shows_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tty0").touch()
    emergency.show("a\nb\n", ("tty0,115200n8", "missing", "ttyS0"), tmp_path)
    assert (tmp_path / "tty0").read_bytes() == b"a\r\nb\r\n"
    assert capsys.readouterr().err == "a\nb\n\n"


def test_only_a_root_in_memory_of_process_1_is_taken_for_our_initramfs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def root(fstype: str) -> tuple[MountEntry, ...]:
        return (MountEntry("/", "/", "0:1", fstype, "none", ("rw",)),)

    release = tmp_path / "initrd-release"
    monkeypatch.setattr(kernel, "INITRD_RELEASE", str(release))
    for pid, fstype, exists in (
        (2, "rootfs", True),
        (1, "ext4", True),
        (1, "overlay", True),
        (1, "rootfs", False),
    ):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        release.touch() if exists else release.unlink(missing_ok=True)
        assert kernel.initramfs_root(root(fstype)) is None
    assert kernel.initramfs_root(()) is None
    release.touch()
    found = kernel.initramfs_root(root("rootfs"))
    assert found is not None
    os.close(found)


def test_emptying_keeps_to_one_file_system_and_follows_no_link(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    (outside / "deep").mkdir(parents=True)
    (outside / "kept").write_text("x")
    (inside / "a/b").mkdir(parents=True)
    (inside / "a/b/file").write_text("x")
    (inside / "link").symlink_to(outside)
    fd = os.open(inside, os.O_RDONLY)
    try:
        kernel.empty(fd, os.fstat(fd).st_dev + 1)  # another device: nothing is touched
        assert (inside / "a/b/file").exists()
        kernel.empty(fd, os.fstat(fd).st_dev)
    finally:
        os.close(fd)
    assert list(inside.iterdir()) == []
    assert (outside / "kept").exists()
