"""``kairos-p2p version``: which versions are at work here?"""

from __future__ import annotations

import platform
from pathlib import Path

import click

from p2p_bootstrap import __version__
from p2p_bootstrap.api.service import VersionDoc
from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import output_option, socket_option
from p2p_network.core.errors import P2PError


@click.command()
@output_option
@socket_option
def version(output: out.Output, socket: Path) -> None:
    """Versions of this command and of the agent.

    Succeeds without an agent too.
    """
    agent: VersionDoc | None
    try:
        agent = AgentClient(socket, timeout_s=2.0).version()
    except P2PError:
        agent = None
    match output:
        case "json" | "yaml":
            command = {"version": __version__, "python": platform.python_version()}
            out.print_document({"command": command, "agent": agent}, output)
        case "name":
            out.emit(__version__)
        case "table":
            running = (agent["version"], f"Python {agent['python']}") if agent else ("not running",)
            out.print_sheet(
                [("kairos-p2p", (__version__, f"Python {platform.python_version()}")), ("agent", running)]
            )
    if agent and agent["version"] != __version__ and output == "table":
        out.note("the agent is of another version than this command; restart it to bring them together")
