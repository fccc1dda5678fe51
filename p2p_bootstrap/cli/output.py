"""How does a verb show its data?

As aligned columns for people, or as JSON, YAML or bare names for programs. Data goes to stdout; what a verb
has to say beside it goes to stderr through `note`. Colours and the terminal's width are rich's business and
rich is imported only for a terminal; without one the table is plain text that `awk` can take apart. Names
that peers chose are data of strangers: nothing in them reaches the terminal as a control sequence.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TextIO, TypeVar

Row = TypeVar("Row")
Output = Literal["table", "json", "yaml", "name"]

GAP: Final = "  "
NOTHING: Final = "-"

# a word that tells a state -> how rich shows it
STYLES: Final[dict[str, str]] = {
    **dict.fromkeys(("joined", "up", "running", "alive", "ready", "yes", "MEMBER"), "green"),
    **dict.fromkeys(("starting", "alone", "suspect", "stopped", "no", "left", "away", "draining"), "yellow"),
    **dict.fromkeys(("failed", "dead", "FENCED"), "bold red"),
    **dict.fromkeys(("off", "absent", "none", NOTHING), "dim"),
}


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """One column of a table: its heading, how to get a cell's text, and whether it is a number's."""

    heading: str
    text: Callable[[Row], str]
    right: bool = False


def printable(text: str) -> str:
    """`text` on one line, with every control and invisible character spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def note(text: str) -> None:
    """Say something beside the data, on stderr."""
    print(text, file=sys.stderr, flush=True)


def emit(text: str) -> None:
    """Print a line of data."""
    print(text, flush=True)


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether a person is looking at `stream` (stdout if None)."""
    return (stream or sys.stdout).isatty()


def print_rows(
    rows: Sequence[Row],
    columns: Sequence[Column[Row]],
    output: Output,
    *,
    name: Callable[[Row], str],
    empty: str,
) -> None:
    """Show `rows`. `name`: a row's identifier; `empty`: said on stderr when there is no row for a person."""
    match output:
        case "json":
            emit(to_json(list(rows)))
        case "yaml":
            emit(to_yaml(list(rows)))
        case "name":
            for row in rows:
                emit(printable(name(row)))
        case "table":
            if not rows:
                note(empty)
            elif is_terminal():
                _print_rich(rows, columns)
            else:
                emit(plain_table(rows, columns))


def to_json(document: Any) -> str:
    """JSON for people and programs: indented, ASCII (so nothing in it can steer a terminal)."""
    return json.dumps(document, indent=2)


def to_yaml(document: Any) -> str:
    """YAML in the order of the document, without the final newline."""
    import yaml

    text: str = yaml.safe_dump(document, sort_keys=False, default_flow_style=False, width=1000)
    return text.rstrip("\n")


def plain_table(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> str:
    """Aligned text: headings, then a line per row; columns are two spaces apart, nothing is cut off."""
    cells = [[column.heading for column in columns]]
    cells += [[printable(column.text(row)) or NOTHING for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        GAP.join(
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in cells
    )


def _print_rich(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.heading, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        texts = [printable(column.text(row)) or NOTHING for column in columns]
        table.add_row(*(Text(text, style=STYLES.get(text, "")) for text in texts))
    Console(highlight=False).print(table)


def print_sheet(lines: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Show one thing: a label and its facts a line; the first fact is the state and may be coloured."""
    if not is_terminal():
        emit(plain_sheet(lines))
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    width = max(len(label) for label, _ in lines)
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=width, style="dim")
    grid.add_column(overflow="fold")
    for label, facts in lines:
        shown = [printable(fact) for fact in facts if fact]
        first = Text(shown[0], style=STYLES.get(shown[0], "")) if shown else Text(NOTHING, style="dim")
        grid.add_row(label, Text("   ").join([first, *map(Text, shown[1:])]))
    Console(highlight=False).print(Padding(grid, 0))


def plain_sheet(lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The text of `print_sheet` without a terminal."""
    width = max(len(label) for label, _ in lines)
    shown = ((label, [printable(fact) for fact in facts if fact]) for label, facts in lines)
    return "\n".join(f"{label.ljust(width)}{GAP}{'   '.join(facts) or NOTHING}" for label, facts in shown)


def print_document(document: Mapping[str, Any], output: Literal["json", "yaml"]) -> None:
    """Show one whole document for programs."""
    emit(to_json(document) if output == "json" else to_yaml(document))


def bytes_text(count: int) -> str:
    """A size as a person reads it: ``0``, ``812 B``, ``1.4 MB`` (powers of 1000)."""
    if count < 1000:
        return f"{count} B" if count else "0"
    size, units = count / 1000, iter(("kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 999.5 and (larger := next(units, "")):
        size, unit = size / 1000, larger
    return f"{size:.1f} {unit}" if size < 99.5 else f"{size:.0f} {unit}"
