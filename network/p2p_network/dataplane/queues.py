"""What waits for a peer's carrier, and whose turn is it?

Pure. One queue per peer, in it one line per flow (addresses, protocol, ports), served as RFC 8290 (FQ-CoDel)
does: a flow that has just begun or sends little goes first, the others take turns by bytes, and no flow's
packets ever overtake each other. What is too much is dropped at the head of the longest line, where its
sender notices soonest; a line whose head has waited too long loses it to the newcomer.

All queues share one budget: each may take half of what is still free (Choudhury and Hahne's dynamic
threshold), so many stuck peers can't take the memory, nor the last share of a healthy one.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import Final

from p2p_network.dataplane.packet import VNET_BYTES
from p2p_network.dataplane.records import ENTRY_BYTES

BUDGET_BYTES: Final = 16 << 20
FLOOR_BYTES: Final = 128 << 10
"""Every queue may hold this much, whatever the others do."""
WAIT_S: Final = 0.1
"""A slow path must not add seconds of delay."""
QUANTUM_BYTES: Final = 1 << 14
"""A flow's share of a turn."""

_LENGTH = Struct("!H")
_HEAD: Final = ENTRY_BYTES + VNET_BYTES
_WITH_PORTS: Final = (6, 17)


class QueueBudget:
    """What all queues together may hold."""

    __slots__ = ("free_bytes",)

    def __init__(self, total_bytes: int = BUDGET_BYTES) -> None:
        self.free_bytes = total_bytes


class _Flow:
    """One line: entries with the time at which they came."""

    __slots__ = ("credit", "entries", "size_bytes")

    def __init__(self) -> None:
        self.entries: deque[tuple[bytes, float]] = deque()
        self.size_bytes = 0
        self.credit = QUANTUM_BYTES


class FairQueue:
    """Entries that wait for one peer's carrier."""

    __slots__ = ("_budget", "_flows", "_new", "_old", "size_bytes")

    def __init__(self, budget: QueueBudget) -> None:
        self._budget = budget
        self._flows: dict[bytes, _Flow] = {}
        self._new: deque[bytes] = deque()
        self._old: deque[bytes] = deque()
        self.size_bytes = 0

    def __bool__(self) -> bool:
        return self.size_bytes > 0

    def push(self, batch: memoryview, now: float) -> int:
        """Append copies of a batch's entries; how many packets, of it or before it, were dropped."""
        at, end, dropped = 0, len(batch), 0
        while at < end:
            after = at + _HEAD + _LENGTH.unpack_from(batch, at)[0]
            entry = bytes(batch[at:after])
            key = flow_of(entry)
            flow = self._flows.get(key)
            if flow is None:
                flow = self._flows[key] = _Flow()
                self._new.append(key)
            flow.entries.append((entry, now))
            self._count(flow, len(entry))
            while len(flow.entries) > 1 and now - flow.entries[0][1] > WAIT_S:
                dropped += self._drop_head(flow)
            at = after
        return dropped + self._shrink()

    def _shrink(self) -> int:
        """Back to what this queue may hold."""
        dropped = 0
        while self.size_bytes > max(FLOOR_BYTES, self._budget.free_bytes):  # half of what was free without it
            dropped += self._drop_head(max(self._flows.values(), key=lambda flow: flow.size_bytes))
        return dropped

    def _drop_head(self, flow: _Flow) -> int:
        entry, _ = flow.entries.popleft()
        self._count(flow, -len(entry))
        return 1

    def _count(self, flow: _Flow, size: int) -> None:
        flow.size_bytes += size
        self.size_bytes += size
        self._budget.free_bytes -= size

    def pull(self, limit_bytes: int) -> bytes:
        """The next entries, as a batch of about up to `limit_bytes`; b"" for none."""
        taken: list[bytes] = []
        size = 0
        while self.size_bytes:
            line = self._new or self._old
            flow = self._flows[line[0]]
            if flow.credit <= 0:
                flow.credit += QUANTUM_BYTES
                self._old.append(line.popleft())
                continue
            if not flow.entries:
                self._retire(line)
                continue
            if taken and size + len(flow.entries[0][0]) > limit_bytes:
                break
            entry, _ = flow.entries.popleft()
            self._count(flow, -len(entry))
            flow.credit -= len(entry)
            taken.append(entry)
            size += len(entry)
        if not self.size_bytes:
            self._forget_all()
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def _retire(self, line: deque[bytes]) -> None:
        """A flow whose line is empty: a new one waits among the old for a turn, so that it can't come back
        as new at once and starve them.
        """
        key = line.popleft()
        if line is self._new and self._old:
            self._old.append(key)
        else:
            del self._flows[key]

    def _forget_all(self) -> None:
        self._flows.clear()
        self._new.clear()
        self._old.clear()

    def clear(self) -> int:
        """Forget everything; how many packets that were."""
        packets = sum(len(flow.entries) for flow in self._flows.values())
        self._budget.free_bytes += self.size_bytes
        self.size_bytes = 0
        self._forget_all()
        return packets


def flow_of(entry: bytes) -> bytes:
    """What a flow's packets have in common: addresses, protocol, and ports where every packet shows them.

    Fragments are told apart by addresses alone: only the first one has ports, and it must not be overtaken.
    """
    first = entry[_HEAD] if len(entry) > _HEAD else 0
    if first >> 4 == 4 and len(entry) >= _HEAD + 20:
        ports = _HEAD + (first & 15) * 4
        fragment = (entry[_HEAD + 6] << 8 | entry[_HEAD + 7]) & 0x3FFF
        key = entry[_HEAD + 9 : _HEAD + 10] + entry[_HEAD + 12 : _HEAD + 20]
        return key if fragment or key[0] not in _WITH_PORTS else key + entry[ports : ports + 4]
    if first >> 4 == 6 and len(entry) >= _HEAD + 40:
        key = entry[_HEAD + 6 : _HEAD + 7] + entry[_HEAD + 8 : _HEAD + 40]
        return key + entry[_HEAD + 40 : _HEAD + 44] if key[0] in _WITH_PORTS else key
    return b""
