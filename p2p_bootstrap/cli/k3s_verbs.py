"""``kairos-p2p k3s``: the k3s program on this machine."""

from __future__ import annotations

import platform
from pathlib import Path

import click

from p2p_bootstrap.cli.options import DEFAULT_STATE_DIR
from p2p_bootstrap.cli.output import note
from p2p_bootstrap.cli.upgrade_verb import upgrade
from p2p_bootstrap.k3s_install import IMAGES, PROGRAM, install, origin_of
from p2p_network.core.errors import P2PError, UsageError
from p2p_roles.k3s.release import release
from p2p_roles.k3s.units import NAME

LOG_FILE = "k3s.log"  # p2p_roles.k3s.supervisor; not imported, as it brings trio
_PATH = click.Path(path_type=Path)


@click.group()
def group() -> None:
    """The k3s program: bring it here, read what it says, upgrade it on all nodes."""


group.add_command(upgrade)


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
    origin = origin_of(wanted, source, mirror or "", ca_file, public_key, sha256)
    new = install(
        wanted, origin, airgap=airgap, program=to, images=images_to, ask_version=_ask_version, say=note
    )
    note(f"{to} is k3s {version}" + ("" if new else " already; nothing was changed"))


@group.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what k3s says from now on, until Ctrl-C.")
@click.option("-n", "--lines", default=100, show_default=True, type=click.IntRange(0, 1_000_000))
@click.option("--state-dir", type=_PATH, default=DEFAULT_STATE_DIR, help="Where the agent keeps its state.")
def logs(follow: bool, lines: int, state_dir: Path) -> None:
    """Print what k3s on this machine says: from the journal, or from its log file."""
    from p2p_roles import programs

    argv = log_command(state_dir, follow=follow, lines=lines)
    code = programs.foreground(argv)
    if code:
        raise P2PError(f"{argv[0]} ended with code {code}", hint=f"run it by hand: {' '.join(argv)}")


def log_command(state_dir: Path, *, follow: bool, lines: int, root: Path = Path("/")) -> list[str]:
    """The program that shows k3s's log. Raises P2PError if k3s never ran under this agent."""
    if (root / f"run/systemd/system/{NAME}.service").exists():
        return [
            "journalctl",
            f"--unit={NAME}",
            "--output=cat",
            f"--lines={lines}",
            *(["-f"] if follow else []),
        ]
    path = state_dir / LOG_FILE
    if not path.exists():
        raise P2PError(
            f"k3s has no log here: there is no {path}", hint="see what the node is doing: kairos-p2p status"
        )
    return ["tail", "-n", str(lines), *(["-F"] if follow else []), str(path)]


def _ask_version(program: Path) -> str:
    import trio

    from p2p_roles import programs

    done = trio.run(programs.run, [str(program.absolute()), "--version"])
    return done.stdout + done.stderr if done.exit_code == 0 else ""
