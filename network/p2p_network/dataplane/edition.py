"""Which code does a data plane run, and is it what is installed?

A data plane outlives the agent that started it, also an upgrade of the programs below it: what it says of
itself when asked is the digest of what it was made from.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256, Hash

_HERE = Path(__file__).parent
_BESIDE = ("session.py", "wire.py", "marks.py")


def edition() -> str:
    """The digest of the data plane's code as it is on disk now, with the interpreter's version."""
    digest = Hash(SHA256())  # hashlib would bring a second libcrypto into memory
    digest.update(sys.version.encode())
    try:
        for path in (*sorted(_HERE.glob("*.py")), *(_HERE.parent / name for name in _BESIDE)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    except OSError:  # no sources are installed: then only a new protocol replaces it
        return ""
    return digest.finalize().hex()[:16]
