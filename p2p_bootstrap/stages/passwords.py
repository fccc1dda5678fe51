"""How is a plain password stored? As SHA-512 crypt (``$6$``), which every login program reads.

Python 3.13 has no `crypt` any more and the initramfs no library for it, so the public specification (Drepper,
"Unix crypt using SHA-256 and SHA-512") is followed here; tests compare with OpenSSL.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

_ALPHABET: Final = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ROUNDS: Final = 5000


def is_hash(text: str) -> bool:
    """Whether a written password is a hash (or a lock) already."""
    return text.startswith(("$1$", "$2", "$5$", "$6$", "$7$", "$y$", "$gy$")) or text in ("!", "*", "!!", "x")


def verify(password: str, stored: str) -> bool:
    """Whether `stored` is this password's SHA-512 crypt, with the usual rounds."""
    found = re.fullmatch(r"\$6\$([^$]{1,16})\$[./0-9A-Za-z]{86}", stored)
    return found is not None and hmac.compare_digest(sha512_crypt(password, found[1]), stored)


def sha512_crypt(password: str, salt: str) -> str:
    """The hash of `password`; `salt` of at most 16 characters."""
    word, grain = password.encode(), salt[:16].encode()
    mixed = hashlib.sha512(word + grain + word).digest()
    digest = hashlib.sha512(word + grain + _stretched(mixed, len(word)))
    length = len(word)
    while length:
        digest.update(mixed if length & 1 else word)
        length >>= 1
    last = digest.digest()
    p = _stretched(hashlib.sha512(word * len(word)).digest(), len(word))
    s = _stretched(hashlib.sha512(grain * (16 + last[0])).digest(), len(grain))
    for number in range(_ROUNDS):
        step = hashlib.sha512(p if number & 1 else last)
        if number % 3:
            step.update(s)
        if number % 7:
            step.update(p)
        step.update(last if number & 1 else p)
        last = step.digest()
    return f"$6${salt[:16]}${_encoded(last)}"


def _stretched(block: bytes, length: int) -> bytes:
    return (block * (length // len(block) + 1))[:length]


def _encoded(digest: bytes) -> str:
    out = []
    for number in range(21):
        a, b, c = (digest[_place(number, part)] for part in range(3))
        out.append(_digits(a << 16 | b << 8 | c, 4))
    out.append(_digits(digest[63], 2))
    return "".join(out)


def _place(number: int, part: int) -> int:
    """The specification takes bytes 0, 21, 42; then 22, 43, 1; then 44, 2, 23; and so on."""
    return number + 21 * ((part + number) % 3)


def _digits(value: int, count: int) -> str:
    return "".join(_ALPHABET[value >> 6 * place & 63] for place in range(count))
