"""Both ends of a channel over a stream in memory: what a peer may do, and what ends its channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from p2p_network.core.errors import PeerUnreachable, RemoteViolation
from p2p_network.core.ids import PeerId
from p2p_network.host import channel as module
from p2p_network.host.channel import Channel, Handler, Outbox, Served
from p2p_network.host.frames import MAX_PAYLOAD_BYTES, Frame, Hello, Ping, Reply, Welcome, frame_bytes
from p2p_network.wire import MAX_FRAME_BYTES

CALLER, CALLEE = PeerId("caller"), PeerId("callee")


class MemoryStream:
    """A `ByteStream` over trio's in-memory streams."""

    def __init__(self, peer: PeerId, stream: trio.StapledStream) -> None:
        self.peer = peer
        self.stream = stream

    async def read(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def write(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except trio.ClosedResourceError as exc:
            raise trio.BrokenResourceError from exc

    async def reset(self) -> None:
        await trio.aclose_forcefully(self.stream)


async def echo(peer: PeerId, payload: bytes) -> bytes:
    return payload


def heard() -> None:
    """Nobody counts here."""


@asynccontextmanager
async def pair(**handlers: Handler) -> AsyncIterator[tuple[Channel, Served]]:
    near, far = trio.testing.memory_stream_pair()
    caller = Channel(MemoryStream(CALLEE, near), heard)
    served = Served(
        MemoryStream(CALLER, far), heard, handlers, lambda hello: Welcome(("/ip4/1.2.3.4/tcp/5",))
    )
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            nursery.start_soon(caller.run, Hello(()))
            assert await caller.wait_greeted()
            yield caller, served
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def served_raw(**handlers: Handler) -> AsyncIterator[tuple[trio.StapledStream, Served]]:
    """The callee's end with a raw stream on the other side."""
    near, far = trio.testing.memory_stream_pair()
    served = Served(MemoryStream(CALLER, far), heard, handlers, lambda hello: Welcome(()))
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            yield near, served
            nursery.cancel_scope.cancel()


async def test_answers_come_back_to_whoever_asked() -> None:
    async def slow_if_even(peer: PeerId, payload: bytes) -> bytes:
        if payload[0] % 2 == 0:
            await trio.testing.wait_all_tasks_blocked()
        return payload * 2

    async with pair(double=slow_if_even) as (caller, _):
        answers = {}

        async def ask(n: int) -> None:
            answers[n] = await caller.request("double", bytes([n]), timeout_s=5)

        async with trio.open_nursery() as nursery:
            for n in range(100):
                nursery.start_soon(ask, n)
        assert answers == {n: bytes([n, n]) for n in range(100)}


async def test_the_welcome_carries_addresses() -> None:
    async with pair() as (caller, _):
        assert caller.welcome == Welcome(("/ip4/1.2.3.4/tcp/5",))


async def test_a_handler_that_raises_fails_one_request_and_tells_no_secret() -> None:
    async def broken(peer: PeerId, payload: bytes) -> bytes:
        raise RuntimeError("the secret is 42")

    async with pair(broken=broken, echo=echo) as (caller, _):
        with pytest.raises(RemoteViolation, match=r"RuntimeError") as caught:
            await caller.request("broken", b"", timeout_s=5)
        assert "42" not in str(caught.value)
        assert caught.value.peer == CALLEE
        assert await caller.request("echo", b"x", timeout_s=5) == b"x"


async def test_an_unknown_method_is_refused() -> None:
    async with pair() as (caller, _):
        with pytest.raises(RemoteViolation, match="no such method"):
            await caller.request("nothing", b"", timeout_s=5)


async def test_no_answer_in_time() -> None:
    async def mute(peer: PeerId, payload: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async with pair(mute=mute, echo=echo) as (caller, _):
        with pytest.raises(PeerUnreachable, match=r"within 0\.01 s"):
            await caller.request("mute", b"", timeout_s=0.01)
        assert await caller.request("echo", b"x", timeout_s=5) == b"x"


async def test_an_answer_after_its_timeout_does_no_harm() -> None:
    gate = trio.Event()

    async def late(peer: PeerId, payload: bytes) -> bytes:
        await gate.wait()
        return b"late"

    async with pair(late=late, echo=echo) as (caller, _):
        with pytest.raises(PeerUnreachable):
            await caller.request("late", b"", timeout_s=0.01)
        gate.set()
        assert await caller.request("echo", b"x", timeout_s=5) == b"x"


async def test_the_largest_payload_passes_and_a_larger_answer_is_a_failure() -> None:
    async def too_much(peer: PeerId, payload: bytes) -> bytes:
        return bytes(MAX_PAYLOAD_BYTES + 1)

    async with pair(echo=echo, much=too_much) as (caller, _):
        big = bytes(MAX_PAYLOAD_BYTES)
        assert await caller.request("echo", big, timeout_s=5) == big
        with pytest.raises(RemoteViolation, match="LocalViolation"):
            await caller.request("much", b"", timeout_s=5)


async def test_notifications_arrive_and_are_never_answered() -> None:
    got: list[bytes] = []

    async def note(peer: PeerId, payload: bytes) -> bytes:
        got.append(payload)
        raise RuntimeError("nobody hears this")

    async with pair(note=note, echo=echo) as (caller, _):
        assert caller.notify("note", b"1")
        assert caller.notify("unknown", b"2")
        await caller.request("echo", b"", timeout_s=5)
        await trio.testing.wait_all_tasks_blocked()
        assert got == [b"1"]


async def test_handlers_run_side_by_side_but_not_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    running = peak = 0

    async def count(peer: PeerId, payload: bytes) -> bytes:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await trio.testing.wait_all_tasks_blocked()
        running -= 1
        return b""

    async with pair(count=count) as (caller, _), trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(lambda: caller.request("count", b"", timeout_s=5))
    assert peak == module.MAX_HANDLERS


async def test_requests_beyond_the_inbox_are_refused_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INBOX_BYTES", 1000)
    gate = trio.Event()

    async def wait(peer: PeerId, payload: bytes) -> bytes:
        await gate.wait()
        return b"done"

    async with pair(wait=wait) as (caller, _):
        outcomes: list[object] = []

        async def ask() -> None:
            try:
                outcomes.append(await caller.request("wait", bytes(300), timeout_s=5))
            except RemoteViolation as exc:
                outcomes.append("busy" in str(exc))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert outcomes == [True, True]
            gate.set()
        assert outcomes.count(b"done") == 2


async def test_calls_in_flight_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CALLS", 1)
    gate = trio.Event()

    async def wait(peer: PeerId, payload: bytes) -> bytes:
        await gate.wait()
        return b""

    async with pair(wait=wait) as (caller, _), trio.open_nursery() as nursery:
        nursery.start_soon(lambda: caller.request("wait", b"", timeout_s=5))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(PeerUnreachable, match="waiting for an answer already"):
            await caller.request("wait", b"", timeout_s=5)
        gate.set()


async def test_the_outbox_is_bounded_and_lets_heartbeats_pass_first() -> None:
    outbox = Outbox(limit_bytes=100)
    assert outbox.put(b"a" * 90)
    assert not outbox.put(b"b" * 20)
    assert outbox.put(b"ping", first=True)
    assert await outbox.take() == b"ping" + b"a" * 90
    assert outbox.put(b"b" * 20)
    outbox.close()
    assert not outbox.put(b"c")


async def test_a_round_trip_is_measured() -> None:
    async with pair() as (caller, _):
        caller.ping(trio.current_time())
        with trio.fail_after(5):
            while caller.round_trip_s is None:
                await trio.testing.wait_all_tasks_blocked()
        assert 0 <= caller.round_trip_s < 5


async def test_requests_fail_when_the_channel_ends() -> None:
    async def wait(peer: PeerId, payload: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async with pair(wait=wait) as (caller, served):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_expect_unreachable, caller)
            await trio.testing.wait_all_tasks_blocked()
            served.end("test")
        await _expect_unreachable(caller)


async def _expect_unreachable(caller: Channel) -> None:
    with pytest.raises(PeerUnreachable, match="ended"):
        await caller.request("wait", b"", timeout_s=5)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (frame_bytes(Hello(())) + (MAX_FRAME_BYTES + 1).to_bytes(4, "big"), "allowed"),
        (frame_bytes(Hello(())) + b"\0\0\0\4\xff\xff\xff\xff", "not a frame"),
        (frame_bytes(Hello(())) + frame_bytes(Hello(())), "Hello is not for the callee"),
        (frame_bytes(Hello(())) + frame_bytes(Reply(1, b"")), "Reply is not for the callee"),
        (frame_bytes(Ping(1)), "first frame is not Hello"),
        (b"GET / HTTP/1.1\r\n\r\n", "allowed"),
    ],
)
async def test_a_violation_ends_the_channel_and_says_why(sent: bytes, words: str) -> None:
    async with served_raw(echo=echo) as (raw, served):
        await raw.send_all(sent)
        await served.ended.wait()
        assert served.violated
        assert words in served.reason


async def test_a_frame_cut_short_is_a_violation_a_clean_end_is_none() -> None:
    for sent, violated in ((frame_bytes(Hello(()))[:-1], True), (frame_bytes(Hello(())), False)):
        async with served_raw() as (raw, served):
            await raw.send_all(sent)
            await trio.testing.wait_all_tasks_blocked()
            await raw.send_stream.aclose()
            await served.ended.wait()
            assert served.violated is violated


async def test_a_frame_that_trickles_for_too_long_is_a_violation() -> None:
    async with served_raw() as (raw, served):
        await raw.send_all(frame_bytes(Hello(())) + b"\0\0\1\0trickle")
        await trio.testing.wait_all_tasks_blocked()
        served.check(trio.current_time() + module.FRAME_LIMIT_S - 1)
        assert not served.ended.is_set()
        served.check(trio.current_time() + module.FRAME_LIMIT_S + 1)
        await served.ended.wait()
        assert served.violated


@pytest.mark.parametrize("frame", [Reply(99, b""), Ping(1), Hello(())])
async def test_a_callee_that_breaks_the_rules_loses_its_caller(frame: Frame) -> None:
    near, far = trio.testing.memory_stream_pair()
    caller = Channel(MemoryStream(CALLEE, near), heard)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.run, Hello(()))
            await far.send_all(frame_bytes(Welcome(())) + frame_bytes(frame))
            await caller.ended.wait()
            assert caller.violated


async def test_a_mute_callee_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    near, _far = trio.testing.memory_stream_pair()
    caller = Channel(MemoryStream(CALLEE, near), heard)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(caller.run, Hello(()))
        assert not await caller.wait_greeted()
        nursery.cancel_scope.cancel()
