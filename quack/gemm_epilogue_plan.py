"""In which order the accumulator is drained and who stores what.

One traversal, `run_epilogue_plan`, for every arch: slab by slab (64 rows), subtile by subtile (epi_n columns), load C,
let the mixins visit, commit. The commit policy is a mixin of the kernel class; `DefaultCommit` stores each subtile once.

Each draining warpgroup works on its own rows with its own shared-memory ring, so warpgroups never wait for each other:

| step, per subtile | threads | hazard it closes |
|---|---|---|
| registers -> sD[stage] | 128 | slot free: the store thread had waited for the older bulk stores before the last barrier |
| fence.proxy.async | 128 | generic writes visible to the TMA engine |
| store warp: wait_group.read(d_stages - 2) | 32 | the *next* subtile's slot will be free after the barrier |
| warpgroup barrier | 128 | all writes done before the store, slot freedom known to all |
| TMA store, commit_group | 32 | |
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32
from cutlass.pipeline import PipelineState

from .dsl.barrier import sync_warpgroup
from .dsl.convert import convert_pair
from .epilogue.protocol import EpilogueContext, EpilogueFragment

SLAB_M = 64


class EpilogueState(NamedTuple):
    """What draining a tile advances. `c` is None unless C comes through the TMA ring."""

    c: Optional[PipelineState]
    d_stage: Int32


@dataclass(frozen=True)
class EpilogueIO:
    """Transport of C and D for one tile and one warpgroup.

    c, d:         2-D (M, N) views of this problem: TMA coordinate tensors, or global memory if not TMA-addressable.
    c_atom, d_atom: TMA atoms, None selects predicated element access.
    d_descriptor: this problem's own TMA descriptor of D, if it has one.
    c_step:       C stages from one of this warpgroup's subtiles to its next.
    sC, sD:       staged shared memory (64, epi_n, stages); this warpgroup's D stages start at `d_first_stage`.
    thread_copy_d, thread_copy_c: register <-> shared partitions in accumulator order.
    """

    c: Optional[cute.Tensor]
    d: cute.Tensor
    c_atom: Optional[cute.CopyAtom]
    d_atom: Optional[cute.CopyAtom]
    d_descriptor: Optional[cute.Pointer]
    sC: Optional[cute.Tensor]
    sD: Optional[cute.Tensor]
    c_pipeline: Any
    copy_d: Any
    copy_c: Any
    d_stages: int
    d_first_stage: Int32
    c_step: int
    warpgroup: Int32
    is_store_warp: cutlass.Boolean
    epi_n: int
    d_dtype: Any

    @property
    def registers(self) -> int:
        """fp32 registers of one thread's part of a subtile."""
        return SLAB_M * self.epi_n // 128


class EpiloguePlan:
    """Commit policy mixin: `commit` hands one finished subtile to memory, `drain` waits for what is in flight."""

    combines: bool = False
    """Whether a work may be a part of a tile only; a mixin with `combine` says so, see `split_k_combine`."""

    multiplies: bool = True
    """False: works have no main loop, `combine` finds all of the sum in memory."""

    finishes: bool = True
    """False: `combine` leaves every tile to another launch."""

    def combine(self, tile: Any) -> cutlass.Boolean:
        """Where `combines`: puts the accumulators of a work together with those of the tile's other works. Whether they now
        are the whole sum, and this warpgroup runs the epilogue."""
        raise NotImplementedError

    def commit(self, ctx, io, frag, subtile: int, state: EpilogueState) -> EpilogueState:
        raise NotImplementedError

    def drain(self, is_store_warp: cutlass.Boolean):
        raise NotImplementedError


