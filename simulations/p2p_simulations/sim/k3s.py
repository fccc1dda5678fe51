"""When is k3s ready, and what can go wrong with it? A model: processes, etcd members, CA hashes.

What matters for the bootstrap, and no more: the datastore is chosen at the first start and wins over flags
for ever; starting takes long and may fail; a joining server becomes an etcd member through a living quorum;
ready means a living majority of the members over the simulated network; a token pins a CA and a wrong one
ends the process; a member whose address changed is no member. The process outlives the agent.

Files on the simulated disk: ``k3s/dropin`` (what our drop-in says), ``k3s/data`` (the datastore or the
agent's certificates), ``k3s/secrets`` (a CA made here), ``k3s/joinsecret``, ``k3s/snapshots/`` (what k3s
saves on its schedule; `etcd` says what a datastore and a snapshot hold).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from p2p_network.core.errors import K3sFailed
from p2p_roles.events import K3sChanged, K3sState
from p2p_roles.genesis.messages import Timing
from p2p_roles.k3s.datastore import EtcdFacts
from p2p_roles.timing import LAN
from p2p_simulations.sim.etcd import Etcd, Image, store_of
from p2p_simulations.sim.programs import installed
from p2p_simulations.world.tasks import Tasks

if TYPE_CHECKING:
    from p2p_simulations.sim.machine import SimMachine

DROP_IN, DATA, JOIN_SECRET, SECRETS = "k3s/dropin", "k3s/data", "k3s/joinsecret", "k3s/secrets"
RESTORED = "k3s/restored"  # the CA and tokens of a backup
SNAPSHOTS = "k3s/snapshots/"
_LOOK_EVERY_S = 1.0
_JOIN_AGAIN_S = 3.0
_RESTART_S = 5.0
_PROMOTION_S = (1.0, 8.0)
_RETENTION = 5  # k3s's default


class DropIn(msgspec.Struct, frozen=True):
    """What our drop-in says. `cluster_init` only for the genesis; `join_ip` is ``server:``."""

    role: str
    epoch: int
    ca_hash: str
    cluster_init: bool
    join_ip: str
    timing: Timing = LAN


class Data(msgspec.Struct, frozen=True):
    """What k3s has on disk since its first start. `reset`: the epoch in which its etcd was reset."""

    role: str
    ca_hash: str
    ipv4: str
    reset: int = 0

    @property
    def store(self) -> str:
        """The datastore that it is a part of: a reset one is another."""
        return store_of(self.ca_hash, self.reset)


class Exited(Exception):
    """k3s ended, with these last words."""


class K3sProcess:
    """k3s on one machine, with the service manager that starts it again."""

    def __init__(self, machine: SimMachine) -> None:
        self._machine, self._world = machine, machine.world
        self._tasks: Tasks | None = None  # None: not running
        self.observed = K3sChanged("stopped")
        self.joined = False
        self.is_frozen = False
        self.is_held = False
        self._saves_at = 0.0

    @property
    def is_running(self) -> bool:
        """Whether the service is started."""
        return self._tasks is not None

    def start(self) -> None:
        """Start it, or leave a running one alone."""
        if self._tasks is not None:
            return
        self._tasks = Tasks(self._world.engine, self._machine.resume_at, self._machine.touched)
        self._tasks.start(self._live())

    def reset(self, epoch: int, image: Image | None = None) -> Data | None:
        """``--cluster-reset``: what was stored here becomes a datastore with this machine alone in it.

        image: ``--cluster-reset-restore-path``: what it holds, instead of what this member held.
        """
        data: Data | None = self._machine.disk.read(DATA)
        if image is None and (data is None or data.role != "server"):
            return None
        world, machine = self._world, self._machine
        before = world.etcds[data.store] if data is not None else None
        if image is None:
            assert before is not None, "looked at above"
            image = before.image(machine.peer)
        after = Data("server", image.ca_hash, machine.tun_ipv4, epoch)
        world.etcds[after.store] = Etcd.of(image, {machine.peer: machine.tun_ipv4}, epoch)
        world.users.carried_on(machine, image, after.store)
        return after

    def facts(self) -> EtcdFacts:
        """What its etcd says of itself; how new it is, only while it runs."""
        data: Data | None = self._machine.disk.read(DATA)
        if data is None or data.role != "server":
            return EtcdFacts()
        if self._tasks is None or not self.joined:
            return EtcdFacts(has_data=True)
        etcd = self._world.etcds[data.store]
        revision = etcd.image(self._machine.peer).revision
        return EtcdFacts(True, self._has_quorum(etcd), 1 + etcd.reset, revision, revision)

    async def save(self, name: str, tasks: Tasks) -> str:
        """``etcd-snapshot save``: the file's name. Raises K3sFailed."""
        etcd = self.serving()
        if etcd is None:
            raise K3sFailed("k3s did not save a snapshot: etcd has no leader", hint="kairos-p2p status")
        file = f"{name}-{self._machine.name}-{int(self._machine.wall_s())}"
        image = etcd.image(self._machine.peer, file, self._machine.wall_s())
        self._world.users.saved(self._machine, image, etcd)
        kept = [n for n in self._machine.disk.names(SNAPSHOTS) if n.startswith(f"{SNAPSHOTS}{name}-")]
        gone = dict.fromkeys(kept[: max(0, len(kept) - _RETENTION + 1)])
        await self._machine.fsync(tasks, self._machine.disk.write({**gone, f"{SNAPSHOTS}{file}": image}))
        return file

    def stop(self) -> None:
        """Stop it; data stays."""
        if self._tasks is not None:
            self._tasks.end()
            self._leave_learners()
            self._tasks, self.joined = None, False
        self._observe("stopped")

    def power_off(self) -> None:
        """The machine lost power: nobody is told."""
        if self._tasks is not None:
            self._tasks.end()
            self._leave_learners()
        self._tasks, self.joined = None, False
        self.observed = K3sChanged("stopped")

    # ------------------------------------------------------------ one life

    async def _live(self) -> None:
        tasks, machine = self._tasks, self._machine
        assert tasks is not None, "a living process has its activities"
        chance, profile = self._world.engine.random, self._world.plan.k3s
        while True:
            self._observe("starting")
            try:
                if machine.k3s_broken:
                    await tasks.sleep(chance.uniform(0.1, 1.0))
                    raise Exited("exec format error")
                if (machine.name, installed(machine)) in self._world.bad_programs:
                    await tasks.sleep(chance.uniform(0.1, 1.0))
                    raise Exited(f"k3s {installed(machine)} does not start on this machine")
                await tasks.sleep(chance.uniform(*profile.start_s))
                if not self._world.healing and chance.random() < profile.failure:
                    raise Exited("failed to start: disk is slow")
                self._observe("running")
                await self._come_up(tasks)
                await self._watch(tasks)
            except Exited as exc:
                self.joined = False
                self._leave_learners()
                self._observe("failed", error=str(exc), permanent=machine.k3s_broken)
                await tasks.sleep(_RESTART_S)
                while self.is_held:
                    await tasks.sleep(_RESTART_S)

    async def _come_up(self, tasks: Tasks) -> None:
        """Until this machine is a member, or an agent with certificates."""
        disk, machine = self._machine.disk, self._machine
        drop_in: DropIn | None = disk.read(DROP_IN)
        data: Data | None = disk.read(DATA)
        assert drop_in is not None, "k3s is started with a drop-in"
        if data is not None and not data.ipv4:  # left here by a former owner of the machine
            data = Data(data.role, data.ca_hash, machine.tun_ipv4)
            self._world.etcds[data.store].members[machine.peer] = machine.tun_ipv4
            await machine.fsync(tasks, disk.write({DATA: data}))
        if data is not None:  # whatever the flags say
            self._world.checkers.clusters.k3s_started(machine, drop_in, data)
            if data.role == "server" and data.ipv4 != machine.tun_ipv4:
                raise Exited("this server is not a member of the etcd cluster: its address has changed")
            if data.store not in self._world.etcds:  # it died when etcd's files were there and no more
                self._begin(data.ca_hash)
        elif drop_in.role == "server" and drop_in.cluster_init:
            await self._initialise(tasks, drop_in)
        elif drop_in.join_ip:
            await self._join(tasks, drop_in)
        else:
            raise Exited("SQLite was chosen: neither cluster-init nor server is set")
        self._register(self._world.etcds[machine.disk.read(DATA).store])
        self.joined = True

    async def _initialise(self, tasks: Tasks, drop_in: DropIn) -> None:
        machine, world = self._machine, self._world
        world.checkers.clusters.k3s_initialises(machine, drop_in)
        data = Data("server", drop_in.ca_hash, machine.tun_ipv4)
        await machine.fsync(tasks, machine.disk.write({DATA: data}))
        self._begin(drop_in.ca_hash)

    def _begin(self, ca_hash: str) -> None:
        """etcd has its first member, and Kubernetes its first objects."""
        machine, world = self._machine, self._world
        uid = f"uid-{world.engine.random.getrandbits(32):08x}"
        world.etcds[ca_hash] = Etcd(ca_hash, uid, {machine.peer: machine.tun_ipv4})
        world.note(machine.name, f"k3s initialises a cluster with CA {ca_hash}")

    async def _join(self, tasks: Tasks, drop_in: DropIn) -> None:
        machine, world = self._machine, self._world
        while True:
            server = self._server_at(drop_in.join_ip)
            if server is None:
                self._observe("running", error=f"https://{drop_in.join_ip}:6443 is not reachable")
                await tasks.sleep(_JOIN_AGAIN_S)
                continue
            theirs: Data = server.disk.read(DATA)
            if theirs.ca_hash != drop_in.ca_hash and world.fences:
                raise Exited("token CA hash does not match the Cluster CA certificate hash")
            etcd = world.etcds[theirs.store]
            if drop_in.role == "agent":
                break
            if machine.peer in etcd.members or await self._become_member(tasks, etcd):
                break
            await tasks.sleep(_JOIN_AGAIN_S)
        world.checkers.clusters.k3s_joins(machine, drop_in, etcd.ca_hash)
        data = Data(drop_in.role, etcd.ca_hash, machine.tun_ipv4, etcd.reset)
        await machine.fsync(tasks, machine.disk.write({DATA: data}))
        world.note(machine.name, f"k3s joined as {drop_in.role} the cluster with CA {etcd.ca_hash}")

    async def _become_member(self, tasks: Tasks, etcd: Etcd) -> bool:
        """Learner first, voter after a while; both need a quorum."""
        machine = self._machine
        if etcd.learner not in ("", machine.peer) or not self._has_quorum(etcd, joining=True):
            self._observe("running", error="too many learner members, or no quorum: trying again")
            return False
        etcd.learner = machine.peer
        await tasks.sleep(self._world.engine.random.uniform(*_PROMOTION_S))
        if etcd.learner != machine.peer or not self._has_quorum(etcd, joining=True):
            self._leave_learners()
            return False
        etcd.learner = ""
        # the new voter's data is synced before it counts as one: etcd acknowledges nothing unsynced
        ticket = machine.disk.write({DATA: Data("server", etcd.ca_hash, machine.tun_ipv4, etcd.reset)})
        machine.disk.sync(ticket)
        etcd.members[machine.peer] = machine.tun_ipv4
        return True

    def _leave_learners(self) -> None:
        for etcd in self._world.etcds.values():
            if etcd.learner == self._machine.peer:
                etcd.learner = ""

    async def _watch(self, tasks: Tasks) -> None:
        """Ready while the datastore is."""
        machine = self._machine
        while True:
            data: Data = machine.disk.read(DATA)
            etcd = self._world.etcds[data.store]
            if machine.k3s_broken:
                raise Exited("exec format error")
            if data.role == "agent":
                ready = any(self._is_server(m, etcd) for m in self._world.machines.values())
            else:
                if machine.peer not in etcd.members:
                    await self._removed(tasks, etcd)
                ready = self._has_quorum(etcd)
                if ready:
                    etcd.caught_up(machine.peer)
                    await self._save_now_and_then(tasks)
            if ready:
                self._world.checkers.clusters.k3s_ready(machine, data, etcd)
                drop_in: DropIn = machine.disk.read(DROP_IN)
                shown = data.ca_hash if self._world.fences else drop_in.ca_hash
                self._observe("ready", uid=etcd.uid, ca_hash=shown)
            else:
                self._observe("running", error="etcd has no leader")
            await tasks.sleep(_LOOK_EVERY_S)

    async def _save_now_and_then(self, tasks: Tasks) -> None:
        """k3s's own schedule."""
        every_s = self._world.plan.k3s.snapshots_s
        if every_s and self._world.engine.now >= self._saves_at:
            self._saves_at = self._world.engine.now + every_s
            await self.save("etcd-snapshot", tasks)

    async def _removed(self, tasks: Tasks, etcd: Etcd) -> None:
        """The cluster has removed this server: a tombstone; when it starts again, it joins anew."""
        machine = self._machine
        if self._hears_of(etcd):  # from the others, else it goes on without a leader
            await machine.fsync(tasks, machine.disk.write({DATA: None}))
            raise Exited("this node has been removed from the cluster")
        self._observe("running", error="etcd has no leader")

    def _hears_of(self, etcd: Etcd) -> bool:
        others = (self._world.machine_of(p) for p in etcd.members)
        return any(o is not None and o.k3s.joined and self._world.joined(self._machine, o) for o in others)

    # ------------------------------------------------------------ over the network

    def serving(self) -> Etcd | None:
        """The datastore, while the API on this machine answers."""
        data: Data | None = self._machine.disk.read(DATA)
        if self._tasks is None or not self.joined or data is None or data.role != "server":
            return None
        etcd = self._world.etcds[data.store]
        return etcd if self._has_quorum(etcd) else None

    def in_touch(self, etcd: Etcd, peer: str) -> bool:
        """Whether this server hears that member of the datastore now."""
        other = self._world.machine_of(peer)
        if other is None or other.is_frozen:
            return False
        if other is self._machine:
            return True
        if not other.k3s.joined or not self._world.joined(self._machine, other):
            return False
        data: Data | None = other.disk.read(DATA)  # it may be in another one by now
        return data is not None and data.store == etcd.store

    def _register(self, etcd: Etcd) -> None:
        """The kubelet registers its Node."""
        machine, nodes = self._machine, etcd.kube.nodes
        if all(peer != machine.peer for peer, _ in nodes.values()):
            etcd.writes(lambda peer: self.in_touch(etcd, peer))
            name = machine.name if machine.name not in nodes else self._world.name(machine.peer)
            nodes[name] = (machine.peer, machine.tun_ipv4)

    def _server_at(self, ipv4: str) -> SimMachine | None:
        """The ready server behind a VPN address, as this machine's routes have it."""
        machine = self._world.machine_of(self._machine.routes.get(ipv4, ""))
        if machine is None or machine is self._machine or machine.tun_ipv4 != ipv4:
            return None
        linked = self._world.joined(self._machine, machine)
        is_server = linked and machine.k3s.observed.state == "ready"
        data = machine.disk.read(DATA)
        return machine if is_server and data is not None and data.role == "server" else None

    def _is_server(self, machine: SimMachine, etcd: Etcd) -> bool:
        data: Data | None = machine.disk.read(DATA)
        if data is None or data.ca_hash != etcd.ca_hash:
            return False
        return (
            machine.k3s.joined
            and machine.peer in self._world.etcds[data.store].members
            and machine.k3s.observed.state == "ready"
            and self._world.joined(self._machine, machine)
        )

    def _has_quorum(self, etcd: Etcd, *, joining: bool = False) -> bool:
        """Whether a majority of the members is alive and reachable from here (joining: or through one)."""
        alive = 0
        for peer, ipv4 in etcd.members.items():
            other = self._world.machine_of(peer)
            alive += other is not None and other.tun_ipv4 == ipv4 and self.in_touch(etcd, peer)
        return alive > len(etcd.members) // 2 and (joining or self._machine.peer in etcd.members)

    def _observe(
        self, state: K3sState, *, uid: str = "", ca_hash: str = "", error: str = "", permanent: bool = False
    ) -> None:
        after = K3sChanged(state, uid=uid, ca_hash=ca_hash, error=error, permanent=permanent)
        if after == self.observed:
            return
        if after.state != self.observed.state:
            self._world.note(self._machine.name, f"k3s is {state}{': ' if error else ''}{error}")
        self.observed = after
        self._machine.k3s_changed()
