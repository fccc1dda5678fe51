"""What can happen to the ledger, and what can it ask for? The events and effects of `core.Ledger`."""

from __future__ import annotations

from dataclasses import dataclass

from p2p_network.core.ids import PeerId
from p2p_network.ledger.entry import Entry
from p2p_network.ledger.policy import Refusal


# Events. `wall_s`: Unix seconds.
@dataclass(frozen=True, slots=True)
class Restored:
    """The store was read. Its entries were judged before they were stored."""

    entries: tuple[Entry, ...]
    wall_s: float


@dataclass(frozen=True, slots=True)
class LocalWrite:
    """This node wants to say something. Writing what is already there changes nothing."""

    key: str
    value: bytes
    wall_s: float


@dataclass(frozen=True, slots=True)
class LocalWrites:
    """This node wants to say several things, in this order; after a power cut all of them or none stand."""

    items: tuple[tuple[str, bytes], ...]
    wall_s: float


@dataclass(frozen=True, slots=True)
class LocalDelete:
    """This node takes a key back."""

    key: str
    wall_s: float


@dataclass(frozen=True, slots=True)
class EntriesReceived:
    """A peer delivered entries, its own or those of others."""

    peer: PeerId
    entries: tuple[Entry, ...]
    wall_s: float


@dataclass(frozen=True, slots=True)
class Expelled:
    """These peers are members no more: what they said of themselves is forgotten, and what they said of
    others since."""

    authors: frozenset[str]
    wall_s: float


@dataclass(frozen=True, slots=True)
class Disproved:
    """These entries proved themselves once and do so no longer: of keys that lost against others, say."""

    keys: tuple[str, ...]
    wall_s: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed (see `Ledger.wake_at`)."""

    wall_s: float


Event = Restored | LocalWrite | LocalWrites | LocalDelete | EntriesReceived | Expelled | Disproved | Tick


# Effects
@dataclass(frozen=True, slots=True)
class Store:
    """Make these entries durable, before any later effect."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Remove:
    """Forget these keys on disk; none of them is live."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """These keys have a new value, or none any more: look again."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hint:
    """Tell some peers (`anti_entropy`): this is our root now, and small news along with it."""

    root: bytes
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Contradiction:
    """An alarm: a quorum's certificates say two different things for one key. `kept` is in force."""

    key: str
    kept: Entry
    other: Entry


@dataclass(frozen=True, slots=True)
class Refused:
    """A peer delivered entries that were not stored: how many, and why. To be counted and logged.

    `Refusal.FORGED` means the peer itself misbehaves (every honest node checks before it relays); the
    other reasons can have innocent causes.
    """

    peer: PeerId
    why: tuple[tuple[Refusal, int], ...]


Effect = Store | Remove | Changed | Hint | Contradiction | Refused
