"""Who carries packets from one region of a lab to another, and takes as long as the way is?

    python -m p2p_simulations.lab.carrier NETNS-FILE [--seed N]

Opens the TUN device of `distance` in the router's namespace, holds what comes out of it and puts it back in.
Prints "ready" once the device is there. A line on standard input (`distance.line_of`) changes the weather.
Ends with its standard input; the device goes with it, and packets go straight again. `Carrier` starts one.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from p2p_simulations.lab.commands import LabError
from p2p_simulations.lab.distance import DEVICE, Distances, line_of, weather_of
from p2p_simulations.lab.lab import Lab
from p2p_simulations.lab.link import open_device
from p2p_simulations.world.net import Weather

_LARGEST: Final = 65536
_TURN: Final = 64
_MOST_UNDER_WAY: Final = 100_000
READY_TIMEOUT_S: Final = 30.0


class Carrier:
    """Regions of a lab that is up are as far apart as `change` says, until this is left."""

    def __init__(self, lab: Lab, seed: int = 1) -> None:
        self._lab = lab
        argv = [sys.executable, "-m", "p2p_simulations.lab.carrier", f"/proc/{lab.router_pid}/ns/net"]
        self._process = subprocess.Popen(
            [*argv, "--seed", str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            self._await(b"ready\n")
            lab.detour()
        except BaseException:
            self.close()
            raise

    def change(self, weather: Weather) -> None:
        """The weather between regions from now on. Raises LabError."""
        assert self._process.stdin is not None  # a pipe
        try:
            self._process.stdin.write(line_of(weather, self._lab.topology).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as exc:
            raise LabError(f"the carrier between the regions is gone: {exc.strerror}") from exc
        self._await(b"changed\n")

    def close(self) -> None:
        """Packets go straight again."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()  # the end of its standard input ends it

    def __enter__(self) -> Carrier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _await(self, answer: bytes) -> None:
        assert self._process.stdout is not None  # a pipe
        if select.select([self._process.stdout], [], [], READY_TIMEOUT_S)[0]:
            said = self._process.stdout.readline()
            if said == answer:
                return
            raise LabError(f"the carrier between the regions says {said.decode(errors='replace').strip()!r}")
        raise LabError(f"the carrier between the regions says nothing for {READY_TIMEOUT_S:g} s")


class _Way:
    """The device, and what is under way."""

    def __init__(self, device: int, distances: Distances) -> None:
        self._device, self._distances = device, distances
        self._under_way: list[tuple[float, int, bytes]] = []
        self._order = 0

    def take_in(self) -> None:
        for _ in range(_TURN):
            try:
                packet = os.read(self._device, _LARGEST)
            except OSError:  # empty, or the device is down
                return
            delay_s = self._distances.delay_s(packet)
            if delay_s is not None and len(self._under_way) < _MOST_UNDER_WAY:
                self._order += 1
                heapq.heappush(self._under_way, (time.monotonic() + delay_s, self._order, packet))

    def deliver(self) -> float:
        """Write what is due; seconds until the next, or -1."""
        while self._under_way:
            wait = self._under_way[0][0] - time.monotonic()
            if wait > 0:
                return wait
            with contextlib.suppress(OSError):  # down, or its queue is full: lost, as on any link
                os.write(self._device, heapq.heappop(self._under_way)[2])
        return -1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until standard input ends; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m p2p_simulations.lab.carrier", description=__doc__)
    parser.add_argument("netns")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        device = open_device(options.netns, DEVICE)
    except OSError as exc:
        sys.stderr.write(f"cannot make the device {DEVICE}: {exc}\n")
        return 1
    distances = Distances(options.seed)
    way = _Way(device, distances)
    told = sys.stdin.fileno()
    poll = select.epoll()
    for fd in (device, told):
        poll.register(fd, select.EPOLLIN)
    _say("ready")
    rest = b""
    while True:
        for fd, _ in poll.poll(way.deliver()):
            if fd == device:
                way.take_in()
                continue
            chunk = os.read(told, 65536)
            if not chunk:
                return 0
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                distances.change(weather_of(line.decode()))
                _say("changed")


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
