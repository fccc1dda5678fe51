"""Which files are read, in which order, and what if one can't be?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2p_bootstrap.cloudconfig.collect import MAX_FILES, collect
from p2p_bootstrap.cloudconfig.nodes import locate, to_value

H = "#cloud-config\n"


def test_order_of_files_and_folders(tmp_path: Path) -> None:
    oem = tmp_path / "oem"
    (oem / "sub").mkdir(parents=True)
    (oem / "90_custom.yaml").write_text(H + "who: custom\nlist: [c]\n")
    (oem / "01_base.yml").write_text(H + "who: base\nlist: [a]\nbase: yes\n")
    (oem / "sub" / "x.yaml").write_text(H + "list: [d]\n")
    (oem / "notes.txt").write_text("not YAML: [")
    (oem / "values.yaml").write_text("helm: values\n")
    last = tmp_path / "last.conf"
    last.write_text(H + "who: last\n")
    collected = collect([oem, last])
    assert to_value(collected.checked()) == {"who": "last", "list": ["a", "c", "d"], "base": "yes"}
    assert [Path(name).name for name in collected.files] == [
        "01_base.yml",
        "90_custom.yaml",
        "x.yaml",
        "last.conf",
    ]
    assert locate(collected.root, ("list",)).file.endswith("01_base.yml")
    (remark,) = collected.remarks
    assert remark.file.endswith("values.yaml")
    assert "header" in remark.message


def test_standard_input_stands_where_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(H + "who: file\n")
    text = H + "who: stdin\n"
    assert to_value(collect([Path("-"), file], stdin=text).checked()) == {"who": "file"}
    assert to_value(collect([file], stdin=text).checked()) == {"who": "stdin"}


def test_everything_unreadable_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    big = tmp_path / "big.yaml"
    with big.open("wb") as file:
        file.truncate(10_000_000)
    collected = collect([tmp_path / "missing.yaml", tmp_path / "empty", big, Path("a\0b")])
    messages = {Path(p.file).name: p.message for p in collected.problems}
    assert messages["missing.yaml"] == "no such file"
    assert "no .yaml or .yml file" in messages["empty"]
    assert "10.0 MB" in messages["big.yaml"]
    assert any("can't be read" in message for message in messages.values())
    assert all(p.hint for p in collected.problems)
    assert len(collected.problems) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    file = tmp_path / "secret.yaml"
    file.write_text(H)
    file.chmod(0)
    (problem,) = collect([file]).problems
    assert "may not be read" in problem.message


def test_a_folder_full_of_files(tmp_path: Path) -> None:
    for i in range(MAX_FILES + 1):
        (tmp_path / f"{i}.yaml").touch()
    (problem,) = collect([tmp_path]).problems
    assert f"more than {MAX_FILES}" in problem.message


def test_a_pipe_is_read_within_limits(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, (H + "a: 1\n").encode())
        os.close(writer)
        assert to_value(collect([Path(f"/dev/fd/{reader}")]).checked()) == {"a": 1}
    finally:
        os.close(reader)


def test_an_endless_file_ends() -> None:
    (problem,) = collect([Path("/dev/zero")]).problems
    assert "MB" in problem.message
