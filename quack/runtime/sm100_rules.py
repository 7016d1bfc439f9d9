"""What only the tcgen05 kernel refuses; `legality` applies it. Pure Python."""

from collections.abc import Iterator

from ..arch import TCGEN05
from ..gemm_config import Dtype, Major
from .spec import GATHERING, GemmSpec


def sm100_refusals(spec: GemmSpec) -> Iterator[tuple[str, str]]:
    """(reason, alternative)."""
    config, a = spec.config, spec.operands.a
    if spec.adapter in GATHERING and a.dtype is Dtype.FP32 and a.major is Major.OUTER and not config.use_tma_gather:
        yield (
            "fp32 columns of A picked by A_idx do not lie in shared memory as threads copy them",
            "use_tma_gather=True",
        )
    if not config.is_pair:
        return
    if config.cluster_m % 2:
        yield f"tile_m={config.tile_m} is shared by two CTAs, and cluster_m={config.cluster_m} is odd", "cluster_m=2"
    if config.tile_n % TCGEN05.pair_tile_n_step:
        yield (
            f"tile_n={config.tile_n}: tiles of tile_m={config.tile_m}, shared by two CTAs, have multiples of "
            f"{TCGEN05.pair_tile_n_step} columns",
            "tile_n=128",
        )
