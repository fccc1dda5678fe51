"""What is a simulated world made of, and what goes wrong in it when?

Plain data: nodes, rules, weather, a model of k3s, and a timeline of faults, then a moment at which everything
heals. From a file (`files.py`), from a seed (`chance.py`) or from a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Literal, TypeAlias

from p2p_network.addressing import DEFAULT_NETWORK
from p2p_network.records import Wish
from p2p_roles.placement import SPREAD, Placement
from p2p_simulations.world.net import CALM, Nat, Weather


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One machine.

    Attributes:
        minimum_nodes: what its own configuration declares, if not what the plan says.
        clock_offset_s: how wrong its wall clock is, until everything heals.
        slowness: factor on its disk and on how long it takes to look at a message.
        k3s_broken: its k3s can't run until everything heals.
        stale_k3s: a datastore of another cluster lies on its disk.
        boots_at_s: when it is switched on.
        joins_later: it is switched on only `boots_at_s` after its cluster has become READY.
        nat: what it stands behind. Two that can't dial each other meet through a third, if `Plan.relays`.
    """

    name: str
    region: str
    zone: str = ""
    wish: Wish = "auto"
    minimum_nodes: int | None = None
    clock_offset_s: float = 0.0
    slowness: float = 1.0
    k3s_broken: bool = False
    stale_k3s: bool = False
    boots_at_s: float = 0.0
    joins_later: bool = False
    nat: Nat = "open"


@dataclass(frozen=True, slots=True)
class K3sPlan:
    """How k3s behaves.

    Attributes:
        start_s: how long it takes to start, from and to.
        failure: how often it ends instead, a probability, until everything heals.
        snapshots_s: how often a server saves a snapshot; 0: never. People write into the cluster then.
        lingers_s: how long its pods, and what else it has begun, take to end after it, from and to.
    """

    start_s: tuple[float, float] = (3.0, 15.0)
    failure: float = 0.0
    snapshots_s: float = 0.0
    lingers_s: tuple[float, float] = (0.0, 0.0)


# ---------------------------------------------------------------- faults

Lie: TypeAlias = Literal["forge", "replay", "equivocate", "backdate"]


@dataclass(frozen=True, slots=True)
class PowerCut:
    """Everything volatile on these machines is lost; they boot again after `down_s` (None: at healing)."""

    nodes: tuple[str, ...]
    down_s: float | None


@dataclass(frozen=True, slots=True)
class KillAgent:
    """The agents die, k3s and disk caches do not; they start again after `down_s` (None: at healing)."""

    nodes: tuple[str, ...]
    down_s: float | None


@dataclass(frozen=True, slots=True)
class Partition:
    """Only nodes of one group reach each other, for `for_s` (None: until healing)."""

    groups: tuple[tuple[str, ...], ...]
    for_s: float | None


@dataclass(frozen=True, slots=True)
class OneWay:
    """What goes from `sources` to `targets` is lost, for `for_s` (None: until healing)."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    for_s: float | None


@dataclass(frozen=True, slots=True)
class Flap:
    """The link between two nodes goes down and up, each for about `period_s`, for `for_s` in all."""

    one: str
    other: str
    period_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class ChangeWeather:
    """The network is like this now."""

    weather: Weather


@dataclass(frozen=True, slots=True)
class JumpClock:
    """The node's wall clock jumps."""

    node: str
    by_s: float


@dataclass(frozen=True, slots=True)
class Freeze:
    """Nothing goes on on the node for a while, then it goes on as if nothing had been."""

    node: str
    for_s: float


@dataclass(frozen=True, slots=True)
class LoseLedger:
    """The node's ledger file is damaged and starts empty, at a power cut; its votes are still there."""

    node: str
    down_s: float


@dataclass(frozen=True, slots=True)
class Reimage:
    """The node comes back with an empty disk under the same name."""

    node: str
    down_s: float


@dataclass(frozen=True, slots=True)
class BreakK3s:
    """k3s can't run on the node, for `for_s` (None: until healing)."""

    node: str
    for_s: float | None


@dataclass(frozen=True, slots=True)
class Byzantine:
    """The node, a member, lies with its own key, once, in one way (`byzantine`)."""

    node: str
    how: Lie


@dataclass(frozen=True, slots=True)
class Cut:
    """The links between these pairs of nodes are down both ways, and no others: a partial partition.
    `for_s`: None until healing."""

    pairs: tuple[tuple[str, str], ...]
    for_s: float | None


@dataclass(frozen=True, slots=True)
class Slow:
    """The node's disk or CPU is `factor` times as slow, for `for_s` (None: until healing)."""

    node: str
    what: Literal["disk", "cpu"]
    factor: float
    for_s: float | None


@dataclass(frozen=True, slots=True)
class FullDisk:
    """Nothing can be written on the node, for `for_s` (None: until healing): its agent ends, and again."""

    node: str
    for_s: float | None


@dataclass(frozen=True, slots=True)
class CorruptDurable:
    """A sector under what the node must never forget goes bad, at a power cut: it can't be read, or reads
    as something else. The agent refuses to start on it, until a person images the machine anew, which is part
    of healing."""

    node: str
    down_s: float


@dataclass(frozen=True, slots=True)
class CorruptLedger:
    """Sectors under some rows of the node's ledger read as something else, at a power cut. The rows must be
    noticed and left out; they come back from peers."""

    node: str
    down_s: float


