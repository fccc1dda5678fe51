"""What is one life of a simulated agent? Its columns, wired as the real one's `node.wiring` does.

Everything here is volatile: a crash drops it whole. What stays is the machine's: disk, k3s, device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2p_bootstrap.node.admission import Admission, durable_key
from p2p_bootstrap.node.cluster import Cluster
from p2p_bootstrap.node.issuing import Issuing
from p2p_bootstrap.node.places import Places
from p2p_bootstrap.node.policy import ledger_policy
from p2p_bootstrap.node.recovery import Recovery
from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.restoring import Restoring
from p2p_bootstrap.node.scope import ClusterOptions
from p2p_bootstrap.node.snapshots import Snapshots
from p2p_bootstrap.node.upgrading import Upgrading
from p2p_network import wire
from p2p_network.addressing import ipv6_of
from p2p_network.admission.kept import Kept, decode_kept
from p2p_network.core.errors import MeshError
from p2p_network.records import NodeRecord
from p2p_roles.bootstrap import Bootstrap
from p2p_roles.transitions import State
from p2p_simulations.sim.mesh import SimHost
from p2p_simulations.sim.programs import SimPrograms
from p2p_simulations.sim.runtime import SimRuntime
from p2p_simulations.sim.snapshots import KEEPS, MAX_BYTES, NoSnapshots, SimBlobs, SimVault
from p2p_simulations.sim.store import SimDurable, SimStore
from p2p_simulations.sim.unit import SimK3sUnit
from p2p_simulations.sim.vpn import SimVpn
from p2p_simulations.sim.witness import ROLES, AgentWitness
from p2p_simulations.world.tasks import Tasks

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine

RECORD_EVERY_S = 15.0
REPLACE_AFTER_S = 30.0


class SimAgent:
    """One run of the agent's program. `life`: a number that no other run has."""

    def __init__(self, machine: SimMachine, life: int) -> None:
        self.machine, self.life = machine, life
        self.peer = machine.peer
        self.tasks = Tasks(machine.world.engine, machine.resume_at, machine.touched, self._failed)
        world = machine.world
        self.host = SimHost(
            self, machine, self.tasks, lambda: [m for m in world.machines.values() if m is not machine]
        )
        self.alarms: list[str] = []
        self.witness = AgentWitness(self)
        self.runtime = SimRuntime(machine, self.tasks, self.witness)
        # decides, starts and claims; ends before the rest when the node leaves
        self.work = Tasks(machine.world.engine, machine.resume_at, machine.touched, self._failed)
        working = self.runtime.on(self.work)
        self.durable = SimDurable(self)
        self.admission = Admission(
            runtime=self.runtime,
            identity=machine.identity,
            kept=machine.admitted(self._kept()),
            durable=self.durable,
            moved=self.runtime.signal(),
        )
        self.replication: Replication = Replication(
            runtime=self.runtime,
            identity=machine.identity,
            mesh_id=world.mesh_id,
            host=self.host,
            store=SimStore(self),
            policy_for=lambda ledger: ledger_policy(world.mesh_id, ledger, self.admission),
            ipv6_of=lambda peer: str(ipv6_of(world.mesh_id, peer)),
        )
        self.admission.attach(self.host, self.replication)
        self.issuing = Issuing(
            runtime=self.runtime,
            admission=self.admission,
            identity=machine.identity,
            host=self.host,
            replication=self.replication,
            durable=self.durable,
            entropy=world.engine.random.randbytes,
            minimum_nodes=machine.minimum_nodes,
        )
        vpn_changed = working.signal()
        self.vpn = SimVpn(self, world.plan.network, vpn_changed)
        self.k3s = SimK3sUnit(self)
        auto = world.plan.infers_regions
        self.places = Places(
            runtime=self.runtime,
            self_id=machine.peer,
            declared="" if auto or world.plan.unsaid_regions else machine.plan.region,
            auto=auto,
            host=self.host,
            replication=self.replication,
            durable=SimDurable(self),
        )
        self.bootstrap: Bootstrap
        self.cluster = Cluster(
            runtime=working,
            identity=machine.identity,
            mesh_id=world.mesh_id,
            options=ClusterOptions(
                scope=machine.scope,
                region=machine.plan.region if world.plan.per_region else None,
                servers=world.plan.servers,
                replaces=world.plan.replaces,
                silence_s=REPLACE_AFTER_S,
                minimum_nodes=machine.minimum_nodes,
                placement=world.plan.placement,
            ),
            host=self.host,
            replication=self.replication,
            vpn=self.vpn,
            vpn_changed=vpn_changed,
            k3s=self.k3s,
            durable=self.durable,
            places=self.places,
            changed=working.signal(),
            machine=self._make_bootstrap,
        )
        self.upgrading: Upgrading | None = None
        if world.plan.upgrades_k3s:  # elsewhere the worlds of kept seeds stay what they were
            self.upgrading = Upgrading(
                runtime=working,
                self_id=machine.peer,
                replication=self.replication,
                cluster=self.cluster,
                k3s=self.k3s,
                programs=SimPrograms(self),
                durable=self.durable,
            )
        self.snapshots: Snapshots | None = None
        if world.plan.k3s.snapshots_s:  # likewise
            self.snapshots = Snapshots(
                runtime=working,
                self_id=machine.peer,
                hostname=machine.name,
                host=self.host,
                cluster=self.cluster,
                k3s=self.k3s,
                blobs=SimBlobs(self),
                vault=SimVault(self),
                keep=KEEPS,
                max_bytes=MAX_BYTES,
            )
        self.recovery = Recovery(
            runtime=working,
            self_id=machine.peer,
            host=self.host,
            cluster=self.cluster,
            facts=self.snapshots if self.snapshots is not None else NoSnapshots(self.k3s.data),
            automatic=world.plan.recovers,
        )
        self.restoring: Restoring | None = None
        if self.snapshots is not None:
            self.restoring = Restoring(
                runtime=working,
                self_id=machine.peer,
                servers=world.plan.servers,
                may_serve=machine.plan.wish != "agent",
                cluster=self.cluster,
                k3s=self.k3s,
                recovery=self.recovery,
                snapshots=self.snapshots,
            )
        self.tasks.start(self._live())

    def _kept(self) -> Kept | None:
        try:
            raw = self.durable.get(durable_key(self.machine.world.mesh_id))
        except MeshError:  # said when the agent lives: `Admission.start` reads it too
            return None
        return decode_kept(raw) if raw else None

    def _make_bootstrap(self, **arguments: Any) -> Bootstrap:
        self.bootstrap = self.machine.world.make_bootstrap(**arguments)
        return self.bootstrap

    @property
    def is_idle(self) -> bool:
        """Whether everything that the bootstrap machine decided so far is also done."""
        if not self.witness.started or self.bootstrap.state in (State.FENCED, State.CHANGE):
            return False  # what k3s has is about to be set aside
        return ROLES not in self.runtime.busy and not self.k3s.is_busy

    def end(self) -> None:
        """It is dead."""
        self.host.end()
        self.work.end()
        self.tasks.end()

    def note(self, text: str) -> None:
        """A line of the trace."""
        self.machine.world.note(self.machine.name, text)

    def alarm(self, text: str) -> None:
        """Something that a person must look at."""
        self.alarms.append(text)
        self.machine.world.alarms.append((self.machine.name, text))
        self.note(f"ALARM: {text}")
        self.machine.world.mark("alarm", f"{self.machine.name}: {text}")

    def _failed(self, exc: BaseException) -> bool:
        """An error of the disk ends the agent, as it ends the real one; any other is a finding."""
        if not isinstance(exc, MeshError) or not (self.machine.disk_full or self.machine.files.is_damaged):
            return False
        if self.machine.agent is self:
            self.machine.agent_failed(exc.message)
        return True

    async def leave(self) -> None:
        """Out for ever: what `kairos-p2p leave` does (`Agent._leave`)."""
        while self.runtime.busy:  # decisions are carried out whole, however slow the disk is
            await self.tasks.sleep(0.01)
        self.work.end()
        await self.cluster.leave()
        await self.replication.delete(f"role/{self.peer}")
        await self.replication.delete(f"node/{self.peer}")
        await self.replication.spread()
        self.machine.gone = True
        self.note("has left")
        self.machine.world.engine.after(0.0, self.machine.power_off)

    async def _live(self) -> None:
        await self.replication.load()
        await self.admission.start()
        await self.places.load()
        for job in (self.replication, self.admission, self.host, self.places):
            self.tasks.start(job.run())
        if self.machine.world.plan.rotates:  # elsewhere the worlds of kept seeds stay what they were
            self.tasks.start(self.issuing.founding.run())
        for work in (self.vpn, self.cluster):
            self.work.start(work.run())
        if self.upgrading is not None:
            self.work.start(self.upgrading.run())
        if self.snapshots is not None:
            self.work.start(self.snapshots.run())
        if self.machine.world.plan.recovers:
            self.work.start(self.recovery.run())
        self.work.start(self._keep_record())

    async def _keep_record(self) -> None:
        plan, world = self.machine.plan, self.machine.world
        while True:
            record = NodeRecord(
                hostname=plan.name,
                region=self.places.region,
                zone=plan.zone,
                addresses=(),
                carriers=(),
                wish=plan.wish,
                minimum_nodes=self.machine.minimum_nodes,
                servers=world.plan.servers,
                program="simulated",
                region_how=self.places.how,
                region_pending=self.places.is_pending,
            )
            await self.replication.write(f"node/{self.peer}", wire.encode(record))
            await self.places.said.wait(RECORD_EVERY_S)
