"""What must a node remember to continue with the same role after any crash?

One struct, persisted whole before whatever rests on it. Damage is an error and not a fresh start: a
node that forgot its votes could help to decide a second genesis.
"""

from __future__ import annotations

import msgspec

from p2p_network import wire
from p2p_network.core.errors import RoleError
from p2p_roles.assign import Role
from p2p_roles.genesis.acceptor import AcceptorState
from p2p_roles.genesis.messages import Genesis


class Membership(msgspec.Struct, frozen=True):
    """This node's place in a cluster, from the moment its k3s may have been started.

    Attributes:
        epoch: of the genesis it belongs to.
        role: server or agent.
        initiator: it runs, or ran, ``cluster-init``.
        genesis: the certified value.
        joined: k3s was ready once; from then on it is started without asking anyone.
        join_ip: VPN address of the server it joined through; "" for none.
        reason: the sentence for its role.
        late_fence: words about this node up to this version came when k3s might already vote; 0: none.
    """

    epoch: int
    role: Role
    initiator: bool
    genesis: Genesis
    joined: bool = False
    join_ip: str = ""
    reason: str = ""
    late_fence: int = 0


class Durable(msgspec.Struct, frozen=True):
    """Everything that the bootstrap machine of one scope must not forget.

    Attributes:
        acceptor: votes, N, certificates.
        seen: eligible nodes ever seen before the cluster existed.
        failed: initiators whose epochs were aborted, oldest first.
        secrets: (epoch, CA hash) of the secrets made here last.
        member: this node's place, if it has one.
        reset_epoch: the recovery for which this node's etcd has been reset; 0 for none.
        fenced_epoch: the epoch for which it was decided that this node's data goes; 0 for none.
    """

    scope: str
    acceptor: AcceptorState = AcceptorState()
    seen: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    secrets: tuple[int, str] | None = None
    member: Membership | None = None
    reset_epoch: int = 0
    fenced_epoch: int = 0


def restore(raw: bytes | None, scope: str) -> Durable:
    """What was persisted, or a fresh start if nothing was. Raises RoleError on damage."""
    if raw is None:
        return Durable(scope)
    try:
        durable = wire.decode(raw, Durable)
    except ValueError as exc:
        raise RoleError(
            f"the genesis state on disk is damaged: {exc}",
            hint="restore the state directory from a backup, or let this node leave and join as a new one: "
            "kairos-p2p leave",
        ) from exc
    if durable.scope != scope:
        raise RoleError(
            f"the genesis state on disk belongs to the cluster {durable.scope!r}, "
            f"the configuration says {scope!r}",
            hint="a node changes its cluster by leaving the old one first: kairos-p2p leave",
        )
    return durable
