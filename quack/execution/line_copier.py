"""Loads of a gathered A: two producer warps copy its k tiles with 16-byte cp.async to where TMA would have put them.

In shared memory a tile of A consists of *panels*, and a panel of *lines* of 128 bytes. If K is contiguous, a line is a row
of the tile and a panel is 128 bytes of K; if M is contiguous, a line is one k and a panel is 64 elements of M. Either way
lines are what is gathered, chunk c (16 bytes) of line l of a panel lies at chunk c ^ (l mod 8) of it (the 128-byte swizzle),
and eight lines are 1 KB.

Who copies what: warp w of the two takes lines 64 j + 32 w .. + 32, block j after block. Of a block, lanes 8 q .. 8 q + 7
copy lines 8 q .. 8 q + 7 one after the other, a chunk each: every store of eight lanes fills a line, without bank conflicts,
and the index of a line reaches its eight lanes by one shuffle with an immediate operand, from the lane that has loaded it.

Lines behind the problem's last one and what lies behind the end of a line become zero: B is zero there, too, and 0 x NaN
is NaN.
"""

from dataclasses import dataclass
from typing import Optional

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64

from ..dsl.copy import CHUNK_BYTES, copy_chunk_async
from ..gemm_config import Major, OperandSpec
from ..gemm_problem_adapter import GatheredLines

GATHER_WARPS = 2
WARP = 32
LINE_BYTES = 128
SHARERS = LINE_BYTES // CHUNK_BYTES  # lanes that copy one line
WITHIN_SHARERS = (WARP - SHARERS) << 8 | (WARP - 1)  # shuffle operand: source lanes count from the first sharer


@dataclass(frozen=True)
class GatherTile:
    """Static shape of a tile of A (tile_m, tile_k) in shared memory.

    is_by_row: lines are rows (K contiguous), else columns. lines, panels: of the tile. element_bytes: of A.
    """

    is_by_row: bool
    lines: int
    panels: int
    element_bytes: int

    @property
    def blocks(self) -> int:
        """Blocks of 32 lines of a panel that one warp copies."""
        return self.lines // (WARP * GATHER_WARPS)

    @property
    def stage_bytes(self) -> int:
        return self.panels * self.lines * LINE_BYTES


def gather_tile(spec: OperandSpec, tile_m: int, tile_k: int) -> GatherTile:
    """How the tile of an A like this is gathered."""
    is_by_row = spec.major is Major.INNER
    lines, contiguous = (tile_m, tile_k) if is_by_row else (tile_k, tile_m)
    if spec.dtype.is_packed:  # counted in bytes
        return GatherTile(is_by_row, lines, spec.dtype.bytes_of(contiguous) // LINE_BYTES, 1)
    return GatherTile(is_by_row, lines, contiguous * spec.dtype.bytes // LINE_BYTES, spec.dtype.bytes)


@dataclass(frozen=True)
class LineCopier:
    """One lane's part in loading the k tiles of one work.

    warp: which of the two. lines: of this problem. address: of this lane's first chunk in line 0 of A.
    pitch: bytes from line to line. line_bytes: bytes of a line. target: shared address of this lane's first chunk in stage 0.
    """

    tile: GatherTile
    warp: Int32
    lines: GatheredLines
    address: Int64
    pitch: Int32
    line_bytes: Int32
    target: Int32

    @cute.jit
    def load_indices(self, first_line: Int32) -> tuple:
        """For the tile that begins at this line of the problem: the index that this lane keeps, for each block."""
        found = []
        for block in cutlass.range_constexpr(self.tile.blocks):
            line = first_line + (block * GATHER_WARPS + self.warp) * WARP + cute.arch.lane_idx()
            index = Int32(0)
            if line < self.lines.count:
                index = self.lines.indices[self.lines.first + line]
            found.append(index)
        return tuple(found)

    @cute.jit
    def copy_tile(self, indices: tuple, first_line: Int32, first_element: Int32, stage: Int32):
        """Issue the copies of the tile at (line, element of the contiguous mode) into a stage."""
        first_byte = first_element * self.tile.element_bytes
        lines_left, bytes_left = self.lines.count - first_line, self.line_bytes - first_byte
        # Most tiles are whole, and without sizes a copy takes 4 instructions instead of 11.
        if lines_left >= self.tile.lines and bytes_left >= self.tile.panels * LINE_BYTES:
            self.copy_lines(indices, first_byte, stage, None)
        else:
            self.copy_lines(indices, first_byte, stage, (lines_left, bytes_left))

    @cute.jit
    def copy_lines(self, indices: tuple, first_byte: Int32, stage: Int32, left: Optional[tuple]):
        """left: (lines, bytes of a line) of A from here on, where they may be fewer than the tile's."""
        address = self.address + Int64(first_byte)
        target = self.target + stage * self.tile.stage_bytes
        lane = cute.arch.lane_idx()
        lane_line = self.warp * WARP + lane // SHARERS * SHARERS
        sizes = [None] * self.tile.panels
        if cutlass.const_expr(left is not None):
            for panel in cutlass.range_constexpr(self.tile.panels):
                behind = left[1] - panel * LINE_BYTES - lane % SHARERS * CHUNK_BYTES
                sizes[panel] = cutlass.min(cutlass.max(behind, 0), CHUNK_BYTES)
        for block in cutlass.range_constexpr(self.tile.blocks):
            block_line = block * GATHER_WARPS * WARP
            for i in cutlass.range_constexpr(SHARERS):
                index = cute.arch.shuffle_sync(indices[block], i, mask_and_clamp=WITHIN_SHARERS)
                source = address + Int64(index) * Int64(self.pitch)
                swizzled = (target ^ (i * CHUNK_BYTES)) + (block_line + i) * LINE_BYTES
                for panel in cutlass.range_constexpr(self.tile.panels):
                    size = sizes[panel]
                    if cutlass.const_expr(left is not None):
                        size = Int32(cutlass.select_(block_line + i < left[0] - lane_line, size, Int32(0)))
                    shared = swizzled + panel * self.tile.lines * LINE_BYTES
                    copy_chunk_async(shared, source + panel * LINE_BYTES, size)


@cute.jit
def make_line_copier(
    tile: cutlass.Constexpr[GatherTile],
    warp: Int32,
    mA: cute.Tensor,
    sA: cute.Tensor,
    lines: GatheredLines,
) -> LineCopier:
    """mA (M, K, 1) in global memory; sA (tile_m, tile_k, stages), its first byte at a multiple of 1024."""
    lane = cute.arch.lane_idx()
    line_mode = 0 if cutlass.const_expr(tile.is_by_row) else 1
    lane_bytes = lane % SHARERS * CHUNK_BYTES
    return LineCopier(
        tile=tile,
        warp=warp,
        lines=lines,
        address=mA.iterator.toint() + Int64(lane_bytes),
        pitch=Int32(mA.stride[line_mode] * tile.element_bytes),
        line_bytes=Int32(mA.shape[1 - line_mode]) * tile.element_bytes,
        target=sA.iterator.toint() + (warp * WARP + lane // SHARERS * SHARERS) * LINE_BYTES + lane_bytes,
    )
