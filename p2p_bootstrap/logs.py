"""How do log records look, and where do they go?

One place, called once by a process's entry point. Everything goes through standard logging to stderr:
records of `core.log.event` bring their ``fields`` along, a library's plain records are rendered the same
way. Two shapes: lines for people, and one JSON object a line for machines. structlog only renders. Secrets
are masked in the finished line, exceptions included, whoever wrote them there; tracebacks show no locals.

Our own events are always made from level INFO up, so that ``kairos-p2p events`` has them although the log
shows fewer; libraries are heard from WARNING up.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping, Sequence
from typing import Any, Final, Literal, TextIO

from p2p_bootstrap.redaction import redact
from p2p_network.lean import hollow

with hollow("asyncio", "rich"):  # structlog draws tracebacks with one, we don't: 80 ms of 100
    import structlog

Format = Literal["console", "json"]
FORMATS: Final[tuple[Format, ...]] = ("console", "json")
LEVELS: Final = ("debug", "info", "warning", "error")
OWN_LOGGERS: Final = ("p2p_bootstrap", "p2p_network", "p2p_roles", "p2p_simulations")

EventDict = MutableMapping[str, Any]


def configure(
    form: Format,
    level: str = "info",
    *,
    also: Sequence[logging.Handler] = (),
    stream: TextIO | None = None,
) -> None:
    """Set this process's logging up, replacing what was set up before.

    Args:
        form: "console" for people, "json" for machines.
        level: one of `LEVELS`; what is shown.
        also: more handlers, e.g. an `EventLogHandler`; they get INFO and up whatever `level` is.
        stream: where to write; stderr if None.
    """
    stream = stream or sys.stderr
    number: int = getattr(logging, level.upper())
    shown = logging.StreamHandler(stream)
    shown.setLevel(number)
    shown.setFormatter(_formatter(form, stream))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    for handler in (shown, *also):
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(min(number, logging.INFO))


def _formatter(form: Format, stream: TextIO) -> logging.Formatter:
    shared: list[structlog.typing.Processor] = [
        _fields_of_record,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderers: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json":
        renderers += [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        colors = stream.isatty() and not os.environ.get("NO_COLOR")
        renderers.append(
            structlog.dev.ConsoleRenderer(
                colors=colors, pad_event_to=28, exception_formatter=structlog.dev.plain_traceback
            )
        )
    return _Masked(foreign_pre_chain=shared, processors=renderers)


class _Masked(structlog.stdlib.ProcessorFormatter):
    """Masks secrets in the finished line: message, fields and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _fields_of_record(logger: Any, name: str, event: EventDict) -> EventDict:
    """Bring the fields of `core.log.event` along; a library's record says which logger it came from."""
    record = event["_record"]
    fields = getattr(record, "fields", None)
    if isinstance(fields, dict):
        # ours must not replace what the renderers rely on
        event.update({key: value for key, value in fields.items() if key not in ("event", "level")})
    else:
        event["logger"] = record.name
    return event
