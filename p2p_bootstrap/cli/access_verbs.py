"""``kairos-p2p access``: who may reach whom?"""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast
from urllib.parse import urlencode

import click

from p2p_bootstrap.api.reach import AccessDoc, InboundDoc
from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import output_option, socket_option
from p2p_network.core.errors import UsageError

TIMEOUT_S: Final = 15.0

COLUMNS: Final[tuple[out.Column[InboundDoc], ...]] = (
    out.Column("FROM", lambda row: row["hostname"] or row["peer"]),
    out.Column("REGION", lambda row: row["region"]),
    out.Column("ROLE", lambda row: row["role"]),
    out.Column("TO THIS NODE", lambda row: "allowed" if row["allowed"] else "denied"),
    out.Column("RULE", lambda row: row["rule"] or "(none fits)"),
    out.Column("DROPPED", lambda row: str(row["dropped"]), right=True),
)


def _get(socket: Path) -> AccessDoc:
    return cast(AccessDoc, AgentClient(socket).call("GET", "/v1/access", timeout_s=TIMEOUT_S))


def _set(socket: Path, rules: list[str]) -> None:
    query = urlencode([("rule", rule) for rule in rules])
    found = cast(AccessDoc, AgentClient(socket).call("POST", f"/v1/access?{query}", timeout_s=TIMEOUT_S))
    _show_rules(found)


def _show_rules(found: AccessDoc) -> None:
    for number, rule in enumerate(found["rules"], 1):
        out.emit(f"{number:3}  {out.printable(rule)}")
    out.emit(f"{'':3}  allow any to any" + ("" if found["rules"] else "   (there is no rule)"))


@click.group(invoke_without_command=True)
@output_option
@socket_option
@click.pass_context
def group(ctx: click.Context, output: out.Output, socket: Path) -> None:
    """Who may reach whom?

    Rules are lines of one list, the first that fits decides; without one, members may talk to members. They
    are about who begins: answers always come back. Each node enforces them for itself, in its data plane and
    for its services. WHO is any, role:server, role:agent, region:NAME or node:NAME.
    """
    if ctx.invoked_subcommand is not None:
        return
    found = _get(socket)
    if output in ("json", "yaml"):
        out.print_document(found, output)
    elif output == "name":
        for rule in found["rules"]:
            out.emit(out.printable(rule))
    else:
        _show_rules(found)
        if found["inbound"]:
            out.emit("")
            out.emit(out.plain_table(found["inbound"], COLUMNS))


def _added(action: str, source: str, target: str, at: int | None, socket: Path) -> None:
    rules = _get(socket)["rules"]
    rules.insert(len(rules) if at is None else at - 1, f"{action} {source} to {target}")
    _set(socket, rules)


at_option = click.option(
    "--at", type=click.IntRange(1), default=None, metavar="N", help="Before rule N. [default: at the end]"
)


@group.command()
@click.argument("source", metavar="WHO")
@click.argument("target", metavar="WHOM")
@at_option
@socket_option
def allow(source: str, target: str, at: int | None, socket: Path) -> None:
    """Add a rule that lets WHO begin to talk to WHOM. Only on a node with the network token."""
    _added("allow", source, target, at, socket)


@group.command()
@click.argument("source", metavar="WHO")
@click.argument("target", metavar="WHOM")
@at_option
@socket_option
def deny(source: str, target: str, at: int | None, socket: Path) -> None:
    """Add a rule that keeps WHO from WHOM. Only on a node with the network token.

    A cluster's nodes need each other: agents begin to talk to servers, and servers to all.
    """
    _added("deny", source, target, at, socket)


@group.command()
@click.argument("number", type=click.IntRange(1), metavar="N")
@socket_option
def remove(number: int, socket: Path) -> None:
    """Take rule N out of the list."""
    rules = _get(socket)["rules"]
    if number > len(rules):
        raise UsageError(f"there are {len(rules)} rules", hint="see them with: kairos-p2p access")
    del rules[number - 1]
    _set(socket, rules)


@group.command()
@socket_option
def clear(socket: Path) -> None:
    """Take all rules out: members may talk to members."""
    _set(socket, [])
