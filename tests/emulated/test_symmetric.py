"""`gemm_symmetric` in the emulator, with NaN around every operand: what tests/gpu/test_symmetric.py runs on hardware."""

import pytest
import torch

import quack
from quack.runtime import call
from quack.runtime.spec import SYMMETRIC_COMMIT
from tests.symmetric_cases import (
    CONFIGS,
    SymmetricCase,
    cases,
    check_that_mirrors_are_copies,
    run,
    run_and_verify,
    symmetric_operands,
    verify,
)
from tests.symmetric_cases import symmetric as symmetric_case

SMS = 4  # few, so that persistent kernels take several works per cluster


@pytest.mark.one_in(5)
@pytest.mark.parametrize("schedule, checks", [("eager", ()), ("latest", ("all",))], ids=["eager", "latest-checked"])
@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_against_reference(case: SymmetricCase, schedule: str, checks: tuple[str, ...]):
    with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=SMS):
        run_and_verify(case, "cpu")


@pytest.mark.parametrize("name", ["64 2x1", "cooperative 1x2", "dynamic 1x2"])
def test_random_schedules_give_the_same_bits(name: str):
    case = symmetric_case("schedules", 264, 72, c="bf16", in_place=True, config=CONFIGS[name])
    t = symmetric_operands(case, "cpu")
    C, results = t.C.clone(), set()
    for schedule in ("eager", "latest", *(f"random:{seed}" for seed in range(4))):
        with quack.emulator.use("sm90", schedule=schedule, sms=SMS):
            out = run(case, t, C)
        results.add(out.view(torch.uint8).numpy().tobytes())
    verify(case, t, C, out)
    assert len(results) == 1


@pytest.mark.parametrize("name", ["64", "64 2x1", "128 1x2", "cooperative"])
def test_mirrors_are_copies(name: str):
    with quack.emulator.use("sm90", sms=SMS):
        check_that_mirrors_are_copies(CONFIGS[name], "cpu")


def test_the_whole_product_of_a_transpose_has_symmetric_bits():
    """What lets the heuristics take the plain kernel: products commute and are added in the order of k alone."""
    a = torch.randn(136, 1000).bfloat16()
    with quack.emulator.use("sm90", sms=SMS):
        for majors in (a, a.mT.contiguous().mT):
            out = quack.gemm(majors, majors.mT, out_dtype=torch.float32)
            assert torch.equal(out, out.mT)
            half = quack.gemm_symmetric(majors, majors.mT, out_dtype=torch.float32, config=CONFIGS["64"])
            assert torch.equal(out, half), "and the triangular kernel has the same"


def test_a_second_call_reuses_the_plan_and_scalars_change():
    a = torch.randn(136, 64).bfloat16()
    with quack.emulator.use("sm90", sms=SMS):
        results = [quack.gemm_symmetric(a, a.mT, alpha=alpha, config=CONFIGS["64"]) for alpha in (0.5, 2.0, 0.5)]
    assert torch.equal(results[0], results[2]) and torch.equal(results[1].float(), 4 * results[0].float())
    specs = [known.plan.spec for known in call._calls.values() if known.plan.spec is not None]
    assert any(spec.plan == SYMMETRIC_COMMIT for spec in specs)
    before = len(call._calls)
    with quack.emulator.use("sm90", sms=SMS):
        quack.gemm_symmetric(a.clone(), a.mT.clone().mT.contiguous().mT, alpha=3.0, config=CONFIGS["64"])
    assert len(call._calls) == before + 1, "B is another tensor than A.mT: a plan of its own"


def test_oracle_agrees_and_is_symmetric():
    a = torch.randn(2, 72, 40).bfloat16()
    c = torch.randn(2, 72, 72).bfloat16()
    c = c + c.mT
    expected = 0.5 * a.double() @ a.double().mT + 2.0 * c.double()
    out = quack.gemm_symmetric_ref(a, a.mT, c, alpha=0.5, beta=2.0, out_dtype=torch.float32)
    assert torch.equal(out, out.mT) and (out - expected).abs().max() < 1e-4
    into = torch.empty(2, 72, 72, dtype=torch.bfloat16)
    assert quack.gemm_symmetric_ref(a, a.mT, out=into) is into


def test_torch_compile_sees_opaque_ops_also_in_place():
    def step(x: torch.Tensor, c: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        gram = quack.gemm_symmetric(x, x.mT, alpha=alpha)
        quack.gemm_symmetric(gram, gram, c, out=c, beta=0.5)
        return c + gram

    x, c, alpha = torch.randn(136, 72).bfloat16(), torch.randn(136, 136).bfloat16(), torch.tensor([0.25])
    eager = c + c.mT
    traced = eager.clone()
    with quack.emulator.use("sm90", sms=SMS):
        expected = step(x, eager, alpha)
        out = torch.compile(step, fullgraph=True, backend="aot_eager")(x, traced, alpha)
    assert torch.equal(out, expected) and torch.equal(traced, eager)
