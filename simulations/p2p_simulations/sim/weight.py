"""How many bytes does an agent hold in memory?

Everything that its production columns reach: ledger, membership, votes, admission, requests under way. Shared
code, the world and its twins of adapters do not count, so what is left is what grows with the mesh; a bound
on it is a bound on what a peer can make a node remember.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from p2p_simulations.sim.agent import SimAgent

_CODE: Final = (type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)
_PLAIN: Final = (str, bytes, bytearray, int, float, bool, type(None))
_OURS: Final = ("p2p_network", "p2p_roles", "p2p_bootstrap", "builtins", "collections", "ipaddress")


def bytes_held(agent: SimAgent) -> int:
    """What the columns of an agent hold, each object once."""
    todo: list[Any] = [
        agent.replication, agent.admission, agent.places, agent.bootstrap, agent.cluster, agent.issuing,
        agent.snapshots, agent.recovery,
        *agent.host.under_way(),
    ]  # fmt: skip
    seen: set[int] = set()
    total = 0
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, _CODE):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        if not isinstance(item, _PLAIN):
            todo.extend(_parts(item))
    return total


def _parts(item: Any) -> Iterator[Any]:
    if isinstance(item, Mapping):
        for key, value in item.items():
            yield key
            yield value
    elif isinstance(item, list | tuple | set | frozenset):
        yield from item
    elif type(item).__module__.partition(".")[0] in _OURS:
        yield from getattr(item, "__dict__", {}).values()
        for kind in type(item).__mro__:
            names = kind.__dict__.get("__slots__", ())
            for name in (names,) if isinstance(names, str) else names:
                if hasattr(item, name):
                    yield getattr(item, name)
        for name in getattr(item, "__struct_fields__", ()):
            yield getattr(item, name)
