"""Which options do several verbs share, and how are their values read?"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from p2p_bootstrap.cli.client import DEFAULT_SOCKET, SOCKET_VARIABLE

Command = TypeVar("Command", bound=Callable[..., Any])

# not checked by click: what cannot be read is said in our words, with our exit codes
PATH: Final = click.Path(readable=False, path_type=Path)

OUTPUTS: Final = ("table", "json", "yaml", "name")
DEFAULT_STATE_DIR: Final = Path("/var/lib/kairos-p2p")
DEFAULT_CONFIG: Final = Path("/etc/kairos-p2p/config.yaml")
MAX_DURATION_S: Final = 24 * 3600.0

_DURATION: Final = re.compile(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+(?:\.[0-9]+)?)s?)?")


def parse_duration(text: str) -> float:
    """Seconds of ``90s``, ``1.5s``, ``5m``, ``1h30m`` or a bare number of seconds. Raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise ValueError(f"{text!r} is no duration")
    hours, minutes, seconds = match.groups()
    total = int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)
    if total > MAX_DURATION_S:
        raise ValueError(f"{text!r} is longer than a day")
    return total


def format_duration(seconds: float) -> str:
    """A duration as a person says it: ``0.4 s``, ``12 s``, ``2 min 5 s``, ``3 h 20 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 // 60 else "")


class Duration(click.ParamType[float]):
    """A click type for `parse_duration`; the value is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds; fails as click does, with the forms that are possible."""
        if isinstance(value, float):
            return value
        try:
            return parse_duration(str(value))
        except ValueError as exc:
            self.fail(f"{exc}; write it like 90s, 5m or 1h30m", param, ctx)


def socket_option(command: Command) -> Command:
    """``--socket``: passed to the verb as `socket`, a Path."""
    return click.option(
        "--socket",
        type=PATH,
        envvar=SOCKET_VARIABLE,
        default=DEFAULT_SOCKET,
        show_default=True,
        show_envvar=True,
        help="The agent's unix socket.",
    )(command)


def output_option(command: Command) -> Command:
    """``-o``: passed to the verb as `output`, one of `OUTPUTS`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(OUTPUTS),
        default="table",
        show_default=True,
        help="How to print it; name is one identifier a line, for scripts.",
    )(command)


def timeout_option(default: str) -> Callable[[Command], Command]:
    """``--timeout``: passed to the verb as `timeout`, in seconds."""
    return click.option(
        "--timeout",
        type=Duration(),
        default=default,
        show_default=True,
        help="Give up after this long, with exit code 4.",
    )
