"""``directories``, ``files``, ``downloads``: what must be on the disk?

Files are 0600 unless they say otherwise. Content is decoded, then its templates are rendered. A download
with a checksum that is there already is not fetched again.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import gzip
import hashlib
import io
import zlib
from dataclasses import dataclass
from typing import Final

from p2p_bootstrap.stages import accounts
from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.model import Directory, Download, File
from p2p_bootstrap.stages.root import Root
from p2p_network.core.errors import BootError

MAX_UNPACKED_BYTES: Final = 64 * 1024 * 1024
MAX_DOWNLOAD_BYTES: Final = 2 * 1024**3
DEFAULT_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """``directories``."""

    spec: Directory

    def describe(self) -> str:
        """See `Action`."""
        return f"make the folder {self.spec.path} ({self.spec.permissions:04o})"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        owner = (self.spec.owner, self.spec.group)
        context.root.make_folder(self.spec.path, self.spec.permissions, owner)


@dataclass(frozen=True, slots=True)
class WriteFile:
    """``files``."""

    spec: File
    place: str

    def describe(self) -> str:
        """See `Action`."""
        return f"write {self.spec.path} ({self.spec.permissions:04o}, {len(self.spec.content)} characters)"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        data = decoded(self.spec.content, self.spec.encoding, self.spec.path)
        if b"{{" in data:
            with contextlib.suppress(UnicodeDecodeError):  # braces in binary data are no template
                data = context.render(data.decode(), self.place).encode()
        owner = owner_of(context.root, self.spec.owner, self.spec.group, self.spec.owner_string)
        context.root.write(self.spec.path, data, self.spec.permissions, owner)


@dataclass(frozen=True, slots=True)
class Fetch:
    """``downloads``."""

    spec: Download

    def describe(self) -> str:
        """See `Action`."""
        return f"download {self.spec.path} ({self.spec.permissions:04o})"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        spec = self.spec
        owner = owner_of(context.root, spec.owner, spec.group, spec.owner_string)
        wanted = spec.sha256.lower()
        if wanted and _sha256(context.root.read(spec.path)) == wanted:
            context.root.set_attributes(spec.path, spec.permissions, owner)
            return
        data = context.system.fetch(spec.url, MAX_DOWNLOAD_BYTES, spec.timeout_s or DEFAULT_TIMEOUT_S)
        if len(data) > MAX_DOWNLOAD_BYTES:
            raise BootError(f"{spec.path}: the download is larger than {MAX_DOWNLOAD_BYTES} bytes")
        if wanted and _sha256(data) != wanted:
            hint = "someone changed the file: look at it, then write the new checksum"
            raise BootError(f"{spec.path}: the download has the checksum {_sha256(data)}", hint=hint)
        context.root.write(spec.path, data, spec.permissions, owner)


def decoded(content: str, encoding: str, path: str) -> bytes:
    """The bytes that `content` stands for. Raises BootError."""
    data = content.encode("utf-8", "surrogateescape")
    try:
        if "b64" in encoding or "base64" in encoding:
            data = base64.b64decode(b"".join(data.split()), validate=True)
        if encoding.startswith("gz"):
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = file.read(MAX_UNPACKED_BYTES + 1)
    except (binascii.Error, OSError, EOFError, zlib.error) as exc:
        raise BootError(f"{path}: the content is not {encoding}: {exc}", hint="encode it again") from exc
    if len(data) > MAX_UNPACKED_BYTES:
        raise BootError(f"{path}: the content unpacks to more than {MAX_UNPACKED_BYTES} bytes")
    return data


def owner_of(root: Root, owner: int | None, group: int | None, text: str) -> tuple[int | None, int | None]:
    """Ids of an owner; a name is looked up in the root. Raises BootError."""
    if not text:
        return owner, group
    return accounts.ids_of(root.text(accounts.PASSWD), root.text(accounts.GROUP), text)


def _sha256(data: bytes | None) -> str:
    return "" if data is None else hashlib.sha256(data).hexdigest()
