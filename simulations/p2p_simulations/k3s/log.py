"""How does k3s speak? logrus lines on stderr: time, level, msg.

The stand-in prints its own lines and not those of `logging`: it stands in for a program whose output is
read by others, and the words are that program's.
"""

from __future__ import annotations

import json
import sys
import time


def _line(level: str, message: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    sys.stderr.write(f'time="{stamp}" level={level} msg={json.dumps(message, ensure_ascii=False)}\n')
    sys.stderr.flush()


def info(message: str) -> None:
    _line("info", message)


def warning(message: str) -> None:
    _line("warning", message)


def error(message: str) -> None:
    _line("error", message)


def fatal(message: str) -> None:
    """The last line of a process that ends with status 1; the caller ends it."""
    _line("fatal", message)
