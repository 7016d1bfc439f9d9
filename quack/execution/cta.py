"""What every role of one CTA knows, and which warps have which role."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import cutlass.cute as cute
from cutlass.pipeline import PipelineAsync

from ..draws import CancelDraws
from ..gemm_base import Operands
from .clusters import CtaPlace

LOAD_WARP = 0
DRAW_WARP = 1
LOAD_C_WARP = 2
GATHER_WARP = 3  # helps LOAD_WARP


class SmemTensors(NamedTuple):
    """Staged shared memory. c and scratch are None where unused."""

    a: cute.Tensor  # (tile_m, tile_k, ab_stages)
    b: cute.Tensor  # (tile_n, tile_k, ab_stages), or as many rows as this CTA keeps
    c: Optional[cute.Tensor]  # (slab_m, epi_n, c_stages)
    outputs: tuple  # D and the mixins' tile outputs: (slab_m, columns, warpgroups * d_stages), None where not by TMA
    scratch: Optional[cute.Tensor]  # fp32 words of the mixins' ports, warpgroup after warpgroup
    scales: tuple = ()  # of A and B, if they are block-scaled: (row blocks, words of a k tile, ab_stages)


@dataclass(frozen=True)
class CtaContext:
    """What every role of one CTA knows. No state that advances lives here."""

    operands: Operands
    smem: SmemTensors
    ab: PipelineAsync
    c: Optional[PipelineAsync]
    works: Any  # LocalStream or RingStream
    problem: Any  # the adapter's params
    place: CtaPlace
    cancels: Optional[CancelDraws] = None  # how works are drawn, if not by the scheduler
