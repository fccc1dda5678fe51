"""What does one cloud-config file contain, or what is wrong with it?

Bytes become text (size, encoding, control characters), the first line must be a header that Kairos
knows, and the YAML becomes nodes with marks (`nodes`). The YAML is read event by event on a stack of our
own: nothing of it is ever constructed, duplicate keys are found, and depth, number of values and the
expansion of aliases are bounded before they cost anything. PyYAML's Python parser is used even where the
C one is present: a file then means the same on a workstation and in the initramfs.

Everything wrong is collected in `Document.problems`; only broken YAML ends the reading early.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

import yaml
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
from p2p_network.core.errors import ConfigError, Problem

HEADERS: Final = ("#cloud-config", "#kairos-config", "#node-config")
MAX_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 64
MAX_VALUES: Final = 50_000
MAX_EXPANDED_CHARS: Final = 4 * 1024 * 1024

_TAG: Final = "tag:yaml.org,2002:"
_TEXT_TAGS: Final = ("!", _TAG + "str")
_PLAIN_TAGS: Final = tuple(_TAG + name for name in ("int", "float", "bool", "null"))
_NOT_TEXT: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_END: Final = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_QUOTE_TEMPLATE: Final = "put quotes around a value with {{ }}"


@dataclass(frozen=True, slots=True)
class Document:
    """One file, read. `root` holds what could be understood, also when there are problems."""

    file: str
    root: MapNode
    problems: tuple[Problem, ...] = ()

    def checked(self) -> MapNode:
        """The root. Raises ConfigError with every problem if there is one."""
        if self.problems:
            raise ConfigError(self.problems)
        return self.root


def parse(data: bytes, file: str, *, header: bool = True) -> Document:
    """Read one file.

    Args:
        data: its bytes, at most `MAX_BYTES`.
        file: its name, for marks and messages.
        header: whether the first line must be one of `HEADERS`.
    """
    empty = MapNode({}, Mark(file, 1, 1))
    text = _decode(data, file)
    if isinstance(text, Problem):
        return Document(file, empty, (text,))
    problems: list[Problem] = []
    if header and not has_header(text):
        problems.append(_header_problem(text, file))
        if text.startswith(("#!", "## template:")) or re.match(r"(?i)(content-type|mime-version):", text):
            return Document(file, empty, tuple(problems))  # another format: its "YAML errors" would mislead
    builder = _Builder(file, problems)
    loader = yaml.SafeLoader(text)
    try:
        while loader.check_event():
            builder.take(loader.get_event())  # type: ignore[no-untyped-call]
    except _Stopped:
        pass
    except yaml.MarkedYAMLError as exc:
        problems.append(_syntax_problem(exc, text, file))
    except (yaml.YAMLError, ValueError, OverflowError) as exc:  # such as \U99999999, or a 5000-digit %YAML
        line, column = loader.line + 1, loader.column + 1
        what = "this is not valid YAML: an escape or a number is out of range"
        problems.append(Problem(file, line, column, "", what, f"look at the text just before ({exc})"))
    finally:
        loader.dispose()
    builder.finish()
    return Document(file, builder.root or empty, tuple(problems))


def has_header(text: str) -> bool:
    """Whether the first line is a header, and nothing else."""
    return _LINE_END.split(text, maxsplit=1)[0].rstrip() in HEADERS


def too_big(file: str, size_bytes: int) -> Problem:
    """The problem of a file over `MAX_BYTES`."""
    return Problem(
        file,
        0,
        0,
        "",
        f"the file has {size_bytes / 1e6:.1f} MB, a cloud-config may have {MAX_BYTES / 1e6:.1f} MB",
        "is it the right file? Large content belongs in a bundle or a file that a stage downloads",
    )


def _decode(data: bytes, file: str) -> str | Problem:
    if len(data) > MAX_BYTES:
        return too_big(file, len(data))
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Problem(file, 1, 1, "", "the file is UTF-16", "save it as UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if (zero := data.find(b"\0")) >= 0:
        line, column = _place(data[:zero].decode("utf-8", "replace"))
        return Problem(
            file, line, column, "", "this is binary data, not a cloud-config", "is it the right file?"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        line, column = _place(data[: exc.start].decode("utf-8"))
        byte = f"0x{data[exc.start]:02x}"
        return Problem(file, line, column, "", f"byte {byte} is not valid UTF-8", "save the file as UTF-8")
    if found := _NOT_TEXT.search(text):
        line, column = _place(text[: found.start()])
        what = f"the control character U+{ord(found[0]):04X} is not allowed"
        return Problem(file, line, column, "", what, 'remove it, or write it as an escape in "double quotes"')
    return text


def _place(before: str) -> tuple[int, int]:
    """Line and column, from 1, of what comes after `before`."""
    lines = _LINE_END.split(before)
    return len(lines), len(lines[-1]) + 1


def _header_problem(text: str, file: str) -> Problem:
    lines = _LINE_END.split(text)
    hint = "make this line the first one: #cloud-config"
    for number, line in enumerate(lines, start=1):
        if line.rstrip() in HEADERS:
            hint = f"{line.rstrip()} is on line {number}; it must be the first line"
            break
        if re.sub(r"\s", "", line).lower() in HEADERS:
            wanted = re.sub(r"\s", "", line).lower()
            hint = f"line {number} is nearly right: write {wanted}, in small letters and without a space"
            break
    first = lines[0]
    if first.startswith("#!"):
        hint = "this is a script; a cloud-config starts with #cloud-config and runs commands in stages"
    elif first.startswith("## template:"):
        hint = "jinja templates of cloud-init are not read; write the values out"
    elif re.match(r"(?i)(content-type|mime-version):", first):
        hint = "multi-part user data is not read; give its cloud-config part as a file of its own"
    return Problem(file, 1, 1, "", "the first line is no cloud-config header", hint)


def _syntax_problem(exc: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    """PyYAML's complaint in the words of a person who edits the file. Quotes nothing of it."""
    mark = exc.problem_mark or exc.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    lines = _LINE_END.split(text)
    source = lines[line - 1] if line <= len(lines) else ""
    problem = exc.problem or "this is not valid YAML"
    if source[column - 1 : column] == "\t":
        what = "a tab stands where YAML allows only spaces"
        return Problem(file, line, column, "", what, "replace tabs by spaces; set your editor to do so")
    hint = ""
    if "{{" in source:
        hint = _QUOTE_TEMPLATE
    elif "mapping values are not allowed" in problem:
        hint = 'put quotes around a value that contains ": ", and check the indentation'
    elif "expected <block end>" in problem:
        hint = "keys of one map must start in the same column: check the indentation"
    elif "end of stream" in problem and exc.context_mark is not None:
        line, column = exc.context_mark.line + 1, exc.context_mark.column + 1
        problem, hint = "this quote or bracket is never closed", "close it"
    elif "could not find expected ':'" in problem:
        problem, hint = "this line has no colon", "a key is written as key: value"
    elif "cannot start any token" in problem:
        hint = "put quotes around the value"
    return Problem(file, line, column, "", f"this is not valid YAML: {problem}", hint)


class _Stopped(Exception):
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


class _Builder:
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
        """One more event of the parser. Raises _Stopped when a limit is passed."""
        match event:
            case ev.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    self._complain(
                        self._mark(event),
                        "a second document starts here; only one is read",
                        "move it to a file of its own, or remove the --- line",
                    )
                    raise _Stopped
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
            raise _Stopped

    def _too_deep(self, mark: Mark) -> None:
        self._complain(mark, f"maps and lists are nested more than {MAX_DEPTH} deep", path=())
        raise _Stopped

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
            if name == "<<":
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
            return
        frame.key = (None, node.mark)
        what = "a key is missing before this colon"
        if not isinstance(node, ScalarNode):
            what = f"a key must be a text, found {kind(node)}"
        hint = _QUOTE_TEMPLATE if isinstance(node, MapNode) else "a key is written as key: value"
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
