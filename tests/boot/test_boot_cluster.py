"""Do machines that boot from one image, with only a token in common, become a cluster? Three in QEMU.

Power-on to a role without a person: kernel, our initramfs, stages, agent, mesh (mDNS on a network of their
own), VPN, genesis, k3s (the stand-in). One starts systemd, one OpenRC, one busybox. The slot of each is on
trial: its agent blesses it, and it is the one that boots again, with everything that had to last. The network
is a multicast group in a private network namespace.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from boot_lab import run
from vm_lab import ACTIVE, INITS, Machine, Whole, mark, new_token, wait_for

from p2p_bootstrap.boot import slots

pytestmark = pytest.mark.timeout(1500)

LIMIT_S = 1200  # some 90 s on two quiet cores
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
    - name: the agent's words on the console, and time to start on a busy machine
      systemctl:
        overrides:
          - service: kairos-p2p.service
            name: console
            content: "[Service]\\nStandardError=journal+console\\nTimeoutStartSec=infinity\\n"
  boot:
    - name: an address by the card's number
      commands:
        - ip link set eth0 up
        - ip addr replace 10.88.0.$((0x$(cut -d':' -f6 /sys/class/net/eth0/address)))/24 dev eth0
    - name: tell who I am
      commands:
        - echo "MARK init $(cat /proc/1/comm) $(cd /run/cos; ls *_mode)" >/dev/console
        - echo "MARK kept $(cat /srv/data/n) $(cat /var/lib/kairos-p2p/n)" >/dev/console
        - echo "MARK name $(hostname) $(cut -c1-6 /etc/machine-id)" >/dev/console
        - echo "MARK root $(grep -c ' / squashfs ro' /proc/mounts)" >/dev/console
        - echo x >>/srv/data/n; echo x >>/var/lib/kairos-p2p/n; echo x >/srv/gone; sync
    - name: the agent's words on the console
      if: '[ ! -d /run/systemd/system ]'
      commands:
        - |
          touch /var/log/kairos-p2p.log
          setsid tail -F /var/log/kairos-p2p.log >/dev/console 2>&1 </dev/null &
  network:
    - name: tell how it went
      if: '[ -d /run/systemd/system ]'
      commands:
        - |
          kairos-p2p boot status >/run/status
          echo "MARK status $? $(grep -q 'what went wrong' /run/status && echo told)" >/dev/console
    - name: tell when all are ready
      commands:
        - |
          setsid sh -c 'until [ -e /etc/rancher/k3s/k3s.yaml ] &&
            [ "$(k3s kubectl get nodes 2>/dev/null | grep -cw Ready)" = {nodes} ]; do sleep 5
          done; echo MARK nodes {nodes} ready' >/dev/console 2>&1 </dev/null &
"""


@pytest.fixture
def network() -> Iterator[list[str]]:
    """A network namespace in which multicast reaches all who listen."""
    name = f"kp2p-boot-{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", name, "route", "add", "224.0.0.0/4", "dev", "lo")
        yield ["ip", "netns", "exec", name]
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


def pointer(state: Path) -> slots.SlotTable:
    """The slot pointer on a partition's file."""
    return slots.parse(run("debugfs", "-R", "cat /cOS/slots.env", state).partition("debugfs ")[0])


def test_three_machines_from_one_image_become_a_cluster_and_bless_what_they_booted(
    whole: Whole, network: list[str], tmp_path: Path
) -> None:
    inits = ["systemd", "openrc" if whole.has_openrc else "busybox", "busybox"]
    config = CONFIG.format(token=new_token(), nodes=len(inits))
    machines, states, lines = [], [], []
    for number, init in enumerate(inits, start=1):
        folder = tmp_path / f"node{number}"
        folder.mkdir()
        state = whole.copy_state(folder / "state.part", slots.render(TRIAL))
        card = f"virtio-net-pci,netdev=n0,mac=52:54:00:88:00:{number:02x}"
        net = ["-netdev", "socket,id=n0,mcast=230.88.0.1:4788", "-device", card]
        machines.append(
            Machine(f"node{number}", folder, whole.kernel, whole.initrd, whole.disks(folder, config, state),
                    net=net, prefix=network, own_clock=True)
        )  # fmt: skip
        states.append(state)
        lines.append(f"{ACTIVE} init={INITS[init]}")
    try:
        for machine, line in zip(machines, lines, strict=True):
            machine.start(line)
        wait_for(machines, "MEMBER: ", LIMIT_S)
        consoles = [machine.console() for machine in machines]
        servers = [m for m, text in zip(machines, consoles, strict=True) if "MEMBER: server" in text]
        assert len(servers) == 1, "\n".join(text[-3000:] for text in consoles)
        assert sum("MEMBER: agent" in text for text in consoles) == len(inits) - 1
        wait_for(servers, f"MARK nodes {len(inits)} ready", LIMIT_S)
        wait_for(machines, "slot_blessed", LIMIT_S)
        for machine in machines:
            machine.stop()  # a power cut, as is everything here
        consoles = [machine.console() for machine in machines]
        assert mark(consoles[0], "init") == "systemd active_mode"
        # `boot status` has the error of the stage before the switch, and says so by its exit code
        assert mark(consoles[0], "status") == "1 told"
        for console, state in zip(consoles, states, strict=True):
            name, machine_id = mark(console, "name").split()
            assert name == f"node-{machine_id}"
            assert mark(console, "init").endswith("active_mode")
            assert mark(console, "root") == "1"
            assert not pointer(state).trial
        # what was blessed boots again; what must last did
        for machine, line in zip(machines[:2], lines, strict=False):
            machine.start(line)
        wait_for(machines[:2], "MARK root", LIMIT_S)
        for machine, before in zip(machines[:2], consoles, strict=False):
            assert mark(machine.console(), "init") == mark(before, "init")
            assert mark(machine.console(), "kept") == "x x"
            assert mark(machine.console(), "name") == mark(before, "name")
    finally:
        for machine in machines:
            machine.stop()
