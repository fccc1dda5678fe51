"""How does a stage run, and what became of each step?

Steps run one after the other. An error is never dropped: it is kept with its step, logged, and written to
the record ``/run/kairos-p2p/stages/STAGE.json``. The next step runs all the same, as in Kairos, unless the
failing one is marked ``fatal`` or the configuration ``strict``. A step with a mistake in the configuration
doesn't run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final, Literal

from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.conditions import Verdict, files_asked, judge
from p2p_bootstrap.stages.configured import Configured, ConfiguredStep
from p2p_bootstrap.stages.facts import Facts
from p2p_bootstrap.stages.model import Step
from p2p_bootstrap.stages.names import sequence
from p2p_bootstrap.stages.plan import Plan, plan
from p2p_bootstrap.stages.root import Root
from p2p_bootstrap.stages.steps.order import actions
from p2p_network.core import log
from p2p_network.core.errors import P2PError

RECORDS: Final = "/run/kairos-p2p/stages"
logger = log.get(__name__)

State = Literal["done", "skipped", "failed", "not run"]


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of a step: what it did, what went wrong, what to do next."""

    action: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a step. `reason` is one sentence."""

    id: str
    label: str
    place: str
    state: State
    reason: str
    failures: tuple[Failure, ...] = ()
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a stage.

    Attributes:
        problems: what is wrong with the configuration; those steps didn't run.
        stopped: the stage ended early, at a fatal error.
    """

    stage: str
    outcomes: tuple[Outcome, ...]
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    stopped: bool = False
    at: float = 0.0

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The steps that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.state == "failed")

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong."""
        return not self.failed and not self.problems


@dataclass(slots=True)
class Runner:
    """Runs stages of one configuration.

    Attributes:
        observe: reads the facts; asked before each step, since steps change them.
        wall_s, monotonic_s: clocks.
    """

    configured: Configured
    context: Context
    observe: Callable[[], Facts]
    wall_s: Callable[[], float]
    monotonic_s: Callable[[], float]
    _outcomes: list[Outcome] = field(default_factory=list)

    def run(self, stage: str) -> Report:
        """Run a stage with its ``.before`` and ``.after``; keep the record. Errors of steps are in it."""
        planned = plan(stage, self.configured.steps)
        problems = [str(problem) for problem in (*problems_of(self.configured, stage), *planned.problems)]
        self._outcomes = []
        stopped = bool(problems) and self.configured.strict
        for step in planned.steps:
            outcome = self._not_run(step.configured) if stopped else self._step(step.configured)
            self._outcomes.append(outcome)
            fatal = step.configured.step.fatal or self.configured.strict
            if outcome.state == "failed" and fatal:
                stopped = True
        remarks = tuple(str(remark) for remark in planned.remarks)
        report = Report(stage, tuple(self._outcomes), tuple(problems), remarks, stopped, self.wall_s())
        write_record(self.context.root, report)
        state = "failed" if not report.ok else "done"
        log.event(
            logger, "boot.stage_ended", logging.ERROR if not report.ok else logging.INFO, to=state,
            key=stage, count=len(report.outcomes), reason=summary(report),
        )  # fmt: skip
        return report

    def _not_run(self, configured: ConfiguredStep) -> Outcome:
        return Outcome(
            configured.id, configured.label, str(configured.step.mark), "not run", "a fatal error came before"
        )

    def _step(self, configured: ConfiguredStep) -> Outcome:
        began = self.monotonic_s()
        facts = self.observe()
        context = replace(self.context, facts=facts, data=facts.template_data())
        outcome = Outcome(configured.id, configured.label, str(configured.step.mark), "done", "")
        verdict, failure = decide(configured.step, context)
        if failure:
            outcome = replace(outcome, state="failed", reason="its if can't be asked", failures=(failure,))
        elif not verdict.runs:
            outcome = replace(outcome, state="skipped", reason=verdict.reason)
        else:
            failures = tuple(_act(configured.step, context))
            count = len(actions(configured.step))
            reason = f"{len(failures)} of {count} actions failed" if failures else verdict.reason
            outcome = replace(
                outcome, state="failed" if failures else "done", reason=reason, failures=failures
            )
        for one in outcome.failures:
            log.event(logger, "boot.step_failed", logging.ERROR, key=configured.id, reason=one.action,
                      error=one.message, hint=one.hint)  # fmt: skip
        return replace(outcome, took_s=round(self.monotonic_s() - began, 3))


def decide(step: Step, context: Context, *, ask: bool = True) -> tuple[Verdict, Failure | None]:
    """Whether a step runs here. `ask`: run its ``if`` too; else that is left open."""
    present = [path for path in files_asked(step) if context.root.exists(path)]
    verdict = judge(step, context.facts, present)
    if not (verdict.runs and verdict.ask and ask):
        return verdict, None
    try:
        command = context.render(verdict.ask, str(step.mark))
        ended = context.system.run(["/bin/sh", "-c", command])
    except P2PError as exc:
        return verdict, Failure("ask its if", exc.message, exc.hint)
    if ended.code == 0:
        return Verdict(True, "its if holds"), None
    return Verdict(False, f"its if ended with {ended.code}"), None


def _act(step: Step, context: Context) -> Sequence[Failure]:
    failures = []
    for action in actions(step):
        try:
            action.execute(context)
        except P2PError as exc:
            failures.append(Failure(action.describe(), exc.message, exc.hint))
        except OSError as exc:  # a file that vanished meanwhile, a full disk: the step's error, not a crash
            where = f"{exc.filename}: " if exc.filename else ""
            failures.append(Failure(action.describe(), f"{where}{exc.strerror or exc}"))
    return failures


def problems_of(configured: Configured, stage: str) -> tuple[object, ...]:
    """The configuration's problems that touch this stage (or no stage in particular)."""
    mine = tuple(f"stages.{part}[" for part in sequence(stage))
    return tuple(
        problem
        for problem in configured.problems
        if not problem.key.startswith("stages.") or problem.key.startswith(mine)
    )


def summary(report: Report) -> str:
    """One sentence for people."""
    counts = {
        state: sum(o.state == state for o in report.outcomes) for state in ("done", "skipped", "failed")
    }
    text = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "nothing to do"
    if report.problems:
        text += f", {len(report.problems)} problems in the configuration"
    return f"{text}{'; ended early at a fatal error' if report.stopped else ''}"


def describe(planned: Plan, context: Context) -> list[tuple[ConfiguredStep, Verdict, tuple[str, ...]]]:
    """What a stage would do: each step, whether it would run, and its actions. Changes nothing."""
    result = []
    for step in planned.steps:
        verdict, _ = decide(step.configured.step, context, ask=False)
        lines = tuple(action.describe() for action in actions(step.configured.step)) if verdict.runs else ()
        result.append((step.configured, verdict, lines))
    return result


def write_record(root: Root, report: Report) -> None:
    """Keep a report, readable by root only. That it can't be kept is logged, and no reason to fail."""
    text = json.dumps(asdict(report) | {"ok": report.ok}, indent=1)
    try:
        root.make_folder(RECORDS, 0o700)
        root.write(f"{RECORDS}/{report.stage}.json", text.encode(), 0o600)
    except P2PError as exc:
        log.event(logger, "boot.record_lost", logging.WARNING, path=RECORDS, error=exc.message)
