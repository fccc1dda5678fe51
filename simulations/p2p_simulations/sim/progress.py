"""How far is it, while one waits? A bar on standard error, to a terminal only."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """Shows how much of `total` is done while entered; nothing where no person looks.

    Args:
        what: in front of the bar.
        total: when it is full; in the unit of `at`.
    """

    def __init__(self, what: str, total: float, stream: TextIO | None = None) -> None:
        self._what, self._total = what, total
        self._stream = stream or sys.stderr
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(file=self._stream),
                transient=True,
            )
            self._task = self._progress.add_task(self._what, total=self._total, text="")
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    @property
    def is_shown(self) -> bool:
        """Whether somebody sees it."""
        return self._progress is not None

    def at(self, done: float, text: str = "") -> None:
        """So much is done."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=min(done, self._total), text=text)
