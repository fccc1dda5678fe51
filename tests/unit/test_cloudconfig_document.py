"""Does a file become the nodes it says, on the lines it says, and is every kind of bad file named?"""

from __future__ import annotations

import pytest

from p2p_bootstrap.cloudconfig.builder import MAX_DEPTH, MAX_VALUES
from p2p_bootstrap.cloudconfig.document import Document, parse
from p2p_bootstrap.cloudconfig.nodes import (
    Mark,
    ScalarNode,
    dotted,
    find,
    locate,
    locate_key,
    resolve,
    to_value,
    with_text,
)
from p2p_bootstrap.cloudconfig.render import render
from p2p_network.core.errors import ConfigError, Problem

HEADER = "#cloud-config\n"


def read(text: str | bytes, *, header: bool = True) -> Document:
    return parse(text if isinstance(text, bytes) else text.encode(), "f.yaml", header=header)


def only_problem(text: str | bytes) -> Problem:
    document = read(text)
    assert len(document.problems) == 1, document.problems
    return document.problems[0]


def test_values_and_marks() -> None:
    root = read(HEADER + "p2p:\n  role: master\n  bootstrap:\n  - a:1\n  - b:2\n").checked()
    assert to_value(root) == {"p2p": {"role": "master", "bootstrap": ["a:1", "b:2"]}}
    assert locate(root, ("p2p", "role")) == Mark("f.yaml", 3, 9)
    assert locate_key(root, ("p2p", "role")) == Mark("f.yaml", 3, 3)
    assert locate(root, ("p2p", "bootstrap")) == Mark("f.yaml", 4, 3), "a list is where its key is"
    assert locate(root, ("p2p", "bootstrap", 1)) == Mark("f.yaml", 6, 5)
    assert locate(root, ("p2p", "absent", "deeper")) == Mark("f.yaml", 2, 1), "the nearest part that exists"
    assert dotted(("p2p", "bootstrap", 1)) == "p2p.bootstrap[1]"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("0123", "0123"),
        ("0o17", "0o17"),
        ("12:30", "12:30"),
        ("1:2:3", "1:2:3"),
        ("2024-01-02", "2024-01-02"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("=", "="),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("42", 42),
        ("-7", -7),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".inf", float("inf")),
    ],
)
def test_yaml_1_1_traps_are_texts(written: str, value: object) -> None:
    assert resolve(written) == value
    root = read(f"{HEADER}key: {written}\n").checked()
    node = find(root, ("key",))
    assert isinstance(node, ScalarNode)
    assert node.text == written, "the original text can always be seen"


def test_quoted_is_always_text() -> None:
    root = read(HEADER + 'a: \'true\'\nb: "12"\nc: !!str 3\nd: !!int "3"\n').checked()
    assert to_value(root) == {"a": "true", "b": "12", "c": "3", "d": 3}


def test_a_secret_is_not_in_the_repr() -> None:
    assert "hunter2" not in repr(read(HEADER + "p2p: {network_token: hunter2}\n"))


@pytest.mark.parametrize("header", ["#cloud-config", "#kairos-config", "#node-config  "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_headers_and_line_ends(header: str, end: str) -> None:
    root = read(end.join([header, "# prose", "a: 1", "b: |", "  x", "  y", ""])).checked()
    assert to_value(root) == {"a": 1, "b": "x\ny\n"}
    assert locate(root, ("a",)).line == 3


def test_byte_order_mark_is_taken_off() -> None:
    assert to_value(read(b"\xef\xbb\xbf#cloud-config\na: 1\n").checked()) == {"a": 1}


@pytest.mark.parametrize("text", ["#cloud-config", "#cloud-config\n# nothing\n", "#cloud-config\n---\n"])
def test_empty_documents(text: str) -> None:
    assert to_value(read(text).checked()) == {}


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ("a: 1\n", 1, "no cloud-config header", "first one: #cloud-config"),
        ("", 1, "no cloud-config header", "#cloud-config"),
        ("# cloud-config\na: 1\n", 1, "no cloud-config header", "without a space"),
        ("\n#cloud-config\na: 1\n", 1, "no cloud-config header", "is on line 2"),
        ("#!/bin/sh\nfoo: [\n", 1, "no cloud-config header", "this is a script"),
        ("## template: jinja\n#cloud-config\n{% if %}\n", 1, "no cloud-config header", "jinja"),
        ("Content-Type: multipart/mixed; x\n\n--x\n", 1, "no cloud-config header", "multi-part"),
        (HEADER + "p2p:\n\trole: x\n", 3, "a tab stands", "spaces"),
        (HEADER + "a:\n  - b\n\t- c\n", 4, "a tab stands", "spaces"),
        (HEADER + "a: b: c\n", 2, "mapping values are not allowed", "quotes"),
        (HEADER + "a:\n  b: 1\n c: 2\n", 4, "not valid YAML", "same column"),
        (HEADER + 'a: "x\nb: 1\n', 2, "never closed", "close it"),
        (HEADER + "a: [1, 2\nb: 1\n", 3, "not valid YAML", ""),
        (HEADER + "a: @x\n", 2, "cannot start any token", "quotes"),
        (HEADER + "a: {{ .X }}\n", 2, "a key must be a text, found a map", "{{ }}"),
        (HEADER + "'': b\n", 2, "a key is missing", "key: value"),
        (HEADER + "- a\n", 2, "is a map of keys, found a list", "key: value"),
        (HEADER + "a\n", 2, "is a map of keys, found a text", "key: value"),
        (HEADER + "a: 1\n---\nb: 2\n", 3, "a second document", "file of its own"),
        (HEADER + "a: *x\n", 2, "alias *x has no anchor", "write the value out"),
        (HEADER + "a: &x {b: *x}\n", 2, "the value that contains it", "write the value out"),
        (HEADER + "a: !foo 1\n", 2, "tag is not supported", "!"),
        (HEADER + 'a: "\\ud800"\n', 2, "surrogate", "character"),
        (HEADER + 'a: "\\U99999999"\n', 2, "out of range", ""),
        (HEADER + "<<: 3\n", 2, "<< takes a map", ""),
        (HEADER.encode() + b"ok: 1\nb: \xff\n", 3, "0xff is not valid UTF-8", "UTF-8"),
        ("#cloud-config\n".encode("utf-16"), 1, "UTF-16", "UTF-8"),
        (b"\x7fELF\x02\x01\x00\x00", 1, "binary", "right file"),
        (HEADER + "a: \x1b[31m\n", 2, "U+001B", "escape"),
    ],
)
def test_bad_files(text: str | bytes, line: int, message: str, hint: str) -> None:
    problem = only_problem(text)
    assert problem.file == "f.yaml"
    assert problem.line == line
    assert message in problem.message
    assert hint in problem.hint


