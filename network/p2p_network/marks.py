"""How do the mesh's own packets stay out of the mesh's own tunnel?

When this machine's default route goes through a peer (an exit), what carries the mesh must still go over the
network. So all sockets that carry it bear a mark, and a rule sends what is marked by the main routing table
(`kernel_routes`). Without the right to mark (CAP_NET_ADMIN) there is no VPN here either, and no exit.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final

MARK: Final = 0x6B00_0001
"""Bits that neither kube-proxy (0xc000) nor Cilium (0x0f00) uses."""


def mark(sock: Any) -> None:
    """Mark a socket (of the standard library or of trio), as far as that is permitted."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
