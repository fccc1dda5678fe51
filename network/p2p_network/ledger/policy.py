"""Who may write which key, how large, and how many?

One table, `TABLE`: a key's first segment names its class. An entry that breaks its class's rule is
refused by every node, whoever relays it. Three kinds of writer:

- owner: the author's own peer id is the key's last segment;
- member: an owner that shows its certificate (`owns`), so admission is not asked again;
- authority: a callable of the owner of the ledger says who (`may_write`): a cluster's servers for
  `assign/...`, a holder of the root for `accepted/...`, `access/...` and `drain/...`, the grantor for
  `grant/...`;
- certificate: the value proves itself (`decided`), so the author does not matter: what a quorum decided, and
  what the mesh's authority signed (`admission.documents`).

``<scope>`` is one or two segments: a network id, or a network id and a region.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never

from p2p_network.core.ids import public_key_of
from p2p_network.ledger.entry import MAX_KEY_CHARS, MAX_VALUE_BYTES


class Writer(StrEnum):
    """Who may write a class of keys."""

    OWNER = "owner"
    MEMBER = "member"
    AUTHORITY = "authority"
    CERTIFICATE = "certificate"


class Refusal(StrEnum):
    """Why an entry is not stored. The values are sentences for people and label a counter."""

    BAD_KEY = "no key of this form is known"
    TOO_LARGE = "the value is larger than its class allows"
    NOT_OWNER = "the key belongs to another node"
    NOT_AUTHORITY = "the author is no authority for this key"
    NOT_ADMITTED = "the author is not admitted to the mesh"
    NOT_CERTIFIED = "neither a quorum nor the mesh's authority certified this value"
    NOT_DELETABLE = "entries of this class can't be deleted"
    FORGED = "the signature is not the author's"
    AHEAD = "its stamp lies too far in the future"
    DELETED = "the key was deleted after this entry was written"
    AUTHOR_FULL = "the author holds as many entries as it may"
    FULL = "the ledger is full"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table.

    Attributes:
        shape: the segments after the class's name.
        max_value_bytes: largest value.
        max_per_author: entries of this class one author may hold.
        max_entries: entries of this class in all.
        is_deletable: whether a tombstone is allowed.
    """

    shape: tuple[str, ...]
    writer: Writer
    max_value_bytes: int
    max_per_author: int
    max_entries: int
    is_deletable: bool

    @property
    def is_certificate(self) -> bool:
        """Whether the value alone decides which entry wins."""
        return self.writer is Writer.CERTIFICATE


_MAX_NODES: Final = 10_000

TABLE: Final[dict[str, Rule]] = {
    "node": Rule(("<peer>",), Writer.OWNER, 8192, 1, _MAX_NODES, True),
    # an address stays reserved for ever, even when its node has left: so it can't be deleted
    "address": Rule(("<peer>",), Writer.OWNER, 256, 1, _MAX_NODES, False),
    "place": Rule(("<peer>",), Writer.OWNER, 256, 1, _MAX_NODES, True),
    "role": Rule(("<peer>",), Writer.OWNER, 4096, 1, _MAX_NODES, True),
    "assign": Rule(("<scope>", "<peer>"), Writer.AUTHORITY, 2048, 2 * _MAX_NODES, 2 * _MAX_NODES, True),
    # who made a later server one, so that its words can be believed: each grantor's own, never contested
    "grant": Rule(("<scope>", "<peer>", "<peer>"), Writer.AUTHORITY, 64, 256, 2 * _MAX_NODES, False),
    # what a node offers to carry; which of it the mesh uses, and who may reach whom, say holders of the root
    "services": Rule(("<peer>",), Writer.OWNER, 8192, 1, _MAX_NODES, True),
    "routes": Rule(("<peer>",), Writer.OWNER, 4096, 1, _MAX_NODES, True),
    "accepted": Rule(("<peer>",), Writer.AUTHORITY, 4096, _MAX_NODES, _MAX_NODES, True),
    "access": Rule(("<name>",), Writer.AUTHORITY, MAX_VALUE_BYTES, 1, 1, True),
    # that a node will be away on purpose: its own word, or that of a holder of the root
    "drain": Rule(("<peer>",), Writer.AUTHORITY, 1024, _MAX_NODES, _MAX_NODES, True),
    # an upgrade of k3s: what the cluster's servers order, and how far each node is
    "upgrade": Rule(("<scope>",), Writer.AUTHORITY, 16 << 10, 1024, 1024, False),
    "k3s": Rule(("<peer>",), Writer.OWNER, 2048, 1, _MAX_NODES, True),
    "genesis": Rule(
        ("<scope>", "<epoch>", "<decree>"), Writer.CERTIFICATE, MAX_VALUE_BYTES, 1024, 1024, False
    ),
    # admission (`admission.documents`): never deleted, since a member that was away must learn of them
    "member": Rule(("<peer>",), Writer.MEMBER, 512, 1, _MAX_NODES, False),
    "founder": Rule(("<peer>",), Writer.OWNER, 4096, 1, _MAX_NODES, False),
    "revoked": Rule(("<peer>",), Writer.CERTIFICATE, 1024, _MAX_NODES, _MAX_NODES, False),
    "invite": Rule(("<id>",), Writer.CERTIFICATE, 512, 4096, 4096, False),
    "withdrawn": Rule(("<id>",), Writer.CERTIFICATE, 256, 4096, 4096, False),
    "use": Rule(("<id>", "<peer>"), Writer.CERTIFICATE, 512, _MAX_NODES, _MAX_NODES, False),
    "generation": Rule(("<epoch>",), Writer.CERTIFICATE, 512, 1024, 1024, False),
    "seat": Rule(("<epoch>", "<peer>"), Writer.CERTIFICATE, 1536, 4 * _MAX_NODES, 4 * _MAX_NODES, False),
}


