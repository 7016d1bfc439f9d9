"""Grouped problems: every problem has matrices, extents and pitches of its own. Nothing is copied or padded.

The host keeps one row of 16 int64 per problem:

| word | 0 | 1 | 2 | 3 | 4 + 2 i | 5 + 2 i | 12 .. 15 |
|---|---|---|---|---|---|---|---|
| | M | N | K | 0 | address of operand i (A, B, C, D) | pitch of its strided mode, in elements | 0 |

and, per problem and operand, 128 bytes for a TMA descriptor. When the addresses are new, a kernel with one block per problem
runs first: each of its warps copies the descriptor of the *template* (the operand of one of the problems, from which the
kernel was launched: box, swizzle and element type are the same for all), replaces address, extents and pitch, and releases it
to the tensormap proxy. The GEMM kernel acquires a descriptor before it uses it.
"""

import enum
from typing import Any, NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64
from cutlass.cute.nvgpu import cpasync
from cutlass.memory import SmemAllocator
from cutlass.tensor_utils import TensorMapManager, TensorMapUpdateMode

from .cute_dtype import CUTE_DTYPE
from .gemm_config import GemmConfig, Major
from .gemm_port import GROUPED_WORDS, ArgumentKind
from .gemm_problem_adapter import Operand, ProblemAdapter, ProblemShape
from .gemm_work import WorkDesc
from .search_scheduler import GroupedDynamicScheduler, GroupedStaticScheduler, GroupedTileGrid
from .tile_scheduler import TileScheduler

DESCRIPTOR_BYTES = 128
OPERANDS = tuple(Operand)
WARP = 32


class Word(enum.IntEnum):
    """Columns of the table."""

    M = 0
    N = 1
    K = 2
    OPERANDS = 4


class GroupedParams(NamedTuple):
    """table (G, 16) int64; descriptors (4 G, 16) int64, 128-byte aligned; is_new: whether they must be written first."""

    table: cute.Tensor
    descriptors: cute.Tensor
    is_new: Int32


class GroupedAdapter(ProblemAdapter):
    """Problem = row of the table. a, b, c and d of the launch are those of one problem and serve as templates."""

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

    @cute.jit
    def prepare(self, params: GroupedParams, operands: Any, stream):
        """Host. Without PDL: an earlier launch may still read the descriptors."""
        if params.is_new != 0:
            self.write_descriptors(params, operands).launch(
                grid=[cute.size(params.table, mode=[0]), 1, 1], block=[WARP * len(OPERANDS), 1, 1], stream=stream
            )

    @cute.kernel
    def write_descriptors(self, params: GroupedParams, operands: Any):
        """Warp i of block p writes the descriptor of operand i of problem p."""
        problem = cute.arch.block_idx()[0]
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        staging = SmemAllocator().allocate_array(Int64, GROUPED_WORDS * len(OPERANDS), byte_alignment=DESCRIPTOR_BYTES)
        for i in cutlass.range_constexpr(len(OPERANDS)):
            operand = getattr(operands, OPERANDS[i].value)
            if cutlass.const_expr(operand is not None and operand.atom is not None):
                if warp == i:
                    draft = staging + i * GROUPED_WORDS
                    with cute.arch.elect_one():
                        cpasync.copy_tensormap(operand.atom, draft)
                    cute.arch.sync_warp()
                    cpasync.update_tma_descriptor(operand.atom, self.memory(params, OPERANDS[i], problem), draft)
                    cute.arch.sync_warp()
                    cpasync.cp_fence_tma_desc_release(self.descriptor_pointer(params, OPERANDS[i], problem), draft)

    @cute.jit
    def memory(self, params: GroupedParams, which: cutlass.Constexpr[Operand], problem: Int32) -> cute.Tensor:
        """Device. The operand of one problem in kernel mode order, (outer, inner, 1). Extents of 0 count as 1: they are
        never read, but a descriptor cannot hold them."""
        spec = getattr(self.specs, which.value)
        word = Word.OPERANDS + 2 * OPERANDS.index(which)
        outer = params.table[problem, Word.N if cutlass.const_expr(which is Operand.B) else Word.M]
        is_input = which is Operand.A or which is Operand.B
        inner = params.table[problem, Word.K if cutlass.const_expr(is_input) else Word.N]
        pitch = params.table[problem, word + 1]
        if cutlass.const_expr(spec.is_tma):
            pitch = cute.assume(pitch, divby=spec.align // spec.dtype.bytes)
        shape = (cutlass.max(Int32(outer), 1), cutlass.max(Int32(inner), 1), 1)
        stride = (pitch, 1, 0) if cutlass.const_expr(spec.major is Major.INNER) else (1, pitch, 0)
        dtype = CUTE_DTYPE[spec.dtype]
        pointer = cute.make_ptr(dtype, params.table[problem, word], cute.AddressSpace.gmem, assumed_align=spec.align)
        return cute.make_tensor(pointer, cute.make_layout(shape, stride=stride))

    def descriptor_pointer(self, params: GroupedParams, which: Operand, problem: Int32) -> cute.Pointer:
        row = problem * len(OPERANDS) + OPERANDS.index(which)
        manager = TensorMapManager(TensorMapUpdateMode.GMEM, DESCRIPTOR_BYTES)
        pointer = params.descriptors.iterator + row * GROUPED_WORDS
        return manager.get_tensormap_ptr(pointer, cute.AddressSpace.generic)

    @cute.jit
    def acquire(
        self,
        params: GroupedParams,
        which: cutlass.Constexpr[tuple[Operand, ...]],
        work: WorkDesc,
        held: Int32,
    ) -> Int32:
        if work.problem != held:
            for i in cutlass.range_constexpr(len(which)):
                cpasync.fence_tma_desc_acquire(self.descriptor_pointer(params, which[i], work.problem))
        return work.problem

    def descriptor(self, params: GroupedParams, which: Operand, work: WorkDesc) -> cute.Pointer:
        return self.descriptor_pointer(params, which, work.problem)

    @cute.jit
    def problem_shape(self, params: GroupedParams, work: WorkDesc) -> ProblemShape:
        return ProblemShape(work.m, work.n, work.k)

    @cute.jit
    def k_tiles(self, params: GroupedParams, work: WorkDesc, tile_k: int) -> Int32:
        return cute.ceil_div(work.k, tile_k)

    @cute.jit
    def operand(
        self, params: GroupedParams, which: cutlass.Constexpr[Operand], tensor: cute.Tensor, work: WorkDesc
    ) -> cute.Tensor:
        if cutlass.const_expr(getattr(self.specs, which.value).is_tma):
            return tensor[None, None, 0]  # coordinates; what they mean is in the descriptor
        return self.memory(params, which, work.problem)[None, None, 0]
