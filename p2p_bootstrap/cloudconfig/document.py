"""What does one cloud-config file contain, or what is wrong with it?

Bytes become text (size, encoding, control characters), the first line must be a header that Kairos
knows, and the YAML becomes nodes with marks (`nodes`), event by
event (`builder`). PyYAML's Python parser is used even where the
C one is present: a file then means the same on a workstation and in the initramfs.

Everything wrong is collected in `Document.problems`; only broken YAML ends the reading early.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import yaml

from p2p_bootstrap.cloudconfig.builder import QUOTE_TEMPLATE, Builder, Stopped
from p2p_bootstrap.cloudconfig.nodes import MapNode, Mark
from p2p_network.core.errors import ConfigError, Problem

HEADERS: Final = ("#cloud-config", "#kairos-config", "#node-config")
MAX_BYTES: Final = 1024 * 1024

_NOT_TEXT: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_END: Final = re.compile("\r\n|[\r\n\x85\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Document:
    """One file, read. `root` holds what could be understood, also when there are problems."""

    file: str
    root: MapNode
    problems: tuple[Problem, ...] = ()

    def checked(self) -> MapNode:
        """The root. Raises ConfigError with every problem if there is one."""
        if self.problems:
            raise ConfigError(self.problems)
        return self.root


def parse(data: bytes, file: str, *, header: bool = True) -> Document:
    """Read one file.

    Args:
        data: its bytes, at most `MAX_BYTES`.
        file: its name, for marks and messages.
        header: whether the first line must be one of `HEADERS`.
    """
    empty = MapNode({}, Mark(file, 1, 1))
    text = _decode(data, file)
    if isinstance(text, Problem):
        return Document(file, empty, (text,))
    problems: list[Problem] = []
    if header and not has_header(text):
        problems.append(_header_problem(text, file))
        if text.startswith(("#!", "## template:")) or re.match(r"(?i)(content-type|mime-version):", text):
            return Document(file, empty, tuple(problems))  # another format: its "YAML errors" would mislead
    builder = Builder(file, problems)
    loader = yaml.SafeLoader(text)
    try:
        while loader.check_event():
            builder.take(loader.get_event())  # type: ignore[no-untyped-call]
    except Stopped:
        pass
    except yaml.MarkedYAMLError as exc:
        problems.append(_syntax_problem(exc, text, file))
    except (yaml.YAMLError, ValueError, OverflowError):  # such as \U99999999, or a 5000-digit %YAML
        line, column = loader.line + 1, loader.column + 1
        what = "this is not valid YAML: an escape or a number is out of range"
        problems.append(Problem(file, line, column, "", what, "look at the text just before this place"))
    finally:
        loader.dispose()
    builder.finish()
    return Document(file, builder.root or empty, tuple(problems))


def has_header(text: str) -> bool:
    """Whether the first line is a header, and nothing else."""
    return _LINE_END.split(text, maxsplit=1)[0].rstrip() in HEADERS


def too_big(file: str, size_bytes: int) -> Problem:
    """The problem of a file over `MAX_BYTES`."""
    return Problem(
        file,
        0,
        0,
        "",
        f"the file has {size_bytes / 1e6:.1f} MB, a cloud-config may have {MAX_BYTES / 1e6:.1f} MB",
        "is it the right file? Large content belongs in a bundle or a file that a stage downloads",
    )


def _decode(data: bytes, file: str) -> str | Problem:
    if len(data) > MAX_BYTES:
        return too_big(file, len(data))
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Problem(file, 1, 1, "", "the file is UTF-16", "save it as UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if (zero := data.find(b"\0")) >= 0:
        line, column = _place(data[:zero].decode("utf-8", "replace"))
        return Problem(
            file, line, column, "", "this is binary data, not a cloud-config", "is it the right file?"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        line, column = _place(data[: exc.start].decode("utf-8"))
        byte = f"0x{data[exc.start]:02x}"
        return Problem(file, line, column, "", f"byte {byte} is not valid UTF-8", "save the file as UTF-8")
    if found := _NOT_TEXT.search(text):
        line, column = _place(text[: found.start()])
        what = f"the control character U+{ord(found[0]):04X} is not allowed"
        return Problem(file, line, column, "", what, 'remove it, or write it as an escape in "double quotes"')
    return text


def _place(before: str) -> tuple[int, int]:
    """Line and column, from 1, of what comes after `before`."""
    lines = _LINE_END.split(before)
    return len(lines), len(lines[-1]) + 1


def _header_problem(text: str, file: str) -> Problem:
    lines = _LINE_END.split(text)
    hint = "make this line the first one: #cloud-config"
    for number, line in enumerate(lines, start=1):
        if line.rstrip() in HEADERS:
            hint = f"{line.rstrip()} is on line {number}; it must be the first line"
            break
        if re.sub(r"\s", "", line).lower() in HEADERS:
            wanted = re.sub(r"\s", "", line).lower()
            hint = f"line {number} is nearly right: write {wanted}, in small letters and without a space"
            break
    first = lines[0]
    if first.startswith("#!"):
        hint = "this is a script; a cloud-config starts with #cloud-config and runs commands in stages"
    elif first.startswith("## template:"):
        hint = "jinja templates of cloud-init are not read; write the values out"
    elif re.match(r"(?i)(content-type|mime-version):", first):
        hint = "multi-part user data is not read; give its cloud-config part as a file of its own"
    return Problem(file, 1, 1, "", "the first line is no cloud-config header", hint)


def _syntax_problem(exc: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    """PyYAML's complaint in the words of a person who edits the file. Quotes nothing of it."""
    mark = exc.problem_mark or exc.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    lines = _LINE_END.split(text)
    source = lines[line - 1] if line <= len(lines) else ""
    problem = exc.problem or "this is not valid YAML"
    if source[column - 1 : column] == "\t":
        what = "a tab stands where YAML allows only spaces"
        return Problem(file, line, column, "", what, "replace tabs by spaces; set your editor to do so")
    hint = ""
    if "{{" in source:
        hint = QUOTE_TEMPLATE
    elif "mapping values are not allowed" in problem:
        hint = 'put quotes around a value that contains ": ", and check the indentation'
    elif "expected <block end>" in problem:
        hint = "keys of one map must start in the same column: check the indentation"
    elif "end of stream" in problem and exc.context_mark is not None:
        line, column = exc.context_mark.line + 1, exc.context_mark.column + 1
        problem, hint = "this quote or bracket is never closed", "close it"
    elif "could not find expected ':'" in problem:
        problem, hint = "this line has no colon", "a key is written as key: value"
    elif "cannot start any token" in problem:
        hint = "put quotes around the value"
    return Problem(file, line, column, "", f"this is not valid YAML: {problem}", hint)
