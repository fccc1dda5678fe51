"""What do the members of a cluster say, see and want done? The words of `raft.py`, without its decisions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """One member of the cluster. `name` is empty until it has started once; a learner has no vote."""

    id: int
    name: str
    peer_url: str
    client_url: str
    learner: bool


@dataclass(frozen=True, slots=True)
class Config:
    """Who belongs to the cluster, and who once did (a removed id never comes back)."""

    members: tuple[Member, ...] = ()
    removed: tuple[int, ...] = ()

    @property
    def voters(self) -> frozenset[int]:
        return frozenset(m.id for m in self.members if not m.learner)

    @property
    def ids(self) -> frozenset[int]:
        return frozenset(m.id for m in self.members)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log: a command (`data`, opaque here), or a change of membership (`config`)."""

    index: int
    term: int
    data: str = ""
    config: Config | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state machine after `index`, which makes all entries up to there dispensable."""

    index: int = 0
    term: int = 0
    config: Config = Config()
    data: str = ""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a member has on its disk."""

    term: int = 0
    voted_for: int | None = None
    snapshot: Snapshot = Snapshot()
    entries: tuple[Entry, ...] = ()


# ---- messages between members


@dataclass(frozen=True, slots=True)
class VoteAsked:
    term: int
    last_index: int
    last_term: int
    pre: bool


@dataclass(frozen=True, slots=True)
class VoteGiven:
    term: int
    granted: bool
    pre: bool


@dataclass(frozen=True, slots=True)
class Append:
    term: int
    prev_index: int
    prev_term: int
    entries: tuple[Entry, ...]
    commit: int
    round: int


@dataclass(frozen=True, slots=True)
class AppendAnswer:
    """`match`: the last index known to be equal if `ok`, else where to try next."""

    term: int
    ok: bool
    match: int
    round: int


@dataclass(frozen=True, slots=True)
class Install:
    term: int
    snapshot: Snapshot
    round: int


Message = VoteAsked | VoteGiven | Append | AppendAnswer | Install


# ---- events


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time may have passed `wake_at()`."""


@dataclass(frozen=True, slots=True)
class Received:
    sender: int
    message: Message


@dataclass(frozen=True, slots=True)
class Proposed:
    """A command to be decided. `ask` names it in `Accepted` or `Refused`."""

    ask: int
    data: str


@dataclass(frozen=True, slots=True)
class ConfigProposed:
    ask: int
    config: Config


@dataclass(frozen=True, slots=True)
class ReadAsked:
    """Up to which index must be applied for a linearizable read? Answered by `ReadConfirmed`."""

    ask: int


@dataclass(frozen=True, slots=True)
class StateSaved:
    """The owner made `data` of the state machine as it was after `index`."""

    index: int
    data: str


Event = Ticked | Received | Proposed | ConfigProposed | ReadAsked | StateSaved


# ---- effects


@dataclass(frozen=True, slots=True)
class SaveVote:
    term: int
    voted_for: int | None


@dataclass(frozen=True, slots=True)
class SaveEntries:
    """Append these; whatever the log held from the first one's index on is void."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class SaveSnapshot:
    """Replace the log by the snapshot and the entries after it."""

    snapshot: Snapshot
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Send:
    to: int
    message: Message


@dataclass(frozen=True, slots=True)
class Apply:
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Restore:
    """The state machine becomes that of the snapshot."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Accepted:
    """`ask` was appended at `index` in `term`; decided if that very entry is applied."""

    ask: int
    index: int
    term: int


@dataclass(frozen=True, slots=True)
class Refused:
    ask: int
    why: str


@dataclass(frozen=True, slots=True)
class ReadConfirmed:
    ask: int
    index: int


Effect = SaveVote | SaveEntries | SaveSnapshot | Send | Apply | Restore | Accepted | Refused | ReadConfirmed
