"""What does a node do while its cluster is brought back, or while it is not alone in claiming to be it?

Duties of the states RECOVER, HELD and CONTESTED, and the two things that happen in any state: an operator's
order is proposed (`act_order`) until it is decided or its time is over, and a membership is carried over to
the epoch that carries its cluster on (`carry_over`). Everything after the decision follows from the
certificate, so a crash at any moment changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from p2p_network.core.ids import PeerId
from p2p_roles import assign
from p2p_roles.durable import Membership
from p2p_roles.events import (
    CountWorkloads,
    K3sReset,
    QuorumChanged,
    RecoveryEnded,
    RecoveryOrdered,
    ResetK3s,
    StartK3s,
    StopK3s,
    WorkloadsCounted,
)
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis.messages import (
    GENESIS,
    OUTCOME,
    Abort,
    Genesis,
    Prepare,
    Ready,
    Request,
    carries_on,
    decode_value,
    lost_in,
)
from p2p_roles.joining import JoinDuties
from p2p_roles.quorum import GRACE_S, Quorum, judge
from p2p_roles.recovery import is_kin, objection
from p2p_roles.rules import Rules
from p2p_roles.transitions import State

ORDER_S: Final = 30.0
_RESET_AGAIN_S: Final = 10.0
_COUNT_EVERY_S: Final = 10.0
_BACK_WITHIN_S: Final = 180.0  # then a person hears what can be done; one etcd member alone takes seconds


class RecoveryDuties(JoinDuties):
    """Duties around a recovery."""

    def __init__(
        self,
        self_id: PeerId,
        scope: str,
        mesh_id: str,
        sign: Callable[[bytes], bytes],
        rules: Rules,
    ) -> None:
        super().__init__(self_id, scope, mesh_id, sign, rules)
        self.order: Genesis | None = None
        self.quorum = Quorum("none")
        self._order_until = 0.0
        self._reset_asked = 0  # the epoch whose reset was asked for last; never two at a time
        self._reset_again_at = 0.0
        self._reset_error = ""
        self._back_since = 0.0  # when there was nothing left to do but to start k3s
        self._count_again_at = 0.0
        self._unready_since: float | None = None

    # ------------------------------------------------------------ what others may ask

    def refusal(self, peer: PeerId, message: Request) -> str:
        """What this node's own view holds against a request that belongs to a recovery; "" if nothing."""
        if message.instance.decree != GENESIS:
            return ""
        if (
            not isinstance(message, Prepare)
            and self.voting.acceptor.accepted(message.instance) == message.value
        ):
            return ""  # it may be decided; what has changed since does not matter any more
        if isinstance(message, Prepare):
            heard = [name for name in message.lost if PeerId(name) in self.view.alive]
            return f"{self.view.name(heard[0])} was declared lost, but I hear it" if heard else ""
        try:
            value = decode_value(message.value, GENESIS)
        except ValueError:
            return ""  # the acceptor says what is wrong with it
        if not isinstance(value, Genesis) or value.continues is None:
            return ""
        return self._objection(value, message.nodes)

    def _objection(self, value: Genesis, nodes: int) -> str:
        member = self.member
        serving = member is not None and member.role == "server" and self.k3s.state == "ready"
        after, certified = value.continues, self.certified_genesis(carries_on(value))
        if (
            after is not None
            and after.cluster_id
            and certified is not None
            and certified.cluster_id not in (after.cluster_id, *after.abandons)
        ):  # who proposes asked the others before they knew; the present cluster would not follow
            return (
                f"of epoch {after.epoch} the cluster {certified.cluster_id} was certified, and "
                f"{after.cluster_id} is to be carried on: look again"
            )
        return objection(self.view, value, nodes, self.voting.acceptor.nodes, is_serving=serving)

    # ------------------------------------------------------------ causes

    def _undecided(self) -> Genesis | None:
        """The open epoch's recovery, as long as it has no outcome."""
        decided = self.open_genesis()
        if decided is None or decided.continues is None:
            return None
        return decided if self.voting.acceptor.certificate(self.epoch, OUTCOME) is None else None

    def recovers(self) -> bool:
        """A recovery without outcome names this node, which has what it takes."""
        decided = self._undecided()
        if decided is None or decided.initiator != self.self_id:
            return False
        is_restored = decided.continues is not None and not decided.continues.cluster_id
        return self._has_its_data(decided) or is_restored

    def _has_its_data(self, decided: Genesis) -> bool:
        member, after = self.member, decided.continues
        return (
            member is not None
            and after is not None
            and member.role == "server"
            and (member.genesis.cluster_id == after.cluster_id or member.epoch == self.epoch)
        )

    def is_held(self) -> bool:
        """A server of a cluster whose etcd is to begin again somewhere else, or was to."""
        member = self.member
        if member is None or not member.joined or member.role != "server" or self.epoch <= member.epoch:
            return False
        decided = self._undecided()
        if decided is not None:
            after = decided.continues
            return (
                after is not None
                and after.reset
                and decided.initiator != self.self_id
                and (is_kin(member.genesis, decided) or member.genesis.cluster_id in after.abandons)
            )
        if self.open_genesis() is not None:
            return False
        before = self.voting.acceptor.certificate(self.epoch - 1, OUTCOME)
        value = certificates.value_of(before) if before is not None else None
        return isinstance(value, Abort) and value.continues > 0 and value.resets

    def is_continued(self) -> bool:
        """The cluster was carried on, and this node's membership with it."""
        member, ready = self.member, self.ready_genesis()
        if member is None or not member.joined or ready is None or self.is_contested():
            return False
        return ready[0] == member.epoch

    def up_epoch(self) -> int:
        """The newest epoch whose cluster was up; 0 for none. None may begin from nothing any more then."""
        if self.ready_genesis() is not None:
            return self.epoch
        if (opened := self.open_genesis()) is not None:
            return carries_on(opened)
        before = self.voting.acceptor.certificate(self.epoch - 1, OUTCOME)
        return carries_on(certificates.value_of(before)) if before is not None else 0

    def certified_genesis(self, epoch: int) -> Genesis | None:
        """What was certified as GENESIS of an epoch, as far as it is still known."""
        known = self.voting.acceptor.certificate(epoch, GENESIS)
        return certificates.genesis_of(known) if known is not None else None

    # ------------------------------------------------------------ in any state

    def carry_over(self) -> None:
        """Take the membership along when the cluster goes on in a newer epoch and its data stays valid."""
        member, ready = self.member, self.ready_genesis()
        if member is None or ready is None:
            return
        epoch, decided, _ = ready
        after = decided.continues
        if after is None or (epoch == member.epoch and member.joined) or epoch < member.epoch:
            return
        is_reset = not after.reset or self.durable.reset_epoch == epoch
        is_mine = decided.initiator == self.self_id and is_reset
        if epoch == member.epoch:
            carried = is_mine and member.initiator  # later it may be another's server, or an agent
        elif not is_kin(member.genesis, decided) or not member.joined:
            carried = False
        elif member.role == "agent":
            carried = True
        elif after.reset:
            carried = is_mine
        else:
            carried = member.genesis.cluster_id == after.cluster_id
        if not carried:
            return
        is_agent = member.role == "agent"
        self.change(
            member=Membership(
                epoch,
                member.role,
                decided.initiator == self.self_id,
                decided,
                joined=True,
                join_ip=decided.vpn_ip if is_agent else "" if after.reset else member.join_ip,
                reason=member.reason or "server: brought the cluster back",
            )
        )
        self.persist()
        if is_agent and self.k3s_started:
            self.start_k3s("agent")  # the server that it leaned on may be gone

    def act_order(self, now: float) -> None:
        """Get what an operator approved decided."""
        order = self.order
        if order is None:
            return
        self.wake(self._order_until)
        acceptor, epoch = self.voting.acceptor, self.epoch
        outcome, opened = acceptor.certificate(epoch, OUTCOME), self.open_genesis()
        if opened == order:
            self._end_order("")
        elif now >= self._order_until:
            self._end_order(self.voting.last_refusal or "too few nodes answered in time")
        elif self.state in (State.ELECT, State.INIT):
            pass  # they propose for themselves; one thing at a time
        elif outcome is None and opened is not None and opened.continues is None:
            self._end_order("a first genesis is under way: wait until it is over")
        elif outcome is None and opened is not None:
            self._give_up(now, opened)
        else:
            is_up = outcome is not None and certificates.is_ready(outcome)
            if self.up_epoch() != carries_on(order):
                self._end_order(f"meanwhile the cluster of epoch {self.up_epoch()} was certified: look again")
            else:
                self._propose_order(now, order, epoch + is_up)

    def _give_up(self, now: float, opened: Genesis) -> None:
        """End the recovery that is open, before another one is proposed."""
        after = opened.continues
        assert after is not None, "only a recovery is given up by an order"
        why = "an operator ordered another recovery"
        resets = after.epoch > 0 and after.reset
        self.propose(now, OUTCOME, Abort(why, opened.initiator, after.epoch, resets))

    def _propose_order(self, now: float, order: Genesis, epoch: int) -> None:
        nodes = max(self.voting.nodes(now), len(self.view.nodes)) - len(lost_in(order))
        if problem := self._objection(order, nodes):
            self._end_order(problem)
            return
        voters = tuple(sorted(self.view.alive))
        self.emit_votes(self.voting.propose(now, GENESIS, order, voters, epoch=epoch, nodes=nodes))

    def _end_order(self, outcome: str) -> None:
        assert self.order is not None, "only what was ordered ends"
        self.out.append(RecoveryEnded(self.order, outcome))
        self.order = None
        if outcome:
            self.voting.give_way()

    def ordered(self, now: float, event: RecoveryOrdered) -> None:
        """An operator's word."""
        assert event.genesis.continues is not None, "only recoveries are ordered"
        if self.order is not None and self.order != event.genesis:
            self._end_order("another recovery was ordered on this node meanwhile")
        self.order = event.genesis
        self._order_until = now + ORDER_S

    def look_at_quorum(self, now: float) -> None:
        """Judge the control plane; tell when the verdict changes."""
        member = self.member
        if self.k3s.state == "ready":
            self._unready_since = None
        elif self._unready_since is None:
            self._unready_since = now
        before = self.quorum
        if member is None or not member.joined:
            self.quorum = Quorum("none")
        else:
            silent_s = 0.0
            if self._unready_since is not None:
                until = self._unready_since + GRACE_S
                silent_s = now - self._unready_since
                if now < until:
                    self.wake(until)
                else:  # rounded, the difference may be less
                    silent_s = max(silent_s, GRACE_S)
            self.quorum = judge(
                self.view,
                member.genesis.cluster_id,
                member.genesis.servers,
                is_server=member.role == "server",
                is_ready=self.k3s.state == "ready",
                silent_s=silent_s,
            )
        if self.quorum.health != before.health:
            self.out.append(QuorumChanged(self.quorum))

    # ------------------------------------------------------------ RECOVER

    def enter_recover(self, now: float) -> None:
        """Begin to bring the cluster back."""
        self._back_since = now
        decided = self._undecided()
        assert decided is not None, "RECOVER rests on a GENESIS certificate"
        assert decided.initiator == self.self_id, "only the certified survivor recovers"
        if not self._has_its_data(decided):
            reason = assign.certified_reasons(self.view, decided)[self.self_id]
            self.change(member=Membership(self.epoch, "server", True, decided, reason=reason))
            self.persist()

    def act_recover(self, now: float) -> None:
        """Reset, start, have it certified."""
        decided, member = self._undecided(), self.member
        assert decided is not None, "RECOVER rests on a GENESIS certificate"
        assert decided.continues is not None, "and on one that carries something on"
        assert member is not None, "RECOVER has a membership"
        here, after = f"epoch {self.epoch}", decided.continues
        if after.reset and self.durable.reset_epoch != self.epoch:
            if self._reset_asked != self.epoch:  # whatever became of an older one's: this one's comes after
                self._reset_asked, self._reset_again_at, self._reset_error = self.epoch, now, ""
            if now >= self._reset_again_at:
                self._reset_again_at = math.inf  # it is answered: a second one would undo what is begun
                foreign = member.epoch == self.epoch
                self.out += [
                    StopK3s(),
                    ResetK3s(
                        self.epoch,
                        decided.ca_hash,
                        after.snapshot,
                        foreign,
                        decided.datastore,
                        decided.timing,
                    ),
                ]
                self.k3s_started = False
            if self._reset_again_at < math.inf:
                self.wake(self._reset_again_at)
            self.reason = f"{here}: making this server the only member of its etcd"
            self.reason += f" (last attempt: {self._reset_error})" if self._reset_error else ""
            return
        if not self.k3s_started:
            start = StartK3s("server", self.epoch, decided.ca_hash, "", decided.datastore, decided.timing)
            self.out.append(start)
            self.k3s_started = True
        if self.k3s.state == "ready" and self.k3s.ca_hash == decided.ca_hash:
            self.reason = f"{here}: the cluster is back; asking the others to certify it"
            self.propose(now, OUTCOME, Ready(self.k3s.uid))
        else:
            self.reason = f"{here}: bringing the cluster back{self.member_error()}"
            expires = self._back_since + _BACK_WITHIN_S
            if now >= expires:  # somebody whose agent was dead may have joined it, and be gone again
                again = "cluster recover" if after.cluster_id else "restore"
                self.reason += f"; if it stays like this, order it again: kairos-p2p {again}"
            else:
                self.wake(expires)

    def reset_done(self, now: float, event: K3sReset) -> None:
        """The adapter reset etcd, or could not."""
        if event.epoch != self._reset_asked:
            return
        self._reset_error = event.error[:300]
        self._reset_again_at = now + (_RESET_AGAIN_S if event.error else 0.0)
        if not event.error and event.epoch == self.epoch and self.state is State.RECOVER:
            self._back_since = now
            self.change(reset_epoch=event.epoch)
            self.persist()

    # ------------------------------------------------------------ HELD, CONTESTED

    def enter_held(self) -> None:
        """k3s stays down, so that the old etcd can't find a majority again."""
        self.out.append(StopK3s())
        self.k3s_started = False

    def act_held(self, now: float) -> None:
        """Say who brings it back."""
        decided = self._undecided()
        if decided is None:
            self.reason = (
                "a recovery was given up; k3s stays down until another one: kairos-p2p cluster recover"
            )
        else:
            self.reason = f"{self.waits_for(now, decided)}; this server's k3s stays down"

    def waits_for(self, now: float, decided: Genesis) -> str:
        """Who brings the cluster back, and what a person can do if nothing is heard of it."""
        said = f"epoch {self.epoch}: {self.view.name(decided.initiator)} brings the cluster back"
        if self.silent_since is None:
            return said
        is_silent_at = self.silent_since + self.rules.silence_s
        if now < is_silent_at:
            self.wake(is_silent_at)
            return said
        return (
            f"{said}, but is not heard of; if it is lost for ever, order it for another one: "
            "kairos-p2p cluster recover"
        )

    def look_for_twins(self) -> None:
        """Notice a living node that is a member of another cluster of this very epoch.

        The ledger keeps one of two contradicting certificates, so half of the nodes never get the other's.
        """
        member = self.member
        if member is None or not member.joined:
            return
        for node in self.view.nodes:
            mine = node.cluster_id in ("", member.genesis.cluster_id)
            if node.alive and not mine and node.epoch == member.epoch:
                self.twin_epoch = max(self.twin_epoch, member.epoch)

    def has_foreign_k3s(self) -> bool:
        """k3s here serves another CA than the READY certificate's: somebody began another cluster by hand."""
        member = self.member
        if member is None or member.role != "server" or self.k3s.state != "ready":
            return False
        return self.k3s.ca_hash not in ("", member.genesis.ca_hash)

    def act_contested(self, now: float) -> None:
        """Go on for those who use this cluster, and wait for a person."""
        member, ready = self.member, self.ready_genesis()
        assert member is not None, "only a member's cluster is contested"
        if not self.k3s_started:
            self.start_k3s("server" if member.role == "server" else "agent")
        mine = member.genesis.cluster_id
        other = ready[1].cluster_id if ready is not None and ready[0] > member.epoch else "another"
        self.reason = (
            f"there are two clusters: {mine}, of which this node is, and {other}, certified in epoch "
            f"{self.epoch}; nothing is wiped before a person decides: kairos-p2p cluster resolve --keep ID"
        )
        self.alarm(
            f"cluster {mine} has a twin, {other}; this node goes on, but lets nobody in",
            "look at both, then on any node: kairos-p2p cluster resolve --keep ID",
            about=f"contested/{self.epoch}",
        )
        if member.role == "server":
            if now >= self._count_again_at:
                self._count_again_at = now + _COUNT_EVERY_S
                self.out.append(CountWorkloads())
            self.wake(self._count_again_at)

    def counted(self, event: WorkloadsCounted) -> None:
        """What people have here."""
        self.workloads = event.count
