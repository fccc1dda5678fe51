"""Do the stages around k3s's first start run once, by all their names, and stop what they must?"""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_bootstrap.config.loading import Config, load
from p2p_bootstrap.node.hooks import Hooks, stage_runner, stages_of
from p2p_bootstrap.stages.run import Failure, Outcome, Report
from p2p_network.core.errors import P2PError, RoleError


class Memory:
    """A durable folder in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def set(self, key: str, value: bytes) -> None:
        self.kept[key] = value


def failing(stage: str, *, stopped: bool) -> Report:
    outcome = Outcome("1", "mount the disk", "oem:3", "failed", "no", (Failure("do", "no such disk"),))
    return Report(stage, (outcome,), stopped=stopped)


async def test_each_hook_runs_once_by_both_names_also_after_a_restart() -> None:
    ran: list[str] = []
    disk = Memory()

    def note(stage: str) -> Report:
        ran.append(stage)
        return Report(stage, ())

    await Hooks(disk, note).run("before", "server")
    again = Hooks(disk, note)
    await again.run("before", "server")
    await again.run("after", "agent")
    assert ran == [*stages_of("before", "server"), *stages_of("after", "agent")]
    assert ran[1] == "provider-kairos.bootstrap.before.master"
    again.forget()
    await again.run("after", "agent")
    assert ran[-1] == "provider-kairos.bootstrap.after.worker"


async def test_an_error_is_kept_and_a_fatal_one_stops_the_start() -> None:
    disk = Memory()
    lenient = Hooks(disk, lambda stage: failing(stage, stopped=False))
    await lenient.run("before", "agent")
    strict = Hooks(disk, lambda stage: failing(stage, stopped=True))
    with pytest.raises(RoleError, match=r"ended at a fatal error.*no such disk"):
        await strict.run("before", "server")
    assert "mount the disk: no such disk" in strict.error
    with pytest.raises(RoleError, match="ended at a fatal error"):
        await strict.run("before", "server")  # tried again, not taken for done


async def test_a_stage_that_can_t_be_run_is_an_error() -> None:
    def broken(stage: str) -> Report:
        raise P2PError("the disk is full")

    with pytest.raises(RoleError, match="could not be run: the disk is full"):
        await Hooks(Memory(), broken).run("before", "server")


def test_a_step_of_the_configuration_really_runs(tmp_path: Path) -> None:
    text = """#cloud-config
stages:
  provider-kairos.bootstrap.before.server:
    - name: make it
      files: [{path: /made, content: here}]
    - name: fail it
      fatal: true
      files: [{path: /made/below, content: impossible}]
    - files: [{path: /made2, content: never}]
"""
    config: Config = load([Path("-")], stdin=text)
    run = stage_runner(config, tmp_path)
    report = run("provider-kairos.bootstrap.before.server")
    assert (tmp_path / "made").read_text() == "here"
    assert report.stopped
    assert not (tmp_path / "made2").exists()
    nothing = run("provider-kairos.bootstrap.before.master")
    assert nothing.ok
    assert not nothing.outcomes
