"""In which order the accumulator is drained and who stores what.

One traversal, `run_epilogue_plan`, for every arch: slab by slab (`FragmentLayout.slab_m` rows), subtile by subtile (epi_n
columns), load C, let the mixins visit, commit. The commit policy is a mixin of the kernel class; `DefaultCommit` stores each
subtile once.

Each draining warpgroup works on its own rows with its own shared-memory ring, so warpgroups never wait for each other:

| step, per subtile | threads | hazard it closes |
|---|---|---|
| registers -> sD[stage] | 128 | slot free: the store thread had waited for the older bulk stores before the last barrier |
| fence.proxy.async | 128 | generic writes visible to the TMA engine |
| store warp: wait_group.read(stages - 2) | 32 | the *next* subtile's slot will be free after the barrier |
| warpgroup barrier | 128 | all writes done before the store, slot freedom known to all |
| TMA store, commit_group | 32 | |
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32
from cutlass.pipeline import PipelineState

from .dsl.barrier import sync_warpgroup
from .dsl.convert import convert_pair
from .dsl.schedule import unknown_zero
from .epilogue.accumulators import Accumulators
from .epilogue.protocol import EpilogueContext, EpilogueFragment, has_contiguous_rows, load_elements


class EpilogueState(NamedTuple):
    """What draining a tile advances. `c` is None unless C comes through the TMA ring."""

    c: Optional[PipelineState]
    d_stage: Int32


@dataclass(frozen=True)
class TileStore:
    """Transport of one output of one tile and one warpgroup: D, or a tile output of a mixin.

    tensor:     2-D (M, N) view of this problem: TMA coordinates, or global memory if not TMA-addressable.
    atom:       TMA atom, None selects predicated element stores.
    descriptor: this problem's own TMA descriptor, if it has one.
    smem:       staged shared memory (slab_m, columns, stages), all warpgroups'.
    copy:       registers -> shared memory, `FragmentLayout.store_copy`.
    dtype:      element type in memory.
    columns:    of a subtile; half of the accumulator's if `is_halved`.
    is_wanted:  whether this tile is stored at all, a run-time Boolean; None: always. Fixed by the commit policy.
    """

    tensor: cute.Tensor
    atom: Optional[cute.CopyAtom]
    descriptor: Optional[cute.Pointer]
    smem: Optional[cute.Tensor]
    copy: Any
    dtype: Any
    columns: int
    is_halved: bool
    is_wanted: Any = None


@dataclass(frozen=True)
class EpilogueIO:
    """Transport of C and the outputs for one tile and one warpgroup.

    c:             2-D (M, N) view of this problem, TMA coordinates or global memory; c_atom None: element loads.
    outputs:       D first, then the tile outputs of the mixins.
    stages:        of every output's shared memory, per warpgroup; this one's start at `first_stage`.
    c_step:        C stages from one of this warpgroup's subtiles to its next.
    sC, copy_c:    staged shared memory (slab_m, epi_n, stages) and `FragmentLayout.load_copy` of it.
    """

    c: Optional[cute.Tensor]
    c_atom: Optional[cute.CopyAtom]
    sC: Optional[cute.Tensor]
    copy_c: Any
    c_pipeline: Any
    c_step: int
    outputs: tuple
    stages: int
    first_stage: Int32
    warpgroup: Int32
    is_store_warp: cutlass.Boolean
    epi_n: int

    @property
    def has_tma_output(self) -> bool:
        """Whether a tile ends with the warpgroup's barrier before its bulk stores."""
        return any(output.atom is not None for output in self.outputs)


class EpiloguePlan:
    """Commit policy: what happens to a finished subtile. A mixin of the kernel class, so `self` is the kernel.

    To write one, subclass it or `DefaultCommit` and pass the class, `quack.gemm(..., commit=MyCommit)`. It takes no arguments;
    what it needs from the host are ports of an epilogue mixin. With a commit policy of a user A and B never change places,
    so rows are rows of D.
    """

    combines: bool = False
    """Whether a work may be a part of a tile only; a mixin with `combine` says so, see `split_k_combine`."""

    multiplies: bool = True
    """False: works have no main loop, `combine` finds all of the sum in memory."""

    finishes: bool = True
    """False: `combine` leaves every tile to another launch."""

    def combine(self, tile: Any) -> cutlass.Boolean:
        """Where `combines`: puts the accumulators of a work together with those of the tile's other works. Whether they now
        are the whole sum, and this warpgroup runs the epilogue; if not, the kernel releases them."""
        raise NotImplementedError

    def commit(
        self, ctx: EpilogueContext, io: EpilogueIO, frag: EpilogueFragment, state: EpilogueState
    ) -> EpilogueState:
        """Device, all 128 threads of a warpgroup, once per subtile, after the mixins' `visit`. Returns the next state.

        The subtile's first element of D is (ctx.row + ctx.slab_rows[frag.slab], ctx.col + frag.subtile * io.epi_n), it has
        ctx.layout.slab_m rows and io.epi_n columns; a thread's elements are frag.acc, at `ctx.coordinates(frag)`. May change frag.acc;
        may hand on to `DefaultCommit.commit`, or not, if all threads of the warpgroup decide the same (it has a barrier) and
        the returned state is the one of the branch taken. Decorate it with `@cute.jit` if it decides at run time.
        """
        raise NotImplementedError

    def drain(self, is_store_warp: cutlass.Boolean):
        """Device, once per kernel after the last tile, same threads: wait for stores that still read shared memory."""
        raise NotImplementedError


