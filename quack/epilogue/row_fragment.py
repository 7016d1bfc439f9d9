"""Fragments whose threads hold one row each: what tcgen05.ld.32x32b makes of accumulators in tensor memory.

Warp w of a warpgroup reaches lanes 32 w ... 32 w + 31 of tensor memory and reads consecutive columns of them, so thread t has
row t of a 128-row slab, and register v is column v. What goes along a row needs no other thread; what goes along a column is
an exchange among the 32 lanes of a warp.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from ..cute_dtype import CUTE_DTYPE
from ..dsl.barrier import WARPGROUP_THREADS
from ..gemm_config import Major, OperandSpec
from .fragment_layout import BlockElement, FragmentLayout, RowTotals, exchange_halves

LANES = 32
VECTOR_BITS = 128  # the widest access of shared memory
CHUNK, PERIOD = 16, 8  # the 128-byte swizzle: bytes that it moves as one; lines of 128 bytes after which it begins anew


@dataclass(frozen=True)
class RowFragment(FragmentLayout):
    """The layout above. thread: in the warpgroup."""

    thread: Int32
    slab_m = 128
    rows_per_slab = 1
    row_lanes = ()
    row_leader = 0
    turns = True
    is_by_subtile = True
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

    def turn(self, values: cute.Tensor) -> None:
        """A transposition of 32 x 32 elements, but for the elements of one 32-bit word, which stay together: with w of them, bit
        k of the lane and bit k of w times the register change places from the highest to that of w. Its own inverse."""
        lane = cute.arch.lane_idx()
        words = cute.recast_tensor(values, Int32)
        packed = 32 // values.element_type.width
        for first in range(0, cute.size(words) // (LANES // packed) * (LANES // packed), LANES // packed):
            for mask in (bit for bit in self.col_lanes if bit >= packed):
                is_upper = lane & mask != 0
                for low in (q for q in range(first, first + LANES // packed) if q * packed & mask == 0):
                    high = low + mask // packed
                    sent = Int32(cutlass.select_(is_upper, words[low], words[high]))
                    received = cute.arch.shuffle_sync_bfly(sent, mask)
                    words[low], words[high] = (
                        Int32(cutlass.select_(is_upper, received, words[low])),
                        Int32(cutlass.select_(is_upper, words[high], received)),
                    )

    def turned_places(self, columns: int, width: int) -> list[tuple[Int32, Int32]]:
        lane, packed = cute.arch.lane_idx(), 32 // width
        row, column = self.thread - lane + lane % packed, lane // packed * packed
        whole = columns // LANES * LANES
        turned = [
            (row + v % LANES // packed * packed, column + (v // LANES * LANES + v % packed)) for v in range(whole)
        ]
        return turned + [(self.thread, Int32(v)) for v in range(whole, columns)]

    def store_copy(self, spec: OperandSpec, columns: int) -> Optional[cute.TiledCopy]:
        """Contiguous rows: vectors. Contiguous columns: None, a warp's lanes access elements side by side."""
        if spec.major is Major.OUTER:
            return None
        dtype = CUTE_DTYPE[spec.dtype]
        width = min(columns, VECTOR_BITS // dtype.width)
        atom = cute.make_copy_atom(cute.nvgpu.CopyUniversalOp(), dtype, num_bits_per_copy=width * dtype.width)
        threads = cute.make_layout((WARPGROUP_THREADS, 1))
        return cute.make_tiled_copy_tv(atom, threads, cute.make_layout((1, width)))

    def write_stage(self, copy: Optional[cute.TiledCopy], values: cute.Tensor, smem: cute.Tensor, stage: Int32) -> None:
        if copy is None:
            for n, columns in enumerate(self._columns(smem, stage)):
                for i in range(cute.size(columns)):
                    columns[i] = values[n + i * PERIOD]
        else:
            part = copy.get_slice(self.thread).partition_D(smem)[None, None, None, stage]
            cute.copy(copy, cute.make_tensor(values.iterator, cute.make_layout(part.shape)), part)

    def load_copy(self, spec: OperandSpec, columns: int) -> Optional[cute.TiledCopy]:
        return self.store_copy(spec, columns)

    def read_stage(self, copy: Optional[cute.TiledCopy], smem: cute.Tensor, stage: Int32) -> cute.Tensor:
        values = cute.make_rmem_tensor(cute.size(smem, mode=[1]), smem.element_type)
        if copy is None:
            for n, columns in enumerate(self._columns(smem, stage)):
                for i in range(cute.size(columns)):
                    values[n + i * PERIOD] = columns[i]
        else:
            part = copy.get_slice(self.thread).partition_D(smem)[None, None, None, stage]
            cute.autovec_copy(part, cute.make_tensor(values.iterator, cute.make_layout(part.shape)))
        return values

    def _columns(self, smem: cute.Tensor, stage: Int32) -> list[cute.Tensor]:
        """This thread's elements in columns n, n + 8, ... for n < 8, of a stage with contiguous columns.

        The 128-byte swizzle makes chunk c of column n chunk c ^ n % 8, so 8 addresses and constants from there will do, where
        CuTe computes every element's by itself: four instructions an element.
        """
        dtype = smem.element_type
        size = dtype.width // 8
        column, period = (cute.crd2idx((0, n, 0), smem.layout) * size for n in (1, PERIOD))
        assert column == CHUNK * PERIOD and period % (column * PERIOD) == 0, smem
        first = smem.iterator.toint() + cute.crd2idx((self.thread, 0, stage), smem.layout) * size
        layout = cute.make_layout(cute.size(smem, mode=[1]) // PERIOD, stride=period // size)
        found = []
        for n in range(PERIOD):
            address = (first ^ n * CHUNK) + n * column
            found.append(
                cute.make_tensor(cute.make_ptr(dtype, address, cute.AddressSpace.smem, assumed_align=size), layout)
            )
        return found
