"""Grouped GEMMs in the emulator: results, plans and tables."""

import gc

import pytest
import torch

import quack
from tests.grouped_cases import MIXED, GroupedCase, GroupedOperands, cases, run, verify


@pytest.mark.one_in(3)
@pytest.mark.parametrize("schedule, checks", [("eager", ()), ("latest", ("all",))], ids=["eager", "latest-checked"])
@pytest.mark.parametrize("case", cases(), ids=str)
def test_against_reference(case: GroupedCase, schedule: str, checks: tuple[str, ...]):
    t = GroupedOperands(case, "cpu")
    with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=4):
        run(t)
    verify(t)


def test_a_plan_sees_new_contents_and_new_addresses():
    case = GroupedCase(MIXED, bias=True)
    t, other = GroupedOperands(case, "cpu"), GroupedOperands(case, "cpu")
    with quack.emulator.use("sm90", sms=4):
        plan = quack.grouped_plan(**t.arguments())
        outs = plan(t.tensors.A, t.tensors.B)
        assert all(o is expected for o, expected in zip(outs, t.tensors.out))
        verify(t)
        for a in t.tensors.A:
            a.mul_(-0.5)
        plan()
        verify(t)
        for a in other.tensors.A:
            a.add_(1.0)
        plan(other.tensors.A, other.tensors.B, other.tensors.out, bias_list=other.tensors.bias)
        verify(other)
        plan(t.tensors.A, t.tensors.B, t.tensors.out, bias_list=t.tensors.bias)
        verify(t)


def test_a_plan_notices_exchanged_storage_in_debug_mode(monkeypatch):
    """`tensor.data = ...` keeps the object and changes the address."""
    monkeypatch.setenv("QUACK_DEBUG", "1")
    t = GroupedOperands(GroupedCase(((64, 64, 64), (40, 72, 24))), "cpu")
    with quack.emulator.use("sm90", sms=4):
        plan = quack.grouped_plan(**t.arguments())
        plan()
        t.tensors.A[0].data = (
            torch.randn(64, 72).bfloat16()[:, :64].mul_(3.0).as_strided((64, 64), t.tensors.A[0].stride())
        )
        plan()
        plan()
    verify(t)


def test_outputs_may_be_columns_of_one_matrix():
    shared = torch.full((70, 200), float("nan")).bfloat16()
    a = [torch.randn(70, 64).bfloat16() for _ in range(3)]
    b = [torch.randn(n, 64).bfloat16().T for n in (64, 104, 32)]
    with quack.emulator.use("sm90", sms=4):
        quack.gemm_grouped(a, b, list(shared.split((64, 104, 32), dim=1)))
    torch.testing.assert_close(shared, torch.cat([x @ y for x, y in zip(a, b)], dim=1), rtol=2e-2, atol=2e-2)


def test_a_program_keeps_no_operand_alive():
    """Cached programs hold tables, not the tensors of earlier calls, or training would not free its activations."""
    import weakref

    t = GroupedOperands(GroupedCase(((64, 64, 64), (40, 72, 24))), "cpu")
    with quack.emulator.use("sm90", sms=4):
        run(t)
    references = [weakref.ref(tensor) for tensor in t.tensors.flat()]
    del t
    gc.collect()
    assert not any(reference() is not None for reference in references)
