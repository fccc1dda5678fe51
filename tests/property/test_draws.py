"""Is what a simulated world draws from its chance what it should be, and the same on every machine?"""

from __future__ import annotations

import ast
import inspect
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_simulations.world import draws
from p2p_simulations.world.draws import Draws, exp, ln


@given(st.floats(min_value=0.0, exclude_min=True, allow_infinity=False))
def test_the_logarithm_is_that_of_libm_but_for_its_last_bits(x: float) -> None:
    assert ln(x) == pytest.approx(math.log(x), rel=1e-15, abs=1e-300)


@given(st.floats(min_value=-690, max_value=690))
def test_the_exponential_is_that_of_libm_but_for_its_last_bits(x: float) -> None:
    assert exp(x) == pytest.approx(math.exp(x), rel=3e-15 * max(1.0, abs(x)))


@given(st.integers())
def test_the_numbers_are_those_of_python_but_for_their_last_bits(seed: int) -> None:
    ours, theirs = Draws(seed), random.Random(seed)
    for rate in (1 / 3, 50.0):
        assert ours.expovariate(rate) == pytest.approx(theirs.expovariate(rate), rel=1e-14)
        assert ours.paretovariate(1.3) == pytest.approx(theirs.paretovariate(1.3), rel=1e-13)
    assert ours.sample(range(99), 9) == theirs.sample(range(99), 9)
    assert ours.random() == theirs.random()


def test_nothing_of_libm_is_used_that_is_not_the_same_everywhere() -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(draws)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "math"
    }
    assert used == {"frexp", "ldexp"}
