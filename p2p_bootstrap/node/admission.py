"""Who may take part, and with which keys, as this node sees it?

Owns the judge (`p2p_network.admission.Trust`) and what this node keeps of its own admission. It is the mesh
host's gate (`host.gate.Gate`: nobody says anything before both sides showed a certificate), fills the blanks
of the ledger's policy, and watches the ledger: a revocation, an invitation used too often or a rotation there
has its effect here within a moment, whoever brought it. `issuing` holds what only a holder of the root does.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.runtime import Runtime, Signal, TaskGroup
from p2p_network import sealed, wire
from p2p_network.admission import handshake
from p2p_network.admission.documents import Certificate, Limit, Revocation, decode, encode
from p2p_network.admission.join_token import invite_key
from p2p_network.admission.kept import Kept, encode_kept
from p2p_network.admission.trust import SENTENCES, Cause, Trust, Verdict
from p2p_network.core import log
from p2p_network.core.ids import PeerId
from p2p_network.identity import Identity
from p2p_network.ledger.entry import Entry

if TYPE_CHECKING:
    from p2p_bootstrap.node.ports import Durable, Mesh

logger = log.get(__name__)

LOOK_EVERY_S: Final = 30.0
SEAT_PURPOSE: Final = "seat"
PREFIXES: Final = ("member/", "revoked/", "invite/", "withdrawn/", "use/", "generation/", "seat/")
OUT: Final = frozenset({Cause.REVOKED, Cause.SURPLUS, Cause.OUTDATED, Cause.EXPIRED})
"""Causes for which a peer's words are forgotten; one without a certificate may still show one."""


def durable_key(mesh_id: str) -> str:
    """Where `Kept` rests."""
    return f"admission/{mesh_id}"


class NewKeys(msgspec.Struct, frozen=True, array_like=True):
    """What is sealed into a seat. `root`: b"" for a member that does not issue."""

    psk: bytes
    root: bytes


Redeemer = Callable[[PeerId, handshake.Redemption, PeerId], Awaitable[bytes]]
"""(claimant, proof, via) -> the certificate, b"" for none."""


async def _refuse(peer: PeerId, proof: handshake.Redemption, via: PeerId) -> bytes:
    return b""


class _NoWords:
    """The ledger before there is one."""

    def get(self, key: str) -> Entry | None:
        return None

    def items(self, prefix: str = "") -> Iterator[Entry]:
        return iter(())


