"""Which packets does the lab's network lose? Pure: the text for nft(8).

Any set of directed pairs of nodes, each with a share of lost packets (1: all), so that cuts of every shape
can stand at once: partitions, one-way cuts, single links, loss everywhere. Frames inside a region are
judged by the ports of its bridge, packets between regions by address, as in `network`. Behind a closed NAT
nobody outside the region begins a connection.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from p2p_simulations.lab.distance import DEVICE
from p2p_simulations.lab.nat import between_public
from p2p_simulations.lab.network import port
from p2p_simulations.lab.topology import Topology

Pair = tuple[str, str]
_PARTS: Final = 1000


def weather_script(topology: Topology, lost: Mapping[Pair, float], closed: Collection[str] = ()) -> str:
    """nft(8) script, atomic; without anything lost or closed it takes all rules away.

    Args:
        lost: (from, to) -> share of packets lost.
        closed: nodes behind a closed NAT.
    """
    frames, packets = [], []
    places = {place.name: place for place in topology.places}
    for (source, target), share in sorted(lost.items()):
        a, b, verdict = places[source], places[target], _verdict(share)
        if not verdict:
            continue
        if a.region == b.region:
            frames.append(f'iifname "{port(a)}" oifname "{port(b)}" {verdict}')
        else:
            packets.append(f"ip saddr {a.ipv4} ip daddr {b.ipv4} {verdict}")
            packets.append(f"ip6 saddr {a.ipv6} ip6 daddr {b.ipv6} {verdict}")
            if public := between_public(topology, a, b):
                packets.append(f"{public} {verdict}")
    for name in sorted(closed):
        packets.append(f"ip daddr {places[name].ipv4} ct state new drop")
        packets.append(f"ip6 daddr {places[name].ipv6} ct state new drop")
    lines = []
    for family, rules in (("bridge", frames), ("inet", packets)):
        # made before it is deleted: so it need not be there
        lines += [f"table {family} weather", f"delete table {family} weather"]
        if rules:
            lines += [f"table {family} weather {{", "chain forward {"]
            lines += ["type filter hook forward priority 1; policy accept;"]
            lines += [f'iifname "{DEVICE}" accept', *rules, "}", "}"]  # judged before its detour
    return "\n".join(lines) + "\n"


def _verdict(share: float) -> str:
    parts = round(share * _PARTS)
    if parts <= 0:
        return ""
    return "drop" if parts >= _PARTS else f"numgen random mod {_PARTS} < {parts} drop"
