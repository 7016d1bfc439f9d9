"""What all arch kernels share: the host entry, operand modes and the launch. Arch kernels are siblings under `GemmBase`."""

from typing import Any, ClassVar, NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from .cute_dtype import CUTE_DTYPE
from .epilogue.fragment_layout import FragmentLayout
from .epilogue.protocol import EpilogueMixin
from .gemm_config import GemmConfig, Major, OperandSpec, OperandSpecs
from .gemm_port import EpilogueOpSpec, PortKind, argument_ports


class TmaOperand(NamedTuple):
    """A global tensor as the device sees it. atom None: `tensor` is plain global memory, else TMA coordinates."""

    atom: Optional[cute.CopyAtom]
    tensor: cute.Tensor


class Operands(NamedTuple):
    """Kernel-side operands in kernel mode order: a (M, K, L), b (N, K, L), the others (M, N, L)."""

    a: TmaOperand
    b: TmaOperand
    c: Optional[TmaOperand]
    d: TmaOperand
    tile_inputs: tuple = ()  # of the mixins, plain global memory (M, N, L)
    tile_outputs: tuple = ()  # of the mixins, like d
    scales: tuple = ()  # of a and b, if they are block-scaled: words as `block_scales` has them, (row blocks, words, L)


class GemmBase:
    """Host side of a GEMM kernel. `compose` mixes in an adapter and a commit policy and sets `epilogue`.

    operands, config, fast_accum: everything static about the kernel; run-time shapes never enter.
    cancels: works are drawn by cancelling clusters that have not started, see `draws`.
    """

    epilogue: ClassVar[tuple[type[EpilogueMixin], ...]] = ()

    layout_class: ClassVar[type[FragmentLayout]]
    """How the accumulators lie in the registers of the threads that drain them."""

    @staticmethod
    def sharing_of(config: GemmConfig) -> int:
        """Warpgroups that share the accumulators of one CTA tile, slab s belonging to warpgroup s mod sharing."""
        raise NotImplementedError

    def __init__(
        self,
        operands: OperandSpecs,
        config: GemmConfig,
        epilogue_specs: tuple[EpilogueOpSpec, ...] = (),
        fast_accum: bool = True,
        cancels: bool = False,
    ):
        self.specs = operands
        self.config = config.with_tile_k(operands.a.dtype)
        self.epilogue_specs = epilogue_specs
        self.fast_accum = fast_accum
        self.cancels = cancels
        self.a_dtype, self.b_dtype = CUTE_DTYPE[operands.a.dtype], CUTE_DTYPE[operands.b.dtype]
        self.c_dtype = CUTE_DTYPE[operands.c.dtype] if operands.c is not None else None
        self.scheduler = self.make_scheduler()

    @property
    def tile_mnk(self) -> tuple[int, int, int]:
        """CTA tile in elements."""
        return (self.config.cta_tile_m, self.config.tile_n, self.config.tile_k)

    @property
    def cluster_mn(self) -> tuple[int, int]:
        return (self.config.cluster_m, self.config.cluster_n)

    def make_scheduler(self):
        """The adapter's scheduler for this configuration."""
        config = self.config
        kind = self.scheduler_class(config)
        return kind((config.cluster_m, config.cluster_n), config.max_swizzle_size, config.raster)

    @cute.jit
    def __call__(
        self,
        a: cute.Tensor,
        b: cute.Tensor,
        c: Optional[cute.Tensor],
        d: cute.Tensor,
        problem_arguments: Optional[tuple],
        epilogue_arguments: Optional[tuple],
        counter: Optional[cute.Tensor],
        max_active_clusters: Int32,
        stream,
    ):
        """TVM-FFI entry. Tensors as torch holds them (see `OperandSpec`).

        problem_arguments: the scales of a and b if these are block-scaled, then the adapter's own tensors; None for plain
        dense problems.
        epilogue_arguments: the mixins' ports, flat, in order; None without any. counter: int32 (1,), zero, for the dynamic scheduler.
        max_active_clusters: clusters the device can hold at once; if they are cancelled, how many may be launched.
        """
        scales, problem_arguments = self.split_scales(problem_arguments)
        mA = kernel_modes(a, self.specs.a)
        mB = kernel_modes(b, self.specs.b)
        mC = kernel_modes(c, self.specs.c)
        mD = kernel_modes(d, self.specs.d)
        problem = self.make_params(mA, mB, mD, problem_arguments)
        grid_of_tiles = self.scheduler_arguments(problem, problem_arguments, self.config.cta_tile_m, self.config.tile_n)
        schedule = self.scheduler.make_params(*grid_of_tiles)
        tiles, other_arguments = self.split_arguments(epilogue_arguments)
        operands = self.make_operands(mA, mB, mC, mD, tiles)
        if cutlass.const_expr(self.specs.is_scaled):
            operands = operands._replace(scales=self.make_scales(*scales))
        self.prepare(problem, operands, stream)
        self.kernel(operands, problem, schedule, other_arguments, counter, self.make_tiled_mma()).launch(
            grid=self.scheduler.grid(schedule, max_active_clusters),
            block=[self.resources.threads, 1, 1],
            cluster=[*self.cluster_mn, 1],
            min_blocks_per_mp=1,
            stream=stream,
            use_pdl=True,
        )

    def split_scales(self, arguments: Optional[tuple]) -> tuple[tuple, Optional[tuple]]:
        """Host. The scales of a and b, if they have some, and the adapter's own tensors."""
        if not self.specs.is_scaled:
            return (), arguments
        assert arguments is not None
        return arguments[:2], arguments[2:] or None

    def make_scales(self, a_scales: cute.Tensor, b_scales: cute.Tensor) -> tuple[TmaOperand, TmaOperand]:
        """Host. How a kernel that multiplies block-scaled operands loads these tensors, words as `block_scales` has them."""
        raise NotImplementedError

    def split_arguments(self, arguments: Optional[tuple]) -> tuple[dict[PortKind, list], Optional[tuple]]:
        """Host. The mixins' tiles by kind, in kernel mode order, and the other epilogue arguments."""
        tiles: dict[PortKind, list] = {PortKind.TILE_INPUT: [], PortKind.TILE_OUTPUT: []}
        others = []
        for port, argument in zip(argument_ports(self.epilogue_specs), arguments or (), strict=True):
            if port.kind.is_tile:
                tiles[port.kind].append(kernel_modes(argument, port.layout))
            else:
                others.append(argument)
        return tiles, tuple(others) or None


