"""What can happen to the bootstrap machine, and what can it want done?

Events are observations, in the past tense; effects are imperatives, executed by the node in the order
given. Secrets never pass through the machine: it names them by the CA hash that their K10 token pins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from p2p_network.coordinates import Coordinate
from p2p_network.core.ids import PeerId
from p2p_roles.assign import Assignment, Role
from p2p_roles.genesis.acceptor import Asked, Reply
from p2p_roles.genesis.messages import Certificate, Datastore, Genesis, Timing
from p2p_roles.genesis.proposer import Answered, Ask
from p2p_roles.quorum import Quorum
from p2p_roles.timing import LAN
from p2p_roles.view import View

K3sState = Literal["absent", "stopped", "starting", "running", "ready", "failed"]
StartKind = Literal["server-init", "server-join", "server", "server-restore", "agent"]
"""server-init: the genesis, with ``cluster-init``. server-join: first start of a further server.
server: any later start of a server, from the data it has. server-restore: not a start, but one run with
``--cluster-reset``. agent: every start of an agent."""


@dataclass(frozen=True, slots=True)
class Started:
    """The node is up: `durable` as last persisted (None at the very first start), and the
    certificates found in the ledger."""

    durable: bytes | None = field(repr=False)
    certificates: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class ViewChanged:
    """The snapshot of the others is another one now."""

    view: View


@dataclass(frozen=True, slots=True)
class CertificateLearned:
    """The ledger holds this under ``genesis/``; not yet verified."""

    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SecretsMade:
    """CA and K10 token of `epoch` are made and durable; `ca_hash` names them."""

    epoch: int
    ca_hash: str


@dataclass(frozen=True, slots=True)
class K3sChanged:
    """k3s on this machine changed its state.

    Attributes:
        uid: of the kube-system namespace, when a server is ready.
        ca_hash: of what its ``/cacerts`` serves, when a server is ready.
        error: one sentence with k3s's own words, when it failed (or is looping on an error).
        permanent: trying again cannot help (no binary, data gone).
    """

    state: K3sState
    uid: str = ""
    ca_hash: str = ""
    error: str = ""
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class JoinSecretReceived:
    """`peer` handed out the secret for `role`; it is durable here. `ca_hash`: what its K10 pins."""

    peer: PeerId
    role: Role
    ca_hash: str


@dataclass(frozen=True, slots=True)
class JoinSecretRefused:
    """`peer` did not hand out the secret, or did not answer."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class AssignmentChanged:
    """The ledger's ``assign/<scope>/<peer>`` is this now."""

    peer: PeerId
    assignment: Assignment


@dataclass(frozen=True, slots=True)
class RoundTripsMeasured:
    """How far the others are: `measured` from this node, seconds; `places`: everybody's coordinate."""

    measured: Mapping[PeerId, float]
    places: Mapping[PeerId, Coordinate]


class LedgerCompared:
    """The ledger has been compared with a peer's: what the authority said meanwhile is known."""


@dataclass(frozen=True, slots=True)
class VpnReady:
    """The TUN device is up with this address; it never changes again."""

    ipv4: str


@dataclass(frozen=True, slots=True)
class K3sWiped:
    """What k3s had of `epoch` is set aside."""

    epoch: int


@dataclass(frozen=True, slots=True)
class K3sMayVote:
    """k3s is stopped, and what it has of `epoch` may be a voter of its etcd: nothing was set aside."""

    epoch: int


@dataclass(frozen=True, slots=True)
class RecoveryOrdered:
    """An operator approved that this is proposed (see `recovery`)."""

    genesis: Genesis


@dataclass(frozen=True, slots=True)
class K3sReset:
    """What `ResetK3s` asked for is done, or failed with `error`."""

    epoch: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class WorkloadsCounted:
    """So many objects of users are in the cluster that this node serves; None: it can't be told."""

    count: int | None


@dataclass(frozen=True, slots=True)
class Tick:
    """The time asked for by `wake_at` has come."""


Event: TypeAlias = (
    Started
    | ViewChanged
    | CertificateLearned
    | Asked
    | Answered
    | SecretsMade
    | K3sChanged
    | JoinSecretReceived
    | JoinSecretRefused
    | AssignmentChanged
    | RoundTripsMeasured
    | LedgerCompared
    | VpnReady
    | K3sWiped
    | K3sMayVote
    | RecoveryOrdered
    | K3sReset
    | WorkloadsCounted
    | Tick
)


