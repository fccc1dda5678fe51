"""Typed values out of the ledger; a peer that writes nonsense only harms itself."""

from __future__ import annotations

import hashlib

from p2p_network import wire
from p2p_network.core.clock import Stamp
from p2p_network.identity import Identity
from p2p_network.ledger.core import Ledger
from p2p_network.ledger.entry import sign_entry
from p2p_network.ledger.events import EntriesReceived
from p2p_network.ledger.policy import Policy
from p2p_network.ledger.reading import left_peers, read_by_peer
from p2p_network.records import AddressClaim

ALICE, BOB, CAROL = (Identity(hashlib.sha256(name).digest()) for name in (b"a", b"b", b"c"))


def test_values_are_read_by_peer_and_nonsense_is_left_out() -> None:
    made = Ledger(ALICE, "mesh", Policy(decided=lambda key, value: None, may_write=lambda key, author: True))
    claim = AddressClaim("10.144.0.7", 0, 1)
    entries = (
        sign_entry(ALICE, "mesh", f"address/{ALICE.peer_id}", Stamp(1, 0), wire.encode(claim)),
        sign_entry(BOB, "mesh", f"address/{BOB.peer_id}", Stamp(1, 0), b"nonsense"),
        sign_entry(CAROL, "mesh", f"node/{CAROL.peer_id}", Stamp(1, 0), None),
        sign_entry(ALICE, "mesh", f"assign/kairos/{BOB.peer_id}", Stamp(1, 0), wire.encode(("server",))),
        sign_entry(ALICE, "mesh", f"assign/kairos/eu/{CAROL.peer_id}", Stamp(1, 0), wire.encode(("agent",))),
    )
    made.step(0.0, EntriesReceived(BOB.peer_id, entries, 1.0))
    assert read_by_peer(made, "address/", AddressClaim) == {ALICE.peer_id: claim}
    assert read_by_peer(made, "assign/kairos/", tuple[str]) == {BOB.peer_id: ("server",)}
    assert left_peers(made) == {CAROL.peer_id}
