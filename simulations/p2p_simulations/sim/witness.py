"""What do the checkers and the trace get to know of a simulated agent, and where may it crash?"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from p2p_network import addressing
from p2p_network.ledger import events as ledger_events
from p2p_roles import events
from p2p_roles.genesis.acceptor import Reply

if TYPE_CHECKING:
    from p2p_simulations.sim.agent import SimAgent

ROLES = "roles.bootstrap"


class AgentWitness:
    """Sees all that one agent does. `started`: its bootstrap machine has read its own state."""

    def __init__(self, agent: SimAgent) -> None:
        self._agent, self._node = agent, agent.machine
        self._world = agent.machine.world
        self.started = False

    async def before(self, machine: str, effect: object) -> None:
        """See `Witness`, here and below."""
        agent, node, checkers = self._agent, self._node, self._world.checkers
        match effect:
            case ledger_events.Changed(keys):
                ledger = agent.replication.ledger
                checkers.ledgers.entries(node, [entry for key in keys if (entry := ledger.get(key))])
            case Reply(message):
                checkers.votes.answered(node, agent.bootstrap, message)
            case events.PublishCertificate(_, raw):
                await self._world.chaos(node, "certified, not published")
                checkers.votes.certificate(node, raw)
            case events.StartK3s(kind):
                checkers.clusters.start_wanted(node, agent.bootstrap, effect)
                agent.note(f"starts k3s: {kind}")
            case events.SetAsideK3s(_, was, _):
                checkers.clusters.role_changed(node, agent.bootstrap)
                agent.note(f"sets aside what k3s has as {was}")
            case events.WipeK3s(epoch, certificate):
                checkers.clusters.wipe_wanted(node, agent.bootstrap, epoch, certificate)
                agent.note(f"sets aside what k3s has of epoch {epoch}")
            case addressing.Assign(ipv4):
                checkers.ledgers.address_assigned(node, ipv4)
            case addressing.Withdraw(ipv4):
                checkers.ledgers.address_withdrawn(node, ipv4)
            case _:
                pass

    async def after(self, machine: str, effect: object) -> None:
        if isinstance(effect, events.Persist):
            self._world.checkers.votes.persisted(self._node, self._agent.bootstrap)
        if machine == ROLES:
            await self._world.chaos(self._node, "between two effects")

    def carried_out(self, machine: str) -> None:
        if machine == ROLES and not self.started:
            self.started = True
            self._world.checkers.votes.started(self._node, self._agent.bootstrap)

    def said(self, name: str, level: int, fields: dict[str, Any]) -> None:
        match name:
            case "roles.alarm":
                self._agent.alarm(fields["error"])
            case "ledger.contradiction":
                self._agent.alarm(f"ledger contradiction: {fields['key']}")
            case "ledger.refused":
                whom = self._world.name(fields["peer"])
                self._agent.note(f"refused {fields['count']} entries from {whom}: {fields['reason']}")
            case "mesh.member_changed":
                whom, before = self._world.name(fields["peer"]), fields["from_"] or "unknown"
                self._agent.note(f"{whom}: {before} -> {fields['to']}: {fields['reason']}")
            case _ if level > logging.DEBUG and "reason" in fields:
                self._agent.note(fields["reason"])
            case _:
                pass