class DefaultCommit(EpiloguePlan):
    """Every subtile is stored once, by TMA where D can be described to it, else by predicated element stores."""

    @cute.jit
    def commit(
        self,
        ctx: EpilogueContext,
        io: EpilogueIO,
        frag: EpilogueFragment,
        subtile: cutlass.Constexpr[int],
        state: EpilogueState,
    ) -> EpilogueState:
        if cutlass.const_expr(io.d_atom is None):
            self.store_elements(ctx, io, frag)
            return state
        values = cute.make_rmem_tensor(frag.acc.shape, io.d_dtype)
        values.store(frag.acc.load().to(io.d_dtype))
        stage = io.d_first_stage + state.d_stage
        thread_copy = io.copy_d.get_slice(ctx.thread)
        tRS_sD = thread_copy.partition_D(io.sD)  # (R2S, R2S_M, R2S_N, STAGE)
        tRS_rD = cute.make_tensor(values.iterator, cute.make_layout(cute.shape(thread_copy.partition_S(io.sD))[:3]))
        cute.copy(io.copy_d, tRS_rD, tRS_sD[None, None, None, stage])
        cute.arch.fence_proxy("async.shared", space="cta")
        if io.is_store_warp:
            cute.arch.cp_async_bulk_wait_group(io.d_stages - 2, read=True)
        sync_warpgroup(io.warpgroup)
        if io.is_store_warp:
            gD = cute.local_tile(
                io.d,
                (SLAB_M, io.epi_n),
                ((ctx.row + ctx.slab_rows[frag.slab]) // SLAB_M, ctx.col // io.epi_n + subtile),
            )
            bSG_sD, bSG_gD = cute.nvgpu.cpasync.tma_partition(
                io.d_atom, 0, cute.make_layout(1), cute.group_modes(io.sD, 0, 2), cute.group_modes(gD, 0, 2)
            )
            cute.copy(io.d_atom, bSG_sD[None, stage], bSG_gD, tma_desc_ptr=io.d_descriptor)
            cute.arch.cp_async_bulk_commit_group()
        next_stage = state.d_stage + 1
        return EpilogueState(state.c, Int32(0) if next_stage == io.d_stages else next_stage)

    @cute.jit
    def store_elements(self, ctx: EpilogueContext, io: EpilogueIO, frag: EpilogueFragment):
        """D whose strides or base TMA cannot address (N = 50257): one predicated store per element."""
        coordinates = ctx.partition_slab(cute.make_identity_tensor((SLAB_M, ctx.config.tile_n)))
        d, base = io.d, frag.base  # locals: the tracer would carry the whole objects through the `if`
        row, col, rows, cols = ctx.row + ctx.slab_rows[frag.slab], ctx.col, ctx.rows, ctx.cols
        for first in cutlass.range_constexpr(0, cute.size(frag.acc), 2):
            pair = convert_pair(frag.acc[first], frag.acc[first + 1], io.d_dtype)
            for v in cutlass.range_constexpr(2):
                m = coordinates[base + first + v][0] + row
                n = coordinates[base + first + v][1] + col
                if m < rows and n < cols:
                    d[m, n] = pair[v]

    @cute.jit
    def drain(self, is_store_warp: cutlass.Boolean):
        """Store warp: shared memory must outlive the bulk stores that read it."""
        if is_store_warp:
            cute.arch.cp_async_bulk_wait_group(0, read=True)


@cute.jit
def load_c_elements(ctx: EpilogueContext, io: EpilogueIO, frag: EpilogueFragment) -> cute.Tensor:
    """C that TMA cannot address: predicated element loads, 0 outside the problem."""
    values = cute.make_rmem_tensor(frag.acc.shape, Float32)
    coordinates = ctx.partition_slab(cute.make_identity_tensor((SLAB_M, ctx.config.tile_n)))
    c, base = io.c, frag.base  # locals: the tracer would carry the whole objects through the `if`
    row, col, rows, cols = ctx.row + ctx.slab_rows[frag.slab], ctx.col, ctx.rows, ctx.cols
    for v in cutlass.range_constexpr(cute.size(values)):
        m = coordinates[base + v][0] + row
        n = coordinates[base + v][1] + col
        value = Float32(0.0)
        if m < rows and n < cols:
            value = c[m, n].to(Float32)
        values[v] = value
    return values


@cute.jit
def load_c_subtile(ctx: EpilogueContext, io: EpilogueIO, frag: EpilogueFragment, state: PipelineState) -> cute.Tensor:
    """C from the shared-memory ring that the C load warp fills; the caller advances `state`."""
    io.c_pipeline.consumer_wait(state)
    tSR_sC = io.copy_c.get_slice(ctx.thread).partition_D(io.sC)[None, None, None, state.index]
    tSR_rC = cute.make_rmem_tensor(tSR_sC.shape, io.sC.element_type)
    cute.autovec_copy(tSR_sC, tSR_rC)
    cute.arch.sync_warp()
    io.c_pipeline.consumer_release(state)
    values = cute.make_rmem_tensor(frag.acc.shape, Float32)
    flat = cute.make_tensor(tSR_rC.iterator, frag.acc.layout)
    values.store(flat.load().to(Float32))
    return values


@cute.jit
def run_epilogue_plan(
    kernel: cutlass.Constexpr,
    contexts: cutlass.Constexpr,
    mixins: cutlass.Constexpr,
    mixin_states: cutlass.Constexpr,
    io: EpilogueIO,
    accumulators: cute.Tensor,
    state: EpilogueState,
) -> EpilogueState:
    """Drain one tile. All threads of the warpgroup; `accumulators` is complete.

    contexts, mixins and mixin_states run in parallel, one entry per mixin, the last context being the plan's own.
    """
    ctx = contexts[-1]
    c_state, d_stage = state.c, state.d_stage
    subtiles = ctx.config.tile_n // io.epi_n
    for slab in cutlass.range_constexpr(len(ctx.slab_rows)):
        for subtile in cutlass.range_constexpr(subtiles):
            frag = EpilogueFragment(
                acc=cute.make_rmem_tensor(io.registers, Float32), c=None, slab=slab, base=subtile * io.registers
            )
            first = slab * subtiles * io.registers + frag.base
            for v in cutlass.range_constexpr(io.registers):
                frag.acc[v] = accumulators[first + v]
            if cutlass.const_expr(io.c is not None):
                if cutlass.const_expr(c_state is None):
                    frag.c = load_c_elements(ctx, io, frag)
                else:
                    frag.c = load_c_subtile(ctx, io, frag, c_state)
                    c_state.advance(io.c_step)
            for i in cutlass.range_constexpr(len(mixins)):
                mixin_states[i] = mixins[i].visit(contexts[i], mixin_states[i], frag)
            d_stage = kernel.commit(ctx, io, frag, subtile, EpilogueState(c_state, d_stage)).d_stage
    for i in cutlass.range_constexpr(len(mixins)):
        mixins[i].end(contexts[i], mixin_states[i])
    return EpilogueState(c_state, d_stage)
