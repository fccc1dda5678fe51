"""Which VPN address does each node hold, for ever and without conflicts?

Every node walks its own row of candidates through the network: `candidate(peer, mesh_id, attempt)`, for
attempt 0, 1, 2, ... a permutation of all usable addresses that differs from node to node. It takes the first
that nobody claims and writes an `AddressClaim` into the ledger. Claims are never deleted, so the address of a
dead or departed node stays reserved. If two nodes claimed the same address (apart from each other, before
a partition healed), the older claim wins, then the lower peer id; the loser takes its next candidate.

On its first start a node waits until it has heard the others' claims (`LedgerSettled`), or has been alone for
`alone_s`; a node that finds its own claim uses it at once.

IPv6 needs no claims: ``fd`` + 40 bits of the mesh + subnet 0 + 64 bits of the peer id's hash.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, assert_never

from p2p_network.core.ids import PeerId, stable_hash
from p2p_network.core.machine import Decision
from p2p_network.records import AddressClaim
from p2p_network.standing import is_better

DEFAULT_NETWORK: Final = IPv4Network("10.144.0.0/16")


# Events. `mesh_ms`: the mesh's time, Unix milliseconds (the ledger's clock).
@dataclass(frozen=True, slots=True)
class LedgerSettled:
    """The ledger was compared with a peer's: we know what the others claim."""

    mesh_ms: int


@dataclass(frozen=True, slots=True)
class ClaimsChanged:
    """All claims in the ledger, our own included. The first one carries what was on the disk."""

    claims: Mapping[PeerId, AddressClaim]
    mesh_ms: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed (see `Addressing.wake_at`)."""

    mesh_ms: int


Event = LedgerSettled | ClaimsChanged | Tick


# Effects
@dataclass(frozen=True, slots=True)
class WriteClaim:
    """Write our claim into the ledger, before any later effect."""

    claim: AddressClaim


@dataclass(frozen=True, slots=True)
class Assign:
    """Put these addresses on the device."""

    ipv4: str
    ipv6: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take this address off the device: an older claim on it has turned up."""

    ipv4: str


@dataclass(frozen=True, slots=True)
class ReportExhausted:
    """No address is left for this node. Said once, until one is free."""

    message: str
    hint: str


Effect = WriteClaim | Assign | Withdraw | ReportExhausted


