"""Does the grub.cfg say what GRUB understands, and do GRUB's tools and we read one slot pointer?"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from p2p_bootstrap.boot import grubcfg, slots
from p2p_bootstrap.boot.facts import BlockDevice, Facts, SlotImage
from p2p_bootstrap.boot.plan import plan
from p2p_network.core.errors import BootError

TRIAL = slots.SlotTable("/cOS/slot-1-x.img", "/cOS/active.img", True, 1, 1)


def test_grub_understands_the_script(tmp_path: Path) -> None:
    if not shutil.which("grub-script-check"):
        pytest.skip("missing: grub-script-check (grub-common)")
    path = tmp_path / "grub.cfg"
    path.write_text(grubcfg.render(grubcfg.Menu("my node", cmdline="console=ttyS0 quiet")))
    subprocess.run(["grub-script-check", path], check=True)


def test_the_tools_of_grub_change_the_pointer_and_we_read_it(tmp_path: Path) -> None:
    if not shutil.which("grub-editenv"):
        pytest.skip("missing: grub-editenv (grub-common)")
    path = tmp_path / "slots.env"
    path.write_bytes(slots.render(TRIAL))
    listed = subprocess.run(["grub-editenv", path, "list"], capture_output=True, text=True, check=True).stdout
    assert "active_image=/cOS/slot-1-x.img" in listed.splitlines()
    subprocess.run(["grub-editenv", path, "set", "slot_tries_left=0"], check=True)
    after = slots.parse(path.read_text())
    assert after == replace(TRIAL, tries_left=0)
    assert after.spent
    path.write_bytes(slots.render(slots.bless(after, "active")[0]))
    listed = subprocess.run(["grub-editenv", path, "list"], capture_output=True, text=True, check=True).stdout
    assert "slot_trial=0" in listed.splitlines()


def test_a_try_that_grub_took_is_not_taken_twice_and_the_last_one_counts() -> None:
    devices = tuple(BlockDevice(f"/dev/vda{n}", "ext4", label) for n, label in
                    enumerate(("COS_STATE", "COS_OEM", "COS_PERSISTENT")))  # fmt: skip
    images = tuple(SlotImage(path, "squashfs", path) for path in ("/cOS/slot-1-x.img", "/cOS/active.img"))
    last = slots.render(replace(TRIAL, tries_left=0)).decode()
    node = Facts(cmdline="root=LABEL=COS_ACTIVE", devices=devices, images=images, pointer=last)
    assert plan(node).slot == "passive"
    made = plan(replace(node, cmdline="root=LABEL=COS_ACTIVE kairos.counted"))
    assert made.slot == "active"
    assert "count-try" not in {step.name for step in made.steps}


def test_every_number_of_tries_becomes_one_less() -> None:
    lines = [line.strip() for line in grubcfg.render(grubcfg.Menu()).splitlines()]
    for tries in range(1, grubcfg.MAX_TRIES + 1):
        (at,) = (
            n for n, line in enumerate(lines) if line.endswith(f'[ "$slot_tries_left" = "{tries}" ]; then')
        )
        assert lines[at + 1] == f"set slot_tries_left={tries - 1}"


def test_what_would_break_out_of_the_script_is_refused() -> None:
    for text in ('"; reboot; "', "a'b", "$root", "a\nb", "{"):
        with pytest.raises(BootError, match=r"can't stand in a grub\.cfg"):
            grubcfg.render(grubcfg.Menu(cmdline=text))