@cute.jit
def kernel_modes(tensor: Optional[cute.Tensor], spec: cutlass.Constexpr[Any]) -> Optional[cute.Tensor]:
    """Relabel a torch-ordered matrix or batch of matrices as (outer, inner, L); no data moves.

    Concatenated halves become one mode ((2, extent / 2)), which tiles, TMA and plain indexing walk in interleaved order.
    """
    if cutlass.const_expr(tensor is None):
        return None
    if cutlass.const_expr(spec.dtype.is_packed):
        tensor = unpacked(tensor, spec)
    first = spec.ndim - 2
    outer, inner = (first + 1, first) if spec.transposed else (first, first + 1)
    batch, batch_stride = (tensor.shape[0], tensor.stride[0]) if spec.ndim == 3 else (1, 0)
    shape, stride = [tensor.shape[outer], tensor.shape[inner]], [tensor.stride[outer], tensor.stride[inner]]
    if cutlass.const_expr(spec.is_concat):
        split = 0 if spec.major is Major.INNER else 1
        shape[split], stride[split] = interleaved_halves(shape[split], stride[split])
    return cute.make_tensor(tensor.iterator, cute.make_layout((*shape, batch), stride=(*stride, batch_stride)))


@cute.jit
def unpacked(tensor: cute.Tensor, spec: cutlass.Constexpr[Any]) -> cute.Tensor:
    """A tensor of bytes, with two elements in each along the contiguous dimension, as a tensor of elements."""
    count = 2
    unit = spec.unit_stride_dim
    shape = [extent * count if d == unit else extent for d, extent in enumerate(tensor.shape)]
    stride = [1 if d == unit else step * count for d, step in enumerate(tensor.stride)]
    elements = cute.recast_ptr(tensor.iterator, dtype=CUTE_DTYPE[spec.dtype])
    return cute.make_tensor(elements, cute.make_layout(tuple(shape), stride=tuple(stride)))


def interleaved_halves(extent, stride) -> tuple[tuple, tuple]:
    """(shape, stride) of a mode whose memory holds its even and then its odd elements."""
    half = extent // 2
    return (2, half), (half * stride, stride)


def is_inner_major(spec: OperandSpec) -> bool:
    """Whether K (A, B) or N (C, D) is the contiguous mode."""
    return spec.major is Major.INNER
