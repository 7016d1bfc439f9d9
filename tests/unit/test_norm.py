"""Norms, reductions and stochastic rounding without a kernel: refusals, references, the host model of rounding."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import quack
from quack.gemm_config import Dtype, GemmConfig
from quack.gemm_norm import gemm_norm_act_out, gemm_norm_act_ref, gemm_rms_out, gemm_rms_ref
from quack.gemm_reduction import combine, gemm_reduce
from quack.reduction import Reduction
from quack.rms_final_reduce import rms_final_reduce, rms_final_reduce_ref
from quack.rounding import RoundingMode
from quack.runtime import row_sum
from quack.runtime.compile import kernel_facts, trace
from quack.runtime.row_sum import has_vectors, lane_group, row_sum_spec
from quack.runtime.spec import UnsupportedGemm
from tests.philox import philox, random_bits, round_stochastically

BF16, FP32 = torch.bfloat16, torch.float32


def random(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[0])).to(dtype)


# ---- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"norm_weight": random(63, dtype=FP32)}, ValueError, r"norm_weight has shape \(63,\), expected \(64,\)"),
        ({"norm_weight": 1.0}, TypeError, "norm_weight is a float, expected a torch.Tensor"),
        ({"out": random(32, 64), "out_dtype": FP32}, ValueError, "out has dtype torch.bfloat16 and out_dtype is"),
        ({"out": random(32, 63)}, ValueError, r"out has shape \(32, 63\), expected \(32, 64\)"),
        ({"C": random(32, 60)}, ValueError, r"C has shape \(32, 60\), expected \(32, 64\)"),
    ],
)
def test_gemm_rms_refuses(launches, options, error, message):
    with pytest.raises(error, match=message):
        quack.gemm_rms(random(32, 16), random(16, 64), **options)
    assert not launches


def test_gemm_rms_out_refuses_another_rstd(launches):
    for rstd in (random(31, dtype=FP32), random(32)):
        with pytest.raises(ValueError, match=r"rstd has shape .* expected \(32,\) and torch.float32"):
            gemm_rms_out(random(32, 16), random(16, 64), random(32, 64), rstd)
    assert not launches


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"rstd": random(31, dtype=FP32)}, ValueError, r"rstd has shape \(31,\), expected \(32,\)"),
        ({"activation": "gelu"}, ValueError, "activation is 'gelu', expected one of None, .*'swiglu'"),
        ({"postact_out": random(32, 63)}, ValueError, r"postact_out has shape \(32, 63\), expected \(32, 64\)"),
        ({"activation": "glu", "postact_out": random(32, 64)}, ValueError, r"postact_out .* expected \(32, 32\)"),
        ({"preact_out": random(32, 64), "out_dtype": FP32}, ValueError, "preact_out has dtype .* and out_dtype is"),
        ({"concat_layout": ("out",)}, UnsupportedGemm, "concat_layout names out"),
    ],
)
def test_gemm_norm_act_refuses(launches, options, error, message):
    with pytest.raises(error, match=message):
        quack.gemm_norm_act(random(32, 16), random(16, 64), **options)
    assert not launches


def test_gated_activations_have_no_swapped_form(launches):
    config = GemmConfig(128, 64, cluster_m=1, swap_ab=True)
    with pytest.raises(UnsupportedGemm, match="no form for D\\^T.*swap_ab=False"):
        quack.gemm_norm_act_tuned.fn(
            random(32, 16), random(16, 64), None, random(32, 32), activation="swiglu", config=config
        )
    assert not launches


def test_column_reductions_of_groups_are_refused(launches):
    offsets = torch.tensor([0, 20, 32], dtype=torch.int32)
    with pytest.raises(UnsupportedGemm, match="column reductions would mix the rows of groups"):
        gemm_reduce(random(32, 16), random(2, 16, 64), col="sum", cu_seqlens_m=offsets)
    assert not launches


@pytest.mark.parametrize("name", ["mean", 0, None, []])
def test_unknown_reductions_are_refused(name):
    with pytest.raises(ValueError, match="expected one of 'sum', 'sum_of_squares', 'max', 'log_sum_exp'"):
        Reduction.of(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e4m3fn])
def test_rounding_to_other_dtypes_is_refused(launches, dtype):
    with pytest.raises(UnsupportedGemm, match="RS rounds to bf16, and out has dtype .*instead: a bf16 out"):
        quack.gemm(random(32, 16), random(16, 64), out_dtype=dtype, rounding_mode=RoundingMode.RS)
    with pytest.raises(UnsupportedGemm, match="RS rounds to bf16"):
        quack.gemm_tuned.fn(random(32, 16), random(16, 64), random(32, 64).to(dtype), rounding_mode=1)
    assert not launches


@pytest.mark.parametrize("seed", [-1, 2**31, 1.0, None])
def test_seeds_are_integers_of_31_bits(launches, seed):
    with pytest.raises(ValueError, match="sr_seed is .* expected an int in"):
        quack.gemm(random(32, 16), random(16, 64), rounding_mode=RoundingMode.RS, sr_seed=seed)
    assert not launches


def test_unknown_rounding_modes_are_refused(launches):
    with pytest.raises(
        ValueError, match=r"rounding_mode is 2, expected one of RoundingMode.RN \(0\), RoundingMode.RS \(1\)"
    ):
        quack.gemm(random(32, 16), random(16, 64), rounding_mode=2)
    assert not launches


def test_rounding_to_nearest_is_no_term(launches):
    for mode in (None, RoundingMode.RN, 0):
        quack.gemm(random(32, 16), random(16, 64), rounding_mode=mode, sr_seed=3)
    assert len(launches) == 3 and all(ports is None for *_, ports, _, _ in launches)


def test_tiles_that_would_spill_are_refused(launches):
    wide = GemmConfig(128, 192, pingpong=True, cluster_m=1)
    A, B, out = random(256, 64), random(256, 64).mT, random(256, 256)
    quack.gemm_tuned.fn(A, B, out, config=wide)
    with pytest.raises(UnsupportedGemm, match="accumulator registers"):
        quack.gemm_tuned.fn(A, B, out, config=wide, rounding_mode=RoundingMode.RS)
    with pytest.raises(UnsupportedGemm, match="accumulator registers"):
        gemm_reduce(A, B, row="log_sum_exp", config=wide)
    with pytest.raises(UnsupportedGemm, match="accumulator registers"):
        gemm_reduce(A, B, row="sum", col="sum", config=wide)
    gemm_reduce(A, B, row="sum_of_squares", config=wide)
    gemm_reduce(A, B, col="max", config=wide)
    assert len(launches) == 4  # the sum of squares adds up its partials


# ---- references -------------------------------------------------------------------------------------------------------


def test_reference_of_the_pair_is_a_norm():
    x, w1, w2 = (torch.randn(shape, dtype=torch.float64) for shape in ((5, 24), (24, 16), (16, 12)))
    C, weight = torch.randn(5, 16, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    D, rstd = gemm_rms_ref(x, w1, C, weight, eps=1e-5)
    preact, postact = gemm_norm_act_ref(D, w2, rstd, activation="swiglu", store_preact=True)
    expected = F.rms_norm(x @ w1 + C, (16,), weight, eps=1e-5) @ w2
    torch.testing.assert_close(preact, expected)
    torch.testing.assert_close(postact, F.silu(expected[:, 0::2]) * expected[:, 1::2])


def test_references_of_groups():
    sizes, offsets = (3, 0, 4), torch.tensor([0, 3, 3, 7], dtype=torch.int32)
    A, B = torch.randn(7, 8, dtype=torch.float64), torch.randn(3, 8, 6, dtype=torch.float64)
    weight, rstd = torch.randn(3, 6, dtype=torch.float64), torch.rand(7, dtype=torch.float64)
    D, norms = gemm_rms_ref(A, B, norm_weight=weight, cu_seqlens_m=offsets)
    _, y = gemm_norm_act_ref(A, B, rstd, activation="relu", cu_seqlens_m=offsets)
    first = 0
    for g, size in enumerate(sizes):
        rows = slice(first, first + size)
        product = A[rows] @ B[g]
        torch.testing.assert_close(D[rows], product * weight[g])
        torch.testing.assert_close(norms[rows], (product.square().mean(-1) + 1e-6).rsqrt())
        torch.testing.assert_close(y[rows], F.relu(product * rstd[rows, None]))
        first += size


def test_rms_final_reduce_ref():
    x = torch.rand(3, 5, 7).bfloat16()
    torch.testing.assert_close(rms_final_reduce_ref(x, 0.25, 0.5), (x.float().sum(-1) * 0.25 + 0.5).rsqrt())
    torch.testing.assert_close(rms_final_reduce_ref(x.double(), 0.25, 0.5), (x.double().sum(-1) * 0.25 + 0.5).rsqrt())


# ---- the final reduction ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((1.0, 1.0), TypeError, "x is a float, expected a torch.Tensor of partial sums"),
        ((torch.tensor(1.0), 1.0), TypeError, "x is a 0-dimensional tensor"),
        ((torch.ones(2, 3), "1"), TypeError, "scale is a str, expected a float"),
        ((torch.ones(2, 3), torch.ones(1)), TypeError, "scale is a Tensor, expected a float"),
        ((torch.ones(2, 3), 1.0, None), TypeError, "eps is a NoneType, expected a float"),
        (
            (torch.ones(2, 3, dtype=torch.int32), 1.0),
            ValueError,
            "x has dtype torch.int32, expected one of torch.bfloat16",
        ),
        (
            (torch.ones(1, 1).expand(2**31, 4), 1.0),
            ValueError,
            r"x has shape \(2147483648, 4\): more than 2147483520 rows",
        ),
    ],
)
def test_rms_final_reduce_refuses(launches, arguments, error, message):
    with pytest.raises(error, match=message):
        rms_final_reduce(*arguments)
    assert not launches


def test_rms_final_reduce_needs_a_device():
    with pytest.raises(ValueError, match="x is on cpu: quack runs on CUDA devices"):
        rms_final_reduce(torch.ones(2, 3), 1.0)


def test_rms_final_reduce_of_nothing(launches):
    assert (rms_final_reduce(torch.empty(4, 0), 1.0, 0.25) == 2.0).all()
    assert rms_final_reduce(torch.empty(3, 0, 5), 1.0).shape == (3, 0)
    assert not launches


@pytest.mark.parametrize(
    "x, vector, group",
    [
        (torch.ones(8, 32), True, 1),
        (torch.ones(8, 128), True, 3),
        (torch.ones(8, 4096), True, 5),
        (torch.ones(8, 4), True, 0),
        (torch.ones(8, 64).bfloat16(), True, 1),
        (torch.ones(8, 36).bfloat16(), False, 4),
        (torch.ones(8, 33), False, 3),
        (torch.ones(8, 36)[:, 1:33], False, 3),
        (torch.ones(8, 42)[:, :32], False, 3),
        (torch.ones(1, 42)[:, :32], True, 1),
        (torch.ones(32, 8).mT, False, 0),
        (torch.ones(8, 64)[:, ::2], False, 0),
        (torch.ones(2, 8, 32), True, 1),
    ],
)
def test_lanes_of_the_final_reduction(x, vector, group):
    assert (has_vectors(x), lane_group(x, vector)) == (vector, group)


def test_final_reduction_makes_one_launch_and_one_plan(launches):
    for _ in range(2):
        out = rms_final_reduce(torch.ones(8, 32), 0.5)
        x, result, scale, eps, group = launches[-1]
        assert result is out and out.shape == (8,) and (scale, eps, group) == (0.5, 1e-6, 1)
    rms_final_reduce(torch.ones(2, 3, 4, 32).double(), 0.5)
    assert launches[-1][0].shape == (24, 32) and launches[-1][0].dtype == FP32
    assert len(launches) == 3 and len(row_sum._plans) == 2


@pytest.mark.parametrize("is_vector", [True, False])
@pytest.mark.parametrize("dtype", [Dtype.FP32, Dtype.BF16])
def test_final_reduction_compiles_without_spills(tmp_path, dtype, is_vector):
    spec = row_sum_spec("sm_90a", dtype, 2, is_vector, is_rms=True)
    facts = kernel_facts(spec)
    assert facts["spill_bytes"] == 0 and facts["registers"] <= 40
    ptx = trace(spec, f"--keep-ptx --dump-dir={tmp_path}").__ptx__
    assert ptx.count("ld.global.v4") == (4 if is_vector else 0), "loads of a lane are in flight together"
    body = ptx[ptx.index("griddepcontrol.wait") :]
    assert "ld.global" in body and "ld.global" not in ptx[: -len(body)], "nothing is read before the GEMM has ended"
    assert "griddepcontrol.launch_dependents" in ptx and "shfl.sync.bfly" in body and "rsqrt.approx.f32" in body


@pytest.mark.parametrize("reduction", list(Reduction))
def test_partials_combine_to_the_whole(reduction):
    """Of any split, also into nothing, and of a split of nothing."""
    x = torch.randn(6, 20)
    whole = {
        Reduction.SUM: x.sum(1),
        Reduction.SUM_OF_SQUARES: x.square().sum(1),
        Reduction.MAX: x.amax(1),
        Reduction.LOG_SUM_EXP: x.logsumexp(1),
    }[reduction]
    pieces = [
        combine(x[:, i:j].square() if "squares" in reduction.value else x[:, i:j], reduction, 1) for i, j in SPLIT
    ]
    torch.testing.assert_close(combine(torch.stack(pieces, 1), reduction, 1), whole)
    nothing = combine(torch.empty(6, 0), reduction, 1)
    assert nothing.shape == (6,) and (nothing == (0.0 if "sum" in reduction.value[:4] else -torch.inf)).all()


SPLIT = ((0, 7), (7, 7), (7, 20))


# ---- the host model of stochastic rounding ----------------------------------------------------------------------------


def test_philox_known_answers():
    """The test vectors of Random123 (kat_vectors: philox4x32, 7 and 10 rounds)."""
    zero = [np.uint64(0)] * 4
    assert [int(w) for w in philox(zero, (0, 0))] == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]
    assert [int(w) for w in philox(zero, (0, 0), rounds=10)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_random_bits_are_uniform_and_independent():
    """Chi-square of the 16 bits' high and low bytes; correlation with neighbours, of seeds and of problems."""
    bits = random_bits(512, 1024, 0, 1).astype(np.int64)
    for byte in (bits >> 8, bits & 255):
        counts = np.bincount(byte.ravel(), minlength=256)
        chi2 = ((counts - bits.size / 256) ** 2 / (bits.size / 256)).sum()
        assert abs(chi2 - 255) < 5 * np.sqrt(2 * 255)
    centred = bits / 65535 - 0.5
    others = {f"row + {step}": np.roll(centred, step, 0) for step in (1, 8, 16)}
    others |= {f"column + {step}": np.roll(centred, step, 1) for step in (1, 2, 8, 16)}
    others |= {
        "seed + 1": random_bits(512, 1024, 0, 2) / 65535 - 0.5,
        "problem + 1": random_bits(512, 1024, 1, 1) / 65535 - 0.5,
    }
    for name, other in others.items():
        correlation = (centred * other).mean() * 12
        assert abs(correlation) < 5 / np.sqrt(bits.size), name


