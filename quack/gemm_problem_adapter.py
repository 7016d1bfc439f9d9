"""Where operands come from: a `ProblemAdapter` gives each `WorkDesc` its problem shape, its K extent and its operands.

Arch kernels ask the adapter and never look at batches, sequence offsets or pointer tables themselves.

| hook | called by | gives |
|---|---|---|
| `scheduler_class` | constructor | the scheduler that enumerates this kind of problem |
| `make_params` | host `__call__`, once | the numbers the other hooks need |
| `tile_grid`, `scheduler_arguments` | host `__call__`, once | what the scheduler's `make_params` takes |
| `tma_tensor` | host `__call__`, per TMA operand | the tensor that its TMA descriptor describes |
| `prepare` | host `__call__`, before the launch | kernels that must run first |
| `acquire` | load and epilogue roles, per work | makes the problem's own TMA descriptors visible, if it has some |
| `descriptor` | load and epilogue roles, per work | such a descriptor |
| `problem_shape` | every role, per work | M, N, K of the work's problem |
| `problem_number` | epilogue role, per work | which problem of the call that is |
| `port_table` | epilogue role, once | where the mixins' vectors and partials of every problem are, if each has its own |
| `k_tiles` | `k_range` | number of k tiles of the problem; 0 leaves the accumulator zero |
| `k_range` | load and MMA roles, per work | those of them that the work adds up: all, but see `split_works` |
| `operand` | load and epilogue roles, per work | the 2-D (outer, inner) view of an operand, or a mixin's tile, for that problem |
| `scales` | load roles, per work, if A and B are block-scaled | the rows of blocks of their scales from one on |
| `gathered_lines` | load roles, per work, if `gathers_a` | which lines of A the problem consists of, instead of `operand(A)` |
"""

import enum
from typing import Any, ClassVar, NamedTuple, Optional, Union

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from .gemm_config import GemmConfig
from .gemm_port import ArgumentKind, PortId, PortSpec
from .gemm_work import WorkDesc
from .tile_scheduler import DynamicPersistentScheduler, SingleTileScheduler, StaticPersistentScheduler, TileScheduler


class Operand(enum.Enum):
    """The GEMM operands an adapter can be asked for."""

    A = "a"
    B = "b"
    C = "c"
    D = "d"
    A_SCALE = "a_scale"  # of block-scaled operands; of these two an adapter is asked for descriptors only
    B_SCALE = "b_scale"


Matrix = Union[Operand, PortId]  # an operand, or a tile of a mixin, which has the shape of D or half its columns


class ProblemShape(NamedTuple):
    """Extents in elements."""

    m: Int32
    n: Int32
    k: Int32


class KRange(NamedTuple):
    """The k tiles of one work: count of them, from first on. first is the number 0 where works are whole tiles."""

    first: Union[Int32, int]
    count: Int32


NO_PROBLEM = -1


class TileGrid(NamedTuple):
    """What the scheduler enumerates: CTA tiles per problem and problems."""

    tiles_m: Int32
    tiles_n: Int32
    problems: Int32


class GatheredLines(NamedTuple):
    """The lines of A of one problem: its line i is line indices[first + i] of A, for 0 <= i < count.

    A line is what the strided mode of A counts: a row if K is contiguous, a column k if M is.
    """

    indices: cute.Tensor  # int32
    first: Int32
    count: Int32


