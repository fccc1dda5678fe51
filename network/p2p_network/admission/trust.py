"""Is this peer a member, now, and why (not)?

`Trust` is a pure judge. It holds the chain of the authority's public keys, which generation is in force, and
reads the rest from the ledger: certificates (``member/``), seats of a rotation (``seat/``), revocations,
invitations and their uses. It also proves entries: the ledger's policy asks it about each of those keys.

A peer is admitted if somebody proved a certificate for it that

- the authority of the generation in force (or of a later one) signed, or an older one if the peer has a seat
  in the generation in force: so a leaked old token certifies nobody any more;
- has not expired, whose peer is not revoked, and that is not one too many for its invitation: of those that
  redeemed it the first `uses` count, by (issued, peer id), in an order that all nodes agree on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, TypeVar

from p2p_network.admission.documents import (
    Announcement,
    Certificate,
    D,
    Invitation,
    Revocation,
    Seat,
    Withdrawal,
    decode,
    encode,
    is_announced,
    is_signed,
)
from p2p_network.core.ids import PeerId, short
from p2p_network.ledger.entry import Entry

G = TypeVar("G", Invitation, Withdrawal, Certificate)

MAX_PRESENTED: Final = 4096
MAX_CHECKED: Final = 16_384


class Cause(StrEnum):
    """Why a peer is not admitted; labels the counters. The sentences are those of `Verdict.reason`."""

    NONE = ""
    STRANGER = "stranger"  # does not know a pre-shared key of the mesh; noticed before libp2p speaks
    SILENT = "silent"  # did not show a certificate in time
    MALFORMED = "malformed"
    UNCERTIFIED = "uncertified"
    FORGED = "forged"
    OUTDATED = "outdated"
    EXPIRED = "expired"
    REVOKED = "revoked"
    SURPLUS = "surplus"
    NOT_INVITED = "not_invited"


SENTENCES: Final[Mapping[Cause, str]] = {
    Cause.NONE: "it is a member",
    Cause.STRANGER: "it does not know the pre-shared key",
    Cause.SILENT: "it showed no certificate in time",
    Cause.MALFORMED: "what it said makes no sense",
    Cause.UNCERTIFIED: "it has no certificate of this mesh",
    Cause.FORGED: "its certificate is not signed by this mesh's authority",
    Cause.OUTDATED: "its certificate is of keys that were rotated away, and it was no member then",
    Cause.EXPIRED: "its certificate has expired",
    Cause.REVOKED: "it was revoked",
    Cause.SURPLUS: "its invitation had been used up before it",
    Cause.NOT_INVITED: "its join token is unknown, expired, withdrawn or used up",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `Trust` thinks of a peer. `certificate`: the best one known, if any."""

    cause: Cause
    certificate: Certificate | None = None

    @property
    def is_admitted(self) -> bool:
        """Whether the peer is a member."""
        return self.cause is Cause.NONE

    @property
    def reason(self) -> str:
        """One sentence."""
        return SENTENCES[self.cause]


class Words(Protocol):
    """The ledger, as far as it is read here."""

    def get(self, key: str) -> Entry | None:
        """The live entry of a key."""
        ...

    def items(self, prefix: str = "") -> Iterator[Entry]:
        """The live entries under a prefix."""
        ...


