"""Whom do we dial next, and when?

A pure core: it hears which peers are known, connected and lost, and says what to dial. It dials all of a
peer's endpoints at once, wants a connection to every known peer up to `target_degree`, and never gives up:
the pause between attempts doubles up to `RECENT_CAP_S` for a peer seen lately (or while we are alone), up
to `SEEN_CAP_S` for one seen at all, up to `STRANGE_CAP_S` for one never seen. Half of each pause is jitter,
so that nodes that lost each other at the same moment don't all dial at the same moment again.

Beyond the degree a peer is dialled that somebody wants to talk to (`Wanted`): a vote, or a session for
packets.

A peer that can't be dialled for `RELAY_AFTER_S` is reached through another member, if any is connected
directly (`Relay`); it is dialled on meanwhile, every `UPGRADE_CAP_S`: a connection of our own is better.

A bootstrap address without an id is a target of its own: whoever answers there is its peer, until that peer
is gone and somebody else may answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, assert_never

from p2p_network.core.ids import PeerId, short
from p2p_network.core.machine import Decision
from p2p_network.host.addresses import MAX_ADDRESSES_PER_PEER, Endpoint

FIRST_PAUSE_S: Final = 0.5
RECENT_CAP_S: Final = 5.0
SEEN_CAP_S: Final = 10.0
"""However long a partition was, its end is noticed within seconds."""
STRANGE_CAP_S: Final = 60.0
RECENT_S: Final = 600.0
SELF_PAUSE_S: Final = 600.0
STABLE_S: Final = 10.0
"""A connection that ends sooner counts as a failed attempt, so that two nodes that can't agree don't spin."""
WANTED_S: Final = 60.0
RELAY_AFTER_S: Final = 4.0
RELAY_CAP_S: Final = 60.0
UPGRADE_CAP_S: Final = 10.0
MAX_PEERS: Final = 4096
MAX_DIALLING: Final = 16
HEARSAY: Final = frozenset({"dht", "mdns", "public-dht", "rendezvous"})
"""Sources that say of others where they are: such addresses never displace what a peer said itself."""

Target = PeerId | Endpoint


@dataclass(frozen=True, slots=True)
class Learned:
    """Somebody told us where a peer can be dialled. `source`: bootstrap, mdns, dht, ledger, disk, hello."""

    peer: PeerId
    endpoints: tuple[Endpoint, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Connected:
    """A first connection with a peer exists, whoever dialled; or it is `relayed` now, or is no more."""

    peer: PeerId
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """The last connection with a peer ended."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class DialEnded:
    """An attempt is over. `reached`: who answered, None if nobody did (or somebody else than expected)."""

    target: Target
    reached: PeerId | None


