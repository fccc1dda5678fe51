"""What is a query answered: by the zone, from the cache, by others, or not at all?

Pure: bytes in, a verdict out. The mesh's own names (and everything else under ``.p2p``, and the reverse
names of the VPN's networks) are answered here with authority; all others go to the servers that the machine
used before, for this machine's own programs only: a peer gets the mesh's names and nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

from p2p_network.names.zone import TOP, Zone

TTL_S: Final = 10
"""Of the mesh's own names: an address is for life, but who serves changes in seconds."""
MAX_CACHED: Final = 4096
MAX_CACHED_BYTES: Final = 4096
MAX_TTL_S: Final = 3600
_MIN_UDP_BYTES: Final = 512
_MAX_UDP_BYTES: Final = 1232  # DNS flag day 2020: what passes everywhere unfragmented


@dataclass(frozen=True, slots=True)
class Answer:
    """Send this back."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Forward:
    """Ask the machine's other servers; their reply goes to `Answering.forwarded`."""

    query: dns.message.QueryMessage


@dataclass(frozen=True, slots=True)
class Silence:
    """No reply: what came was no query."""


Verdict = Answer | Forward | Silence


class Answering:
    """The zone, the reverse networks and the cache. Times are monotonic seconds."""

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        self._networks = tuple(networks)
        self._cache: OrderedDict[tuple[str, int, int], tuple[float, float, bytes]] = OrderedDict()
        self.zone = Zone("")
        self.counts = {"mesh": 0, "cached": 0, "forwarded": 0, "refused": 0, "malformed": 0}

    def ask(self, raw: bytes, now: float, *, is_local: bool, tcp: bool) -> Verdict:
        """Judge one query. `is_local`: it comes from this machine."""
        try:
            query = dns.message.from_wire(raw, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError):
            self.counts["malformed"] += 1
            return Silence()
        if not isinstance(query, dns.message.QueryMessage) or query.flags & dns.flags.QR:
            self.counts["malformed"] += 1
            return Silence()
        if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
            return self._refuse(query, dns.rcode.NOTIMP)
        asked = query.question[0]
        if asked.rdclass != dns.rdataclass.IN:
            return self._refuse(query, dns.rcode.REFUSED)
        name = asked.name.to_text(omit_final_dot=True).lower()
        if name == TOP or name.endswith(f".{TOP}"):
            return Answer(self._by_zone(query, name, asked.rdtype, tcp))
        address = _address(asked.name) if name.endswith((".in-addr.arpa", ".ip6.arpa")) else None
        if address is not None and any(address in network for network in self._networks):
            return Answer(self._by_address(query, address, asked.rdtype, tcp))
        if not is_local:
            return self._refuse(query, dns.rcode.REFUSED)
        cached = self._cached(query, name, asked.rdtype, now, tcp)
        if cached is not None:
            self.counts["cached"] += 1
            return Answer(cached)
        self.counts["forwarded"] += 1
        return Forward(query)

    def _refuse(self, query: dns.message.QueryMessage, code: dns.rcode.Rcode) -> Answer:
        self.counts["refused"] += 1
        reply = dns.message.make_response(query)
        reply.set_rcode(code)
        return Answer(reply.to_wire())

    # --- the mesh's own names ----------------------------------------------------------------------

    def _by_zone(
        self, query: dns.message.QueryMessage, name: str, kind: dns.rdatatype.RdataType, tcp: bool
    ) -> bytes:
        self.counts["mesh"] += 1
        reply, owner, zone = _begin(query), query.question[0].name, self.zone
        if not zone.origin or not zone.holds(name):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        everything = kind == dns.rdatatype.ANY
        for wanted, version in ((dns.rdatatype.A, 4), (dns.rdatatype.AAAA, 6)):
            texts = [str(a) for a in zone.addresses.get(name, ()) if a.version == version]
            if texts and (everything or kind == wanted):
                reply.answer.append(dns.rrset.from_text(owner, TTL_S, "IN", wanted, *texts))
        if everything or kind == dns.rdatatype.SRV:
            targets = [f"0 0 {s.port} {s.target}." for s in zone.services.get(name, ())]
            if targets:
                reply.answer.append(dns.rrset.from_text(owner, TTL_S, "IN", dns.rdatatype.SRV, *targets))
        if name == zone.origin and kind in (dns.rdatatype.SOA, dns.rdatatype.ANY):
            reply.answer.append(self._authority())
        if not reply.answer:
            reply.authority.append(self._authority())
        return _whole(reply, query, tcp)

    def _by_address(
        self,
        query: dns.message.QueryMessage,
        address: IPv4Address | IPv6Address,
        kind: dns.rdatatype.RdataType,
        tcp: bool,
    ) -> bytes:
        self.counts["mesh"] += 1
        reply, name = _begin(query), self.zone.reverse.get(address)
        if name is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif kind in (dns.rdatatype.PTR, dns.rdatatype.ANY):
            owner = query.question[0].name
            reply.answer.append(dns.rrset.from_text(owner, TTL_S, "IN", dns.rdatatype.PTR, f"{name}."))
        return _whole(reply, query, tcp)

    def _authority(self) -> dns.rrset.RRset:
        """What says how long "there is no such name" may be remembered (RFC 2308)."""
        origin = self.zone.origin or TOP
        text = f"ns.{origin}. admin.{origin}. 1 3600 600 86400 {TTL_S}"
        return dns.rrset.from_text(f"{origin}.", TTL_S, "IN", dns.rdatatype.SOA, text)

    # --- everyone else's names ---------------------------------------------------------------------

    def forwarded(
        self, query: dns.message.QueryMessage, raw: bytes | None, now: float, *, tcp: bool
    ) -> bytes:
        """The reply to a query that was forwarded; `raw` is another server's, None if none answered."""
        reply = _of_other(query, raw)
        if reply is None:
            failed = dns.message.make_response(query, recursion_available=True)
            failed.set_rcode(dns.rcode.SERVFAIL)
            return failed.to_wire()
        self._keep(query, reply, now)
        return _whole(reply, query, tcp)

    def _keep(self, query: dns.message.QueryMessage, reply: dns.message.Message, now: float) -> None:
        if reply.flags & dns.flags.TC or reply.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            return
        times = [rrset.ttl for part in (reply.answer, reply.authority) for rrset in part]
        lives_s = min((*times, MAX_TTL_S)) if times else 0
        raw = reply.to_wire(max_size=65535)
        if lives_s > 0 and len(raw) <= MAX_CACHED_BYTES:
            self._cache[_key(query)] = (now + lives_s, now, raw)
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)

    def _cached(
        self, query: dns.message.QueryMessage, name: str, kind: dns.rdatatype.RdataType, now: float, tcp: bool
    ) -> bytes | None:
        entry = self._cache.get(_key(query))
        if entry is None:
            return None
        expires, kept_at, raw = entry
        if now >= expires:
            del self._cache[_key(query)]
            return None
        self._cache.move_to_end(_key(query))
        reply = dns.message.from_wire(raw)
        reply.id = query.id
        for part in (reply.answer, reply.authority, reply.additional):
            for rrset in part:
                rrset.ttl = max(0, rrset.ttl - int(now - kept_at))
        return _whole(reply, query, tcp)


