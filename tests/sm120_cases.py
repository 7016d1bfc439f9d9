"""The cases of `tests.families`, for the kernel of sm_120a: with configurations that it has."""

from dataclasses import replace
from typing import Any, Optional

from quack.gemm_config import GemmConfig
from tests.cases import DTYPES
from tests.families import Family, configured

MAX_TILE_N = 128

ONE_STAGE = "leaves shared memory for 1 operand stages"
WIDE_K = "tile_k=128 is 256 bytes"
REFUSED = {
    # Several staged tiles of C and of the epilogue in 99 KB.
    "norm_act-300x272x72-c=bf16-rows=bf16-activation=geglu-store_preact-128x128x32_coop_cl1x1_static_sw8m": ONE_STAGE,
    "dense-300x520x64-bfloat16-half-128x128x32-coop-cl1x1-static-sw8m": ONE_STAGE,
    "dense-300x520x64-bfloat16-half-256x96x32-coop-cl1x1-static-sw8m": ONE_STAGE,
    "dense-200x200x264-bfloat16-half-64x64-pp-cl1x1-static-sw8m-serial": ONE_STAGE,
    "dense-200x200x264-bfloat16-half-64x64-pp-cl1x1-static-sw8m-parallel": ONE_STAGE,
    "dense-200x200x264-bfloat16-half-64x64-pp-cl1x1-static-sw8m-separate": ONE_STAGE,
    "8problems-swiglu-136x144x72-bf16.bf16.bf16-kknn-store-c-bias-128x128x32_pp_cl1x1_static_sw8m": ONE_STAGE,
    "8problems-bfloat16-half-128x128x32_coop_cl1x1_static_sw8m": ONE_STAGE,
    "3problems-bfloat16-half-64x64_pp_cl1x1_static_sw8m-serial": ONE_STAGE,
    "3problems-bfloat16-half-64x64_pp_cl1x1_static_sw8m-parallel": ONE_STAGE,
    "3problems-bfloat16-half-64x64_pp_cl1x1_static_sw8m-separate": ONE_STAGE,
    # Lines of 64 or 128 bytes.
    "tile_k-520x776x328-bf16.bf16.bf16-kkn-config=64x128x128_coop_cl1x1_static_sw8m": WIDE_K,
    "tile_k-520x776x328-bf16.bf16.bf16-kkn-config=64x128x128_pp_cl1x1_static_sw8m": WIDE_K,
}  # by `str(case)`: configurations that the kernel does not have, and why


def config_here(case: Any) -> Optional[GemmConfig]:
    """The nearest configuration without clusters, for 99 KB of shared memory and operands in registers."""
    config = case.config
    if config is None:
        return None
    name = getattr(case, "a", getattr(case, "dtype", None))
    input_bytes = DTYPES[name].itemsize if isinstance(name, str) else 2
    tile_m, tile_n = 256 if config.tile_m == 192 else config.tile_m, min(config.tile_n, MAX_TILE_N)
    tile_k = 64 // input_bytes if tile_m * tile_n > 128 * 64 else config.tile_k
    gathers = getattr(case, "pool", None) is not None or getattr(case, "gathered", False)
    if gathers:  # lines of A, which are 128 bytes long
        tile_m, tile_k = min(tile_m, 128), None
    return replace(config, tile_m=tile_m, tile_n=tile_n, tile_k=tile_k, cluster_m=1, cluster_n=1)


def case_here(case: Any) -> Any:
    return configured(case, config_here)


def here(family: Family) -> list[Any]:
    """Its cases, each once, if several became the same."""
    return list({str(case): case for case in map(case_here, family.cases())}.values())
