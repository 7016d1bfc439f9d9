"""Loads of a gathered A by TMA (`use_tma_gather`): gather4 takes four lines of a matrix, wherever they are.

Panels and lines are those of `execution.line_copier`, and so is where they lie in shared memory. A k tile of 128 bytes a row is 32
groups of four lines of 128 bytes, so the load warp's lanes issue one instruction each, where copies would take two warps' 16-byte
cp.async, two barriers' arrivals and a proxy fence. Lines behind the problem's last one have the number -1, and TMA makes them zero.
"""

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, Uint8
from cutlass.cute.nvgpu import cpasync
from cutlass.pipeline import PipelineState

from ..dsl.tma import descriptor_address, load_four_lines
from ..execution.cta import CtaContext
from ..execution.line_copier import LINE_BYTES, WARP, GatherTile, gather_tile
from ..execution.load import LoadRoles
from ..gemm_base import TmaOperand
from ..gemm_problem_adapter import GatheredLines, Operand
from ..gemm_work import WorkDesc

GROUP = 4  # lines of one instruction
NO_LINE = -1


@dataclass(frozen=True)
class LineGatherer:
    """One lane's part in loading the k tiles of one work: groups of lines lane mod groups, lane mod groups + 32, ..., of the panels
    that lanes with the same groups share out.

    descriptor: of A, with boxes of 128 bytes of one line. target: shared address of stage 0.
    """

    tile: GatherTile
    lines: GatheredLines
    descriptor: Int64
    target: Int32
    is_pair: bool

    @property
    def groups(self) -> int:
        return self.tile.lines // GROUP

    @property
    def sharers(self) -> int:
        """Lanes with the same groups of lines."""
        return max(WARP // self.groups, 1)

    @cute.jit
    def load_indices(self, first_line: Int32) -> tuple:
        """For the tile that begins at this line of the problem: the lines of A of this lane's groups."""
        found = []
        for first in cutlass.range_constexpr(0, self.groups, WARP):
            group = first + cute.arch.lane_idx() % min(self.groups, WARP)
            for i in cutlass.range_constexpr(GROUP):
                line = first_line + group * GROUP + i
                index = Int32(NO_LINE)
                if line < self.lines.count:
                    index = self.lines.indices[self.lines.first + line]
                found.append(index)
        return tuple(found)

    @cute.jit
    def load_tile(self, indices: tuple, element: Int32, stage: Int32, barrier: Int32):
        """Issue the loads of a tile that begins at `element` of its lines."""
        lane, panel_bytes = cute.arch.lane_idx(), self.tile.lines * LINE_BYTES
        for i in cutlass.range_constexpr(len(indices) // GROUP):
            lines = indices[GROUP * i : GROUP * (i + 1)]
            group = i * WARP + lane % min(self.groups, WARP)
            for first in cutlass.range_constexpr(0, self.tile.panels, self.sharers):
                panel = first + lane // min(self.groups, WARP)
                place = stage * self.tile.stage_bytes + panel * panel_bytes + group * (GROUP * LINE_BYTES)
                start = element + panel * (LINE_BYTES // self.tile.element_bytes)
                load_four_lines(self.target + place, self.descriptor, start, lines, barrier, self.is_pair)


def as_bytes(packed: cute.Tensor) -> cute.Tensor:
    """(M, K / 2, L) of (M, K, L) with two elements a byte along K."""
    m, k, batch = packed.shape
    row, _, step = packed.stride
    layout = cute.make_layout((m, k // 2, batch), stride=(row // 2, 1, step // 2))
    return cute.make_tensor(cute.recast_ptr(packed.iterator, dtype=Uint8), layout)


class TmaGatherRole(LoadRoles):
    """A by gather4, B by ordinary loads, both by warp 0."""

    def make_gathered(self, mA: cute.Tensor) -> TmaOperand:
        """Host. A descriptor of A as a matrix, with boxes of 128 bytes of one line."""
        if not self.config.use_tma_gather:
            return super().make_gathered(mA)
        if cutlass.const_expr(self.specs.a.dtype.is_packed):
            mA = as_bytes(mA)
        swizzle, width = self.smem_layout_a().inner, LINE_BYTES * 8 // mA.element_type.width
        box, stride = (
            ((1, width), (width, 1)) if gather_tile(self.specs.a, 1, 1).is_by_row else ((width, 1), (1, width))
        )
        layout = cute.make_composed_layout(swizzle, 0, cute.make_layout(box, stride=stride))
        return TmaOperand(
            *cpasync.make_tiled_tma_atom(cpasync.CopyBulkTensorTileG2SOp(), mA[None, None, 0], layout, box)
        )

    @cute.jit
    def load_work(self, cta: CtaContext, work: WorkDesc, state: PipelineState) -> PipelineState:
        if cutlass.const_expr(not self.gathers_a):
            return LoadRoles.load_work(self, cta, work, state)
        tile_m, _, tile_k = self.tile_mnk
        _, b_mask = self.multicast_masks(cta.place)
        b_shares, b_descriptor = self.partition_b(cta, work), self.descriptor(cta.problem, Operand.B, work)
        tile = gather_tile(self.specs.a, tile_m, tile_k)
        gatherer = LineGatherer(
            tile=tile,
            lines=self.gathered_lines(cta.problem, work),
            descriptor=descriptor_address(cta.operands.a.atom),
            target=cta.smem.a.iterator.toint(),
            is_pair=self.config.is_pair,
        )
        scales = self.partition_scales(cta, work)
        row, width = work.tile_m * tile_m, tile.panels * LINE_BYTES // tile.element_bytes
        first, count = self.k_range(cta.problem, work, tile_k)
        line, element = (row, Int32(0)) if cutlass.const_expr(tile.is_by_row) else (Int32(first * tile_k), row)
        indices = gatherer.load_indices(line)
        for step in cutlass.range(count, unroll=1):
            k_tile = first + step
            following = indices
            if cutlass.const_expr(tile.is_by_row):
                element = k_tile * width
            else:
                line = k_tile * tile_k
                following = gatherer.load_indices(line + tile_k)
            cta.ab.producer_acquire(state)
            full = cta.ab.producer_get_barrier(state)
            gatherer.load_tile(indices, element, state.index, full.toint())
            self.load_scales(cta, scales, k_tile, (state, full))
            self.copy_shares(cta.place, cta.operands.b, b_shares, k_tile, (state, full), b_mask, b_descriptor)
            indices = following
            state.advance()
        return state
