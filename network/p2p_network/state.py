"""Where does a node keep what it must never lose, and is that place usable?

The state directory (0700) holds, besides what other modules put there::

    identity.key    the node's key, 0600: made once, atomically; open, or sealed by a TPM (`Vault`)
    lock            held as long as an agent uses the directory, so that two can't share it
    store.sqlite    the ledger (`ledger.store`)
    durable/        promises of the genesis acceptor and the like (`ledger.durable`)

Atomic means: a power cut at any moment leaves the old state or the new one (temporary file, fsync, link or
rename, fsync of the directory). Whatever is wrong with the directory is said at the start, with what to do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from pathlib import Path
from typing import Final, Protocol

from p2p_network.core import log
from p2p_network.core.errors import MeshError, NotPermitted, P2PError
from p2p_network.identity import Identity

_logger = log.get(__name__)

_HEADER: Final = "kairos-p2p identity 1"
_MAX_IDENTITY_BYTES: Final = 4096
_TEMPORARY: Final = ".tmp-"


class System(Protocol):
    """The calls of the operating system that keep a file: those of `os`, or the simulator's, which can lose
    power between any two."""

    def open(self, path: Path, flags: int, mode: int = ..., /) -> int: ...

    def read(self, fd: int, count: int, /) -> bytes: ...

    def write(self, fd: int, data: bytes, /) -> int: ...

    def fsync(self, fd: int, /) -> None: ...

    def close(self, fd: int, /) -> None: ...

    def replace(self, source: Path, target: Path, /) -> None: ...

    def unlink(self, path: Path, /) -> None: ...


class Vault(Protocol):
    """What keeps a secret so that only this machine can read it: a TPM. Both raise P2PError."""

    def seal(self, secret: bytes) -> str:
        """A text of one line."""
        ...

    def unseal(self, text: str) -> bytes:
        """The secret."""
        ...


class StateDirectory:
    """An opened and locked state directory. Use `open`; `close` (or leaving a ``with``) unlocks it."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd: int | None = lock_fd

    @classmethod
    def open(cls, path: Path) -> StateDirectory:
        """Create the directory if need be, check it and lock it.

        Raises:
            NotPermitted: it belongs to another user, or we may not write there.
            MeshError: another agent uses it; it is read-only or full; it is no directory.
        """
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(path)
            sync_directory(path.parent)
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                path.chmod(0o700)
            lock_fd = _lock(path / "lock")
        except OSError as exc:
            raise explain(exc, path) from exc
        state = cls(path, lock_fd)
        try:
            state._sweep()
        except BaseException:
            state.close()
            raise
        return state

    @property
    def store_path(self) -> Path:
        """Where the ledger's database lies."""
        return self.path / "store.sqlite"

    @property
    def durable_path(self) -> Path:
        """Where the durable state of cores lies."""
        return self.path / "durable"

    def identity(self, vault: Vault | None = None) -> Identity:
        """This node's identity: read, or made at the first call ever.

        With a vault the key is sealed in it; one that lies there openly is sealed now, and stays the same.
        Raises MeshError if the file is damaged (it is left as it is), or the directory read-only or full.
        """
        path = self.path / "identity.key"
        try:
            try:
                found, is_sealed = _read_identity(path, vault)
                if vault is not None and not is_sealed:
                    replace_atomically(path, _identity_text(found, vault))
                    log.event(_logger, "state.identity_sealed", peer=found.peer_id, path=str(path))
                return found
            except FileNotFoundError:
                made = Identity(secrets.token_bytes(32))
                create_atomically(path, _identity_text(made, vault))
        except OSError as exc:
            raise explain(exc, path) from exc
        log.event(_logger, "state.identity_made", peer=made.peer_id, path=str(path))
        return _read_identity(path, vault)[0]  # what counts is what the disk says

    def close(self) -> None:
        """Unlock the directory. Safe to call twice."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> StateDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sweep(self) -> None:
        """Remove what an interrupted write left behind; also shows at once whether we may write."""
        try:
            for leftover in self.path.glob(f"{_TEMPORARY}*"):
                leftover.unlink()
            probe = self.path / f"{_TEMPORARY}probe"
            # some bytes: on a full disk an empty file can still be made
            _write_new(probe, b"kairos-p2p" * 100)
            probe.unlink()
        except OSError as exc:
            raise explain(exc, self.path) from exc


def create_atomically(path: Path, data: bytes) -> None:
    """Write a new file, durable on return; FileExistsError if it is there already. Mode 0600."""
    temporary = _temporary(path)
    try:
        _write_new(temporary, data)
        os.link(temporary, path)  # unlike rename, never overwrites
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def replace_atomically(path: Path, data: bytes, system: System = os) -> None:
    """Write a file, new or in place of the old one, durable on return. Mode 0600. Raises OSError."""
    temporary = _temporary(path)
    try:
        _write_new(temporary, data, system)
        system.replace(temporary, path)
    except BaseException:
        _remove(temporary, system)
        raise
    sync_directory(path.parent, system)


def sync_directory(path: Path, system: System = os) -> None:
    """Make durable which files a directory holds."""
    fd = system.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        system.fsync(fd)
    finally:
        system.close(fd)


def read_file(path: Path, limit_bytes: int, system: System = os) -> bytes:
    """The first bytes of a file. Raises OSError."""
    fd = system.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = bytearray()
        while len(found) < limit_bytes and (more := system.read(fd, limit_bytes - len(found))):
            found += more
        return bytes(found)
    finally:
        system.close(fd)


def explain(exc: OSError, path: Path) -> P2PError:
    """The error for a person when the operating system refuses something in the state directory."""
    match exc.errno:
        case errno.EROFS:
            return MeshError(
                f"{path} can't be written: its file system is read-only",
                hint="mount a writable, persistent file system there, or choose another place: --state-dir",
            )
        case errno.ENOSPC | errno.EDQUOT:
            return MeshError(
                f"{path} can't be written: no space is left",
                hint="free some space (df -h and df -i show where), or choose another place with --state-dir",
            )
        case errno.EACCES | errno.EPERM:
            return NotPermitted(
                f"{path} can't be used: {exc.strerror}",
                hint="run the agent as root, or choose a place of your own with --state-dir",
            )
        case errno.ENOTDIR | errno.EEXIST:
            return MeshError(
                f"{path} can't be the state directory: a file is in the way",
                hint="move that file away, or choose another place with --state-dir",
            )
        case errno.ELOOP:
            return MeshError(
                f"{path} can't be used: it is a symbolic link, or the links lead nowhere",
                hint="put the file itself there",
            )
        case _:
            return MeshError(
                f"{path} can't be used: {exc.strerror or exc}",
                hint="check the disk (dmesg), or choose another place with --state-dir",
            )


def _check_owner(path: Path) -> None:
    owner, me = path.stat().st_uid, os.geteuid()
    if owner != me:
        raise NotPermitted(
            f"{path} belongs to user {owner}, this agent runs as user {me}",
            hint=f"run it as that user, or hand the directory over with: chown -R {me} {path}",
        )


def _lock(path: Path) -> int:
    """An open, locked file; the lock ends with the process, however it ends."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 20).decode("ascii", "replace").strip() or "unknown"
            raise MeshError(
                f"{path.parent} is in use by another agent (process {holder})",
                hint="stop that one first, or give each agent its own --state-dir",
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _identity_text(identity: Identity, vault: Vault | None) -> bytes:
    key = f"seed {identity.seed.hex()}" if vault is None else f"sealed {vault.seal(identity.seed).strip()}"
    return f"{_HEADER}\n{key}\npeer {identity.peer_id}\n".encode()


def _read_identity(path: Path, vault: Vault | None = None) -> tuple[Identity, bool]:
    """The identity, and whether its key was sealed."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        facts = os.fstat(fd)
        if facts.st_uid != os.geteuid():
            raise NotPermitted(
                f"{path} belongs to user {facts.st_uid}, this agent runs as user {os.geteuid()}",
                hint=f"if the key is really this node's: chown {os.geteuid()} {path}",
            )
        if stat.S_IMODE(facts.st_mode) & 0o077:
            os.fchmod(fd, 0o600)
            log.event(_logger, "state.identity_mode_tightened", path=str(path))
        raw = file.read(_MAX_IDENTITY_BYTES)
    damaged = MeshError(
        f"{path} is damaged: it does not hold a key and the peer id that belongs to it",
        hint="restore it from a backup; if there is none, move it away, and the node joins as a new one",
    )
    try:
        header, key, peer = raw.decode("ascii").splitlines()
        kind, _, rest = key.partition(" ")
        if kind == "sealed" and vault is None:
            raise MeshError(
                f"the key in {path} is sealed by this machine's TPM, which is not to be used",
                hint="set p2p.seal_identity: true, and see that the TPM is switched on",
            )
        if kind not in ("seed", "sealed"):
            raise damaged
        seed = vault.unseal(rest) if kind == "sealed" and vault is not None else bytes.fromhex(rest)
        identity = Identity(seed)
    except (ValueError, AssertionError):
        raise damaged from None  # the cause could quote the key
    if header != _HEADER or peer != f"peer {identity.peer_id}":
        raise damaged
    return identity, kind == "sealed"


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")


def _write_new(path: Path, data: bytes, system: System = os) -> None:
    fd = system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            left = data
            while left:
                left = left[system.write(fd, left) :]
            system.fsync(fd)
        finally:
            system.close(fd)
    except BaseException:
        _remove(path, system)
        raise


def _remove(path: Path, system: System) -> None:
    with contextlib.suppress(FileNotFoundError):
        system.unlink(path)
