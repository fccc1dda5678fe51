"""Which settings contradict each other, and which have no effect?

`contradictions` are errors; `remarks` are the notes that ``config validate`` and the agent's start print: a
key that Kairos documents and that does nothing in this version is never ignored in silence. To give such a
key its effect is to remove its line here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final

from p2p_bootstrap.cloudconfig.nodes import MapNode, Path, find
from p2p_bootstrap.cloudconfig.remote import parse_source
from p2p_bootstrap.config.addresses import port_of
from p2p_bootstrap.config.fields import is_loopback, split_target
from p2p_bootstrap.config.model import P2P, K0s, K3s, KubeVip
from p2p_bootstrap.config.names import CLOUD_INIT_ONLY, KUBE_VIP_FIELDS, MOVED
from p2p_bootstrap.config.validation import bundle_blocks, problem_at
from p2p_network.core.errors import P2PError, Problem
from p2p_roles.k3s.kubevip import without_effect as kubevip_settings_without_effect

# k3s's networks inside a cluster, and the arguments that move them.
_K3S_NETWORKS: Final = {"--cluster-cidr": "10.42.0.0/16", "--service-cidr": "10.43.0.0/16"}

# EdgeVPN's variables that have a key of ours.
_EDGEVPN_KEYS: Final = {
    "IFACE": "p2p.vpn.interface",
    "MTU": "p2p.vpn.mtu",
    "EDGEVPNMTU": "p2p.vpn.mtu",
    "EDGEVPNBOOTSTRAPPEERS": "p2p.bootstrap",
    "EDGEVPNLOGLEVEL": "p2p.loglevel",
    "EDGEVPNTOKEN": "p2p.network_token",
}


def contradictions(root: MapNode, p2p: P2P, k3s: K3s) -> Iterator[Problem]:
    """What can't be true together."""
    asked = p2p.auto.ha.servers
    if p2p.servers is not None and asked is not None and p2p.servers != asked:
        yield problem_at(
            root,
            ("p2p", "servers"),
            f"{p2p.servers} servers here, but p2p.auto.ha asks for {asked}",
            "remove one of them; master_nodes counts the servers beside the first",
        )
    if p2p.cluster == "region" and not p2p.named_region:
        yield problem_at(
            root,
            ("p2p", "cluster"),
            "one cluster per region needs to know this node's region",
            "add p2p.region with its name, or write cluster: mesh",
        )
    if p2p.cluster == "region" and p2p.home_region is not None:
        yield problem_at(
            root,
            ("p2p", "home_region"),
            "one cluster per region has no home region",
            "remove the key, or write cluster: mesh",
        )
    for index, address in enumerate(p2p.listen):
        if port_of(address) == p2p.vpn.port:
            path: Path = (
                ("p2p", "listen", index) if _written(root, "p2p", "listen") else ("p2p", "vpn", "port")
            )
            yield problem_at(
                root,
                path,
                f"port {p2p.vpn.port} is taken twice: by p2p.listen and p2p.vpn.port",
                "change one",
            )
    yield from _overlaps(root, p2p, k3s)
    yield from _routes(root, p2p)
    yield from _services(root, p2p)
    yield from _userspace(root, p2p)


def kubevip_problems(root: MapNode, kubevip: KubeVip) -> Iterator[Problem]:
    """What kube-vip could not come up with."""
    if not kubevip.wanted:
        return
    if not kubevip.eip and not kubevip.manifest_url:
        yield problem_at(
            root, ("kubevip",), "kube-vip has no address", "set kubevip.eip to the virtual IP", key=True
        )
    if kubevip.manifest_url:
        try:
            parse_source(kubevip.manifest_url)
        except P2PError as exc:
            yield problem_at(root, ("kubevip", "manifest_url"), exc.message, exc.hint)


def unsupported(root: MapNode, section: str, model: K0s) -> Iterator[Problem]:
    """Distributions that we don't drive."""
    if model.enabled:
        yield problem_at(
            root,
            (section, "enabled"),
            "k0s is not supported yet; this program drives k3s only",
            f"remove the {section} section; with p2p.network_token the nodes run k3s by themselves",
        )


def moved(root: MapNode) -> Iterator[Problem]:
    """Keys of old releases inside sections that are otherwise passed through."""
    for key, new in MOVED.items():
        path = tuple(key.split("."))
        if path[0] == "kairos" and find(root, path) is not None:
            yield problem_at(root, path, "this key has moved", f"write {new}", key=True)


