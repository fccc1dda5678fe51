"""Does every value that may come from a peer or a disk either decode, or raise ValueError, for any bytes?

All msgspec structs of the house are found by looking, so a new one is fuzzed without being named here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import p2p_network
import p2p_roles
from p2p_network import wire

ADAPTERS = ("p2p_network.host", "p2p_network.dataplane.__main__")


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def _structs() -> list[type[Any]]:
    for package in (p2p_network, p2p_roles):
        list(_modules(package))
    found: list[type[Any]] = []
    todo: list[type[Any]] = list(msgspec.Struct.__subclasses__())
    while todo:
        kind = todo.pop()
        todo.extend(kind.__subclasses__())
        if kind.__module__.startswith(("p2p_network", "p2p_roles")) and not kind.__name__.startswith("_Base"):
            found.append(kind)
    return sorted(set(found), key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")


STRUCTS = _structs()
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=20)
    | st.binary(max_size=70)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def test_there_are_many() -> None:
    names = {kind.__name__ for kind in STRUCTS}
    assert {"Alive", "Suspicion", "Certificate", "NodeRecord", "Prepare", "SessionOffer"} <= names
    assert len(STRUCTS) > 80


@settings(max_examples=25)
@given(raw=st.binary(max_size=120) | values.map(msgspec.msgpack.encode))
@pytest.mark.parametrize("number", range(8))
def test_any_bytes_are_a_value_or_a_value_error(number: int, raw: bytes) -> None:
    for kind in STRUCTS[number::8]:
        try:
            found = wire.decode(raw, kind)
        except ValueError:
            continue
        assert isinstance(found, kind)
        assert wire.decode(wire.encode(found), kind) == found
