"""How do members find each other through a public DHT, without any machine of their own to meet at?

Each leaves a sealed note in one of the day's boxes (`meeting.notes`), an IPNS record in the DHT, and looks
into the boxes of the others: all of today's while it is alone, and those of the day before and after if
nobody was there the last time; else only its own and one more. What is found goes to the dialler as hearsay.
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
from p2p_network.meeting.pace import Outcome

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
        self._failing = "not tried yet"
        self._found_nobody = 0
        self._believed: tuple[str, ...] = ()

    async def look_once(self) -> Outcome:
        """Look into the boxes, and keep this node's own note alive."""
        found: set[PeerId] = set()
        today = notes.day_of(time.time())
        wrote, failure, asked = False, "", 0
        try:
            async with public_client(self._entrances, self._names) as client:
                box = await self._look_into(client, today, notes.box_of(self._peer), found, kad.CLOSEST)
                if box.closest:
                    wrote = await self._keep_own(client, box, today)
                    await self._look_around(client, found)
                else:
                    failure = "no node of the public DHT answers"
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
        return Outcome.FAILED if failure else Outcome.WROTE if wrote else Outcome.LOOKED

    async def _keep_own(self, client: PublicClient, box: _Box, today: int) -> bool:
        """Write into this node's own box if it should. Whether it wrote."""
        wall_s, addresses = time.time(), tuple(self._addresses())
        if client.witnesses.are_enough or client.witnesses.believed(addresses):
            self._believed = client.witnesses.believed(addresses)
        own = notes.note_of(self._peer, (*self._believed, *addresses), wall_s)
        if not notes.wants_writing(box.notes, own, wall_s):
            return False
        seed = notes.box_seed(self._rendezvous, today, notes.box_of(self._peer))
        written = notes.merged(box.notes, own, wall_s)
        sealed = notes.seal(self._rendezvous, today, written, os.urandom(12))
        sequence = min(box.sequence + 1, MAX_SEQUENCE)
        record = ipns.sign(seed, ipns.Record(sealed, sequence, wall_s + VALID_S))
        kept = await client.put(ipns.name_of(notes.public_key(seed)), record, box.closest)
        log.event(logger, "public_dht.written", level=10, count=kept)
        return kept > 0

    async def _look_around(self, client: PublicClient, found: set[PeerId]) -> None:
        """The other boxes: of today, and if nobody was there the last time either, of the days around."""
        today, yesterday, tomorrow = notes.days_around(time.time())
        others = [number for number in range(notes.BOXES) if number != notes.box_of(self._peer)]
        random.shuffle(others)
        if not self._is_alone():
            await self._look_into(client, today, others[0], found, READ_ENOUGH)
            return
        boxes = [(today, number) for number in others]
        if self._found_nobody % 2:
            boxes += [(day, number) for day in (yesterday, tomorrow) for number in range(notes.BOXES)]
        for day, number in boxes:
            if len(found) >= SOME or (found and day != today):
                break
            await self._look_into(client, day, number, found, READ_ENOUGH)
        self._found_nobody = 0 if found else self._found_nobody + 1

    async def _look_into(
        self, client: PublicClient, day: int, number: int, found: set[PeerId], enough: int
    ) -> _Box:
        """What lies in a box; what is of members goes to the dialler."""
        public = notes.public_key(notes.box_seed(self._rendezvous, day, number))
        wall_s, read = time.time(), dict[bytes, ipns.Record]()

        def is_good(value: bytes) -> bool:
            try:
                read[value] = ipns.read(public, value, wall_s)
            except ValueError as exc:
                log.event(logger, "public_dht.record_ignored", level=10, detail=str(exc))
                return False
            return True

        _, closest = await client.get(ipns.name_of(public), is_good, enough=enough, limit_s=LOOK_LIMIT_S)
        best = max(read.values(), key=lambda record: (record.sequence, record.until_s), default=None)
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
    look = partial(_txt_records, name)
    # (an outdated stub package does not know the argument)
    return await trio.to_thread.run_sync(look, abandon_on_cancel=True)  # type: ignore[call-arg]


def _txt_records(name: str) -> Sequence[Any]:
    import dns.exception
    import dns.resolver

    try:
        answer = dns.resolver.resolve(name, "TXT", lifetime=5.0)
    except (dns.exception.DNSException, OSError) as exc:
        raise OSError(f"{name}: {exc}") from exc
    return [b"".join(record.strings) for record in answer]
