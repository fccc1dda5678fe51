"""``kairos-p2p rendezvous``: a machine where nodes find each other that need not be a node, and its key."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import click

from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli import token_verbs
from p2p_bootstrap.cli.inputs import read_text
from p2p_bootstrap.cli.options import PATH
from p2p_bootstrap.logs import FORMATS, LEVELS, Format
from p2p_network.core.errors import P2PError, UsageError

DEFAULT_LISTEN = ("0.0.0.0:4702", "[::]:4702")


@click.group()
def group() -> None:
    """A machine where nodes find each other, and its key."""


@group.command()
@token_verbs.FILE
def key(file: Path | None) -> None:
    """Print the key of a network token's rendezvous servers.

    FILE holds a network token or is a cloud-config; - or nothing is stdin. Whoever has the key can serve,
    and can fill or empty a server's memory; it reads no address and does not get into the mesh.
    """
    from p2p_network.meeting.notes import meeting_psk
    from p2p_network.meeting.rendezvous import format_key

    out.emit(format_key(meeting_psk(token_verbs.rendezvous_in(file))))


@group.command()
@click.option("--key-file", type=PATH, required=True, help="A file with the key, or - for stdin.")
@click.option(
    "--listen",
    multiple=True,
    metavar="IP:PORT",
    default=DEFAULT_LISTEN,
    show_default=True,
    help="Where to take nodes; may be repeated.",
)
@click.option("--log-format", type=click.Choice(FORMATS), default="console", show_default=True)
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
def serve(key_file: Path, listen: tuple[str, ...], log_format: Format, log_level: str) -> None:
    """Let the nodes of one mesh find each other here, until Ctrl-C or SIGTERM.

    Run it on a machine that all nodes can reach, and name it in their p2p.rendezvous. It needs the key that
    kairos-p2p rendezvous key prints, and neither a token nor root; it writes nothing to disk. What it keeps
    are sealed notes that it can't read.
    """
    from p2p_bootstrap import logs
    from p2p_bootstrap.config.addresses import check_listen
    from p2p_network.meeting.rendezvous import parse_key

    try:
        psk = parse_key(read_text(key_file))
    except ValueError as exc:
        raise UsageError(f"{key_file}: {exc}") from None
    try:
        checked = [check_listen(text) for text in listen]
    except ValueError as exc:
        raise UsageError(f"--listen: {exc}") from None
    logs.configure(log_format, log_level)
    import trio

    trio.run(_serve, psk, checked)


async def _serve(psk: bytes, listen: Sequence[str]) -> None:
    import trio

    from p2p_network.host.rendezvous import RendezvousServer

    server = RendezvousServer(psk, listen)
    failure: P2PError | None = None
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(server.run)
                async for _ in signals:
                    break
            except P2PError as exc:
                failure = exc
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
