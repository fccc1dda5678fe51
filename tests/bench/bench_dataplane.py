"""How fast is the data plane beside the bare wire and wireguard-go?

    python tests/bench/bench_dataplane.py [--repetitions 3] [--seconds 3]

Two network namespaces, one veth pair, inner MTU 1420. Every repetition measures each contestant once, in
turn, so that a busy machine is unfair to all alike. Prints medians and ranges, and ratios to the bare wire;
asserts nothing. Needs root, /dev/net/tun and iperf3; Debian's wireguard-go takes part where it and `wg` are
installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))

import two_planes
from two_planes import Field, Place, run, wait_for_listener

PINGS = 300


@dataclass
class Contestant:
    """Who is measured: the address to reach, and the daemons whose CPU and memory count."""

    name: str
    target: str
    pids: tuple[int, ...] = ()
    figures: dict[str, list[float]] = field(default_factory=dict)

    def note(self, what: str, value: float) -> None:
        self.figures.setdefault(what, []).append(value)


def cpu_seconds(pids: tuple[int, ...]) -> float:
    """User and system time of these processes so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def iperf(client: Place, server: Place, target: str, *options: str) -> dict[str, dict[str, float]]:
    """One run of iperf3; the "end" part of its report."""
    listening = server.start("iperf3", "-s", "-1", stdout=subprocess.DEVNULL)
    wait_for_listener(server, 5201)
    report = json.loads(client.run("iperf3", "-J", "-c", target, *options))
    listening.wait(10)
    server.processes.remove(listening)
    return report["end"]  # type: ignore[no-any-return]


def measure(one: Place, other: Place, who: Contestant, seconds: float) -> None:
    """Everything about one contestant, once."""
    for label, options in (("tcp1", ()), ("tcp4", ("-P", "4")), ("back", ("-R",))):
        before = cpu_seconds(who.pids)
        end = iperf(one, other, who.target, "-t", str(seconds), *options)
        moved = end["sum_received"]["bytes"]
        who.note(label, end["sum_received"]["bits_per_second"] / 1e9)
        if who.pids and label == "tcp1":
            who.note("cpu", (cpu_seconds(who.pids) - before) / (moved / 1e9))
    udp = iperf(one, other, who.target, "-u", "-b", "0", "-l", "1200", "-t", str(seconds))
    received = udp["sum"]["packets"] - udp["sum"]["lost_packets"]
    who.note("kpps", received / udp["sum"]["seconds"] / 1e3)
    text = one.run("ping", "-n", "-i", "0.005", "-c", str(PINGS), who.target)
    times = sorted(float(t) for t in re.findall(r"time=([\d.]+)", text))
    who.note("p50", times[len(times) // 2])
    who.note("p99", times[int(len(times) * 0.99) - 1])
    if who.pids:
        who.note("rss", max(rss_mb(pid) for pid in who.pids))


async def ours(one: Place, other: Place) -> Contestant:
    """Our data plane on both sides."""
    planes = [await place.configured() for place in (one, other)]
    await two_planes.connect(one, other)
    who = Contestant("kairos-p2p", other.inner, tuple(plane.pid for plane in planes))
    who.note("idle", max(rss_mb(plane.pid) for plane in planes))
    for plane in planes:
        await plane.aclose()
    return who


def wireguard(one: Place, other: Place) -> Contestant | None:
    """wireguard-go on both sides; None where it isn't installed."""
    if not (shutil.which("wireguard-go") and shutil.which("wg")):
        return None
    keys = {}
    pids = []
    for place in (one, other):
        private = run("wg", "genkey").strip()
        secret = place.folder / f"wg{place.index}.key"
        secret.write_text(private)
        public = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, text=True, check=True)
        keys[place.index] = public.stdout.strip()
        device = f"kpwg{place.index}"
        daemon = place.start(
            *("wireguard-go", "-f", device), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        pids.append(daemon.pid)
    time_limit = time.monotonic() + 5
    for place, peer in ((one, other), (other, one)):
        device = f"kpwg{place.index}"
        while not Path(f"/var/run/wireguard/{device}.sock").exists() and time.monotonic() < time_limit:
            time.sleep(0.05)
        place.run(
            *("wg", "set", device, "listen-port", "51820"),
            *("private-key", str(place.folder / f"wg{place.index}.key")),
            *("peer", keys[peer.index], "endpoint", f"{peer.outer}:51820", "allowed-ips", "10.99.0.0/24"),
        )
        run("ip", "-n", place.netns, "addr", "add", f"10.99.0.{place.index}/24", "dev", device)
        run("ip", "-n", place.netns, "link", "set", device, "mtu", "1420", "up")
    one.run("ping", "-c", "1", "-W", "5", f"10.99.0.{other.index}")
    who = Contestant("wireguard-go", f"10.99.0.{other.index}", tuple(pids))
    who.note("idle", max(rss_mb(pid) for pid in pids))
    return who


def table(contestants: list[Contestant]) -> str:
    """Medians with ranges, one line per contestant, then ratios."""
    columns = {
        "tcp1": "1 stream Gbit/s",
        "tcp4": "4 streams Gbit/s",
        "back": "1 stream back",
        "kpps": "kpps 1200 B",
        "p50": "RTT p50 ms",
        "p99": "RTT p99 ms",
        "cpu": "CPU s/GB",
        "idle": "idle MB",
        "rss": "loaded MB",
    }

    def cell(figures: list[float]) -> str:
        if not figures:
            return "-"
        return f"{statistics.median(figures):.2f} ({min(figures):.2f}-{max(figures):.2f})"

    rows = [["", *columns.values()]]
    rows += [[who.name, *(cell(who.figures.get(key, [])) for key in columns)] for who in contestants]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    bare = contestants[0].figures
    for who in contestants[1:]:
        ratios = (
            f"{columns[key]} {statistics.median(who.figures[key]) / statistics.median(bare[key]):.0%}"
            for key in ("tcp1", "tcp4", "back", "kpps")
        )
        lines.append(f"{who.name} of the bare wire: {', '.join(ratios)}")
    return "\n".join(lines)


async def bench(repetitions: int, seconds: float, say: Callable[[str], None]) -> None:
    """Measure all contestants and print the table."""
    with Field(2, hub=False) as lab:
        one, other = lab.places
        contestants = [Contestant("bare veth", other.outer), await ours(one, other)]
        rival = wireguard(one, other)
        if rival is not None:
            contestants.append(rival)
        for repetition in range(repetitions):
            for who in contestants:
                say(f"repetition {repetition + 1}/{repetitions}: {who.name}")
                await trio.to_thread.run_sync(measure, one, other, who, seconds)
    print(table(contestants))


def main() -> int:
    """Exit 0, also when it can't run here: then it says why."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    reason = two_planes.why_not() or ("" if shutil.which("iperf3") else "needs iperf3")
    if reason:
        print(f"the data plane can't be measured here: {reason}")
        return 0
    trio.run(bench, options.repetitions, options.seconds, lambda text: print(text, file=sys.stderr))
    return 0


if __name__ == "__main__":
    sys.exit(main())