def _begin(query: dns.message.QueryMessage) -> dns.message.Message:
    reply = dns.message.make_response(query, recursion_available=True)
    reply.flags |= dns.flags.AA
    return reply


def _whole(reply: dns.message.Message, query: dns.message.QueryMessage, tcp: bool) -> bytes:
    """The reply's bytes; over UDP cut to what the asker takes, and marked so that it asks by TCP."""
    limit = 65535
    if not tcp:
        limit = min(_MAX_UDP_BYTES, max(_MIN_UDP_BYTES, query.payload if query.edns >= 0 else 0))
    try:
        return reply.to_wire(max_size=limit)
    except dns.exception.TooBig:
        cut = dns.message.make_response(query, recursion_available=True)
        cut.flags |= dns.flags.TC
        cut.set_rcode(reply.rcode())
        return cut.to_wire()


def _of_other(query: dns.message.QueryMessage, raw: bytes | None) -> dns.message.Message | None:
    """Another server's reply, if it is one to this query."""
    if raw is None:
        return None
    try:
        reply = dns.message.from_wire(raw, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return None
    return reply if query.is_response(reply) else None


def _key(query: dns.message.QueryMessage) -> tuple[str, int, int]:
    asked = query.question[0]
    return asked.name.to_text().lower(), int(asked.rdtype), int(query.ednsflags) & dns.flags.DO


def _address(name: dns.name.Name) -> IPv4Address | IPv6Address | None:
    try:
        text = dns.reversename.to_address(name)
        return IPv6Address(text) if ":" in text else IPv4Address(text)
    except (dns.exception.DNSException, ValueError):
        return None