class DefaultCommit(EpiloguePlan):
    """Every subtile of every output is stored once, by TMA where it can be described to it, else by predicated elements."""

    @cute.jit
    def commit(
        self, ctx: EpilogueContext, io: EpilogueIO, frag: EpilogueFragment, state: EpilogueState
    ) -> EpilogueState:
        fragments = [frag.acc, *(frag.tiles[i] for i in range(len(io.outputs) - 1))]
        return store_fragments(ctx, io, frag, fragments, io.outputs, state)

    @cute.jit
    def drain(self, is_store_warp: cutlass.Boolean):
        """Store warp: shared memory must outlive the bulk stores that read it."""
        if is_store_warp:
            cute.arch.cp_async_bulk_wait_group(0, read=True)


@cute.jit
def store_fragments(
    ctx: EpilogueContext,
    io: EpilogueIO,
    frag: EpilogueFragment,
    fragments: list,
    outputs: tuple,
    state: EpilogueState,
) -> EpilogueState:
    """Store one subtile of each output; those that go by TMA share a ring position, a fence, a barrier and a bulk group."""
    stage = io.first_stage + state.d_stage
    for i in cutlass.range_constexpr(len(outputs)):
        if cutlass.const_expr(outputs[i].atom is None):
            store_elements(anew(ctx, fragments[i]), outputs[i], frag, fragments[i])
        else:
            copy_to_stage(ctx, outputs[i], fragments[i], stage)
    if cutlass.const_expr(not io.has_tma_output):
        return state
    cute.arch.fence_proxy("async.shared", space="cta")
    if io.is_store_warp:
        cute.arch.cp_async_bulk_wait_group(io.stages - 2, read=True)
    sync_warpgroup(io.warpgroup)
    if io.is_store_warp:
        for i in cutlass.range_constexpr(len(outputs)):
            if cutlass.const_expr(outputs[i].atom is not None):
                if cutlass.const_expr(outputs[i].is_wanted is None):
                    store_stage(ctx, outputs[i], frag, stage)
                else:
                    if outputs[i].is_wanted:
                        store_stage(ctx, outputs[i], frag, stage)
        cute.arch.cp_async_bulk_commit_group()
    next_stage = state.d_stage + 1
    return EpilogueState(state.c, Int32(0) if next_stage == io.stages else next_stage)


@cute.jit
def copy_to_stage(ctx: EpilogueContext, output: TileStore, fragment: cute.Tensor, stage: Int32):
    """Round to the output's dtype and write to its shared memory. All threads of the warpgroup."""
    values = cute.make_rmem_tensor(fragment.shape, output.dtype)
    values.store(fragment.load().to(output.dtype))
    ctx.layout.write_stage(output.copy, values, output.smem, stage)


