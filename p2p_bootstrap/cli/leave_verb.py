"""``kairos-p2p leave``: take this machine out of its mesh."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final

import click

from p2p_bootstrap.cli.client import DEFAULT_SOCKET, AgentClient
from p2p_bootstrap.cli.options import DEFAULT_CONFIG, PATH, socket_option
from p2p_bootstrap.cli.output import note
from p2p_bootstrap.service import ServiceHost, run_command
from p2p_network.core.errors import DaemonNotRunning, NotPermitted, P2PError, TimedOut, UsageError

END_TIMEOUT_S: Final = 30.0


@click.command()
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@click.option(
    "--config",
    type=PATH,
    default=None,
    help=f"The configuration to remove.  [default: {DEFAULT_CONFIG}, or none with another --socket]",
)
@socket_option
def leave(yes: bool, config: Path | None, socket: Path) -> None:
    """Take this machine out of its mesh.

    Stops k3s and the VPN, tells the other nodes, ends the agent, and removes its configuration (with the
    token) and its service. The node's identity stays: joining again, it gets its old address.
    """
    client = AgentClient(socket)
    node = client.status()
    is_the_machines_node = os.fspath(socket) == DEFAULT_SOCKET
    if config is None and is_the_machines_node:
        config = DEFAULT_CONFIG
    name, mesh = node["node"]["hostname"], node["mesh"]["mesh_id"]
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("leave asks before it stops this node, and nobody can answer", hint="add --yes")
        click.confirm(f"Take {name} out of the mesh {mesh} and stop its k3s?", abort=True, err=True)
    client.leave()
    if config is not None:
        _remove(config)
    host = ServiceHost.detect()
    if is_the_machines_node and host is not None and host.is_installed():
        for argv in host.stop_commands():
            run_command(argv)
    _await_end(client)
    note(f"{name} left the mesh {mesh}")


def _remove(config: Path) -> None:
    try:
        config.unlink(missing_ok=True)
    except PermissionError as exc:
        raise NotPermitted(f"{config} cannot be removed: permission denied", hint="run it as root") from exc
    except OSError as exc:
        raise P2PError(f"{config} cannot be removed: {exc.strerror}", hint="remove it by hand") from exc


def _await_end(client: AgentClient) -> None:
    deadline = time.monotonic() + END_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            client.version()
        except DaemonNotRunning:
            return
        time.sleep(0.1)
    raise TimedOut("the node left, but its agent did not end", hint="look at its log; stop it by hand")
