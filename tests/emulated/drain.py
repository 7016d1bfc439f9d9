"""A kernel that is only an epilogue: its accumulators come from a matrix in memory, in the layout under test."""

from dataclasses import dataclass
from typing import Any, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32
from cutlass.cute.nvgpu import cpasync, warpgroup
from cutlass.memory import SmemAllocator
from cutlass.pipeline import PipelineUserType, make_pipeline_state
from cutlass.tensor_utils import LayoutEnum
from cutlass.utils import sm90 as sm90_utils

from quack.cute_dtype import CUTE_DTYPE
from quack.dsl.barrier import WARPGROUP_THREADS, sync_warpgroup
from quack.epilogue.accumulators import Accumulators, RegisterAccumulators
from quack.epilogue.fragment import MmaFragment
from quack.epilogue.fragment_layout import FragmentLayout
from quack.epilogue.protocol import EpilogueContext, EpilogueMixin, bind_epilogue, bound_ports
from quack.epilogue.row_fragment import RowFragment
from quack.gemm_base import TmaOperand
from quack.gemm_config import GemmConfig, Major, OperandSpec
from quack.gemm_epilogue_plan import DefaultCommit, EpilogueIO, EpilogueState, TileStore, run_epilogue_plan
from quack.gemm_port import EpilogueOpSpec, PortKind, scratch_bytes, tile_layouts
from quack.split_k_combine import PartialTile

TILE_M = 128
D_STAGES = 2


def no_table(*port: object):
    raise NotImplementedError(port)


@dataclass(frozen=True)
class MemoryAccumulators(Accumulators):
    """As tensor memory is: behind loads and stores. Overwritten as soon as it is released."""

    memory: cute.Tensor  # (elements, 128) fp32
    thread: Int32

    @property
    def elements(self) -> int:
        return self.memory.shape[0]

    def load(self, first: int, count: int) -> cute.Tensor:
        values = cute.make_rmem_tensor(count, Float32)
        for v in range(count):
            values[v] = self.memory[first + v, self.thread]
        return values

    def store(self, first: int, values: cute.Tensor) -> None:
        for v in range(cute.size(values)):
            self.memory[first + v, self.thread] = values[v]

    def clear(self) -> None:
        for v in range(self.elements):
            self.memory[v, self.thread] = Float32(0.0)

    def release(self) -> None:
        for v in range(self.elements):
            self.memory[v, self.thread] = Float32(float("nan"))


