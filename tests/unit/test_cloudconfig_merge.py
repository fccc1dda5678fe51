"""Do several files say together what Kairos's rules say?"""

from __future__ import annotations

from p2p_bootstrap.cloudconfig.document import parse
from p2p_bootstrap.cloudconfig.merge import merge
from p2p_bootstrap.cloudconfig.nodes import MapNode, locate, to_value
from p2p_network.core.errors import Problem


def merged(*texts: str) -> tuple[MapNode, tuple[Problem, ...]]:
    roots = [parse(text.encode(), f"{i}.yaml", header=False).checked() for i, text in enumerate(texts)]
    return merge(roots)


def value(*texts: str) -> object:
    root, problems = merged(*texts)
    assert not problems
    return to_value(root)


def test_maps_merge_deep_and_the_later_scalar_wins() -> None:
    assert value("a: {x: 1, y: {z: 1}}", "a: {x: 2, y: {w: 3}}\nb: 4") == {
        "a": {"x": 2, "y": {"z": 1, "w": 3}},
        "b": 4,
    }


def test_lists_join_without_scalars_that_are_there() -> None:
    assert value("a: [1, x]", "a: [x, y, y, '1']") == {"a": [1, "x", "y", "1"]}
    assert value("a: [{n: 1}]", "a: [{n: 1}]") == {"a": [{"n": 1}, {"n": 1}]}, "maps are steps: all are kept"


def test_words_of_a_command_line_may_repeat() -> None:
    first, second = "k3s: {args: [--node-label, a=1]}", "k3s: {args: [--node-label, b=2]}"
    assert value(first, second) == {"k3s": {"args": ["--node-label", "a=1", "--node-label", "b=2"]}}


def test_null_clears_and_what_comes_later_starts_anew() -> None:
    assert value("a: {x: 1}\nb: [1]\nc: t", "a:\nb: null\nc: ~") == {"a": None, "b": None, "c": None}
    assert value("a: {x: 1}", "a:", "a: {y: 2}") == {"a": {"y": 2}}
    assert value("a: {x: 1}", "a:", "a: [1]") == {"a": [1]}, "clearing also frees the type"
    assert value("a:", "a: {x: 1}") == {"a": {"x": 1}}


def test_a_clash_names_both_places_and_checking_goes_on() -> None:
    root, problems = merged("p2p:\n  role: x\n  vpn: {}", "k: 1\np2p:\n  role: [a]\n  vpn: 3")
    assert [(p.file, p.line, p.key) for p in problems] == [
        ("1.yaml", 3, "p2p.role"),
        ("1.yaml", 4, "p2p.vpn"),
    ]
    assert problems[0].message == "a list here, but a text in 0.yaml:2"
    assert "null" in problems[0].hint
    assert to_value(root) == {"p2p": {"role": "x", "vpn": {}}, "k": 1}


def test_provenance() -> None:
    root, _ = merged("a: {x: 1, y: 1}", "a:\n  y: 2\n  z: 3")
    assert str(locate(root, ("a", "x"))) == "0.yaml:1"
    assert str(locate(root, ("a", "y"))) == "1.yaml:2"
    assert str(locate(root, ("a", "z"))) == "1.yaml:3"


def test_nothing_at_all() -> None:
    assert to_value(merge([])[0]) == {}
