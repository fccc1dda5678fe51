"""What does /etc/resolv.conf say, and what is to stand there instead?

Pure (resolv.conf(5)). Ours names this node's own name server first and keeps the former ones behind it: a
machine whose agent died goes on resolving.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

MARK: Final = "# written by kairos-p2p; the former file comes back when its agent ends"
MAX_SERVERS: Final = 3
"""The C library reads no more."""
MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """The lines that matter.

    Attributes:
        servers: name servers' addresses, best first.
        search: domains to complete short names with.
        others: every other line, as it is ("options ndots:2").
    """

    servers: tuple[str, ...]
    search: tuple[str, ...]
    others: tuple[str, ...]


def is_ours(text: str) -> bool:
    """Whether `render` made it."""
    return text.startswith(MARK)


def parse(text: str) -> ResolvConf:
    """Read a file; what is no address is passed over, as the C library does."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    others: list[str] = []
    for line in text[:MAX_BYTES].splitlines():
        words = line.split()
        if not words or words[0].startswith(("#", ";")):
            continue
        if words[0] == "nameserver" and len(words) > 1:
            if _is_address(words[1]):
                servers.append(words[1])
        elif words[0] in ("search", "domain"):
            search = tuple(words[1:])
        else:
            others.append(line)
    return ResolvConf(tuple(servers), search, tuple(others))


def render(before: ResolvConf, own: tuple[str, ...], origin: str) -> str:
    """The file with our own servers first, and `origin` as one more search domain."""
    servers = (*own, *(s for s in before.servers if s not in own))[:MAX_SERVERS]
    search = (*before.search, *(() if origin in before.search else (origin,)))
    return "".join(
        f"{line}\n"
        for line in (
            MARK,
            *(f"nameserver {s}" for s in servers),
            f"search {' '.join(search)}",
            *before.others,
        )
    )


def _is_address(text: str) -> bool:
    try:
        ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True
