"""How does this node's k3s get what it needs, and what is it doing?

Owns the k3s driver and the secrets of the cluster on this machine. The bootstrap machine says what it wants
(`want`); one loop brings it about, so that a start and a stop can't overtake each other. What k3s then does
comes back through `observed`, with `changed` raised. Secrets rest in the durable folder (0600) and nowhere
else but in k3s's own files.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio
import yaml

from p2p_bootstrap.config.loading import Config
from p2p_bootstrap.config.model import K3s
from p2p_bootstrap.node import virtual_ip
from p2p_bootstrap.node.hooks import Hooks, stage_runner
from p2p_bootstrap.node.k3s_data import K3sData
from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.signal import Signal
from p2p_network.core import log
from p2p_network.core.errors import P2PError, RoleError
from p2p_network.core.ids import PeerId, short
from p2p_network.ledger.durable import DurableFiles
from p2p_network.ledger.reading import read_by_peer
from p2p_network.records import NodeRecord
from p2p_roles.assign import Role
from p2p_roles.events import ReplaceInitDropIn, ResetK3s, StartK3s, StartKind
from p2p_roles.genesis.messages import Datastore, Timing
from p2p_roles.k3s import pki, spec, supervisor
from p2p_roles.k3s.driver import K3sDriver, K3sObserved
from p2p_roles.k3s.kube import Kube
from p2p_roles.rules import Authorization

logger = log.get(__name__)

_MADE: Final = "k3s-secrets"  # by this node, as an initiator
_GIVEN: Final = "k3s-join"  # by a server, to join with
RETRY_S: Final = 10.0
_RESTORED: Final = "k3s-restored"  # out of a backup
_NODE_NAME: Final = "k3s-node-name"


def options_of(config: Config) -> spec.K3sOptions:
    """What the cloud-config says about k3s, in the roles room's words."""

    def section(k3s: K3s) -> spec.SectionOptions:
        return spec.SectionOptions(
            args=k3s.args,
            env=dict(k3s.env),
            replace_args=k3s.replace_args,
            replace_env=k3s.replace_env,
            embedded_registry=k3s.embedded_registry,
        )

    database = config.p2p.auto.ha.external_db
    snapshots = config.p2p.snapshots
    return spec.K3sOptions(
        server=section(config.k3s),
        agent=section(config.k3s_agent),
        external_db=database.get_secret_value() if database is not None else "",
        snapshot_schedule=snapshots.schedule,
        snapshots_kept=snapshots.keep,
    )


def labels_of(config: Config) -> tuple[str, ...]:
    """The labels that the cloud-config declares."""
    return tuple(f"{key}={value}" for key, value in sorted(config.p2p.labels.items()))


