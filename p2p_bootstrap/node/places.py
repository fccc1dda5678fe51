"""Where does this node stand in the network, in which region is that, and who says so?

Owns the machine of the node's network coordinate (`p2p_network.places`): asks one connected peer after the
other for its coordinate and measures how long that takes; quickly at first, seldom later. What follows for
the region is inferred (`p2p_network.regions`): of the others from what all nodes publish, of itself also from
what it measured. An inferred region is only shown, until a person confirms it or where ``p2p.region: auto``
says to take it; then it is kept on disk and never changes by itself.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, assert_never

import msgspec

from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.runner import Runner
from p2p_bootstrap.node.runtime import Runtime
from p2p_network import places, wire
from p2p_network.coordinates import Coordinate, rtt_s
from p2p_network.core import log
from p2p_network.core.errors import MeshError, RemoteViolation, RoleError
from p2p_network.core.ids import PeerId
from p2p_network.ledger.reading import read_by_peer
from p2p_network.membership import MemberState
from p2p_network.records import PlaceRecord
from p2p_network.regions import Inferred, Located, Own, infer, of_itself

if TYPE_CHECKING:
    from p2p_bootstrap.node.ports import Durable, Mesh

logger = log.get(__name__)

SAMPLE_METHOD: Final = "place.sample"
TABLE_METHOD: Final = "place.table"
CONFIRM_METHOD: Final = "place.confirm"
DURABLE_KEY: Final = "region"

QUICK_S: Final = 0.4
SLOW_S: Final = 15.0
QUICK_SAMPLES: Final = 100
"""So many round trips settle a coordinate (measured: 80, with three regions)."""
SAMPLE_TIMEOUT_S: Final = 5.0
TABLE_TIMEOUT_S: Final = 3.0
LOOK_EVERY_S: Final = 2.0
STEADY_LOOKS: Final = 3
PATIENCE_S: Final = 60.0
"""So long a node waits for who leads its group, or may, before it names the region itself."""
MAX_TABLE: Final = 1024

_THERE: Final = (MemberState.ALIVE, MemberState.SUSPECT)

How = Literal["declared", "confirmed", "auto", ""]


class Kept(msgspec.Struct, frozen=True):
    """What is on disk: the region of a node whose configuration names none."""

    region: str
    how: Literal["confirmed", "auto"]


class Told(msgspec.Struct, frozen=True):
    """The answer to a confirmation. `error`: why it was not done, "" if it was."""

    region: str
    how: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One node in the table of regions. `measured_s`: from this node, None if never; `estimated_s`: by the
    coordinates, None while one is unknown."""

    peer: PeerId
    hostname: str
    region: str
    how: str
    zone: str
    inferred: Inferred | None
    coordinate: Coordinate | None
    measured_s: float | None
    estimated_s: float | None
    itself: bool


