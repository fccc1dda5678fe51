"""Which file and line set each key? Pure.

A key is written with dots and indices, ``stages.boot[0].name``; a name that contains dots itself is found too
(``stages.boot.after[0]``). Secrets are told by their names, so that they can be left out of what is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from p2p_bootstrap.cloudconfig.nodes import ListNode, MapNode, Mark, Node, Path, ScalarNode, dotted

SECRETS: Final = frozenset(
    ("network_token", "join_token", "external_db", "passwd", "password", "private_key", "token", "content",
     "env", "environment", "phonehome", "kcrypt")
)  # fmt: skip
HIDDEN: Final = "(hidden)"


@dataclass(frozen=True, slots=True)
class Setting:
    """One key that is set: where, and to what."""

    key: str
    node: Node
    mark: Mark
    secret: bool


def settings(root: Node, path: Path = ()) -> Iterator[Setting]:
    """Every leaf: scalars, and lists and maps that are empty; in the order of the document."""
    if isinstance(root, MapNode) and root.entries:
        for name, entry in root.entries.items():
            yield from settings(entry.value, (*path, name))
    elif isinstance(root, ListNode) and root.items:
        for number, item in enumerate(root.items):
            yield from settings(item, (*path, number))
    elif path:
        yield Setting(dotted(path), root, root.mark, is_secret(path))


def is_secret(path: Path) -> bool:
    """Whether a value at `path` may be a secret."""
    return not SECRETS.isdisjoint(part for part in path if isinstance(part, str))


def look_up(root: Node, key: str) -> tuple[Path, Node] | None:
    """The node of a dotted key, and its path; None if nothing sets it."""
    return _look_up(root, key, ())


def _look_up(node: Node, key: str, path: Path) -> tuple[Path, Node] | None:
    if not key:
        return path, node
    index = re.match(r"\[([0-9]{1,6})\](?:\.|(?=\[|$))|([0-9]{1,6})(?:\.|(?=\[|$))", key)
    if isinstance(node, ListNode):
        if index is None or int(index[1] or index[2]) >= len(node.items):
            return None
        number = int(index[1] or index[2])
        return _look_up(node.items[number], key[index.end() :], (*path, number))
    if isinstance(node, MapNode):
        for name, entry in sorted(node.entries.items(), key=lambda item: -len(item[0])):
            rest = key.removeprefix(name)
            if key.startswith(name) and (not rest or rest[0] in ".["):
                found = _look_up(entry.value, rest.removeprefix("."), (*path, name))
                if found is not None:
                    return found
    return None


def hidden(node: Node, path: Path = ()) -> Node:
    """A copy with every secret replaced."""
    match node:
        case MapNode():
            entries = {
                name: type(entry)(entry.mark, hidden(entry.value, (*path, name)))
                for name, entry in node.entries.items()
            }
            return MapNode(entries, node.mark)
        case ListNode():
            items = tuple(hidden(item, (*path, number)) for number, item in enumerate(node.items))
            return ListNode(items, node.mark)
        case ScalarNode() if is_secret(path) and not node.is_null and node.text:
            return ScalarNode(HIDDEN, node.mark)
    return node
