"""Do stages do what their documentation says? A table of its statements, in our words, run for real.

Each case is a cloud-config as a person would copy it from the documentation, run by the verb itself on a
root folder with a shell of its own (busybox); what is expected is what is said there, not what our code does.
A disk is grown for real too: a loop device with a partition and a file system.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2p_bootstrap.cli.main import main
from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.model import AbsolutePath, Device, Expand, Layout
from p2p_bootstrap.stages.root import Root
from p2p_bootstrap.stages.steps.disk import ApplyLayout
from p2p_bootstrap.stages.system import LinuxSystem

BUSYBOX = Path("/bin/busybox")
APPLETS = ("sh", "cat", "echo", "touch", "test", "id", "sleep", "mkdir", "chmod", "false", "true", "ls")

# what is said -> (stage, cloud-config, what is then in the root: path -> content; None: not there)
SAYINGS: dict[str, tuple[str, str, dict[str, str | None]]] = {
    "a stage has a before and an after, and only its own steps run": (
        "boot",
        "stages:\n"
        "  boot: [{commands: ['echo main >>/log']}]\n"
        "  boot.before: [{commands: ['echo before >>/log']}]\n"
        "  boot.after: [{commands: ['echo after >>/log']}]\n"
        "  network: [{commands: ['echo other >>/log']}]\n",
        {"log": "before\nmain\nafter\n"},
    ),
    "steps run in the order in which they are written": (
        "boot",
        "stages: {boot: [{commands: ['echo a >>/log']}, {commands: ['echo b >>/log', 'echo c >>/log']}]}",
        {"log": "a\nb\nc\n"},
    ),
    "a step may name those it comes after": (
        "boot",
        "stages:\n  boot:\n"
        "  - {name: late, after: [{name: early}], commands: ['echo late >>/log']}\n"
        "  - {name: early, commands: ['echo early >>/log']}\n",
        {"log": "early\nlate\n"},
    ),
    "a command that fails does not keep the next ones from running": (
        "boot",
        "stages: {boot: [{commands: ['false', 'echo next >/log']}, {commands: ['echo more >>/log']}]}",
        {"log": "next\nmore\n"},
    ),
    "if is a command: its step runs when that succeeds": (
        "boot",
        "stages: {boot: [{if: '[ -e /y ]', files: [{path: /a}]}, {if: '[ ! -e /y ]', files: [{path: /b}]}]}",
        {"a": None, "b": ""},
    ),
    "node is a regular expression for the host's name": (
        "boot",
        "stages: {boot: [{node: 'edge-.*', files: [{path: /a}]}, {node: other, files: [{path: /b}]}]}",
        {"a": "", "b": None},
    ),
    "only_os and only_os_version match os-release": (
        "boot",
        "stages:\n  boot:\n"
        "  - {only_os: 'debian|ubuntu', only_os_version: '1[0-9]', files: [{path: /a}]}\n"
        "  - {only_os: alpine, files: [{path: /b}]}\n",
        {"a": "", "b": None},
    ),
    "if_files looks at any, all and none": (
        "boot",
        "stages:\n  boot:\n"
        "  - {if_files: {any: [/etc/hostname, /nope]}, files: [{path: /a}]}\n"
        "  - {if_files: {all: [/etc/hostname, /nope]}, files: [{path: /b}]}\n"
        "  - {if_files: {none: [/nope]}, files: [{path: /c}]}\n",
        {"a": "", "b": None, "c": ""},
    ),
    "inside a step: directories, files, commands, in this order, however written": (
        "boot",
        "stages: {boot: [{commands: ['cat /d/f >/log'], files: [{path: /d/f, content: x}], "
        "directories: [{path: /d, permissions: 0700}]}]}",
        {"log": "x", "d/f": "x"},
    ),
    "content may be base64, or gzip in base64": (
        "boot",
        "stages: {boot: [{files: [{path: /a, encoding: b64, content: aGVsbG8=}, "
        "{path: /b, encoding: gz+b64, content: H4sIAAAAAAACA8tIzcnJBwCGphA2BQAAAA==}]}]}",
        {"a": "hello", "b": "hello"},
    ),
    "environment is written as assignments, to /etc/environment or to environment_file": (
        "boot",
        "stages: {boot: [{environment: {FOO: bar}}, {environment: {A: b c}, environment_file: /etc/my.env}]}",
        {"etc/environment": 'FOO="bar"\n', "etc/my.env": 'A="b c"\n'},
    ),
    "dns writes resolv.conf": (
        "boot",
        "stages: {boot: [{dns: {nameservers: [8.8.8.8], search: [example.com], options: ['timeout:1']}}]}",
        {"etc/resolv.conf": "search example.com\nnameserver 8.8.8.8\noptions timeout:1\n"},
    ),
    "templates know the machine's id, values and functions": (
        "initramfs",
        "hostname: 'node-{{ trunc 4 .MachineID }}'\n",
        {"etc/hostname": "node-abcd\n"},
    ),
    "authorized_keys go to the user's own file": (
        "boot",
        "stages: {boot: [{authorized_keys: {root: [ssh-ed25519 AAAA me]}}]}",
        {"root/.ssh/authorized_keys": "ssh-ed25519 AAAA me\n"},
    ),
    "plain cloud-init: write_files with an owner's file mode, runcmd after it": (
        "boot",
        "write_files: [{path: /etc/app.conf, content: 'x=1', permissions: '0644'}]\n"
        "runcmd: ['cat /etc/app.conf >/log']\n",
        {"etc/app.conf": "x=1", "log": "x=1"},
    ),
    "entities are ensured and deleted": (
        "boot",
        "stages:\n  boot:\n"
        '  - ensure_entities: [{entity: "kind: group\\ngroup_name: gone\\ngid: 7"}]\n'
        '  - ensure_entities: [{entity: "kind: group\\ngroup_name: stay\\ngid: 8"}]\n'
        '  - delete_entities: [{entity: "kind: group\\ngroup_name: gone"}]\n',
        {"etc/group": "root:x:0:\nstay:x:8:\n"},
    ),
    "lists of several files join, in the order of their names": (
        "boot",
        "stages: {boot: [{commands: ['echo first >>/log']}]}\n---FILE---\n"
        "stages: {boot: [{commands: ['echo second >>/log']}]}\n",
        {"log": "first\nsecond\n"},
    ),
    "the kernel command line adds to a stage in dot notation": (
        "boot",
        "stages: {boot: [{commands: ['echo file >>/log']}]}\n",
        {"log": "file\n", "from-kernel": ""},
    ),
    "timesyncd is a section of its own": (
        "boot",
        "stages: {boot: [{timesyncd: {NTP: 0.pool.ntp.org, FallbackNTP: ''}}]}",
        {"etc/systemd/timesyncd.conf.d/10-yip.conf": "[Time]\nNTP=0.pool.ntp.org\nFallbackNTP=\n"},
    ),
}


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A root with a shell, that calls itself edge-1 and Debian 12."""
    if os.geteuid() != 0 or not BUSYBOX.exists():
        pytest.skip("needs root (chroot) and a static busybox (busybox-static)")
    root = tmp_path / "root"
    for folder in ("bin", "etc", "oem", "proc", "root", "run", "usr/local"):
        (root / folder).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in APPLETS:
        (root / "bin" / name).symlink_to("busybox")
    for name, text in {
        "etc/hostname": "edge-1\n", "etc/machine-id": "abcdef0123456789abcdef0123456789\n",
        "etc/os-release": "ID=debian\nVERSION_ID=12\n", "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
        "etc/group": "root:x:0:\n", "etc/shadow": "root:*:1:0:99999:7:::\n",
        "proc/cmdline": 'quiet stages.boot[1].commands[0]="touch /from-kernel"\n',
    }.items():  # fmt: skip
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("saying", SAYINGS)
def test_it_does_what_is_said(machine: Path, saying: str) -> None:
    stage, text, expected = SAYINGS[saying]
    if "from-kernel" not in expected:
        (machine / "proc/cmdline").write_text("quiet\n")
    else:
        (machine / "proc/cmdline").write_text("quiet kairos.config=stages.network[0].name=x\n")
        (machine / "oem/95.yaml").write_text(
            "#cloud-config\nstages: {boot: [{commands: ['touch /from-kernel']}]}\n"
        )
    for number, part in enumerate(text.split("---FILE---\n")):
        (machine / f"oem/9{number}.yaml").write_text(f"#cloud-config\n{part}")
    code = main(["stage", "run", stage, "--root", str(machine)])
    failing = "'false'" in text
    assert code == (1 if failing else 0)  # an error is kept and told, though the rest ran
    for name, content in expected.items():
        path = machine / name
        if content is None:
            assert not path.exists(), name
        else:
            assert path.read_text() == content, name
    if saying.startswith("content"):
        assert stat.S_IMODE((machine / "a").stat().st_mode) == 0o600  # ours: Kairos's default is wider