class Admission:
    """One node's part in admitting and expelling.

    Args:
        kept: what the node's tokens and its disk say (`admission.kept`).
        moved: raised when the keys were rotated here.
    """

    def __init__(
        self, *, runtime: Runtime, identity: Identity, kept: Kept, durable: Durable, moved: Signal
    ) -> None:
        self.kept = kept
        self.trust = Trust(kept.mesh_id, kept.authorities, kept.generation, _NoWords())
        self.refused_by: Cause = Cause.NONE  # the last word of a peer that does not admit this node
        self._runtime = runtime
        self._identity = identity
        self._self_id = identity.peer_id
        self._durable = durable
        self._moved = moved
        self._host: Mesh | None = None
        self._replication: Replication | None = None
        self._tasks: TaskGroup | None = None
        self._expelled: frozenset[str] = frozenset()
        self._changed = runtime.signal()
        self._unsaved = False
        self._saving = runtime.lock()
        self.redeemer: Redeemer = _refuse  # set by `issuing`
        self.trust.present(kept.certificate, self._self_id)

    def attach(self, host: Mesh, replication: Replication) -> None:
        """The other columns, which are made after this one."""
        self._host, self._replication = host, replication
        self.trust.attach(replication.ledger)
        for prefix in PREFIXES:
            replication.subscribe(prefix, self._changed)

    # ------------------------------------------------------------ for the other columns

    def now_ms(self) -> int:
        """Unix milliseconds, as this machine has it."""
        return int(self._runtime.wall_s() * 1000)

    def verdict(self, peer: str) -> Verdict:
        """Whether a peer is a member, now."""
        return self.trust.verdict(peer, self.now_ms())

    def admits(self, author: str) -> bool:
        """For the ledger's policy. What we say ourselves is for the others to judge.

        A certificate that was only shown to us in a handshake does not do: whoever gets the entry from us
        must be able to judge it too, also when its author is gone before they meet.
        """
        return author == self._self_id or (
            self.trust.is_recorded(author) and self.verdict(author).is_admitted
        )

    def spoke(self, author: str, wall_ms: int) -> bool:
        """For the ledger's policy: whether the author was a member when it wrote something."""
        return author == self._self_id or self.trust.spoke(author, wall_ms, self.now_ms())

    @property
    def own(self) -> Verdict:
        """Whether this node itself is a member, as far as it knows."""
        return self.verdict(self._self_id)

    @property
    def region(self) -> str:
        """The region that this node's certificate confines it to, "" for any."""
        own = self.kept.own
        return own.region if own is not None else ""

    @property
    def limit(self) -> Limit:
        """The role that this node's certificate confines it to."""
        own = self.kept.own
        return own.limit if own is not None else "any"

    # ------------------------------------------------------------ the host's gate

    def keys(self) -> tuple[bytes, ...]:
        """Pre-shared keys: the one in force, then those before it."""
        return self.kept.keys

    def may_dial(self, peer: PeerId) -> bool:
        """Not those that are out for good."""
        return peer not in self._expelled and not self.trust.is_revoked(peer)

    def claim(self, peer: PeerId) -> bytes:
        """What this node shows a peer."""
        redemption = None
        if not self.kept.certificate and self.kept.invite:
            key = invite_key(self.kept.invite_seed)
            redemption = handshake.redeem(key, self.kept.mesh_id, self.kept.invite, self._self_id, peer)
        return handshake.encode(self._claim(redemption))

    def _claim(self, redemption: handshake.Redemption | None = None) -> handshake.Claim:
        return handshake.Claim(
            self.kept.mesh_id,
            self.kept.certificate,
            self.trust.announcements()[-handshake.MAX_LINKS :],
            tuple(self.trust.revocations()[: handshake.MAX_REVOCATIONS]),
            redemption,
        )

    def judge(self, peer: PeerId, claim: handshake.Claim) -> Cause:
        """What a peer's claim is worth. What it proves of others is noted too."""
        if claim.mesh_id != self.kept.mesh_id:
            return Cause.FORGED
        for link in claim.links:
            self.trust.learn(link)
        cause = self.trust.present(claim.certificate, peer)
        if cause is not Cause.NONE:
            return cause
        verdict = self.verdict(peer)
        if verdict.is_admitted:
            self._hear_revocations(claim.revocations)
            verdict = self.verdict(peer)
        return verdict.cause

    async def answer(self, peer: PeerId, claim: bytes) -> tuple[bytes, str]:
        """To a peer that dialled us."""
        issued = b""
        try:
            shown = handshake.decode_claim(claim)
        except ValueError:
            cause = Cause.MALFORMED
        else:
            cause = self.judge(peer, shown)
            if cause is Cause.UNCERTIFIED and shown.redemption is not None:
                issued = await self.redeemer(peer, shown.redemption, self._self_id)
                cause = Cause.NOT_INVITED
                if issued:
                    self.trust.present(issued, peer)
                    cause = self.verdict(peer).cause
        if cause is Cause.NONE:
            return handshake.encode(handshake.Answer("", self._claim(), issued)), ""
        proof = self.trust.proof_of_revocation(peer) if cause is Cause.REVOKED else b""
        return handshake.encode(handshake.Answer(cause, None, b"", proof)), cause

    def conclude(self, peer: PeerId, answer: bytes) -> tuple[str, bool]:
        """What the answer of a peer that we dialled comes to."""
        try:
            heard = handshake.decode_answer(answer)
        except ValueError:
            return Cause.MALFORMED, False
        if heard.cause or heard.claim is None:
            return self._refused(heard), True
        cause = self.judge(peer, heard.claim)
        if cause is not Cause.NONE:
            return cause, False
        self.refused_by = Cause.NONE
        if heard.certificate and not self.kept.certificate:
            self._adopt(heard.certificate)
        return "", False

    def _refused(self, heard: handshake.Answer) -> str:
        """A peer does not want us. Believed for the record only, unless the authority's proof is with it."""
        cause = next((cause for cause in Cause if cause and cause == heard.cause), Cause.MALFORMED)
        if heard.proof:
            self._hear_revocations((heard.proof,))
        if cause is not self.refused_by:
            self._runtime.log(
                logger, "admission.refused_by_peer", logging.WARNING, reason=f"about us: {SENTENCES[cause]}"
            )
        self.refused_by = cause
        return cause

    def _adopt(self, raw: bytes) -> None:
        """The certificate that our join token was redeemed for."""
        if self.trust.present(raw, self._self_id) is not Cause.NONE:
            self._runtime.log(logger, "admission.bad_certificate", logging.WARNING, reason="not for us")
            return
        self.kept = self.kept.admitted(raw)
        own = decode(raw, Certificate)
        self._runtime.log(
            logger, "admission.admitted", role=own.limit, region=own.region, reason=f"invitation {own.invite}"
        )
        self._unsaved = True
        self._changed.raise_()

    def _hear_revocations(self, proofs: tuple[bytes, ...]) -> None:
        for raw in proofs:
            try:
                peer = decode(raw, Revocation).peer
            except ValueError:
                continue
            if not self.trust.is_revoked(peer) and self.trust.tell_revoked(raw) is not None:
                self._changed.raise_()

    # ------------------------------------------------------------ running

    async def start(self) -> None:
        """Make durable what the agent was started with; before anything is said."""
        await self._save()
        if self._replication is not None:
            self.trust.settle()
            self._follow_rotation()
            self.trust.count_uses()
            # of keys that this node had agreed on apart from the mesh that it was brought into since
            words = [e for kind in ("generation/", "seat/") for e in self._replication.ledger.items(kind)]
            lost = (e.key for e in words if e.value and self.trust.proven(e.key, e.value) is None)
            await self._replication.unlearn(tuple(lost))
            # a certificate may be lost with a damaged row: nobody would take its owner's words from us
            authors = self._replication.authors() - {self._self_id}
            await self._replication.forget(frozenset(a for a in authors if not self.trust.is_recorded(a)))

    async def run(self) -> None:
        """Watch the ledger until cancelled."""
        async with self._runtime.task_group() as tasks:
            self._tasks = tasks
            self._changed.raise_()
            while True:
                await self._changed.wait(LOOK_EVERY_S)  # certificates may expire meanwhile
                await self.look()

    async def look(self) -> None:
        """Let everything that the ledger says have its effect."""
        assert self._replication is not None, "attach() comes first"
        self.trust.settle()
        if self._follow_rotation():
            self._unsaved = True
        if self._unsaved:
            await self._save()
        if self.kept.certificate:
            await self._replication.write(f"member/{self._self_id}", self.kept.certificate)
        await self._publish_revocations()
        self.trust.count_uses()
        await self._expel()

    async def _save(self) -> None:
        async with self._saving:
            self._unsaved = False
            raw = encode_kept(self.kept)
            key = durable_key(self.kept.mesh_id)
            if await self._runtime.in_thread(self._durable.get, key) != raw:
                await self._runtime.in_thread(self._durable.set, key, raw)

    async def _publish_revocations(self) -> None:
        assert self._replication is not None
        for peer, raw in self.trust.told().items():
            await self._replication.write(f"revoked/{peer}", raw)

    async def _expel(self) -> None:
        """End what there is with peers that are members no more."""
        assert self._replication is not None
        assert self._host is not None
        concerned = self._replication.authors() | self._host.connected() | self.trust.known_out()
        verdicts = {peer: self.verdict(peer) for peer in sorted(concerned) if peer != self._self_id}
        out = {peer: verdict for peer, verdict in verdicts.items() if verdict.cause in OUT}
        for peer in sorted(out.keys() - self._expelled):
            self._runtime.log(logger, "admission.peer_expelled", peer=peer, reason=out[peer].reason)
        self._expelled = frozenset(out)
        # connections made with what is not known any more: they come back with a new certificate, or not
        for peer in sorted(self._host.connected()):
            if not verdicts[peer].is_admitted:
                self._host.expel(peer, verdicts[peer].reason)
        await self._replication.expel({PeerId(peer): verdict.reason for peer, verdict in out.items()})

    def _follow_rotation(self) -> bool:
        """Move to the generation in force; whether that is another one."""
        number = self.trust.generation
        if number <= self.kept.generation:
            return False
        seat = self.trust.seat(self._self_id, number)
        if seat is None:
            self._runtime.log(
                logger, "admission.left_behind", logging.WARNING,
                reason=f"the keys were rotated (generation {number}) and this node was no member then",
            )  # fmt: skip
            return False
        try:
            purpose = f"{SEAT_PURPOSE}/{self.kept.mesh_id}/{number}"
            new = wire.decode(sealed.unseal(self._identity, purpose, seat.sealed), NewKeys)
            own = decode(seat.certificate, Certificate)
        except ValueError as exc:
            self._runtime.log(logger, "admission.seat_unreadable", logging.ERROR, detail=str(exc))
            return False
        self.kept = self.kept.moved(
            number, new.psk, self.trust.authorities[number], encode(own), new.root if own.is_issuer else b""
        )
        self.trust.present(self.kept.certificate, self._self_id)
        self._runtime.log(logger, "admission.rotated", to=number, reason="this node has the new keys")
        self._moved.raise_()
        return True
