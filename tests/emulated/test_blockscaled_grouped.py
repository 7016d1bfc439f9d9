"""Lists of block-scaled problems: every one has scales of its own, whose addresses and descriptors are on the device."""

from dataclasses import replace
from typing import Any, Optional

import pytest
import torch

import quack
from quack import SplitKMode
from quack.gemm_config import GemmConfig
from quack.runtime.spec import UnsupportedGemm
from tests.cases import poison
from tests.families import spread
from tests.scaled_cases import FORMATS, ONE, PAIR, ScaledCase, ScaledOperands
from tests.schedules import RANDOM_SEEDS

SIZES = ((130, 72, 256), (1, 200, 640), (264, 136, 384), (5, 8, 128))
NAN_SCALE = {torch.float8_e8m0fnu: 0xFF, torch.float8_e4m3fn: 0x7F}


class Problems:
    """Of one format. fields: of `ScaledCase`."""

    def __init__(self, name: str, sizes=SIZES, **fields: Any):
        self.each = [ScaledOperands(ScaledCase(name, m, n, k, **fields), "cpu") for m, n, k in sizes]

    def lists(self) -> dict[str, Any]:
        has_c, has_bias = self.each[0].C is not None, self.each[0].bias is not None
        return {
            "A_list": [t.A for t in self.each],
            "B_list": [t.B for t in self.each],
            "A_scale_list": [t.A_scale for t in self.each],
            "B_scale_list": [t.B_scale for t in self.each],
            "C_list": [t.C for t in self.each] if has_c else None,
            "bias_list": [t.bias for t in self.each] if has_bias else None,
        }

    def run(self, schedule: str = "latest", config: Optional[GemmConfig] = None, **options: Any) -> None:
        case = self.each[0].case
        for t in self.each:
            poison(t.out.buffer)
        outs = [t.out.tensor for t in self.each]
        with quack.emulator.use("sm100", schedule=schedule, checks=("all",), sms=4):
            quack.gemm_grouped(
                **self.lists(), out_list=outs, alpha=case.alpha, beta=case.beta, config=config, **options
            )

    def verify(self) -> None:
        for t in self.each:
            t.verify()


def cases() -> list[tuple[str, Optional[GemmConfig], dict[str, Any]]]:
    """Formats, tiles and schedules; options of the call."""
    split = {"split_k": 3}
    return [
        ("mxfp8", None, {}),
        ("nvfp4", PAIR, {}),
        ("mxfp4 x mxfp8", ONE, {}),
        ("mxfp4", replace(PAIR, tile_n=192, is_dynamic_persistent=True), {}),
        ("mxfp8 mixed", replace(ONE, tile_n=256, cluster_m=2, cluster_n=2), {}),
        ("mxfp8 x mxfp4", replace(PAIR, swap_ab=True), {}),
        ("nvfp4", replace(ONE, swap_ab=True), {}),
        ("mxfp8", ONE, {**split, "split_k_mode": SplitKMode.SERIAL}),
        ("nvfp4", PAIR, {**split, "split_k_mode": SplitKMode.SEPARATE}),
    ]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("name", "config", "options"), cases(), ids=str)
def test_problems_of_different_sizes(name: str, config: Optional[GemmConfig], options: dict[str, Any]):
    problems = Problems(name)
    problems.run(config=config, **options)
    problems.verify()


@pytest.mark.one_in(7)
@pytest.mark.parametrize("seed", RANDOM_SEEDS)
def test_random_schedules(seed: int):
    """Every one of another case."""
    name, config, options = spread(cases(), len(RANDOM_SEEDS))[seed]
    problems = Problems(name)
    problems.run(f"random:{seed}", config=config, **options)
    problems.verify()


@pytest.mark.parametrize("name", ["nvfp4", "mxfp8"])
def test_linear_terms_and_copies(name: str):
    """C and bias of every problem; rows of A that TMA cannot address are copied."""
    full = {"c": "bf16", "bias": "bf16", "alpha": 0.25, "beta": -2.0}
    problems = Problems(name, SIZES[:3], odd=True, **full)
    problems.run()
    problems.verify()


def test_nan_stays_in_its_problem():
    problems = Problems("nvfp4", SIZES[:3])
    scale = problems.each[1].A_scale
    scale.view(torch.uint8).fill_(NAN_SCALE[scale.dtype])
    problems.run(config=ONE)
    for i, t in enumerate(problems.each):
        if i == 1:
            assert t.out.tensor.isnan().all()
        else:
            t.verify()


def test_schedules_give_the_same_bits():
    problems = Problems("mxfp4", SIZES[:3])
    results = []
    for schedule in ("eager", "latest", "random:0"):
        problems.run(schedule, config=PAIR)
        results.append([t.out.tensor.clone() for t in problems.each])
    problems.verify()
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other))


