"""Fragments whose threads hold one row each: what tcgen05.ld.32x32b makes of accumulators in tensor memory.

Warp w of a warpgroup reaches lanes 32 w ... 32 w + 31 of tensor memory and reads consecutive columns of them, so thread t has
row t of a 128-row slab, and register v is column v. What goes along a row needs no other thread; what goes along a column is
an exchange among the 32 lanes of a warp.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cutlass.cute as cute
from cutlass import Float32, Int32

from ..cute_dtype import CUTE_DTYPE
from ..dsl.barrier import WARPGROUP_THREADS
from ..gemm_config import Major, OperandSpec
from .fragment_layout import BlockElement, FragmentLayout, RowTotals, exchange_halves

VECTOR_BITS = 128  # the widest access of shared memory, and the unit that swizzles move


@dataclass(frozen=True)
class RowFragment(FragmentLayout):
    """The layout above. thread: in the warpgroup."""

    thread: Int32
    slab_m = 128
    rows_per_slab = 1
    row_lanes = ()
    row_leader = 0
    col_lanes = (16, 8, 4, 2, 1)  # in this order lane i ends with the i-th of 32 columns

    def partition(self, slab: cute.Tensor) -> cute.Tensor:
        return slab[self.thread, None]

    def row_slot(self, element: int) -> int:
        return 0

    def first_element(self, slot: int) -> int:
        return 0

    def first_column(self) -> Int32:
        return Int32(0)

    def column_offset(self, element: int) -> int:
        return element

    def columns_before(self, element: int) -> int:
        return element

    def blocks(self, elements: int) -> list[list[BlockElement]]:
        return [[BlockElement(first + v, None, v // 8, v % 8) for v in range(16)] for first in range(0, elements, 16)]

    def fold_rows(self, fragment: cute.Tensor, op: Callable[[Float32, Float32], Float32]) -> RowTotals:
        """The 32 lanes exchange halves: n - 1 shuffles for n = 32 columns, or 62 for 64."""
        columns = [fragment[v] for v in range(cute.size(fragment))]
        totals, first, is_speaker = exchange_halves(columns, self.col_lanes, op)
        return RowTotals(totals, [first + i for i in range(len(totals))], is_speaker)

    def halve(self, fragment: cute.Tensor, function: Callable[[Float32, Float32], Float32]) -> cute.Tensor:
        half = cute.make_rmem_tensor(cute.size(fragment) // 2, Float32)
        for v in range(cute.size(half)):
            half[v] = function(fragment[2 * v], fragment[2 * v + 1])
        return half

    def store_copy(self, spec: OperandSpec, columns: int) -> cute.TiledCopy:
        return self._copy(spec, columns)

    def load_copy(self, spec: OperandSpec, columns: int) -> cute.TiledCopy:
        return self._copy(spec, columns)

    def _copy(self, spec: OperandSpec, columns: int) -> cute.TiledCopy:
        """Contiguous rows: vectors. Contiguous columns: elements, so that the lanes of a warp are neighbours in memory."""
        dtype = CUTE_DTYPE[spec.dtype]
        width = min(columns, VECTOR_BITS // dtype.width) if spec.major is Major.INNER else 1
        atom = cute.make_copy_atom(cute.nvgpu.CopyUniversalOp(), dtype, num_bits_per_copy=width * dtype.width)
        threads = cute.make_layout((WARPGROUP_THREADS, 1))
        return cute.make_tiled_copy_tv(atom, threads, cute.make_layout((1, width)))
