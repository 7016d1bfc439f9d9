"""Shared memory banks: how many transactions an access of a warp takes, and how few it could take."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BANKS, BANK_BYTES = 32, 4


class Transactions(NamedTuple):
    """Of one access by one warp. distinct: how many different addresses it has."""

    ideal: int
    actual: int
    distinct: int


def transactions(offsets: np.ndarray, lanes: np.ndarray, size: int) -> Transactions:
    """Accesses of `size` bytes by `lanes` at `offsets`: 4 bytes by all lanes at once, 8 by half warps, 16 by quarter warps.

    In one transaction every bank delivers one word, to however many lanes. Rows of ldmatrix and stmatrix are 16-byte
    accesses of lanes 0 to 31.
    """
    served = min(BANKS, BANKS * BANK_BYTES // size)
    words = offsets[:, None] // BANK_BYTES + np.arange(max(1, size // BANK_BYTES))
    ideal = actual = 0
    for phase in np.unique(lanes // served):
        distinct = np.unique(words[lanes // served == phase])
        ideal += 1
        actual += int(np.bincount(distinct % BANKS).max())
    return Transactions(ideal, actual, len(np.unique(offsets)))


def transactions_of_warp(offsets: np.ndarray, lanes: Sequence[int], size: int) -> Transactions:
    """`transactions`, remembered: a kernel has few patterns."""
    line = BANKS * BANK_BYTES
    pattern = (offsets - offsets[0] // line * line).astype(np.int64, copy=False)
    return _remembered(pattern.tobytes(), tuple(lanes), size)


@functools.lru_cache(100_000)
def _remembered(offsets: bytes, lanes: tuple[int, ...], size: int) -> Transactions:
    return transactions(np.frombuffer(offsets, np.int64), np.array(lanes), size)
