"""Grouped problems: every problem has matrices, vectors, extents and pitches of its own. Nothing is copied or padded.

The host keeps a table with a row of int64 words for each problem, and room for TMA descriptors (`grouped_table` says what is where).
When the addresses are new, a kernel with one block per problem runs first: each of its warps copies the descriptor of the
*template* (the matrix of one of the problems, from which the kernel was launched: box, swizzle and element type are the same for
all), replaces address, extents and pitch, and releases it to the tensormap proxy. The GEMM kernel acquires a descriptor before it
uses it.
"""

from typing import Any, NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64
from cutlass.cute.nvgpu import cpasync
from cutlass.memory import SmemAllocator
from cutlass.tensor_utils import TensorMapManager, TensorMapUpdateMode

from .block_scales import BLOCK_ROWS, BLOCK_SCALES, BLOCK_WORDS
from .cute_dtype import CUTE_DTYPE
from .epilogue.tables import TensorTable
from .gemm_config import TMA_ALIGN_BYTES, GemmConfig, Major, OperandSpec
from .gemm_port import ArgumentKind, PortId, PortSpec, tile_layouts
from .gemm_problem_adapter import Matrix, Operand, ProblemAdapter, ProblemShape
from .gemm_work import WorkDesc
from .grouped_table import LINE_WORDS, Slot, TableLayout, Word, table_layout
from .search_scheduler import GroupedDynamicScheduler, GroupedStaticScheduler, GroupedTileGrid
from .tile_scheduler import TileScheduler

DESCRIPTOR_BYTES = 128
WARP = 32


def elements_of(spec: OperandSpec, nbytes: int) -> int:
    """In global memory."""
    return 2 * nbytes if spec.dtype.is_packed else nbytes // spec.dtype.bytes


class GroupedParams(NamedTuple):
    """table (G, words) int64; descriptors (all problems', 16) int64, 128-byte aligned; is_new: whether to write them first."""

    table: cute.Tensor
    descriptors: cute.Tensor
    is_new: Int32


