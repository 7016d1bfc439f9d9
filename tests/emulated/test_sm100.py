"""GemmSm100 in the emulator: the case lists that other tests run on sm_90a, with Blackwell's tiles, of one CTA and of pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Optional

import pytest
import torch

import quack
from quack.gemm_config import GemmConfig
from quack.runtime.spec import UnsupportedGemm
from tests import epilogue_norm_cases, ragged_cases, symmetric_cases
from tests.cases import Case, operands, poison
from tests.emulated import test_gemm
from tests.families import FAMILIES, Family, spread
from tests.schedules import EVERY_SCHEDULE, RANDOM_SEEDS
from tests.sm100_configs import DEFAULT_PAIR, on_sm100

SMS = 4  # few, so that persistent kernels take several tiles per CTA
ONE, PAIR = GemmConfig(128, 64, cluster_m=1, device_capacity=10), GemmConfig(256, 64, cluster_m=2, device_capacity=10)
CONFIGS = {
    "one": ONE,
    "one, multicast": replace(ONE, tile_n=128, cluster_m=2, cluster_n=2),
    "one, drawn": replace(ONE, cluster_m=2, is_dynamic_persistent=True),
    "one, widest": replace(ONE, tile_n=256),
    "one, narrowest": replace(ONE, tile_n=16),
    "pair": PAIR,
    "pair, multicast": replace(PAIR, tile_n=128, cluster_n=2),
    "two pairs": replace(PAIR, tile_n=96, cluster_m=4),
    "pair, drawn": replace(PAIR, is_dynamic_persistent=True),
    "pair, widest": replace(PAIR, tile_n=256),
    "pair, narrowest": replace(PAIR, tile_n=32),
    "pair, not persistent": replace(PAIR, is_persistent=False),
    "pair, deep": replace(PAIR, tile_k=128),
}

# Gradients of activations with row sums: by `str(case)`, what is said of tiles too wide for them.
REFUSED = {
    f"3problems-{activation}-136x144x72-bf16.bf16.bf16-kknn-store-scale-reduce-{tile}_static_sw8m": "too few registers"
    for activation in ("gelu_tanh_approx", "swiglu")
    for tile in ("128x256_coop_cl1x1", "256x256_coop_cl2x1")
}


def emulated(schedule: str = "latest", checks: tuple[str, ...] = ("all",)):
    return quack.emulator.use("sm100", schedule=schedule, checks=checks, sms=SMS)


def on_both(cases: Sequence[Any], columns: Optional[int] = None) -> list[Any]:
    """Every case with tiles of one CTA, and with those of pairs; columns: of all of them."""
    return [on_sm100(case, pairs, columns) for pairs in (False, True) for case in cases]


def dense() -> Iterator[Case]:
    """Configurations, dtypes and majors that Hopper does not have, and Hopper's own list."""
    for name, config in CONFIGS.items():
        yield Case(name, 300, 392, 200, config=config)
    for config in (ONE, replace(PAIR, tile_n=128)):
        for a, b in (("fp16", "fp16"), ("fp32", "fp32"), ("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e4m3")):
            for majors in ("kk", "mn"):
                dtypes = {"a": a, "b": b, "out": "fp32" if a == "fp32" else "bf16"}
                pinned = replace(config, cluster_m=2, tile_n=128) if majors == "kk" else replace(config, tile_n=128)
                if majors == "mn" and config.is_pair:
                    pinned = replace(pinned, tile_n=256)  # whole swizzled rows of each CTA's half of B
                yield Case("inputs", 272, 208, 272, a_major=majors[0], b_major=majors[1], config=pinned, **dtypes)
    yield from on_both(test_gemm.cases())


def gathers4() -> list[ragged_cases.RaggedCase]:
    """TMA picks the lines of A that threads would copy."""
    found = on_both(ragged_cases.gathered_cases())
    return [replace(case, config=replace(case.config or ONE, use_tma_gather=True)) for case in found]


def square() -> list[symmetric_cases.SymmetricCase]:
    """Symmetric results have square tiles, and clusters along one dimension."""
    found = on_both(list(symmetric_cases.cases()), 128)
    return [c for c in found if c.case.config is None or c.case.config.cluster_n * c.case.config.cluster_m < 4]


def both(family: Family) -> Family:
    return replace(family, cases=lambda: on_both(list(family.cases())))


HERE = {name: both(family) for name, family in FAMILIES.items()} | {
    "dense": replace(FAMILIES["dense"], cases=lambda: list(dense())),
    "symmetric": replace(FAMILIES["symmetric"], cases=square),
    "gather4": replace(FAMILIES["ragged"], cases=gathers4),
}


def run(family: str, case: Any, schedule: str) -> None:
    torch.manual_seed(0)
    with emulated(schedule):
        HERE[family].run_or_refuse(case, "cpu", REFUSED)


@pytest.mark.one_in(25)
@pytest.mark.filterwarnings("ignore:.*Everything.* spills")
@pytest.mark.parametrize("family, case", [(name, case) for name in HERE for case in HERE[name].cases()], ids=str)
def test_family(family: str, case: Any):
    run(family, case, "latest")


@pytest.mark.one_in(23)
@pytest.mark.filterwarnings("ignore:.*Everything.* spills")
@pytest.mark.parametrize("family, seed", [(name, seed) for name in HERE for seed in RANDOM_SEEDS])
def test_family_under_random_schedules(family: str, seed: int):
    """Ten cases of each, every one with a schedule of its own."""
    run(family, spread(HERE[family].cases(), len(RANDOM_SEEDS))[seed], f"random:{seed}")


def test_every_refused_case_is_a_case():
    assert REFUSED.keys() <= {str(case) for family in HERE.values() for case in family.cases()}


@pytest.mark.parametrize("config", [ONE, DEFAULT_PAIR], ids=str)
def test_rounding_is_the_model_bit_by_bit(config: GemmConfig):
    with emulated():
        epilogue_norm_cases.check_rounding("cpu", config)


@pytest.mark.parametrize("name", ["one, multicast", "pair, multicast", "pair, drawn"])
def test_random_schedules_give_the_same_bits(name: str):
    case = Case("schedules", 300, 264, 136, c="bf16", bias="bf16", config=CONFIGS[name])
    t = operands(case, "cpu")
    results = set()
    for schedule in EVERY_SCHEDULE:
        poison(t.out.buffer)
        with emulated(schedule):
            test_gemm.launch(case, t)
        results.add(t.out.tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert len(results) == 1


@pytest.mark.parametrize(
    "config", [replace(PAIR, cluster_m=1), replace(PAIR, tile_n=48), replace(ONE, tile_m=64)], ids=str
)
def test_tiles_without_an_mma_are_refused(config: GemmConfig):
    A, B = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16().mT
    with emulated(), pytest.raises(UnsupportedGemm, match="tile_m|tile_n"):
        quack.gemm_tuned.fn(A, B, torch.empty(64, 64), config=config)
