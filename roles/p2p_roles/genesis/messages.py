"""What do voters say to each other, and about what?

An `Instance` is one decision: (scope, epoch, decree). Decree 1 of an epoch is its GENESIS (who
initialises the cluster, with which CA), decree 2 its end: READY or ABORT, never both. Each instance is
one single-decree Paxos (Lamport, "Paxos Made Simple", 2001). Requests are `Prepare` and `Accept`;
each gets exactly one answer. Everything here crosses a wire or rests on a disk: strict and bounded.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from p2p_network import wire

GENESIS: Final = 1
OUTCOME: Final = 2

VOTE_PURPOSE: Final = "genesis-vote"
METHOD: Final = "genesis"
"""The name of the request between peers that carries these messages."""

MAX_MESSAGE_BYTES: Final = 256 * 1024
MAX_VALUE_BYTES: Final = 8 * 1024
MAX_SERVERS: Final = 31
MAX_EPOCH: Final = 1 << 31
MAX_ROUND: Final = 1 << 31

MAX_REMARK_CHARS: Final = 500
MAX_TIME: Final = 600_000

Datastore = Literal["etcd", "external", "sqlite"]


class Instance(msgspec.Struct, frozen=True, array_like=True, order=True):
    """One decision. `decree`: GENESIS (1) or OUTCOME (2) of an epoch."""

    scope: str
    epoch: int
    decree: int

    def __str__(self) -> str:
        return f"{'GENESIS' if self.decree == GENESIS else 'OUTCOME'}({self.epoch})"


class Ballot(msgspec.Struct, frozen=True, array_like=True, order=True):
    """The number of an attempt; the peer id makes it unique."""

    round: int
    peer: str


# ---------------------------------------------------------------- values


class Timing(msgspec.Struct, frozen=True, array_like=True):
    """By which times etcd and the leader elections go; equal on all servers, so it is certified.

    Attributes:
        heartbeat_ms, election_ms: etcd's; 0: k3s's own (500, 5000).
        lease_s, renew_s: of the controllers' leader elections; 0: Kubernetes's own (15, 10).
    """

    heartbeat_ms: int = 0
    election_ms: int = 0
    lease_s: int = 0
    renew_s: int = 0


class Continuation(msgspec.Struct, frozen=True):
    """What a GENESIS carries on instead of beginning a cluster from nothing.

    Attributes:
        epoch: the newest epoch whose cluster was up before this one; 0 if there was none. From then on
            no cluster may begin from nothing in this scope.
        cluster_id: of the cluster whose data lives on; "" for one that was backed up elsewhere.
        reset: etcd begins again with the initiator as its only member; every other server joins anew.
        snapshot: hex SHA-256 of the snapshot that is restored; "" for the data that the initiator has.
        lost: peers that an operator declared lost for ever; they don't count for the quorum.
        lineage: the ids that the cluster had before `cluster_id`, newest first.
        abandons: clusters whose data may be set aside although workloads run in them.
        approved_by: the peer on which an operator (or the opted-in automatism) asked for it.
    """

    epoch: int
    cluster_id: str = ""
    reset: bool = False
    snapshot: str = ""
    lost: tuple[str, ...] = ()
    lineage: tuple[str, ...] = ()
    abandons: tuple[str, ...] = ()
    approved_by: str = ""


class Genesis(msgspec.Struct, frozen=True, tag="genesis"):
    """Decree 1: `initiator` runs ``cluster-init``, with this CA and no other.

    With `continues` it is a recovery instead: `initiator` brings a cluster back, with the CA it had.

    Attributes:
        cluster_id: names the cluster for ever.
        initiator: peer id of the first server.
        vpn_ip: its VPN address.
        ca_hash: hex SHA-256 that a K10 token of this cluster pins; the fence.
        args_hash: of the options that must be equal on all servers.
        k3s_version: of the initiator's binary.
        servers: the first servers, the initiator first; so the first assignment is certified too.
        datastore: "etcd", "external" or "sqlite".
        placement, home_region: where servers may stand, now and later (see `placement`).
        timing: see `Timing`.
        remark: why there are fewer servers than declared; "" if there are not.
        continues: what is carried on; None for a cluster that begins from nothing.
    """

    cluster_id: str
    initiator: str
    vpn_ip: str
    ca_hash: str
    args_hash: str
    k3s_version: str
    servers: tuple[str, ...]
    datastore: Datastore
    placement: str = "spread"
    home_region: str = ""
    timing: Timing = Timing()
    remark: str = ""
    continues: Continuation | None = None


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Decree 2: the cluster is up; `uid` is its kube-system namespace's."""

    uid: str


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Decree 2: this epoch is given up; `initiator` is the one that failed.

    `continues`: a recovery of the cluster of that epoch was given up, so what comes next may only be a
    recovery of it too (0: none was); `resets`: etcd was to begin again, so servers stay down until then.
    """

    reason: str
    initiator: str = ""
    continues: int = 0
    resets: bool = False


Value: TypeAlias = Genesis | Ready | Abort


class Vote(msgspec.Struct, frozen=True, array_like=True):
    """An acceptor's signature over (mesh, instance, ballot, N, value)."""

    peer: str
    signature: bytes


