"""Do the cloud-config's stages run in a boot, and what becomes of their errors? In a namespace."""

from __future__ import annotations

from pathlib import Path

from boot_lab import CMDLINE, MakeDisk, make_image, root_tree, run
from test_boot_namespaces import PROOF, booted, stopped, value

STAGES = """#cloud-config
stages:
  rootfs:
    - name: layout of this node
      environment_file: /run/cos/cos-layout.env
      environment:
        RW_PATHS: "/var /etc /srv"
        PERSISTENT_STATE_PATHS: "/etc/ssh /srv/kept"
        PERSISTENT_STATE_BIND: "true"
  rootfs.after:
    - name: cannot be
      commands: ["echo more words; exit 3"]
  initramfs:
    - name: who am I
      hostname: node-{{ trunc 4 .MachineID }}
      files:
        - {path: /etc/greeting, content: "hello\\n", permissions: 0644}
        - {path: /srv/kept/by-stage, content: "x"}
      users:
        kairos: {passwd: secret-word, shell: /bin/sh, no_create_home: true}
    - name: only sometimes
      if: "[ -e /run/cos/passive_mode ]"
      files: [{path: /etc/never, content: "x"}]
    - name: sees the machine
      commands: ["cp /proc/cmdline /etc/seen-cmdline", "chroot / true; mkdir /etc/made-by-command"]
"""
ASK = (
    PROOF
    + """
echo name $(busybox cat /etc/hostname) $(busybox hostname)
echo greeting $(busybox cat /etc/greeting) $(busybox ls /etc/never 2>/dev/null)
echo user $(busybox grep ^kairos: /etc/passwd)
echo shadow $(busybox grep -c '^kairos:$6' /etc/shadow) $(busybox stat -c %a /etc/shadow)
echo machine $(busybox cut -c1-4 /etc/machine-id)
echo line $(busybox grep -c COS_ACTIVE /etc/seen-cmdline) $(busybox ls -d /etc/made-by-command)
echo records $(busybox ls /run/kairos-p2p/stages)
echo mode $(busybox stat -c %a /run/cos/boot.json)
echo leaked $(busybox cut -d' ' -f2 /proc/mounts | busybox grep -cE 'sysroot|^/run$')
"""
)


def test_stages_write_the_layout_the_name_and_the_users(make_disk: MakeDisk) -> None:
    disk = make_disk(config=STAGES)
    first = booted(disk.boot(ASK + "echo kept >/srv/kept/by-hand\n"))
    machine = value(first, "machine")
    assert value(first, "name") == f"node-{machine} node-{machine}"
    assert value(first, "greeting") == "hello"
    assert value(first, "user").startswith("kairos:")
    assert value(first, "shadow") == "1 600"
    assert value(first, "line") == "1 /etc/made-by-command"
    assert value(first, "records").split() == ["initramfs.json", "rootfs.json"]
    assert value(first, "mode") == "600"
    assert value(first, "leaked") == "1"
    # an error is kept, and is no reason not to boot
    (failed,) = (remark for remark in first.record["remarks"] if "cannot be" in remark)
    assert "ended with 3: more words" in failed
    assert "secret-word" not in str(first.record)
    # the layout that the stage wrote counts: what it says lasts did
    ask = "echo kept $(busybox cat /srv/kept/by-hand)\n"
    assert value(booted(disk.boot(ASK + ask)), "kept") == "kept"


def test_a_fatal_step_ends_the_slots_attempt(make_disk: MakeDisk, images: Path) -> None:
    config = (
        "#cloud-config\nstages:\n  initramfs:\n"
        "    - {name: must work, if: '[ -e /run/cos/active_mode ]', fatal: true, commands: ['exit 1']}\n"
    )
    boot = booted(make_disk(passive=images / "v2.squashfs", config=config).boot(PROOF), "passive")
    assert value(boot, "version") == "v2"
    assert boot.record["failures"][0]["step"] == "stage-initramfs"
    assert "must work" in boot.record["failures"][0]["reason"]
    always = config.replace("active_mode", ".")
    stop = stopped(make_disk(config=always).boot(PROOF))
    assert "must work" in stop.record["reason"]
    assert "mend the step" in stop.record["hint"]


def test_the_images_own_stages_come_first_and_the_command_line_last(
    make_disk: MakeDisk, tmp_path: Path
) -> None:
    shipped = "stages:\n  initramfs:\n    - files: [{path: /etc/who, content: image, permissions: 0644}]\n"
    oem = shipped.replace("image", "oem")
    image = make_image(
        root_tree(tmp_path / "tree", "own", {"system/oem/10_own.yaml": shipped}), tmp_path / "own.img"
    )
    disk = make_disk(image, config=f"#cloud-config\n{oem}")
    ask = PROOF + "echo who $(busybox cat /etc/who); echo also $(busybox cat /etc/also)\n"
    line = f"{CMDLINE} stages.initramfs[0].hostname=by-line"
    assert value(booted(disk.boot(ask, cmdline=line)), "who") == "oem"
    extra = "stages:\n  initramfs:\n    - files: [{path: /etc/also, content: named, permissions: 0644}]\n"
    disk.unplug()
    (tmp_path / "named").write_text(extra)
    run("debugfs", "-w", "-R", f"write {tmp_path}/named /named", disk.parts["oem"])
    boot = booted(disk.boot(ask, cmdline=f"{CMDLINE} cos.setup=/oem/named"))
    assert value(boot, "also") == "named"
