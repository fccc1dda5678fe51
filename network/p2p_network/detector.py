"""Has this member gone, or do only we not hear it?

SWIM, fitted to a mesh whose members keep channels open. The ping is the channel's heartbeat: while a
channel is open its peer is there. When it closes, or of a member that we keep no channel with (the dialler
wants only so many), up to `HELPERS` others are asked whether they hear it. Each passes on a nonce and
brings back the member's signed word; one such word is enough. Only when nobody brings one in `ATTEMPTS`
attempts is the member said to be absent, which makes it a suspect (`membership.py`), and the suspicion is
told on. Whoever hears of a suspicion does not believe it but asks for himself, at once; who has a channel
with the suspect tells it, and the suspect refutes with a higher incarnation, signed, which goes round the
same way.

A node that was stalled itself (its tick came late) begins its inquiries anew: it was the one that was not
there.

    channel opened ─────────────► present ◄──────────────── word brought, or refutation
                                     │ channel closed            ▲
                                     ▼                           │
                              asking (ATTEMPTS) ── none ──► absent, asked on
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, assert_never

from p2p_network.core.ids import PeerId, short
from p2p_network.core.machine import Decision
from p2p_network.liveness import MAX_INCARNATION, NONCE_BYTES, Alive, Suspicion, Word

HELPERS: Final = 3
"""How many are asked at first, twice as many in each further attempt; one while nothing is amiss."""
ATTEMPTS: Final = 3
PAUSE_S: Final = 0.6
ANSWER_S: Final = 1.5
"""How long a helper's answer is waited for; a helper itself waits half as long."""
CHECK_S: Final = 5.0
"""A member without a channel is asked about so often, or less often if there are many: `CHECKS_PER_S`."""
CHECKS_PER_S: Final = 1.0
SUSPECT_CHECK_S: Final = 1.5
SUSPECT_CHECKS: Final = 8
"""How often a member that was just lost is asked about at the faster pace."""
FANOUT: Final = 4
STALL_S: Final = 2.0
REFUTE_EVERY_S: Final = 1.0
FIRST_CHECK_S: Final = 4.0


# Events
@dataclass(frozen=True, slots=True)
class ChannelOpened:
    """A channel with this peer opened."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The last channel with this peer closed."""

    peer: PeerId
    why: str


@dataclass(frozen=True, slots=True)
class MembersKnown:
    """Who belongs to the mesh, without those who left and without this node."""

    peers: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class Answered:
    """A helper's answer on `peer`; `alive` is None if it brings nothing, or nothing that can be read."""

    peer: PeerId
    helper: PeerId
    alive: Alive | None


@dataclass(frozen=True, slots=True)
class Told:
    """A peer passes a word on."""

    source: PeerId
    word: Word


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed (see `Detector.wake_at`)."""


Event = ChannelOpened | ChannelClosed | MembersKnown | Answered | Told | Tick


# Effects
@dataclass(frozen=True, slots=True)
class Present:
    """This member is there; `channel`: we have one with it."""

    peer: PeerId
    how: str
    channel: bool


@dataclass(frozen=True, slots=True)
class Absent:
    """Neither we nor anybody that was asked hears this member."""

    peer: PeerId
    why: str


@dataclass(frozen=True, slots=True)
class AskAbout:
    """Ask these peers for a member's word over `nonce`; report each `Answered`."""

    peer: PeerId
    helpers: tuple[PeerId, ...]
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Tell:
    """Say this to these peers; no answer is expected."""

    peers: tuple[PeerId, ...]
    word: Word


Effect = Present | Absent | AskAbout | Tell


