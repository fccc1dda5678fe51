"""Is every key of the kernel command line read, under both of its names, and every misspelt one told?"""

from __future__ import annotations

import pytest

from p2p_bootstrap.boot.cmdline import CommandLine, RamOptions, parse


@pytest.mark.parametrize("who", ["cos", "immucore"])
def test_the_two_families_of_keys_mean_the_same(who: str) -> None:
    text = (
        f"rd.{who}.overlay=tmpfs:10% rd.{who}.mount=LABEL=A:/a rd.{who}.mount=LABEL=B:/b rd.{who}.oemlabel=O "
        f"rd.{who}.oemtimeout=7 rd.{who}.debugrw rd.{who}.disable=1 rd.{who}.debug rd.{who}.uki "
        f"rd.{who}.sysrootwait=20 rd.{who}.rebootonfailure rd.{who}.securebootdisabled=true"
    )
    assert parse(text) == CommandLine(
        overlay="tmpfs:10%", mounts=("LABEL=A:/a", "LABEL=B:/b"), oem_label="O", oem_timeout_s=7,
        debug_rw=True, disable=True, debug=True, uki=True, sysroot_wait_s=20, reboot_on_failure=True,
        secure_boot_disabled=True,
    )  # fmt: skip


def test_other_keys() -> None:
    found = parse(
        "BOOT_IMAGE=/vmlinuz root=LABEL=COS_ACTIVE cos-img/filename=/cOS/active.img fsck.mode=force "
        "fsck.repair=no panic=5 console=tty1 console=ttyS0,115200 init=/bin/other kairos.config=/c "
        "kairos.config_url=http://x/y "
        'cos.setup=/s stages.boot[0].commands[0]="echo hi there" ro quiet -- recovery-mode'
    )
    assert found == CommandLine(
        root="LABEL=COS_ACTIVE", image="/cOS/active.img", fsck_mode="force", fsck_repair="no", panic_s=5,
        consoles=("tty1", "ttyS0,115200"), init="/bin/other",
    )  # fmt: skip
    assert found.root_label == "COS_ACTIVE"


@pytest.mark.parametrize(
    ("text", "live"),
    [
        ("root=live:LABEL=COS_LIVE", "LABEL=COS_LIVE"),
        ("live:CDLABEL=X", "CDLABEL=X"),
        ("live:/dev/sr0", "/dev/sr0"),
    ],
)
def test_live(text: str, live: str) -> None:
    assert parse(text).live == live


def test_ram() -> None:
    assert parse("kairos.ram").ram == RamOptions()
    assert parse("kairos.ram.wipe kairos.ram.oem=LABEL=O").ram == RamOptions(wipe=True, oem="LABEL=O")
    assert parse("kairos.ram=false").ram is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("rd.immucore.debgu", "there is no rd.immucore.debgu; did you mean rd.immucore.debug?"),
        ("kairos.rset", "there is no kairos.rset; did you mean kairos.reset?"),
        ("rd.cos.overlay", "rd.cos.overlay needs a value"),
        ("rd.cos.debug=perhaps", "neither true nor false"),
        ("rd.cos.oemtimeout=soon", "no number of seconds"),
        ("boot[0].commands[0]=x", "write stages.boot[0].commands[0]=... to add to a stage"),
        ("initramfs.after[0].commands[0]=x", "write stages.initramfs.after[0].commands[0]="),
    ],
)
def test_what_looks_like_ours_but_is_not_is_told(text: str, what: str) -> None:
    (told,) = parse(text).unknown
    assert what in told
