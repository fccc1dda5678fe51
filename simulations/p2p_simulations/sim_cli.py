"""``kairos-p2p sim``: whole clusters in virtual time, and everything that can go wrong in them.

The verbs are thin: a world is made of a plan and a seed (`sim.world.run_world`), a plan comes from a file
(`sim.files`) or from the seed itself (`sim.chance`).
"""

from __future__ import annotations

import secrets
import sys
import time
from pathlib import Path

import click

from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.options import PATH, Duration, format_duration
from p2p_network.core.errors import P2PError, UsageError
from p2p_simulations.sim.chance import random_plan
from p2p_simulations.sim.faults import describe
from p2p_simulations.sim.files import MAX_FILE_BYTES, parse_scenario
from p2p_simulations.sim.plan import Plan
from p2p_simulations.sim.swarm import Summary, swarm
from p2p_simulations.sim.world import Outcome, run_world

_SAY_EVERY_S = 2.0


class SimulationFailed(P2PError):
    """An invariant did not hold, or what was expected was not seen."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def group() -> None:
    """Run whole clusters in virtual time, and break them.

    The code that decides is the production code; network, disks, clocks and k3s are simulated. The same
    seed always gives the same run. Exit code 1: something did not hold; the seed is named.

    \b
    kairos-p2p sim run simulations/scenarios/power-cut.yaml
    kairos-p2p sim swarm --for 60s        random worlds, random faults
    kairos-p2p sim replay 4711            the trace of one of them
    """


@group.command()
@click.argument("scenario", type=PATH)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Which run of it.")
@click.option("--trace", is_flag=True, help="Print a line per transition, also if all is well.")
def run(scenario: Path, seed: int, trace: bool) -> None:
    """Play a scenario file and check what it expects."""
    plan = parse_scenario(_read(scenario), str(scenario))
    outcome = run_world(plan, seed, keep_trace=True)
    if trace or outcome.violation:
        _print_trace(outcome)
    _conclude(outcome, f"kairos-p2p sim run {scenario} --seed {seed}")


@group.command(name="swarm")
@click.option("--for", "for_s", type=Duration(), default="60s", show_default=True, help="For how long.")
@click.option("--seed", type=click.IntRange(0), help="The first seed; default: a random one.")
def swarm_verb(for_s: float, seed: int | None) -> None:
    """Play random worlds with random faults until the time is up."""
    first = secrets.randbelow(1_000_000_000) if seed is None else seed
    out.note(f"swarm from seed {first} for {format_duration(for_s)}")
    said_at = time.monotonic()

    def progress(summary: Summary) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= _SAY_EVERY_S:
            said_at = time.monotonic()
            text = (
                f"{summary.worlds} worlds, {summary.events:,} events, {format_duration(summary.virtual_s)} "
                "of virtual time"
            )
            if out.is_terminal(sys.stderr):
                print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)  # noqa: T201
            elif summary.worlds % 50 == 0:
                out.note(text)

    summary = swarm(for_s, first, progress)
    if out.is_terminal(sys.stderr):
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201
    out.print_sheet(
        [
            ("seeds", [f"{first} to {first + summary.worlds - 1}"]),
            ("worlds", [f"{summary.worlds:,}"]),
            ("events", [f"{summary.events:,}"]),
            ("messages", [f"{summary.messages:,}"]),
            ("virtual time", [format_duration(summary.virtual_s)]),
            ("slowest healing", [format_duration(summary.slowest_healing_s)]),
            *[("no liveness", [f"{count}: {why}"]) for why, count in summary.exempt.most_common()],
            ("violations", ["1" if summary.failed else "0"]),
        ]
    )
    if summary.failed is not None:
        failed = summary.failed
        raise SimulationFailed(
            f"seed {failed.seed}: {failed.violation}", hint=f"kairos-p2p sim replay {failed.seed}"
        )


@group.command()
@click.argument("seed", type=click.IntRange(0))
def replay(seed: int) -> None:
    """Print the world of a seed of the swarm, a line per transition with its reason."""
    plan = random_plan(seed)
    _print_plan(plan)
    outcome = run_world(plan, seed, keep_trace=True)
    _print_trace(outcome)
    _conclude(outcome, f"kairos-p2p sim replay {seed}")


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        hint = "give a scenario file, e.g. one of simulations/scenarios"
        raise UsageError(f"{path}: {exc.strerror}", hint=hint) from exc


def _print_plan(plan: Plan) -> None:
    out.emit(
        f"{len(plan.nodes)} nodes, {plan.servers} servers wanted, minimum_nodes {plan.minimum_nodes}, "
        f"VPN {plan.network}, k3s starts in {plan.k3s.start_s[0]:g} to {plan.k3s.start_s[1]:g} s and fails "
        f"with {plan.k3s.failure:g}, chaos {plan.chaos:g}, {plan.weather}"
    )
    for node in plan.nodes:
        out.emit(f"  {node}")
    for trigger in plan.triggers:
        out.emit(f"  {trigger.after_s:.3f} s after the first {trigger.state}: {describe(trigger.fault)}")


def _print_trace(outcome: Outcome) -> None:
    for line in outcome.trace:
        out.emit(out.printable(line))


def _conclude(outcome: Outcome, again: str) -> None:
    out.note(
        f"{outcome.events:,} events, {outcome.messages:,} messages, "
        f"{format_duration(outcome.virtual_s)} of virtual time; trace {outcome.trace_hash}"
    )
    if outcome.violation:
        raise SimulationFailed(f"seed {outcome.seed}: {outcome.violation}", hint=f"the same again: {again}")
    if outcome.exempt:
        out.note(f"no cluster of all nodes was expected: {outcome.exempt}")
    else:
        out.note(f"all nodes were ready members {format_duration(outcome.healed_after_s)} after the healing")
