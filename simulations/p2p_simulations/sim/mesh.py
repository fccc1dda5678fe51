"""How do simulated agents talk? The twin of `MeshHost`, over the simulated network.

Requests with an answer or a timeout, notes without; peers that come up are found by themselves (who is
here is not what this world tests), and are lost after `SILENCE_S` without a heartbeat, or at once when the
other end says that it does not know the connection. A connection needs both directions.

Two that can't dial each other for a while (NAT, a cut between them alone) meet through a third that both have
a connection with: production's `host.relay` says who may carry and who is asked first, `host.dialer` when. A
circuit ends with either leg, and the channel moves to a connection of its own as soon as there can be one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2p_network import wire
from p2p_network.admission import handshake
from p2p_network.core.errors import PeerUnreachable, RemoteViolation
from p2p_network.core.ids import PeerId
from p2p_network.host import relay
from p2p_network.host.dialer import RELAY_AFTER_S
from p2p_network.host.presence import PeerDown, PeerUp
from p2p_simulations.world.tasks import Channel, Future, Tasks

if TYPE_CHECKING:
    from p2p_simulations.sim.agent import SimAgent
    from p2p_simulations.sim.machine import SimMachine

SILENCE_S = 5.0
BEAT_S = 1.0
_DIAL = 0.7  # a dial succeeds within a beat with this probability
_FRAME_BYTES = 64  # of headers, for the count of bytes

Handler = Callable[[PeerId, bytes], Awaitable[bytes]]


@dataclass(slots=True)
class _Link:
    life: int  # of the other end's agent
    heard_at: float
    via: SimAgent | None = None  # whose agent carries it


@dataclass(frozen=True, slots=True)
class _Failure:
    text: str


class SimHost:
    """The mesh as one agent sees it. `others`: all machines of the world but this one."""

    def __init__(
        self, agent: SimAgent, machine: SimMachine, tasks: Tasks, others: Callable[[], list[SimMachine]]
    ) -> None:
        self.agent, self.machine, self.life = agent, machine, agent.life
        self.refused: Counter[str] = Counter()
        self._tasks, self._others = tasks, others
        self._network, self._engine = machine.world.network, machine.world.engine
        self.events: Channel[PeerUp | PeerDown] = Channel(tasks)
        self._links: dict[PeerId, _Link] = {}
        self._unreached: dict[PeerId, float] = {}  # since when
        self.carriage = relay.Carriage(machine.peer)
        self._handlers: dict[str, Handler] = {}
        self._pending: dict[int, tuple[PeerId, Future[bytes | _Failure]]] = {}
        self._number = 0

    def serve(self, method: str, handler: Handler) -> None:
        """Answer requests of this name."""
        self._handlers[method] = handler

    def end(self) -> None:
        """The agent is dead: so are its connections."""
        for peer, link in self._links.items():
            self._hang_up(peer, link)
        self._links.clear()

    def under_way(self) -> tuple[object, ...]:
        """What is remembered of requests and peers."""
        return self._pending, self._unreached, list(self._links)

    def connected(self) -> frozenset[PeerId]:
        """Peers with a live channel."""
        return frozenset(self._links)

    def addresses(self) -> tuple[str, ...]:
        """None: nobody dials here."""
        return ()

    def learn(self, peer: PeerId, addresses: Sequence[str], source: str) -> None:
        """Not needed: peers are found by themselves."""

    def expel(self, peer: PeerId, reason: str) -> None:
        """A peer is a member no more: the connection ends."""
        if peer in self._links:
            self._lose(peer, reason)

    def _meets(self, other: SimAgent) -> bool:
        """What `host.gate` does: each side shows the other its claim, before anything is said."""
        claim = handshake.decode_claim(other.admission.claim(self.machine.peer))
        cause = self.agent.admission.judge(other.peer, claim)
        if cause:
            self.refused[cause] += 1
        return not cause

    async def run(self) -> None:
        """Beat, dial and notice silence, for ever."""
        chance = self._engine.random
        await self._tasks.sleep(chance.uniform(0.05, BEAT_S))
        while True:
            others = self._others()
            for other in others:
                self._look_at(other)
            there = {other.peer for other in others}
            for peer in sorted(self._links.keys() - there):  # imaged anew since
                self._lose(peer, "connection reset")
            for peer in sorted(self._unreached.keys() - there):
                del self._unreached[peer]
            await self._tasks.sleep(BEAT_S * chance.uniform(0.9, 1.1))

    def _look_at(self, other: SimMachine) -> None:
        now, peer = self._engine.now, other.peer
        link, agent = self._links.get(peer), other.agent
        heard = self._hears(self.machine, other) and agent is not None
        if link is not None and link.via is not None:
            if heard:  # a connection of their own is better
                self._hang_up(peer, link)
                link.via = None
            else:
                heard = self._leads(link.via, other) and self._hears(self.machine, link.via.machine)
        if link is None:
            if heard and agent is not None:
                self._unreached.pop(peer, None)
                self._open(agent, None)
            elif agent is not None:
                self._detour(agent, other)
        elif heard and agent is not None and agent.life == link.life:
            link.heard_at = now
        elif heard:
            self._lose(peer, "connection reset")
        elif now - link.heard_at >= SILENCE_S:
            self._lose(peer, f"silent for {SILENCE_S:.0f} s")

    def _hears(self, one: SimMachine, other: SimMachine) -> bool:
        """Whether a heartbeat gets through directly, this time."""
        agent, chance = other.agent, self._engine.random
        return (
            agent is not None
            and agent.host is not None
            and not other.is_frozen
            and self._network.linked(one.name, other.name)
            and chance.random() >= self._network.loss(one.name, other.name)
        )

    def _open(self, agent: SimAgent, via: SimAgent | None) -> None:
        if agent.admission.trust.is_revoked(self.machine.peer):
            return  # its gate lets nobody in who was put out
        if self._engine.random.random() < _DIAL and self._meets(agent):
            self._links[agent.peer] = _Link(agent.life, self._engine.now, via)
            if via is not None:
                via.host.carriage.enter(self.machine.peer, agent.peer)
                self.machine.world.note(
                    self.machine.name, f"reaches {agent.machine.name} through {via.machine.name}"
                )
            self.events.send(PeerUp(agent.peer, "", False))

    # ------------------------------------------------------------ circuits

    def _detour(self, agent: SimAgent, other: SimMachine) -> None:
        """It can't be dialled: after a while, through another member."""
        since = self._unreached.setdefault(other.peer, self._engine.now)
        if not self.machine.world.plan.relays or self._engine.now - since < RELAY_AFTER_S:
            return
        around = {m.peer: m.agent for m in self._others() if m.agent is not None and m is not other}
        candidates = [
            relay.Candidate(peer, None, relay.Sight(self._leads(carrier, other)))
            for peer, carrier in around.items()
            if self.is_direct(peer) and not carrier.machine.is_frozen
        ]
        for peer in relay.ranked(candidates):
            carrier = around[peer]
            sees = carrier.host.is_direct(other.peer)
            target, asks = other.peer, self.machine.peer
            if not carrier.host.carriage.refusal(asks, target, asked_directly=True, sees_target=sees):
                self._open(agent, carrier)
                return

    def is_direct(self, peer: PeerId) -> bool:
        """Whether there is a channel on a connection of our own."""
        link = self._links.get(peer)
        return link is not None and link.via is None

    def _leads(self, carrier: SimAgent, other: SimMachine) -> bool:
        """Whether this agent, wherever it runs, carries to `other` now."""
        machine = carrier.machine
        return (
            machine.agent is carrier
            and not machine.is_frozen
            and not other.is_frozen
            and self._network.linked(self.machine.name, machine.name)
            and self._network.linked(machine.name, other.name)
        )

    def leads_to(self, other: SimMachine) -> bool:
        """Whether there is a circuit to it that carries: packets of the VPN go that way too."""
        link = self._links.get(other.peer)
        return (
            link is not None
            and link.via is not None
            and other.agent is not None
            and other.agent.life == link.life
            and self._leads(link.via, other)
        )

    def _hang_up(self, peer: PeerId, link: _Link) -> None:
        if link.via is not None:
            link.via.host.carriage.leave(self.machine.peer, peer)

    def _lose(self, peer: PeerId, reason: str) -> None:
        self._hang_up(peer, self._links.pop(peer))
        for whom, future in [*self._pending.values()]:
            if whom == peer:
                future.set(_Failure(reason))
        self.events.send(PeerDown(peer, reason))

    def _carry(
        self,
        source: SimMachine,
        target: SimMachine,
        via: SimAgent | None,
        size: int,
        arrive: Callable[[], None],
    ) -> None:
        """Send over the network, one leg or two."""
        if via is None:
            self._network.send(source.name, target.name, size, arrive)
            return
        carrier = via.machine

        def onward() -> None:
            if carrier.agent is via and not carrier.is_frozen:
                self._network.send(carrier.name, target.name, size, arrive)

        self._network.send(source.name, carrier.name, size, onward)

    # ------------------------------------------------------------ requests

    async def request(self, peer: PeerId, method: str, payload: bytes, *, timeout_s: float = 5.0) -> bytes:
        """Ask and wait for the answer. Raises PeerUnreachable or RemoteViolation."""
        future: Future[bytes | _Failure] = Future()
        self._number += 1
        number = self._number
        self._pending[number] = (peer, future)
        if not self._send(peer, method, payload, future.set):
            future.set(_Failure("not connected"))
        self._engine.after(timeout_s, lambda: future.set(_Failure(f"no answer in {timeout_s:.0f} s")))
        answer = await future
        del self._pending[number]
        if isinstance(answer, _Failure):
            if answer.text.startswith("violation: "):
                raise RemoteViolation(answer.text.removeprefix("violation: "), peer=peer)
            raise PeerUnreachable(f"peer {peer}: {answer.text}")
        return answer

    def notify(self, peer: PeerId, method: str, payload: bytes) -> bool:
        """Say something without waiting; False if there is no channel."""
        return self._send(peer, method, payload, None)

    def _send(
        self,
        peer: PeerId,
        method: str,
        payload: bytes,
        answered: Callable[[bytes | _Failure], None] | None,
    ) -> bool:
        link, target = self._links.get(peer), self.machine.world.machine_of(peer)
        if link is None or target is None:
            return False
        assert len(payload) <= wire.MAX_FRAME_BYTES, f"a {method} frame of {len(payload)} bytes"
        life, via, recorder = link.life, link.via, self.machine.world.recorder
        self.machine.world.count_message(self.machine.name, len(payload) + _FRAME_BYTES)
        if recorder is not None:
            recorder.sent(self._engine.now, len(payload) + _FRAME_BYTES)
            recorder.asked(self._engine.now, self.machine.name, target.name, method, payload)

        def arrive() -> None:
            agent = target.agent
            if agent is not None and agent.life == life and agent.host is not None and target.peer == peer:
                agent.host.take(self.machine, via, method, payload, answered)

        self._carry(self.machine, target, via, len(payload) + _FRAME_BYTES, arrive)
        return True

    def take(
        self,
        source: SimMachine,
        via: SimAgent | None,
        method: str,
        payload: bytes,
        answered: Callable[[bytes | _Failure], None] | None,
    ) -> None:
        """A request has arrived."""
        peer = source.peer
        if self.agent.admission.trust.is_revoked(peer):
            return  # this end has closed the connection
        lag_s = self.machine.lag_s()
        self._tasks.call(
            lambda: self._tasks.start(self._serve(source, peer, via, method, payload, answered)), lag_s
        )

    async def _serve(
        self,
        source: SimMachine,
        peer: PeerId,
        via: SimAgent | None,
        method: str,
        payload: bytes,
        answered: Callable[[bytes | _Failure], None] | None,
    ) -> None:
        answer: bytes | _Failure
        try:
            answer = await self._handlers[method](peer, payload)
        except RemoteViolation as exc:
            answer = _Failure(f"violation: {exc.message}")
            self.machine.world.note(self.machine.name, f"refuses {method}: {exc.message}")
        if answered is not None:
            final, back = answer, answered
            size = _FRAME_BYTES + (len(final) if isinstance(final, bytes) else 0)
            assert size <= wire.MAX_FRAME_BYTES, f"a {method} answer of {size} bytes"
            self.machine.world.count_message(self.machine.name, size)
            self._carry(self.machine, source, via, size, lambda: back(final))
            if (recorder := self.machine.world.recorder) is not None:
                recorder.sent(self._engine.now, size)
                recorder.answered(self._engine.now, self.machine.name, source.name, method, final)
