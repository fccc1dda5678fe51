"""How does another k3s come onto this machine, and into the place of the one that runs?

A program is fetched from a node of the mesh that has it, checked (its SHA-256 is in the order) and asked for
its version, and lies beside until its turn. It is put into place by a rename, so there is a whole program at
every moment, and the one before stays as ``k3s.previous``. Whoever orders an upgrade brings the programs here
first.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio

from p2p_bootstrap.k3s_install import Origin, install, origin_of, put_in_place, sha256_of
from p2p_bootstrap.node.blobs import Blobs
from p2p_network.core import log
from p2p_network.core.errors import MeshError, P2PError, RoleError
from p2p_network.core.ids import PeerId, stable_hash
from p2p_roles import programs
from p2p_roles.k3s.driver import K3sDriver
from p2p_roles.k3s.release import MACHINES, MAX_FILE_BYTES, Release, release, said_version
from p2p_roles.upgrade.model import Order, Program

logger = log.get(__name__)

SPACE: Final = "k3s"
KEPT: Final = 3


class K3sPrograms:
    """The k3s programs of this node.

    Args:
        folder: for those that wait for their turn.
    """

    def __init__(self, *, self_id: PeerId, driver: K3sDriver, blobs: Blobs, folder: Path) -> None:
        self._self_id = self_id
        self._driver = driver
        self._blobs = blobs
        self._folder = folder
        self._asked: tuple[object, str] = (None, "")  # what the program's file was, and its version
        self._offered: dict[str, Path] = {}
        blobs.offer(SPACE, lambda _peer, name: self._offered.get(name))

    @property
    def arch(self) -> str:
        """This machine's kind, as upstream calls it."""
        return MACHINES.get(platform.machine(), platform.machine())

    async def installed(self) -> str:
        """The version of the program that is in place; "" if there is none."""
        path = await trio.to_thread.run_sync(self._driver.program)
        try:
            info = path.stat() if path is not None else None
        except OSError:
            info = None
        seen = (path, info.st_ino, info.st_size, info.st_mtime_ns) if info is not None else None
        if seen is None or seen != self._asked[0]:
            try:
                self._asked = (seen, await self._driver.version())
            except P2PError:
                self._asked = (seen, "")
        return self._asked[1]

    # ------------------------------------------------------------ bring, offer, fetch

    async def bring(self, version: str, archs: Sequence[str], origin: OriginOptions) -> tuple[Program, ...]:
        """Get a release for these kinds of machines from where the operator says. Raises P2PError."""
        found = []
        for arch in archs:
            machine = next((m for m, a in MACHINES.items() if a == arch), arch)
            wanted = release(version, machine)
            target = self._place(version, arch)
            what = origin.of(wanted, arch)
            await trio.to_thread.run_sync(
                partial(install, wanted, what, program=target, ask_version=partial(_ask, arch, version))
            )
            sha256 = await trio.to_thread.run_sync(sha256_of, target)
            size = (await trio.to_thread.run_sync(target.stat)).st_size
            self._offered[sha256] = target
            found.append(Program(arch, sha256, size))
        await trio.to_thread.run_sync(self._prune)
        return tuple(found)

    async def stage(self, order: Order, holders: Sequence[PeerId]) -> None:
        """Have the order's program here, checked. Raises P2PError."""
        program = order.program_for(self.arch)
        assert program is not None, "the machine looks before it asks"
        target = self._place(order.version, program.arch)
        for one in order.programs:  # brought here for others, too
            place = self._place(order.version, one.arch)
            if await trio.to_thread.run_sync(sha256_of, place) == one.sha256:
                self._offered[one.sha256] = place
        if program.sha256 not in self._offered:
            await self._fetch(program, target, holders)
        await trio.to_thread.run_sync(self._check, order.version, target)
        self._offered[program.sha256] = target

    async def _fetch(self, program: Program, target: Path, holders: Sequence[PeerId]) -> None:
        if not 0 < program.size_bytes <= MAX_FILE_BYTES:
            raise RoleError(f"a k3s of {program.size_bytes} bytes is not taken")
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        why = "no node in reach has it"
        for peer in sorted(holders, key=lambda p: stable_hash("k3s", self._self_id, p)):
            if peer == self._self_id:
                continue
            try:
                await self._blobs.fetch(peer, SPACE, program.sha256, target, max_bytes=program.size_bytes)
            except (P2PError, OSError) as exc:
                why = str(exc)
                continue
            if await trio.to_thread.run_sync(sha256_of, target) == program.sha256:
                return
            await trio.to_thread.run_sync(target.unlink)
            why = f"what ...{peer[-8:]} gave is not the program that was ordered"
        raise MeshError(f"k3s for {program.arch} can't be fetched: {why}", hint="it is tried again")

    def _check(self, version: str, target: Path) -> None:
        """Whether the program says its version here, and may be put into place. Blocks."""
        target.chmod(0o755)
        said = said_version(_ask(self.arch, version, target))
        if said != version:
            raise RoleError(f"the program says that it is {said or 'no k3s'}, not {version}")
        place = self._driver.program()
        if place is None:
            raise RoleError(
                "k3s is no program of its own here (K3S_BIN is a command line)", hint="name one file there"
            )
        if not os.access(place.parent, os.W_OK):  # root may write everywhere, but not on a read-only image
            raise RoleError(
                f"{place.parent} is read-only: k3s is a part of this machine's image",
                hint="upgrade the image instead",
            )

    def _place(self, version: str, arch: str) -> Path:
        return self._folder / f"k3s-{version}-{arch}"

    def _prune(self) -> None:
        kept = sorted(self._folder.glob("k3s-*"), key=lambda p: p.stat().st_mtime)
        for old in kept[:-KEPT]:
            if old not in self._offered.values():
                old.unlink(missing_ok=True)

    # ------------------------------------------------------------ into place, and back

    async def swap(self, version: str) -> None:
        """Put the staged program into place; nothing if it is there. Raises P2PError."""
        if await self.installed() != version:
            await trio.to_thread.run_sync(self._put, self._place(version, self.arch), True)

    async def swap_back(self, before: str) -> None:
        """Put the program that was there before into place; nothing if it is there. Raises P2PError."""
        if await self.installed() == before:
            return
        place = self._driver.program()
        previous = place.with_name(f"{place.name}.previous") if place is not None else None
        said = said_version(await trio.to_thread.run_sync(_ask, self.arch, before, previous))
        if said != before:
            raise RoleError(
                f"k3s {before} is not here any more: {previous} is {said or 'no k3s'}",
                hint=f"kairos-p2p k3s install --version {before}",
            )
        await trio.to_thread.run_sync(self._put, previous, False)

    def _put(self, source: Path, keep_previous: bool) -> None:
        place = self._driver.program()
        if place is None:
            raise RoleError("there is no k3s whose place could be taken", hint="kairos-p2p k3s install")
        temporary = place.with_name(f".{place.name}.new")
        try:
            with open(source, "rb") as old, open(temporary, "wb") as new:
                shutil.copyfileobj(old, new, 1 << 20)
                new.flush()
                os.fsync(new.fileno())
            temporary.chmod(0o755)
            put_in_place(temporary, place, keep_previous=keep_previous)
        except OSError as exc:
            raise RoleError(f"{place} can't be replaced: {exc}", hint="is there space left on it?") from exc
        finally:
            temporary.unlink(missing_ok=True)


