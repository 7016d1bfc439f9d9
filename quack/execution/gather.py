"""The warps that fill shared memory with lines of A picked by index, and with B by TMA."""

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32
from cutlass.pipeline import PipelineState, PipelineUserType, make_pipeline_state

from ..gemm_work import WorkDesc
from .cta import CtaContext
from .line_copier import gather_tile, make_line_copier
from .load import LoadRoles


class GatherState(NamedTuple):
    """What a copying warp advances: the stage to fill next, the oldest one not handed in, and how many those are."""

    next: PipelineState
    oldest: PipelineState
    pending: Int32


class GatherRoles(LoadRoles):
    """Threads write A (generic proxy) and the tensor cores read it (async proxy): the copying warps wait for copies that they
    issued `gather_lag` k tiles ago, fence, and only then arrive, so the MMA warps need no fence. They ask for the next work with
    at most one work not handed in, so that the MMA warps cannot be waiting for them in turn."""

    @cute.jit
    def gather_operands(self, cta: CtaContext, is_leader: Boolean):
        """Warps 0 (the leader) and 3: as `load_operands`, but both copy A by index; B and the tail are the leader's."""
        first = make_pipeline_state(PipelineUserType.Producer, self.resources.ab_stages)
        state = GatherState(first, first.clone(), Int32(0))
        cursor = cta.works.first()
        while cursor.work.is_valid:
            state = self.gather_work(cta, cursor.work, is_leader, state)
            cursor = cta.works.next(cursor)
            if is_leader:
                cta.works.mark_begun()
        state = self.hand_in_all(cta, state)
        if is_leader:
            cute.arch.griddepcontrol_launch_dependents()
            cta.ab.producer_tail(state.next)

    @cute.jit
    def gather_work(self, cta: CtaContext, work: WorkDesc, is_leader: Boolean, gather: GatherState) -> GatherState:
        """As `load_work`. Where k is gathered, the indices of a k tile are loaded while its predecessor is copied."""
        tile_m, _, tile_k = self.tile_mnk
        _, b_mask = self.multicast_masks(cta)
        tBsB, tBgB = self.partition_b(cta, work)
        tile = gather_tile(self.specs.a, tile_m, tile_k)
        lines = self.gathered_lines(cta.problem, work)
        copier = make_line_copier(tile, Int32(not is_leader), cta.operands.a.tensor, cta.smem.a, lines)
        row = work.tile_m * tile_m
        first, k_tiles = self.k_range(cta.problem, work, tile_k)
        line, element = (row, Int32(0)) if cutlass.const_expr(tile.is_by_row) else (Int32(first * tile_k), row)
        indices = copier.load_indices(line)
        state, oldest, pending = gather
        lag = self.resources.gather_lag
        for step in cutlass.range(k_tiles, unroll=1):
            k_tile = first + step
            following = indices
            if cutlass.const_expr(tile.is_by_row):
                element = k_tile * tile_k
            else:
                line = k_tile * tile_k
                following = copier.load_indices(line + tile_k)
            if is_leader:
                cta.ab.producer_acquire(state)
                cute.copy(
                    cta.operands.b.atom,
                    tBgB[None, k_tile],
                    tBsB[None, state.index],
                    tma_bar_ptr=cta.ab.producer_get_barrier(state),
                    mcast_mask=b_mask,
                )
            else:
                cta.ab.sync_object_empty.wait(state.index, state.phase)
            copier.copy_tile(indices, line, element, state.index)
            cute.arch.cp_async_commit_group()
            pending += 1
            if pending > lag:
                oldest = self.hand_in(cta, lag, oldest)
                pending -= 1
            indices = following
            state.advance()
        result = GatherState(state, oldest, pending)
        if k_tiles < lag:
            result = self.hand_in_all(cta, result)
        return result

    @cute.jit
    def hand_in(self, cta: CtaContext, in_flight: cutlass.Constexpr[int], oldest: PipelineState) -> PipelineState:
        """One copying warp: signal its part of the oldest stage, when all but the `in_flight` newest have landed."""
        cute.arch.cp_async_wait_group(in_flight)
        cute.arch.fence_proxy("async.shared", space="cta")
        cute.arch.sync_warp()
        with cute.arch.elect_one():
            self.arrive_full(cta, oldest)
        oldest.advance()
        return oldest

    def arrive_full(self, cta: CtaContext, state: PipelineState):
        """One thread: a part of a stage has been copied."""
        cute.arch.mbarrier_arrive(cta.ab.producer_get_barrier(state))

    @cute.jit
    def hand_in_all(self, cta: CtaContext, state: GatherState) -> GatherState:
        """One copying warp: signal everything it issued."""
        oldest = state.oldest
        for _ in cutlass.range(state.pending, unroll=1):
            oldest = self.hand_in(cta, 0, oldest)
        return GatherState(state.next, oldest, Int32(0))
