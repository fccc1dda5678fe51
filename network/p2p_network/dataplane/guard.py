"""Is this packet an answer to something that this side began?

Pure. A peer that may not begin anything here (`access`) still gets its answers through: what this side
sends to it is remembered by addresses, protocol and ports, bounded and for a time, and only packets that go
the other way are let in. A TCP connection is begun by a SYN; an ICMP error counts where it quotes a packet
of such a flow (path MTU depends on it). Fragments without ports pass if any flow is open between the two.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from struct import Struct
from typing import Final

from p2p_network.dataplane.packet import Buffer

MAX_FLOWS: Final = 4096
TCP_S: Final = 7200.0
OTHER_S: Final = 300.0

_TCP: Final = 6
_UDP: Final = 17
_ICMP4: Final = 1
_ICMP6: Final = 58
_ERRORS4: Final = (3, 11, 12)
_ERRORS6: Final = (1, 2, 3, 4)
_ECHO: Final = {8: 0, 128: 129}
_SYN, _ACK = 0x02, 0x10
_PORTS = Struct("!HH")
_IP4_HEADER: Final = 20
_IP6_HEADER: Final = 40
_ICMP_HEADER: Final = 8

Flow = tuple[int, bytes, bytes, int, int]
"""Protocol, this side's address, the other's, this side's port, the other's; ports 0 for any fragment."""


class Guard:
    """The flows that this side began with one peer."""

    __slots__ = ("_flows",)

    def __init__(self) -> None:
        self._flows: OrderedDict[Flow, float] = OrderedDict()

    def flows(self) -> list[tuple[int, bytes, bytes, int, int, float]]:
        """What is remembered, the oldest first."""
        return [(*flow, since) for flow, since in self._flows.items()]

    def remember(self, flows: Iterable[tuple[int, bytes, bytes, int, int, float]]) -> None:
        """Know these flows, as `flows` gave them."""
        for protocol, own, other, own_port, other_port, since in flows:
            self._keep((protocol, own, other, own_port, other_port), since)

    def __len__(self) -> int:
        return len(self._flows)

    def sent(self, buffer: Buffer, at: int, size: int, now: float) -> None:
        """This side sends an IP packet of `size` bytes at `at`."""
        flow, begins = _flow_of(buffer, at, size, outwards=True)
        if flow is None or (not begins and flow not in self._flows):
            return
        self._keep(flow, now)
        self._keep((flow[0], flow[1], flow[2], 0, 0), now)

    def admits(self, buffer: Buffer, at: int, size: int, now: float) -> bool:
        """Whether the peer's packet answers something."""
        flow, _ = _flow_of(buffer, at, size, outwards=False)
        if flow is None:
            quoted = _quoted(buffer, at, size)
            if quoted is None:
                return False
            flow, _ = _flow_of(buffer, quoted, at + size - quoted, outwards=True)
            return flow is not None and self._is_open(flow, now)
        if not self._is_open(flow, now):
            return False
        self._keep(flow, now)
        return True

    def _is_open(self, flow: Flow, now: float) -> bool:
        since = self._flows.get(flow)
        return since is not None and now - since < (TCP_S if flow[0] == _TCP else OTHER_S)

    def _keep(self, flow: Flow, now: float) -> None:
        self._flows[flow] = now
        self._flows.move_to_end(flow)
        if len(self._flows) > MAX_FLOWS:
            self._flows.popitem(last=False)


def _flow_of(buffer: Buffer, at: int, size: int, *, outwards: bool) -> tuple[Flow | None, bool]:
    """The flow of a packet, seen from this side, and whether the packet may begin it."""
    head = _head(buffer, at, size)
    if head is None:
        return None, False
    protocol, source, target, start, is_fragment = head
    here, there = (source, target) if outwards else (target, source)
    if is_fragment:
        return (protocol, here, there, 0, 0), False
    end = at + size
    if protocol in (_TCP, _UDP):
        if end - start < _PORTS.size:
            return None, False
        first, second = _PORTS.unpack_from(buffer, start)
        ports = (first, second) if outwards else (second, first)
        begins = protocol == _UDP or (end - start > 13 and buffer[start + 13] & (_SYN | _ACK) == _SYN)
        return (protocol, here, there, *ports), begins
    if protocol in (_ICMP4, _ICMP6):
        if end - start < _ICMP_HEADER:
            return None, False
        kind = buffer[start]
        wanted = _ECHO if outwards else {reply: request for request, reply in _ECHO.items()}
        if kind not in wanted:
            return None, False
        return (protocol, here, there, _PORTS.unpack_from(buffer, start + 4)[0], 1), True
    return (protocol, here, there, 1, 1), True


def _head(buffer: Buffer, at: int, size: int) -> tuple[int, bytes, bytes, int, bool] | None:
    """Protocol, source, target, where the transport begins, and whether its header is elsewhere."""
    version = buffer[at] >> 4 if size >= _IP4_HEADER else 0
    if version == 4:
        start = at + (buffer[at] & 15) * 4
        fragment = (buffer[at + 6] << 8 | buffer[at + 7]) & 0x1FFF != 0
        source, target = bytes(buffer[at + 12 : at + 16]), bytes(buffer[at + 16 : at + 20])
        return buffer[at + 9], source, target, start, fragment
    if version == 6 and size >= _IP6_HEADER:
        protocol, start = buffer[at + 6], at + _IP6_HEADER
        fragment = False
        if protocol == 44 and size >= _IP6_HEADER + 8:
            fragment = (buffer[start + 2] << 8 | buffer[start + 3]) & 0xFFF8 != 0
            protocol, start = buffer[start], start + 8
        source, target = bytes(buffer[at + 8 : at + 24]), bytes(buffer[at + 24 : at + 40])
        return protocol, source, target, start, fragment
    return None


def _quoted(buffer: Buffer, at: int, size: int) -> int | None:
    """Where the packet begins that an ICMP error is about; None if it is no error."""
    head = _head(buffer, at, size)
    if head is None:
        return None
    protocol, _, _, start, is_fragment = head
    errors = _ERRORS4 if protocol == _ICMP4 else _ERRORS6 if protocol == _ICMP6 else ()
    if is_fragment or at + size - start < _ICMP_HEADER + _IP4_HEADER or buffer[start] not in errors:
        return None
    return start + _ICMP_HEADER
