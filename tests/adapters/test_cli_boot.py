"""``kairos-p2p boot``: what does a person get to see?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2p_bootstrap.boot import record, run, slots
from p2p_bootstrap.boot.facts import BlockDevice, Facts, SlotFailure, SlotImage, to_json
from p2p_bootstrap.boot.record import Entry, Record
from p2p_bootstrap.cli.main import main

FACTS = Facts(
    cmdline="root=LABEL=COS_ACTIVE rd.immucore.debgu",
    devices=tuple(
        BlockDevice(f"/dev/vda{n}", "ext4", label)
        for n, label in enumerate(("COS_STATE", "COS_OEM", "COS_PERSISTENT"))
    ),
    images=(SlotImage("/cOS/active.img", "squashfs", "x"),),
)
BOOTED = Record(
    1.0, "booted", "normal", "passive", "root is the label COS_ACTIVE",
    failures=(SlotFailure("active", "root", "it can't be mounted", "write it anew"),),
    entries=(Entry("passive", "root", "mount the image", 0.001, 0.0123, "done"),), total_s=0.5,
)  # fmt: skip


def test_a_plan_is_printed_and_its_json_is_a_file_of_facts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "facts.json"
    path.write_text(to_json(FACTS))
    assert main(["boot", "plan", "--facts", str(path)]) == 0
    shown = capsys.readouterr()
    assert "mount the image /run/initramfs/cos-state/cOS/active.img (squashfs) on /sysroot, ro" in shown.out
    assert "normal active: root is the label COS_ACTIVE" in shown.err
    assert "did you mean rd.immucore.debug?" in shown.err
    assert main(["boot", "plan", "--facts", str(path), "-o", "json"]) == 0
    path.write_text(capsys.readouterr().out)
    first = json.loads(path.read_text())
    assert main(["boot", "plan", "--facts", str(path), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert main(["boot", "plan", "--facts", str(path), "-o", "yaml"]) == 0
    assert capsys.readouterr().out.startswith("mode: normal\nslot: active\n")
    assert main(["boot", "plan", "--facts", str(path), "-o", "name"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "sentinel"


def test_facts_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "plan", "--facts", str(tmp_path / "none")]) == 1
    (tmp_path / "bad").write_text('{"cmdlin": ""}')
    assert main(["boot", "plan", "--facts", str(tmp_path / "bad")]) == 1
    assert "did you mean 'cmdline'?" in capsys.readouterr().err


def test_this_machine_has_a_plan_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "plan", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["reason"]


def test_records_are_explained_weeks_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "explain", "--root", str(tmp_path)]) == 1
    assert "no record of a boot" in capsys.readouterr().err
    for number in range(record.KEPT + 3):
        run.keep(tmp_path / "usr/local" / record.FOLDER, record.to_json(BOOTED))
        assert len(run.kept(tmp_path / "usr/local" / record.FOLDER)) == min(number + 1, record.KEPT)
    (tmp_path / "usr/local" / record.FOLDER / "999.json").write_text('{"version": 1, torn')
    assert main(["boot", "explain", "--root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "booted passive (normal) because root is the label COS_ACTIVE" in shown
    assert "active failed at the step root: it can't be mounted\n  to mend it: write it anew" in shown
    assert main(["boot", "explain", "--root", str(tmp_path), "--boots", "2", "-o", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["boots"]) == 2
    assert main(["boot", "timeline", "--root", str(tmp_path)]) == 0
    assert "12.3 ms  passive  done     root  mount the image" in capsys.readouterr().out


def test_slots_are_shown_and_blessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "slots", "--state", str(tmp_path)]) == 1
    assert "no slots are at" in capsys.readouterr().err
    folder = tmp_path / "cOS"
    folder.mkdir()
    for name in ("active.img", "passive.img"):
        (folder / name).write_bytes(b"x")
    (folder / "slots.env").write_bytes(slots.render(slots.SlotTable(trial=True, tries_left=1)))
    assert main(["boot", "slots", "--state", str(tmp_path)]) == 0
    assert "active   /cOS/active.img   on trial, 1 tries left" in capsys.readouterr().out
    assert main(["boot", "bless", "--state", str(tmp_path), "--root", str(tmp_path)]) == 1
    assert "can't be told which slot runs" in capsys.readouterr().err
    (tmp_path / "run/cos").mkdir(parents=True)
    (tmp_path / "run/cos/active_mode").write_text("1\n")
    assert main(["boot", "bless", "--state", str(tmp_path), "--root", str(tmp_path)]) == 0
    assert "is blessed" in capsys.readouterr().out
    assert main(["boot", "slots", "--state", str(tmp_path), "-o", "json"]) == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)] == ["good", "good"]
