"""How does a member lie, that has a key and a right to be here?

Within the trust rules: a member may say what it likes in its own name, and nothing in another's. It spreads
entries that it may not write, replays old ones of others, tells different nodes different things in its own
name, dates its own words back or ahead, and sends votes and answers that are not its own. None of that may
change what the others hold of anybody else, and in the end all must hold the same.

Not within the trust rules, and so not here: an acceptor that votes twice in one ballot (votes are Paxos, no
Byzantine agreement: a member's vote is believed), and a server that assigns roles as it likes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from p2p_network import wire
from p2p_network.core.clock import MAX_AHEAD_MS, Stamp
from p2p_network.identity import Identity
from p2p_network.ledger import sync
from p2p_network.ledger.entry import Entry, sign_entry
from p2p_network.ledger.events import Hint
from p2p_network.records import AddressClaim
from p2p_roles import assign, grants
from p2p_simulations.sim.plan import Lie

if TYPE_CHECKING:
    from p2p_network.core.ids import PeerId
    from p2p_simulations.sim.agent import SimAgent
    from p2p_simulations.sim.machine import SimMachine
    from p2p_simulations.sim.world import World


def lie(world: World, machine: SimMachine, how: Lie) -> None:
    """Lie once; nothing if its agent does not run."""
    agent = machine.agent
    if agent is None:
        return
    entries_for = _LIES[how](world, machine, agent)
    for peer in sorted(agent.host.connected()):
        if entries := entries_for(peer):
            payload = sync.encode_hint(Hint(bytes(16), tuple(entries)))
            agent.host.notify(peer, sync.HINT_METHOD, payload)


Told = Callable[["PeerId"], list[Entry]]


def _forge(world: World, machine: SimMachine, agent: SimAgent) -> Told:
    """Entries that this node has no right to write, signed by itself and newer than all others."""
    chance = world.engine.random
    victim = chance.choice([m for m in world.machines.values() if m is not machine] or [machine])
    stamp = Stamp(int(machine.wall_s() * 1000) + 60_000, 0)
    claim = wire.encode(AddressClaim("10.144.0.77", 0, 1))
    word = assign.encode(assign.Assignment("server", "because I say so", 1, "0" * 16))
    entries = [
        sign_entry(machine.identity, world.mesh_id, key, stamp, value)
        for key, value in (
            (f"address/{victim.peer}", claim),
            (f"node/{victim.peer}", None),
            # servers assign roles: that is theirs to say, and believed
            *(
                ()
                if world.checkers.ledgers.may_assign(machine)
                else ((f"assign/{machine.scope}/{victim.peer}", word),)
            ),
            # its own to write, and worth nothing: no certificate leads to it
            (grants.key_of(machine.scope, machine.peer, machine.peer), grants.VALUE),
            (f"genesis/{machine.scope}/1/1", b"\x01"),
            (f"genesis/{machine.scope}/1/2", b""),
        )
    ]
    stranger = Identity(hashlib.blake2b(b"stranger", digest_size=32).digest())
    entries.append(sign_entry(stranger, world.mesh_id, f"node/{stranger.peer_id}", stamp, b"let me in"))
    return lambda peer: entries


def _replay(world: World, machine: SimMachine, agent: SimAgent) -> Told:
    """Everything that it holds, of everybody, again; and once more as it was when it first lied so."""
    held = list(agent.replication.ledger.items())
    first = world.recorded.setdefault(machine.name, held)
    again = [entry for entry in first if not entry.key.startswith("genesis/")][:12]
    return lambda peer: again


def _equivocate(world: World, machine: SimMachine, agent: SimAgent) -> Told:
    """Of one moment, two records of itself: some peers get the one, some the other."""
    own = agent.replication.ledger.get(f"role/{machine.peer}")
    if own is None or own.value is None:
        return lambda peer: []
    stamp = Stamp(own.wall_ms + 1, 0)
    versions = [
        sign_entry(machine.identity, world.mesh_id, own.key, stamp, own.value + bytes(number))
        for number in range(2)
    ]
    return lambda peer: [versions[sum(peer.encode()) % 2]]


def _backdate(world: World, machine: SimMachine, agent: SimAgent) -> Told:
    """Its own words from yesterday, from later today and from the day after tomorrow, which nobody may take;
    and those of others with another date.

    Counted from the time that it is, never from a date that it made up before: word upon word, each as far
    ahead as others take it, a member can drive the mesh's clock on, and who forgot it takes their words late.
    """
    ledger = agent.replication.ledger
    found = []
    for entry in list(ledger.items("role/"))[:4]:
        for shift_ms in (-MAX_AHEAD_MS, MAX_AHEAD_MS // 2, 3 * MAX_AHEAD_MS):
            if entry.author == machine.peer:
                stamp = Stamp(int(machine.wall_s() * 1000) + shift_ms, 0)
                found.append(sign_entry(machine.identity, world.mesh_id, entry.key, stamp, entry.value))
    for entry in list(ledger.items("address/"))[:2]:
        if entry.author != machine.peer:  # the signature is of another date: worth nothing
            found.append(replace(entry, wall_ms=entry.wall_ms + 1))
    return lambda peer: found


_LIES: dict[Lie, Callable[[World, SimMachine, SimAgent], Told]] = {
    "forge": _forge,
    "replay": _replay,
    "equivocate": _equivocate,
    "backdate": _backdate,
}
