"""Two members that can't dial each other, and one that both can: real hosts and handshakes, over loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import trio

from p2p_network.core.errors import PeerUnreachable
from p2p_network.core.ids import PeerId
from p2p_network.host import circuits, dialer, links, relay
from p2p_network.host import mesh as mesh_module
from p2p_network.host.frames import MAX_PAYLOAD_BYTES
from p2p_network.host.guards import MeshSwarm
from p2p_network.host.mesh import MeshHost
from p2p_network.identity import Identity

H = TypeVar("H", bound=MeshHost)
NOWHERE = "/ip4/127.0.0.1/tcp/9"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer, "RELAY_AFTER_S", 0.2)
    monkeypatch.setattr(dialer, "UPGRADE_CAP_S", 0.5)
    monkeypatch.setattr(mesh_module, "HEARTBEAT_S", 0.3)
    monkeypatch.setattr(links, "SILENCE_S", 2.5)
    monkeypatch.setattr(links, "FRESH_S", 0.25)


class Hidden(MeshHost):
    """A node that nobody can dial: it believes in an address where nobody listens, as behind a NAT."""

    open = False

    def addresses(self) -> tuple[str, ...]:
        return super().addresses() if self.open else (NOWHERE,)


def identity(n: int) -> Identity:
    return Identity(bytes([n]) * 32)


def host(n: int, kind: type[H] = MeshHost, **more: Any) -> H:  # type: ignore[assignment]
    settings: dict[str, Any] = {
        "psk": b"p" * 32,
        "mesh_id": "test",
        "rendezvous": b"r" * 32,
        "listen": ["127.0.0.1:0"],
        **more,
    }
    made = kind(identity=identity(n), mdns=False, dht=False, **settings)
    made.serve("echo", echo)
    return made


def hidden(n: int, **more: Any) -> Hidden:
    return host(n, Hidden, **more)


def where(h: MeshHost) -> str:
    return h.addresses()[0]


@asynccontextmanager
async def running(*hosts: MeshHost) -> AsyncIterator[trio.Nursery]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for h in hosts:
                await nursery.start(h.run)
            yield nursery
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object], *, limit_s: float = 20) -> None:
    with trio.fail_after(limit_s):
        while not condition():
            await trio.sleep(0.01)


async def joined(*hosts: MeshHost) -> None:
    """Wait until each of these hosts has a channel to each other."""
    ids = {h.peer_id for h in hosts}
    await until(lambda: all(ids - {h.peer_id} <= h.connected() for h in hosts))


async def echo(peer: PeerId, payload: bytes) -> bytes:
    return payload


async def meet(a: MeshHost, b: MeshHost) -> None:
    """What the ledger does: each learns where the other says that it is."""
    a.learn(b.peer_id, b.addresses(), "ledger")
    b.learn(a.peer_id, a.addresses(), "ledger")
    await joined(a, b)


async def test_a_channel_runs_through_a_member_and_becomes_direct_when_that_works() -> None:
    middle = host(1)
    async with running(middle) as nursery:
        a, b = hidden(2, bootstrap=[where(middle)]), hidden(3, bootstrap=[where(middle)])
        await nursery.start(a.run)
        await nursery.start(b.run)
        await joined(a, middle)
        await joined(b, middle)
        await meet(a, b)
        for one, other in ((a, b), (b, a)):
            through = one.relay_of(other.peer_id)
            assert through is not None
            assert through[0] == middle.peer_id
            assert through[1]
            assert one.address_of(other.peer_id).endswith(f"/p2p/{middle.peer_id}/p2p-circuit")
        big = bytes(MAX_PAYLOAD_BYTES)
        assert await a.request(b.peer_id, "echo", big) == big
        assert await b.request(a.peer_id, "echo", b"back") == b"back"
        assert middle.circuits_carried >= 1
        assert a.relay_of(middle.peer_id) is None

        # requests that are under way while the path changes are answered
        slow = trio.Event()

        async def wait(peer: PeerId, payload: bytes) -> bytes:
            await slow.wait()
            return b"at last"

        b.serve("wait", wait)
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append(await a.request(b.peer_id, "wait", b"", timeout_s=20))

        nursery.start_soon(ask)
        b.open = True
        a.learn(b.peer_id, b.addresses(), "ledger")
        await until(lambda: a.relay_of(b.peer_id) is None and b.relay_of(a.peer_id) is None)
        assert await a.request(b.peer_id, "echo", b"direct") == b"direct"
        slow.set()
        await until(lambda: answers == [b"at last"])
        await until(lambda: middle.circuits_carried == 0, limit_s=15)
        assert a.violations == b.violations == middle.violations == 0


async def test_when_a_relay_dies_another_one_leads_on_and_one_that_carries_nothing_is_not_used() -> None:
    first, second, unwilling = host(1), host(4), host(5, relays=False)
    async with running(unwilling) as nursery:
        lives: dict[PeerId, trio.CancelScope] = {}

        async def live(node: MeshHost, task_status: Any) -> None:
            with trio.CancelScope() as lives[node.peer_id]:
                await node.run(task_status=task_status)

        for node in (first, second):
            await nursery.start(lambda task_status, node=node: live(node, task_status))
        relays = [where(first), where(second), where(unwilling)]
        a, b = hidden(2, bootstrap=relays), hidden(3, bootstrap=relays)
        await nursery.start(a.run)
        await nursery.start(b.run)
        for node in (first, second, unwilling):
            await joined(a, node)
            await joined(b, node)
        await meet(a, b)
        through = a.relay_of(b.peer_id)
        assert through is not None
        used = through[0]
        assert used in (first.peer_id, second.peer_id)
        lives[used].cancel()
        await until(lambda: (a.relay_of(b.peer_id) or (used,))[0] != used, limit_s=20)
        assert await a.request(b.peer_id, "echo", b"on") == b"on"
        assert unwilling.circuits_carried == 0


async def test_a_relay_that_swallows_everything_is_passed_over() -> None:
    swallowing, honest = host(1), host(4)
    async with running(swallowing, honest) as nursery:
        relays = [where(swallowing), where(honest)]
        a, b = hidden(2, bootstrap=relays), hidden(3, bootstrap=relays)
        await nursery.start(a.run)
        await nursery.start(b.run)
        for node in (swallowing, honest):
            await joined(a, node)
            await joined(b, node)
        assert swallowing._circuits is not None
        assert a._circuits is not None

        async def swallow(*_: Any) -> None:
            await trio.sleep_forever()

        swallowing._circuits._splice = swallow  # type: ignore[method-assign]
        for _ in range(2):  # whichever it asks first, then the other
            try:
                await a._circuits.reach(b.peer_id, "a test")
                break
            except PeerUnreachable:
                pass
        await joined(a, b)
        assert (a.relay_of(b.peer_id) or ("",))[0] == honest.peer_id


async def test_a_relay_leads_one_hop_only_and_to_nobody_but_members_it_sees() -> None:
    middle = host(1)
    async with running(middle) as nursery:
        a, b = hidden(2, bootstrap=[where(middle)]), hidden(3, bootstrap=[where(middle)])
        await nursery.start(a.run)
        await nursery.start(b.run)
        await joined(a, middle)
        await joined(b, middle)
        await meet(a, b)
        assert a._circuits is not None
        assert b._circuits is not None
        # b is seen only through a circuit: it is no neighbour, and leads nowhere
        assert a._direct(b.peer_id) is None
        link = a._links[b.peer_id]
        stream = await a._host.open_on(link.current, a._circuits.ask_protocol)
        asking = circuits.Started(stream)
        await asking.say(relay.Ask(middle.peer_id))
        assert await asking.frame() == relay.Word("it was asked over a circuit: one hop only")
        for target, why in (
            (a.peer_id, "a circuit leads to another member"),
            (middle.peer_id, "a circuit leads to another member"),
            (identity(9).peer_id, "it has no direct connection with that member"),
        ):
            stream = await a._host.open_on(a._direct(middle.peer_id), a._circuits.ask_protocol)
            asking = circuits.Started(stream)
            await asking.say(relay.Ask(target))
            assert await asking.frame() == relay.Word(why)
        # nonsense ends the stream only
        stream = await a._host.open_on(a._direct(middle.peer_id), a._circuits.ask_protocol)
        await stream.write(b"\xff" * 600)
        assert await stream.read() == b""
        assert await a.request(b.peer_id, "echo", b"still") == b"still"


class Door:
    """A gate that knows who is out."""

    def __init__(self) -> None:
        self.out = set[PeerId]()

    def keys(self) -> tuple[bytes, ...]:
        return (b"p" * 32,)

    def may_dial(self, peer: PeerId) -> bool:
        return peer not in self.out

    def claim(self, peer: PeerId) -> bytes:
        return b"I am a member"

    async def answer(self, peer: PeerId, claim: bytes) -> tuple[bytes, str]:
        cause = "revoked" if peer in self.out else ""
        return cause.encode(), cause

    def conclude(self, peer: PeerId, answer: bytes) -> tuple[str, bool]:
        return answer.decode(), True


async def test_both_ends_are_judged_at_the_gate_whatever_the_relay_thinks() -> None:
    """b knows that a is out; the relay doesn't yet."""
    middle = host(1, gate=Door())
    judge = Door()
    async with running(middle) as nursery:
        a = hidden(2, bootstrap=[where(middle)], gate=Door())
        b = hidden(3, bootstrap=[where(middle)], gate=judge)
        judge.out.add(a.peer_id)
        await nursery.start(a.run)
        await nursery.start(b.run)
        await joined(a, middle)
        await joined(b, middle)
        assert a._circuits is not None
        assert b._circuits is not None
        with pytest.raises(PeerUnreachable, match="does not take calls"):
            await a._circuits.reach(b.peer_id, "a test")
        judge.may_dial = lambda peer: True  # type: ignore[method-assign]  # now only the gate stands
        with pytest.raises(PeerUnreachable, match="revoked"):
            await a._circuits.reach(b.peer_id, "a test")
        assert b.peer_id not in a.connected()
        assert a.peer_id not in b.connected()
        assert a.refused == {} or set(a.refused) == {"by_peer_revoked"}
        # who is let in again gets in by the same way; who is expelled loses the circuit at once
        judge.out.clear()
        await meet(a, b)
        judge.out.add(a.peer_id)
        b.expel(a.peer_id, "revoked")
        await until(lambda: b.peer_id not in a.connected() and a.peer_id not in b.connected())


