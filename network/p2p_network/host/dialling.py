"""How does what the dialler's core decides come about?

`Dialling` feeds `dialer.Dialer` with what is learned, connected and lost, wakes it when it wants to be woken,
and carries its effects out: dial all addresses of a peer at once, or reach it through another member.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import trio

from p2p_network.core import log
from p2p_network.core.errors import MeshError
from p2p_network.core.ids import PeerId
from p2p_network.host import dialer
from p2p_network.host.addresses import Endpoint, endpoints_of, parse_endpoint
from p2p_network.host.connections import peer_of
from p2p_network.host.gate import Refused as NotAdmitted
from p2p_network.host.guards import MeshSwarm, SelfReached

logger = log.get(__name__)

MAX_WHY_CHARS: Final = 160


class Dialling:
    """One host's dialler at work.

    Args:
        self_id: this node.
        swarm: what dials.
        bootstrap: addresses to dial first (see `addresses`); raises MeshError on a malformed one.
        remembered: what `known` said before the last restart.
        may_dial: whether a peer may be dialled at all.
        refused: told of a connection that ended at the gate, and where.
    """

    def __init__(
        self,
        self_id: PeerId,
        swarm: MeshSwarm,
        bootstrap: Sequence[str],
        remembered: Mapping[PeerId, Sequence[str]],
        may_dial: Callable[[PeerId], bool],
        refused: Callable[[NotAdmitted, str], None],
    ) -> None:
        self._self_id = self_id
        self._swarm = swarm
        self._may_dial = may_dial
        self._refused = refused
        anonymous, first = _bootstrap_targets(bootstrap)
        self._dialer = dialer.Dialer(self_id, anonymous, jitter=random.random)
        self._moved = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._through: Callable[[PeerId, str], Awaitable[None]] | None = None
        self._undialled: dict[PeerId, str] = {}  # why, for those that were dialled in vain
        # learned before `start`: the core gets them then
        self._early: list[dialer.Learned] = first
        for peer, addresses in remembered.items():
            self._early.append(dialer.Learned(peer, endpoints_of(addresses), "disk"))

    def start(self, nursery: trio.Nursery, through: Callable[[PeerId, str], Awaitable[None]]) -> None:
        """Begin. `through`: reach a peer through another member, told why; raises MeshError."""
        self._nursery, self._through = nursery, through
        nursery.start_soon(self._drive)
        for event in self._early:
            self.decide(event)
        self._early.clear()

    def known(self) -> Mapping[PeerId, tuple[str, ...]]:
        """Every peer that was ever learned, and where it may be dialled."""
        return {peer: tuple(map(str, found)) for peer, found in self._dialer.known().items()}

    def learn(self, peer: PeerId, addresses: Sequence[str], source: str) -> None:
        """Where a peer may be dialled. Untrusted: what is no concrete address is passed over."""
        if not self._may_dial(peer):
            return
        event = dialer.Learned(peer, endpoints_of(addresses), source)
        if self._nursery is None:
            self._early.append(event)
        else:
            self.decide(event)

    def want(self, peer: PeerId) -> None:
        """Dial a peer although there are enough connections, if it may be dialled."""
        if self._nursery is not None and self._may_dial(peer):
            self.decide(dialer.Wanted(peer))

    def forget(self, peer: PeerId) -> None:
        """Forget where a peer was."""
        if self._nursery is None:
            self._early = [event for event in self._early if event.peer != peer]
        else:
            self.decide(dialer.Forgotten(peer))

    def settle(self, peer: PeerId) -> None:
        """A peer is reached directly, or gone: why it could not be dialled no longer matters."""
        self._undialled.pop(peer, None)

    def decide(self, event: dialer.Event) -> None:
        """Feed the core and carry out what it wants."""
        assert self._nursery is not None
        decision = self._dialer.step(trio.current_time(), event)
        for effect in decision.effects:
            if isinstance(effect, dialer.Relay):
                self._nursery.start_soon(self._dial_through, effect.target)
            else:
                self._nursery.start_soon(self._dial, effect)
        if decision.reason:
            log.event(logger, "host.dialer_decided", level=10, reason=decision.reason)
        self._moved.set()

    async def _drive(self) -> None:
        while True:
            self.decide(dialer.Tick())
            self._moved = trio.Event()
            wake_at = self._dialer.wake_at()
            with trio.move_on_at(trio.current_time() + 3600 if wake_at is None else wake_at):
                await self._moved.wait()

    async def _dial(self, effect: dialer.Dial) -> None:
        target = effect.target
        expected = None if isinstance(target, Endpoint) else target
        reached: PeerId | None = None
        try:
            conn = await self._swarm.reach(effect.endpoints, expected)
            reached = peer_of(conn)
        except SelfReached:
            reached = self._self_id
        except NotAdmitted as exc:
            self._refused(exc, str(target))
        except MeshError as exc:
            log.event(logger, "host.dial_failed", level=10, address=str(target), detail=str(exc))
            if expected is not None:
                self._undialled[expected] = f"it can't be dialled: {exc.message}"[:MAX_WHY_CHARS]
        self.decide(dialer.DialEnded(target, reached))

    async def _dial_through(self, target: PeerId) -> None:
        """Another member may lead to a peer that we can't dial."""
        assert self._through is not None
        reached = False
        why = self._undialled.get(target) or "it can't be dialled directly"
        try:
            await self._through(target, why)
            reached = True
        except NotAdmitted as exc:
            self._refused(exc, target)
        except MeshError as exc:
            log.event(logger, "host.relay_failed", level=10, peer=target, detail=str(exc))
        self.decide(dialer.RelayEnded(target, reached))


def _bootstrap_targets(texts: Sequence[str]) -> tuple[list[Endpoint], list[dialer.Learned]]:
    """Bootstrap addresses, split into those without an id and those with one."""
    anonymous: list[Endpoint] = []
    named: list[dialer.Learned] = []
    for text in texts:
        try:
            endpoint, peer = parse_endpoint(text)
        except ValueError as exc:
            raise MeshError(
                f"bootstrap address: {exc}", hint="write HOST:PORT or /ip4/HOST/tcp/PORT/p2p/ID"
            ) from exc
        if peer is None:
            anonymous.append(endpoint)
        else:
            named.append(dialer.Learned(peer, (endpoint,), "bootstrap"))
    return anonymous, named
