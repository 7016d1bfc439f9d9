"""Reductions, norms and stochastic rounding in the emulator."""

import pytest
import torch

import quack
from quack.gemm_norm import gemm_norm_act_out, gemm_rms_out
from quack.rms_final_reduce import rms_final_reduce
from quack.rounding import RoundingMode
from quack.runtime import call
from tests.epilogue_norm_cases import (
    FLAT,
    ROUNDING_CONFIGS,
    SIZES,
    SWAPPED,
    NormCase,
    NormOperands,
    cases,
    check_final_reduce,
    check_rounding,
    final_reduce_cases,
    run,
    verify,
)
from tests.philox import round_stochastically


def emulated(schedule: str = "latest"):
    return quack.emulator.use("sm90", schedule=schedule, checks=("all",), sms=4)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("case", cases(), ids=str)
def test_against_reference(case: NormCase):
    t = NormOperands(case, "cpu")
    with emulated():
        run(t)
    verify(t)


def test_every_schedule_gives_the_same_bits():
    """Partials are combined in a fixed order, whatever finishes first."""
    t = NormOperands(NormCase("reduce", 300, 200, 72, row="sum", col="log_sum_exp", config=FLAT), "cpu")
    results = []
    for schedule in ("eager", "latest", "random:3"):
        with emulated(schedule):
            run(t)
        results.append({name: value.clone() for name, value in t.results.items()})
    for other in results[1:]:
        assert all(torch.equal(value, results[0][name]) for name, value in other.items())