def test_every_element_has_bits_of_its_own():
    """No two elements of a problem share a counter and a half: their 16 bits over eight seeds differ."""
    words = np.stack([random_bits(64, 96, 0, seed) for seed in range(8)]).reshape(8, -1)
    assert len(np.unique(words, axis=1).T) == 64 * 96


def test_rounding_is_unbiased_and_exact_where_it_can_be():
    x = torch.tensor([1.0 + 2.0**-9, -3.14159, 1e-40, 0.1, 65504.0, 3.3e38, 2.5, 0.0])
    seeds = 4096
    rounded = torch.stack([round_stochastically(x[None], seed)[0] for seed in range(seeds)]).double()
    neighbours = torch.stack([rounded.amin(0), rounded.amax(0)])
    step = neighbours[1] - neighbours[0]
    is_number = x.bfloat16().float() == x
    assert (step[is_number] == 0).all() and (rounded[:, is_number] == x[is_number].double()).all()
    assert (neighbours[0] <= x.double()).all() and (x.double() <= neighbours[1]).all()
    error = (rounded.mean(0) - x.double())[~is_number] / step[~is_number]
    assert (error.abs() < 4 * 0.5 / seeds**0.5).all()


def test_rounding_keeps_infinities_and_nan():
    canonical = torch.tensor([0x7FFFFFFF, -1, 0x7F800001], dtype=torch.int32).view(torch.float32)
    x = torch.cat([torch.tensor([float("inf"), float("-inf")]), canonical])[None]
    for seed in range(64):
        got = round_stochastically(x, seed)[0]
        assert got[0] == float("inf") and got[1] == float("-inf") and got[2:].isnan().all()


def test_out_functions_are_exported():
    assert quack.gemm_rms_out is gemm_rms_out and quack.gemm_norm_act_out is gemm_norm_act_out
