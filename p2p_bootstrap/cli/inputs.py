"""Where does what a person hands us come from, and which kind of thing is it?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from p2p_network.core.errors import P2PError, UsageError

STDIN: Final = Path("-")
MAX_INPUT_BYTES: Final = 1024 * 1024


def read_text(path: Path) -> str:
    """The text of a file, or of stdin for ``-``. Raises P2PError, UsageError (stdin is a terminal)."""
    try:
        if path == STDIN:
            if sys.stdin.isatty():
                raise UsageError(
                    "nothing was piped in", hint="name a file, or pipe a token or a cloud-config in"
                )
            data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
        else:
            with path.open("rb") as stream:
                data = stream.read(MAX_INPUT_BYTES + 1)
    except OSError as exc:
        raise P2PError(f"{path} cannot be read: {exc.strerror or exc}", hint="check the path") from exc
    if len(data) > MAX_INPUT_BYTES:
        raise P2PError(
            f"{path} has over 1 MiB: it is neither a token nor a cloud-config", hint="is it the right file?"
        )
    return data.decode("utf-8", "surrogateescape")


def is_cloud_config(text: str) -> bool:
    """Whether a text is meant to be a cloud-config (right or wrong) and not a bare token."""
    # a token has neither character, whoever made it
    return ":" in text or text.lstrip("\ufeff \t\r\n").startswith("#")