class OriginOptions:
    """Where an operator has releases come from; see `k3s_install.Origin`."""

    def __init__(
        self, source: str | None, mirror: str, ca_file: Path | None, public_key: str, sha256: str, arch: str
    ) -> None:
        self._source, self._mirror, self._ca_file = source, mirror, ca_file
        self._public_key, self._sha256, self._arch = public_key, sha256, arch

    def of(self, wanted: Release, arch: str) -> Origin:
        """The origin for one kind of machine. Raises RoleError if what was named is for another kind."""
        origin = origin_of(wanted, self._source, self._mirror, self._ca_file, self._public_key, self._sha256)
        if arch != self._arch and (origin.program or origin.sha256):
            raise RoleError(
                f"there are {arch} machines too, and one file or checksum serves {self._arch} only",
                hint="name the folder with the files of the whole release: --from FOLDER/",
            )
        return origin


def _ask(arch: str, version: str, program: Path | None) -> str:
    """What it says of itself; of one for another kind of machine the checksum must do. Blocks."""
    if program is None or not program.exists():
        return ""
    if arch != MACHINES.get(platform.machine(), platform.machine()):
        return f"k3s version {version}"
    try:
        done = trio.from_thread.run(
            partial(programs.run, [str(program.absolute()), "--version"], timeout_s=30.0)
        )
    except (P2PError, OSError) as exc:
        return str(exc)
    return done.stdout + done.stderr if done.exit_code == 0 else ""
