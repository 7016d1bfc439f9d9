"""Keeping ptxas from computing things too early."""

import cutlass.cute as cute
from cutlass import Float32, Int32

from .convert import as_bits, as_float


def unknown_zero(lane_value: Int32, *values: Float32) -> Int32:
    """0, but known only at run time, and not before the barriers that precede it: a shuffle stays behind those. Nor before these
    values.

    lane_value: not negative, different from lane to lane (ptxas removes shuffles of uniform values), of unknown range.
    """
    zero = lane_value >> 31
    for value in values:
        zero = zero & as_bits(value)
    return cute.arch.shuffle_sync(zero, 0)


def behind(zero: Int32, x: Float32) -> Float32:
    """x, but not before `zero` is there. One LOP3."""
    return as_float(as_bits(x) | zero)
