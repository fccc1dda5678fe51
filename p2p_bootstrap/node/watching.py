"""Who is there, when our own channels do not say?

Drives `p2p_network.detector`: hears of channels and members from `Replication`, asks other members for the
signed word of one that is not heard, carries such questions on for others, passes suspicions and refutations
on, and reports who is there to the membership machine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, assert_never

from p2p_bootstrap.node.runner import Runner
from p2p_bootstrap.node.runtime import Runtime, TaskGroup
from p2p_network import detector, liveness, membership, wire
from p2p_network.core import log
from p2p_network.core.errors import MeshError, RemoteViolation
from p2p_network.core.ids import PeerId
from p2p_network.identity import Identity

if TYPE_CHECKING:
    from p2p_bootstrap.node.ports import Mesh

logger = log.get(__name__)

PING_S: Final = detector.ANSWER_S / 2


class Watching:
    """The failure detector of one node.

    Args:
        host: the mesh; `serve` is called on it here, so before it runs.
        report: takes what the membership machine has to know.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        identity: Identity,
        mesh_id: str,
        host: Mesh,
        report: Callable[[membership.Event], Awaitable[object]],
    ) -> None:
        self._self_id = identity.peer_id
        self._host = host
        self._report = report
        self._tasks: TaskGroup | None = None
        self._detector = detector.Detector(
            identity.peer_id,
            random=runtime.random,
            vouch=lambda incarnation, nonce: liveness.vouch(identity, mesh_id, incarnation, nonce),
            is_genuine=lambda alive: liveness.is_genuine(alive, mesh_id),
        )
        self._runner = Runner(
            runtime, "mesh.detector", self._detector, self._carry_out, detector.Tick, quiet=True
        )
        host.serve(liveness.ASK_METHOD, self._answer_ask)
        host.serve(liveness.PING_METHOD, self._answer_ping)
        host.serve(liveness.TELL_METHOD, self._take_word)

    async def feed(self, event: detector.Event) -> None:
        """A channel opened or closed, or the members changed."""
        await self._runner.feed(event)

    async def run(self, tasks: TaskGroup) -> None:
        """Watch until cancelled; questions under way are tasks of this group."""
        self._tasks = tasks
        await self._runner.run()

    async def _carry_out(self, effect: detector.Effect) -> None:
        match effect:
            case detector.Present(peer, how, channel):
                heard = membership.PeerConnected(peer) if channel else membership.PeerHeard(peer, how)
                await self._report(heard)
            case detector.Absent(peer, why):
                await self._report(membership.PeerLost(peer, why))
            case detector.AskAbout(peer, helpers, nonce):
                if (tasks := self._tasks) is not None:  # else the answers are overdue in a moment
                    for helper in helpers:
                        tasks.start_soon(self._ask, peer, helper, nonce)
            case detector.Tell(peers, word):
                payload = wire.encode(word)
                for peer in peers:
                    self._host.notify(peer, liveness.TELL_METHOD, payload)
            case _:
                assert_never(effect)

    async def _ask(self, peer: PeerId, helper: PeerId, nonce: bytes) -> None:
        """One helper. That it could not be asked is as good as that it hears nothing."""
        alive: liveness.Alive | None = None
        try:
            question = wire.encode(liveness.Ask(peer, nonce))
            raw = await self._host.request(helper, liveness.ASK_METHOD, question, timeout_s=detector.ANSWER_S)
            alive = liveness.decode_alive(raw) if raw else None
        except (MeshError, ValueError):
            pass
        await self._runner.feed(detector.Answered(peer, helper, alive))

    # ------------------------------------------------------------ what others ask

    async def _answer_ask(self, peer: PeerId, payload: bytes) -> bytes:
        """Pass the nonce on, and the word back; b"" if we don't hear that member."""
        try:
            ask = liveness.decode_ask(payload)
        except ValueError as exc:
            raise RemoteViolation(f"alive.ask: {exc}", peer=peer) from exc
        target = PeerId(ask.peer)
        if target not in self._host.connected():
            return b""
        try:
            raw = await self._host.request(target, liveness.PING_METHOD, ask.nonce, timeout_s=PING_S)
        except MeshError:
            return b""
        return raw if len(raw) <= liveness.MAX_WORD_BYTES else b""

    async def _answer_ping(self, peer: PeerId, payload: bytes) -> bytes:
        if len(payload) != liveness.NONCE_BYTES:
            raise RemoteViolation(f"alive.ping: a nonce of {len(payload)} bytes", peer=peer)
        return wire.encode(self._detector.word(payload))

    async def _take_word(self, peer: PeerId, payload: bytes) -> bytes:
        try:
            word = liveness.decode_word(payload)
        except ValueError as exc:
            raise RemoteViolation(f"alive.tell: {exc}", peer=peer) from exc
        await self._runner.feed(detector.Told(peer, word))
        return b""
