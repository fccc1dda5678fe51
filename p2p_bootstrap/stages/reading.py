"""How does a part of the document become a typed value, and what is wrong with it where?

`read` follows the annotations of `model`'s dataclasses: every unknown key, wrong type and missing key becomes
a `Problem` with file, line, column and the nearest valid key, all of them at once; nothing is raised and
nothing is dropped in silence. Templates are parsed too, so that a mistake in one is found before the boot.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from p2p_bootstrap.cloudconfig.nodes import ListNode, MapNode, Mark, Node, Path, ScalarNode, dotted, kind
from p2p_bootstrap.stages.model import TEMPLATED, AbsolutePath, Mode, Name, Pattern
from p2p_network.core.errors import ConfigError, Problem, nearest

MAX_ITEMS: Final = 4096
MAX_TEXT_CHARS: Final = 1024 * 1024
_TRUE: Final = ("true", "yes", "on", "y")
_FALSE: Final = ("false", "no", "off", "n")
_OCTAL: Final = re.compile(r"0[0-7]{1,4}")
_NAME: Final = re.compile(r"(?!-)[^\s/\x00-\x1f\x7f'\"\\$`;&|<>()]+")
_USUAL_MODE: Final = re.compile(r"[4-7][04-7]{2}")


@dataclass(frozen=True, slots=True)
class KeyOf:
    """A key of a dataclass as it is written."""

    field: str
    key: str
    also: tuple[str, ...]
    annotation: Any
    required: bool


@cache
def keys_of(cls: type) -> Mapping[str, KeyOf]:
    """The keys of a dataclass, by field; `mark` is none."""
    hints = get_type_hints(cls)
    return {
        item.name: KeyOf(
            item.name,
            item.metadata.get("key", item.name),
            item.metadata.get("also", ()),
            hints[item.name],
            item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING,
        )
        for item in dataclasses.fields(cls)
        if item.name != "mark"
    }


_BAD: Final = object()


@dataclass(slots=True)
class Reader:
    """Collects problems while it reads."""

    problems: list[Problem] = field(default_factory=list)

    def complain(self, mark: Mark, path: Path, message: str, hint: str = "") -> object:
        """Note a problem; returns the value that stands for it."""
        problem = Problem(mark.file, mark.line, mark.column, dotted(path), message, hint)
        if problem not in self.problems:
            self.problems.append(problem)
        return _BAD

    def read(self, node: Node, annotation: Any, path: Path) -> Any:
        """The typed value, or `_BAD` when there are problems with it."""
        origin = get_origin(annotation)
        if origin in (Union, types.UnionType):
            inner = [part for part in get_args(annotation) if part is not type(None)]
            return self.read(node, inner[0], path)
        if origin is tuple:
            return self._list(node, get_args(annotation)[0], path)
        if origin is Mapping or getattr(origin, "__name__", "") == "Mapping":
            return self._map(node, get_args(annotation)[1], path)
        if origin is Literal:
            return self._choice(node, get_args(annotation), path)
        if dataclasses.is_dataclass(annotation):
            assert isinstance(annotation, type), "a class, not an instance"
            return self.record(node, annotation, path)
        if annotation is bool:
            return self._flag(node, path)
        if annotation is int:
            return self._whole(node, path)
        if annotation is Mode:
            return self._mode(node, path)
        return self._text(node, annotation, path)

    def record(self, node: Node, cls: type, path: Path) -> Any:
        """A dataclass from a map. `_BAD` if anything in it is wrong."""
        if not isinstance(node, MapNode):
            return self.complain(
                node.mark, path, f"expected a map of keys, found {kind(node)}", _valid_keys(cls)
            )
        spellings = {name: one for one in keys_of(cls).values() for name in (one.key, *one.also)}
        values: dict[str, Any] = {}
        seen: dict[str, str] = {}
        good = True
        for name, entry in node.entries.items():
            known = spellings.get(name)
            if known is None:
                near = nearest(name, [one.key for one in keys_of(cls).values()])
                hint = f"did you mean {near!r}?" if near else _valid_keys(cls)
                self.complain(entry.mark, (*path, name), "unknown key", hint)
                good = False
            elif known.field in seen:
                what = f"says the same as {seen[known.field]}, which is there too"
                self.complain(entry.mark, (*path, name), what, "keep one of them")
                good = False
            elif node.get(name) is not None:
                seen[known.field] = name
                value = self.read(entry.value, known.annotation, (*path, name))
                values[known.field] = value
                good = good and value is not _BAD
        for one in keys_of(cls).values():
            if one.required and one.field not in values:
                self.complain(node.mark, path, f"the key {one.key!r} is missing", f"add {one.key}: ...")
                good = False
        if not good:
            return _BAD
        if any(item.name == "mark" for item in dataclasses.fields(cls)):
            values["mark"] = node.mark
        return cls(**values)

    def _list(self, node: Node, annotation: Any, path: Path) -> Any:
        if isinstance(node, ScalarNode) and path[-1:] == ("groups",) and not node.is_null:
            # cloud-init's documents write them in one line: "users, admin"
            return tuple(word.strip() for word in node.text.split(",") if word.strip())
        if not isinstance(node, ListNode):
            hint = "write one value a line, each after a dash"
            return self.complain(node.mark, path, f"expected a list, found {kind(node)}", hint)
        if len(node.items) > MAX_ITEMS:
            return self.complain(node.mark, path, f"has more than {MAX_ITEMS} items")
        values = [self.read(item, annotation, (*path, number)) for number, item in enumerate(node.items)]
        return _BAD if _BAD in values else tuple(values)

    def _map(self, node: Node, annotation: Any, path: Path) -> Any:
        if not isinstance(node, MapNode):
            hint = "write key: value lines below it, indented"
            return self.complain(node.mark, path, f"expected a map, found {kind(node)}", hint)
        values = {}
        for name, entry in node.entries.items():
            if node.get(name) is None:
                if isinstance(cls := annotation, type) and dataclasses.is_dataclass(cls):
                    values[name] = cls()  # `users: {kairos: }` is a user with nothing said about it
                continue
            values[name] = self.read(entry.value, annotation, (*path, name))
        return _BAD if _BAD in values.values() else values

    def _choice(self, node: Node, words: tuple[str, ...], path: Path) -> Any:
        text = self._text(node, str, path)
        if text is _BAD or text in words:
            return text
        if text.lower() in words:
            return text.lower()
        shown = [word for word in words if word]
        near = nearest(text.lower(), shown)
        hint = f"did you mean {near!r}?" if near else ""
        return self.complain(node.mark, path, f"expected one of {', '.join(shown)}", hint)

    def _flag(self, node: Node, path: Path) -> Any:
        if isinstance(node, ScalarNode) and node.plain and node.text.lower() in _TRUE + _FALSE:
            return node.text.lower() in _TRUE
        hint = "remove the quotes" if isinstance(node, ScalarNode) and not node.plain else ""
        return self.complain(node.mark, path, f"expected true or false, found {kind(node)}", hint)

    def _whole(self, node: Node, path: Path) -> Any:
        if isinstance(node, ScalarNode) and re.fullmatch(r"[0-9]{1,10}", node.text):
            return int(node.text)
        return self.complain(node.mark, path, f"expected a whole number, found {kind(node)}")

    def _mode(self, node: Node, path: Path) -> Any:
        """0644, "0644", "644" and 0o644 are octal; 420 is the decimal number that Kairos writes itself."""
        text = node.text.replace("0o", "0", 1) if isinstance(node, ScalarNode) else ""
        assert isinstance(node, ScalarNode) or not text, "only a scalar has a text"
        if _OCTAL.fullmatch(text) or (isinstance(node, ScalarNode) and text == "0"):
            return Mode(int(text, 8))
        if isinstance(node, ScalarNode) and not node.plain and re.fullmatch(r"[0-7]{3,4}", text):
            return Mode(int(text, 8))
        if re.fullmatch(r"[1-9][0-9]{0,3}", text) and int(text) <= 0o7777:
            if _USUAL_MODE.fullmatch(text) and text == "".join(sorted(text, reverse=True)):
                what = (
                    f"without a zero in front this is the decimal number {text}: mode {int(text):o} to Kairos"
                )
                return self.complain(node.mark, path, what, f"write 0{text}")
            return Mode(int(text))
        return self.complain(node.mark, path, "expected permissions in octal", "write them as 0644")

    def _text(self, node: Node, annotation: Any, path: Path) -> Any:
        if not isinstance(node, ScalarNode) or node.is_null:
            hint = 'put quotes around a text that contains ": " or begins with { or ['
            if isinstance(node, ScalarNode):
                hint = "remove the empty item"
            return self.complain(node.mark, path, f"expected a text, found {kind(node)}", hint)
        text = node.text
        if len(text) > MAX_TEXT_CHARS:
            return self.complain(node.mark, path, f"the text has more than {MAX_TEXT_CHARS} characters")
        if "\0" in text:
            return self.complain(node.mark, path, "the text contains a zero byte", "remove the \\0")
        templated = not _TEMPLATED.isdisjoint(part for part in path if isinstance(part, str))
        if templated and not self.check_template(node, path):
            return _BAD
        if annotation is AbsolutePath and not text.startswith("/"):
            return self.complain(node.mark, path, "expected an absolute path", "begin with /")
        if annotation is Name and not _NAME.fullmatch(text):
            return self.complain(node.mark, path, "expected a plain name", "no spaces, quotes or slashes")
        if annotation is Pattern:
            try:
                re.compile(text)
            except (re.error, RecursionError, OverflowError) as exc:
                return self.complain(node.mark, path, f"this is no regular expression: {exc}")
        return text

    def check_template(self, node: ScalarNode, path: Path) -> bool:
        """Whether the templates in a text are right; notes what is wrong with them."""
        if "{{" not in node.text:
            return True
        from p2p_bootstrap.cloudconfig import template  # late: few boots have one

        try:
            template.parse(node.text, file=node.mark.file, line=first_line(node), key=dotted(path),
                           column=node.mark.column)  # fmt: skip
        except ConfigError as exc:
            self.problems += [problem for problem in exc.problems if problem not in self.problems]
            return False
        return True


_TEMPLATED: Final = frozenset(TEMPLATED)


def first_line(node: ScalarNode) -> int:
    """The line on which a text begins: of a block (``content: |``) the one below its mark."""
    return node.mark.line + ("\n" in node.text)


def is_bad(value: object) -> bool:
    """Whether `Reader.read` found problems with it."""
    return value is _BAD


def _valid_keys(cls: type) -> str:
    return f"valid keys here: {', '.join(one.key for one in keys_of(cls).values())}"
