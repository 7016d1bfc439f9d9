"""The one table of GPU architectures: what each can execute, and what its hardware does at best.

`ARCHES["sm_90a"]` is an `Arch`: a compilation target with the `Execution` that runs on it (one kernel class serves several
targets) and the `Chip` whose figures the heuristics count with. Legality reads its limits here, `compile` the kernel class,
`device` the compute capabilities. A new architecture is an entry here, a package with `gemm` and `resources`, and tiles in
`heuristics`. Plain data: no torch, no CuTe DSL; what is only planned is refused by `legality` until its module exists.
"""

import enum
import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Optional

from .gemm_config import BlockScaling, Dtype, OperandSpecs

KIB, MIB = 1 << 10, 1 << 20


class Feature(enum.Enum):
    """What a kernel may still lack, though its seams have it: (how messages call it, what to do without it)."""

    VARLEN_M = ("cu_seqlens_m", "one call per group")
    VARLEN_K = ("cu_seqlens_k", "one call per group")
    GATHER_M = ("A_idx with cu_seqlens_m", "A = A[A_idx]")
    GATHER_K = ("A_idx with cu_seqlens_k", "A = A[:, A_idx]")
    GROUPED = ("a table of grouped problems", "one call per problem")
    SYMMETRIC = ("a symmetric result", "gemm")
    PERMUTED = ("batch_idx_permute", "a call without batch_idx_permute")
    SPLIT_K = ("split-K", "split_k=1")
    STREAM_K = ("stream-K", "split_k_mode=SplitKMode.SERIAL")
    PINGPONG = ("ping-pong", "pingpong=False")
    DYNAMIC = ("dynamic scheduling", "is_dynamic_persistent=False")
    TMA_GATHER = ("TMA gather4", "use_tma_gather=False")

    @property
    def label(self) -> str:
        return self.value[0]

    @property
    def alternative(self) -> str:
        return self.value[1]


SEAMS = frozenset(Feature) - {Feature.TMA_GATHER}  # every adapter, schedule and commit policy


@dataclass(frozen=True)
class Execution:
    """What a kernel class can execute.

    package:       its modules `gemm` (the kernel) and `resources` (its budget and register rules, see `gemm_resources`).
    mma, mnemonic: the instruction, as messages call it and as it begins in PTX.
    inputs:        dtypes of A and B that the kernel multiplies; FP32 is multiplied as tf32.
    k_major_only:  those of them that the kernel reads K-major only. Others may be M-major (A) or N-major (B).
    k_major_b:     those of which it reads B K-major only; A and B may change places (`GemmConfig.swap_ab`).
    mixed:         groups of dtypes that A and B may have different ones of.
    tile_m:        legal heights of a tile; for those that two CTAs share see `GemmConfig.is_pair`.
    tile_k_bytes:  legal bytes of K of a tile.
    tile_n_step:   tile_n is a multiple of it; pair_tile_n_step for tiles of pairs.
    cluster_sizes, max_cluster: legal cluster_m and cluster_n, and the most CTAs of a cluster.
    smem_bytes:    of a CTA. registers: of an SM, 32 bits each. tmem_bytes: of an SM, 0 without.
    precise_fp8:   whether fp8 sums are kept in fp32 by the instruction itself, so that fast_accum changes nothing.
    has_clc:       whether the hardware can hand out the tiles of clusters that have not started (cluster launch control).
    has_tma_gather: whether TMA has gather4.
    has_preferred_clusters: whether a launch may have clusters of two shapes, see `GemmConfig.fallback_cluster`.
    runs_on:       other targets that have every instruction of the kernel, so that it can be tested there.
    features:      what the kernel has been tested with. Its author adds to it.
    scaled_kernel: the kernel class for block-scaled operands; None: there is none.
    scaled:        the groups of dtypes that it multiplies A and B of, by how they are scaled.
    """

    package: str
    kernel: str
    mma: str
    mnemonic: str
    inputs: frozenset[Dtype]
    k_major_only: frozenset[Dtype]
    tile_m: tuple[int, ...]
    cluster_sizes: tuple[int, ...]
    max_cluster: int
    smem_bytes: int
    precise_fp8: bool
    has_clc: bool
    has_tma_gather: bool
    features: frozenset[Feature]
    mixed: tuple[frozenset[Dtype], ...] = (frozenset((Dtype.E4M3, Dtype.E5M2)),)
    k_major_b: frozenset[Dtype] = frozenset()
    tile_n_step: int = 16
    pair_tile_n_step: int = 32
    tile_k_bytes: tuple[int, ...] = (128, 256)
    runs_on: tuple[str, ...] = ()
    max_tile_n: int = 256
    scaled_kernel: Optional[str] = None
    scaled: Mapping[BlockScaling, tuple[frozenset[Dtype], ...]] = field(default_factory=dict, hash=False)
    tmem_bytes: int = 0
    has_preferred_clusters: bool = False
    registers: int = 65536

    @property
    def resources(self) -> str:
        """Module with `resources` and `REGISTERS`."""
        return f"{self.package}.resources"

    def kernel_of(self, operands: OperandSpecs) -> str:
        """The class for these operands."""
        return self.scaled_kernel if operands.is_scaled and self.scaled_kernel is not None else self.kernel

    @functools.cached_property
    def lacking(self) -> frozenset[Feature]:
        """Features of the seams that the kernel has not been tested with."""
        return SEAMS - self.features

    @functools.cached_property
    def clusters(self) -> tuple[tuple[int, int], ...]:
        """Every legal (cluster_m, cluster_n)."""
        sizes = self.cluster_sizes
        return tuple((m, n) for m in sizes for n in sizes if m * n <= self.max_cluster)

    def may_mix(self, a: Dtype, b: Dtype) -> bool:
        """Whether A and B may have these dtypes, both of which the kernel multiplies."""
        return a is b or any(a in group and b in group for group in self.mixed)