class AllThere:
    """In place of the pipeline that C comes through: everything is in shared memory already."""

    def consumer_wait(self, state: Any) -> None:
        pass

    def consumer_release(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class SplitParameters:
    workspace: cute.Tensor


@dataclass(frozen=True)
class Drain(DefaultCommit):
    """D (M, N) = epilogue(X fp32, C), one CTA of one warpgroup for each tile of 128 x tile_n. X is whole tiles, more than D.

    by_row: RowFragment, not MmaFragment. is_in_memory: the accumulators are not in registers. doubles: they go to the
    workspace twice, by a store and by additions, and what comes back, 2 X, replaces them.
    """

    by_row: bool
    shape: tuple[int, int]
    tile_n: int
    epi_n: int
    d: OperandSpec
    c: Optional[OperandSpec] = None
    specs: tuple[EpilogueOpSpec, ...] = ()
    mixins: tuple[type[EpilogueMixin], ...] = ()
    is_in_memory: bool = False
    doubles: bool = False

    @property
    def layout_class(self) -> type[FragmentLayout]:
        return RowFragment if self.by_row else MmaFragment

    @property
    def config(self) -> GemmConfig:
        return GemmConfig(TILE_M, self.tile_n, tile_k=64, cluster_m=1)

    @property
    def slabs(self) -> int:
        return TILE_M // self.layout_class.slab_m

    @property
    def outputs(self) -> tuple[OperandSpec, ...]:
        return (self.d, *tile_layouts(self.specs, PortKind.TILE_OUTPUT))

    def subtile_of(self, spec: OperandSpec) -> tuple[int, int]:
        return self.layout_class.slab_m, self.epi_n // (2 if spec.is_halved else 1)

    def smem_layout(self, spec: OperandSpec, stages: int) -> Any:
        major = LayoutEnum.ROW_MAJOR if spec.major is Major.INNER else LayoutEnum.COL_MAJOR
        return sm90_utils.make_smem_layout_epi(CUTE_DTYPE[spec.dtype], major, self.subtile_of(spec), stages)

    def make_layout(self) -> FragmentLayout:
        thread = cute.arch.thread_idx()[0]
        if self.by_row:
            return RowFragment(thread)
        k_major = cute.nvgpu.OperandMajorMode.K
        bf16 = cutlass.BFloat16
        return MmaFragment(
            sm90_utils.make_trivial_tiled_mma(
                bf16, bf16, k_major, k_major, Float32, (1, 1, 1), (64, self.tile_n), warpgroup.OperandSource.SMEM
            ),
            thread,
        )

    @cute.jit
    def __call__(
        self,
        x: cute.Tensor,
        c: Optional[cute.Tensor],
        outputs: tuple,
        inputs: Optional[tuple],
        arguments: Optional[tuple],
        spill: cute.Tensor,
        stream,
    ):
        """outputs: D and the tile outputs; inputs: the tile inputs; arguments: the other ports, flat.

        spill: fp32 (2 tiles, elements of a thread, 128): the accumulators if they are in memory; the workspace.
        """
        operands = [self.make_output(spec, output) for spec, output in zip(self.outputs, outputs)]
        grid = (x.shape[0] // TILE_M, x.shape[1] // self.tile_n, 1)
        self.kernel(x, c, operands, inputs, arguments, spill).launch(
            grid=grid, block=(WARPGROUP_THREADS, 1, 1), stream=stream
        )

    def make_output(self, spec: OperandSpec, tensor: cute.Tensor) -> TmaOperand:
        if not spec.is_tma:
            return TmaOperand(None, tensor)
        layout = cute.slice_(self.smem_layout(spec, 1), (None, None, 0))
        store = cpasync.CopyBulkTensorTileS2GOp()
        return TmaOperand(*cpasync.make_tiled_tma_atom(store, tensor, layout, self.subtile_of(spec)))

    @cute.kernel
    def kernel(
        self,
        x: cute.Tensor,
        c: Optional[cute.Tensor],
        operands: list,
        inputs: Optional[tuple],
        arguments: Optional[tuple],
        spill: cute.Tensor,
    ):
        thread, _, _ = cute.arch.thread_idx()
        tile_m, tile_n, _ = cute.arch.block_idx()
        allocator = SmemAllocator()

        def staged(spec: OperandSpec, stages: int) -> cute.Tensor:
            layout = self.smem_layout(spec, stages)
            return allocator.allocate_tensor(CUTE_DTYPE[spec.dtype], layout.outer, 1024, swizzle=layout.inner)

        smem = [staged(spec, D_STAGES) if spec.is_tma else None for spec in self.outputs]
        subtiles = self.slabs * self.tile_n // self.epi_n
        sC = c_state = None
        if cutlass.const_expr(self.c is not None and self.c.is_tma):
            sC = staged(self.c, subtiles)
            c_state = make_pipeline_state(PipelineUserType.Consumer, subtiles)
        words = scratch_bytes(self.specs, self.config) // 4
        scratch = None
        if cutlass.const_expr(words > 0):
            scratch = allocator.allocate_tensor(Float32, cute.make_layout(words), 16)
        layout = self.make_layout()
        ctx = EpilogueContext(
            problem=Int32(0),
            table_row=Int32(0),
            row=tile_m * TILE_M,
            col=tile_n * self.tile_n,
            rows=Int32(self.shape[0]),
            cols=Int32(self.shape[1]),
            first_row=Int32(0),
            tile_m=tile_m,
            tile_n=tile_n,
            warpgroup=Int32(0),
            share=Int32(0),
            shares=1,
            thread=thread,
            slab_rows=tuple(slab * layout.slab_m for slab in range(self.slabs)),
            config=self.config,
            layout=layout,
            scratch=scratch,
            inputs=() if inputs is None else inputs,
        )
        mixins = bind_epilogue(self.specs, self.mixins, self.config, arguments, no_table)
        for mixin in mixins:
            for port in bound_ports(mixin):
                ctx.stage(port)
        states = [mixin.begin(ctx) for mixin in mixins]
        if cutlass.const_expr(sC is not None):
            self.fill_c(ctx, c, sC)
        accumulators = self.make_accumulators(ctx, x, spill[tile_m * cute.arch.grid_dim()[1] + tile_n, None, None])
        sync_warpgroup(Int32(0))
        if cutlass.const_expr(self.doubles):
            self.double(ctx, accumulators, spill)
        is_store_warp = cute.arch.make_warp_uniform(cute.arch.warp_idx()) == 0
        io = EpilogueIO(
            c=c,
            c_atom=None,
            sC=sC,
            copy_c=None if sC is None else layout.load_copy(self.c, self.epi_n),
            c_pipeline=AllThere(),
            c_step=1,
            outputs=tuple(self.make_store(layout, *output) for output in zip(self.outputs, operands, smem)),
            stages=D_STAGES,
            first_stage=Int32(0),
            warpgroup=Int32(0),
            is_store_warp=is_store_warp,
            epi_n=self.epi_n,
        )
        run_epilogue_plan(self, ctx, mixins, states, io, accumulators, EpilogueState(c_state, Int32(0)))
        self.drain(is_store_warp)

    def make_store(self, layout: FragmentLayout, spec: OperandSpec, operand: TmaOperand, smem) -> TileStore:
        _, columns = self.subtile_of(spec)
        return TileStore(
            tensor=operand.tensor,
            atom=operand.atom,
            descriptor=None,
            smem=smem,
            copy=None if operand.atom is None else layout.store_copy(spec, columns),
            dtype=CUTE_DTYPE[spec.dtype],
            columns=columns,
            is_halved=spec.is_halved,
        )

    @cute.jit
    def fill_c(self, ctx: EpilogueContext, c: cute.Tensor, sC: cute.Tensor):
        """All subtiles of C, by element, in the order in which they are drained."""
        rows, epi_n = self.layout_class.slab_m, self.epi_n
        first_row, first_col, m_limit, n_limit = ctx.row, ctx.col, ctx.rows, ctx.cols
        for stage in cutlass.range_constexpr(self.slabs * self.tile_n // epi_n):
            slab, subtile = divmod(stage, self.tile_n // epi_n)
            for i in cutlass.range(ctx.thread, rows * epi_n, WARPGROUP_THREADS):
                m, n = first_row + slab * rows + i // epi_n, first_col + subtile * epi_n + i % epi_n
                value = sC.element_type(0.0)
                if m < m_limit and n < n_limit:
                    value = c[m, n]
                sC[i // epi_n, i % epi_n, stage] = value

    @cute.jit
    def make_accumulators(self, ctx: EpilogueContext, x: cute.Tensor, memory: cute.Tensor) -> Accumulators:
        """X as the matrix instructions leave it."""
        registers = self.layout_class.registers(self.tile_n)
        found = RegisterAccumulators(cute.make_rmem_tensor((registers, self.slabs), Float32))
        if cutlass.const_expr(self.is_in_memory):
            found = MemoryAccumulators(memory, ctx.thread)
        for slab in cutlass.range_constexpr(self.slabs):
            first = (ctx.row // self.layout_class.slab_m + slab, ctx.tile_n)
            part = ctx.layout.partition(cute.local_tile(x, (self.layout_class.slab_m, self.tile_n), first))
            values = cute.make_rmem_tensor(registers, Float32)
            for v in cutlass.range_constexpr(registers):
                values[v] = part[v]
            found.store(slab * registers, values)
        return found

    @cute.jit
    def double(self, ctx: EpilogueContext, accumulators: Accumulators, spill: cute.Tensor):
        """By way of the workspace."""
        flat = cute.make_tensor(spill.iterator, cute.make_layout(cute.size(spill)))
        tiles = cute.arch.grid_dim()[0] * cute.arch.grid_dim()[1]
        slot = tiles + ctx.tile_m * cute.arch.grid_dim()[1] + ctx.tile_n
        tile = PartialTile(accumulators, None, SplitParameters(flat), ctx.thread, Int32(0), Int32(0), 1)
        memory = tile.memory(slot)
        tile.store(memory)
        tile.reduce(memory)
        accumulators.clear()
        tile.add(memory)
