"""Every case against float64, with NaN in the output, around it and around the inputs."""

from typing import Optional

import pytest
import torch

import quack
from quack.gemm_config import GemmConfig
from quack.runtime import call
from tests.cases import Case, CaseOperands, gemm_cases, operands, poison
from tests.reference import Reference, check, reference, relative_error


def launch(case: Case, t: CaseOperands) -> None:
    """The public function that fits the case."""
    out = t.out.tensor
    if case.config is not None or case.fast_accum or (t.C is not None and t.bias is not None):
        quack.gemm_tuned.fn(
            t.A,
            t.B,
            out,
            C=t.C,
            bias=t.bias,
            alpha=t.alpha,
            beta=t.beta,
            config=case.config,
            fast_accum=case.fast_accum,
        )
    elif t.C is None:
        assert quack.gemm(t.A, t.B, out=out, bias=t.bias, alpha=t.alpha) is out
    elif case.in_place:
        quack.gemm_add_inplace(t.A, t.B, out, alpha=t.alpha, beta=t.beta)
    else:
        assert quack.gemm_add(t.A, t.B, t.C, out=out, alpha=t.alpha, beta=t.beta) is out


def run(case: Case, t: CaseOperands, C: Optional[torch.Tensor]) -> torch.Tensor:
    """One launch into a poisoned buffer; returns a copy of the result."""
    poison(t.out.buffer)
    if case.in_place and C is not None:
        t.out.tensor.copy_(C)
    launch(case, t)
    torch.cuda.synchronize()
    return t.out.tensor.clone()


def assert_untouched_around(t: CaseOperands) -> None:
    written = t.out.buffer.view(torch.uint8).view(t.out.buffer.numel(), -1) != 0xFF
    stray = written.any(1) & t.out.outside()
    assert not stray.any(), f"{int(stray.sum())} elements outside the output were written"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    return flat.copy_(tensor.reshape(-1)).view(torch.uint8)


@pytest.mark.parametrize("case", gemm_cases(), ids=str)
def test_against_reference(case: Case):
    t = operands(case)
    C = t.C.clone() if t.C is not None else None
    inputs = [t.A.clone(), t.B.clone()]

    first = run(case, t, C)
    assert_untouched_around(t)
    check(case, first, reference(case, t, C))

    plans = len(call._calls)
    second = run(case, t, C)
    assert len(call._calls) == plans, "the second call of one signature made a new plan"
    assert torch.equal(bits(first), bits(second)), "two runs differ"
    assert_untouched_around(t)
    for before, after in zip(inputs, (t.A, t.B)):
        assert torch.equal(bits(before), bits(after)), "an input was changed"


