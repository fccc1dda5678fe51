"""Network namespaces with a data plane each, for the tests and the benchmark of the data plane.

Either two namespaces joined by one veth pair, or any number on a bridge in a namespace of its own; unplugging
a namespace from that bridge makes a black hole: links stay up, nothing arrives. Everything is named after
this process and removed on exit.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path

import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from p2p_network import session
from p2p_network.dataplane.client import DataPlane
from p2p_network.dataplane.messages import Configure, PutPeer, Stats

MTU = 1420
PORT = 4702
DEADLINE_S = 60.0
"""For what takes a moment on a quiet machine; this one may be busy with other tests."""
CLONE_NEWNET = 0x40000000


def why_not() -> str:
    """Why namespaces and TUN devices can't be used here; "" if they can."""
    if os.geteuid() != 0:
        return "needs root"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun"
    if shutil.which("ip") is None:
        return "needs iproute2"
    tried = subprocess.run(["ip", "netns", "add", f"kpt{os.getpid()}"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", f"kpt{os.getpid()}"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "needs network namespaces"


def run(*argv: str, check: bool = True) -> str:
    """Run a program; its standard output."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr or done.stdout}")
    return done.stdout


@dataclass
class Place:
    """One namespace. `outer`, `outer6`: its addresses on the wire; `inner`, `inner6`: in the VPN."""

    index: int
    netns: str
    folder: Path
    outer: str
    outer6: str
    carriers: tuple[str, ...] = ("tcp", "udp")
    port: int = PORT
    plane_number: int = 0
    daemon: subprocess.Popen[bytes] | None = None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"peer-{self.index}"

    @property
    def inner(self) -> str:
        return f"10.{144 + self.plane_number}.0.{self.index}"

    @property
    def inner6(self) -> str:
        return f"fd77:1:2:{3 + self.plane_number}::{self.index}"

    @property
    def control(self) -> Path:
        return self.folder / "run" / f"{self.index}.{self.plane_number}.sock"

    @property
    def device(self) -> str:
        return f"kp2p{self.plane_number}"

    def beside(self, number: int, carriers: tuple[str, ...]) -> Place:
        """Another data plane in the same namespace, with a device, port and networks of its own."""
        other = dataclasses.replace(
            self, carriers=carriers, port=PORT + number, plane_number=number, daemon=None
        )
        other.processes = self.processes  # ended together
        return other

    @property
    def log(self) -> Path:
        return self.folder / f"{self.index}.log"

    def exec(self, *argv: str) -> list[str]:
        """The argument vector that runs a program here."""
        return ["ip", "netns", "exec", self.netns, *argv]

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a program here; its standard output."""
        return run(*self.exec(*argv), check=check)

    def start(self, *argv: str, **options: object) -> subprocess.Popen[bytes]:
        """Start a program here; it is ended with the place."""
        process = subprocess.Popen(self.exec(*argv), **options)  # type: ignore[call-overload]
        self.processes.append(process)
        return process  # type: ignore[no-any-return]

    async def plane(self) -> DataPlane:
        """This place's data plane, started if need be."""
        if self.daemon is None or self.daemon.poll() is not None:
            self.control.parent.mkdir(exist_ok=True)
            self.daemon = self.start(
                *(sys.executable, "-m", "p2p_network.dataplane"),
                *("--socket", str(self.control), "--log", str(self.log)),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "MALLOC_ARENA_MAX": "1"},
            )
            with trio.fail_after(DEADLINE_S):
                while not self.control.exists():
                    assert self.daemon.poll() is None, self.log.read_text()
                    await trio.sleep(0.02)
        return await DataPlane.start_or_adopt(self.control, log_path=self.log)

    async def configured(self, listen: tuple[str, ...] = ()) -> DataPlane:
        """Its data plane with the TUN device up and addressed."""
        plane = await self.plane()
        await plane.configure(self.config(listen or (f"0.0.0.0:{self.port}", f"[::]:{self.port}")))
        self.bring_up()
        return plane

    def bring_up(self) -> None:
        """Give the device its addresses."""
        for address in (f"{self.inner}/16", f"{self.inner6}/64"):
            run("ip", "-n", self.netns, "addr", "replace", address, "dev", self.device, *nodad(address))
        run("ip", "-n", self.netns, "link", "set", self.device, "up")

    def config(self, listen: tuple[str, ...] = (f"0.0.0.0:{PORT}",)) -> Configure:
        return Configure(
            device=self.device,
            mtu=MTU,
            listen=listen,
            self_id=self.name,
            addresses=(f"{self.inner}/32", f"{self.inner6}/128"),
            networks=tuple(str(ip_interface(a).network) for a in (f"{self.inner}/16", f"{self.inner6}/64")),
            carriers=self.carriers,
        )

    def as_peer(self, keys: session.PeerSession, *, dial: bool, six: bool = False) -> PutPeer:
        """What another place is told about this one."""
        return PutPeer(
            peer=self.name,
            session=keys,
            endpoints=(f"[{self.outer6}]:{self.port}" if six else f"{self.outer}:{self.port}",),
            allowed_ips=(f"{self.inner}/32", f"{self.inner6}/128"),
            dial=dial,
        )

    def sockets(self, *kinds: tuple[int, int]) -> list[socket.socket]:
        """Sockets (family, type) that live here, whoever uses them."""
        made: list[socket.socket] = []

        def enter() -> None:
            with open(f"/run/netns/{self.netns}") as netns:
                if ctypes.CDLL(None, use_errno=True).setns(netns.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            made.extend(socket.socket(*kind) for kind in kinds)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert len(made) == len(kinds), "the thread could not enter the namespace"
        return made


def nodad(address: str) -> tuple[str, ...]:
    return ("nodad",) if ":" in address else ()


class Field:
    """Places that reach each other. `plug`/`unplug` need `hub`."""

    def __init__(
        self, count: int, *, hub: bool = False, carriers: tuple[str, ...] = ("tcp", "udp"), link: str = ""
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kpp-"))
        self._hub = f"kpp{os.getpid()}-h" if hub else ""
        self._shape = link
        self._link: subprocess.Popen[str] | None = None
        self.places = [
            Place(i, f"kpp{os.getpid()}-{i}", self.folder, f"192.0.2.{i}", f"fd99::{i}", carriers)
            for i in range(1, count + 1)
        ]
        assert hub or count == 2

    def __enter__(self) -> Field:
        for place in self.places:
            run("ip", "netns", "add", place.netns)
            run("ip", "-n", place.netns, "link", "set", "lo", "up")
        if self._hub:
            run("ip", "netns", "add", self._hub)
            run("ip", "-n", self._hub, "link", "add", "hub", "type", "bridge")
            run("ip", "-n", self._hub, "link", "set", "hub", "up")
            for place in self.places:
                self._wire(place.netns, self._hub, f"port{place.index}")
                self.plug(place)
                run("ip", "-n", self._hub, "link", "set", f"port{place.index}", "up")
        elif self._shape:
            self._open_link()
        else:
            self._wire(self.places[0].netns, self.places[1].netns, "wire")
        for place in self.places:
            for address in (f"{place.outer}/24", f"{place.outer6}/64"):
                run("ip", "-n", place.netns, "addr", "add", address, "dev", "wire", *nodad(address))
            run("ip", "-n", place.netns, "link", "set", "wire", "up")
        return self

    def _open_link(self) -> None:
        """A link that delays, loses and reorders, as its settings say."""
        self._link = subprocess.Popen(
            [
                *(sys.executable, "-m", "p2p_simulations.lab.link", "--between"),
                *(place.netns for place in self.places),
                *self._shape.split(),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._link.stdout is not None
        assert self._link.stdout.readline() == "ready\n"

    def shape(self, settings: str) -> None:
        """Change the link, e.g. "loss=0.01 delay_ms=20"."""
        assert self._link is not None
        assert self._link.stdin is not None
        assert self._link.stdout is not None
        self._link.stdin.write(settings + "\n")
        self._link.stdin.flush()
        assert self._link.stdout.readline() == "changed\n"

    @staticmethod
    def _wire(one: str, other: str, other_name: str) -> None:
        run(
            "ip", "-n", one, "link", "add", "wire", "type", "veth", "peer", "name", other_name, "netns", other
        )

    def plug(self, place: Place) -> None:
        run("ip", "-n", self._hub, "link", "set", f"port{place.index}", "master", "hub")

    def unplug(self, place: Place) -> None:
        run("ip", "-n", self._hub, "link", "set", f"port{place.index}", "nomaster")

    def __exit__(self, *_: object) -> None:
        for place in self.places:
            for process in place.processes:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            for process in place.processes:
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        if self._link is not None:
            self._link.communicate(timeout=5)
        for netns in (*(p.netns for p in self.places), self._hub):
            if netns:
                run("ip", "netns", "del", netns, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def session_pair(
    one: Place, other: Place, *, offloads: int = 0x67, ciphers: tuple[str, ...] = session.CIPHERS
) -> tuple[session.PeerSession, session.PeerSession]:
    """A new session as (one, other) see it."""
    mine, theirs = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    sent = session.offer(
        mine, os.urandom(16), ciphers=ciphers, offloads=offloads, carriers=one.carriers, mtu=MTU
    )
    got, for_other = session.answer(
        theirs,
        sent,
        self_id=other.name,
        peer_id=one.name,
        mesh_id="lab",
        ciphers=ciphers,
        offloads=offloads,
        carriers=other.carriers,
        mtu=MTU,
    )
    for_one = session.conclude(mine, sent, got, self_id=one.name, peer_id=other.name, mesh_id="lab")
    return for_one, for_other


async def connect(one: Place, other: Place, *, six: bool = False, offloads: int = 0x67) -> None:
    """Put a new session in place on both sides (`one` dials) and wait until it carries."""
    keys, other_keys = session_pair(one, other, offloads=offloads)
    plane, other_plane = await one.plane(), await other.plane()
    await other_plane.put_peer(one.as_peer(other_keys, dial=False, six=six))
    await plane.put_peer(other.as_peer(keys, dial=True, six=six))
    for each, about in ((plane, other), (other_plane, one)):
        await until(each, lambda s, about=about: carries(s, about, keys.session_id))  # type: ignore[misc]


def carries(stats: Stats, place: Place, session_id: bytes | None = None) -> bool:
    """Whether there is a connection to that place (on that session)."""
    return any(
        p.peer == place.name and p.connected and (session_id is None or p.session_id == session_id)
        for p in stats.peers
    )


async def until(plane: DataPlane, seen: Callable[[Stats], bool], *, seconds: float = DEADLINE_S) -> Stats:
    """The first stats that satisfy the condition."""
    stats = await plane.stats()
    end = trio.current_time() + seconds
    while not seen(stats):
        assert trio.current_time() < end, f"not seen in {seconds} s; last: {stats}"
        await trio.sleep(0.02)
        stats = await plane.stats()
    return stats


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End a program on the way out."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(5)


def wait_for_listener(place: Place, port: int) -> None:
    """Until something listens on that TCP port there."""
    end = time.monotonic() + DEADLINE_S
    while f":{port} " not in place.run("ss", "-Hltn"):
        assert time.monotonic() < end, f"nobody listens on {port}"
        time.sleep(0.02)
