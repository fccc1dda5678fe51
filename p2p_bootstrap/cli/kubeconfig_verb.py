"""``kairos-p2p kubeconfig``: how does kubectl get in?"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import socket_option
from p2p_network.core.errors import P2PError, UsageError


@click.command()
@click.option("--server", metavar="URL", help="Put this API address in, e.g. https://10.144.3.9:6443.")
@click.option("--merge", is_flag=True, help="One context for each cluster of the mesh.")
@socket_option
def kubeconfig(server: str | None, merge: bool, socket: Path) -> None:
    """Print the cluster's kubeconfig.

    It is a cluster-admin key: only root gets it, on a node with the server role. Keep it to yourself, e.g.

    \b
    (umask 077; kairos-p2p kubeconfig > kubeconfig)

    With --merge, where each region is a cluster (p2p.cluster: region), it has a context for every cluster of
    the mesh; this node's is the current one. A cluster that gives its kubeconfig to nobody is named on
    standard error.
    """
    if merge and server is not None:
        raise UsageError("--merge and --server exclude each other", hint="each cluster has its own address")
    if merge:
        found = AgentClient(socket).kubeconfigs()
        for name, why in sorted(found["missing"].items()):
            click.echo(out.printable(f"not in here: cluster {name}: {why}"), err=True)
        out.emit(found["kubeconfig"].rstrip("\n"))
        return
    if server is not None:
        _check_url(server)
    text = AgentClient(socket).kubeconfig()
    out.emit((text if server is None else with_server(text, server)).rstrip("\n"))


def with_server(text: str, url: str) -> str:
    """A kubeconfig with the API address of every cluster replaced. Raises P2PError if it is none."""
    import yaml

    try:
        document: Any = yaml.safe_load(text)
        for entry in document["clusters"]:
            entry["cluster"]["server"] = url
    except (yaml.YAMLError, KeyError, TypeError) as exc:
        raise P2PError("what k3s wrote is no kubeconfig: it has no clusters") from exc
    return out.to_yaml(document)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme == "https" and bool(parts.hostname) and (parts.port or 443) > 0
    except ValueError:
        good = False
    if not good:
        raise UsageError(
            f"--server {url} is no address of a Kubernetes API", hint="write it like https://HOST:6443"
        )
