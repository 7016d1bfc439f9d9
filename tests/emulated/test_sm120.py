"""The kernel of sm_120a in the emulator: every family of cases that other architectures are tested with."""

from typing import Any

import pytest
import torch

import quack
from quack import SplitKMode, emulator
from quack.gemm_config import GemmConfig
from quack.runtime.device import kernels_of
from tests.cases import Case, gemm_cases, operands, poison
from tests.emulated.test_gemm import launch
from tests.families import FAMILIES, run_dense, run_split, spread
from tests.grouped_cases import GroupedCase
from tests.order_cases import OrderCase
from tests.ragged_cases import RaggedCase
from tests.schedules import EVERY_SCHEDULE, RANDOM_SEEDS
from tests.sm120_cases import REFUSED, case_here, here
from tests.split_cases import SplitCase
from tests.symmetric_cases import symmetric

SMS = 4  # few, so that persistent kernels take several tiles per CTA
TURNS = GemmConfig(128, 128, 32, pingpong=True, cluster_m=1)
SHARED = GemmConfig(256, 128, 32, cluster_m=1)


def run(family: str, case: Any, schedule: str) -> None:
    torch.manual_seed(0)
    with quack.emulator.use("sm120", schedule=schedule, checks=("all",), sms=SMS):
        FAMILIES[family].run_or_refuse(case, "cpu", REFUSED)


@pytest.mark.one_in(40)
@pytest.mark.filterwarnings("ignore:.*Everything.* spills")
@pytest.mark.parametrize("family, case", [(name, case) for name in FAMILIES for case in here(FAMILIES[name])], ids=str)
def test_family(family: str, case: Any):
    run(family, case, "latest")


@pytest.mark.one_in(23)
@pytest.mark.filterwarnings("ignore:.*Everything.* spills")
@pytest.mark.parametrize("family, seed", [(name, seed) for name in FAMILIES for seed in RANDOM_SEEDS])
def test_family_under_random_schedules(family: str, seed: int):
    """Ten cases of each, every one with a schedule of its own."""
    run(family, spread(here(FAMILIES[family]), len(RANDOM_SEEDS))[seed], f"random:{seed}")


def test_every_refused_case_is_a_case():
    cases = [case for family in FAMILIES.values() for case in here(family)] + [case_here(case) for case in gemm_cases()]
    assert REFUSED.keys() <= set(map(str, cases))


def majors(a: str, b: str, dtype: str, out: str, config: GemmConfig) -> Case:
    return Case("majors", 136, 136, 104, a=dtype, b=dtype, out=out, a_major=a, b_major=b, config=config)


@pytest.mark.parametrize(
    "case",
    [
        *(majors(a, b, "bf16", "bf16", config) for a, b, config in (("k", "k", TURNS), ("m", "n", SHARED))),
        majors("m", "k", "fp16", "fp32", TURNS),
        *(majors(a, b, "fp32", "fp32", GemmConfig(128, 64, pingpong=True, cluster_m=1)) for a, b in ("kk", "mn")),
        Case("fp8", 136, 200, 272, a="e4m3", b="e4m3", config=GemmConfig(128, 128, pingpong=True, cluster_m=1)),
        Case("fp8", 136, 200, 272, a="e5m2", b="e4m3", config=GemmConfig(128, 128, 64, cluster_m=1)),
    ],
    ids=str,
)
def test_operands_that_mma_sync_reads(case: Case):
    with quack.emulator.use("sm120", schedule="latest", checks=("all", "refills"), sms=SMS):
        run_dense(case, "cpu")


@pytest.mark.parametrize("config", [TURNS, SHARED], ids=["pingpong", "cooperative"])
def test_random_schedules_give_the_same_bits(config: GemmConfig):
    case = Case("schedules", 136, 136, 104, c="bf16", bias="bf16", config=config)
    t = operands(case, "cpu")
    results = set()
    for schedule in EVERY_SCHEDULE:
        poison(t.out.buffer)
        with quack.emulator.use("sm120", schedule=schedule, checks=("all", "refills"), sms=1):
            launch(case, t)
        results.add(t.out.tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("config", [TURNS, SHARED], ids=["pingpong", "cooperative"])
def test_compiled_for_hopper(config: GemmConfig):
    """Which runs it in tests/gpu."""
    case = Case("for hopper", 136, 136, 104, c="bf16", bias="bf16", config=config)
    with quack.emulator.use("sm90", schedule="latest", checks=("all", "refills"), sms=1), kernels_of("sm_120a"):
        run_dense(case, "cpu")


# ---- drawn works: clusters that are cancelled before they start ---------------------------------------------------------

DRAWN = GemmConfig(64, 64, pingpong=True, cluster_m=1, is_dynamic_persistent=True)
SIZES = (70, 0, 130, 5)
DRAWN_CASES = {
    "dense": (Case("drawn", 200, 264, 72, config=DRAWN), 20),
    "ragged": (RaggedCase("m", SIZES, n=136, k=72, config=DRAWN), 21),
    "order": (OrderCase(Case("drawn", 72, 136, 72, batch=5, config=DRAWN)), 30),
    "grouped": (GroupedCase(((136, 72, 136), (1, 16, 8), (0, 16, 16), (33, 200, 72)), dynamic=True, config=DRAWN), 11),
    "symmetric": (symmetric("drawn", 330, 72, config=DRAWN), 21),
}


@pytest.fixture
def reports(monkeypatch) -> list[emulator.Report]:
    """Of every launch."""
    found, launch_it = [], emulator.launch

    def recorded(*arguments: Any, **options: Any) -> emulator.Report:
        found.append(launch_it(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(emulator, "launch", recorded)
    return found


@pytest.mark.parametrize("kind, schedule", [("dense", "latest"), *((kind, "random:1") for kind in DRAWN_CASES)])
def test_drawn_works_are_those_of_cancelled_clusters(kind: str, schedule: str, reports: list[emulator.Report]):
    """One cluster is launched for each work, or more where only the device knows how many there are. Under random schedules
    requests fail now and then, and no tile may be lost; two SMs hold all the clusters that start at first."""
    case, works = DRAWN_CASES[kind]
    with quack.emulator.use("sm120", schedule=schedule, checks=("all",), sms=2):
        FAMILIES[kind].run(case, "cpu")
    assert [kernel.grid for report in reports for kernel in report.kernels][-1] == (works, 1, 1)


def test_parts_of_a_tile_are_drawn_from_the_counter(reports: list[emulator.Report]):
    """They wait for one another, which relies on the order of the draws."""
    case = SplitCase(Case("drawn", 136, 136, 300, config=DRAWN), 2)
    with quack.emulator.use("sm120", checks=("all",), sms=SMS):
        run_split(case, "cpu", (SplitKMode.SERIAL,))
    assert all(kernel.grid[0] <= SMS for report in reports for kernel in report.kernels)


def test_hopper_draws_from_the_counter(reports: list[emulator.Report]):
    with quack.emulator.use("sm90", checks=("all",), sms=SMS), kernels_of("sm_120a"):
        FAMILIES["dense"].run(DRAWN_CASES["dense"][0], "cpu")
    assert reports[-1].kernels[-1].grid == (SMS, 1, 1)
