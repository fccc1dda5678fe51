"""What does the agent answer when a program on this machine asks?

Implements `api.service.AgentService` by reading the columns' snapshots; decides nothing. Milestones
(`phases`) are noted here, the first time each is seen.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Awaitable, Callable, Sequence

import trio
from msgspec.structs import replace

from p2p_bootstrap import __version__
from p2p_bootstrap.api.events import EventLog
from p2p_bootstrap.api.service import (
    ConfirmedDoc,
    EventDoc,
    Goal,
    InvitedDoc,
    InviteDoc,
    K3sDoc,
    KubeconfigsDoc,
    MeshDoc,
    NamesDoc,
    NodeDoc,
    PairDoc,
    PeerDoc,
    PhaseDoc,
    PhaseName,
    PlanDoc,
    RegionsDoc,
    RevokedDoc,
    RoleDoc,
    RoleRow,
    RotatedDoc,
    StatusDoc,
    VpnDoc,
    Wanted,
    find_node,
)
from p2p_bootstrap.config.loading import Config
from p2p_bootstrap.node import documents
from p2p_bootstrap.node.admission import Admission
from p2p_bootstrap.node.authority import Change
from p2p_bootstrap.node.cluster import Cluster
from p2p_bootstrap.node.documents import to_ms
from p2p_bootstrap.node.issuing import InviteState, Issuing
from p2p_bootstrap.node.k3s import K3sUnit
from p2p_bootstrap.node.local_k3s import LOCAL, role_of
from p2p_bootstrap.node.metrics import render
from p2p_bootstrap.node.names import Names
from p2p_bootstrap.node.outside import Outside
from p2p_bootstrap.node.places import Places
from p2p_bootstrap.node.replication import Replication
from p2p_bootstrap.node.sharing import Sharing
from p2p_bootstrap.node.signal import Signal
from p2p_bootstrap.node.vpn import Vpn
from p2p_network import drains
from p2p_network.admission.documents import LIMITS
from p2p_network.coordinates import rtt_s
from p2p_network.core.errors import RoleError, TimedOut, UsageError
from p2p_network.core.ids import PeerId, public_key_of, short
from p2p_network.host.addresses import parse_endpoint
from p2p_network.host.mesh import MeshHost
from p2p_network.ledger.reading import read_by_peer
from p2p_network.membership import MemberState
from p2p_network.records import RoleRecord

POLL_S = 1.0
MAX_INVITE_ADDRESSES = 3


class Answers:
    """The agent as its local API sees it.

    Args:
        changed: raised when a milestone may have been reached.
        leave, stop: what those two requests do; the composition root knows.
    """

    def __init__(
        self,
        *,
        config: Config,
        hostname: str,
        mesh_id: str,
        self_id: PeerId,
        host: MeshHost,
        replication: Replication,
        admission: Admission,
        issuing: Issuing,
        outside: Outside,
        vpn: Vpn,
        names: Names,
        cluster: Cluster,
        places: Places,
        sharing: Sharing,
        k3s: K3sUnit,
        events: EventLog,
        changed: Signal,
        leave: Callable[[], Awaitable[None]],
        stop: Callable[[], None],
    ) -> None:
        self._config = config
        self._hostname = hostname
        self._mesh_id = mesh_id
        self._self_id = self_id
        self._host = host
        self._replication = replication
        self._admission = admission
        self._issuing = issuing
        self._outside = outside
        self._vpn = vpn
        self._names = names
        self._cluster = cluster
        self._alone = role_of(config, in_mesh=True)  # k3s is switched on by hand
        self._places = places
        self._sharing = sharing
        self._k3s = k3s
        self._events = events
        self._leave = leave
        self._stop = stop
        self._started_at = trio.current_time()
        self._phases: dict[PhaseName, float] = {}
        self._looked = trio.Event()
        self._changed = changed

    async def run(self) -> None:
        """Note milestones as they are reached, and wake those who wait for one; until cancelled."""
        while True:
            self._note_phases()
            looked, self._looked = self._looked, trio.Event()
            looked.set()
            await self._changed.wait(POLL_S)

    def _note_phases(self) -> None:
        reached: dict[PhaseName, bool] = {
            "mesh": bool(self._host.connected()) or self._cluster.genesis_known,
            "vpn": self._vpn.status.state in ("up", "off", "userspace"),
            "genesis": self._cluster.genesis_known,
            "role": bool(self._alone or self._cluster.status.role),
            "ready": self._is_ready(),
        }
        now = trio.current_time() - self._started_at
        for name, is_reached in reached.items():
            if is_reached:
                self._phases.setdefault(name, now)

    def _is_ready(self) -> bool:
        """Whether k3s does here what it is meant to."""
        alone = self._alone is not None and self._k3s.observed.state == "ready"
        return alone or self._cluster.ready

    # ------------------------------------------------------------ AgentService

    def status(self) -> StatusDoc:
        """The state of this node, now."""
        self._note_phases()
        members = [m for m in self._replication.view.members if m.state is not MemberState.LEFT]
        connected = len(self._host.connected())
        vpn, role, k3s = self._vpn.status, self._cluster.status, self._k3s.observed
        p2p = self._config.p2p
        phases = sorted(self._phases.items(), key=lambda item: item[1])
        names = self._names.status
        return StatusDoc(
            node=NodeDoc(
                peer=self._self_id,
                hostname=self._hostname,
                region=self._places.region,
                zone=p2p.zone or "",
                version=__version__,
                pid=os.getpid(),
            ),
            mesh=MeshDoc(
                mesh_id=self._mesh_id,
                network_id=p2p.network_id,
                state="joined" if connected else "alone" if self._host.addresses() else "starting",
                peers=connected,
                known=len(members) - 1,
            ),
            admission=documents.admission_doc(self._admission, self._host.refused),
            vpn=VpnDoc(
                state=vpn.state,
                device=p2p.vpn.interface if vpn.state not in ("off", "userspace") else "",
                ipv4=vpn.ipv4,
                ipv6=vpn.ipv6,
                mtu=self._vpn.mtu,
                error=vpn.error,
                reason=vpn.reason,
            ),
            nat=documents.nat_doc(self._outside),
            names=NamesDoc(state=names.state, origin=names.origin, error=names.error),
            role=RoleDoc(
                state="LOCAL" if self._alone else role.state.value,
                role=self._alone or role.role or "",
                reason=LOCAL if self._alone else role.reason,
                epoch=role.epoch,
                cluster_id=role.cluster_id,
                ready=self._is_ready(),
                quorum=role.quorum.health,
                servers=role.quorum.servers,
                servers_in_sight=role.quorum.here,
            ),
            k3s=K3sDoc(
                state="running" if k3s.state == "ready" else k3s.state,
                version=k3s.version or self._k3s.version,
                pid=k3s.pid,
                error=(f"{k3s.error} ({k3s.hint})" if k3s.hint else k3s.error) or self._k3s.hooks.error,
            ),
            clusters=documents.cluster_docs(self._sharing.clusters(), self._cluster.scope),
            drained=self._drained(self._self_id),
            phases=[PhaseDoc(name=name, at_s=round(at_s, 3)) for name, at_s in phases],
        )

    async def regions(self) -> RegionsDoc:
        """Who is where, and how far apart; asks every connected peer what it measured."""
        matrix = await self._places.matrix()
        rows, where = self._places.rows(), self._places.coordinates
        pairs = []
        for a, b in itertools.combinations([row.peer for row in rows], 2):
            said = [matrix.get(x, {}).get(y) for x, y in ((a, b), (b, a))]
            known = [value for value in said if value is not None]
            at_a, at_b = where.get(a), where.get(b)
            estimated = rtt_s(at_a, at_b) if at_a and at_b else None
            pairs.append(
                PairDoc(a=a, b=b, measured_ms=to_ms(min(known, default=None)), estimated_ms=to_ms(estimated))
            )
        return RegionsDoc(nodes=[documents.region_row(row) for row in rows], pairs=pairs)

    async def confirm_regions(self) -> Sequence[ConfirmedDoc]:
        """Make what every reachable node infers of itself durable there."""
        answers = await self._places.confirm_all()
        names = {row.peer: row.hostname for row in self._places.rows()}
        return [
            ConfirmedDoc(
                peer=peer, hostname=names.get(peer, ""), region=told.region, how=told.how, error=told.error
            )
            for peer, told in answers.items()
        ]

    async def kubeconfigs(self) -> KubeconfigsDoc:
        """One kubeconfig for all clusters of the mesh. Raises RoleError on an agent node."""
        text, missing = await self._sharing.merged()
        return KubeconfigsDoc(kubeconfig=text, missing=missing)

    def peers(self) -> Sequence[PeerDoc]:
        """Every peer known, whatever its state."""
        said = self._said()
        others = (m for m in self._replication.view.members if m.peer != self._self_id)
        return [
            documents.peer_doc(
                member,
                said.get(member.peer),
                verdict=self._admission.verdict(member.peer),
                stats=self._vpn.status.peers.get(member.peer),
                told=self._outside.told_by(member.peer),
                address=self._host.address_of(member.peer),
                round_trip_s=self._host.round_trip_s(member.peer),
                relay=self._relay_of(member.peer),
                drained=self._drained(member.peer),
            )
            for member in others
        ]

    def _drained(self, peer: PeerId) -> str:
        drain = self._replication.drained.get(peer)
        return drains.sentence(drain) if drain is not None else ""

    def _relay_of(self, peer: PeerId) -> tuple[str, str]:
        """Name of the member that a peer's channel runs through, and why; ("", "") for none."""
        found = self._host.relay_of(peer)
        if found is None:
            return "", ""
        member = self._replication.view.get(found[0])
        record = member.record if member is not None else None
        return (record.hostname if record is not None and record.hostname else short(found[0])), found[1]

    def _said(self) -> dict[PeerId, RoleRecord]:
        """What every node says of its role; roles of a newer version read as none."""
        records = read_by_peer(self._replication.ledger, "role/", RoleRecord)
        return {p: r if r.role in ("server", "agent") else replace(r, role="") for p, r in records.items()}

    def roles(self) -> Sequence[RoleRow]:
        """Every node's role as the ledger tells it, this node's included."""
        rows, records = [], self._said()
        for member in self._replication.view.members:
            if member.state is MemberState.LEFT:
                continue
            said = records.get(member.peer, RoleRecord("", "", "", 0, False, ""))
            itself = member.peer == self._self_id
            gone = member.state in (MemberState.DEAD, MemberState.SUSPECT, MemberState.AWAY)
            reason = f"{member.state}: {member.reason}; last: {said.reason}" if gone else said.reason
            rows.append(
                RoleRow(
                    peer=member.peer,
                    hostname=member.record.hostname if member.record else "",
                    region=member.record.region if member.record else "",
                    cluster=said.scope,
                    ipv4=member.ipv4,
                    role=said.role,  # type: ignore[typeddict-item]
                    state=self._cluster.status.state.value if itself else said.state,
                    ready=self._cluster.ready if itself else said.ready and not gone,
                    reason=reason,
                    self=itself,
                )
            )
        return sorted(rows, key=lambda row: (row["hostname"], row["peer"]))

    def role_of(self, name: str) -> RoleRow:
        """The row of one node. Raises UnknownNode."""
        return find_node(self.roles(), name)

    def events_since(self, seq: int) -> Sequence[EventDoc]:
        """The kept events with a number above `seq`."""
        return self._events.since(seq)

    async def wait_events(self, seq: int) -> None:
        """Return once there is an event with a number above `seq`."""
        await self._events.wait(seq)

    async def kubeconfig(self) -> str:
        """The cluster-admin kubeconfig. Raises RoleError on an agent node, naming the servers."""
        status = self._cluster.status
        if self._alone == "server":
            return await self._k3s.kubeconfig()
        if "agent" in (status.role, self._alone):
            servers = [row["hostname"] for row in self.roles() if row["role"] == "server" and not row["self"]]
            raise RoleError(
                "this node is an agent: it has no cluster-admin kubeconfig, on purpose",
                hint=f"run the same command on a server: {', '.join(servers) or 'none is known yet'}",
            )
        if status.role != "server" or not status.cluster_id:
            raise RoleError(
                f"there is no kubeconfig yet: {status.reason}",
                hint="wait with: kairos-p2p wait ready --timeout 5m",
            )
        return await self._k3s.kubeconfig()

    async def plan(self, wanted: Wanted) -> PlanDoc:
        """The declaration, changed like this, and the steps there."""
        outlook = await self._cluster.authority.outlook(self._change(wanted))
        return documents.plan_doc(outlook)

    async def apply(self, wanted: Wanted, version: str | None) -> PlanDoc:
        """Change the declaration."""
        authority = self._cluster.authority
        await authority.declare(self._change(wanted), version=version, by=self._hostname)
        return documents.plan_doc(await authority.outlook(Change()))

    def _change(self, wanted: Wanted) -> Change:
        if self._cluster.status.role != "server" or not self._cluster.ready:
            rows = [row for row in self.roles() if row["role"] == "server" and not row["self"]]
            servers = ", ".join(row["hostname"] for row in rows) or "none is known yet"
            raise RoleError(
                "this node is no server that is ready, and only those know the declaration",
                hint=f"run the same command on a server: {servers}",
            )
        rows_all = self.roles()

        def peer(name: str) -> PeerId:
            return PeerId(find_node(rows_all, name)["peer"])

        return Change(
            servers=wanted.servers,
            roles={peer(name): role for name, role in wanted.roles.items()},
            replace=frozenset(peer(name) for name in wanted.replace),
        )

    async def wait_for(self, goal: Goal, timeout_s: float) -> StatusDoc:
        """The status once `goal` is reached. Raises TimedOut with the reason it was not."""
        with trio.move_on_after(timeout_s):
            while not self._is_reached(goal):
                await self._looked.wait()
        if self._is_reached(goal):
            return self.status()
        raise TimedOut(
            f"after {timeout_s:g} s this node has not reached {goal!r}: {self._why_not(goal)}",
            hint="see the steps with: kairos-p2p status, kairos-p2p events",
        )

    def _is_reached(self, goal: Goal) -> bool:
        match goal:
            case "mesh":
                return bool(self._host.connected())
            case "role":
                return bool(self._alone or self._cluster.status.role)
            case "ready":
                return self._is_ready()

    def _why_not(self, goal: Goal) -> str:
        if goal == "mesh":
            return "no other node has been reached yet"
        if self._vpn.status.state == "failed":
            return self._vpn.status.error
        return self._k3s.observed.error or self._cluster.status.reason or "nothing has been decided yet"

    # ------------------------------------------------------------ admission

    async def revoke(self, name: str, reason: str) -> RevokedDoc:
        """Put a node out for ever. Raises UnknownNode, NotPermitted, UsageError."""
        peer, hostname = self._named(name)
        await self._issuing.revoke(peer, reason)
        return RevokedDoc(peer=peer, hostname=hostname)

    def _named(self, name: str) -> tuple[PeerId, str]:
        """A node by what people call it; also one that was never seen, by its whole id."""
        try:
            public_key_of(name)
        except ValueError:
            row = find_node(self.roles(), name)
            return PeerId(row["peer"]), row["hostname"]
        member = self._replication.view.get(name)
        return PeerId(name), member.record.hostname if member is not None and member.record else ""

    async def invite(
        self, *, role: str, region: str, uses: int, ttl_s: float, member_ttl_s: float
    ) -> InvitedDoc:
        """A new join token. Raises NotPermitted, UsageError."""
        limit = next((limit for limit in LIMITS if limit == role), None)
        if limit is None:
            raise UsageError(f"an invitation is for {role!r}?", hint=f"one of: {', '.join(LIMITS)}")
        addresses = [str(parse_endpoint(a)[0]) for a in self._host.addresses()[:MAX_INVITE_ADDRESSES]]
        invitation, token = await self._issuing.invite(
            limit=limit,
            region=region,
            uses=uses,
            ttl_s=ttl_s,
            member_ttl_s=member_ttl_s,
            bootstrap=tuple(_host_port(address) for address in addresses),
        )
        return InvitedDoc(token=token, invite=documents.invite_doc(InviteState(invitation, (), "open")))

    def invites(self) -> Sequence[InviteDoc]:
        """All invitations, the latest first."""
        return [documents.invite_doc(state) for state in self._issuing.invites()]

    async def withdraw(self, invite: str) -> None:
        """Make an invitation void. Raises NotPermitted, UsageError."""
        await self._issuing.withdraw(invite)

    async def rotate(self, *, force: bool) -> RotatedDoc:
        """New keys for all members. Raises NotPermitted, MeshError."""
        token = await self._issuing.rotate(force=force)
        return RotatedDoc(token=token, generation=self._admission.trust.generation)

    async def leave(self) -> None:
        """Stop k3s and the data plane and tell the mesh that this node left."""
        await self._leave()

    async def stop(self) -> None:
        """End the control process as SIGTERM does; packets and k3s go on."""
        self._stop()

    def metrics_text(self) -> str:
        """Prometheus text format, version 0.0.4."""
        return render(
            status=self.status(),
            peers=self.peers(),
            plane=self._vpn.status,
            ledger_entries=len(self._replication.ledger),
            ledger_refused=self._replication.ledger.refused,
            strangers=self._host.rejected,
            refused=self._host.refused,
            violations=self._host.violations,
            circuits=self._host.circuits_carried,
        )


def _host_port(multiaddress: str) -> str:
    """The short form, so that a join token fits into a small QR code."""
    _, family, host, _, port = multiaddress.split("/")
    return f"[{host}]:{port}" if family == "ip6" else f"{host}:{port}"


def own_hostname(config: Config) -> str:
    """The name this node goes by: the cloud-config's, else the machine's."""
    return config.hostname or socket.gethostname()
