"""How does a region stand behind a router that translates its addresses?

Pure: the text for nft(8). A region behind such a router has private addresses: nobody outside can reach them,
its packets come from one public address (198.19.REGION.1), and IPv6 goes nowhere. What may come in differs
(names of RFC 3489): *full-cone* hands everything that comes to the public address to the region's one node,
from whomever; *port-restricted* only answers, and keeps the port that a socket is seen under; *symmetric*
only answers, under another port for every connection, so that no port told by one is good for another.

All of them are one router, but each remembers connections by itself (a conntrack zone per region), and what
goes from one such region to another leaves the first on a cable (`WAN`) that leads back into the router:
there it arrives anew, with its public source, at the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from p2p_simulations.lab.topology import NAT_KINDS, Place, Topology, public_ipv4

TABLE: Final = "nat-regions"
WAN: Final = ("wan0", "wan1")
"""The two ends of the cable that leads from the router to itself; only public addresses are routed there."""
WAN_MAC: Final = "02:6c:61:62:ff:01"
_ZONES: Final = 1000
"""Another kind of NAT is another router: it remembers nothing of what the one before let through."""
_SOURCE: Final = {"full-cone": "", "port-restricted": "", "symmetric": " fully-random"}


def nat_script(topology: Topology, nat: Mapping[str, str]) -> str:
    """nft(8) script that puts these regions (name: kind) behind NAT, and no others. Atomic."""
    leaving: list[str] = []
    coming: list[str] = []
    inwards: list[str] = []
    outwards: list[str] = []
    forward: list[str] = []
    regions = {place.region: place for place in topology.places if place.region in nat}
    hidden = ", ".join(f'"region{place.region_index}"' for place in regions.values())
    for place in regions.values():
        kind, index = nat[place.region], place.region_index
        zone = _ZONES * (1 + NAT_KINDS.index(kind)) + index
        bridge, public = f"region{index}", public_ipv4(index)
        inside, outside = f"198.18.{index}.0/24", f'oifname != "{bridge}"'
        leaving.append(f'iifname "{bridge}" ct zone set {zone} return')
        coming.append(f"ip daddr {public} ct zone set {zone} return")
        if kind == "full-cone":
            inwards.append(f"iifname != {{ {hidden} }} ip daddr {public} dnat ip to {place.ipv4}")
        outwards.append(f"ip saddr {inside} {outside} snat ip to {public}{_SOURCE[kind]}")
        forward += [
            f'iifname != "{bridge}" ip daddr {inside} ct state new ct status ! dnat drop',
            f'iifname "{bridge}" ip daddr {public} drop',  # it has no way back to itself
            f'oifname "{bridge}" meta nfproto ipv6 iifname != "{bridge}" drop',
            f'iifname "{bridge}" meta nfproto ipv6 {outside} drop',
        ]
    lines = [f"table inet {TABLE}", f"delete table inet {TABLE}"]  # made first: so it need not be there
    if nat:
        lines += [f"table inet {TABLE} {{"]
        # unasked for: dropped before the router remembers it, or it would take the port of a later answer
        forward.append(f'oifname "{WAN[0]}" iifname != {{ {hidden} }} drop')
        for name, hook, kind, priority, rules in (
            ("zones", "prerouting", "filter", "raw", leaving + coming),
            ("prerouting", "prerouting", "nat", "dstnat", inwards),
            ("postrouting", "postrouting", "nat", "srcnat", outwards),
            ("forward", "forward", "filter", "filter", forward),
        ):
            lines += [
                f"chain {name} {{",
                f"type {kind} hook {hook} priority {priority}; policy accept;",
                *rules,
                "}",
            ]
        lines += ["}"]
    return "\n".join(lines) + "\n"


def wan_batch(topology: Topology) -> str:
    """ip(8) batch: the cable that leads back into the router, and what is routed there."""
    lines = [
        f"link add {WAN[0]} mtu 1500 type veth peer name {WAN[1]} address {WAN_MAC} mtu 1500",
        f"link set {WAN[0]} up",
        f"link set {WAN[1]} up",
    ]
    for index in dict.fromkeys(place.region_index for place in topology.places):
        lines += [
            f"route add {public_ipv4(index)}/32 dev {WAN[0]}",
            f"neighbour add {public_ipv4(index)} lladdr {WAN_MAC} dev {WAN[0]} nud permanent",
        ]
    return "\n".join(lines) + "\n"


def between_public(topology: Topology, a: Place, b: Place) -> str:
    """The nft(8) match for packets of `a` to `b` if both are behind NAT; "" if others share a's address."""
    if sum(place.region == a.region for place in topology.places) != 1 or a.region == b.region:
        return ""
    return f"ip saddr {public_ipv4(a.region_index)} ip daddr {b.ipv4}"
