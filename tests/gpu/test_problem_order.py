"""`batch_idx_permute` on the GPU."""

import pytest
import torch

import quack
from tests.cases import Case
from tests.order_cases import (
    SCHEDULES,
    OrderCase,
    cases,
    run_and_verify,
    run_and_verify_repeated,
    run_and_verify_repeated_ragged,
)
from tests.ragged_cases import RaggedCase

SIZES = tuple(int(x) for x in torch.randint(0, 300, (128,), generator=torch.Generator().manual_seed(3)))
BIG = [
    OrderCase(Case("order", 1032, 776, 264, batch=20)),
    OrderCase(RaggedCase("m", SIZES, n=520, k=264), "longest"),
    OrderCase(RaggedCase("k", SIZES, m=520, n=392), "longest"),
]


@pytest.mark.parametrize("case", [*cases(), *BIG], ids=str)
def test_against_reference(case: OrderCase):
    run_and_verify(case, "cuda")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_role_uses_the_vector(schedule: str):
    run_and_verify_repeated(schedule, "cuda")


@pytest.mark.parametrize("kind", ["m", "k"])
def test_every_role_uses_the_vector_ragged(kind: str):
    run_and_verify_repeated_ragged(kind, "cuda")


def test_the_order_may_come_from_the_kernel_before():
    """A permutation made on the device just before the launch is read only after that kernel has ended."""
    A, B = torch.randn(64, 264, 72, device="cuda").bfloat16(), torch.randn(64, 72, 136, device="cuda").bfloat16()
    expected = quack.gemm(A, B)
    for _ in range(20):
        order = torch.rand(64, device="cuda").argsort().int()
        assert torch.equal(quack.gemm(A, B, batch_idx_permute=order), expected)
