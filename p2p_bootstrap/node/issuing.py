"""What can a node do that holds the root: invite, certify, expel, rotate?

Everything here is a signed word in the ledger, so it holds on all nodes, also on those that are away now. A
member without the root passes a redemption on to one that has it, and is itself not believed: the proof
names both peers. One thing at a time, since uses are counted before they are written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from p2p_bootstrap.node.admission import SEAT_PURPOSE, Admission, NewKeys
from p2p_bootstrap.node.founding import Founding
from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.rotation import RotationVote
from p2p_bootstrap.node.runtime import Runtime
from p2p_network import sealed, wire
from p2p_network.admission import handshake
from p2p_network.admission.documents import (
    Announcement,
    Authority,
    Certificate,
    Invitation,
    Limit,
    Revocation,
    Seat,
    Withdrawal,
    certify,
    decode,
    encode,
)
from p2p_network.admission.join_token import SEED_BYTES, JoinToken, format_join_token, invite_key
from p2p_network.admission.kept import authority_of
from p2p_network.core import log
from p2p_network.core.errors import MeshError, NotPermitted, UsageError
from p2p_network.core.ids import PeerId, public_key_of
from p2p_network.identity import Identity
from p2p_network.ledger.policy import TABLE
from p2p_network.token import MAX_BOOTSTRAP, format_token, mesh_keys, rotated

if TYPE_CHECKING:
    from p2p_bootstrap.node.ports import Durable, Mesh

logger = log.get(__name__)

ISSUE_METHOD: Final = "admission.issue"
RELAY_TIMEOUT_S: Final = 2.0
RELAY_TRIES: Final = 2
MAX_TTL_S: Final = 366 * 24 * 3600
MAX_USES: Final = 10_000


class _Wanted(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A redemption passed on: who wants the certificate, and its proof."""

    claimant: str
    proof: handshake.Redemption


@dataclass(frozen=True, slots=True)
class InviteState:
    """An invitation and what became of it. `used_by`: peers, in the order that counts."""

    invitation: Invitation
    used_by: tuple[str, ...]
    state: str