class ProblemAdapter:
    """Mixin for arch kernels. All hooks are stateless; `params` is what `make_params` returned."""

    has_short_tiles: ClassVar[bool] = False
    """Whether many tiles have half their rows or fewer, so that leaving those out is worth a second main loop."""
    has_ragged_k: ClassVar[bool] = False
    """Whether problems share out K among themselves: behind the last k of one there are another's, which K-major loads bring too."""
    arguments: ClassVar[dict[str, ArgumentKind]] = {}
    """What `make_params` takes besides the operands, by name and in this order."""

    gathers_a: ClassVar[bool] = False
    """Whether lines of A are picked by index, which TMA on sm_90 cannot: the load roles then ask `gathered_lines`."""

    def scheduler_class(self, config: GemmConfig) -> type[TileScheduler]:
        """Host. Default: equally shaped problems."""
        if config.is_dynamic_persistent:
            return DynamicPersistentScheduler
        return StaticPersistentScheduler if config.is_persistent else SingleTileScheduler

    def make_params(self, a: cute.Tensor, b: cute.Tensor, d: cute.Tensor, arguments: Optional[tuple]):
        """Host. a (M, K, L), b (N, K, L), d (M, N, L) in kernel mode order; arguments: the adapter's own tensors."""
        raise NotImplementedError

    def tile_grid(self, params, tile_m: int, tile_n: int) -> Any:
        """Host. Tiles that cover the problems, rounded up, as the scheduler's `make_params` takes them."""
        raise NotImplementedError

    def scheduler_arguments(self, params, arguments: Optional[tuple], tile_m: int, tile_n: int) -> tuple:
        """Host. What the scheduler's `make_params` takes: `tile_grid`, and whatever a mixin adds."""
        return self.tile_grid(params, tile_m, tile_n)

    def tma_tensor(self, which: "Operand", tensor: cute.Tensor) -> cute.Tensor:
        """Host. `tensor` in kernel mode order, with whatever modes `operand` needs to slice it."""
        return tensor

    def prepare(self, params, operands, stream) -> None:
        """Host. Launch what must run before the kernel; `operands` are the kernel's."""

    def acquire(self, params, which: tuple[Matrix, ...], work: WorkDesc, held: Int32) -> Int32:
        """Device, the warps that use `descriptor` for these matrices, before they do. held: the problem whose descriptors they
        acquired last, NO_PROBLEM at first. Returns the problem now held."""
        return held

    def descriptor(self, params, which: Matrix, work: WorkDesc) -> Optional[cute.Pointer]:
        """Device, after `acquire`. The TMA descriptor of this problem; None: the launch's own."""
        return None

    def problem_shape(self, params, work: WorkDesc) -> ProblemShape:
        """Device. Extents of the problem that `work` belongs to."""
        raise NotImplementedError

    def k_tiles(self, params, work: WorkDesc, tile_k: int) -> Int32:
        """Device. k tiles of the problem that `work` belongs to."""
        raise NotImplementedError

    def k_range(self, params, work: WorkDesc, tile_k: int) -> KRange:
        """Device. k tiles to accumulate for `work`."""
        return KRange(0, self.k_tiles(params, work, tile_k))

    def problem_number(self, params, work: WorkDesc) -> Int32:
        """Device. The index that the caller knows the problem by."""
        return work.problem

    def port_table(self, params, which: PortId, spec: PortSpec) -> Any:
        """Device. Only for ports from a table: what `BoundPort.value` is."""
        raise NotImplementedError

    def operand(self, params, which: Matrix, tensor: cute.Tensor, work: WorkDesc) -> cute.Tensor:
        """Device. `tensor` is the global tensor in kernel mode order, or the coordinates of what `tma_tensor` gave (for tiles of
        mixins, for D)."""
        raise NotImplementedError

    @cute.jit
    def scales(
        self,
        params,
        which: cutlass.Constexpr[Operand],
        tensor: cute.Tensor,
        work: WorkDesc,
        row_block: Int32,
        block_k: cutlass.Constexpr[int],
    ) -> cute.Tensor:
        """Device, all lanes of a warp. (row blocks, words) of the scales of A or B from a row block of the problem on; where K is
        ragged, of that row block only.

        tensor: (row blocks, words, L), or the coordinates of that, see `block_scales`. block_k: elements of K of a block.
        """
        return cute.domain_offset((row_block, 0), self.operand(params, which, tensor, work))

    def gathered_lines(self, params, work: WorkDesc) -> GatheredLines:
        """Device. Only where `gathers_a`."""
        raise NotImplementedError


class DenseParams(NamedTuple):
    """M, N, K are shared by all problems; `problems` is the batch size L."""

    m: Int32
    n: Int32
    k: Int32
    problems: Int32


class DenseAdapter(ProblemAdapter):
    """One GEMM, or a batch of equally shaped ones: problem = batch index."""

    @cute.jit
    def make_params(self, a: cute.Tensor, b: cute.Tensor, d: cute.Tensor, arguments: Optional[tuple]) -> DenseParams:
        return DenseParams(
            Int32(cute.size(d, mode=[0])),
            Int32(cute.size(b, mode=[0])),  # D may have half the columns
            Int32(cute.size(a, mode=[1])),
            Int32(cute.size(d, mode=[2])),
        )

    @cute.jit
    def tile_grid(self, params: DenseParams, tile_m: int, tile_n: int) -> TileGrid:
        return TileGrid(cute.ceil_div(params.m, tile_m), cute.ceil_div(params.n, tile_n), params.problems)

    def problem_shape(self, params: DenseParams, work: WorkDesc) -> ProblemShape:
        return ProblemShape(params.m, params.n, params.k)

    @cute.jit
    def k_tiles(self, params: DenseParams, work: WorkDesc, tile_k: int) -> Int32:
        return cute.ceil_div(params.k, tile_k)

    def operand(self, params: DenseParams, which: Matrix, tensor: cute.Tensor, work: WorkDesc) -> cute.Tensor:
        return tensor[None, None, work.problem]
