"""May something lasting be built on the address that this node has claimed?

k3s keeps the address it was started with for ever, so a claim must first be known where a contradicting one
could be made. It *stands*, unchallenged,

- as soon as every member that this node sees has acknowledged it: says that it holds this claim and knows no
  better one. Each acknowledgement names the members that its sender sees, and these must have acknowledged
  too. Of two nodes that see each other, or both see a third, never both can get all they need: one claim is
  better than the other, its maker knows that, and will not acknowledge the worse one;
- or once it is `STANDS_S` old: for who sees nobody, or where somebody doesn't answer.

Neither helps against nodes that can't hear of each other at all: when they meet, the older claim wins
(`addressing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, assert_never

import msgspec

from p2p_network.core.ids import PeerId
from p2p_network.core.machine import Decision
from p2p_network.records import AddressClaim

METHOD: Final = "address.ack"
STANDS_S: Final = 2.0
AGAIN_S: Final = 0.25
"""So long after a refusal or no answer a peer is asked again."""
MAX_ASKED: Final = 32
"""A larger mesh is not asked: there a node comes and goes at any time, and two seconds are no matter."""


class Ack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer to a claim. `sees`: the members that the sender sees; empty if it doesn't hold it."""

    holds: bool
    sees: Annotated[tuple[PeerId, ...], msgspec.Meta(max_length=MAX_ASKED + 1)]


def is_better(one: tuple[AddressClaim, PeerId], other: tuple[AddressClaim, PeerId]) -> bool:
    """Whether of two claims on one address the first one wins: the older, then the lower peer id."""
    return (one[0].claimed_ms, one[1]) < (other[0].claimed_ms, other[1])


def acknowledge(
    claims: Mapping[PeerId, AddressClaim], peer: PeerId, claim: AddressClaim, sees: frozenset[PeerId]
) -> Ack:
    """What a node that knows `claims` answers `peer`. `sees`: whom it sees."""
    better = (
        who
        for who, known in claims.items()
        if known.ipv4 == claim.ipv4 and is_better((known, who), (claim, peer))
    )
    holds = claims.get(peer) == claim and next(better, None) is None and len(sees) <= MAX_ASKED
    return Ack(holds, tuple(sorted(sees)) if holds else ())


# Events
@dataclass(frozen=True, slots=True)
class Held:
    """This node holds an address by this claim, `age_s` old; None: it holds none (any more)."""

    claim: AddressClaim | None
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MembersSeen:
    """All members that this node sees, but for those that left and itself."""

    peers: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class Answered:
    """A peer's answer to an `Ask`; None: there was none."""

    peer: PeerId
    claim: AddressClaim
    ack: Ack | None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed (see `Standing.wake_at`)."""


Event = Held | MembersSeen | Answered | Tick


# Effects
@dataclass(frozen=True, slots=True)
class Ask:
    """Ask this peer whether it holds our claim, and report `Answered`."""

    peer: PeerId
    claim: AddressClaim


@dataclass(frozen=True, slots=True)
class Build:
    """The claim stands: from now on things may be built on it."""

    claim: AddressClaim


Effect = Ask | Build


class Standing:
    """Finds out whether the claim of one node stands."""

    def __init__(self, self_id: PeerId) -> None:
        self._self_id = self_id
        self._claim: AddressClaim | None = None
        self._stands_at = 0.0
        self._members: frozenset[PeerId] = frozenset()
        self._sees: dict[PeerId, tuple[PeerId, ...]] = {}  # who acknowledged the claim
        self._asked: set[PeerId] = set()  # no answer yet
        self._again_at: dict[PeerId, float] = {}
        self.stands = False

    def wake_at(self) -> float | None:
        """When the claim is old enough, or somebody is to be asked again."""
        if self._claim is None or self.stands:
            return None
        again = [moment for peer, moment in self._again_at.items() if peer in self._to_ask()]
        return min([self._stands_at, *again])

    def step(self, now: float, event: Event) -> Decision[Effect]:
        """Decide on one event."""
        match event:
            case Held(claim, age_s):
                self._hold(now, claim, age_s)
            case MembersSeen(peers):
                self._members = peers - {self._self_id}
            case Answered(peer, claim, ack):
                if claim == self._claim:
                    self._asked.discard(peer)
                    if ack is not None and ack.holds:
                        self._sees[peer] = ack.sees
                    else:
                        self._again_at[peer] = now + AGAIN_S
            case Tick():
                pass
            case _:
                assert_never(event)
        return self._decide(now)

    def _hold(self, now: float, claim: AddressClaim | None, age_s: float) -> None:
        if claim == self._claim:
            return
        self._claim, self.stands = claim, False
        self._stands_at = now + max(0.0, STANDS_S - max(0.0, age_s))
        self._sees.clear()
        self._asked.clear()
        self._again_at.clear()

    def _decide(self, now: float) -> Decision[Effect]:
        claim = self._claim
        if claim is None or self.stands:
            return Decision()
        if now >= self._stands_at:
            return self._build(claim, f"its claim has stood for {STANDS_S:.0f} s")
        if 0 < len(self._needed()) <= MAX_ASKED and self._needed() <= self._sees.keys():
            return self._build(claim, f"all {len(self._sees)} members in sight hold its claim")
        asks: list[Effect] = []
        for peer in sorted(self._to_ask()):
            if now >= self._again_at.get(peer, now):
                self._again_at.pop(peer, None)
                self._asked.add(peer)
                asks.append(Ask(peer, claim))
        return Decision(tuple(asks))

    def _to_ask(self) -> frozenset[PeerId]:
        """Whose word is still missing."""
        is_large = len(self._members) > MAX_ASKED
        return frozenset() if is_large else self._members - self._sees.keys() - self._asked

    def _needed(self) -> frozenset[PeerId]:
        """Who must have acknowledged: whom we see, and whom those see that did."""
        seen = {peer for known in self._sees.values() for peer in known}
        return (self._members | seen) - {self._self_id}

    def _build(self, claim: AddressClaim, why: str) -> Decision[Effect]:
        self.stands = True
        return Decision((Build(claim),), f"{claim.ipv4} may be built upon: {why}")