async def test_a_relay_sees_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes through is the pre-shared key's cipher around Noise; a changed byte ends the connection."""
    carried: list[bytes] = []
    tamper = [False]
    splice = circuits.Started.read

    async def watching(self: circuits.Started) -> bytes:
        data = await splice(self)
        if self.stream.peer in ends and on_relay[0]:
            carried.append(data)
            if tamper[0] and data:
                return bytes([data[0] ^ 1]) + data[1:]
        return data

    middle = host(1)
    on_relay, ends = [False], set[PeerId]()
    async with running(middle) as nursery:
        a, b = hidden(2, bootstrap=[where(middle)]), hidden(3, bootstrap=[where(middle)])
        ends |= {a.peer_id, b.peer_id}
        monkeypatch.setattr(circuits.Started, "read", watching)
        on_relay[0] = True  # streams whose other end is a or b are the relay's
        await nursery.start(a.run)
        await nursery.start(b.run)
        await joined(a, middle)
        await joined(b, middle)
        await meet(a, b)
        secret = b"a secret that nobody else may read" * 20
        assert await a.request(b.peer_id, "echo", secret) == secret
        assert sum(map(len, carried)) > 2 * len(secret)
        assert secret[:34] not in b"".join(carried)
        assert b"multistream" not in b"".join(carried)
        tamper[0] = True
        with pytest.raises(PeerUnreachable):
            await a.request(b.peer_id, "echo", secret, timeout_s=8)
        await until(lambda: b.peer_id not in a.connected())
        tamper[0] = False
        await joined(a, b)


async def test_the_handshake_through_a_relay_is_with_the_wanted_peer_only() -> None:
    """A relay that leads to somebody else gets nothing."""
    middle = host(1)
    async with running(middle) as nursery:
        a, b = hidden(2, bootstrap=[where(middle)]), hidden(3, bootstrap=[where(middle)])
        await nursery.start(a.run)
        await nursery.start(b.run)
        await joined(a, middle)
        await joined(b, middle)
        swarm: MeshSwarm = a._swarm
        assert a._circuits is not None
        wanted = identity(7).peer_id
        open_wire = lambda: a._circuits._ask(middle.peer_id, b.peer_id, "a test")  # type: ignore[union-attr] # noqa: E731
        with pytest.raises(PeerUnreachable):
            await swarm.reach_over(open_wire, wanted)
        assert not a._links.keys() & {wanted, b.peer_id}
        assert a.peer_id not in b.connected()
