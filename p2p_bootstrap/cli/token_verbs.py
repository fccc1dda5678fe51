"""``kairos-p2p token``: make a network token, look at one, carry one to another machine; invite and rotate
(`admission_verbs`).

A token is read from a file or from stdin, never from the command line: that is public to every process.
A file may be a cloud-config; its ``p2p.network_token`` is taken.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2p_bootstrap.cli import admission_verbs
from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.options import output_option
from p2p_network.core.errors import P2PError, UsageError

if TYPE_CHECKING:
    from p2p_network.token import NetworkToken

STDIN = Path("-")
MAX_INPUT_BYTES = 1024 * 1024
FILE = click.argument(
    "file", required=False, type=click.Path(path_type=Path, allow_dash=True), metavar="[FILE|-]"
)


@click.group()
def group() -> None:
    """Make, look at, withdraw and rotate tokens."""


@group.command()
@click.option(
    "--bootstrap",
    multiple=True,
    metavar="ADDR",
    help="Where new nodes find the first one: host:port, [IPv6]:port or a multiaddress. May be repeated.",
)
@click.option("--dht/--no-dht", default=True, help="Let nodes look each other up in the mesh's DHT.")
@click.option("--mdns/--no-mdns", default=True, help="Let nodes look for each other on the local network.")
def generate(bootstrap: tuple[str, ...], dht: bool, mdns: bool) -> None:
    """Make a new token and print it.

    Whoever has it can join the mesh: hand it on like a password.
    """
    from p2p_bootstrap.config.addresses import check_bootstrap
    from p2p_network.token import MAX_BOOTSTRAP, NetworkToken, format_token

    for address in bootstrap:
        try:
            check_bootstrap(address)
        except ValueError as exc:
            raise UsageError(f"--bootstrap: {exc}") from None
    if len(bootstrap) > MAX_BOOTSTRAP:
        raise UsageError(
            f"a token holds at most {MAX_BOOTSTRAP} bootstrap addresses", hint="name a few stable nodes"
        )
    if not (bootstrap or dht or mdns):
        raise UsageError(
            "with this token no node would find another", hint="add --bootstrap ADDR, or leave DHT or mDNS on"
        )
    if not (bootstrap or mdns):
        out.note(
            "without --bootstrap and mDNS, nodes find each other through the public DHT, or by p2p.bootstrap "
            "or p2p.rendezvous in their cloud-config"
        )
    token = NetworkToken(secrets.token_bytes(32), tuple(dict.fromkeys(bootstrap)), dht, mdns)
    out.emit(format_token(token))


for _verb in (
    admission_verbs.invite,
    admission_verbs.invites,
    admission_verbs.revoke,
    admission_verbs.rotate,
):
    group.add_command(_verb)


@group.command()
@FILE
@click.option("--reveal", is_flag=True, help="Print the token itself too.")
@output_option
def inspect(file: Path | None, reveal: bool, output: out.Output) -> None:
    """What is in a token? Without --reveal nothing secret is printed.

    FILE holds a token or is a cloud-config; - or nothing is stdin.
    """
    from p2p_network.admission.join_token import is_join_token
    from p2p_network.token import mesh_keys

    text, network_id = _read(file)
    if is_join_token(text):
        _inspect_join_token(text, reveal, output)
        return
    token = _parse(text)
    network_id = token.network_id or network_id  # of one that a rotation made
    document: dict[str, Any] = {
        "fingerprint": token.fingerprint,
        "origin": token.origin,
        "network_id": network_id,
        "mesh_id": mesh_keys(token, network_id).mesh_id,
        "generation": token.generation,
        "bootstrap": list(token.bootstrap),
        "dht": token.dht,
        "mdns": token.mdns,
    }
    if reveal:
        document["token"] = "".join(text.split())
    match output:
        case "json" | "yaml":
            out.print_document(document, output)
        case "name":
            out.emit(token.fingerprint)
        case "table":
            maker = (
                "Kairos; our keys are derived from its secrets" if token.origin == "kairos" else token.origin
            )
            sheet: list[tuple[str, tuple[str, ...]]] = [
                ("fingerprint", (token.fingerprint,)),
                ("made by", (maker,)),
                (
                    "network",
                    (
                        network_id,
                        f"mesh {document['mesh_id']}",
                        f"keys of generation {token.generation}" if token.generation > 1 else "",
                    ),
                ),
                ("bootstrap", token.bootstrap),
                ("dht", ("yes" if token.dht else "no",)),
                ("mdns", ("yes" if token.mdns else "no",)),
            ]
            if reveal:
                sheet.append(("token", (document["token"],)))
            out.print_sheet(sheet)


@group.command()
@FILE
@click.option("--qr", is_flag=True, help="As a QR code, for a camera.")
def show(file: Path | None, qr: bool) -> None:
    """Print a token, to carry it to another machine.

    FILE holds a token or is a cloud-config; - or nothing is stdin.
    """
    from p2p_network.admission.join_token import is_join_token, parse_join_token

    text, _ = _read(file)
    if is_join_token(text):
        parse_join_token(text)
    else:
        _parse(text)
    line = "".join(text.split())
    if not qr:
        out.emit(line)
        return
    admission_verbs.print_qr(line)


def _inspect_join_token(text: str, reveal: bool, output: out.Output) -> None:
    import datetime

    from p2p_network.admission.join_token import parse_join_token

    token = parse_join_token(text)
    expires = datetime.datetime.fromtimestamp(token.expires_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    document: dict[str, Any] = {
        "invitation": token.invite,
        "network_id": token.network_id,
        "mesh_id": token.mesh_id,
        "generation": token.generation,
        "expires": expires,
        "bootstrap": list(token.bootstrap),
        "dht": token.dht,
        "mdns": token.mdns,
    }
    if reveal:
        document["token"] = "".join(text.split())
    if output == "name":
        out.emit(token.invite)
    elif output == "table":
        out.print_sheet(
            [
                (key.replace("_", " "), tuple(value) if isinstance(value, list) else (str(value),))
                for key, value in document.items()
            ]
        )
    else:
        out.print_document(document, output)


def _read(file: Path | None) -> tuple[str, str]:
    """The token's text and the network id that goes with it."""
    from p2p_bootstrap.cloudconfig.document import has_header
    from p2p_network.token import DEFAULT_NETWORK_ID

    if file is None and sys.stdin.isatty():
        raise UsageError("no token was given", hint="name a file, or pipe a token in")
    text = _text(STDIN if file is None else file)
    if not has_header(text.removeprefix("\ufeff")) and not text.lstrip().startswith("#"):
        return text, DEFAULT_NETWORK_ID
    from p2p_bootstrap.config.loading import load

    name = "stdin" if file in (None, STDIN) else str(file)
    config = load([], stdin=text) if name == "stdin" else load([Path(name)])
    written = config.p2p.join_token or config.p2p.network_token
    if written is None or not (config.has_token or config.join_token):
        raise P2PError(f"{name}: the cloud-config has no p2p.network_token", hint="name a file that has one")
    return written.get_secret_value(), config.p2p.network_id


def rendezvous_in(file: Path | None) -> bytes:
    """The rendezvous key of the mesh whose token this is, network or join token."""
    from p2p_network.admission.join_token import is_join_token, parse_join_token
    from p2p_network.token import mesh_keys

    text, network_id = _read(file)
    if is_join_token(text):
        return parse_join_token(text).rendezvous
    token = _parse(text)
    return mesh_keys(token, token.network_id or network_id).rendezvous


def _parse(text: str) -> NetworkToken:
    from p2p_network.token import parse_token

    return parse_token(text)


def _text(file: Path) -> str:
    try:
        if file == STDIN:
            data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
        else:
            with file.open("rb") as stream:
                data = stream.read(MAX_INPUT_BYTES + 1)
    except OSError as exc:
        raise P2PError(
            f"{file}: {exc.strerror or exc}", hint="check the path; a token is readable by root only"
        ) from exc
    if len(data) > MAX_INPUT_BYTES:
        raise P2PError(
            f"{file}: over 1 MiB, this is no token and no cloud-config", hint="is it the right file?"
        )
    return data.decode("utf-8", "surrogateescape")
