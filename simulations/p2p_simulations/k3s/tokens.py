"""Who may join, and which cluster does a token belong to?

A full token is `K10<hash>::<user>:<password>`. The hash is sha256 of the CA file if that holds one
certificate, else of the DER of the bundle's root, so that a leaf CA can be replaced under its root. The
passwords of a server rest in `server/cred/passwd`, a CSV of password, name, uid, group.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from dataclasses import dataclass

from p2p_simulations.k3s.errors import K3sError

PREFIX = "K10"
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Token:
    """Parsed; `ca_hash` is "" if the token does not pin a CA."""

    ca_hash: str
    user: str
    password: str


def parse(text: str) -> Token:
    """Read a full token or a bare password. Raises K3sError with k3s's text."""
    if not text:
        raise K3sError("token must not be empty")
    if not text.startswith(PREFIX):
        return Token("", "", text)
    rest = text.removeprefix(PREFIX)
    ca_hash = ""
    if "::" in rest:
        ca_hash, rest = rest.split("::", 1)
        if ca_hash and len(ca_hash) != 64:
            raise K3sError("invalid token CA hash length")
    user, colon, password = rest.partition(":")
    if not colon or not password:
        raise K3sError("invalid token format")
    return Token(ca_hash, user, password)


def render(ca_bundle: bytes, user: str, password: str) -> str:
    """The full token that pins `ca_bundle` (PEM)."""
    return f"{PREFIX}{hash_of(ca_bundle)}::{user}:{password}"


def hash_of(ca_bundle: bytes) -> str:
    """Hex digest that a token pins. Raises K3sError if there is no certificate in it."""
    certificates = [base64.b64decode(body) for body in _PEM.findall(ca_bundle)]
    if not certificates:
        raise K3sError("data does not contain any valid RSA or ECDSA certificates")
    pinned = ca_bundle
    if len(certificates) > 1:
        names = [_names(der) for der in certificates]
        issuer, subject = names[0]
        for _ in certificates:
            if issuer == subject:
                pinned = certificates[names.index((issuer, subject))]
                break
            parent = next((pair for pair in names if pair[1] == issuer), None)
            if parent is None:
                break
            issuer, subject = parent
    return hashlib.sha256(pinned).hexdigest()


def _names(der: bytes) -> tuple[bytes, bytes]:
    """Issuer and subject of a certificate, as DER (X.509 section 4.1)."""
    body, _, _ = _element(der, 0)
    fields, _, _ = _element(der, body)
    found = []
    offset = fields
    if der[offset] == 0xA0:  # the version is optional
        _, _, offset = _element(der, offset)
    for _ in range(5):  # serial, algorithm, issuer, validity, subject
        _, _, end = _element(der, offset)
        found.append(der[offset:end])
        offset = end
    return found[2], found[4]


def _element(der: bytes, offset: int) -> tuple[int, int, int]:
    """Start of the contents, their length, and the end of the DER element at `offset`."""
    if offset + 2 > len(der):
        raise K3sError("data does not contain any valid RSA or ECDSA certificates")
    length, start = der[offset + 1], offset + 2
    if length & 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(der[start : start + size], "big"), start + size
    return start, length, start + length


@dataclass(frozen=True, slots=True)
class Account:
    """One line of the passwd file."""

    password: str
    group: str


def read_passwd(text: str) -> dict[str, Account]:
    """Accounts by name. Raises K3sError with k3s's text on a short line."""
    accounts = {}
    for row in csv.reader(io.StringIO(text)):
        if not row:
            continue
        if len(row) < 2:
            raise K3sError(
                f"password file 'passwd' must have at least 2 columns (password, name), found {len(row)}"
            )
        accounts[row[1]] = Account(row[0], row[3] if len(row) > 3 else "")
    return accounts


def write_passwd(accounts: dict[str, Account]) -> str:
    """Inverse of `read_passwd`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for name, account in sorted(accounts.items()):
        writer.writerow([account.password, name, name, account.group])
    return out.getvalue()
