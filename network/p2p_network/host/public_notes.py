"""How do members find each other through a public DHT, without any machine of their own to meet at?

Each leaves a sealed note in one of the day's boxes (`meeting.notes`), an IPNS record in the DHT, and looks
into the boxes of the others: all of today's while it is alone, and those of the day before and after if
nobody was there; else only its own and one more. What is found goes to the dialler as hearsay.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import trio

from p2p_network.core import log
from p2p_network.core.errors import PeerUnreachable
from p2p_network.core.ids import PeerId
from p2p_network.host.discovery import Learn
from p2p_network.host.public_dht import NameRecords, PublicClient, public_client
from p2p_network.meeting import ipns, kad, notes

logger = log.get(__name__)

SOURCE: Final = "public-dht"
LOOK_LIMIT_S: Final = 60.0
READ_ENOUGH: Final = 8
SOME: Final = 3
"""Having found so many members elsewhere, a node that was alone looks no further: they know the others."""
VALID_S: Final = notes.MAX_AGE_S
MAX_SEQUENCE: Final = 2**63 - 2


@dataclass(frozen=True, slots=True)
class _Box:
    notes: tuple[notes.Note, ...]
    sequence: int
    closest: tuple[kad.Peer, ...]


class PublicNotes:
    """One node's dealings with a public DHT.

    Args:
        peer: this node.
        rendezvous: what the boxes follow from.
        entrances: where the DHT is entered (`kad.entrance`).
        addresses: where this node can be dialled.
        learn: who wants to know where members are.
        is_alone: whether no member is connected.
        names: TXT records of a DNS name.
    """

    def __init__(
        self,
        peer: PeerId,
        rendezvous: bytes,
        entrances: Sequence[str],
        *,
        addresses: Callable[[], Sequence[str]],
        learn: Learn,
        is_alone: Callable[[], bool],
        names: NameRecords,
    ) -> None:
        self._peer = peer
        self._rendezvous = rendezvous
        self._entrances = tuple(entrances)
        self._addresses = addresses
        self._learn = learn
        self._is_alone = is_alone
        self._names = names
        self._failing = ""

    async def look_once(self) -> bool:
        """Look into the boxes and keep the own note alive. Whether something was written."""
        addresses = tuple(self._addresses())
        found: set[PeerId] = set()
        wrote, failure, asked = False, "", 0
        try:
            async with public_client(self._entrances, self._names) as client:
                wrote = await self._keep_own(client, addresses, found)
                await self._look_around(client, found)
                asked = client.asked
        except PeerUnreachable as exc:
            failure = exc.message
        except Exception as exc:  # a library's, about what strangers did: the mesh goes on without this
            failure = repr(exc)
        if failure and failure != self._failing:
            log.event(
                logger,
                "public_dht.out_of_reach",
                reason=failure[:300],
                hint="where there is no Internet, turn it off with p2p.public_dht: false",
            )
        elif not failure:
            level = 20 if self._failing else 10
            reason = f"asked {asked} times"
            log.event(logger, "public_dht.looked", level=level, count=len(found), reason=reason)
        self._failing = failure
        return wrote

    async def _keep_own(self, client: PublicClient, addresses: Sequence[str], found: set[PeerId]) -> bool:
        """Look into this node's own box of today, and write if it should. Whether it wrote."""
        wall_s = time.time()
        day, number = notes.day_of(wall_s), notes.box_of(self._peer)
        box = await self._look_into(client, day, number, found, enough=kad.CLOSEST)
        own = notes.note_of(self._peer, addresses, wall_s)
        if not box.closest or not notes.wants_writing(box.notes, own, wall_s):
            return False
        written = notes.merged(box.notes, own, wall_s)
        seed = notes.box_seed(self._rendezvous, day, number)
        sealed = notes.seal(self._rendezvous, day, written, os.urandom(12))
        sequence = min(box.sequence + 1, MAX_SEQUENCE)
        record = ipns.sign(seed, ipns.Record(sealed, sequence, wall_s + VALID_S))
        kept = await client.put(ipns.name_of(notes.public_key(seed)), record, box.closest)
        log.event(logger, "public_dht.written", level=10, count=kept)
        return kept > 0

    async def _look_around(self, client: PublicClient, found: set[PeerId]) -> None:
        wall_s = time.time()
        today, yesterday, tomorrow = notes.days_around(wall_s)
        others = [number for number in range(notes.BOXES) if number != notes.box_of(self._peer)]
        random.shuffle(others)
        if not self._is_alone():
            others = others[:1]
        for day in (today, yesterday, tomorrow):
            for number in others if day == today else range(notes.BOXES):
                if day != today and (found or not self._is_alone()):
                    return
                if len(found) >= SOME:
                    return
                await self._look_into(client, day, number, found, enough=READ_ENOUGH)

    async def _look_into(
        self, client: PublicClient, day: int, number: int, found: set[PeerId], *, enough: int
    ) -> _Box:
        """What lies in a box; what is of members goes to the dialler."""
        seed = notes.box_seed(self._rendezvous, day, number)
        public, wall_s = notes.public_key(seed), time.time()
        values, closest = await client.get(ipns.name_of(public), enough=enough, limit_s=LOOK_LIMIT_S)
        best: ipns.Record | None = None
        for value in values:
            try:
                record = ipns.read(public, value, wall_s)
            except ValueError as exc:
                log.event(logger, "public_dht.record_ignored", level=10, detail=str(exc))
                continue
            if best is None or (record.sequence, record.until_s) > (best.sequence, best.until_s):
                best = record
        inside: tuple[notes.Note, ...] = ()
        if best is not None:
            try:
                inside = notes.merged(notes.unseal(self._rendezvous, day, best.content), None, wall_s)
            except ValueError as exc:
                log.event(logger, "public_dht.record_ignored", level=10, detail=str(exc))
        for note in inside:
            if note.peer != self._peer:
                found.add(note.peer)
                self._learn(note.peer, tuple(map(str, note.endpoints)), SOURCE)
        return _Box(inside, best.sequence if best is not None else 0, closest)


async def txt_records(name: str) -> Sequence[bytes]:
    """The TXT records of a DNS name, by this machine's resolver. Raises OSError."""
    return await trio.to_thread.run_sync(partial(_txt_records, name), abandon_on_cancel=True)  # type: ignore[call-arg]


def _txt_records(name: str) -> Sequence[Any]:
    import dns.exception
    import dns.resolver

    try:
        answer = dns.resolver.resolve(name, "TXT", lifetime=5.0)
    except (dns.exception.DNSException, OSError) as exc:
        raise OSError(f"{name}: {exc}") from exc
    return [b"".join(record.strings) for record in answer]
