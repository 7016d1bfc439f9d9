"""GEMM for Hopper: D (M, N, L) = epilogue(A (M, K, L) x B (N, K, L)^T), TMA in, wgmma, TMA out, warp-specialised, persistent.

Roles. Warpgroup 0 produces, warpgroups 1..n (n = 1, 2 or 3) multiply and drain. Cooperative: all MMA warpgroups share each
tile, slab (64 rows) s belonging to warpgroup s mod n. Ping-pong: two MMA warpgroups take turns, one multiplies while the
other drains.

| role (warps, registers) | waits on | signals | owns |
|---|---|---|---|
| load A/B (warp 0, 32-56) | `ab.empty[s]`, next work | `ab.full[s]` by TMA bytes | `sA[s]`, `sB[s]` until full |
| gather A (warps 0 and 3, if by index) | `ab.empty[s]`, next work | `ab.full[s]`, once a warp | half of `sA[s]` until full |
| draw works (warp 1 of CTA 0, if broadcast) | `ring.empty[s]` | `ring.full[s]`, every CTA | tile counter |
| load C (warp 2, if by TMA) | `c.empty[e]`, next work | `c.full[e]` by TMA bytes | `sC[e]` until full |
| MMA, epilogue (4 each, 160-240) | `ab.full[s]`, turn, `c.full[e]` | `ab.empty[s]`, turn, `c.empty[e]`, store | acc, `sD` |

| barrier | stages | arrivals to complete | first wait passes for | reused when |
|---|---|---|---|---|
| `ab.full` | ab_stages | 1 + bytes of A and B; gathered A: 1 + 2 warps + bytes of B | - | every k tile |
| `ab.empty` | ab_stages | warps of one consuming turn x (cluster_m + cluster_n - 1) | producer | every k tile |
| `c.full` / `c.empty` | c_stages | 1 + bytes / 4 (one warpgroup's warps) | producer | every subtile |
| `ring.full` / `ring.empty` | WORK_RING_STAGES | see `work_stream` | drawing warp | every work |
| EPILOGUE + g (named) | - | 128 | - | every subtile |
| MMA_ORDER + g (named) | - | 256: 128 wait, 128 pass the turn | warpgroup 0 (primed by 1) | every work |
| C_ORDER + g (named, ping-pong with `sC`) | - | the same, around the epilogue | warpgroup 0 (primed by 1) | every work |

Tail: the load warps wait until every stage is empty again, because peers of the cluster still signal this CTA's barriers;
store warps wait until the TMA has read `sD`. Cluster: `ab.empty` arrivals go to every CTA that multicast into the stage.
No deadlock: loads wait only for MMA, MMA only for loads and for the other warpgroup's *earlier* work, the epilogue only for C
loads, which are issued in work order by a warp that waits for nothing else.

Gathered A is written by threads (generic proxy) and read by wgmma (async proxy): the copying warps wait for copies that they
issued `gather_lag` k tiles ago, fence, and only then arrive, so the MMA warps need no fence. They ask for the next work with
at most one work not handed in, so that the MMA warps cannot be waiting for them in turn.

PDL: every role waits for the previous grid (`griddepcontrol.wait`) after the set-up of barriers; the load warp lets the next
grid start once its last load is issued.

Names: m whole gmem, g gmem tile, s smem, r registers; tAsA = smem A as TMA partitions it, tCrA = A as the MMA partitions it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32, Int64, pipeline
from cutlass.cute.nvgpu import cpasync, warpgroup
from cutlass.memory import SmemAllocator
from cutlass.pipeline import PipelineState, PipelineTmaAsync, PipelineUserType, make_pipeline_state
from cutlass.tensor_utils import LayoutEnum
from cutlass.utils import sm90 as sm90_utils

from ..cute_dtype import CUTE_DTYPE
from ..dsl.barrier import NamedBarrierId, pass_turn, sync_warpgroup, wait_turn
from ..epilogue.accumulators import RegisterAccumulators
from ..epilogue.fragment import MmaFragment
from ..epilogue.protocol import EpilogueContext, bind_epilogue, bound_ports
from ..gemm_base import GemmBase, Operands, TmaOperand, is_inner_major
from ..gemm_config import GemmConfig, OperandSpec, mma_warpgroups
from ..gemm_epilogue_plan import EpilogueIO, EpilogueState, TileStore, run_epilogue_plan
from ..gemm_port import PortKind, present_ports, scratch_bytes, tile_layouts
from ..gemm_problem_adapter import NO_PROBLEM, Operand
from ..gemm_work import WorkDesc
from ..split_k_combine import PartialTile, is_last_part
from ..work_stream import LocalStream, RingStream, WorkRing, slot_words
from .gather import GATHER_WARPS, gather_tile, make_line_copier
from .resources import SLAB_M, WORK_RING_STAGES, resources

LOAD_WARP = 0
DRAW_WARP = 1
LOAD_C_WARP = 2
GATHER_WARP = 3  # helps LOAD_WARP
WARPGROUP_THREADS = 128
SMEM_ALIGN = 1024  # bytes; the period of the 128-byte swizzle


class SmemTensors(NamedTuple):
    """Staged shared memory. c and scratch are None where unused."""

    a: cute.Tensor  # (tile_m, tile_k, ab_stages)
    b: cute.Tensor  # (tile_n, tile_k, ab_stages)
    c: Optional[cute.Tensor]  # (64, epi_n, c_stages)
    outputs: tuple  # D and the mixins' tile outputs: (64, columns, warpgroups * d_stages), None where not by TMA
    scratch: Optional[cute.Tensor]  # fp32 words of the mixins' ports, warpgroup after warpgroup


@dataclass(frozen=True)
class CtaContext:
    """What every role of one CTA knows. No state that advances lives here."""

    operands: Operands
    smem: SmemTensors
    ab: PipelineTmaAsync
    c: Optional[PipelineTmaAsync]
    works: Any  # LocalStream or RingStream
    problem: Any  # the adapter's params
    cta_m: Int32
    cta_n: Int32


class GatherState(NamedTuple):
    """What a copying warp advances: the stage to fill next, the oldest one not handed in, and how many those are."""

    next: PipelineState
    oldest: PipelineState
    pending: Int32


class MmaState(NamedTuple):
    """What an MMA warpgroup advances from work to work."""

    ab: PipelineState
    epilogue: EpilogueState
    held: Int32  # see `ProblemAdapter.acquire`


class GemmSm90(GemmBase):
    """Execution on sm_90a. Operands come from the adapter mixin, the commit from the plan mixin (see `compose`)."""

    layout_class = MmaFragment

    @staticmethod
    def sharing_of(config: GemmConfig) -> int:
        return 1 if config.pingpong else mma_warpgroups(config)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scratch_words = scratch_bytes(self.epilogue_specs, self.config) // 4  # of one MMA warpgroup
        self.resources = resources(self.specs, self.config, self.fast_accum, self.epilogue_specs)
        self.tile_output_specs = tile_layouts(self.epilogue_specs, PortKind.TILE_OUTPUT)
        if self.resources.ab_stages < 2:
            raise ValueError(f"{self.config} leaves room for {self.resources.ab_stages} operand stages")
        self.reads_scratch_last = any(p.kind is PortKind.COL_PARTIALS for p in present_ports(self.epilogue_specs))
        # A warpgroup waits for `c.full` by parity, so it must not be further than one round of the ring ahead of the other.
        self.orders_c = self.config.pingpong and self.resources.c_stages > 0
        self.warpgroups = self.resources.mma_warpgroups
        self.sharing = self.sharing_of(self.config)

    # ---- host set-up ----------------------------------------------------------------------------------------------

    def make_tiled_mma(self, warpgroups: Optional[int] = None, accumulate: bool = True) -> cute.TiledMma:
        """wgmma 64 x tile_n per warpgroup, `warpgroups` (default: all that share a tile) stacked along M."""
        mma = sm90_utils.make_trivial_tiled_mma(
            self.a_dtype,
            self.b_dtype,
            operand_layout(self.specs.a).sm90_mma_major_mode(),
            operand_layout(self.specs.b).sm90_mma_major_mode(),
            Float32,
            (warpgroups or self.sharing, 1, 1),
            tiler_mn=(SLAB_M, self.config.tile_n),
        )
        mma.set(warpgroup.Field.ACCUMULATE, accumulate)
        return mma

    def smem_layout_a(self):
        return sm90_utils.make_smem_layout_a(
            operand_layout(self.specs.a), self.tile_mnk, self.a_dtype, self.resources.ab_stages
        )

    def smem_layout_b(self):
        return sm90_utils.make_smem_layout_b(
            operand_layout(self.specs.b), self.tile_mnk, self.b_dtype, self.resources.ab_stages
        )

    def subtile_of(self, spec: OperandSpec) -> tuple[int, int]:
        """(rows, columns) of an operand's part of an epilogue subtile."""
        return SLAB_M, self.resources.epi_n // (2 if spec.is_halved else 1)

    def smem_layout_epilogue(self, spec: OperandSpec, stages: int):
        dtype = CUTE_DTYPE[spec.dtype]
        return sm90_utils.make_smem_layout_epi(dtype, operand_layout(spec), self.subtile_of(spec), stages)

    def make_output(self, spec: OperandSpec, tensor: cute.Tensor) -> TmaOperand:
        """TMA store of one epilogue subtile, or plain memory."""
        if not spec.is_tma:
            return TmaOperand(None, tensor)
        layout = cute.slice_(self.smem_layout_epilogue(spec, 1), (None, None, 0))
        described = self.tma_tensor(Operand.D, tensor)
        store = cpasync.CopyBulkTensorTileS2GOp()
        return TmaOperand(*cpasync.make_tiled_tma_atom(store, described, layout, self.subtile_of(spec)))

    def make_operands(self, mA, mB, mC, mD, tiles: dict[PortKind, list]) -> Operands:
        """TMA atoms for everything that TMA can address."""
        tile_m, tile_n, tile_k = self.tile_mnk
        cluster_m, cluster_n = self.cluster_mn
        tA, tB = self.tma_tensor(Operand.A, mA), self.tma_tensor(Operand.B, mB)
        a = TmaOperand(None, mA)
        if not self.gathers_a:
            a = make_load_operand(tA, self.smem_layout_a(), (tile_m, tile_k), cluster_n)
        b = make_load_operand(tB, self.smem_layout_b(), (tile_n, tile_k), cluster_m)
        c = None
        if self.specs.c is not None:
            c = TmaOperand(None, mC)
            if self.specs.c.is_tma:
                tC = self.tma_tensor(Operand.C, mC)
                c = make_load_operand(tC, self.smem_layout_epilogue(self.specs.c, 1), self.subtile_of(self.specs.c), 1)
        d = self.make_output(self.specs.d, mD)
        outputs = [self.make_output(s, t) for s, t in zip(self.tile_output_specs, tiles[PortKind.TILE_OUTPUT])]
        return Operands(a, b, c, d, tuple(tiles[PortKind.TILE_INPUT]), tuple(outputs))

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
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        warpgroup_index = cute.arch.make_warp_uniform(cute.arch.thread_idx()[0] // WARPGROUP_THREADS)
        rank = cute.arch.make_warp_uniform(cute.arch.block_idx_in_cluster())
        cta_m, cta_n, _ = cute.make_layout((*self.cluster_mn, 1)).get_flat_coord(rank)

        allocator = SmemAllocator()
        barriers = allocator.allocate_array(
            Int64, 2 * (self.resources.ab_stages + self.resources.c_stages + WORK_RING_STAGES)
        )
        slots = allocator.allocate_array(Int32, slot_words(self.scheduler) * WORK_RING_STAGES, byte_alignment=16)
        smem = self.allocate_smem(allocator)
        ab_pipeline, c_pipeline = self.make_pipelines(barriers)
        works = self.make_work_stream(schedule, barriers, slots, cta_m, cta_n)
        if cutlass.const_expr(self.scheduler.is_broadcast):
            if warp == DRAW_WARP:
                with cute.arch.elect_one():
                    works.ring.initialise()
        cluster_shape = cute.make_layout(self.cluster_mn)
        pipeline.pipeline_init_arrive(cluster_shape, is_relaxed=True)
        if warp == LOAD_WARP:
            if cutlass.const_expr(operands.a.atom is not None):
                cpasync.prefetch_descriptor(operands.a.atom)
            cpasync.prefetch_descriptor(operands.b.atom)
        pipeline.pipeline_init_wait(cluster_shape)
        cute.arch.griddepcontrol_wait()

        cta = CtaContext(operands, smem, ab_pipeline, c_pipeline, works, problem, cta_m, cta_n)
        if warpgroup_index == 0:
            cute.arch.setmaxregister_decrease(self.resources.producer_registers)
            if cutlass.const_expr(self.gathers_a and self.multiplies):
                if warp == LOAD_WARP or warp == GATHER_WARP:
                    self.gather_operands(cta, warp == LOAD_WARP)
            elif cutlass.const_expr(self.multiplies):
                if warp == LOAD_WARP:
                    self.load_operands(cta)
            if cutlass.const_expr(c_pipeline is not None):
                if warp == LOAD_C_WARP:
                    self.load_c(cta)
            if cutlass.const_expr(self.scheduler.is_broadcast):
                if warp == DRAW_WARP and rank == 0:
                    works.draw_all(counter)
        else:
            cute.arch.setmaxregister_increase(self.resources.mma_registers)
            self.multiply_and_drain(cta, epilogue_arguments, tiled_mma, warpgroup_index - 1)

    def allocate_smem(self, allocator) -> SmemTensors:
        """Everything but barriers, in the order and sizes that `resources` counted."""

        def staged(dtype, layout):
            return allocator.allocate_tensor(dtype, layout.outer, SMEM_ALIGN, swizzle=layout.inner)

        a = staged(self.a_dtype, self.smem_layout_a())
        b = staged(self.b_dtype, self.smem_layout_b())
        c = scratch = None
        if self.resources.c_stages:
            c = staged(self.c_dtype, self.smem_layout_epilogue(self.specs.c, self.resources.c_stages))
        stages = self.warpgroups * self.resources.d_stages
        outputs = [
            staged(CUTE_DTYPE[spec.dtype], self.smem_layout_epilogue(spec, stages)) if spec.is_tma else None
            for spec in (self.specs.d, *self.tile_output_specs)
        ]
        if self.scratch_words:
            scratch = allocator.allocate_tensor(Float32, cute.make_layout(self.warpgroups * self.scratch_words), 16)
        return SmemTensors(a, b, c, tuple(outputs), scratch)

    # ---- load roles -----------------------------------------------------------------------------------------------

    @cute.jit
    def load_operands(self, cta: CtaContext):
        """Warp 0: stream the k tiles of every work through the A/B ring."""
        state = make_pipeline_state(PipelineUserType.Producer, self.resources.ab_stages)
        held = Int32(NO_PROBLEM)
        cursor = cta.works.first()
        while cursor.work.is_valid:
            held = self.acquire(cta.problem, (Operand.A, Operand.B), cursor.work, held)
            state = self.load_work(cta, cursor.work, state)
            cursor = cta.works.next(cursor)
        cute.arch.griddepcontrol_launch_dependents()
        cta.ab.producer_tail(state)

    @cute.jit
    def load_work(self, cta: CtaContext, work: WorkDesc, state: PipelineState) -> PipelineState:
        """A and B tiles of one work; multicast A along cluster N and B along cluster M."""
        tile_m, _, tile_k = self.tile_mnk
        cluster_m, cluster_n = self.cluster_mn
        cluster = cute.make_layout((cluster_m, cluster_n, 1))
        a_mask = b_mask = None
        coordinate = (cta.cta_m, cta.cta_n, 0)
        if cutlass.const_expr(cluster_n > 1):
            a_mask = cute.make_layout_image_mask(cluster, coordinate, mode=1)
        if cutlass.const_expr(cluster_m > 1):
            b_mask = cute.make_layout_image_mask(cluster, coordinate, mode=0)
        mA = self.operand(cta.problem, Operand.A, cta.operands.a.tensor, work)
        gA = cute.local_tile(mA, (tile_m, tile_k), (work.tile_m, None))  # (tile_m, tile_k, k tiles)
        tAsA, tAgA = partition_load(cta.operands.a.atom, cta.smem.a, gA, cta.cta_n, cluster_n)
        tBsB, tBgB = self.partition_b(cta, work)
        a_descriptor = self.descriptor(cta.problem, Operand.A, work)
        b_descriptor = self.descriptor(cta.problem, Operand.B, work)
        first, count = self.k_range(cta.problem, work, tile_k)
        for step in cutlass.range(count, unroll=1):
            k_tile = first + step
            cta.ab.producer_acquire(state)
            full = cta.ab.producer_get_barrier(state)
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

    def partition_b(self, cta: CtaContext, work: WorkDesc):
        """(smem, gmem) of this CTA's share of the B tiles of one work: (TMA, STAGE), (TMA, k tiles)."""
        _, tile_n, tile_k = self.tile_mnk
        mB = self.operand(cta.problem, Operand.B, cta.operands.b.tensor, work)
        gB = cute.local_tile(mB, (tile_n, tile_k), (work.tile_n, None))  # (tile_n, tile_k, k tiles)
        return partition_load(cta.operands.b.atom, cta.smem.b, gB, cta.cta_m, self.config.cluster_m)

    @cute.jit
    def gather_operands(self, cta: CtaContext, is_leader: Boolean):
        """Warps 0 (the leader) and 3: as `load_operands`, but both copy A by index; B and the tail are the leader's."""
        first = make_pipeline_state(PipelineUserType.Producer, self.resources.ab_stages)
        state = GatherState(first, first.clone(), Int32(0))
        cursor = cta.works.first()
        while cursor.work.is_valid:
            state = self.gather_work(cta, cursor.work, is_leader, state)
            cursor = cta.works.next(cursor)
        state = self.hand_in_all(cta, state)
        if is_leader:
            cute.arch.griddepcontrol_launch_dependents()
            cta.ab.producer_tail(state.next)

    @cute.jit
    def gather_work(self, cta: CtaContext, work: WorkDesc, is_leader: Boolean, gather: "GatherState") -> "GatherState":
        """As `load_work`. Where k is gathered, the indices of a k tile are loaded while its predecessor is copied."""
        tile_m, _, tile_k = self.tile_mnk
        cluster_m, _ = self.cluster_mn
        b_mask = None
        if cutlass.const_expr(cluster_m > 1):
            b_mask = cute.make_layout_image_mask(cute.make_layout((cluster_m, 1, 1)), (cta.cta_m, 0, 0), mode=0)
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
            cute.arch.mbarrier_arrive(cta.ab.producer_get_barrier(oldest))
        oldest.advance()
        return oldest

    @cute.jit
    def hand_in_all(self, cta: CtaContext, state: "GatherState") -> "GatherState":
        """One copying warp: signal everything it issued."""
        oldest = state.oldest
        for _ in cutlass.range(state.pending, unroll=1):
            oldest = self.hand_in(cta, 0, oldest)
        return GatherState(state.next, oldest, Int32(0))

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
        epi_n = self.resources.epi_n
        mC = self.operand(cta.problem, Operand.C, cta.operands.c.tensor, work)
        descriptor = self.descriptor(cta.problem, Operand.C, work)
        for slab_round in cutlass.range_constexpr(self.resources.slabs):
            for subtile in cutlass.range_constexpr(tile_n // epi_n):
                for sharer in cutlass.range_constexpr(self.sharing):
                    slab = slab_round * self.sharing + sharer
                    gC = cute.local_tile(
                        mC,
                        (SLAB_M, epi_n),
                        (
                            work.tile_m * (tile_m // SLAB_M) + slab,
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

    # ---- MMA and epilogue role ------------------------------------------------------------------------------------

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
    ) -> "MmaTeam":
        """Bind operands, accumulators and mixins once per kernel."""
        share = warpgroup_index
        if cutlass.const_expr(self.config.pingpong):
            share = Int32(0)
        thread_mma = tiled_mma.get_slice(share * WARPGROUP_THREADS)
        return MmaTeam(
            tiled_mma=tiled_mma,
            zeroing_mma=self.make_tiled_mma(accumulate=False),
            tCrA=tiled_mma.make_fragment_A(thread_mma.partition_A(cta.smem.a)),
            tCrB=tiled_mma.make_fragment_B(thread_mma.partition_B(cta.smem.b)),
            accumulators=cute.make_rmem_tensor(
                tiled_mma.partition_shape_C((self.config.tile_m, self.config.tile_n)), Float32
            ),
            layout=MmaFragment(self.make_tiled_mma(1), cute.arch.thread_idx()[0] % WARPGROUP_THREADS),
            mixins=bind_epilogue(self.epilogue_specs, self.epilogue, self.config, epilogue_arguments),
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
        self, cta: CtaContext, team: "MmaTeam", work: WorkDesc, another_follows: Boolean, state: MmaState
    ) -> MmaState:
        """Mainloop and epilogue of one tile."""
        ctx = self.make_context(cta, team, work)
        held = state.held
        if cutlass.const_expr(self.specs.d.is_tma):
            held = self.acquire(cta.problem, (Operand.D,), work, held)
        for mixin in team.mixins:
            for port in bound_ports(mixin):
                ctx.stage(port)
        mixin_states = [mixin.begin(ctx) for mixin in team.mixins]
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
    def finish_tile(
        self,
        cta: CtaContext,
        team: "MmaTeam",
        work: WorkDesc,
        mixins: cutlass.Constexpr[tuple],
        state: EpilogueState,
    ) -> EpilogueState:
        """The epilogue of one tile, whose accumulators are complete. mixins: (context, states)."""
        ctx, mixin_states = mixins
        io = self.make_epilogue_io(cta, team, work)
        state = run_epilogue_plan(
            self, ctx, team.mixins, mixin_states, io, RegisterAccumulators(team.accumulators), state
        )
        if cutlass.const_expr(self.scratch_words > 0 and (self.reads_scratch_last or not io.has_tma_output)):
            sync_warpgroup(team.index)  # scratch is read until here; TMA stores end with this barrier anyway
        return state

    def partial_tile(self, cta: CtaContext, team: "MmaTeam", work: WorkDesc) -> PartialTile:
        """What this warpgroup has of the tile, after the main loop of one of its works."""
        thread = cute.arch.thread_idx()[0] % WARPGROUP_THREADS
        accumulators = RegisterAccumulators(team.accumulators)
        return PartialTile(accumulators, work, cta.works.params, thread, team.index, team.share, self.sharing)

    @cute.jit
    def multiply_tile(
        self,
        cta: CtaContext,
        team: "MmaTeam",
        ctx: EpilogueContext,
        k_tiles: Int32,
        another_follows: Boolean,
        state: PipelineState,
    ) -> PipelineState:
        """The main loop; passes the turn when all is issued. Where the second half of this warpgroup's slabs lies below the
        last row, only the first is multiplied: ragged problems end in such tiles, and all warpgroups share the tensor cores.
        Not where parts are combined: behind two main loops that makes ptxas serialise wgmma and spill."""
        slabs = self.resources.slabs
        if cutlass.const_expr(not self.fast_accum):
            state = self.multiply_promoting(cta, team, k_tiles, another_follows, state)
        elif cutlass.const_expr(self.has_short_tiles and not self.combines):
            if ctx.row + (slabs // 2 * self.sharing + team.share) * SLAB_M >= ctx.rows:
                state = self.multiply(cta, team, slabs // 2, k_tiles, another_follows, state)
            else:
                state = self.multiply(cta, team, slabs, k_tiles, another_follows, state)
        else:
            state = self.multiply(cta, team, slabs, k_tiles, another_follows, state)
        return state

    @cute.jit
    def hand_over(self, team: "MmaTeam", another_follows: Boolean):
        """Ping-pong: the other warpgroup may multiply."""
        if cutlass.const_expr(self.config.pingpong):
            if another_follows:
                pass_turn(1 - team.index)

    @cute.jit
    def multiply(
        self,
        cta: CtaContext,
        team: "MmaTeam",
        slabs: cutlass.Constexpr[int],
        k_tiles: Int32,
        another_follows: Boolean,
        state: PipelineState,
    ) -> PipelineState:
        """The wgmma of the first `slabs` slabs, one k tile in flight behind the one being issued. Accumulators of other
        slabs become zero, afterwards: before, that made ptxas serialise wgmma in some kernels."""
        if k_tiles == 0:
            team.accumulators.fill(0.0)
        if cutlass.const_expr(slabs == 0):
            team.accumulators.fill(0.0)
            for _ in cutlass.range(k_tiles, unroll=1):
                cta.ab.consumer_wait(state)
                cta.ab.consumer_release(state)
                state.advance()
            self.hand_over(team, another_follows)
            return state
        release = state.clone()
        warpgroup.fence()
        for _ in cutlass.range(cutlass.min(k_tiles, 1), unroll=1):
            cta.ab.consumer_wait(state)
            self.issue_k_tile(team, team.accumulators, slabs, state.index, from_zero=True)
            state.advance()
        for _ in cutlass.range(1, k_tiles, unroll=1):
            cta.ab.consumer_wait(state)
            self.issue_k_tile(team, team.accumulators, slabs, state.index, from_zero=False)
            warpgroup.wait_group(1)
            cta.ab.consumer_release(release)
            release.advance()
            state.advance()
        self.hand_over(team, another_follows)
        warpgroup.wait_group(0)
        for slab in cutlass.range_constexpr(slabs, self.resources.slabs):
            team.accumulators[None, slab, 0].fill(0.0)
        if k_tiles > 0:
            last = state.clone()
            last.reverse()
            cta.ab.consumer_release(last)
        return state

    @cute.jit
    def multiply_promoting(
        self, cta: CtaContext, team: "MmaTeam", k_tiles: Int32, another_follows: Boolean, state: PipelineState
    ) -> PipelineState:
        """fp8 with full-precision accumulation: wgmma keeps few mantissa bits of an fp8 sum, so every k tile (128
        elements) is summed from zero and added to the fp32 accumulators by the CUDA cores. Completes the tile.

        The other warpgroup of the tile multiplies meanwhile. NOTE: keeping a second partial sum of this warpgroup in
        flight makes ptxas serialise every wgmma (C7514), 30 % slower; see docs/measured_facts.md.
        """
        team.accumulators.fill(0.0)
        partial = cute.make_rmem_tensor(team.accumulators.shape, Float32)
        for _ in cutlass.range(k_tiles, unroll=1):
            cta.ab.consumer_wait(state)
            warpgroup.fence()
            self.issue_k_tile(team, partial, self.resources.slabs, state.index, from_zero=True)
            warpgroup.wait_group(0)
            cta.ab.consumer_release(state)
            team.accumulators.store(team.accumulators.load() + partial.load())
            state.advance()
        self.hand_over(team, another_follows)
        return state

    @cute.jit
    def issue_k_tile(
        self,
        team: "MmaTeam",
        accumulators: cute.Tensor,
        slabs: cutlass.Constexpr[int],
        stage: Int32,
        from_zero: cutlass.Constexpr[bool],
    ):
        """The wgmma of one k tile for the first `slabs` slabs as one group; from_zero: ignore the old accumulators."""
        for k_block in cutlass.range_constexpr(cute.size(team.tCrA, mode=[2])):
            mma = team.zeroing_mma if cutlass.const_expr(from_zero and k_block == 0) else team.tiled_mma
            for slab in cutlass.range_constexpr(slabs):
                acc = cute.append_ones(accumulators[None, slab, 0], up_to_rank=3)
                tCrA = cute.append_ones(team.tCrA[None, slab, k_block, stage], up_to_rank=2)
                cute.gemm(mma, acc, tCrA, team.tCrB[None, None, k_block, stage], acc)
        warpgroup.commit_group()

    def make_context(self, cta: CtaContext, team: "MmaTeam", work: WorkDesc) -> EpilogueContext:
        """What the mixins may know of this work."""
        thread = cute.arch.thread_idx()[0] % WARPGROUP_THREADS
        shape = self.problem_shape(cta.problem, work)
        scratch = None
        if self.scratch_words:
            first = cta.smem.scratch.iterator + team.index * self.scratch_words
            scratch = cute.make_tensor(first, cute.make_layout(self.scratch_words))
        return EpilogueContext(
            problem=work.problem,
            row=work.tile_m * self.config.tile_m,
            col=work.tile_n * self.config.tile_n,
            rows=shape.m,
            cols=shape.n,
            first_row=work.start,
            tile_m=work.tile_m,
            tile_n=work.tile_n,
            warpgroup=team.index,
            share=team.share,
            shares=self.sharing,
            thread=thread,
            slab_rows=tuple((r * self.sharing + team.share) * SLAB_M for r in range(self.resources.slabs)),
            config=self.config,
            layout=team.layout,
            scratch=scratch,
            inputs=tuple(self.operand(cta.problem, Operand.D, t, work) for t in cta.operands.tile_inputs),
        )

    def make_epilogue_io(self, cta: CtaContext, team: "MmaTeam", work: WorkDesc) -> EpilogueIO:
        """Transport of this work's C and outputs for one warpgroup."""
        c, copy_c = cta.operands.c, None
        if cta.smem.c is not None:
            copy_c = team.layout.load_copy(self.specs.c, self.resources.epi_n)
        operands = (cta.operands.d, *cta.operands.tile_outputs)
        outputs = zip((self.specs.d, *self.tile_output_specs), operands, cta.smem.outputs)
        return EpilogueIO(
            c=None if c is None else self.operand(cta.problem, Operand.C, c.tensor, work),
            c_atom=None if c is None else c.atom,
            sC=cta.smem.c,
            copy_c=copy_c,
            c_pipeline=cta.c,
            c_step=self.sharing,
            outputs=tuple(self.make_tile_store(cta, team, work, *output) for output in outputs),
            stages=self.resources.d_stages,
            first_stage=team.index * self.resources.d_stages,
            warpgroup=team.index,
            is_store_warp=cute.arch.make_warp_uniform(cute.arch.warp_idx()) % 4 == 0,
            epi_n=self.resources.epi_n,
        )

    def make_tile_store(
        self, cta: CtaContext, team: "MmaTeam", work: WorkDesc, spec: OperandSpec, operand: TmaOperand, smem
    ) -> TileStore:
        """Transport of one output of this work for one warpgroup."""
        _, columns = self.subtile_of(spec)
        return TileStore(
            tensor=self.operand(cta.problem, Operand.D, operand.tensor, work),
            atom=operand.atom,
            descriptor=None if operand.atom is None else self.descriptor(cta.problem, Operand.D, work),
            smem=smem,
            copy=None if operand.atom is None else team.layout.store_copy(spec, columns),
            dtype=CUTE_DTYPE[spec.dtype],
            columns=columns,
            is_halved=spec.is_halved,
        )

    # ---- pipelines ------------------------------------------------------------------------------------------------

    def make_pipelines(self, barriers) -> tuple[PipelineTmaAsync, Optional[PipelineTmaAsync]]:
        """A/B ring (multicast over the cluster) and C ring (local to the CTA)."""
        cluster_m, cluster_n = self.cluster_mn
        tile_m, tile_n, tile_k = self.tile_mnk
        a_bytes, copiers = tile_k * tile_m * self.a_dtype.width // 8, 0
        if self.gathers_a:
            a_bytes, copiers = 0, GATHER_WARPS
        ab = PipelineTmaAsync.create(
            num_stages=self.resources.ab_stages,
            producer_group=pipeline.CooperativeGroup(pipeline.Agent.Thread, 1 + copiers),
            consumer_group=pipeline.CooperativeGroup(
                pipeline.Agent.Thread, 4 * self.sharing * (cluster_m + cluster_n - 1)
            ),
            tx_count=a_bytes + tile_k * tile_n * self.b_dtype.width // 8,
            barrier_storage=barriers,
            cta_layout_vmnk=cute.make_layout((1, cluster_m, cluster_n, 1)),
            defer_sync=True,
        )
        if not self.resources.c_stages:
            return ab, None
        c = PipelineTmaAsync.create(
            num_stages=self.resources.c_stages,
            producer_group=pipeline.CooperativeGroup(pipeline.Agent.Thread),
            consumer_group=pipeline.CooperativeGroup(pipeline.Agent.Thread, 4),
            tx_count=SLAB_M * self.resources.epi_n * self.c_dtype.width // 8,
            barrier_storage=barriers + 2 * self.resources.ab_stages,
            cta_layout_vmnk=cute.make_layout((1, 1, 1, 1)),
            defer_sync=True,
        )
        return ab, c

    def make_work_stream(self, schedule, barriers, slots, cta_m, cta_n):
        """How this CTA's roles learn their works."""
        if not self.scheduler.is_broadcast:
            return LocalStream(self.scheduler, schedule, cta_m, cta_n)
        loaders = (2 if self.gathers_a else 1) if self.multiplies else 0
        readers = loaders + (1 if self.resources.c_stages else 0) + 4 * self.warpgroups
        first = 2 * (self.resources.ab_stages + self.resources.c_stages)
        ring = WorkRing(barriers + first, slots, WORK_RING_STAGES, self.cluster_mn[0] * self.cluster_mn[1], readers)
        return RingStream(self.scheduler, schedule, cta_m, cta_n, ring)


@dataclass(frozen=True)
class MmaTeam:
    """What one MMA warpgroup holds for the whole kernel.

    index: which warpgroup; share: which of a tile's interleaved slabs are its (0 for ping-pong).
    tiled_mma adds to the accumulators, zeroing_mma overwrites them: two objects, because setting the flag of one inside
        a staged loop would leak a value out of it.
    layout: of the accumulators of a slab, those of the same MMA for one warpgroup alone.
    """

    tiled_mma: cute.TiledMma
    zeroing_mma: cute.TiledMma
    tCrA: cute.Tensor  # (MMA, MMA_M, MMA_K, STAGE)
    tCrB: cute.Tensor  # (MMA, MMA_N, MMA_K, STAGE)
    accumulators: cute.Tensor  # (MMA, MMA_M, MMA_N): slab after slab
    layout: MmaFragment
    mixins: tuple
    index: Int32
    share: Int32


def operand_layout(spec: OperandSpec) -> LayoutEnum:
    """CuTe's name for the contiguous mode; ROW_MAJOR means that the inner mode (K, or N for C and D) is contiguous."""
    return LayoutEnum.ROW_MAJOR if is_inner_major(spec) else LayoutEnum.COL_MAJOR


def make_load_operand(tensor: cute.Tensor, staged_layout, tile: tuple[int, int], multicast: int) -> TmaOperand:
    """TMA load atom for `tile`; with multicast each CTA fetches 1/multicast of the tile and sends it to all."""
    op = cpasync.CopyBulkTensorTileG2SOp() if multicast == 1 else cpasync.CopyBulkTensorTileG2SMulticastOp()
    layout = cute.slice_(staged_layout, (None, None, 0))
    return TmaOperand(*cpasync.make_tiled_tma_atom(op, tensor, layout, tile, num_multicast=multicast))


def partition_load(atom, smem: cute.Tensor, gmem: cute.Tensor, cta: Int32, ctas: int):
    """(smem, gmem) as this CTA of the multicast group loads them: (TMA, STAGE), (TMA, REST)."""
    return cpasync.tma_partition(
        atom, cta, cute.make_layout(ctas), cute.group_modes(smem, 0, 2), cute.group_modes(gmem, 0, 2)
    )
