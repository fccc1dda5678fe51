"""Who may knock, and how many strangers may stand at the door at once?

Binds the listen addresses exclusively (libp2p's own listener sets SO_REUSEPORT, so a second agent on the
same port would start silently and take half of the connections) and hands every accepted stream to one
coroutine. While a connection has not finished its handshake it occupies a place in `Doorway`; when that is
full, the oldest one of the address that occupies most places must leave. So a flood from one machine pushes
itself out, and a member, who needs a few milliseconds, still gets in.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import ifaddr
import trio

from p2p_network.core import endpoints, log
from p2p_network.core.errors import MeshError, NotPermitted, P2PError
from p2p_network.host.addresses import Endpoint
from p2p_network.marks import mark

logger = log.get(__name__)

MAX_PENDING: Final = 128
BACKLOG: Final = 512
_OVERLAY_PREFIXES: Final = ("kp2p", "cni", "flannel", "docker", "kube-", "nodelocaldns")
"""Interfaces of our own VPN and of k3s: an address there is reachable only through the mesh we build."""


class Doorway:
    """The connections that have not yet proved that they belong. Keeps order of arrival; bounded."""

    def __init__(self, limit: int = MAX_PENDING) -> None:
        self._limit = limit
        self._scopes: dict[trio.CancelScope, str] = {}
        self._by_address: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._scopes)

    def enter(self, address: str) -> trio.CancelScope:
        """A place for one more connection from `address`; cancels another's scope if none is free."""
        if len(self._scopes) >= self._limit:
            crowd, _ = self._by_address.most_common(1)[0]
            victim = next(scope for scope, origin in self._scopes.items() if origin == crowd)
            self.leave(victim)
            victim.cancel()
        scope = trio.CancelScope()
        self._scopes[scope] = address
        self._by_address[address] += 1
        return scope

    def leave(self, scope: trio.CancelScope) -> None:
        """Give the place back; does nothing for one that was already taken away."""
        address = self._scopes.pop(scope, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]


def machine_addresses(*, ipv6: bool, without: Sequence[str] = ()) -> tuple[str, ...]:
    """The machine's own IP addresses, IPv4 first, without loopback, link-local and overlay ones.

    Args:
        without: more devices to leave out.
    """
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    for adapter in ifaddr.get_adapters():
        if adapter.name in without or str(adapter.name).startswith(_OVERLAY_PREFIXES):
            continue
        for ip in adapter.ips:
            text = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            address = ipaddress.ip_address(text.partition("%")[0])
            if address.is_loopback or address.is_link_local or address.is_multicast:
                continue
            if address not in found and (ipv6 or address.version == 4):
                found.append(address)
    return tuple(str(address) for address in sorted(found, key=lambda a: (a.version, int(a))))


class Listener:
    """The bound sockets of one host."""

    def __init__(self, sockets: Sequence[trio.SocketListener], without: Sequence[str] = ()) -> None:
        self.turned_away = 0
        self._sockets = tuple(sockets)
        self._without = tuple(without)
        self._bound = tuple(
            Endpoint(ipaddress.ip_address(name[0].partition("%")[0]).compressed, name[1])
            for name in (listener.socket.getsockname() for listener in sockets)
        )

    @classmethod
    async def bind(cls, listen: Sequence[str], *, without: Sequence[str] = ()) -> Listener:
        """Bind ``HOST:PORT`` and ``[HOST]:PORT`` texts; port 0 picks a free one.

        Raises MeshError if an address is taken, foreign or malformed, NotPermitted for a port below 1024.
        An IPv6 wildcard on a machine without IPv6 is passed over as long as another address could be bound.
        `without`: devices whose addresses are never announced.
        """
        listeners: list[trio.SocketListener] = []
        skipped: P2PError | None = None
        try:
            for text in listen:
                host, port = _split(text)
                try:
                    listeners.append(await _bind_one(host, port))
                except OSError as exc:
                    error = _bind_error(text, port, exc)
                    if host != "::" or exc.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                        raise error from exc
                    skipped = error
                    log.event(logger, "host.no_ipv6", address=text, detail=str(exc))
            if not listeners:
                raise skipped or MeshError("no address to listen on", hint="pass one, such as 0.0.0.0:4701")
        except BaseException:
            for listener in listeners:
                listener.socket.close()
            raise
        return cls(listeners, without)

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where others can dial this machine: wildcards become real addresses; loopback only if all is."""
        found: dict[Endpoint, None] = {}
        for bound in self._bound:
            if not ipaddress.ip_address(bound.host).is_unspecified:
                found.setdefault(bound)
                continue
            ipv6 = ipaddress.ip_address(bound.host).version == 6
            for address in machine_addresses(ipv6=ipv6, without=self._without):
                if (ipaddress.ip_address(address).version == 6) == ipv6:
                    found.setdefault(Endpoint(address, bound.port))
            if not ipv6 and not found:
                found.setdefault(Endpoint("127.0.0.1", bound.port))
        outside = tuple(e for e in found if not e.is_loopback)
        return outside or tuple(found)

    @property
    def is_loopback_only(self) -> bool:
        """Whether nobody outside this machine can connect."""
        return all(endpoint.is_loopback for endpoint in self._bound)

    async def serve(self, admit: Callable[[trio.SocketStream, Callable[[], None]], Awaitable[None]]) -> None:
        """Accept for ever. `admit` gets the stream and a function to call once the peer is trusted.

        Whoever has to leave before that, because others crowd the door, is counted in `turned_away`.
        """
        doorway = Doorway()

        async def handle(stream: trio.SocketStream) -> None:
            try:
                origin = str(stream.socket.getpeername()[0])
            except OSError:
                stream.socket.close()
                return
            scope = doorway.enter(origin)
            with scope:
                try:
                    await admit(stream, lambda: doorway.leave(scope))
                finally:
                    doorway.leave(scope)
            if scope.cancelled_caught:
                self.turned_away += 1
                stream.socket.close()

        await trio.serve_listeners(handle, list(self._sockets))

    def close(self) -> None:
        """Stop listening."""
        for listener in self._sockets:
            listener.socket.close()


def _split(text: str) -> tuple[str, int]:
    try:
        return endpoints.split_ip(text, lowest=0)
    except ValueError as exc:
        raise MeshError(
            f"{text!r} is not an address to listen on: {exc}", hint="write 0.0.0.0:4701 or [::]:4701"
        ) from exc


async def _bind_one(host: str, port: int) -> trio.SocketListener:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        mark(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind((host, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(sock)


def _bind_error(text: str, port: int, exc: OSError) -> P2PError:
    if exc.errno == errno.EADDRINUSE:
        return MeshError(
            f"cannot listen on {text}: another program uses TCP port {port}",
            hint=f"see which one with: ss -ltnp 'sport = :{port}'; stop it or choose another port",
        )
    if exc.errno in (errno.EACCES, errno.EPERM):
        return NotPermitted(
            f"cannot listen on {text}: not permitted", hint="use a port above 1023, or run as root"
        )
    return MeshError(
        f"cannot listen on {text}: {exc.strerror}", hint="listen on an address that this machine has"
    )
