"""How do the nodes that hold the root agree on the next keys before anybody announces them?

The asking and the keeping around `p2p_network.admission.voting`. Whose rotation is overtaken by another one
gets that one's seed: both operators are given the same new token.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from p2p_bootstrap.node.admission import Admission
from p2p_bootstrap.node.runtime import Runtime
from p2p_network import wire
from p2p_network.admission import voting
from p2p_network.admission.voting import Accept, Accepted, Ask, Ballot, Nack, Prepare, Promise, Votes
from p2p_network.core import log
from p2p_network.core.errors import MeshError
from p2p_network.core.ids import PeerId

if TYPE_CHECKING:
    from p2p_bootstrap.node.ports import Durable, Mesh

logger = log.get(__name__)

VOTE_METHOD: Final = "admission.vote"
VOTE_TIMEOUT_S: Final = 5.0
TRIES: Final = 6
PAUSE_S: Final = 1.0


class RotationVote:
    """One holder's part in the votes.

    Args:
        holders: the peers that hold the root now, this node among them.
        electorate: those of them whose votes count. Raises MeshError as long as that is not agreed.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        admission: Admission,
        self_id: PeerId,
        host: Mesh,
        durable: Durable,
        holders: Callable[[], frozenset[str]],
        electorate: Callable[[], frozenset[str]],
    ) -> None:
        self._runtime = runtime
        self._admission = admission
        self._self_id = self_id
        self._host = host
        self._durable = durable
        self._holders = holders
        self._electorate = electorate
        self._key = f"rotation/{admission.kept.mesh_id}"
        self._votes: Votes | None = None
        self._voting = runtime.lock()
        self._heard_round = 0
        self._refusal = ""
        host.serve(VOTE_METHOD, self._asked)

    async def decide(self, number: int, seed: bytes) -> bytes:
        """The seed of generation `number`: this one, or that of a rotation that was there first; b"" if that
        generation came into force meanwhile. Raises MeshError if most holders don't agree in time."""
        for attempt in range(TRIES):
            if attempt:
                pause_s = PAUSE_S * attempt * (0.5 + self._runtime.random())
                await self._runtime.signal().wait(pause_s)
            if self._admission.kept.generation >= number:
                return b""
            holders = self._electorate()
            ballot = Ballot(max(self._heard_round, (await self._load()).promised.round) + 1, self._self_id)
            promises = [
                answer
                for answer in await self._ask_all(holders, Prepare(number, ballot, len(holders)))
                if isinstance(answer, Promise)
            ]
            if not voting.is_decided(len(promises), len(holders)):
                continue
            value = voting.adopted(promises, seed)
            votes = await self._ask_all(holders, Accept(number, ballot, len(holders), value))
            if voting.is_decided(sum(isinstance(vote, Accepted) for vote in votes), len(holders)):
                return value
        raise MeshError(
            f"most of the {len(self._electorate())} nodes that vote did not agree to new keys: "
            f"{self._refusal or 'they did not answer'}",
            hint="try again when they are connected (kairos-p2p peers); if they are gone for ever: --force",
        )

    async def _ask_all(self, holders: frozenset[str], ask: Ask) -> list[voting.Answer]:
        """This node first: its own promise is durable before anybody hears of the ballot."""
        answers = [await self._vote(self._self_id, ask)] if self._self_id in holders else []
        payload = wire.encode(ask)

        async def one(peer: PeerId) -> None:
            try:
                raw = await self._host.request(peer, VOTE_METHOD, payload, timeout_s=VOTE_TIMEOUT_S)
                answers.append(wire.decode(raw, voting.Answer))  # type: ignore[arg-type]
            except (MeshError, ValueError) as exc:
                self._runtime.log(logger, "admission.no_vote", logging.DEBUG, peer=peer, error=str(exc))

        async with self._runtime.task_group() as tasks:
            for peer in sorted(self._host.connected() & holders):
                tasks.start_soon(one, PeerId(peer))
        for answer in answers:
            if isinstance(answer, Nack):
                self._heard_round = max(self._heard_round, answer.round)
                self._refusal = answer.reason
        return answers

    async def stated(self) -> tuple[frozenset[str], bool]:
        """The founding roster that this node stated last, and whether it has voted on new keys."""
        votes = await self._load()
        return frozenset(votes.roster), votes.accepted is not None

    async def state(self, roster: frozenset[str]) -> bool:
        """Keep a founding roster, before it is stated; whether it may be."""
        async with self._voting:
            after = voting.stated(await self._load(), roster)
            if after is None or self._admission.kept.generation != 1:
                return False
            await self._keep(after)
            return True

    async def _asked(self, peer: PeerId, payload: bytes) -> bytes:
        try:
            ask: Ask = wire.decode(payload, Ask)  # type: ignore[arg-type]
        except ValueError as exc:
            raise MeshError(f"{VOTE_METHOD}: {exc}") from exc
        if peer not in self._holders() or self._admission.kept.authority is None:
            return wire.encode(Nack(0, "only nodes that hold the root rotate"))
        return wire.encode(await self._vote(peer, ask))

    async def _vote(self, peer: PeerId, ask: Ask) -> voting.Answer:
        async with self._voting:
            before = await self._load()
            is_first = self._admission.kept.generation == 1
            after, answer = voting.answer(
                before,
                ask,
                peer=peer,
                generation=self._admission.kept.generation,
                holders=len(before.roster) if is_first else len(self._electorate()),
            )
            if after != before:
                await self._keep(after)
            return answer

    async def _keep(self, votes: Votes) -> None:
        self._votes = None  # should this be cancelled, the disk knows
        await self._runtime.in_thread(self._durable.set, self._key, wire.encode(votes))
        self._votes = votes

    async def _load(self) -> Votes:
        if self._votes is None:
            raw = await self._runtime.in_thread(self._durable.get, self._key)
            try:
                self._votes = wire.decode(raw, Votes) if raw else Votes()
            except ValueError as exc:
                raise MeshError(
                    f"this node's votes on new keys are damaged: {exc}",
                    hint="let this node leave and join as a new one: kairos-p2p leave",
                ) from exc
        return self._votes
