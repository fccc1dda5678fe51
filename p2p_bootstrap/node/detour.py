"""How do packets reach a peer that no carrier of the data plane reaches?

Through the control processes: data plane <-> local socket <-> tube over the mesh, directly or through a relay
<-> local socket <-> the peer's data plane. The data planes seal what goes through, as on any carrier, and
drop what the tube does not take; its window bounds what is under way, so that requests of the mesh on the
same connection are not kept waiting. Of two nodes the one with the smaller peer id opens it, once the session
has been without a direct carrier for `PATIENCE_S`; a direct carrier that comes up ends it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from p2p_network.core import log
from p2p_network.core.errors import MeshError
from p2p_network.core.ids import PeerId
from p2p_network.dataplane.choice import DIRECT, MESH
from p2p_network.dataplane.client import DataPlane
from p2p_network.dataplane.messages import PeerStats
from p2p_network.host.mesh import MeshHost
from p2p_network.tubes.flow import PACKETS, Opening
from p2p_network.tubes.tube import Tube, join

logger = log.get(__name__)

PATIENCE_S: Final = 2.0
AGAIN_S: Final = 2.0


@dataclass(slots=True)
class _Detour:
    """What we did for one peer. Moments are trio's clock. `route`: the relay of the channel in use, or ""."""

    without_since: float | None = None
    opened_at: float = float("-inf")
    route: str = ""
    session_id: bytes = b""


class Detours:
    """All peers whose packets go through the mesh.

    Args:
        plane: the data plane, None while there is none.
    """

    def __init__(self, self_id: PeerId, host: MeshHost, plane: Callable[[], DataPlane | None]) -> None:
        self._self_id, self._host, self._plane = self_id, host, plane
        self._by_peer: dict[PeerId, _Detour] = {}
        host.serve_packets(self._take)

    def tend(self, peer: PeerId, stats: PeerStats | None, nursery: trio.Nursery) -> None:
        """Once a second, for each peer with a channel: open a way through the mesh if none other carries."""
        if stats is None or self._self_id > peer:
            return
        if stats.carrier in DIRECT and not stats.pending_session_id:
            self._by_peer.pop(peer, None)
            return
        now = trio.current_time()
        detour = self._by_peer.setdefault(peer, _Detour())
        if stats.carrier in DIRECT:  # it still carries, by a session that is about to go
            return
        if detour.without_since is None:
            detour.without_since = now
        newest = stats.pending_session_id or stats.session_id
        relay = self._host.relay_of(peer)
        route = relay[0] if relay is not None else ""
        stands = stats.carrier == MESH and (detour.session_id, detour.route) == (newest, route)
        if stands or now - detour.without_since < PATIENCE_S or now - detour.opened_at < AGAIN_S:
            return
        detour.opened_at, detour.session_id, detour.route = now, newest, route
        nursery.start_soon(self._open, peer)

    async def _open(self, peer: PeerId) -> None:
        plane = self._plane()
        if plane is None:
            return
        try:
            tube = await self._host.open_tube(peer, Opening("tcp", service=PACKETS))
            await self._carry(plane, tube, dial=True)
        except MeshError as exc:
            log.event(logger, "vpn.detour_failed", logging.DEBUG, peer=peer, error=exc.message)

    async def _take(self, tube: Tube, opening: Opening) -> None:
        """A peer whose data plane reaches ours in no other way opened a tube."""
        plane = self._plane()
        if plane is None:
            await tube.refuse("its data plane is not up")
            return
        try:
            await self._carry(plane, tube, dial=False)
        except MeshError as exc:
            await tube.refuse(exc.message)

    async def _carry(self, plane: DataPlane, tube: Tube, *, dial: bool) -> None:
        """Join a tube with the data plane until one of them ends. Raises MeshError before anything flows."""
        try:
            local = await plane.carry(tube.peer, dial=dial)
        except MeshError:
            if dial:
                tube.abort("the data plane does not take it")
            raise
        if not dial:
            tube.take()
        log.event(logger, "vpn.detour_opened", peer=tube.peer, reason="no direct carrier reaches it")
        await join(local, tube)
