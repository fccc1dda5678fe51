"""``kairos-p2p socks`` and ``forward``: how do programs reach the mesh without a VPN?"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

import click

from p2p_bootstrap.cli.options import socket_option
from p2p_bootstrap.cli.service_verbs import follow, udp_option


@click.command()
@click.option(
    "--listen", default="127.0.0.1:1080", show_default=True, metavar="[HOST:]PORT", help="Where to listen."
)
@socket_option
def socks(listen: str, socket: Path) -> None:
    """A SOCKS5 proxy into the mesh, until Ctrl-C.

    It takes names of the mesh (NODE.NETWORK_ID.p2p, SERVICE..., or just the first label), VPN addresses and
    networks that nodes carry; with p2p.vpn.exit everything else too. TCP and UDP, no authentication: whoever
    reaches the port acts as this node. For one that stays, set p2p.socks. Example: curl --proxy
    socks5h://127.0.0.1:1080 http://web.kairos.p2p/
    """
    follow(socket, f"/v1/socks?{urlencode({'listen': listen})}", "SOCKS5")


@click.command()
@click.argument("listen", metavar="[HOST:]PORT")
@click.argument("target", metavar="HOST:PORT")
@udp_option
@socket_option
def forward(listen: str, target: str, udp: bool, socket: Path) -> None:
    """Forward a local port into the mesh, until Ctrl-C.

    HOST is a name of the mesh, a VPN address, or one in a network that a node carries. For one that
    stays, set p2p.forwards.
    """
    query = urlencode({"listen": listen, "to": target, "protocol": "udp" if udp else "tcp"})
    follow(socket, f"/v1/forward?{query}", target)
