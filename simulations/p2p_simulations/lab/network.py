"""Which devices, addresses, routes and filters join the nodes?

Nothing of it is ever in the host's namespace: bridges and ports live in the router's, and each pair of
veth is born with one end there and the other (``eth0``) in the node. So names cannot collide with the
host's or with another lab's, and everything goes with the holders. The texts for ip(8) and nft(8) are made
by pure functions.

A partition drops silently in two places: frames between two ports of one bridge (everything: ARP, neighbour
discovery, mDNS), and packets that the router would forward from one region to another, by address.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Final

from p2p_simulations.lab.commands import LabError, run
from p2p_simulations.lab.distance import detour_batches, untracked_script
from p2p_simulations.lab.nat import between_public, nat_script, wan_batch
from p2p_simulations.lab.topology import Place, Topology, router_ipv4, router_ipv6

MTU: Final = 1500


def port(place: Place) -> str:
    """The router's end of a node's cable; at most 15 characters."""
    return f"p{place.index}-{place.name}"[:15].rstrip("-")


def _bridge(region_index: int) -> str:
    return f"region{region_index}"


def hardware_address(place: Place) -> str:
    """A node's MAC: always the same, since neighbours remember it across a power cut."""
    return f"02:6c:61:62:{place.region_index:02x}:{place.index:02x}"


def bridges_batch(topology: Topology) -> str:
    """ip(8) batch: one bridge with the router's addresses per region."""
    lines = ["link set lo up"]
    for place in {place.region_index: place for place in topology.places}.values():
        index, bridge = place.region_index, _bridge(place.region_index)
        lines += [
            # no snooping: without a querier it would lose multicast (mDNS, neighbour discovery)
            f"link add {bridge} mtu {MTU} type bridge forward_delay 0 mcast_snooping 0",
            f"address add {router_ipv4(index)}/24 dev {bridge}",
            f"address add {router_ipv6(index)}/64 dev {bridge} nodad",
            f"link set {bridge} up",
        ]
    return "\n".join(lines) + "\n" + wan_batch(topology)


def cable_batch(place: Place, node_pid: int) -> str:
    """ip(8) batch, in the router: plug a node into its region's bridge."""
    return (
        f"link add {port(place)} mtu {MTU} type veth peer name eth0 address {hardware_address(place)} "
        f"mtu {MTU} netns {node_pid}\n"
        f"link set {port(place)} master {_bridge(place.region_index)} up\n"
    )


def node_batch(place: Place) -> str:
    """ip(8) batch, in the node: addresses and default routes."""
    return (
        "link set lo up\n"
        f"address add {place.ipv4}/24 dev eth0\n"
        f"address add {place.ipv6}/64 dev eth0 nodad\n"
        "link set eth0 up\n"
        f"route add default via {router_ipv4(place.region_index)} dev eth0\n"
        f"route add ::/0 via {router_ipv6(place.region_index)} dev eth0\n"
    )


def partition_script(topology: Topology, groups: Sequence[Sequence[str]]) -> str:
    """nft(8) script that cuts all traffic between different groups; () heals. Atomic."""
    group_of = {name: number for number, group in enumerate(groups) for name in group}
    frames, packets = [], []
    if groups:
        for a, b in permutations(topology.places, 2):
            if group_of[a.name] == group_of[b.name]:
                continue
            if a.region == b.region:
                frames.append(f'iifname "{port(a)}" oifname "{port(b)}" drop')
            else:
                packets.append(f"ip saddr {a.ipv4} ip daddr {b.ipv4} drop")
                packets.append(f"ip6 saddr {a.ipv6} ip6 daddr {b.ipv6} drop")
                if public := between_public(topology, a, b):
                    packets.append(f"{public} drop")
    lines = []
    for family, rules in (("bridge", frames), ("inet", packets)):
        # made before it is deleted: so it need not be there
        lines += [f"table {family} partition", f"delete table {family} partition"]
        if rules:
            lines += [
                f"table {family} partition {{",
                "chain forward {",
                "type filter hook forward priority 0; policy accept;",
                *rules,
                "}",
                "}",
            ]
    return "\n".join(lines) + "\n"


class Network:
    """Carries the texts out in the namespaces of living holders; pids as the host sees them."""

    def __init__(self, topology: Topology, router_pid: int) -> None:
        self._topology = topology
        self._router_pid = router_pid

    def build(self, node_pids: Mapping[str, int]) -> None:
        """Bridges, and a cable to each node."""
        cables = "".join(cable_batch(p, node_pids[p.name]) for p in self._topology.places)
        self._ip(self._router_pid, bridges_batch(self._topology) + cables)
        for place in self._topology.places:
            self._ip(node_pids[place.name], node_batch(place))
        for place in self._topology.places:
            self._await_router(place, node_pids[place.name])
        if self._topology.nat:
            self.translate(self._topology.nat)

    def translate(self, nat: Mapping[str, str]) -> None:
        """Put regions (name: kind of NAT) behind NAT, and no others."""
        self.filter(nat_script(self._topology, nat))

    def plug(self, place: Place, node_pid: int) -> None:
        """A new cable to a node that was booted again."""
        self.unplug(place)
        self._ip(self._router_pid, cable_batch(place, node_pid))
        self._ip(node_pid, node_batch(place))
        self._await_router(place, node_pid)

    def unplug(self, place: Place) -> None:
        """Take a node's cable away, if there is one; the kernel is late in doing it when a node dies."""
        with contextlib.suppress(LabError):
            self._ip(self._router_pid, f"link delete {port(place)}\n")

    def partition(self, groups: Sequence[Sequence[str]]) -> None:
        """Cut between the groups, replacing any former cut; () heals."""
        self.filter(partition_script(self._topology, groups))

    def filter(self, script: str) -> None:
        """Carry out a script for nft(8) in the router."""
        run(["nsenter", "-t", str(self._router_pid), "-n", "nft", "-f", "-"], script=script)

    def detour(self) -> None:
        """Lead what goes from region to region over the device of `distance`, which must be there."""
        self.filter(untracked_script())
        for family, batch in zip(("-4", "-6"), detour_batches(self._topology), strict=True):
            run(["nsenter", "-t", str(self._router_pid), "-n", "ip", family, "-batch", "-"], script=batch)

    def _await_router(self, place: Place, node_pid: int, timeout_s: float = 10.0) -> None:
        """Return when the cable carries: the kernel opens a bridge's port some time after it has a link."""
        deadline = time.monotonic() + timeout_s
        for address in (router_ipv4(place.region_index), router_ipv6(place.region_index)):
            ping = ["nsenter", "-t", str(node_pid), "-n", "ping", "-q", "-n", "-c1", "-W0.2", address]
            while True:
                try:
                    run(ping)
                    break
                except LabError as exc:
                    if time.monotonic() > deadline:
                        raise LabError(f"{place.name} cannot reach its router: {exc.message}") from exc

    def _ip(self, pid: int, batch: str) -> None:
        run(["nsenter", "-t", str(pid), "-n", "ip", "-batch", "-"], script=batch)
