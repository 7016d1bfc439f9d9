"""Split-K in the emulator: what tests/gpu/test_split_k.py runs on hardware."""

import pytest
import torch

import quack
from quack import SplitKMode
from quack.gemm_config import GemmConfig
from quack.runtime import dispatch, split_k
from tests.cases import Case
from tests.ragged_cases import RaggedCase
from tests.schedules import SEEDS
from tests.split_cases import MODES, Run, SplitCase, cases

SMS = 4
RANDOM = tuple(f"random:{seed}" for seed in SEEDS)


@pytest.mark.one_in(7)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_against_reference(case: SplitCase, mode: SplitKMode):
    """Two launches: the second finds what the first has put back to zero."""
    run = Run(case, mode, "cpu")
    for schedule, checks in (("latest", ("all",)), ("random:7", ())):
        with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=SMS):
            run.launch()
        run.verify()
        assert not any(m.any() for (*_, kind), m in split_k._memory.items() if kind in ("zeroed", "semaphores"))


@pytest.mark.parametrize("config", ["static", "dynamic"])
def test_deterministic_modes_agree_to_the_bit(config: str):
    """Under every schedule, and with each other: both add the parts in their order."""
    pinned = GemmConfig(64, 64, pingpong=True, cluster_m=1, is_dynamic_persistent=config == "dynamic")
    case = SplitCase(Case("split", 136, 136, 700, out="fp32", c="fp32", bias="fp32", config=pinned), 4)
    results = set()
    for mode in MODES:
        run = Run(case, mode, "cpu")
        for schedule in ("eager", "latest", *RANDOM) if mode.is_deterministic else ():
            with quack.emulator.use("sm90", schedule=schedule, sms=SMS):
                run.launch()
            results.add(run.bits())
    assert len(results) == 1


def test_two_parts_are_deterministic_in_every_mode():
    case = SplitCase(
        RaggedCase("m", (70, 0, 100), n=72, k=200, config=GemmConfig(64, 64, pingpong=True, cluster_m=1)), 2
    )
    results = set()
    for mode in MODES:
        run = Run(case, mode, "cpu")
        for schedule in RANDOM[:3]:
            with quack.emulator.use("sm90", schedule=schedule, sms=SMS):
                run.launch()
            results.add(run.bits())
    assert len(results) == 1


def test_the_number_of_parts_is_no_part_of_the_code():
    config = GemmConfig(64, 64, pingpong=True, cluster_m=1)
    A, B = torch.randn(72, 500).bfloat16(), torch.randn(500, 64).bfloat16()
    with quack.emulator.use("sm90", sms=SMS):
        outs, functions = [A.new_empty(72, 64, dtype=torch.float32) for _ in range(4)], []
        for parts, out in enumerate(outs, 1):
            quack.gemm_tuned.fn(A, B, out, config=config, split_k=parts)
            functions.append(len(dispatch._functions))
    assert functions[1] == functions[2] == functions[3]
    exact = A.double() @ B.double()
    for out in outs:
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=1e-3)
    assert not torch.equal(outs[0], outs[3]), "four parts round differently from one: were there four?"


def test_memory_grows_and_is_kept():
    config = GemmConfig(64, 64, pingpong=True, cluster_m=1)

    def product(m: int) -> None:
        A, B = torch.randn(m, 200).bfloat16(), torch.randn(200, 64).bfloat16()
        out = torch.empty(m, 64)
        quack.gemm_tuned.fn(A, B, out, config=config, split_k=2, split_k_mode=SplitKMode.PARALLEL)
        torch.testing.assert_close(out.double(), A.double() @ B.double(), rtol=0, atol=1e-3)

    split_k._memory.clear()
    with quack.emulator.use("sm90", sms=SMS):
        sizes = []
        for m in (64, 300, 64):
            product(m)
            sizes.append(split_k._memory[(-1, 0, "zeroed")].numel())
    assert sizes == [64 * 64, 5 * 64 * 64, 5 * 64 * 64]


def test_add_and_grouped_take_parts():
    A, B, C = torch.randn(72, 500).bfloat16(), torch.randn(500, 64).bfloat16(), torch.randn(72, 64).bfloat16()
    with quack.emulator.use("sm90", sms=SMS):
        added = quack.gemm_add(A, B, C, out_dtype=torch.float32, split_k=3, split_k_mode=SplitKMode.SEPARATE)
        (grouped,) = quack.gemm_grouped([A], [B], out_dtype=torch.float32, split_k=2)
        plain = quack.gemm(A, B, out_dtype=torch.float32, split_k=2)
    exact = A.double() @ B.double()
    torch.testing.assert_close(added.double(), exact + C.double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(grouped.double(), exact, rtol=0, atol=1e-3)
    torch.testing.assert_close(plain.double(), exact, rtol=0, atol=1e-3)
