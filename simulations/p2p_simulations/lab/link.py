"""How do two namespaces get a slow, losing, reordering link without netem?

    python -m p2p_simulations.lab.link --between NETNS NETNS [--device wire] [--seed N] [SETTING=VALUE ...]

Opens a TUN device in each namespace and carries every packet from one to the other, as `shaping` says.
Prints "ready" once both devices are up. A line on standard input ("loss=0.01 delay_ms=50") changes both
directions; "right loss=1" only packets to the second namespace, "left ..." to the first. Ends with its
standard input; the devices go with it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from p2p_simulations.lab.shaping import Direction, Shape, parse

_TUNSETIFF: Final = 0x400454CA
_TUN_WITHOUT_HEADER: Final = 0x1001
_CLONE_NEWNET: Final = 0x40000000
_LARGEST: Final = 65536
_TURN: Final = 64


def open_device(netns: str, name: str) -> int:
    """A TUN device in a namespace, by its name or file; this thread comes back to its own. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(Path("/run/netns", netns), os.O_RDONLY)
    try:
        _enter(libc, there)
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN_WITHOUT_HEADER))
        _enter(libc, own)
    finally:
        os.close(own)
        os.close(there)
    return fd


def _enter(libc: ctypes.CDLL, namespace: int) -> None:
    if libc.setns(namespace, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"cannot enter the network namespace: {os.strerror(number)}")


class Link:
    """Two devices and what is on its way between them."""

    def __init__(self, left: int, right: int, shape: Shape, seed: int) -> None:
        chance = random.Random(seed)
        self.ways = {left: (right, Direction(shape, chance)), right: (left, Direction(shape, chance))}
        self._left, self._right = left, right
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._order = 0

    def change(self, line: str) -> None:
        """Carry out a line of settings. Raises ValueError."""
        first, _, rest = line.strip().partition(" ")
        targets = {"left": [self._right], "right": [self._left]}.get(first, [self._left, self._right])
        for source in targets:
            direction = self.ways[source][1]
            direction.shape = parse(rest if first in ("left", "right") else line, direction.shape)

    def take_in(self, source: int) -> None:
        """Read what a device has."""
        target, direction = self.ways[source]
        for _ in range(_TURN):
            try:
                packet = os.read(source, _LARGEST)
            except OSError:  # empty, or the device is down
                return
            now = time.monotonic()
            at = direction.leaves_at(now, len(packet))
            if at is None:
                continue
            if at <= now and not self._under_way:
                self._write(target, packet)
            else:
                self._order += 1
                heapq.heappush(self._under_way, (at, self._order, target, packet))

    def deliver(self) -> float:
        """Write what is due; seconds until the next, or -1."""
        queue = self._under_way
        while queue:
            wait = queue[0][0] - time.monotonic()
            if wait > 0:
                return wait
            _, _, target, packet = heapq.heappop(queue)
            self._write(target, packet)
        return -1.0

    @staticmethod
    def _write(target: int, packet: bytes) -> None:
        with contextlib.suppress(OSError):  # down, or its queue is full: lost, as on any link
            os.write(target, packet)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until standard input ends; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m p2p_simulations.lab.link", description=__doc__)
    parser.add_argument("--between", nargs=2, required=True, metavar="NETNS")
    parser.add_argument("--device", default="wire")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_args(arguments)
    try:
        shape = parse(" ".join(options.settings))
        fds = [open_device(netns, options.device) for netns in options.between]
    except (OSError, ValueError) as exc:
        sys.stderr.write(f"cannot make the link: {exc}\n")
        return 1
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    _run(Link(fds[0], fds[1], shape, options.seed), fds)
    return 0


def _run(link: Link, fds: list[int]) -> None:
    poll = select.epoll()
    os.set_blocking(sys.stdin.fileno(), False)
    for fd in (*fds, sys.stdin.fileno()):
        poll.register(fd, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll(link.deliver()):
            if fd != sys.stdin.fileno():
                link.take_in(fd)
                continue
            lines = os.read(fd, 4096)
            if not lines:
                return
            for line in lines.decode(errors="replace").splitlines():
                try:
                    link.change(line)
                    sys.stdout.write("changed\n")
                except ValueError as exc:
                    sys.stdout.write(f"{exc}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
