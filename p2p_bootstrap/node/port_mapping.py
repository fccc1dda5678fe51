"""Does the router before this node lead its ports to it, if it can be asked (UPnP)?

Only where members see this node under an address of a router and can't dial it, and `p2p.upnp` allows it:
then the router is looked for, and the mesh's port and the data plane's are mapped, each to the same number
outside. Whether that helped is not the router's to say: members dial back (`outside`), and what they reach is
announced. Mappings are leases, renewed at half their time, and given back when the agent ends.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from p2p_bootstrap.node.outside import Outside
from p2p_network import igd
from p2p_network.core import log
from p2p_network.core.errors import MeshError
from p2p_network.host import gateway

logger = log.get(__name__)

RENEW_S: Final = igd.LEASE_S / 2
AGAIN_S: Final = 300.0
LOOK_EVERY_S: Final = 2.0
FAREWELL_S: Final = 2.0
MAX_OWN: Final = 4


class PortMapping:
    """The mappings of one node.

    Args:
        data_port: of the data plane; 0 without one.
        search: where routers are asked for.
    """

    def __init__(
        self, outside: Outside, data_port: int, *, search: tuple[str, int] = igd.SEARCH_ADDRESS
    ) -> None:
        self.status = ""
        self._outside = outside
        self._data_port = data_port
        self._search = search
        self._mapped: tuple[gateway.Gateway, tuple[igd.Mapping, ...]] | None = None

    async def run(self) -> None:
        """Map and renew while this node stands behind a router; give back at the end."""
        try:
            while True:
                while not self._is_needed():
                    await self._outside.changed.wait(LOOK_EVERY_S)
                await trio.sleep(RENEW_S if await self.map_all() else AGAIN_S)
        finally:
            with trio.CancelScope(shield=True):
                await self.give_back()

    def _is_needed(self) -> bool:
        seen = self._outside
        return self._mapped is not None or (seen.nat.is_behind and seen.reachable is False)

    async def map_all(self) -> bool:
        """Find the router and map every port; whether it did any."""
        own = [e for e in self._outside.own_endpoints() if ":" not in e.host]
        router = await gateway.find([e.host for e in own][:MAX_OWN], self._search)
        if router is None:
            self._tell("no router answers UPnP")
            return False
        wanted = [igd.Mapping("TCP", port) for port in dict.fromkeys(e.port for e in own)]
        if self._data_port:
            wanted += [igd.Mapping("TCP", self._data_port), igd.Mapping("UDP", self._data_port)]
        done, error = [], ""
        for mapping in wanted:
            try:
                await router.add(mapping)
                done.append(mapping)
            except MeshError as exc:
                error = exc.message
        self._mapped = (router, tuple(done))
        listed = ", ".join(f"{m.protocol} {m.port}" for m in done)
        self._tell(f"the router leads {listed} here" if done else error)
        if done:
            self._outside.dial_back_soon()
        return bool(done)

    async def give_back(self) -> None:
        """Delete what was mapped."""
        if self._mapped is None:
            return
        (router, mappings), self._mapped = self._mapped, None
        with trio.move_on_after(FAREWELL_S):
            for mapping in mappings:
                try:
                    await router.delete(mapping)
                except MeshError as exc:
                    log.event(logger, "mesh.port_not_given_back", logging.DEBUG, error=exc.message)

    def _tell(self, text: str) -> None:
        if text != self.status:
            self.status = text
            log.event(logger, "mesh.ports_mapped", reason=text)
