"""Do systemd and OpenRC live in an image that we boot, and lasts what must? In QEMU, beside each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from vm_lab import ACTIVE, INITS, Machine, Whole, mark, wait_for

pytestmark = pytest.mark.timeout(1500)

LIMIT_S = 1200  # some 50 s on two quiet cores
CONFIG = """#cloud-config
hostname: node-{{ trunc 6 .MachineID }}
install:
  bind_mounts: [/srv/data]
stages:
  initramfs:
    - name: this fails
      commands: ["echo what went wrong; exit 7"]
  boot:
    - name: tell who I am
      commands:
        - echo "MARK init $(cat /proc/1/comm) $(cd /run/cos; ls *_mode)" >/dev/console
        - echo "MARK kept $(cat /srv/data/n) $(cat /var/lib/kairos-p2p/n) $(ls /srv/gone)" >/dev/console
        - echo "MARK name $(hostname) $(cut -c1-6 /etc/machine-id)" >/dev/console
        - echo "MARK root $(grep -c ' / squashfs ro' /proc/mounts)" >/dev/console
        - echo x >>/srv/data/n; echo x >>/var/lib/kairos-p2p/n; echo x >/srv/gone; sync
        - echo "MARK loopback $(grep -c ' lo$' /proc/net/if_inet6)" >/dev/console
    - name: tell how it went
      if: '[ ! -s /run/status ]'
      commands:
        - |
          kairos-p2p boot status >/run/status
          echo "MARK status $? $(grep -q 'what went wrong' /run/status && echo told)" >/dev/console
"""


def test_systemd_and_openrc_come_up_and_keep_what_must_last(whole: Whole, tmp_path: Path) -> None:
    inits = ["systemd", *(["openrc"] if whole.has_openrc else [])]
    machines = []
    for init in inits:
        drives = whole.disks(tmp_path / init, CONFIG)
        machines.append(Machine(init, tmp_path / init, whole.kernel, whole.initrd, drives))
    told: list[list[str]] = []
    try:
        for _ in range(2):
            for machine in machines:
                machine.start(f"{ACTIVE} init={INITS[machine.name]}")
            wait_for(machines, "MARK status", LIMIT_S)
            for machine in machines:
                machine.stop()  # a power cut
            told.append([machine.console() for machine in machines])
    finally:
        for machine in machines:
            machine.stop()
    for init, first, second in zip(inits, *told, strict=True):
        for console in (first, second):
            assert mark(console, "init").startswith(init)
            assert mark(console, "init").endswith("active_mode")
            assert mark(console, "root") == "1"
            assert mark(console, "loopback") == "1"
            name, machine_id = mark(console, "name").split()
            assert name == f"node-{machine_id}"
            # `boot status` has the error of the stage before the switch, and says so by its exit code
            assert mark(console, "status") == "1 told"
        assert mark(first, "kept") == ""
        assert mark(second, "kept") == "x x"
        assert mark(second, "name") == mark(first, "name")
