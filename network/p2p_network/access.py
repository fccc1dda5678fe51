"""Who may reach whom?

Pure. Rules are lines of one list, ``allow WHO to WHOM`` or ``deny WHO to WHOM``; the first that fits decides,
and without one members may talk to members. WHO and WHOM are ``any``, ``role:server``, ``role:agent``,
``region:NAME``, or ``node:NAME`` (host name, or the peer id or its end). A rule is about who begins: answers
to what the other side began always come back. The receiving side enforces it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from p2p_network.core.ids import PeerId

MAX_RULES: Final = 200
MAX_RULE_CHARS: Final = 200
_KINDS: Final = ("role", "region", "node")
_ROLES: Final = ("server", "agent")
_MIN_ID_CHARS: Final = 8
FORM: Final = "allow|deny WHO to WHOM; WHO: any, role:server, role:agent, region:NAME or node:NAME"


@dataclass(frozen=True, slots=True)
class Subject:
    """A node, as rules see it. `role`: "server", "agent" or "" for none."""

    peer: PeerId
    hostname: str
    region: str
    role: str


@dataclass(frozen=True, slots=True)
class Selector:
    """``any`` (`kind` and `name` empty), or ``KIND:NAME``."""

    kind: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.kind else "any"

    def fits(self, subject: Subject) -> bool:
        """Whether it means this node."""
        match self.kind:
            case "":
                return True
            case "role":
                return subject.role == self.name
            case "region":
                return subject.region == self.name
            case _:
                is_end = len(self.name) >= _MIN_ID_CHARS and subject.peer.endswith(self.name)
                return self.name in (subject.hostname, subject.peer) or is_end


@dataclass(frozen=True, slots=True)
class Rule:
    """One line."""

    action: Literal["allow", "deny"]
    source: Selector
    target: Selector

    def __str__(self) -> str:
        return f"{self.action} {self.source} to {self.target}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether, and by which rule; `rule` is "" where none fits."""

    allowed: bool
    rule: str


def parse_rule(text: str) -> Rule:
    """A line. Raises ValueError with one sentence."""
    words = text.split()
    if len(text) > MAX_RULE_CHARS or len(words) != 4 or words[2] != "to":
        raise ValueError(f"{text[:80]!r} is no rule: write {FORM}")
    action = words[0]
    if action not in ("allow", "deny"):
        raise ValueError(f"{action[:40]!r} is neither allow nor deny")
    return Rule("allow" if action == "allow" else "deny", _selector(words[1]), _selector(words[3]))


def _selector(text: str) -> Selector:
    if text == "any":
        return Selector()
    kind, _, name = text.partition(":")
    if kind not in _KINDS or not name or not name.isprintable():
        raise ValueError(f"{text[:80]!r} says nobody: write any, role:NAME, region:NAME or node:NAME")
    if kind == "role" and name not in _ROLES:
        raise ValueError(f"{name[:40]!r} is no role: server or agent")
    return Selector(kind, name)


def parse_rules(texts: Iterable[str]) -> tuple[Rule, ...]:
    """All of a list. Raises ValueError naming the first bad one, or if there are too many."""
    rules = tuple(parse_rule(text) for text in texts)
    if len(rules) > MAX_RULES:
        raise ValueError(f"{len(rules)} rules; at most {MAX_RULES} are possible")
    return rules


def judge(rules: Sequence[Rule], source: Subject, target: Subject) -> Verdict:
    """Whether `source` may begin to talk to `target`."""
    for rule in rules:
        if rule.source.fits(source) and rule.target.fits(target):
            return Verdict(rule.action == "allow", str(rule))
    return Verdict(True, "")