@dataclass(frozen=True, slots=True)
class CorruptCopy:
    """A sector under the newest copy of a snapshot on the node's disk reads as something else, unnoticed
    until somebody wants to go back to it."""

    node: str


@dataclass(frozen=True, slots=True)
class DriftClock:
    """From now on the node's wall clock gains `rate` seconds per second (negative: it loses them)."""

    node: str
    rate: float


@dataclass(frozen=True, slots=True)
class Depart:
    """The node is gone for ever: said (the verb `leave`) or just switched off."""

    node: str
    said: bool


@dataclass(frozen=True, slots=True)
class Upgrade:
    """These nodes, one after the other, write a new image into a boot slot and reboot into it. A bad image
    does not start the agent: the boot counter must bring the old one back."""

    nodes: tuple[str, ...]
    is_good: bool
    every_s: float


@dataclass(frozen=True, slots=True)
class UpgradeK3s:
    """An operator at the node orders another k3s for the cluster. `bad`: where it does not start."""

    node: str
    version: str
    bad: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rotate:
    """The keys of the mesh are rotated at the node; nodes that are imaged anew get the new token."""

    node: str


@dataclass(frozen=True, slots=True)
class Revoke:
    """The node is put out by one that holds the root. It is left out of what must converge."""

    node: str


@dataclass(frozen=True, slots=True)
class Recover:
    """An operator at the node orders ``cluster recover``, and declares lost what has no power or no disk.
    `snapshot`: to go back to, e.g. "latest"; "": what the survivor has."""

    node: str
    snapshot: str = ""


@dataclass(frozen=True, slots=True)
class Drain:
    """An operator announces for so long, at the node itself, that it will be away."""

    node: str
    for_s: float


@dataclass(frozen=True, slots=True)
class MakeBackup:
    """An operator writes the whole cluster into a file, at the node (a server; else nothing comes of it). The
    file is kept elsewhere."""

    node: str


@dataclass(frozen=True, slots=True)
class RestoreBackup:
    """An operator begins the cluster of the newest backup at the node, whatever is set aside for it."""

    node: str


Fault: TypeAlias = (
    PowerCut
    | KillAgent
    | Partition
    | OneWay
    | Flap
    | ChangeWeather
    | JumpClock
    | Freeze
    | LoseLedger
    | Reimage
    | BreakK3s
    | Byzantine
    | Cut
    | Slow
    | FullDisk
    | CorruptDurable
    | CorruptLedger
    | CorruptCopy
    | DriftClock
    | Depart
    | Upgrade
    | UpgradeK3s
    | Rotate
    | Revoke
    | Recover
    | Drain
    | MakeBackup
    | RestoreBackup
)


@dataclass(frozen=True, slots=True)
class Trigger:
    """A fault that waits until the first node enters a bootstrap state, e.g. "INIT": then `fault` happens
    after `after_s`; its nodes are that node alone where `fault` names none."""

    state: str
    after_s: float
    fault: PowerCut | KillAgent | Partition


@dataclass(frozen=True, slots=True)
class Expectations:
    """What must be seen besides the invariants, which hold always.

    Attributes:
        converges: one READY cluster per scope, all nodes members.
        within_s: of healing, virtual seconds.
        alarm: a text that some alarm must contain; "" for none.
        clusters_before_healing: at most so many READY clusters before everything heals; None: no matter.
    """

    converges: bool = True
    within_s: float = 900.0
    alarm: str = ""
    clusters_before_healing: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One world.

    Attributes:
        servers, minimum_nodes: what the nodes' cloud-configs declare.
        per_region: each region is a cluster of its own.
        recovers: a cluster that lost its majority comes back by itself (`p2p.recovery: automatic`).
        replaces: a server that is silent for a while is replaced (`p2p.dynamic_roles`).
        placement: where servers may stand.
        infers_regions: no node is told its region; all find it out (``p2p.region: auto``).
        unsaid_regions: no node is told its region, and none takes one until a person confirms it.
        relays: members lead circuits between others that can't dial each other (`p2p.relay`).
        network: of the VPN; a small one makes conflicts likely.
        weather: at the beginning.
        faults: (virtual second, fault).
        chaos: probability of a crash at each dangerous point (between a write and its sync, between two
            effects); at most `max_chaos` in all.
        heal_at_s: when everything heals and no more faults happen.
    """

    name: str
    nodes: tuple[NodePlan, ...]
    servers: int
    minimum_nodes: int
    per_region: bool = False
    replaces: bool = False
    recovers: bool = False
    placement: Placement = SPREAD
    infers_regions: bool = False
    unsaid_regions: bool = False
    relays: bool = True
    network: IPv4Network = DEFAULT_NETWORK
    weather: Weather = CALM
    k3s: K3sPlan = K3sPlan()
    faults: tuple[tuple[float, Fault], ...] = ()
    triggers: tuple[Trigger, ...] = ()
    chaos: float = 0.0
    max_chaos: int = 10
    heal_at_s: float = 60.0
    expect: Expectations = Expectations()

    @property
    def rotates(self) -> bool:
        """Whether the mesh's keys are rotated."""
        return any(isinstance(fault, Rotate) for _, fault in self.faults)

    @property
    def upgrades_k3s(self) -> bool:
        """Whether another k3s is ever ordered."""
        return any(isinstance(fault, UpgradeK3s) for _, fault in self.faults)
