"""How does a cluster get another k3s: who says whose turn it is, and what does a node do when it is its own?

Two loops over two pure machines. On the server that holds the lease: `turns.next_turn` on what the nodes say
of themselves; the order lies in a ConfigMap and is mirrored into the ledger. On every node: `own.next_act` on
the order that the ledger has; the node's `Progress` is durable before anything that it stands for is done, so
an agent that is killed goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.runtime import Runtime
from p2p_network import wire
from p2p_network.core import log
from p2p_network.core.errors import P2PError, RoleError
from p2p_network.core.ids import PeerId
from p2p_network.ledger.reading import read_by_peer
from p2p_roles.k3s import kube as api
from p2p_roles.upgrade import model, own, turns
from p2p_roles.upgrade.model import Order, Program, Progress, UpgradeFacts, UpgradeNode

if TYPE_CHECKING:
    from p2p_bootstrap.node.authority import Standing
    from p2p_bootstrap.node.cluster import Cluster
    from p2p_bootstrap.node.ports import Durable, K3s, K3sPrograms, KubeApi
    from p2p_roles.assign import Role
    from p2p_roles.view import ViewNode

logger = log.get(__name__)

PASS_S: Final = 3.0
LOOK_S: Final = 1.0
IDLE_S: Final = 15.0
KEY: Final = "k3s-upgrade"
PATH: Final = api.below(api.CONFIG_MAPS, model.OBJECT)

Bring = Callable[[str, Sequence[str]], Awaitable[tuple[Program, ...]]]
"""(version, kinds of machines) -> their programs, now on this node."""


class Upgrading:
    """This node's part in upgrades of k3s."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        self_id: PeerId,
        replication: Replication,
        cluster: Cluster,
        k3s: K3s,
        programs: K3sPrograms,
        durable: Durable,
    ) -> None:
        self._runtime = runtime
        self._self_id = self_id
        self._replication = replication
        self._cluster = cluster
        self._k3s = k3s
        self._programs = programs
        self._durable = durable
        self._changed = runtime.signal()
        self._hurry = runtime.signal()
        self._mine = Progress("", programs.arch)
        self._is_begun = False
        self._began_at = 0.0
        self._ready_at: float | None = None
        self._fetching_at: float | None = None
        self._fetch_error = ""
        self._deed_error = ""
        self._turn_began: dict[tuple[int, str], float] = {}
        self._overtaken = False

    async def run(self) -> None:
        """Take part until cancelled."""
        raw = await self._runtime.in_thread(self._durable.get, KEY)
        if raw:
            try:
                self._mine = wire.decode(raw, Progress)
            except ValueError as exc:
                self._runtime.log(logger, "upgrade.forgotten", logging.WARNING, detail=str(exc))
        self._began_at = self._runtime.monotonic()
        async with self._runtime.task_group() as tasks:
            tasks.start_soon(self._act_for_ever)
            tasks.start_soon(self._decide_for_ever)

    # ------------------------------------------------------------ what is known

    def order(self) -> Order | None:
        """The order of this node's cluster, as the ledger has it."""
        genesis = self._cluster.genesis
        entry = self._replication.ledger.get(model.key_of(self._cluster.scope))
        if genesis is None or entry is None or entry.value is None:
            return None
        try:
            order = model.decode(entry.value)
        except ValueError:
            return None
        return order if order.cluster_id == genesis.cluster_id else None

    def progress(self) -> dict[PeerId, Progress]:
        """What every node says of itself."""
        return read_by_peer(self._replication.ledger, "k3s/", Progress)

    @property
    def under_way(self) -> str:
        """What goes on, as far as this node knows; "" if nothing does."""
        if self._mine.phase in model.UNDER_WAY:
            return f"this node is {self._mine.phase}"
        order = self.order()
        return order.reason if order is not None and order.state in ("running", "back") else ""

    @property
    def datastore(self) -> str:
        """Where the cluster keeps its state."""
        genesis = self._cluster.genesis
        return genesis.datastore if genesis is not None else ""

    # ------------------------------------------------------------ this node

    async def _act_for_ever(self) -> None:
        self._replication.subscribe(model.key_of(self._cluster.scope), self._changed)
        while True:
            order = self.order()
            act = own.next_act(self._mine, order, await self._look(), self._self_id)
            await self._note(act.progress)
            await self._do(act.deed, order)
            is_idle = act.deed == "none" and act.progress.phase not in model.UNDER_WAY
            pause_s = IDLE_S if is_idle else own.FETCH_AGAIN_S if self._fetch_error else LOOK_S
            await self._changed.wait(timeout_s=pause_s)

    async def _look(self) -> own.Seen:
        now = self._runtime.monotonic()
        seen = self._k3s.observed.event
        if seen.state != "ready" or not self._is_begun:
            self._ready_at = None
        elif self._ready_at is None:
            self._ready_at = now
        return own.Seen(
            version=await self._programs.installed(),
            is_begun=self._is_begun,
            phase_s=now - self._began_at,
            ready_s=max(0.001, now - self._ready_at) if self._ready_at is not None else 0.0,
            broken=self._deed_error or (seen.error if seen.permanent else ""),
            error=seen.error,
            fetch_error=self._fetch_error,
            fetching_s=now - self._fetching_at if self._fetching_at is not None else 0.0,
        )

    async def _note(self, progress: Progress) -> None:
        before, self._mine = self._mine, progress
        if (progress.order, progress.phase) != (before.order, before.phase):
            self._is_begun, self._ready_at, self._deed_error = False, None, ""
            self._began_at = self._runtime.monotonic()
            self._fetching_at, self._fetch_error = None, ""
            self._runtime.log(
                logger,
                "upgrade.phase_changed",
                logging.ERROR if progress.phase in ("falling", "failed") else logging.INFO,
                from_=before.phase,
                to=progress.phase,
                version=progress.version,
                error=progress.error,
            )
        if progress != before:
            await self._runtime.in_thread(self._durable.set, KEY, wire.encode(progress))
        await self._replication.write(f"k3s/{self._self_id}", wire.encode(progress))

    async def _do(self, deed: own.Deed, order: Order | None) -> None:
        if deed == "stage" and order is not None:
            return await self._stage(order)
        if deed not in ("swap", "swap-back"):
            return None
        try:
            if deed == "swap":
                if order is None or order.number != self._mine.order:
                    raise RoleError("the order of this upgrade is not known any more")
                await self._programs.swap(order.version)
            else:
                await self._programs.swap_back(self._mine.before)
        except P2PError as exc:
            self._runtime.log(logger, "upgrade.not_swapped", logging.ERROR, error=exc.message, hint=exc.hint)
            self._deed_error = exc.message
        await self._k3s.restart()
        self._is_begun, self._began_at = True, self._runtime.monotonic()
        return None

    async def _stage(self, order: Order) -> None:
        if self._fetching_at is None:
            self._fetching_at = self._runtime.monotonic()
        have = ("staged", "trying", "done")
        said = self.progress().items()
        holders = [p for p, one in said if one.arch == self._programs.arch and one.of(order) in have]
        try:
            await self._programs.stage(order, [*holders, PeerId(order.source)])
        except P2PError as exc:
            if exc.message != self._fetch_error:
                self._runtime.log(logger, "upgrade.not_fetched", logging.WARNING, error=exc.message)
            self._fetch_error = exc.message
            return
        await self._note(replace(self._mine, order=order.number, phase="staged"))
        self._changed.raise_()

    # ------------------------------------------------------------ who decides

    async def _decide_for_ever(self) -> None:
        self._replication.subscribe("k3s/", self._hurry)
        while True:
            standing = self._cluster.standing()
            if standing is not None and self._cluster.authority.is_deciding:
                try:
                    await self._pass(standing)
                except (api.Conflict, api.AlreadyExists):
                    pass  # somebody ordered something: the next pass sees it
                except (P2PError, ValueError) as exc:
                    self._runtime.log(logger, "upgrade.pass_failed", logging.DEBUG, error=str(exc))
            else:
                self._turn_began.clear()
            await self._hurry.wait(timeout_s=PASS_S)

    async def _pass(self, standing: Standing) -> None:
        kube = self._cluster.k3s.kube
        stored = await self._runtime.in_thread(_get, kube)
        if stored is None:
            return
        order = model.from_object(stored)
        turn = turns.next_turn(self._facts(standing, turns.carried_over(order, standing.genesis)))
        if turn.order != order:
            if not self._cluster.authority.is_deciding:
                return
            item = model.to_object(turn.order, _version(stored))
            stored = await self._runtime.in_thread(kube.replace, PATH, item)
            if (turn.order.reason, turn.order.state) != (order.reason, order.state):
                self._runtime.log(logger, "upgrade.decided", to=turn.order.state, reason=turn.order.reason)
            order = model.from_object(stored)
        await self._mirror(order)

    async def _mirror(self, order: Order) -> None:
        """What the datastore says into the ledger."""
        key = model.key_of(self._cluster.scope)
        entry = self._replication.ledger.get(key)
        if entry is not None and entry.value is not None:
            known = model.decode(entry.value)
            if replace(known, fence=order.fence) == order:
                self._overtaken = False
                return
            if known.fence >= order.fence:
                # a datastore that was restored counts from its snapshot again; a server that only slept reads
                # the newer one at its next pass
                if not self._overtaken:
                    self._overtaken = True
                    return
                order = replace(order, fence=known.fence + 1)
        self._overtaken = False
        await self._replication.write(key, model.encode(order))

    def _facts(self, standing: Standing, order: Order) -> UpgradeFacts:
        now = self._runtime.monotonic()
        began = {(order.number, peer): now for peer in order.turns}
        self._turn_began = {key: self._turn_began.get(key, at) for key, at in began.items()}
        said = self.progress()
        found = []
        for node in standing.view.nodes:
            if node.cluster_id != standing.genesis.cluster_id or node.role not in ("server", "agent"):
                continue
            at = self._turn_began.get((order.number, node.peer), now)
            found.append(
                UpgradeNode(
                    node.peer,
                    node.hostname,
                    _role(standing, node),
                    said.get(node.peer),
                    alive=node.alive,
                    ready=node.ready,
                    turn_s=now - at,
                )
            )
        holder = PeerId(self._cluster.authority.holder or self._self_id)
        authority = self._cluster.authority
        return UpgradeFacts(holder, order, tuple(found), authority.busy, authority.lost(standing.view))

    # ------------------------------------------------------------ for people

    def look(self, version: str) -> UpgradeFacts:
        """The nodes and the order that is there; with `version` as if that were it. Raises RoleError."""
        standing = self._need_standing()
        order = self.order()
        if version or order is None:
            order = Order(1 << 52, version or "v0.0.0", (), standing.genesis.cluster_id)
        return self._facts(standing, order)

    def refusal(self, version: str) -> str:
        """Why that version can't be ordered now; "" if it can."""
        order = self.order()
        if order is not None and (reason := _under_way(order)):
            return reason
        running = [n.progress.version for n in self.look(version).nodes if n.progress is not None]
        if running and all(one in (version, "") for one in running):
            return f"all nodes run {version} already"
        return model.refusal(version, running)

    async def give_order(self, version: str, bring: Bring, *, wave: int, patience_s: float, by: str) -> Order:
        """Have all nodes of the cluster get that version. Raises P2PError."""
        if reason := self.refusal(version):
            raise RoleError(reason, hint="see where it stands with: kairos-p2p k3s upgrade")
        facts = self.look(version)
        silent = sorted(n.name for n in facts.nodes if n.alive and n.progress is None)
        if silent:
            raise RoleError(
                f"{', '.join(silent)} does not say which k3s it runs", hint="try again in a moment"
            )
        archs = sorted(
            {n.progress.arch for n in facts.nodes if n.progress is not None and n.progress.version}
        )
        programs = await bring(version, archs)
        # that took its time, and somebody else may have ordered one meanwhile, in this very millisecond
        stored = await self._runtime.in_thread(_get, self._cluster.k3s.kube)
        last = 0
        if stored is not None:
            known = turns.carried_over(model.from_object(stored), self._need_standing().genesis)
            last = known.number
            if reason := _under_way(known):
                raise RoleError(reason, hint="see where it stands with: kairos-p2p k3s upgrade")
        order = Order(
            number=max(int(self._runtime.wall_s() * 1000), last + 1),
            version=version,
            programs=programs,
            cluster_id=facts.order.cluster_id,
            wave=wave,
            patience_s=patience_s,
            reason=f"ordered by {by}",
            by=by,
            source=self._self_id,
        )
        order = await self._put(order, _version(stored))
        self._runtime.log(logger, "upgrade.ordered", version=version, reason=f"by {by}")
        return order

    async def stop(self, by: str) -> Order:
        """No further node; those that changed go back, where the versions allow it. Raises RoleError."""
        standing = self._need_standing()
        stored = await self._runtime.in_thread(_get, self._cluster.k3s.kube)
        order = model.from_object(stored) if stored is not None else None
        if order is None or order.state != "running":
            where = f": the one to {order.version} is {order.state}" if order is not None else ""
            raise RoleError(f"there is no upgrade to stop{where}")
        return await self._put(turns.abort(self._facts(standing, order), by), _version(stored))

    async def _put(self, order: Order, version: str) -> Order:
        """Write it in place of the one with this `resourceVersion`; "" for none. Raises RoleError."""
        kube = self._cluster.k3s.kube
        item = model.to_object(order, version)
        try:
            if version:
                stored = await self._runtime.in_thread(kube.replace, PATH, item)
            else:
                stored = await self._runtime.in_thread(kube.create, api.CONFIG_MAPS, item)
        except (api.Conflict, api.AlreadyExists) as exc:
            raise RoleError(
                "the upgrade was changed meanwhile", hint="look again: kairos-p2p k3s upgrade"
            ) from exc
        self._hurry.raise_()
        order = model.from_object(stored)
        await self._mirror(order)
        return order

    def _need_standing(self) -> Standing:
        standing = self._cluster.standing()
        if standing is None:
            raise RoleError(
                "this node is no server of a cluster that is ready, and only those order upgrades",
                hint="see who is one with: kairos-p2p roles list",
            )
        return standing


def _role(standing: Standing, node: ViewNode) -> Role:
    """What a node is, for who may be taken down: a dead one that the cluster has given up as a server (it was
    imaged anew, say) is none any more, whatever it last said of itself."""
    word = standing.assignments.get(node.peer)
    if word is not None:
        counts = word.role == "server" or word.leaving
    else:
        counts = node.peer in standing.genesis.servers
    return "server" if node.role == "server" and (node.alive or counts) else "agent"


def _under_way(order: Order) -> str:
    """What keeps others from being ordered; "" if nothing."""
    is_open = order.state in ("running", "back")
    return f"an upgrade to {order.version} is under way: {order.reason}" if is_open else ""


def _get(kube: KubeApi) -> dict[str, Any] | None:
    try:
        return kube.get(PATH)
    except api.NotFound:
        return None


def _version(stored: dict[str, Any] | None) -> str:
    metadata = (stored or {}).get("metadata")
    return str(metadata.get("resourceVersion") or "") if isinstance(metadata, dict) else ""
