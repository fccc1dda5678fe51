"""``kairos-p2p k3s upgrade``: another version of k3s on all nodes of the cluster, one after the other."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlencode

import click

from p2p_bootstrap.api.upgrades import MAX_WAVE, NodeVersionDoc, UpgradeDoc
from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import PATH, Duration, output_option, socket_option, timeout_option
from p2p_network.core.errors import DaemonNotRunning, P2PError, RoleError, TimedOut, UsageError

EXIT_PENDING: Final = 6
POLL_S: Final = 1.0
LOOK_TIMEOUT_S: Final = 30.0
ORDER_TIMEOUT_S: Final = 1800.0  # programs may come over a slow line
_URL: Final = "/v1/k3s/upgrade"

_NODES: Final[tuple[out.Column[NodeVersionDoc], ...]] = (
    out.Column("NODE", lambda row: row["hostname"]),
    out.Column("ROLE", lambda row: row["role"]),
    out.Column("K3S", lambda row: row["k3s"] or "?"),
    out.Column("READY", lambda row: "yes" if row["ready"] else "no"),
    out.Column("UPGRADE", lambda row: row["phase"] or out.NOTHING),
    out.Column("ERROR", lambda row: row["error"] or out.NOTHING),
)


@click.command()
@click.option("--version", "version", metavar="V", help="The release, e.g. v1.36.1+k3s1.")
@click.option(
    "--from",
    "source",
    metavar="FILE|FOLDER/|URL",
    help="Take it from here: the program itself, or the folder (ending in /) with the files of the release. "
    "Only this node fetches it there; the others have it through the mesh.",
)
@click.option("--mirror", metavar="URL", help="A mirror built like upstream's: URL/VERSION/FILE.")
@click.option("--sha256", metavar="HEX", default="", help="The program's checksum, instead of a list.")
@click.option(
    "--public-key", metavar="BASE64", default="", help="The Ed25519 key that signed the list of checksums."
)
@click.option("--ca-file", type=PATH, help="Trust these authorities instead of the system's.")
@click.option(
    "--wave",
    type=click.IntRange(0, MAX_WAVE),
    default=0,
    help="How many agents at the same time, after a first one. [default: a quarter of them]",
)
@click.option(
    "--patience",
    type=Duration(),
    default="5m",
    show_default=True,
    help="So long k3s may take to be ready again on a node; then the old program is put back.",
)
@click.option("--abort", "is_abort", is_flag=True, help="Stop the upgrade that is under way, and go back.")
@click.option("--plan", "only_plan", is_flag=True, help="Only show what would be done.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@click.option("--no-wait", is_flag=True, help="Order it and return; the nodes go on by themselves.")
@timeout_option("1h")
@output_option
@socket_option
def upgrade(
    version: str | None,
    source: str | None,
    mirror: str | None,
    sha256: str,
    public_key: str,
    ca_file: Path | None,
    wave: int,
    patience: float,
    is_abort: bool,
    only_plan: bool,
    yes: bool,
    no_wait: bool,
    timeout: float,
    output: out.Output,
    socket: Path,
) -> None:
    """Bring another version of k3s to all nodes of the cluster, through the mesh.

    Without --version: show which version each node runs and where an upgrade stands. With it: every node
    fetches and checks the program; then the servers change one by one, each only while all of them are ready;
    then the agents, first one, then in waves. A node whose k3s is not ready in time puts its old program
    back, and the upgrade ends; where both are of one minor version, the others go back too. On servers only.
    """
    client = AgentClient(socket)
    if is_abort:
        if version is not None:
            raise UsageError("--abort goes without --version")
        document = cast(UpgradeDoc, client.call("POST", f"{_URL}/stop", timeout_s=LOOK_TIMEOUT_S))
        out.note(document["reason"])
        if not no_wait:
            _watch(client, timeout, is_abort=True)
        return
    query = {"version": version or ""}
    seen = cast(UpgradeDoc, client.call("GET", f"{_URL}?{urlencode(query)}", timeout_s=LOOK_TIMEOUT_S))
    if version is None or only_plan:
        _show(seen, output)
    if version is None:
        return
    if seen["forbidden"]:
        raise RoleError(seen["forbidden"], hint="see where it stands with: kairos-p2p k3s upgrade")
    if only_plan:
        raise click.exceptions.Exit(EXIT_PENDING)
    if source is not None and mirror is not None:
        raise UsageError("--from and --mirror exclude each other", hint="a mirror is a folder per version")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("upgrade asks first, and nobody can answer", hint="add --yes")
        _show(seen, "table")
        click.confirm("Do this?", abort=True, err=True)
    query |= {
        "source": _absolute(source),
        "mirror": mirror or "",
        "sha256": sha256,
        "public_key": public_key,
        "ca_file": str(ca_file.absolute()) if ca_file else "",
        "wave": str(wave),
        "patience_s": f"{patience:g}",
    }
    query = {key: value for key, value in query.items() if value}
    client.call("POST", f"{_URL}?{urlencode(query)}", timeout_s=ORDER_TIMEOUT_S)
    if no_wait:
        out.note(f"ordered: k3s {version}")
        return
    _watch(client, timeout, is_abort=False)


def _absolute(source: str | None) -> str:
    """The agent does not stand where the operator does."""
    if source is None or "://" in source:
        return source or ""
    folder = "/" if source.endswith("/") or Path(source).is_dir() else ""
    return f"{Path(source).absolute()}{folder}"


def _watch(client: AgentClient, timeout_s: float, *, is_abort: bool) -> None:
    deadline, said = time.monotonic() + timeout_s, ""
    last = "nothing was heard of the cluster"
    while time.monotonic() < deadline:
        try:
            document = cast(UpgradeDoc, client.call("GET", _URL, timeout_s=LOOK_TIMEOUT_S))
        except DaemonNotRunning:
            raise
        except P2PError as exc:  # this server's own turn
            last = exc.message
        else:
            last = document["reason"]
            if document["state"] == "done":
                out.note(last)
                return
            if document["state"] == "stopped":
                if is_abort:
                    out.note(last)
                    return
                raise RoleError(last, hint="see each node with: kairos-p2p k3s upgrade")
        if last != said:
            said = last
            out.note(last)
        time.sleep(POLL_S)
    raise TimedOut(
        f"the upgrade is not at its end: {last}", hint="it goes on by itself: kairos-p2p k3s upgrade"
    )


def _show(document: UpgradeDoc, output: out.Output) -> None:
    if output in ("json", "yaml"):
        out.print_document(document, output)
        return
    if output == "table" and document["version"]:
        by = f"by {document['by']}" if document["by"] else ""
        words = (document["version"], document["state"], document["reason"], by)
        out.emit("  ".join(out.printable(word) for word in words if word))
        for number, step in enumerate(document["steps"], start=1):
            out.emit(out.printable(f"{number:>3}  {step}"))
    out.print_rows(
        document["nodes"], _NODES, output, name=lambda row: row["hostname"], empty="no node is known"
    )
