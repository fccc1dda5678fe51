"""Who may open how many tubes through this host, and who takes those that peers open?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from p2p_network.core import log
from p2p_network.core.errors import MeshError, PeerUnreachable
from p2p_network.core.ids import PeerId, short
from p2p_network.host.connections import Stream
from p2p_network.host.links import Link
from p2p_network.tubes.flow import PACKETS, Opening
from p2p_network.tubes.tube import Ended, Refused, Tube

logger = log.get(__name__)

MAX_TUBES: Final = 256
MAX_TUBES_PER_PEER: Final = 64

TakesTube = Callable[[Tube, Opening], Awaitable[None]]


class TubeEnds:
    """The tubes of one host. `open_on`: a stream on a connection; `link_of`: what leads to a peer."""

    def __init__(
        self,
        open_on: Callable[[Any], Awaitable[Stream]],
        link_of: Callable[[PeerId], Link | None],
    ) -> None:
        self._open_on = open_on
        self._link_of = link_of
        self._tubes: Counter[PeerId] = Counter()
        self.violations = 0
        self.take_tube: TakesTube | None = None
        self.take_packets: TakesTube | None = None

    @property
    def is_served(self) -> bool:
        """Whether anybody takes tubes that peers open."""
        return self.take_tube is not None or self.take_packets is not None

    async def open(self, nursery: trio.Nursery | None, peer: PeerId, opening: Opening) -> Tube:
        """A tube to a peer, which took it; it runs in `nursery`. Raises PeerUnreachable, MeshError."""
        link = self._link_of(peer)
        connection = link.connection if link is not None else None
        if link is None or connection is None or nursery is None:
            raise PeerUnreachable(
                f"no connection with peer {short(peer)}",
                hint="see `kairos-p2p peers`; the node keeps dialling",
            )
        stream = await self._open_on(connection.conn)
        tube = Tube(stream, opens=True, heard=connection.heard)
        nursery.start_soon(tube.run)
        try:
            await tube.open(opening)
        except Refused as exc:
            raise MeshError(f"peer {short(peer)} refuses: {exc}") from exc
        except Ended as exc:
            raise PeerUnreachable(f"peer {short(peer)}: {exc}") from exc
        except BaseException:
            tube.abort("this node gave up")
            raise
        return tube

    async def serve(self, raw: Any) -> None:
        """A peer opened a tube to us: let the handler have it, until it has ended."""
        stream = Stream(raw)
        link = self._link_of(stream.peer)
        connection = (
            next((c for c in link.connections if c.conn is stream.connection), None) if link else None
        )
        full = self._tubes.total() >= MAX_TUBES or self._tubes[stream.peer] >= MAX_TUBES_PER_PEER
        if connection is None or full:
            await stream.reset()
            return
        tube = Tube(stream, opens=False, heard=connection.heard)
        self._tubes[stream.peer] += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tube.run)
                nursery.start_soon(self._handle, tube, nursery.cancel_scope)
                await tube.closed.wait()
                if not tube.is_whole:  # else what came is still being delivered
                    nursery.cancel_scope.cancel()
        finally:
            if tube.violated:
                self.violations += 1
                log.event(logger, "host.peer_violated", level=30, peer=stream.peer, reason=tube.reason)
            self._tubes[stream.peer] -= 1
            self._tubes = +self._tubes

    async def _handle(self, tube: Tube, scope: trio.CancelScope) -> None:
        try:
            opening = await tube.opening()
            take = self.take_packets if opening.service == PACKETS else self.take_tube
            if take is None:
                await tube.refuse("it takes no such tubes")
                return
            await take(tube, opening)
            if tube.is_whole:
                await tube.closed.wait()
        except Ended:
            pass
        finally:
            tube.abort("its handler ended")
            scope.cancel()
