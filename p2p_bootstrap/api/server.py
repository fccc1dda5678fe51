"""Where does the local API listen, and who is at the other end of a connection?

On a unix socket and never on TCP. The kernel is asked who connected (SO_PEERCRED and SO_PEERGROUPS); `app`
decides what they may do, `http` speaks with them. hypercorn was tried first: it tells the application
nothing about the peer of a unix socket, sends in a shielded scope (a caller that stops reading would keep
the agent from ending) and lets itself be switched to HTTP/2.

One agent per socket: a lock file beside the socket is held for as long as the agent lives (the kernel lets
go of it however the agent ends), and a socket left by a dead one is replaced only if nobody answers on it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio
from starlette.types import ASGIApp

from p2p_bootstrap.api.app import CALLER, GROUP, Caller, Part, Rights, build_app
from p2p_bootstrap.api.audit import AuditLog
from p2p_bootstrap.api.http import serve_connection
from p2p_bootstrap.api.service import AgentService
from p2p_bootstrap.api.upkeep import Upkeep
from p2p_network.core.errors import NotPermitted, P2PError

if TYPE_CHECKING:  # the stubs that libp2p brings hide trio's own annotations
    from trio_typing import TaskStatus

MAX_CONNECTIONS: Final = 64
MAX_READER_CONNECTIONS: Final = 16  # of callers that may only read: they can't lock root out
MAX_SOCKET_PATH_BYTES: Final = 107  # sockaddr_un.sun_path, less the final NUL

_SO_PEERGROUPS: Final = 59  # since Linux 4.13; the socket module has no name for it
_SO_PEERGROUPS_BYTES: Final = 1024  # 256 groups; the most that Python's getsockopt allows


async def serve_api(
    service: AgentService,
    socket_path: Path,
    audit: AuditLog | None = None,
    upkeep: Upkeep | None = None,
    *,
    parts: Sequence[Part] = (),
    task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on `socket_path` until cancelled; started once it listens.

    Raises P2PError if another agent answers there, NotPermitted if the place can't be written to.
    """
    with listening_socket(socket_path) as listener:
        server = _Server(build_app(service, audit, upkeep, parts))
        async with trio.open_nursery() as connections:
            task_status.started()
            await trio.serve_listeners(
                server.connection,
                [trio.SocketListener(trio.socket.from_stdlib_socket(listener))],
                handler_nursery=connections,
            )


@contextlib.contextmanager
def listening_socket(path: Path) -> Iterator[socket.socket]:
    """A unix socket that listens at `path`, mode 0660; removed on exit.

    The folder is made with mode 0755 if it is absent. Raises P2PError as `serve_api` does.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise P2PError(
            f"the socket path {path} is longer than the {MAX_SOCKET_PATH_BYTES} bytes that Linux allows",
            hint="choose a shorter one with --socket",
        )
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as exc:
        raise NotPermitted(
            f"the agent's socket {path} cannot be made: permission denied",
            hint="run the agent as root, or choose a place of your own with --socket",
        ) from exc
    except OSError as exc:
        raise P2PError(
            f"the agent's socket {path} cannot be made: {exc.strerror}",
            hint="choose another place with --socket",
        ) from exc
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _lock(lock, path)
        _remove_stale(path)
        sock.bind(os.fspath(path))
        # between bind and listen nobody can connect, so nobody slips in under the umask's mode
        _restrict(path)
        sock.listen(MAX_CONNECTIONS)
        made = path.stat().st_ino
        try:
            yield sock
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == made:
                    path.unlink()
    finally:
        sock.close()
        os.close(lock)


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _another_agent(path: Path) -> P2PError:
    return P2PError(
        f"another agent is running on {path}",
        hint=f"look at it with: kairos-p2p status --socket {path}\n"
        "  to run a second node on this machine, give it its own --socket and --state-dir",
    )


def _lock(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise _another_agent(path) from exc


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise P2PError(
            f"{path} is in the way of the agent's socket: it is no socket",
            hint="remove it, or choose another place with --socket",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError as exc:  # it neither refuses nor answers: somebody is there, and busy
            raise _another_agent(path) from exc
        else:
            raise _another_agent(path)


def _restrict(path: Path) -> None:
    os.chmod(path, 0o660)
    group = _reader_group()
    if group is not None:
        with contextlib.suppress(PermissionError):  # not root and not in the group: readers do without
            os.chown(path, -1, group)


def _reader_group() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def identify(connection: Any) -> Caller:
    """Who connected: asked from the kernel, which noted it at the moment of connect(2)."""
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Caller(uid=uid, pid=pid, rights=_rights(uid, {gid, *_groups(connection)}))


def _groups(connection: Any) -> tuple[int, ...]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _SO_PEERGROUPS_BYTES)
    except OSError:  # an old kernel, or more groups than fit: only the primary one counts
        return ()
    return tuple(group for (group,) in struct.iter_unpack("I", raw))


def _rights(uid: int, gids: set[int]) -> Rights:
    if uid in (0, os.geteuid()):
        return "all"
    return "read" if _reader_group() in gids else "none"


class _Server:
    """Accepted connections, bounded, each with its caller."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open = 0
        self._open_readers = 0

    async def connection(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end. Raises nothing but cancellation."""
        try:
            caller = identify(stream.socket)
        except OSError:  # gone already
            await trio.aclose_forcefully(stream)
            return
        reader = caller.rights != "all"
        full = self._open >= MAX_CONNECTIONS or (reader and self._open_readers >= MAX_READER_CONNECTIONS)
        refusal = "too many requests to the agent are open" if full else ""
        self._open += 1
        self._open_readers += reader
        try:
            await serve_connection(stream, self._app, {CALLER: caller}, refusal=refusal)
        finally:
            self._open -= 1
            self._open_readers -= reader