def test_every_duplicate_key_with_both_lines() -> None:
    document = read(HEADER + "a: 1\nb:\n  c: 1\n  c: 2\na: 3\nb: 4\n")
    assert [(p.line, p.key) for p in document.problems] == [(5, "b.c"), (6, "a"), (7, "b")]
    assert "the first is on line 4" in document.problems[0].message
    assert "the first is on line 2" in document.problems[1].message
    assert to_value(document.root) == {"a": 1, "b": {"c": 1}}, "the first stays, so checking can go on"
    with pytest.raises(ConfigError) as caught:
        document.checked()
    assert len(caught.value.problems) == 3


def test_what_stands_before_broken_yaml_is_kept() -> None:
    document = read(HEADER + "p2p:\n  role: master\n  a: 1\n  a: 2\n\tx: 1\n")
    assert [p.line for p in document.problems] == [5, 6]
    assert to_value(document.root) == {"p2p": {"role": "master", "a": 1}}


def test_a_file_of_10_mb() -> None:
    problem = only_problem(HEADER.encode() + b"a: " + b"x" * 10_000_000)
    assert "10.0 MB" in problem.message
    assert "right file" in problem.hint


def test_a_yaml_bomb_is_refused_before_it_costs_anything() -> None:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    problem = only_problem(HEADER + "\n".join(lines) + "\n")
    assert "expands to more than" in problem.message
    assert "YAML bomb" in problem.hint
    assert problem.key.startswith("a")


def test_a_bomb_of_one_long_text() -> None:
    text = HEADER + f"a: &a {'x' * 100_000}\nb: [{','.join(['*a'] * 100)}]\n"
    assert "characters" in only_problem(text).message


def test_too_many_and_too_deep() -> None:
    many = only_problem(HEADER + "a: [" + "1," * (MAX_VALUES + 1) + "]\n")
    assert f"more than {MAX_VALUES} values" in many.message
    assert "deep" in only_problem(HEADER + "a: " + "[" * 10_000).message
    nested = "[" * (MAX_DEPTH - 5) + "]" * (MAX_DEPTH - 5)
    assert not read(f"{HEADER}a: {nested}\n").problems
    by_alias = f"{HEADER}a: &a {nested}\nb: [[[[[[*a]]]]]]\n"
    assert "deep" in only_problem(by_alias).message


def test_anchors_and_merge_keys() -> None:
    root = read(HEADER + "base: &b {x: 1, y: 2}\na: {<<: *b, y: 3}\nc: {<<: [*b, {z: 4}]}\n").checked()
    value = to_value(root)
    assert isinstance(value, dict)
    assert value["a"] == {"y": 3, "x": 1}
    assert value["c"] == {"x": 1, "y": 2, "z": 4}
    assert locate(root, ("a", "x")).line == 2, "where it was really written"


def test_a_key_is_safe_to_print() -> None:
    document = read(HEADER + '"\\e[31m": 1\n"\\e[31m": 2\n')
    assert "\x1b" not in str(document.problems[0])
    assert len(dotted(("k" * 500,))) < 100


def test_a_text_put_into_a_document_leaves_the_rest_as_written() -> None:
    text = HEADER + "p2p:\n  role: master\nstages:\n  boot:\n"
    text += "  - files:\n    - permissions: 0600\n      owner: '0'\n"
    root = with_text(read(text).checked(), ("p2p", "region"), "0123")
    assert render(root) == text.replace("master\n", "master\n  region: '0123'\n")
    assert render(with_text(read(HEADER).checked(), ("a", "b"), "no")) == HEADER + "a:\n  b: 'no'\n"
    assert render(with_text(read(HEADER + "a:\n").checked(), ("a", "b"), "x")) == HEADER + "a:\n  b: x\n"


def test_octal_numbers_stay_what_they_were() -> None:
    text = HEADER + "a: 0600\nb: '0600'\nc: 5\nd: '5'\ne: true\n"
    assert render(read(text).checked()) == text
