"""What is one simulated machine? Disk, clocks, k3s and device; and an agent while one runs.

The agent may die alone (`crash_agent`: a bug, an OOM kill, kill -9) or with everything volatile
(`power_off`). A re-imaged machine has an empty disk, so a new identity, under the same name.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Literal

from p2p_network.admission.kept import Kept, from_network_token
from p2p_network.core.ids import PeerId
from p2p_network.identity import Identity
from p2p_simulations.sim.agent import SimAgent
from p2p_simulations.sim.etcd import Etcd
from p2p_simulations.sim.k3s import DATA, Data, K3sProcess
from p2p_simulations.sim.slots import SlotDisk, booted
from p2p_simulations.world.disk import Disk
from p2p_simulations.world.sectors import Script, SectorDisk, Sync, SyncDirectory
from p2p_simulations.world.tasks import Tasks

if TYPE_CHECKING:
    from p2p_simulations.sim.plan import NodePlan
    from p2p_simulations.sim.world import World

RESTART_S = 5.0  # until the service manager starts an agent again that ended with an error
EPOCH_S = 1_800_000_000.0  # Unix time at which every world begins


class SimMachine:
    """One machine of the world.

    Attributes:
        generation: how often it was imaged; part of its identity.
        tun_ipv4: the address on its device, "" for none.
        routes: VPN address -> peer, as its agent last knew.
        k3s_broken: its k3s can't run at present.
        clock_offset_s: how wrong its wall clock is.
        disk_full: nothing can be written.
        minimum_nodes: what its configuration declares.
        files: the part of the disk that is looked at sector by sector.
        refuses: its agent will not start on what is on the disk; a person must image it anew.
        gone: it left, or was switched off, for ever.
        slots: its boot images.
    """

    def __init__(self, world: World, plan: NodePlan) -> None:
        self.world, self.plan, self.name = world, plan, plan.name
        self.scope = f"kairos/{plan.region}" if world.plan.per_region else "kairos"
        self.disk = Disk(world.engine.random)
        sectors = random.Random(f"sectors {world.engine.seed}/{plan.name}")
        self.files = SectorDisk(sectors, lambda: not self.disk_full)
        self.refuses = False
        self.generation = 0
        self.tun_ipv4 = ""
        self.routes: dict[str, PeerId] = {}
        self.k3s_broken = plan.k3s_broken
        self.minimum_nodes = plan.minimum_nodes or world.plan.minimum_nodes
        self.clock_offset_s = plan.clock_offset_s
        self.agent: SimAgent | None = None
        self.is_on = False
        self._lives = 0
        self._frozen_until = 0.0
        self._clock_base = 0.0
        self._drift = (0.0, 0.0)  # seconds gained per second, since when
        self._slow = {"disk": 1.0, "cpu": 1.0}
        self.disk_full = False
        self.gone = False  # for ever
        self.slots = SlotDisk()
        self.boots = 0
        self.identity = self._make_identity()
        self.k3s = K3sProcess(self)
        if plan.stale_k3s:  # somebody ran a k3s here before; its datastore wins over any flag
            ca_hash = f"stale-{plan.name}"
            self.disk.sync(self.disk.write({DATA: Data("server", ca_hash, "")}))
            world.etcds[ca_hash] = Etcd(ca_hash, f"uid-{ca_hash}", {self.peer: ""})

    @property
    def peer(self) -> PeerId:
        """Its peer id, as of this generation."""
        return self.identity.peer_id

    def _make_identity(self) -> Identity:
        text = f"{self.world.engine.seed}/{self.name}/{self.generation}"
        return Identity(hashlib.blake2b(text.encode(), digest_size=32).digest())

    def admitted(self, kept: Kept | None) -> Kept:
        """What its agent starts with: the world's network token is in its configuration."""
        return from_network_token(self.world.token, "kairos", kept, self.peer, int(self.wall_s() * 1000))

    # ------------------------------------------------------------ clocks and speed

    def monotonic(self) -> float:
        """Seconds since some moment before the boot; goes on while the machine is on."""
        return self.world.engine.now + self._clock_base

    def wall_s(self) -> float:
        """What this machine takes for Unix time."""
        rate, since = self._drift
        now = self.world.engine.now
        return EPOCH_S + now + self.clock_offset_s + rate * (now - since)

    def drift(self, rate: float) -> None:
        """From now on the wall clock gains `rate` seconds per second."""
        now = self.world.engine.now
        before, since = self._drift
        self.clock_offset_s += before * (now - since)
        self._drift = (rate, now)

    @property
    def is_frozen(self) -> bool:
        """Whether nothing goes on here at present (a paused VM, a disk that hangs)."""
        return self.world.engine.now < self._frozen_until

    def resume_at(self) -> float:
        """The earliest moment at which anything may go on here."""
        return self._frozen_until

    def freeze(self, seconds: float) -> None:
        """Nothing goes on here for a while."""
        self._frozen_until = self.world.engine.now + seconds

    def thaw(self) -> None:
        """It goes on."""
        self._frozen_until = 0.0

    def lag_s(self) -> float:
        """How long this machine takes to look at a message."""
        slowness = self.plan.slowness * self._slow["cpu"]
        return self.world.engine.random.expovariate(1 / (0.0005 * slowness))

    def slow_down(self, what: Literal["disk", "cpu"], factor: float) -> None:
        """Its disk or CPU is `factor` times as slow (1: as usual)."""
        self._slow[what] = factor

    async def fsync(self, tasks: Tasks, ticket: int) -> None:
        """Make a write durable; takes a moment in which the power may go."""
        await self._work_disk(tasks, self._disk_work_s())
        self.disk.sync(ticket)

    async def keep(self, tasks: Tasks, script: Script) -> None:
        """Carry out what a program asked of its files; each sync takes a moment in which the power may go."""
        whole_s = self._disk_work_s()
        syncs = sum(isinstance(call, Sync | SyncDirectory) for call in script)
        for call in script:
            if isinstance(call, Sync | SyncDirectory):
                await self._work_disk(tasks, whole_s / syncs)
            self.files.carry_out(call)

    def _disk_work_s(self) -> float:
        """What one write takes while nothing slows the disk down."""
        return self.world.engine.random.expovariate(1 / (0.003 * self.plan.slowness))

    async def _work_disk(self, tasks: Tasks, work_s: float) -> None:
        """A disk that gets faster again is faster for what is under way, too."""
        while True:
            factor = self._slow["disk"]
            took_s = min(work_s * factor, 1.0)
            await tasks.sleep(took_s)
            work_s -= took_s / factor
            if work_s <= 1e-9:
                return

    # ------------------------------------------------------------ on and off

    def boot(self) -> None:
        """Power on, and the agent starts, if the image that boots is a good one."""
        if self.gone or self in self.world.waiting:
            return
        if not self.is_on:
            self.is_on = True
            self._clock_base = self.world.engine.random.uniform(1, 100_000)
            self.boots += 1
            self.world.slot_booted(self, self.slots.boot())
            booted(self)
        self.start_agent()

    def start_agent(self) -> None:
        """The service manager starts the agent."""
        if self.is_on and self.agent is None and not self.gone and self.slots.is_healthy:
            self._lives += 1
            self.agent = SimAgent(self, self._lives)

    def crash_agent(self) -> None:
        """The agent dies; the machine, its page cache, device and k3s go on."""
        if self.agent is not None:
            self.agent.end()
            self.agent = None
            self.touched()

    def power_off(self) -> None:
        """Everything volatile is lost."""
        self.slots.crash(self.world.engine.random)
        self.crash_agent()
        self.k3s.power_off()
        self.disk.crash()
        self.files.crash()
        self.tun_ipv4, self.routes = "", {}
        self.is_on = False
        self.touched()

    def reimage(self) -> None:
        """Off, with an empty disk and so a new identity; the name stays."""
        self.power_off()
        self.disk.lose()
        self.files.lose()
        self.refuses = False
        self.slots = SlotDisk()
        self.generation += 1
        self.identity = self._make_identity()

    def agent_failed(self, why: str) -> None:
        """The agent ended with an error; the service manager starts it again after a while."""
        self.world.note(self.name, f"AGENT ENDED: {why}")
        self.crash_agent()
        if self.files.is_damaged and not self.disk_full:
            self.world.refuses(self)
        self.world.engine.after(RESTART_S, self.start_agent)

    def touched(self) -> None:
        """Something goes on here: the checkers will look."""
        self.world.touched[self.name] = self

    def k3s_changed(self) -> None:
        """k3s does something else now: the agent, if there is one, looks."""
        if self.agent is not None:
            self.agent.k3s.look()
