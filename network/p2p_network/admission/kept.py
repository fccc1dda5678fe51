"""What does a node keep of its admission, so that it needs no token after the first time?

`Kept` is one durable value per mesh: the pre-shared keys and authorities of the generations it knows, its own
certificate, and the root while it holds it. `from_network_token`, `from_join_token` and `without_token` say
what follows when the agent starts with one, with the other, or with none. Pure: time is passed in.

Who holds the root: a node whose configuration has the network token. If the token is taken out of it, the
node gives the root up at its next start and is an ordinary member from then on.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from p2p_network import wire
from p2p_network.admission.documents import Authority, Certificate, certify, decode, encode
from p2p_network.admission.join_token import JoinToken
from p2p_network.core.ids import PeerId
from p2p_network.token import MeshKeys, NetworkToken, mesh_keys

MAX_GENERATIONS: Final = 8
"""So many pre-shared keys are kept: a node that missed more rotations than that needs a new token."""

_Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Kept(msgspec.Struct, frozen=True):
    """A node's admission on disk. Secret as a whole.

    Attributes:
        generation: in force, as far as this node knows.
        psks, authorities: by generation; `authorities` are public keys.
        certificate: this node's own, b"" before the first admission.
        root: the network token's seed of `generation`, b"" if this node does not hold the root.
        invite, invite_seed: of the join token that is yet to be redeemed.
    """

    mesh_id: str
    network_id: str
    rendezvous: _Key
    generation: int
    psks: dict[int, _Key]
    authorities: dict[int, _Key]
    certificate: bytes = b""
    root: bytes = b""
    bootstrap: tuple[str, ...] = ()
    dht: bool = True
    mdns: bool = True
    invite: str = ""
    invite_seed: bytes = b""

    def __repr__(self) -> str:
        return f"Kept({self.mesh_id}, generation {self.generation})"

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Pre-shared keys, the one in force first, then the latest ones."""
        others = sorted((n for n in self.psks if n != self.generation), reverse=True)
        return tuple(self.psks[number] for number in (self.generation, *others))

    @property
    def own(self) -> Certificate | None:
        """This node's certificate."""
        return decode(self.certificate, Certificate) if self.certificate else None

    @property
    def token(self) -> NetworkToken | None:
        """The network token of the generation in force, if this node holds the root."""
        if not self.root:
            return None
        if self.generation == 1:
            return NetworkToken(self.root, self.bootstrap, self.dht, self.mdns)
        return NetworkToken(
            self.root,
            self.bootstrap,
            self.dht,
            self.mdns,
            generation=self.generation,
            mesh_id=self.mesh_id,
            network_id=self.network_id,
            rendezvous=self.rendezvous,
        )

    @property
    def authority(self) -> Authority | None:
        """What signs, if this node holds the root."""
        token = self.token
        return None if token is None else authority_of(mesh_keys(token, self.network_id))

    def moved(self, generation: int, psk: bytes, authority: bytes, certificate: bytes, root: bytes) -> Kept:
        """The same after a rotation."""
        psks = {**self.psks, generation: psk}
        for number in sorted(psks)[:-MAX_GENERATIONS]:
            del psks[number]
        return msgspec.structs.replace(
            self,
            generation=generation,
            psks=psks,
            authorities={**self.authorities, generation: authority},
            certificate=certificate,
            root=root,
        )

    def admitted(self, certificate: bytes) -> Kept:
        """The same with this certificate; the join token has done its work."""
        return msgspec.structs.replace(self, certificate=certificate, invite="", invite_seed=b"")


def authority_of(keys: MeshKeys) -> Authority:
    """The authority that a network token makes."""
    return Authority(keys.admission, keys.mesh_id, keys.generation)


def encode_kept(kept: Kept) -> bytes:
    """Its bytes, for the disk (0600)."""
    return wire.encode(kept)


def decode_kept(raw: bytes) -> Kept:
    """From this node's own disk. Raises ValueError."""
    kept = wire.decode(raw, Kept)
    if kept.generation not in kept.psks or kept.generation not in kept.authorities:
        raise ValueError("the keys of its generation are missing")
    return kept


def from_network_token(
    token: NetworkToken, network_id: str, kept: Kept | None, peer: PeerId, now_ms: int
) -> Kept:
    """What a node with a network token keeps: it certifies itself, unless it has moved on already."""
    keys = mesh_keys(token, network_id)
    authority = authority_of(keys)
    if kept is not None and kept.generation > token.generation:
        return kept  # the token was rotated; what came with the rotation counts
    if kept is None:
        kept = Kept(
            keys.mesh_id, network_id, keys.rendezvous, keys.generation, {keys.generation: keys.psk},
            {keys.generation: authority.public},
        )  # fmt: skip
    kept = msgspec.structs.replace(kept, bootstrap=token.bootstrap, dht=token.dht, mdns=token.mdns)
    own = kept.own
    if own is not None and own.is_issuer and own.generation == keys.generation:
        return msgspec.structs.replace(kept, root=token.seed)
    certificate = encode(certify(authority, peer, issued_ms=now_ms, is_issuer=True))
    return kept.moved(keys.generation, keys.psk, authority.public, certificate, token.seed)


def from_join_token(token: JoinToken, kept: Kept | None) -> Kept:
    """What a node with a join token keeps until it is admitted; one that is a member stays what it is."""
    if kept is not None and kept.certificate:
        return kept
    return Kept(
        mesh_id=token.mesh_id,
        network_id=token.network_id,
        rendezvous=token.rendezvous,
        generation=token.generation,
        psks={token.generation: token.psk},
        authorities={token.generation: token.authority},
        bootstrap=token.bootstrap,
        dht=token.dht,
        mdns=token.mdns,
        invite=token.invite,
        invite_seed=token.seed,
    )


def without_token(kept: Kept, peer: PeerId, now_ms: int) -> Kept:
    """A member whose token was taken out of its configuration: it gives the root up."""
    authority, own = kept.authority, kept.own
    if authority is None or own is None:
        return kept
    ordinary = certify(
        authority,
        peer,
        issued_ms=max(now_ms, own.issued_ms + 1),
        limit=own.limit,
        region=own.region,
        expires_ms=own.expires_ms,
        invite=own.invite,
    )
    return msgspec.structs.replace(kept, certificate=encode(ordinary), root=b"")
