"""The cases of `tests.families`, for the kernel of sm_120a: with configurations that it has."""

from dataclasses import replace
from typing import Any, Optional

from quack.gemm_config import GemmConfig
from tests.cases import DTYPES
from tests.families import Family, configured

MAX_TILE_N = 128


def config_here(case: Any) -> Optional[GemmConfig]:
    """The nearest configuration without clusters, for 99 KB of shared memory and operands in registers."""
    config = case.config
    if config is None:
        return None
    name = getattr(case, "a", getattr(case, "dtype", None))
    input_bytes = DTYPES[name].itemsize if isinstance(name, str) else 2
    tile_m, tile_n = 256 if config.tile_m == 192 else config.tile_m, min(config.tile_n, MAX_TILE_N)
    tile_k = 64 // input_bytes if tile_m * tile_n > 128 * 64 else config.tile_k
    if getattr(case, "pool", None) is not None or getattr(
        case, "gathered", False
    ):  # lines of A, which are 128 bytes long
        tile_m, tile_k = min(tile_m, 128), None
    return replace(config, tile_m=tile_m, tile_n=tile_n, tile_k=tile_k, cluster_m=1, cluster_n=1)


def case_here(case: Any) -> Any:
    return configured(case, config_here)


def here(family: Family) -> list[Any]:
    """Its cases, each once, if several became the same."""
    return list({str(case): case for case in map(case_here, family.cases())}.values())
