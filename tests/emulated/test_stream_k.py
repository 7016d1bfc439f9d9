"""Stream-K in the emulator: what tests/gpu/test_split_k.py runs on hardware."""

from dataclasses import replace

import pytest
import torch

import quack
from quack import SplitKMode
from quack.gemm_config import GemmConfig
from quack.heuristics.split_k import Choice
from quack.runtime import call, dispatch, plan, split_k
from tests.cases import Case
from tests.schedules import SEEDS
from tests.split_cases import Run, SplitCase, stream_cases

SMS = 4
STREAM = SplitKMode.STREAM
RANDOM = tuple(f"random:{seed}" for seed in SEEDS)
PINGPONG = GemmConfig(64, 64, pingpong=True, cluster_m=1)
COOPERATIVE = GemmConfig(64, 64, cluster_m=1)


def semaphores() -> list[torch.Tensor]:
    return [memory for (*_, kind), memory in split_k._memory.items() if kind == "semaphores"]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("case", list(stream_cases()), ids=str)
def test_against_reference(case: SplitCase):
    """Two launches: the second finds what the first has put back to zero."""
    run = Run(case, STREAM, "cpu")
    for schedule, checks in (("latest", ("all",)), ("random:7", ())):
        with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=SMS):
            run.launch()
        run.verify()
        assert not any(memory.any() for memory in semaphores())


@pytest.mark.parametrize("config", [PINGPONG, COOPERATIVE, GemmConfig(64, 64, cluster_m=2)], ids=str)
def test_the_same_bits_under_every_schedule(config: GemmConfig):
    """With 2 or 3 parts a tile, and with whole tiles behind them."""
    for m, k in ((200, 700), (72, 1000)):
        run = Run(SplitCase(Case("stream", m, 200, k, out="fp32", c="fp32", bias="fp32", config=config)), STREAM, "cpu")
        results = set()
        for schedule in ("eager", "latest", *RANDOM):
            with quack.emulator.use("sm90", schedule=schedule, sms=SMS):
                run.launch()
            results.add(run.bits())
        run.verify()
        assert len(results) == 1


@pytest.mark.parametrize("config", [PINGPONG, COOPERATIVE], ids=str)
def test_clusters_need_not_be_resident_together(config: GemmConfig):
    """A launch made for 4 SMs on fewer: clusters start in the order of their numbers, as others end. With many parts, and two."""
    for n in (136, 330):
        run = Run(SplitCase(Case("stream", 72, n, 296, out="fp32", c="fp32", config=config)), STREAM, "cpu")
        with quack.emulator.use("sm90", sms=SMS):
            run.launch()
        launch = next(known.plan for known in reversed(call._calls.values()) if known.plan.split is not None)
        results, t = {run.bits()}, run.operands
        for resident in (2, 1):
            t.out.tensor.fill_(float("nan"))
            with quack.emulator.use("sm90", sms=resident, schedule="random:1"):
                launch.run(t.A, t.B, t.C, t.out.tensor, t.request(run.case).port_values())
            run.verify()
            results.add(run.bits())
        assert len(results) == 1


def test_numbers_of_a_launch_are_no_part_of_the_code():
    """Other shapes, and other numbers of clusters, run the same kernel."""
    before = None
    for sms, (m, n, k) in ((SMS, (72, 300, 200)), (SMS, (200, 72, 500)), (3, (200, 136, 300))):
        A, B, out = torch.randn(m, k).bfloat16(), torch.randn(k, n).bfloat16(), torch.empty(m, n)
        with quack.emulator.use("sm90", sms=sms):
            quack.gemm_tuned.fn(A, B, out, config=PINGPONG, split_k_mode=STREAM)
        torch.testing.assert_close(out.double(), A.double() @ B.double(), rtol=0, atol=1e-3)
        before = before or len(dispatch._functions)
        assert len(dispatch._functions) == before


def test_whole_tiles_touch_no_memory_and_cut_ones_do():
    """9 tiles on 4 SMs: 5 are streamed, each but the first and the last cut in two."""
    run = Run(SplitCase(Case("stream", 136, 136, 256, out="fp32", config=PINGPONG)), STREAM, "cpu")
    split_k._memory.clear()
    with quack.emulator.use("sm90", sms=SMS):
        run.launch()
    run.verify()
    (workspace,) = (memory for (*_, kind), memory in split_k._memory.items() if kind == "scratch")
    slots = workspace.view(SMS, 64 * 64)
    # 20 k tiles, 5 a cluster: cut in tiles 1, 2 and 3, whose first parts end the ranges of clusters 0, 1 and 2.
    assert [bool(slot.isnan().all()) for slot in slots] == [False, False, False, True]
    assert not slots[:3].isnan().any()


def test_every_epilogue(monkeypatch: pytest.MonkeyPatch):
    """Where the heuristics choose it: reductions, activations and further outputs see each tile once."""

    def choose(base, shape, sms, swapped=None, is_drawn=False) -> Choice:
        chosen = replace(base, config=PINGPONG.with_tile_k(base.operands.a.dtype))
        return Choice(chosen, 1, STREAM)

    monkeypatch.setattr(plan.split_heuristics, "choose", choose)
    call._calls.clear()
    A, B = torch.randn(136, 300).bfloat16(), torch.randn(300, 136).bfloat16()
    exact = A.double() @ B.double()
    with quack.emulator.use("sm90", sms=SMS):
        preact, postact = quack.gemm_act(A, B, activation="relu", store_preact=True)
        plans = [known.plan for known in call._calls.values() if known.plan.split is not None]
        assert len(plans) == 1 and plans[0].spec.epilogue and plans[0].split.numbers == (SMS, 5, 5)
    torch.testing.assert_close(preact.double(), exact, rtol=1e-2, atol=1e-1)
    torch.testing.assert_close(postact.double(), exact.relu(), rtol=1e-2, atol=1e-1)
    call._calls.clear()


def test_public_calls():
    A, B, C = torch.randn(72, 500).bfloat16(), torch.randn(500, 200).bfloat16(), torch.randn(72, 200).bfloat16()
    with quack.emulator.use("sm90", sms=SMS):
        added = quack.gemm_add(A, B, C, out_dtype=torch.float32, split_k_mode=STREAM)
        plain = quack.gemm(A, B, out_dtype=torch.float32, split_k_mode=STREAM)
        whole = quack.gemm(A, B, out_dtype=torch.float32, split_k=1, split_k_mode=STREAM)
        kinds = [known.plan.split is not None for known in list(call._calls.values())[-3:]]
    assert kinds == [True, True, False]
    exact = A.double() @ B.double()
    torch.testing.assert_close(added.double(), exact + C.double(), rtol=0, atol=1e-3)
    for out in (plain, whole):
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=1e-3)
