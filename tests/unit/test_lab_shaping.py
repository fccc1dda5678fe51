"""The lab's bad link: what it does to packets, and what it answers to nonsense."""

from __future__ import annotations

from random import Random

import pytest

from p2p_simulations.lab.shaping import Direction, Shape, parse


def test_settings_are_read_over_what_is_in_force() -> None:
    shape = parse("loss=0.01", parse("delay_ms=20 mtu=1400"))
    assert shape == Shape(delay_ms=20.0, loss=0.01, mtu=1400)


@pytest.mark.parametrize("text", ["loss", "los=1", "loss=much", "loss=2", "delay_ms=-1", "delay_ms=nan"])
def test_nonsense_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=text.split("=")[0]):
        parse(text)


def test_a_wire_has_a_rate_and_a_bounded_queue() -> None:
    way = Direction(Shape(rate_mbit=8, queue_ms=9.5, delay_ms=5), Random(1))
    outs = [way.leaves_at(0.0, 1000) for _ in range(20)]  # 1 ms each
    there = [out for out in outs if out is not None]
    assert there == pytest.approx([0.005 + 0.001 * n for n in range(1, 11)])
    assert way.dropped == 10


def test_loss_is_the_share_that_was_asked_for_and_order_is_kept() -> None:
    way = Direction(Shape(loss=0.1, jitter_ms=5), Random(1))
    outs = [way.leaves_at(n / 1000, 100) for n in range(10_000)]
    there = [out for out in outs if out is not None]
    assert 900 < way.dropped < 1100
    assert there == sorted(there)


def test_a_late_packet_is_overtaken() -> None:
    way = Direction(Shape(reorder=0.5, reorder_ms=5), Random(1))
    there = [out for n in range(100) if (out := way.leaves_at(n / 1000, 100)) is not None]
    assert len(there) == 100
    assert there != sorted(there)
    assert Direction(Shape(mtu=99), Random(1)).leaves_at(0.0, 100) is None
