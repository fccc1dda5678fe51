"""What does a text with ``{{ … }}`` say on this machine? A small, safe subset of Go's templates.

Understood: fields (``.MachineID``, ``.Values.node.hostname``), texts, numbers, ``true``, ``false``, ``nil``,
functions (`functions.FUNCTIONS`, those that Kairos's documents use), parentheses, pipes, ``if``/``else
if``/``else``/``end``, comments, and ``{{-``/``-}}``, which eat the spaces beside them. All else of Go's is
an error that says so, with its line. Nothing runs and nothing is read: only `data` goes in, and the output is
bounded. Where Go would print ``<no value>``, or Kairos would keep the text unrendered, this is an error too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2p_bootstrap.cloudconfig.functions import FUNCTIONS, Refused, Value, is_true, shown
from p2p_bootstrap.cloudconfig.template_parser import (
    Call,
    Choice,
    Constant,
    Expression,
    Field,
    Literal,
    Output,
    Parser,
    Part,
    Wrong,
    split,
)
from p2p_network.core.errors import ConfigError, Problem

MAX_CHARS: Final = 256 * 1024
MAX_OUTPUT_CHARS: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template; `file`, `line` and `key` are where its text stands."""

    parts: tuple[Part, ...]
    file: str
    line: int
    column: int
    key: str


def has_template(text: str) -> bool:
    """Whether there is anything to render."""
    return "{{" in text


def parse(text: str, *, file: str = "", line: int = 1, column: int = 1, key: str = "") -> Template:
    """Parse `text`, which begins at that place. Raises ConfigError with the line of what is wrong."""
    try:
        if len(text) > MAX_CHARS:
            raise Wrong(0, f"a template has at most {MAX_CHARS} characters")
        return Template(Parser(split(text)).document(), file, line, column, key)
    except Wrong as exc:
        raise _error(exc, file, line, column, key) from None


def render(template: Template, data: Mapping[str, Value]) -> str:
    """The text with every value put in. Raises ConfigError: a value is missing, or a function refuses."""
    out: list[str] = []
    try:
        _write(template.parts, data, out, [0])
    except Wrong as exc:
        raise _error(exc, template.file, template.line, template.column, template.key) from None
    return "".join(out)


def render_text(
    text: str, data: Mapping[str, Value], *, file: str = "", line: int = 1, column: int = 1, key: str = ""
) -> str:
    """`parse` and `render`; a text without braces comes back as it is."""
    if not has_template(text):
        return text
    return render(parse(text, file=file, line=line, column=column, key=key), data)


def _error(exc: Wrong, file: str, line: int, column: int, key: str) -> ConfigError:
    at = line + exc.line
    return ConfigError([Problem(file, at, column if not exc.line else 1, key, exc.message, exc.hint)])


def _write(parts: Sequence[Part], data: Mapping[str, Value], out: list[str], size: list[int]) -> None:
    for part in parts:
        match part:
            case Literal(text):
                _add(text, out, size, 0)
            case Output(expression):
                value = _value(expression, data)
                line = getattr(expression, "line", 0)
                if value is None:
                    raise _missing(expression, line)
                _add(shown(value), out, size, line)
            case Choice(branches):
                for condition, inner in branches:
                    if condition is None or is_true(_value(condition, data)):
                        _write(inner, data, out, size)
                        break


def _add(text: str, out: list[str], size: list[int], line: int) -> None:
    size[0] += len(text)
    if size[0] > MAX_OUTPUT_CHARS:
        raise Wrong(line, f"the text would have more than {MAX_OUTPUT_CHARS} characters")
    out.append(text)


def _missing(expression: Expression, line: int) -> Wrong:
    if isinstance(expression, Field):
        name = "." + ".".join(expression.names)
        return Wrong(line, f"{name} has no value on this machine", f'give one with: {name} | default "..."')
    return Wrong(line, "this has no value", 'give one with: | default "..."')


def _value(expression: Expression, data: Mapping[str, Value]) -> Value:
    match expression:
        case Constant(value):
            return value
        case Field(names):
            found: Value = dict(data)
            for name in names:
                found = found.get(name) if isinstance(found, Mapping) else None
            return found
        case Call(name, arguments, line):
            function: Callable[..., Value] = FUNCTIONS[name].run
            values = [_value(argument, data) for argument in arguments]
            low, high = FUNCTIONS[name].takes
            if not low <= len(values) <= high:
                takes = str(low) if low == high else f"{low} to {high}" if high < 99 else f"{low} or more"
                raise Wrong(line, f"{name} takes {takes} values, found {len(values)}")
            if not FUNCTIONS[name].takes_nil:
                for argument, value in zip(arguments, values, strict=True):
                    if value is None:
                        raise _missing(argument, line)
            try:
                return function(*values)
            except Refused as exc:
                raise Wrong(line, f"{name}: {exc}") from None
