"""How is what k3s has on this disk saved, set aside, reset and told of?

The files and ports are `p2p_roles.k3s.datastore`'s, which blocks: here it runs in threads, and k3s's own
commands (`etcd-snapshot save`, `server --cluster-reset`) through the driver.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from p2p_network.core import log
from p2p_network.core.errors import K3sFailed, P2PError, RoleError
from p2p_roles import programs
from p2p_roles.k3s import datastore
from p2p_roles.k3s.datastore import EtcdFacts, SnapshotFolder
from p2p_roles.k3s.driver import K3sDriver
from p2p_roles.k3s.kube import Kube
from p2p_roles.k3s.spec import K3sPaths, K3sSpec
from p2p_roles.recovery import SnapshotFacts

logger = log.get(__name__)

RESET_TIMEOUT_S: Final = 300.0
SAVE_TIMEOUT_S: Final = 120.0
SAVE_BEFORE_TIMEOUT_S: Final = 20.0
_RESET_DONE: Final = "has been reset"
_MESSAGE: Final = re.compile(r'msg="((?:[^"\\]|\\.)*)"')


class K3sData:
    """k3s's data on this machine. `paths`: a server's."""

    def __init__(self, driver: K3sDriver, paths: Callable[[], K3sPaths]) -> None:
        self._driver = driver
        self._paths = paths
        self._folder: SnapshotFolder | None = None

    async def facts(self) -> EtcdFacts:
        """What etcd says of itself."""
        return await programs.in_thread(datastore.etcd_facts, self._paths())

    async def count_workloads(self) -> int | None:
        """Objects of people in the cluster; None if it can't be told."""
        return await programs.in_thread(datastore.count_workloads, Kube(Path(self._paths().kubeconfig)))

    # ------------------------------------------------------------ snapshots

    @property
    def folder(self) -> SnapshotFolder:
        """k3s's snapshots."""
        if self._folder is None:
            self._folder = SnapshotFolder(self._paths())
        return self._folder

    async def snapshots(self) -> list[SnapshotFacts]:
        """Those on this disk, newest first."""
        return await programs.in_thread(self.folder.entries)

    async def save(self, name: str, *, timeout_s: float = SAVE_TIMEOUT_S) -> str:
        """Have etcd write a snapshot now; the file's name. Raises K3sFailed with k3s's words."""
        argv = ["etcd-snapshot", "save", "--name", name]
        if self._paths().data_dir != K3sPaths().data_dir:
            argv += ["--data-dir", self._paths().data_dir]
        done = await self._driver.ask(*argv, timeout_s=timeout_s)
        said = done.stdout + done.stderr
        found = re.search(rf"\b({re.escape(name)}-\S+?-\d+(?:\.zip)?)\b", said)
        if done.exit_code != 0 or found is None:
            raise K3sFailed(
                f"k3s did not save a snapshot: {last_words(said)}",
                hint="it needs a running server whose etcd answers: kairos-p2p status",
            )
        return found[1]

    async def save_before(self, label: str) -> None:
        """A snapshot before the data goes, if etcd still answers; the data itself is kept in any case."""
        if self._driver.observed.state not in ("ready", "running"):
            return
        try:
            name = await self.save(f"before-{label}", timeout_s=SAVE_BEFORE_TIMEOUT_S)
            log.event(logger, "roles.snapshot_saved", name=name, reason=f"before {label} is set aside")
        except P2PError as exc:
            log.event(logger, "roles.snapshot_missing", logging.WARNING, error=exc.message)

    # ------------------------------------------------------------ aside, reset

    async def may_vote(self) -> bool:
        """See `datastore.may_vote`."""
        return await trio.to_thread.run_sync(datastore.may_vote, self._paths())

    async def set_aside_etcd(self, label: str) -> None:
        """Rename etcd's data; k3s is stopped. Raises K3sFailed."""
        try:
            target = await trio.to_thread.run_sync(datastore.set_aside_etcd, self._paths(), label)
        except OSError as exc:
            raise K3sFailed(
                f"etcd's data cannot be set aside: {exc}", hint=f"look at {self._paths().data_dir}"
            ) from exc
        if target is not None:
            log.event(logger, "roles.datastore_set_aside", path=str(target))

    async def reset(self, built: K3sSpec, label: str, snapshot: str) -> None:
        """Copy etcd's data aside and run ``--cluster-reset``; k3s is stopped. Raises RoleError, OSError."""
        paths = self._paths()
        copy = await trio.to_thread.run_sync(datastore.copy_aside, paths, label)
        await trio.to_thread.run_sync(datastore.prepare_reset, paths)
        flags = ["--cluster-reset"]
        if snapshot:
            flags.append(f"--cluster-reset-restore-path={snapshot}")
        elif copy is None:
            raise RoleError("this server has no etcd data to go on from")
        done = await self._driver.run_once(built, *flags, timeout_s=RESET_TIMEOUT_S)
        said = done.stdout + done.stderr
        if _RESET_DONE not in said and not datastore.was_reset(paths):
            raise K3sFailed(f"k3s could not reset its etcd: {last_words(said)}")
        log.event(logger, "roles.k3s_reset", path=str(copy or ""), reason=label)


def last_words(output: str) -> str:
    """The last message that k3s logged, on one line."""
    lines = [line for line in output.splitlines() if line.strip()]
    fatal = [line for line in lines if "level=fatal" in line or "level=error" in line] or lines
    if not fatal:
        return "it said nothing"
    found = _MESSAGE.search(fatal[-1])
    text = found[1] if found else fatal[-1]
    return "".join(c if c.isprintable() else " " for c in text)[:300]