class Trust:
    """The judge of one node.

    Args:
        authorities: public keys by generation; at least the one in force.
        generation: the one in force.
        words: the ledger.
    """

    def __init__(self, mesh_id: str, authorities: Mapping[int, bytes], generation: int, words: Words) -> None:
        assert generation in authorities, "the authority in force is known"
        self.mesh_id = mesh_id
        self.generation = generation
        self.surplus: frozenset[str] = frozenset()
        self._authorities = dict(authorities)
        self._words = words
        self._announced: dict[int, Announcement] = {}
        self._presented: dict[str, Certificate] = {}
        self._told: dict[str, bytes] = {}  # revocations heard of in handshakes, before the ledger has them
        self._checked: dict[tuple[bytes, bytes], bool] = {}

    def attach(self, words: Words) -> None:
        """The ledger, which is made after its judge."""
        self._words = words

    # ------------------------------------------------------------ judging peers

    def verdict(self, peer: str, now_ms: int) -> Verdict:
        """Whether a peer is a member. `now_ms`: Unix milliseconds."""
        certificate = self.certificate_of(peer)
        if peer in self._told or self._words.get(f"revoked/{peer}") is not None:
            return Verdict(Cause.REVOKED, certificate)
        if certificate is None:
            return Verdict(Cause.UNCERTIFIED)
        if certificate.generation < self.generation:
            return Verdict(Cause.OUTDATED, certificate)
        if certificate.expires_ms and now_ms > certificate.expires_ms:
            return Verdict(Cause.EXPIRED, certificate)
        if peer in self.surplus:
            return Verdict(Cause.SURPLUS, certificate)
        return Verdict(Cause.NONE, certificate)

    def spoke(self, peer: str, wall_ms: int, now_ms: int) -> bool:
        """Whether a peer was a member at that moment; of one that was put out, whether it was before that.

        A certificate that was only shown to us does not do: whoever hears its words from us must be able to
        judge them too.
        """
        verdict = self.verdict(peer, now_ms)
        match verdict.cause:
            case Cause.NONE:
                return self.is_recorded(peer)
            case Cause.REVOKED:
                return wall_ms <= self._at_ms(self.proof_of_revocation(peer))
            case Cause.OUTDATED:
                link = self._announced.get(self.generation)
                return link is not None and wall_ms <= link.at_ms
            case Cause.EXPIRED:
                known = verdict.certificate if self.is_recorded(peer) else None
                return known is not None and wall_ms <= known.expires_ms
            case _:
                return False

    def certificate_of(self, peer: str) -> Certificate | None:
        """The best certificate that is known of a peer; of an older generation if there is no other."""
        found = []
        if (presented := self._presented.get(peer)) is not None:
            found.append(presented)
        for key in (f"member/{peer}", *(f"seat/{n}/{peer}" for n in self._recent())):
            entry = self._words.get(key)
            if entry is None or entry.value is None:
                continue
            certificate = self._certificate_in(key, entry.value)
            if certificate is not None and certificate.peer == peer:
                found.append(certificate)
        return max(found, key=lambda c: (c.generation, c.is_issuer, c.issued_ms, c.signature), default=None)

    def is_recorded(self, peer: str) -> bool:
        """Whether the ledger itself has a certificate of a peer, for everybody to judge by."""
        return any(
            self._words.get(key) is not None
            for key in (f"member/{peer}", *(f"seat/{n}/{peer}" for n in self._recent()))
        )

    def present(self, raw: bytes, peer: str) -> Cause:
        """A peer shows its certificate: note it. What is wrong with it, NONE if nothing."""
        if not raw:
            return Cause.NONE
        try:
            certificate = decode(raw, Certificate)
        except ValueError:
            return Cause.MALFORMED
        if certificate.peer != peer or not self._is_signed(certificate, certificate.generation):
            return Cause.FORGED
        if len(self._presented) >= MAX_PRESENTED:
            del self._presented[next(iter(self._presented))]
        self._presented[peer] = certificate
        return Cause.NONE

    def tell_revoked(self, raw: bytes) -> Revocation | None:
        """A revocation heard of in a handshake; None if it is not genuine."""
        try:
            revocation = decode(raw, Revocation)
        except ValueError:
            return None
        if not self._is_signed(revocation, revocation.generation):
            return None
        self._told[revocation.peer] = raw
        return revocation

    def is_revoked(self, peer: str) -> bool:
        """Whether the authority put this peer out."""
        return peer in self._told or self._words.get(f"revoked/{peer}") is not None

    def told(self) -> dict[str, bytes]:
        """Revocations that the ledger does not have yet."""
        return {p: raw for p, raw in self._told.items() if self._words.get(f"revoked/{p}") is None}

    def known_out(self) -> set[str]:
        """All peers that are revoked."""
        return {*self._told, *(entry.key.rpartition("/")[2] for entry in self._words.items("revoked/"))}

    def proof_of_revocation(self, peer: str) -> bytes:
        """The authority's word that a peer is out, b"" if there is none."""
        entry = self._words.get(f"revoked/{peer}")
        return (entry.value if entry is not None else None) or self._told.get(peer, b"")

    def revocations(self) -> list[bytes]:
        """All that are known, newest first."""
        found = dict(self._told)
        found |= {e.key.rpartition("/")[2]: e.value for e in self._words.items("revoked/") if e.value}
        times = [(self._at_ms(raw), raw) for raw in found.values()]
        return [raw for _, raw in sorted(times, reverse=True)]

    def _at_ms(self, raw: bytes) -> int:
        try:
            return decode(raw, Revocation).at_ms
        except ValueError:
            return 0

    # ------------------------------------------------------------ invitations

    def invitation(self, invite: str) -> Invitation | None:
        """A genuine invitation of the generation in force."""
        entry = self._words.get(f"invite/{invite}")
        if entry is None or entry.value is None:
            return None
        found = self._decoded(entry.value, Invitation)
        return found if found is not None and found.generation >= self.generation else None

    def is_withdrawn(self, invite: str) -> bool:
        """Whether the authority withdrew it."""
        return self._words.get(f"withdrawn/{invite}") is not None

    def uses(self, invite: str) -> list[Certificate]:
        """Who redeemed an invitation, in the order that counts."""
        found = (self._decoded(e.value, Certificate) for e in self._words.items(f"use/{invite}/") if e.value)
        return sorted((c for c in found if c is not None), key=lambda c: (c.issued_ms, c.peer))

    def may_redeem(self, invite: str, peer: str, now_ms: int) -> Invitation | None:
        """The invitation, if this peer can be certified by it now."""
        found = self.invitation(invite)
        if found is None or self.is_withdrawn(invite) or now_ms > found.expires_ms:
            return None
        others = [use for use in self.uses(invite) if use.peer != peer]
        return found if len(others) < found.uses else None

    def count_uses(self) -> frozenset[str]:
        """Settle all invitations anew; the peers that are one too many. O(ledger)."""
        by_invite: dict[str, list[Certificate]] = {}
        for entry in self._words.items("use/"):
            certificate = self._decoded(entry.value, Certificate) if entry.value else None
            if certificate is not None:
                by_invite.setdefault(certificate.invite, []).append(certificate)
        surplus: set[str] = set()
        for invite, uses in by_invite.items():
            entry = self._words.get(f"invite/{invite}")  # type: ignore[assignment]
            invitation = self._decoded(entry.value, Invitation) if entry and entry.value else None
            if invitation is not None:
                ordered = sorted(uses, key=lambda c: (c.issued_ms, c.peer))
                surplus.update(use.peer for use in ordered[invitation.uses :])
        # who holds the root, or was certified in another way, does not depend on an invitation
        kept = {peer for peer in surplus if (c := self.certificate_of(peer)) is not None and not c.invite}
        self.surplus = frozenset(surplus - kept)
        return self.surplus

    # ------------------------------------------------------------ generations

    @property
    def authorities(self) -> Mapping[int, bytes]:
        """Public keys of the generations that are known, by number."""
        return self._authorities

    def announcements(self) -> tuple[bytes, ...]:
        """The chain from generation to generation, as far as it is known."""
        self._learn_from_ledger()
        return tuple(encode(self._announced[number]) for number in sorted(self._announced))

    def learn(self, raw: bytes) -> bool:
        """A link of the chain; whether it fits to what is known. Two that contradict don't both fit."""
        try:
            link = decode(raw, Announcement)
        except ValueError:
            return False
        known, before = self._authorities.get(link.number), self._authorities.get(link.number - 1)
        if known is None and before is None:
            return False
        if known not in (None, link.authority) or before not in (None, link.previous):
            return False
        if not is_announced(link, self.mesh_id):
            return False
        self._authorities[link.number] = link.authority
        self._authorities[link.number - 1] = link.previous
        self._announced[link.number] = link
        return True

    def settle(self) -> int:
        """Go on to the newest generation whose whole roster is known; the number in force then."""
        self._learn_from_ledger()
        for number in sorted(self._announced, reverse=True):
            if number <= self.generation:
                break
            if self.seats(number) >= self._announced[number].members:
                self.generation = number
                self._presented = {p: c for p, c in self._presented.items() if c.generation >= number}
                break
        return self.generation

    def seats(self, number: int) -> int:
        """How many members of a generation's roster are known."""
        return sum(1 for _ in self._words.items(f"seat/{number}/"))

    def outlived(self) -> set[str]:
        """Ledger keys that count for nothing since the newest generation whose roster is known whole.

        Everybody moves to that one, however long it was away, so older seats, invitations and their uses are
        void: a mesh that rotates its keys now and then never fills their classes.
        """
        self._learn_from_ledger()
        seats = [(int(entry.key.split("/")[1]), entry.key) for entry in self._words.items("seat/")]
        known = Counter(number for number, _ in seats)
        newest = max((n for n, link in self._announced.items() if known[n] >= link.members), default=0)
        gone = {key for number, key in seats if number < newest}
        gone.update(self._older("invite/", Invitation, newest))
        gone.update(self._older("withdrawn/", Withdrawal, newest))
        gone.update(self._older("use/", Certificate, newest))
        return gone

    def _older(self, prefix: str, kind: type[G], number: int) -> Iterator[str]:
        for entry in self._words.items(prefix):
            if entry.value is not None and decode(entry.value, kind).generation < number:
                yield entry.key

    def electorate(self) -> frozenset[str] | None:
        """Who decides on the next keys: those that got the root in the generation in force.

        Its roster is signed and known whole (`settle`), so it is the same set on both sides of any partition,
        and nobody adds himself to it by joining. None in the first generation, which has no roster.
        """
        if self.generation == 1:
            return None
        certificates = (
            self._certificate_in(entry.key, entry.value)
            for entry in self._words.items(f"seat/{self.generation}/")
            if entry.value is not None
        )
        return frozenset(c.peer for c in certificates if c is not None and c.is_issuer)

    def seat(self, peer: str, number: int) -> Seat | None:
        """A member's place in a generation."""
        entry = self._words.get(f"seat/{number}/{peer}")
        return self._decoded(entry.value, Seat) if entry is not None and entry.value else None

    def _learn_from_ledger(self) -> None:
        """Follow the chain both ways from what is known."""
        for step in (1, -1):
            number = (max if step == 1 else min)(self._authorities) + (step == 1)
            while (entry := self._words.get(f"generation/{number}")) is not None and entry.value is not None:
                if not self.learn(entry.value):
                    break
                number += step

    def _recent(self) -> Iterable[int]:
        """Generations whose seats count: the one in force and those that follow."""
        return [number for number in self._authorities if number >= self.generation]

    # ------------------------------------------------------------ proving ledger entries

    def proven(self, key: str, value: bytes) -> bytes | None:
        """What an entry of one of our classes says, if the authority said it; None if it didn't."""
        name, _, rest = key.partition("/")
        match name:
            case "revoked":
                revocation = self._decoded(value, Revocation)
                return rest.encode() if revocation is not None and revocation.peer == rest else None
            case "invite":
                invitation = self._decoded(value, Invitation)
                return value if invitation is not None and invitation.id == rest else None
            case "withdrawn":
                withdrawal = self._decoded(value, Withdrawal)
                return rest.encode() if withdrawal is not None and withdrawal.id == rest else None
            case "use":
                use = self._decoded(value, Certificate)
                fits = use is not None and bool(use.invite) and f"{use.invite}/{use.peer}" == rest
                return rest.encode() if fits else None
            case "seat":
                seat = self._decoded(value, Seat)
                fits = seat is not None and f"{seat.generation}/{seat.peer}" == rest
                return rest.encode() if fits and self._certificate_in(key, value) is not None else None
            case "generation":
                return value if self._is_link(rest, value) else None
            case _:
                return None

    def _is_link(self, number: str, value: bytes) -> bool:
        try:
            return str(decode(value, Announcement).number) == number and self.learn(value)
        except ValueError:
            return False

    def owns(self, key: str, value: bytes) -> bool:
        """Whether ``member/<peer>`` holds a certificate of that peer."""
        certificate = self._decoded(value, Certificate)
        return certificate is not None and key == f"member/{certificate.peer}"

    def _certificate_in(self, key: str, value: bytes) -> Certificate | None:
        if key.startswith("member/"):
            return self._decoded(value, Certificate)
        seat = self._decoded(value, Seat)
        if seat is None:
            return None
        certificate = self._decoded(seat.certificate, Certificate)
        fits = certificate is not None and (certificate.peer, certificate.generation) == (
            seat.peer,
            seat.generation,
        )
        return certificate if fits else None

    def _decoded(self, raw: bytes, kind: type[D]) -> D | None:
        """A document that its generation's authority signed."""
        try:
            document = decode(raw, kind)
        except ValueError:
            return None
        number = document.number if isinstance(document, Announcement) else document.generation
        return document if self._is_signed(document, number) else None

    def _is_signed(self, document: D, number: int) -> bool:
        authority = self._authorities.get(number)
        if authority is None:
            self._learn_from_ledger()
            authority = self._authorities.get(number)
        if authority is None:
            return False
        # judged for every entry of its author: a signature is checked once
        known = (authority, encode(document))
        verdict = self._checked.get(known)
        if verdict is None:
            if len(self._checked) >= MAX_CHECKED:
                self._checked.clear()
            verdict = self._checked[known] = is_signed(document, authority, self.mesh_id)
        return verdict

    def __repr__(self) -> str:
        return f"Trust({self.mesh_id}, generation {self.generation})"


def describe(peer: str, verdict: Verdict) -> str:
    """For a log or a person."""
    return f"peer {short(peer)}: {verdict.reason}"


def limit_of(words: Words, peer: PeerId) -> Certificate | None:
    """The certificate under ``member/<peer>``, which the ledger's policy has proven."""
    entry = words.get(f"member/{peer}")
    if entry is None or entry.value is None:
        return None
    try:
        return decode(entry.value, Certificate)
    except ValueError:
        return None
