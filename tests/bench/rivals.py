"""Who is measured: our data plane on each carrier, and the user-space VPNs that are installed here.

Every contestant lives in the same two namespaces beside the others, on a device and addresses of its own. A
rival that is missing does not take part; a newer wireguard-go than Debian's is used where the environment
variable WIREGUARD_GO names one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trio
import two_planes
from two_planes import Place, run

from p2p_network.dataplane.choice import DIRECT

PATIENCE_S = 10.0
ANY = "{port: any, proto: any, host: any}"


@dataclass
class Contestant:
    """The address to reach, the daemons whose CPU and memory count, and the figures so far."""

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


def all_contestants(one: Place, other: Place, *, bare: bool = True) -> Iterator[Contestant]:
    """Everyone who can take part here, the bare wire first."""
    if bare:
        yield Contestant("bare wire", other.outer)
    for kind in DIRECT:
        yield trio.run(ours, one, other, kind)
    makers: tuple[Callable[[Place, Place], Contestant | None], ...] = (
        debians_wireguard,
        current_wireguard,
        nebula,
    )
    for make in makers:
        found = make(one, other)
        if found is not None:
            yield found


async def ours(one: Place, other: Place, kind: str) -> Contestant:
    """Our data plane on both sides, by one kind of carrier."""
    pair = [place.beside(1 + DIRECT.index(kind), (kind,)) for place in (one, other)]
    planes = [await place.configured((f"0.0.0.0:{place.port}",)) for place in pair]
    await two_planes.connect(*pair)
    who = Contestant(f"ours, {kind}", pair[1].inner, tuple(plane.pid for plane in planes))
    who.note("idle", max(rss_mb(plane.pid) for plane in planes))
    for plane in planes:
        await plane.aclose()
    return who


def debians_wireguard(one: Place, other: Place) -> Contestant | None:
    """Debian's wireguard-go."""
    return wireguard(one, other, "wireguard-go", "Debian's wireguard-go", 1)


def current_wireguard(one: Place, other: Place) -> Contestant | None:
    """A newer one, where it was built."""
    return wireguard(one, other, os.environ.get("WIREGUARD_GO", ""), "wireguard-go, current", 2)


def wireguard(one: Place, other: Place, program: str, name: str, number: int) -> Contestant | None:
    """wireguard-go on both sides; None where it isn't installed."""
    if not (program and shutil.which(program) and shutil.which("wg")):
        return None
    keys, pids, port = {}, [], 51820 + number
    for place in (one, other):
        private = run("wg", "genkey").strip()
        secret = place.folder / f"wg{number}.{place.index}.key"
        secret.write_text(private)
        public = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, text=True, check=True)
        keys[place.index] = public.stdout.strip()
        device = f"kpwg{number}.{place.index}"
        daemon = place.start(*(program, "-f", device), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        pids.append(daemon.pid)
    time_limit = time.monotonic() + PATIENCE_S
    for place, peer in ((one, other), (other, one)):
        device = f"kpwg{number}.{place.index}"
        while not Path(f"/var/run/wireguard/{device}.sock").exists() and time.monotonic() < time_limit:
            time.sleep(0.05)
        place.run(
            *("wg", "set", device, "listen-port", str(port)),
            *("private-key", str(place.folder / f"wg{number}.{place.index}.key")),
            *(
                "peer",
                keys[peer.index],
                "endpoint",
                f"{peer.outer}:{port}",
                "allowed-ips",
                f"10.{98 + number}.0.0/24",
            ),
        )
        run("ip", "-n", place.netns, "addr", "add", f"10.{98 + number}.0.{place.index}/24", "dev", device)
        run("ip", "-n", place.netns, "link", "set", device, "mtu", "1420", "up")
    return _reached(one, f"10.{98 + number}.0.{other.index}", name, pids)


def nebula(one: Place, other: Place) -> Contestant | None:
    """nebula on both sides; None where it isn't installed."""
    if not (shutil.which("nebula") and shutil.which("nebula-cert")):
        return None
    folder = one.folder / "nebula"
    folder.mkdir(exist_ok=True)
    ca = (str(folder / "ca.crt"), str(folder / "ca.key"))
    run("nebula-cert", "ca", "-name", "bench", "-out-crt", ca[0], "-out-key", ca[1])
    pids = []
    for place, peer in ((one, other), (other, one)):
        crt, key = str(folder / f"{place.index}.crt"), str(folder / f"{place.index}.key")
        run(
            *("nebula-cert", "sign", "-ca-crt", ca[0], "-ca-key", ca[1], "-name", f"n{place.index}"),
            *("-ip", f"10.97.0.{place.index}/24", "-out-crt", crt, "-out-key", key),
        )
        config = folder / f"{place.index}.yaml"
        config.write_text(
            f"pki: {{ca: {ca[0]}, cert: {crt}, key: {key}}}\n"
            f"static_host_map: {{10.97.0.{peer.index}: ['{peer.outer}:4242']}}\n"
            "lighthouse: {am_lighthouse: false}\nlisten: {host: 0.0.0.0, port: 4242}\n"
            f"cipher: aes\ntun: {{dev: kpneb{place.index}, mtu: 1420}}\n"
            f"firewall: {{outbound: [{ANY}], inbound: [{ANY}]}}\n"
        )
        daemon = place.start(
            *("nebula", "-config", str(config)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        pids.append(daemon.pid)
    return _reached(one, f"10.97.0.{other.index}", "nebula", pids)


def _reached(one: Place, target: str, name: str, pids: list[int]) -> Contestant | None:
    """The contestant, once it carries packets; None (and a line) if it doesn't."""
    time_limit = time.monotonic() + PATIENCE_S
    while " 0% packet loss" not in one.run("ping", "-c", "1", "-W", "1", target, check=False):
        if time.monotonic() > time_limit:
            print(f"{name} does not carry packets here: left out")
            return None
    who = Contestant(name, target, tuple(pids))
    who.note("idle", max(rss_mb(pid) for pid in pids))
    return who
