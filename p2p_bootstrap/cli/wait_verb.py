"""``kairos-p2p wait``: is this node there yet?"""

from __future__ import annotations

from pathlib import Path

import click

from p2p_bootstrap.api.service import GOALS, Goal
from p2p_bootstrap.cli import progress
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import socket_option, timeout_option
from p2p_bootstrap.cli.output import note


@click.command()
@click.argument("goal", type=click.Choice(GOALS))
@timeout_option("120s")
@socket_option
def wait(goal: Goal, timeout: float, socket: Path) -> None:
    """Wait until this node has come that far.

    \b
    mesh   it has joined the mesh
    role   it has its role in the cluster
    ready  its k3s says ready

    Prints what happens on the way to stderr, and nothing to stdout.
    """
    note(progress.reached(goal, progress.wait_until(AgentClient(socket), goal, timeout)))
