"""Does a connection inside the VPN outlive everything that changes below it, again and again?

Sessions are replaced every two seconds, the TCP carrier is cut off and let through, and the controller is
killed, while iperf3 sends both ways. ``KP2P_SOAK_S`` says for how long (default: a few seconds for every day;
300 is the soak).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import two_planes
from two_planes import Field, Place, connect, until, wait_for_listener

pytestmark = [
    pytest.mark.skipif(bool(reason := two_planes.why_not()), reason=reason),
    pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3"),
]
SOAK_S = float(os.environ.get("KP2P_SOAK_S", "12"))
REKEY_S = 2.0
LOADED_MB = 60
CONTROLLER = """
import sys, trio
from pathlib import Path
from p2p_network.dataplane.client import DataPlane

async def main():
    plane = await DataPlane.start_or_adopt(Path(sys.argv[1]), log_path=Path(sys.argv[2]))
    while True:
        await plane.stats()
        print(plane.pid, flush=True)

trio.run(main)
"""


def block(place: Place) -> None:
    """Let no TCP carrier through, and end those there are."""
    place.run("nft", "add", "table", "inet", "kp")
    place.run("nft", "add", "chain", "inet", "kp", "out", "{ type filter hook output priority 0 ; }")
    for port in ("dport", "sport"):
        place.run("nft", "add", "rule", "inet", "kp", "out", "tcp", port, str(two_planes.PORT), "drop")
    place.run("ss", "-K", "dport", "=", str(two_planes.PORT))


def unblock(place: Place) -> None:
    place.run("nft", "delete", "table", "inet", "kp", check=False)


def kill_a_controller(place: Place, pid: int) -> None:
    """One takes the data plane over, and is killed in the middle of a request."""
    argv = [sys.executable, "-c", CONTROLLER, str(place.control), str(place.log)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as controller:
        assert controller.stdout is not None
        assert int(controller.stdout.readline()) == pid
        controller.kill()


def rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.timeout(SOAK_S + 240)
async def test_no_connection_is_lost_whatever_changes() -> None:
    with Field(2) as lab:
        one, two = lab.places
        planes = [await place.configured() for place in lab.places]
        await connect(one, two)
        listening = two.start("iperf3", "-s", "-1", stdout=subprocess.DEVNULL)
        await trio.to_thread.run_sync(wait_for_listener, two, 5201)
        client = one.start(
            *("iperf3", "-J", "-c", two.inner, "--bidir", "-t", str(SOAK_S), "-b", "200M"),
            *("-i", "0"),  # a report that fits into a pipe nobody empties
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        seen: list[str] = []
        rekeys = kills = 0

        async def rekey() -> None:
            nonlocal rekeys
            while True:
                with trio.fail_after(60):
                    await connect(one, two)
                rekeys += 1
                await trio.sleep(REKEY_S)

        async def change() -> None:
            nonlocal kills
            while True:
                for place, plane in zip(lab.places, planes, strict=True):
                    await trio.to_thread.run_sync(block, one)
                    await until(planes[0], lambda s: s.peers[0].carrier == "udp")
                    seen.append("udp")
                    await trio.to_thread.run_sync(kill_a_controller, place, plane.pid)
                    kills += 1
                    await trio.to_thread.run_sync(unblock, one)
                    await until(planes[0], lambda s: s.peers[0].carrier == "tcp")
                    seen.append("tcp")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(rekey)
            nursery.start_soon(change)
            while client.poll() is None:
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        out, errors = client.communicate()
        report = json.loads(out)
        assert client.returncode == 0, report.get("error", errors)
        assert report["end"]["sum_received"]["bytes"] > 0
        assert report["end"]["sum_received_bidir_reverse"]["bytes"] > 0
        assert {"tcp", "udp"} <= set(seen)
        print(
            f"{SOAK_S:.0f} s: {rekeys} sessions, {len(seen)} changes of carrier, {kills} controllers killed"
        )
        assert rekeys >= SOAK_S / REKEY_S / 4
        assert kills > 0
        for place, plane in zip(lab.places, planes, strict=True):
            assert rss_mb(plane.pid) < LOADED_MB
            assert place.daemon is not None
            assert place.daemon.poll() is None, "the data plane itself was never restarted"
        listening.wait(60)
        for plane in planes:
            await plane.aclose()
