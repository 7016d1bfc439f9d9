"""`gemm_symmetric` on the GPU: the emulated cases, larger ones, streams of calls under graphs and torch.compile."""

import pytest
import torch

import quack
from tests.symmetric_cases import (
    CONFIGS,
    SymmetricCase,
    cases,
    check_that_mirrors_are_copies,
    run,
    run_and_verify,
    symmetric,
    symmetric_operands,
    verify,
)

BIG = [
    symmetric("big", m, k, **options)
    for m, k in ((512, 512), (1024, 1024), (2048, 520), (4096, 1024), (3000, 1000))
    for options in (dict(), dict(c="bf16", in_place=True, alpha=0.5, beta=2.0), dict(out="fp32"))
]
BIG += [symmetric("big", 1031, 264, batch=5, c="fp32", config=config) for config in CONFIGS.values()]


@pytest.mark.parametrize("case", [*cases(), *BIG], ids=str)
def test_against_reference(case: SymmetricCase):
    run_and_verify(case, "cuda")


@pytest.mark.parametrize("name", CONFIGS)
def test_two_runs_give_the_same_bits(name: str):
    case = symmetric("twice", 1500, 520, batch=2, c="bf16", in_place=True, config=CONFIGS[name])
    t = symmetric_operands(case, "cuda")
    C = t.C.clone()
    first = run(case, t, C)
    for _ in range(10):
        assert torch.equal(run(case, t, C), first)
    verify(case, t, C, first)


@pytest.mark.parametrize("name", CONFIGS)
def test_mirrors_are_copies(name: str):
    check_that_mirrors_are_copies(CONFIGS[name], "cuda")


@pytest.mark.parametrize("m, k", [(136, 1000), (512, 4096), (1000, 2048), (2048, 8192)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_whole_product_of_a_transpose_has_symmetric_bits(m: int, k: int, dtype: torch.dtype):
    """What lets the heuristics take the plain kernel; the emulator says the same."""
    a = torch.randn(m, k, device="cuda").to(dtype)
    for operand in (a, a.mT.contiguous().mT):
        out = quack.gemm(operand, operand.mT, out_dtype=torch.float32, split_k=1)
        assert torch.equal(out, out.mT)
        assert torch.equal(
            out, quack.gemm_symmetric(operand, operand.mT, out_dtype=torch.float32, config=CONFIGS["128"])
        )


def test_graph_and_dynamic_scheduler():
    a = torch.randn(1000, 264, device="cuda").bfloat16()
    out = torch.empty(1000, 1000, device="cuda", dtype=torch.bfloat16)
    expected = quack.gemm_symmetric(a, a.mT)
    quack.gemm_symmetric(a, a.mT, out=out, dynamic_scheduler=True)
    assert torch.equal(out, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        quack.gemm_symmetric(a, a.mT, out=out, dynamic_scheduler=True)
    for _ in range(3):
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, expected)


def test_torch_compile():
    def step(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        gram = quack.gemm_symmetric(x, x.mT)
        return quack.gemm_symmetric(gram, gram, c, alpha=0.5, beta=2.0) + 1

    x = torch.randn(264, 136, device="cuda").bfloat16()
    c = torch.randn(264, 264, device="cuda").bfloat16()
    c = c + c.mT
    assert torch.equal(torch.compile(step, fullgraph=True)(x, c), step(x, c))
