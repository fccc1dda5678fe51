"""How does somebody else run a stage: the boot, the command line? From a folder to a report, in two calls.

    engine = Engine.of(Path("/sysroot"), network=False)
    report = engine.run("initramfs")

Needs no command-line library: this is what the initramfs calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from p2p_bootstrap.cloudconfig.collect import Collected, collect, collect_system
from p2p_bootstrap.cloudconfig.remote import Fetcher
from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.configured import Configured, read_steps
from p2p_bootstrap.stages.observe import observe
from p2p_bootstrap.stages.plan import Plan, plan
from p2p_bootstrap.stages.root import Root
from p2p_bootstrap.stages.run import Report, Runner
from p2p_bootstrap.stages.system import LinuxSystem


@dataclass(frozen=True, slots=True)
class Engine:
    """The stages of one configuration on one root.

    Attributes:
        collected: the configuration; `configured` its steps, with every problem.
        context: where they act.
    """

    collected: Collected
    configured: Configured
    context: Context

    @classmethod
    def of(
        cls,
        folder: Path = Path("/"),
        paths: Sequence[Path] = (),
        *,
        network: bool = True,
        keep: bool = True,
        booting: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> Engine:
        """Collect and read. Never raises for what is in the files.

        Args:
            folder: the root that stages act on.
            paths: cloud-configs, lowest first; empty: those of the root.
            network: whether addresses (``config_url``) may be fetched yet.
            keep: whether what is drawn once for a machine may be written.
            booting: whether `folder` is about to be this machine's own root, on the kernel that runs.
            say: takes what programs say.
        """
        root = Root(folder)
        fetch = _fetcher() if network else None
        collected = collect(paths, fetch=fetch) if paths else collect_system(root.folder, fetch=fetch)
        configured = read_steps(collected.root, collected.files, collected.names)
        everything = replace(configured, problems=(*collected.problems, *configured.problems))
        facts = observe(root, keep=keep)
        system = LinuxSystem(root, own_kernel=booting, network=network)
        context = Context(root, system, facts, facts.template_data(), say)
        return cls(collected, everything, context)

    def plan(self, stage: str) -> Plan:
        """What the stage would do, in order."""
        return plan(stage, self.configured.steps)

    def run(self, stage: str) -> Report:
        """Run the stage with its ``.before`` and ``.after``. Errors of steps are in the report."""
        root = self.context.root
        runner = Runner(self.configured, self.context, lambda: observe(root), time.time, time.monotonic)
        return runner.run(stage)


def _fetcher() -> Fetcher:
    from p2p_bootstrap.cloudconfig.fetching import fetch_http  # late: an initramfs does not carry it

    return fetch_http
