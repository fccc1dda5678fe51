"""What do entries mean? Typed values by peer, from the values that peers wrote as bytes.

The ledger vouches for who wrote a value, not for its form: a value that can't be decoded is left out, as if
its author had not written it. Nobody else's view suffers from it.
"""

from __future__ import annotations

from typing import TypeVar

from p2p_network import wire
from p2p_network.core.ids import PeerId
from p2p_network.ledger.core import Ledger

T = TypeVar("T")


def read_by_peer(ledger: Ledger, prefix: str, as_type: type[T]) -> dict[PeerId, T]:
    """The well-formed values of the keys ``<prefix><peer>``; a prefix is ``node/``, ``assign/kairos/``."""
    found: dict[PeerId, T] = {}
    for entry in ledger.items(prefix):
        assert entry.value is not None, "a live entry has a value"
        if "/" in entry.key[len(prefix) :]:  # scope "kairos/eu" is not scope "kairos"
            continue
        try:
            found[_peer(entry.key)] = wire.decode(entry.value, as_type)
        except ValueError:
            continue
    return found


def left_peers(ledger: Ledger) -> frozenset[PeerId]:
    """The nodes that deleted their own record: they left, and said so."""
    return frozenset(map(_peer, ledger.deleted("node/")))


def _peer(key: str) -> PeerId:
    return PeerId(key.rpartition("/")[2])
