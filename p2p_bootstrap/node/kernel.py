"""What must this machine's kernel route and forward for the mesh, and what does it already?

Makes the kernel's routes, its way to the internet and its forwarding as `routing` wants them, only what is
not so yet, and puts everything back at the end. What the machine refuses is kept as a sentence and does not
end the VPN.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from p2p_bootstrap.node.forwarding import Forwarding, Passing
from p2p_bootstrap.node.runtime import Runtime
from p2p_network import subnets
from p2p_network.core import log
from p2p_network.core.errors import P2PError
from p2p_network.core.ids import PeerId
from p2p_network.subnets import Network

logger = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be so.

    Attributes:
        carried: networks that others carry.
        own: networks that this machine carries, as text.
        exit: who carries what goes to the internet; None while nobody that was chosen is there.
        is_exit_chosen: whether an operator wants one, there or not.
        is_exit_reached: whether there is a VPN path to it.
    """

    carried: tuple[Network, ...]
    own: tuple[str, ...]
    exit: PeerId | None
    is_exit_chosen: bool
    is_exit_reached: bool


class Kernel:
    """The kernel's part of routing.

    Attributes:
        uses_exit: None: unknown, a run before this one may have left its rules.
        local: the networks that this machine is connected to.
        error: what it refused last; "" if nothing.
    """

    def __init__(
        self, runtime: Runtime, forwarding: Forwarding, mesh: tuple[IPv4Network, IPv6Network]
    ) -> None:
        self._runtime = runtime
        self._forwarding = forwarding
        self._mesh = mesh
        self._device = ""
        self._networks: tuple[Network, ...] = ()
        self.uses_exit: bool | None = None
        self.local: tuple[Network, ...] = ()
        self.error = ""

    async def keep(self, device: str, wish: Wish) -> None:
        """Make it so."""
        try:
            self.local = await self._runtime.in_thread(_connected, device)
            wanted = subnets.installable(wish.carried, self.local)
            if (self._device, self._networks) != (device, wanted):
                await self._runtime.in_thread(_set_networks, device, wanted)
                self._device, self._networks = device, wanted
            await self._keep_exit(device, wish)
            await self._forwarding.keep(
                Passing(
                    device=device,
                    ipv4=self._mesh[0],
                    ipv6=self._mesh[1],
                    carries=bool(wish.own),
                    carries6=any(":" in network for network in wish.own),
                    uses_exit=bool(self.uses_exit),
                )
            )
            self.error = ""
        except (P2PError, OSError) as exc:
            text = str(exc)
            if text != self.error:
                log.event(logger, "vpn.routes_failed", logging.ERROR, error=text)
            self.error = text

    async def _keep_exit(self, device: str, wish: Wish) -> None:
        """Once an exit was reached, everything goes through it, also while it is away: nothing leaks."""
        if wish.exit is not None and (self.uses_exit or wish.is_exit_reached):
            await self._runtime.in_thread(_use_exit, device)
            if not self.uses_exit:
                log.event(
                    logger, "vpn.exit_used", peer=wish.exit, device=device, reason="an operator chose it"
                )
            self.uses_exit = True
        elif not wish.is_exit_chosen and self.uses_exit is not False:
            await self._runtime.in_thread(_leave_exit)
            if self.uses_exit:
                log.event(logger, "vpn.exit_left", device=device, reason="no exit is chosen any more")
            self.uses_exit = False

    async def release(self) -> None:
        """The VPN ends: put everything on this machine back."""
        try:
            await self._runtime.in_thread(_leave_exit)
            await self._forwarding.restore()
        except (P2PError, OSError) as exc:
            log.event(logger, "vpn.routes_not_restored", logging.ERROR, error=str(exc))
        self.device_is_new()
        self.uses_exit, self.local, self.error = None, (), ""

    def device_is_new(self) -> None:
        """The device was made anew: its routes went with the old one."""
        self._networks, self._device = (), ""


# pyroute2 is imported late, by these
def _connected(device: str) -> tuple[Network, ...]:
    from p2p_network import kernel_routes

    return kernel_routes.connected_networks(device)


def _set_networks(device: str, networks: tuple[Network, ...]) -> None:
    from p2p_network import kernel_routes

    kernel_routes.set_networks(device, networks)


def _use_exit(device: str) -> None:
    from p2p_network import kernel_routes

    kernel_routes.use_exit(device)


def _leave_exit() -> None:
    from p2p_network import kernel_routes

    kernel_routes.leave_exit()
