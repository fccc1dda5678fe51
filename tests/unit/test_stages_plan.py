"""In which order do steps run, and which of them run here?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2p_bootstrap.cloudconfig.nodes import Mark
from p2p_bootstrap.stages.conditions import files_asked, judge
from p2p_bootstrap.stages.configured import ConfiguredStep
from p2p_bootstrap.stages.facts import Facts
from p2p_bootstrap.stages.model import AbsolutePath, After, IfFiles, Pattern, Step
from p2p_bootstrap.stages.names import is_known, sequence
from p2p_bootstrap.stages.plan import plan

FACTS = Facts(
    hostname="edge-7",
    os_name="Ubuntu 24.04.1 LTS",
    os_id="ubuntu",
    os_version="24.04",
    arch="amd64",
    machine="x86_64",
    service_managers=frozenset({"systemd"}),
    service_manager="systemd",
)


def steps(*written: str, stage: str = "boot") -> list[ConfiguredStep]:
    """``file/name<after,after``"""
    found = []
    for number, text in enumerate(written):
        name, _, after = text.partition("<")
        file, _, short = name.partition("/")
        waits = tuple(After(one) for one in after.split(",") if one)
        step = Step(Mark(file, number + 1, 1), name=short, after=waits)
        found.append(
            ConfiguredStep(stage, file, f"{file}.{short}", frozenset({f"{file}.{short}", short}), short, step)
        )
    return found


def order(*written: str) -> str:
    return "".join(one.configured.step.name for one in plan("boot", steps(*written)).steps)


@pytest.mark.parametrize(
    ("written", "result"),
    [
        (["f/a", "f/b", "f/c"], "abc"),
        (["f/a<c", "f/b", "f/c"], "cab"),  # what is written counts, then the order of the file
        (["f/a", "f/b<c", "f/c<a", "f/d"], "acbd"),
        (["f/a<g.x", "f/b", "g/x", "g/y"], "xaby"),
        (["f/a", "g/b", "h/c"], "abc"),
        (["f/a<nobody", "f/b"], "ab"),
    ],
)
def test_order(written: list[str], result: str) -> None:
    assert order(*written) == result


def test_a_ring_never_runs_and_says_so_and_the_rest_runs() -> None:
    planned = plan("boot", steps("f/a<b", "f/b<c", "f/c<a", "g/d", "g/e<a"))
    assert [one.configured.step.name for one in planned.steps] == ["d", "e"]
    assert len(planned.problems) == 3
    assert "waits in a ring with" in planned.problems[0].message
    (alone,) = plan("boot", steps("f/a<a")).problems
    assert "itself" in alone.message


def test_an_unknown_name_is_a_remark_with_the_nearest() -> None:
    planned = plan("boot", steps("f/format-disk", "f/b<format-dis"))
    assert len(planned.steps) == 2
    (remark,) = planned.remarks
    assert "did you mean 'format-disk'" in remark.hint


def test_before_and_after_of_a_stage() -> None:
    found = [
        *steps("f/c", stage="boot.after"),
        *steps("f/b"),
        *steps("f/a", stage="boot.before"),
        *steps("f/x", stage="network"),
    ]
    assert [one.configured.step.name for one in plan("boot", found).steps] == ["a", "b", "c"]
    assert [one.configured.step.name for one in plan("boot.after", found).steps] == ["c"]
    assert sequence("provider-kairos.bootstrap.before.worker") == ("provider-kairos.bootstrap.before.worker",)


def test_stage_names_of_the_reference() -> None:
    for name in [
        "rootfs",
        "initramfs",
        "fs",
        "boot",
        "network",
        "reconcile",
        "boot.before",
        "network.after",
        "before-install",
        "after-upgrade",
        "after-install-chroot",
        "after-reset-chroot",
        "kairos-install.pre",
        "kairos-install.after",
        "kairos-uki-install.pre",
        "kairos-uki-upgrade.after",
        "provider-kairos.bootstrap.before.worker",
        "provider-kairos.bootstrap.after.master",
    ]:
        assert is_known(name), name
    assert not is_known("boots")


CONDITIONS = [
    ({}, True, "nothing speaks against"),
    ({"node": "edge-7"}, True, ""),
    ({"node": "^edge-[0-9]$"}, True, ""),
    ({"node": "core"}, False, "this node is edge-7"),
    ({"only_os": "ubuntu|debian"}, True, ""),
    ({"only_os": "Ubuntu.*"}, True, ""),
    ({"only_os": "Alpine.*"}, False, "the system is Ubuntu 24.04.1 LTS"),
    ({"only_os_version": "24.04|22.04"}, True, ""),
    ({"only_os_version": "^12"}, False, "the system's version is 24.04"),
    ({"only_arch": "amd64"}, True, ""),
    ({"only_arch": "arm64"}, False, "the processor is amd64"),
    ({"only_service_manager": "systemd"}, True, ""),
    ({"only_service_manager": "openrc"}, False, "this system has systemd"),
    ({"only_os": "ubuntu", "only_arch": "arm64"}, False, "only_arch"),
]


@pytest.mark.parametrize(("conditions", "runs", "reason"), CONDITIONS)
def test_conditions(conditions: dict[str, str], runs: bool, reason: str) -> None:
    typed = {
        key: value if key == "only_service_manager" else Pattern(value) for key, value in conditions.items()
    }
    verdict = judge(replace(Step(Mark("f", 1, 1)), **typed), FACTS)
    assert verdict.runs == runs
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("kind", "present", "runs"),
    [
        ("any", ["/a"], True),
        ("any", [], False),
        ("all", ["/a", "/b"], True),
        ("all", ["/a"], False),
        ("none", [], True),
        ("none", ["/b"], False),
    ],
)
def test_if_files(kind: str, present: list[str], runs: bool) -> None:
    asked = IfFiles(**{kind: (AbsolutePath("/a"), AbsolutePath("/b"))})
    step = Step(Mark("f", 1, 1), if_files=asked)
    assert files_asked(step) == ("/a", "/b")
    assert judge(step, FACTS, present).runs == runs
    assert judge(Step(Mark("f", 1, 1), if_files=IfFiles()), FACTS).runs, "empty lists ask nothing"


def test_if_is_asked_last() -> None:
    assert judge(Step(Mark("f", 1, 1), if_="true"), FACTS).ask == "true"
    assert judge(Step(Mark("f", 1, 1), if_="true", node=Pattern("x")), FACTS).ask == ""
