"""Fragments of an M-major fp32 A, from shared memory into the registers that wgmma takes A from.

wgmma reads 32-bit operands in shared memory K-major only, but A may come from registers, and these are filled by plain loads.
In shared memory (128-byte swizzle) the tile consists of panels of 32 rows; a panel has one line of 128 bytes for each k, and
row m of the panel lies in chunk (m / 4) ^ (k mod 8) of the line, 16 bytes each.

Of a slab (64 rows) and 8 k, lane 4 g + t of warp w holds rows 16 w + g + 8 j at k = t + 4 i, in register 2 i + j. Were all
lanes to load the same (i, j), t = 0, 1 would meet in the same banks, and 2, 3. So lanes with odd t load 4 k further and 4 k
back, and exchange the two in registers: no conflicts, two more instructions for two loads.

The stage may be handed back to TMA without a proxy fence: wgmma has read the registers by then, so the loads have returned.
"""

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutlass import AddressSpace, Boolean, Int32, TFloat32

from ..dsl.barrier import WARPGROUP_THREADS
from ..dsl.compat import WGMMA_TF32_K
from ..gemm_resources import SLAB_M

LINE_BYTES = 128
PANEL_ROWS = 32
ROW_STEP = 2 << 4  # XOR: 8 rows on are 2 chunks on
K_STEP = 4 * LINE_BYTES | 4 << 4  # XOR: 4 k on are 4 lines on, where the swizzle moves chunks by 4


@dataclass(frozen=True)
class ColumnReader:
    """One thread's part in reading the tiles of A.

    first: shared address of its element at i = j = 0 (odd t: at i = 1) of slab 0, k = 0, stage 0.
    is_odd: whether it exchanges. tile_k in elements; slab_bytes, stage_bytes: from slab to slab of this warpgroup and from
    stage to stage.
    """

    first: Int32
    is_odd: Boolean
    tile_k: int
    slab_bytes: int
    stage_bytes: int

    @property
    def k_blocks(self) -> int:
        """wgmma of one k tile and slab."""
        return self.tile_k // WGMMA_TF32_K

    @cute.jit
    def load(self, fragments: cute.Tensor, slabs: cutlass.Constexpr[int], first_block: cutlass.Constexpr, stage: Int32):
        """fragments ((2, 2), slabs, blocks) of tf32: the k blocks from `first_block` on of a stage that has landed."""
        words = cute.recast_tensor(fragments, Int32)
        near = self.first + stage * self.stage_bytes
        for slab in cutlass.range_constexpr(slabs):
            for block in cutlass.range_constexpr(fragments.shape[2]):
                offset = slab * self.slab_bytes + (first_block + block) * WGMMA_TF32_K * LINE_BYTES
                for j in cutlass.range_constexpr(2):
                    row = near ^ (j * ROW_STEP)
                    x, y = load_word(row + offset), load_word((row ^ K_STEP) + offset)
                    words[(j, 0), slab, block] = Int32(cutlass.select_(self.is_odd, y, x))
                    words[(j, 1), slab, block] = Int32(cutlass.select_(self.is_odd, x, y))


def load_word(address: Int32) -> Int32:
    """32 bits of shared memory."""
    return cute.make_tensor(cute.make_ptr(Int32, address, AddressSpace.smem, assumed_align=4), cute.make_layout(1))[0]


def make_column_reader(sA: cute.Tensor, tile_mk: tuple[int, int], share: Int32, sharing: int) -> ColumnReader:
    """sA: fp32 (tile_m, tile_k, stages), its first byte at a multiple of 1024. The warpgroup's slabs are share, share + sharing, ..."""
    tile_m, tile_k = tile_mk
    thread = cute.arch.thread_idx()[0] % WARPGROUP_THREADS
    warp, g, t = thread // 32, thread % 32 // 4, thread % 4
    panel_bytes = tile_k * LINE_BYTES
    slab_bytes = SLAB_M // PANEL_ROWS * panel_bytes
    chunk = warp % 2 * 4 + g // 4
    first = share * slab_bytes + warp // 2 * panel_bytes + t * LINE_BYTES + (chunk ^ t) * 16 + g % 4 * 4
    return ColumnReader(
        first=sA.iterator.toint() + (first ^ (t % 2 * K_STEP)),
        is_odd=t % 2 == 1,
        tile_k=tile_k,
        slab_bytes=slab_bytes * sharing,
        stage_bytes=tile_m * panel_bytes // PANEL_ROWS,
    )


def make_fragments(slabs: int, blocks: int) -> cute.Tensor:
    """Registers for `ColumnReader.load`."""
    return cute.make_rmem_tensor(cute.make_layout(((2, 2), slabs, blocks)), TFloat32)
