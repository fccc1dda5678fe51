"""Which steps does a whole configuration hold, in which stage, from which file?

The merged document is read: what ``config show`` prints is what runs. Steps keep the file they came from, so
that the order of files, and names such as ``file.step``, mean what they mean in Kairos.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from p2p_bootstrap.cloudconfig.nodes import Entry, ListNode, MapNode, Node, ScalarNode, to_value
from p2p_bootstrap.stages import names
from p2p_bootstrap.stages.model import Step
from p2p_bootstrap.stages.plain import plain_steps
from p2p_bootstrap.stages.reading import Reader, is_bad
from p2p_network.core.errors import Problem, nearest

PLAIN_KEYS: Final = (
    "users", "write_files", "milpa_files", "runcmd", "ssh_authorized_keys", "hostname", "growpart",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ConfiguredStep:
    """A step in its place.

    Attributes:
        stage: its stage.
        file: where it stands.
        id: ``FILE.NAME``, unique within the stage; `aliases` are its other names for ``after``.
        label: what reports call it.
        step: what it says.
    """

    stage: str
    file: str
    id: str
    aliases: frozenset[str]
    label: str
    step: Step


@dataclass(frozen=True, slots=True)
class Configured:
    """All steps, lowest file first, in the order written; and what is wrong.

    `strict`: every error in a stage is fatal. `broken`: per stage, how many steps can't be understood.
    """

    steps: tuple[ConfiguredStep, ...]
    strict: bool = False
    problems: tuple[Problem, ...] = ()
    broken: Mapping[str, int] | None = None


def read_steps(
    root: MapNode, files: Sequence[str] = (), own_names: Mapping[str, str] | None = None
) -> Configured:
    """The steps of a merged document.

    Args:
        files: the files it came from, lowest first (the order in which their steps run).
        own_names: the ``name`` a file gives itself.
    """
    reader = Reader()
    found: list[tuple[int, int, str, str, str, Step]] = []
    rank = {file: number for number, file in enumerate(dict.fromkeys(files))}
    for file, part in _plain_by_file(root):
        for one in plain_steps(part, reader):
            found.append((rank.get(file, len(rank)), len(found), one.stage, file, one.label, one.step))
    broken: dict[str, int] = {}
    for stage, number, node in _stage_items(root, reader):
        step = reader.read(node, Step, ("stages", stage, number))
        if is_bad(step):
            broken[stage] = broken.get(stage, 0) + 1
            continue
        found.append(
            (rank.get(node.mark.file, len(rank)), len(found), stage, node.mark.file, step.name, step)
        )
    found.sort(key=lambda item: item[:2])
    strict = root.get("strict")
    return Configured(
        tuple(_named(found, own_names or {})),
        isinstance(strict, ScalarNode) and to_value(strict) is True,
        tuple(sorted(reader.problems)),
        broken,
    )


def _plain_by_file(root: MapNode) -> Iterator[tuple[str, MapNode]]:
    """The plain keys as each file wrote them: users and files of one file don't mix with another's."""
    files: dict[str, dict[str, Entry]] = {}
    for name in PLAIN_KEYS:
        entry = root.entries.get(name)
        if entry is None:
            continue
        value = entry.value
        if not isinstance(value, ListNode):
            files.setdefault(_file_of(value), {})[name] = entry
            continue
        parts: dict[str, list[Node]] = {}
        for item in value.items:
            parts.setdefault(_file_of(item), []).append(item)
        for file, items in parts.items():
            mark = entry.mark if file == entry.mark.file else items[0].mark
            files.setdefault(file, {})[name] = Entry(mark, ListNode(tuple(items), mark))
    for file, entries in files.items():
        yield file, MapNode(entries, replace(root.mark, file=file))


def _file_of(node: Node) -> str:
    return node.mark.file


def _stage_items(root: MapNode, reader: Reader) -> Iterator[tuple[str, int, Node]]:
    stages = root.get("stages")
    if stages is None:
        return
    if not isinstance(stages, MapNode):
        reader.complain(
            stages.mark, ("stages",), "expected a map of stages", "write stages: and below it boot:"
        )
        return
    for stage, entry in stages.entries.items():
        if not names.is_known(stage):
            near = nearest(stage, names.NAMES)
            hint = f"did you mean {near!r}?" if near else f"the stages of a boot are {', '.join(names.BOOT)}"
            reader.complain(entry.mark, ("stages", stage), "unknown stage: nothing would ever run it", hint)
            continue
        node = stages.get(stage)
        if isinstance(node, ListNode):
            yield from ((stage, number, item) for number, item in enumerate(node.items))
        elif node is not None:
            hint = "put a dash before each step"
            reader.complain(node.mark, ("stages", stage), "expected a list of steps", hint)


def _named(
    found: Sequence[tuple[int, int, str, str, str, Step]], own_names: Mapping[str, str]
) -> Iterator[ConfiguredStep]:
    """Give each step Kairos's name: the file's name or path, a dot, the step's name or number."""
    written: dict[tuple[str, str], list[str]] = {}
    for _, _, stage, file, _, step in found:
        written.setdefault((stage, file), []).append(step.name)
    counts: dict[tuple[str, str], int] = {}
    taken: set[tuple[str, str]] = set()
    for _, _, stage, file, label, step in found:
        place = (stage, file)
        number = counts.get(place, 0)
        counts[place] = number + 1
        all_names = written[place]
        short = step.name or str(number)
        if len(set(all_names)) < len(all_names):
            short = f"{step.name}.{number}"
        base = f"{own_names.get(file, file)}.{short}"
        unique, again = base, 0
        while (stage, unique) in taken:
            again += 1
            unique = f"{base}.{again}"
        taken.add((stage, unique))
        aliases = {unique, f"{file}.{short}", *([step.name] if step.name else [])}
        shown = label or f"step {number + 1} ({step.mark})"
        yield ConfiguredStep(stage, file, unique, frozenset(aliases), shown, step)
