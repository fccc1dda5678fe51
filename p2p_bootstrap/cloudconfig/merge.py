"""What do several cloud-configs say together?

Kairos's rules, from the first file (lowest) to the last (highest): maps merge deep; lists join; a null
clears what came before; a map, a list and a scalar never mix. Joining drops a scalar that is already in
the list, as Kairos does, except in lists of commands and arguments (`REPEATABLE`), where a repeated word
has a meaning: Kairos turns ``[--node-label, a=1]`` and ``[--node-label, b=2]`` into a broken command line.
Every key keeps the mark of the file that set it last; a merged map or list that of the file that began it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from p2p_bootstrap.cloudconfig.nodes import (
    Entry,
    ListNode,
    MapNode,
    Mark,
    Node,
    Path,
    ScalarNode,
    dotted,
    kind,
)
from p2p_network.core.errors import Problem

REPEATABLE: Final = frozenset({"args", "commands", "runcmd"})


def merge(roots: Iterable[MapNode]) -> tuple[MapNode, tuple[Problem, ...]]:
    """Merge whole documents, lowest first. Returns the result and every type clash.

    Of two values that clash the earlier one stays in the result, so that checking can go on.
    """
    problems: list[Problem] = []
    merged = MapNode({}, Mark("", 0, 0))
    for root in roots:
        merged = _maps(merged, root, (), problems) if merged.entries else root
    return merged, tuple(problems)


def _maps(low: MapNode, high: MapNode, path: Path, problems: list[Problem]) -> MapNode:
    entries = dict(low.entries)
    for key, entry in high.entries.items():
        before = entries.get(key)
        if before is None:
            entries[key] = entry
        else:
            entries[key] = _entry(before, entry, (*path, key), problems)
    return MapNode(entries, low.mark)


def _entry(low: Entry, high: Entry, path: Path, problems: list[Problem]) -> Entry:
    match low.value, high.value:
        case (ScalarNode(), ScalarNode()):
            return high
        case (ScalarNode(is_null=True), _) | (_, ScalarNode(is_null=True)):
            return high
        case (MapNode() as a, MapNode() as b):
            return Entry(low.mark, _maps(a, b, path, problems))
        case (ListNode() as a, ListNode() as b):
            return Entry(low.mark, _lists(a, b, repeat=path[-1] in REPEATABLE))
        case (a, b):
            problems.append(
                Problem(
                    high.mark.file,
                    high.mark.line,
                    high.mark.column,
                    dotted(path),
                    f"{kind(b)} here, but {kind(a)} in {low.mark}",
                    "make them alike, or clear the earlier one by null in a file between them",
                )
            )
            return low


def _lists(low: ListNode, high: ListNode, *, repeat: bool) -> ListNode:
    if repeat or not low.items:
        return ListNode((*low.items, *high.items), low.mark if low.items else high.mark)
    items: list[Node] = list(low.items)
    seen = {_identity(item) for item in items if isinstance(item, ScalarNode)}
    for item in high.items:
        if isinstance(item, ScalarNode):
            if _identity(item) in seen:
                continue
            seen.add(_identity(item))
        items.append(item)
    return ListNode(tuple(items), low.mark)


def _identity(item: ScalarNode) -> tuple[str, str]:
    return type(item.value).__name__, item.text
