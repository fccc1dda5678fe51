"""Is everything in a ledger by its rightful author, no secret, and every address unique and kept?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from p2p_network.core.ids import PeerId
from p2p_network.ledger.entry import Entry
from p2p_roles import assign
from p2p_roles.k3s.pki import JoinSecret
from p2p_simulations.sim.invariants.votes import Votes
from p2p_simulations.sim.trust import knows_revoked
from p2p_simulations.sim.violation import fail

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine
    from p2p_simulations.sim.world import World

_SECRET = (b"::server:", b"::node:")  # in every token of k3s


class Ledgers:
    """What the nodes of one world take for true of each other, and their addresses."""

    def __init__(self, world: World, votes: Votes) -> None:
        self._world, self._votes = world, votes
        self._settled: dict[PeerId, str] = {}
        self._assigned_servers: set[str] = set()

    def address_settled(self, machine: SimMachine, ipv4: str) -> None:
        """k3s may be built on this address now."""
        before = self._settled.setdefault(machine.peer, ipv4)
        if before != ipv4 and machine.name not in self._world.lost_ledger:
            fail(f"{machine.name} settled on {before}, and after a restart on {ipv4}")

    def settled_on(self, peer: PeerId) -> str:
        """The address that a node has for life; "" before it has one."""
        return self._settled.get(peer, "")

    def address_assigned(self, machine: SimMachine, ipv4: str) -> None:
        """An address goes on the device."""
        before = self._settled.get(machine.peer, ipv4)
        if before == ipv4:
            return
        if machine.name not in self._world.lost_ledger:
            fail(f"{machine.name} had settled on {before} and takes {ipv4}, though nobody claims that")
        # with its ledger it lost the claim, or how old it was
        del self._settled[machine.peer]
        self._world.readdressed.add(machine.name)

    def address_withdrawn(self, machine: SimMachine, ipv4: str) -> None:
        """An address is given up: only for an older claim."""
        agent = machine.agent
        assert agent is not None, "an agent withdraws"
        claims = agent.replication.claims()
        own = claims.get(machine.peer)
        if self._settled.pop(machine.peer, None) is None or own is None:
            return
        older = [
            peer
            for peer, claim in claims.items()
            if claim.ipv4 == ipv4 and (claim.claimed_ms, peer) < (own.claimed_ms, machine.peer)
        ]
        if not older:
            fail(f"{machine.name} gives up {ipv4} although nobody has an older claim")
        self._world.readdressed.add(machine.name)

    def entries(self, machine: SimMachine, entries: Iterable[Entry]) -> None:
        """Entries became valid in a node's ledger."""
        for entry in entries:
            if any(mark in (entry.value or b"") for mark in (*_SECRET, self._world.token.seed)):
                fail(f"{entry.key} at {machine.name} tells a secret to everybody")
            kind, *rest = entry.key.split("/")
            if kind == "genesis":
                if entry.value is not None:
                    self._votes.certificate(machine, entry.value)
            elif kind == "upgrade":
                if entry.author not in {*self._votes.authorities("/".join(rest)), *self._assigned_servers}:
                    fail(f"{machine.name} takes {entry.key} from {self._world.name(entry.author)}")
            elif kind == "assign":
                if entry.author not in {
                    *self._votes.authorities("/".join(rest[:-1])),
                    *self._assigned_servers,
                }:
                    fail(f"{machine.name} takes {entry.key} from {self._world.name(entry.author)}")
                if entry.value is not None and assign.decode(entry.value).role == "server":
                    self._assigned_servers.add(rest[-1])
            elif kind == "drain":
                if rest[-1] not in self._world.drained or not self._world.knows(entry.author):
                    fail(f"{machine.name} takes it that {self._world.name(rest[-1])} is drained")
            elif kind in ("revoked", "seat", "generation"):
                self._admission_entry(machine, kind, rest)
            elif not self._world.knows(entry.author):
                fail(f"{machine.name} takes {kind} from a stranger")
            elif kind == "node" and entry.author in self._gone(machine):
                whom = self._world.name(entry.author)
                fail(f"{machine.name} takes {kind} from {whom}, which it knows is revoked")
            elif rest[-1] != entry.author:
                fail(
                    f"{machine.name} takes {kind}/{self._world.name(rest[-1])} "
                    f"from {self._world.name(entry.author)}"
                )
        agent = machine.agent
        if agent is not None:
            identities = self._world.identities
            rotations = max(self._world.token.generation, 1 + self._world.rotations)
            plan = self._world.plan
            each = 7 + plan.upgrades_k3s + plan.rotates  # two of them grants: a holder's and a liar's
            limit = each * identities + 2 * (len(self._votes.certified) + 2) + len(self._world.revoked)
            limit += rotations * (identities + 1) + len(self._world.drained)
            if len(agent.replication.ledger) > limit:
                fail(f"{machine.name} holds more than {limit} entries of {identities} nodes")

    def secret_kept(self, machine: SimMachine, secret: JoinSecret) -> None:
        """What was handed out is on this disk: the servers' token only where a server may be."""
        if secret.server_token and not self.may_assign(machine):
            fail(f"{machine.name} holds the servers' token, and nobody made it a server")

    def _admission_entry(self, machine: SimMachine, kind: str, rest: list[str]) -> None:
        """Nobody is put out and nothing rotated but by the plan."""
        if kind == "revoked" and rest[0] not in self._world.revoked:
            fail(f"{machine.name} takes it that {self._world.name(rest[0])} is revoked")
        if kind != "revoked" and int(rest[0]) > self._world.rotations + 1:
            fail(f"{machine.name} takes {kind} of generation {rest[0]}")

    def _gone(self, machine: SimMachine) -> set[PeerId]:
        """Of those that were revoked, the ones of which this node has learned."""
        agent = machine.agent
        if agent is None or not agent.witness.started:  # what is read from the disk was taken before
            return set()
        known = agent.replication.ledger
        return {p for p in self._world.revoked if known.get(f"revoked/{p}")} - {machine.peer}

    def may_assign(self, machine: SimMachine) -> bool:
        """Whether what this node says of others' roles is believed: then it is trusted, and must not lie."""
        return machine.peer in {*self._votes.authorities(machine.scope), *self._assigned_servers}

    def converged(self) -> str:
        """What is not yet as it must be after healing; "" if all is."""
        world = self._world
        running = [m for m in world.machines.values() if m.agent is not None and m.peer not in world.revoked]
        digests = {m.agent.replication.ledger.digest() for m in running if m.agent is not None}
        if len(digests) > 1:
            return f"{len(digests)} different ledgers"
        may = any(m.agent is not None and m.agent.admission.kept.authority is not None for m in running)
        for peer, name in world.revoked.items():
            if may and not any(knows_revoked(m, peer) for m in running):
                return f"nobody put {name} out"
        return ""

    def revoked_are_gone(self) -> None:
        """After convergence nobody holds what a revoked node said of itself, or talks with it."""
        for machine in self._world.machines.values():
            agent = machine.agent
            if agent is None or machine.peer in self._world.revoked:
                continue
            for peer, name in self._world.revoked.items():
                if agent.replication.ledger.get(f"node/{peer}") is not None:
                    fail(f"{machine.name} still holds what {name} says, which was revoked")
                if peer in agent.host.connected():
                    fail(f"{machine.name} still talks with {name}, which was revoked")
            if agent.admission.trust.generation != self._world.token.generation:
                fail(f"{machine.name} was left behind in generation {agent.admission.trust.generation}")

    def addresses_unique(self) -> None:
        """After convergence no two nodes hold one address."""
        held: dict[str, str] = {}
        for machine in self._world.machines.values():
            if (
                machine.agent is not None
                and machine.peer not in self._world.revoked
                and (ipv4 := machine.agent.vpn.status.ipv4)
            ):
                other = held.setdefault(ipv4, machine.name)
                if other != machine.name:
                    fail(f"{other} and {machine.name} both hold {ipv4}")
