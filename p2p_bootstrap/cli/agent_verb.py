"""``kairos-p2p agent``: the daemon in the foreground, what a service unit runs."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_bootstrap.cli.options import DEFAULT_CONFIG, DEFAULT_STATE_DIR, PATH, socket_option
from p2p_bootstrap.logs import FORMATS, LEVELS, Format


@click.command()
@click.option(
    "--cloud-config",
    "cloud_configs",
    type=PATH,
    multiple=True,
    metavar="PATH",
    default=(DEFAULT_CONFIG,),
    show_default=True,
    help="A cloud-config file or a folder of them; may be repeated, later ones win.",
)
@click.option(
    "--system",
    is_flag=True,
    help="Read what a booted machine has instead: its folders, its kernel command line, config_url.",
)
@click.option(
    "--state-dir",
    type=PATH,
    default=DEFAULT_STATE_DIR,
    show_default=True,
    help="Where this node keeps its identity and what it must remember.",
)
@socket_option
@click.option("--log-format", type=click.Choice(FORMATS), default="console", show_default=True)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    default=None,
    help="How much to log.  [default: the cloud-config's p2p.loglevel, else info]",
)
def agent(
    cloud_configs: tuple[Path, ...],
    system: bool,
    state_dir: Path,
    socket: Path,
    log_format: Format,
    log_level: str | None,
) -> None:
    """Run the agent in the foreground (for service units).

    SIGTERM ends the agent alone: the data plane and k3s go on and are taken over by the next one. Ctrl-C ends
    all three.
    """
    from p2p_bootstrap.cli import foreground

    sources = None if system else cloud_configs
    foreground.run(sources, state_dir, socket, log_format=log_format, log_level=log_level)
