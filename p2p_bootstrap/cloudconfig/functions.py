"""Which functions may a template call? Those of Go and of sprig that cloud-configs use; pure, bounded.

Order of arguments as in sprig: the text comes last, so that it can be piped in.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

Value: TypeAlias = "str | int | float | bool | Sequence[Value] | Mapping[str, Value] | None"
MAX_CHARS: Final = 1024 * 1024


class Refused(ValueError):
    """A function can't do that with these values; the message says why."""


@dataclass(frozen=True, slots=True)
class Function:
    """`takes`: least and most values; `takes_nil`: whether a missing value is its business."""

    run: Callable[..., Value]
    takes: tuple[int, int]
    takes_nil: bool = False


def shown(value: Value) -> str:
    """A value as text."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case int():
            return _digits(value)
        case float():
            return repr(value).removesuffix(".0")
        case _:
            return json.dumps(value, default=dict)


def _digits(number: int) -> str:
    if number.bit_length() > 4096:
        raise Refused("the number is too big")
    return str(number)


def is_true(value: Value) -> bool:
    """Go's idea of truth: everything that is not empty, zero, false or missing."""
    return bool(value)


def _text(value: Value) -> str:
    if isinstance(value, str | int | float | bool):
        return shown(value)
    raise Refused("expected a text, found a list or a map")


def _whole(value: Value) -> int:
    if isinstance(value, bool):
        return int(value)
    try:
        number = int(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or abs(number) >= 1 << 63:
        raise Refused(f"expected a whole number, found {shown(value)[:40]!r}")
    return number


def _count(value: Value) -> int:
    number = _whole(value)
    if not 0 <= number <= MAX_CHARS:
        raise Refused(f"expected a number from 0 to {MAX_CHARS}, found {number}")
    return number


def _bounded(text: str) -> str:
    if len(text) > MAX_CHARS:
        raise Refused("the text gets too long")
    return text


def _trunc(length: Value, text: Value) -> str:
    number, word = _whole(length), _text(text)
    return word[:number] if number >= 0 else word[number:]


def _substr(start: Value, end: Value, text: Value) -> str:
    first, last = _whole(start), _whole(end)
    word = _text(text)
    return word[max(first, 0) : last if last >= 0 else None]


def _indent(count: Value, text: Value, first: str = "") -> str:
    pad = " " * min(_count(count), 1000)
    lines = _text(text).split("\n")
    if len(lines) * len(pad) > MAX_CHARS:
        raise Refused("the text gets too long")
    return first + pad + ("\n" + pad).join(lines)


def _quoted(text: Value) -> str:
    return json.dumps(_text(text), ensure_ascii=False)


def _decode(text: Value) -> str:
    try:
        return base64.b64decode(_text(text), validate=True).decode()
    except (binascii.Error, ValueError):
        raise Refused("this is not base64 of a text") from None


def _index(holder: Value, *keys: Value) -> Value:
    for key in keys:
        if isinstance(holder, Mapping):
            holder = holder.get(shown(key))
        elif isinstance(holder, Sequence) and not isinstance(holder, str):
            number = _whole(key)
            if not 0 <= number < len(holder):
                raise Refused(f"there is no item {number}; the list has {len(holder)}")
            holder = holder[number]
        else:
            raise Refused("only a list or a map has items")
    return holder


def _length(value: Value) -> int:
    if isinstance(value, str | Sequence | Mapping):
        return len(value)
    raise Refused("only a text, a list or a map has a length")


def _join(separator: Value, items: Value) -> str:
    if isinstance(items, Sequence) and not isinstance(items, str):
        return _bounded(_text(separator).join(shown(item) for item in items))
    return _text(items)


def _split(separator: Value, text: Value) -> Sequence[Value]:
    mark = _text(separator)
    return tuple(_text(text).split(mark)) if mark else tuple(_text(text))


def _replace(old: Value, new: Value, text: Value) -> str:
    what, by, word = _text(old), _text(new), _text(text)
    if len(word) + word.count(what) * max(len(by) - len(what), 0) > MAX_CHARS:
        raise Refused("the text gets too long")
    return word.replace(what, by)


def _repeat(count: Value, text: Value) -> str:
    times, word = _count(count), _text(text)
    if times * len(word) > MAX_CHARS:
        raise Refused("the text gets too long")
    return word * times


def _compare(one: Value, other: Value) -> int:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return (one > other) - (one < other)
    if isinstance(one, str) and isinstance(other, str):
        return (one > other) - (one < other)
    raise Refused("these two kinds of values can't be compared")


def _same(one: Value, *others: Value) -> bool:
    return any(type(one) is type(other) and one == other for other in others)


def _coalesce(*values: Value) -> Value:
    return next((value for value in values if is_true(value)), None)


def _and(*values: Value) -> Value:
    return next((value for value in values if not is_true(value)), values[-1])


def _or(*values: Value) -> Value:
    return next((value for value in values if is_true(value)), values[-1])


def _ends(items: Value, place: int) -> Value:
    if isinstance(items, Sequence) and not isinstance(items, str):
        return items[place] if items else None
    raise Refused("only a list has items")


def _divide(one: Value, other: Value, *, rest: bool) -> int:
    a, b = _whole(one), _whole(other)
    if b == 0:
        raise Refused("division by zero")
    quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)  # Go cuts towards zero
    return a - quotient * b if rest else quotient


