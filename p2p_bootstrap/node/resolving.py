"""How do the programs of this machine come to ask the mesh's name server?

With systemd-resolved: the VPN device gets our server for the mesh's domain and the VPN's reverse names, and
for nothing else (`resolvectl`, forgotten with the device). Without: /etc/resolv.conf names our server first.
The former file is kept in the state folder until it was put back, so that one which a crash left behind is
put back by the next start. Whoever writes the file meanwhile (a DHCP client) is heard: its servers are the
ones to forward to, and our lines are put before them again.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from p2p_network.core import log
from p2p_network.core.errors import MeshError, P2PError
from p2p_network.ledger.durable import DurableFiles
from p2p_network.names import resolv_conf
from p2p_roles import programs

RESOLV_CONF: Final = Path("/etc/resolv.conf")
_RESOLVED: Final = Path("/run/systemd/resolve/io.systemd.Resolve")
_KEY: Final = "names/resolv.conf"
_TIMEOUT_S: Final = 5.0

logger = log.get(__name__)


class Former(msgspec.Struct, frozen=True):
    """What stood there before: a symbolic link's target, or a file's bytes; neither: there was no file."""

    link: str = ""
    content: str | None = None  # base64


class Resolving:
    """The machine's own way to resolve names.

    Args:
        path: the file, for tests.
    """

    def __init__(self, durable: DurableFiles, *, path: Path = RESOLV_CONF) -> None:
        self._durable = durable
        self._path = path
        self._device = ""
        self.upstream: tuple[str, ...] = ()
        """The servers to ask for names that are not the mesh's."""

    @property
    def uses_resolved(self) -> bool:
        """Whether systemd-resolved answers this machine's programs."""
        return self._path == RESOLV_CONF and _RESOLVED.exists() and programs.find("resolvectl") is not None

    async def keep(self, device: str, servers: Sequence[str], origin: str, reverse: Sequence[str]) -> None:
        """Let this machine ask `servers` (our own addresses); called again and again, it mends what changed.

        Raises MeshError: what is not permitted or not possible, and what to do.
        """
        if self.uses_resolved:
            if device != self._device:
                await self._resolvectl("dns", device, *servers)
                await self._resolvectl("domain", device, *(f"~{name}" for name in (origin, *reverse)))
                await self._resolvectl("default-route", device, "no")
                self._device = device
            return
        try:
            await programs.in_thread(self._keep_file, tuple(servers), origin)
        except OSError as exc:
            raise MeshError(
                f"cannot write {self._path}: {exc.strerror}",
                hint=f"let programs ask {servers[0]} for *.{origin} yourself, or set p2p.dns to false",
            ) from exc

    def _keep_file(self, servers: tuple[str, ...], origin: str) -> None:
        text = self._read()
        if not resolv_conf.is_ours(text):
            self._remember()
            before = resolv_conf.parse(text)
        else:
            before = resolv_conf.parse(self._former_text())
        self.upstream = tuple(s for s in before.servers if s not in servers)
        wanted = resolv_conf.render(before, servers, origin)
        if wanted != text:
            _replace(self._path, wanted.encode())
            log.event(logger, "vpn.names_kept", path=str(self._path), reason="programs ask this node first")

    async def restore(self) -> None:
        """Put back what was there before. No effect if nothing was changed."""
        if self._device:
            device, self._device = self._device, ""
            try:
                await self._resolvectl("revert", device)
            except P2PError as exc:  # gone with the device
                log.event(logger, "vpn.names_left", logging.DEBUG, error=exc.message)
        await programs.in_thread(self._restore_file)

    def _restore_file(self) -> None:
        raw = self._durable.get(_KEY)
        if not raw:
            return
        former = msgspec.json.decode(raw, type=Former)
        if resolv_conf.is_ours(self._read()):
            if former.link:
                self._path.unlink(missing_ok=True)
                self._path.symlink_to(former.link)
            elif former.content is not None:
                _replace(self._path, base64.b64decode(former.content))
            else:
                self._path.unlink(missing_ok=True)
            log.event(logger, "vpn.names_restored", path=str(self._path), reason="this node's agent ends")
        self._durable.set(_KEY, b"")

    def _remember(self) -> None:
        """Keep what is there, durably, before it is overwritten."""
        if self._path.is_symlink():
            former = Former(link=os.readlink(self._path), content=self._encoded())
        else:
            former = Former(content=self._encoded())
        self._durable.set(_KEY, msgspec.json.encode(former))

    def _encoded(self) -> str | None:
        try:
            return base64.b64encode(self._path.read_bytes()[: resolv_conf.MAX_BYTES]).decode()
        except FileNotFoundError:
            return None

    def _former_text(self) -> str:
        raw = self._durable.get(_KEY)
        content = msgspec.json.decode(raw, type=Former).content if raw else None
        return base64.b64decode(content or "").decode(errors="replace")

    def _read(self) -> str:
        try:
            return self._path.read_bytes()[: resolv_conf.MAX_BYTES].decode(errors="replace")
        except FileNotFoundError:
            return ""

    @staticmethod
    async def _resolvectl(*arguments: str) -> None:
        done = await programs.run(("resolvectl", *arguments), timeout_s=_TIMEOUT_S)
        if done.exit_code:
            raise MeshError(
                f"resolvectl {' '.join(arguments)} failed: {(done.stderr or done.stdout).strip()[:200]}",
                hint="is systemd-resolved running? systemctl status systemd-resolved",
            )


def _replace(path: Path, content: bytes) -> None:
    """Atomically; but in place where the file is mounted by itself (a container's)."""
    fresh = path.with_name(f".{path.name}.kairos-p2p")
    try:
        fresh.write_bytes(content)
        fresh.chmod(0o644)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        path.write_bytes(content)
