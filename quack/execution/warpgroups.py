"""Kernels whose warpgroups multiply into registers and drain these registers themselves: wgmma and mma.sync.

Roles. Warpgroup 0 produces, warpgroups 1..n (n = 1, 2 or 3) multiply and drain. Cooperative: all MMA warpgroups share each
tile, slab (64 rows) s belonging to warpgroup s mod n. Ping-pong: two MMA warpgroups take turns, one multiplies while the
other drains.

| role (warps, registers) | waits on | signals | owns |
|---|---|---|---|
| load A/B (warp 0, 32-56) | `ab.empty[s]`, next work | `ab.full[s]` by TMA bytes, `ring.begun` | `sA[s]`, `sB[s]` until full |
| gather A (warps 0 and 3, if by index) | `ab.empty[s]`, next work | `ab.full[s]`, once a warp | half of `sA[s]` until full |
| draw works (warp 1 of CTA 0, if broadcast) | `ring.empty[s]`, `ring.begun` | `ring.full[s]`, every CTA | tile counter |
| load C (warp 2, if by TMA) | `c.empty[e]`, next work | `c.full[e]` by TMA bytes | `sC[e]` until full |
| MMA, epilogue (4 each, 160-240) | `ab.full[s]`, turn, `c.full[e]` | `ab.empty[s]`, turn, `c.empty[e]`, store | acc, `sD` |

| barrier | stages | arrivals to complete | first wait passes for | reused when |
|---|---|---|---|---|
| `ab.full` | ab_stages | 1 + bytes of A and B; gathered A: 1 + 2 warps + bytes of B | - | every k tile |
| `ab.empty` | ab_stages | warps of one consuming turn x (cluster_m + cluster_n - 1) | producer | every k tile |
| `c.full` / `c.empty` | c_stages | 1 + bytes / 4 (one warpgroup's warps) | producer | every subtile |
| `ring.full` / `ring.empty`, `ring.begun` | WORK_RING_STAGES, 1 | see `work_stream` | drawing warp | every work |
| EPILOGUE + g (named) | - | 128 | - | every subtile |
| MMA_ORDER + g (named) | - | 256: 128 wait, 128 pass the turn | warpgroup 0 (primed by 1) | every work |
| C_ORDER + g (named, ping-pong with `sC`) | - | the same, around the epilogue | warpgroup 0 (primed by 1) | every work |

Tail: the load warps wait until every stage is empty again, because peers of the cluster still signal this CTA's barriers;
store warps wait until the TMA has read `sD`. Cluster: `ab.empty` arrivals go to every CTA that multicast into the stage.
No deadlock: loads wait only for MMA, MMA only for loads and for the other warpgroup's *earlier* work, the epilogue only for C
loads, which are issued in work order by a warp that waits for nothing else.

PDL: every role waits for the previous grid (`griddepcontrol.wait`) after the set-up of barriers; the load warp lets the next
grid start once its last load is issued.

Names: m whole gmem, g gmem tile, s smem, r registers; tAsA = smem A as TMA partitions it, tCrA = A as the MMA partitions it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32
from cutlass.pipeline import PipelineState, PipelineUserType, make_pipeline_state

from ..dsl.barrier import WARPGROUP_THREADS, NamedBarrierId, pass_turn, sync_warpgroup, wait_turn
from ..epilogue.accumulators import RegisterAccumulators
from ..epilogue.fragment import MmaFragment
from ..epilogue.protocol import EpilogueContext
from ..gemm_base import Operands
from ..gemm_config import GemmConfig, mma_warpgroups
from ..gemm_epilogue_plan import EpilogueState
from ..gemm_problem_adapter import NO_PROBLEM
from ..gemm_work import WorkDesc
from ..split_k_combine import is_last_part
from .cta import CtaContext, SmemTensors
from .drain import DrainRole
from .producers import ProducerRoles


class MmaState(NamedTuple):
    """What an MMA warpgroup advances from work to work."""

    ab: PipelineState
    epilogue: EpilogueState
    held: Int32  # see `ProblemAdapter.acquire`


@dataclass(frozen=True)
class MmaTeam:
    """What one MMA warpgroup holds for the whole kernel.

    index: which warpgroup; share: which of a tile's interleaved slabs are its (0 for ping-pong).
    mma: what the arch kernel multiplies with, see `WarpgroupGemm.bind_mma`.
    layout: of the accumulators of a slab, those of an MMA for one warpgroup alone.
    """

    mma: Any
    accumulators: cute.Tensor  # (MMA, MMA_M, MMA_N): slab after slab
    layout: MmaFragment
    mixins: tuple
    index: Int32
    share: Int32

    @property
    def sums(self) -> RegisterAccumulators:
        """The accumulators as the epilogue takes them."""
        return RegisterAccumulators(self.accumulators)


class WarpgroupGemm(DrainRole, ProducerRoles):
    """All but the main loop. Warps of a warpgroup are stacked along M, 16 rows each, and hold accumulators as wgmma does."""

    layout_class = MmaFragment

    @staticmethod
    def sharing_of(config: GemmConfig) -> int:
        return 1 if config.pingpong else mma_warpgroups(config)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # A warpgroup waits for `c.full` by parity, so it must not be further than one round of the ring ahead of the other.
        self.orders_c = self.config.pingpong and self.resources.c_stages > 0
        self.warpgroups = self.resources.mma_warpgroups
        self.sharing = self.sharing_of(self.config)

    # ---- the arch kernel's ----------------------------------------------------------------------------------------

    def make_tiled_mma(self, warpgroups: Optional[int] = None) -> cute.TiledMma:
        """The MMA of `warpgroups` (default: all that share a tile) stacked along M, 64 rows each."""
        raise NotImplementedError

    def accumulator_shape(self, tiled_mma: cute.TiledMma):
        """(MMA, MMA_M, MMA_N) of one thread, compact: slab after slab, of each the two rows and columns of 8 columns after 8."""
        return tiled_mma.partition_shape_C((self.config.tile_m, self.config.tile_n))

    def bind_mma(self, smem: SmemTensors, tiled_mma: cute.TiledMma, share: Int32) -> Any:
        """Device, once per kernel: what `multiply` needs of the operands in shared memory."""
        raise NotImplementedError

    def multiply(
        self,
        cta: CtaContext,
        team: MmaTeam,
        slabs: cutlass.Constexpr[int],
        k_tiles: Int32,
        another_follows: Boolean,
        state: PipelineState,
    ) -> PipelineState:
        """Device, `@cute.jit`. The main loop of one work: the product's first `slabs` slabs into the accumulators, zero into the
        others; consumes k_tiles stages and calls `hand_over` when all is issued."""
        raise NotImplementedError

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
        cta = self.set_up(operands, problem, schedule)
        warpgroup_index = cute.arch.make_warp_uniform(cute.arch.thread_idx()[0] // WARPGROUP_THREADS)
        if warpgroup_index == 0:
            cute.arch.setmaxregister_decrease(self.resources.producer_registers)
            self.produce(cta, counter)
        else:
            cute.arch.setmaxregister_increase(self.resources.mma_registers)
            self.multiply_and_drain(cta, epilogue_arguments, tiled_mma, warpgroup_index - 1)

    @cute.jit
    def multiply_and_drain(
        self, cta: CtaContext, epilogue_arguments: Optional[tuple], tiled_mma: cute.TiledMma, warpgroup_index: Int32
    ):
        """One MMA warpgroup. Ping-pong: handles every second work and steps over the other's."""
        team = self.make_team(cta, epilogue_arguments, tiled_mma, warpgroup_index)
        state = self.initial_mma_state(warpgroup_index)
        turn = Int32(0)
        cursor = cta.works.first()
        if cutlass.const_expr(self.config.pingpong):
            if warpgroup_index == 1 and cursor.work.is_valid:
                pass_turn(Int32(0))
                if cutlass.const_expr(self.orders_c):
                    pass_turn(Int32(0), NamedBarrierId.C_ORDER)
        while cursor.work.is_valid:
            following = cta.works.next(cursor)
            if cutlass.const_expr(self.config.pingpong):
                if turn == warpgroup_index:
                    state = self.process_work(cta, team, cursor.work, following.work.is_valid, state)
                else:
                    state = self.skip_work(cta, cursor.work, state)
                turn = turn ^ 1
            else:
                state = self.process_work(cta, team, cursor.work, following.work.is_valid, state)
            cursor = following
        self.drain(cute.arch.make_warp_uniform(cute.arch.warp_idx()) % 4 == 0)

    @cute.jit
    def make_team(
        self, cta: CtaContext, epilogue_arguments: Optional[tuple], tiled_mma: cute.TiledMma, warpgroup_index: Int32
    ) -> MmaTeam:
        """Bind operands, accumulators and mixins once per kernel."""
        share = warpgroup_index
        if cutlass.const_expr(self.config.pingpong):
            share = Int32(0)
        return MmaTeam(
            mma=self.bind_mma(cta.smem, tiled_mma, share),
            accumulators=cute.make_rmem_tensor(self.accumulator_shape(tiled_mma), Float32),
            layout=MmaFragment(self.make_tiled_mma(1), cute.arch.thread_idx()[0] % WARPGROUP_THREADS),
            mixins=self.bind_mixins(cta, epilogue_arguments),
            index=warpgroup_index,
            share=share,
        )

    @cute.jit
    def initial_mma_state(self, warpgroup_index: Int32) -> MmaState:
        """Sharing warpgroups take every `sharing`-th C stage, starting at their own index."""
        ab = make_pipeline_state(PipelineUserType.Consumer, self.resources.ab_stages)
        c = None
        if cutlass.const_expr(self.resources.c_stages > 0):
            c = make_pipeline_state(PipelineUserType.Consumer, self.resources.c_stages)
            if cutlass.const_expr(self.sharing > 1):
                c.advance(warpgroup_index)
        return MmaState(ab, EpilogueState(c, Int32(0)), Int32(NO_PROBLEM))

    @cute.jit
    def skip_work(self, cta: CtaContext, work: WorkDesc, state: MmaState) -> MmaState:
        """Step over the stages that the other ping-pong warpgroup consumes."""
        ab, c = state.ab, state.epilogue.c
        ab.advance(self.k_range(cta.problem, work, self.config.tile_k).count)
        if cutlass.const_expr(c is not None):
            subtiles = self.resources.slabs * self.config.tile_n // self.resources.epi_n
            if cutlass.const_expr(self.combines):
                c.advance(subtiles if is_last_part(work) else Int32(0))
            else:
                c.advance(subtiles)
        return MmaState(ab, EpilogueState(c, state.epilogue.d_stage), state.held)

    @cute.jit
    def process_work(
        self, cta: CtaContext, team: MmaTeam, work: WorkDesc, another_follows: Boolean, state: MmaState
    ) -> MmaState:
        """Mainloop and epilogue of one tile."""
        ctx, mixin_states, held = self.begin_work(cta, team, work, state.held)
        ab = state.ab
        if cutlass.const_expr(self.multiplies):
            k_tiles = self.k_range(cta.problem, work, self.config.tile_k).count
            if cutlass.const_expr(self.config.pingpong):
                wait_turn(team.index)
            ab = self.multiply_tile(cta, team, ctx, k_tiles, another_follows, ab)
        if cutlass.const_expr(self.scratch_words > 0):
            sync_warpgroup(team.index)
        epilogue = state.epilogue
        is_complete = Boolean(True)
        if cutlass.const_expr(self.combines):
            is_complete = self.combine(self.partial_tile(cta, team, work))
        if cutlass.const_expr(self.orders_c):
            wait_turn(team.index, NamedBarrierId.C_ORDER)
        if cutlass.const_expr(not self.combines):
            epilogue = self.finish_tile(cta, team, work, (ctx, mixin_states), epilogue)
        elif cutlass.const_expr(self.finishes):
            if is_complete:
                epilogue = self.finish_tile(cta, team, work, (ctx, mixin_states), epilogue)
        if cutlass.const_expr(self.orders_c):
            if another_follows:
                pass_turn(1 - team.index, NamedBarrierId.C_ORDER)
        return MmaState(ab, epilogue, held)

    @cute.jit
    def multiply_tile(
        self,
        cta: CtaContext,
        team: MmaTeam,
        ctx: EpilogueContext,
        k_tiles: Int32,
        another_follows: Boolean,
        state: PipelineState,
    ) -> PipelineState:
        """The main loop; passes the turn when all is issued. Where the second half of this warpgroup's slabs lies below the
        last row, only the first is multiplied: ragged problems end in such tiles, and all warpgroups share the tensor cores.
        Not where parts are combined: behind two main loops that makes ptxas serialise wgmma and spill."""
        slabs = self.resources.slabs
        if cutlass.const_expr(self.has_short_tiles and self.fast_accum and not self.combines):
            if ctx.row + (slabs // 2 * self.sharing + team.share) * self.layout_class.slab_m >= ctx.rows:
                state = self.multiply(cta, team, slabs // 2, k_tiles, another_follows, state)
            else:
                state = self.multiply(cta, team, slabs, k_tiles, another_follows, state)
        else:
            state = self.multiply(cta, team, slabs, k_tiles, another_follows, state)
        return state

    @cute.jit
    def hand_over(self, team: MmaTeam, another_follows: Boolean):
        """Ping-pong: the other warpgroup may multiply."""
        if cutlass.const_expr(self.config.pingpong):
            if another_follows:
                pass_turn(1 - team.index)
