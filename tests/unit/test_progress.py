"""Does a bar tell a person how far it is, and nobody else anything?"""

from __future__ import annotations

import io

import pytest

from p2p_simulations.sim.progress import Bar


class Terminal(io.StringIO):
    """Where a person looks."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with Bar("worlds", 10.0, terminal) as bar:
        assert bar.is_shown
        bar.at(5.0, "seed 5")
        bar.at(99.0, "seed 99")
    shown = terminal.getvalue()
    assert "worlds" in shown
    assert "100 %" in shown, "never more than all"
    assert "seed 99" in shown


def test_a_file_gets_nothing() -> None:
    file = io.StringIO()
    with Bar("worlds", 10.0, file) as bar:
        assert not bar.is_shown
        bar.at(5.0)
    assert file.getvalue() == ""