def rule_of(key: str) -> Rule | None:
    """The rule for a key, or None if the table has no key of this form."""
    name, *rest = key.split("/")
    rule = TABLE.get(name)
    if rule is None or len(key) > MAX_KEY_CHARS:
        return None
    if not all(segment and segment.isprintable() for segment in rest):
        return None
    expected = list(rule.shape)
    if expected[0] == "<scope>" and len(rest) == len(expected) + 1:
        expected.insert(0, "<scope>")  # network id / region
    if len(rest) != len(expected):
        return None
    return rule if all(map(_fits, expected, rest)) else None


@dataclass(frozen=True, slots=True)
class Policy:
    """The table with the callables that fill its blanks. They must answer, never raise, on any input.

    Attributes:
        decided: (key, value) -> the canonical bytes of what a quorum certified, or None if the value is no
            valid certificate for this key. Two certificates contradict if these bytes differ; two
            different sets of signatures on one decision don't.
        may_write: (key, author) -> whether the author is an authority for this key, now.
        admitted: (author) -> whether the author is a member of the mesh. By default everyone is who
            passes the mesh's pre-shared key.
        fence: (key, value) -> how new an authority's word is, by the datastore that it comes from; of two
            the higher wins, before any stamp. At least 0; 0 for what has none.
        spoke: (author, wall_ms) -> whether the author was a member at that moment. What an authority said of
            others then stays true when it is a member no more.
        owns: (key, value) -> whether the value is the owner's certificate, for ``member/<peer>``.
        outlived: (keys) -> the held keys that prove nothing any more now that these certificates are held;
            may name some of these. They are forgotten, and come in no more: without it a class that only
            grows would be full one day.
    """

    decided: Callable[[str, bytes], bytes | None]
    may_write: Callable[[str, str], bool]
    admitted: Callable[[str], bool] = lambda _author: True
    spoke: Callable[[str, int], bool] = lambda _author, _wall_ms: True
    owns: Callable[[str, bytes], bool] = lambda _key, _value: False
    outlived: Callable[[Collection[str]], Iterable[str]] = lambda _keys: ()
    fence: Callable[[str, bytes], int] = lambda _key, _value: 0

    def fence_of(self, rule: Rule, key: str, value: bytes | None) -> int:
        """How new a word is, apart from its stamp."""
        return self.fence(key, value) if rule.writer is Writer.AUTHORITY and value is not None else 0

    def refusal(
        self, rule: Rule, key: str, author: str, value: bytes | None, *, wall_ms: int | None = None
    ) -> Refusal | None:
        """Why this author may not write this value, or None if it may. The signature is not looked at.

        `wall_ms`: when it wrote it, by its own stamp; None: now.
        """
        if value is None:
            if not rule.is_deletable:
                return Refusal.NOT_DELETABLE
        elif len(value) > rule.max_value_bytes:
            return Refusal.TOO_LARGE
        match rule.writer:
            case Writer.OWNER:
                if author != key.rpartition("/")[2]:
                    return Refusal.NOT_OWNER
            case Writer.MEMBER:
                if author != key.rpartition("/")[2]:
                    return Refusal.NOT_OWNER
                return None if value and self.owns(key, value) else Refusal.NOT_CERTIFIED
            case Writer.AUTHORITY:
                if not self.may_write(key, author):
                    return Refusal.NOT_AUTHORITY
                if wall_ms is not None and self.spoke(author, wall_ms):
                    return None
            case Writer.CERTIFICATE:
                # no admission here: the author only delivers what a quorum signed
                return None if value and self.decided(key, value) is not None else Refusal.NOT_CERTIFIED
            case _:
                assert_never(rule.writer)
        return None if self.admitted(author) else Refusal.NOT_ADMITTED


def _fits(expected: str, segment: str) -> bool:
    if expected == "<peer>":
        try:
            public_key_of(segment)
        except ValueError:
            return False
        return True
    if expected == "<id>":
        return len(segment) == 16 and all(char in "0123456789abcdef" for char in segment)
    if expected == "<epoch>":
        return segment.isascii() and segment.isdigit() and len(segment) <= 10 and str(int(segment)) == segment
    return True
