"""Is the event log bounded, numbered, safe to feed from anywhere, and never asleep when it shouldn't be?"""

from __future__ import annotations

import json
import threading

import trio
from hypothesis import given
from hypothesis import strategies as st

from p2p_bootstrap.api.events import MAX_TEXT_CHARS, EventLog


@given(st.integers(0, 30), st.integers(1, 10), st.integers(0, 40))
def test_since_gives_the_kept_events_above_a_number(appended: int, kept: int, seq: int) -> None:
    events = EventLog(kept)
    for number in range(appended):
        events.append(0.0, f"e.{number + 1}", {})
    expected = [n for n in range(1, appended + 1) if n > appended - kept and n > seq]
    assert [event["seq"] for event in events.since(seq)] == expected
    assert [event["name"] for event in events.since(seq)] == [f"e.{n}" for n in expected]
    assert events.last_seq == appended


def test_values_are_made_fit_for_json() -> None:
    events = EventLog()
    events.append(
        1.5,
        "a.thing",
        {"bytes": 3, "latency_ms": float("nan"), "detail": "x " * 9999, "peer": ("a",), "error": None},
    )
    (event,) = json.loads(json.dumps(events.since(0), allow_nan=False))
    assert event["time"] == "1970-01-01T00:00:01.500Z"
    assert event["reason"] == ""
    assert len(event["fields"].pop("detail")) == MAX_TEXT_CHARS
    assert event["fields"] == {"bytes": 3, "latency_ms": "nan", "peer": "('a',)", "error": None}


async def test_wait_returns_for_what_is_there_and_for_what_comes() -> None:
    events = EventLog()
    events.append(0, "a.first", {})
    with trio.fail_after(5):
        await events.wait(0)
    thread = threading.Thread(target=events.append, args=(0, "a.second", {}))
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(events.wait, 1)
            await trio.testing.wait_all_tasks_blocked()
            thread.start()
    await trio.to_thread.run_sync(thread.join)
    assert events.last_seq == 2


async def test_a_waiter_that_gave_up_leaves_nothing_behind() -> None:
    events = EventLog()
    with trio.move_on_after(0):
        await events.wait(0)
    assert not events._waiters


def test_appending_after_the_waiters_world_ended_is_harmless() -> None:
    events = EventLog()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(events.wait, 0)
            await trio.testing.wait_all_tasks_blocked()
            token = trio.lowlevel.current_trio_token()
            events._waiters.add((token, trio.Event()))  # as if its task were killed without a word
            nursery.cancel_scope.cancel()

    trio.run(main)
    events.append(0, "a.late", {})
    assert events.last_seq == 1
