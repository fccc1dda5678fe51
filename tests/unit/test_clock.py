"""Do stamps order what happened, whatever the clocks say?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2p_network.core.clock import MAX_AHEAD_MS, HybridClock, Stamp

WALLS = st.floats(0, 4e9)
STEPS = st.tuples(st.booleans(), WALLS, st.integers(0, 4 * 10**12), st.integers(0, 100))


def test_a_later_moment_has_a_higher_stamp() -> None:
    clock = HybridClock()
    assert clock.issue(1.0) == Stamp(1000, 0)
    assert clock.issue(1.0) == Stamp(1000, 1)
    assert clock.issue(2.5) == Stamp(2500, 0)
    assert clock.last == Stamp(2500, 0)


def test_a_clock_that_is_set_back_changes_nothing() -> None:
    clock = HybridClock()
    first = clock.issue(100.0)
    assert clock.issue(1.0) > first


def test_what_a_peer_said_lies_in_the_past_of_what_is_issued_next() -> None:
    clock = HybridClock()
    assert clock.accept(Stamp(5000, 7), 1.0)
    assert clock.issue(1.0) == Stamp(5000, 8)


def test_an_old_stamp_is_accepted_without_effect() -> None:
    clock = HybridClock(Stamp(9000, 0))
    assert clock.accept(Stamp(10, 0), 9.0)
    assert clock.last == Stamp(9000, 0)


def test_a_stamp_too_far_ahead_is_refused_and_has_no_effect() -> None:
    clock = HybridClock()
    assert not clock.accept(Stamp(1000 + MAX_AHEAD_MS + 1, 0), 1.0)
    assert clock.last == Stamp(0, 0)
    assert clock.accept(Stamp(1000 + MAX_AHEAD_MS, 0), 1.0)


def test_word_upon_word_drives_no_clock_on() -> None:
    clock = HybridClock()
    assert clock.accept(Stamp(1000 + MAX_AHEAD_MS, 0), 1.0)
    assert clock.skip() == Stamp(1001 + MAX_AHEAD_MS, 0)
    assert not clock.accept(Stamp(1001 + MAX_AHEAD_MS, 0), 1.0)


def test_a_clock_that_was_reset_takes_words_of_the_time_that_it_knew() -> None:
    known = Stamp(5 * MAX_AHEAD_MS, 0)
    for clock in (HybridClock(known), HybridClock()):
        clock.issue(known.wall_ms / 1000 if clock.last < known else 0.0)
        assert clock.accept(Stamp(known.wall_ms + MAX_AHEAD_MS, 0), 0.0)


@given(st.lists(STEPS, max_size=30))
def test_issued_stamps_only_rise_and_exceed_all_that_was_accepted(
    steps: list[tuple[bool, float, int, int]],
) -> None:
    clock = HybridClock()
    highest = clock.last
    for issue, wall_s, wall_ms, count in steps:
        if issue:
            stamp = clock.issue(wall_s)
            assert stamp > highest
            highest = stamp
        elif clock.accept(Stamp(wall_ms, count), wall_s):
            highest = max(highest, Stamp(wall_ms, count))
        assert clock.last == highest
