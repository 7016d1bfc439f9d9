"""The beginning of a kernel: shared memory, barriers, and the producing warps."""

from typing import Any, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, pipeline
from cutlass.cute.nvgpu import cpasync
from cutlass.memory import SmemAllocator

from ..draws import RESPONSE_WORDS, CancelDraws, SchedulerDraws
from ..gemm_base import Operands
from ..gemm_resources import WORK_RING_STAGES
from ..work_stream import slot_words
from .cta import DRAW_WARP, GATHER_WARP, LOAD_C_WARP, LOAD_WARP, CtaContext
from .gather import GatherRoles


class ProducerRoles(GatherRoles):
    """Set-up of a CTA, and which warp produces what."""

    @cute.jit
    def set_up(self, operands: Operands, problem: Any, schedule: Any) -> CtaContext:
        """All threads: shared memory and barriers, known to the whole cluster when this returns."""
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        rank = cute.arch.make_warp_uniform(cute.arch.block_idx_in_cluster())
        cta_m, cta_n, _ = cute.make_layout((*self.cluster_mn, 1)).get_flat_coord(rank)
        allocator = SmemAllocator()
        barriers = allocator.allocate_array(
            Int64, 2 * (self.resources.ab_stages + self.resources.c_stages + WORK_RING_STAGES) + 1
        )
        cancels = None
        if cutlass.const_expr(self.cancels):
            cancels = CancelDraws(
                allocator.allocate_array(Int64, 1),
                allocator.allocate_array(Int32, RESPONSE_WORDS, byte_alignment=4 * RESPONSE_WORDS),
            )
        slots = allocator.allocate_array(Int32, slot_words(self.scheduler) * WORK_RING_STAGES, byte_alignment=16)
        smem = self.allocate_smem(allocator)
        ab_pipeline = self.make_ab_pipeline(barriers)
        c_pipeline = self.make_c_pipeline(barriers + 2 * self.resources.ab_stages)
        works = self.make_work_stream(schedule, barriers, slots, cta_m, cta_n)
        if cutlass.const_expr(self.scheduler.is_broadcast):
            if warp == DRAW_WARP:
                with cute.arch.elect_one():
                    works.ring.initialise()
                    if cutlass.const_expr(self.cancels):
                        cancels.initialise()
        cluster_shape = cute.make_layout(self.cluster_mn)
        pipeline.pipeline_init_arrive(cluster_shape, is_relaxed=True)
        if warp == LOAD_WARP:
            if cutlass.const_expr(operands.a.atom is not None):
                cpasync.prefetch_descriptor(operands.a.atom)
            cpasync.prefetch_descriptor(operands.b.atom)
        pipeline.pipeline_init_wait(cluster_shape)
        cute.arch.griddepcontrol_wait()
        return CtaContext(operands, smem, ab_pipeline, c_pipeline, works, problem, cta_m, cta_n, cancels)

    @cute.jit
    def produce(self, cta: CtaContext, counter: Optional[cute.Tensor]):
        """The producing warps, 0 to 3."""
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        if cutlass.const_expr(self.copies_a and self.multiplies):
            if warp == LOAD_WARP or warp == GATHER_WARP:
                self.gather_operands(cta, warp == LOAD_WARP)
        elif cutlass.const_expr(self.multiplies):
            if warp == LOAD_WARP:
                self.load_operands(cta)
        if cutlass.const_expr(cta.c is not None):
            if warp == LOAD_C_WARP:
                self.load_c(cta)
        if cutlass.const_expr(self.scheduler.is_broadcast):
            if warp == DRAW_WARP and cute.arch.make_warp_uniform(cute.arch.block_idx_in_cluster()) == 0:
                cta.works.draw_all(SchedulerDraws(counter) if cta.cancels is None else cta.cancels)
