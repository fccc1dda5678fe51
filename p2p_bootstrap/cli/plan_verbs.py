"""``kairos-p2p plan`` and ``apply``: what shall the cluster be, and what has to happen for it?"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

import click

from p2p_bootstrap.api.service import PlanDoc, Wanted
from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import output_option, socket_option, timeout_option
from p2p_network.core.errors import DaemonNotRunning, P2PError, TimedOut, UsageError

EXIT_PENDING: Final = 6
POLL_S: Final = 1.0

Command = TypeVar("Command", bound=Callable[..., Any])


def _change_options(command: Command) -> Command:
    """``--servers``, ``--role``, ``--replace``."""
    for option in (
        click.option(
            "--replace",
            multiple=True,
            metavar="NODE",
            help="Give this server up: another node takes its place as soon as it is silent.",
        ),
        click.option(
            "--role",
            "roles",
            multiple=True,
            metavar="NODE=ROLE",
            help="Force a node to be server or agent; auto takes that back.",
        ),
        click.option("--servers", type=int, help="How many servers the cluster shall have."),
    ):
        command = option(command)
    return command


def _wanted(servers: int | None, roles: tuple[str, ...], replace: tuple[str, ...]) -> Wanted:
    forced: dict[str, Literal["auto", "server", "agent"]] = {}
    for item in roles:
        node, _, role = item.rpartition("=")
        if not node or role not in ("auto", "server", "agent"):
            raise UsageError(f"--role {item} is not NODE=server, NODE=agent or NODE=auto")
        forced[node] = cast(Literal["auto", "server", "agent"], role)
    if servers is not None and servers < 1:
        raise UsageError("a cluster has at least one server")
    return Wanted(servers, forced, replace)


@click.command()
@_change_options
@output_option
@socket_option
def plan(
    servers: int | None, roles: tuple[str, ...], replace: tuple[str, ...], output: out.Output, socket: Path
) -> None:
    """What would happen, step by step, until the cluster is as declared?

    Without options: from the cluster as it is to its declaration. With them: as if the declaration were
    changed like this. Nothing is done. Exit code 6: there are steps to take. On servers only.
    """
    document = AgentClient(socket).plan(_wanted(servers, roles, replace))
    _show(document, output)
    if document["steps"]:
        raise click.exceptions.Exit(EXIT_PENDING)


@click.command()
@_change_options
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@click.option(
    "--version",
    "version",
    default=None,
    metavar="VERSION",
    help="Only if the declaration is still this one (the version that plan -o json shows).",
)
@click.option("--no-wait", is_flag=True, help="Declare and return; the steps are taken anyway.")
@timeout_option("15m")
@socket_option
def apply(
    servers: int | None,
    roles: tuple[str, ...],
    replace: tuple[str, ...],
    yes: bool,
    version: str | None,
    no_wait: bool,
    timeout: float,
    socket: Path,
) -> None:
    """Change what the cluster shall be, and watch it become that.

    The server that holds the cluster's lease takes the steps, one at a time; Ctrl-C ends only the watching.
    If somebody else changed the declaration meanwhile, nothing is changed and the exit code is 1. On
    servers only.
    """
    wanted = _wanted(servers, roles, replace)
    client = AgentClient(socket)
    before = client.plan(wanted)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                "apply asks before it changes the cluster, and nobody can answer", hint="add --yes"
            )
        _show(before, "table")
        click.confirm("Do this?", abort=True, err=True)
    client.apply(wanted, before["version"] if version is None else version)
    if no_wait:
        out.note(f"declared: {before['servers']} servers")
        return
    _watch(client, timeout)


def _watch(client: AgentClient, timeout_s: float) -> None:
    deadline, said = time.monotonic() + timeout_s, ""
    last = "nothing was heard of the cluster"
    while time.monotonic() < deadline:
        try:
            document = client.plan(Wanted())
        except DaemonNotRunning:
            raise
        except P2PError as exc:  # this server may be the one that goes, or the API is moving
            last = exc.message
        else:
            if not document["steps"]:
                out.note(f"as declared: {', '.join(document['now'])}")
                return
            last = document["steps"][0]["reason"]
            if len(document["steps"]) == 1 and document["blocked"]:
                last = document["steps"][-1]["reason"]
        if last != said:
            said = last
            out.note(last)
        time.sleep(POLL_S)
    raise TimedOut(
        f"the cluster is not yet as declared: {last}",
        hint="it goes on by itself; look with: kairos-p2p plan",
    )


def _show(document: PlanDoc, output: out.Output) -> None:
    if output in ("json", "yaml"):
        out.print_document(document, output)
        return
    if output == "name":
        for step in document["steps"]:
            out.emit(out.printable(f"{step['action']} {step['node']}".strip()))
        return
    forced = ", ".join(f"{node}={role}" for node, role in document["forced"].items())
    out.print_sheet(
        [
            (
                "declared",
                (f"{document['servers']} servers", f"by {document['by']}" if document["by"] else "", forced),
            ),
            ("now", (", ".join(document["now"]),)),
            ("decides", (document["holder"] or out.NOTHING,)),
        ]
    )
    if not document["steps"]:
        out.emit("all is as declared")
    for number, step in enumerate(document["steps"], start=1):
        out.emit(out.printable(f"{number:>3}  {step['action']:<12} {step['reason']}"))