@dataclass(slots=True)
class _Member:
    channel: bool = False
    present: bool = False
    why: str = ""
    next_at: float = 0.0
    asking: bool = False
    nonce: bytes = b""
    attempts: int = 0
    waiting: set[PeerId] = field(default_factory=set)
    asked: set[PeerId] = field(default_factory=set)
    is_routine: bool = False
    brought_by: tuple[PeerId, ...] = ()  # who had a word of it lately: rather asked than others
    lost_checks: int = 0
    incarnation: int = 0
    refutation: Alive | None = None
    told: int = -1  # the incarnation whose suspicion was passed on


class Detector:
    """The machine of one node.

    Args:
        random: uniform in [0, 1).
        vouch: this node's signed word, of an incarnation and a nonce (`liveness.vouch`).
        is_genuine: whether a word is its peer's own (`liveness.is_genuine`).
    """

    def __init__(
        self,
        self_id: PeerId,
        *,
        random: Callable[[], float],
        vouch: Callable[[int, bytes], Alive],
        is_genuine: Callable[[Alive], bool],
    ) -> None:
        self._self_id = self_id
        self._random = random
        self._vouch = vouch
        self._is_genuine = is_genuine
        self.incarnation = 0
        self._refuted_at: float | None = None
        self._peers: dict[PeerId, _Member] = {}
        self._near: dict[PeerId, None] = {}  # those with a channel
        self._apart: dict[PeerId, _Member] = {}  # those without
        self._members: frozenset[PeerId] = frozenset()
        self._due: float | None = None

    def word(self, nonce: bytes) -> Alive:
        """What this node says when it is pinged."""
        return self._vouch(self.incarnation, nonce)

    def wake_at(self) -> float | None:
        """When somebody is to be asked about next, or an answer is overdue."""
        return min((m.next_at for m in self._apart.values()), default=None)

    def step(self, now: float, event: Event) -> Decision[Effect]:
        """Decide on one event."""
        effects: list[Effect] = []
        match event:
            case ChannelOpened(peer):
                self._opened(peer, effects)
            case ChannelClosed(peer, why):
                self._closed(now, peer, why, effects)
            case MembersKnown(peers):
                self._known(now, peers, effects)
            case Answered():
                self._answered(now, event, effects)
            case Told(source, word):
                self._told(now, source, word, effects)
            case Tick():
                if self._due is not None and now - self._due > STALL_S:
                    self._begin_anew(now)
            case _:
                assert_never(event)
        self._ask_due(now, effects)
        self._due = self.wake_at()
        return Decision(tuple(effects), "; ".join(_sentences(effects)))

    # ------------------------------------------------------------ who is known

    def _opened(self, peer: PeerId, effects: list[Effect]) -> None:
        member = self._peers.setdefault(peer, _Member())
        _rest(member)
        self._apart.pop(peer, None)
        self._near[peer] = None
        member.channel = member.present = True
        member.lost_checks = 0
        effects.append(Present(peer, "a channel to it is open", True))

    def _closed(self, now: float, peer: PeerId, why: str, effects: list[Effect]) -> None:
        member = self._peers.get(peer)
        if member is None or not member.channel:
            return
        del self._near[peer]
        member.channel, member.why = False, f"its channel closed: {why}"
        if peer not in self._members:
            del self._peers[peer]
            effects.append(Absent(peer, member.why))
        else:
            self._apart[peer] = member
            self._inquire(now, peer, member, effects)
        for other, asked in self._apart.items():  # it won't answer either
            if peer in asked.waiting:
                asked.waiting.discard(peer)
                if not asked.waiting:
                    self._failed(now, other, asked, effects)

    def _known(self, now: float, peers: frozenset[PeerId], effects: list[Effect]) -> None:
        self._members = peers
        for peer in sorted(peers - self._peers.keys()):
            wait_s = FIRST_CHECK_S * (1 + self._random())
            member = _Member(why="no channel to it", next_at=now + wait_s)
            self._peers[peer] = self._apart[peer] = member
        for peer in [p for p in self._apart if p not in peers]:
            del self._apart[peer]
            if self._peers.pop(peer).present:
                effects.append(Absent(peer, "it is no member any more"))

    # ------------------------------------------------------------ asking

    def _ask_due(self, now: float, effects: list[Effect]) -> None:
        for peer, member in self._apart.items():
            if member.next_at > now:
                continue
            if member.asking and member.waiting:  # overdue
                member.waiting.clear()
                self._failed(now, peer, member, effects)
            elif member.asking:
                self._attempt(now, peer, member, effects)
            else:
                self._inquire(now, peer, member, effects)

    def _inquire(self, now: float, peer: PeerId, member: _Member, effects: list[Effect]) -> None:
        _rest(member)
        member.asking = True
        member.nonce = bytes(int(self._random() * 256) for _ in range(NONCE_BYTES))
        self._attempt(now, peer, member, effects)

    def _attempt(self, now: float, peer: PeerId, member: _Member, effects: list[Effect]) -> None:
        """Ask some: who had its word lately, then who was not asked yet. With nobody to ask it is over."""
        count = HELPERS << member.attempts
        known = tuple(p for p in member.brought_by if p in self._near and p not in member.asked)
        passed_over = {*known, peer, *member.asked}
        fresh = [p for p in self._near if p not in passed_over]
        if len(known) + len(fresh) < HELPERS:  # all were asked: once more
            fresh = [p for p in self._near if p not in known and p != peer]
        is_calm = member.is_routine and bool(known)
        helpers = known[:1] if is_calm else known + self._pick(fresh, count - len(known))
        member.is_routine = False
        if not helpers:
            self._conclude(now, peer, member, effects)
            return
        member.waiting = set(helpers)
        member.asked |= member.waiting
        member.next_at = now + ANSWER_S
        effects.append(AskAbout(peer, helpers, member.nonce))

    def _answered(self, now: float, event: Answered, effects: list[Effect]) -> None:
        member = self._peers.get(event.peer)
        if member is None or not member.asking or event.helper not in member.asked:
            return
        alive = event.alive
        if (
            alive is not None
            and (alive.peer, alive.nonce) == (event.peer, member.nonce)
            and self._is_genuine(alive)
        ):
            member.incarnation = max(member.incarnation, alive.incarnation)
            member.brought_by = (event.helper, *(p for p in member.brought_by if p != event.helper))[:2]
            how = f"no channel to it, but {short(event.helper)} hears it"
            self._heard(now, event.peer, member, how, effects)
        elif event.helper in member.waiting:
            member.waiting.discard(event.helper)
            if not member.waiting:
                self._failed(now, event.peer, member, effects)

    def _failed(self, now: float, peer: PeerId, member: _Member, effects: list[Effect]) -> None:
        member.attempts += 1
        if member.attempts < ATTEMPTS:
            member.next_at = now + PAUSE_S * (0.75 + self._random() / 2)
        else:
            self._conclude(now, peer, member, effects)

    def _conclude(self, now: float, peer: PeerId, member: _Member, effects: list[Effect]) -> None:
        """Nobody hears it."""
        asked = len(member.asked)
        _rest(member)
        member.lost_checks = 0 if member.present else member.lost_checks + 1
        pace_s = SUSPECT_CHECK_S if member.lost_checks < SUSPECT_CHECKS else self._pace_s()
        member.next_at = now + pace_s * (0.75 + self._random() / 2)
        if not member.present:
            return
        member.present = False
        others = f"; {asked} other members do not hear it either" if asked else ""
        effects.append(Absent(peer, f"{member.why}{others}"))
        member.told = member.incarnation
        self._spread(Suspicion(peer, member.incarnation), (peer,), effects)

    def _heard(self, now: float, peer: PeerId, member: _Member, how: str, effects: list[Effect]) -> None:
        _rest(member)
        member.lost_checks = 0
        member.next_at = now + self._pace_s() * (0.75 + self._random() / 2)
        member.is_routine = True
        if not member.present:
            member.present = True
            effects.append(Present(peer, how, False))
        member.why = "nobody hears it any more"

    def _begin_anew(self, now: float) -> None:
        for member in self._apart.values():
            if member.asking:
                member.attempts = 0
                member.waiting.clear()
                member.next_at = now

    def _pace_s(self) -> float:
        return max(CHECK_S, len(self._apart) / CHECKS_PER_S)

    # ------------------------------------------------------------ what is told

    def _told(self, now: float, source: PeerId, word: Word, effects: list[Effect]) -> None:
        match word:
            case Suspicion():
                self._take_suspicion(now, source, word, effects)
            case Alive():
                self._take_refutation(now, source, word, effects)
            case _:
                assert_never(word)

    def _take_suspicion(self, now: float, source: PeerId, word: Suspicion, effects: list[Effect]) -> None:
        if word.peer == self._self_id:
            self._refute(now, source, word, effects)
            return
        peer = PeerId(word.peer)
        member = self._peers.get(peer)
        if member is None or peer not in self._members:
            return
        if word.incarnation < member.incarnation:
            if member.refutation is not None:
                effects.append(Tell((source,), member.refutation))
            return
        is_news, member.told = member.told < member.incarnation, max(member.told, member.incarnation)
        if member.channel:
            if is_news:
                effects.append(Tell((peer,), word))
            return
        if not member.asking:
            member.next_at, member.is_routine = now, False
        if is_news and word.incarnation == member.incarnation:
            self._spread(word, (peer, source), effects)

    def _refute(self, now: float, source: PeerId, word: Suspicion, effects: list[Effect]) -> None:
        """We are here. A lower incarnation than ours needs no new one; liars get one a second at most."""
        if word.incarnation < self.incarnation:
            effects.append(Tell((source,), self._vouch(self.incarnation, b"")))
            return
        if self._refuted_at is not None and now - self._refuted_at < REFUTE_EVERY_S:
            return
        self._refuted_at = now
        self.incarnation = min(MAX_INCARNATION, word.incarnation + 1)
        refutation = self._vouch(self.incarnation, b"")
        if source in self._near:
            effects.append(Tell((source,), refutation))
        self._spread(refutation, (source,), effects)

    def _take_refutation(self, now: float, source: PeerId, word: Alive, effects: list[Effect]) -> None:
        peer = PeerId(word.peer)
        member = self._peers.get(peer)
        if member is None or word.nonce or word.incarnation <= member.incarnation:
            return
        if not self._is_genuine(word):
            return
        member.incarnation, member.refutation = word.incarnation, word
        if not member.channel:
            self._heard(now, peer, member, "it refutes that it is gone", effects)
        self._spread(word, (peer, source), effects)

    def _spread(self, word: Word, without: Iterable[PeerId], effects: list[Effect]) -> None:
        left_out = frozenset(without)
        chosen = self._pick([p for p in self._near if p not in left_out], FANOUT)
        if chosen:
            effects.append(Tell(chosen, word))

    def _pick(self, peers: list[PeerId], count: int) -> tuple[PeerId, ...]:
        left, chosen = list(peers), list[PeerId]()
        while left and len(chosen) < count:
            chosen.append(left.pop(int(self._random() * len(left))))
        return tuple(chosen)


def _rest(member: _Member) -> None:
    """Nothing is being asked."""
    member.asking, member.attempts, member.nonce = False, 0, b""
    member.waiting, member.asked = set(), set()


def _sentences(effects: Iterable[Effect]) -> Iterable[str]:
    for effect in effects:
        match effect:
            case Present(peer, how, _):
                yield f"{short(peer)} is there: {how}"
            case Absent(peer, why):
                yield f"{short(peer)} is not there: {why}"
            case AskAbout(peer, helpers, _):
                yield f"asking {len(helpers)} others whether they hear {short(peer)}"
            case Tell():
                pass
            case _:
                assert_never(effect)
