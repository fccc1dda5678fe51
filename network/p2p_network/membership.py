"""Who belongs to the mesh, and who of them is there now?

A machine over three kinds of facts: who is heard (`detector.py`: by a channel, or by others that were asked),
node records in the ledger, and deleted records (a node that left says so by deleting its own)::

    alive    heard: we hold a channel to it, others hear it, or it is ourselves
    suspect  not heard by anybody that was asked, or first heard of, less than `suspect_s` ago
    dead     not back since
    away     not heard, and it was announced that it would be away now (`drains`): no failure
    left     it deleted its record; a node that comes back writes a new one

`View` is the immutable snapshot that roles are decided on; it changes only when a member does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, assert_never

from p2p_network.core.ids import PeerId
from p2p_network.core.machine import Decision
from p2p_network.records import NodeRecord

SUSPECT_S: Final = 10.0


class MemberState(StrEnum):
    """How present a member is."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    AWAY = "away"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Member:
    """One node as this node sees it.

    Attributes:
        record: what it says of itself; None while it is connected but its record has not arrived.
        since: monotonic seconds at which `state` began, as far as this node knows.
        reason: one sentence.
        ipv4, ipv6: its VPN addresses, "" while it has none.
    """

    peer: PeerId
    record: NodeRecord | None
    state: MemberState
    since: float
    reason: str
    ipv4: str = ""
    ipv6: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """Everybody, by peer id, as of `changed_at` (monotonic seconds). Never changes: ask for a new one."""

    self_id: PeerId
    members: tuple[Member, ...]
    changed_at: float

    def get(self, peer: str) -> Member | None:
        """The member with this id."""
        return next((member for member in self.members if member.peer == peer), None)

    def alive(self) -> tuple[Member, ...]:
        """Those who are there, this node included."""
        return tuple(member for member in self.members if member.state is MemberState.ALIVE)


# Events
@dataclass(frozen=True, slots=True)
class PeerConnected:
    """A channel to this peer opened."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerHeard:
    """There is no channel to this peer, but it is there; `how` we know."""

    peer: PeerId
    how: str


@dataclass(frozen=True, slots=True)
class PeerLost:
    """This peer is not heard any more."""

    peer: PeerId
    why: str


@dataclass(frozen=True, slots=True)
class RecordsChanged:
    """What the ledger says now: all node records, all addresses, and whose record was deleted.

    `out`: those of `left` that did not go of themselves, and why: they are members no more.
    `drained`: whose absence is announced, and in which words.
    """

    records: Mapping[PeerId, NodeRecord]
    addresses: Mapping[PeerId, tuple[str, str]]
    left: frozenset[PeerId]
    out: Mapping[PeerId, str] = field(default_factory=dict)
    drained: Mapping[PeerId, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed (see `Membership.wake_at`)."""


Event = PeerConnected | PeerHeard | PeerLost | RecordsChanged | Tick


# Effects
@dataclass(frozen=True, slots=True)
class MemberChanged:
    """A member went from one state to another; `before` is None if it is new, `member.state` the new one."""

    before: MemberState | None
    member: Member


@dataclass(frozen=True, slots=True)
class DrainChanged:
    """A member is drained now (`words`), or is no more (""), whether it is there or not."""

    peer: PeerId
    words: str


@dataclass(frozen=True, slots=True)
class PublishView:
    """Hand this view to whoever decides by it."""

    view: View


Effect = MemberChanged | DrainChanged | PublishView