@dataclass(frozen=True, slots=True)
class RelayEnded:
    """An attempt to reach a peer through another member is over."""

    peer: PeerId
    reached: bool


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A peer is a member no more: it is not to be dialled until it is learned again."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Wanted:
    """Somebody here wants to talk to a peer: for `WANTED_S` it is dialled whatever the degree."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Event = Learned | Connected | Lost | DialEnded | RelayEnded | Forgotten | Wanted | Tick


@dataclass(frozen=True, slots=True)
class Dial:
    """Dial all endpoints at once; the first handshake wins. `target`: an id means only that peer."""

    target: Target
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Relay:
    """Reach a peer through another member."""

    target: PeerId


Effect = Dial | Relay


@dataclass(slots=True)
class _State:
    next_at: float
    endpoints: dict[Endpoint, bool] = field(default_factory=dict)  # oldest first; whether it is hearsay
    dialling: bool = False
    failures: int = 0
    connected_at: float | None = None
    seen_at: float | None = None
    relayed: bool = False
    unreached_since: float | None = None  # the first attempt to dial it, since it was connected directly
    relaying: bool = False
    relay_at: float = 0.0
    relay_failures: int = 0


def pause_s(failures: int, *, recent: bool, jitter: float, cap_s: float | None = None) -> float:
    """Seconds to wait after the n-th failure in a row. `jitter`: 0 to 1, for half to all of it."""
    cap = cap_s or (RECENT_CAP_S if recent else STRANGE_CAP_S)
    return min(cap, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16)) * (0.5 + 0.5 * jitter)


class Dialer:
    """The decision core. `jitter` draws from [0, 1); `anonymous`: bootstrap endpoints without an id."""

    def __init__(
        self,
        self_id: PeerId,
        anonymous: Iterable[Endpoint],
        *,
        jitter: Callable[[], float],
        target_degree: int = 32,
    ) -> None:
        self._self_id = self_id
        self._jitter = jitter
        self._target_degree = target_degree
        self._peers: dict[PeerId, _State] = {}
        self._anonymous: dict[Endpoint, _State] = {
            endpoint: _State(0.0, {endpoint: False}) for endpoint in anonymous
        }
        self._whose: dict[Endpoint, PeerId] = {}
        self._direct: set[PeerId] = set()
        self._through: set[PeerId] = set()
        self._wanted: dict[PeerId, float] = {}  # until when

    def known(self) -> Mapping[PeerId, tuple[Endpoint, ...]]:
        """Every peer with an endpoint, and its endpoints, latest learned first."""
        return {p: tuple(reversed(s.endpoints)) for p, s in self._peers.items() if s.endpoints}

    def step(self, now: float, event: Event) -> Decision[Effect]:
        """Decide on one event. `now`: monotonic seconds."""
        match event:
            case Learned():
                reason = self._learned(now, event)
            case Connected():
                reason = self._connected(now, event)
            case Lost(peer):
                reason = self._lost(now, peer)
            case DialEnded():
                reason = self._ended(now, event)
            case RelayEnded(peer, reached):
                reason = self._relay_ended(now, peer, reached)
            case Forgotten(peer):
                reason = self._forget(peer)
            case Wanted(peer):
                if peer in self._peers:
                    self._wanted[peer] = now + WANTED_S
                reason = ""
            case Tick():
                reason = ""
            case _:
                assert_never(event)
        self._wanted = {peer: until for peer, until in self._wanted.items() if now < until}
        return Decision((*self._due(now), *self._due_relays(now)), reason)

    def wake_at(self) -> float | None:
        """When the next attempt is due; None while nothing can be dialled."""
        room = self._room()
        moments = [state.next_at for _, state in self._waiting()] if room > 0 else []
        if room <= 0 < self._room_to_dial():
            moments = [state.next_at for target, state in self._waiting() if target in self._wanted]
        if self._room_to_upgrade() > 0:
            moments += [state.next_at for _, state in self._relayed()]
        if room > 0 and self._direct:
            moments += [_relay_due(state) for _, state in self._unreached()]
        return min(moments, default=None)

    def _connected(self, now: float, event: Connected) -> str:
        state = self._peer(now, event.peer)
        if state is None:
            return ""
        was_relayed = state.relayed
        self._note_route(event.peer, event.relayed)
        if state.connected_at is None or not event.relayed:
            state.connected_at = now
        state.seen_at, state.relayed = now, event.relayed
        if not event.relayed:
            state.unreached_since, state.relay_failures = None, 0
            return f"peer {short(event.peer)} is reached directly again" if was_relayed else ""
        state.next_at = max(state.next_at, now + FIRST_PAUSE_S)
        return f"peer {short(event.peer)} is reached through a relay; it is dialled on"

    def _note_route(self, peer: PeerId, relayed: bool | None) -> None:
        for group, member in ((self._direct, relayed is False), (self._through, relayed is True)):
            (group.add if member else group.discard)(peer)

    def _relay_ended(self, now: float, peer: PeerId, reached: bool) -> str:
        state = self._peers.get(peer)
        if state is None:
            return ""
        state.relaying = False
        if not reached:
            self._pause_relay(now, state)
        return ""

    def _pause_relay(self, now: float, state: _State) -> None:
        state.relay_failures += 1
        wait_s = pause_s(state.relay_failures, recent=True, jitter=self._jitter(), cap_s=RELAY_CAP_S)
        state.relay_at = now + wait_s

    def _learned(self, now: float, event: Learned) -> str:
        if event.peer == self._self_id or not event.endpoints:
            return ""
        state = self._peer(now, event.peer)
        if state is None:
            return ""
        new = [e for e in event.endpoints if e not in state.endpoints]
        is_hearsay = event.source in HEARSAY
        for endpoint in reversed(event.endpoints[:MAX_ADDRESSES_PER_PEER]):
            was_hearsay = state.endpoints.pop(endpoint, True)
            state.endpoints[endpoint] = is_hearsay and was_hearsay
        while len(state.endpoints) > MAX_ADDRESSES_PER_PEER:  # what others say of it goes first
            oldest = next((e for e, hearsay in state.endpoints.items() if hearsay), None)
            del state.endpoints[oldest or next(iter(state.endpoints))]
        if not new:
            return ""
        if state.connected_at is None or state.relayed:
            state.failures = 0
            state.next_at = min(state.next_at, now)
        return f"peer {short(event.peer)} may be at {new[0]}, says {event.source}"

    def _lost(self, now: float, peer: PeerId) -> str:
        state = self._peers.get(peer)
        if state is None or state.connected_at is None:
            return ""
        self._note_route(peer, None)
        lasted_s = now - state.connected_at
        if state.relayed:
            if lasted_s >= STABLE_S:
                state.relay_failures = 0
            self._pause_relay(now, state)
        state.connected_at, state.seen_at, state.relayed = None, now, False
        if lasted_s >= STABLE_S:
            state.failures = 0
            for endpoint, owner in self._whose.items():
                if owner == peer:
                    self._anonymous[endpoint].failures = 0
        self._pause(now, state)
        return f"peer {short(peer)} lost after {lasted_s:.0f} s; dialling again for ever"

    def _forget(self, peer: PeerId) -> str:
        state = self._peers.get(peer)
        if state is None:
            return ""
        if state.connected_at is None and not state.dialling:
            del self._peers[peer]
        else:  # still needed to hear how that ends; without endpoints it is not dialled again
            state.endpoints.clear()
        return f"peer {short(peer)} is a member no more; not dialled any longer"

    def _ended(self, now: float, event: DialEnded) -> str:
        state = (
            self._anonymous.get(event.target)
            if isinstance(event.target, Endpoint)
            else self._peers.get(event.target)
        )
        if state is None:
            return ""
        state.dialling = False
        if isinstance(event.target, Endpoint):
            if event.reached == self._self_id:
                state.next_at = now + SELF_PAUSE_S
                return f"{event.target} is this node itself"
            if event.reached is not None:
                self._whose[event.target] = event.reached
                self._pause(now, state)
                return self._learned(now, Learned(event.reached, (event.target,), "bootstrap"))
            self._whose.pop(event.target, None)
        if event.reached is None:
            self._pause(now, state)
        elif state.connected_at is None:
            # reached, but the connection was already gone when we heard of it
            self._pause(now, state)
        return ""

    def _pause(self, now: float, state: _State) -> None:
        state.failures += 1
        alone = all(s.connected_at is None for s in self._peers.values())
        recent = alone or (state.seen_at is not None and now - state.seen_at < RECENT_S)
        cap_s = UPGRADE_CAP_S if state.relayed else None
        if cap_s is None and not recent and state.seen_at is not None:
            cap_s = SEEN_CAP_S
        state.next_at = now + pause_s(state.failures, recent=recent, jitter=self._jitter(), cap_s=cap_s)

    def _peer(self, now: float, peer: PeerId) -> _State | None:
        """The state of a peer, made if there is room; the table never grows past `MAX_PEERS`."""
        if peer == self._self_id:
            return None
        state = self._peers.get(peer)
        if state is None:
            if len(self._peers) >= MAX_PEERS and not self._forget_one():
                return None
            state = self._peers[peer] = _State(now)
        return state

    def _forget_one(self) -> bool:
        idle = [(s.failures, p) for p, s in self._peers.items() if s.seen_at is None and not s.dialling]
        if not idle:
            return False
        del self._peers[max(idle)[1]]
        return True

    def _waiting(self) -> Iterable[tuple[Target, _State]]:
        for peer, state in self._peers.items():
            if state.connected_at is None and not state.dialling and state.endpoints:
                yield peer, state
        for endpoint, state in self._anonymous.items():
            if not state.dialling and not self._occupied(endpoint):
                yield endpoint, state

    def _relayed(self) -> Iterable[tuple[Target, _State]]:
        """Those that a connection of our own would serve better."""
        for peer in sorted(self._through):
            state = self._peers[peer]
            if not state.dialling and state.endpoints:
                yield peer, state

    def _unreached(self) -> Iterable[tuple[PeerId, _State]]:
        """Those that only another member may lead to, if there is one."""
        for peer, state in self._peers.items():
            if state.unreached_since is None or not state.failures:
                continue
            if state.connected_at is None and not state.relaying and state.endpoints:
                yield peer, state

    def _room_to_upgrade(self) -> int:
        return self._room_to_dial() if self._through else 0

    def _room_to_dial(self) -> int:
        return MAX_DIALLING - sum(s.dialling for s in (*self._peers.values(), *self._anonymous.values()))

    def _occupied(self, endpoint: Endpoint) -> bool:
        """Whether a connected peer is known to live at a bootstrap endpoint."""
        owner = self._peers.get(self._whose.get(endpoint, self._self_id))
        if owner is not None and owner.connected_at is not None:
            return True
        return any(s.connected_at is not None and endpoint in s.endpoints for s in self._peers.values())

    def _room(self) -> int:
        states = [*self._peers.values(), *self._anonymous.values()]
        dialling = sum(s.dialling for s in states)
        connected = sum(s.connected_at is not None for s in states)
        return min(MAX_DIALLING - dialling, self._target_degree - connected - dialling)

    def _due(self, now: float) -> Iterable[Dial]:
        yield from self._begin(now, self._waiting(), self._room())
        if self._wanted:
            wanted = [(target, state) for target, state in self._waiting() if target in self._wanted]
            yield from self._begin(now, wanted, self._room_to_dial())
        yield from self._begin(now, self._relayed(), self._room_to_upgrade())

    def _begin(self, now: float, targets: Iterable[tuple[Target, _State]], room: int) -> Iterable[Dial]:
        if room <= 0:
            return
        due = sorted(
            ((state.next_at, target, state) for target, state in targets if state.next_at <= now),
            key=lambda item: item[0],
        )
        for _, target, state in due[:room]:
            state.dialling = True
            if state.unreached_since is None:
                state.unreached_since = now
            yield Dial(target, tuple(reversed(state.endpoints)))

    def _due_relays(self, now: float) -> Iterable[Relay]:
        room = self._room() if self._direct else 0
        if room <= 0:
            return
        due = [(_relay_due(state), peer, state) for peer, state in self._unreached()]
        for when, peer, state in sorted(due, key=lambda item: item[:2])[:room]:
            if when <= now:
                state.relaying = True
                yield Relay(peer)


def _relay_due(state: _State) -> float:
    assert state.unreached_since is not None
    return max(state.unreached_since + RELAY_AFTER_S, state.relay_at)
