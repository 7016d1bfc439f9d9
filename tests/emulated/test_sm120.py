"""The kernel of sm_120a in the emulator: every family of cases that other architectures are tested with."""

from typing import Any

import pytest
import torch

import quack
from quack.gemm_config import GemmConfig
from quack.runtime.device import kernels_of
from quack.runtime.spec import UnsupportedGemm
from tests.cases import Case, operands, poison
from tests.emulated.test_gemm import launch
from tests.sm120_cases import FAMILIES, is_pinned, run_dense

SMS = 4  # few, so that persistent kernels take several tiles per CTA
TURNS = GemmConfig(128, 128, 32, pingpong=True, cluster_m=1)
SHARED = GemmConfig(256, 128, 32, cluster_m=1)


@pytest.mark.one_in(16)
@pytest.mark.filterwarnings("ignore:.*Everything.* spills")
@pytest.mark.parametrize(
    "family, case",
    [(name, case) for name, family in FAMILIES.items() for case in family.here()],
    ids=str,
)
def test_family(family: str, case: Any):
    """What is refused is a pinned configuration; the heuristics always find one."""
    torch.manual_seed(0)
    with quack.emulator.use("sm120", schedule="latest", checks=("all",), sms=SMS):
        try:
            FAMILIES[family].run(case, "cpu")
        except UnsupportedGemm as refusal:
            if not is_pinned(case):
                raise
            pytest.skip(str(refusal))


def majors(a: str, b: str, dtype: str, out: str, config: GemmConfig) -> Case:
    return Case("majors", 200, 264, 200, a=dtype, b=dtype, out=out, a_major=a, b_major=b, config=config)


@pytest.mark.parametrize(
    "case",
    [
        *(majors(a, b, "bf16", "bf16", config) for a, b, config in (("k", "k", TURNS), ("m", "n", SHARED))),
        *(majors(a, b, "fp16", "fp32", TURNS) for a, b in (("m", "k"), ("k", "n"))),
        *(majors(a, b, "fp32", "fp32", GemmConfig(128, 64, pingpong=True, cluster_m=1)) for a in "km" for b in "kn"),
        Case("fp8", 136, 200, 272, a="e4m3", b="e4m3", config=GemmConfig(128, 128, pingpong=True, cluster_m=1)),
        Case("fp8", 136, 200, 272, a="e5m2", b="e4m3", config=GemmConfig(128, 128, 64, cluster_m=1)),
    ],
    ids=str,
)
def test_operands_that_mma_sync_reads(case: Case):
    with quack.emulator.use("sm120", schedule="latest", checks=("all", "refills"), sms=SMS):
        run_dense(case, "cpu")


@pytest.mark.parametrize("config", [TURNS, SHARED], ids=["pingpong", "cooperative"])
@pytest.mark.parametrize("target", ["sm120", "sm90"])
def test_random_schedules_give_the_same_bits(config: GemmConfig, target: str):
    """Compiled for Hopper as well, which runs it in tests/gpu."""
    case = Case("schedules", 300, 264, 136, c="bf16", bias="bf16", config=config)
    t = operands(case, "cpu")
    results = set()
    for schedule in ("eager", "latest", *(f"random:{seed}" for seed in range(10))):
        poison(t.out.buffer)
        with quack.emulator.use(target, schedule=schedule, checks=("all", "refills"), sms=SMS), kernels_of("sm_120a"):
            launch(case, t)
        results.add(t.out.tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert len(results) == 1
