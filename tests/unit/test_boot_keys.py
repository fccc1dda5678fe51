"""Has every key of the kernel command line an effect on the plan, under both of its names?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from p2p_bootstrap.boot import cmdline
from p2p_bootstrap.boot import steps as do
from p2p_bootstrap.boot.facts import BlockDevice, Facts, SlotFailure, SlotImage
from p2p_bootstrap.boot.plan import Plan, plan
from p2p_bootstrap.boot.run import DEFAULT_WAIT_S, Runner

LABELS = ("COS_STATE", "COS_OEM", "COS_PERSISTENT", "COS_RECOVERY", "OTHER")
NODE = Facts(
    devices=tuple(BlockDevice(f"/dev/vda{n}", "ext4", label) for n, label in enumerate(LABELS)),
    images=tuple(SlotImage(f"/cOS/{name}.img", "ext4", name) for name in ("active", "passive", "other")),
    recovery_images=(SlotImage("/cOS/recovery.img", "squashfs", "r"),),
)


def made(words: str) -> Plan:
    return plan(replace(NODE, cmdline=f"root=LABEL=COS_ACTIVE {words}"))


def step(made: Plan, name: str) -> do.Action | None:
    return next((one.action for one in made.steps if one.name == name), None)


def lines(made: Plan) -> str:
    return "\n".join(f"{one.name}: {one.action.describe()}" for one in made.steps)


EFFECTS: dict[str, Callable[[Plan], object]] = {
    "cos-img/filename=/cOS/other.img": lambda p: "cos-state/cOS/other.img" in lines(p),
    "rd.X.overlay=tmpfs:10%": lambda p: "(tmpfs) on /run/overlay, rw,size=10%" in lines(p),
    "rd.X.overlay=LABEL=OTHER": lambda p: "mount /dev/vda4 (ext4) on /run/overlay" in lines(p),
    "rd.X.mount=LABEL=OTHER:/srv/x": lambda p: "mount /dev/vda4 (ext4) on /sysroot/srv/x" in lines(p),
    "rd.X.oemlabel=OTHER": lambda p: "oem: mount /dev/vda4" in lines(p),
    "rd.X.debugrw": lambda p: (
        "root: mount the image /run/initramfs/cos-state/cOS/active.img (ext4) on /sysroot, rw" in lines(p)
        and "cos-state, rw" in lines(p)
    ),
    "rd.X.disable root=LABEL=OTHER": lambda p: lines(p).splitlines()[1:] == [
        "root: mount /dev/vda4 (ext4) on /sysroot, rw",
        "switch-root: make /sysroot the root and start /sbin/init",
    ],
    "rd.X.uki": lambda p: p.mode == "stop" and "Secure Boot is off" in p.reason,
    "rd.X.uki rd.X.securebootdisabled": lambda p: (p.mode, p.slot) == ("uki", "live"),
    "init=/bin/other": lambda p: "start /bin/other" in lines(p),
    "fsck.mode=skip": lambda p: "check /dev" not in lines(p),
    "fsck.mode=force": lambda p: step(p, "fsck-oem") == do.Fsck("/dev/vda1", "ext4", True, True),
    "fsck.repair=no": lambda p: step(p, "fsck-oem") == do.Fsck("/dev/vda1", "ext4", False, False),
    "recovery-mode": lambda p: p.slot == "recovery",
    "kairos.reset": lambda p: p.slot == "autoreset" and "write autoreset_mode" in lines(p),
    "kairos.ram": lambda p: "copy" in {one.name for one in p.steps} and "volume-usr-local" not in lines(p),
    "kairos.ram.persistent=LABEL=OTHER": lambda p: "mount /dev/vda4 (ext4) on /sysroot/usr/local" in lines(p),
    "kairos.ram.oem=LABEL=OTHER": lambda p: "oem: mount /dev/vda4" in lines(p),
    "kairos.ram.wipe": lambda p: any("kairos.ram.wipe is the installer's work" in r for r in p.remarks),
    "kairos.ram.create_partitions": lambda p: any("create_partitions is" in r for r in p.remarks),
}  # fmt: skip


@pytest.mark.parametrize("words", EFFECTS)
@pytest.mark.parametrize("who", ["cos", "immucore"])
def test_a_key_has_its_effect(words: str, who: str) -> None:
    plain, asked = made(""), made(words.replace(".X.", f".{who}."))
    assert EFFECTS[words](asked), f"{asked.reason}\n{lines(asked)}"
    assert not EFFECTS[words](plain), "without the key nothing of it is done"


class Gone:
    """A machine on which some partitions never appear."""

    places = NODE.places

    def __init__(self, words: str, without: str) -> None:
        devices = tuple(d for d in NODE.devices if d.label != without)
        self._facts = replace(NODE, cmdline=f"root=LABEL=COS_ACTIVE {words}", devices=devices)

    def facts(self, *, layout_ready: bool = False, failures: tuple[SlotFailure, ...] = ()) -> Facts:
        return replace(self._facts, failures=failures)


@pytest.mark.parametrize(
    ("words", "without", "waited_s"),
    [
        ("", "COS_STATE", DEFAULT_WAIT_S),
        ("rd.cos.sysrootwait=7", "COS_STATE", 7),
        ("rd.immucore.oemtimeout=4 rd.immucore.sysrootwait=9", "COS_OEM", 4),
        ("rd.immucore.oemtimeout=4", "COS_PERSISTENT", DEFAULT_WAIT_S),
    ],
)
def test_a_device_is_waited_for_as_long_as_the_key_says(words: str, without: str, waited_s: float) -> None:
    class Nothing:
        """No step can be done."""

        def __getattr__(self, name: str) -> Callable[..., tuple[()]]:
            if name == "mount":
                raise OSError(f"no {name} here")
            return lambda *_args, **_named: ()

    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    runner = Runner(Nothing(), Gone(words, without), clock=lambda: now_s, sleep=sleep)  # type: ignore[arg-type]
    assert runner.run().outcome == "stopped"
    assert now_s == pytest.approx(waited_s, abs=0.5)


@pytest.mark.parametrize(("words", "wait_s"), [("", 0), ("rd.cos.rebootonfailure", 10), ("panic=3", 3)])
def test_what_follows_the_screen(words: str, wait_s: int, capsys: pytest.CaptureFixture[str]) -> None:
    from p2p_bootstrap.boot.emergency import fail
    from p2p_bootstrap.boot.record import Record

    fail(Record(0.0, "stopped", "stop", "none", "because"), cmdline.parse(words))
    text = capsys.readouterr().err
    assert "because" in text
    assert (f"It starts anew in {wait_s} s." if wait_s else "it waits here") in text
    fail(Record(0.0, "stopped", "stop", "none", "because"), cmdline.parse(""), counted=True)
    assert "It starts anew in 10 s." in capsys.readouterr().err
