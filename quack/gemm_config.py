"""Host-side facts that decide what a GEMM kernel is: element types, operand layouts and the tile configuration.

Nothing here imports torch or CuTe DSL, so legality and heuristics stay plain Python.
"""

import enum
from dataclasses import dataclass, replace
from typing import NamedTuple, Optional


class Dtype(enum.Enum):
    """Element types. `value` is the short name used in messages and benchmark rows."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    E4M3 = "fp8_e4m3"
    E5M2 = "fp8_e5m2"
    E2M1 = "fp4_e2m1"  # two a byte, along K
    WIDE_E2M1 = (
        "fp4_e2m1 beside fp8"  # the same, but in shared memory 16 of them have 16 bytes, of which 8 are left out
    )
    E8M0 = "e8m0"  # powers of two, of scales only

    @property
    def bits(self) -> int:
        """In shared memory."""
        return _DTYPE_BITS[self]

    @property
    def is_packed(self) -> bool:
        """Whether tensors have two elements a byte."""
        return self in (Dtype.E2M1, Dtype.WIDE_E2M1)

    @property
    def bytes(self) -> int:
        """Of types that are not smaller; see `bytes_of`."""
        assert self.bits >= 8, f"{self.value} elements are smaller than a byte"
        return self.bits // 8

    def bytes_of(self, elements: int) -> int:
        return elements * self.bits // 8

    def elements_in(self, nbytes: int) -> int:
        return nbytes * 8 // self.bits

    @property
    def is_fp8(self) -> bool:
        return self in (Dtype.E4M3, Dtype.E5M2)


_DTYPE_BITS = {
    Dtype.BF16: 16,
    Dtype.FP16: 16,
    Dtype.FP32: 32,
    Dtype.E4M3: 8,
    Dtype.E5M2: 8,
    Dtype.E2M1: 4,
    Dtype.WIDE_E2M1: 8,
    Dtype.E8M0: 8,
}


class BlockScaling(enum.Enum):
    """Scale factors of an operand: (their dtype, how many elements along K each one multiplies). Where they are in memory is
    fixed, see `block_scales`."""

    MX = (Dtype.E8M0, 32)  # OCP microscaling: mxfp8, mxfp4
    NV = (Dtype.E4M3, 16)  # nvfp4

    @property
    def dtype(self) -> Dtype:
        return self.value[0]

    @property
    def block(self) -> int:
        return self.value[1]


class Major(enum.Enum):
    """Which of an operand's two matrix modes is contiguous in memory.

    Operand modes are written (outer, inner): A (M, K), B (N, K), C and D (M, N).
    """

    INNER = "inner"  # A, B: K-major; C, D: N-major
    OUTER = "outer"  # A: M-major, B: N-major; C, D: M-major


class RasterOrder(enum.Enum):
    """The dimension along which the raster's swizzle groups run; see `tile_scheduler`."""

    ALONG_M = "m"
    ALONG_N = "n"


TMA_ALIGN_BYTES = 16
PAIR_TILE_M = {10: 256}  # by major compute capability: the tile_m that two CTAs share, one MMA spanning both


@dataclass(frozen=True)
class OperandSpec:
    """How the kernel finds (outer, inner, batch) in a tensor as torch holds it.

    ndim:       2, or 3 with the batch first.
    transposed: the torch order of the two matrix modes is (inner, outer), e.g. B given as (K, N).
    major:      the contiguous mode, in kernel order.
    align:      bytes by which the base address and all other strides are known to be divisible.
    is_halved:  outputs only: half as many columns as the accumulator, one for each pair 2j, 2j + 1 (gated activations).
    is_concat:  the mode that is not contiguous is stored as [even half; odd half]: index j of the GEMM is memory index
                j // 2 + (j % 2) * extent // 2. The extent is even.
    scaling:    A and B only: how blocks of it along K are scaled, by a tensor of its own.
    """

    dtype: Dtype
    ndim: int
    transposed: bool
    major: Major
    align: int = TMA_ALIGN_BYTES
    is_concat: bool = False
    is_halved: bool = False
    scaling: Optional[BlockScaling] = None

    @property
    def is_tma(self) -> bool:
        """TMA needs the base address and every stride but the contiguous one to be multiples of 16 bytes."""
        return self.align % TMA_ALIGN_BYTES == 0

    @property
    def unit_stride_dim(self) -> int:
        """Index, in torch order, of the dimension whose stride is 1."""
        inner_last = not self.transposed
        return self.ndim - 1 if (self.major is Major.INNER) == inner_last else self.ndim - 2