class Certificate(msgspec.Struct, frozen=True, array_like=True):
    """What a quorum signed: proof that `value` is the one value of `instance`.

    Attributes:
        nodes: the N that the quorum was based on.
        value: encoded `Value`; kept as the bytes that were signed.
        votes: of distinct peers, at least ``nodes // 2 + 1``.
    """

    instance: Instance
    ballot: Ballot
    nodes: int
    value: bytes
    votes: tuple[Vote, ...]


# ---------------------------------------------------------------- requests and answers


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Phase 1: promise not to take part in lower ballots, and tell what you accepted.

    Attributes:
        nodes: the sender's N.
        grounds: the certificate that opens this instance: ABORT(e-1) for GENESIS(e), or READY(e-1) if it
            is a recovery; GENESIS(e) for OUTCOME(e); None only for GENESIS(1).
        lost: peers that N leaves out, since an operator declared them lost; see `Continuation`.
    """

    instance: Instance
    ballot: Ballot
    nodes: int
    grounds: Certificate | None = None
    lost: tuple[str, ...] = ()


class Accept(msgspec.Struct, frozen=True, tag="accept"):
    """Phase 2: accept this value. `nodes`, `grounds` and `lost` as in `Prepare`."""

    instance: Instance
    ballot: Ballot
    nodes: int
    value: bytes
    grounds: Certificate | None = None
    lost: tuple[str, ...] = ()


class Promise(msgspec.Struct, frozen=True, tag="promise"):
    """Yes to `Prepare`. `accepted`: the ballot and value accepted before, if any."""

    instance: Instance
    ballot: Ballot
    nodes: int
    accepted: tuple[Ballot, bytes] | None = None


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """Yes to `Accept`, signed."""

    instance: Instance
    ballot: Ballot
    nodes: int
    signature: bytes


class Nack(msgspec.Struct, frozen=True, tag="nack"):
    """No. `promised`: the ballot that stands in the way, `nodes`: the acceptor's N, `reason`: a sentence."""

    instance: Instance
    ballot: Ballot
    nodes: int
    promised: Ballot | None
    reason: str


class Decided(msgspec.Struct, frozen=True, tag="decided"):
    """It is decided already, or a newer epoch has begun: here is the proof."""

    certificate: Certificate


Request: TypeAlias = Prepare | Accept
Answer: TypeAlias = Promise | Accepted | Nack | Decided


def quorum(nodes: int) -> int:
    """How many of `nodes` voters decide: any two such groups share a member."""
    return nodes // 2 + 1


def covered(nodes: int) -> int:
    """Up to how many voters the quorum of N is safe: two quorums among more could miss each other."""
    return 2 * quorum(nodes) - 1


def vote_payload(mesh_id: str, instance: Instance, ballot: Ballot, nodes: int, value: bytes) -> bytes:
    """The bytes that an acceptor signs (purpose `VOTE_PURPOSE`)."""
    return wire.encode((mesh_id, instance, ballot, nodes, value))


def encode(message: Request | Answer) -> bytes:
    """The bytes of a message."""
    return wire.encode(message)


def decode_request(raw: bytes) -> Request:
    """A request from untrusted bytes. Raises ValueError."""
    request: Request = wire.decode(_bounded(raw), Request)  # type: ignore[arg-type]
    return request


def decode_answer(raw: bytes) -> Answer:
    """An answer from untrusted bytes. Raises ValueError."""
    answer: Answer = wire.decode(_bounded(raw), Answer)  # type: ignore[arg-type]
    return answer


def _bounded(raw: bytes) -> bytes:
    if len(raw) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a genesis message has at most {MAX_MESSAGE_BYTES} bytes, this has {len(raw)}")
    return raw


def encode_value(value: Value) -> bytes:
    """The bytes of a value; equal values have equal bytes."""
    return wire.encode(value)


def _is_sound(value: Genesis) -> bool:
    t = value.timing
    return (
        value.placement in ("spread", "pack")
        and max(len(value.home_region), len(value.remark)) <= MAX_REMARK_CHARS
        and all(0 <= number <= MAX_TIME for number in (t.heartbeat_ms, t.election_ms, t.lease_s, t.renew_s))
    )


def decode_value(raw: bytes, decree: int) -> Value:
    """The value of a decree. Raises ValueError if it is too large, malformed or of the other decree."""
    if len(raw) > MAX_VALUE_BYTES:
        raise ValueError(f"a genesis value has at most {MAX_VALUE_BYTES} bytes, this has {len(raw)}")
    value: Value = wire.decode(raw, Value)  # type: ignore[arg-type]
    if isinstance(value, Genesis) != (decree == GENESIS):
        raise ValueError(f"decree {decree} cannot be {type(value).__name__}")
    if isinstance(value, Genesis) and not (
        0 < len(value.servers) <= MAX_SERVERS
        and value.servers[0] == value.initiator
        and len(set(value.servers)) == len(value.servers)
    ):
        raise ValueError("a genesis names distinct first servers, its initiator first")
    if isinstance(value, Genesis) and not _is_sound(value):
        raise ValueError("a genesis has a placement, times and a remark within bounds")
    return value


def lost_in(value: Value) -> tuple[str, ...]:
    """The peers that a value declares lost."""
    return value.continues.lost if isinstance(value, Genesis) and value.continues is not None else ()


def carries_on(value: Value) -> int:
    """The epoch whose cluster, which was up, a value carries on, or no longer tries to; 0 for none."""
    match value:
        case Genesis(continues=continues):
            return continues.epoch if continues is not None else 0
        case Abort(continues=epoch):
            return epoch
        case _:
            return 0
