"""What does the configuration behind an address say, and is it the one that was meant?

``config_url`` names a file, an ``https`` address, or an ``http`` address that is pinned. A pin stands
behind a ``#``, which never leaves this machine: ``#sha256=HEX`` (the content) or ``#ed25519=BASE64`` (a
public key; the signature, raw or base64, is fetched from the same address with ``.sig`` behind its path).
A fetched file may name a further one; its keys lie below it. Everything that goes wrong is a problem:
never an empty config.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from p2p_bootstrap.cloudconfig import ed25519
from p2p_bootstrap.cloudconfig.document import MAX_BYTES, Document, parse
from p2p_bootstrap.cloudconfig.nodes import MapNode, Mark, ScalarNode
from p2p_network.core.errors import P2PError, Problem

Fetcher = Callable[[str, int], bytes]
"""Address and the most bytes to read (one more means too much) -> content. Raises P2PError."""

MAX_CHAIN: Final = 5
KEY: Final = "config_url"
_PIN_HINT: Final = "use https, or pin the content: append #sha256=… (or #ed25519=… and a .sig beside it)"


@dataclass(frozen=True, slots=True)
class Source:
    """An address and its pin. `sha256` in hex, `ed25519` a public key."""

    address: str
    sha256: str | None = None
    ed25519: bytes | None = None

    @property
    def is_url(self) -> bool:
        """Whether it is an http(s) address; else a file."""
        return self.address.startswith(("https://", "http://"))

    def public(self) -> str:
        """The address without what may be secret in it: the user and the query."""
        if not self.is_url:
            return self.address
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def parse_source(text: str) -> Source:
    """An address with its pin. Raises P2PError that says what is wrong with it."""
    address, _, pin = text.strip().partition("#")
    if not address.startswith(("https://", "http://", "/")):
        raise P2PError("is neither an http(s) address nor an absolute path", hint="begin with https://")
    source = Source(address)
    if source.is_url:
        try:
            host, _ = urlsplit(address).hostname, urlsplit(address).port
        except ValueError:
            host = None
        if not host or re.search(r"[\x00-\x20\x7f]", address):
            raise P2PError("is not a valid address", hint="write https://HOST/PATH")
    kind, _, value = pin.partition("=")
    if not pin:
        if address.startswith("http://"):
            raise P2PError("plain http could be changed on the way by anyone", hint=_PIN_HINT)
        return source
    if kind == "sha256" and re.fullmatch(r"[0-9a-fA-F]{64}", value):
        return Source(address, sha256=value.lower())
    if kind == "ed25519":
        try:
            key = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) == ed25519.KEY_BYTES:
            return Source(address, ed25519=key)
    raise P2PError("what follows the # is no pin", hint="#sha256= and 64 hex digits, or #ed25519= and a key")


def collect_remote(
    first: Sequence[tuple[str, Mark]], fetch: Fetcher, *, root: Path = Path("/")
) -> tuple[list[Document], list[Problem]]:
    """Fetch the sources and those that they name.

    Returns:
        the documents, lowest precedence first (a later source, and the file that names another, is higher),
        and what went wrong.
    """
    documents: list[Document] = []
    problems: list[Problem] = []
    for text, mark in first:
        chain: list[Document] = []
        seen: set[str] = set()
        wanted: tuple[str, Mark] | None = (text, mark)
        while wanted is not None:
            text, mark = wanted
            wanted = None
            try:
                if len(seen) >= MAX_CHAIN:
                    raise P2PError(f"more than {MAX_CHAIN} configurations name each other in a row")
                source = parse_source(text)
                if source.address in seen:
                    raise P2PError("names a configuration that leads back to itself", hint="break the ring")
                seen.add(source.address)
                document = parse(_content(source, fetch, root), source.public())
            except P2PError as exc:
                problems.append(Problem(mark.file, mark.line, mark.column, KEY, exc.message, exc.hint))
                break
            chain.append(document)
            wanted = url_of(document.root)
        documents += reversed(chain)
    return documents, problems


def read_pinned(text: str, fetch: Fetcher, *, root: Path = Path("/")) -> bytes:
    """What stands at an address or path with its pin; for other files too. Raises P2PError."""
    return _content(parse_source(text), fetch, root)


def url_of(root: MapNode) -> tuple[str, Mark] | None:
    """The ``config_url`` of a document and where it stands."""
    node = root.get(KEY)
    return (node.text, node.mark) if isinstance(node, ScalarNode) and node.text else None


def _content(source: Source, fetch: Fetcher, root: Path) -> bytes:
    data = _get(source, source.address, fetch, root, MAX_BYTES)
    if source.sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != source.sha256:
        raise P2PError(
            f"{source.public()} has the checksum {found}, not the one that is pinned",
            hint="someone changed the file: look at it, then pin the new checksum",
        )
    if source.ed25519 is not None:
        parts = urlsplit(source.address)
        where = (
            parts._replace(path=parts.path + ".sig").geturl() if source.is_url else source.address + ".sig"
        )
        signature = _get(source, where, fetch, root, 1024)
        if len(signature) != ed25519.SIGNATURE_BYTES:
            try:
                signature = base64.b64decode(signature.strip(), validate=True)
            except (binascii.Error, ValueError):
                signature = b""
        if not ed25519.verify(source.ed25519, signature, data):
            raise P2PError(
                f"{source.public()}.sig is no signature of {source.public()} by the pinned key",
                hint="sign the file again, or pin the key that signed it",
            )
    return data


def _get(source: Source, address: str, fetch: Fetcher, root: Path, limit: int) -> bytes:
    if source.is_url:
        data = fetch(address, limit)
    else:
        try:
            with (root / address.lstrip("/")).open("rb") as file:
                data = file.read(limit + 1)
        except OSError as exc:
            raise P2PError(f"{address} can't be read: {exc.strerror or exc}", hint="check the path") from exc
    if len(data) > limit:
        raise P2PError(f"{source.public()} is larger than {limit} bytes", hint="is it the right file?")
    return data
