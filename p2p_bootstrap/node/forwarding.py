"""How does this machine pass packets on between the mesh and the networks behind it?

Where it carries subnets or an exit: the kernel forwards, and what leaves the mesh gets this machine's address
(nftables, one table of our own), so that nobody behind it needs a way back. Where it uses an exit: answers
may come in on another device than the way out (loose reverse path filter). Settings that stood otherwise
before are kept in the state folder and put back when it is over; one that a crash left behind, by the next
start.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final

import msgspec

from p2p_network.core import log
from p2p_network.core.errors import MeshError
from p2p_network.ledger.durable import DurableFiles
from p2p_roles import programs

TABLE: Final = "kairos_p2p"
_KEY: Final = "routing/settings"
_SETTINGS: Final = Path("/proc/sys")
_FORWARD4: Final = "net/ipv4/ip_forward"
_FORWARD6: Final = "net/ipv6/conf/all/forwarding"
_REVERSE_PATH: Final = "net/ipv4/conf/all/rp_filter"
_LOOSE: Final = "2"
_TIMEOUT_S: Final = 10.0

logger = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Passing:
    """What is to be passed on.

    Attributes:
        device: the VPN's.
        ipv4, ipv6: the mesh's networks.
        carries, carries6: packets leave the mesh here, by protocol.
        uses_exit: this machine's own go out through a peer.
    """

    device: str
    ipv4: IPv4Network
    ipv6: IPv6Network
    carries: bool = False
    carries6: bool = False
    uses_exit: bool = False


def script(passing: Passing) -> str:
    """nft(8) script: the table as it is to be; without anything to carry, none. Atomic."""
    lines = [f"table inet {TABLE}", f"delete table inet {TABLE}"]
    if not passing.carries:
        return "\n".join(lines) + "\n"
    clamp = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
    device = f'"{passing.device}"'
    lines += [
        f"table inet {TABLE} {{",
        "chain leaving {",
        "type nat hook postrouting priority srcnat; policy accept;",
        f"oifname {device} return",
        "fib saddr type local return",
        f"ip saddr {passing.ipv4} masquerade",
        f"ip6 saddr {passing.ipv6} masquerade",
        "}",
        "chain passing {",
        "type filter hook forward priority mangle; policy accept;",
        f"iifname {device} {clamp}",
        f"oifname {device} {clamp}",
        "}",
        "}",
    ]
    return "\n".join(lines) + "\n"


class Forwarding:
    """This machine's kernel settings and rules for passing packets on.

    Args:
        settings: ``/proc/sys``, for tests.
    """

    def __init__(self, durable: DurableFiles, *, settings: Path = _SETTINGS) -> None:
        self._durable = durable
        self._root = settings
        self._now: Passing | None = None

    async def keep(self, passing: Passing) -> None:
        """Make it so; without a change nothing is done. Raises MeshError: what is missing, and what to do."""
        if passing == self._now:
            return
        before = self._now
        self._now = None
        was_carrying = before is not None and before.carries
        if (
            before is None and programs.find("nft") is not None
        ):  # a run before this one may have left its rules
            was_carrying = bool(await programs.in_thread(self._durable.get, _KEY))
        if passing.carries or was_carrying:
            await self._rules(script(passing))
        await programs.in_thread(self._apply, self._wanted(passing))
        if passing.carries and (before is None or not before.carries):
            log.event(
                logger,
                "vpn.forwarding",
                device=passing.device,
                reason="this node carries accepted routes: packets that leave the mesh get its address",
            )
        self._now = passing

    async def restore(self) -> None:
        """Put everything back. No effect if nothing was changed, now or by a run before that crashed."""
        raw = await programs.in_thread(self._durable.get, _KEY)
        if not raw and (self._now is None or not self._now.carries):
            return
        self._now = None
        if programs.find("nft") is not None:
            with contextlib.suppress(MeshError):
                await self._rules(f"table inet {TABLE}\ndelete table inet {TABLE}\n")
        await programs.in_thread(self._apply, {})

    def _wanted(self, passing: Passing) -> dict[str, str]:
        wanted = {}
        if passing.carries:
            wanted[_FORWARD4] = "1"
        if passing.carries6:
            # a machine that forwards ignores router advertisements, and so its own default route, unless told
            for device in sorted((self._root / "net/ipv6/conf").glob("*/accept_ra")):
                if self._read(str(device.relative_to(self._root))) == "1":
                    wanted[str(device.relative_to(self._root))] = "2"
            wanted[_FORWARD6] = "1"
        if passing.uses_exit:
            wanted[_REVERSE_PATH] = _LOOSE
        return wanted

    def _apply(self, wanted: dict[str, str]) -> None:
        """Set these; put back what was set before and is not wanted any more. Keeps former values first."""
        raw = self._durable.get(_KEY)
        former: dict[str, str] = msgspec.json.decode(raw, type=dict[str, str]) if raw else {}
        fresh = {}
        for name, value in wanted.items():
            present = self._read(name)
            if name not in former and present not in ("", value):
                fresh[name] = present
        if fresh:
            self._durable.set(_KEY, msgspec.json.encode(former | fresh))
        try:
            for name, value in wanted.items():
                if self._read(name) not in ("", value):
                    (self._root / name).write_text(value)
            for name in former.keys() - wanted.keys():
                with contextlib.suppress(FileNotFoundError):  # its device is gone
                    (self._root / name).write_text(former[name])
        except OSError as exc:
            raise MeshError(
                f"cannot set {exc.filename}: {exc.strerror}",
                hint="run the agent as root, with /proc/sys writable",
            ) from exc
        left = {name: value for name, value in (former | fresh).items() if name in wanted}
        if left != former | fresh:
            self._durable.set(_KEY, msgspec.json.encode(left) if left else b"")

    def _read(self, name: str) -> str:
        try:
            return (self._root / name).read_text().strip()
        except OSError:
            return ""

    @staticmethod
    async def _rules(text: str) -> None:
        if programs.find("nft") is None:
            raise MeshError(
                "this node cannot carry routes: nft(8) is missing", hint="install nftables on this machine"
            )
        handle, path = tempfile.mkstemp(prefix="kairos-p2p-", suffix=".nft")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            done = await programs.run(("nft", "-f", path), timeout_s=_TIMEOUT_S)
        finally:
            os.unlink(path)
        if done.exit_code:
            raise MeshError(
                f"nft refused the rules for carried routes: {(done.stderr or done.stdout).strip()[:300]}",
                hint="the kernel needs nf_tables with masquerade",
            )
