"""Which elements of a tile one thread holds, and how threads that share a row or a column combine them.

wgmma and mma.sync leave a 64 x n slab (16 x n per warp) of the accumulator to the 128 threads of a warpgroup like this, q being
lane % 4 and r lane / 4, per group of 8 columns:

    register  0              1                  2                  3
    element   (r, 2q)        (r, 2q + 1)        (r + 8, 2q)        (r + 8, 2q + 1)

(PTX ISA 9.0, figures of wgmma.mma_async.m64nNk16 D and mma.m16n8k16 C.) Mixins never see this: they ask `EpilogueContext`.
"""

from collections.abc import Callable
from typing import NamedTuple

import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32

from ..dsl.fast_math import select


class BlockElement(NamedTuple):
    """One of the eight elements that a thread holds of a 16 x 16 block: (row + 8 row_half, column + 8 col_half + parity), where
    (row, column) is the first of them, in the block's first 8 rows and 8 columns."""

    register: int
    row_half: int
    col_half: int
    parity: int


class MmaFragment:
    """The layout above. Static facts; everything is decided while tracing."""

    rows_per_slab = 2  # rows of which one thread holds elements
    row_lanes = (1, 2)  # lane ^ these: the other lanes that hold elements of my rows
    col_lanes = (4, 8, 16)  # lane ^ these: the other lanes that hold elements of my columns
    row_leader = 3  # lanes with none of these bits set speak for their rows

    @staticmethod
    def row_slot(element: int) -> int:
        """Which of the thread's rows of a slab the element is in."""
        return element // 2 % 2

    @staticmethod
    def first_element(slot: int) -> int:
        """A register of the thread's part of a slab that is in its `slot`-th row."""
        return 2 * slot

    @staticmethod
    def first_column() -> Int32:
        """The first of the columns of which this thread holds elements."""
        return cute.arch.lane_idx() % 4 * 2

    @staticmethod
    def column_offset(element: int) -> int:
        """How far right of that column the element is."""
        return element // 4 * 8 + element % 2

    @staticmethod
    def columns_before(element: int) -> int:
        """How many columns precede the group of 8 that the element is in."""
        return element // 4 * 8

    @staticmethod
    def pairs(elements: int) -> list[tuple[int, int]]:
        """Registers of the elements in columns 2j and 2j + 1 of one row."""
        return [(first, first + 1) for first in range(0, elements, 2)]

    @staticmethod
    def columns(elements: int) -> list[tuple[int, int]]:
        """Registers of the elements in one column, one entry per column."""
        return [(first + j, first + j + 2) for first in range(0, elements, 4) for j in range(2)]

    @staticmethod
    def blocks(elements: int) -> list[list[BlockElement]]:
        """The thread's elements by 16 x 16 block, of which a fragment has a row; each block's first element first."""
        places = [(row, col, parity) for col in range(2) for row in range(2) for parity in range(2)]
        return [[BlockElement(first + v, *place) for v, place in enumerate(places)] for first in range(0, elements, 8)]

    @staticmethod
    def fold_rows(
        fragment: cute.Tensor, op: Callable[[Float32, Float32], Float32]
    ) -> tuple[list[Float32], list[Int32], Boolean]:
        """Combine a fragment over the rows of each warp: (totals, the columns of the fragment they are of, whether they are
        this lane's to speak for).

        The eight lanes of a column exchange halves of what they hold: 8 + 4 + 2 shuffles for 16 columns, not 3 x 16.
        """
        lane = cute.arch.lane_idx()
        totals = [op(fragment[top], fragment[bottom]) for top, bottom in MmaFragment.columns(cute.size(fragment))]
        first, is_speaker = Int32(0), Boolean(True)  # first: which of the thread's columns totals[0] is of
        for mask in MmaFragment.col_lanes:
            is_upper = lane & mask != 0
            half = len(totals) // 2
            if half == 0:
                totals = [op(totals[0], cute.arch.shuffle_sync_bfly(totals[0], mask))]
                is_speaker = is_speaker & (lane & mask == 0)
                continue
            lower, upper = totals[:half], totals[half:]
            kept = [select(is_upper, high, low) for low, high in zip(lower, upper)]
            sent = [select(is_upper, low, high) for low, high in zip(lower, upper)]
            totals = [op(own, cute.arch.shuffle_sync_bfly(other, mask)) for own, other in zip(kept, sent)]
            first = first + Int32(is_upper) * half
        indices = [first + i for i in range(len(totals))]
        return totals, [8 * (i // 2) + lane % 4 * 2 + i % 2 for i in indices], is_speaker

    @staticmethod
    def halve(fragment: cute.Tensor, function: Callable[[Float32, Float32], Float32]) -> cute.Tensor:
        """A fragment of half as many columns: column j is function(column 2j, column 2j + 1), in the same layout.

        A thread computes column 4i + q of both its rows for each group i of 8 columns, but must hold columns 2q and 2q + 1
        of each pair of groups (8 columns of the result). The four lanes of a row exchange them in two shuffles a pair.
        """
        lane = cute.arch.lane_idx()
        q = lane % 4
        is_even, is_lower = q % 2 == 0, q < 2
        first_source = lane - q + q // 2 + q % 2 * 2  # 0, 2, 1, 3: even lanes send their low value first
        second_source = first_source ^ 1  # 1, 3, 0, 2
        half = cute.make_rmem_tensor(cute.size(fragment) // 2, Float32)
        for group in range(0, cute.size(fragment), 8):
            for row in range(0, 4, 2):
                low = function(fragment[group + row], fragment[group + row + 1])
                high = function(fragment[group + row + 4], fragment[group + row + 5])
                x = cute.arch.shuffle_sync(select(is_even, low, high), first_source)
                y = cute.arch.shuffle_sync(select(is_even, high, low), second_source)
                half[group // 2 + row] = select(is_lower, x, y)
                half[group // 2 + row + 1] = select(is_lower, y, x)
        return half