def remarks(root: MapNode, p2p: P2P, kubevip: KubeVip) -> Iterator[Problem]:
    """What a person should know although it is no error."""

    def note(path: Path, message: str, hint: str = "") -> Problem:
        return problem_at(root, path, message, hint, key=True)

    tokens = (p2p.network_token, p2p.join_token)
    has_token = any(token is not None and token.get_secret_value() for token in tokens)
    if not has_token and not _by_hand(root):
        yield note(("p2p",), "no token: a node with this configuration joins no mesh, unless it is a member "
                   "already", "add p2p.network_token or p2p.join_token")  # fmt: skip
    if p2p.dns and not p2p.vpn.create:
        yield note(("p2p", "dns"), "has no effect: the mesh's names are of VPN addresses (p2p.vpn.create)")
    if _written(root, "p2p", "replace_after") and not p2p.dynamic_roles:
        yield note(
            ("p2p", "replace_after"),
            "has no effect by itself: a dead server is not replaced without being asked",
            "add p2p.dynamic_roles: true",
        )
    if p2p.socks is not None and not is_loopback(split_target(p2p.socks)[0]):
        yield note(("p2p", "socks"), "whoever reaches this address uses the mesh as this node, unasked")
    if p2p.public_dht and not p2p.dht:
        yield note(("p2p", "public_dht"), "has no effect: p2p.disable_dht (or EDGEVPNDHT) turns it off too")
    if _written(root, "p2p", "public_dht_bootstrap") and (p2p.public_dht is False or not p2p.dht):
        yield note(("p2p", "public_dht_bootstrap"), "has no effect: the public DHT is turned off")
    for name in p2p.vpn.env:
        if name == "EDGEVPNDHT":
            continue
        instead = _EDGEVPN_KEYS.get(name)
        hint = f"use {instead}" if instead else ""
        yield note(("p2p", "vpn", "env", name), "has no effect: no EdgeVPN runs here", hint)
    if kubevip.wanted and p2p.cluster == "mesh" and p2p.region is not None:
        yield note(
            ("kubevip",),
            "a virtual IP by ARP reaches one network only, this cluster may span regions",
            "agents find every server by themselves without it",
        )
    settings = {name: None for name in KUBE_VIP_FIELDS if _written(root, "kubevip", name)}
    for name in kubevip_settings_without_effect(settings):
        yield note(("kubevip", name), "has no effect: kube-vip takes no variable for it")
    for section in ("k3s", "k3s-agent"):
        if has_token and p2p.auto.enable and _written(root, section, "enabled"):
            yield note(
                (section, "enabled"),
                "has no effect: the nodes agree on the roles",
                "to force one use p2p.role; to run no cluster use p2p.auto.enable: false",
            )
    yield from _counts(root, p2p)
    for name in root.entries:
        if name in CLOUD_INIT_ONLY:
            yield note((name,), "Kairos takes no part in this key of cloud-init", "use a stage for it")
    for name in bundle_blocks(root):
        yield note((name,), "taken for the settings of a bundle; no program here knows this key")


def _by_hand(root: MapNode) -> bool:
    return any(_written(root, section, "enabled") for section in ("k3s", "k3s-agent"))


def _counts(root: MapNode, p2p: P2P) -> Iterator[Problem]:
    servers, nodes = p2p.declared_servers, p2p.nodes_before_genesis
    where: Path = ("p2p", "servers") if p2p.servers else ("p2p", "auto", "ha", "master_nodes")
    if servers % 2 == 0:
        yield problem_at(
            root,
            where,
            f"{servers} servers survive no more failures than {servers - 1}",
            f"use {servers + 1}",
        )
    if nodes < servers:
        yield problem_at(
            root,
            ("p2p", "minimum_nodes"),
            f"the cluster starts when {nodes} of its {servers} servers are there",
            f"use {servers} to wait for all of them",
        )
    if p2p.auto.ha.enable is False and p2p.auto.ha.master_nodes:
        yield problem_at(
            root,
            ("p2p", "auto", "ha", "master_nodes"),
            "has no effect: p2p.auto.ha.enable is false",
            key=True,
        )


def _overlaps(root: MapNode, p2p: P2P, k3s: K3s) -> Iterator[Problem]:
    ours = ipaddress.IPv4Network(p2p.vpn.address_range)
    for flag, text in _K3S_NETWORKS.items():
        moved_away = any(argument.startswith(flag) for argument in k3s.args)
        if not moved_away and ours.overlaps(ipaddress.IPv4Network(text)):
            yield problem_at(
                root,
                ("p2p", "vpn", "address_range"),
                f"{ours} overlaps {text}, which k3s uses inside the cluster",
                f"choose another network, or move k3s's with {flag} in k3s.args",
            )


def _routes(root: MapNode, p2p: P2P) -> Iterator[Problem]:
    ours = ipaddress.IPv4Network(p2p.vpn.address_range)
    for index, text in enumerate(p2p.vpn.routes):
        network = ipaddress.ip_network(text)
        if isinstance(network, ipaddress.IPv4Network) and network.overlaps(ours):
            yield problem_at(
                root,
                ("p2p", "vpn", "routes", index),
                f"{network} overlaps {ours}, the VPN's own network",
                "offer what lies behind this node",
            )
    if not p2p.vpn.create and (p2p.vpn.routes or p2p.vpn.offer_exit or p2p.vpn.exit):
        name = "routes" if p2p.vpn.routes else "offer_exit" if p2p.vpn.offer_exit else "exit"
        yield problem_at(
            root,
            ("p2p", "vpn", name),
            "without a VPN no packet can be carried (p2p.vpn.create is false)",
            "remove the key, or create the VPN",
        )


def _userspace(root: MapNode, p2p: P2P) -> Iterator[Problem]:
    vpn = p2p.vpn
    if vpn.mode == "userspace" and vpn.create and vpn.use and p2p.auto.enable:
        yield problem_at(
            root,
            ("p2p", "vpn", "mode"),
            "a node of a cluster needs its VPN device",
            "set p2p.auto.enable: false to only reach the mesh, or p2p.vpn.use: false",
        )
    if vpn.mode == "userspace" and (vpn.routes or vpn.offer_exit):
        yield problem_at(
            root,
            ("p2p", "vpn", "routes" if vpn.routes else "offer_exit"),
            "without a VPN device no packet can be carried (p2p.vpn.mode is userspace)",
            "remove the key, or let another node carry it",
        )


def _services(root: MapNode, p2p: P2P) -> Iterator[Problem]:
    seen: dict[tuple[str, str], int] = {}
    for index, service in enumerate(p2p.services):
        first = seen.setdefault((service.name, service.protocol), index)
        if first != index:
            yield problem_at(
                root,
                ("p2p", "services", index, "name"),
                f"there are two {service.protocol} services of the name {service.name}",
                "name each differently; on other nodes the name may be used again",
            )


def _written(root: MapNode, *path: str) -> bool:
    node = find(root, path[:-1])
    return isinstance(node, MapNode) and node.get(path[-1]) is not None
