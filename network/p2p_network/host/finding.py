"""Which ways of finding members are in use, and what do they have to know?

Runs those of `discovery` that are switched on, keeps what they announce true while addresses come and go, and
hands what they find to the dialler.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from p2p_network.core import log
from p2p_network.core.ids import PeerId
from p2p_network.host.discovery import DhtRendezvous, Learn, LocalDiscovery
from p2p_network.host.guards import MeshBasicHost
from p2p_network.host.listener import machine_addresses
from p2p_network.host.rendezvous import RendezvousNotes
from p2p_network.meeting.pace import Outcome, Pace, Pauses

logger = log.get(__name__)

ADDRESSES_EVERY_S: Final = 15.0
LOOK_CHECK_S: Final = 1.0
PUBLIC_PAUSES: Final = Pauses(first_s=5.0, alone_s=20.0, alone_cap_s=300.0, calm_s=3600.0, after_write_s=90.0)
SERVER_PAUSES: Final = Pauses(first_s=0.0, alone_s=2.0, alone_cap_s=30.0, calm_s=900.0, after_write_s=900.0)


@dataclass(frozen=True, slots=True)
class Ways:
    """Which ways of finding members to use.

    Attributes:
        rendezvous: 32 bytes from which all their names and keys are derived.
        mdns: the local network.
        dht: a Kademlia DHT among the members.
        public_dht: where a public DHT is entered (`meeting.kad.entrance`); empty: not used.
        servers: rendezvous servers (see `addresses`).
    """

    rendezvous: bytes
    mdns: bool = True
    dht: bool = True
    public_dht: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()


class Finding:
    """The discoveries of one host.

    Args:
        peer: this node.
        addresses: where it can be dialled, asked now and then.
        ways: raises MeshError if a rendezvous server's address is malformed.
        learn: who wants to know where members are.
        is_alone: whether no member is connected.
        without_devices: network devices that are not used to find anybody.
    """

    def __init__(
        self,
        peer: PeerId,
        ways: Ways,
        addresses: Callable[[], Sequence[str]],
        learn: Learn,
        is_alone: Callable[[], bool],
        without_devices: Sequence[str],
    ) -> None:
        self._peer = peer
        self._ways = ways
        self._addresses = addresses
        self._learn = learn
        self._is_alone = is_alone
        self._without_devices = tuple(without_devices)
        self._servers = (
            RendezvousNotes(peer, ways.rendezvous, ways.servers, addresses=addresses, learn=learn)
            if ways.servers
            else None
        )
        self._nursery: trio.Nursery | None = None
        self._dht: DhtRendezvous | None = None

    def start(self, nursery: trio.Nursery, host: MeshBasicHost, *, loopback_only: bool) -> None:
        """Look for members from now on. `loopback_only`: nobody outside this machine could connect."""
        self._nursery = nursery
        if self._ways.dht:
            self._dht = DhtRendezvous(host, self._ways.rendezvous, self._learn)
            nursery.start_soon(self._dht.run, nursery)
        if self._ways.mdns:
            local = LocalDiscovery(
                self._peer, self._ways.rendezvous, self._learn, loopback_only=loopback_only
            )
            nursery.start_soon(self._announce, local)
        if self._ways.public_dht:
            from p2p_network.host.public_notes import PublicNotes, txt_records  # takes more than all others

            public = PublicNotes(
                self._peer,
                self._ways.rendezvous,
                self._ways.public_dht,
                addresses=self._addresses,
                learn=self._learn,
                is_alone=self._is_alone,
                names=txt_records,
            )
            nursery.start_soon(self._keep_looking, public.look_once, PUBLIC_PAUSES)
        if self._servers is not None:
            nursery.start_soon(self._keep_looking, self._servers.look_once, SERVER_PAUSES)

    def met(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """A member was connected, and said where it can be dialled."""
        if self._dht is not None and self._nursery is not None:
            self._nursery.start_soon(self._dht.know, peer, tuple(addresses))

    async def _keep_looking(self, look_once: Callable[[], Awaitable[Outcome]], pauses: Pauses) -> None:
        """Look into a public place as often as `meeting.pace` says, for ever."""
        pace = Pace(pauses, random.random)
        while True:
            now = trio.current_time()
            if pace.is_due(now, alone=self._is_alone(), addresses=tuple(self._addresses())):
                outcome = await look_once()
                pace.looked(trio.current_time(), outcome)
            await trio.sleep(LOOK_CHECK_S)

    async def _announce(self, local: LocalDiscovery) -> None:
        """Keep the mDNS announcement true while addresses come and go."""
        failing = False
        try:
            while True:
                try:
                    await local.announce(
                        self._addresses(), machine_addresses(ipv6=True, without=self._without_devices)
                    )
                    failing = False
                except OSError as exc:
                    if not failing:
                        log.event(logger, "discovery.mdns_failed", detail=str(exc))
                    failing = True
                await trio.sleep(ADDRESSES_EVERY_S)
        finally:
            await local.stop()
