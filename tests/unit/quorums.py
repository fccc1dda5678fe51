"""Which certificate does a quorum make that votes for a value? For tests of all that reads one."""

from __future__ import annotations

from collections.abc import Sequence

from p2p_network.identity import Identity
from p2p_roles.genesis.messages import (
    VOTE_PURPOSE,
    Ballot,
    Certificate,
    Instance,
    Value,
    Vote,
    encode_value,
    quorum,
    vote_payload,
)


def certified(
    mesh_id: str, instance: Instance, value: Value, nodes: int, voters: Sequence[Identity], ballot: Ballot
) -> Certificate:
    """`value` with the signatures of just a quorum of `nodes`: those of the first of `voters`."""
    raw = encode_value(value)
    payload = vote_payload(mesh_id, instance, ballot, nodes, raw)
    votes = tuple(Vote(v.peer_id, v.sign(VOTE_PURPOSE, payload)) for v in voters[: quorum(nodes)])
    assert len(votes) == quorum(nodes), "there are enough voters"
    return Certificate(instance, ballot, nodes, raw, votes)