class K3sUnit:
    """k3s on this node."""

    def __init__(
        self,
        *,
        self_id: PeerId,
        config: Config,
        hostname: str,
        state_dir: Path,
        durable: DurableFiles,
        replication: Replication,
        region: Callable[[], str],
    ) -> None:
        self._region = region
        self.driver = K3sDriver(state_dir=state_dir, supervisor=supervisor.choose(state_dir))
        self.data = K3sData(self.driver, lambda: spec.paths_of(options_of(config), "server"))
        self.version = ""
        self.changed = Signal()
        self._self_id = self_id
        self._config = config
        self._hostname = hostname
        self._durable = durable
        self._replication = replication
        self.options = self._options = options_of(config)
        self._node_ip = ""
        self._wanted: StartK3s | None = None
        self._tried: StartK3s | None = None  # what was wanted when k3s was started last
        self._is_held = False
        self._asked = Signal()
        self.hooks = Hooks(durable, stage_runner(config))
        self._after_due: Role | None = None  # whose ``after`` hook runs once k3s is ready
        self._refused: P2PError | None = None  # why a wanted start could not even be tried
        self._missing: P2PError | None = None  # why there was no k3s when this process started

    # ------------------------------------------------------------ what it is doing

    @property
    def observed(self) -> K3sObserved:
        """k3s as seen last, with our own reason where it could not even be tried."""
        if self._refused is not None:
            final = not isinstance(self._refused, virtual_ip.ManifestMissing)
            return K3sObserved(
                "failed", error=self._refused.message, hint=self._refused.hint, permanent=final
            )
        seen = self.driver.observed
        if self._missing is not None and seen.state == "stopped":
            return K3sObserved("absent", error=self._missing.message, hint=self._missing.hint, permanent=True)
        return seen

    @property
    def args_hash(self) -> str:
        """Of the options that all servers must share."""
        flags = (*spec.cluster_wide_flags(self._options), f"vpn={self.uses_vpn}")
        return hashlib.sha256("\n".join(flags).encode()).hexdigest()[:16]

    @property
    def uses_vpn(self) -> bool:
        """Whether k3s's traffic between nodes goes through the VPN."""
        return self._config.p2p.vpn.create and self._config.p2p.vpn.use

    async def find(self) -> None:
        """Find k3s and ask its version. Without one the node still votes, and `observed` says what to do."""
        try:
            self.version = await self.driver.version()
        except P2PError as exc:
            self._missing = exc
            log.event(logger, "roles.k3s_missing", logging.ERROR, error=exc.message, hint=exc.hint)

    async def kubeconfig(self) -> str:
        """The cluster-admin kubeconfig, with this node's own address in it. Raises RoleError."""
        path = Path(spec.K3sPaths().kubeconfig)
        try:
            document = yaml.safe_load(await trio.to_thread.run_sync(path.read_text))
            document["clusters"][0]["cluster"]["server"] = spec.api_url(self._node_ip or "127.0.0.1")
        except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError) as exc:
            raise RoleError(
                f"{path} cannot be read: {exc}", hint="k3s writes it when it is up: kairos-p2p wait ready"
            ) from exc
        return yaml.safe_dump(document, sort_keys=False)

    @property
    def kube(self) -> Kube:
        """The Kubernetes API of this server."""
        return Kube(Path(spec.K3sPaths().kubeconfig))

    # ------------------------------------------------------------ what is wanted

    def want(self, start: StartK3s | None) -> None:
        """Have k3s run like this, or (None) not at all. Returns at once."""
        self._wanted = start
        self._is_held = False
        self._asked.raise_()

    def use_address(self, node_ip: str) -> None:
        """The address k3s goes by, for ever. Nothing is started before it is known."""
        self._node_ip = node_ip
        if self._wanted is not None:  # else nobody has said yet what to do with a k3s that runs already
            self._asked.raise_()

    async def replace_init_drop_in(self, effect: ReplaceInitDropIn) -> None:
        """Take ``cluster-init`` off the disk while k3s goes on, or out of a start that is still to come."""
        if self._wanted is not None and self._wanted is not self._tried:
            ours = (effect.epoch, effect.ca_hash, effect.join_ip, effect.datastore, effect.timing)
            self.want(StartK3s("server", *ours))
            return
        await self.driver.rewrite(
            await self._spec("server", effect.ca_hash, effect.join_ip, effect.datastore, effect.timing)
        )

    def hold(self) -> None:
        """Let k3s go on, but don't start it again when it ends."""
        self._is_held = True
        self.driver.hold()

    async def stop(self) -> None:
        """End k3s now, also when `run` does not run; its data stays."""
        self._wanted = None
        await self.driver.stop()

    async def restart(self) -> None:
        """End k3s and start it as it was; nothing if it is not to run."""
        await self.driver.restart()

    async def set_aside(self, label: str, *, only_datastore: bool = False, keep: bool = False) -> None:
        """End k3s and move its data out of the way, where it keeps any. Raises RoleError.

        Args:
            only_datastore: the same cluster goes on without it: certificates, images and pods stay.
            keep: people used it: a snapshot first where etcd answers, and never removed by us.
        """
        self._wanted = None
        if keep:
            await self.data.save_before(label)
        if only_datastore:
            await self.driver.stop()
            await self.data.set_aside_etcd(label)
            return
        await trio.to_thread.run_sync(self.hooks.forget)
        for role in ("server", "agent"):
            await self.driver.set_aside(spec.paths_of(self._options, role), label, keep=keep)

    async def reset(self, effect: ResetK3s, snapshot: str) -> str:
        """Make this server the only member of its etcd; why it could not, "" if it is done.

        Args:
            snapshot: path of the file to restore; "" for what is on the disk.
        """
        self._wanted = self._tried = None
        try:
            await self.driver.stop()
            if effect.is_foreign:
                for role in ("server", "agent"):
                    paths = spec.paths_of(self._options, role)
                    await self.driver.set_aside(paths, f"before-epoch-{effect.epoch}", keep=True)
            built = await self._spec("server-restore", effect.ca_hash, "", effect.datastore, effect.timing)
            await self.data.reset(built, f"epoch-{effect.epoch}", snapshot)
        except (P2PError, OSError, ValueError) as exc:
            return str(exc)
        return ""

    async def may_vote(self) -> bool:
        """Whether what k3s, stopped, has on this disk may be a voter of its etcd."""
        return await self.data.may_vote()

    async def count_workloads(self) -> int | None:
        """Objects of people in the cluster that is served here; None if it can't be told."""
        return await self.data.count_workloads()

    async def run(self) -> None:
        """Bring about what is wanted, until cancelled; k3s goes on then."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.driver.run)
            nursery.start_soon(self._watch)
            while True:
                again = isinstance(self._refused, virtual_ip.ManifestMissing)
                await self._asked.wait(RETRY_S if again else float("inf"))
                wanted = self._wanted
                if wanted is None:
                    await self.driver.stop()
                elif self._node_ip and (again or wanted is not self._tried):
                    await self._try(wanted)
                    self._tried = wanted

    async def _watch(self) -> None:
        async for _ in self.driver.changes:
            self.changed.raise_()
            if self._after_due is not None and self.driver.observed.state == "ready":
                role, self._after_due = self._after_due, None
                await self._run_after(role)

    async def _run_after(self, role: Role) -> None:
        try:
            await self.hooks.run("after", role)
        except P2PError as exc:  # k3s goes on: what comes after its start can't undo it
            log.event(logger, "roles.hook_failed", logging.ERROR, error=exc.message, hint=exc.hint)

    async def _virtual_ip(self) -> tuple[spec.FileSpec, ...]:
        return await virtual_ip.files(self._config, spec.paths_of(self._options, "server"))

    async def _try(self, wanted: StartK3s) -> None:
        try:
            built = await self._spec(
                wanted.kind, wanted.ca_hash, wanted.join_ip, wanted.datastore, wanted.timing
            )
            await self.hooks.run("before", built.role)
        except (P2PError, ValueError) as exc:
            self._refuse(exc if isinstance(exc, P2PError) else RoleError(str(exc)))
            return
        self._refuse(None)
        self._after_due = built.role
        if self._wanted is wanted:  # it may have been stopped and set aside meanwhile
            self.driver.start(built)
            if self._is_held:
                self.driver.hold()

    def _refuse(self, exc: P2PError | None) -> None:
        if exc is not None and (self._refused is None or self._refused.message != exc.message):
            log.event(logger, "roles.k3s_refused", logging.ERROR, error=exc.message, hint=exc.hint)
        self._refused = exc
        self.changed.raise_()

    async def _spec(
        self, kind: StartKind, ca_hash: str, join_ip: str, datastore: Datastore, timing: Timing
    ) -> spec.K3sSpec:
        held = await trio.to_thread.run_sync(self._held, ca_hash)
        if held is None:
            raise RoleError(
                "the secrets of the cluster are not on this machine any more",
                hint="let this node leave and join as a new one: kairos-p2p leave",
            )
        p2p = self._config.p2p
        return spec.build(
            kind,
            facts=spec.NodeFacts(
                node_name=await trio.to_thread.run_sync(self._node_name),
                node_ip=self._node_ip,
                device=p2p.vpn.interface if self.uses_vpn else "",
                region=self._region(),
                zone=p2p.zone or "",
                names=(self._hostname, *virtual_ip.names(self._config)),
                labels=labels_of(self._config),
                taints=p2p.taints,
            ),
            options=self._options,
            datastore=datastore,
            server_token=held.server_token,
            agent_token=held.agent_token,
            join_ip=join_ip,
            ca_files=held.files if isinstance(held, pki.ClusterSecrets) else (),
            timing=timing,
            more_files=() if kind == "agent" else await self._virtual_ip(),
        )

    def _node_name(self) -> str:
        """The Kubernetes name of this node: chosen once, never changed.

        The host name, unless another node goes by it too: images that come up with one name for all
        machines are common, and k3s refuses the second one.
        """
        kept = self._durable.get(_NODE_NAME)
        if kept:
            return kept.decode()
        others = read_by_peer(self._replication.ledger, "node/", NodeRecord)
        taken = {record.hostname.lower() for peer, record in others.items() if peer != self._self_id}
        suffix = short(self._self_id) if self._hostname.lower() in taken else ""
        name = spec.node_name(self._hostname, suffix)
        self._durable.set(_NODE_NAME, name.encode())
        return name

    # ------------------------------------------------------------ secrets

    def make_secrets(self, epoch: int) -> str:
        """CA and tokens for `epoch`, made once and durable; the CA's hash. Blocks."""
        held = self._made()
        if held is None or held.epoch != epoch:
            held = pki.make(epoch, datetime.datetime.now(datetime.UTC))
            self._durable.set(_MADE, pki.encode(held))
        return held.ca_hash

    def keep_join_secret(self, secret: pki.JoinSecret) -> str:
        """Keep what a server handed out; the hash of the CA it pins. Blocks. Raises ValueError."""
        raw = pki.encode(secret)
        checked = pki.decode_join(raw)
        self._durable.set(_GIVEN, raw)
        return checked.ca_hash

    def hand_out(self, verdict: Authorization, ca_hash: str) -> pki.JoinAnswer:
        """What to answer a peer that asks for the join secret of this node's cluster. Blocks."""
        return pki.hand_out(verdict, self._held(ca_hash))

    def keep_restored(self, secrets: pki.ClusterSecrets) -> None:
        """Keep the CA and tokens of a backup. Blocks."""
        self._durable.set(_RESTORED, pki.encode(secrets))

    def server_secret(self, ca_hash: str) -> bytes:
        """What only servers of that cluster know; b"" if this node does not. Blocks."""
        held = self._held(ca_hash)
        return held.server_token.encode() if held is not None else b""

    def cluster_secrets(self, ca_hash: str) -> pki.ClusterSecrets:
        """CA and tokens of the cluster that this server serves, for a backup. Blocks. Raises RoleError."""
        held = self._held(ca_hash)
        if held is None or not held.server_token:
            raise RoleError("this node does not hold the cluster's tokens", hint="run it on a server")
        if isinstance(held, pki.ClusterSecrets):
            return held
        tls = Path(spec.paths_of(self._options, "server").data_dir) / "server" / "tls"
        names = [f"{name}.{kind}" for name, _ in pki.CA_NAMES for kind in ("crt", "key")]
        try:
            files = tuple((name, (tls / name).read_bytes()) for name in (*names, "service.key"))
            if pki.bundle_hash(dict(files)["server-ca.crt"]) != ca_hash:
                raise RoleError(f"the CA in {tls} is not the certified one")
        except (OSError, ValueError) as exc:
            raise RoleError(f"the CA in {tls} cannot be read: {exc}") from exc
        return pki.ClusterSecrets(0, ca_hash, files, held.server_token, held.agent_token, b"")

    def own_node_name(self) -> str:
        """The Kubernetes name of this node. Blocks."""
        return self._node_name()

    def _held(self, ca_hash: str) -> pki.ClusterSecrets | pki.JoinSecret | None:
        """The secrets that pin this CA, made here, out of a backup, or given by a server."""
        kept = self._durable.get(_RESTORED)
        for made in (self._made(), pki.decode_cluster(kept) if kept else None):
            if made is not None and made.ca_hash == ca_hash:
                return made
        raw = self._durable.get(_GIVEN)
        given = pki.decode_join(raw) if raw else None
        return given if given is not None and given.ca_hash == ca_hash else None

    def _made(self) -> pki.ClusterSecrets | None:
        raw = self._durable.get(_MADE)
        return pki.decode_cluster(raw) if raw else None
