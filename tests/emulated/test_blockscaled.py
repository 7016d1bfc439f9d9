"""Block-scaled operands in the emulator: formats, tiles, calls and schedules."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

import quack
from quack.activation import GatedActivation
from quack.activation_ref import reference
from quack.runtime.spec import UnsupportedGemm
from tests.cases import poison
from tests.families import spread
from tests.scaled_cases import FORMATS, ONE, PAIR, ScaledCase, ScaledOperands, calls, mixed, splits, tiles
from tests.scaled_ragged_cases import ScaledRaggedCase, ScaledRaggedOperands, gathers, rows, sums
from tests.schedules import RANDOM_SEEDS

SMS = 4  # few, so that persistent kernels take several tiles per CTA


def emulated(schedule: str = "latest", checks: tuple[str, ...] = ("all",), arch: str = "sm100"):
    return quack.emulator.use(arch, schedule=schedule, checks=checks, sms=SMS)


def run_and_verify(case: ScaledCase, schedule: str = "latest") -> None:
    t = ScaledOperands(case, "cpu")
    with emulated(schedule):
        t.run()
    t.verify()


@pytest.mark.one_in(12)
@pytest.mark.parametrize("case", list(tiles()), ids=str)
def test_tiles(case: ScaledCase):
    run_and_verify(case)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("case", list(calls()), ids=str)
def test_calls(case: ScaledCase):
    run_and_verify(case)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("case", list(mixed()), ids=str)
def test_fp4_beside_fp8(case: ScaledCase):
    run_and_verify(case)


@pytest.mark.one_in(7)
@pytest.mark.parametrize("case", list(splits()), ids=str)
def test_splits(case: ScaledCase):
    run_and_verify(case)


def run_ragged(case: ScaledRaggedCase, schedule: str = "latest") -> torch.Tensor:
    t = ScaledRaggedOperands(case)
    with emulated(schedule):
        t.run()
    t.verify()
    return t.out.tensor


@pytest.mark.one_in(6)
@pytest.mark.parametrize("case", list(rows()), ids=str)
def test_ragged_rows(case: ScaledRaggedCase):
    run_ragged(case)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("case", list(sums()), ids=str)
def test_ragged_sums(case: ScaledRaggedCase):
    run_ragged(case)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("case", list(gathers()), ids=str)
def test_picked_rows(case: ScaledRaggedCase):
    run_ragged(case)


@pytest.mark.one_in(23)
@pytest.mark.parametrize("seed", RANDOM_SEEDS)
@pytest.mark.parametrize("cases", [tiles, calls, mixed, splits, rows, sums, gathers], ids=lambda cases: cases.__name__)
def test_random_schedules(cases: Callable[[], Iterable[Any]], seed: int):
    """Ten cases of each list, every one with a schedule of its own."""
    case = spread(list(cases()), len(RANDOM_SEEDS))[seed]
    run = run_and_verify if isinstance(case, ScaledCase) else run_ragged
    run(case, f"random:{seed}")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", ["rows", "sums", "gathers"])
def test_random_schedules_of_ragged_problems_give_the_same_bits(kind: str):
    if kind != "sums":
        config, pool = (PAIR, None) if kind == "rows" else (replace(PAIR, use_tma_gather=True), 140)
        case = ScaledRaggedCase("nvfp4", "m", (100, 0, 150, 5), n=136, k=544, config=config, c="bf16", pool=pool)
    else:
        case = ScaledRaggedCase("mxfp4", "k", (192, 0, 64, 320), m=136, n=136, config=PAIR, c="bf16")
    results = [run_ragged(case, schedule) for schedule in ("eager", "latest", "random:0", "random:1")]
    first, *others = results
    assert all(torch.equal(first, other) for other in others)


def test_ragged_rows_with_an_activation():
    """The other functions that take scales."""
    t = ScaledRaggedOperands(ScaledRaggedCase("mxfp8", "m", (70, 0, 140), n=72, k=160, bias=True))
    with emulated():
        preact, postact = quack.gemm_gated(
            t.A, t.B, bias=t.bias, out_dtype=torch.float32, postact_dtype=torch.float32, cu_seqlens_m=t.offsets,
            A_scale=t.A_scale, B_scale=t.B_scale,
        )  # fmt: skip
    expected = torch.cat([t.group(g)[0] @ t.group(g)[1].mT + t.bias[g].double() for g in range(3)])
    size = expected.abs().max().item()
    torch.testing.assert_close(preact.double(), expected, rtol=1e-5, atol=1e-5 * size)
    gated = reference(GatedActivation.SWIGLU)(preact.double()[:, 0::2], preact.double()[:, 1::2])
    torch.testing.assert_close(postact.double(), gated, rtol=1e-4, atol=1e-4 * size)


@pytest.mark.parametrize("stores_preact", [True, False])
def test_gated(stores_preact: bool):
    """Mixins of other calls: out has half the columns, and the product is stored besides or not."""
    t = ScaledOperands(ScaledCase("nvfp4", 136, 208, 256, bias="bf16"), "cpu")
    scales = {"A_scale": t.A_scale, "B_scale": t.B_scale}
    with emulated():
        preact, postact = quack.gemm_gated(
            t.A, t.B, bias=t.bias, activation="swiglu", out_dtype=torch.float32, postact_dtype=torch.float32,
            store_preact=stores_preact, **scales,
        )  # fmt: skip
    expected = reference(GatedActivation.SWIGLU)(t.exact[:, 0::2], t.exact[:, 1::2])
    torch.testing.assert_close(postact.double(), expected, rtol=1e-4, atol=1e-4 * t.size.max().item())
    assert (preact is None) != stores_preact
    if preact is not None:
        torch.testing.assert_close(preact.double(), t.exact, rtol=1e-5, atol=1e-5 * t.size.max().item())


@pytest.mark.parametrize(("in_place", "alpha"), [(False, 0.5), (True, torch.tensor([0.5]))])
def test_torch_compile(in_place: bool, alpha):
    """Calls are ops of one graph; what an op writes in place is the tensor that was passed."""
    t = ScaledOperands(
        ScaledCase("nvfp4", 136, 208, 256, bias="bf16", c="fp32", out="fp32", alpha=0.5, beta=2.0), "cpu"
    )
    product = (t.exact - t.bias.double() - 2 * t.C.double()) / 0.5

    def step(A, B, A_scale, B_scale, C, bias, alpha):
        scales = {"A_scale": A_scale, "B_scale": B_scale}
        out = quack.gemm_blockscaled(
            A, B, **scales, out=C if in_place else None, out_dtype=torch.float32, alpha=alpha, C=C, beta=2.0, bias=bias
        )
        dtypes = {"out_dtype": torch.float32, "postact_dtype": torch.float32}
        return out, *quack.gemm_gated(A, B, bias=bias, activation="swiglu", **dtypes, **scales)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    C = t.C.clone()
    with emulated(checks=()):
        out, preact, postact = compiled(t.A, t.B, t.A_scale, t.B_scale, C, t.bias, alpha)
    size = t.size.max().item()
    torch.testing.assert_close(out.double(), t.exact, rtol=1e-5, atol=1e-5 * size)
    assert (out.data_ptr() == C.data_ptr()) == in_place and torch.equal(C, t.C) != in_place
    torch.testing.assert_close(preact.double(), product + t.bias.double(), rtol=1e-5, atol=1e-5 * size)
    expected = reference(GatedActivation.SWIGLU)(preact.double()[:, 0::2], preact.double()[:, 1::2])
    torch.testing.assert_close(postact.double(), expected, rtol=1e-4, atol=1e-4 * size)


def test_a_pinned_configuration_leaves_the_graph():
    t = ScaledOperands(ScaledCase("mxfp8", 72, 72, 96, config=ONE, out="fp32"), "cpu")

    def step(A, B, A_scale, B_scale):
        return quack.gemm_blockscaled(A, B, A_scale, B_scale, out_dtype=torch.float32, config=ONE) + 1.0

    torch._dynamo.reset()
    with emulated(checks=()):
        out = torch.compile(step, backend="eager")(t.A, t.B, t.A_scale, t.B_scale)
    torch.testing.assert_close(out.double(), t.exact + 1, rtol=1e-5, atol=1e-5 * t.size.max().item())


def other_functions(A, B, preact, weight, rstd, scales):
    """The other functions that take scales; all outputs."""
    wide = {"out_dtype": torch.float32, "postact_dtype": torch.float32}
    dx, postact, sums = quack.gemm_dact(A, B, preact, "silu", colvec_reduce=True, **wide, **scales)
    d, inverse = quack.gemm_rms(A, B, norm_weight=weight, out_dtype=torch.float32, **scales)
    scaled = quack.gemm_norm_act(A, B, rstd, activation="relu_sq", postact_dtype=torch.float32, **scales)[1]
    return dx, postact, sums, d, inverse, scaled


def test_other_epilogues():
    t = ScaledOperands(ScaledCase("mxfp8", 72, 72, 96), "cpu")
    preact, weight, rstd = t.random(72, 72), t.random(72), t.random(72).abs()
    scales = {"A_scale": t.A_scale, "B_scale": t.B_scale}
    x = preact.double().requires_grad_()
    values = torch.nn.functional.silu(x)
    (dx,) = torch.autograd.grad(values, x, t.exact)
    inverse = (t.exact.square().mean(-1) + 1e-6).rsqrt()
    expected = [dx, values.detach(), (t.exact * values.detach()).sum(-1), t.exact * weight.double(), inverse]
    expected.append((rstd.double().unsqueeze(-1) * t.exact).clamp(min=0).square())
    torch._dynamo.reset()
    with emulated(checks=()):
        got = torch.compile(other_functions, fullgraph=True, backend="aot_eager")(
            t.A, t.B, preact, weight, rstd, scales
        )
    with emulated():
        out, rows, columns = quack.gemm_reduce(t.A, t.B, row="max", col="sum", out_dtype=torch.float32, **scales)
        results = [*other_functions(t.A, t.B, preact, weight, rstd, scales), out, rows, columns]
    assert all(torch.equal(first, second) for first, second in zip(got, results))
    for result, exact in zip(results, [*expected, t.exact, t.exact.amax(-1), t.exact.sum(-2)], strict=True):
        torch.testing.assert_close(result.double(), exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())


def test_user_epilogue():
    t = ScaledOperands(ScaledCase("mxfp8", 136, 136, 160, config=ONE, out="fp32"), "cpu")
    with emulated():
        out = quack.gemm_blockscaled(
            t.A, t.B, t.A_scale, t.B_scale, t.out.tensor, config=ONE, epilogue=lambda acc: acc * acc + 1.0
        )
    torch.testing.assert_close(out.double(), t.exact**2 + 1, rtol=1e-4, atol=1e-4 * t.size.max().item() ** 2)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("config", [replace(PAIR, is_dynamic_persistent=True), replace(ONE, tile_n=256)], ids=str)
def test_random_schedules_give_the_same_bits(config):
    t = ScaledOperands(ScaledCase("nvfp4", 300, 264, 544, config=config, c="bf16"), "cpu")
    results = set()
    for schedule in ("eager", "latest", *(f"random:{seed}" for seed in range(3))):
        poison(t.out.buffer)
        with emulated(schedule):
            t.run()
        results.add(t.out.tensor.contiguous().view(torch.uint8).numpy().tobytes())
    t.verify()
    assert len(results) == 1


def test_a_cached_call_takes_other_scales():
    """Calls that repeat do not look at what they are given, so nothing of the first call may stick."""
    case = ScaledCase("mxfp4", 136, 136, 256, config=ONE)
    first, second = ScaledOperands(case, "cpu"), ScaledOperands(replace(case, m=135), "cpu")
    second.A_scale, first.A_scale = first.A_scale, second.A_scale
    with emulated():
        first.run()
        changed = first.out.tensor.clone()
        first.A_scale = second.A_scale
        first.run()
    first.verify()
    assert not torch.equal(changed, first.out.tensor)


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("arch", ["sm90", "sm120"])
def test_other_architectures_have_no_kernel(name: str, arch: str):
    t = ScaledOperands(ScaledCase(name, 128, 128, 128), "cpu")
    with emulated(arch=arch), pytest.raises(UnsupportedGemm, match="block-scaled operands have no kernel on sm_"):
        t.run()
