"""How do we import libp2p without what a private TCP mesh never uses?

libp2p's packages import all of it: QUIC, WebSocket, TLS with its ACME client, gossip, block exchange, UPnP,
stores of peers in databases, three more kinds of keys, a metrics server, DNS resolvers. That is two thirds of
the time that importing it takes, and 22 MB. So

- the names in `UNUSED` resolve to hollow modules while the modules in `USED` are imported;
- a libp2p package's own ``__init__`` does not run before somebody asks for a name that it makes (`_Bare`).

Afterwards anybody else's ``import httpx`` gets the real one. Public keys of kinds that are hollow are refused
by libp2p's own error: members have Ed25519 keys. DNS resolvers would read /etc/resolv.conf and raise where it
names no server (an air-gapped site, a machine that boots): no dial of ours asks one, so there is none.

Import this module before any ``libp2p`` module. Drop it when libp2p imports them late.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, cast

from p2p_network.lean import hollow

if TYPE_CHECKING:
    from importlib.abc import Loader

USED: Final = (
    "libp2p.abc",
    "libp2p.crypto.ed25519",
    "libp2p.crypto.serialization",
    "libp2p.crypto.x25519",
    "libp2p.host.basic_host",
    "libp2p.identity.identify_push.identify_push",
    "libp2p.kad_dht.kad_dht",
    "libp2p.network.connection.raw_connection",
    "libp2p.network.connection.swarm_connection",
    "libp2p.network.swarm",
    "libp2p.security.noise.transport",
    "libp2p.stream_muxer.yamux.yamux",
    "libp2p.transport.upgrader",
)
UNUSED: Final = (
    "Crypto",
    "aioquic",
    "cryptography.x509",
    "dns",
    "httpx",
    "libp2p.bitswap",
    "libp2p.crypto.ecc",
    "libp2p.crypto.rsa",
    "libp2p.crypto.secp256k1",
    "libp2p.discovery.bootstrap",
    "libp2p.discovery.mdns",
    "libp2p.discovery.upnp",
    "libp2p.peer.persistent",
    "libp2p.pubsub",
    "libp2p.rcmgr.manager",
    "libp2p.relay",
    "libp2p.security.insecure",
    "libp2p.security.pnet",
    "libp2p.security.secio",
    "libp2p.security.tls",
    "libp2p.stream_muxer.mplex",
    "libp2p.transport.quic",
    "libp2p.transport.tcp",
    "libp2p.transport.websocket",
    "multiaddr.resolvers",
    "prometheus_client",
    "psutil",
    "requests",
)


class _Bare(ModuleType):
    """A package whose ``__init__`` has not run; it does when a name is asked for that only it can make."""

    def __getattr__(self, name: str) -> Any:
        spec: Any = self.__spec__
        if name.startswith("__") or not isinstance(spec.loader, _BareLoader):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        spec.loader = spec.loader.whole
        spec.loader.exec_module(self)
        return getattr(self, name)


class _BareLoader:
    """Makes a package bare; `whole` is who would run its ``__init__``."""

    def __init__(self, whole: Loader) -> None:
        self.whole = whole

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A package that lacks what its ``__init__`` makes."""
        return _Bare(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Not yet."""


class _BareFinder:
    """Finds libp2p's packages bare."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the path has, bare if it is a package of libp2p."""
        if fullname.partition(".")[0] != "libp2p":
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None and spec.submodule_search_locations is not None:
            spec.loader = cast("Loader", _BareLoader(spec.loader))
        return spec


@contextlib.contextmanager
def _bare() -> Iterator[None]:
    finder = _BareFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def import_libp2p() -> None:
    """Import what we use of libp2p, and turn its chatter off. Does nothing the second time."""
    if "libp2p" in sys.modules:
        return
    with _bare(), hollow(*UNUSED):
        for name in USED:
            importlib.import_module(name)
    _only_our_keys()
    _no_resolver()
    _quiet()


def _only_our_keys() -> None:
    """A public key of a kind that is hollow has no reader: libp2p then says so, as of an unknown kind."""
    reading = vars(importlib.import_module("libp2p.crypto.serialization"))
    ours = importlib.import_module("libp2p.crypto.keys").KeyType.Ed25519.value
    for name in ("key_type_to_public_key_deserializer", "key_type_to_private_key_deserializer"):
        reading[name] = {ours: reading[name][ours]}


def _no_resolver() -> None:
    """A swarm makes a DNS resolver, which no dial of ours asks."""
    vars(importlib.import_module("libp2p.network.swarm"))["DNSResolver"] = lambda: None


def _quiet() -> None:
    """Send libp2p's records to its own logger, silent below CRITICAL unless its LIBP2P_DEBUG is set.

    It logs expected things (a peer that hung up, a refused dial) as errors with stack traces; what matters
    of them we log ourselves. One module logs through the root logger, which would install a handler on
    stderr as a side effect.
    """
    if "LIBP2P_DEBUG" not in os.environ:
        logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    connection = importlib.import_module("libp2p.network.connection.swarm_connection")
    vars(connection)["logging"] = logging.getLogger("libp2p.network.connection.swarm_connection")


import_libp2p()
