"""The warps that fill shared memory by TMA."""

from typing import NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Int32
from cutlass.pipeline import PipelineState, PipelineUserType, make_pipeline_state

from ..gemm_problem_adapter import NO_PROBLEM, Operand
from ..gemm_work import WorkDesc
from ..split_k_combine import is_last_part
from .cta import CtaContext
from .transport import OperandTransport, partition_load


class ScaleLoad(NamedTuple):
    """A load of the scales of a k tile. smem (TMA, STAGE), gmem (TMA, k tiles). mask: the CTAs that take it, None: this one."""

    atom: cute.CopyAtom
    smem: cute.Tensor
    gmem: cute.Tensor
    mask: Optional[Int32]
    descriptor: Optional[cute.Pointer]


def load_scales(loads: tuple[ScaleLoad, ...], k_tile: Int32, stage: Int32, full: cute.Pointer) -> None:
    """Issue those of a k tile."""
    for load in loads:
        cute.copy(
            load.atom,
            load.gmem[None, k_tile],
            load.smem[None, stage],
            tma_bar_ptr=full,
            mcast_mask=load.mask,
            tma_desc_ptr=load.descriptor,
        )


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
        cluster_n = self.config.cluster_n
        a_mask, b_mask = self.multicast_masks(cta)
        mA = self.operand(cta.problem, Operand.A, cta.operands.a.tensor, work)
        gA = cute.local_tile(mA, (tile_m, tile_k), (work.tile_m, None))  # (tile_m, tile_k, k tiles)
        tAsA, tAgA = partition_load(cta.operands.a.atom, cta.smem.a, gA, cta.cta_n, cluster_n)
        tBsB, tBgB = self.partition_b(cta, work)
        a_descriptor = self.descriptor(cta.problem, Operand.A, work)
        b_descriptor = self.descriptor(cta.problem, Operand.B, work)
        scales = self.partition_scales(cta, work)
        first, count = self.k_range(cta.problem, work, tile_k)
        for step in cutlass.range(count, unroll=1):
            k_tile = first + step
            cta.ab.producer_acquire(state)
            full = cta.ab.producer_get_barrier(state)
            load_scales(scales, k_tile, state.index, full)
            cute.copy(
                cta.operands.a.atom,
                tAgA[None, k_tile],
                tAsA[None, state.index],
                tma_bar_ptr=full,
                mcast_mask=a_mask,
                tma_desc_ptr=a_descriptor,
            )
            cute.copy(
                cta.operands.b.atom,
                tBgB[None, k_tile],
                tBsB[None, state.index],
                tma_bar_ptr=full,
                mcast_mask=b_mask,
                tma_desc_ptr=b_descriptor,
            )
            state.advance()
        return state

    def partition_scales(self, cta: CtaContext, work: WorkDesc) -> tuple["ScaleLoad", ...]:
        """The scales that come with the k tiles of one work; none unless operands are block-scaled."""
        return ()

    def multicast_masks(self, cta: CtaContext) -> tuple[Optional[Int32], Optional[Int32]]:
        """The CTAs that take what this one loads of A and of B; None: itself alone."""
        cluster_m, cluster_n = self.cluster_mn
        cluster = self.cluster_layout
        coordinate = (cta.cta_m % self.mma_ctas, cta.cta_m // self.mma_ctas, cta.cta_n, 0)
        a_mask = b_mask = None
        if cluster_n > 1:
            a_mask = cute.make_layout_image_mask(cluster, coordinate, mode=2)
        if cluster_m > self.mma_ctas:
            b_mask = cute.make_layout_image_mask(cluster, coordinate, mode=1)
        return a_mask, b_mask

    def partition_b(self, cta: CtaContext, work: WorkDesc):
        """(smem, gmem) of this CTA's share of the B tiles of one work: (TMA, STAGE), (TMA, k tiles)."""
        ctas = self.mma_ctas
        mB = self.operand(cta.problem, Operand.B, cta.operands.b.tensor, work)
        first = work.tile_n * ctas + cta.cta_m % ctas
        gB = cute.local_tile(mB, (self.b_rows, self.config.tile_k), (first, None))  # (rows, tile_k, k tiles)
        return partition_load(cta.operands.b.atom, cta.smem.b, gB, cta.cta_m // ctas, self.config.cluster_m // ctas)

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
