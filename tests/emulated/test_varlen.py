"""Ragged GEMMs in the emulator."""

import pytest
import torch

import quack
from quack.gemm_config import GemmConfig
from quack.runtime import call
from tests.mutants import Subject
from tests.ragged_cases import RaggedCase, RaggedOperands, cases, run, verify


@pytest.mark.one_in(5)
@pytest.mark.parametrize("schedule, checks", [("eager", ()), ("latest", ("all",))], ids=["eager", "latest-checked"])
@pytest.mark.parametrize("case", cases(), ids=str)
def test_against_reference(case: RaggedCase, schedule: str, checks: tuple[str, ...]):
    t = RaggedOperands(case, "cpu")
    with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=4):
        run(t)
    verify(t)


def test_changed_offsets_need_no_new_plan():
    """The offsets are read on the device: the same call with other contents gives the other result."""
    t = RaggedOperands(RaggedCase("m", (100, 37, 0, 200, 5), n=136, k=72), "cpu")
    other = RaggedOperands(RaggedCase("m", (0, 5, 300, 30, 7), n=136, k=72), "cpu")
    with quack.emulator.use("sm90", sms=4):
        run(t)
        plans = len(call._calls)
        run(other)
        assert len(call._calls) == plans
    verify(other)


@pytest.mark.parametrize("cluster_m", [1, 2])
def test_a_cta_of_its_own_hands_works_over_by_plain_stores(cluster_m: int, monkeypatch: pytest.MonkeyPatch):
    """compute-sanitizer takes others for faults where there are no clusters."""
    config = GemmConfig(64, 64, pingpong=True, cluster_m=cluster_m, is_dynamic_persistent=True)
    t = RaggedOperands(RaggedCase("m", (100, 37, 0, 5), n=136, k=72, config=config), "cpu")
    subject = Subject(lambda: run(t))
    with quack.emulator.use("sm90", checks=("all",), sms=2):
        subject.run(monkeypatch)
    verify(t)
    assert ("st.async" in subject.ptx) == (cluster_m > 1)


@pytest.mark.parametrize("gathers", [False, True])
def test_one_row_of_any_pitch(gathers: bool):
    """Ragged views step by the pitch even where there is only one row, so it must be a multiple of 16 bytes then, too."""
    index = torch.zeros(1, dtype=torch.int32) if gathers else None
    offsets = torch.tensor([0, 0, 1, 1], dtype=torch.int32)
    row, other = torch.randn(1, 130).bfloat16(), torch.randn(1, 67).bfloat16()
    weight = torch.randn(3, 130, 64).bfloat16()
    buffer = torch.full((1, 69), float("nan")).bfloat16()
    with quack.emulator.use("sm90", checks=("all",), sms=4):
        outer = quack.gemm(row.mT, other, cu_seqlens_k=offsets, A_idx=index)
        quack.gemm(row, weight, out=buffer[:, :64], cu_seqlens_m=offsets, A_idx=index)
    torch.testing.assert_close(outer[1].double(), row.mT.double() @ other.double(), rtol=1e-2, atol=1e-3)
    assert not outer[[0, 2]].any()
    torch.testing.assert_close(buffer[:, :64].double(), row.double() @ weight[1].double(), rtol=1e-2, atol=5e-2)
    assert buffer[:, 64:].isnan().all()