@pytest.fixture
def grown_disk(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A loop device of 64 MiB with one partition of 16 MiB, ext4, mounted."""
    missing = [p for p in ("losetup", "sfdisk", "partx", "mke2fs", "resize2fs") if not shutil.which(p)]
    if os.geteuid() != 0 or missing or not Path("/dev/loop-control").exists():
        pytest.skip(f"needs root, loop devices and {', '.join(missing) or 'nothing more'}")
    image, point = tmp_path / "disk", tmp_path / "mounted"
    point.mkdir()
    image.touch()
    os.truncate(image, 64 << 20)
    table = "label: gpt\nstart=2048, size=32768, name=state\n"
    subprocess.run(["sfdisk", "-q", image], input=table, text=True, check=True, capture_output=True)
    loop = subprocess.run(
        ["losetup", "-f", "--show", image], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        subprocess.run(["partx", "-a", loop], check=True, capture_output=True)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", f"{loop}p1"], check=True, capture_output=True)
        subprocess.run(["mount", f"{loop}p1", point], check=True)
        yield loop, point
    finally:
        subprocess.run(["umount", point], check=False, capture_output=True)
        subprocess.run(["partx", "-d", loop], check=False, capture_output=True)
        subprocess.run(["losetup", "-d", loop], check=False)


def may_resize_mounted() -> bool:
    """CAP_SYS_RESOURCE, which ext4 asks for; containers and some hosts lack it."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.split("CapEff:")[1].split()[0], 16) >> 24 & 1)


@pytest.mark.parametrize("mounted", [True, False])
def test_a_file_system_grows_with_its_partition(grown_disk: tuple[str, Path], mounted: bool) -> None:
    """What ``growpart`` and ``expand_partition`` are for; nothing on it is lost."""
    loop, point = grown_disk
    (point / "kept").write_text("kept")
    if mounted and not may_resize_mounted():
        pytest.skip("this machine may not resize a mounted file system (CAP_SYS_RESOURCE)")
    before = os.statvfs(point)
    if not mounted:
        subprocess.run(["umount", point], check=True)
    root = Root(Path("/"))
    action = ApplyLayout(Layout(Device(path=AbsolutePath(loop)), expand_partition=Expand()))
    context = Context(root, LinuxSystem(root))
    action.execute(context)
    if not mounted:
        subprocess.run(["mount", f"{loop}p1", point], check=True)
    after = os.statvfs(point)
    assert after.f_blocks * after.f_frsize > 3 * before.f_blocks * before.f_frsize
    assert (point / "kept").read_text() == "kept"
    sectors = int(Path(f"/sys/class/block/{Path(loop).name}p1/size").read_text())
    assert sectors > 120_000
    action.execute(context)  # twice is once
    assert int(Path(f"/sys/class/block/{Path(loop).name}p1/size").read_text()) == sectors
