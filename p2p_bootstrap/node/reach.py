"""What does the agent answer about routes and access? `api.reach.Reach`, from the column's snapshots."""

from __future__ import annotations

from collections.abc import Sequence

from p2p_bootstrap.api.reach import AccessDoc, DecidedDoc, InboundDoc, RouteDoc
from p2p_bootstrap.node.routing import Routing
from p2p_bootstrap.node.vpn import Vpn


class ReachAnswers:
    """Routes and access, as the local API sees them."""

    def __init__(self, routing: Routing, vpn: Vpn) -> None:
        self._routing = routing
        self._vpn = vpn

    def routes(self) -> list[RouteDoc]:
        """Every offer, and what became of it."""
        return [
            RouteDoc(
                network=row.network, peer=row.peer, hostname=row.hostname, state=row.state, reason=row.reason
            )
            for row in self._routing.rows()
        ]

    async def offer(self, networks: Sequence[str], *, exit: bool, withdraw: bool) -> None:
        """Offer to carry networks or an exit, or stop it."""
        await self._routing.offer(networks, exit=exit, withdraw=withdraw)

    async def decide(self, node: str, networks: Sequence[str], *, accept: bool) -> DecidedDoc:
        """The administrator's word."""
        peer, word = await self._routing.decide(node, networks, accept=accept)
        return DecidedDoc(peer=peer, networks=list(word.networks), exit=word.exit)

    async def choose_exit(self, node: str | None) -> None:
        """Where what goes to the internet leaves the mesh."""
        await self._routing.choose_exit(node)

    def access(self) -> AccessDoc:
        """The rules, and what they mean for this node."""
        rows = []
        for peer, (subject, verdict) in self._routing.inbound().items():
            stats = self._vpn.status.peers.get(peer)
            rows.append(
                InboundDoc(
                    peer=peer,
                    hostname=subject.hostname,
                    region=subject.region,
                    role=subject.role,
                    allowed=verdict.allowed,
                    rule=verdict.rule,
                    dropped=stats.drops.get("not_allowed", 0) if stats else 0,
                )
            )
        rows.sort(key=lambda row: (row["hostname"], row["peer"]))
        return AccessDoc(rules=list(self._routing.rules()), inbound=rows)

    async def set_rules(self, rules: Sequence[str]) -> AccessDoc:
        """Replace the rules."""
        await self._routing.set_rules(rules)
        return self.access()
