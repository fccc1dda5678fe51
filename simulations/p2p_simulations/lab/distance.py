"""How far apart are the regions of a lab, and how do their packets come to take that long? Pure.

Whatever the router would hand to another region it hands to a TUN device first (`detour_batches`), where
`carrier` holds each packet for as long as the simulator's network would hold a message between the same two
regions (`world.net`): the same words of a scenario, the same law. Then the router gets it back.
Frames between two nodes of one region are switched, not routed: they take no detour.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Final

from p2p_simulations.lab.topology import Topology
from p2p_simulations.world.engine import Engine
from p2p_simulations.world.net import Network, PairWeather, Weather

DEVICE: Final = "far0"
_TABLE: Final = 77
_IPV6: Final = bytes.fromhex("fd6c61620000")


def detour_batches(topology: Topology) -> tuple[str, str]:
    """ip(8) batches, the second one for IPv6: between two regions over the device. It must be there."""
    indices = sorted({place.region_index for place in topology.places})
    sources = [f"region{index}" for index in indices]
    rules = [f"rule add iif {device} lookup {_TABLE}" for device in sources]
    ipv4 = [f"link set {DEVICE} up", *rules, f"rule add iif wan1 lookup {_TABLE}"]
    ipv4 += [f"route add 198.18.{index}.0/24 dev {DEVICE} table {_TABLE}" for index in indices]
    ipv6 = [*rules, *(f"route add fd6c:6162:0:{i:x}::/64 dev {DEVICE} table {_TABLE}" for i in indices)]
    return "\n".join(ipv4) + "\n", "\n".join(ipv6) + "\n"


def untracked_script() -> str:
    """nft(8) script: what comes back from the device was translated before, and is not again. Atomic."""
    return (
        "table inet far\ndelete table inet far\ntable inet far {\nchain back {\n"
        "type filter hook prerouting priority raw - 1; policy accept;\n"
        f'iifname "{DEVICE}" notrack\n}}\n}}\n'
    )


def ends_of(packet: bytes) -> tuple[int, int] | None:
    """The regions (by index) that a packet goes from and to; None if it is not between nodes of the lab."""
    match packet[0] >> 4 if packet else 0:
        case 4 if len(packet) >= 20:
            source, target = packet[12:16], packet[16:20]
            if source[0] == target[0] == 198 and source[1] in (18, 19) and target[1] == 18:
                return source[2], target[2]
        case 6 if len(packet) >= 40:
            source, target = packet[8:24], packet[24:40]
            if source[:6] == target[:6] == _IPV6:
                return int.from_bytes(source[6:8], "big"), int.from_bytes(target[6:8], "big")
        case _:
            pass
    return None


def line_of(weather: Weather, topology: Topology) -> str:
    """What the carrier is told of a weather: one line of JSON."""
    index = {place.region: str(place.region_index) for place in topology.places}
    links = [
        {**dataclasses.asdict(link), "one": index[link.one], "other": index[link.other]}
        for link in weather.links
    ]
    return json.dumps({**dataclasses.asdict(weather), "links": links})


def weather_of(line: str) -> Weather:
    """The inverse of `line_of`; regions are named by their indices."""
    facts: dict[str, Any] = json.loads(line)
    return Weather(**{**facts, "links": tuple(PairWeather(**link) for link in facts["links"])})


class Distances:
    """Decides how long packets take; the law is the simulator's."""

    def __init__(self, seed: int) -> None:
        self._network = Network(Engine(seed, keep_trace=False), Weather())
        self._known: set[str] = set()

    def change(self, weather: Weather) -> None:
        """From now on."""
        self._network.weather = weather

    def delay_s(self, packet: bytes) -> float | None:
        """Seconds until it is to be delivered; None: it goes nowhere."""
        ends = ends_of(packet)
        if ends is None:
            return None
        names = str(ends[0]), str(ends[1])
        for name in names:
            if name not in self._known:
                self._known.add(name)
                self._network.place(name, name)
        return self._network.delay_s(*names)
