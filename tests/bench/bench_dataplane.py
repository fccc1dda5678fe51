"""How fast is the data plane beside the bare wire, wireguard-go and nebula, on good paths and on bad ones?

    python tests/bench/bench_dataplane.py [clean] [bad] [many] [--repetitions 3] [--seconds 3]
                                          [--delays MS ...] [--out FOLDER]

clean   two namespaces on one veth pair: TCP both ways, small and large UDP packets, round trips idle and
        loaded, CPU and memory
bad     the same two on the lab's own link, with delay and loss: TCP
many    one sender, 1, 10 and 50 peers at once (ours)

Every repetition measures each contestant once, in turn, so that a busy machine is unfair to all alike. Prints
medians, ranges and ratios, and writes them with a plot to FOLDER (default: the current one); asserts nothing.
Needs root, /dev/net/tun and iperf3; rivals take part where they are installed (see `rivals`).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))

import plots
import two_planes
from rivals import Contestant, all_contestants, cpu_seconds, rss_mb
from two_planes import Field, Place, wait_for_listener

PINGS = 300
COLUMNS = {
    "tcp1": "1 stream Gbit/s",
    "tcp4": "4 streams Gbit/s",
    "back": "1 stream back",
    "kpps64": "kpps 64 B",
    "kpps1200": "kpps 1200 B",
    "p50": "RTT p50 ms",
    "p99": "RTT p99 ms",
    "loaded50": "loaded p50",
    "loaded99": "loaded p99",
    "cpu": "CPU s/GB",
    "idle": "idle MB",
    "rss": "loaded MB",
}
DELAYS = (0, 20, 100, 200)
BAD_PATHS = tuple((delay, loss) for delay in DELAYS for loss in (0.0, 0.001, 0.01))
"""Round trip in ms, and loss each way."""
PEERS = (1, 10, 50)


def iperf(client: Place, server: Place, target: str, *options: str) -> dict[str, dict[str, float]]:
    """One run of iperf3; the "end" part of its report."""
    listening = server.start("iperf3", "-s", "-1", stdout=subprocess.DEVNULL)
    wait_for_listener(server, 5201)
    report = json.loads(client.run("iperf3", "-J", "-c", target, *options, check=False))
    listening.terminate()
    listening.wait(10)
    server.processes.remove(listening)
    return report["end"]  # type: ignore[no-any-return]


def gbits(end: dict[str, dict[str, float]]) -> float:
    return end.get("sum_received", {}).get("bits_per_second", 0.0) / 1e9


def round_trips(text: str) -> tuple[float, float]:
    """Median and 99th percentile of ping's output, ms."""
    times = sorted(float(t) for t in re.findall(r"time=([\d.]+)", text)) or [float("nan")]
    return times[len(times) // 2], times[max(0, int(len(times) * 0.99) - 1)]


def measure(one: Place, other: Place, who: Contestant, seconds: float) -> None:
    """Everything about one contestant, once."""
    ping = ("ping", "-n", "-i", "0.005", "-c", str(PINGS), who.target)
    p50, p99 = round_trips(one.run(*ping, check=False))
    who.note("p50", p50)
    who.note("p99", p99)
    for label, options in (("tcp1", ()), ("tcp4", ("-P", "4")), ("back", ("-R",))):
        before = cpu_seconds(who.pids)
        pinging = one.start(*ping, stdout=subprocess.PIPE, text=True) if label == "tcp4" else None
        end = iperf(one, other, who.target, "-t", str(seconds), *options)
        who.note(label, gbits(end))
        if pinging is not None:
            p50, p99 = round_trips(pinging.communicate(timeout=30)[0])
            one.processes.remove(pinging)
            who.note("loaded50", p50)
            who.note("loaded99", p99)
        moved = end.get("sum_received", {}).get("bytes", 0)
        if who.pids and label == "tcp1" and moved:
            who.note("cpu", (cpu_seconds(who.pids) - before) / (moved / 1e9))
    for size in (64, 1200):
        udp = iperf(one, other, who.target, "-u", "-b", "0", "-l", str(size), "-t", str(seconds))
        if "sum" in udp:
            received = udp["sum"]["packets"] - udp["sum"]["lost_packets"]
            who.note(f"kpps{size}", received / udp["sum"]["seconds"] / 1e3)
    if who.pids:
        who.note("rss", max(rss_mb(pid) for pid in who.pids))


def median(figures: list[float]) -> float:
    return statistics.median(figures) if figures else float("nan")


def cell(figures: list[float]) -> str:
    """Median and range."""
    return f"{median(figures):.2f} ({min(figures):.2f}-{max(figures):.2f})" if figures else "-"


def table(contestants: list[Contestant], columns: dict[str, str]) -> str:
    """Medians with ranges, one line per contestant."""
    rows = [["", *columns.values()]]
    rows += [[who.name, *(cell(who.figures.get(key, [])) for key in columns)] for who in contestants]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def ratios(contestants: list[Contestant], keys: dict[str, str]) -> str:
    """What each of ours is of each other one."""
    lines = []
    for who in (c for c in contestants if c.name.startswith("ours")):
        for other in (c for c in contestants if not c.name.startswith("ours")):
            parts = [
                f"{name} {median(who.figures[key]) / median(other.figures[key]):.2f}"
                for key, name in keys.items()
                if who.figures.get(key) and other.figures.get(key)
            ]
            lines.append(f"{who.name} / {other.name}: {', '.join(parts)}")
    return "\n".join(lines)


def in_turn(
    contestants: list[Contestant],
    repetitions: int,
    say: Callable[[str], None],
    job: Callable[[Contestant], None],
) -> None:
    for repetition in range(repetitions):
        for who in contestants:
            say(f"repetition {repetition + 1}/{repetitions}: {who.name}")
            job(who)


def bench_clean(options: argparse.Namespace, say: Callable[[str], None]) -> str:
    """A good wire."""
    with Field(2) as lab:
        one, other = lab.places
        contestants = list(all_contestants(one, other))
        in_turn(contestants, options.repetitions, say, lambda who: measure(one, other, who, options.seconds))
    plots.bars(
        options.out / "dataplane-clean.svg",
        "TCP, one stream, Gbit/s",
        {who.name: who.figures.get("tcp1", []) for who in contestants},
    )
    return f"{table(contestants, COLUMNS)}\n\n{ratios(contestants, COLUMNS)}"


def bench_bad(options: argparse.Namespace, say: Callable[[str], None]) -> str:
    """Delay and loss, on the lab's own link."""
    paths = [(delay, loss) for delay, loss in BAD_PATHS if delay in options.delays]
    columns = {f"{delay} {loss}": f"{delay} ms {loss:.1%}" for delay, loss in paths}
    with Field(2, link="delay_ms=0") as lab:
        one, other = lab.places
        contestants = list(all_contestants(one, other))
        for delay, loss in paths:
            lab.shape(f"delay_ms={delay / 2} loss={loss} rate_mbit=300 queue_ms={max(20, delay)}")
            say(f"round trip {delay} ms, loss {loss:.1%}")

            for who in contestants:  # whoever looks at its path has seen how it is now
                one.run("ping", "-q", "-c", "15", "-i", "0.2", who.target, check=False)

            def job(who: Contestant, key: str = f"{delay} {loss}") -> None:
                end = iperf(one, other, who.target, "-t", str(options.seconds * 2), "-C", "cubic")
                who.note(key, gbits(end) * 1e3)

            in_turn(contestants, options.repetitions, say, job)
    plots.lines(
        options.out / "dataplane-bad.svg",
        "TCP (cubic) inside, Mbit/s, on a 300 Mbit/s path",
        {who.name: [median(who.figures.get(key, [])) for key in columns] for who in contestants},
        list(columns.values()),
    )
    figures = f"{table(contestants, columns)}\n\n{ratios(contestants, columns)}"
    return f"Mbit/s by round trip and loss each way\n{figures}"


def bench_many(options: argparse.Namespace, say: Callable[[str], None]) -> str:
    """One node sends to many peers at once."""
    columns = {str(count): f"{count} peers" for count in PEERS}
    kinds = [Contestant("ours, tcp", ""), Contestant("ours, udp", "")]
    for who in kinds:
        for count in PEERS:
            say(f"{who.name}: {count} peers")
            with Field(count + 1, hub=True) as lab:
                rate, memory = trio.run(_to_many, lab, who.name.split()[-1], options.seconds)
            who.note(str(count), rate)
            who.note("rss", memory)
    return f"Gbit/s in all, one sender\n{table(kinds, {**columns, 'rss': 'MB'})}"


async def _to_many(lab: Field, kind: str, seconds: float) -> tuple[float, float]:
    """(Gbit/s in all, MB of the sender's data plane)."""
    sender, *receivers = [place.beside(1 + ("tcp", "udp").index(kind), (kind,)) for place in lab.places]
    planes = [await place.configured((f"0.0.0.0:{place.port}",)) for place in (sender, *receivers)]
    for place in receivers:
        await two_planes.connect(sender, place)
    servers = [place.start("iperf3", "-s", "-1", stdout=subprocess.DEVNULL) for place in receivers]
    for place in receivers:
        await trio.to_thread.run_sync(wait_for_listener, place, 5201)
    clients = [
        sender.start("iperf3", "-J", "-c", p.inner, "-t", str(seconds), stdout=subprocess.PIPE, text=True)
        for p in receivers
    ]
    reports = [await trio.to_thread.run_sync(client.communicate) for client in clients]
    for server in servers:
        await trio.to_thread.run_sync(server.wait, 10)
    memory = rss_mb(planes[0].pid)
    for plane in planes:
        await plane.aclose()
    return sum(gbits(json.loads(out).get("end", {})) for out, _ in reports), memory


BENCHES = {"clean": bench_clean, "bad": bench_bad, "many": bench_many}


def main() -> int:
    """Exit 0, also when it can't run here: then it says why."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", nargs="*", choices=[*BENCHES, []], default=list(BENCHES))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--delays", type=int, nargs="*", default=DELAYS, help="bad: which round trips, ms")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    reason = two_planes.why_not() or ("" if shutil.which("iperf3") else "needs iperf3")
    if reason:
        print(f"the data plane can't be measured here: {reason}")
        return 0
    texts = []
    options.out.mkdir(parents=True, exist_ok=True)  # before the minutes, not after
    for name in options.which:
        texts.append(f"## {name}\n{BENCHES[name](options, lambda text: print(text, file=sys.stderr))}\n")
        print(texts[-1], flush=True)
        (options.out / "dataplane.txt").write_text("\n".join(texts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
