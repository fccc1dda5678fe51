"""How do the first holders of the root come to agree on who votes on new keys?

The stating and the keeping around `p2p_network.admission.founding`, in the first generation only. What is
stated is durable, beside the votes (`RotationVote.state`), before anybody hears of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from p2p_bootstrap.node.admission import Admission
from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.rotation import RotationVote
from p2p_bootstrap.node.runtime import Runtime
from p2p_network import wire
from p2p_network.admission import founding
from p2p_network.core import log
from p2p_network.core.errors import MeshError
from p2p_network.core.ids import PeerId
from p2p_network.ledger.reading import read_by_peer, revoked_peers

if TYPE_CHECKING:
    from p2p_bootstrap.node.ports import Mesh

logger = log.get(__name__)

LOOK_S: Final = 5.0


class Founding:
    """One holder's part in it.

    Args:
        holders: who holds the root, as far as this node knows.
        minimum_nodes: so many members must be in sight before a first list is stated.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        admission: Admission,
        self_id: PeerId,
        host: Mesh,
        replication: Replication,
        vote: RotationVote,
        holders: Callable[[], frozenset[str]],
        minimum_nodes: int,
    ) -> None:
        self._runtime = runtime
        self._admission = admission
        self._self_id = self_id
        self._host = host
        self._replication = replication
        self._vote = vote
        self._holders = holders
        self._minimum_nodes = minimum_nodes
        self._size = min(max(founding.MAX_FOUNDERS, minimum_nodes), founding.MAX_ROSTER)
        self._seen: frozenset[str] | None = None
        """What would have been proposed at the last look: what holds for two is no passing sight."""

    def roster(self) -> frozenset[str] | None:
        """Who votes; None as long as that is not agreed."""
        return founding.in_force(self._stated(), self._holders(), self._revoked())

    async def run(self) -> None:
        """State lists until cancelled, or until the first rotation is over."""
        changed = self._runtime.signal()
        self._replication.subscribe(founding.PREFIX, changed)
        while self._admission.kept.generation == 1:
            is_news = await changed.wait(LOOK_S)
            if self._admission.kept.authority is None:
                continue
            try:
                await self._look(may_propose=not is_news)
            except MeshError as exc:
                self._runtime.log(logger, "admission.not_founded", logging.DEBUG, error=exc.message)

    async def _look(self, *, may_propose: bool) -> None:
        own, has_voted = await self._vote.stated()
        stated = self._stated()
        if len(own) >= self._size and all(stated.get(peer) == own for peer in own):
            return
        revoked, holders = self._revoked(), self._holders()
        connected = self._host.connected()
        is_enough = 1 + sum(self._admission.verdict(p).is_admitted for p in connected) >= self._minimum_nodes
        if own and stated.get(self._self_id) != own:  # stated, and not said yet
            await self._say(own)
        for proposed in sorted(set(stated.values()), key=lambda peers: (-len(peers), sorted(peers))):
            if founding.may_follow(
                own,
                proposed,
                self_id=self._self_id,
                holders=holders,
                revoked=revoked,
                is_enough=is_enough,
                has_voted=has_voted,
            ):
                await self._state(proposed)
                return
        if has_voted or not may_propose:
            return
        wanted = founding.to_propose(
            own,
            stated,
            self_id=self._self_id,
            holders=holders,
            in_sight=(connected & holders) | {self._self_id},
            revoked=revoked,
            is_enough=is_enough,
            at_most=self._size,
        )
        if wanted is not None and wanted == self._seen:
            await self._state(wanted)
        self._seen = wanted

    async def _state(self, peers: frozenset[str]) -> None:
        if await self._vote.state(peers):
            await self._say(peers)

    async def _say(self, peers: frozenset[str]) -> None:
        word = wire.encode(founding.Roster(tuple(sorted(peers))))
        await self._replication.write(f"{founding.PREFIX}{self._self_id}", word)
        self._runtime.log(
            logger,
            "admission.founders_stated",
            count=len(peers),
            reason="these nodes vote on the mesh's first new keys, if all of them say the same",
        )

    def _stated(self) -> dict[str, frozenset[str]]:
        said = read_by_peer(self._replication.ledger, founding.PREFIX, founding.Roster)
        return {peer: frozenset(roster.peers) for peer, roster in said.items()}

    def _revoked(self) -> frozenset[str]:
        return frozenset(revoked_peers(self._replication.ledger))
