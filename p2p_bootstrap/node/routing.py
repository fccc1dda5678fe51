"""Which networks are behind which node, who may reach whom, and what follows for this machine?

Owns this node's offers (the cloud-config's, and those an operator added), reads everybody's offers, the
administrator's words on them and the access rules from the ledger, and tells the VPN: which networks a peer
may send from and gets packets for, whether it may begin anything here, and which packets this machine takes.
What the kernel has to route and forward for that is kept by `kernel`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Final

import msgspec

from p2p_bootstrap.node.forwarding import Forwarding
from p2p_bootstrap.node.kernel import Kernel, Wish
from p2p_bootstrap.node.policy import ACCESS_KEY
from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.runtime import Runtime
from p2p_network import subnets, wire
from p2p_network.access import Rule, Subject, Verdict, judge, parse_rules
from p2p_network.admission.trust import limit_of
from p2p_network.core import log
from p2p_network.core.errors import MeshError, NotPermitted, UsageError, nearest
from p2p_network.core.ids import PeerId
from p2p_network.ledger.reading import read_by_peer
from p2p_network.membership import MemberState
from p2p_network.records import AcceptedRecord, AccessRecord, RoleRecord, RoutesRecord
from p2p_network.subnets import INTERNET, Network
from p2p_roles import assign

if TYPE_CHECKING:
    from p2p_bootstrap.config.model import VPN
    from p2p_bootstrap.node.ports import Durable

logger = log.get(__name__)

DURABLE_KEY: Final = "routing/own"
LOOK_EVERY_S: Final = 10.0
EXIT: Final = "exit"
"""What an exit is called where networks are listed."""


class Kept(msgspec.Struct, frozen=True):
    """What an operator said on this node. `uses_exit`: None: as the cloud-config says; "": none."""

    networks: tuple[str, ...] = ()
    exit: bool = False
    uses_exit: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One line of ``routes``. `network`: CIDR or "exit"; `state`: offered, in use, available, standby,
    carried here, local, lost or withdrawn; `reason`: one sentence."""

    network: str
    peer: PeerId
    hostname: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the ledger and the view say, taken together."""

    plan: subnets.Plan
    offered: dict[PeerId, RoutesRecord]
    accepted: dict[PeerId, AcceptedRecord]
    alive: frozenset[PeerId]
    rules: tuple[Rule, ...]
    subjects: dict[PeerId, Subject]
    barred: frozenset[PeerId]
    """Peers that may not begin anything here."""


class Routing:
    """The column of routes and access.

    Args:
        issues: whether this node holds the root, now.
        moved: called when anything changed that the VPN has to know.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        self_id: PeerId,
        options: VPN,
        ipv6: IPv6Network,
        replication: Replication,
        durable: Durable,
        forwarding: Forwarding,
        issues: Callable[[], bool],
    ) -> None:
        self._runtime = runtime
        self._self_id = self_id
        self._options = options
        self._mesh: tuple[IPv4Network, IPv6Network] = (IPv4Network(options.address_range), ipv6)
        self._replication = replication
        self._durable = durable
        self._issues = issues
        self.moved: Callable[[], None] = lambda: None
        self._kept = Kept()
        self._kernel = Kernel(runtime, forwarding, self._mesh)
        self._due = True
        self._changed = runtime.signal()
        for prefix in ("routes/", "accepted/", "access/", "node/", "role/", "assign/", "member/"):
            replication.subscribe(prefix, self._changed)
        replication.subscribe_view(self._changed)
        self._seen = _Seen(
            subnets.Plan({}, frozenset(), frozenset()), {}, {}, frozenset(), (), {}, frozenset()
        )

    # ------------------------------------------------------------ running

    async def load(self) -> None:
        """Read what an operator said before; first of all calls."""
        raw = await self._runtime.in_thread(self._durable.get, DURABLE_KEY)
        if raw:
            self._kept = msgspec.json.decode(raw, type=Kept)

    async def run(self) -> None:
        """Keep our offers in the ledger and everything that follows from it true, until cancelled."""
        await self._publish()
        while True:
            self.look()
            self._due = True
            self.moved()
            await self._changed.wait(LOOK_EVERY_S)

    async def _publish(self) -> None:
        offer = self._own_offer()
        key = f"routes/{self._self_id}"
        if offer != RoutesRecord():
            await self._replication.write(key, wire.encode(offer))
        elif self._replication.ledger.get(key) is not None:
            await self._replication.delete(key)

    def _own_offer(self) -> RoutesRecord:
        networks = dict.fromkeys((*self._options.routes, *self._kept.networks))
        return RoutesRecord(tuple(networks), self._options.offer_exit or self._kept.exit)

    def look(self) -> None:
        """Take what the ledger and the view say now. Called once before anything is built on it."""
        ledger, view = self._replication.ledger, self._replication.view
        offered = read_by_peer(ledger, "routes/", RoutesRecord)
        accepted = read_by_peer(ledger, "accepted/", AcceptedRecord)
        alive = {m.peer for m in view.members if m.state is MemberState.ALIVE} | {self._self_id}
        present = {m.peer for m in view.members if m.state is not MemberState.LEFT} | {self._self_id}
        here = {peer: offer for peer, offer in offered.items() if peer in present}
        rules, subjects = self._rules(), self._subjects()
        itself = subjects.get(self._self_id, Subject(self._self_id, "", "", ""))
        barred = {peer for peer, subject in subjects.items() if not judge(rules, subject, itself).allowed}
        plan = subnets.plan(here, accepted, alive, self._mesh)
        self._seen = _Seen(
            plan, here, accepted, frozenset(alive), rules, subjects, frozenset(barred - {self._self_id})
        )

    def _rules(self) -> tuple[Rule, ...]:
        entry = self._replication.ledger.get(ACCESS_KEY)
        if entry is None or entry.value is None:
            return ()
        try:
            return parse_rules(wire.decode(entry.value, AccessRecord).rules)
        except ValueError as exc:
            log.event(logger, "vpn.access_unreadable", logging.WARNING, error=str(exc))
            return self._seen.rules  # a newer version's word: what was in force stays

    def _subjects(self) -> dict[PeerId, Subject]:
        """Every node as rules see it. Roles: the authority's word counts more than a node's own."""
        ledger = self._replication.ledger
        roles: dict[PeerId, str] = {
            peer: said.role
            for peer, said in read_by_peer(ledger, "role/", RoleRecord).items()
            if said.role in ("server", "agent")
        }
        newest: dict[PeerId, int] = {}
        for entry in ledger.items("assign/"):
            peer = PeerId(entry.key.rpartition("/")[2])
            try:
                word = assign.decode(entry.value or b"")
            except ValueError:
                continue
            if word.fence >= newest.get(peer, 0):
                newest[peer], roles[peer] = word.fence, word.role
        found = {}
        for member in self._replication.view.members:
            if member.record is None or member.state is MemberState.LEFT:
                continue
            certificate = limit_of(ledger, member.peer)
            role = roles.get(member.peer, "")
            if role and certificate is not None and certificate.limit != "any":
                role = certificate.limit
            region = (certificate.region if certificate else "") or member.record.region
            found[member.peer] = Subject(member.peer, member.record.hostname, region, role)
        return found

    # ------------------------------------------------------------ for the VPN and for services

    def networks_of(self, peer: PeerId) -> tuple[str, ...]:
        """What a peer may send from and gets packets for, beside its own addresses."""
        networks = self._seen.plan.of(peer)
        internet = INTERNET if peer == self._exit() else ()
        return tuple(map(str, (*networks, *internet)))

    def own_networks(self) -> tuple[str, ...]:
        """What this machine takes packets for, beside its own addresses."""
        plan = self._seen.plan
        standby = (network for network, peer in plan.standby if peer == self._self_id)
        internet = INTERNET if self._self_id in plan.exits else ()
        return tuple(map(str, (*plan.of(self._self_id), *sorted(standby, key=str), *internet)))

    def is_barred(self, peer: PeerId) -> bool:
        """Whether a peer may not begin anything here."""
        return peer in self._seen.barred

    def may(self, source: PeerId, target: PeerId) -> Verdict:
        """Whether one node may begin to talk to another, and by which rule."""
        subjects = self._seen.subjects
        unknown = [peer for peer in (source, target) if peer not in subjects]
        if unknown:
            return Verdict(not self._seen.rules, "the node is not known yet")
        return judge(self._seen.rules, subjects[source], subjects[target])

    def carrier_of(self, address: Network) -> PeerId | None:
        """Who carries this address, by subnet or as this node's exit; None: nobody."""
        found = [n for n in self._seen.plan.carriers if n.version == address.version and address.subnet_of(n)]  # type: ignore[arg-type]
        if found:
            return self._seen.plan.carriers[max(found, key=lambda n: n.prefixlen)]
        is_public = any(n.version == address.version and address.subnet_of(n) for n in INTERNET)  # type: ignore[arg-type]
        return self._exit() if is_public else None

    @property
    def has_exit(self) -> bool:
        """Whether what goes to the internet goes through a peer."""
        return self._exit() is not None

    def _wanted_exit(self) -> str:
        chosen = self._options.exit if self._kept.uses_exit is None else self._kept.uses_exit
        return chosen or ""

    def _exit(self) -> PeerId | None:
        """The peer that carries what goes to the internet; None if none is chosen, or none fits."""
        wanted = self._wanted_exit()
        fitting = [p for p in self._named(wanted) if p in self._seen.plan.exits] if wanted else []
        return fitting[0] if len(fitting) == 1 and fitting[0] != self._self_id else None

    def _named(self, name: str) -> list[PeerId]:
        subjects = self._seen.subjects.values()
        exact = [s.peer for s in subjects if name in (s.hostname, s.peer)]
        return exact or [s.peer for s in subjects if len(name) >= 4 and s.peer.endswith(name)]

    async def keep(self, device: str, carrying: Collection[PeerId]) -> None:
        """Make the kernel's routes and forwarding as they are to be. `carrying`: peers with a VPN path.

        What this machine refuses is told in `rows`, and does not end the VPN.
        """
        exit_ = self._exit()
        if not self._due and (self._kernel.uses_exit or exit_ not in carrying):
            return
        self._due = False
        carried = (n for n, carrier in self._seen.plan.carriers.items() if carrier != self._self_id)
        wish = Wish(
            carried=tuple(carried),
            own=self.own_networks(),
            exit=exit_,
            is_exit_chosen=bool(self._wanted_exit()),
            is_exit_reached=exit_ in carrying,
        )
        await self._kernel.keep(device, wish)

    async def release(self) -> None:
        """The VPN ends: put everything on this machine back."""
        await self._kernel.release()

    def device_is_new(self) -> None:
        """The device was made anew: its routes went with the old one."""
        self._kernel.device_is_new()
        self._due = True

    # ------------------------------------------------------------ for operators

    def rows(self) -> list[Route]:
        """Every offer and what became of it, as this node sees it."""
        self.look()
        found = []
        for peer, offer in self._seen.offered.items():
            word = self._seen.accepted.get(peer, AcceptedRecord())
            granted = subnets.sound(word.networks, self._mesh)
            networks = subnets.sound(offer.networks, self._mesh)
            for network in dict.fromkeys((*networks, *granted)):
                state, why = self._state_of(network, peer, network in granted, network in networks)
                found.append(self._row(str(network), peer, state, why))
            if offer.exit or word.exit:
                found.append(self._row(EXIT, peer, *self._exit_state(peer, offer.exit, word.exit)))
        return sorted(found, key=lambda row: (row.network, row.hostname, row.peer))

    def _row(self, network: str, peer: PeerId, state: str, why: str) -> Route:
        subject = self._seen.subjects.get(peer)
        if self._kernel.error and state in ("carried here", "in use"):
            state, why = "failed", self._kernel.error
        return Route(network, peer, subject.hostname if subject else "", state, why)

    def _state_of(self, network: Network, peer: PeerId, granted: bool, offered: bool) -> tuple[str, str]:
        plan = self._seen.plan
        if not offered:
            return "withdrawn", "it was accepted, and its node does not offer it any more"
        if not granted:
            return "offered", "an administrator has to accept it"
        if plan.carriers.get(network) != peer:
            return "standby", "another node carries it"
        if peer == self._self_id:
            return "carried here", "this node passes it on"
        if peer not in self._seen.alive:
            return "lost", "its node is not here, and no other carries it"
        if not subnets.installable((network,), self._kernel.local):
            return "local", "this machine is in that network itself"
        return "in use", "packets go there through its node"

    def _exit_state(self, peer: PeerId, offered: bool, granted: bool) -> tuple[str, str]:
        if not offered:
            return "withdrawn", "it was accepted, and its node does not offer it any more"
        if not granted:
            return "offered", "an administrator has to accept it"
        if peer == self._self_id:
            return "carried here", "others may reach the internet through this node"
        if peer != self._exit():
            return "available", "choose it on a node with: kairos-p2p routes exit NODE"
        if not self._kernel.uses_exit:
            return "waiting", "it was not reached yet; until then packets go their usual way"
        return "in use", "everything for the internet goes through it"

    async def offer(self, networks: Sequence[str], *, exit: bool, withdraw: bool) -> None:
        """Add offers to this node's own, or take back those that an operator added. Raises UsageError."""
        if not withdraw and self._options.create is False:
            raise UsageError(
                "this node has no VPN: it can't carry packets",
                hint="it needs one: p2p.vpn.create, and p2p.vpn.mode tun",
            )
        try:
            wanted = [str(subnets.parse_subnet(text, self._mesh)) for text in networks]
        except ValueError as exc:
            raise UsageError(str(exc)) from exc
        declared = [n for n in wanted if n in self._options.routes]
        if withdraw and (declared or (exit and self._options.offer_exit)):
            raise UsageError(
                f"{', '.join(declared) or 'the exit'} stands in the cloud-config",
                hint="take it out of p2p.vpn.routes or p2p.vpn.offer_exit, and restart the agent",
            )
        kept = self._kept
        if withdraw:
            left = tuple(n for n in kept.networks if n not in wanted)
            await self._keep(msgspec.structs.replace(kept, networks=left, exit=kept.exit and not exit))
            return
        both = tuple(dict.fromkeys((*kept.networks, *wanted)))
        if len(both) + len(self._options.routes) > subnets.MAX_NETWORKS:
            raise UsageError(f"a node offers at most {subnets.MAX_NETWORKS} networks")
        await self._keep(msgspec.structs.replace(kept, networks=both, exit=kept.exit or exit))

    async def choose_exit(self, name: str | None) -> None:
        """Send what goes to the internet through a node; None: through none. Raises UsageError."""
        self.look()
        if name is not None:
            exits = {p: s for p, s in self._seen.subjects.items() if p in self._seen.plan.exits}
            fitting = [peer for peer in self._named(name) if peer in exits and peer != self._self_id]
            if len(fitting) != 1:
                known = [s.hostname for p, s in exits.items() if p != self._self_id]
                near = nearest(name, known)
                raise UsageError(
                    f"{name} is no exit that an administrator accepted",
                    hint=f"did you mean {near}?" if near else f"there are: {', '.join(known) or 'none'}",
                )
            name = fitting[0]
        await self._keep(msgspec.structs.replace(self._kept, uses_exit=name or ""))

    async def _keep(self, kept: Kept) -> None:
        await self._runtime.in_thread(self._durable.set, DURABLE_KEY, msgspec.json.encode(kept))
        self._kept = kept
        await self._publish()
        self._changed.raise_()

    async def decide(
        self, name: str, networks: Sequence[str], *, accept: bool
    ) -> tuple[PeerId, AcceptedRecord]:
        """Accept or refuse what a node offers; no `networks`: all of it. Raises NotPermitted, UsageError."""
        self._must_issue("accepts routes")
        self.look()
        peer = self._one(name)
        word = self._seen.accepted.get(peer, AcceptedRecord())
        offer = self._seen.offered.get(peer, RoutesRecord())
        exit = EXIT in networks or (not networks and (offer.exit or word.exit))
        subnet_texts = [text for text in networks if text != EXIT]
        try:
            named = [str(subnets.parse_subnet(text, self._mesh)) for text in subnet_texts]
        except ValueError as exc:
            raise UsageError(str(exc)) from exc
        if not networks:
            named = [str(n) for n in subnets.sound((*offer.networks, *word.networks), self._mesh)]
        if accept:
            missing = [n for n in named if n not in offer.networks] + (
                [EXIT] if exit and not offer.exit else []
            )
            if missing or not (named or exit):
                raise UsageError(
                    f"{name} does not offer {', '.join(missing) or 'anything'}",
                    hint="see what is offered with: kairos-p2p routes",
                )
            new = AcceptedRecord(tuple(dict.fromkeys((*word.networks, *named))), word.exit or exit)
        else:
            left = tuple(n for n in word.networks if n not in named)
            new = AcceptedRecord(left, word.exit and not exit)
        await self._replication.write(f"accepted/{peer}", wire.encode(new))
        return peer, new

    def _one(self, name: str) -> PeerId:
        found = self._named(name)
        if len(found) == 1:
            return found[0]
        near = nearest(name, [s.hostname for s in self._seen.subjects.values()])
        if found:
            raise UsageError(f"{len(found)} nodes go by the name {name}", hint="use the end of the peer id")
        raise UsageError(f"no node goes by the name {name}", hint=f"did you mean {near}?" if near else "")

    def _must_issue(self, what: str) -> None:
        if not self._issues():
            raise NotPermitted(
                f"only a node that has the network token {what}",
                hint="run it on a node whose cloud-config has p2p.network_token",
            )

    def rules(self) -> tuple[str, ...]:
        """The access rules in force, in order."""
        self.look()
        return tuple(map(str, self._seen.rules))

    async def set_rules(self, texts: Sequence[str]) -> None:
        """Replace the access rules. Raises NotPermitted, UsageError."""
        self._must_issue("changes the access rules")
        try:
            rules = parse_rules(texts)
        except ValueError as exc:
            raise UsageError(str(exc)) from exc
        record = wire.encode(AccessRecord(tuple(map(str, rules))))
        if len(record) > 16 * 1024:
            raise MeshError("the rules are longer than a ledger entry", hint="use roles and regions in them")
        await self._replication.write(ACCESS_KEY, record)

    def inbound(self) -> dict[PeerId, tuple[Subject, Verdict]]:
        """Every other node, and whether it may begin to talk to this one."""
        self.look()
        subjects = self._seen.subjects
        itself = subjects.get(self._self_id, Subject(self._self_id, "", "", ""))
        return {
            peer: (subject, judge(self._seen.rules, subject, itself))
            for peer, subject in subjects.items()
            if peer != self._self_id
        }
