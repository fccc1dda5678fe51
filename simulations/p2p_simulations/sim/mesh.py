"""How do simulated agents talk? The twin of `MeshHost`, over the simulated network.

Requests with an answer or a timeout, notes without; peers that come up are found by themselves (who is
here is not what this world tests), and are lost after `SILENCE_S` without a heartbeat, or at once when the
other end says that it does not know the connection. A connection needs both directions.
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
        self._handlers: dict[str, Handler] = {}
        self._pending: dict[int, tuple[PeerId, Future[bytes | _Failure]]] = {}
        self._number = 0

    def serve(self, method: str, handler: Handler) -> None:
        """Answer requests of this name."""
        self._handlers[method] = handler

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
            for peer in sorted(self._links.keys() - {other.peer for other in others}):  # imaged anew since
                self._lose(peer, "connection reset")
            await self._tasks.sleep(BEAT_S * chance.uniform(0.9, 1.1))

    def _look_at(self, other: SimMachine) -> None:
        now, chance = self._engine.now, self._engine.random
        agent, peer = other.agent, other.peer
        heard = (
            agent is not None
            and agent.host is not None
            and not other.is_frozen
            and self._network.linked(self.machine.name, other.name)
            and chance.random() >= self._network.loss(self.machine.name, other.name)
        )
        link = self._links.get(peer)
        if link is None:
            if heard and agent is not None and chance.random() < _DIAL and self._meets(agent):
                self._links[peer] = _Link(agent.life, now)
                self.events.send(PeerUp(peer, "", False))
        elif heard and agent is not None and agent.life == link.life:
            link.heard_at = now
        elif heard:
            self._lose(peer, "connection reset")
        elif now - link.heard_at >= SILENCE_S:
            self._lose(peer, f"silent for {SILENCE_S:.0f} s")

    def _lose(self, peer: PeerId, reason: str) -> None:
        del self._links[peer]
        for whom, future in [*self._pending.values()]:
            if whom == peer:
                future.set(_Failure(reason))
        self.events.send(PeerDown(peer, reason))

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
        life, recorder = link.life, self.machine.world.recorder
        self.machine.world.count_message(self.machine.name)
        if recorder is not None:
            recorder.sent(self._engine.now, len(payload) + _FRAME_BYTES)
            recorder.asked(self._engine.now, self.machine.name, target.name, method, payload)

        def arrive() -> None:
            agent = target.agent
            if agent is not None and agent.life == life and agent.host is not None and target.peer == peer:
                agent.host.take(self.machine, method, payload, answered)

        self._network.send(self.machine.name, target.name, len(payload) + _FRAME_BYTES, arrive)
        return True

    def take(
        self,
        source: SimMachine,
        method: str,
        payload: bytes,
        answered: Callable[[bytes | _Failure], None] | None,
    ) -> None:
        """A request has arrived."""
        peer = source.peer
        lag_s = self.machine.lag_s()
        self._tasks.call(
            lambda: self._tasks.start(self._serve(source, peer, method, payload, answered)), lag_s
        )

    async def _serve(
        self,
        source: SimMachine,
        peer: PeerId,
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
            self.machine.world.count_message(self.machine.name)
            self._network.send(self.machine.name, source.name, size, lambda: back(final))
            if (recorder := self.machine.world.recorder) is not None:
                recorder.sent(self._engine.now, size)
                recorder.answered(self._engine.now, self.machine.name, source.name, method, final)