def test_a_plan_takes_other_scales():
    """Calls of a plan: in place with new contents, and with other tensors."""
    first, second = Problems("mxfp8", SIZES[:2], out="fp32"), Problems("mxfp8", SIZES[:2], out="fp32")
    for t in second.each:
        t.A_scale = t.A_scale.clone()
        t.A_scale.view(torch.uint8).add_(1)  # twice as much
    with quack.emulator.use("sm100", checks=("all",), sms=4):
        lists = {name: tensors for name, tensors in first.lists().items() if tensors is not None}
        plan = quack.grouped_plan(**lists, out_dtype=torch.float32)
        results = [out.clone() for out in plan(lists["A_list"], lists["B_list"])]
        other = plan(A_scale_list=[t.A_scale for t in second.each])
        for t, out, twice in zip(first.each, results, other):
            torch.testing.assert_close(out.double(), t.exact, rtol=1e-5, atol=1e-5 * t.size.max().item())
            torch.testing.assert_close(twice, 2 * out)


def test_other_functions():
    """Activations, their gradients and reductions of lists; in and outside of a graph."""
    problems = Problems("mxfp8", ((72, 72, 96), (1, 40, 160)))
    lists = {name: tensors for name, tensors in problems.lists().items() if tensors is not None}
    preacts = [t.random(t.case.m, t.case.n) for t in problems.each]
    wide = {"out_dtype": torch.float32, "postact_dtype": torch.float32}

    def step(preacts, **lists):
        preact, postact = quack.gemm_grouped_act(**lists, activation="silu", **wide)
        dx, values = quack.gemm_grouped_dact(**lists, PreAct_list=preacts, activation="silu", **wide)
        return *preact, *postact, *dx, *values

    torch._dynamo.reset()
    with quack.emulator.use("sm100", checks=("all",), sms=4):
        results = step(preacts, **lists)
        out, rows, _ = quack.gemm_grouped_reduce(**lists, row="sum", out_dtype=torch.float32)
    with quack.emulator.use("sm100", checks=(), sms=4):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(preacts, **lists)
    assert all(torch.equal(x, y) for x, y in zip(results, compiled, strict=True))
    exact = [t.exact for t in problems.each]
    x = [preact.double().requires_grad_() for preact in preacts]
    values = [torch.nn.functional.silu(v) for v in x]
    expected = [*exact, *(torch.nn.functional.silu(e) for e in exact)]
    expected += [*torch.autograd.grad(values, x, exact), *(v.detach() for v in values)]
    expected += [*exact, *(e.sum(-1) for e in exact)]
    for got, right in zip((*results, *out, *rows), expected, strict=True):
        torch.testing.assert_close(got.double(), right, rtol=1e-4, atol=1e-4 * right.abs().max().item())


def test_torch_compile():
    problems = Problems("mxfp8", SIZES[:2], out="fp32")

    def step(A_list, B_list, A_scale_list, B_scale_list):
        scales = {"A_scale_list": A_scale_list, "B_scale_list": B_scale_list}
        return quack.gemm_grouped(A_list, B_list, out_dtype=torch.float32, **scales)

    lists = {name: tensors for name, tensors in problems.lists().items() if tensors is not None}
    torch._dynamo.reset()
    with quack.emulator.use("sm100", checks=(), sms=4):
        outs = torch.compile(step, fullgraph=True, backend="aot_eager")(**lists)
    for t, out in zip(problems.each, outs):
        torch.testing.assert_close(out.double(), t.exact, rtol=1e-5, atol=1e-5 * t.size.max().item())


@pytest.mark.parametrize("name", list(FORMATS))
def test_bad_scales_name_their_problem(name: str):
    problems = Problems(name, SIZES[:2])
    lists = problems.lists()
    scales = lists["A_scale_list"]
    with quack.emulator.use("sm100", checks=(), sms=4):
        with pytest.raises(ValueError, match=r"problem 1: A_scale has \d+ elements, expected 1 x "):
            quack.gemm_grouped(**lists | {"A_scale_list": [scales[0], scales[0]]})
        with pytest.raises(ValueError, match="A_scale_list has 1 tensors and A_list has 2"):
            quack.gemm_grouped(**lists | {"A_scale_list": scales[:1]})
        with pytest.raises(ValueError, match="problem 0: B_scale is missing"):
            quack.gemm_grouped(**lists | {"B_scale_list": None})
        with pytest.raises(UnsupportedGemm, match="problem 0: tile_n=96"):
            quack.gemm_grouped(**lists, config=replace(ONE, tile_n=96))
