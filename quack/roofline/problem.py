"""The GEMMs that a roofline is made of: dense, A and B K-major, D and C row-major, no mixins but C."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import torch

from .. import emulator, heuristics
from ..arch import ARCHES
from ..gemm_config import Dtype, GemmConfig
from ..runtime.legality import legality
from ..runtime.operands import DTYPE_OF_TORCH
from ..runtime.plan import GemmRequest, describe_request
from ..runtime.spec import GemmShape, GemmSpec, UnsupportedGemm

TORCH_DTYPES = {dtype: torch_dtype for torch_dtype, dtype in DTYPE_OF_TORCH.items()}
EMULATED = {"quack.sm90": "sm90", "quack.sm100": "sm100", "quack.sm120": "sm120"}  # devices, by packages of kernels


@dataclass(frozen=True)
class Problem:
    """D (m, n) = A (m, k) x B (k, n) [+ C] on an architecture of `quack.arch`."""

    arch: str
    m: int
    n: int
    k: int
    dtype: Dtype = Dtype.BF16
    out: Dtype = Dtype.BF16
    has_c: bool = False

    def emulated(self, sms: Optional[int] = None, observers: Sequence[emulator.Observer] = ()) -> Any:
        """The context in which CPU tensors are those of an emulated device of the arch."""
        return emulator.use(EMULATED[ARCHES[self.arch].execution.package], sms=sms, observers=observers)

    def request(self, fill: Callable[[torch.Tensor], object] = lambda tensor: None) -> GemmRequest:
        """As `gemm` states it, of CPU tensors. fill: A, B and C; without it their memory is never touched."""
        dtype, out = TORCH_DTYPES[self.dtype], TORCH_DTYPES[self.out]
        A, B, D = (
            torch.empty(rows, columns, dtype=t)
            for rows, columns, t in ((self.m, self.k, dtype), (self.n, self.k, dtype), (self.m, self.n, out))
        )
        C = torch.empty_like(D) if self.has_c else None
        for tensor in (A, B, C):
            if tensor is not None:
                fill(tensor)
        return GemmRequest(A, B.t(), D, C)

    def configured(self, config: Optional[GemmConfig] = None) -> tuple[GemmSpec, GemmShape]:
        """(spec, extents in kernel terms) with this configuration, or the one that the heuristics choose.

        Raises UnsupportedGemm if there is none that is legal.
        """
        with self.emulated():
            shape, base, swapped, _ = describe_request(self.request())
        base, swapped = base.on(self.arch), swapped.on(self.arch) if swapped is not None else None
        if config is None:
            spec = heuristics.choose(base, shape, ARCHES[self.arch].chip.sms, swapped)
        elif config.swap_ab and swapped is None:
            raise UnsupportedGemm("these operands have no form for D^T, which swap_ab computes", "swap_ab=False")
        else:
            spec = (swapped if config.swap_ab and swapped is not None else base).configured(config)
            legality(spec).require()
        return spec, shape.swapped() if spec.config.swap_ab else shape

    def tiles(self, config: GemmConfig, count: int, k_tiles: int) -> "Problem":
        """A problem of `count` tiles for each CTA of one cluster, and so many k tiles. config: its tile_k is filled in."""
        assert config.tile_k is not None
        m, n = count * config.cta_tile_m * config.cluster_m, config.tile_n * config.cluster_n
        return replace(self, m=n if config.swap_ab else m, n=m if config.swap_ab else n, k=k_tiles * config.tile_k)
