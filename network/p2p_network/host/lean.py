"""How do we import libp2p without what a private TCP mesh never uses?

``import libp2p`` pulls in its ACME client and its Oso metrics provider, and with them httpx and requests:
0.1 s and 13 MB for code that can't run here. While libp2p is imported, those two names resolve to hollow
modules; afterwards they are gone again, so anybody else's ``import httpx`` gets the real one.

It also makes DNS resolvers, when it is imported and for every swarm, which read /etc/resolv.conf and raise
where that names no server: in an air-gapped site, or while a machine boots. We resolve names ourselves, so
libp2p's are made without configuration (`no_resolver_configuration`).

Import this module before any ``libp2p`` module. Drop it when libp2p imports them late.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Final

import dns.asyncresolver

UNUSED: Final = ("httpx", "requests")


class _Hollow(ModuleType):
    """A module whose every public attribute is an empty class: enough for annotations and subclasses."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


@contextlib.contextmanager
def no_resolver_configuration() -> Iterator[None]:
    """Resolvers of dnspython made in here do not read /etc/resolv.conf; they can't look anything up."""
    module = vars(dns.asyncresolver)
    configured = module["Resolver"]
    module["Resolver"] = functools.partial(configured, configure=False)
    try:
        yield
    finally:
        module["Resolver"] = configured


def import_libp2p() -> None:
    """Import libp2p with the unused packages hollow, and its chatter off. Does nothing the second time."""
    if "libp2p" in sys.modules:
        return
    hollow = [name for name in UNUSED if name not in sys.modules]
    for name in hollow:
        sys.modules[name] = _Hollow(name)
    try:
        with no_resolver_configuration():
            importlib.import_module("libp2p")
    finally:
        for name in hollow:
            del sys.modules[name]
    _quiet()


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
