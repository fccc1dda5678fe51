"""How far is each node, while one waits? On standard error: live to a terminal, else a line per change."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

from p2p_bootstrap.cli.output import printable
from p2p_simulations.lab.survey import PHASES, NodeView

if TYPE_CHECKING:
    from rich.console import RenderableType


class Progress(Protocol):
    """Shows progress while entered."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, text: str) -> None:
        """A step of the lab itself."""
        ...

    def show(self, nodes: Sequence[NodeView]) -> None:
        """How far the nodes are now."""
        ...


def choose(stream: TextIO | None = None) -> Progress:
    """Live to a terminal, plain lines otherwise."""
    stream = stream or sys.stderr
    return LiveProgress(stream) if stream.isatty() else PlainProgress(stream)


class PlainProgress:
    """One line per phase that a node has reached, and per sentence it says about what it does."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started_at = time.monotonic()
        self._told: set[tuple[str, str, str]] = set()

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def say(self, text: str) -> None:
        """A line with the seconds since the start."""
        print(f"{time.monotonic() - self._started_at:6.1f} s  {text}", file=self._stream, flush=True)

    def show(self, nodes: Sequence[NodeView]) -> None:
        """What is new since the last call."""
        for node in nodes:
            for phase in PHASES:
                if phase in node.phases:
                    self._tell(node.name, phase, {"vpn": node.ipv4, "role": node.role}.get(phase, ""))
            if node.reason and not node.ready:
                self._tell(node.name, node.state, node.reason)
            if node.error:
                self._tell(node.name, "error", node.error)

    def _tell(self, name: str, what: str, detail: str) -> None:
        key = (name, what, "" if what in PHASES else detail)
        if key not in self._told:
            self._told.add(key)
            self.say(printable(f"{name}  {what:<8}  {detail}".rstrip()))


class LiveProgress:
    """A table that is drawn anew in place."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._started_at = time.monotonic()
        self._live = Live(console=Console(file=stream), refresh_per_second=4, transient=True)
        self._text = ""
        self._nodes: Sequence[NodeView] = ()

    def __enter__(self) -> LiveProgress:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, exc, trace)

    def say(self, text: str) -> None:
        """The title of the table."""
        self._text = text
        self._live.update(self._drawn())

    def show(self, nodes: Sequence[NodeView]) -> None:
        """The rows of the table."""
        self._nodes = nodes
        self._live.update(self._drawn())

    def _drawn(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        seconds = time.monotonic() - self._started_at
        drawn = Table(title=f"{seconds:.0f} s  {self._text}", title_justify="left", box=None, expand=False)
        for column in ("node", "region", *PHASES, "doing"):
            drawn.add_column(column, no_wrap=column != "doing")
        for node in self._nodes:
            marks = [
                Text(f"{node.phases[phase]:.1f} s", style="green") if phase in node.phases else Text("-")
                for phase in PHASES
            ]
            doing = node.error or node.reason if node.answers else "no answer yet"
            drawn.add_row(node.name, node.region, *marks, Text(doing))
        return drawn
