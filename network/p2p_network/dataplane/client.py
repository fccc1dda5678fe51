"""How does the control process talk to the data plane, and bring it to life?

A trio adapter; the data-plane process never imports it. `start_or_adopt` finds a living data plane on the
socket or starts one, detached, that survives this process. Every request has its reply before the next is
sent; a request that is cancelled or times out gives its connection up, and the next one makes a new
connection.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import trio

from p2p_network import wire
from p2p_network.core import log
from p2p_network.core.errors import MeshError
from p2p_network.dataplane.edition import edition
from p2p_network.dataplane.messages import (
    ALREADY_RUNNING,
    FRAME_HEAD_BYTES,
    MAX_FRAME_BYTES,
    PROTOCOL,
    Carry,
    Configure,
    Configured,
    Done,
    DropPeer,
    Failed,
    GetStats,
    Hello,
    PutPeer,
    Reply,
    Request,
    SetReach,
    Stats,
    Stop,
    Welcome,
)

R = TypeVar("R", Welcome, Configured, Done, Stats)

_ANSWER_S: Final = 10.0
_START_S: Final = 15.0
_STOP_S: Final = 10.0
_POLL_S: Final = 0.02
_OF_ANOTHER_TIME: Final = Welcome(protocol=0, pid=0)

logger = log.get(__name__)


class DataPlane:
    """A living data plane. Several tasks may use it.

    Attributes:
        pid: its process id.
        adopted: whether it was running before `start_or_adopt`.
    """

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._stream: trio.SocketStream | None = None
        self._one_at_a_time = trio.Lock()
        self.pid = 0
        self.adopted = False

    @classmethod
    async def start_or_adopt(cls, socket_path: Path, *, log_path: Path) -> DataPlane:
        """The data plane of this socket path: the one that runs, or a new one.

        One that runs other code than what is installed hands over to a new one, in a moment; one that speaks
        another version of the protocol is ended and replaced. Raises MeshError if none comes up.
        """
        plane = cls(socket_path)
        welcome = await plane._hello()
        if welcome is not None and welcome.protocol != PROTOCOL:
            await plane._replace(await plane._pid_by_socket())
            welcome = None
        if welcome is not None and welcome.edition != edition():
            welcome = await plane._succeed(log_path)
        plane.adopted = welcome is not None
        if welcome is None:
            welcome = await plane._start(log_path)
        plane.pid = welcome.pid
        log.event(
            logger,
            "network.plane_adopted" if plane.adopted else "network.plane_started",
            pid=plane.pid,
            path=str(socket_path),
        )
        return plane

    async def configure(self, config: Configure) -> Configured:
        """Open the TUN device and listen; what this node can do.

        Raises MeshError with what to do about it.
        """
        return await self._ask(config, Configured)

    async def put_peer(self, peer: PutPeer) -> None:
        """Add or change a peer. A new session is set up beside the old one until the new one carries."""
        await self._ask(peer, Done)

    async def set_reach(self, reach: SetReach) -> None:
        """Change what a peer may send from and reach; unknown ones are no error."""
        await self._ask(reach, Done)

    async def drop_peer(self, peer: str) -> None:
        """Forget a peer; unknown ones are no error."""
        await self._ask(DropPeer(peer), Done)

    async def carry(self, peer: str, *, dial: bool) -> trio.SocketStream:
        """A socket over which the data plane runs a connection with a peer; its bytes go to the peer's.

        Raises MeshError if the data plane is gone or does not take it.
        """
        channel = DataPlane(self._path)
        try:
            with trio.fail_after(_ANSWER_S):
                reply = await channel._exchange(Carry(peer, dial))
        except (OSError, trio.TooSlowError, trio.BrokenResourceError, EOFError, ValueError) as exc:
            raise MeshError(f"the data plane takes no detour: {exc!r}", hint="see its log") from exc
        stream, channel._stream = channel._stream, None
        if not isinstance(reply, Done):
            if stream is not None:
                await trio.aclose_forcefully(stream)
            raise MeshError(reply.message if isinstance(reply, Failed) else "it answers something else")
        assert stream is not None
        return stream

    async def stats(self) -> Stats:
        """Everything that is known about the device, sessions and traffic."""
        return await self._ask(GetStats(), Stats)

    async def stop(self) -> None:
        """End the process and wait until it is gone. The TUN device goes with it."""
        await self._ask(Stop(), Done)
        await self.aclose()
        await self._wait_until_gone(self.pid)

    async def aclose(self) -> None:
        """Close the connection. The data plane goes on."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await trio.aclose_forcefully(stream)

    # --- requests --------------------------------------------------------------------------------

    async def _ask(self, request: Request, expected: type[R]) -> R:
        async with self._one_at_a_time:
            try:
                with trio.fail_after(_ANSWER_S):
                    reply = await self._exchange_again(request)
            except trio.TooSlowError as exc:
                raise MeshError(
                    f"the data plane (pid {self.pid}) does not answer",
                    hint="it may be stuck: look into its log, then end it by its process id",
                ) from exc
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, EOFError) as exc:
                raise MeshError(
                    f"the data plane on {self._path} is gone: {exc or type(exc).__name__}",
                    hint="it is started again by the agent; its log says why it ended",
                ) from exc
            except ValueError as exc:
                raise MeshError(
                    f"the data plane's answer makes no sense: {exc}",
                    hint="restart the agent so that both are of one version",
                ) from exc
        if isinstance(reply, Failed):
            raise MeshError(reply.message, hint=reply.hint)
        assert isinstance(reply, expected), f"the data plane answered {type(reply).__name__}"
        return reply

    async def _exchange_again(self, request: Request) -> Reply:
        """As `_exchange`; a connection that broke while idle gets a successor (twice done is harmless)."""
        if self._stream is not None:
            with contextlib.suppress(trio.BrokenResourceError, EOFError):
                return await self._exchange(request)
        return await self._exchange(request)

    async def _exchange(self, request: Request) -> Reply:
        """One request and its reply. Whatever interrupts it, the connection is then given up."""
        try:
            if self._stream is None:
                self._stream = await trio.open_unix_socket(str(self._path))
            frame = wire.encode(request)
            await self._stream.send_all(len(frame).to_bytes(FRAME_HEAD_BYTES, "big") + frame)
            size = int.from_bytes(await self._receive(self._stream, FRAME_HEAD_BYTES), "big")
            if size > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {size} bytes")
            return wire.decode(await self._receive(self._stream, size), Reply)  # type: ignore[arg-type]
        except BaseException:
            stream, self._stream = self._stream, None
            if stream is not None:
                stream.socket.close()
            raise

    @staticmethod
    async def _receive(stream: trio.SocketStream, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = await stream.receive_some(size - len(data))
            if not chunk:
                raise EOFError("it closed the connection")
            data += chunk
        return bytes(data)

    # --- life and death --------------------------------------------------------------------------

    async def _hello(self) -> Welcome | None:
        """Who answers on the socket; None if nobody listens there."""
        try:
            with trio.fail_after(_ANSWER_S):
                reply = await self._exchange(Hello())
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except trio.TooSlowError as exc:
            raise MeshError(
                f"something listens on {self._path} but does not answer",
                hint=f"find it (fuser {self._path}) and end it, then start again",
            ) from exc
        except (OSError, trio.BrokenResourceError, EOFError) as exc:
            if isinstance(exc, PermissionError):
                raise MeshError(
                    f"not permitted to use {self._path}",
                    hint="run as root, or as the user who owns the socket",
                ) from exc
            return None
        except ValueError:
            return _OF_ANOTHER_TIME
        return reply if isinstance(reply, Welcome) else _OF_ANOTHER_TIME

    async def _pid_by_socket(self) -> int:
        """Who listens, by the kernel's word and not by its own."""
        async with await trio.open_unix_socket(str(self._path)) as stream:
            raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            return int.from_bytes(raw[:4], sys.byteorder)

    async def _replace(self, pid: int) -> None:
        """End a data plane of another version. SIGTERM means the same to every version."""
        log.event(logger, "network.plane_replaced", pid=pid, reason="it is of another version")
        await self.aclose()
        os.kill(pid, signal.SIGTERM)
        await self._wait_until_gone(pid)

    async def _succeed(self, log_path: Path) -> Welcome | None:
        """Let a new process take over; the old one goes on if that fails, and None says that none does."""
        log.event(logger, "network.plane_succeeded", path=str(self._path), reason="it runs other code")
        source = ("--from", str(self._path))
        process = await trio.to_thread.run_sync(_spawn, self._path, log_path, source)
        end = trio.current_time() + _START_S
        welcome = None
        while trio.current_time() < end:
            welcome = await self._hello()
            if welcome is not None and welcome.pid == process.pid:
                break
            if process.poll() is not None:
                break
            await trio.sleep(_POLL_S)
        return welcome

    async def _start(self, log_path: Path) -> Welcome:
        process = await trio.to_thread.run_sync(_spawn, self._path, log_path)
        end = trio.current_time() + _START_S
        while trio.current_time() < end:
            welcome = await self._hello()
            if welcome is not None:
                # A rival that got the lock first is as good; ours must not come up when that one ends.
                if welcome.pid != process.pid:
                    process.terminate()
                return welcome
            if process.poll() not in (None, ALREADY_RUNNING):
                break
            await trio.sleep(_POLL_S)
        raise MeshError(
            f"the data plane did not start (exit status {process.poll()})",
            hint=f"its log says why: {log_path}",
        )

    async def _wait_until_gone(self, pid: int) -> None:
        end = trio.current_time() + _STOP_S
        while trio.current_time() < end:
            if not _alive(pid):
                return
            await trio.sleep(_POLL_S)
        raise MeshError(f"the data plane (pid {pid}) does not end", hint=f"end it yourself: kill -9 {pid}")


def _spawn(socket_path: Path, log_path: Path, more: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """Start it detached: its own session, no descriptor of ours. Blocking; runs in a thread."""
    try:
        socket_path.parent.mkdir(parents=True, exist_ok=True)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "p2p_network.dataplane"),
                    *("--socket", str(socket_path), "--log", str(log_path), *more),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
                env=_lean_environment(),
            )
    except OSError as exc:
        raise MeshError(
            f"cannot start the data plane: {exc}", hint="the run and log directories must be writable"
        ) from exc
    # While we live it is our child: somebody has to take its exit status.
    reap: Callable[[], int] = process.wait
    threading.Thread(target=reap, name="reap-dataplane", daemon=True).start()
    return process


def _lean_environment() -> dict[str, str]:
    """Ours, with one malloc arena: the process has one thread, and a goal for its memory."""
    return {**os.environ, "MALLOC_ARENA_MAX": "1"}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:
        return True
