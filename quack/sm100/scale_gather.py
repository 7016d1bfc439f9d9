"""Scales of an A whose rows are picked by index: a warp copies them from where the rows have theirs to where the tile has its own.

The scales of A come as for a dense A, one row of them for each row that may be picked, so that tokens are quantised once, however
many experts they go to. The four scales of a row in a block are 4 bytes, and a row has another place in the tile's blocks than in
A's: no TMA box has such parts. So while warp 0 loads the rows by gather4, warp 3 copies their scales with cp.async of 4 bytes, a lane
those of rows lane, lane + 32, lane + 64 and lane + 96 of the tile, which are neighbours in its blocks. Waiting, the fence and the
arrival are those of `execution.gather`.

A word of 4 bytes costs the L2 a sector of 32: as much as the rows of nvfp4 themselves, a quarter of those of mxfp8.
"""

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64
from cutlass.pipeline import PipelineUserType, make_pipeline_state

from ..block_scales import BLOCK_BYTES, BLOCK_ROWS, BLOCK_SCALES, BLOCK_WORDS, WORD_BYTES
from ..dsl.copy import copy_word_async
from ..execution.cta import CtaContext
from ..execution.gather import GatherRoles, GatherState
from ..gemm_problem_adapter import GatheredLines
from ..gemm_work import WorkDesc

LANES = 32
QUARTERS = BLOCK_ROWS // LANES  # rows of a tile that a lane has


@dataclass(frozen=True)
class ScaleCopier:
    """One lane's part in gathering the scales of A for one work.

    addresses: of the first scales of its rows. sizes: bytes of a word that there are, 4 or, behind the problem's last row, 0. is_whole:
    whether there are all rows. blocks: along K that A has. tile_blocks: of a k tile. target: shared address of its words in stage 0.
    """

    addresses: tuple
    sizes: tuple
    is_whole: cutlass.Boolean
    blocks: Int32
    tile_blocks: int
    target: Int32

    @cute.jit
    def copy_tile(self, k_tile: Int32, stage: Int32):
        """Issue the copies of a k tile into a stage."""
        if self.is_whole and (k_tile + 1) * self.tile_blocks <= self.blocks:
            self.copy_words(k_tile, stage, False)
        else:
            self.copy_words(k_tile, stage, True)

    @cute.jit
    def copy_words(self, k_tile: Int32, stage: Int32, may_lack: cutlass.Constexpr[bool]):
        """may_lack: whether some of them do not exist, and become 0."""
        for i in cutlass.range_constexpr(self.tile_blocks):
            block = k_tile * self.tile_blocks + i
            target = self.target + (stage * self.tile_blocks + i) * BLOCK_BYTES
            for quarter in cutlass.range_constexpr(QUARTERS):
                size = None
                if cutlass.const_expr(may_lack):
                    size = Int32(cutlass.select_(block < self.blocks, self.sizes[quarter], Int32(0)))
                source = self.addresses[quarter] + Int64(block) * BLOCK_BYTES
                copy_word_async(target + quarter * BLOCK_SCALES, source, size)


@cute.jit
def make_scale_copier(
    mS: cute.Tensor, sS: cute.Tensor, lines: GatheredLines, first_row: Int32, tile_blocks: cutlass.Constexpr[int]
) -> ScaleCopier:
    """mS: words (row blocks, words, 1) in global memory; sS (1, words of a k tile, stages). first_row: of the tile in its problem."""
    lane, pitch = cute.arch.lane_idx(), Int64(mS.stride[0]) * WORD_BYTES
    addresses, sizes = [], []
    for quarter in cutlass.range_constexpr(QUARTERS):
        line = first_row + quarter * LANES + lane
        row, size = Int32(0), Int32(0)
        if line < lines.count:
            row = lines.indices[lines.first + line]
            size = Int32(BLOCK_SCALES)
        place = row % LANES * (BLOCK_SCALES * QUARTERS) + row % BLOCK_ROWS // LANES * BLOCK_SCALES
        addresses.append(mS.iterator.toint() + Int64(row // BLOCK_ROWS) * pitch + Int64(place))
        sizes.append(size)
    return ScaleCopier(
        addresses=tuple(addresses),
        sizes=tuple(sizes),
        is_whole=lines.count - first_row >= BLOCK_ROWS,
        blocks=Int32(mS.shape[1]) // BLOCK_WORDS,
        tile_blocks=tile_blocks,
        target=sS.iterator.toint() + lane * (BLOCK_SCALES * QUARTERS),
    )


class ScaleGatherRole(GatherRoles):
    """Warp 3, beside warp 0, which loads everything else."""

    @cute.jit
    def gather_scales(self, cta: CtaContext):
        """Stream the scales of A for the k tiles of every work through the ring of A and B."""
        first = make_pipeline_state(PipelineUserType.Producer, self.resources.ab_stages)
        state = GatherState(first, first.clone(), Int32(0))
        cursor = cta.works.first()
        while cursor.work.is_valid:
            state = self.gather_scales_of(cta, cursor.work, state)
            cursor = cta.works.next(cursor)
        self.hand_in_all(cta, state)

    @cute.jit
    def gather_scales_of(self, cta: CtaContext, work: WorkDesc, gather: GatherState) -> GatherState:
        """Those of one work; as `gather_work`."""
        copier = make_scale_copier(
            cta.operands.scales[0].tensor,
            cta.smem.scales[0],
            self.gathered_lines(cta.problem, work),
            work.tile_m * BLOCK_ROWS,
            self.scale_boxes[0][1] // BLOCK_WORDS,
        )
        state, oldest, pending = gather
        lag = self.resources.gather_lag
        first, k_tiles = self.k_range(cta.problem, work, self.config.tile_k)
        for step in cutlass.range(k_tiles, unroll=1):
            cta.ab.sync_object_empty.wait(state.index, state.phase)
            copier.copy_tile(Int32(first + step), state.index)
            cute.arch.cp_async_commit_group()
            state.advance()
            pending += 1
            if pending > lag:
                oldest = self.hand_in(cta, lag, oldest)
                pending -= 1
        result = GatherState(state, oldest, pending)
        if k_tiles < lag:
            result = self.hand_in_all(cta, result)
        return result
