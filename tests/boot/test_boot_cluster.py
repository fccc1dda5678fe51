"""Do machines that boot from one image, with only a token in common, become a cluster? Three in QEMU.

Power-on to a role without a person: kernel, our initramfs, stages, agent, mesh (mDNS on a network of their
own), VPN, genesis, k3s (the stand-in). The slot of each is on trial, and its agent blesses it. The network is
a multicast group in a private network namespace.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from boot_lab import run
from vm_lab import ACTIVE, INITS, Machine, Whole, new_token, wait_for

from p2p_bootstrap.boot import slots

pytestmark = pytest.mark.timeout(1500)

NODES = 3
LIMIT_S = 1200  # some 90 s on two quiet cores
TRIAL = slots.SlotTable("/cOS/active.img", "/cOS/passive.img", True, 1, 3)
CONFIG = """#cloud-config
hostname: node-{{{{ trunc 6 .MachineID }}}}
p2p:
  network_token: {token}
  minimum_nodes: {nodes}
  bless: {{when: role, hold_s: 2}}
stages:
  boot:
    - name: an address by the card's number
      commands:
        - ip link set eth0 up
        - ip addr replace 10.88.0.$((0x$(cut -d':' -f6 /sys/class/net/eth0/address)))/24 dev eth0
    - name: the agent's words on the console
      commands:
        - |
          touch /var/log/kairos-p2p.log
          setsid tail -F /var/log/kairos-p2p.log >/dev/console 2>&1 </dev/null &
  network:
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
    config = CONFIG.format(token=new_token(), nodes=NODES)
    machines, states = [], []
    for number in range(1, NODES + 1):
        folder = tmp_path / f"node{number}"
        folder.mkdir()
        states.append(whole.copy_state(folder / "state.part", slots.render(TRIAL)))
        card = f"virtio-net-pci,netdev=n0,mac=52:54:00:88:00:{number:02x}"
        net = ["-netdev", "socket,id=n0,mcast=230.88.0.1:4788", "-device", card]
        drives = whole.disks(folder, config, states[-1])
        machines.append(
            Machine(f"node{number}", folder, whole.kernel, whole.initrd, drives,
                    net=net, prefix=network, own_clock=True)
        )  # fmt: skip
    try:
        for machine in machines:
            machine.start(f"{ACTIVE} init={INITS['busybox']}")
        wait_for(machines, "MEMBER: ", LIMIT_S)
        consoles = [machine.console() for machine in machines]
        servers = [m for m, text in zip(machines, consoles, strict=True) if "MEMBER: server" in text]
        assert len(servers) == 1, "\n".join(text[-3000:] for text in consoles)
        assert sum("MEMBER: agent" in text for text in consoles) == NODES - 1
        wait_for(servers, f"MARK nodes {NODES} ready", LIMIT_S)
        wait_for(machines, "slot_blessed", LIMIT_S)
    finally:
        for machine in machines:
            machine.stop()  # a power cut
    assert not any(pointer(state).trial for state in states)
