"""With which peer do we compare ledgers next, and when?

A scheduler: it knows the open channels and what is under way, and answers with `StartSync(peer)`. At once
after a channel opens, or when a hint shows that a peer holds something else; otherwise one random peer
about every `interval_s`, with jitter, so that an idle mesh costs one digest exchange per node and interval.
A change here is hinted at once to a few random peers, who pass it on when it is news to them: it reaches
nearly everyone in a few hops, and the rounds find the rest.

A peer whose sessions fail, or that leave the ledgers as different as before (each refuses what the other
holds), is asked less and less often, down to once per `QUIET_S`, until something changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, assert_never

from p2p_network.core.ids import PeerId
from p2p_network.core.machine import Decision

FANOUT: Final = 4
CONCURRENT: Final = 2
FIRST_BACKOFF_S: Final = 1.0
QUIET_S: Final = 60.0


# Events
@dataclass(frozen=True, slots=True)
class ChannelOpened:
    """Requests can be sent to this peer now."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """They can't any more."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class LedgerChanged:
    """Something new is here. `source`: the peer it came from, None for ourselves."""

    source: PeerId | None = None


@dataclass(frozen=True, slots=True)
class HintReceived:
    """A peer told us its root. `differs`: from ours, after the hint's entries were taken in."""

    peer: PeerId
    differs: bool


@dataclass(frozen=True, slots=True)
class SyncFinished:
    """A session ended. `is_fruitless`: it failed, or the ledgers differed and nothing was exchanged."""

    peer: PeerId
    is_fruitless: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed (see `AntiEntropy.wake_at`)."""


Event = ChannelOpened | ChannelClosed | LedgerChanged | HintReceived | SyncFinished | Tick


# Effects
@dataclass(frozen=True, slots=True)
class StartSync:
    """Run one session with this peer, then report `SyncFinished`."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class SendHint:
    """Send the ledger's hint to these peers; no answer is expected."""

    peers: tuple[PeerId, ...]


Effect = StartSync | SendHint


@dataclass(slots=True)
class _Peer:
    due: float | None = None  # when a session is wanted, None for none
    not_before: float = 0.0
    backoff_s: float = 0.0
    is_syncing: bool = False


class AntiEntropy:
    """Decides whom to compare ledgers with. `random`: uniform in [0, 1)."""

    def __init__(self, *, random: Callable[[], float], interval_s: float = 5.0) -> None:
        self._random = random
        self._interval_s = interval_s
        self._peers: dict[PeerId, _Peer] = {}
        self._next_round: float | None = None

    def wake_at(self) -> float | None:
        """The next moment at which a session is due; None while nobody is connected or all is busy."""
        if not self._peers or self._busy() >= CONCURRENT:
            return None
        earliest = self._next_round
        for known in self._peers.values():
            if known.due is not None and not known.is_syncing:
                moment = max(known.due, known.not_before)
                if earliest is None or moment < earliest:
                    earliest = moment
        return earliest

    def step(self, now: float, event: Event) -> Decision[Effect]:
        """Decide on one event."""
        hint: tuple[Effect, ...] = ()
        match event:
            case ChannelOpened(peer):
                self._peers[peer] = _Peer(due=now)
            case ChannelClosed(peer):
                self._peers.pop(peer, None)
            case LedgerChanged(source):
                for known in self._peers.values():  # what was fruitless may bear fruit now
                    known.backoff_s = known.not_before = 0.0
                hint = self._hint(source)
            case HintReceived(peer, differs):
                if differs and peer in self._peers:
                    self._peers[peer].due = now
            case SyncFinished(peer, is_fruitless):
                self._finish(now, peer, is_fruitless)
            case Tick():
                pass
            case _:
                assert_never(event)
        started = self._start(now)
        reason = f"comparing ledgers with {', '.join(e.peer for e in started)}" if started else ""
        return Decision((*hint, *started), reason)

    def _finish(self, now: float, peer: PeerId, is_fruitless: bool) -> None:
        known = self._peers.get(peer)
        if known is None:
            return
        known.is_syncing = False
        if is_fruitless:
            known.backoff_s = min(QUIET_S, known.backoff_s * 2 or FIRST_BACKOFF_S)
            known.not_before = now + known.backoff_s
        else:
            known.backoff_s = known.not_before = 0.0

    def _start(self, now: float) -> tuple[StartSync, ...]:
        if not self._peers:
            self._next_round = None
            return ()
        if self._next_round is None:
            self._next_round = now + self._jittered()
        elif self._next_round <= now:
            self._next_round = now + self._jittered()
            idle = [p for p, known in self._peers.items() if not known.is_syncing and known.not_before <= now]
            if idle:
                self._peers[self._pick(idle)].due = now
        free = CONCURRENT - self._busy()
        started: list[StartSync] = []
        for peer, known in self._peers.items():
            if len(started) >= free:
                break
            is_due = known.due is not None and max(known.due, known.not_before) <= now
            if is_due and not known.is_syncing:
                known.due, known.is_syncing = None, True
                started.append(StartSync(peer))
        return tuple(started)

    def _hint(self, source: PeerId | None) -> tuple[SendHint, ...]:
        others = [peer for peer in self._peers if peer != source]
        chosen: list[PeerId] = []
        while others and len(chosen) < FANOUT:
            peer = self._pick(others)
            others.remove(peer)
            chosen.append(peer)
        return (SendHint(tuple(chosen)),) if chosen else ()

    def _busy(self) -> int:
        return sum(known.is_syncing for known in self._peers.values())

    def _pick(self, peers: list[PeerId]) -> PeerId:
        return peers[int(self._random() * len(peers))]

    def _jittered(self) -> float:
        return self._interval_s * (0.75 + self._random() / 2)
