"""The warps that fill shared memory by TMA."""

from typing import Any, NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Int32
from cutlass.pipeline import PipelineState, PipelineUserType, make_pipeline_state

from ..gemm_base import TmaOperand
from ..gemm_problem_adapter import NO_PROBLEM, Operand
from ..gemm_work import WorkDesc
from ..split_k_combine import is_last_part
from .clusters import Share, partition_load
from .cta import CtaContext
from .transport import OperandTransport


class ScaleLoad(NamedTuple):
    """A load of the scales of a k tile. mask: the CTAs that take it, None: this one. descriptor: the problem's own, if it has one."""

    operand: TmaOperand
    shares: tuple[Share, ...]
    mask: Any
    descriptor: Optional[cute.Pointer]


class LoadRoles(OperandTransport):
    """Loads of A and B, and of C."""

    loaded: tuple[Operand, ...] = (Operand.A, Operand.B)
    """What comes through the ring of A and B."""

    @cute.jit
    def load_operands(self, cta: CtaContext):
        """Warp 0: stream the k tiles of every work through the A/B ring."""
        state = make_pipeline_state(PipelineUserType.Producer, self.resources.ab_stages)
        held = Int32(NO_PROBLEM)
        cursor = cta.works.first()
        while cursor.work.is_valid:
            held = self.acquire(cta.problem, self.loaded, cursor.work, held)
            state = self.load_work(cta, cursor.work, state)
            cursor = cta.works.next(cursor)
            cta.works.mark_begun()
        cute.arch.griddepcontrol_launch_dependents()
        cta.ab.producer_tail(state)

    @cute.jit
    def load_work(self, cta: CtaContext, work: WorkDesc, state: PipelineState) -> PipelineState:
        """A and B tiles of one work; multicast A along cluster N and B along cluster M."""
        tile_m, _, tile_k = self.tile_mnk
        a_mask, b_mask = self.multicast_masks(cta.place)
        mA = self.operand(cta.problem, Operand.A, cta.operands.a.tensor, work)
        gA = cute.local_tile(mA, (tile_m, tile_k), (work.tile_m, None))  # (tile_m, tile_k, k tiles)
        a_shares = self.shares(
            cta.place, cta.operands.a.atom, (cta.smem.a, gA), cta.place.n, self.config.cluster_n, self.boxes[0]
        )
        b_shares = self.partition_b(cta, work)
        a_descriptor = self.descriptor(cta.problem, Operand.A, work)
        b_descriptor = self.descriptor(cta.problem, Operand.B, work)
        scales = self.partition_scales(cta, work)
        first, count = self.k_range(cta.problem, work, tile_k)
        for step in cutlass.range(count, unroll=1):
            k_tile = first + step
            cta.ab.producer_acquire(state)
            full = cta.ab.producer_get_barrier(state)
            self.load_scales(cta, scales, k_tile, (state, full))
            self.copy_shares(cta.place, cta.operands.a, a_shares, k_tile, (state, full), a_mask, a_descriptor)
            self.copy_shares(cta.place, cta.operands.b, b_shares, k_tile, (state, full), b_mask, b_descriptor)
            state.advance()
        return state

    def load_scales(
        self, cta: CtaContext, loads: tuple[ScaleLoad, ...], k_tile: Int32, to: tuple[PipelineState, cute.Pointer]
    ):
        """Issue those of a k tile. to: the stage and its barrier."""
        for load in loads:
            self.copy_shares(cta.place, load.operand, load.shares, k_tile, to, load.mask, load.descriptor)

    def partition_scales(self, cta: CtaContext, work: WorkDesc) -> tuple[ScaleLoad, ...]:
        """The scales that come with the k tiles of one work; none unless operands are block-scaled."""
        return ()

    def partition_b(self, cta: CtaContext, work: WorkDesc) -> tuple[Share, ...]:
        """What this CTA loads of the B tiles of one work."""
        ctas, place = self.mma_ctas, cta.place
        mB = self.operand(cta.problem, Operand.B, cta.operands.b.tensor, work)
        first = work.tile_n * ctas + place.m % ctas
        gB = cute.local_tile(mB, (self.b_rows, self.config.tile_k), (first, None))  # (rows, tile_k, k tiles)
        of_b = (cta.smem.b, gB)
        return self.shares(
            place, cta.operands.b.atom, of_b, place.m // ctas, self.config.cluster_m // ctas, self.boxes[1]
        )

    @cute.jit
    def load_c(self, cta: CtaContext):
        """Warp 2: stream the subtiles of C in the order in which the MMA warpgroups drain."""
        state = make_pipeline_state(PipelineUserType.Producer, self.resources.c_stages)
        held = Int32(NO_PROBLEM)
        cursor = cta.works.first()
        while cursor.work.is_valid:
            held = self.acquire(cta.problem, (Operand.C,), cursor.work, held)
            if cutlass.const_expr(self.combines):
                if is_last_part(cursor.work):
                    state = self.load_c_work(cta, cursor.work, state)
            else:
                state = self.load_c_work(cta, cursor.work, state)
            cursor = cta.works.next(cursor)
        cta.c.producer_tail(state)

    @cute.jit
    def load_c_work(self, cta: CtaContext, work: WorkDesc, state: PipelineState) -> PipelineState:
        """Subtiles of one work. Sharing warpgroups drain in lock step: slab round r, subtile e, then warpgroup g."""
        tile_m, tile_n, _ = self.tile_mnk
        epi_n, slab_m = self.resources.epi_n, self.layout_class.slab_m
        mC = self.operand(cta.problem, Operand.C, cta.operands.c.tensor, work)
        descriptor = self.descriptor(cta.problem, Operand.C, work)
        for slab_round in cutlass.range_constexpr(self.resources.slabs):
            for subtile in cutlass.range_constexpr(tile_n // epi_n):
                for sharer in cutlass.range_constexpr(self.sharing):
                    slab = slab_round * self.sharing + sharer
                    gC = cute.local_tile(
                        mC,
                        (slab_m, epi_n),
                        (
                            work.tile_m * (tile_m // slab_m) + slab,
                            work.tile_n * (tile_n // epi_n) + subtile,
                        ),
                    )
                    tCsC, tCgC = partition_load(cta.operands.c.atom, cta.smem.c, gC, 0, 1)
                    cta.c.producer_acquire(state)
                    cute.copy(
                        cta.operands.c.atom,
                        tCgC,
                        tCsC[None, state.index],
                        tma_bar_ptr=cta.c.producer_get_barrier(state),
                        tma_desc_ptr=descriptor,
                    )
                    state.advance()
        return state
