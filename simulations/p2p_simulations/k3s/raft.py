"""Which writes are decided, by whom, and when may a member say so?

The pure core of the stand-in's etcd: Raft (Ongaro and Ousterhout 2014) with pre-vote, check-quorum,
read-index, learners, snapshots, and one change of membership at a time, which takes effect when it is
appended. It does no I/O and reads no clock: the owner (`etcd.py`, or a property test) executes the
effects in the order given. A `Save...` effect must be on the disk before any later effect starts; that
alone makes an acknowledged write survive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import assert_never

from p2p_network.core.machine import Decision
from p2p_simulations.k3s.raft_types import (
    Accepted,
    Append,
    AppendAnswer,
    Apply,
    Config,
    ConfigProposed,
    Effect,
    Entry,
    Event,
    Install,
    Member,
    Message,
    Proposed,
    ReadAsked,
    ReadConfirmed,
    Received,
    Refused,
    Restore,
    Saved,
    SaveEntries,
    SaveSnapshot,
    SaveVote,
    Send,
    Snapshot,
    StateSaved,
    Ticked,
    VoteAsked,
    VoteGiven,
)

__all__ = [
    "Accepted",
    "Append",
    "AppendAnswer",
    "Apply",
    "Config",
    "ConfigProposed",
    "Effect",
    "Entry",
    "Event",
    "Install",
    "Member",
    "Message",
    "Proposed",
    "Raft",
    "ReadAsked",
    "ReadConfirmed",
    "Received",
    "Refused",
    "Restore",
    "SaveEntries",
    "SaveSnapshot",
    "SaveVote",
    "Saved",
    "Send",
    "Snapshot",
    "StateSaved",
    "Ticked",
    "VoteAsked",
    "VoteGiven",
]

MAX_ENTRIES_PER_APPEND = 64

NO_LEADER = "etcdserver: no leader"
LEADER_CHANGED = "etcdserver: leader changed"
CHANGE_UNDER_WAY = "etcdserver: another membership change is under way"


@dataclass(slots=True)
class _Progress:
    """What a leader knows of one other member."""

    next: int
    match: int
    heard_at: float
    round: int = 0


class Raft:
    """One member's core.

    Args:
        self_id: this member's id.
        saved: what its disk holds.
        now: monotonic seconds.
        heartbeat_s, election_s: as etcd's `heartbeat-interval` and `election-timeout`.
        jitter: draws a number in [0, 1) for each election timeout.
    """

    def __init__(
        self,
        *,
        self_id: int,
        saved: Saved,
        now: float,
        heartbeat_s: float,
        election_s: float,
        jitter: Callable[[], float],
    ) -> None:
        assert 0 < heartbeat_s < election_s, "an election must outlast a heartbeat"
        self.self_id = self_id
        self.term = saved.term
        self.voted_for = saved.voted_for
        self.snapshot = saved.snapshot
        self.entries: list[Entry] = list(saved.entries)
        self.commit = self.snapshot.index
        self.role = "follower"
        self.leader: int | None = None
        self.config = self._config_in_log()
        self._heartbeat_s = heartbeat_s
        self._election_s = election_s
        self._jitter = jitter
        self._heard_leader_at = -election_s + now
        self._progress: dict[int, _Progress] = {}
        self._votes: set[int] = set()
        self._round = 0
        self._reads: list[tuple[int, int, int]] = []  # ask, round, index
        self._out: list[Effect] = []
        self._reason = ""
        self._wake_at = now
        if self.config.voters != {self_id}:  # the only voter need not wait for a leader
            self._rest(now)

    # ---- the machine

    def step(self, now: float, event: Event) -> Decision[Effect]:
        self._out = []
        self._reason = ""
        match event:
            case Ticked():
                self._tick(now)
            case Received(sender, message):
                self._receive(now, sender, message)
            case Proposed(ask, data):
                self._propose(now, ask, data=data)
            case ConfigProposed(ask, config):
                self._propose_config(now, ask, config)
            case ReadAsked(ask):
                self._read(now, ask)
            case StateSaved(index, data):
                self._compact(index, data)
            case _:
                assert_never(event)
        return Decision(tuple(self._out), self._reason)

    def wake_at(self) -> float | None:
        return self._wake_at

    # ---- what the owner may look at

    @property
    def last_index(self) -> int:
        return self.entries[-1].index if self.entries else self.snapshot.index

    @property
    def is_voter(self) -> bool:
        return self.self_id in self.config.voters

    def has_quorum(self) -> bool:
        """Is there a leader that a majority follows, as far as this member can know?"""
        return self.leader is not None

    def match_of(self, member: int) -> int:
        """Up to which index is `member` known to hold the log? 0 unless this member leads."""
        if member == self.self_id:
            return self.last_index
        progress = self._progress.get(member)
        return progress.match if self.role == "leader" and progress else 0

    def active(self, now: float, member: int) -> bool:
        """Did this leader hear from `member` within an election timeout?"""
        if member == self.self_id:
            return True
        progress = self._progress.get(member)
        return progress is not None and now - progress.heard_at < self._election_s

    # ---- the log

    def _term_at(self, index: int) -> int | None:
        if index == self.snapshot.index:
            return self.snapshot.term
        position = index - self.snapshot.index - 1
        return self.entries[position].term if 0 <= position < len(self.entries) else None

    def _from(self, index: int) -> list[Entry]:
        return self.entries[max(0, index - self.snapshot.index - 1) :]

    def _config_in_log(self) -> Config:
        configs = (e.config for e in reversed(self.entries) if e.config is not None)
        return next(configs, self.snapshot.config)

    def _save(self, entries: Iterable[Entry]) -> None:
        new = tuple(entries)
        assert new, "there is something to append"
        assert new[0].index > self.commit, "a decided entry is never replaced"
        del self.entries[new[0].index - self.snapshot.index - 1 :]
        self.entries.extend(new)
        self.config = self._config_in_log()
        self._out.append(SaveEntries(new))

    def _advance_to(self, index: int) -> None:
        if index > self.commit:
            decided = tuple(e for e in self._from(self.commit + 1) if e.index <= index)
            assert [e.index for e in decided[-1:]] == [index], "only entries held can be decided"
            self.commit = index
            self._out.append(Apply(decided))

    def _compact(self, index: int, data: str) -> None:
        assert index <= self.commit, "only decided entries can be dropped"
        if index <= self.snapshot.index:
            return
        term = self._term_at(index)
        assert term is not None
        configs = (e.config for e in reversed(self.entries) if e.config is not None and e.index <= index)
        config = next(configs, self.snapshot.config)
        self.entries = self._from(index + 1)
        self.snapshot = Snapshot(index, term, config, data)
        self._out.append(SaveSnapshot(self.snapshot, tuple(self.entries)))

    # ---- roles

    def _rest(self, now: float) -> None:
        self._wake_at = now + self._election_s * (1 + self._jitter())

    def _set_term(self, term: int, voted_for: int | None) -> None:
        self.term = term
        self.voted_for = voted_for
        self._out.append(SaveVote(term, voted_for))

    def _follow(self, now: float, leader: int | None, reason: str) -> None:
        if self.role == "leader":
            self._out.extend(Refused(ask, LEADER_CHANGED) for ask, _, _ in self._reads)
            self._reads.clear()
            self._progress.clear()
        if self.role != "follower" or self.leader != leader:
            self._reason = reason
        self.role = "follower"
        self.leader = leader
        self._rest(now)

    def _campaign(self, now: float, *, pre: bool) -> None:
        self.leader = None
        self.role = "precandidate" if pre else "candidate"
        if not pre:
            self._set_term(self.term + 1, self.self_id)
        self._votes = {self.self_id}
        self._rest(now)
        self._reason = f"asks for votes in term {self.term + pre}, since no leader was heard"
        last_term = self._term_at(self.last_index)
        assert last_term is not None
        for member in sorted(self.config.voters - {self.self_id}):
            self._out.append(Send(member, VoteAsked(self.term + pre, self.last_index, last_term, pre)))
        self._count_votes(now)

    def _count_votes(self, now: float) -> None:
        if not self._is_majority(self._votes):
            return
        if self.role == "precandidate":
            self._campaign(now, pre=False)
        elif self.role == "candidate":
            self.role = "leader"
            self.leader = self.self_id
            self._progress = {}
            self._reason = (
                f"leads term {self.term}, elected by a majority of {len(self.config.voters)} voters"
            )
            self._append_own(now, Entry(self.last_index + 1, self.term))

    def _is_majority(self, members: set[int]) -> bool:
        return 2 * len(members & self.config.voters) > len(self.config.voters)

    def _tick(self, now: float) -> None:
        if now < self._wake_at:
            return
        if self.role == "leader":
            heard = {m for m in self.config.ids if self.active(now, m)}
            if self._is_majority(heard):
                self._broadcast(now)
            else:
                self._follow(now, None, "stops leading, since a majority was silent for an election timeout")
        elif self.is_voter:
            self._campaign(now, pre=True)
        else:
            self._follow(now, None, "has no leader and no vote")

    # ---- messages

    def _receive(self, now: float, sender: int, message: Message) -> None:
        match message:
            case VoteAsked():
                self._answer_vote(now, sender, message)
            case VoteGiven(term, granted, pre):
                if term > self.term and not (pre and granted):
                    self._set_term(term, None)
                    self._follow(now, None, f"member {sender:x} is in the later term {term}")
                elif (
                    granted
                    and term == self.term + pre
                    and self.role == ("precandidate" if pre else "candidate")
                ):
                    self._votes.add(sender)
                    self._count_votes(now)
            case Append(term=term) | Install(term=term):
                if term < self.term:
                    self._out.append(Send(sender, AppendAnswer(self.term, False, 0, message.round)))
                    return
                if term > self.term:
                    self._set_term(term, None)
                assert self.role != "leader", "two leaders in one term"
                self._heard_leader_at = now
                self._follow(now, sender, f"follows member {sender:x} in term {term}")
                if isinstance(message, Append):
                    self._accept(sender, message)
                else:
                    self._install(sender, message)
            case AppendAnswer():
                self._learn(now, sender, message)
            case _:
                assert_never(message)

    def _answer_vote(self, now: float, sender: int, asked: VoteAsked) -> None:
        if self.leader is not None and now - self._heard_leader_at < self._election_s:
            return  # a leader lives: whoever does not hear it must not depose it
        if self.role == "leader":
            return
        if asked.term > self.term and not asked.pre:
            self._set_term(asked.term, None)
            self._follow(now, None, f"member {sender:x} asks for votes in the later term {asked.term}")
        last_term = self._term_at(self.last_index)
        assert last_term is not None
        current = (asked.last_term, asked.last_index) >= (last_term, self.last_index)
        if asked.pre:
            granted = current and asked.term > self.term
            self._out.append(Send(sender, VoteGiven(asked.term if granted else self.term, granted, True)))
            return
        granted = current and asked.term == self.term and self.voted_for in (None, sender)
        if granted:
            if self.voted_for is None:
                self._set_term(self.term, sender)
            self._rest(now)
        self._out.append(Send(sender, VoteGiven(self.term, granted, False)))

    def _accept(self, sender: int, m: Append) -> None:
        entries = tuple(e for e in m.entries if e.index > self.snapshot.index)
        held = self._term_at(m.prev_index) if m.prev_index >= self.snapshot.index else m.prev_term
        if held != m.prev_term:
            hint = min(self.last_index, m.prev_index - 1)
            self._out.append(Send(sender, AppendAnswer(self.term, False, hint, m.round)))
            return
        new = [e for e in entries if self._term_at(e.index) != e.term]
        if new:
            self._save(e for e in entries if e.index >= new[0].index)
        match = max(m.prev_index + len(m.entries), self.snapshot.index)
        self._advance_to(min(m.commit, match))
        self._out.append(Send(sender, AppendAnswer(self.term, True, match, m.round)))

    def _install(self, sender: int, m: Install) -> None:
        snapshot = m.snapshot
        if snapshot.index > self.commit:
            if self._term_at(snapshot.index) == snapshot.term:
                self._advance_to(snapshot.index)  # what is held beyond it was acknowledged: keep it
            else:
                self.snapshot = snapshot
                self.entries = []
                self.commit = snapshot.index
                self.config = snapshot.config
                self._out.append(SaveSnapshot(snapshot, ()))
                self._out.append(Restore(snapshot))
        self._out.append(Send(sender, AppendAnswer(self.term, True, snapshot.index, m.round)))

    # ---- leading

    def _append_own(self, now: float, entry: Entry) -> None:
        self._save((entry,))
        if not self._decide(now):
            self._broadcast(now)

    def _propose(self, now: float, ask: int, *, data: str = "", config: Config | None = None) -> None:
        if self.role != "leader":
            self._out.append(Refused(ask, NO_LEADER))
            return
        entry = Entry(self.last_index + 1, self.term, data, config)
        self._out.append(Accepted(ask, entry.index, entry.term))
        self._append_own(now, entry)

    def _propose_config(self, now: float, ask: int, config: Config) -> None:
        undecided = any(e.config is not None for e in self._from(self.commit + 1))
        if self.role == "leader" and (undecided or self._term_at(self.commit) != self.term):
            self._out.append(Refused(ask, CHANGE_UNDER_WAY))
            return
        assert len(config.voters ^ self.config.voters) <= 1, "one voter at a time"
        assert config.voters, "a cluster has a voter"
        self._propose(now, ask, config=config)

    def _read(self, now: float, ask: int) -> None:
        if self.role != "leader" or self._term_at(self.commit) != self.term:
            self._out.append(Refused(ask, NO_LEADER))
            return
        self._round += 1
        self._reads.append((ask, self._round, self.commit))
        self._broadcast(now)
        self._confirm_reads()

    def _confirm_reads(self) -> None:
        while self._reads:
            ask, wanted, index = self._reads[0]
            reached = {m for m, p in self._progress.items() if p.round >= wanted} | {self.self_id}
            if not self._is_majority(reached):
                return
            self._reads.pop(0)
            self._out.append(ReadConfirmed(ask, index))

    def _broadcast(self, now: float) -> None:
        self._wake_at = now + self._heartbeat_s
        for gone in self._progress.keys() - self.config.ids:
            del self._progress[gone]
        for member in sorted(self.config.ids - {self.self_id}):
            if member not in self._progress:
                self._progress[member] = _Progress(self.last_index + 1, 0, now)
            self._send_log(member)

    def _send_log(self, member: int) -> None:
        progress = self._progress[member]
        if progress.next <= self.snapshot.index:
            self._out.append(Send(member, Install(self.term, self.snapshot, self._round)))
            return
        prev_term = self._term_at(progress.next - 1)
        assert prev_term is not None, "a leader knows its own log"
        entries = tuple(self._from(progress.next)[:MAX_ENTRIES_PER_APPEND])
        append = Append(self.term, progress.next - 1, prev_term, entries, self.commit, self._round)
        self._out.append(Send(member, append))

    def _learn(self, now: float, sender: int, answer: AppendAnswer) -> None:
        if answer.term > self.term:
            self._set_term(answer.term, None)
            self._follow(now, None, f"member {sender:x} is in the later term {answer.term}")
            return
        progress = self._progress.get(sender)
        if self.role != "leader" or answer.term != self.term or progress is None:
            return
        progress.heard_at = now
        progress.round = max(progress.round, answer.round)
        if answer.ok:
            progress.match = max(progress.match, answer.match)
            behind = progress.next <= progress.match < self.last_index
            progress.next = max(progress.next, progress.match + 1)
            self._decide(now)
            if behind and self.role == "leader" and sender in self._progress:
                self._send_log(sender)
        elif answer.match + 1 < progress.next:
            progress.next = max(progress.match, answer.match) + 1
            self._send_log(sender)
        self._confirm_reads()

    def _decide(self, now: float) -> bool:
        """Decide what a majority holds. True if the others were told of it."""
        for entry in reversed(self._from(self.commit + 1)):
            if entry.term != self.term:
                return False
            holders = {m for m in self.config.ids if self.match_of(m) >= entry.index}
            if self._is_majority(holders):
                break
        else:
            return False
        self._advance_to(entry.index)
        self._broadcast(now)
        if self.self_id not in self.config.ids and self._config_decided():
            self._follow(now, None, "was removed from the cluster, as a majority decided")
        return True

    def _config_decided(self) -> bool:
        return all(e.config is None for e in self._from(self.commit + 1))