class GroupedAdapter(ProblemAdapter):
    """Problem = row of the table. The launch's matrices and tiles of mixins are those of one problem, and serve as templates."""

    has_short_tiles = True
    arguments = {
        "table": ArgumentKind.INT64_ROWS,
        "descriptors": ArgumentKind.INT64_ROWS,
        "is_new": ArgumentKind.INT32,
    }

    def scheduler_class(self, config: GemmConfig) -> type[TileScheduler]:
        return GroupedDynamicScheduler if config.is_dynamic_persistent else GroupedStaticScheduler

    def make_params(self, a: cute.Tensor, b: cute.Tensor, d: cute.Tensor, arguments: Optional[tuple]) -> GroupedParams:
        return GroupedParams(*arguments)

    def tile_grid(self, params: GroupedParams, tile_m: int, tile_n: int) -> GroupedTileGrid:
        return GroupedTileGrid(params.table, tile_m, tile_n)

    # ---- what the table has of a matrix --------------------------------------------------------------------------------

    @property
    def table(self) -> TableLayout:
        return table_layout(self.specs, self.epilogue_specs)

    def slot(self, which: Matrix) -> Slot:
        return self.table.slots[which.value if isinstance(which, Operand) else which]

    def spec_of(self, which: Matrix) -> OperandSpec:
        if isinstance(which, Operand):
            return getattr(self.specs, which.value)
        return tile_layouts(self.epilogue_specs, which.kind)[which.index]

    @cute.jit
    def scale_memory(self, params: GroupedParams, which: cutlass.Constexpr[Any], problem: Int32) -> cute.Tensor:
        """Device. The scales of A or B of one problem, words as `block_scales` has them, (row blocks, words, 1)."""
        is_a = which is Operand.A_SCALE
        rows = Int32(params.table[problem, int(Word.M if cutlass.const_expr(is_a) else Word.N)])
        blocks = cute.ceil_div(
            Int32(params.table[problem, int(Word.K)]),
            BLOCK_SCALES * (self.specs.a if is_a else self.specs.b).scaling.block,
        )
        words = Int64(blocks * BLOCK_WORDS)
        shape = (cutlass.max(cute.ceil_div(rows, BLOCK_ROWS), 1), cutlass.max(Int32(words), 1), 1)
        address = params.table[problem, self.slot(which).word]
        pointer = cute.make_ptr(Int64, address, cute.AddressSpace.gmem, assumed_align=TMA_ALIGN_BYTES)
        stride = (cute.assume(words, divby=BLOCK_WORDS), 1, 0)
        return cute.make_tensor(pointer, cute.make_layout(shape, stride=stride))

    @cute.jit
    def memory(self, params: GroupedParams, which: cutlass.Constexpr[Any], problem: Int32) -> cute.Tensor:
        """Device. The matrix of one problem in kernel mode order, (outer, inner, 1). Extents of 0 count as 1: they are never read,
        but a descriptor cannot hold them."""
        if cutlass.const_expr(which in (Operand.A_SCALE, Operand.B_SCALE)):
            return self.scale_memory(params, which, problem)
        spec, slot = self.spec_of(which), self.slot(which)
        outer = params.table[problem, int(Word.N if cutlass.const_expr(which is Operand.B) else Word.M)]
        is_input = which is Operand.A or which is Operand.B
        inner = params.table[problem, int(Word.K if cutlass.const_expr(is_input) else Word.N)]
        if cutlass.const_expr(spec.is_halved):
            inner = inner // 2
        pitch = params.table[problem, slot.pitch]
        if cutlass.const_expr(spec.is_tma):
            pitch = cute.assume(pitch, divby=elements_of(spec, spec.align))
        shape = (cutlass.max(Int32(outer), 1), cutlass.max(Int32(inner), 1), 1)
        stride = (pitch, 1, 0) if cutlass.const_expr(spec.major is Major.INNER) else (1, pitch, 0)
        dtype, address = CUTE_DTYPE[spec.dtype], params.table[problem, slot.word]
        pointer = cute.make_ptr(dtype, address, cute.AddressSpace.gmem, assumed_align=spec.align)
        return cute.make_tensor(pointer, cute.make_layout(shape, stride=stride))

    @cute.jit
    def operand(
        self, params: GroupedParams, which: cutlass.Constexpr[Any], tensor: cute.Tensor, work: WorkDesc
    ) -> cute.Tensor:
        if cutlass.const_expr(self.slot(which).descriptor is not None):
            return tensor[None, None, 0]  # coordinates; what they mean is in the descriptor
        return self.memory(params, which, work.problem)[None, None, 0]

    def port_table(self, params: GroupedParams, which: PortId, spec: PortSpec) -> TensorTable:
        slot = self.table.slots[which]
        return TensorTable(params.table, CUTE_DTYPE[spec.dtype], slot.word, slot.pitch)

    # ---- descriptors ---------------------------------------------------------------------------------------------------

    @cute.jit
    def prepare(self, params: GroupedParams, operands: Any, stream):
        """Host. Without PDL: an earlier launch may still read the descriptors."""
        if params.is_new != 0:
            self.write_descriptors(params, operands).launch(
                grid=[cute.size(params.table, mode=[0]), 1, 1],
                block=[WARP * self.table.descriptors, 1, 1],
                stream=stream,
            )

    @cute.kernel
    def write_descriptors(self, params: GroupedParams, operands: Any):
        """Warp i of block p writes descriptor i of problem p."""
        problem = cute.arch.block_idx()[0]
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        words = LINE_WORDS * self.table.descriptors
        staging = SmemAllocator().allocate_array(Int64, words, byte_alignment=DESCRIPTOR_BYTES)
        for which in cutlass.range_constexpr(len(self.described)):
            self.write_descriptor(params, self.described[which], operands, staging, problem, warp)

    @property
    def described(self) -> tuple[Matrix, ...]:
        """The matrices with a descriptor, in the order of these."""
        slots = self.table.slots.items()
        return tuple(Operand(k) if isinstance(k, str) else k for k, slot in slots if slot.descriptor is not None)

    @cute.jit
    def write_descriptor(
        self,
        params: GroupedParams,
        which: cutlass.Constexpr[Any],
        operands: Any,
        staging: cute.Pointer,
        problem: Int32,
        warp: Int32,
    ):
        if cutlass.const_expr(which is Operand.A_SCALE or which is Operand.B_SCALE):
            atom = operands.scales[int(which is Operand.B_SCALE)].atom
        elif cutlass.const_expr(isinstance(which, Operand)):
            atom = getattr(operands, which.value).atom
        else:
            atom = operands.tile_outputs[which.index].atom
        if warp == self.slot(which).descriptor:
            draft = staging + self.slot(which).descriptor * LINE_WORDS
            with cute.arch.elect_one():
                cpasync.copy_tensormap(atom, draft)
            cute.arch.sync_warp()
            cpasync.update_tma_descriptor(atom, self.memory(params, which, problem), draft)
            cute.arch.sync_warp()
            cpasync.cp_fence_tma_desc_release(self.descriptor_pointer(params, which, problem), draft)

    def descriptor_pointer(self, params: GroupedParams, which: Matrix, problem: Int32) -> cute.Pointer:
        row = problem * self.table.descriptors + self.slot(which).descriptor
        manager = TensorMapManager(TensorMapUpdateMode.GMEM, DESCRIPTOR_BYTES)
        pointer = params.descriptors.iterator + row * LINE_WORDS
        return manager.get_tensormap_ptr(pointer, cute.AddressSpace.generic)

    @cute.jit
    def acquire(
        self,
        params: GroupedParams,
        which: cutlass.Constexpr[tuple[Matrix, ...]],
        work: WorkDesc,
        held: Int32,
    ) -> Int32:
        if work.problem != held:
            for i in cutlass.range_constexpr(len(which)):
                cpasync.fence_tma_desc_acquire(self.descriptor_pointer(params, which[i], work.problem))
        return work.problem

    def descriptor(self, params: GroupedParams, which: Matrix, work: WorkDesc) -> cute.Pointer:
        return self.descriptor_pointer(params, which, work.problem)

    # ---- extents -------------------------------------------------------------------------------------------------------

    @cute.jit
    def problem_number(self, params: GroupedParams, work: WorkDesc) -> Int32:
        return Int32(params.table[work.problem, int(Word.NUMBER)])

    @cute.jit
    def problem_shape(self, params: GroupedParams, work: WorkDesc) -> ProblemShape:
        return ProblemShape(work.m, work.n, work.k)

    @cute.jit
    def k_tiles(self, params: GroupedParams, work: WorkDesc, tile_k: int) -> Int32:
        return cute.ceil_div(work.k, tile_k)
