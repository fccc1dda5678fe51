"""Which states has a node on its way into a cluster, and what leads from one to the next?

The table of the bootstrap machine, as data: `bootstrap.py` walks it, the door-plate's diagram is drawn
from it (`render_diagram`), and the tests push every event into every state of it. In a state the
transitions are tried in the order of the table; the first whose cause holds is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

DIAGRAM_BEGIN: Final = "<!-- diagram: generated from roles/p2p_roles/transitions.py -->"
DIAGRAM_END: Final = "<!-- end of diagram -->"


class State(StrEnum):
    """Where a node stands."""

    DISCOVER = "DISCOVER"  # looking for enough nodes, or for a cluster that exists
    ELECT = "ELECT"  # a quorum is being asked who initialises
    INIT = "INIT"  # this node initialises
    WAIT = "WAIT"  # another node initialises
    JOIN = "JOIN"  # the cluster exists; getting into it
    MEMBER = "MEMBER"  # in it
    CHANGE = "CHANGE"  # is to have another role; its data is set aside
    FENCED = "FENCED"  # holds data of an epoch that is over
    RECOVER = "RECOVER"  # this node brings the cluster back
    HELD = "HELD"  # a server that keeps k3s down while another brings the cluster back
    CONTESTED = "CONTESTED"  # in a cluster with workloads, while another one was certified


class Cause(StrEnum):
    """Why a node leaves a state; each is a condition on what the node knows."""

    OVERTAKEN = "own epoch is over: ABORT, or READY of a newer one"
    WAS_MEMBER = "was a member before the restart"
    CLUSTER_EXISTS = "READY certificate"
    CHOSEN = "GENESIS certificate names this node"
    OTHER_CHOSEN = "GENESIS certificate names another"
    ENOUGH_NODES = "enough nodes, stable view"
    TOO_FEW_NODES = "no quorum in sight"
    INITIALISED = "READY certificate for the own k3s"
    ABORTED = "ABORT certificate"
    SUPERSEDED = "a newer epoch has begun"
    SERVING = "k3s ready"
    REASSIGNED = "assigned another role"
    WIPED = "data set aside"
    MAY_VOTE = "etcd's data may be a voter's"
    RECOVERS = "a certified recovery names this node"
    HELD_BACK = "a certified recovery names another server"
    CONTINUED = "READY certificate for the recovery"
    CONTESTED = "READY of another cluster, and workloads here"
    WITHDRAWN = "the recovery was given up"
    ONLY_RECOVERY = "a recovery was given up, only another may follow"


@dataclass(frozen=True, slots=True)
class Transition:
    """From `source` to `target` when `cause` holds."""

    source: State
    cause: Cause
    target: State


_S, _C = State, Cause

TRANSITIONS: Final[tuple[Transition, ...]] = (
    Transition(_S.DISCOVER, _C.OVERTAKEN, _S.FENCED),
    Transition(_S.DISCOVER, _C.RECOVERS, _S.RECOVER),
    Transition(_S.DISCOVER, _C.HELD_BACK, _S.HELD),
    Transition(_S.DISCOVER, _C.CONTESTED, _S.CONTESTED),
    Transition(_S.DISCOVER, _C.REASSIGNED, _S.CHANGE),
    Transition(_S.DISCOVER, _C.WAS_MEMBER, _S.MEMBER),
    Transition(_S.DISCOVER, _C.CLUSTER_EXISTS, _S.JOIN),
    Transition(_S.DISCOVER, _C.CHOSEN, _S.INIT),
    Transition(_S.DISCOVER, _C.OTHER_CHOSEN, _S.WAIT),
    Transition(_S.DISCOVER, _C.ENOUGH_NODES, _S.ELECT),
    Transition(_S.ELECT, _C.CLUSTER_EXISTS, _S.JOIN),
    Transition(_S.ELECT, _C.RECOVERS, _S.RECOVER),
    Transition(_S.ELECT, _C.CHOSEN, _S.INIT),
    Transition(_S.ELECT, _C.OTHER_CHOSEN, _S.WAIT),
    Transition(_S.ELECT, _C.ONLY_RECOVERY, _S.DISCOVER),
    Transition(_S.ELECT, _C.TOO_FEW_NODES, _S.DISCOVER),
    Transition(_S.INIT, _C.OVERTAKEN, _S.FENCED),
    Transition(_S.INIT, _C.INITIALISED, _S.MEMBER),
    Transition(_S.WAIT, _C.CLUSTER_EXISTS, _S.JOIN),
    Transition(_S.WAIT, _C.RECOVERS, _S.RECOVER),
    Transition(_S.WAIT, _C.CHOSEN, _S.INIT),
    Transition(_S.WAIT, _C.ONLY_RECOVERY, _S.DISCOVER),
    Transition(_S.WAIT, _C.ABORTED, _S.ELECT),
    Transition(_S.JOIN, _C.OVERTAKEN, _S.FENCED),
    Transition(_S.JOIN, _C.RECOVERS, _S.RECOVER),
    Transition(_S.JOIN, _C.SUPERSEDED, _S.DISCOVER),
    Transition(_S.JOIN, _C.REASSIGNED, _S.CHANGE),
    Transition(_S.JOIN, _C.SERVING, _S.MEMBER),
    Transition(_S.MEMBER, _C.OVERTAKEN, _S.FENCED),
    Transition(_S.MEMBER, _C.RECOVERS, _S.RECOVER),
    Transition(_S.MEMBER, _C.HELD_BACK, _S.HELD),
    Transition(_S.MEMBER, _C.CONTESTED, _S.CONTESTED),
    Transition(_S.MEMBER, _C.REASSIGNED, _S.CHANGE),
    Transition(_S.CHANGE, _C.OVERTAKEN, _S.FENCED),
    Transition(_S.CHANGE, _C.WIPED, _S.DISCOVER),
    Transition(_S.CHANGE, _C.MAY_VOTE, _S.JOIN),
    Transition(_S.FENCED, _C.WIPED, _S.DISCOVER),
    Transition(_S.RECOVER, _C.OVERTAKEN, _S.FENCED),
    Transition(_S.RECOVER, _C.CONTINUED, _S.MEMBER),
    Transition(_S.RECOVER, _C.HELD_BACK, _S.HELD),
    Transition(_S.RECOVER, _C.WITHDRAWN, _S.DISCOVER),
    Transition(_S.HELD, _C.OVERTAKEN, _S.FENCED),
    Transition(_S.HELD, _C.RECOVERS, _S.RECOVER),
    Transition(_S.HELD, _C.CONTESTED, _S.CONTESTED),
    Transition(_S.HELD, _C.WITHDRAWN, _S.DISCOVER),
    Transition(_S.CONTESTED, _C.OVERTAKEN, _S.FENCED),
    Transition(_S.CONTESTED, _C.RECOVERS, _S.RECOVER),
    Transition(_S.CONTESTED, _C.HELD_BACK, _S.HELD),
    Transition(_S.CONTESTED, _C.CONTINUED, _S.MEMBER),
)

TABLE: Final[dict[State, tuple[Transition, ...]]] = {
    state: tuple(t for t in TRANSITIONS if t.source is state) for state in State
}


def render_diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> DISCOVER"]
    lines += [f"    {t.source} --> {t.target}: {t.cause.replace(':', ',')}" for t in TRANSITIONS]
    return "\n".join([*lines, "```"])