def test_fresh_output_has_the_documented_shape_and_dtype():
    a, b = (torch.randn(3, 40, 40, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    assert quack.gemm(a, b).dtype == torch.bfloat16
    assert quack.gemm(a, b, out_dtype=torch.float32).dtype == torch.float32
    assert quack.gemm(a[0], b[0]).shape == (40, 40)
    assert quack.gemm_add(a, b, a).shape == (3, 40, 40)
    fp8 = torch.randn(32, 32, device="cuda").to(torch.float8_e4m3fn)
    assert quack.gemm(fp8, fp8.mT).dtype == torch.bfloat16


def test_oracles_agree_with_ours():
    case = Case("oracle", 136, 200, 72, c="bf16", bias="fp32", alpha=0.5, beta=2.0, out="fp32")
    t = operands(case)
    assert t.C is not None
    exact = reference(case, t, t.C).exact
    ours = quack.gemm_ref(t.A, t.B, bias=t.bias, alpha=0.5, out_dtype=torch.float32) + 2.0 * t.C.float()
    assert relative_error(ours, exact) < 1e-3  # torch may use tf32


def test_precise_fp8_is_more_precise():
    """Positive terms: the running sum grows, so the narrow adder loses more and more of each new product. split_k=1, for parts of
    the sum are smaller."""
    a = torch.rand(128, 16384, device="cuda").to(torch.float8_e4m3fn)
    b = torch.rand(128, 16384, device="cuda").to(torch.float8_e4m3fn).mT
    exact = a.double() @ b.double()
    errors = [
        relative_error(quack.gemm(a, b, out_dtype=torch.float32, fast_accum=fast, split_k=1), exact)
        for fast in (False, True)
    ]
    assert errors[0] < 1e-3
    assert 100 * errors[0] < errors[1] < 0.5


def test_zeros_infinities_and_nans_propagate():
    a = torch.zeros(136, 72, device="cuda", dtype=torch.bfloat16)
    b = torch.zeros(72, 200, device="cuda", dtype=torch.bfloat16)
    assert torch.equal(quack.gemm(a, b), torch.zeros(136, 200, device="cuda", dtype=torch.bfloat16))
    a[3, 5], b[5] = float("inf"), 1.0
    a[7, 2] = float("nan")
    out = quack.gemm(a, b)
    assert torch.isinf(out[3]).all() and torch.isnan(out[7]).all()
    rest = torch.ones(136, dtype=torch.bool, device="cuda")
    rest[[3, 7]] = False
    assert (out[rest] == 0).all()


@pytest.mark.parametrize("in_place", [False, True])
def test_beta_zero_ignores_c(in_place: bool):
    """As in BLAS: a beta of exactly 0.0 does not read C, so NaN in it does not matter."""
    a = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16)
    c = torch.full((64, 64), float("nan"), device="cuda", dtype=torch.bfloat16)
    out = quack.gemm_add(a, a, c, out=c if in_place else None, beta=0.0)
    assert relative_error(out, a.double() @ a.double()) < 4e-3


@pytest.mark.parametrize("bias_stride", [1, 4])
def test_one_column(bias_stride: int):
    """N = 1: the bias has one element and any stride."""
    a = torch.randn(200, 64, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(64, 1, device="cuda", dtype=torch.bfloat16)
    bias = torch.randn(4, device="cuda")[::bias_stride][:1]
    case = Case("column", 200, 1, 64)
    exact = a.double() @ b.double() + bias.double()
    check(case, quack.gemm(a, b, bias=bias), Reference(exact, exact.abs() + 8))


@pytest.mark.parametrize("name", ["A", "B", "out", "C"])
def test_stride_of_an_extent_of_one_is_irrelevant(name: str):
    """Size-1 dimensions may carry any stride, e.g. after slicing; it must neither be used nor checked."""
    tensors = {
        "A": torch.randn(1, 64, device="cuda", dtype=torch.bfloat16),
        "B": torch.randn(1, 64, device="cuda", dtype=torch.bfloat16).mT,
        "out": torch.empty(1, 1, device="cuda", dtype=torch.bfloat16),
        "C": torch.randn(1, 1, device="cuda", dtype=torch.bfloat16),
    }
    expected = tensors["A"].double() @ tensors["B"].double() + tensors["C"].double()
    old = tensors[name]
    strides = tuple(7777 if extent == 1 else stride for extent, stride in zip(old.shape, old.stride()))
    tensors[name] = old.as_strided(old.shape, strides)
    quack.gemm_add(tensors["A"], tensors["B"], tensors["C"], out=tensors["out"])
    check(Case("one", 1, 1, 64), tensors["out"], Reference(expected, expected.abs() + 8))


def test_pinned_config_is_the_one_that_runs():
    a = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(a)
    config = GemmConfig(64, 48, pingpong=True, cluster_m=1, device_capacity=9)
    quack.gemm_tuned.fn(a, a.mT, out, config=config)
    specs = [known.plan.spec for known in call._calls.values() if known.plan.spec is not None]
    assert any(spec.config == config.with_tile_k(spec.operands.a.dtype) for spec in specs)
