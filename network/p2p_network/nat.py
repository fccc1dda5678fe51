"""How is this node seen from outside: does a router translate its addresses, and which kind of router?

Members tell each other from which address the other's connections and datagrams come (`Told`). `Outside`
keeps the latest word of each, bounded; `judge` says what follows, going by where independent observers agree:

    none       they see an address of this machine
    cone       they see another one, and all the same: whoever knows it may try to come in there
               (endpoint-independent mapping, RFC 4787: full, restricted or port-restricted cone)
    symmetric  they see another one, and each a different port: nothing told by one is good for another
    unknown    nobody, or too few, said something

Whether strangers come in is a matter of its own (`DialBack`): a member tries. `question_s` says how often an
idle path is to be asked so that a router on it does not forget it. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from p2p_network.core import endpoints
from p2p_network.core.ids import PeerId
from p2p_network.host.addresses import Endpoint

MAX_OBSERVERS: Final = 64
MAX_TEXT: Final = 64
AGREEING: Final = 2
"""So many observers at different addresses must agree: one alone may be wrong, or lie."""
KEEP_S: Final = 15.0
"""Routers forget an idle UDP flow after 30 s (RFC 4787 asks for more)."""
WATCH_S: Final = 1.0
MAX_DIALLED_BACK: Final = 4

Kind = Literal["none", "cone", "symmetric", "unknown"]


class Told(msgspec.Struct, frozen=True):
    """Request ``nat.told``: what a node says to a peer of both. Addresses are "ip:port" or "[ip]:port".

    Attributes:
        udp: where the peer's datagrams come from; "" if there are none.
        tcp: the other end of the data plane's TCP connection with it; "" if there is none.
        mesh: the other end of the mesh's connection with it; "" if a relay carries it.
        kind: what the teller itself stands behind.
        own_udp: where the teller's own datagrams come out of its NAT, as `Nat.udp` has it.
    """

    udp: str = ""
    tcp: str = ""
    mesh: str = ""
    kind: Kind = "unknown"
    own_udp: str = ""


class DialBack(msgspec.Struct, frozen=True):
    """Request ``nat.dial_back``: can you reach me at these addresses, with a new connection?"""

    addresses: tuple[str, ...]


class DialledBack(msgspec.Struct, frozen=True):
    """Its answer: those at which this very node answered, and what was wrong with the others."""

    reached: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True, slots=True)
class Nat:
    """What follows from all that was told.

    Attributes:
        udp: where datagrams come out, if all who see them see the same; "" otherwise. Of kind "cone" several
            do; one alone is enough for others to try to come in there.
        ip: the address that is seen, if observers agree; "" without a router in between.
        observers: how many said something.
        reason: one sentence.
    """

    kind: Kind
    udp: str = ""
    ip: str = ""
    observers: int = 0
    reason: str = "no member has told yet how it sees this node"

    @property
    def is_behind(self) -> bool:
        """Whether somebody sees another address than this machine has."""
        return self.kind in ("cone", "symmetric") or bool(self.ip)


UNKNOWN: Final = Nat("unknown")


def checked(told: Told) -> Told:
    """The same without what is no usable address: it comes from a peer. Raises ValueError: none at all."""
    texts = {name: getattr(told, name) for name in ("udp", "tcp", "mesh", "own_udp")}
    if any(len(text) > MAX_TEXT for text in texts.values()):
        raise ValueError("an address that is too long")
    return msgspec.structs.replace(
        told, **{name: text if usable(text) else "" for name, text in texts.items()}
    )


def split(text: str) -> tuple[str, int] | None:
    """(ip, port) of "ip:port" or "[ip]:port"; None for anything else."""
    try:
        host, port = endpoints.split_ip(text)
    except ValueError:
        return None
    return str(getattr(ipaddress.ip_address(host), "ipv4_mapped", None) or host), port


def usable(text: str) -> bool:
    """Whether it is an address that somebody could be seen under."""
    found = split(text)
    if found is None:
        return False
    ip = ipaddress.ip_address(found[0])
    return not (ip.is_multicast or ip.is_unspecified or found[0] == "255.255.255.255")


def ip_of(text: str) -> str:
    """The address without its port; "" for none."""
    found = split(text)
    return found[0] if found is not None else ""


@dataclass(frozen=True, slots=True)
class Observation:
    """A peer's latest word, and from which address it looked ("" if unknown: it counts for little)."""

    told: Told
    looked_from: str


def sees_own(told: Told | None, own_ips: Collection[str]) -> bool:
    """Whether a peer sees this node under an address of its own."""
    return told is None or all(ip in own_ips for ip in _ips(told))


class Outside:
    """The latest word of each peer. At most `MAX_OBSERVERS`; who said something last stays."""

    def __init__(self) -> None:
        self._by_peer: dict[PeerId, Observation] = {}

    def note(self, peer: PeerId, told: Told, looked_from: str) -> None:
        """A peer said it."""
        self._by_peer.pop(peer, None)
        if len(self._by_peer) >= MAX_OBSERVERS:
            del self._by_peer[next(iter(self._by_peer))]
        self._by_peer[peer] = Observation(told, looked_from)

    def forget(self, peer: PeerId) -> None:
        """It is here no more."""
        self._by_peer.pop(peer, None)

    def told_by(self, peer: PeerId) -> Told | None:
        """Its latest word."""
        found = self._by_peer.get(peer)
        return found.told if found is not None else None

    def peers(self) -> tuple[PeerId, ...]:
        """Who said something."""
        return tuple(self._by_peer)

    def judge(self, own_ips: Collection[str], udp_port: int) -> Nat:
        """See `judge`."""
        return judge(tuple(self._by_peer.values()), own_ips, udp_port)