@cute.jit
def store_stage(ctx: EpilogueContext, output: TileStore, frag: EpilogueFragment, stage: Int32):
    """Start the TMA store of one staged subtile. One warp."""
    first = ctx.col // (2 * output.columns) if cutlass.const_expr(output.is_halved) else ctx.col // output.columns
    gD = cute.local_tile(
        output.tensor,
        (ctx.layout.slab_m, output.columns),
        ((ctx.row + ctx.slab_rows[frag.slab]) // ctx.layout.slab_m, first + frag.subtile),
    )
    bSG_sD, bSG_gD = cute.nvgpu.cpasync.tma_partition(
        output.atom, 0, cute.make_layout(1), cute.group_modes(output.smem, 0, 2), cute.group_modes(gD, 0, 2)
    )
    cute.copy(output.atom, bSG_sD[None, stage], bSG_gD, tma_desc_ptr=output.descriptor)


@cute.jit
def store_elements(ctx: EpilogueContext, output: TileStore, frag: EpilogueFragment, fragment: cute.Tensor):
    """An output whose strides or base TMA cannot address (N = 50257): one predicated store per element."""
    if cutlass.const_expr(ctx.layout.turns and has_contiguous_rows(output.tensor)):
        store_turned(ctx, output, frag, fragment)
        return
    coordinates = ctx.slab_coordinates()
    d, base = output.tensor, frag.base  # locals: the tracer would carry the whole objects through the `if`
    row, col, rows, cols = ctx.row + ctx.slab_rows[frag.slab], ctx.col, ctx.rows, ctx.cols
    if cutlass.const_expr(output.is_wanted is not None):
        rows = rows if output.is_wanted else Int32(0)
    if cutlass.const_expr(output.is_halved):  # a fragment of half the columns has the layout of a narrower accumulator
        base, col, cols = base // 2, col // 2, cols // 2
    for first in cutlass.range_constexpr(0, cute.size(fragment), 2):
        pair = convert_pair(fragment[first], fragment[first + 1], output.dtype)
        for v in cutlass.range_constexpr(2):
            m = coordinates[base + first + v][0] + row
            n = coordinates[base + first + v][1] + col
            if m < rows and n < cols:
                d[m, n] = pair[v]


@cute.jit
def store_turned(ctx: EpilogueContext, output: TileStore, frag: EpilogueFragment, fragment: cute.Tensor):
    """`store_elements` of contiguous rows by threads that hold rows."""
    values = cute.make_rmem_tensor(fragment.shape, output.dtype)
    values.store(fragment.load().to(output.dtype))
    ctx.layout.turn(values)
    places = ctx.layout.turned_places(cute.size(values), output.dtype.width)
    d, rows, cols = output.tensor, ctx.rows, ctx.cols
    row, col = ctx.row + ctx.slab_rows[frag.slab], ctx.col + ctx.layout.columns_before(frag.base)
    if cutlass.const_expr(output.is_wanted is not None):
        rows = rows if output.is_wanted else Int32(0)
    if cutlass.const_expr(output.is_halved):
        col, cols = col // 2, cols // 2
    for v in cutlass.range_constexpr(cute.size(values)):
        m, n = places[v][0] + row, places[v][1] + col
        if m < rows and n < cols:
            d[m, n] = values[v]


@cute.jit
def load_c_subtile(ctx: EpilogueContext, io: EpilogueIO, frag: EpilogueFragment, state: PipelineState) -> cute.Tensor:
    """C from the shared-memory ring that the C load warp fills; the caller advances `state`."""
    io.c_pipeline.consumer_wait(state)
    rC = ctx.layout.read_stage(io.copy_c, io.sC, state.index)
    # Reads before the arrival are not ordered before TMA's next write, which is of the async proxy, unless a fence says so.
    cute.arch.fence_proxy("async.shared", space="cta")
    cute.arch.sync_warp()
    io.c_pipeline.consumer_release(state)
    values = cute.make_rmem_tensor(frag.acc.shape, Float32)
    flat = cute.make_tensor(rC.iterator, frag.acc.layout)
    values.store(flat.load().to(Float32))
    return values


def has_scattered(ctx: EpilogueContext, io: EpilogueIO) -> bool:
    """Whether a matrix is read or written element by element."""
    c_by_element = io.c is not None and io.c_atom is None
    return c_by_element or bool(ctx.inputs) or any(output.atom is None for output in io.outputs)


def anew(ctx: EpilogueContext, fragment: Optional[cute.Tensor] = None) -> EpilogueContext:
    """The same, but nothing that depends on its coordinates or on its vectors happens before now, nor before the fragment is
    computed: where registers hold one subtile, ptxas has some left over, and keeps addresses and values of so many later stores in
    them that it spills."""
    if not ctx.layout.is_by_subtile:
        return ctx
    last = () if fragment is None else (fragment[cute.size(fragment) - 1],)
    zero = unknown_zero(ctx.rows + ctx.thread, *last)
    scratch = ctx.scratch
    if scratch is not None:
        scratch = cute.make_tensor(scratch.iterator + cute.assume(zero, divby=4), scratch.layout)
    return replace(ctx, row=ctx.row + zero, col=ctx.col + zero, scratch=scratch)


@cute.jit
def run_epilogue_plan(
    kernel: cutlass.Constexpr,
    ctx: EpilogueContext,
    mixins: cutlass.Constexpr,
    mixin_states: cutlass.Constexpr,
    io: EpilogueIO,
    accumulators: Accumulators,
    state: EpilogueState,
) -> EpilogueState:
    """Drain one tile. All threads of the warpgroup; `accumulators` is complete, and released behind the last subtile's load.
    mixin_states: one entry per mixin."""
    c_state, d_stage = state.c, state.d_stage
    slabs, subtiles, registers = len(ctx.slab_rows), ctx.config.tile_n // io.epi_n, ctx.layout.registers(io.epi_n)
    for slab in cutlass.range_constexpr(slabs):
        for subtile in cutlass.range_constexpr(subtiles):
            frag = EpilogueFragment(
                acc=accumulators.load((slab * subtiles + subtile) * registers, registers),
                c=None,
                slab=slab,
                base=subtile * registers,
                subtile=subtile,
            )
            if cutlass.const_expr((slab, subtile) == (slabs - 1, subtiles - 1)):
                accumulators.release()
            here = ctx
            if cutlass.const_expr(has_scattered(ctx, io)):
                here = anew(ctx)
            if cutlass.const_expr(io.c is not None):
                if cutlass.const_expr(c_state is None):
                    frag.c = load_elements(io.c, here, frag)
                else:
                    frag.c = load_c_subtile(ctx, io, frag, c_state)
                    c_state.advance(io.c_step)
            for i in cutlass.range_constexpr(len(mixins)):
                mixin_states[i] = mixins[i].visit(here, mixin_states[i], frag)
            d_stage = kernel.commit(here, io, frag, EpilogueState(c_state, d_stage)).d_stage
    for i in cutlass.range_constexpr(len(mixins)):
        mixins[i].end(ctx, mixin_states[i])
    return EpilogueState(c_state, d_stage)
