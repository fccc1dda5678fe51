"""``datasource``: what does the place where this machine runs want it to be?

Providers are asked in the order written, discs first, as in Kairos; the first that is there wins. The raw
user data goes to ``userdata``, 0600; a cloud-config also to ``userdata_name``, where the next collection
finds it; a script is run. Facts of the machine go to ``/run/config``, keys to root, and the host name is
set.
"""

from __future__ import annotations

import email
import email.message
import gzip
import io
import zlib
from dataclasses import dataclass
from typing import Final

from p2p_bootstrap.cloudconfig.document import has_header, parse
from p2p_bootstrap.stages import media, metadata
from p2p_bootstrap.stages.action import Context
from p2p_bootstrap.stages.metadata import Absent, UserData
from p2p_bootstrap.stages.model import DataSource
from p2p_bootstrap.stages.steps.naming import SetHostname
from p2p_bootstrap.stages.steps.people import AuthorizeKeys
from p2p_bootstrap.stages.system import check
from p2p_network.core.errors import BootError

CONFIG: Final = "/run/config"
_DISCS: Final = ("cdrom", "nocloud", "config-drive")
_PROVIDER: Final = "datasource"


@dataclass(frozen=True, slots=True)
class FetchUserData:
    """``datasource``."""

    spec: DataSource

    def describe(self) -> str:
        """See `Action`."""
        return f"look for user data: {', '.join(self.spec.providers)}"

    def execute(self, context: Context) -> None:
        """See `Action`."""
        found = self._find(context)
        own = found.provider == "file"
        folder = self.spec.path if self.spec.path and not own else CONFIG
        context.root.make_folder(CONFIG, 0o755)
        for file, value in found.details.items():
            context.root.write(f"{CONFIG}/{file}", value.encode(), 0o644)
        if found.userdata:
            self._take(found.userdata, folder, context)
        if found.hostname:
            context.root.write(f"{CONFIG}/hostname", found.hostname.encode(), 0o644)
            SetHostname(found.hostname.replace("{{", ""), _PROVIDER).execute(context)
        if found.keys:
            text = "".join(f"{key}\n" for key in found.keys)
            context.root.make_folder(f"{CONFIG}/ssh", 0o700)
            context.root.write(f"{CONFIG}/ssh/authorized_keys", text.encode(), 0o600)
            AuthorizeKeys("root", found.keys).execute(context)

    def _find(self, context: Context) -> UserData:
        unique = dict.fromkeys(self.spec.providers)
        answers = []
        for name in sorted(unique, key=lambda one: one not in _DISCS):
            try:
                return self._ask(name, context)
            except Absent as exc:
                answers.append(f"{name}: {exc}")
        raise BootError(
            f"no user data was found ({'; '.join(answers)})", hint="is the provider the right one?"
        )

    def _ask(self, name: str, context: Context) -> UserData:
        if name in _DISCS:
            return media.find(name, context.root, context.system)
        if name == "file":
            data = context.root.read(self.spec.path) if self.spec.path else None
            if data is None:
                raise Absent(f"{self.spec.path or 'path'} is not there")
            return UserData(name, data)
        if name == "vmware":
            return _vmware(context)
        return metadata.ask(name, context.metadata_base)

    def _take(self, data: bytes, folder: str, context: Context) -> None:
        text = unpacked(data).decode("utf-8", "replace")
        raw = text.encode()
        context.root.write(f"{folder}/userdata", raw, 0o600)
        if text.startswith("#!"):
            context.root.write(f"{folder}/userdata", raw, 0o700)
            for line in check(context.system.run([f"{folder}/userdata"]), "the user data").splitlines():
                context.say(line)
        elif has_header(text) or "stages" in parse(raw, "userdata", header=False).root.entries:
            if not has_header(text):
                raw = b"#cloud-config\n" + raw
            parse(raw, f"{folder}/{self.spec.userdata_name}").checked()
            context.root.write(f"{folder}/{self.spec.userdata_name}", raw, 0o600)


def unpacked(data: bytes) -> bytes:
    """User data as clouds pack it: gzip, and the cloud-config part of a multi-part message."""
    if data.startswith(b"\x1f\x8b"):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                data = file.read(metadata.MAX_BYTES)
        except (OSError, EOFError, zlib.error) as exc:
            raise BootError(f"the user data is broken gzip: {exc}", hint="set it again") from exc
    if data[:100].lower().startswith((b"content-type: multipart", b"mime-version:")):
        for part in email.message_from_bytes(data).walk():
            if part.get_content_type() == "text/cloud-config":
                payload = part.get_payload(decode=True)
                assert isinstance(payload, bytes), "one part, decoded"
                return payload
    return data


def _vmware(context: Context) -> UserData:
    """guestinfo, through VMware's own tool."""
    tool = next((one for one in ("vmware-rpctool", "vmtoolsd") if context.system.has(one)), None)
    if tool is None:
        raise Absent("neither vmware-rpctool nor vmtoolsd is on this system")

    def info(name: str) -> str:
        argv = [tool, *(["--cmd"] if tool == "vmtoolsd" else []), f"info-get guestinfo.{name}"]
        ended = context.system.run(argv)
        return ended.output.rstrip("\n") if ended.code == 0 else ""

    text, encoding = info("userdata"), info("userdata.encoding")
    if not text or text == "---":
        raise Absent("the hypervisor has no guestinfo.userdata")
    data = text.encode()
    if encoding in ("base64", "b64", "gzip+base64", "gz+b64"):
        data = metadata.unbase64(data)
    return UserData("vmware", data)
