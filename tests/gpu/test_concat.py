"""`concat_layout` on the GPU."""

import pytest
import torch

from tests.cases import Case
from tests.concat_cases import (
    ALL,
    ConcatCase,
    RaggedConcatCase,
    cases,
    launch,
    prepare,
    ragged_cases,
    run_and_verify_ragged,
    verify,
)
from tests.ragged_cases import RaggedOperands

BIG = [
    ConcatCase(Case("concat", 2048, 4096, 1024), ("B",)),
    ConcatCase(Case("concat", 2048, 4096, 1024, a_major="m", b_major="n", out_major="m"), ("A", "B", "out")),
    ConcatCase(Case("concat", 1030, 2050, 520, c="bf16", bias="bf16", batch=3, bias_batched=True), ALL),
    ConcatCase(Case("concat", 64, 50257, 256), ("A", "out")),
    ConcatCase(Case("concat", 2048, 4096, 1024, a="e4m3", b="e4m3", fast_accum=True), ("A", "B", "out")),
]


@pytest.mark.parametrize("case", [*cases(), *BIG], ids=str)
def test_against_reference(case: ConcatCase):
    t, C = prepare(case, "cuda")
    launch(case, t)
    torch.cuda.synchronize()
    verify(case, t, C)


@pytest.mark.parametrize("case", ragged_cases(), ids=str)
def test_ragged_against_reference(case: RaggedConcatCase):
    t = RaggedOperands(case.case, "cuda")
    run_and_verify_ragged(case, t)
