"""GEMM for Blackwell's data-centre GPUs: D (M, N, L) = epilogue(A (M, K, L) x B (N, K, L)^T), TMA in, tcgen05.mma into tensor
memory, TMA out, warp-specialised, persistent. sm_100a and sm_103a.

Tiles. A CTA computes 128 rows (the lanes of tensor memory) and tile_n columns, and `WorkDesc` counts such tiles. tile_m = 256 of
a `GemmConfig` is a *pair* (cta_group::2): two CTAs, neighbours along M in the cluster, have one 128 x tile_n tile each, one MMA of
256 rows multiplies both, and each CTA loads its own rows of A and half of B's rows. The pair's first CTA issues for both.

| role (warps) | waits on | signals | owns |
|---|---|---|---|
| load A/B (0) | `ab.empty[s]`, next work | `ab.full[s]` of the pair by TMA bytes, `ring.begun` | `sA[s]`, `sB[s]` until full |
| gather A (0 and 3, if by index) | `ab.empty[s]`, next work | `ab.full[s]` of the pair, once a warp | half of `sA[s]` until full |
| draw works (1 of CTA 0, if broadcast) | `ring.empty[s]`, `ring.begun` | `ring.full[s]`, every CTA | tile counter |
| load C (2, if by TMA) | `c.empty[e]`, next work | `c.full[e]` by TMA bytes | `sC[e]` until full |
| drain (4 to 7) | `acc.full[t]`, `c.full[e]`, next work | `acc.empty[t]`, `c.empty[e]`, store | accumulators t until empty, `sD` |
| multiply (8; of a pair, one) | `ab.full[s]`, `acc.empty[t]`, next work | `ab.empty[s]`, `acc.full[t]` | accumulators t until full |

| barrier | stages | arrivals to complete | in | first wait passes for |
|---|---|---|---|---|
| `ab.full` | ab_stages | 1 + bytes of the pair's A and B; gathered A: 1 + 2 warps a CTA + bytes of B | first CTA of a pair | - |
| `ab.empty` | ab_stages | MMA warps that read what this CTA loaded: pairs along M + CTAs along N - 1 | every CTA | load warp |
| `acc.full` | 2 | 1 | every CTA | - |
| `acc.empty` | 2 | draining warps of the pair | first CTA of a pair | MMA warp |
| `c.full` / `c.empty` | c_stages | 1 + bytes / 4 | every CTA | producer |
| `ring.full` / `ring.empty`, `ring.begun` | WORK_RING_STAGES, 1 | see `work_stream` | | drawing warp |
| EPILOGUE (named) | - | 128 | every CTA | - |
| TMEM (named) | - | 160: drain and multiply, once the memory is allocated | every CTA | - |

The accumulators of two tiles are in tensor memory, 2 x tile_n of its 512 columns: one is drained while the other is multiplied. The
drain gives a tile back right behind its last load, before the last subtile's mixins and stores; a work without k tiles is
committed like any other, and the drain clears what nothing was multiplied into.

Block-scaled operands need columns too, and with tile_n = 256 leave room for one tile's accumulators only (`blockscaled`).

Tail: load warps wait until every stage is empty again and the first CTA's MMA warp until its last accumulators are, because peers
signal these barriers; tensor memory is freed by both CTAs of a pair together. No deadlock: loads wait only for MMA, MMA only for
loads and for the drain of an *earlier* tile, the drain only for MMA and C loads. Where drains wait for other CTAs (split-K), those
are of works that come earlier in the order of works, see `split_works`.

Registers. 9 warps leave 168 registers a thread, more than any role needs, so none are moved between warps (`setmaxnreg`).

Why the main loop is bound by the MMA (bf16, 256 x 256 x 64 of a pair; figures per SM, sources in `arch`):

| per k tile | bytes | clocks |
|---|---|---|
| MMA: 128 x 256 x 64 FMA | | 512 at 4096 a clock |
| tensor cores read A (16 KB) and this CTA's half of B (16 KB) once each | 32 KB | 256 at 128 bytes |
| TMA writes the same | 32 KB | 256, in sum 512: no less than the MMA, but no more |
| from the L2, of which a cluster of 2 x 2 fetches A once for two CTAs | 32, 24 KB | 512, 384 at 64 bytes |

One CTA alone (128 x 256 x 64) has to read and write the whole of B, 48 KB each way: 768 clocks. At K = 4096 the main loop of a
tile takes 64 x 512 = 32768 clocks. Its epilogue: 128 x 256 accumulators, 64 a clock through 4 warps' cvt.rn.bf16x2 (16 lanes a
clock, two elements each) and as much again to load and store them, 64 KB into and out of shared memory (1024 clocks): less
than 2500 clocks beside the next main loop, 8 %. One draining warpgroup is enough down to K = 512 or so.

Names: m whole gmem, g gmem tile, s smem, t tensor memory, r registers; tCrA = descriptors of A as the MMA takes them, tCtAcc =
accumulators as the MMA writes them, tAcc = as (row, column).
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32, pipeline
from cutlass.cute.nvgpu import OperandMajorMode, cpasync, tcgen05
from cutlass.experimental.primitives import tcgen05_fence
from cutlass.memory import TmemAllocator
from cutlass.pipeline import PipelineState, PipelineTmaUmma, PipelineUmmaAsync, PipelineUserType, make_pipeline_state
from cutlass.utils import sm100 as sm100_utils

from ..cute_dtype import stored_dtype
from ..dsl.barrier import WARPGROUP_THREADS, NamedBarrierId, sync_warpgroup
from ..epilogue.row_fragment import RowFragment
from ..execution.cta import CtaContext
from ..execution.drain import DrainRole
from ..execution.producers import ProducerRoles
from ..gemm_base import Operands, is_inner_major
from ..gemm_config import GemmConfig, OperandSpec
from ..gemm_epilogue_plan import EpilogueState
from ..gemm_problem_adapter import NO_PROBLEM
from ..gemm_work import WorkDesc
from .resources import CTA_M, resources
from .tensor_memory import TmemAccumulators
from .tma_gather import TmaGatherRole

FIRST_DRAIN_WARP, MMA_WARP = 4, 8


@dataclass(frozen=True)
class DrainTeam:
    """What the draining warpgroup holds; see `DrainRole`. sums: of the work at hand. It is alone, so index and share are 0."""

    sums: Optional[TmemAccumulators]
    layout: RowFragment
    mixins: tuple
    index: Int32
    share: Int32


class DrainState(NamedTuple):
    """What the draining warpgroup advances from work to work."""

    acc: PipelineState
    epilogue: EpilogueState
    held: Int32  # see `ProblemAdapter.acquire`


class MultiplyState(NamedTuple):
    """What the MMA warp advances."""

    ab: PipelineState
    acc: PipelineState


class GemmSm100(TmaGatherRole, DrainRole, ProducerRoles):
    """Execution on sm_100a and sm_103a. Operands come from the adapter mixin, the commit from the plan mixin (see `compose`)."""

    budget = staticmethod(resources)
    layout_class = RowFragment
    warpgroups = sharing = 1

    @staticmethod
    def sharing_of(config: GemmConfig) -> int:
        return 1

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mma_ctas = 2 if self.config.is_pair else 1
        self.cta_group = tcgen05.CtaGroup.TWO if self.config.is_pair else tcgen05.CtaGroup.ONE

    # ---- operands in shared memory --------------------------------------------------------------------------------

    def staged_layout(self, spec: OperandSpec, dtype, rows: int):
        """(rows, tile_k, ab_stages), as the MMA's descriptors can name it."""
        _, _, tile_k = self.tile_mnk
        kind = sm100_utils.get_smem_layout_atom_ab(major_mode(spec), dtype, (rows, tile_k))
        order = (0, 1, 2) if is_inner_major(spec) else (1, 0, 2)
        atom = tcgen05.make_smem_layout_atom(kind, dtype)
        return cute.tile_to_shape(atom, (rows, tile_k, self.resources.ab_stages), order)

    def smem_layout_a(self):
        return self.staged_layout(self.specs.a, stored_dtype(self.specs.a.dtype), CTA_M)

    def smem_layout_b(self):
        return self.staged_layout(self.specs.b, stored_dtype(self.specs.b.dtype), self.b_rows)

    def load_op(self, multicast: int):
        """Of a pair, both CTAs' loads signal the barrier of the first."""
        op = cpasync.CopyBulkTensorTileG2SOp if multicast == 1 else cpasync.CopyBulkTensorTileG2SMulticastOp
        return op(self.cta_group)

    def make_ab_pipeline(self, barriers) -> PipelineTmaUmma:
        """A/B ring: an MMA warp frees a stage of every CTA whose loads it has read."""
        _, pairs_m, ctas_n, _ = self.cluster_layout.shape
        return PipelineTmaUmma.create(
            num_stages=self.resources.ab_stages,
            producer_group=threads(1 + self.copying_warps),
            consumer_group=threads(pairs_m + ctas_n - 1),
            tx_count=self.stage_bytes,
            barrier_storage=barriers,
            cta_layout_vmnk=self.cluster_layout,
            defer_sync=True,
        )

    def make_acc_pipeline(self) -> PipelineUmmaAsync:
        """Accumulators: two tiles' in tensor memory."""
        return PipelineUmmaAsync.create(
            num_stages=self.resources.acc_stages,
            producer_group=threads(1),
            consumer_group=threads(4 * self.mma_ctas),
            cta_layout_vmnk=self.cluster_layout,
            defer_sync=True,
        )

    @cute.jit
    def arrive_full(self, cta: CtaContext, state: PipelineState):
        """Of a pair, at the barrier of the first CTA, whose MMA reads what both have copied."""
        barrier = cta.ab.producer_get_barrier(state)
        if cutlass.const_expr(self.config.is_pair):
            cute.arch.mbarrier_arrive(barrier, cute.arch.make_warp_uniform(cute.arch.block_idx_in_cluster()) // 2 * 2)
        else:
            cute.arch.mbarrier_arrive(barrier)

    @property
    def reading_warps(self) -> int:
        return super().reading_warps + (1 if self.multiplies else 0)

    # ---- MMA ------------------------------------------------------------------------------------------------------

    def make_tiled_mma(self) -> cute.TiledMma:
        """Of 128 rows, or of the 256 of a pair, and tile_n columns."""
        return sm100_utils.make_trivial_tiled_mma(
            self.a_dtype,
            self.b_dtype,
            major_mode(self.specs.a),
            major_mode(self.specs.b),
            Float32,
            self.cta_group,
            (CTA_M * self.mma_ctas, self.config.tile_n),
        )

    def make_tmem(self) -> TmemAllocator:
        """Allocated by the drain, and known to the MMA warp after a barrier."""
        reading = WARPGROUP_THREADS + (32 if self.multiplies else 0)
        return TmemAllocator(
            barrier_for_retrieve=pipeline.NamedBarrier(int(NamedBarrierId.TMEM), reading),
            allocator_warp_id=FIRST_DRAIN_WARP,
            is_two_cta=self.config.is_pair,
        )

    def accumulators(self, tiled_mma: cute.TiledMma, pointer: cute.Pointer) -> cute.Tensor:
        """(MMA, MMA_M, MMA_N, acc_stages) of this CTA in tensor memory."""
        shape = tiled_mma.partition_shape_C((CTA_M * self.mma_ctas, self.config.tile_n))
        return cute.make_tensor(
            pointer, tiled_mma.make_fragment_C(cute.append(shape, self.resources.acc_stages)).layout
        )

    # ---- kernel ---------------------------------------------------------------------------------------------------

    @cute.kernel
    def kernel(
        self,
        operands: Operands,
        problem: Any,
        schedule: Any,
        epilogue_arguments: Optional[tuple],
        counter: Optional[cute.Tensor],
        tiled_mma: cute.TiledMma,
    ):
        """Set up shared memory and barriers, then hand each warp its role."""
        acc, tmem = self.make_acc_pipeline(), self.make_tmem()
        cta = self.set_up(operands, problem, schedule)
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        if warp < FIRST_DRAIN_WARP:
            self.produce(cta, counter)
        elif warp < MMA_WARP:
            self.drain_works(cta, epilogue_arguments, acc, tmem)
        elif cutlass.const_expr(self.multiplies):
            self.multiply_works(cta, acc, tmem)

    @cute.jit
    def multiply_works(self, cta: CtaContext, acc: PipelineUmmaAsync, tmem: TmemAllocator):
        """The MMA warp. Of a pair, the first CTA's multiplies for both."""
        mma = self.make_tiled_mma()
        tmem.wait_for_alloc()
        tCtAcc = self.accumulators(mma, tmem.retrieve_ptr(Float32))
        state = MultiplyState(
            make_pipeline_state(PipelineUserType.Consumer, self.resources.ab_stages),
            make_pipeline_state(PipelineUserType.Producer, self.resources.acc_stages),
        )
        is_multiplying = cta.cta_m % self.mma_ctas == 0
        cursor = cta.works.first()
        while cursor.work.is_valid:
            if is_multiplying:
                state = self.multiply(cta, mma, acc, tCtAcc, cursor.work, state)
            cursor = cta.works.next(cursor)
        acc.producer_tail(state.acc)

    @cute.jit
    def multiply(
        self,
        cta: CtaContext,
        mma: cute.TiledMma,
        acc: PipelineUmmaAsync,
        tCtAcc: cute.Tensor,
        work: WorkDesc,
        state: MultiplyState,
    ) -> MultiplyState:
        """The main loop of one work."""
        fragments = self.mma_fragments(cta, mma, tCtAcc, work)
        ab, acc_state = state
        k_tiles = self.k_range(cta.problem, work, self.config.tile_k).count
        acc.producer_acquire(acc_state)
        tcgen05_fence("after_thread_sync")
        into = tCtAcc[None, None, None, acc_state.index]
        for step in cutlass.range(k_tiles, unroll=1):
            cta.ab.consumer_wait(ab)
            mma = self.multiply_tile(mma, fragments, into, ab.index, step)
            cta.ab.consumer_release(ab)
            ab.advance()
        acc.producer_commit(acc_state)
        acc_state.advance()
        return MultiplyState(ab, acc_state)

    @property
    def mma_tiler(self) -> tuple[int, int, int]:
        """Rows, columns and k of what the MMAs of a k tile multiply together."""
        return (CTA_M * self.mma_ctas, self.config.tile_n, self.config.tile_k)

    def mma_fragments(self, cta: CtaContext, mma: cute.TiledMma, tCtAcc: cute.Tensor, work: WorkDesc) -> Any:
        """What `multiply_tile` needs to know of the operands of one work: A and B as (MMA, MMA_M or N, MMA_K, STAGE)."""
        a, b, stages = stored_dtype(self.specs.a.dtype), stored_dtype(self.specs.b.dtype), self.resources.ab_stages
        sA = operand_view(cta.smem.a, sm100_utils.make_smem_layout_a(mma, self.mma_tiler, a, stages))
        sB = operand_view(cta.smem.b, sm100_utils.make_smem_layout_b(mma, self.mma_tiler, b, stages))
        return mma.make_fragment_A(sA), mma.make_fragment_B(sB)

    def multiply_tile(
        self, mma: cute.TiledMma, fragments: Any, into: cute.Tensor, stage: Int32, step: Int32
    ) -> cute.TiledMma:
        """Issue the MMAs of k tile `step` of a work, the very first of which overwrites the accumulators."""
        tCrA, tCrB = fragments
        for k in range(cute.size(tCrA, mode=[2])):
            mma.set(tcgen05.Field.ACCUMULATE, step != 0 if k == 0 else True)
            cute.gemm(mma, into, tCrA[None, None, k, stage], tCrB[None, None, k, stage], into)
        return mma

    # ---- drain ----------------------------------------------------------------------------------------------------

    @cute.jit
    def drain_works(
        self, cta: CtaContext, epilogue_arguments: Optional[tuple], acc: PipelineUmmaAsync, tmem: TmemAllocator
    ):
        """Warps 4 to 7: allocate tensor memory, drain the accumulators of every work, free it."""
        tmem.allocate(self.resources.tmem_columns)
        tmem.relinquish_alloc_permit()
        tmem.wait_for_alloc()
        pointer = tmem.retrieve_ptr(Float32)
        tAcc = self.accumulators(self.make_tiled_mma(), pointer)[(None, None), 0, 0, None]  # (128, tile_n, STAGE)
        thread = cute.arch.thread_idx()[0] % WARPGROUP_THREADS
        team = DrainTeam(
            sums=None,
            layout=RowFragment(thread),
            mixins=self.bind_mixins(cta, epilogue_arguments),
            index=Int32(0),
            share=Int32(0),
        )
        state = self.initial_drain_state()
        cursor = cta.works.first()
        while cursor.work.is_valid:
            state = self.drain_work(cta, team, acc, tAcc, cursor.work, state)
            cursor = cta.works.next(cursor)
        self.drain(cute.arch.make_warp_uniform(cute.arch.warp_idx()) == FIRST_DRAIN_WARP)
        sync_warpgroup(team.index)
        tmem.free(pointer, self.resources.tmem_columns)

    @cute.jit
    def initial_drain_state(self) -> DrainState:
        c = None
        if cutlass.const_expr(self.resources.c_stages > 0):
            c = make_pipeline_state(PipelineUserType.Consumer, self.resources.c_stages)
        acc = make_pipeline_state(PipelineUserType.Consumer, self.resources.acc_stages)
        return DrainState(acc, EpilogueState(c, Int32(0)), Int32(NO_PROBLEM))

    @cute.jit
    def drain_work(
        self,
        cta: CtaContext,
        team: DrainTeam,
        acc: PipelineUmmaAsync,
        tAcc: cute.Tensor,
        work: WorkDesc,
        state: DrainState,
    ) -> DrainState:
        """What there is to do before the accumulators are complete, then what comes after."""
        acc_state, epilogue, held = state
        ctx, mixin_states, held = self.begin_work(cta, team, work, held)
        if cutlass.const_expr(self.scratch_words > 0):
            sync_warpgroup(team.index)
        if cutlass.const_expr(self.multiplies):
            sums = TmemAccumulators(tAcc[None, None, acc_state.index], ctx.thread, acc, acc_state)
            acc.consumer_wait(acc_state)
            tcgen05_fence("after_thread_sync")
            if self.k_range(cta.problem, work, self.config.tile_k).count == 0:
                sums.clear()
        else:
            sums = TmemAccumulators(tAcc[None, None, 0], ctx.thread, None, None)
        team = replace(team, sums=sums)
        is_complete = Boolean(True)
        if cutlass.const_expr(self.combines):
            is_complete = self.combine(self.partial_tile(cta, team, work))
        if cutlass.const_expr(not self.combines):
            epilogue = self.finish_tile(cta, team, work, (ctx, mixin_states), epilogue)
        elif cutlass.const_expr(self.finishes):
            if is_complete:
                epilogue = self.finish_tile(cta, team, work, (ctx, mixin_states), epilogue)
            else:
                sums.release()
        else:
            sums.release()
        acc_state.advance()
        return DrainState(acc_state, epilogue, held)


def threads(count: int) -> pipeline.CooperativeGroup:
    return pipeline.CooperativeGroup(pipeline.Agent.Thread, count)


def major_mode(spec: OperandSpec) -> OperandMajorMode:
    return OperandMajorMode.K if is_inner_major(spec) else OperandMajorMode.MN


def operand_view(smem: cute.Tensor, layout) -> cute.Tensor:
    """The same shared memory as the MMA divides it."""
    return cute.make_tensor(smem.iterator, layout.outer)
