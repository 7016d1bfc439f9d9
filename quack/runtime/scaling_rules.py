"""What block-scaled operands ask of kernel, dtypes and tiles; `legality` applies it. Pure Python."""

from collections.abc import Iterator
from typing import Optional

from ..arch import ARCHES, Arch, Feature
from ..gemm_config import Dtype, Major
from .spec import DENSE, GATHER_K, GATHER_M, GROUPED, VARLEN_K, VARLEN_M, GemmSpec

SCALED_ADAPTERS = (DENSE, VARLEN_M, VARLEN_K, GATHER_M, GROUPED)  # whose `scales` know where blocks begin
TILE_N_STEP = 64  # so that a tile of at most 128 columns has its scales in one block of 128


def scaling_refusals(spec: GemmSpec, arch: Arch, adapter: Optional[Feature]) -> Iterator[tuple[str, str]]:
    """(reason, alternative). adapter: what the operands are, if they are not dense."""
    a, b, config = spec.operands.a, spec.operands.b, spec.config
    if a.scaling is None:
        return
    assert b.scaling is a.scaling
    scaled = arch.execution.scaled
    if not scaled:
        known = ", ".join(other.name for other in ARCHES.values() if other.execution.scaled and other.has_kernel)
        yield (
            f"block-scaled operands have no kernel on {arch.name}",
            f"a GPU of {known}, or gemm with operands rescaled",
        )
        return
    kinds = {a.dtype, b.dtype}
    scale = f"{a.scaling.dtype.value} scales for {a.scaling.block} elements"
    groups = scaled.get(a.scaling, ())
    if not any(kinds <= group for group in groups):
        legal = " or ".join("/".join(sorted(dtype.value for dtype in group)) for group in groups)
        yield (
            f"A of {a.dtype.value} and B of {b.dtype.value} with {scale} have no kernel on {arch.name}",
            f"A and B of {legal}",
        )
    if spec.adapter == GATHER_K:
        yield (
            "A_idx picks single k with cu_seqlens_k, and block-scaled elements share scales with their neighbours along K",
            "A = A[:, A_idx], scaled after that",
        )
    elif spec.adapter == GATHER_M and spec.pieces_of is None and not config.use_tma_gather:
        yield "rows of block-scaled A picked by A_idx are loaded by TMA only", "use_tma_gather=True"
    elif spec.adapter == GATHER_M and a.dtype is Dtype.WIDE_E2M1:
        yield "TMA gather4 does not spread out fp4 as beside fp8", "A of fp8 and B of fp4, or both of fp4"
    elif spec.adapter not in SCALED_ADAPTERS:
        asked = spec.adapter if adapter is None else adapter.label
        yield f"block-scaled operands have no kernel with {asked}", "gemm_blockscaled, one call per problem"
    for name, operand in (("A", a), ("B", b)):
        if operand.major is not Major.INNER:
            yield f"{name} is not K-major, and blocks of scales go along K", f"{name} with K contiguous"
        if operand.is_concat:
            yield f"concat_layout names {name}, whose scales are in logical order", f"{name} in logical order"
    if spec.pieces_of is None and config.tile_n % TILE_N_STEP:
        yield (
            f"tile_n={config.tile_n}: scales of B lie in blocks, tiles begin at multiples of {TILE_N_STEP}",
            "tile_n=128",
        )
    if config.tile_k is not None and a.dtype.bytes_of(config.tile_k) != 128:
        yield (
            f"tile_k={config.tile_k}: tensor memory has columns for the scales of 128 bytes of K",
            f"tile_k={a.dtype.elements_in(128)}",
        )