class Figure(enum.Enum):
    """What `Chip` has a number and its source for."""

    SMS = "streaming multiprocessors"
    CLOCK_GHZ = "SM clock under boost, GHz"
    FLOPS_32 = "dense tf32 flops per clock and SM"
    FLOPS_16 = "dense bf16, fp16 flops (fp32 sums) per clock and SM"
    FLOPS_8 = "dense fp8 flops (fp32 sums) per clock and SM"
    FLOPS_4 = "dense fp4 flops per clock and SM"
    SMEM_BYTES_PER_CLK = "shared memory bytes per clock and SM"
    TMEM_BYTES_PER_CLK = "bytes per clock and SM from tensor memory to registers"
    ISSUE_PER_CLK = "warp instructions per clock and SM"
    CONVERSIONS_PER_CLK = "threads' conversions of fp32 per clock and SM"
    L2_BYTES_PER_CLK = "bytes per clock from the L2 to one SM"
    L2_BYTES = "capacity of the L2"
    HBM_BYTES_PER_NS = "bytes per ns of the device memory"


FLOPS_OF_BITS = {32: Figure.FLOPS_32, 16: Figure.FLOPS_16, 8: Figure.FLOPS_8, 4: Figure.FLOPS_4}


@dataclass(frozen=True)
class Chip:
    """A GPU that stands for its architecture. figures: (number, where it is from) of every `Figure`; 0: not there."""

    name: str
    figures: Mapping[Figure, tuple[float, str]]

    def __getitem__(self, figure: Figure) -> float:
        return self.figures[figure][0]

    @property
    def sms(self) -> int:
        return int(self[Figure.SMS])

    def mma_flops_per_ns(self, bits: int) -> float:
        """Dense, of one SM, for inputs of so many bits."""
        return self[FLOPS_OF_BITS[bits]] * self[Figure.CLOCK_GHZ]


@dataclass(frozen=True)
class Arch:
    """A compilation target. name: as `--gpu-arch` takes it; capability: (major, minor) of its devices."""

    name: str
    capability: tuple[int, int]
    execution: Execution
    chip: Chip

    @property
    def has_kernel(self) -> bool:
        """Whether the kernel class has been written."""
        return _is_module(f"{self.execution.package}.gemm")


INPUTS_16, INPUTS_8 = frozenset((Dtype.BF16, Dtype.FP16)), frozenset((Dtype.E4M3, Dtype.E5M2))

