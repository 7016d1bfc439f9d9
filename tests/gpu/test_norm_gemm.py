"""Reductions, norms and stochastic rounding on the GPU."""

from dataclasses import replace

import pytest
import torch

import quack
from quack.rms_final_reduce import rms_final_reduce, rms_final_reduce_ref
from quack.rounding import RoundingMode
from tests.epilogue_norm_cases import (
    ROUNDING_CONFIGS,
    NormCase,
    NormOperands,
    cases,
    check_final_reduce,
    check_rounding,
    final_reduce_cases,
    run,
    verify,
)

BIG = [
    NormCase("reduce", 2040, 4104, 1032, row="log_sum_exp", col="sum"),
    NormCase("rms", 4096, 4096, 1024, columns="bf16", c="bf16"),
    NormCase("norm_act", 4096, 7168, 1024, rows="fp32", activation="swiglu"),
    NormCase("norm_act", 2048, 7168, 1024, rows="fp32", activation="swiglu", store_preact=True),
]


@pytest.mark.parametrize("case", cases() + BIG, ids=str)
def test_against_reference(case: NormCase):
    t = NormOperands(case, "cuda")
    run(t)
    torch.cuda.synchronize()
    verify(t)


def test_results_repeat_bit_by_bit():
    case = replace(BIG[0], row="sum", col="sum_of_squares")
    t = NormOperands(case, "cuda")
    run(t)
    first = {name: value.clone() for name, value in t.results.items()}
    for _ in range(10):
        run(t)
        assert all(torch.equal(value, t.results[name]) for name, value in first.items())


@pytest.mark.parametrize("name", final_reduce_cases("cpu"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64), ids=str)
def test_final_reduce(name: str, dtype: torch.dtype):
    check_final_reduce(final_reduce_cases("cuda")[name].to(dtype))


def test_final_reduce_of_many_rows():
    check_final_reduce(torch.rand(1 << 20, 28, device="cuda"))
    check_final_reduce(torch.rand(28, 1 << 20, device="cuda").mT)


def test_final_reduce_waits_for_the_gemm():
    """It starts under the tail of the GEMM (PDL): partials of the call before must never be read. Also in a graph's replays."""
    A, B = torch.randn(2048, 512, device="cuda").bfloat16(), torch.randn(4096, 512, device="cuda").bfloat16().mT
    scales = torch.rand(20, device="cuda").tolist()
    D, rstd = torch.empty(2048, 4096, device="cuda").bfloat16(), torch.empty(2048, device="cuda")
    exact = (A.double() @ B.double()).square().mean(1)
    quack.gemm_rms_out(A, B, D, rstd, eps=0.0)
    graph = torch.cuda.CUDAGraph()
    x = A.clone()
    with torch.cuda.graph(graph):
        quack.gemm_rms_out(x, B, D, rstd, eps=0.0)
    for i, scale in enumerate(scales):
        x.copy_(A * 2.0 ** int(8 * scale))
        graph.replay() if i % 2 else quack.gemm_rms_out(x, B, D, rstd, eps=0.0)
        expected = exact.rsqrt() / 2.0 ** int(8 * scale)
        torch.testing.assert_close(rstd.double(), expected, rtol=1e-5, atol=0.0)


def test_final_reduce_in_a_graph_and_compiled():
    x = torch.rand(300, 96, device="cuda")
    expected = rms_final_reduce(x, 1 / 96)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = rms_final_reduce(x, 1 / 96)
    captured.fill_(float("nan"))
    graph.replay()
    assert torch.equal(captured, expected)
    compiled = torch.compile(lambda x: rms_final_reduce(x, 1 / 96), fullgraph=True)
    assert torch.equal(compiled(x), expected)
    torch.testing.assert_close(expected, rms_final_reduce_ref(x, 1 / 96))


@pytest.mark.parametrize("config", ROUNDING_CONFIGS, ids=str)
def test_rounding_is_the_model_bit_by_bit(config):
    check_rounding("cuda", config)


def test_rounding_has_no_bias():
    """Mean over seeds of a product that is exact in fp32 and has no bf16 neighbour at hand."""
    A, B = torch.randn(512, 256, device="cuda").bfloat16(), torch.randn(256, 512, device="cuda").bfloat16()
    exact = quack.gemm(A, B, out_dtype=torch.float32).double()
    step = exact.bfloat16().double().abs() * 2.0**-7
    seeds = 256
    total = torch.zeros_like(exact)
    for seed in range(seeds):
        total += quack.gemm(A, B, rounding_mode=RoundingMode.RS, sr_seed=seed).double()
    error = ((total / seeds - exact) / step.clamp_min(1e-30)).flatten()
    # One rounding has a standard deviation of at most half a step: the mean over 2^18 elements and 256 seeds of 6e-5.
    assert error.mean().abs() < 4 * 0.5 / (error.numel() * seeds) ** 0.5
    assert error.abs().max() < 6 * 0.5 / seeds**0.5


def test_compiled_calls():
    x, w, rows = torch.randn(64, 128, device="cuda").bfloat16(), torch.randn(256, 128, device="cuda").bfloat16(), None
    expected_d, rows = quack.gemm_rms(x, w.mT)
    expected = quack.gemm_norm_act(x, w.mT, rows, activation="swiglu", store_preact=True)

    @torch.compile(fullgraph=True)
    def both(x, w):
        d, rstd = quack.gemm_rms(x, w.mT)
        return d, rstd, *quack.gemm_norm_act(x, w.mT, rstd, activation="swiglu", store_preact=True)

    for got, exact in zip(both(x, w), (expected_d, rows, *expected)):
        assert torch.equal(got, exact)
