"""How do YAML events become nodes, within which limits?

A stack of our own instead of PyYAML's constructors: nothing in the file is ever executed or constructed,
duplicate keys are found, and depth, number of values and the expansion of aliases are bounded before they
cost anything. An alias shares its anchor's nodes and is charged for their full size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from yaml import events as ev

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

MAX_DEPTH: Final = 64
MAX_VALUES: Final = 50_000
MAX_EXPANDED_CHARS: Final = 4 * 1024 * 1024
_TAG: Final = "tag:yaml.org,2002:"
_TEXT_TAGS: Final = ("!", _TAG + "str")
_PLAIN_TAGS: Final = tuple(_TAG + name for name in ("int", "float", "bool", "null"))
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
QUOTE_TEMPLATE: Final = "put quotes around a value with {{ }}"


class Stopped(Exception):
    """A limit was passed; the problem is already noted."""


@dataclass(slots=True)
class _Frame:
    """A map or list under construction."""

    mark: Mark
    anchor: str | None
    values_before: int
    chars_before: int
    path: Path
    entries: dict[str, Entry] | None  # of a map
    items: list[Node] = field(default_factory=list)  # of a list
    key: tuple[str | None, Mark] | None = None  # of a map: read, its value not yet; (None, _) is no text
    key_merges: bool = False  # the key is an unquoted <<
    merges: list[tuple[Mark, Node]] = field(default_factory=list)
    height: int = 1

    def child_path(self) -> Path:
        if self.entries is None:
            return (*self.path, len(self.items))
        return (*self.path, self.key[0] or "?") if self.key else self.path


@dataclass(frozen=True, slots=True)
class _Anchored:
    node: Node
    height: int
    values: int
    chars: int


class Builder:
    """Turns parser events into nodes, within limits."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.root: MapNode | None = None
        self._file = file
        self._problems = problems
        self._stack: list[_Frame] = []
        self._anchors: dict[str, _Anchored] = {}
        self._documents = 0
        self._values = 0
        self._chars = 0

    def take(self, event: ev.Event) -> None:
        """One more event of the parser. Raises Stopped when a limit is passed."""
        match event:
            case ev.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    self._complain(
                        self._mark(event),
                        "a second document starts here; only one is read",
                        "move it to a file of its own, or remove the --- line",
                    )
                    raise Stopped
            case ev.ScalarEvent():
                self._charge(event, 1, len(event.value))
                node = self._scalar(event)
                if event.anchor:
                    self._anchors[event.anchor] = _Anchored(node, 0, 1, len(event.value))
                self._add(node, 0)
            case ev.AliasEvent():
                self._alias(event)
            case ev.MappingStartEvent() | ev.SequenceStartEvent():
                self._open(event)
            case ev.MappingEndEvent() | ev.SequenceEndEvent():
                self._close()

    def finish(self) -> None:
        """After broken YAML: keep what was read before it, so that it can be checked as well."""
        while self._stack:
            self._stack[-1].key = None
            self._close()

    def _mark(self, event: ev.Event) -> Mark:
        assert event.start_mark is not None, "the parser marks every event"
        return Mark(self._file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _complain(self, mark: Mark, message: str, hint: str = "", path: Path | None = None) -> None:
        if path is None:
            path = self._stack[-1].child_path() if self._stack else ()
        self._problems.append(Problem(self._file, mark.line, mark.column, dotted(path), message, hint))

    def _charge(self, event: ev.Event, values: int, chars: int) -> None:
        self._values += values
        self._chars += chars
        if self._values > MAX_VALUES or self._chars > MAX_EXPANDED_CHARS:
            alias = isinstance(event, ev.AliasEvent)
            self._complain(
                self._mark(event),
                f"the document {'expands to' if alias else 'has'} more than {MAX_VALUES} values"
                if self._values > MAX_VALUES
                else f"the document expands to more than {MAX_EXPANDED_CHARS} characters",
                "aliases that multiply each other are a YAML bomb: write the values out" if alias else "",
            )
            raise Stopped

    def _too_deep(self, mark: Mark) -> None:
        self._complain(mark, f"maps and lists are nested more than {MAX_DEPTH} deep", path=())
        raise Stopped

    def _scalar(self, event: ev.ScalarEvent) -> ScalarNode:
        mark = self._mark(event)
        if _SURROGATE.search(event.value):
            self._complain(mark, "an escape stands for half a character (a surrogate)", "write the character")
        if event.tag is None:
            return ScalarNode(event.value, mark, plain=event.style is None)
        if event.tag not in _TEXT_TAGS and event.tag not in _PLAIN_TAGS:
            self._bad_tag(mark)
        return ScalarNode(event.value, mark, plain=event.tag in _PLAIN_TAGS)

    def _bad_tag(self, mark: Mark) -> None:
        self._complain(mark, "this YAML tag is not supported", "remove the word that starts with !")

    def _alias(self, event: ev.AliasEvent) -> None:
        mark = self._mark(event)
        found = self._anchors.get(event.anchor or "")
        if found is None:
            inside = any(frame.anchor == event.anchor for frame in self._stack)
            what = "refers to the value that contains it" if inside else "has no anchor before it"
            self._complain(mark, f"the alias *{event.anchor} {what}", "write the value out")
            self._add(ScalarNode("", mark, plain=True), 0)
            return
        self._charge(event, found.values, found.chars)
        if len(self._stack) + found.height > MAX_DEPTH:
            self._too_deep(mark)
        self._add(found.node, found.height)

    def _open(self, event: ev.MappingStartEvent | ev.SequenceStartEvent) -> None:
        mark = self._mark(event)
        self._charge(event, 1, 0)
        is_map = isinstance(event, ev.MappingStartEvent)
        if event.tag not in (None, "!", _TAG + ("map" if is_map else "seq")):
            self._bad_tag(mark)
        if len(self._stack) >= MAX_DEPTH:
            self._too_deep(mark)
        path = self._stack[-1].child_path() if self._stack else ()
        self._stack.append(
            _Frame(mark, event.anchor, self._values - 1, self._chars, path, {} if is_map else None)
        )

    def _close(self) -> None:
        frame = self._stack.pop()
        node: MapNode | ListNode
        if frame.entries is None:
            node = ListNode(tuple(frame.items), frame.mark)
        else:
            self._merge_keys(frame, frame.entries)
            node = MapNode(frame.entries, frame.mark)
        if frame.anchor:
            self._anchors[frame.anchor] = _Anchored(
                node, frame.height, self._values - frame.values_before, self._chars - frame.chars_before
            )
        self._add(node, frame.height)

    def _add(self, node: Node, height: int) -> None:
        """Put a finished node where it belongs."""
        if not self._stack:
            self._set_root(node)
            return
        frame = self._stack[-1]
        frame.height = max(frame.height, height + 1)
        if frame.entries is None:
            frame.items.append(node)
        elif frame.key is None:
            self._set_key(frame, node)
        else:
            name, mark = frame.key
            if frame.key_merges:
                frame.merges.append((mark, node))
            elif name is not None and name in frame.entries:
                first = frame.entries[name].mark
                what = f"this key stands here a second time; the first is on line {first.line}"
                self._complain(mark, what, "keep one of them; only one can take effect")
            elif name is not None:
                frame.entries[name] = Entry(mark, node)
            frame.key = None

    def _set_key(self, frame: _Frame, node: Node) -> None:
        if isinstance(node, ScalarNode) and node.text:
            frame.key = (node.text, node.mark)
            frame.key_merges = node.plain and node.text == "<<"
            return
        frame.key, frame.key_merges = (None, node.mark), False
        what = "a key is missing before this colon"
        if not isinstance(node, ScalarNode):
            what = f"a key must be a text, found {kind(node)}"
        hint = QUOTE_TEMPLATE if isinstance(node, MapNode) else "a key is written as key: value"
        self._complain(node.mark, what, hint, path=frame.path)

    def _merge_keys(self, frame: _Frame, entries: dict[str, Entry]) -> None:
        """``<<: *anchor``: keys of another map, where this one has none of that name."""
        for mark, node in frame.merges:
            for source in node.items if isinstance(node, ListNode) else (node,):
                if not isinstance(source, MapNode):
                    what = f"<< takes a map or a list of maps, found {kind(source)}"
                    self._complain(mark, what, path=frame.path)
                    continue
                for name, entry in source.entries.items():
                    entries.setdefault(name, entry)

    def _set_root(self, node: Node) -> None:
        if isinstance(node, MapNode):
            self.root = node
        elif not (isinstance(node, ScalarNode) and node.is_null):
            self._complain(
                node.mark, f"a cloud-config is a map of keys, found {kind(node)}", "write key: value lines"
            )
