"""Is the simulated world what it says? Disks, time, messages, locks; and what its seeds have taught."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorums import certified

from p2p_bootstrap.node.policy import authorities
from p2p_network import wire
from p2p_network.addressing import Addressing, Assign, ClaimsChanged, LedgerSettled, candidate
from p2p_network.identity import Identity
from p2p_network.ledger.entry import Entry
from p2p_network.records import AddressClaim
from p2p_roles import events
from p2p_roles.bootstrap import Bootstrap
from p2p_roles.durable import Durable
from p2p_roles.genesis import certificate as certificates
from p2p_roles.genesis.acceptor import AcceptorState, Asked, Reply
from p2p_roles.genesis.messages import (
    GENESIS,
    OUTCOME,
    VOTE_PURPOSE,
    Ballot,
    Certificate,
    Genesis,
    Instance,
    Nack,
    Prepare,
    Ready,
    Value,
)
from p2p_roles.rules import Rules
from p2p_roles.view import View, ViewNode
from p2p_simulations.world.disk import Disk
from p2p_simulations.world.engine import Engine
from p2p_simulations.world.net import Network, Weather, groups_cut
from p2p_simulations.world.tasks import Channel, Event, Group, Lock, Signal, Spinning, Tasks

MESH = "00112233aabbccdd"
ME, YOU = Identity(bytes([1] * 32)), Identity(bytes([2] * 32))

steps = st.lists(
    st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 9)), st.booleans()), max_size=12
)


@given(steps, st.integers())
def test_a_disk_keeps_what_was_synced_and_nothing_older_comes_back(
    writes: list[tuple[str, int | None, bool]], seed: int
) -> None:
    disk = Disk(random.Random(seed))
    possible: dict[str, set[int | None]] = {name: {None} for name in "abc"}
    for name, value, synced in writes:
        ticket = disk.write({name: value})
        assert disk.read(name) == value
        if synced:
            disk.sync(ticket)
            possible[name] = {value}
        else:
            possible[name].add(value)
    disk.crash()
    for name, values in possible.items():
        assert disk.read(name) in values
    assert all(disk.read(name) is not None for name in disk.names())


@given(st.lists(st.floats(0, 100), max_size=30))
def test_things_happen_in_the_order_of_time_and_then_of_planning(delays: list[float]) -> None:
    engine, happened = Engine(1), []
    for number, delay in enumerate(delays):
        engine.after(delay, lambda number=number: happened.append((engine.now, number)))
    engine.run(200.0)
    assert happened == sorted((delay, number) for number, delay in enumerate(delays))


def test_a_life_that_ended_does_nothing_more_and_a_frozen_one_waits() -> None:
    engine, done, frozen_until = Engine(1), [], [5.0]
    tasks = Tasks(engine, lambda: frozen_until[0], lambda: None)

    async def work() -> None:
        while True:
            await tasks.sleep(1.0)
            done.append(engine.now)

    tasks.start(work())
    engine.run(7.5)
    assert done[0] >= 5.0
    count = len(done)
    tasks.end()
    engine.run(100.0)
    assert len(done) == count


def test_a_lock_is_handed_on_in_the_order_of_asking() -> None:
    engine, order = Engine(1), []
    tasks, lock = Tasks(engine, lambda: 0.0, lambda: None), Lock()

    async def enter(number: int) -> None:
        async with lock:
            await tasks.sleep(1.0)
            order.append(number)

    for number in range(5):
        tasks.start(enter(number))
    engine.run(10.0)
    assert order == [0, 1, 2, 3, 4]
    assert not lock.is_held


def test_cuts_stand_side_by_side_and_may_be_one_way() -> None:
    engine = Engine(3)
    network, got = Network(engine, Weather()), []
    for name in "abc":
        network.place(name, "r")
    network.cut("one", {("a", "b")})
    network.cut("two", groups_cut((("a",), ("b", "c"))))
    network.mend("two")
    for source, target in (("a", "b"), ("b", "a"), ("a", "c")):
        network.send(source, target, 1, lambda pair=(source, target): got.append(pair))
    engine.run(60.0)
    assert sorted(got) == [("a", "c"), ("b", "a")]
    assert not network.linked("a", "b")


# ---------------------------------------------------------------- what the seeds have taught


def alone(epoch: int, decree: int, value: Value) -> Certificate:
    return certified(MESH, Instance("kairos", epoch, decree), value, 1, [ME], Ballot(1, ME.peer_id))


def genesis(epoch: int) -> Certificate:
    value = Genesis("c" * 16, ME.peer_id, "10.144.0.1", "ca", "", "", (ME.peer_id,), "etcd")
    return alone(epoch, GENESIS, value)


def machine() -> Bootstrap:
    return Bootstrap(
        self_id=ME.peer_id,
        scope="kairos",
        mesh_id=MESH,
        sign=lambda message: ME.sign(VOTE_PURPOSE, message),
        rules=Rules(minimum_nodes=2),
    )


def test_certificates_that_were_durable_are_published_after_a_power_cut() -> None:
    known = (genesis(1), alone(1, OUTCOME, Ready("uid")))
    durable = wire.encode(Durable("kairos", AcceptorState(1, (), known)))
    effects = machine().step(0.0, events.Started(durable)).effects
    published = [effect.key for effect in effects if isinstance(effect, events.PublishCertificate)]
    assert published == ["genesis/kairos/1/1", "genesis/kairos/1/2"]


def test_the_authority_is_known_although_older_epochs_are_missing() -> None:
    held = {certificates.key_of(c): c for c in (genesis(3), alone(3, OUTCOME, Ready("uid")))}

    class Known:
        def items(self, prefix: str) -> list[Entry]:
            return [
                Entry(key, ME.peer_id, 0, 0, certificates.encode(c), b"")
                for key, c in held.items()
                if key.startswith(prefix)
            ]

    assert authorities("kairos", Known()) == {ME.peer_id}
    assert authorities("other", Known()) == frozenset()


def test_a_claim_survives_a_look_at_the_ledger_from_before_it_was_written() -> None:
    made = Addressing(ME.peer_id, MESH, started_at=0.0)
    made.step(1.0, ClaimsChanged({}, 1000))
    claimed, assigned = made.step(2.0, LedgerSettled(2000)).effects
    assert isinstance(assigned, Assign)
    held = made.holding
    assert made.step(2.1, ClaimsChanged({}, 2100)).effects == (claimed,), "once more changes nothing"
    assert made.holding == held
    rival = AddressClaim(str(candidate(ME.peer_id, MESH, 0)), 0, 1)
    made.step(3.0, ClaimsChanged({YOU.peer_id: rival}, 3000))
    assert made.holding not in ("", held)


def test_a_node_votes_for_no_initiator_that_it_has_no_record_of() -> None:
    made = machine()
    made.step(0.0, events.Started(None))
    me = ViewNode(ME.peer_id, "me", minimum_nodes=2)
    made.step(1.0, events.ViewChanged(View(ME.peer_id, "kairos", (me,), 1.0)))
    ask = Asked(YOU.peer_id, Prepare(Instance("kairos", 1, GENESIS), Ballot(1, YOU.peer_id), 2))
    (reply,) = (e for e in made.step(2.0, ask).effects if isinstance(e, Reply))
    assert isinstance(reply.message, Nack)
    you = ViewNode(YOU.peer_id, "you", minimum_nodes=2)
    made.step(3.0, events.ViewChanged(View(ME.peer_id, "kairos", (me, you), 3.0)))
    (reply,) = (e for e in made.step(4.0, ask).effects if isinstance(e, Reply))
    assert not isinstance(reply.message, Nack)


def test_signals_groups_and_channels_wait_in_virtual_time() -> None:
    engine = Engine(1)
    tasks = Tasks(engine, lambda: 0.0, lambda: None)
    signal, event, channel = Signal(tasks, lambda: engine.now), Event(), Channel[int](tasks)
    seen: list[tuple[str, float]] = []

    async def listen() -> None:
        assert not await signal.wait_until(2.0)
        seen.append(("moment", engine.now))
        assert await signal.wait(10.0)
        seen.append(("raised", engine.now))
        await event.wait()
        seen.append(("event", engine.now))

    async def hear() -> None:
        async for number in channel:
            seen.append((f"item {number}", engine.now))
            if number == 2:
                return

    async def both() -> None:
        async with Group(tasks) as group:
            group.start_soon(listen)
            group.start_soon(hear)
        seen.append(("both", engine.now))

    tasks.start(both())
    for number in (1, 2):
        engine.at(1.0, lambda number=number: channel.send(number))  # type: ignore[misc]
    engine.at(5.0, signal.raise_)
    engine.at(6.0, event.set)
    engine.run(20.0)
    assert [(what, round(when, 3)) for what, when in seen] == [
        ("item 1", 1.0), ("item 2", 1.0), ("moment", 2.0), ("raised", 5.0), ("event", 6.0), ("both", 6.0)
    ]  # fmt: skip


def test_who_wants_to_be_woken_for_ever_at_once_is_caught() -> None:
    engine = Engine(1)
    tasks = Tasks(engine, lambda: 0.0, lambda: None)
    signal = Signal(tasks, lambda: engine.now)

    async def spin() -> None:
        while True:
            await signal.wait_until(0.0)

    tasks.start(spin())
    with pytest.raises(Spinning):
        engine.run(1.0)
