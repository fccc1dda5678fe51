"""What does a node do in each state of its way into a cluster?

The other half of the bootstrap machine: what is done once on entering a state (`enter`), and what is
due while in it (`act`, called after every event; calling it twice changes nothing). Which state it is
in is decided by the table, in `bootstrap.py`; JOIN and MEMBER are in `joining.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from p2p_network.core.ids import PeerId, stable_hash
from p2p_roles import assign
from p2p_roles.assign import Role
from p2p_roles.durable import Membership
from p2p_roles.events import MakeSecrets, SetAsideK3s, StopK3s, WipeK3s
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis.messages import GENESIS, MAX_REMARK_CHARS, OUTCOME, Abort, Genesis, Ready, carries_on
from p2p_roles.placement import home_of
from p2p_roles.recovering import RecoveryDuties
from p2p_roles.recovery import is_kin
from p2p_roles.rules import Rules
from p2p_roles.timing import timing_of, worst_rtt_s
from p2p_roles.transitions import State

_PENALTY_S: Final = 5.0
_MAX_PENALTY_S: Final = 60.0
_ASK_AGAIN_S: Final = 30.0  # for what only this machine does: making secrets, wiping


class Duties(RecoveryDuties):
    """Duties of all states."""

    def __init__(
        self,
        self_id: PeerId,
        scope: str,
        mesh_id: str,
        sign: Callable[[bytes], bytes],
        rules: Rules,
    ) -> None:
        super().__init__(self_id, scope, mesh_id, sign, rules)
        self.yield_until = 0.0
        self._secrets_asked = (0, 0.0)  # epoch, and when to ask again
        self._wipe_again_at = 0.0
        self._waiting_epoch = 0

    # ------------------------------------------------------------ entering a state

    def enter(self, now: float) -> None:
        """What is done once, on entering `self.state`."""
        self.entered_at = now
        self.voting.give_way()
        match self.state:
            case State.INIT:
                self._enter_init()
            case State.JOIN:
                self.enter_join(now)
            case State.MEMBER:
                self.enter_member()
            case State.FENCED:
                self._enter_fenced(now)
            case State.RECOVER:
                self.enter_recover(now)
            case State.HELD:
                self.enter_held()
            case State.CHANGE:
                self._wipe_again_at, self.is_kept = now, False
            case State.WAIT:
                self._waiting_epoch = 0
            case State.DISCOVER | State.ELECT | State.CONTESTED:
                pass

    def _enter_init(self) -> None:
        decided = self.open_genesis()
        assert decided is not None, "INIT rests on a GENESIS certificate"
        assert decided.initiator == self.self_id, "only the certified initiator initialises"
        if self.member is None:
            reason = assign.certified_reasons(self.view, decided)[self.self_id]
            self.change(member=Membership(self.epoch, "server", True, decided, reason=reason))
            self.persist()
        self.start_k3s("server-init")

    # ------------------------------------------------------------ what is due

    def act(self, now: float) -> None:
        """What is due in `self.state`; sets the reason."""
        match self.state:
            case State.DISCOVER:
                self.reason = self._discover_reason(now)
            case State.ELECT:
                self._act_elect(now)
                self._say_understated()
            case State.INIT:
                self._act_init(now)
            case State.WAIT:
                self._act_wait(now)
                self._say_understated()
            case State.JOIN:
                self.act_join(now)
            case State.MEMBER:
                self.act_member()
                self._say_foreign()
            case State.CHANGE:
                self._act_change(now)
            case State.FENCED:
                self._act_fenced(now)
            case State.RECOVER:
                self.act_recover(now)
            case State.HELD:
                self.act_held(now)
            case State.CONTESTED:
                self.act_contested(now)
        self.act_order(now)

    def _say_foreign(self) -> None:
        if self.has_foreign_k3s():
            what = "the k3s on this machine serves another CA than the READY certificate's"
            self.alarm(what, "another cluster was begun here by hand: look at it, then let this node leave")
            self.reason += f"; {what}"

    def _say_understated(self) -> None:
        if problem := self.understated():
            sentence, _, remedy = problem.partition("; ")
            self.alarm(sentence, f"{remedy} on every node", about="understated")
            self.reason += f"; {problem}"

    def _discover_reason(self, now: float) -> str:
        if self.is_looking(now):
            return "was a server before the restart; asking whether it still is one before it starts k3s"
        if self.up_epoch():
            return "a recovery was given up; waiting for another one: kairos-p2p cluster recover"
        here, expected = len(self.view.alive), self.expected_nodes()
        if self.epoch == 1 and here < expected:
            return (
                f"{here} of {expected} nodes are here; waiting for {expected - here} more (p2p.minimum_nodes)"
            )
        if here < self.needed_votes(now):
            return (
                f"{here} nodes are here, {self.needed_votes(now)} of {self.voting.nodes(now)} "
                "must agree; waiting for a quorum"
            )
        if not assign.rank(self.view, rule=self.rules.placement):
            if self.rules.placement.kind == "pack" and (home := self.rules.placement.home_region):
                return f"waiting for a node in the home region {home} that may be a server (p2p.home_region)"
            return f"all {here} nodes are forced to be agents; waiting for one that may be a server"
        if pending := self.places_pending():
            names = ", ".join(self.view.name(peer) for peer in pending[:3])
            return f"{here} nodes are here; finding out the region of {names} (p2p.region: auto)"
        return f"{here} nodes are here; waiting until no more come and go"

    def _act_elect(self, now: float) -> None:
        failed = self.failed()
        ranked = assign.rank(self.view, failed, self.rules.placement)
        if self.self_id not in ranked:
            first = self.view.name(ranked[0]) if ranked else "a node that may be a server"
            own = self.view.by_peer.get(self.self_id)
            forced = own is None or own.wish == "agent"
            why = "is forced to be an agent" if forced else "is not in the home region"
            self.reason = f"waiting for {first} to propose; this node {why}"
            return
        failures = failed.count(self.self_id)
        penalty = min(_MAX_PENALTY_S, _PENALTY_S * 2.0**failures) if failures else 0.0
        turn = ranked.index(self.self_id) * self.rules.stagger_s
        due = max(self.entered_at + turn + penalty, self.yield_until)
        if now < due:
            self.wake(due)
            self.reason = f"epoch {self.epoch}: {self.view.name(ranked[0])} proposes first"
        elif not self.vpn_ip:
            self.reason = f"epoch {self.epoch}: ready to propose, waiting for the VPN address"
        elif self.durable.secrets is None or self.durable.secrets[0] != self.epoch:
            self._make_secrets(now)
        else:
            here = len(self.view.alive)
            self.reason = f"epoch {self.epoch}: asking {here} nodes to let this one initialise"
            if self.voting.last_refusal:
                self.reason += f" (last answer: {self.voting.last_refusal})"
            restored = self.order if self.order is not None and not carries_on(self.order) else None
            self.propose(now, GENESIS, restored or self._own_genesis(self.durable.secrets[1]))

    def _make_secrets(self, now: float) -> None:
        epoch, again_at = self._secrets_asked
        if epoch != self.epoch or now >= again_at:
            again_at = now + _ASK_AGAIN_S
            self._secrets_asked = (self.epoch, again_at)
            self.out.append(MakeSecrets(self.epoch))
        self.wake(again_at)
        self.reason = f"epoch {self.epoch}: making the cluster's CA"

    def _own_genesis(self, ca_hash: str) -> Genesis:
        rules = self.rules
        chosen = assign.first_servers(self.view, self.self_id, rules.servers, self.failed(), rules.placement)
        candidates = [node for node in self.view.nodes if node.alive and node.wish != "agent"]
        pack = rules.placement.kind == "pack"
        worst_s = worst_rtt_s(self.self_id, chosen.servers, self.distances.measured, self.distances.places)
        return Genesis(
            cluster_id=f"{stable_hash('cluster', self.scope, self.epoch, self.self_id, ca_hash):016x}",
            initiator=self.self_id,
            vpn_ip=self.vpn_ip,
            ca_hash=ca_hash,
            args_hash=rules.args_hash,
            k3s_version=rules.k3s_version,
            servers=chosen.servers,
            datastore=rules.datastore,
            placement=rules.placement.kind,
            home_region=home_of(rules.placement, candidates) if pack else rules.placement.home_region,
            timing=timing_of(rules.timing, worst_s),
            remark=chosen.remark[:MAX_REMARK_CHARS],
        )

    def _act_init(self, now: float) -> None:
        member = self.member
        assert member is not None, "INIT has a membership"
        here = f"epoch {member.epoch}"
        expires = self.entered_at + self.rules.init_s
        if self.k3s.state == "ready" and self.k3s.ca_hash == member.genesis.ca_hash:
            self.reason = f"{here}: k3s is up; asking the others to certify it"
            self.propose(now, OUTCOME, Ready(self.k3s.uid))
            return
        if self.k3s.state == "ready":
            why = "the k3s on this machine serves another CA than the one that was certified"
            self.alarm(why, "another k3s runs here: stop it and remove its data (k3s-uninstall.sh)")
        elif self.k3s.permanent:
            why = self.k3s.error
        elif now >= expires:
            why = f"k3s did not come up in {self.rules.init_s:.0f} s"
            why += f": {self.k3s.error}" if self.k3s.error else ""
        else:
            self.wake(expires)
            self.reason = f"{here}: initialising the cluster{self.member_error()}"
            return
        if all(peer == self.self_id for peer in assign.rank(self.view, rule=self.rules.placement)):
            self.reason = f"{why}; no other node may be a server, so this one keeps trying"
            return
        self.reason = f"{here}: {why}; giving the epoch up so that another node can initialise"
        self.propose(now, OUTCOME, Abort(why[:300], self.self_id))

    def _act_wait(self, now: float) -> None:
        decided = self.open_genesis()
        assert decided is not None, "WAIT rests on a GENESIS certificate"
        if self._waiting_epoch != self.epoch:
            self._waiting_epoch, self.entered_at, self.silent_since = self.epoch, now, None
            self.note_silence(now)
        name, rules = self.view.name(decided.initiator), self.rules
        if decided.continues is not None:
            self.reason = self.waits_for(now, decided)
            if decided.initiator == self.self_id:
                self.reason = (
                    f"epoch {self.epoch}: this node was to bring the cluster back, but has no data of it any "
                    "more; order it for another one: kairos-p2p cluster recover"
                )
            return
        stagger = self.turn() * rules.stagger_s
        expires, why = self.entered_at + rules.wait_s, f"{name} did not finish in {rules.wait_s:.0f} s"
        if decided.initiator == self.self_id:
            expires, why = self.entered_at, "this node was chosen, but has lost its secrets"
        elif self.silent_since is not None and self.silent_since + rules.silence_s < expires:
            expires = self.silent_since + rules.silence_s
            why = f"{name} has been silent for {rules.silence_s:.0f} s while initialising"
        if now < expires + stagger:
            self.wake(expires + stagger)
            self.reason = f"epoch {self.epoch}: {name} initialises the cluster"
        else:
            self.reason = f"epoch {self.epoch}: {why}; asking the others to give it up"
            self.propose(now, OUTCOME, Abort(why, decided.initiator))

    def _enter_fenced(self, now: float) -> None:
        """What was decided about this node's data stays decided, whatever is known after a crash."""
        self._wipe_again_at = now
        if self.member is not None and self.member.joined and self.durable.fenced_epoch != self.epoch:
            self.change(fenced_epoch=self.epoch)
            self.persist()

    def is_due(self, effect: WipeK3s | SetAsideK3s) -> bool:
        """Whether the data that was to be set aside still is. It is asked for again and again, and may wait
        for another chore: by then this node may have data that it needs."""
        state = State.FENCED if isinstance(effect, WipeK3s) else State.CHANGE
        return self.state is state and self.member is not None and self.member.epoch == effect.epoch

    def _act_change(self, now: float) -> None:
        member = self.member
        assert member is not None, "only who has a role changes it"
        given = self.own_word(member.genesis)
        why = f": {given.reason}" if given is not None else ""
        self.reason = f"is to be something else than {_a(member.role)}{why}; setting k3s's data aside"
        if now >= self._wipe_again_at:
            self._wipe_again_at = now + _ASK_AGAIN_S
            unless_voting = self.is_of_etcd() and not member.joined
            self.out += [StopK3s(), SetAsideK3s(member.epoch, member.role, unless_voting)]
        self.wake(self._wipe_again_at)

    def _act_fenced(self, now: float) -> None:
        member, newer = self.member, self.overtaken_by()
        assert member is not None, "only who holds data is fenced"
        assert newer is not None, "no wipe without a certificate"
        assert newer.instance.epoch > member.epoch or certificates.is_abort(newer), (
            "no wipe without a newer certificate"
        )
        self.reason = (
            f"epoch {member.epoch}, to which this node's k3s data belongs, is over: setting it aside"
        )
        if now >= self._wipe_again_at:
            self._wipe_again_at = now + _ASK_AGAIN_S
            ready = self.ready_genesis()
            is_same = ready is not None and is_kin(member.genesis, ready[1])
            if not member.joined:
                self.out.append(StopK3s())  # else it goes on until its last snapshot is written
            self.out.append(WipeK3s(member.epoch, newer, only_datastore=is_same, keep=member.joined))
        self.wake(self._wipe_again_at)


def _a(role: Role) -> str:
    return f"an {role}" if role == "agent" else f"a {role}"