class Membership:
    """Keeps the view of one node."""

    def __init__(self, self_id: PeerId, now: float, *, suspect_s: float = SUSPECT_S) -> None:
        self._self_id = self_id
        self._suspect_s = suspect_s
        self._heard: dict[PeerId, str] = {}  # who is there, and how we know
        self._records: Mapping[PeerId, NodeRecord] = {}
        self._addresses: Mapping[PeerId, tuple[str, str]] = {}
        self._left: frozenset[PeerId] = frozenset()
        self._out: Mapping[PeerId, str] = {}
        self._drained: Mapping[PeerId, str] = {}
        itself = Member(self_id, None, MemberState.ALIVE, now, "this node")
        self._members: dict[PeerId, Member] = {self_id: itself}
        self._view = View(self_id, (itself,), now)

    @property
    def view(self) -> View:
        """The current snapshot."""
        return self._view

    def wake_at(self) -> float | None:
        """When the first suspect is to be called dead."""
        suspects = [m.since for m in self._members.values() if m.state is MemberState.SUSPECT]
        return min(suspects) + self._suspect_s if suspects else None

    def step(self, now: float, event: Event) -> Decision[Effect]:
        """Decide on one event."""
        why_lost = "no channel to it"
        before = self._drained
        match event:
            case PeerConnected(peer):
                self._heard[peer] = "a channel to it is open"
            case PeerHeard(peer, how):
                self._heard[peer] = how
            case PeerLost(peer, why):
                assert peer != self._self_id, "a node can't lose itself"
                self._heard.pop(peer, None)
                why_lost = why
            case RecordsChanged():
                self._records, self._addresses, self._left = event.records, event.addresses, event.left
                self._out, self._drained = event.out, event.drained
            case Tick():
                pass
            case _:
                assert_never(event)
        decision = self._settle(now, why_lost)
        peers = sorted(p for p in {*before, *self._drained} if before.get(p) != self._drained.get(p))
        if not peers:
            return decision
        told = tuple(DrainChanged(peer, self._drained.get(peer, "")) for peer in peers)
        return Decision((*told, *decision.effects), decision.reason or "what is announced has changed")

    def _settle(self, now: float, why_lost: str) -> Decision[Effect]:
        """Judge every member anew; say what differs from the last view."""
        peers = {self._self_id} | self._heard.keys() | self._records.keys() | self._left
        after = {peer: self._judge(now, peer, why_lost) for peer in sorted(peers)}
        if after == self._members:
            return Decision()
        changes: list[MemberChanged] = []
        for peer, member in after.items():
            old = self._members.get(peer)
            if old is None or old.state is not member.state:
                changes.append(MemberChanged(old.state if old else None, member))
        self._members = after
        self._view = View(self._self_id, tuple(after.values()), now)
        said = "; ".join(f"{c.member.peer} is {c.member.state}: {c.member.reason}" for c in changes)
        return Decision((*changes, PublishView(self._view)), said or "what members say has changed")

    def _judge(self, now: float, peer: PeerId, why_lost: str) -> Member:
        old = self._members.get(peer)
        state, reason = self._state(now, peer, old, why_lost)
        ipv4, ipv6 = self._addresses.get(peer, ("", ""))
        if (
            old is not None
            and old.state is state
            and (state not in (MemberState.ALIVE, MemberState.AWAY) or old.reason == reason)
        ):
            return replace(old, record=self._records.get(peer), ipv4=ipv4, ipv6=ipv6)
        since = old.since if old is not None and old.state is state else now
        return Member(peer, self._records.get(peer), state, since, reason, ipv4, ipv6)

    def _state(self, now: float, peer: PeerId, old: Member | None, why_lost: str) -> tuple[MemberState, str]:
        if peer == self._self_id:
            return MemberState.ALIVE, "this node"
        if peer in self._out:
            return MemberState.LEFT, self._out[peer]
        if peer in self._left and peer not in self._records:
            return MemberState.LEFT, "it said that it leaves"
        if peer in self._heard:
            return MemberState.ALIVE, self._heard[peer]
        if peer in self._drained:
            return MemberState.AWAY, self._drained[peer]
        if old is None:
            return MemberState.SUSPECT, "known from the ledger, not connected yet"
        if old.state is MemberState.SUSPECT and now >= old.since + self._suspect_s:
            return MemberState.DEAD, f"not back within {self._suspect_s:g} s: {old.reason}"
        if old.state in (MemberState.SUSPECT, MemberState.DEAD):
            return old.state, old.reason
        if old.state is MemberState.LEFT:
            return MemberState.SUSPECT, "it writes records again, not connected yet"
        if old.state is MemberState.AWAY:
            return MemberState.SUSPECT, f"not back when it was to be: {old.reason}"
        return MemberState.SUSPECT, why_lost
