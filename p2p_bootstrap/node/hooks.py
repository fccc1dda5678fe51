"""Which stages of the cloud-config run around the first start of k3s?

``provider-kairos.bootstrap.before.<role>`` before it, ``.after.<role>`` once it is ready, each once in the
life of a role on this machine (what is done is on disk). Roles go by our names and by Kairos's: server and
master, agent and worker. A failing step is kept in the stage's report, logged and shown by ``status``; one
marked ``fatal`` before the start means that k3s is not started.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import trio

from p2p_network import wire
from p2p_network.core import log
from p2p_network.core.errors import P2PError, RoleError

if TYPE_CHECKING:
    from p2p_bootstrap.config.loading import Config
    from p2p_bootstrap.node.ports import Durable
    from p2p_bootstrap.stages.run import Report
    from p2p_roles.assign import Role

logger = log.get(__name__)


ROOT: Final = Path("/")


def stage_runner(config: Config, folder: Path = ROOT) -> Callable[[str], Report]:
    """What runs a stage of the agent's own configuration on this machine."""

    def run(stage: str) -> Report:
        # late: most nodes have no hooks, and the steps' modules are many
        from p2p_bootstrap.stages.action import Context
        from p2p_bootstrap.stages.configured import read_steps
        from p2p_bootstrap.stages.observe import observe
        from p2p_bootstrap.stages.plan import plan
        from p2p_bootstrap.stages.root import Root
        from p2p_bootstrap.stages.run import Report, Runner, problems_of
        from p2p_bootstrap.stages.system import LinuxSystem

        configured = read_steps(config.document, config.files, {})
        if not plan(stage, configured.steps).steps and not problems_of(configured, stage):
            return Report(stage, ())
        root = Root(folder)
        facts = observe(root, keep=True)
        system = LinuxSystem(root, own_kernel=False, network=True)
        context = Context(root, system, facts, facts.template_data(), lambda _: None)
        return Runner(configured, context, lambda: observe(root), time.time, time.monotonic).run(stage)

    return run


When = Literal["before", "after"]
KEY: Final = "hooks-done"
OLD_NAMES: Final = {"server": "master", "agent": "worker"}


def stages_of(when: When, role: Role) -> tuple[str, str]:
    """The two names of one hook."""
    prefix = f"provider-kairos.bootstrap.{when}"
    return f"{prefix}.{role}", f"{prefix}.{OLD_NAMES[role]}"


class Hooks:
    """The hooks of this machine.

    Args:
        run_stage: runs a stage and returns its report; blocks.
    """

    def __init__(self, durable: Durable, run_stage: Callable[[str], Report]) -> None:
        self.error = ""  # of what failed last, for a person
        self._durable = durable
        self._run_stage = run_stage
        self._lock = trio.Lock()

    async def run(self, when: When, role: Role) -> None:
        """Run what is to be done, unless it was. Raises RoleError at a fatal error."""
        async with self._lock:
            mark = f"{when}.{role}"
            done = await trio.to_thread.run_sync(self._done)
            if mark in done:
                return
            self.error = ""
            for stage in stages_of(when, role):
                await self._one(stage)
            await trio.to_thread.run_sync(self._durable.set, KEY, wire.encode((*done, mark)))

    def forget(self) -> None:
        """This machine has no role any more: the hooks run again with the next one. Blocks."""
        self._durable.set(KEY, wire.encode(()))

    def _done(self) -> tuple[str, ...]:
        raw = self._durable.get(KEY)
        try:
            return wire.decode(raw, tuple[str, ...]) if raw else ()
        except ValueError:
            return ()  # rather once more than never

    async def _one(self, stage: str) -> None:
        try:
            report = await trio.to_thread.run_sync(self._run_stage, stage)
        except (P2PError, OSError) as exc:
            self._say(stage, str(exc))
            raise RoleError(
                f"the stage {stage} could not be run: {exc}", hint=f"see: kairos-p2p stage run {stage}"
            ) from exc
        for problem in report.problems:
            self._say(stage, problem)
        for outcome in report.failed:
            self._say(stage, f"{outcome.label}: {'; '.join(f.message for f in outcome.failures)}")
        if report.stopped:
            raise RoleError(
                f"k3s is not started: the stage {stage} ended at a fatal error: {self.error}",
                hint=f"correct the step, see: kairos-p2p stage run {stage} --dry-run; then restart the agent",
            )

    def _say(self, stage: str, error: str) -> None:
        self.error = f"{stage}: {error}"
        log.event(logger, "roles.hook_failed", logging.ERROR, key=stage, error=error[:1000])
