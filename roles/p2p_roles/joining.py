"""What does a node do once the cluster exists: get in, stay in, and let others in?

Duties of the states JOIN and MEMBER. A node joins with the role that the GENESIS certificate or the
cluster's authority gives it, and with a secret whose K10 token pins the certified CA, from any living
server. First servers start concurrently: etcd takes one learner at a time, and k3s retries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from p2p_network.core.ids import PeerId, stable_hash
from p2p_roles.assign import Role
from p2p_roles.durable import Membership
from p2p_roles.events import (
    FetchJoinSecret,
    HoldK3s,
    JoinSecretReceived,
    JoinSecretRefused,
    K3sChanged,
    ReplaceInitDropIn,
    StartK3s,
    StartKind,
    StopK3s,
)
from p2p_roles.facts import Facts
from p2p_roles.genesis.messages import Genesis
from p2p_roles.rules import Rules
from p2p_roles.transitions import State

_SAME_PLACE_S: Final = 0.010  # round trips that differ by less are alike
_MAX_BACKOFF: Final = 5  # times join_s


class JoinDuties(Facts):
    """Duties of JOIN and MEMBER."""

    def __init__(
        self,
        self_id: PeerId,
        scope: str,
        mesh_id: str,
        sign: Callable[[bytes], bytes],
        rules: Rules,
    ) -> None:
        super().__init__(self_id, scope, mesh_id, sign, rules)
        self._joining_since = 0.0
        self._attempts = 0  # starts of k3s that were given up
        self._fetches = 0
        self._fetching_until = 0.0
        self._refusal = ""
        self.is_let_go = False

    def start_k3s(self, kind: StartKind) -> None:
        """Start k3s as what this node is, or adopt a living one."""
        member = self.member
        assert member is not None, "k3s is started with a role"
        assert kind != "server-init" or (member.initiator and not member.joined), (
            "cluster-init exists only while initialising"
        )
        g = member.genesis
        self.out.append(StartK3s(kind, member.epoch, g.ca_hash, member.join_ip, g.datastore, g.timing))
        self.k3s_started, self.is_let_go = True, False

    # ------------------------------------------------------------ JOIN

    def enter_join(self, now: float) -> None:
        """Begin to join."""
        self._joining_since = self._fetching_until = now
        self._attempts = self._fetches = 0
        self._refusal = ""
        self.k3s_started = False

    def act_join(self, now: float) -> None:
        """Get the role, the secret, and k3s up; again with another server when it takes too long."""
        ready = self.ready_genesis()
        assert ready is not None, "no join without a READY certificate"
        decided = ready[1]
        role, why = self.own_role(decided)
        member = self.member
        is_late = member is not None and bool(member.late_fence)
        if role is None or not self.vpn_ip:
            self._joining_since = now
            if self.k3s_started:  # it was to become a server, and is to be none any more
                self.k3s_started = False
                self.out.append(StopK3s())
            self.reason = why if role is None else f"{why}; waiting for the VPN address"
            return
        if role == "server" and decided.args_hash != self.rules.args_hash:
            self.alarm(
                "this node's k3s options differ from the initiator's where all servers must agree",
                "make k3s.args equal on all servers (cluster-cidr, service-cidr, cluster-dns, disable, ...)",
            )
        limit = self.rules.join_s * min(1 + self._attempts, _MAX_BACKOFF)
        if self.k3s_started and now >= self._joining_since + limit and not is_late:
            self._attempts += 1
            self._joining_since = self._fetching_until = now
            self.k3s_started = False
            self.out.append(StopK3s())
        if self.k3s_started:
            if not is_late:
                self.wake(self._joining_since + limit)
            elif not self.is_let_go and self.k3s.state in ("running", "ready"):
                self.is_let_go = True
                self.out.append(HoldK3s())
            self.reason = f"{why}; joining{self.member_error()}"
        elif self.member is not None and not self._attempts:  # restarted while joining
            self.start_k3s("server-join" if role == "server" else "agent")
            self.reason = f"{why}; joining again after a restart"
        else:
            self._fetch(now, decided, role, why)

    def _fetch(self, now: float, decided: Genesis, role: Role, why: str) -> None:
        if now < self._fetching_until:
            self.wake(self._fetching_until)
            refusal = f" (last answer: {self._refusal})" if self._refusal else ""
            self.reason = f"{why}; asking for the join secret{refusal}"
            return
        sources = self._sources(decided, role)
        if not sources:
            self.reason = f"{why}; no server of the cluster is reachable"
            return
        source = sources[self._fetches % len(sources)]
        self._fetches += 1
        # an answer that never comes is given up when this time is over
        self._fetching_until = now + 5 * self.rules.retry_s
        self.wake(self._fetching_until)
        self.out.append(FetchJoinSecret(source, role))
        self.reason = f"{why}; asking {self.view.name(source)} for the join secret"

    def _sources(self, decided: Genesis, role: Role) -> list[PeerId]:
        """Living servers of the cluster that could hand the secret out. A server asks the initiator first.
        An agent asks the nearest: it joins through it, and k3s's balancer begins with it; among those in
        one place each agent has an order of its own, so that they don't all go to one."""
        found = [
            n.peer
            for n in self.view.nodes
            if n.alive
            and n.peer != self.self_id
            and n.vpn_ipv4
            and (
                (n.peer == decided.initiator and n.role != "agent")
                or (n.role == "server" and n.ready and n.cluster_id == decided.cluster_id)
            )
        ]
        if role == "server":
            return sorted(found, key=lambda peer: (peer != decided.initiator, peer))
        return sorted(found, key=lambda peer: (self._away(peer), stable_hash(self.self_id, peer), peer))

    def _away(self, peer: PeerId) -> int:
        """How far, in steps of `_SAME_PLACE_S`; what was not measured comes last."""
        measured_s = self.distances.measured.get(peer)
        return int(measured_s / _SAME_PLACE_S) if measured_s is not None else 1 << 30

    def secret_answered(self, now: float, event: JoinSecretReceived | JoinSecretRefused) -> None:
        """A server answered the request for the join secret."""
        ready = self.ready_genesis()
        if self.state is not State.JOIN or self.k3s_started or ready is None:
            return
        epoch, decided, _ = ready
        if isinstance(event, JoinSecretRefused):
            self._refusal = event.reason[:200]
            self._fetching_until = now + self.rules.retry_s
            return
        role, why = self.own_role(decided)
        source = self.view.by_peer.get(event.peer)
        if event.ca_hash != decided.ca_hash:
            self.alarm(
                f"the join secret of {self.view.name(event.peer)} is for another CA than the certified one",
                "that node is in another cluster: look at its status; this one asks others meanwhile",
            )
            self._refusal = "it was for another CA"
            self._fetching_until = now + self.rules.retry_s
            return
        if role != event.role or source is None or not source.vpn_ipv4:
            return
        self.change(member=Membership(epoch, role, False, decided, join_ip=source.vpn_ipv4, reason=why))
        self.persist()
        self._joining_since = now
        self.start_k3s("server-join" if role == "server" else "agent")

    def came_too_late(self, epoch: int) -> None:
        """k3s may have become a voter before this node was told to be none: stopping it for good could cost
        the cluster its majority. So it goes on, until the authority, which sees the member, removes it."""
        member = self.member
        given = self.own_word(member.genesis) if member is not None else None
        if self.state is not State.CHANGE or member is None or not given or member.epoch != epoch:
            return
        self.is_kept = True
        self.change_member(late_fence=given.fence)
        self.k3s, self.k3s_started = K3sChanged("stopped"), False
        self.persist()

    def is_serving(self) -> bool:
        """k3s, started with the present role, is ready and of the certified CA."""
        member = self.member
        if member is None or not self.k3s_started or self.k3s.state != "ready":
            return False
        if self.k3s.ca_hash == member.genesis.ca_hash:
            return True
        if self.k3s.ca_hash or member.role == "server":
            self.alarm(
                "the k3s on this machine serves another CA than the certified one",
                "another k3s runs here: stop it and remove its data (k3s-uninstall.sh)",
            )
            return False
        return True  # an agent that does not see the CA was let in with the token that pins it

    # ------------------------------------------------------------ MEMBER

    def enter_member(self) -> None:
        """In. After a restart: start k3s with the old role, without asking anyone."""
        member = self.member
        assert member is not None, "a member knows what it is a member of"
        if not member.joined:
            self.change_member(joined=True)
            self.change(seen=())
            self.persist()
        if not self.k3s_started:
            self.start_k3s("server" if member.role == "server" else "agent")
        elif member.initiator:
            self._replace_init(self._another_server(member))

    def act_member(self) -> None:
        """Say how it is; as the initiator, also name another server; as one that goes, let it go."""
        member = self.member
        assert member is not None, "a member knows what it is a member of"
        self.reason = member.reason + self.member_error()
        given = self.own_word(member.genesis)
        if given is not None and given.leaving:
            self.reason = f"{given.reason}; waiting until the cluster has removed this server"
            if not self.is_let_go:
                self.is_let_go = True
                self.out.append(HoldK3s())
        elif member.initiator and not member.join_ip and (other := self._another_server(member)):
            self._replace_init(other)

    def _another_server(self, member: Membership) -> str:
        """The VPN address of another server that is ready; "" if there is none."""
        found = (
            n.vpn_ipv4
            for n in sorted(self.view.nodes, key=lambda n: n.peer)
            if n.peer != self.self_id
            and n.role == "server"
            and n.ready
            and n.vpn_ipv4
            and n.cluster_id == member.genesis.cluster_id
        )
        return next(found, "")

    def _replace_init(self, join_ip: str) -> None:
        """``cluster-init`` leaves the disk; ``server:`` comes where there is another server to name."""
        member = self.member
        assert member is not None, "a member knows what it is a member of"
        g = member.genesis
        self.out.append(ReplaceInitDropIn(member.epoch, g.ca_hash, join_ip, g.datastore, g.timing))
        if join_ip:  # remembered only when the disk says so too: `is_looking` rests on it
            self.change_member(join_ip=join_ip)
            self.persist()