class Issuing:
    """The root's hand on one node.

    Args:
        entropy: makes so many random bytes.
        minimum_nodes: see `Founding`.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        admission: Admission,
        identity: Identity,
        host: Mesh,
        replication: Replication,
        durable: Durable,
        entropy: Callable[[int], bytes],
        minimum_nodes: int = 1,
    ) -> None:
        self._runtime = runtime
        self._admission = admission
        self._self_id = identity.peer_id
        self._host = host
        self._replication = replication
        self._entropy = entropy
        self._one_at_a_time = runtime.lock()
        admission.redeemer = self.redeem
        host.serve(ISSUE_METHOD, self._answer_issue)
        self._vote = RotationVote(
            runtime=runtime,
            admission=admission,
            self_id=identity.peer_id,
            host=host,
            durable=durable,
            holders=self._holders,
            electorate=self._electorate,
        )
        self.founding = Founding(
            runtime=runtime,
            admission=admission,
            self_id=identity.peer_id,
            host=host,
            replication=replication,
            vote=self._vote,
            holders=self._holders,
            minimum_nodes=minimum_nodes,
        )

    def _authority(self) -> Authority:
        authority = self._admission.kept.authority
        if authority is None:
            raise NotPermitted(
                "this node does not hold the root of the mesh: it was admitted with a join token, "
                "or its network token was taken away",
                hint="run it on a node whose cloud-config has the network token",
            )
        return authority

    # ------------------------------------------------------------ invitations

    async def invite(
        self,
        *,
        limit: Limit,
        region: str,
        uses: int,
        ttl_s: float,
        member_ttl_s: float = 0.0,
        bootstrap: tuple[str, ...] = (),
    ) -> tuple[Invitation, str]:
        """A new invitation, and the join token's text. Raises NotPermitted, UsageError."""
        authority = self._authority()
        if not 0 < ttl_s <= MAX_TTL_S:
            raise UsageError(f"an invitation lives for up to {MAX_TTL_S // 86400} days, not {ttl_s:g} s")
        if not 1 <= uses <= MAX_USES:
            raise UsageError(f"an invitation is for 1 to {MAX_USES} nodes, not {uses}")
        most = TABLE["invite"].max_entries
        if sum(1 for _ in self._replication.ledger.items("invite/")) >= most:
            raise UsageError(
                f"the mesh has {most} invitations already, and they are kept as long as its keys",
                hint="let one admit more nodes (--uses), or make the old ones void: kairos-p2p token rotate",
            )
        now_ms, seed, kept = self._admission.now_ms(), self._entropy(SEED_BYTES), self._admission.kept
        invitation = authority.signed(
            Invitation(
                self._entropy(8).hex(),
                public_key_of(invite_key(seed).peer_id),
                authority.generation,
                limit,
                region,
                uses,
                now_ms,
                now_ms + int(ttl_s * 1000),
                int(member_ttl_s),
            )
        )
        await self._replication.write(f"invite/{invitation.id}", encode(invitation))
        token = JoinToken(
            seed,
            invitation.id,
            kept.mesh_id,
            authority.generation,
            kept.psks[kept.generation],
            kept.rendezvous,
            authority.public,
            invitation.expires_ms // 1000,
            bootstrap[:MAX_BOOTSTRAP],
            kept.dht,
            kept.mdns,
            kept.network_id,
        )
        self._runtime.log(logger, "admission.invited", count=uses, role=limit, region=region)
        return invitation, format_join_token(token)

    async def withdraw(self, invite: str) -> None:
        """An invitation is void from now on; who redeemed it stays. Raises NotPermitted, UsageError."""
        authority = self._authority()
        found = [i.invitation.id for i in self.invites() if i.invitation.id.startswith(invite) and invite]
        if len(found) != 1:
            raise UsageError(
                f"{len(found) or 'no'} invitations go by {invite!r}",
                hint="see them with: kairos-p2p token invites",
            )
        document = Withdrawal(found[0], authority.generation, self._admission.now_ms())
        await self._replication.write(f"withdrawn/{found[0]}", encode(authority.signed(document)))

    def invites(self) -> list[InviteState]:
        """All invitations, the latest first. Every member knows them; the secrets are in the join tokens."""
        trust, now_ms, found = self._admission.trust, self._admission.now_ms(), []
        for entry in self._replication.ledger.items("invite/"):
            assert entry.value is not None, "a live entry has a value"
            invitation = decode(entry.value, Invitation)
            used_by = tuple(use.peer for use in trust.uses(invitation.id))
            if trust.is_withdrawn(invitation.id):
                state = "withdrawn"
            elif invitation.generation < trust.generation:
                state = "rotated away"
            elif len(used_by) >= invitation.uses:
                state = "used up"
            else:
                state = "expired" if now_ms > invitation.expires_ms else "open"
            found.append(InviteState(invitation, used_by, state))
        return sorted(found, key=lambda i: (-i.invitation.created_ms, i.invitation.id))

    # ------------------------------------------------------------ certifying

    async def redeem(self, peer: PeerId, proof: handshake.Redemption, via: PeerId) -> bytes:
        """The certificate that a join token's holder gets through member `via`; b"" if none."""
        invitation = self._admission.trust.invitation(proof.invite)
        if invitation is not None and not handshake.is_redeemed(
            invitation.key, self._admission.kept.mesh_id, proof, peer, via
        ):
            return b""
        if self._admission.kept.authority is not None:
            return await self._certify(peer, proof.invite)
        return await self._pass_on(peer, proof)

    async def _certify(self, peer: PeerId, invite: str) -> bytes:
        async with self._one_at_a_time:
            now_ms, authority = self._admission.now_ms(), self._authority()
            known = next((c for c in self._admission.trust.uses(invite) if c.peer == peer), None)
            if known is not None and known.generation == authority.generation:
                return encode(known)  # its answer got lost
            invitation = self._admission.trust.may_redeem(invite, peer, now_ms)
            if invitation is None:
                return b""
            certificate = encode(
                certify(
                    authority,
                    peer,
                    issued_ms=now_ms,
                    limit=invitation.limit,
                    region=invitation.region,
                    expires_ms=now_ms + invitation.member_s * 1000 if invitation.member_s else 0,
                    invite=invite,
                )
            )
            await self._replication.write(f"use/{invite}/{peer}", certificate)
        self._runtime.log(logger, "admission.certified", peer=peer, reason=f"it redeemed invitation {invite}")
        return certificate

    async def _pass_on(self, peer: PeerId, proof: handshake.Redemption) -> bytes:
        """Ask members that hold the root."""
        holders = [
            other
            for other in sorted(self._host.connected())
            if (known := self._admission.verdict(other).certificate) is not None and known.is_issuer
        ]
        for other in holders[:RELAY_TRIES]:
            try:
                return await self._host.request(
                    other, ISSUE_METHOD, wire.encode(_Wanted(peer, proof)), timeout_s=RELAY_TIMEOUT_S
                )
            except MeshError as exc:
                self._runtime.log(
                    logger, "admission.not_passed_on", logging.DEBUG, peer=other, error=exc.message
                )
        return b""

    async def _answer_issue(self, peer: PeerId, payload: bytes) -> bytes:
        """A member passes a redemption on. Whether the proof was made for that member is checked here."""
        try:
            wanted = wire.decode(payload, _Wanted)
            claimant = PeerId(wanted.claimant)
            public_key_of(claimant)
        except ValueError as exc:
            raise MeshError(f"admission.issue: {exc}") from exc
        if self._admission.kept.authority is None or self._admission.trust.is_revoked(claimant):
            return b""
        invitation = self._admission.trust.invitation(wanted.proof.invite)
        genuine = invitation is not None and handshake.is_redeemed(
            invitation.key, self._admission.kept.mesh_id, wanted.proof, claimant, peer
        )
        return await self._certify(claimant, wanted.proof.invite) if genuine else b""

    # ------------------------------------------------------------ expelling and rotating

    async def revoke(self, peer: PeerId, reason: str) -> None:
        """Put a node out, everywhere and for ever. Raises NotPermitted, UsageError."""
        authority = self._authority()
        if peer == self._self_id:
            raise UsageError(
                "a node can't revoke itself",
                hint="to take it out: kairos-p2p leave; or revoke it from another",
            )
        document = Revocation(peer, authority.generation, self._mesh_ms(), reason[:200])
        await self._replication.write(f"revoked/{peer}", encode(authority.signed(document)))
        self._runtime.log(logger, "admission.revoked", peer=peer, reason=reason)
        await self._admission.look()

    async def rotate(self, *, force: bool = False) -> str:
        """New keys for all members; the new network token's text. Raises NotPermitted, MeshError.

        Two generations with one number would part the mesh for good, so most holders of the root vote for
        these keys first; `force`: the others are gone for ever, says the operator. If a rotation that began
        elsewhere was first, that one is completed and its token is the answer.
        """
        self._authority()
        if not force:
            self._check_holders()
        async with self._one_at_a_time:
            number, seed = self._authority().generation + 1, self._entropy(32)
            if not force:
                seed = await self._vote.decide(number, seed)
            old, kept = self._authority(), self._admission.kept
            token = kept.token
            assert token is not None, "who has an authority has its token"
            if kept.generation >= number:
                return format_token(token)
            new_token = rotated(
                mesh_keys(token, kept.network_id), kept.network_id, seed,
                bootstrap=kept.bootstrap, dht=kept.dht, mdns=kept.mdns,
            )  # fmt: skip
            keys = mesh_keys(new_token, kept.network_id)
            new = authority_of(keys)
            members = self._members()
            link = Announcement(new.generation, new.public, old.public, len(members), self._mesh_ms())
            words = [(f"generation/{new.generation}", encode(new.signed(old.announced(link))))]
            for certificate in members:
                seat = self._seat(new, certificate, NewKeys(keys.psk, seed if certificate.is_issuer else b""))
                words.append((f"seat/{new.generation}/{certificate.peer}", encode(seat)))
            # all or none: a new authority whose secret nobody has would be the end of the mesh
            await self._replication.write_all(words)
        self._runtime.log(logger, "admission.rotation_announced", count=len(members), to=new.generation)
        await self._admission.look()
        return format_token(new_token)

    def _mesh_ms(self) -> int:
        """When something is said that entries are compared with: not before those that are known here."""
        return max(self._admission.now_ms(), self._replication.ledger.clock_last.wall_ms)

    def _check_holders(self) -> None:
        holders = self._electorate()
        seen = {peer for peer in holders if peer == self._self_id or peer in self._host.connected()}
        if 2 * len(seen) <= len(holders):
            raise MeshError(
                f"only {len(seen)} of {len(holders)} nodes that hold the root are in sight: if others rotate "
                "too, the mesh is parted for good",
                hint="wait until most of them are connected (kairos-p2p peers); if they are gone for ever: "
                "--force",
            )

    def _holders(self) -> frozenset[str]:
        """Who holds the root, as far as this node knows."""
        return frozenset(c.peer for c in self._members() if c.is_issuer) | {self._self_id}

    def _electorate(self) -> frozenset[str]:
        """Whose votes count: the roster's, in the first generation the founding one's. Raises MeshError."""
        roster = self._admission.trust.electorate()
        if roster is None:  # an empty one is that of a generation which is over, and has no votes
            roster = self.founding.roster()
        if roster is None:
            raise MeshError(
                "the first nodes have not agreed yet on who votes about new keys: rotated on both sides of a "
                "partition, the mesh would be parted for good",
                hint="they do so by themselves once as many as p2p.minimum_nodes says are connected "
                "(kairos-p2p peers); if there is no other node with this token anywhere: --force",
            )
        return roster

    def _members(self) -> list[Certificate]:
        """Everybody who is a member now, also those that are away."""
        peers = {entry.key.rpartition("/")[2] for entry in self._replication.ledger.items("member/")}
        verdicts = (self._admission.verdict(peer) for peer in sorted({*peers, self._self_id}))
        return [v.certificate for v in verdicts if v.is_admitted and v.certificate is not None]

    def _seat(self, new: Authority, old: Certificate, keys: NewKeys) -> Seat:
        certificate = certify(
            new,
            PeerId(old.peer),
            issued_ms=old.issued_ms,
            is_issuer=old.is_issuer,
            limit=old.limit,
            region=old.region,
            expires_ms=old.expires_ms,
            invite=old.invite,
        )
        purpose = f"{SEAT_PURPOSE}/{new.mesh_id}/{new.generation}"
        box = sealed.seal(old.peer, purpose, wire.encode(keys), self._entropy(32))
        return new.signed(Seat(old.peer, new.generation, encode(certificate), box))
