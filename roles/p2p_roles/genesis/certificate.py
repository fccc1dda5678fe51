"""Did a quorum decide this?

A certificate carries the decided value and the signed votes of a quorum; anyone can check it, at any
time, with nothing but the mesh's id: voters' keys are inside their peer ids. That is why the ledger may
carry it: it only publishes what the quorum has signed.

`verify` can't know how many nodes there were; it checks the quorum against the N that all votes signed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from p2p_network import wire
from p2p_network.identity import verify as verify_signature
from p2p_roles.genesis import messages
from p2p_roles.genesis.messages import (
    GENESIS,
    MAX_EPOCH,
    MAX_ROUND,
    OUTCOME,
    VOTE_PURPOSE,
    Abort,
    Certificate,
    Genesis,
    Instance,
    Ready,
    Value,
    carries_on,
    decode_value,
    vote_payload,
)
from p2p_roles.view import MAX_NODES

MAX_CERTIFICATE_BYTES = 128 * 1024
EPOCHS_REMEMBERED = 8
"""An epoch that ended without a cluster is forgotten once another has ended so many later."""
_KEY_PREFIX = "genesis/"


def verify(certificate: Certificate, mesh_id: str) -> bool:
    """Whether a quorum of distinct peers of this mesh signed this value. Never raises."""
    instance = certificate.instance
    if not (
        1 <= certificate.nodes <= MAX_NODES
        and 1 <= instance.epoch <= MAX_EPOCH
        and instance.decree in (GENESIS, OUTCOME)
        and 1 <= certificate.ballot.round <= MAX_ROUND
    ):
        return False
    try:
        decode_value(certificate.value, instance.decree)
    except ValueError:
        return False
    voters = {vote.peer for vote in certificate.votes}
    needed = messages.quorum(certificate.nodes)
    if len(voters) != len(certificate.votes) or not needed <= len(voters) <= MAX_NODES:
        return False
    payload = vote_payload(mesh_id, instance, certificate.ballot, certificate.nodes, certificate.value)
    return all(
        verify_signature(vote.peer, VOTE_PURPOSE, payload, vote.signature) for vote in certificate.votes
    )


def key_of(certificate: Certificate) -> str:
    """The ledger key under which it is published: ``genesis/<scope>/<epoch>/<decree>``."""
    i = certificate.instance
    return f"{_KEY_PREFIX}{i.scope}/{i.epoch}/{i.decree}"


def prefix_of(scope: str) -> str:
    """Of the ledger keys of a scope's certificates; those of its regions begin with it too."""
    return f"{_KEY_PREFIX}{scope}/"


def scope_of(key: str) -> str:
    """The scope in a ledger key; "" if it is no certificate's."""
    return key[len(_KEY_PREFIX) :].rsplit("/", 2)[0] if key.startswith(_KEY_PREFIX) else ""


def outlived(scope: str, held: Iterable[tuple[str, bytes]]) -> tuple[str, ...]:
    """The keys, of those held, of epochs that nothing can rest on any more.

    An instance is opened by the outcome before it alone, and acceptors keep two epochs: so what was aborted
    long ago proves nothing to anybody, and while k3s is broken on every node an epoch more is aborted every
    half minute. Epochs in which a cluster came up stay for ever: they say whose word on roles counts.
    `held`: verified certificates.
    """
    known = [decode(raw) for key, raw in held if scope_of(key) == scope]
    newest = max((c.instance.epoch for c in known if c.instance.decree == OUTCOME), default=0)
    up = {c.instance.epoch for c in known if is_ready(c)}
    old = (c for c in known if c.instance.epoch <= newest - EPOCHS_REMEMBERED)
    return tuple(key_of(c) for c in old if c.instance.epoch not in up)


def encode(certificate: Certificate) -> bytes:
    """Its bytes, for the ledger and the disk."""
    return wire.encode(certificate)


def decode(raw: bytes) -> Certificate:
    """A certificate from untrusted bytes, not yet verified. Raises ValueError."""
    if len(raw) > MAX_CERTIFICATE_BYTES:
        raise ValueError(f"a certificate has at most {MAX_CERTIFICATE_BYTES} bytes, this has {len(raw)}")
    return wire.decode(raw, Certificate)


def verify_entry(key: str, raw: bytes, mesh_id: str) -> bool:
    """Whether `raw` may stand under the ledger key `key`: the ledger's policy for ``genesis/``."""
    try:
        certificate = decode(raw)
    except ValueError:
        return False
    return key == key_of(certificate) and verify(certificate, mesh_id)


def value_of(certificate: Certificate) -> Value:
    """The decided value of a verified certificate."""
    return _decided(certificate.value, certificate.instance.decree)


@lru_cache(maxsize=64)  # asked for at every step, of the few certificates that there are
def _decided(raw: bytes, decree: int) -> Value:
    return decode_value(raw, decree)


def is_abort(certificate: Certificate) -> bool:
    """Whether it ends its epoch without a cluster."""
    return certificate.instance.decree == OUTCOME and isinstance(value_of(certificate), Abort)


def is_ready(certificate: Certificate) -> bool:
    """Whether it says that the cluster of its epoch is up."""
    return certificate.instance.decree == OUTCOME and isinstance(value_of(certificate), Ready)


def genesis_of(certificate: Certificate) -> Genesis:
    """The value of a decree-1 certificate."""
    value = value_of(certificate)
    assert isinstance(value, Genesis), "a decree-1 certificate carries a Genesis"
    return value


def opens(instance: Instance, grounds: Certificate | None) -> bool:
    """Whether a verified certificate allows voting in `instance` (None: only the very first)."""
    if grounds is None:
        return instance.epoch == 1 and instance.decree == GENESIS
    before = grounds.instance
    if before.scope != instance.scope:
        return False
    if instance.decree == OUTCOME:
        return before.epoch == instance.epoch and before.decree == GENESIS
    return before.epoch == instance.epoch - 1 and before.decree == OUTCOME


def admits(grounds: Certificate | None, value: Value) -> str:
    """Why `value` may not be decided where `grounds` opened its instance; "" if it may.

    After a cluster was up, nothing begins from nothing any more: GENESIS must carry that cluster on, and
    whoever gives a recovery up must say of what.
    """
    up = 0
    if grounds is not None:
        before = value_of(grounds)
        up = grounds.instance.epoch if isinstance(before, Ready) else carries_on(before)
    match value:
        case Genesis() if up != carries_on(value):
            if up:
                return f"the cluster of epoch {up} was up: only its recovery may follow"
            return "there is no cluster that could be carried on"
        case Abort() if up != carries_on(value):
            return "ABORT must say which cluster's recovery it gives up"
        case _:
            return ""