WGMMA = Execution(
    package="quack.sm90",
    kernel="quack.sm90.gemm:GemmSm90",
    mma="wgmma",
    mnemonic="wgmma.mma_async",
    inputs=INPUTS_16 | INPUTS_8 | {Dtype.FP32},
    k_major_only=INPUTS_8,  # PTX ISA, wgmma matrix descriptors: only 16-bit operands are transposed
    k_major_b=frozenset((Dtype.FP32,)),  # the same, but an M-major A is put into registers
    tile_m=(64, 128, 192, 256),
    cluster_sizes=(1, 2, 4),
    max_cluster=4,
    smem_bytes=227 * KIB,
    precise_fp8=False,  # sums have fewer bits, measured: docs/measured_facts.md
    has_clc=False,
    has_tma_gather=False,
    features=SEAMS,
)
TCGEN05 = Execution(
    package="quack.sm100",
    kernel="quack.sm100.gemm:GemmSm100",
    mma="tcgen05.mma",
    mnemonic="tcgen05.mma",
    inputs=INPUTS_16 | INPUTS_8 | {Dtype.FP32},
    k_major_only=frozenset(),  # PTX ISA, tcgen05 instruction descriptor: both can be transposed, but for 4- and 6-bit types
    tile_m=(128, 256),
    cluster_sizes=(1, 2, 4),
    max_cluster=4,
    smem_bytes=227 * KIB,
    tmem_bytes=256 * KIB,
    has_preferred_clusters=True,
    precise_fp8=True,
    has_clc=True,
    has_tma_gather=True,
    features=SEAMS - {Feature.PINGPONG} | {Feature.TMA_GATHER},
    scaled_kernel="quack.sm100.blockscaled:BlockScaledGemmSm100",
    scaled={
        BlockScaling.MX: (INPUTS_8 | {Dtype.WIDE_E2M1}, frozenset((Dtype.E2M1,))),
        BlockScaling.NV: (frozenset((Dtype.E2M1,)),),
    },
)
WARP_MMA = Execution(
    package="quack.sm120",
    kernel="quack.sm120.gemm:GemmSm120",
    mma="mma.sync",
    mnemonic="mma.sync",
    inputs=INPUTS_16 | INPUTS_8 | {Dtype.FP32},
    k_major_only=INPUTS_8,  # ldmatrix transposes 16-bit elements; 32-bit ones are loaded one by one
    tile_m=(64, 128, 256),
    tile_k_bytes=(64, 128),
    cluster_sizes=(1,),
    max_cluster=1,  # no multicast: TMA delivers to one CTA
    smem_bytes=99 * KIB,
    precise_fp8=True,
    has_clc=True,
    has_tma_gather=False,
    features=SEAMS,
    runs_on=("sm_90a",),
)

_DERIVED = "derived: data sheet TFLOPS / (SMs x clock)"


_EVERY_SM: dict[Figure, tuple[float, str]] = {
    Figure.TMEM_BYTES_PER_CLK: (0, "no such memory"),
    Figure.ISSUE_PER_CLK: (4, "NVIDIA whitepapers since Volta: four sub-partitions, one warp instruction a clock each"),
    Figure.CONVERSIONS_PER_CLK: (
        64,
        "CUDA programming guide, arithmetic throughput, 9.0; not published for all: the same",
    ),
}
_TENSOR_MEMORY = {
    Figure.TMEM_BYTES_PER_CLK: (512, "not published; at most a register for each lane of the four sub-partitions"),
}


def _chip(name: str, figures: dict[Figure, tuple[float, str]]) -> Chip:
    return Chip(name, MappingProxyType(_EVERY_SM | figures))


