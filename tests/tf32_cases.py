"""fp32 operands, multiplied in tf32, in every kind of problem, for emulator and GPU; the references see what tensor cores see.

An operand that is not K-major goes through registers, so each configuration runs both ways: A as it is, or M-major.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from quack.gemm_config import GemmConfig
from tests.cases import Case
from tests.grouped_cases import MIXED, GroupedCase
from tests.ragged_cases import DYNAMIC, MANY, PINGPONG, SIZES, RaggedCase
from tests.reference import as_multiplied
from tests.split_cases import SplitCase

CONFIGS = {
    "pingpong": GemmConfig(128, 128, pingpong=True),
    "cooperative": GemmConfig(128, 256),
    "two slabs": GemmConfig(256, 128, cluster_m=1, cluster_n=2),
    "three warpgroups": GemmConfig(192, 64, cluster_m=1),
    "narrow": GemmConfig(64, 48, pingpong=True, cluster_m=1),
    "wide k tiles": GemmConfig(128, 128, 64, cluster_m=1),
    "not persistent": GemmConfig(128, 96, pingpong=True, is_persistent=False),
    "dynamic": GemmConfig(128, 160, pingpong=True, is_dynamic_persistent=True),
}
tf32 = partial(Case, a="fp32", b="fp32", out="fp32")


def cases() -> Iterator[Case]:
    """Configurations, layouts, tails of K, batches, epilogues, output dtypes."""
    for name, config in CONFIGS.items():
        for a_major in "km":
            yield tf32(f"tf32 {name}", 264, 328, 100, a_major=a_major, config=config)
    swapped = replace(CONFIGS["pingpong"], swap_ab=True)
    for a, b, out in ("kkm", "knn", "knm", "mkm"):
        yield tf32("tf32 majors", 136, 200, 72, a_major=a, b_major=b, out_major=out)
    yield tf32("tf32 swapped", 136, 200, 72, config=swapped)
    yield tf32("tf32 swapped", 136, 200, 72, b_major="n", c="fp32", bias="bf16", beta=0.5, config=swapped)
    for k in (0, 1, 31, 33, 500):
        yield tf32("tf32 k", 72, 80, k, bias="fp32")
        yield tf32("tf32 k", 72, 80, k, a_major="m")
    for a_major in "km":
        yield tf32("tf32 batch", 136, 72, 80, batch=3, a_major=a_major, bias="bf16", bias_batched=True)
        yield tf32("tf32 odd", 131, 75, 72, a_major=a_major, pitch="odd", out_pitch="odd", c="fp32", c_pitch="odd")
        yield tf32("tf32 c", 200, 136, 136, a_major=a_major, c="fp32", in_place=True, alpha=0.5, beta=-2.0)
        for out in ("bf16", "fp16", "e4m3"):
            yield replace(tf32("tf32 out", 200, 136, 72, a_major=a_major, c="bf16", device_scalars=True), out=out)


def ragged_cases() -> Iterator[RaggedCase]:
    """Rows in groups, and gathered."""
    ragged = partial(RaggedCase, "m", dtype="fp32", out="fp32")
    yield ragged(SIZES, n=136, k=100, nan_group=1)
    yield ragged(SIZES, n=264, k=72, nan_group=3, config=DYNAMIC)
    yield ragged(MANY, n=136, k=72, out="bf16", nan_group=7, config=GemmConfig(64, 128, cluster_m=2))
    yield ragged(SIZES, n=131, k=72, odd=True, c="fp32", bias=True, beta=-2.0, nan_group=3)
    yield ragged(SIZES, n=136, k=72, pool=50, nan_group=1)
    yield ragged(SIZES, n=264, k=131, pool=70, nan_group=4, config=PINGPONG)
    yield ragged(SIZES, n=136, k=72, pool=70, nan_group=3, config=GemmConfig(256, 128, cluster_m=1))


def grouped_cases() -> Iterator[GroupedCase]:
    """Whole problems; those whose majors differ are several launches."""
    grouped = partial(GroupedCase, MIXED, dtype="fp32", out="fp32")
    yield grouped(nan_problem=0)
    yield grouped(majors=("mkn",), nan_problem=6, config=GemmConfig(256, 64, cluster_m=1))
    yield grouped(majors=("kkn", "knn", "mkm"), out="bf16", bias=True, nan_problem=5)


def split_cases() -> Iterator[SplitCase]:
    """Sums over K in parts."""
    small = GemmConfig(64, 64, pingpong=True, cluster_m=1)
    for config in (small, GemmConfig(128, 128, cluster_m=1), replace(small, swap_ab=True)):
        majors = {"b_major": "n"} if config.swap_ab else {"a_major": "m"}
        yield SplitCase(tf32("tf32 split", 136, 136, 200, c="fp32", bias="bf16", config=config), 3)
        yield SplitCase(tf32("tf32 split", 136, 72, 300, config=config, **majors), 2)
    yield SplitCase(RaggedCase("m", SIZES, n=72, k=200, dtype="fp32", out="fp32", nan_group=1, config=small), 2)


def exact_numbers(*shape: int, seed: int, device: Any = "cpu") -> torch.Tensor:
    """fp32 random numbers that tf32 holds."""
    generator = torch.Generator().manual_seed(seed)
    return as_multiplied(torch.randn(shape, generator=generator), torch.float32).to(device)