def judge(seen: Iterable[Observation], own_ips: Collection[str], udp_port: int) -> Nat:
    """What this node stands behind.

    Args:
        own_ips: addresses of this machine.
        udp_port: of its data plane.
    """
    words = tuple(seen)
    count = len(words)
    foreign = [w for w in words if any(ip not in own_ips for ip in _ips(w.told))]
    if not foreign:
        if any(_ips(w.told) for w in words):
            at = next(text for w in words for text in (w.told.udp, w.told.tcp, w.told.mesh) if text)
            return Nat(
                "none", observers=count, reason=f"{_members(count)} this node under its own address, {at}"
            )
        return Nat("unknown", observers=count)
    ip = _agreed((w, ip) for w in foreign for ip in _ips(w.told) if ip not in own_ips)
    datagrams = [
        (w, w.told.udp) for w in foreign if w.told.udp and _is_foreign(w.told.udp, own_ips, udp_port)
    ]
    udp = _agreed(datagrams)
    if udp:
        return Nat(
            "cone",
            udp,
            ip_of(udp),
            count,
            f"{_members(_places(datagrams, udp))} its datagrams come from {udp}",
        )
    if _places(datagrams) >= AGREEING:
        ports = ", ".join(sorted({text for _, text in datagrams})[:3])
        return Nat("symmetric", "", ip, count, f"each member sees its datagrams come from elsewhere: {ports}")
    one = next(ip for w in foreign for ip in _ips(w.told) if ip not in own_ips)
    alone = datagrams[0][1] if len({text for _, text in datagrams}) == 1 else ""
    reason = f"behind a router: seen as {alone or one}, but by too few to say of which kind"
    return Nat("unknown", alone, ip or one, count, reason)


def _members(count: int) -> str:
    return "a member sees" if count == 1 else f"{count} members see"


def _ips(told: Told) -> tuple[str, ...]:
    return tuple(dict.fromkeys(ip_of(text) for text in (told.udp, told.tcp, told.mesh) if text))


def _is_foreign(udp: str, own_ips: Collection[str], udp_port: int) -> bool:
    found = split(udp)
    return found is not None and (found[0] not in own_ips or found[1] != udp_port)


def _places(words: Iterable[tuple[Observation, str]], text: str = "") -> int:
    """From how many addresses they looked (at this `text`)."""
    return len({w.looked_from for w, said in words if w.looked_from and text in ("", said)})


def _agreed(words: Iterable[tuple[Observation, str]]) -> str:
    """What most say, if they are enough and look from different places; "" otherwise."""
    from_where: dict[str, set[str]] = {}
    for word, text in words:
        if word.looked_from:
            from_where.setdefault(text, set()).add(word.looked_from)
    if not from_where:
        return ""
    most = max(from_where, key=lambda text: (len(from_where[text]), text))
    return most if len(from_where[most]) >= AGREEING else ""


# --- how often an idle path is asked -------------------------------------------------------------------


def question_s(
    *, told: Told | None, own_ips: Collection[str], is_here: bool, reachable: bool | None
) -> float:
    """Seconds between two questions of this side to an idle path with a peer; 0: none are needed.

    A router that translates, or lets in only what answers, forgets a flow that rests; the side behind it
    keeps it open. A peer behind one knows so from us, and asks. What is not known counts as behind.

    Args:
        told: how the peer sees this node, if it said so.
        own_ips: addresses that this node has itself.
        is_here: the mesh has a connection with the peer; if not, the path is watched, since nobody else does.
        reachable: what dialling back said of this node.
    """
    if not is_here:
        return WATCH_S
    ips = _ips(told) if told is not None else ()
    if not ips or reachable is False or any(ip not in own_ips for ip in ips):
        return KEEP_S
    return 0.0


# --- dialling back -------------------------------------------------------------------------------------


def to_dial_back(nat: Nat, own: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """Where others might reach this node: at the address it is seen under, with its ports, and at its own."""
    own = tuple(own)
    seen: tuple[Endpoint, ...] = ()
    if nat.ip:
        is_ip6 = ":" in nat.ip
        seen = tuple(Endpoint(nat.ip, e.port) for e in own if (":" in e.host) == is_ip6)
    return tuple(dict.fromkeys((*seen, *own)))[:MAX_DIALLED_BACK]


def may_be_dialled(wanted: Iterable[Endpoint], known: Collection[str]) -> tuple[Endpoint, ...]:
    """Of what a peer asks to be dialled at, what this node may: only where it was seen, or says it lives.

    Args:
        known: IP addresses under which the peer is seen or known; or else it could aim us at a third.
    """
    return tuple(dict.fromkeys(e for e in wanted if e.host in known))[:MAX_DIALLED_BACK]
