"""The tile configurations of the shared case lists, made Blackwell's: the same lists run on both."""

from dataclasses import replace
from typing import Any, Optional

from quack.gemm_config import GemmConfig
from tests.families import configured

PAIR_STEP = 32  # columns of a pair's tile are a multiple of it
DEFAULT_PAIR = GemmConfig(256, 128, cluster_m=2, device_capacity=10)


def for_sm100(config: Optional[GemmConfig], pairs: bool, columns: Optional[int] = None) -> Optional[GemmConfig]:
    """tile_n, schedule, order of A and B and cluster_n stay; tiles of one CTA have 128 rows, those of pairs 256. None leaves the
    choice to the heuristics, but for pairs. columns: another tile_n."""
    if config is None:
        return DEFAULT_PAIR if pairs else None
    tile_n, cluster_m = columns or config.tile_n, config.cluster_m
    if pairs:
        tile_n, cluster_m = -(-tile_n // PAIR_STEP) * PAIR_STEP, max(2, cluster_m)
    return replace(
        config, tile_m=256 if pairs else 128, tile_n=tile_n, cluster_m=cluster_m, pingpong=False, device_capacity=10
    )


def on_sm100(case: Any, pairs: bool, columns: Optional[int] = None) -> Any:
    """A case of any list, with its configuration replaced."""
    return configured(case, lambda inner: for_sm100(inner.config, pairs, columns))
