"""What happened in a world, in a form that can be drawn?

A `Recorder` hears of states, faults, cuts and messages while a world runs, and draws nothing from its chance,
so a recorded world is the same as one that is not. `report` and `story` make pages, diagrams and text of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from p2p_bootstrap.node.cluster import JOIN_METHOD
from p2p_roles.genesis import messages

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine

MAX_MESSAGES: Final = 20_000
MAX_SPANS: Final = 5_000  # per node


@dataclass(slots=True)
class Span:
    """Something that lasted, from `start` to `end` (virtual seconds); `text` says why."""

    start: float
    end: float
    what: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Said:
    """A vote, an answer or a request for a join secret. `arrived`: None if it was lost."""

    at: float
    source: str
    target: str
    text: str
    is_answer: bool


@dataclass(slots=True)
class Record:
    """All of a world.

    Attributes:
        regions: node -> region.
        roles, k3s: node -> what it was, and what its k3s did, over time.
        faults: what the plan did to it; marks: certificates and alarms.
        cuts: pairs of nodes that could not talk, over time.
        said: the votes, in order; sent: how many messages and bytes there were in each virtual second.
        lines: the trace.
    """

    regions: dict[str, str]
    roles: dict[str, list[Span]] = field(default_factory=dict)
    k3s: dict[str, list[Span]] = field(default_factory=dict)
    faults: list[Span] = field(default_factory=list)
    marks: list[Span] = field(default_factory=list)
    cuts: list[tuple[float, float, frozenset[tuple[str, str]]]] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    sent: Counter[int] = field(default_factory=Counter)
    sent_bytes: Counter[int] = field(default_factory=Counter)
    ended_s: float = 0.0


class Recorder:
    """Writes the record of one world."""

    def __init__(self, regions: dict[str, str]) -> None:
        self.record = Record(regions)
        self._cut_since = 0.0
        self._lost: frozenset[tuple[str, str]] = frozenset()

    def looked(self, now: float, machine: SimMachine) -> None:
        """A machine has done something: it may be in another state."""
        agent = machine.agent
        if machine.gone:
            state, text = "gone", "left, or was switched off, for ever"
        elif not machine.is_on:
            state, text = "off", "no power"
        elif agent is None:
            state, text = "dead", "the agent does not run"
        elif machine.is_frozen:
            state, text = "frozen", "nothing goes on"
        elif not agent.witness.started:
            state, text = "starting", "the agent starts"
        else:
            status = agent.bootstrap.status
            ready = f"{status.role or ''} ready" if status.ready else ""
            state, text = ready.strip() or status.state.value, status.reason
        _extend(self.record.roles.setdefault(machine.name, []), now, state, text)
        _extend(self.record.k3s.setdefault(machine.name, []), now, machine.k3s.observed.state, "")

    def happened(self, now: float, text: str, for_s: float | None) -> None:
        """A fault of the plan."""
        self.record.faults.append(Span(now, now + (for_s or 0.0), "fault", text))

    def mark(self, now: float, what: str, text: str) -> None:
        """Something that must be seen in the picture: "certificate", "alarm", "healing", "violation"."""
        self.record.marks.append(Span(now, now, what, text))

    def cut(self, now: float, lost: frozenset[tuple[str, str]]) -> None:
        """Other pairs than before can't talk."""
        if self._lost:
            self.record.cuts.append((self._cut_since, now, self._lost))
        self._lost, self._cut_since = lost, now

    def sent(self, now: float, size_bytes: int) -> None:
        """A message, or an answer, left a node."""
        self.record.sent[int(now)] += 1
        self.record.sent_bytes[int(now)] += size_bytes

    def asked(self, now: float, source: str, target: str, method: str, payload: bytes) -> None:
        """A request left a node: votes and join secrets are kept."""
        if len(self.record.said) < MAX_MESSAGES and (text := _request_text(method, payload)):
            self.record.said.append(Said(now, source, target, text, False))

    def answered(self, now: float, source: str, target: str, method: str, answer: object) -> None:
        """An answer left a node."""
        if len(self.record.said) < MAX_MESSAGES and (text := _answer_text(method, answer)):
            self.record.said.append(Said(now, source, target, text, True))

    def end(self, now: float, machines: Iterable[SimMachine]) -> Record:
        """The world has ended."""
        for machine in machines:
            self.looked(now, machine)
        self.cut(now, frozenset())
        record = self.record
        record.ended_s = now
        for spans in (*record.roles.values(), *record.k3s.values()):
            spans[-1].end = now
        return record


def _extend(spans: list[Span], now: float, what: str, text: str) -> None:
    if spans and spans[-1].what == what:
        spans[-1].end = now
        return
    if spans:
        spans[-1].end = now
    if len(spans) < MAX_SPANS:
        spans.append(Span(now, now, what, text))


def _request_text(method: str, payload: bytes) -> str:
    if method == JOIN_METHOD:
        return f"may I join as {payload.decode(errors='replace')}?"
    if method != messages.METHOD:
        return ""
    try:
        request = messages.decode_request(payload)
    except ValueError:
        return "a vote that can't be read"
    return f"{type(request).__name__} {request.instance} round {request.ballot.round}"


def _answer_text(method: str, answer: object) -> str:
    if method == JOIN_METHOD:
        return "the answer about joining"
    if method != messages.METHOD or not isinstance(answer, bytes) or not answer:
        return ""
    try:
        said = messages.decode_answer(answer)
    except ValueError:
        return "an answer that can't be read"
    ballot = getattr(said, "ballot", None)
    return type(said).__name__ + (f" round {ballot.round}" if ballot is not None else "")
