"""Reductions, norms and stochastic rounding on the GPU."""

from dataclasses import replace

import pytest
import torch

import quack
from quack.rounding import RoundingMode
from tests.epilogue_norm_cases import ROUNDING_CONFIGS, NormCase, NormOperands, cases, check_rounding, run, verify

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
