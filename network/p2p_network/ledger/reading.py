"""What do entries mean? Typed values by peer, from the values that peers wrote as bytes.

The ledger vouches for who wrote a value, not for its form: a value that can't be decoded is left out, as if
its author had not written it. Nobody else's view suffers from it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, TypeVar

from p2p_network import wire
from p2p_network.core.ids import PeerId
from p2p_network.ledger.core import Ledger

T = TypeVar("T")

_REMEMBERED_BYTES: Final = 1024


def read_by_peer(ledger: Ledger, prefix: str, as_type: type[T]) -> dict[PeerId, T]:
    """The well-formed values of the keys ``<prefix><peer>``; a prefix is ``node/``, ``assign/kairos/``."""
    found: dict[PeerId, T] = {}
    for entry in ledger.items(prefix):
        assert entry.value is not None, "a live entry has a value"
        if "/" in entry.key[len(prefix) :]:  # scope "kairos/eu" is not scope "kairos"
            continue
        try:
            found[_peer(entry.key)] = _decoded(entry.value, as_type)
        except ValueError:
            continue
    return found


def _decoded(value: bytes, as_type: type[T]) -> T:
    """The value; of small ones, which are looked at over and over (all of them after every change), once."""
    if len(value) > _REMEMBERED_BYTES:
        return wire.decode(value, as_type)
    kind: Any = as_type
    found: T = _remembered(value, kind)
    return found


@lru_cache(maxsize=8192)
def _remembered(value: bytes, as_type: Any) -> Any:
    return wire.decode(value, as_type)  # records are frozen, so they may be shared


def left_peers(ledger: Ledger) -> frozenset[PeerId]:
    """The nodes that deleted their own record: they left, and said so."""
    return frozenset(map(_peer, ledger.deleted("node/")))


def revoked_peers(ledger: Ledger) -> frozenset[PeerId]:
    """The nodes that were put out."""
    return frozenset(_peer(entry.key) for entry in ledger.items("revoked/"))


def _peer(key: str) -> PeerId:
    return PeerId(key.rpartition("/")[2])
