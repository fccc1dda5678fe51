"""What keeps a node's namespaces alive, and what dies with it?

A program of its own (standard library only; run by path, never imported by the lab), PID 1 of one node or of
the router. It unshares net, mount, uts, ipc and pid namespaces, builds the node's file system, reaps
orphans, and runs the agent the way a service manager would (restart on failure). There is no init in the
lab and none is ever started.

Everything hangs on this one process: when it dies the kernel kills every process of its pid namespace,
and with the last process go mounts, devices and network. So killing it *is* the clean-up, and a power cut.

Usage: ``python -I -S holder.py MARK SPEC BOUND``. MARK names lab and place in the process list, so a lab
can be found again without any file. SPEC is a JSON file that lab.py writes. BOUND is ``bound`` if standard
input is a pipe from the creator: its end without the byte ``k`` means that the creator died, and the lab
with it. The launcher exits at once; "ready" or an error is written to standard output.

The node's root is a tmpfs: the host's directories are bound into it read-only; /etc, /var and /root are
overlays whose writable layer is that tmpfs; /tmp and /run are new; folders that a real node keeps on its
disk come from the lab's folder. So a node can change nothing on the host, and a power cut leaves its disks.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import stat
import sys
import time
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
SYS_MOUNT_SETATTR = 442  # the same number on every architecture
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 1

OVERLAYS = ("etc", "var", "root")
OWN = (*OVERLAYS, "proc", "sys", "dev", "run", "tmp")
RESTART_MIN_S, RESTART_MAX_S, STEADY_S = 0.5, 8.0, 10.0
PROOF = ".kairos-p2p-lab"

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode() or None
    )
    _check(result, f"mount {kind or 'bind'} {source} on {target}")


def _read_only(path: str) -> None:
    """Make a mount and all mounts below it read-only for this node."""
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
    result = _libc.syscall(
        SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, ctypes.byref(attributes), 32
    )
    _check(result, f"make {path} read-only")


def _bind(source: str, target: str, *, read_only: bool) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "a"):
            pass
    _mount(source, target, "", MS_BIND | MS_REC)
    if read_only:
        _read_only(target)


def _set(path: str, value: str) -> None:
    """Write a kernel setting; one this kernel doesn't have needs no value."""
    with contextlib.suppress(FileNotFoundError), open(path, "w") as file:
        file.write(value)


def build_root(spec: dict[str, Any], root: str) -> None:
    """Mount the node's file system at `root`, an empty folder."""
    _mount("kairos-p2p-lab", root, "tmpfs", MS_NODEV | MS_NOSUID, "mode=755")
    for entry in os.scandir("/"):
        target = f"{root}/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
        elif entry.is_dir() and entry.name not in OWN:
            _bind(entry.path, target, read_only=True)
    for name in OVERLAYS:
        layers = [f"{root}/.layers/{name}/{layer}" for layer in ("upper", "work")]
        for folder in (*layers, f"{root}/{name}"):
            os.makedirs(folder, exist_ok=True)
        os.chmod(layers[0], stat.S_IMODE(os.stat(f"/{name}").st_mode))
        options = f"lowerdir=/{name},upperdir={layers[0]},workdir={layers[1]}"
        _mount("overlay", f"{root}/{name}", "overlay", 0, options)
    for name, mode in (("tmp", "1777"), ("run", "755")):
        os.mkdir(f"{root}/{name}")
        _mount(name, f"{root}/{name}", "tmpfs", MS_NODEV | MS_NOSUID, f"mode={mode}")
    _bind("/dev", f"{root}/dev", read_only=False)
    _mount("shm", f"{root}/dev/shm", "tmpfs", MS_NODEV | MS_NOSUID, "mode=1777")  # noqa: S108 - a node's own
    for name in ("proc", "sys"):
        os.mkdir(f"{root}/{name}")
        kind = "sysfs" if name == "sys" else name
        _mount(name, f"{root}/{name}", kind, MS_NODEV | MS_NOSUID | MS_NOEXEC)
    if os.path.ismount("/sys/fs/cgroup"):  # a real k3s needs it
        _mount("/sys/fs/cgroup", f"{root}/sys/fs/cgroup", "", MS_BIND | MS_REC)
    for path in spec["visible"]:  # programs that a mount above may have hidden
        if path.split("/")[1] in OWN:
            _bind(path, root + path, read_only=True)
    for path, source in spec["disks"].items():
        _bind(source, root + path, read_only=False)
    for path, text in spec["files"].items():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(root + path)  # often a link into the host's /run
        with open(root + path, "w") as file:
            file.write(text)
    with open(f"{root}/{PROOF}", "w") as file:
        file.write(spec["mark"])


def enter_root(spec: dict[str, Any], root: str) -> None:
    """Make `root` this process's root and let go of the host's. Proves that it worked, or raises."""
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount the host's root")
    os.chdir("/")
    with open(f"/{PROOF}") as file:
        if file.read() != spec["mark"]:
            raise OSError("the new root is not this node's")