def _sum(*values: Value) -> int:
    return sum(_whole(value) for value in values)


def _times(*values: Value) -> int:
    product = 1
    for value in values:
        product = _whole(product * _whole(value))
    return product


def _one(run: Callable[[str], Value]) -> Function:
    return Function(lambda text: run(_text(text)), (1, 1))


def _hash(name: str) -> Function:
    return _one(lambda text: hashlib.new(name, text.encode("utf-8", "replace")).hexdigest())


_MANY: Final = 99
FUNCTIONS: Final[Mapping[str, Function]] = {
    "trunc": Function(_trunc, (2, 2)),
    "substr": Function(_substr, (3, 3)),
    "lower": _one(str.lower),
    "upper": _one(str.upper),
    "title": _one(str.title),
    "trim": _one(str.strip),
    "nospace": _one(lambda text: "".join(text.split())),
    "trimAll": Function(lambda chars, text: _text(text).strip(_text(chars)), (2, 2)),
    "trimPrefix": Function(lambda part, text: _text(text).removeprefix(_text(part)), (2, 2)),
    "trimSuffix": Function(lambda part, text: _text(text).removesuffix(_text(part)), (2, 2)),
    "replace": Function(_replace, (3, 3)),
    "repeat": Function(_repeat, (2, 2)),
    "contains": Function(lambda part, text: _text(part) in _text(text), (2, 2)),
    "hasPrefix": Function(lambda part, text: _text(text).startswith(_text(part)), (2, 2)),
    "hasSuffix": Function(lambda part, text: _text(text).endswith(_text(part)), (2, 2)),
    "quote": Function(lambda *texts: _bounded(" ".join(map(_quoted, texts))), (1, _MANY)),
    "squote": Function(lambda *texts: " ".join(f"'{_text(t)}'" for t in texts), (1, _MANY)),
    "cat": Function(lambda *values: _bounded(" ".join(map(_text, values))), (1, _MANY)),
    "print": Function(lambda *values: _bounded("".join(map(shown, values))), (1, _MANY)),
    "indent": Function(_indent, (2, 2)),
    "nindent": Function(lambda count, text: _indent(count, text, "\n"), (2, 2)),
    "toString": Function(_text, (1, 1)),
    "join": Function(_join, (2, 2)),
    "splitList": Function(_split, (2, 2)),
    "first": Function(lambda items: _ends(items, 0), (1, 1)),
    "last": Function(lambda items: _ends(items, -1), (1, 1)),
    "list": Function(lambda *items: items, (0, _MANY), takes_nil=True),
    "index": Function(_index, (2, _MANY)),
    "len": Function(_length, (1, 1)),
    "b64enc": _one(lambda text: base64.b64encode(text.encode("utf-8", "replace")).decode()),
    "b64dec": Function(_decode, (1, 1)),
    "sha1sum": _hash("sha1"),
    "sha256sum": _hash("sha256"),
    "int": Function(_whole, (1, 1)),
    "atoi": Function(_whole, (1, 1)),
    "add": Function(_sum, (1, _MANY)),
    "add1": Function(lambda value: _whole(value) + 1, (1, 1)),
    "sub": Function(lambda one, other: _whole(one) - _whole(other), (2, 2)),
    "mul": Function(_times, (1, _MANY)),
    "div": Function(lambda one, other: _divide(one, other, rest=False), (2, 2)),
    "mod": Function(lambda one, other: _divide(one, other, rest=True), (2, 2)),
    "eq": Function(_same, (2, _MANY), takes_nil=True),
    "ne": Function(lambda one, other: not _same(one, other), (2, 2), takes_nil=True),
    "lt": Function(lambda one, other: _compare(one, other) < 0, (2, 2)),
    "le": Function(lambda one, other: _compare(one, other) <= 0, (2, 2)),
    "gt": Function(lambda one, other: _compare(one, other) > 0, (2, 2)),
    "ge": Function(lambda one, other: _compare(one, other) >= 0, (2, 2)),
    "not": Function(lambda value: not is_true(value), (1, 1), takes_nil=True),
    "and": Function(_and, (1, _MANY), takes_nil=True),
    "or": Function(_or, (1, _MANY), takes_nil=True),
    "empty": Function(lambda value: not is_true(value), (1, 1), takes_nil=True),
    "default": Function(lambda spare, value=None: value if is_true(value) else spare, (1, 2), takes_nil=True),
    "coalesce": Function(_coalesce, (1, _MANY), takes_nil=True),
    "ternary": Function(lambda yes, no, test: yes if is_true(test) else no, (3, 3), takes_nil=True),
}

# Functions of sprig that can't be had, and what to use instead.
UNSUPPORTED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("randAlphaNum", "randAlpha", "randNumeric", "randAscii", "randInt", "randBytes", "shuffle"),
        "a stage that runs twice must do the same: use .Random, which stays the same on a machine",
    ),
    "uuidv4": "use .UUID, which stays the same on a machine",
    **dict.fromkeys(("now", "date", "ago", "htmlDate"), "a stage that runs twice must do the same"),
    **dict.fromkeys(("env", "expandenv"), "the environment differs between boot and login; write it out"),
    "getHostByName": "a template reads nothing from the network",
}
