"""Chance that is the same on every machine, to the last bit.

Python's `random` draws the same uniform numbers everywhere, but makes others of them with libm, whose last
bits follow the processor (glibc has variants with and without fused multiply-add, and they differ in one
logarithm of some hundred thousand). Here they are made of what IEEE 754 rounds the same everywhere: the four
operations, and taking a number apart into fraction and exponent.
"""

from __future__ import annotations

import math
import random
from typing import Final

_LN_2: Final = 0.6931471805599453
_ROOT_HALF: Final = 0.7071067811865476


class Draws(random.Random):
    """A stream of numbers that a seed and nothing else decides."""

    def expovariate(self, lambd: float = 1.0) -> float:
        """See `random.Random.expovariate`, to within a few units in the last place."""
        return -ln(1.0 - self.random()) / lambd

    def paretovariate(self, alpha: float) -> float:
        """See `random.Random.paretovariate`, likewise."""
        return exp(-ln(1.0 - self.random()) / alpha)


def ln(x: float) -> float:
    """The natural logarithm of x > 0."""
    fraction, exponent = math.frexp(x)
    if fraction < _ROOT_HALF:
        fraction, exponent = fraction * 2.0, exponent - 1
    # ln f = 2 artanh((f - 1) / (f + 1)); |z| <= 0.172, so what follows the last term is below 2 ** -60
    z = (fraction - 1.0) / (fraction + 1.0)
    square = z * z
    series = 0.0
    for divisor in (23.0, 21.0, 19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0):
        series = (series + 1.0 / divisor) * square
    return exponent * _LN_2 + 2.0 * (z + z * series)


def exp(x: float) -> float:
    """e to the power of x, for |x| < 700."""
    exponent = round(x / _LN_2)
    rest = x - exponent * _LN_2
    series = 1.0
    for divisor in range(18, 0, -1):
        series = 1.0 + series * rest / divisor
    return math.ldexp(series, exponent)
