"""Do systemd and OpenRC live in an image that we boot, and is a slot left that never proves healthy? In QEMU.

Two machines side by side, each with a slot on trial: one starts systemd and gets a role, so its agent blesses
the slot; the other starts OpenRC and waits for nodes that never come, so its next boot is the old slot.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from boot_lab import run
from vm_lab import ACTIVE, INITS, Machine, Whole, mark, new_token, wait_for

from p2p_bootstrap.boot import slots

pytestmark = pytest.mark.timeout(1500)

LIMIT_S = 1200  # some 70 s on two quiet cores
TRIAL = slots.SlotTable("/cOS/active.img", "/cOS/passive.img", True, 1, 3)
CONFIG = """#cloud-config
hostname: node-{{{{ trunc 6 .MachineID }}}}
p2p:
  network_token: {token}
  minimum_nodes: {nodes}
  bless: {{when: role, hold_s: 2}}
install:
  bind_mounts: [/srv/data]
stages:
  initramfs:
    - name: this fails
      commands: ["echo what went wrong; exit 7"]
    - name: the agent's words on the console
      systemctl:
        overrides:
          - service: kairos-p2p.service
            name: console
            content: "[Service]\\nStandardError=journal+console\\n"
  boot:
    - name: tell who I am
      commands:
        - echo "MARK init $(cat /proc/1/comm) $(cd /run/cos; ls *_mode)" >/dev/console
        - echo "MARK kept $(cat /srv/data/n) $(cat /var/lib/kairos-p2p/n)" >/dev/console
        - echo "MARK name $(hostname) $(cut -c1-6 /etc/machine-id)" >/dev/console
        - echo "MARK root $(grep -c ' / squashfs ro' /proc/mounts)" >/dev/console
        - echo "MARK memory $(grep -o 'Unevictable.*' /proc/meminfo)" >/dev/console
        - echo x >>/srv/data/n; echo x >>/var/lib/kairos-p2p/n; echo x >/srv/gone; sync
    - name: the agent's words on the console
      if: '[ -d /run/openrc ]'
      commands:
        - |
          touch /var/log/kairos-p2p.log
          setsid tail -F /var/log/kairos-p2p.log >/dev/console 2>&1 </dev/null &
  network:
    - name: tell how it went
      commands:
        - |
          kairos-p2p boot status >/run/status
          echo "MARK status $? $(grep -q 'what went wrong' /run/status && echo told)" >/dev/console
"""


def pointer(state: Path) -> slots.SlotTable:
    """The slot pointer on a partition's file."""
    return slots.parse(run("debugfs", "-R", "cat /cOS/slots.env", state).partition("debugfs ")[0])


def test_a_healthy_slot_is_blessed_under_systemd_and_an_unhealthy_one_left_under_openrc(
    whole: Whole, tmp_path: Path
) -> None:
    token = new_token()
    machines, states = [], []
    for name, nodes in (("well", 1), ("unwell", 3)):
        folder = tmp_path / name
        folder.mkdir()
        state = whole.copy_state(folder / "state.part", slots.render(TRIAL))
        drives = whole.disks(folder, CONFIG.format(token=token, nodes=nodes), state)
        states.append(state)
        machines.append(Machine(name, folder, whole.kernel, whole.initrd, drives))
    well, unwell = machines
    other = INITS["openrc" if whole.has_openrc else "busybox"]
    try:
        well.start(f"{ACTIVE} init={INITS['systemd']}")
        unwell.start(f"{ACTIVE} init={other}")
        wait_for([unwell], "it has no role yet", LIMIT_S)
        unwell.stop()  # a power cut, as is everything here
        wait_for([well], "slot_blessed", LIMIT_S)
        well.stop()
        first, second = well.console(), unwell.console()
        assert mark(first, "init") == "systemd active_mode"
        assert mark(second, "init").endswith("active_mode")
        for console in (first, second):
            name, machine_id = mark(console, "name").split()
            assert name == f"node-{machine_id}"
            assert mark(console, "root") == "1"
            # `boot status` has the error of the stage before the switch, and says so by its exit code
            assert mark(console, "status") == "1 told"
        assert pointer(states[0]).trial is False
        assert pointer(states[1]).spent
        # both again: the blessed slot, and the old one; what must last did, whatever slot and init
        well.start(f"{ACTIVE} init={INITS['systemd']}")
        unwell.start(f"{ACTIVE} init={other}")
        wait_for(machines, "MARK memory", LIMIT_S)
        assert mark(well.console(), "init") == "systemd active_mode"
        assert mark(unwell.console(), "init").endswith("passive_mode")
        assert [mark(m.console(), "kept") for m in machines] == ["x x", "x x"]
        assert [mark(m.console(), "name") for m in machines] == [mark(first, "name"), mark(second, "name")]
    finally:
        for machine in machines:
            machine.stop()
