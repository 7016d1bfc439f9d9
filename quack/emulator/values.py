"""Register values: raw bits, either one Python int (the same in every active lane) or a row of 32 unsigned lanes.

Most values of a GEMM kernel are uniform over the warp (addresses, loop counters, descriptors), and Python integers are
several times faster than 32-lane numpy rows. Predicates are bool or a row of bools. `None` is a register that was never
written.
"""

from typing import Any, Union

import numpy as np

LANES = 32
LANE = np.arange(LANES, dtype=np.uint32)
Value = Union[int, bool, np.ndarray, None]

UNSIGNED: dict[int, Any] = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64, 128: np.object_}
SIGNED: dict[int, Any] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
MASK = {bits: (1 << bits) - 1 for bits in (1, 8, 16, 32, 64, 128)}


def row(value: Any, bits: int) -> np.ndarray:
    """32 lanes of `bits`-wide unsigned integers (bool for 1). A register never written reads as a poison pattern."""
    if value.__class__ is np.ndarray:
        wanted = UNSIGNED[bits]
        return value if value.dtype == wanted else value.astype(wanted)
    if value is None:
        value = POISON & MASK[bits]
    if bits == 128:
        return np.array([value] * LANES, dtype=object)
    return np.full(LANES, value if bits == 1 else value & MASK[bits], UNSIGNED[bits])


POISON = 0x7FF7DEAD7FF7DEAD  # a NaN in both halves and as a whole


def signed(value: int, bits: int) -> int:
    """A raw integer read as two's complement."""
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def where(condition: np.ndarray, new: Value, old: Value, bits: int) -> Value:
    """`new` in the lanes of `condition`, `old` elsewhere; a lane never written may take any value."""
    if new is None or old is None:
        return old if new is None else new
    if new.__class__ is not np.ndarray and old.__class__ is not np.ndarray and new == old:
        return new
    return np.where(condition, row(new, bits), row(old, bits))


def uniform(value: Value, bits: int, first: int) -> Any:
    """The value of lane `first` as a Python int or bool."""
    if value.__class__ is np.ndarray:
        return bool(value[first]) if bits == 1 else int(value[first])
    if value is None:
        return (POISON & MASK[bits]) if bits != 1 else False
    return value
