"""Do the runner and its runtime keep their word on trio? MockClock."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from p2p_bootstrap.node.runner import Runner
from p2p_bootstrap.node.signal import Signal
from p2p_bootstrap.node.trio_runtime import TrioRuntime
from p2p_network.core.machine import Decision


@dataclass
class Steps:
    """Wants two effects of every event, and to be woken at `wake`; an event "sooner" changes that."""

    wake: float | None = None
    sooner: float | None = None
    seen: list[tuple[float, str]] = field(default_factory=list)

    def step(self, now: float, event: str) -> Decision[str]:
        self.seen.append((now, event))
        self.wake = self.sooner if event == "sooner" else None
        return Decision((f"{event} one", f"{event} two"), "because")

    def wake_at(self) -> float | None:
        return self.wake


async def test_a_decision_is_carried_out_whole_though_its_feeder_is_cancelled() -> None:
    done: list[str] = []
    begun, go_on = trio.Event(), trio.Event()

    async def execute(effect: str) -> None:
        begun.set()
        await go_on.wait()
        done.append(effect)

    runner = Runner(TrioRuntime(), "test", Steps(), execute, lambda: "tick")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.feed, "event")
        await begun.wait()
        nursery.cancel_scope.cancel()
        go_on.set()
    assert done == ["event one", "event two"]
    assert (await runner.feed("next")).reason == "because", "the lock was given back"


async def test_a_machine_whose_effect_failed_decides_nothing_any_more() -> None:
    """Whoever fed it may only answer a peer with the error: an acceptor would say next that it had promised
    what the disk does not know (seed 870000064 lost a member's record so)."""
    machine = Steps()
    done: list[str] = []

    async def execute(effect: str) -> None:
        if effect == "event one":
            raise OSError("no space left on device")
        done.append(effect)

    runner = Runner(TrioRuntime(), "test", machine, execute, lambda: "tick")
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="no space left")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner.run)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(OSError, match="no space left"):
                await runner.feed("event")
            await trio.sleep_forever()
    with pytest.raises(OSError, match="no space left"):
        await runner.feed("next")
    assert [event for _, event in machine.seen] == ["event"]
    assert done == []


async def test_a_machine_is_woken_when_it_asked_for_it(autojump_clock: MockClock) -> None:
    machine = Steps(wake=trio.current_time() + 7.0)
    ticked = trio.Event()

    async def execute(effect: str) -> None:
        if effect == "tick two":
            ticked.set()

    runner = Runner(TrioRuntime(), "test", machine, execute, lambda: "tick")
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run)
        await trio.testing.wait_all_tasks_blocked()
        machine.sooner = began + 3.0
        await runner.feed("sooner")
        await ticked.wait()
        nursery.cancel_scope.cancel()
    assert [(event, round(when - began, 3)) for when, event in machine.seen] == [("sooner", 0), ("tick", 3)]


async def test_a_signal_remembers_that_it_was_raised(autojump_clock: MockClock) -> None:
    signal = Signal()
    assert not await signal.wait(2.0)
    assert not await signal.wait_until(trio.current_time() - 1.0), "a moment that is past is reached"
    signal.raise_()
    signal.raise_()
    assert await signal.wait(2.0)
    assert not await signal.wait(2.0)
