"""fp32 inputs on the GPU: the cases of the emulator, larger ones, and against what cuBLAS makes of them in tf32."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import quack
from tests.cases import Case, operands, poison
from tests.gpu.test_gemm import assert_untouched_around, launch
from tests.grouped_cases import GroupedCase, GroupedOperands
from tests.grouped_cases import run as run_grouped
from tests.grouped_cases import verify as verify_grouped
from tests.ragged_cases import RaggedCase, RaggedOperands
from tests.ragged_cases import run as run_ragged
from tests.ragged_cases import verify as verify_ragged
from tests.reference import check, reference
from tests.split_cases import MODES, Run, SplitCase
from tests.tf32_cases import cases, exact_numbers, grouped_cases, ragged_cases, split_cases, tf32


def large_cases() -> Iterator[Case]:
    """Several waves, and sums of thousands of terms, in every layout that is legal."""
    for a_major, b_major in ("kk", "mk", "kn"):
        yield tf32("tf32 large", 4096, 2048, 1024, a_major=a_major, b_major=b_major)
        yield tf32("tf32 large", 1000, 3000, 2056, a_major=a_major, b_major=b_major, c="fp32", beta=0.5, bias="fp32")
        yield replace(tf32("tf32 deep", 520, 264, 16384, a_major=a_major, b_major=b_major), out="bf16")


@pytest.mark.parametrize("case", [*cases(), *large_cases()], ids=str)
def test_against_reference(case: Case):
    """Twice, to the same bits."""
    t = operands(case)
    C = t.C.clone() if t.C is not None else None
    results = []
    for _ in range(2):
        poison(t.out.buffer)
        if case.in_place and C is not None:
            t.out.tensor.copy_(C)
        launch(case, t)
        results.append(t.out.tensor.clone())
        check(case, results[-1], reference(case, t, C))
        assert_untouched_around(t)
    assert torch.equal(*(result.contiguous().view(torch.uint8) for result in results))


@pytest.mark.parametrize("case", list(ragged_cases()), ids=str)
def test_ragged(case: RaggedCase):
    t = RaggedOperands(case, "cuda")
    run_ragged(t)
    verify_ragged(t)


@pytest.mark.parametrize("case", list(grouped_cases()), ids=str)
def test_grouped(case: GroupedCase):
    t = GroupedOperands(case, "cuda")
    run_grouped(t)
    verify_grouped(t)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("case", list(split_cases()), ids=str)
def test_split(case: SplitCase, mode):
    run = Run(case, mode, "cuda")
    for _ in range(2):
        run.launch()
        run.verify()


@pytest.mark.parametrize("majors", ["kk", "mk", "kn"])
def test_as_close_as_cublas_in_tf32(majors: str):
    """To the exact product of what tf32 holds; cuBLAS rounds operands or cuts them, so numbers are given that it need not."""
    A, B = exact_numbers(2048, 2048, seed=1, device="cuda"), exact_numbers(2048, 2048, seed=2, device="cuda")
    A, B = A if majors[0] == "k" else A.mT, B if majors[1] == "n" else B.mT
    exact = A.double() @ B.double()
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        theirs = (torch.mm(A, B).double() - exact).norm()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert (quack.gemm(A, B).double() - exact).norm() <= 1.5 * theirs


def test_operands_are_cut_not_rounded():
    A, B = torch.full((256, 64), 1 + 2.0**-11, device="cuda"), torch.full((64, 256), 1 + 2.0**-10, device="cuda")
    A[::2] = 1 + 2.0**-10 - 2.0**-20
    assert quack.gemm(A, B).eq(64 * (1 + 2.0**-10)).all()
    assert quack.gemm(A.mT.contiguous().mT, B.mT.contiguous().mT).eq(64 * (1 + 2.0**-10)).all()
