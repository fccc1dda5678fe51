"""``kairos-p2p cluster``, ``backup``, ``restore``: what can be done when the cluster itself is in trouble?

Each verb that changes something first shows what it would do and what would be lost, and asks. The agent
makes the plan and carries it out; nothing is decided here.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlencode

import click

from p2p_bootstrap.api.upkeep import CandidateDoc, DoneDoc, PlanDoc, SnapshotDoc
from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import PATH, format_duration, output_option, socket_option
from p2p_network.core.errors import P2PError, QuorumMissing, UsageError

PLAN_TIMEOUT_S: Final = 30.0
DECIDE_TIMEOUT_S: Final = 90.0
SAVE_TIMEOUT_S: Final = 180.0
FILE_TIMEOUT_S: Final = 1800.0

_CANDIDATES: Final[tuple[out.Column[CandidateDoc], ...]] = (
    out.Column("SERVER", lambda row: row["hostname"]),
    out.Column("K3S", lambda row: row["k3s"]),
    out.Column("TERM", lambda row: str(row["term"] or "?")),
    out.Column("INDEX", lambda row: str(row["index"] or "?")),
    out.Column("REVISION", lambda row: str(row["revision"] or "?")),
    out.Column("NEWEST SNAPSHOT", lambda row: row["newest_snapshot"] or "-"),
    out.Column(
        "AGE", lambda row: "-" if row["snapshot_age_s"] is None else format_duration(row["snapshot_age_s"])
    ),
)
_SNAPSHOTS: Final[tuple[out.Column[SnapshotDoc], ...]] = (
    out.Column("NAME", lambda row: row["name"]),
    out.Column("OF", lambda row: row["node"]),
    out.Column("CREATED", lambda row: row["created"]),
    out.Column("BYTES", lambda row: str(row["size_bytes"])),
    out.Column("DIGEST", lambda row: row["digest"][:12]),
    out.Column("HELD BY", lambda row: ", ".join(row["held_by"])),
)

yes_option = click.option("-y", "--yes", is_flag=True, help="Don't ask.")


@click.group()
def group() -> None:
    """Bring the cluster back, keep one of two, save and look at snapshots."""


@group.command()
@click.option("--lost", "lost", multiple=True, metavar="NODE[,NODE]", help="Nodes that are lost for ever.")
@click.option("--survivor", default="", metavar="NODE", help="Who brings it back. [default: the newest data]")
@click.option(
    "--from-snapshot", "snapshot", default="", metavar="NAME", help="Go back to a snapshot; 'latest' works."
)
@click.option("--plan", "only_plan", is_flag=True, help="Only show what would be done.")
@yes_option
@output_option
@socket_option
def recover(
    lost: tuple[str, ...],
    survivor: str,
    snapshot: str,
    only_plan: bool,
    yes: bool,
    output: out.Output,
    socket: Path,
) -> None:
    """Bring back a cluster whose servers have lost their majority.

    Shows who has the newest data and what would be lost, and asks. Servers that can't be reached may be
    alive on the other side of a broken network, and keep the cluster going there: look at them first, and
    name with --lost those that are gone for good.
    """
    names = ",".join(lost)
    query = {"lost": names, "survivor": survivor, "snapshot": snapshot}
    _approved("recovery", query, "Bring the cluster back like this?", only_plan, yes, output, socket)


@group.command()
@click.option("--keep", required=True, metavar="CLUSTER|NODE", help="The cluster to keep, or a node in it.")
@click.option("--plan", "only_plan", is_flag=True, help="Only show what would be done.")
@yes_option
@output_option
@socket_option
def resolve(keep: str, only_plan: bool, yes: bool, output: out.Output, socket: Path) -> None:
    """Keep one of two clusters of one mesh.

    Two can come about when p2p.minimum_nodes was too low and the network broken while they formed. Nothing
    is wiped before this: the nodes of the other cluster set their data aside, and join the one kept.
    """
    _approved("resolution", {"keep": keep}, "Give the other one up?", only_plan, yes, output, socket)


def _approved(
    what: str,
    query: dict[str, str],
    question: str,
    only_plan: bool,
    yes: bool,
    output: out.Output,
    socket: Path,
) -> None:
    client = AgentClient(socket)
    path = f"/v1/cluster/{what}?{urlencode({k: v for k, v in query.items() if v})}"
    plan = cast(PlanDoc, client.call("GET", path, timeout_s=PLAN_TIMEOUT_S))
    if output == "table":
        _show(plan)
    elif only_plan and output != "name":
        out.print_document(plan, output)
    if plan["forbidden"]:
        raise QuorumMissing(
            "; ".join(plan["forbidden"]), hint="kairos-p2p roles list shows which nodes are in reach"
        )
    if only_plan:
        return
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("this asks first, and nobody can answer", hint="add --yes")
        click.confirm(question, abort=True, err=True)
    done = cast(DoneDoc, client.call("POST", path, timeout_s=DECIDE_TIMEOUT_S))
    if output in ("json", "yaml"):
        out.print_document(done, output)
        return
    out.emit(done["done"])
    out.note("watch it with: kairos-p2p roles list, kairos-p2p wait ready")


def _show(plan: PlanDoc) -> None:
    if plan["candidates"]:
        out.print_rows(plan["candidates"], _CANDIDATES, "table", name=lambda row: row["hostname"], empty="")
    for title, lines in (("would be lost", plan["losses"]), ("would be done", plan["steps"])):
        if lines:
            out.emit(f"\n{title}:")
            for line in lines:
                out.emit(f"  - {line}")


@group.group()
def snapshot() -> None:
    """Save and look at snapshots of etcd."""


@snapshot.command("list")
@output_option
@socket_option
def list_snapshots(output: out.Output, socket: Path) -> None:
    """All snapshots in reach and who holds a copy, newest first. With -o name: their names."""
    rows = cast(
        list[SnapshotDoc], AgentClient(socket).call("GET", "/v1/cluster/snapshots", timeout_s=PLAN_TIMEOUT_S)
    )
    out.print_rows(rows, _SNAPSHOTS, output, name=lambda row: row["name"], empty="there is no snapshot yet")


@snapshot.command()
@click.option("--name", default="on-demand", show_default=True, help="The beginning of its name.")
@socket_option
def save(name: str, socket: Path) -> None:
    """Have etcd write a snapshot now, on this server; it is copied to others."""
    path = f"/v1/cluster/snapshots?{urlencode({'name': name})}"
    out.emit(AgentClient(socket).call("POST", path, timeout_s=SAVE_TIMEOUT_S)["done"])


@click.command()
@click.argument("file", type=PATH)
@click.option("--passphrase-file", type=PATH, help="Read the passphrase there instead of asking.")
@socket_option
def backup(file: Path, passphrase_file: Path | None, socket: Path) -> None:
    """Write the whole cluster into one encrypted file: data, CA, tokens.

    Run it on a server. Who has the file and the passphrase has the cluster: keep them apart.
    """
    if file.exists():
        raise UsageError(f"{file} is there already", hint="choose another name; backups are not overwritten")
    with _passphrase(passphrase_file, confirm=True) as secret:
        _transfer(socket, "backup", file, secret)


@click.command()
@click.argument("file", type=PATH)
@click.option("--passphrase-file", type=PATH, help="Read the passphrase there instead of asking.")
@click.option("--abandon", is_flag=True, help="Even if the present cluster has workloads; it is set aside.")
@click.option("--lost", "lost", multiple=True, metavar="NODE[,NODE]", help="Nodes that are lost for ever.")
@yes_option
@socket_option
def restore(
    file: Path,
    passphrase_file: Path | None,
    abandon: bool,
    lost: tuple[str, ...],
    yes: bool,
    socket: Path,
) -> None:
    """Begin the cluster of a backup on the nodes of this mesh.

    The CA is the backup's, so kubeconfigs and tokens stay valid. This node becomes the first server.
    Servers of the present cluster that can't be reached may keep it going elsewhere: look at them first, and
    name with --lost those that are gone for good.
    """
    if not file.exists():
        raise UsageError(f"there is no file {file}")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("this asks first, and nobody can answer", hint="add --yes")
        click.confirm(f"Begin the cluster of {file} on this mesh?", abort=True, err=True)
    with _passphrase(passphrase_file, confirm=False) as secret:
        _transfer(socket, "restore", file, secret, abandon="1" if abandon else "", lost=",".join(lost))


def _transfer(socket: Path, what: str, file: Path, secret: Path, **more: str) -> None:
    query: dict[str, Any] = {"path": file.absolute(), "passphrase_file": secret.absolute(), **more}
    path = f"/v1/cluster/{what}?{urlencode({k: v for k, v in query.items() if v})}"
    out.emit(AgentClient(socket).call("POST", path, timeout_s=FILE_TIMEOUT_S)["done"])


@contextmanager
def _passphrase(given: Path | None, *, confirm: bool) -> Iterator[Path]:
    """A file with the passphrase that only root can read; one that we made is removed again."""
    if given is not None:
        if not given.exists():
            raise UsageError(f"there is no file {given}")
        yield given
        return
    if not sys.stdin.isatty():
        raise UsageError("a passphrase is needed, and nobody can type it", hint="use --passphrase-file")
    text = click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    try:
        descriptor, name = tempfile.mkstemp(prefix="kairos-p2p-", dir="/dev/shm")
        with os.fdopen(descriptor, "w") as out_file:
            out_file.write(text)
    except OSError as exc:
        raise P2PError(f"the passphrase cannot be handed over: {exc.strerror}") from exc
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
