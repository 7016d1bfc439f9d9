"""Launches with clusters of two shapes: correct whichever of them the hardware starts, and where they cancel each other."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

import quack
from quack.gemm_config import GemmConfig
from tests.cases import Case, operands, poison
from tests.emulated import test_gemm
from tests.grouped_cases import GroupedCase, GroupedOperands
from tests.grouped_cases import run as run_grouped
from tests.grouped_cases import verify as verify_grouped
from tests.mutants import Subject, mutants
from tests.ragged_cases import RaggedCase, RaggedOperands, run, verify
from tests.reference import check, reference
from tests.scaled_cases import ScaledCase, ScaledOperands
from tests.schedules import EVERY_SCHEDULE

SMS = 9  # a preferred cluster, two of two CTAs, and an SM that is left over
ONE = GemmConfig(128, 64, cluster_m=2, cluster_n=2, fallback_cluster=(1, 1), device_capacity=10)
PAIR = GemmConfig(256, 64, cluster_m=4, fallback_cluster=(2, 1), device_capacity=10)
WIDE = replace(PAIR, tile_n=128, cluster_m=2, cluster_n=2)  # A is multicast by pairs
DRAWN = replace(WIDE, is_dynamic_persistent=True)
CONFIGS = {
    "one": ONE,
    "one, columns": replace(ONE, fallback_cluster=(1, 2)),
    "one, drawn": replace(ONE, cluster_m=4, cluster_n=1, fallback_cluster=(2, 1), is_dynamic_persistent=True),
    "pair": PAIR,
    "pair, multicast": WIDE,
    "pair, drawn": DRAWN,
    "pair, not persistent": replace(WIDE, is_persistent=False),
}


class Sizes(quack.emulator.Observer):
    """How many clusters of each number of CTAs ran."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    @property
    def are_both(self) -> bool:
        """Of launches of one CTA in a cluster, such as those that fill tables, besides."""
        return len(self.counts.keys() & {4, 2}) == 2 or self.counts.keys() == {4, 1}

    def cluster_exit(self, cluster: Any) -> None:
        self.counts[cluster.size] = self.counts.get(cluster.size, 0) + 1


def mixed(schedule: str = "latest", checks: tuple[str, ...] = ("all",)) -> tuple[Any, Sizes]:
    sizes = Sizes()
    return quack.emulator.use("sm100", schedule=schedule, checks=checks, sms=SMS, observers=(sizes,)), sizes


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", CONFIGS)
def test_dense(name: str):
    case = Case(name, 600, 264, 136, c="bf16", bias="bf16", config=CONFIGS[name])
    t = operands(case, "cpu")
    C = t.C.clone()
    poison(t.out.buffer)
    emulated, sizes = mixed()
    with emulated:
        test_gemm.launch(case, t)
    check(case, t.out.tensor, reference(case, t, C))
    assert sizes.are_both, sizes.counts


@pytest.mark.parametrize("name", ["one", "pair, drawn"])
def test_every_decision_by_the_shape_of_the_cluster_is_needed(name: str, monkeypatch: pytest.MonkeyPatch):
    """Masks, arrivals, boxes: with that of the other clusters, for good, the launch fails or its result is wrong."""
    case = Case(name, 600, 264, 136, config=CONFIGS[name])
    t = operands(case, "cpu")
    expected = reference(case, t, None)

    def launch() -> None:
        poison(t.out.buffer)
        with mixed()[0]:
            test_gemm.launch(case, t)
        check(case, t.out.tensor, expected)

    subject = Subject(launch)
    subject.run(monkeypatch)
    size = re.search(r"mov\.u32\s+(%r\d+), %cluster_nctarank;", subject.ptx)
    assert size is not None
    decision = rf"setp\.(ne|eq)\.b32\s+(%p\d+), {size[1]}, 4;"
    changed = [
        mutant
        for answer in ("ne", "eq")
        for mutant in mutants(subject.ptx, decision, lambda m, answer=answer: f"setp.{answer}.b32 {m[2]}, 0, 0;")
    ]
    assert len(changed) >= 8
    assert [line for line, ptx in changed if subject.survives(monkeypatch, ptx)] == []


@pytest.mark.parametrize("name", ["one, drawn", "pair, multicast"])
def test_every_schedule_gives_the_same_bits(name: str):
    case = Case("schedules", 520, 264, 136, c="bf16", bias="bf16", config=CONFIGS[name])
    t = operands(case, "cpu")
    results = set()
    for schedule in EVERY_SCHEDULE:
        poison(t.out.buffer)
        with mixed(schedule, ())[0]:
            test_gemm.launch(case, t)
        results.add(t.out.tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert len(results) == 1


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "case",
    [
        RaggedCase("m", (150, 0, 70, 300), n=264, k=72, c="bf16", config=DRAWN),
        RaggedCase("m", (150, 0, 70, 300), n=264, k=72, config=replace(ONE, fallback_cluster=(2, 1))),
        RaggedCase("k", (64, 0, 200), m=520, n=264, config=WIDE),
        RaggedCase("m", (150, 0, 70, 300), n=264, k=72, pool=300, config=PAIR),
        RaggedCase("m", (150, 0, 70, 300), n=264, k=72, pool=300, config=replace(PAIR, use_tma_gather=True)),
    ],
    ids=str,
)
def test_ragged_and_gathered(case: RaggedCase):
    t = RaggedOperands(case, "cpu")
    emulated, sizes = mixed()
    with emulated:
        run(t)
    verify(t)
    assert sizes.are_both, sizes.counts


@pytest.mark.one_in(2)
@pytest.mark.parametrize("config", [DRAWN, WIDE], ids=str)
def test_grouped(config: GemmConfig):
    case = GroupedCase(((520, 264, 72), (0, 64, 8), (130, 264, 72)), c="bf16", bias=True, config=config)
    t = GroupedOperands(case, "cpu")
    emulated, sizes = mixed()
    with emulated:
        run_grouped(t)
    verify_grouped(t)
    assert sizes.are_both, sizes.counts


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "name, config", [("nvfp4", replace(PAIR, tile_n=128)), ("mxfp8", WIDE), ("mxfp4", replace(ONE, tile_n=128))]
)
def test_block_scales(name: str, config: GemmConfig):
    t = ScaledOperands(ScaledCase(name, 700, 392, 544, config=config), "cpu")
    emulated, sizes = mixed()
    with emulated:
        t.run()
    t.verify()
    assert sizes.are_both, sizes.counts
