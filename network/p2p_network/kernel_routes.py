"""Which packets does this machine's kernel hand to the VPN device, beside those for the mesh's own network?

An adapter through pyroute2 (imported late); everything here blocks. Subnets of peers get a route in the main
table, marked as ours, and go with the device. An exit gets a routing table of its own, behind two rules: what
carries the mesh (`marks.MARK`) and whatever the main table knows a way for but the default one goes as
before. So do answers from this machine's own addresses: whoever came in over the network (a remote login)
keeps its connection. Behind the tunnel's default route stands one that refuses: without the device nothing
leaks.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable
from ipaddress import ip_interface
from typing import Any, Final

from p2p_network.core.errors import MeshError
from p2p_network.marks import MARK
from p2p_network.netlink import attribute, index_of, opened
from p2p_network.subnets import Network

PROTOCOL: Final = 147
"""Who made a route, for the kernel's list."""
METRIC: Final = 4702
TABLE: Final = 4702
_ANSWERS: Final = 4699
_RULES: Final = (4700, 4701, 4702)
_GLOBAL_SCOPE: Final = 0
_MAIN: Final = 254
_INET, _INET6 = 2, 10
_LAST_METRIC: Final = 1 << 30
_UNREACHABLE: Final = 7


def connected_networks(device: str) -> tuple[Network, ...]:
    """The networks of this machine's own addresses, without those of the VPN device."""
    with opened("") as ip:
        own = set(ip.link_lookup(ifname=device))
        found = [
            ip_interface(f"{attribute(entry, 'IFA_LOCAL', 'IFA_ADDRESS')}/{entry['prefixlen']}").network
            for entry in ip.get_addr()
            if entry["index"] not in own
        ]
    return tuple(dict.fromkeys(n for n in found if not n.is_loopback and not n.is_link_local))


def set_networks(device: str, networks: Iterable[Network]) -> None:
    """Make exactly these networks' routes go through the device. Raises MeshError."""
    wanted = {str(network) for network in networks}
    with opened(device) as ip:
        index = index_of(ip, device)
        present = {
            f"{attribute(route, 'RTA_DST')}/{route['dst_len']}"
            for family in (_INET, _INET6)
            for route in ip.get_routes(family=family, oif=index, table=_MAIN)
            if route["proto"] == PROTOCOL and attribute(route, "RTA_DST") is not None
        }
        for stale in present - wanted:
            ip.route("del", dst=stale, oif=index, table=_MAIN, proto=PROTOCOL)
        for missing in wanted - present:
            # a route of its own network that another program made stays what it is: ours has a high metric
            ip.route("add", dst=missing, oif=index, priority=METRIC, proto=PROTOCOL)


def use_exit(device: str) -> None:
    """Send what has no other way but the default one through the device. Again and again is harmless."""
    with opened(device) as ip:
        index = index_of(ip, device)
        for family in (_INET, _INET6):
            try:
                _default(ip, family, oif=index, priority=METRIC)
                _default(ip, family, type=_UNREACHABLE, priority=_LAST_METRIC)
                for rule in _rules(family):
                    _absent_or(ip, "add", rule)
                _answer_from(ip, family, _own_addresses(ip, family, index))
            except Exception as exc:
                if family == _INET or getattr(exc, "code", 0) not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                    raise


def leave_exit() -> None:
    """Everything goes as it did before `use_exit`; no effect if it does."""
    with opened("") as ip:
        for family in (_INET, _INET6):
            for rule in _rules(family):
                _absent_or(ip, "del", rule)
            _answer_from(ip, family, frozenset())
            with contextlib.suppress(Exception):  # no such table: nothing to flush
                ip.flush_routes(family=family, table=TABLE)


def _own_addresses(ip: Any, family: int, vpn: int) -> frozenset[str]:
    return frozenset(
        str(attribute(entry, "IFA_LOCAL", "IFA_ADDRESS"))
        for entry in ip.get_addr(family=family)
        if entry["index"] != vpn and entry["scope"] == _GLOBAL_SCOPE
    )


def _answer_from(ip: Any, family: int, addresses: frozenset[str]) -> None:
    """Let exactly what has one of these addresses as its source go by the main table."""
    bits = 32 if family == _INET else 128
    present = {
        str(attribute(rule, "FRA_SRC"))
        for rule in ip.get_rules(family=family)
        if attribute(rule, "FRA_PRIORITY") == _ANSWERS
    }
    for command, changed in (("add", addresses - present), ("del", present - addresses)):
        for address in changed:
            rule = {"family": family, "priority": _ANSWERS, "table": _MAIN}
            _absent_or(ip, command, {**rule, "src": address, "src_len": bits})


def _default(ip: Any, family: int, **how: Any) -> None:
    everything = "0.0.0.0/0" if family == _INET else "::/0"
    ip.route("replace", family=family, dst=everything, table=TABLE, proto=PROTOCOL, **how)


def _rules(family: int) -> tuple[dict[str, Any], ...]:
    marked, known, others = _RULES
    return (
        {"family": family, "priority": marked, "fwmark": MARK, "table": _MAIN},
        {"family": family, "priority": known, "table": _MAIN, "FRA_SUPPRESS_PREFIXLEN": 0},
        {"family": family, "priority": others, "table": TABLE},
    )


def _absent_or(ip: Any, command: str, rule: dict[str, Any]) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        ip.rule(command, **rule)
    except NetlinkError as exc:
        if exc.code not in (errno.EEXIST, errno.ENOENT, errno.EAFNOSUPPORT):
            raise MeshError(
                f"cannot {command} a routing rule: {exc}", hint="run as root, or give CAP_NET_ADMIN"
            ) from exc
