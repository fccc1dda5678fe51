"""What holds for every cloud-config? parse(render(x)) = x; merging associates; bytes never surprise."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from p2p_bootstrap.cloudconfig.builder import MAX_DEPTH
from p2p_bootstrap.cloudconfig.collect import collect
from p2p_bootstrap.cloudconfig.document import has_header, parse
from p2p_bootstrap.cloudconfig.merge import merge
from p2p_bootstrap.cloudconfig.nodes import (
    Entry,
    ListNode,
    MapNode,
    Mark,
    Node,
    ScalarNode,
    locate_key,
    resolve,
    to_value,
)
from p2p_bootstrap.cloudconfig.render import render
from p2p_bootstrap.config.loading import check

WORDS = "no 0123 12:30 1e3 0o17 true null ~ << = #x *a &a !x | > %x @x `x ' \" 1_0 0x1 .inf ?"
SPACES = ("", "{{ .X }}", "- a", "a: b", "\n", " a", "a ", "a\n", "\na\n\n", "a\x85b", "\u2028")
TRAPS = st.sampled_from([*WORDS.split(), *SPACES])
TEXTS = TRAPS | st.text(st.characters(codec="utf-8"), max_size=30)
SCALARS = (
    TEXTS | st.integers(-(10**30), 10**30) | st.booleans() | st.none() | st.floats(allow_nan=False, width=64)
)
KEYS = TEXTS.filter(bool)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=5)

SOUP_WORDS = (
    "p2p: role:_ servers:_ k3s: -_ [ ] { } , :_ a 1 ' \" &x_ *x <<:_ | > # --- ... !!str_ ~ {{ "
    "network_token:_ env:_ args: vpn: mtu:_ bootstrap: auto: ha: k0s: hostname:_ install: bundles:"
)
BREAKS = ("\n", "\n  ", "\n    ", "\t")
YAML_SOUP = st.lists(
    st.sampled_from([*(word.replace("_", " ") for word in SOUP_WORDS.split()), *BREAKS]), max_size=40
).map("".join)


@given(DOCUMENTS)
def test_what_is_written_is_read(data: dict[str, Any]) -> None:
    text = render(data, comment="made by a test\nin two lines")
    assert has_header(text)
    assert to_value(parse(text.encode(), "f").checked()) == data


def as_written(node: Node) -> object:
    match node:
        case ScalarNode():
            return (node.text, node.plain and not isinstance(node.value, str))
        case ListNode():
            return [as_written(item) for item in node.items]
        case MapNode():
            return {key: as_written(entry.value) for key, entry in node.entries.items()}


@given(DOCUMENTS | YAML_SOUP)
@example("a: 0600\nb: '0600'\nc: no\nd: !!str 5\ne: 'no'\nf: 12:30\ng: ~\n")
def test_a_document_that_is_written_again_is_the_same(data: dict[str, Any] | str) -> None:
    text = "#cloud-config\n" + data if isinstance(data, str) else render(data)
    first = parse(text.encode(), "f").root
    again = parse(render(first).encode(), "f").checked()
    assert as_written(again) == as_written(first)


@given(DOCUMENTS)
def test_every_mark_points_at_its_key(data: dict[str, Any]) -> None:
    text = render(data)
    lines = text.split("\n")
    root = parse(text.encode(), "f").checked()
    for key in data:
        mark = locate_key(root, (key,))
        if key.isalnum():
            assert mark.column == 1
            assert lines[mark.line - 1].lstrip("'\"? ").startswith(key)
    marks = [locate_key(root, (key,)).line for key in data]
    assert marks == sorted(marks)


@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_an_unquoted_word_is_a_text_or_survives_being_written_again(text: str) -> None:
    value = resolve(text)
    assert isinstance(value, str | bool | int | float | None)
    if isinstance(value, str):
        assert value == text
    elif isinstance(value, int) and not isinstance(value, bool):
        assert resolve(str(value)) == value


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")))
@example(b"#cloud-config\n\xef\xbb\xbf: \n")
@example(b"%YAML 1" + b"9" * 5000 + b".1\n---\na: 1\n")
@example(b"a: !<tag:%ff%fe> b\n")
@example(b"? ? ? ?\n")
@example(b"&a &b c")
@example(b'a: "\\xff\\UFFFFFFFF"')
@example(b"--- !!omap\n- a\n")
def test_no_bytes_surprise_the_parser(data: bytes) -> None:
    for prefix in (b"", b"#cloud-config\n"):
        document = parse(prefix + data, "f")
        to_value(document.root)
        for problem in document.problems:
            assert problem.message
            assert str(problem).isprintable()


@given(YAML_SOUP)
def test_anything_is_a_config_or_has_problems(soup: str) -> None:
    config, problems = check(collect([], stdin="#cloud-config\n" + soup))
    assert (config is None) == bool(problems)
    assert all(p.message and p.file == "stdin" and p.line >= 1 for p in problems)
    if config:
        assert config.minimum_nodes >= 1
        assert config.declared_servers >= 1


@given(st.integers(1, MAX_DEPTH * 3), st.sampled_from("[{"))
def test_depth_is_bounded(depth: int, bracket: str) -> None:
    body = "[" * depth + "]" * depth if bracket == "[" else "{a: " * depth + "1" + "}" * depth
    assert bool(parse(f"k: {body}".encode(), "f", header=False).problems) == (depth + 1 > MAX_DEPTH)


# --- merging ---


def node(value: Any, mark: Mark) -> Node:
    if isinstance(value, dict):
        return MapNode({key: Entry(mark, node(inner, mark)) for key, inner in value.items()}, mark)
    if isinstance(value, list):
        return ListNode(tuple(node(inner, mark) for inner in value), mark)
    return ScalarNode("" if value is None else str(value), mark, plain=value is None)


# One shape per key, so that nothing clashes; few keys, so that they meet.
SHAPES = st.fixed_dictionaries(
    {},
    optional={
        "scalar": st.sampled_from(["a", "b", "c"]),
        "list": st.lists(st.sampled_from(["x", "y", "z"]) | st.just({"n": "1"}), max_size=4),
        "args": st.lists(st.sampled_from(["x", "y"]), max_size=3),
        "map": st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["1", "2"]), max_size=2),
    },
)


def roots(*values: Any) -> list[MapNode]:
    nodes = [node(value, Mark(f"{i}", 1, 1)) for i, value in enumerate(values)]
    return [n for n in nodes if isinstance(n, MapNode)]


def merged(*documents: MapNode) -> MapNode:
    root, problems = merge(documents)
    assert not problems
    return root


@given(SHAPES, SHAPES, SHAPES)
def test_merging_associates(a: Any, b: Any, c: Any) -> None:
    x, y, z = roots(a, b, c)
    left, right = merged(merged(x, y), z), merged(x, merged(y, z))
    assert to_value(left) == to_value(right) == to_value(merged(x, y, z))


@given(SHAPES)
def test_nothing_is_neutral(a: Any) -> None:
    (x,) = roots(a)
    empty = MapNode({}, Mark("e", 1, 1))
    assert to_value(merged(x, empty)) == to_value(merged(empty, x)) == to_value(x)


@given(SHAPES, SHAPES)
def test_the_later_one_wins_and_nothing_else_is_lost(a: Any, b: Any) -> None:
    x, y = roots(a, b)
    result = to_value(merged(x, y))
    assert isinstance(result, dict)
    assert result.keys() == a.keys() | b.keys()
    assert result.get("scalar") == b.get("scalar", a.get("scalar"))
    assert result.get("map", {}) == {**a.get("map", {}), **b.get("map", {})}
    assert result.get("args", []) == a.get("args", []) + b.get("args", [])


@given(SHAPES, st.sampled_from(["scalar", "list", "args", "map"]), SHAPES)
def test_null_clears(a: Any, key: str, c: Any) -> None:
    x, y, z = roots(a, {key: None}, c)
    result = to_value(merged(x, y, z))
    assert isinstance(result, dict)
    assert result[key] == c.get(key)


@given(DOCUMENTS, DOCUMENTS)
def test_merging_any_two_files_never_fails(a: dict[str, Any], b: dict[str, Any]) -> None:
    parsed = [parse(render(x).encode(), f"{i}").checked() for i, x in enumerate((a, b))]
    root, problems = merge(parsed)
    assert set(to_value(root)) == set(a) | set(b)  # type: ignore[arg-type]
    assert all(p.file == "1" and "in 0:" in p.message for p in problems)
