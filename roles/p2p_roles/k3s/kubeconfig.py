"""How do the kubeconfigs of several clusters become one? Pure.

What another node hands over is untrusted, and a kubeconfig can name programs that kubectl would run
(``exec``, ``auth-provider``): so only an API's address, its CA and a client certificate are taken out of it,
and everything else is written anew here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Access:
    """How to get into one cluster. `name`: of its context."""

    name: str
    server: str
    ca: str
    certificate: str = field(repr=False)
    key: str = field(repr=False)


def context_name(scope: str) -> str:
    """The context of a cluster: its scope, as kubectl's users would write it (``kairos-east``)."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", scope).strip("-") or "cluster"


def access_of(name: str, text: str) -> Access:
    """What matters of a kubeconfig of one cluster with a client certificate. Raises ValueError."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"a kubeconfig has at most {MAX_BYTES} bytes")
    try:
        document: Any = yaml.safe_load(text)
        cluster = document["clusters"][0]["cluster"]
        user = document["users"][0]["user"]
        found = Access(
            name,
            cluster["server"],
            cluster["certificate-authority-data"],
            user["client-certificate-data"],
            user["client-key-data"],
        )
    except (yaml.YAMLError, KeyError, IndexError, TypeError) as exc:
        raise ValueError("it is no kubeconfig with a client certificate") from exc
    _check(found)
    return found


def _check(found: Access) -> None:
    for text in (found.ca, found.certificate, found.key):
        try:
            decoded = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        except (binascii.Error, ValueError):
            decoded = b""
        if not decoded.lstrip().startswith(b"-----BEGIN "):
            raise ValueError("its certificates are no PEM in base64")
    try:
        parts = urlsplit(found.server) if isinstance(found.server, str) else urlsplit("")
        good = parts.scheme == "https" and bool(parts.hostname) and (parts.port or 443) > 0
    except ValueError:
        good = False
    if not good:
        raise ValueError("its server is no https address")


def merged(parts: Sequence[Access]) -> str:
    """One kubeconfig with a context per cluster; the first is the current one."""
    assert parts, "there is at least one cluster"
    names: list[str] = []
    for part in parts:
        name, number = part.name, 2
        while name in names:
            name, number = f"{part.name}-{number}", number + 1
        names.append(name)
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": name, "cluster": {"server": p.server, "certificate-authority-data": p.ca}}
            for name, p in zip(names, parts, strict=True)
        ],
        "users": [
            {
                "name": name,
                "user": {"client-certificate-data": p.certificate, "client-key-data": p.key},
            }
            for name, p in zip(names, parts, strict=True)
        ],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}} for name in names],
        "current-context": names[0],
    }
    return yaml.safe_dump(document, sort_keys=False)
