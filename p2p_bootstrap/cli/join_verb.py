"""``kairos-p2p join``: make this machine a node of a mesh."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2p_bootstrap.cli import foreground, joining, progress
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.inputs import STDIN, is_cloud_config, read_text
from p2p_bootstrap.cli.options import DEFAULT_CONFIG, DEFAULT_STATE_DIR, PATH, socket_option, timeout_option
from p2p_bootstrap.cli.output import emit, note
from p2p_bootstrap.service import ServiceHost, agent_argv
from p2p_network.core.errors import ConfigError, DaemonNotRunning, NotPermitted, P2PError, UsageError

if TYPE_CHECKING:
    from p2p_bootstrap.config.loading import Config


@click.command()
@click.argument("source", required=False, metavar="[-]")
@click.option("--token-file", type=PATH, help="A file with the network token.")
@click.option(
    "--cloud-config",
    type=PATH,
    help="A cloud-config file with the token.",
)
@click.option("--token", help="The token itself. Every process can read it here: prefer a file or -.")
@click.option("--region", help="This machine's failure domain; overrides the cloud-config's.")
@click.option("--dry-run", is_flag=True, help="Check everything, print what would be done, change nothing.")
@timeout_option("5m")
@click.option(
    "--config",
    type=PATH,
    default=DEFAULT_CONFIG,
    show_default=True,
    help="Where this node's configuration is kept.",
)
@click.option(
    "--state-dir",
    type=PATH,
    default=DEFAULT_STATE_DIR,
    show_default=True,
    help="Where this node keeps its identity and what it must remember.",
)
@socket_option
def join(
    source: str | None,
    token_file: Path | None,
    cloud_config: Path | None,
    token: str | None,
    region: str | None,
    dry_run: bool,
    timeout: float,
    config: Path,
    state_dir: Path,
    socket: Path,
) -> None:
    """Make this machine a node of a mesh.

    Takes a network token (--token-file), a cloud-config (--cloud-config), or either from stdin (-). Checks
    it, writes this node's configuration, starts the agent (under systemd or OpenRC; in the foreground where
    there is neither) and waits until the node has its role. Joining again changes nothing.
    """
    text = _configuration(source, token_file, cloud_config, token, region)
    try:
        wanted = _checked(text, "stdin")
    except ConfigError as exc:  # all but the region was checked where it was read
        raise UsageError("--region: " + "; ".join(problem.message for problem in exc.problems)) from exc
    config, state_dir, socket = config.absolute(), state_dir.absolute(), socket.absolute()
    target = joining.Target(
        text=text,
        mesh_id=_mesh_id(wanted),
        network_id=wanted.p2p.network_id,
        region=wanted.p2p.region or "",
        fingerprint=f"invitation {wanted.join_token.invite}"
        if wanted.join_token
        else wanted.token.fingerprint,
        config=config,
        state_dir=state_dir,
        socket=socket,
        argv=agent_argv(Path(sys.executable), config, state_dir, socket),
        timeout_s=timeout,
    )
    for remark in wanted.notes:
        note(f"note: {remark}")
    if os.geteuid() != 0:
        if not dry_run:
            raise NotPermitted(
                "only root can join: the agent makes a network device and runs k3s",
                hint="run it as root, e.g. with sudo; --dry-run works without",
            )
        note("note: what is on this machine already can only be seen by root; it may change this plan")
    steps = joining.plan(target, _found(target), wait=_wait, run=_run)
    if dry_run:
        for number, step in enumerate(steps, 1):
            emit(f"{number}. {step.describe()}")
        return
    for step in steps:
        note(step.describe())
        step.execute()


def _configuration(
    source: str | None,
    token_file: Path | None,
    cloud_config: Path | None,
    token: str | None,
    region: str | None,
) -> str:
    """The text of the configuration to be, from the one source that was named."""
    if source not in (None, "-"):
        raise UsageError(
            f"join does not take {source!r}", hint="write --token-file FILE, --cloud-config FILE, or -"
        )
    if sum(given is not None for given in (source, token_file, cloud_config, token)) != 1:
        raise UsageError(
            "join needs one source of the token",
            hint="one of: --token-file FILE, --cloud-config FILE, - (stdin), --token TOKEN",
        )
    if token is not None:
        note("note: a token on the command line can be read by every process on this machine")
        return _from_token(token, region, "--token")
    if token_file is not None:
        text = read_text(token_file)
        if is_cloud_config(text):
            raise UsageError(f"{token_file} is a cloud-config", hint=f"write --cloud-config {token_file}")
        return _from_token(text, region, str(token_file))
    path = cloud_config or STDIN
    text = read_text(path)
    if cloud_config is None and not is_cloud_config(text):
        return _from_token(text, region, "stdin")
    return _with_region(text, region, "stdin" if path == STDIN else str(path))


def _from_token(text: str, region: str | None, source: str) -> str:
    from p2p_bootstrap.config.write import from_token
    from p2p_network.admission.join_token import is_join_token, parse_join_token
    from p2p_network.core.errors import TokenError
    from p2p_network.token import DEFAULT_NETWORK_ID, parse_token

    network_id = None
    try:
        if is_join_token(text):
            network_id = parse_join_token(text).network_id
        else:
            network_id = parse_token(text).network_id or None  # of a token that a rotation made
    except TokenError as exc:
        raise TokenError(f"{source}: {exc.message}", hint=exc.hint) from exc
    return from_token(text, region, network_id=None if network_id == DEFAULT_NETWORK_ID else network_id)


def _with_region(text: str, region: str | None, name: str) -> str:
    """A cloud-config, checked under the name a person knows it by, with another region if one is given."""
    from p2p_bootstrap.cloudconfig.document import parse
    from p2p_bootstrap.cloudconfig.nodes import to_value
    from p2p_bootstrap.cloudconfig.render import render

    document = parse(text.encode("utf-8", "surrogateescape"), name)
    _checked(text, name)
    if region is None:
        return text
    data = to_value(document.checked())
    assert isinstance(data, dict), "a cloud-config is a map"
    section = data.setdefault("p2p", {})
    assert isinstance(section, dict), "p2p was checked to be a map"
    section["region"] = region
    return render(data)


def _checked(text: str, name: str) -> Config:
    """The configuration that a text means. Raises ConfigError with everything wrong, under `name`."""
    from dataclasses import replace

    from p2p_bootstrap.config.loading import load

    try:
        config = load([], stdin=text)
        _ = config.join_token or config.token
    except ConfigError as exc:
        raise ConfigError([replace(problem, file=name) for problem in exc.problems], hint=exc.hint) from exc
    return config


def _mesh_id(config: Config) -> str:
    from p2p_network.token import mesh_keys

    if config.join_token is not None:
        return config.join_token.mesh_id
    return mesh_keys(config.token, config.p2p.network_id).mesh_id


def _found(target: joining.Target) -> joining.Found:
    """What is on this machine already."""
    text = mesh_id = running = None
    try:
        text = target.config.read_text(encoding="utf-8")
        mesh_id = _mesh_id(_checked(text, str(target.config)))
    except (FileNotFoundError, PermissionError):
        pass  # none, or not to be seen by this user (who can only plan)
    except (ConfigError, OSError, UnicodeDecodeError) as exc:
        raise P2PError(
            f"this machine has a configuration already, but it cannot be used:\n{exc}",
            hint=f"repair {target.config}, or remove it to join afresh",
        ) from exc
    with contextlib.suppress(DaemonNotRunning, NotPermitted):
        running = AgentClient(target.socket).status()["mesh"]["mesh_id"]
    # there is one service; a second node on this machine, for a trial, runs in the foreground
    host = ServiceHost.detect() if target.config == DEFAULT_CONFIG else None
    unit = host.unit_path.read_text(encoding="utf-8") if host and host.is_installed() else None
    return joining.Found(text, mesh_id, running, host, unit)


def _wait(target: joining.Target) -> None:
    client = AgentClient(target.socket)
    document = progress.wait_until(client, "role", target.timeout_s, agent_is_starting=True)
    note(progress.reached("role", document))


def _run(target: joining.Target) -> None:
    foreground.run_and_watch(
        target.config, target.state_dir, target.socket, goal="role", timeout_s=target.timeout_s
    )
