"""How soon is a dead node noticed, and how often is a living one taken for dead?

Lower detail than a whole world: of each node the production's failure detector and membership machine
(`p2p_network.detector`, `.membership`), and channels with heartbeats. They are TCP connections in a network
that loses packets: what is lost is sent again after 0.2 s, 0.4 s and so on, and what follows waits behind it.
Now and then a node stands still for a while, as loaded machines do. Signatures are left out. Beside it stands
the plain rule, which takes whoever loses its channel for a suspect.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final, assert_never

from p2p_network import detector, membership
from p2p_network.core.ids import PeerId
from p2p_network.detector import ANSWER_S, Detector
from p2p_network.liveness import Alive
from p2p_network.membership import Membership, MemberState
from p2p_network.records import NodeRecord
from p2p_simulations.sim.mesh import BEAT_S, SILENCE_S
from p2p_simulations.sim.scale import channels
from p2p_simulations.world.engine import Engine, Timer

MAX_WATCHED: Final = 500
KILL_EVERY_S: Final = 60.0
STALL_EVERY_S: Final = 20.0
STALL_S: Final = 4.0
WARM_UP_S: Final = 30.0
DOWN_S: Final = 40.0
SETTLE_S: Final = 15.0
_DIAL: Final = 0.7
FIRST_RETRY_S: Final = 0.2
LAST_RETRY_S: Final = 60.0
_RECORD: Final = NodeRecord("", "", "", (), (), "auto", 2, 1, "")


@dataclass(frozen=True, slots=True)
class Detection:
    """What was seen in a mesh of `nodes`. Seconds count from the moment of death.

    Attributes:
        deaths: how many nodes lost power (half of them) or were killed.
        suspected_s: median time until a survivor suspects it.
        first_dead_s, dead_s, last_dead_s: until the first, half of, and all survivors take it for dead.
        channels_lost: between living nodes, per node and hour: false alarms of the plain rule.
        suspected, taken_for_dead: living nodes taken for that, per node and hour.
        messages: of the detector, per node and minute.
    """

    nodes: int
    deaths: int
    suspected_s: float
    first_dead_s: float
    dead_s: float
    last_dead_s: float
    channels_lost: float
    suspected: float
    taken_for_dead: float
    messages: float


def watch(
    nodes: int,
    *,
    loss: float = 0.2,
    virtual_s: float = 600.0,
    seed: int = 1,
    stalls: bool = True,
    progress: Callable[[float], None] | None = None,
) -> Detection:
    """Watch a mesh for `virtual_s` virtual seconds, and kill a node every `KILL_EVERY_S`.

    Args:
        loss: the probability that a packet is lost.
        stalls: whether a node stands still for `STALL_S` every `STALL_EVERY_S`.
    """
    mesh = _Mesh(nodes, loss, seed, stalls=stalls)
    mesh.engine.run(virtual_s, after_each=lambda: progress(mesh.engine.now) if progress is not None else None)
    hours = nodes * (virtual_s - WARM_UP_S) / 3600
    deaths = [death for death in mesh.deaths if len(death.dead) == nodes - 1]
    if not deaths:
        raise ValueError(f"no death was seen by all within {virtual_s:.0f} virtual seconds")
    return Detection(
        nodes=nodes,
        deaths=len(mesh.deaths),
        suspected_s=median(s for death in deaths for s in death.suspected.values()),
        first_dead_s=median(min(death.dead.values()) for death in deaths),
        dead_s=median(s for death in deaths for s in death.dead.values()),
        last_dead_s=max(max(death.dead.values()) for death in deaths),
        channels_lost=mesh.channels_lost / hours,
        suspected=mesh.suspected / hours,
        taken_for_dead=mesh.taken_for_dead / hours,
        messages=mesh.messages / nodes / virtual_s * 60,
    )


class _Death:
    def __init__(self, at: float) -> None:
        self.at = at
        self.suspected: dict[PeerId, float] = {}
        self.dead: dict[PeerId, float] = {}


class _Node:
    """One node: both machines, and when each channel was heard last."""

    def __init__(self, name: PeerId, chance: random.Random) -> None:
        self.name = name
        self.chance = chance
        self.heard: dict[PeerId, float] = {}
        self.blocked: dict[PeerId, float] = {}  # until when packets to this peer wait for a lost one
        self.wanted: set[PeerId] = set()
        self.down = False
        self.stalled_until = 0.0
        self.timers: dict[str, Timer] = {}
        self.begin(0.0)

    def begin(self, now: float) -> None:
        """The agent starts."""
        self.began_at = now
        name = self.name
        self.detector = Detector(
            name,
            random=self.chance.random,
            vouch=lambda incarnation, nonce: Alive(name, incarnation, nonce, bytes(64)),
            is_genuine=lambda _: True,
        )
        self.membership = Membership(name, now)
        self.heard.clear()
        self.blocked.clear()


class _Mesh:
    """All nodes, and what goes between them."""

    def __init__(self, count: int, loss: float, seed: int, *, stalls: bool) -> None:
        self.engine = Engine(seed, keep_trace=False)
        self.deaths: list[_Death] = []
        self.channels_lost = self.suspected = self.taken_for_dead = self.messages = 0
        self._loss = loss
        self._dying: dict[PeerId, _Death] = {}
        chance = self.engine.random
        names = [PeerId(f"node-{number:05}") for number in range(count)]
        self._nodes = {name: _Node(name, chance) for name in names}
        for one, other in channels(names, chance):
            self._nodes[one].wanted.add(other)
            self._nodes[other].wanted.add(one)
        for node in self._nodes.values():
            self._join(node)
            self.engine.after(chance.uniform(0, BEAT_S), partial(self._beat, node))
        self.engine.after(WARM_UP_S, self._kill)
        if stalls:
            self.engine.after(WARM_UP_S, self._stall)

    def _join(self, node: _Node) -> None:
        others = frozenset(self._nodes.keys() - {node.name})
        records = dict.fromkeys(others, _RECORD)
        self._members(node, membership.RecordsChanged(records, {}, frozenset()))
        self._feed(node, detector.MembersKnown(others))

    # ------------------------------------------------------------ what happens to nodes

    def _kill(self) -> None:
        """One dies, by turns with its power and by `kill -9`, and is back after a while."""
        node = self.engine.random.choice([n for n in self._nodes.values() if not n.down])
        self._dying[node.name] = death = _Death(self.engine.now)
        self.deaths.append(death)
        node.down = True
        if len(self.deaths) % 2:
            for peer in sorted(node.heard):
                self._deliver_after(0.01, self._nodes[peer], partial(self._reset, name=node.name))
        for timer in node.timers.values():
            timer.cancel()
        node.timers.clear()
        self.engine.after(DOWN_S, partial(self._restart, node))
        self.engine.after(KILL_EVERY_S, self._kill)

    def _restart(self, node: _Node) -> None:
        del self._dying[node.name]
        node.down = False
        node.begin(self.engine.now)
        self._join(node)

    def _stall(self) -> None:
        node = self.engine.random.choice(list(self._nodes.values()))
        node.stalled_until = self.engine.now + STALL_S
        self.engine.after(STALL_EVERY_S, self._stall)

    # ------------------------------------------------------------ channels

    def _transit_s(self, node: _Node, peer: PeerId) -> float:
        """How long a message takes that is sent now, with what is sent again for it and before it."""
        now, chance = self.engine.now, self.engine.random
        delay_s, again_s = 0.001 + chance.expovariate(1 / 0.02), FIRST_RETRY_S
        while self._loss and chance.random() < self._loss:
            delay_s += again_s
            again_s = min(2 * again_s, LAST_RETRY_S)
        arrives_at = max(now, node.blocked.get(peer, 0.0)) + delay_s
        node.blocked[peer] = max(node.blocked.get(peer, 0.0), arrives_at)
        return arrives_at - now

    def _runs(self, node: _Node) -> bool:
        return not node.down and self.engine.now >= node.stalled_until

    def _beat(self, node: _Node) -> None:
        """Once a second: heartbeats, the end of what was silent, and a dial to whoever is missing."""
        now, chance = self.engine.now, self.engine.random
        self.engine.after(BEAT_S * chance.uniform(0.9, 1.1), partial(self._beat, node))
        if not self._runs(node):
            if not node.down:  # what came meanwhile is read first: see `Link.forgive`
                node.heard = dict.fromkeys(node.heard, now)
            return
        through = (1 - self._loss) * (
            1 - self._loss
        )  # (there and back; libm's power is not the same everywhere)
        for peer in sorted(node.wanted):
            other = self._nodes[peer]
            if peer not in node.heard:
                if self._runs(other) and chance.random() < _DIAL * through * through:
                    self._open(node, other)
                continue
            if now - node.heard[peer] > SILENCE_S:
                self._hang_up(node, peer, f"silent for {SILENCE_S:.0f} s")
            elif now >= node.blocked.get(peer, 0.0):
                self._deliver_after(
                    self._transit_s(node, peer), other, partial(self._note_beat, name=node.name)
                )

    def _note_beat(self, node: _Node, *, name: PeerId) -> None:
        """A heartbeat came. Of a channel that this side has given up, the other side hears now."""
        if name in node.heard:
            node.heard[name] = self.engine.now
        else:
            self._deliver_after(0.02, self._nodes[name], partial(self._reset, name=node.name))

    def _reset(self, node: _Node, *, name: PeerId) -> None:
        self._hang_up(node, name, "reset")

    def _open(self, node: _Node, other: _Node) -> None:
        for one, two in ((node, other.name), (other, node.name)):
            one.blocked.pop(two, None)
            if two not in one.heard:
                one.heard[two] = self.engine.now
                self._feed(one, detector.ChannelOpened(two))

    def _hang_up(self, node: _Node, peer: PeerId, why: str) -> None:
        if node.heard.pop(peer, None) is None or node.down:
            return
        if not self._nodes[peer].down and self.engine.now > WARM_UP_S:
            self.channels_lost += 1
        self._feed(node, detector.ChannelClosed(peer, why))

    # ------------------------------------------------------------ messages

    def _deliver_after(self, delay_s: float, node: _Node, act: Callable[[_Node], None]) -> None:
        self.engine.after(delay_s, lambda: self._deliver(node, lambda: act(node)))

    def _deliver(self, node: _Node, act: Callable[[], None]) -> None:
        """It arrived; a node that stands still looks at it later."""
        if node.down:
            return
        if self._runs(node):
            act()
        else:
            self.engine.at(node.stalled_until, lambda: self._deliver(node, act))

    def _to(self, node: _Node, peer: PeerId, act: Callable[[_Node], None]) -> None:
        """Over a channel, if there is one."""
        self.messages += 1
        if peer in node.heard:
            self._deliver_after(self._transit_s(node, peer), self._nodes[peer], act)

    def _ask(self, node: _Node, peer: PeerId, helper: PeerId, nonce: bytes) -> None:
        """Through a helper and back, four messages; what does not come in time, is no answer."""
        answered = [False]

        def come(alive: Alive | None) -> None:
            if not answered[0] and not node.down:
                answered[0] = True
                self._feed(node, detector.Answered(peer, helper, alive))

        def asked(carrier: _Node) -> None:
            if peer not in carrier.heard:
                self._to(carrier, node.name, lambda _: come(None))
                return
            self._to(carrier, peer, pinged)

        def pinged(target: _Node) -> None:
            word = target.detector.word(nonce)
            self._to(target, helper, lambda carrier: self._to(carrier, node.name, lambda _: come(word)))

        self._to(node, helper, asked)
        self.engine.after(ANSWER_S, lambda: come(None))

    # ------------------------------------------------------------ the machines

    def _feed(self, node: _Node, event: detector.Event) -> None:
        for effect in node.detector.step(self.engine.now, event).effects:
            match effect:
                case detector.Present(peer, how, channel):
                    heard = membership.PeerConnected(peer) if channel else membership.PeerHeard(peer, how)
                    self._members(node, heard)
                case detector.Absent(peer, why):
                    self._members(node, membership.PeerLost(peer, why))
                case detector.AskAbout(peer, helpers, nonce):
                    for helper in helpers:
                        self._ask(node, peer, helper, nonce)
                case detector.Tell(peers, word):
                    for peer in peers:
                        self._to(node, peer, partial(self._feed, event=detector.Told(node.name, word)))
                case _:
                    assert_never(effect)
        self._wake(node, "detector", node.detector.wake_at(), lambda: self._feed(node, detector.Tick()))

    def _members(self, node: _Node, event: membership.Event) -> None:
        for effect in node.membership.step(self.engine.now, event).effects:
            if isinstance(effect, membership.MemberChanged):
                self._note(node, effect.member.peer, effect.before, effect.member.state)
        self._wake(
            node, "membership", node.membership.wake_at(), lambda: self._members(node, membership.Tick())
        )

    def _wake(self, node: _Node, whose: str, at: float | None, act: Callable[[], None]) -> None:
        if (timer := node.timers.pop(whose, None)) is not None:
            timer.cancel()
        if at is not None and at < math.inf:
            node.timers[whose] = self.engine.at(at, lambda: self._deliver(node, act))

    def _note(self, node: _Node, peer: PeerId, before: MemberState | None, after: MemberState) -> None:
        now, death = self.engine.now, self._dying.get(peer)
        if death is not None:
            if after is MemberState.SUSPECT:
                death.suspected.setdefault(node.name, now - death.at)
            elif after is MemberState.DEAD:
                death.dead.setdefault(node.name, now - death.at)
        elif now > WARM_UP_S and not self._is_back_lately(node.name, peer):
            self.suspected += (before, after) == (MemberState.ALIVE, MemberState.SUSPECT)
            self.taken_for_dead += after is MemberState.DEAD

    def _is_back_lately(self, *names: PeerId) -> bool:
        """Whether one of them started lately: that it is missed at first is no false alarm."""
        return any(self.engine.now - self._nodes[name].began_at < SETTLE_S for name in names)
