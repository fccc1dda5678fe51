"""Do machines that boot from one image, with only a token in common, become a cluster, and stay who they are?

Power-on to a role without a person: kernel, our initramfs, stages, agent, mesh (mDNS on a network of their
own), VPN, genesis, k3s (the stand-in). Each machine has another init: busybox, systemd, OpenRC; the last two
supervise k3s. The slot of each is on trial, and its agent blesses it. After a power cut what must last is
there, and systemd has merged an extension that was put there before it. The network is a multicast group in
a private network namespace.
"""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from boot_lab import run
from vm_lab import ACTIVE, INITS, Machine, Whole, mark, new_token, wait_for

from p2p_bootstrap.boot import slots

pytestmark = pytest.mark.timeout(1500)

NODES = 3
LIMIT_S = 1200  # some 60 s on two quiet cores
TRIAL = slots.SlotTable("/cOS/active.img", "/cOS/passive.img", True, 1, 3)
CONFIG = """#cloud-config
hostname: node-{{{{ trunc 6 .MachineID }}}}
install:
  bind_mounts: [/srv/data]
p2p:
  network_token: {token}
  minimum_nodes: {nodes}
  bless: {{when: role, hold_s: 2}}
stages:
  initramfs:
    - name: this fails
      commands: ["echo what went wrong; exit 7"]
    - name: systemd shows the agent's words
      files:
        - path: /etc/systemd/system/kairos-p2p.service.d/console.conf
          content: |
            [Service]
            StandardOutput=journal+console
            StandardError=journal+console
  boot:
    - name: tell who I am
      commands:
        - echo "MARK init $(cat /proc/1/comm) $(cd /run/cos; ls *_mode)" >/dev/console
        - echo "MARK kept $(cat /srv/data/n) $(cat /var/lib/kairos-p2p/n) $(ls /srv/gone)" >/dev/console
        - echo "MARK name $(hostname) $(cut -c1-6 /etc/machine-id)" >/dev/console
        - echo "MARK root $(grep -c ' / squashfs ro' /proc/mounts)" >/dev/console
        - echo "MARK loopback $(grep -c ' lo$' /proc/net/if_inet6)" >/dev/console
    - name: the second time, tell how it went
      if: '[ -e /srv/data/n ]'
      commands:
        - echo "MARK extended $(from-extension) $(grep -c '^sysext /usr/bin' /proc/mounts)" >/dev/console
        - |
          kairos-p2p boot status >/run/status
          echo "MARK status $? $(grep -q 'what went wrong' /run/status && echo told)" >/dev/console
    - name: the first time, leave something behind
      if: '[ ! -e /srv/data/n ]'
      commands:
        - echo x >>/srv/data/n; echo x >>/var/lib/kairos-p2p/n; echo x >/srv/gone
        - |
          cd /var/lib/kairos && mkdir -p extensions/active && cd extensions
          echo {extension} | base64 -d >tool.raw && ln -s ../tool.raw active/
        - sync
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
    - name: tell who supervises k3s
      commands:
        - |
          setsid sh -c 'until pid=$(cat /sys/fs/cgroup/system.slice/kairos-p2p-k3s.service/cgroup.procs ||
              cat /proc/$(cat /run/kairos-p2p-k3s.pid)/task/*/children) 2>/dev/null &&
              line=$(tr "\\0" " " </proc/${{pid%%[!0-9]*}}/cmdline) && [ "${{line#*python*k3s }}" != "$line" ]
            do sleep 3; done; echo MARK k3s ${{line#*k3s }}' >/dev/console 2>/dev/null </dev/null &
    - name: tell when all are ready
      commands:
        - |
          setsid sh -c 'until [ -e /etc/rancher/k3s/k3s.yaml ] &&
            [ "$(k3s kubectl get nodes 2>/dev/null | grep -cw Ready)" = {nodes} ]; do sleep 15
          done; echo MARK nodes {nodes} ready' >/dev/console 2>&1 </dev/null &
"""


def extension(folder: Path) -> str:
    """An extension of the system with one program, as a squashfs in base64."""
    tree, image = folder / "tool", folder / "tool.raw"
    release = tree / "usr/lib/extension-release.d/extension-release.tool"
    program = tree / "usr/bin/from-extension"
    for path, text in ((release, "ID=_any\n"), (program, "#!/bin/sh\necho merged\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    program.chmod(0o755)
    run("mksquashfs", tree, image, "-quiet", "-no-progress", "-all-root")
    return base64.b64encode(image.read_bytes()).decode()


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
    config = CONFIG.format(token=new_token(), nodes=NODES, extension=extension(tmp_path))
    inits = ["busybox", "systemd", "openrc" if whole.has_openrc else "busybox"]
    machines, states = [], []
    for number, init in enumerate(inits, start=1):
        folder = tmp_path / f"{init}{number}"
        folder.mkdir()
        states.append(whole.copy_state(folder / "state.part", slots.render(TRIAL)))
        card = f"virtio-net-pci,netdev=n0,mac=52:54:00:88:00:{number:02x}"
        net = ["-netdev", "socket,id=n0,mcast=230.88.0.1:4788", "-device", card]
        drives = whole.disks(folder, config, states[-1])
        machines.append(
            Machine(
                f"{init}{number}",
                folder,
                whole.kernel,
                whole.initrd,
                drives,
                net=net,
                prefix=network,
                own_clock=True,
            )
        )
    lines = [f"{ACTIVE} init={INITS[init]}" for init in inits]
    try:
        for machine, line in zip(machines, lines, strict=True):
            machine.start(line)
        wait_for(machines, "MEMBER: ", LIMIT_S)
        consoles = [machine.console() for machine in machines]
        servers = [m for m, text in zip(machines, consoles, strict=True) if "MEMBER: server" in text]
        assert len(servers) == 1, "\n".join(text[-3000:] for text in consoles)
        assert sum("MEMBER: agent" in text for text in consoles) == NODES - 1
        wait_for(servers, f"MARK nodes {NODES} ready", LIMIT_S)
        wait_for(machines, "slot_blessed", LIMIT_S)
        first = [machine.console() for machine in machines]
        for machine in machines:
            machine.stop()  # a power cut
        assert not any(pointer(state).trial for state in states)
        for machine, line in list(zip(machines, lines, strict=True))[1:]:
            machine.start(line)
        wait_for(machines[1:], "MARK status", LIMIT_S)
        second = [machine.console() for machine in machines[1:]]
    finally:
        for machine in machines:
            machine.stop()
    for init, before in zip(inits, first, strict=True):
        lives(init, before)
        assert mark(before, "kept") == ""
        # a service manager has k3s as a service of its own
        assert init == "busybox" or mark(before, "k3s").split()[0] in ("server", "agent")
    for init, before, after in zip(inits[1:], first[1:], second, strict=True):
        lives(init, after)
        assert mark(after, "kept") == "x x"
        assert mark(after, "name") == mark(before, "name")
        # `boot status` has the error of the stage before the switch, and says so by its exit code
        assert mark(after, "status") == "1 told"
    assert mark(second[0], "extended") == "merged 1", "systemd merges what the boot offered"


def lives(init: str, console: str) -> None:
    """What is true of each boot, whatever its init."""
    assert mark(console, "init") == f"{comm(init)} active_mode"
    assert mark(console, "root") == "1"
    assert mark(console, "loopback") == "1"
    name, machine_id = mark(console, "name").split()
    assert name == f"node-{machine_id}"


def comm(init: str) -> str:
    """The name of process 1."""
    return {"busybox": "init", "openrc": "openrc-init"}.get(init, init)
