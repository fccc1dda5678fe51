"""What is one action of a step? The shape of everything in `steps/`.

An action is a small frozen object: ``describe`` says what it would do, in one line without secrets;
``execute`` does it, so that doing it twice is doing it once. It raises a P2PError that says what failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from p2p_bootstrap.cloudconfig.functions import Value
from p2p_bootstrap.stages.facts import Facts
from p2p_bootstrap.stages.root import Root
from p2p_bootstrap.stages.system import System
from p2p_network.core.errors import BootError, ConfigError


@dataclass(frozen=True, slots=True)
class Context:
    """What an action may use.

    Attributes:
        root, system: where and through what it acts.
        facts: the machine.
        data: what templates may name.
        say: takes lines that programs said.
        metadata_base: where the clouds' metadata services answer instead of their own addresses (tests).
    """

    root: Root
    system: System
    facts: Facts = field(default_factory=Facts)
    data: Mapping[str, Value] = field(default_factory=dict, repr=False)
    say: Callable[[str], None] = lambda _: None
    metadata_base: str = ""

    def render(self, text: str, place: str) -> str:
        """A text with its templates rendered. `place` is the step's FILE:LINE. Raises BootError."""
        if "{{" not in text:
            return text
        from p2p_bootstrap.cloudconfig.template import render_text  # late: few boots have a template

        try:
            return render_text(text, self.data)
        except ConfigError as exc:
            problem = exc.problems[0]
            line = f", line {problem.line} of the text" if "\n" in text else ""
            raise BootError(f"{place}{line}: {problem.message}", hint=problem.hint) from exc


class Action(Protocol):
    """One key of a step (or one item of it)."""

    def describe(self) -> str:
        """What it does, in one line."""
        ...

    def execute(self, context: Context) -> None:
        """Do it. Raises P2PError."""
        ...