@dataclass(frozen=True, slots=True)
class Persist:
    """Make `state` durable (fsync) before the next effect; it comes back in `Started`."""

    state: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PublishCertificate:
    """Write `raw` to the ledger under `key`."""

    key: str
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class MakeSecrets:
    """Make a fresh CA and tokens for `epoch`, durably; answer with `SecretsMade`. Asked again for the
    same epoch, answer with the same ones."""

    epoch: int


@dataclass(frozen=True, slots=True)
class StartK3s:
    """Write the drop-in (and, for server-init, seed the CA), then start k3s or adopt a living one.

    Attributes:
        kind: see `StartKind`.
        ca_hash: names the secrets to use.
        join_ip: VPN address of the server to join or to lean on; "" for none.
        timing: of etcd and the leader elections, as certified.
    """

    kind: StartKind
    epoch: int
    ca_hash: str
    join_ip: str
    datastore: Datastore
    timing: Timing = LAN


@dataclass(frozen=True, slots=True)
class ReplaceInitDropIn:
    """Write the drop-in anew, without ``cluster-init`` and with ``server:`` if `join_ip` is not "";
    k3s keeps running."""

    epoch: int
    ca_hash: str
    join_ip: str
    datastore: Datastore
    timing: Timing = LAN


@dataclass(frozen=True, slots=True)
class FetchJoinSecret:
    """Ask `peer` for the secret of `role`; answer with `JoinSecretReceived` or `JoinSecretRefused`."""

    peer: PeerId
    role: Role


@dataclass(frozen=True, slots=True)
class StopK3s:
    """Stop k3s and don't start it again by itself."""


@dataclass(frozen=True, slots=True)
class HoldK3s:
    """Let k3s go on, but don't start it again when it ends: a removed server would join anew."""


@dataclass(frozen=True, slots=True)
class SetAsideK3s:
    """Stop k3s and set aside what it has of `epoch` in the role `was`, since the cluster's authority gave
    this node another one; answer with `K3sWiped`. Its name, its address and its secrets stay.

    `unless_voting`: it was getting in: if etcd's data, seen when k3s has stopped, may be a voter's, nothing
    is set aside; answer with `K3sMayVote`.
    """

    epoch: int
    was: Role
    unless_voting: bool = False


@dataclass(frozen=True, slots=True)
class WipeK3s:
    """Stop k3s, set aside what it has of `epoch`, answer with `K3sWiped`. `certificate` allows it.

    Attributes:
        only_datastore: the same cluster goes on: certificates, images and pods may stay.
        keep: it was a cluster that people used: what is set aside is never removed by us, and a snapshot
            is taken first where etcd still answers.
    """

    epoch: int
    certificate: Certificate
    only_datastore: bool = False
    keep: bool = False


@dataclass(frozen=True, slots=True)
class ResetK3s:
    """Stop k3s, copy its datastore aside, and make this server the only member of its cluster; answer with
    `K3sReset`. k3s is started by a `StartK3s` after it.

    Attributes:
        ca_hash: names the secrets to use.
        snapshot: hex SHA-256 of the snapshot to restore; "" for the data that is there.
        is_foreign: what k3s has here is of another cluster: it is set aside whole, and the CA seeded.
    """

    epoch: int
    ca_hash: str
    snapshot: str
    is_foreign: bool
    datastore: Datastore = "etcd"
    timing: Timing = LAN


@dataclass(frozen=True, slots=True)
class RecoveryEnded:
    """What became of a `RecoveryOrdered`. `refusal`: why it was not decided; "" if it was."""

    genesis: Genesis
    refusal: str


@dataclass(frozen=True, slots=True)
class CountWorkloads:
    """Look what users have in the cluster served here; answer with `WorkloadsCounted`."""


@dataclass(frozen=True, slots=True)
class QuorumChanged:
    """The control plane as seen from here is well or not well now; for people and metrics."""

    quorum: Quorum


@dataclass(frozen=True, slots=True)
class Alarm:
    """A person must look at this. `hint`: what to do."""

    message: str
    hint: str


Effect: TypeAlias = (
    Persist
    | Reply
    | Ask
    | PublishCertificate
    | MakeSecrets
    | StartK3s
    | ReplaceInitDropIn
    | FetchJoinSecret
    | StopK3s
    | HoldK3s
    | SetAsideK3s
    | WipeK3s
    | ResetK3s
    | RecoveryEnded
    | CountWorkloads
    | QuorumChanged
    | Alarm
)
