"""What must never be shown, whoever put it into a text?

The last line of defence for logs, events and errors: the first is not to pass secrets there at all. Knows
the shapes of the secrets that this program handles and of nothing else.
"""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "<redacted>"

_SECRETS: Final = re.compile(
    r"""
      kp2p\d{1,4}_[A-Za-z0-9_-]{8,}                # our network token
    | [Kk][Pp]2[Pp][Jj]\d{1,4}-[A-Za-z2-7]{8,}      # our join token
    | K10[0-9a-f]{64}::[^\s"']+                    # k3s join token with its CA hash
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----.*?(?:-----END[ ][A-Z ]*PRIVATE[ ]KEY-----|\Z)
    | [A-Za-z0-9+/]{160,}={0,2}                    # base64 as long as a Kairos token or a wrapped key
    """,
    re.VERBOSE | re.DOTALL,
)


def redact(text: str) -> str:
    """`text` with everything that looks like a secret replaced by `MASK`."""
    return _SECRETS.sub(MASK, text)
