"""Would the checkers notice? Each variant breaks one rule of the protocol and must be caught soon."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from p2p_network.addressing import Addressing
from p2p_network.ledger.policy import Policy, Refusal, Rule, Writer
from p2p_roles import bootstrap, facts
from p2p_roles.bootstrap import Bootstrap
from p2p_roles.events import WipeK3s
from p2p_roles.genesis import messages
from p2p_roles.genesis.messages import GENESIS
from p2p_roles.k3s import pki
from p2p_simulations.sim.chance import SMALL_NETWORK
from p2p_simulations.sim.machine import SimMachine
from p2p_simulations.sim.plan import Byzantine, Expectations, K3sPlan, NodePlan, Partition, Plan
from p2p_simulations.sim.world import World, run_world
from p2p_simulations.world.sectors import Script, Sync, SyncDirectory
from p2p_simulations.world.tasks import Tasks

MAX_WORLDS = 60
Nodes = Callable[..., tuple[NodePlan, ...]]


def caught(plan_of: Callable[[int], Plan], world_type: type[World] = World) -> str:
    """The first violation. Fails if `MAX_WORLDS` worlds show none."""
    for seed in range(MAX_WORLDS):
        if violation := run_world(plan_of(seed), seed, world_type=world_type).violation:
            return violation
    raise AssertionError(f"not caught in {MAX_WORLDS} worlds")


def test_the_rules_as_they_are_pass_the_same_worlds(election_plan: Callable[[int], Plan]) -> None:
    for seed in range(4):
        outcome = run_world(election_plan(seed), seed)
        assert not outcome.violation, f"seed {seed}: {outcome.violation}"


class _NoSync(World):
    async def persist(self, machine: SimMachine, tasks: Tasks, script: Script) -> None:
        """Written, never synced."""
        for call in script:
            if not isinstance(call, Sync | SyncDirectory):
                machine.files.carry_out(call)


def test_votes_that_are_not_synced_are_caught(election_plan: Callable[[int], Plan]) -> None:
    violation = caught(election_plan, _NoSync)
    assert "forgotten" in violation or "decided twice" in violation or "restarted in epoch" in violation


def test_a_quorum_off_by_one_is_caught(
    election_plan: Callable[[int], Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {nodes: messages.covered(nodes) for nodes in range(1, 2000)}
    monkeypatch.setattr(messages, "quorum", lambda nodes: max(1, nodes // 2))
    monkeypatch.setattr(facts, "quorum", messages.quorum)
    for module in (facts, bootstrap):
        monkeypatch.setattr(module, "covered", right.__getitem__)
    violation = caught(election_plan)
    assert "decided twice" in violation or "two clusters" in violation or "two CAs" in violation


class _NoFence(World):
    fences = False


def test_a_missing_ca_fence_is_caught(nodes: Nodes) -> None:
    def plan(seed: int) -> Plan:
        first, *others = nodes(3)
        stale = NodePlan(first.name, first.region, stale_k3s=True)
        return Plan(
            "fence", (stale, *others), servers=3, minimum_nodes=3, k3s=K3sPlan((1.0, 3.0)), heal_at_s=5.0
        )

    for seed in range(2):
        assert not run_world(plan(seed), seed).violation
    assert "CA" in caught(plan, _NoFence)


def test_a_ledger_that_does_not_check_authors_is_caught(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Policy.refusal

    def last_writer_wins(
        self: Policy, rule: Rule, key: str, author: str, value: bytes | None, *, wall_ms: int | None = None
    ) -> Refusal | None:
        if rule.writer is Writer.CERTIFICATE:
            return real(self, rule, key, author, value, wall_ms=wall_ms)
        return None

    def plan(seed: int) -> Plan:
        return Plan(
            "forge",
            nodes(3),
            servers=1,
            minimum_nodes=3,
            faults=((6.0, Byzantine("n2", "forge")),),
            heal_at_s=20.0,
        )

    assert not run_world(plan(1), 1).violation
    monkeypatch.setattr(Policy, "refusal", last_writer_wins)
    assert " takes " in caught(plan)


def test_claims_without_a_tie_break_are_caught(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(seed: int) -> Plan:
        names = [(f"n{i}",) for i in range(1, 7)]
        return Plan(
            "claims",
            nodes(6),
            servers=1,
            minimum_nodes=6,
            network=SMALL_NETWORK,
            faults=((0.0, Partition(tuple(names), None)),),
            heal_at_s=20.0,
            expect=Expectations(converges=False),
        )

    for seed in range(3):
        assert not run_world(plan(seed), seed).violation
    monkeypatch.setattr(Addressing, "_rival", lambda self, mine: None)
    assert "both hold" in caught(plan)


class _Hasty(Bootstrap):
    """Wipes as soon as its k3s has failed, without waiting for the ABORT certificate."""

    def _act_init(self, now: float) -> None:
        chosen = self.voting.acceptor.certificate(self.epoch, GENESIS)
        if self.k3s.state == "failed" and self.member is not None and chosen is not None:
            self.out.append(WipeK3s(self.member.epoch, chosen))
        super()._act_init(now)


class _WipesEarly(World):
    def make_bootstrap(self, **arguments: object) -> Bootstrap:
        return _Hasty(**arguments)  # type: ignore[arg-type]


def test_a_wipe_before_the_certificate_is_caught(nodes: Nodes) -> None:
    def plan(seed: int) -> Plan:
        return Plan(
            "wipe", nodes(3), servers=1, minimum_nodes=3, k3s=K3sPlan((1.0, 3.0), 0.7), heal_at_s=60.0
        )

    for seed in range(3):
        assert not run_world(plan(seed), seed).violation
    assert "wipes epoch" in caught(plan, _WipesEarly)


def test_a_server_that_hands_agents_the_servers_token_is_caught(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(seed: int) -> Plan:
        return Plan("secrets", nodes(3), servers=1, minimum_nodes=3, k3s=K3sPlan((1.0, 3.0)), heal_at_s=20.0)

    assert not run_world(plan(1), 1).violation
    monkeypatch.setattr(pki.JoinSecret, "joining", lambda self, granted: self)
    assert "holds the servers' token" in caught(plan)


def test_a_node_that_joins_before_ready_is_caught(nodes: Nodes) -> None:
    class Impatient(Bootstrap):
        def _act_wait(self, now: float) -> None:
            super()._act_wait(now)
            decided = self.open_genesis()
            if decided is not None and self.member is None and self.self_id in decided.servers:
                self.change(
                    member=bootstrap_membership(self.epoch, "server", False, decided, join_ip=decided.vpn_ip)
                )
                self.start_k3s("server-join")

    from p2p_roles.durable import Membership as bootstrap_membership

    class ImpatientWorld(World):
        def make_bootstrap(self, **arguments: object) -> Bootstrap:
            return Impatient(**arguments)  # type: ignore[arg-type]

    plan = Plan("impatient", nodes(3), servers=3, minimum_nodes=3, heal_at_s=60.0)
    violations = (run_world(plan, seed, world_type=ImpatientWorld).violation for seed in itertools.count())
    assert "not READY" in next(violation for violation in itertools.islice(violations, 10) if violation)