def set_up(spec: dict[str, Any]) -> None:
    """Everything between the birth of the namespaces and "ready"."""
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    socket.sethostname(spec["hostname"])
    for scope in ("all", "default"):
        _set(f"/proc/sys/net/ipv6/conf/{scope}/accept_ra", "0")
        _set(f"/proc/sys/net/ipv6/conf/{scope}/dad_transmits", "0")  # addresses are usable at once
        _set(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6", "0")
    if spec["router"]:
        _set("/proc/sys/net/ipv4/ip_forward", "1")
        _set("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        for scope in ("all", "default"):  # what goes from NAT to NAT comes back in on another device
            _set(f"/proc/sys/net/ipv4/conf/{scope}/rp_filter", "0")
        for family in ("ip", "ip6", "arp"):  # bridged frames are the bridge table's business
            _set(f"/proc/sys/net/bridge/bridge-nf-call-{family}tables", "0")
    else:
        build_root(spec, spec["root"])
        enter_root(spec, spec["root"])


class Agent:
    """The supervised process: start, stop, restart on failure with a growing pause."""

    def __init__(self, argv: list[str], env: dict[str, str], log_fd: int) -> None:
        self._argv, self._env, self._log_fd = argv, env, log_fd
        self.wanted = False
        self.pid = 0
        self.starts = 0
        self.failures = 0  # in a row
        self.last_exit: int | None = None  # exit status, or minus the signal
        self.restart_at: float | None = None
        self._started_at = 0.0

    def start(self) -> None:
        """Spawn the agent unless it runs."""
        self.wanted = True
        self.restart_at = None
        if self.pid:
            return
        self.starts += 1
        self._started_at = time.monotonic()
        try:
            self.pid = os.posix_spawn(
                self._argv[0],
                self._argv,
                self._env,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, self._log_fd, 1),
                    (os.POSIX_SPAWN_DUP2, self._log_fd, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD],
            )
        except OSError as exc:
            self._note(f"cannot be started: {self._argv[0]}: {exc.strerror}")
            self._failed(127)
        else:
            self._note(f"started as process {self.pid}")

    def stop(self, number: int) -> None:
        """Send a signal and don't restart."""
        self.wanted = False
        self.restart_at = None
        if self.pid:
            os.kill(self.pid, number)

    def ended(self, pid: int, status: int) -> None:
        """A child was reaped; if it was the agent, decide on a restart."""
        if pid != self.pid:
            return
        self.pid = 0
        code = os.waitstatus_to_exitcode(status)
        self._note(f"ended with {f'status {code}' if code >= 0 else f'signal {-code}'}")
        if code == 0 or not self.wanted:
            self.last_exit, self.failures = code, 0
        else:
            self._failed(code)

    def _failed(self, code: int) -> None:
        self.last_exit = code
        steady = time.monotonic() - self._started_at > STEADY_S
        self.failures = 1 if steady else self.failures + 1
        pause_s = min(RESTART_MAX_S, RESTART_MIN_S * 2 ** (self.failures - 1))
        self.restart_at = time.monotonic() + pause_s
        self._note(f"will be restarted in {pause_s} s")

    def _note(self, text: str) -> None:
        os.write(self._log_fd, f"# lab: the agent {text}\n".encode())

    def state(self) -> dict[str, Any]:
        """What the lab is told; `pid` as seen inside the node, 0 if it does not run."""
        return {
            "wanted": self.wanted,
            "pid": self.pid,
            "starts": self.starts,
            "failures": self.failures,
            "last_exit": self.last_exit,
        }


def answer(connection: socket.socket, agent: Agent) -> None:
    """One request of the lab: a line of JSON, answered by another."""
    connection.settimeout(1.0)
    with connection, contextlib.suppress(OSError):
        try:
            request = json.loads(connection.recv(4096))
            if request["do"] == "start":
                agent.start()
            elif request["do"] == "stop":
                agent.stop(int(request["signal"]))
            reply = agent.state()
        except (ValueError, KeyError, TypeError, OSError) as exc:
            reply = {"error": str(exc)}
        connection.sendall(json.dumps(reply).encode() + b"\n")


def serve(listener: socket.socket, agent: Agent, bound: bool) -> None:
    """Reap, restart and answer until killed, or until the creator we are bound to has died."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    if bound:
        selector.register(0, selectors.EVENT_READ)
    while True:
        if agent.restart_at is not None and agent.restart_at <= time.monotonic():
            agent.start()
        due = agent.restart_at
        ready = selector.select(None if due is None else max(0.0, due - time.monotonic()))
        for key, _ in ready:
            if key.fileobj is listener:
                with contextlib.suppress(BlockingIOError):
                    answer(listener.accept()[0], agent)
            elif key.fileobj == 0:
                if os.read(0, 1) != b"k":
                    os._exit(0)
                selector.unregister(0)
            else:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
        with contextlib.suppress(ChildProcessError):
            while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                agent.ended(*reaped)


def main() -> None:
    """Unshare, leave the launcher behind, become PID 1."""
    mark, spec_path, bound = sys.argv[1], sys.argv[2], sys.argv[3] == "bound"
    try:
        with open(spec_path) as file:
            spec = json.load(file)
        if spec["mark"] != mark:
            raise OSError(f"{spec_path} belongs to another node")
        os.chdir(os.path.dirname(spec_path))
        flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
        _check(_libc.unshare(flags), "unshare")
        if os.fork():
            os._exit(0)
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(FileNotFoundError):
            os.unlink("holder.sock")
        listener = socket.socket(socket.AF_UNIX)  # relative: a deep folder exceeds the limit of sun_path
        listener.bind("holder.sock")
        listener.listen(8)
        listener.setblocking(False)
        log_fd = os.open("agent.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        set_up(spec)
    except (OSError, ValueError, KeyError) as exc:
        os.write(1, f"error {exc}\n".encode())
        os._exit(1)
    os.write(1, b"ready\n")
    null = os.open("/dev/null", os.O_RDWR)
    for number in (1, 2) if bound else (0, 1, 2):
        os.dup2(null, number)
    serve(listener, Agent(spec["agent"], spec["env"], log_fd), bound)


if __name__ == "__main__":
    main()
