"""Which elements of a tile one thread holds, and how threads that share a row or a column combine them.

wgmma and mma.sync leave a 64 x n slab (16 x n per warp) of the accumulator to the 128 threads of a warpgroup like this, q being
lane % 4 and r lane / 4, per group of 8 columns:

    register  0              1                  2                  3
    element   (r, 2q)        (r, 2q + 1)        (r + 8, 2q)        (r + 8, 2q + 1)

(PTX ISA 9.0, figures of wgmma.mma_async.m64nNk16 D and mma.m16n8k16 C.) Mixins never see this: they ask `EpilogueContext`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32
from cutlass.tensor_utils import LayoutEnum
from cutlass.utils import sm90 as sm90_utils

from ..cute_dtype import CUTE_DTYPE
from ..dsl.fast_math import select
from ..gemm_config import Major, OperandSpec
from .fragment_layout import BlockElement, FragmentLayout, RowTotals, exchange_halves


@dataclass(frozen=True)
class MmaFragment(FragmentLayout):
    """The layout above. mma: of 64 rows, that is of one warpgroup. thread: in the warpgroup."""

    mma: cute.TiledMma
    thread: Int32
    slab_m = 64
    rows_per_slab = 2
    row_lanes = (1, 2)
    row_leader = 3
    col_lanes = (4, 8, 16)  # lane ^ these: the other lanes that hold elements of my columns

    def partition(self, slab: cute.Tensor) -> cute.Tensor:
        return self.mma.get_slice(self.thread).partition_C(slab)

    def row_slot(self, element: int) -> int:
        return element // 2 % 2

    def first_element(self, slot: int) -> int:
        return 2 * slot

    def first_column(self) -> Int32:
        return cute.arch.lane_idx() % 4 * 2

    def column_offset(self, element: int) -> int:
        return element // 4 * 8 + element % 2

    def columns_before(self, element: int) -> int:
        return element // 4 * 8

    def blocks(self, elements: int) -> list[list[BlockElement]]:
        places = [(row, col, parity) for col in range(2) for row in range(2) for parity in range(2)]
        return [[BlockElement(first + v, *place) for v, place in enumerate(places)] for first in range(0, elements, 8)]

    def fold_rows(self, fragment: cute.Tensor, op: Callable[[Float32, Float32], Float32]) -> RowTotals:
        """The eight lanes of a column exchange halves of what they hold."""
        groups = range(0, cute.size(fragment), 4)
        columns = [op(fragment[group + j], fragment[group + j + 2]) for group in groups for j in range(2)]
        totals, first, is_speaker = exchange_halves(columns, self.col_lanes, op)
        lane = cute.arch.lane_idx()
        indices = [first + i for i in range(len(totals))]
        return RowTotals(totals, [8 * (i // 2) + lane % 4 * 2 + i % 2 for i in indices], is_speaker)

    def halve(self, fragment: cute.Tensor, function: Callable[[Float32, Float32], Float32]) -> cute.Tensor:
        """A thread computes column 4i + q of both its rows for each group i of 8 columns, but must hold columns 2q and 2q + 1
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

    def store_copy(self, spec: OperandSpec, columns: int) -> cute.TiledCopy:
        """stmatrix where it can."""
        layout = LayoutEnum.ROW_MAJOR if spec.major is Major.INNER else LayoutEnum.COL_MAJOR
        return self._stepwise(sm90_utils.sm90_get_smem_store_op(layout, CUTE_DTYPE[spec.dtype], Float32))

    def write_stage(self, copy: cute.TiledCopy, values: cute.Tensor, smem: cute.Tensor, stage: Int32) -> None:
        thread_copy = copy.get_slice(self.thread)
        tRS_sD = thread_copy.partition_D(smem)  # (R2S, R2S_M, R2S_N, STAGE)
        layout = cute.make_layout(cute.shape(thread_copy.partition_S(smem))[:3])
        cute.copy(copy, cute.make_tensor(values.iterator, layout), tRS_sD[None, None, None, stage])

    def load_copy(self, spec: OperandSpec, columns: int) -> cute.TiledCopy:
        return self._stepwise(cute.make_copy_atom(cute.nvgpu.CopyUniversalOp(), CUTE_DTYPE[spec.dtype]))

    def read_stage(self, copy: cute.TiledCopy, smem: cute.Tensor, stage: Int32) -> cute.Tensor:
        tSR_sC = copy.get_slice(self.thread).partition_D(smem)[None, None, None, stage]
        tSR_rC = cute.make_rmem_tensor(tSR_sC.shape, smem.element_type)
        cute.autovec_copy(tSR_sC, tSR_rC)
        return tSR_rC

    def _stepwise(self, atom: cute.CopyAtom) -> cute.TiledCopy:
        """In steps of 64 x 16, what one stmatrix x4 of 4 warps covers, so that it partitions subtiles narrower than the MMA."""
        step = cute.make_copy_atom(cute.nvgpu.warp.StMatrix8x8x16bOp(False, 4), cutlass.BFloat16)
        return cute.make_tiled_copy_S(atom, cute.make_tiled_copy_C_atom(step, self.mma))
