"""How does a network device get its addresses, and which addresses has this machine?

An adapter to the kernel through pyroute2, which is imported late: it costs memory and time, and only the
agent needs it. Everything here blocks; trio code calls it in a thread (`trio.to_thread.run_sync`).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any, Final

from p2p_network.core import log
from p2p_network.core.errors import MeshError

_GLOBAL_SCOPE: Final = 0
_ADDRESS_FLAG_NODAD: Final = 0x02

Interface = IPv4Interface | IPv6Interface

logger = log.get(__name__)


def bring_up(device: str, addresses: Sequence[str], mtu: int) -> tuple[str, ...]:
    """Give a device exactly these addresses (CIDR; the network in them becomes its route) and MTU, and
    switch it on.

    Doing it twice changes nothing. IPv6 addresses are left out, with a line in the log, where IPv6 is
    disabled.

    Returns:
        the addresses in force.

    Raises:
        MeshError: no such device, not permitted, no address.
    """
    try:
        wanted = [ip_interface(text) for text in addresses]
    except ValueError as exc:
        raise MeshError(f"{exc}", hint="addresses look like 10.144.3.4/16") from exc
    with opened(device) as ip:
        index = index_of(ip, device)
        ip.link("set", index=index, mtu=mtu, state="up")
        present = {
            ip_interface(f"{attribute(entry, 'IFA_LOCAL', 'IFA_ADDRESS')}/{entry['prefixlen']}")
            for entry in ip.get_addr(index=index)
            if entry["scope"] == _GLOBAL_SCOPE
        }
        for stale in present - set(wanted):
            _change(ip.addr, "del", index, stale)
        return tuple(str(one) for one in wanted if one in present or _add(ip, device, index, one))


def device_exists(device: str) -> bool:
    """Whether a network device of that name exists."""
    try:
        socket.if_nametoindex(device)
    except OSError:
        return False
    return True


def local_addresses(*, exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """This machine's global unicast addresses, without those of the devices named in `exclude`."""
    with opened("") as ip:
        left_out = {link["index"] for link in ip.get_links() if attribute(link, "IFLA_IFNAME") in exclude}
        found = [
            str(attribute(entry, "IFA_LOCAL", "IFA_ADDRESS"))
            for entry in ip.get_addr()
            if entry["index"] not in left_out and entry["scope"] == _GLOBAL_SCOPE
        ]
    return tuple(text for text in found if not ip_address(text).is_loopback)


@contextmanager
def opened(device: str) -> Iterator[Any]:
    """A connection to the kernel, for this device ("": none); what it refuses becomes a MeshError."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as exc:
        raise _refused(device, exc.code, str(exc)) from exc
    except OSError as exc:
        raise _refused(device, exc.errno or 0, str(exc)) from exc


def index_of(ip: Any, device: str) -> int:
    """The kernel's number of a device. Raises MeshError if there is none of that name."""
    found = ip.link_lookup(ifname=device)
    if not found:
        raise MeshError(f"there is no device {device}", hint="the data plane makes it: is it configured?")
    return int(found[0])


def _add(ip: Any, device: str, index: int, address: Interface) -> bool:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        _change(ip.addr, "add", index, address)
    except NetlinkError as exc:
        if exc.code == errno.EEXIST:
            return True
        if address.version == 6 and exc.code in (errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL):
            log.event(
                logger,
                "network.ipv6_left_out",
                device=device,
                address=str(address),
                reason="the kernel refuses IPv6 addresses here (disabled by sysctl or at boot)",
            )
            return False
        raise
    return True


def _change(call: Callable[..., Any], command: str, index: int, address: Interface) -> None:
    # Duplicate address detection would delay an address that nobody else can have on a point-to-point device.
    flags = {"flags": _ADDRESS_FLAG_NODAD} if address.version == 6 and command == "add" else {}
    call(command, index=index, address=str(address.ip), prefixlen=address.network.prefixlen, **flags)


def attribute(message: Any, *names: str) -> Any:
    """The first of these attributes that a message has, or None."""
    for name in names:
        value = message.get_attr(name)
        if value is not None:
            return value
    return None


def _refused(device: str, code: int, text: str) -> MeshError:
    what = f"cannot set up the device {device}" if device else "cannot read the addresses of this machine"
    if code in (errno.EPERM, errno.EACCES):
        return MeshError(f"{what}: not permitted", hint="run as root, or give the process CAP_NET_ADMIN")
    if code == errno.ENODEV:
        return MeshError(f"{what}: it is gone", hint="the data plane makes it: is it running?")
    return MeshError(f"{what}: {text}", hint="look into the kernel's log: dmesg")
