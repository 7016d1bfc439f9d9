"""`concat_layout` in the emulator; tests/gpu runs the same cases on hardware."""

import pytest
import torch

import quack
from tests.concat_cases import (
    ConcatCase,
    RaggedConcatCase,
    cases,
    launch,
    prepare,
    ragged_cases,
    run_and_verify_ragged,
    verify,
)
from tests.ragged_cases import RaggedOperands

SCHEDULES = pytest.mark.parametrize(
    "schedule, checks", [("eager", ()), ("latest", ("all",))], ids=["eager", "latest-checked"]
)


@pytest.mark.one_in(5)
@SCHEDULES
@pytest.mark.parametrize("case", cases(), ids=str)
def test_against_reference(case: ConcatCase, schedule: str, checks: tuple[str, ...]):
    t, C = prepare(case, "cpu")
    with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=4):
        launch(case, t)
    verify(case, t, C)


@pytest.mark.one_in(3)
@SCHEDULES
@pytest.mark.parametrize("case", ragged_cases(), ids=str)
def test_ragged_against_reference(case: RaggedConcatCase, schedule: str, checks: tuple[str, ...]):
    t = RaggedOperands(case.case, "cpu")
    with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=4):
        run_and_verify_ragged(case, t)


def test_gated_projection():
    """What it is for: columns 2j and 2j + 1 are rows j and I + j of a weight (2 I, K)."""
    x, weight, bias = torch.randn(40, 64).bfloat16(), torch.randn(144, 64).bfloat16(), torch.randn(144).bfloat16()
    with quack.emulator.use("sm90", sms=4):
        got = quack.gemm(x, weight.mT, bias=bias, concat_layout=("B", "bias"))
    both = x.float() @ weight.float().mT + bias.float()
    torch.testing.assert_close(got[:, 0::2].float(), both[:, :72], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(got[:, 1::2].float(), both[:, 72:], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    "case", [c for c in cases() if c.case.config is None and c.case.batch in (None, 3)][::3], ids=str
)
def test_references_agree_with_the_oracle(case: ConcatCase):
    """`gemm_ref` and `gemm_add_ref` read and write the same memory."""
    t, C = prepare(case, "cpu")
    if t.C is None:
        quack.gemm_ref(t.A, t.B, t.out.tensor, bias=t.bias, alpha=t.alpha, concat_layout=case.names)
    else:
        t.bias = None
        quack.gemm_add_ref(t.A, t.B, t.C, t.out.tensor, t.alpha, t.beta, concat_layout=case.names)
    verify(case, t, C)


def test_fresh_outputs_are_row_major_halves():
    a, b = torch.randn(48, 32).bfloat16(), torch.randn(32, 40).bfloat16()
    exact = a.float() @ b.float()
    with quack.emulator.use("sm90", sms=4):
        results = (quack.gemm(a, b, concat_layout=("out",)), quack.gemm_ref(a, b, concat_layout=("out",)))
    for out in results:
        torch.testing.assert_close(out.float(), torch.cat([exact[0::2], exact[1::2]]), rtol=2e-2, atol=2e-2)


def test_in_place_addition_reads_and_writes_the_same_halves():
    a, b, out = torch.randn(48, 32).bfloat16(), torch.randn(32, 40).bfloat16(), torch.randn(48, 40)
    product = a.float() @ b.float()
    expected = out + torch.cat([product[0::2], product[1::2]])
    other = out.clone()
    with quack.emulator.use("sm90", sms=4):
        quack.gemm_add_inplace(a, b, out, concat_layout=("out",))
        quack.gemm_tuned.fn(a, b, other, add_to_output=True, concat_layout=("out",))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-4)


def test_plans_differ_by_layout():
    """One shape, three meanings of the same memory: none may be served from another's plan."""
    a, b = torch.randn(48, 32).bfloat16(), torch.randn(40, 32).bfloat16().mT
    with quack.emulator.use("sm90", sms=4):
        plain, of_b, of_a = (quack.gemm(a, b, concat_layout=names) for names in (None, ("B",), ("A",)))
    columns = torch.arange(40).view(2, 20).mT.flatten()
    rows = torch.arange(48).view(2, 24).mT.flatten()
    assert torch.equal(of_b, plain[:, columns]) and torch.equal(of_a, plain[rows])


def test_torch_compile():
    """Both arguments pass through the opaque ops, in place too."""

    def chain(x: torch.Tensor, w: torch.Tensor, order: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        y = quack.gemm(x, w, concat_layout=("B",), batch_idx_permute=order)
        quack.gemm_add_inplace(x, w, total, concat_layout=["out"])
        return quack.gemm_add(x, w, y, concat_layout=("C", "B")) + total

    x, w = torch.randn(3, 16, 24).bfloat16(), torch.randn(3, 24, 40).bfloat16()
    order, totals = torch.tensor([2, 0, 1], dtype=torch.int32), torch.randn(3, 16, 40).bfloat16().expand(2, 3, 16, 40)
    with quack.emulator.use("sm90", sms=4):
        eager = chain(x, w, order, totals[0].clone())
        compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")(x, w, order, totals[1].clone())
    assert torch.equal(eager, compiled)