class Places:
    """The place of one node.

    Args:
        declared: the configuration's region, "" if it names none.
        auto: take the inferred one.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        self_id: PeerId,
        declared: str,
        auto: bool,
        host: Mesh,
        replication: Replication,
        durable: Durable,
    ) -> None:
        self.changed = runtime.signal()  # measurements, for the cluster
        self.said = runtime.signal()  # what this node says of its region, for its record
        self._runtime = runtime
        self._self_id = self_id
        self._declared = declared
        self._auto = auto and not declared
        self._host = host
        self._replication = replication
        self._durable = durable
        self._kept: Kept | None = None
        self._steady: tuple[str, int] = ("", 0)
        self._began_at = runtime.monotonic()
        self._machine = places.Places(self_id, self._began_at)
        self._runner = Runner(runtime, "mesh.places", self._machine, self._carry_out, places.Tick, quiet=True)
        host.serve(SAMPLE_METHOD, self._answer_sample)
        host.serve(TABLE_METHOD, self._answer_table)
        host.serve(CONFIRM_METHOD, self._answer_confirm)

    # ------------------------------------------------------------ for the other columns

    @property
    def region(self) -> str:
        """The region that counts: declared, or confirmed; "" while there is none."""
        return self._declared or (self._kept.region if self._kept is not None else "")

    @property
    def how(self) -> How:
        """Who says so."""
        if self._declared:
            return "declared"
        return self._kept.how if self._kept is not None else ""

    @property
    def is_pending(self) -> bool:
        """Whether the region is still to be found out before it can be built upon."""
        return self._auto and self._kept is None

    @property
    def measured(self) -> dict[PeerId, float]:
        """Round trips from this node, seconds."""
        return dict(self._machine.measured)

    @property
    def coordinates(self) -> dict[PeerId, Coordinate]:
        """Where everybody stands, as far as told; this node as it is now."""
        told = read_by_peer(self._replication.ledger, "place/", PlaceRecord)
        found = {peer: record.coordinate for peer, record in told.items() if record.coordinate.is_sound}
        if self._machine.samples:
            found[self._self_id] = self._machine.coordinate
        return found

    def infer(self) -> dict[PeerId, Inferred]:
        """The region of every node, as far as it can be told."""
        found = infer(self._located())
        if self._self_id in found and not self.region:
            found[self._self_id] = self._own().inferred
        return found

    def _own(self) -> Own:
        here = {m.peer for m in self._replication.view.members if m.state in _THERE} | {self._self_id}
        nodes = [node for node in self._located() if node.region or node.peer in here]
        return of_itself(self._self_id, nodes, self._machine.measured, self._machine.young)

    def _located(self) -> list[Located]:
        where = self.coordinates
        return [
            Located(m.peer, self.region if m.peer == self._self_id else m.record.region, where.get(m.peer))
            for m in self._replication.view.members
            if m.record is not None and m.state is not MemberState.LEFT
        ]

    def rows(self) -> list[Row]:
        """Who is where."""
        where, measured, inferred = self.coordinates, self._machine.measured, self.infer()
        own = where.get(self._self_id)
        found = []
        for member in self._replication.view.members:
            record, itself = member.record, member.peer == self._self_id
            if record is None or member.state is MemberState.LEFT:
                continue
            at = where.get(member.peer)
            found.append(
                Row(
                    peer=member.peer,
                    hostname=record.hostname,
                    region=self.region if itself else record.region,
                    how=self.how if itself else record.region_how,
                    zone=record.zone,
                    inferred=inferred.get(member.peer),
                    coordinate=at,
                    measured_s=measured.get(member.peer),
                    estimated_s=rtt_s(own, at) if own and at and not itself else None,
                    itself=itself,
                )
            )
        return sorted(found, key=lambda row: (row.region, row.hostname, row.peer))

    # ------------------------------------------------------------ running

    async def load(self) -> None:
        """What was confirmed before; first of all calls. Raises StateError of the disk."""
        raw = await self._runtime.in_thread(self._durable.get, DURABLE_KEY)
        if raw is None:
            return
        try:
            self._kept = wire.decode(raw, Kept)
        except ValueError as exc:
            raise RoleError(
                f"the region kept on disk is damaged: {exc}",
                hint="write this node's region into the cloud-config: p2p.region",
            ) from exc

    async def run(self) -> None:
        """Measure, publish and look, until cancelled."""
        async with self._runtime.task_group() as tasks:
            tasks.start_soon(self._runner.run)
            tasks.start_soon(self._sample)
            tasks.start_soon(self._look)

    async def _carry_out(self, effect: places.Effect) -> None:
        match effect:
            case places.PublishPlace(coordinate):
                await self._replication.write(f"place/{self._self_id}", wire.encode(PlaceRecord(coordinate)))
            case _:
                assert_never(effect)

    async def _sample(self) -> None:
        """One peer after the other, quickly until this node knows where it stands."""
        asked: dict[PeerId, int] = {}
        pause = self._runtime.signal()
        while True:
            peers = self._host.connected()
            await self._runner.feed(places.PeersKnown(peers))
            asked = {peer: asked.get(peer, 0) for peer in peers}
            quick = self._is_quick(asked)
            if asked:
                peer = min(asked, key=lambda p: (asked[p], p))
                asked[peer] += 1
                await self._ask(peer)
            await pause.wait(timeout_s=QUICK_S if quick else SLOW_S)

    def _is_quick(self, asked: dict[PeerId, int]) -> bool:
        if not asked or min(asked.values()) < 2:
            return True  # a new peer is measured soon: the cluster's timing may rest on it
        return not self.region and self._machine.samples < QUICK_SAMPLES

    async def _ask(self, peer: PeerId) -> None:
        began = self._runtime.monotonic()
        try:
            raw = await self._host.request(peer, SAMPLE_METHOD, b"", timeout_s=SAMPLE_TIMEOUT_S)
            told = wire.decode(raw, Coordinate)
        except (MeshError, ValueError) as exc:
            self._runtime.log(logger, "places.sample_missing", logging.DEBUG, peer=peer, detail=str(exc))
            return
        took_s = self._runtime.monotonic() - began
        known = peer in self._machine.measured
        await self._runner.feed(places.Sampled(peer, told, took_s))
        if not known or self._machine.samples % 8 == 0:
            self.changed.raise_()

    async def _answer_sample(self, peer: PeerId, payload: bytes) -> bytes:
        return wire.encode(self._machine.coordinate)

    # ------------------------------------------------------------ the region

    async def _look(self) -> None:
        """With ``p2p.region: auto``: take the inferred region once it is steady."""
        pause = self._runtime.signal()
        while self.is_pending:
            await pause.wait(timeout_s=LOOK_EVERY_S)
            if not self._is_known:
                continue
            mine = self._own()
            region = mine.inferred.region
            name, seen = self._steady
            self._steady = (region, seen + 1 if name == region else 1)
            waited_s = self._runtime.monotonic() - self._began_at
            is_for_us = not mine.waits_for or waited_s >= PATIENCE_S
            if region and self._steady[1] >= STEADY_LOOKS and is_for_us:
                await self._keep(Kept(region, "auto"), mine.inferred.reason)

    @property
    def _is_known(self) -> bool:
        """Whether this node has a record: without one it is no member."""
        member = self._replication.view.get(self._self_id)
        return member is not None and member.record is not None

    async def _keep(self, kept: Kept, reason: str) -> None:
        await self._runtime.in_thread(self._durable.set, DURABLE_KEY, wire.encode(kept))
        self._kept = kept
        self._runtime.log(logger, "places.region_taken", region=kept.region, reason=f"{kept.how}: {reason}")
        self.said.raise_()

    async def confirm(self) -> Told:
        """A person agrees with what this node infers of itself: keep it."""
        if self._declared:
            return Told(self.region, self.how)  # nothing to confirm
        mine = self.infer().get(self._self_id)
        if self._kept is not None:
            await self._keep(Kept(self._kept.region, "confirmed"), "a person agreed")
        elif mine is None or not mine.region:
            return Told("", "", mine.reason if mine is not None else "this node has no record yet")
        else:
            await self._keep(Kept(mine.region, "confirmed"), f"a person agreed: {mine.reason}")
        return Told(self.region, self.how)

    async def confirm_all(self) -> dict[PeerId, Told]:
        """The same on every node that can be reached; what each answered. Groups' leaders first, so that
        the others find the name there."""
        answers: dict[PeerId, Told] = {self._self_id: await self.confirm()}
        inferred = self.infer()
        leaders = {i.leader for i in inferred.values() if i.leader}
        for peer in sorted(self._host.connected(), key=lambda p: (p not in leaders, p)):
            try:
                raw = await self._host.request(peer, CONFIRM_METHOD, b"", timeout_s=TABLE_TIMEOUT_S)
                answers[peer] = wire.decode(raw, Told)
            except (MeshError, ValueError) as exc:
                answers[peer] = Told("", "", str(exc)[:300])
        return answers

    async def _answer_confirm(self, peer: PeerId, payload: bytes) -> bytes:
        """A peer's operator agrees with what we infer of ourselves: nobody can make us say something else."""
        told = await self.confirm()
        self._runtime.log(logger, "places.confirmed", peer=peer, region=told.region, reason=told.error)
        return wire.encode(told)

    # ------------------------------------------------------------ the matrix

    async def matrix(self) -> dict[PeerId, dict[PeerId, float]]:
        """Measured round trips, seconds: row: who measured. Who does not answer in time has no row."""
        rows: dict[PeerId, dict[PeerId, float]] = {self._self_id: self.measured}

        async def ask(peer: PeerId) -> None:
            try:
                raw = await self._host.request(peer, TABLE_METHOD, b"", timeout_s=TABLE_TIMEOUT_S)
                table = wire.decode(raw, dict[str, float])
            except (MeshError, ValueError) as exc:
                self._runtime.log(logger, "places.table_missing", logging.DEBUG, peer=peer, detail=str(exc))
                return
            rows[peer] = {
                PeerId(other): value for other, value in [*table.items()][:MAX_TABLE] if 0 <= value <= 60
            }

        async with self._runtime.task_group() as tasks:
            for peer in sorted(self._host.connected()):
                tasks.start_soon(ask, peer)
        return rows

    async def _answer_table(self, peer: PeerId, payload: bytes) -> bytes:
        if payload:
            raise RemoteViolation("place.table takes no argument", peer=peer)
        return wire.encode(dict([*self._machine.measured.items()][:MAX_TABLE]))
