"""``kairos-p2p token invite|invites|revoke|rotate`` and ``peer revoke``: who may come, who must go?

All of them ask the agent, since what they say is signed by the mesh's root and goes into the ledger. A join
token or a new network token is the only thing printed on stdout; what there is to know about it goes to
stderr.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Final

import click

from p2p_bootstrap.api.service import InviteDoc
from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.drain_verbs import drain, undrain
from p2p_bootstrap.cli.options import Duration, format_duration, output_option, socket_option
from p2p_network.core.errors import P2PError, UsageError
from p2p_network.core.ids import short

DEFAULT_TTL_S: Final = 3600.0


def print_qr(text: str) -> None:
    """A QR code on the terminal. Raises P2PError if the text is too long for one."""
    import segno

    try:
        code = segno.make_qr(text, error="l")
    except segno.DataOverflowError as exc:
        raise P2PError(
            f"the token has {len(text)} characters, more than a QR code holds", hint="carry it as a file"
        ) from exc
    code.terminal(out=sys.stdout, compact=True)


@click.command()
@click.option(
    "--role",
    type=click.Choice(["any", "server", "agent"]),
    default="any",
    show_default=True,
    help="The only role that these nodes can get; an agent never sees a server's token.",
)
@click.option("--region", default="", metavar="NAME", help="The only region that these nodes can be in.")
@click.option(
    "--uses", type=click.IntRange(1, 10_000), default=1, show_default=True, help="For how many nodes."
)
@click.option("--ttl", type=Duration(), default="1h", show_default=True, help="How long it may be redeemed.")
@click.option(
    "--member-ttl",
    type=Duration(),
    default=None,
    help="How long a node stays a member that came by it.  [default: until it is revoked]",
)
@click.option("--qr", is_flag=True, help="As a QR code, for a phone's camera.")
@socket_option
def invite(
    role: str, region: str, uses: int, ttl: float, member_ttl: float | None, qr: bool, socket: Path
) -> None:
    """Make a join token and print it.

    It admits nodes to this mesh until it expires, is used up or withdrawn; it can't admit others and does
    not give the network token away. Put it into a cloud-config as p2p.join_token, or:
    kairos-p2p join --token-file FILE. Only on a node that has the network token.
    """
    made = AgentClient(socket).invite(
        role=role, region=region, uses=uses, ttl_s=ttl, member_ttl_s=member_ttl or 0.0
    )
    if qr:
        print_qr(made["token"])
    else:
        out.emit(made["token"])
    place = f", region {region}" if region else ""
    out.note(
        f"invitation {made['invite']['id']}: role {role}{place}, {uses} use{'s' if uses > 1 else ''}, "
        f"expires in {format_duration(ttl)}; withdraw it with: kairos-p2p token revoke {made['invite']['id']}"
    )


def _when(milliseconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")


_COLUMNS: Final[tuple[out.Column[InviteDoc], ...]] = (
    out.Column("INVITATION", lambda row: row["id"]),
    out.Column("STATE", lambda row: row["state"]),
    out.Column("ROLE", lambda row: row["role"]),
    out.Column("REGION", lambda row: row["region"]),
    out.Column("USED", lambda row: f"{len(row['used_by'])}/{row['uses']}", right=True),
    out.Column("EXPIRES", lambda row: _when(row["expires_ms"])),
    out.Column("USED BY", lambda row: ", ".join(map(short, row["used_by"]))),
)


@click.command()
@output_option
@socket_option
def invites(output: out.Output, socket: Path) -> None:
    """Which join tokens were made, and who used them?

    The secret part of a join token is kept nowhere: one that is lost can only be withdrawn.
    """
    rows = AgentClient(socket).invites()
    out.print_rows(rows, _COLUMNS, output, name=lambda row: row["id"], empty="no join token was made yet")


@click.command()
@click.argument("invitation")
@socket_option
def revoke(invitation: str, socket: Path) -> None:
    """Withdraw a join token: nobody can redeem it any more.

    INVITATION: its id, or the start of it (see: token invites). Who redeemed it stays a member; to put a node
    out: kairos-p2p peer revoke NODE.
    """
    AgentClient(socket).withdraw(invitation)
    out.note(f"invitation {invitation} is withdrawn")


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--force",
    is_flag=True,
    help="Also while most nodes that vote are out of sight: if they rotate too, the mesh is parted for good.",
)
@socket_option
def rotate(yes: bool, force: bool, socket: Path) -> None:
    """Move all members to new keys, and print the new network token.

    No node loses its address or a session. From then on the old token certifies nobody, and join tokens made
    before are void; members that are away now come back by themselves. Keep the new token, and put it into
    the cloud-configs that hold the old one. Most nodes that vote (the holders of the root at the last
    rotation; before the first one, up to seven of the first nodes, which agree on that by themselves) must be
    in sight: rotated on both sides of a partition with --force, a mesh would be two for ever.
    """
    if not yes:
        _confirm("Move all members to new keys? The old network token then admits nobody.")
    made = AgentClient(socket).rotate(force=force)
    out.emit(made["token"])
    out.note(
        f"generation {made['generation']} is in force; this is its network token: keep it like a password"
    )


@click.group()
def peer() -> None:
    """Announce that nodes will be away, and put nodes out of the mesh."""


peer.add_command(drain)
peer.add_command(undrain)


@peer.command(name="revoke")
@click.argument("node")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the others to read.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@socket_option
def revoke_peer(node: str, reason: str, yes: bool, socket: Path) -> None:
    """Put a node out of the mesh, for ever.

    NODE: its host name, its peer id or the end of it. All members close their connections to it within
    seconds; those that are away learn it when they come back. It can join again only with a new identity.
    Only on a node that has the network token.
    """
    if not yes:
        _confirm(f"Put {node} out of the mesh for ever?")
    gone = AgentClient(socket).revoke(node, reason)
    out.note(f"{gone['hostname'] or 'the node'} ({gone['peer']}) is out of the mesh")


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("this asks before it acts, and nobody can answer", hint="add --yes")
    click.confirm(question, abort=True, err=True)
