"""Ragged problems: token groups whose offsets only the device knows (`cu_seqlens`), without padding and without a sync.

| | A | B | C, D | group g |
|---|---|---|---|---|
| `VarlenMAdapter` (MoE forward) | (total_m, K) | (G, K, N) | (total_m, N) | owns rows cu_seqlens[g] .. cu_seqlens[g + 1] of A, C, D |
| `VarlenKAdapter` (weight gradient) | (M, total_k) | (total_k, N) | (G, M, N) | sums over k in cu_seqlens[g] .. cu_seqlens[g + 1] |

What must not cross a group's end (stores of D, and all of K) goes through a *ragged view*: a TMA tensor with two more modes,
in which a group's rows always end at the bound of the ragged mode, wherever in memory they lie. With pitch S and
BIG = 2^30, the element at coordinates (x, y, z) of modes with strides (S, S, 2^34 - S) is

    x * S + y * S + z * (2^34 - S)      and for (BIG - size + r, start + size, BIG):      (start + r) * S + 2^64

Addresses wrap at 2^64, and x reaches its extent BIG exactly at r = size, so TMA drops or zero-fills everything from there on.
One descriptor serves all groups. (The trick is Triton's `create_ragged_descriptor`; verified on an H200, see
docs/measured_facts.md.)
"""

from typing import NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64

from .block_scales import BLOCK_ROWS, BLOCK_WORDS
from .gemm_config import GemmConfig
from .gemm_port import ArgumentKind
from .gemm_problem_adapter import Operand, ProblemAdapter, ProblemShape, TileGrid
from .gemm_work import WorkDesc
from .search_scheduler import WARP, VarlenDynamicScheduler, VarlenStaticScheduler, VarlenTileGrid, prefix_sum
from .tile_scheduler import TileScheduler

BIG = 1 << 30
UNBOUNDED = 0x7FFF0000  # extent of the modes that only place a group


@cute.jit
def ragged_view(tensor: cute.Tensor, mode: cutlass.Constexpr[int]) -> cute.Tensor:
    """Host. A 2-D (outer, inner, 1) tensor with `mode` (0 or 1) ragged: (outer, inner, y, z)."""
    pitch = Int64(tensor.stride[mode])
    shape, stride = list(tensor.shape[:2]), list(tensor.stride[:2])
    shape[mode] = BIG
    layout = cute.make_layout((*shape, UNBOUNDED, UNBOUNDED), stride=(*stride, pitch, (1 << 34) - pitch))
    return cute.make_tensor(tensor.iterator, layout)


@cute.jit
def ragged_slice(view: cute.Tensor, mode: cutlass.Constexpr[int], start: Int32, size: Int32) -> cute.Tensor:
    """Device. The (outer, inner) coordinates of `size` rows from `start` on; what lies behind them is out of bounds."""
    offset = [0, 0, 0, 0]
    offset[mode] = BIG - size
    return cute.domain_offset(tuple(offset), view)[None, None, start + size, BIG]


@cute.jit
def blocks_before(cu_seqlens: cute.Tensor, problem: Int32, unit: cutlass.Constexpr[int]) -> Int32:
    """Device, all lanes of a warp. Blocks of so many elements of all groups before this one, each of which has whole ones."""
    lane, blocks = cute.arch.lane_idx(), Int32(0)
    for first in cutlass.range(0, problem, WARP, unroll=1):
        group = first + lane
        if group < problem:
            blocks += cute.ceil_div(cu_seqlens[group + 1] - cu_seqlens[group], unit)
    return cute.arch.shuffle_sync(prefix_sum(blocks, lane), WARP - 1)


class VarlenMParams(NamedTuple):
    """cu_seqlens (G + 1,) int32; total_m rows; N and K of every group."""

    cu_seqlens: cute.Tensor
    total_m: Int32
    n: Int32
    k: Int32


