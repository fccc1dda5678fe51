"""How does a simulated agent drive the model of k3s? The twin of the agent's `K3sUnit`.

Drop-ins, secrets and join secrets as files on the simulated disk. The bootstrap machine says what it wants;
one loop brings it about. A k3s that runs since before the agent's start is adopted when it is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from p2p_roles import events
from p2p_roles.k3s import pki
from p2p_roles.rules import Authorization
from p2p_simulations.sim.etcd import Image
from p2p_simulations.sim.k3s import DATA, DROP_IN, JOIN_SECRET, RESTORED, SECRETS, DropIn
from p2p_simulations.sim.kube import SimKube
from p2p_simulations.sim.snapshots import SimEtcdData
from p2p_simulations.world.tasks import Lock

if TYPE_CHECKING:
    from p2p_simulations.sim.agent import SimAgent


@dataclass(frozen=True, slots=True)
class Observed:
    """k3s as seen last."""

    event: events.K3sChanged


class Made(msgspec.Struct, frozen=True):
    """The secrets that this node made as an initiator, without certificates."""

    epoch: int
    secret: pki.JoinSecret


class SimK3sUnit:
    """k3s as one agent sees it. `changed` is raised when `observed` is another."""

    version = "v1.36.0+k3s1"
    args_hash = "0" * 16
    uses_vpn = True

    def __init__(self, agent: SimAgent) -> None:
        self._agent, self._machine, self._tasks = agent, agent.machine, agent.tasks
        self.data = SimEtcdData(agent)
        self._process = agent.machine.k3s
        self.changed = agent.runtime.signal()
        self._asked = agent.runtime.signal()
        self._lock = Lock()
        self._wanted: events.StartK3s | None = None
        self._tried: events.StartK3s | None = None
        self._node_ip = ""
        self._is_ours = False  # started or adopted in this life of the agent
        self._refused = ""
        self._is_asked = False
        for name in (SECRETS, JOIN_SECRET, RESTORED):  # durable files, as `DurableFiles` finds them
            if (held := self._machine.disk.read(name)) is not None:
                self._machine.disk.sync(self._machine.disk.write({name: held}))

    # ------------------------------------------------------------ what it is doing

    @property
    def observed(self) -> Observed:
        """What k3s does."""
        if self._refused:
            return Observed(events.K3sChanged("failed", error=self._refused, permanent=True))
        return Observed(self._process.observed if self._is_ours else events.K3sChanged("stopped"))

    @property
    def is_busy(self) -> bool:
        """Whether something that is wanted of k3s is under way or waiting."""
        return self._lock.is_held or self._is_asked

    async def find(self) -> None:
        """It is there, of the version that the world says."""

    def look(self) -> None:
        """k3s does something else now."""
        if self._is_ours:
            self.changed.raise_()

    # ------------------------------------------------------------ what is wanted

    def want(self, start: events.StartK3s | None) -> None:
        """Have k3s run like this, or (None) not at all."""
        self._wanted, self._is_asked = start, True
        self._asked.raise_()

    def use_address(self, node_ip: str) -> None:
        """The address k3s goes by. Nothing is started before it is known."""
        self._machine.world.checkers.ledgers.address_settled(self._machine, node_ip)
        self._node_ip = node_ip
        self._asked.raise_()

    async def replace_init_drop_in(self, effect: events.ReplaceInitDropIn) -> None:
        """The drop-in without ``cluster-init``, now or at a start that is still to come."""
        if self._wanted is not None and self._wanted is not self._tried:
            self.want(
                events.StartK3s("server", effect.epoch, effect.ca_hash, effect.join_ip, effect.datastore)
            )
            return
        async with self._lock:
            await self._write(
                DropIn("server", effect.epoch, effect.ca_hash, False, effect.join_ip, effect.timing)
            )

    def hold(self) -> None:
        """Let k3s go on, but not start again when it ends."""
        self._process.is_held = True

    @property
    def kube(self) -> SimKube:
        """The Kubernetes API of this server."""
        return SimKube(self._machine)

    async def stop(self) -> None:
        """Stop k3s."""
        self._wanted = None
        async with self._lock:
            await self._tasks.sleep(self._chance(0.1, 2.0))
            self._process.stop()
            self._is_ours = False
            await self._linger()

    async def restart(self) -> None:
        """Stop k3s and start it as it was."""
        if self._wanted is None or not self._process.is_running:
            return
        self._machine.world.checkers.clusters.k3s_restarts(self._machine)
        async with self._lock:
            self._process.stop()
            await self._linger()
            await self._tasks.sleep(self._chance(0.5, 5.0))
            if self._wanted is not None:
                self._process.start()

    async def reset(self, effect: events.ResetK3s, snapshot: str) -> str:
        """Make this machine the only member of its datastore."""
        self._wanted = self._tried = None
        async with self._lock:
            self._process.stop()
            self._is_ours = False
            await self._linger()
            await self._tasks.sleep(self._chance(1.0, 8.0))
            image: Image | None = self._machine.disk.read(snapshot) if snapshot else None
            if snapshot and (image is None or image.ca_hash != effect.ca_hash):
                return "the snapshot's bootstrap data cannot be decrypted with this cluster's token"
            data = self._process.reset(effect.epoch, image)
            if data is None:
                return "there is no datastore here"
            if image is not None:
                self._machine.world.checkers.clusters.went_back(self._machine)
            dropped = DropIn("server", effect.epoch, effect.ca_hash, False, "")
            await self._machine.fsync(self._tasks, self._machine.disk.write({DATA: data, DROP_IN: dropped}))
        return ""

    async def may_vote(self) -> bool:
        """Whether what k3s has on the disk may be a voter."""
        data = self._machine.disk.read(DATA)
        return data is not None and data.role == "server"

    async def count_workloads(self) -> int | None:
        """Objects of users in the datastore, as far as it answers."""
        data = self._machine.disk.read(DATA)
        if data is None or self._process.observed.state != "ready":
            return None
        return self._machine.world.etcds[data.store].workloads

    async def set_aside(self, label: str, *, only_datastore: bool = False, keep: bool = False) -> None:
        """Stop k3s and move its data out of the way."""
        self._wanted = None
        if label != "left":  # what leaves may take its data with it
            self._machine.world.checkers.clusters.wiped(self._machine, int(label.rpartition("-")[2]))
        async with self._lock:
            self._process.stop()
            self._is_ours = False
            if "-of-epoch-" in label:  # the role changed, not the cluster
                self._machine.world.checkers.clusters.role_given_up(self._machine)
            await self._linger()
            await self._tasks.sleep(self._chance(0.1, 2.0))
            await self._machine.fsync(self._tasks, self._machine.disk.write({DATA: None, DROP_IN: None}))

    async def run(self) -> None:
        """Bring about what is wanted."""
        while True:
            await self._asked.wait()
            wanted = self._wanted
            if wanted is None:
                await self.stop()
            elif not self._node_ip:
                continue
            elif wanted is not self._tried:
                await self._try(wanted)
                self._tried = wanted
            self._is_asked = self._wanted is not wanted

    async def _try(self, wanted: events.StartK3s) -> None:
        if self._held(wanted.ca_hash) is None:
            self._refused = "the secrets of the cluster are not on this machine any more"
            self.changed.raise_()
            return
        self._refused = ""
        async with self._lock:
            if self._wanted is not wanted:
                return
            role = "agent" if wanted.kind == "agent" else "server"
            await self._write(
                DropIn(
                    role,
                    wanted.epoch,
                    wanted.ca_hash,
                    wanted.kind == "server-init",
                    wanted.join_ip,
                    wanted.timing,
                )
            )
            self._is_ours, self._process.is_held = True, False
            self._process.start()
        self.changed.raise_()

    async def _write(self, drop_in: DropIn) -> None:
        if self._machine.disk.read(DROP_IN) != drop_in:
            await self._machine.fsync(self._tasks, self._machine.disk.write({DROP_IN: drop_in}))

    # ------------------------------------------------------------ secrets

    def make_secrets(self, epoch: int) -> str:
        """The CA hash of this node's secrets for an epoch; made once."""
        made: Made | None = self._machine.disk.read(SECRETS)
        if made is None or made.epoch != epoch:
            ca_hash = f"{self._machine.world.engine.random.getrandbits(256):064x}"
            tokens = (f"K10{ca_hash}::server:simulated", f"K10{ca_hash}::node:simulated")
            made = Made(epoch, pki.JoinSecret("server", *tokens))
            self._keep(SECRETS, made, self._chance(0.05, 0.5))
        return made.secret.ca_hash

    def keep_join_secret(self, secret: pki.JoinSecret) -> str:
        """Keep what a server handed out."""
        checked = pki.decode_join(pki.encode(secret))
        self._machine.world.checkers.ledgers.secret_kept(self._machine, checked)
        self._keep(JOIN_SECRET, checked)
        return checked.ca_hash

    def keep_restored(self, secrets: pki.ClusterSecrets) -> None:
        """Keep the CA and tokens of a backup."""
        self._keep(RESTORED, secrets)

    def cluster_secrets(self, ca_hash: str) -> pki.ClusterSecrets | None:
        """What a backup takes along, without certificates; None if this node is no server."""
        held = self._held(ca_hash)
        if held is None or not held.server_token:
            return None
        return pki.ClusterSecrets(0, ca_hash, (), held.server_token, held.agent_token, b"")

    def server_secret(self, ca_hash: str) -> bytes:
        """What only servers of that cluster know; b"" if this node does not."""
        held = self._held(ca_hash)
        return held.server_token.encode() if held is not None else b""

    def hand_out(self, verdict: Authorization, ca_hash: str) -> pki.JoinAnswer:
        """What to answer a peer that asks for the join secret of this node's cluster."""
        return pki.hand_out(verdict, self._held(ca_hash))

    def _held(self, ca_hash: str) -> pki.JoinSecret | None:
        made: Made | None = self._machine.disk.read(SECRETS)
        given: pki.JoinSecret | None = self._machine.disk.read(JOIN_SECRET)
        restored: pki.ClusterSecrets | None = self._machine.disk.read(RESTORED)
        brought = restored.joining("server") if restored is not None else None
        known = (made.secret if made is not None else None, brought, given)
        return next((secret for secret in known if secret is not None and secret.ca_hash == ca_hash), None)

    def _keep(self, name: str, value: object, wait_s: float = 0.0) -> None:
        ticket = self._machine.disk.write({name: value})

        async def rest() -> None:
            await self._tasks.sleep(wait_s)
            await self._machine.fsync(self._tasks, ticket)

        self._agent.runtime.lasts(rest)

    async def _linger(self) -> None:
        """Its pods take their time."""
        shortest, longest = self._machine.world.plan.k3s.lingers_s
        if longest:
            await self._tasks.sleep(self._chance(shortest, longest))

    def _chance(self, low: float, high: float) -> float:
        return self._machine.world.engine.random.uniform(low, high)
