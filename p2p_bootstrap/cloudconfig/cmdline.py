"""What does the kernel command line configure? Pure: text in, a document out.

``kairos.config=KEY=VALUE`` sets one key in dot notation (``users.0.name`` or ``users[0].name``);
``kairos.config_url=``, ``config_url=`` and ``cos.setup=`` name a file or an address to read besides. A bare
``KEY=VALUE`` counts if it begins with one of `BARE` and has a dot (``stages.boot[0].commands[0]=…``): other
words belong to the kernel. Marks point at the column in the command line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from p2p_bootstrap.cloudconfig.nodes import Entry, ListNode, MapNode, Mark, Node, Path, ScalarNode, dotted
from p2p_network.core.errors import Problem

FILE: Final = "kernel command line"
MAX_CHARS: Final = 64 * 1024
MAX_INDEX: Final = 255
MAX_PARTS: Final = 32
BARE: Final = frozenset(
    ("bundles", "grub_options", "growpart", "install", "k3s", "k3s-agent", "kcrypt", "kubevip", "p2p",
     "reset", "runcmd", "ssh_authorized_keys", "stages", "upgrade", "users", "write_files")
)  # fmt: skip
_URL_KEYS: Final = ("kairos.config_url", "config_url")
_WORD: Final = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
_PART: Final = re.compile(r'(?:^|\.)(?:"(?P<quoted>[^"]+)"|(?P<name>[^.\[\]"]+))|\[(?P<index>[0-9]{1,4})\]')


@dataclass(frozen=True, slots=True)
class Commandline:
    """What was found.

    Attributes:
        root: the keys, as a document.
        sources: addresses and paths of more configuration, in the order written.
        problems: words that are ours and can't be understood.
    """

    root: MapNode
    sources: tuple[tuple[str, Mark], ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(slots=True)
class _Tree:
    """A map or list under construction: parts are names or indices."""

    mark: Mark
    children: dict[str | int, _Tree | ScalarNode] = field(default_factory=dict)


def parse(text: str) -> Commandline:
    """Read a kernel command line. Never raises; what is not ours is left alone."""
    tree = _Tree(Mark(FILE, 1, 1))
    sources: list[tuple[str, Mark]] = []
    problems: list[Problem] = []
    for found in _WORD.finditer(text[:MAX_CHARS]):
        mark = Mark(FILE, 1, found.start() + 1)
        key, equals, value = _unquote_word(found[0]).partition("=")
        if key == "cos.setup" or key in _URL_KEYS:
            if value:
                sources.append((_unquoted(value), mark))
            continue
        if key == "kairos.config":
            key, equals, value = _unquote_word(value).partition("=")
            if not equals or not key:
                hint = "write kairos.config=KEY=VALUE; for an address there is kairos.config_url="
                _complain(problems, mark, "kairos.config", hint)
                continue
        elif not equals or "." not in key or re.split(r"[.\[]", key)[0] not in BARE:
            continue
        path = split_path(key)
        if path is None or isinstance(path[0], int):
            _complain(problems, mark, key, "write a path such as stages.boot[0].commands[0]")
        else:
            _set(tree, path, ScalarNode(_unquoted(value), mark, plain=True), mark, problems)
    node = _node(tree, (), problems)
    assert isinstance(node, MapNode), "the root has names only"
    return Commandline(node, tuple(sources), tuple(problems))


def split_path(key: str) -> Path | None:
    """``stages.boot[0].name``, ``users.0.name``, ``stages."boot.after"[0]`` in parts; None if it is none."""
    parts: list[str | int] = []
    position = 0
    while position < len(key):
        found = _PART.match(key, position)
        if found is None or len(parts) >= MAX_PARTS:
            return None
        name = found["quoted"] or found["name"]
        if found["index"] is not None:
            parts.append(int(found["index"]))
        elif found["name"] and parts and re.fullmatch(r"[0-9]{1,4}", name):
            parts.append(int(name))
        else:
            parts.append(name)
        position = found.end()
    if not parts or any(isinstance(part, int) and part > MAX_INDEX for part in parts):
        return None
    return tuple(parts)


def _complain(problems: list[Problem], mark: Mark, key: str, hint: str) -> None:
    shown = dotted((key[:80],))
    problems.append(Problem(FILE, 1, mark.column, shown, "can't be understood as a key", hint))


def _unquote_word(word: str) -> str:
    """The kernel quotes ``key="a b"`` or ``"key=a b"``."""
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] == '"' else word


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        return value[1:].removesuffix('"')
    return value


def _set(tree: _Tree, path: Path, value: ScalarNode, mark: Mark, problems: list[Problem]) -> None:
    for part in path[:-1]:
        child = tree.children.setdefault(part, _Tree(mark))
        if isinstance(child, ScalarNode):
            what = "is set to a value and to keys below it"
            problems.append(Problem(FILE, 1, mark.column, dotted(path), what, "keep one of them"))
            return
        tree = child
    if isinstance(tree.children.get(path[-1]), _Tree):
        what = "is set to a value and to keys below it"
        problems.append(Problem(FILE, 1, mark.column, dotted(path), what, "keep one of them"))
        return
    tree.children[path[-1]] = value  # the last word wins, as for the kernel


def _node(tree: _Tree, path: Path, problems: list[Problem]) -> Node:
    built = {
        part: child if isinstance(child, ScalarNode) else _node(child, (*path, part), problems)
        for part, child in tree.children.items()
    }
    numbers = [part for part in built if isinstance(part, int)]
    if not numbers:
        entries = {str(part): Entry(_mark_of(node), node) for part, node in built.items()}
        return MapNode(entries, tree.mark)
    if len(numbers) != len(built) or sorted(numbers) != list(range(len(numbers))):
        what = "the items of a list must be numbered 0, 1, 2, … without a gap"
        problems.append(Problem(FILE, 1, tree.mark.column, dotted(path), what, "number them again"))
    return ListNode(tuple(built[number] for number in sorted(numbers)), tree.mark)


def _mark_of(node: Node) -> Mark:
    return node.mark
