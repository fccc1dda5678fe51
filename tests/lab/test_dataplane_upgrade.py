"""How long do packets rest when a data plane is replaced by one of other code, and what does it forget?"""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import trio
import two_planes
from plane_traffic import PATIENCE_S, UDP4, Transfer, ping
from two_planes import Field, Place, session_pair, until

import p2p_network
from p2p_network import session
from p2p_network.dataplane.client import DataPlane

WHY_NOT = two_planes.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"the data plane's lab {WHY_NOT}")
EVERY_S = 0.01
ADOPT = """
import sys, trio
from pathlib import Path
from p2p_network.dataplane.client import DataPlane

plane = trio.run(lambda: DataPlane.start_or_adopt(Path(sys.argv[1]), log_path=Path(sys.argv[2])))
assert plane.adopted
print(plane.pid)
"""
AGAIN = """
import sys, trio
from pathlib import Path
from p2p_network.dataplane.client import DataPlane

print(trio.run(lambda: DataPlane(Path(sys.argv[1]))._succeed(Path(sys.argv[2]))).pid)
"""
UPGRADES = 3


def other_edition(folder: Path, module: str = "loop.py", change: tuple[str, str] = ("", "")) -> Path:
    """A place to import from whose data plane is of another edition: something differs in a module of it."""
    copy = folder / "old"
    source = Path(p2p_network.__file__).parent
    shutil.copytree(source, copy / "p2p_network", ignore=shutil.ignore_patterns("__pycache__"))
    changed = copy / "p2p_network" / "dataplane" / module
    text = changed.read_text()
    assert change[0] in text
    changed.write_text(text.replace(*change) + "# another edition\n")
    return copy


def start_old(place: Place, copy: Path) -> None:
    place.control.parent.mkdir(exist_ok=True)
    place.daemon = place.start(
        *("env", f"PYTHONPATH={copy}", sys.executable, "-m", "p2p_network.dataplane"),
        *("--socket", str(place.control), "--log", str(place.log)),
        stdin=subprocess.DEVNULL,
    )


class Drip:
    """A datagram from place to place every 10 ms; `longest_s` is the longest time in which none came."""

    def __init__(self, source: Place, sink: Place) -> None:
        (self._out,), (self._in,) = source.sockets(UDP4), sink.sockets(UDP4)
        self._in.bind((sink.inner, 0))
        self._to = self._in.getsockname()
        self.came_at: list[float] = []

    async def run(self) -> None:
        out, into = trio.socket.from_stdlib_socket(self._out), trio.socket.from_stdlib_socket(self._in)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, into)
            while True:
                await out.sendto(b"drip", self._to)
                await trio.sleep(EVERY_S)

    async def _receive(self, sock: trio.socket.SocketType) -> None:
        while True:
            await sock.recv(100)
            self.came_at.append(trio.current_time())

    async def goes_on(self) -> None:
        """Until some more have come."""
        count = len(self.came_at) + 10
        with trio.fail_after(PATIENCE_S):
            while len(self.came_at) < count:
                await trio.sleep(EVERY_S)

    def longest_s(self, since: float) -> float:
        """Until the last one that came."""
        times = [since, *(at for at in self.came_at if at >= since)]
        return max((later - earlier for earlier, later in pairwise(times)), default=float("inf"))


async def put_both(one: Place, two: Place, plane: DataPlane, other: DataPlane) -> None:
    """A session that `one` dials; `two` may begin nothing there."""
    keys, other_keys = session_pair(one, two)
    await other.put_peer(one.as_peer(other_keys, dial=False))
    await plane.put_peer(msgspec.structs.replace(two.as_peer(keys, dial=True), guarded=True))
    for each in (plane, other):
        await until(each, lambda s: s.peers[0].carrier == "tcp")


async def test_an_upgraded_data_plane_goes_on_where_the_old_one_stopped(tmp_path: Path) -> None:
    with Field(2) as lab:
        one, two = lab.places
        start_old(one, other_edition(tmp_path))
        with trio.fail_after(two_planes.DEADLINE_S):
            while not one.control.exists():
                await trio.sleep(0.02)
        plane = DataPlane(one.control)  # no `start_or_adopt` yet: that is what upgrades
        await plane.configure(one.config())
        one.bring_up()
        other = await two.configured()
        await put_both(one, two, plane, other)
        transfer, drip = Transfer(one, two, rate_mib=8), Drip(one, two)
        rests = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip.run)
            for number in range(UPGRADES):
                await drip.goes_on()
                before = await plane.stats()
                began = trio.current_time()
                await plane.aclose()
                # the first one runs older code; the others are upgraded all the same
                script = ADOPT if number == 0 else AGAIN
                argv = (sys.executable, "-c", script, str(one.control), str(one.log))
                said = await trio.to_thread.run_sync(lambda argv=argv: one.run(*argv))  # type: ignore[misc]
                await drip.goes_on()
                rests.append(drip.longest_s(began))
                after = await plane.stats()
                assert after.pid == int(said) != before.pid
                assert (after.configured, after.mtu) == (before.configured, before.mtu)
                assert after.peers[0].session_id == before.peers[0].session_id
                received = transfer.received_bytes
                with trio.fail_after(
                    PATIENCE_S
                ):  # its answers pass the guard: what `one` began is remembered
                    while transfer.received_bytes < received + (6 << 20):
                        await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        transfer.finish()
        await transfer.arrived_unchanged()
        assert " 0% packet loss" in ping(one, two.inner6)
        assert "100% packet loss" in two.run("ping", "-c", "1", "-W", "1", one.inner, check=False)
        print("packets rested for", ", ".join(f"{rest:.3f}" for rest in rests), "s")
        assert min(rests) < 1, "of several, since this machine may be busy"
        for each in (plane, other):
            each.pid = (await each.stats()).pid
            await each.stop()  # waits until it is gone


async def test_keys_that_are_worn_are_replaced_under_traffic(tmp_path: Path) -> None:
    """A data plane whose keys wear out after 400 records or datagrams instead of 2^31 and 2^46."""
    copies = [
        other_edition(
            tmp_path / "tcp", "records.py", ("WORN_RECORDS: Final = 1 << 31", "WORN_RECORDS = 400")
        ),
        other_edition(
            tmp_path / "udp", "datagrams.py", ("WORN_NUMBER: Final = 1 << 46", "WORN_NUMBER = 400")
        ),
    ]
    with Field(2) as lab:
        for kind, copy in zip(("tcp", "udp"), copies, strict=True):
            number = 1 + ("tcp", "udp").index(kind)
            one, two = [place.beside(number, (kind,)) for place in lab.places]
            start_old(one, copy)
            with trio.fail_after(two_planes.DEADLINE_S):
                while not one.control.exists():
                    await trio.sleep(0.02)
            plane = DataPlane(one.control)
            await plane.configure(one.config((f"0.0.0.0:{one.port}",)))
            one.bring_up()
            other = await two.configured((f"0.0.0.0:{two.port}",))
            keys, other_keys = session_pair(one, two, ciphers=(session.CHACHA,))
            await other.put_peer(one.as_peer(other_keys, dial=False))
            await plane.put_peer(two.as_peer(keys, dial=True))
            await until(plane, lambda s: s.peers[0].connected)
            transfer = Transfer(one, two, rate_mib=8)
            stats = await until(plane, lambda s: s.peers[0].connects >= 4)
            assert stats.peers[0].session_id == keys.session_id, "other keys of the same session"
            transfer.finish()
            await transfer.arrived_unchanged()
            for each in (plane, other):
                each.pid = (await each.stats()).pid
                await each.stop()
