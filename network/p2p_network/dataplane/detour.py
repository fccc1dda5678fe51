"""What happens on a connection that carries a session through the control process?

The third carrier, for when neither TCP nor UDP reaches a peer: a local socket to the control process, which
hands the bytes on through the mesh, to the peer's control process and its data plane. It is a TCP connection
in all but its socket: the same preface, records and keys, so what carries it reads nothing. It never waits:
what the socket can't take goes to the peer's queue, which drops. When the control process goes, so does it,
and nothing else.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from p2p_network.dataplane.choice import MESH, Path
from p2p_network.dataplane.connection import Owner, TcpConnection
from p2p_network.dataplane.path import LEAST_SAMPLE

_UNSENT_BYTES: Final = 1 << 16
"""What the kernel may hold for the control process: more would be delay."""


class MeshConnection(TcpConnection):
    """A `peers.Carrier` over a local socket."""

    kind = MESH

    def __init__(self, owner: Owner, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNSENT_BYTES)
        self._counted_packets = (0, 0)
        super().__init__(owner, sock, MESH)

    def path_facts(self) -> Path:
        """What `choice` looks at. Loss: of what was to be sent, the share that the queue dropped."""
        if self.peer is not None:
            sent, dropped = self.peer.tx_packets, self.peer.drops.get("queue_full", 0)
            before_sent, before_dropped = self._counted_packets
            if sent - before_sent >= LEAST_SAMPLE:
                self._counted_packets = (sent, dropped)
                self._loss = min(1.0, (dropped - before_dropped) / (sent - before_sent))
        silent = self.pulse.is_suspect(self._owner.loop.now(), self.last_received)
        return Path(MESH, "", self._loss, self.rtt_ms, silent=silent)