class VarlenMAdapter(ProblemAdapter):
    """M is split among the groups. Loads may run into the next group's rows, stores never do."""

    has_short_tiles = True
    arguments = {"cu_seqlens": ArgumentKind.INT32_VECTOR}

    def scheduler_class(self, config: GemmConfig) -> type[TileScheduler]:
        return VarlenDynamicScheduler if config.is_dynamic_persistent else VarlenStaticScheduler

    @cute.jit
    def make_params(self, a: cute.Tensor, b: cute.Tensor, d: cute.Tensor, arguments: Optional[tuple]) -> VarlenMParams:
        return VarlenMParams(
            arguments[0], Int32(cute.size(d, mode=[0])), Int32(cute.size(b, mode=[0])), Int32(cute.size(a, mode=[1]))
        )

    @cute.jit
    def tile_grid(self, params: VarlenMParams, tile_m: int, tile_n: int) -> VarlenTileGrid:
        return VarlenTileGrid(params.cu_seqlens, params.total_m, tile_m, cute.ceil_div(params.n, tile_n))

    def tma_tensor(self, which: Operand, tensor: cute.Tensor) -> cute.Tensor:
        return ragged_view(tensor, 0) if which is Operand.D else tensor

    @cute.jit
    def problem_shape(self, params: VarlenMParams, work: WorkDesc) -> ProblemShape:
        return ProblemShape(work.m, params.n, params.k)

    @cute.jit
    def k_tiles(self, params: VarlenMParams, work: WorkDesc, tile_k: int) -> Int32:
        return cute.ceil_div(params.k, tile_k)

    @cute.jit
    def operand(
        self, params: VarlenMParams, which: cutlass.Constexpr[Operand], tensor: cute.Tensor, work: WorkDesc
    ) -> cute.Tensor:
        if cutlass.const_expr(which is Operand.B):
            return tensor[None, None, work.problem]
        if cutlass.const_expr(cute.rank(tensor) == 4):
            return ragged_slice(tensor, 0, work.start, work.m)
        return cute.domain_offset((work.start, 0), tensor[None, None, 0])

    @cute.jit
    def scales(
        self,
        params: VarlenMParams,
        which: cutlass.Constexpr[Operand],
        tensor: cute.Tensor,
        work: WorkDesc,
        row_block: Int32,
        block_k: cutlass.Constexpr[int],
    ) -> cute.Tensor:
        if cutlass.const_expr(which is Operand.B):
            return cute.domain_offset((row_block, 0), tensor[None, None, work.problem])
        first = blocks_before(params.cu_seqlens, work.problem, BLOCK_ROWS)
        return cute.domain_offset((first + row_block, 0), tensor[None, None, 0])


class VarlenKParams(NamedTuple):
    """cu_seqlens (G + 1,) int32; M and N of every group."""

    cu_seqlens: cute.Tensor
    m: Int32
    n: Int32
    problems: Int32


class VarlenKAdapter(ProblemAdapter):
    """K is split among the groups; a group without k gives beta * C. A is M-major and B N-major, or (block-scaled) both are K-major."""

    has_ragged_k = True
    arguments = {"cu_seqlens": ArgumentKind.INT32_VECTOR}

    @cute.jit
    def make_params(self, a: cute.Tensor, b: cute.Tensor, d: cute.Tensor, arguments: Optional[tuple]) -> VarlenKParams:
        return VarlenKParams(
            arguments[0], Int32(cute.size(d, mode=[0])), Int32(cute.size(b, mode=[0])), Int32(cute.size(d, mode=[2]))
        )

    @cute.jit
    def tile_grid(self, params: VarlenKParams, tile_m: int, tile_n: int) -> TileGrid:
        return TileGrid(cute.ceil_div(params.m, tile_m), cute.ceil_div(params.n, tile_n), params.problems)

    def tma_tensor(self, which: Operand, tensor: cute.Tensor) -> cute.Tensor:
        # TMA needs pitches of 16 bytes in every mode, so a contiguous one cannot be ragged: its loads run on.
        is_strided = not isinstance(tensor.stride[1], int)
        return ragged_view(tensor, 1) if which in (Operand.A, Operand.B) and is_strided else tensor

    @cute.jit
    def problem_shape(self, params: VarlenKParams, work: WorkDesc) -> ProblemShape:
        k = params.cu_seqlens[work.problem + 1] - params.cu_seqlens[work.problem]
        return ProblemShape(params.m, params.n, k)

    @cute.jit
    def k_tiles(self, params: VarlenKParams, work: WorkDesc, tile_k: int) -> Int32:
        return cute.ceil_div(self.problem_shape(params, work).k, tile_k)

    @cute.jit
    def operand(
        self, params: VarlenKParams, which: cutlass.Constexpr[Operand], tensor: cute.Tensor, work: WorkDesc
    ) -> cute.Tensor:
        if cutlass.const_expr(which is Operand.A or which is Operand.B):
            start = params.cu_seqlens[work.problem]
            if cutlass.const_expr(cute.rank(tensor) == 4):
                return ragged_slice(tensor, 1, start, params.cu_seqlens[work.problem + 1] - start)
            return cute.domain_offset((0, start), tensor[None, None, 0])
        return tensor[None, None, work.problem]

    @cute.jit
    def scales(
        self,
        params: VarlenKParams,
        which: cutlass.Constexpr[Operand],
        tensor: cute.Tensor,
        work: WorkDesc,
        row_block: Int32,
        block_k: cutlass.Constexpr[int],
    ) -> cute.Tensor:
        m, n, k = self.problem_shape(params, work)
        rows = cute.ceil_div(m if cutlass.const_expr(which is Operand.A) else n, BLOCK_ROWS)
        block = blocks_before(params.cu_seqlens, work.problem, block_k) * rows + row_block * cute.ceil_div(k, block_k)
        return cute.domain_offset((0, block * BLOCK_WORDS), tensor[None, None, 0])
