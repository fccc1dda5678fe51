"""How may a value be shown in an error message?

Short, and never if it may be a secret that landed under the wrong key.
"""

from __future__ import annotations

import re
from typing import Final

MAX_SHOWN_CHARS: Final = 40
_SECRET_LOOKING: Final = re.compile(r"\s*kp2p[0-9]|.*K10[0-9a-f]{32}|[A-Za-z0-9+/_=-]{60,}", re.DOTALL)


def quoted(text: str) -> str:
    """`text` in quotes, cut to `MAX_SHOWN_CHARS`; of a text that looks like a secret only that it does."""
    if _SECRET_LOOKING.match(text):
        return "a text that looks like a secret"
    return repr(text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "...")
