"""How does a region stand behind a router that translates its addresses?

Pure: the text for nft(8). A region behind such a router has private addresses: nobody outside can reach them,
its packets come from one public address (198.19.REGION.1), and IPv6 goes nowhere. What may come in differs
(names of RFC 3489): *full-cone* hands everything that comes to the public address to the region's one node,
from whomever; *port-restricted* only answers, and keeps the port that a socket is seen under; *symmetric*
only answers, under another port for every connection, so that no port told by one is good for another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from p2p_simulations.lab.topology import Topology, public_ipv4

TABLE: Final = "nat-regions"
_SOURCE: Final = {"full-cone": "", "port-restricted": "", "symmetric": " fully-random"}


def nat_script(topology: Topology, nat: Mapping[str, str]) -> str:
    """nft(8) script that puts these regions (name: kind) behind NAT, and no others. Atomic."""
    inwards: list[str] = []
    outwards: list[str] = []
    forward: list[str] = []
    for place in {place.region: place for place in topology.places if place.region in nat}.values():
        kind, index = nat[place.region], place.region_index
        bridge, public = f"region{index}", public_ipv4(index)
        inside, outside = f"198.18.{index}.0/24", f'oifname != "{bridge}"'
        if kind == "full-cone":
            inwards.append(f'iifname != "{bridge}" ip daddr {public} dnat ip to {place.ipv4}')
        outwards.append(f"ip saddr {inside} {outside} snat ip to {public}{_SOURCE[kind]}")
        forward += [
            f'iifname != "{bridge}" ip daddr {inside} ct state new ct status ! dnat drop',
            f'oifname "{bridge}" meta nfproto ipv6 iifname != "{bridge}" drop',
            f'iifname "{bridge}" meta nfproto ipv6 {outside} drop',
        ]
    lines = [f"table inet {TABLE}", f"delete table inet {TABLE}"]  # made first: so it need not be there
    if nat:
        lines += [f"table inet {TABLE} {{"]
        for hook, kind, priority, rules in (
            ("prerouting", "nat", "dstnat", inwards),
            ("postrouting", "nat", "srcnat", outwards),
            ("forward", "filter", "filter", forward),
        ):
            lines += [
                f"chain {hook} {{",
                f"type {kind} hook {hook} priority {priority}; policy accept;",
                *rules,
                "}",
            ]
        lines += ["}"]
    return "\n".join(lines) + "\n"
