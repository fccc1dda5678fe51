"""What files are in a container image of a registry?

The registry's HTTP interface (OCI distribution): manifest, for one platform, then layers, each checked
against its digest and unpacked in order; whiteouts remove what lower layers had. Nothing of an archive may
leave the target: links and paths that would are refused. TLS is verified; plain http only to this machine
itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from p2p_network.core.errors import BootError

MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
MAX_LAYER_BYTES: Final = 4 * 1024**3
TIMEOUT_S: Final = 60.0
_INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_REFERENCE: Final = re.compile(
    r"(?:(?P<host>[A-Za-z0-9.-]+(?::[0-9]+)?|localhost)/)?(?P<name>[a-z0-9][a-z0-9._/-]*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is. `what`: a tag or a digest."""

    host: str
    name: str
    what: str

    @property
    def base(self) -> str:
        """The address of its repository."""
        local = self.host.partition(":")[0] in ("localhost", "127.0.0.1")
        return f"{'http' if local else 'https'}://{self.host}/v2/{self.name}"


def parse_reference(text: str) -> Reference:
    """``[HOST/]NAME[:TAG][@DIGEST]``. Raises BootError."""
    found = _REFERENCE.fullmatch(text)
    if found is None:
        raise BootError(f"{text[:80]!r} is no image", hint="write HOST/NAME:TAG")
    host, name = found["host"] or "", found["name"]
    if host and "." not in host and ":" not in host and host != "localhost":
        host, name = "", f"{host}/{name}"
    if host in ("", "docker.io"):
        host, name = "registry-1.docker.io", name if "/" in name else f"library/{name}"
    return Reference(host, name, found["digest"] or found["tag"] or "latest")


class Registry:
    """Asks one repository."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._token = ""

    def manifest(self, platform: str) -> Mapping[str, Any]:
        """The manifest for ``os/arch[/variant]``. Raises BootError."""
        found = self._manifest(self._reference.what)
        if found.get("mediaType") in _INDEXES or "manifests" in found:
            wanted = platform.split("/")
            for one in found.get("manifests", ()):
                has = one.get("platform", {})
                words = [has.get("os", ""), has.get("architecture", ""), has.get("variant", "")]
                if words[: len(wanted)] == wanted:
                    return self._manifest(str(one.get("digest", "")))
            raise BootError(f"{self._reference.name} has no image for {platform}", hint="write its platform")
        return found

    def layer(self, digest: str) -> bytes:
        """A layer, checked. Raises BootError."""
        data = self._get(f"{self._reference.base}/blobs/{digest}", {}, MAX_LAYER_BYTES)
        _check_digest(data, digest)
        return data

    def _manifest(self, what: str) -> Mapping[str, Any]:
        accept = {"Accept": ", ".join((*_INDEXES, *_MANIFESTS))}
        data = self._get(f"{self._reference.base}/manifests/{what}", accept, MAX_MANIFEST_BYTES)
        if what.startswith("sha256:"):
            _check_digest(data, what)
        try:
            found = json.loads(data)
        except ValueError as exc:
            raise BootError(f"{self._reference.name}: the manifest is not JSON") from exc
        if not isinstance(found, dict):
            raise BootError(f"{self._reference.name}: the manifest is no manifest")
        return found

    def _get(self, address: str, headers: Mapping[str, str], limit: int, *, again: bool = True) -> bytes:
        own = {**headers, **({"Authorization": f"Bearer {self._token}"} if self._token else {})}
        try:
            request = urllib.request.Request(address)  # noqa: S310 - http or https, from base
            for name, value in own.items():
                request.add_unredirected_header(name, value)
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                data = answer.read(limit + 1)
        except urllib.error.HTTPError as exc:
            if exc.code == 401 and again and not self._token:
                self._token = self._login(exc.headers.get("WWW-Authenticate", ""))
                return self._get(address, headers, limit, again=False)
            hint = "check the image's name" if exc.code in (401, 403, 404) else "try again later"
            raise BootError(f"{self._reference.host} answers {exc.code} for {address}", hint=hint) from exc
        except (OSError, ValueError) as exc:
            raise BootError(
                f"{self._reference.host} can't be reached: {exc}", hint="check the network"
            ) from exc
        assert isinstance(data, bytes), "a binary body"
        if len(data) > limit:
            raise BootError(f"{address}: larger than {limit} bytes")
        return data

    def _login(self, challenge: str) -> str:
        """An anonymous token, where the registry sends us for it."""
        values = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        realm = values.get("realm", "")
        if not challenge.lower().startswith("bearer") or not realm.startswith(self._reference.base[:5]):
            raise BootError(
                f"{self._reference.host} wants a login", hint="only public images can be unpacked"
            )
        query = {key: values[key] for key in ("service", "scope") if key in values}
        data = self._get(f"{realm}?{urllib.parse.urlencode(query)}", {}, MAX_MANIFEST_BYTES, again=False)
        try:
            found = json.loads(data)
            return str(found.get("token") or found.get("access_token") or "")
        except (ValueError, AttributeError) as exc:
            raise BootError(f"{self._reference.host}: the login answers no token") from exc


def _check_digest(data: bytes, digest: str) -> None:
    if digest != f"sha256:{hashlib.sha256(data).hexdigest()}":
        raise BootError(
            f"{digest[:19]}…: the registry sent something else", hint="try again, or another registry"
        )


def apply_layer(data: bytes, target: Path) -> None:
    """Unpack one layer over what is there. Raises BootError."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
            for member in archive:
                _apply(archive, member, target)
    except (tarfile.TarError, OSError, EOFError, ValueError) as exc:
        raise BootError(f"{target}: a layer can't be unpacked: {exc}", hint="is the disk full?") from exc


def _apply(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    folder, _, name = member.name.rstrip("/").rpartition("/")
    if name.startswith(".wh."):
        base = (target / folder).resolve()
        if target.resolve() not in (base, *base.parents):
            raise BootError(f"{member.name}: points out of the target")
        gone = list(base.iterdir()) if name == ".wh..wh..opq" and base.is_dir() else [base / name[4:]]
        for path in gone:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        return
    archive.extract(member, target, filter=_filter)


def _filter(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
    """tarfile's own guard, but with the image's permissions and owners, and no device nodes."""
    if member.isdev():
        return None
    safe = tarfile.tar_filter(member, path)
    if member.islnk():
        tarfile.data_filter(member, path)  # raises for a hard link to a file that is not the image's
    return safe.replace(mode=member.mode & 0o7777, deep=False)