class OperandSpecs(NamedTuple):
    """The four GEMM operands; `c` is None without a beta*C term."""

    a: OperandSpec
    b: OperandSpec
    d: OperandSpec
    c: Optional[OperandSpec] = None

    @property
    def is_scaled(self) -> bool:
        """Whether A and B come with scale factors."""
        return self.a.scaling is not None


@dataclass(frozen=True)
class GemmConfig:
    """One way to run a GEMM. Units: tile_* in elements, cluster_* in CTAs.

    tile_m, tile_n:        CTA tile; on capability 10, tile_m = 256 is that of two CTAs. `None` for tile_k: 128 bytes of K.
    pingpong:              two MMA warpgroups work on different tiles; otherwise they share one ("cooperative").
    is_dynamic_persistent: tiles are drawn from a global counter instead of a fixed stride.
    is_persistent:         False launches one cluster per tile.
    swap_ab:               compute D^T = B^T A^T (small M: the long side then fills the 64-row MMA).
    max_swizzle_size:      width, in cluster tiles, of the strip that the raster walks for L2 reuse.
    device_capacity:       major compute capability this configuration was made for; None: that of the device it is used on.
    fallback_cluster:      (m, n) of a smaller cluster that divides this one, for SMs that hold no whole one; capability 10.
    """

    tile_m: int = 128
    tile_n: int = 256
    tile_k: Optional[int] = None
    pingpong: bool = False
    is_dynamic_persistent: bool = False
    cluster_m: int = 2
    cluster_n: int = 1
    swap_ab: bool = False
    max_swizzle_size: int = 8
    raster: RasterOrder = RasterOrder.ALONG_M
    is_persistent: bool = True
    use_tma_gather: bool = False
    device_capacity: Optional[int] = None
    fallback_cluster: Optional[tuple[int, int]] = None

    def __str__(self) -> str:
        schedule = "dyn" if self.is_dynamic_persistent else "static" if self.is_persistent else "single"
        k = f"x{self.tile_k}" if self.tile_k else ""
        fallback = "/{}x{}".format(*self.fallback_cluster) if self.fallback_cluster else ""
        return (
            f"{self.tile_m}x{self.tile_n}{k} {'pp' if self.pingpong else 'coop'} "
            f"cl{self.cluster_m}x{self.cluster_n}{fallback} {schedule} sw{self.max_swizzle_size}{self.raster.value}"
            + (" swap" if self.swap_ab else "")
        )

    @property
    def is_pair(self) -> bool:
        """Whether two neighbouring CTAs share each tile."""
        return self.device_capacity is not None and PAIR_TILE_M.get(self.device_capacity) == self.tile_m

    @property
    def cta_tile_m(self) -> int:
        """Rows that one CTA computes; a cluster computes cluster_m times as many."""
        return self.tile_m // 2 if self.is_pair else self.tile_m

    def with_tile_k(self, a_dtype: Dtype) -> "GemmConfig":
        """The same configuration with tile_k filled in: one 128-byte swizzle row of K unless given."""
        return self if self.tile_k else replace(self, tile_k=a_dtype.elements_in(128))


def mma_warpgroups(config: GemmConfig) -> int:
    """Two for ping-pong; cooperative kernels use one warpgroup per 64 rows, at most two, or three for 192 rows."""
    if config.pingpong:
        return 2
    return {64: 1, 128: 2, 192: 3, 256: 2}[config.tile_m]
