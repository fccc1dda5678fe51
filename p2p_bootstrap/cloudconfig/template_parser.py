"""What does the text of a template consist of? Texts, values, calls and choices; the reader of `template`.

`split` finds the braces, `Parser` the blocks, and each expression is read word by word. Nesting is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from p2p_bootstrap.cloudconfig.functions import FUNCTIONS, UNSUPPORTED, Value
from p2p_network.core.errors import nearest

MAX_DEPTH: Final = 32
ROOTS: Final = ("MachineID", "ProtectedID", "Random", "UUID", "Values")
LITERAL_HINT: Final = 'to write the braces themselves: {{ "{{" }}'
_KEYWORDS: Final = ("if", "else", "end")
_GO_ONLY: Final = ("range", "with", "define", "template", "block", "break", "continue")
_TOKEN: Final = re.compile(
    r"""\s+|(?P<text>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<number>[-+]?[0-9]{1,18}(?:\.[0-9]{1,18})?)(?![\w.])"""
    r"""|(?P<field>(?:\.[A-Za-z_]\w*)+)|(?P<dot>\.)|(?P<name>[A-Za-z_]\w*)|(?P<sign>[()|])""",
    re.ASCII,
)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "'": "'"}

Expression: TypeAlias = "Constant | Field | Call"
Part: TypeAlias = "Literal | Output | Choice"


@dataclass(frozen=True, slots=True)
class Constant:
    """A value written out."""

    value: Value


@dataclass(frozen=True, slots=True)
class Field:
    """A value of the machine."""

    names: tuple[str, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Call:
    """A function and what it gets."""

    name: str
    arguments: tuple[Expression, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Literal:
    """Text outside the braces."""

    text: str


@dataclass(frozen=True, slots=True)
class Output:
    """An expression whose value is written."""

    expression: Expression


@dataclass(frozen=True, slots=True)
class Choice:
    """``if``: the first branch whose condition holds (None: always)."""

    branches: tuple[tuple[Expression | None, tuple[Part, ...]], ...]


class Wrong(Exception):
    """Something in a template is wrong, so many lines below its first."""

    def __init__(self, line: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.line, self.message, self.hint = line, message, hint


@dataclass(frozen=True, slots=True)
class _Action:
    body: str
    line: int


def split(text: str) -> list[str | _Action]:
    """Texts and the insides of braces, in turn; trimming is done here."""
    pieces: list[str | _Action] = []
    position, trim_next = 0, False
    while True:
        start = text.find("{{", position)
        literal = text[position : len(text) if start < 0 else start]
        if trim_next:
            literal = literal.lstrip(" \t\r\n")
        if start < 0:
            pieces.append(literal)
            return pieces
        line = text.count("\n", 0, start)
        trims_left = text.startswith("{{- ", start) or text.startswith("{{-\n", start)
        pieces.append(literal.rstrip(" \t\r\n") if trims_left else literal)
        begin = start + (3 if trims_left else 2)
        end = _closing(text, begin, line)
        body = text[begin:end]
        trim_next = body.endswith((" -", "\n-", "\t-"))
        pieces.append(_Action(body[:-1] if trim_next else body, line))
        position = end + 2


def _closing(text: str, begin: int, line: int) -> int:
    """Where the ``}}`` of an action stands; those inside texts and comments don't count."""
    if text[begin:].lstrip().startswith("/*"):
        end = text.find("*/", begin)
        if end < 0:
            raise Wrong(line, "this comment is never closed", "close it with */}}")
        close = text.find("}}", end)
        if close < 0 or text[end + 2 : close].strip() not in ("", "-"):
            raise Wrong(line, "a comment must be alone between its braces", "write {{/* comment */}}")
        return close
    position = begin
    while position < len(text):
        if text.startswith("}}", position):
            return position
        quote = text[position]
        if quote in '"`':
            found = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`').match(text, position)
            if found is None:
                raise Wrong(line, "this text is never closed", f"add the missing {quote}")
            position = found.end()
        else:
            position += 1
    raise Wrong(line, "this {{ is never closed", f"close it with }}}}; {LITERAL_HINT}")


class Parser:
    """Turns texts and actions into parts."""

    def __init__(self, pieces: Sequence[str | _Action]) -> None:
        self._pieces = list(pieces)
        self._at = 0

    def document(self) -> tuple[Part, ...]:
        """Everything. Raises Wrong."""
        parts, ended = self._block(0)
        if ended is not None:
            raise Wrong(ended.line, f"{{{{ {ended.body.strip()} }}}} has no if before it")
        return parts

    def _block(self, depth: int) -> tuple[tuple[Part, ...], _Action | None]:
        """Parts up to the end, or to an ``else``/``end``, which is returned."""
        if depth > MAX_DEPTH:
            raise Wrong(0, f"if is nested more than {MAX_DEPTH} deep")
        parts: list[Part] = []
        while self._at < len(self._pieces):
            piece = self._pieces[self._at]
            self._at += 1
            if isinstance(piece, str):
                if piece:
                    parts.append(Literal(piece))
                continue
            word = piece.body.split(maxsplit=1)[0] if piece.body.strip() else ""
            if word.startswith("/*"):
                continue
            if word == "if":
                parts.append(self._choice(piece, depth))
            elif word in ("else", "end"):
                return tuple(parts), piece
            else:
                parts.append(Output(_expression(piece.body, piece.line)))
        return tuple(parts), None

    def _choice(self, action: _Action, depth: int) -> Choice:
        branches: list[tuple[Expression | None, tuple[Part, ...]]] = []
        condition: Expression | None = _expression(action.body.strip()[2:], action.line)
        while True:
            parts, ended = self._block(depth + 1)
            if ended is None:
                raise Wrong(action.line, "this if has no end", "close it with {{ end }}")
            if branches and branches[-1][0] is None:
                raise Wrong(ended.line, "after else comes end")
            branches.append((condition, parts))
            words = ended.body.split(maxsplit=2)
            if words == ["end"]:
                return Choice(tuple(branches))
            if condition is None:
                raise Wrong(ended.line, "after else comes end")
            if words == ["else"]:
                condition = None
                parts, last = self._block(depth + 1)
                if last is None or last.body.split() != ["end"]:
                    raise Wrong(ended.line, "this else has no end", "close it with {{ end }}")
                return Choice((*branches, (None, parts)))
            if words[:2] != ["else", "if"]:
                raise Wrong(ended.line, "only else, else if and end may stand here")
            condition = _expression(words[2] if len(words) > 2 else "", ended.line)


def _expression(body: str, line: int) -> Expression:
    tokens: list[tuple[str, str, int]] = []
    position = 0
    while position < len(body):
        found = _TOKEN.match(body, position)
        here = line + body.count("\n", 0, position)
        if found is None:
            sign = body[position]
            hint = "variables ($x) are not supported" if sign == "$" else LITERAL_HINT
            raise Wrong(here, f"{sign!r} is not understood in a template", hint)
        if found.lastgroup:
            tokens.append((found.lastgroup, found[0], here))
        position = found.end()
    if not tokens:
        raise Wrong(line, "nothing stands between these braces", LITERAL_HINT)
    reader = _Tokens(tokens, line)
    expression = reader.pipeline(0)
    if reader.peek() is not None:
        raise Wrong(reader.line, "this parenthesis has no partner")
    return expression


class _Tokens:
    def __init__(self, tokens: list[tuple[str, str, int]], line: int) -> None:
        self._tokens, self._at, self.line = tokens, 0, line

    def peek(self) -> str | None:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else None

    def pipeline(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise Wrong(self.line, f"parentheses are nested more than {MAX_DEPTH} deep")
        value = self._command(depth, None)
        pipes = 0
        while self.peek() == "|":
            self._at += 1
            pipes += 1
            if pipes > MAX_DEPTH:
                raise Wrong(self.line, f"more than {MAX_DEPTH} pipes in a row")
            value = self._command(depth, value)
        return value

    def _command(self, depth: int, piped: Expression | None) -> Expression:
        operands: list[Expression] = []
        name = ""
        while (text := self.peek()) is not None and text not in ("|", ")"):
            kind, _, self.line = self._tokens[self._at]
            self._at += 1
            if kind == "name" and text not in ("true", "false", "nil"):
                if text in FUNCTIONS and (name or operands):
                    operands.append(Call(text, (), self.line))
                    continue
                _check_function(text, self.line)
                name = text
            else:
                operands.append(self._operand(kind, text, depth))
        if name:
            return Call(name, (*operands, *(() if piped is None else (piped,))), self.line)
        if not operands:
            raise Wrong(self.line, "a value or a function is missing here")
        if len(operands) > 1 or piped is not None:
            raise Wrong(self.line, "two values stand side by side", "a function's name comes first")
        return operands[0]

    def _operand(self, kind: str, text: str, depth: int) -> Expression:
        match kind:
            case "text":
                return Constant(text[1:-1] if text[0] == "`" else _unescape(text[1:-1], self.line))
            case "number":
                return Constant(float(text) if "." in text else int(text))
            case "field":
                return Field(_checked(tuple(text[1:].split(".")), self.line), self.line)
            case "name":
                return Constant({"true": True, "false": False, "nil": None}[text])
            case "sign" if text == "(":
                inner = self.pipeline(depth + 1)
                if self.peek() != ")":
                    raise Wrong(self.line, "this parenthesis is never closed", "add )")
                self._at += 1
                return inner
            case _:
                raise Wrong(
                    self.line, "the dot alone is not supported", f"name a value: .{', .'.join(ROOTS)}"
                )


def _checked(names: tuple[str, ...], line: int) -> tuple[str, ...]:
    if names[0] not in ROOTS:
        near = nearest(names[0], ROOTS)
        hint = f"did you mean .{near}?" if near else f"there are .{', .'.join(ROOTS)}; {LITERAL_HINT}"
        raise Wrong(line, f"there is no value .{names[0][:40]}", hint)
    return names


def _check_function(name: str, line: int) -> None:
    if name in FUNCTIONS:
        return
    if name in _GO_ONLY or name in _KEYWORDS:
        raise Wrong(line, f"{name!r} is not supported here", "only if, else if, else and end are")
    if name in UNSUPPORTED:
        raise Wrong(line, f"the function {name!r} is not supported", UNSUPPORTED[name])
    near = nearest(name, FUNCTIONS)
    hint = f"did you mean {near!r}?" if near else LITERAL_HINT
    raise Wrong(line, f"there is no function {name[:40]!r}", hint)


def _unescape(text: str, line: int) -> str:
    def one(found: re.Match[str]) -> str:
        if found[1] not in _ESCAPES:
            raise Wrong(line, f"the escape \\{found[1]} is not supported", "use `backquotes`")
        return _ESCAPES[found[1]]

    return re.sub(r"\\(.)", one, text)
