"""Is a quiet path left in peace, a used one watched, and a dead one given up in time?"""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from p2p_network.dataplane.pulse import ACTIVE_S, BEAT_S, IDLE_S, SILENCE_S, SUSPECT_S, Pulse

NEVER = float("-inf")


def questions(*, seconds: int, active_at: float) -> list[int]:
    pulse = Pulse(0.0)
    return [beat for beat in range(seconds) if pulse.due(beat * BEAT_S, active_at)]


def test_a_new_path_is_asked_every_beat_and_left_in_peace_later() -> None:
    asked = questions(seconds=100, active_at=NEVER)
    assert asked[: int(ACTIVE_S)] == list(range(int(ACTIVE_S)))
    assert len(asked) <= ACTIVE_S + 100 / IDLE_S + 1
    assert all(later - earlier <= IDLE_S for earlier, later in pairwise(asked))


def test_the_first_packet_after_a_rest_is_followed_by_a_question() -> None:
    pulse = Pulse(0.0)
    asked = [beat for beat in range(200) if pulse.due(beat, active_at=150.0 if beat >= 150 else NEVER)]
    assert set(range(150, 150 + int(ACTIVE_S))) <= set(asked)


@given(
    dies_at=st.floats(0, 100),
    jitter=st.lists(st.floats(-0.3, 0.3), min_size=150, max_size=150),
    active=st.booleans(),
)
def test_a_path_that_answers_is_kept_and_a_dead_one_is_not(
    dies_at: float, jitter: list[float], active: bool
) -> None:
    """Answers come at once until it dies; then the end comes after the next question, never before."""
    pulse, heard = Pulse(0.0), 0.0
    for beat, late in enumerate(jitter):
        now = beat * BEAT_S + max(0.0, late)
        if pulse.is_gone(now, heard):
            assert now > dies_at
            assert now - dies_at <= (BEAT_S if active else IDLE_S) + SILENCE_S + 2 * BEAT_S + 1
            return
        if pulse.due(now, now if active else NEVER) and now < dies_at:
            heard = now
    assert dies_at > len(jitter) - (IDLE_S + SILENCE_S + 3 * BEAT_S + 1), "it was never given up"


def test_a_path_is_suspect_from_an_unanswered_question_to_the_next_word() -> None:
    pulse = Pulse(0.0)
    assert not pulse.is_suspect(SUSPECT_S * 2, NEVER), "nobody asked"
    assert pulse.due(0.0, 0.0)
    assert not pulse.is_suspect(SUSPECT_S, NEVER)
    assert pulse.due(BEAT_S, BEAT_S)
    assert pulse.is_suspect(SUSPECT_S + 0.1, NEVER), "from the first question that was not answered"
    assert not pulse.is_suspect(SUSPECT_S + 0.1, 0.1)


def test_a_path_without_nat_rests_once_it_was_asked_and_answered() -> None:
    pulse = Pulse(0.0)
    asked = []
    for beat in range(200):
        pulse.is_gone(beat, last_received=beat - 0.5)  # it answers at once
        if pulse.due(beat, 100.0 if beat >= 100 else NEVER, idle_s=0.0):
            asked.append(beat)
    assert asked == [*range(int(ACTIVE_S)), *range(100, 100 + int(ACTIVE_S))]


def test_a_question_without_an_answer_is_followed_to_the_end_also_without_nat() -> None:
    pulse, beat = Pulse(0.0), 0
    while not pulse.is_gone(beat, last_received=ACTIVE_S - 2.5):
        pulse.due(beat, NEVER, idle_s=0.0)
        beat += 1
    assert beat <= ACTIVE_S + SILENCE_S + 1
