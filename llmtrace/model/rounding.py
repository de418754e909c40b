"""Decimal numbers rounded once to float32, with no float64 on the way.

Point 8 of the numerics: libm and torch differ in the last bit of a power or a
logarithm, so constants are computed in decimal and end here.
"""

from __future__ import annotations

import math
from decimal import (
    MAX_EMAX,
    MIN_EMIN,
    ROUND_HALF_EVEN,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    Overflow,
)
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

DIGITS = 50


def context() -> Context:
    """The decimal arithmetic of the contract: 50 digits, half-even, nothing of the caller's."""
    return Context(
        prec=DIGITS,
        rounding=ROUND_HALF_EVEN,
        Emin=MIN_EMIN,
        Emax=MAX_EMAX,
        capitals=1,
        clamp=0,
        flags=[],
        traps=[InvalidOperation, DivisionByZero, Overflow],
    )


def exact(value: float) -> Decimal:
    """The number as it is written: 0.1 is one tenth, not the nearest float64."""
    return Decimal(repr(value))


def to_float32(value: Decimal) -> np.float32:
    """Rounds to the nearest float32, ties to even, subnormals included.

    Raises OverflowError where the nearest is infinite.
    """
    import numpy as np

    fraction = Fraction(value)
    size = abs(fraction)
    if size == 0:
        return np.float32(0.0)
    # 2^(exponent + 23) <= size < 2^(exponent + 25), then put right to 24 bits
    exponent = size.numerator.bit_length() - size.denominator.bit_length() - 24
    if size >= Fraction(2) ** (exponent + 24):
        exponent += 1
    exponent = max(exponent, -149)
    mantissa = round(size / Fraction(2) ** exponent)  # half to even, exactly
    if mantissa * Fraction(2) ** exponent >= Fraction(2) ** 128:
        raise OverflowError(f"{value} is beyond float32")
    return np.float32(math.copysign(math.ldexp(mantissa, exponent), fraction))