@pytest.mark.parametrize("config", (FLAT, SWAPPED), ids=str)
def test_infinities_and_nan_stay_in_their_rows(config):
    """Row 1 has +inf, row 2 only -inf, row 3 NaN; the columns beyond N, where A's infinities meet zeros, do not count."""
    A, B = torch.zeros(8, 64).bfloat16(), torch.zeros(40, 64).bfloat16().mT
    B[0] = 1.0
    A[:, 0] = torch.tensor([1.0, float("inf"), float("-inf"), float("nan"), 2.0, 0.0, -3.0, 88.0])
    expected = A[:, 0].double()
    with emulated():
        for kind in ("max", "log_sum_exp", "sum"):
            _, row, _ = quack.gemm_reduce(A[:, :1], B[:1], row=kind, config=config)
            exact = {"max": expected, "log_sum_exp": expected + torch.tensor(40.0).log(), "sum": expected * 40}[kind]
            torch.testing.assert_close(row.double(), exact, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_empty_problems():
    with emulated():
        for m, n in ((0, 8), (8, 0)):
            A, B = torch.randn(m, 16).bfloat16(), torch.randn(16, n).bfloat16()
            out, row, col = quack.gemm_reduce(A, B, row="max", col="sum")
            assert out.shape == (m, n) and row.shape == (m,) and col.shape == (n,) and not col.any()
            assert (row == float("-inf")).all()
            D, rstd = quack.gemm_rms(A, B, eps=0.25)
            assert D.shape == (m, n) and (rstd == 2.0).all()


@pytest.mark.parametrize("name", final_reduce_cases("cpu"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_final_reduce(name: str, dtype: torch.dtype):
    with emulated():
        check_final_reduce(final_reduce_cases("cpu")[name].to(dtype))


def test_final_reduce_gives_the_same_bits_in_every_schedule():
    x, results = torch.rand(70, 96), []
    for schedule in ("eager", "latest", "random:3"):
        with emulated(schedule):
            results.append(rms_final_reduce(x, 1 / 96))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_final_reduce_of_other_dtypes_infinities_and_nan():
    x = torch.rand(6, 20)
    x[1, 3], x[2, 19], x[3, 0], x[4] = float("inf"), float("nan"), -1e6, 0.0
    with emulated():
        for dtype in (torch.float32, torch.float64, torch.float8_e5m2):
            check_final_reduce(x.to(dtype))
        assert (rms_final_reduce(torch.full((3, 8), 1e-40), 1.0, 0.0) > 1e19).all(), "subnormal sums count"


def test_rms_norm_between_two_gemms():
    """The pair of calls is an RMS norm between two products."""
    x, w1, w2 = torch.randn(72, 64).bfloat16(), torch.randn(136, 64).bfloat16(), torch.randn(80, 136).bfloat16()
    weight = torch.randn(136)
    D, rstd = torch.full((72, 136), float("nan")).bfloat16(), torch.full((72,), float("nan"))
    y = torch.full((72, 80), float("nan")).bfloat16()
    with emulated():
        gemm_rms_out(x, w1.mT, D, rstd, norm_weight=weight, eps=1e-5)
        gemm_norm_act_out(D, w2.mT, None, y, rstd=rstd, activation="silu")
    h = x.double() @ w1.double().mT
    normed = torch.nn.functional.rms_norm(h, (136,), weight.double(), eps=1e-5)
    expected = torch.nn.functional.silu(normed @ w2.double().mT)
    assert (y.double() - expected).norm() <= 6e-3 * expected.norm()


@pytest.mark.parametrize("config", ROUNDING_CONFIGS, ids=str)
def test_rounding_is_the_model_bit_by_bit(config):
    with emulated():
        check_rounding("cpu", config)


def test_rounding_of_batches():
    with emulated():
        check_rounding("cpu", FLAT, batch=3)


def test_rounding_of_groups_and_with_all_terms():
    """cu_seqlens_m: rows count within their group. Rounding comes last, behind alpha, C and bias; torch's seed plays no part."""
    A, B = torch.randn(sum(SIZES), 72).bfloat16(), torch.randn(len(SIZES), 136, 72).bfloat16().mT
    C, bias = torch.randn(sum(SIZES), 136), torch.randn(len(SIZES), 136)
    offsets = torch.tensor([0, *SIZES], dtype=torch.int32).cumsum(0).int()
    exact, out = torch.empty(sum(SIZES), 136), torch.empty(sum(SIZES), 136).bfloat16()
    terms = {"C": C, "bias": bias, "alpha": 0.5, "beta": 2.0, "cu_seqlens_m": offsets}
    with emulated():
        quack.gemm_tuned.fn(A, B, exact, **terms)
        quack.gemm_tuned.fn(A, B, out, rounding_mode=RoundingMode.RS, sr_seed=5, **terms)
    for g, (first, size) in enumerate(zip(offsets.tolist(), SIZES)):
        rows = slice(first, first + size)
        assert torch.equal(out[rows], round_stochastically(exact[rows], 5, problem=g))


def test_another_seed_needs_no_new_plan():
    A, B = torch.randn(40, 64).bfloat16(), torch.randn(64, 64).bfloat16()
    with emulated():
        first = quack.gemm(A, B, rounding_mode=RoundingMode.RS, sr_seed=1)
        plans = len(call._calls)
        second = quack.gemm(A, B, rounding_mode=RoundingMode.RS, sr_seed=2)
        again = quack.gemm(A, B, rounding_mode=1, sr_seed=1)
        assert len(call._calls) == plans
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_compiled_calls():
    """Norms and rounding are ops of a graph; reductions break it."""
    A, B, weight = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16(), torch.randn(64)

    def norms(A, B, weight, seed):
        D, rstd = quack.gemm_rms(A, B, norm_weight=weight)
        preact, postact = quack.gemm_norm_act(D, B, rstd, activation="swiglu", store_preact=True)
        again = rms_final_reduce(D.float().square(), 1 / 64)
        return D, rstd, preact, postact, again, quack.gemm(A, B, rounding_mode=RoundingMode.RS, sr_seed=seed)

    def sums(A, B):
        return quack.gemm_reduce(A, B, row="sum", col="max")

    with emulated():
        got = torch.compile(norms, backend="eager", fullgraph=True)(A, B, weight, 5)
        assert all(map(torch.equal, got, norms(A, B, weight, 5)))
        assert all(map(torch.equal, torch.compile(sums, backend="eager")(A, B), sums(A, B)))
