"""What is in a cloud-config, and on which line of which file?

A document becomes a tree of frozen nodes. Every key and every value keeps its `Mark`, so that an error
(or ``config show --origin``) can name the place; a scalar keeps the text that was written, so that a
reader who wants a text gets ``0123``, ``12:30`` or ``no`` and not what YAML would have made of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

Path: TypeAlias = tuple[str | int, ...]
Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"

_INT: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,99})")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]{1,5})?")
_WORDS: Final[Mapping[str, bool | float | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    "-.inf": float("-inf"),
    ".nan": float("nan"),
}


_MAX_KEY_SHOWN: Final = 60


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A place in a file; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """One value. `plain`: written without quotes, so it may also be a number, a truth value or null."""

    text: str
    mark: Mark
    plain: bool = False

    @property
    def value(self) -> bool | int | float | str | None:
        """What the text means: YAML 1.2's core words and decimal numbers; everything else is a text."""
        return resolve(self.text) if self.plain else self.text

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in _WORDS and _WORDS[self.text] is None

    def __repr__(self) -> str:  # a value may be a secret
        return f"ScalarNode(<{kind(self)}> at {self.mark})"


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's value. `mark` is where the key stands."""

    mark: Mark
    value: Node


@dataclass(frozen=True, slots=True)
class MapNode:
    """Keys and values, in the order written."""

    entries: Mapping[str, Entry]
    mark: Mark

    def get(self, key: str) -> Node | None:
        """The value of `key`, or None if it is absent or null."""
        entry = self.entries.get(key)
        if entry is None or (isinstance(entry.value, ScalarNode) and entry.value.is_null):
            return None
        return entry.value


@dataclass(frozen=True, slots=True)
class ListNode:
    """Values in order."""

    items: Sequence[Node]
    mark: Mark


Node: TypeAlias = ScalarNode | MapNode | ListNode


def resolve(text: str) -> bool | int | float | str | None:
    """The value of an unquoted scalar.

    YAML 1.1's traps are texts: ``no``, ``on``, ``0123`` and ``0o17`` (octal), ``12:30`` (base 60), dates.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def to_value(node: Node) -> Value:
    """The tree without its marks, as plain Python data."""
    match node:
        case ScalarNode():
            return node.value
        case ListNode():
            return [to_value(item) for item in node.items]
        case MapNode():
            return {key: to_value(entry.value) for key, entry in node.entries.items()}


def kind(node: Node) -> str:
    """What a node is, in words for an error message. Never its content."""
    if isinstance(node, MapNode):
        return "a map"
    if isinstance(node, ListNode):
        return "a list"
    match node.value:
        case None:
            return "nothing"
        case bool():
            return "a truth value"
        case int():
            return "a whole number"
        case float():
            return "a decimal number"
        case str():
            return "a text"


def locate(root: Node, path: Path) -> Mark:
    """Where `path` stands: a scalar's own mark, else its key's; if it isn't there, its nearest part."""
    node, mark = root, root.mark
    for part in path:
        if isinstance(node, MapNode) and isinstance(part, str) and part in node.entries:
            entry = node.entries[part]
            node, mark = entry.value, entry.mark
        elif isinstance(node, ListNode) and isinstance(part, int) and 0 <= part < len(node.items):
            node = node.items[part]
            mark = node.mark
        else:
            return mark
    return node.mark if isinstance(node, ScalarNode) and not node.is_null else mark


def locate_key(root: Node, path: Path) -> Mark:
    """Where the last key of `path` is written."""
    parent = find(root, path[:-1])
    if isinstance(parent, MapNode) and path and (entry := parent.entries.get(str(path[-1]))):
        return entry.mark
    return locate(root, path)


def find(root: Node, path: Path) -> Node | None:
    """The node at `path`, or None if there is none."""
    node = root
    for part in path:
        if isinstance(node, MapNode) and isinstance(part, str) and part in node.entries:
            node = node.entries[part].value
        elif isinstance(node, ListNode) and isinstance(part, int) and 0 <= part < len(node.items):
            node = node.items[part]
        else:
            return None
    return node


def with_text(root: MapNode, path: tuple[str, ...], text: str) -> MapNode:
    """A copy of `root` with a text at `path`; maps on the way that are absent or null are made.

    Whatever else stands on the way is replaced too: check the document before.
    """
    key, rest = path[0], path[1:]
    old = root.entries.get(key)
    mark = old.mark if old else root.mark
    value: Node
    if rest:
        inner = old.value if old else None
        value = with_text(inner if isinstance(inner, MapNode) else MapNode({}, mark), rest, text)
    else:
        value = ScalarNode(text, mark)
    return MapNode({**root.entries, key: Entry(mark, value)}, root.mark)


def dotted(path: Path) -> str:
    """``("p2p", "bootstrap", 1)`` as people write it: ``p2p.bootstrap[1]``. Safe to print."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = part if len(part) <= _MAX_KEY_SHOWN else part[:_MAX_KEY_SHOWN] + "..."
            shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
            text += f".{shown}" if text else shown
    return text