H200 = _chip(
    "H200",
    {
        Figure.SMS: (132, "NVIDIA H200 data sheet; device query"),
        Figure.CLOCK_GHZ: (1.83, "derived: 989.5 dense bf16 TFLOPS of the data sheet / (132 SMs x 4096)"),
        Figure.FLOPS_32: (2048, "NVIDIA H100 whitepaper: 4 tensor cores x 256 tf32 FMA"),
        Figure.FLOPS_16: (4096, "NVIDIA H100 whitepaper: 4 tensor cores x 512 FMA"),
        Figure.FLOPS_8: (8192, "NVIDIA H100 whitepaper: 4 tensor cores x 1024 FMA"),
        Figure.FLOPS_4: (0, "no such instruction"),
        Figure.SMEM_BYTES_PER_CLK: (128, "CUDA programming guide: 32 banks x 4 bytes"),
        Figure.L2_BYTES_PER_CLK: (
            64,
            "width of an SM's port, as measured since Volta; sustained here: 74 bytes per ns and SM",
        ),
        Figure.L2_BYTES: (50 * MIB, "NVIDIA H100 whitepaper"),
        Figure.HBM_BYTES_PER_NS: (4800, "NVIDIA H200 data sheet; sustained here: 4100"),
    },
)
B200 = _chip(
    "B200",
    {
        Figure.SMS: (148, "chipsandcheese.com (B200): 74 of 80 on each of two dies"),
        Figure.CLOCK_GHZ: (1.85, "derived: 2250 dense bf16 TFLOPS of the HGX B200 data sheet / (148 SMs x 8192)"),
        Figure.FLOPS_32: (4096, _DERIVED + ", HGX B200: 1.12 dense tf32 PFLOPS"),
        Figure.FLOPS_16: (8192, _DERIVED + ", HGX B200: 2.25 dense PFLOPS"),
        Figure.FLOPS_8: (16384, _DERIVED + ", HGX B200: 4.5 dense PFLOPS"),
        Figure.FLOPS_4: (32768, _DERIVED + ", HGX B200: 9 dense PFLOPS"),
        Figure.SMEM_BYTES_PER_CLK: (128, "CUDA programming guide: 32 banks x 4 bytes"),
        **_TENSOR_MEMORY,
        Figure.L2_BYTES_PER_CLK: (64, "not published; as the H200"),
        Figure.L2_BYTES: (126 * MIB, "chipsandcheese.com (B200)"),
        Figure.HBM_BYTES_PER_NS: (8000, "NVIDIA HGX B200 data sheet"),
    },
)
B300 = _chip(
    "B300",
    {
        Figure.SMS: (148, "device query, as published; GB300 too"),
        Figure.CLOCK_GHZ: (1.85, "not published; as the B200, whose dense bf16 TFLOPS it shares"),
        Figure.FLOPS_32: (4096, "as the B200"),
        Figure.FLOPS_16: (8192, "NVIDIA HGX B300 data sheet: dense bf16 as the B200"),
        Figure.FLOPS_8: (16384, "NVIDIA HGX B300 data sheet: dense fp8 as the B200"),
        Figure.FLOPS_4: (49152, "NVIDIA Blackwell Ultra: 1.5 times the dense fp4 of the B200"),
        Figure.SMEM_BYTES_PER_CLK: (128, "CUDA programming guide: 32 banks x 4 bytes"),
        **_TENSOR_MEMORY,
        Figure.L2_BYTES_PER_CLK: (64, "not published; as the H200"),
        Figure.L2_BYTES: (126 * MIB, "as the B200"),
        Figure.HBM_BYTES_PER_NS: (8000, "NVIDIA HGX B300 data sheet"),
    },
)
RTX_5090 = _chip(
    "RTX 5090",
    {
        Figure.SMS: (170, "NVIDIA RTX Blackwell whitepaper"),
        Figure.CLOCK_GHZ: (2.407, "NVIDIA RTX Blackwell whitepaper, boost"),
        Figure.FLOPS_32: (256, _DERIVED + ", whitepaper: 104.8 dense tf32 TFLOPS"),
        Figure.FLOPS_16: (512, _DERIVED + ", whitepaper: 209.5 dense TFLOPS with fp32 sums"),
        Figure.FLOPS_8: (1024, _DERIVED + ", whitepaper: 419 dense TFLOPS with fp32 sums"),
        Figure.FLOPS_4: (4096, _DERIVED + ", whitepaper: 1676 dense TFLOPS"),
        Figure.SMEM_BYTES_PER_CLK: (128, "CUDA programming guide: 32 banks x 4 bytes"),
        Figure.L2_BYTES_PER_CLK: (64, "not published; as the H200"),
        Figure.L2_BYTES: (96 * MIB, "NVIDIA RTX Blackwell whitepaper"),
        Figure.HBM_BYTES_PER_NS: (1792, "NVIDIA RTX Blackwell whitepaper (GDDR7)"),
    },
)
GB10 = _chip(
    "GB10",
    {
        Figure.SMS: (48, "NVIDIA DGX Spark data sheet: 6144 CUDA cores"),
        Figure.CLOCK_GHZ: (2.52, "derived: 31 fp32 TFLOPS (NVIDIA, Hot Chips 2025) / (48 SMs x 256)"),
        Figure.FLOPS_32: (256, "not published; as the RTX 5090"),
        Figure.FLOPS_16: (512, "not published; as the RTX 5090"),
        Figure.FLOPS_8: (1024, "not published; as the RTX 5090"),
        Figure.FLOPS_4: (4096, _DERIVED + ", DGX Spark: 1 PFLOPS with sparsity"),
        Figure.SMEM_BYTES_PER_CLK: (128, "CUDA programming guide: 32 banks x 4 bytes"),
        Figure.L2_BYTES_PER_CLK: (64, "not published; as the H200"),
        Figure.L2_BYTES: (24 * MIB, "device query, as published"),
        Figure.HBM_BYTES_PER_NS: (273, "NVIDIA DGX Spark data sheet (LPDDR5X)"),
    },
)

ARCHES: Mapping[str, Arch] = MappingProxyType(
    {
        arch.name: arch
        for arch in (
            Arch("sm_90a", (9, 0), WGMMA, H200),
            Arch("sm_100a", (10, 0), TCGEN05, B200),
            Arch("sm_103a", (10, 3), TCGEN05, B300),
            Arch("sm_120a", (12, 0), WARP_MMA, RTX_5090),
            Arch("sm_121a", (12, 1), WARP_MMA, GB10),
        )
    }
)
ARCH_OF_CAPABILITY: Mapping[tuple[int, int], str] = MappingProxyType({a.capability: a.name for a in ARCHES.values()})


@functools.cache
def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even its package
        return False