class Addressing:
    """Finds and defends the address of one node."""

    def __init__(
        self,
        self_id: PeerId,
        mesh_id: str,
        *,
        network: IPv4Network = DEFAULT_NETWORK,
        alone_s: float = 5.0,
        started_at: float,
    ) -> None:
        """`started_at`: monotonic seconds. ValueError if the network has no usable address."""
        if usable_count(network) < 1:
            raise ValueError(f"{network} has no address that a node could use")
        self._self_id = self_id
        self._mesh_id = mesh_id
        self._network = network
        self._ipv6 = str(ipv6_of(mesh_id, self_id))
        self._may_claim_at: float | None = started_at + alone_s  # None: we may
        self._claims: dict[PeerId, AddressClaim] = {}
        self._holding = ""
        self._is_exhausted = False

    @property
    def holding(self) -> str:
        """The IPv4 address that is ours now; "" while there is none."""
        return self._holding

    def wake_at(self) -> float | None:
        """When we have been alone for long enough."""
        return None if self._holding else self._may_claim_at

    def step(self, now: float, event: Event) -> Decision[Effect]:
        """Decide on one event."""
        again: tuple[Effect, ...] = ()
        match event:
            case LedgerSettled():
                self._may_claim_at = None
            case ClaimsChanged(claims):
                mine = self._claims.get(self._self_id)
                self._claims = {peer: claim for peer, claim in claims.items() if self._is_sound(claim)}
                known = self._claims.get(self._self_id)
                if mine is not None and (known is None or known.attempt < mine.attempt):
                    # a claim is never deleted, only we replace it, and attempts count up (the moment of a
                    # claim need not, on a clock that is set back): it was read before our claim was written,
                    # and to write it again changes nothing; or we had lost the ledger, began anew, and that
                    # claim overtook the one that the others brought back
                    self._claims[self._self_id] = mine
                    again = (WriteClaim(mine),)
            case Tick():
                pass
            case _:
                assert_never(event)
        if self._may_claim_at is not None and now >= self._may_claim_at:
            self._may_claim_at = None
        decision = self._decide(event.mesh_ms)
        return replace(decision, effects=(*again, *decision.effects)) if again else decision

    def _decide(self, mesh_ms: int) -> Decision[Effect]:
        mine = self._claims.get(self._self_id)
        rival = self._rival(mine) if mine else None
        if mine and rival is None:
            return self._hold(mine, "the ledger has this claim of ours")
        effects: list[Effect] = []
        if self._holding and (rival or mine is None):
            effects.append(Withdraw(self._holding))
            self._holding = ""
        lost = f"{rival} claimed {mine.ipv4} before us" if mine and rival else ""
        if self._may_claim_at is not None:
            return Decision(tuple(effects), lost)
        claim = self._next_claim(mine.attempt + 1 if mine else 0, mesh_ms)
        if claim is None:
            return self._exhausted(effects)
        self._claims[self._self_id] = claim
        held = self._hold(claim, f"nobody else claims it{'; ' if lost else ''}{lost}")
        return Decision((*effects, WriteClaim(claim), *held.effects), held.reason)

    def _hold(self, claim: AddressClaim, why: str) -> Decision[Effect]:
        if self._holding == claim.ipv4:
            return Decision()
        replaced = (Withdraw(self._holding),) if self._holding else ()
        self._holding, self._is_exhausted = claim.ipv4, False
        return Decision((*replaced, Assign(claim.ipv4, self._ipv6)), f"{claim.ipv4} is ours: {why}")

    def _exhausted(self, effects: list[Effect]) -> Decision[Effect]:
        if self._is_exhausted:
            return Decision(tuple(effects))
        self._is_exhausted = True
        message = f"all {usable_count(self._network)} usable addresses of {self._network} are claimed"
        hint = "give the mesh a larger network; the addresses of nodes that left stay reserved"
        return Decision((*effects, ReportExhausted(message, hint)), message)

    def _rival(self, mine: AddressClaim) -> PeerId | None:
        """Who holds a better claim on our address."""
        better = [
            (claim.claimed_ms, peer)
            for peer, claim in self._claims.items()
            if claim.ipv4 == mine.ipv4 and is_better((claim, peer), (mine, self._self_id))
        ]
        return min(better)[1] if better else None

    def _next_claim(self, attempt: int, mesh_ms: int) -> AddressClaim | None:
        taken = {claim.ipv4 for peer, claim in self._claims.items() if peer != self._self_id}
        count = usable_count(self._network)
        # the row is a circle: candidates before `attempt` come up again at its end
        for number in range(attempt, attempt + count):
            ipv4 = str(candidate(self._self_id, self._mesh_id, number, self._network))
            if ipv4 not in taken:
                return AddressClaim(ipv4, number, mesh_ms)
        return None

    def _is_sound(self, claim: AddressClaim) -> bool:
        """Whether a claim reserves anything here. What a peer claims outside the network does not."""
        try:
            address = IPv4Address(claim.ipv4)
        except AddressValueError:
            return False
        return str(address) == claim.ipv4 and is_usable(address, self._network)


def is_usable(address: IPv4Address, network: IPv4Network) -> bool:
    """Whether a node may hold it: inside, neither network nor broadcast address, nor x.x.x.0 or x.x.x.255."""
    edges = (network.network_address, network.broadcast_address)
    return address in network and address not in edges and int(address) & 0xFF not in (0, 255)


def usable_count(network: IPv4Network) -> int:
    """How many nodes the network can hold."""
    if network.prefixlen <= 24:
        return (network.num_addresses // 256) * 254
    return sum(is_usable(address, network) for address in network)


def candidate(peer: str, mesh_id: str, attempt: int, network: IPv4Network = DEFAULT_NETWORK) -> IPv4Address:
    """The address a node tries at its `attempt`-th try: a permutation of all usable ones, its own."""
    count = usable_count(network)
    start = stable_hash("address", mesh_id, peer) % count
    stride = stable_hash("address stride", mesh_id, peer) % count or 1
    while math.gcd(stride, count) != 1:
        stride += 1
    index = (start + attempt * stride) % count
    if network.prefixlen <= 24:
        return network.network_address + (index // 254) * 256 + 1 + index % 254
    return [address for address in network if is_usable(address, network)][index]


def ipv6_network_of(mesh_id: str) -> IPv6Network:
    """The mesh's ULA network, a /64 (RFC 4193: ``fd``, 40 bits that are the mesh's own, subnet 0)."""
    prefix = 0xFD << 40 | stable_hash("ula", mesh_id) >> 24
    return IPv6Network((prefix << 80, 64))


def ipv6_of(mesh_id: str, peer: str) -> IPv6Address:
    """A node's address in it."""
    return IPv6Address(int(ipv6_network_of(mesh_id).network_address) | stable_hash("ula host", peer))
