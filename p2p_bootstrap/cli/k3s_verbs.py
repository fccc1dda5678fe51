"""``kairos-p2p k3s``: the k3s program on this machine."""

from __future__ import annotations

import platform
from pathlib import Path

import click

from p2p_bootstrap.cli.output import note
from p2p_bootstrap.k3s_install import IMAGES, PROGRAM, Origin, install
from p2p_network.core.errors import UsageError
from p2p_roles.k3s.release import Release, release

_PATH = click.Path(path_type=Path)


@click.group()
def group() -> None:
    """Bring the k3s program onto this machine."""


@group.command("install")
@click.option("--version", "version", required=True, metavar="V", help="The release, e.g. v1.36.1+k3s1.")
@click.option(
    "--from",
    "source",
    metavar="FILE|FOLDER|URL",
    help="Take it from here: the program itself, or the folder (address ending in /) with all of the "
    "release's files. The list of checksums lies beside it.",
)
@click.option("--mirror", metavar="URL", help="A mirror built like upstream's: URL/VERSION/FILE.")
@click.option("--airgap", is_flag=True, help="Bring the images for a machine without a network, too.")
@click.option("--sha256", metavar="HEX", default="", help="The program's checksum, instead of a list.")
@click.option(
    "--public-key",
    metavar="BASE64",
    default="",
    help="The Ed25519 key that must have signed the list of checksums (in a file of its name with .sig).",
)
@click.option("--ca-file", type=_PATH, help="Trust these authorities instead of the system's.")
@click.option("--to", type=_PATH, default=PROGRAM, show_default=True, help="Where the program goes.")
@click.option("--images-to", type=_PATH, default=IMAGES, show_default=True, help="Where the images go.")
def install_verb(
    version: str,
    source: str | None,
    mirror: str | None,
    airgap: bool,
    sha256: str,
    public_key: str,
    ca_file: Path | None,
    to: Path,
    images_to: Path,
) -> None:
    """Install a release of k3s: checked, and put into place at once or not at all.

    Every file must have the SHA-256 of the release's list of checksums. HTTPS_PROXY and NO_PROXY count. The
    program that was there before stays beside the new one as k3s.previous; a k3s that runs goes on running
    the old one until it is started again.
    """
    if source is not None and mirror is not None:
        raise UsageError("--from and --mirror exclude each other", hint="a mirror is a folder per version")
    wanted = release(version, platform.machine())
    origin = _origin(wanted, source, mirror or "", ca_file, public_key, sha256)
    new = install(
        wanted, origin, airgap=airgap, program=to, images=images_to, ask_version=_ask_version, say=note
    )
    note(f"{to} is k3s {version}" + ("" if new else " already; nothing was changed"))


def _origin(
    wanted: Release, source: str | None, mirror: str, ca_file: Path | None, public_key: str, sha256: str
) -> Origin:
    folder, program = wanted.folder(mirror), ""
    if source is not None and (source.endswith("/") or Path(source).is_dir()):
        folder = source
    elif source is not None:
        folder, _, program = source.rpartition("/")
        folder = folder or ("/" if source.startswith("/") else ".")
    return Origin(folder, program, ca_file, public_key, sha256)


def _ask_version(program: Path) -> str:
    import trio

    from p2p_roles import programs

    done = trio.run(programs.run, [str(program.absolute()), "--version"])
    return done.stdout + done.stderr if done.exit_code == 0 else ""
