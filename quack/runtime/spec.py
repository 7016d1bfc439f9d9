"""`GemmSpec`: everything that decides the compiled code of a GEMM, and nothing else. It is the whole cache identity."""

import hashlib
from dataclasses import dataclass, replace
from typing import Optional

from ..arch import ARCHES
from ..gemm_config import GemmConfig, OperandSpecs
from ..gemm_port import EpilogueOpSpec

DENSE = "quack.gemm_problem_adapter:DenseAdapter"
VARLEN_M = "quack.varlen_adapter:VarlenMAdapter"
VARLEN_K = "quack.varlen_adapter:VarlenKAdapter"
GROUPED = "quack.grouped_adapter:GroupedAdapter"
GATHER_M = "quack.gather_adapter:GatherMAdapter"
GATHER_K = "quack.gather_adapter:GatherKAdapter"
SYMMETRIC = "quack.symmetric_adapter:SymmetricAdapter"
SYMMETRIC_COMMIT = "quack.symmetric_commit:SymmetricCommit"
MIRROR = "quack.epilogue.mirror:Mirror"
STREAM_COMBINE = "quack.split_k_combine:StreamCombine"
PARALLEL_COMBINE = "quack.split_k_combine:ParallelCombine"
USER_CODE = "user:"  # begins the names of classes that are known by their content, see `user_code`
DEFAULT_COMMIT = "quack.gemm_epilogue_plan:DefaultCommit"
RAGGED_M, RAGGED_K, GATHERING = (VARLEN_M, GATHER_M), (VARLEN_K, GATHER_K), (GATHER_M, GATHER_K)


def is_user_code(name: str) -> bool:
    """Whether a class is a user's: known by its content, and in the process that defined it only."""
    return name.startswith(USER_CODE)


@dataclass(frozen=True)
class GemmSpec:
    """No shapes: a new M, N, K or batch size never recompiles.

    arch:       compilation target, e.g. "sm_90a".
    operands:   layouts in kernel terms, after a possible A/B swap.
    config:     tile configuration, tile_k filled in.
    epilogue:   mixins in order, with what is known of their ports.
    fast_accum: fp8 only; False adds partial sums in full fp32 precision.
    adapter, plan: names of the seam classes, "module:qualname", or of a user's, see `user_code`.
    is_permuted: problems are worked through in the order of a device vector.
    combine:    name of the mixin that puts together the parts of a tile, None if tiles are not split (`split_k_combine`).
    pieces_of:  of a kernel that only adds up partial tiles: the configuration of the kernel that stored them.
    target:     of tests only: the compilation target where that is not `arch`, see `device.kernels_of`.
    """

    arch: str
    operands: OperandSpecs
    config: GemmConfig
    epilogue: tuple[EpilogueOpSpec, ...] = ()
    fast_accum: bool = True
    adapter: str = DENSE
    plan: str = DEFAULT_COMMIT
    is_permuted: bool = False
    combine: Optional[str] = None
    pieces_of: Optional[GemmConfig] = None
    target: Optional[str] = None

    def on(self, arch: str, target: Optional[str] = None) -> "GemmSpec":
        """The same GEMM for an architecture, without distinctions that make none there."""
        is_precise = ARCHES[arch].execution.precise_fp8
        return replace(self, arch=arch, target=target, fast_accum=self.fast_accum or is_precise)

    def configured(self, config: GemmConfig) -> "GemmSpec":
        """With this configuration, what it leaves open filled in. The arch must be known."""
        if config.device_capacity is None:
            config = replace(config, device_capacity=ARCHES[self.arch].capability[0])
        return replace(self, config=config.with_tile_k(self.operands.a.dtype))

    @property
    def cancels(self) -> bool:
        """Whether works are drawn by cancelling clusters instead of from a counter, see `quack.draws`."""
        is_drawn = self.config.is_dynamic_persistent and self.combine is None
        return is_drawn and self.target is None and ARCHES[self.arch].execution.has_clc

    def digest(self) -> str:
        """Stable across processes: the repr of frozen dataclasses of enums and numbers."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class GemmShape:
    """Extents in kernel terms (after a swap); what heuristics look at."""

    m: int
    n: int
    k: int
    batch: int = 1
    is_ragged_m: bool = False  # m is the average over the batch; only the device knows each

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k * self.batch

    def swapped(self) -> "GemmShape":
        return replace(self, m=self.n, n=self.m)


class UnsupportedGemm(ValueError):
    """A combination that quack does not build. `reason` says why, `alternative` what would be legal."""

    def __init__(self, reason: str, alternative: Optional[str] = None):
        super().__init__(reason + (f"; instead: {alternative}" if alternative else ""))
        self.reason = reason
        self.alternative = alternative
