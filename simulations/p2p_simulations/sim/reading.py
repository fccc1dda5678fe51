"""How are the values of a scenario file read?

`Reader` collects every problem with its file, line and key instead of stopping at the first; `files` says
which keys there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from p2p_bootstrap.cli.options import parse_duration
from p2p_bootstrap.cloudconfig.nodes import ListNode, MapNode, Mark, Node, ScalarNode, kind
from p2p_network.core.errors import Problem, nearest

T = TypeVar("T")


class Reader:
    """Reads values of one file. `problems`: what was wrong so far."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def take(
        self,
        facts: Mapping[str, Node],
        name: str,
        read: Callable[[Node, str], T | None],
        default: T,
        key: str = "",
    ) -> T:
        """The value of `name`, or the default if it is not there or wrong."""
        if name not in facts:
            return default
        value = read(facts[name], f"{key}.{name}" if key else name)
        return default if value is None else value

    def map(self, node: Node, key: str, known: Sequence[str] | None = None) -> dict[str, Node]:
        """The entries of a map; those that are `~` are left out."""
        if not isinstance(node, MapNode):
            self.fail(node.mark, key, f"must be a map, is {kind(node)}")
            return {}
        found: dict[str, Node] = {}
        for name, entry in node.entries.items():
            if known is not None and name not in known:
                near = nearest(name, known)
                hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
                self.fail(entry.mark, f"{key}.{name}" if key else name, "unknown key", hint)
            elif not (isinstance(entry.value, ScalarNode) and entry.value.is_null):
                found[name] = entry.value
        return found

    def list(self, node: Node, key: str) -> Sequence[Node]:
        """The items of a list."""
        if isinstance(node, ListNode):
            return node.items
        self.fail(node.mark, key, f"must be a list, is {kind(node)}")
        return ()

    def text(self, node: Node, key: str) -> str:
        """A text."""
        if isinstance(node, ScalarNode):
            return node.text
        self.fail(node.mark, key, f"must be a text, is {kind(node)}")
        return ""

    def flag(self, node: Node, key: str) -> bool | None:
        """true or false."""
        if isinstance(node, ScalarNode) and isinstance(node.value, bool):
            return node.value
        self.fail(node.mark, key, "must be true or false")
        return None

    def choice(self, words: Sequence[str]) -> Callable[[Node, str], str | None]:
        """One of these words."""

        def read(node: Node, key: str) -> str | None:
            text = self.text(node, key)
            if text in words:
                return text
            self.fail(node.mark, key, f"must be one of {', '.join(words)}")
            return None

        return read

    def whole(self, low: int, high: int) -> Callable[[Node, str], int | None]:
        """A whole number in a range."""

        def read(node: Node, key: str) -> int | None:
            value = node.value if isinstance(node, ScalarNode) else None
            if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
                return value
            self.fail(node.mark, key, f"must be a whole number from {low} to {high}")
            return None

        return read

    def number(self, low: float, high: float) -> Callable[[Node, str], float | None]:
        """A number in a range."""

        def read(node: Node, key: str) -> float | None:
            value = node.value if isinstance(node, ScalarNode) else None
            if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
                return float(value)
            self.fail(node.mark, key, f"must be a number from {low:g} to {high:g}")
            return None

        return read

    def probability(self, node: Node, key: str) -> float | None:
        """From 0 to 1."""
        return self.number(0, 1)(node, key)

    def seconds(self, node: Node, key: str) -> float | None:
        """A duration: ``300ms``, ``90s``, ``5m``."""
        try:
            return parse_duration(self.text(node, key).removesuffix("ms")) / (
                1000 if self.text(node, key).endswith("ms") else 1
            )
        except ValueError:
            self.fail(node.mark, key, "must be a duration", "write it like 300ms, 90s, 5m or 1h")
            return None

    def signed_seconds(self, node: Node, key: str) -> float | None:
        """A duration, perhaps with a sign."""
        text = self.text(node, key)
        sign = -1 if text.startswith("-") else 1
        plain = ScalarNode(text.lstrip("+-"), node.mark)
        seconds = self.seconds(plain, key)
        return None if seconds is None else sign * seconds

    def span(self, node: Node, key: str) -> tuple[float, float] | None:
        """Two durations, the shorter first."""
        ends = [self.seconds(item, key) for item in self.list(node, key)]
        if len(ends) == 2 and ends[0] is not None and ends[1] is not None and ends[0] <= ends[1]:
            return ends[0], ends[1]
        self.fail(node.mark, key, "must be two durations, the shorter first", "for example [3s, 15s]")
        return None

    def fail(self, mark: Mark, key: str, message: str, hint: str = "") -> None:
        """Something is wrong here."""
        self.problems.append(Problem(self.file, mark.line, mark.column, key, message, hint))
