"""Are tables aligned, values short, durations read as people write them, and strangers' names harmless?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_bootstrap.cli.options import format_duration, parse_duration
from p2p_bootstrap.cli.output import Column, bytes_text, plain_sheet, plain_table, printable

Row = tuple[str, str]
COLUMNS: tuple[Column[Row], ...] = (
    Column("NAME", lambda row: row[0]),
    Column("RX", lambda row: row[1], right=True),
)


def test_a_plain_table_is_aligned_and_cuts_nothing() -> None:
    rows = [("edge-1", "1.5 MB"), ("a-much-longer-name", ""), ("", "0")]
    assert plain_table(rows, COLUMNS).splitlines() == [
        "NAME                    RX",
        "edge-1              1.5 MB",
        "a-much-longer-name       -",
        "-                        0",
    ]


@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_a_table_has_a_line_per_row_whatever_is_in_it(rows: list[tuple[str, str]]) -> None:
    lines = plain_table(rows, COLUMNS).split("\n")
    assert len(lines) == len(rows) + 1
    assert all(line.isprintable() for line in lines)


@given(st.text())
def test_printable_is_on_one_line_and_leaves_good_text_alone(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


def test_a_sheet_leaves_out_what_is_empty() -> None:
    assert (
        plain_sheet([("node", ("edge-1", "", "zone a")), ("vpn", ("",))]) == "node  edge-1   zone a\nvpn   -"
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("120", 120),
        ("1.5s", 1.5),
        ("1h", 3600),
        ("2m5s", 125),
        ("0", 0),
    ],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-5s", "5 m", "5d", "1e9", "25h", "nan", "5s5m", "٥s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|longer than a day"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (12.3, "12 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (7200, "2 h"),
        (12000, "3 h 20 min"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (812, "812 B"),
        (1000, "1.0 kB"),
        (1_400_000, "1.4 MB"),
        (999_999, "1.0 MB"),
        (123_000_000_000, "123 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_sizes_are_short(count: int, text: str) -> None:
    assert bytes_text(count) == text
