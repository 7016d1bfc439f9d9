"""Rules and budgets of the mma.sync kernel, how works are drawn there, and how tests run it on another target."""

from dataclasses import replace

import pytest
import torch

import quack
from quack.arch import ARCHES
from quack.gemm_config import Dtype, GemmConfig
from quack.runtime import device
from quack.runtime.budget import budget_of
from quack.runtime.compile import cache_key
from quack.runtime.device import kernels_of
from quack.runtime.legality import legality
from quack.runtime.plan import MAX_CLUSTERS, clusters_to_launch
from quack.runtime.spec import GATHER_M, GemmSpec, UnsupportedGemm
from quack.runtime.split_k import split_spec
from quack.split_k import SplitKMode
from tests.unit.ledger import operands

TURNS = GemmConfig(128, 128, pingpong=True, cluster_m=1)


def spec_of(config: GemmConfig, specs=None, **changes) -> GemmSpec:
    return replace(GemmSpec("sm_120a", specs or operands(), GemmConfig()), **changes).configured(config)


@pytest.mark.parametrize(
    "config, expected",
    [
        (TURNS, 2),  # 32 KB a stage beside 16 KB of D
        (replace(TURNS, tile_k=32), 5),
        (GemmConfig(256, 128, 32, cluster_m=1), 3),
        (GemmConfig(64, 64, pingpong=True, cluster_m=1), 5),
    ],
)
def test_stages(config: GemmConfig, expected: int):
    budget = budget_of(spec_of(config))
    assert budget.ab_stages == expected
    assert budget.smem_bytes <= ARCHES["sm_120a"].execution.smem_bytes
    assert budget.threads * budget.producer_registers <= 65536
    per_warpgroup = budget.producer_registers + budget.mma_warpgroups * budget.mma_registers
    assert 128 * per_warpgroup <= ARCHES["sm_120a"].execution.registers


@pytest.mark.parametrize(
    "config, word",
    [
        (GemmConfig(64, 256, pingpong=True, cluster_m=1), "128 accumulator registers a thread and 136 for operands"),
        (
            GemmConfig(128, 144, 32, pingpong=True, cluster_m=1),
            "144 accumulator registers a thread and 88 for operands",
        ),
        (GemmConfig(256, 128, cluster_m=1), "1 operand stages"),
        (replace(TURNS, tile_k=128), "256 bytes, not one of (64, 128)"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(config: GemmConfig, word: str):
    verdict = legality(spec_of(config))
    assert word in str(verdict.reason) and verdict.alternative


def test_tall_tiles_with_parts_and_c_need_more():
    specs = operands(d=Dtype.FP32)
    with_c = spec_of(GemmConfig(256, 128, 32, cluster_m=1), specs._replace(c=specs.d))
    assert legality(with_c).ok and legality(split_spec(replace(with_c, operands=specs), SplitKMode.SERIAL)).ok
    assert "together at most 200" in str(legality(split_spec(with_c, SplitKMode.SERIAL)).reason)


def test_lines_are_gathered_whole():
    config = replace(TURNS, tile_k=32)
    assert legality(spec_of(config)).ok
    verdict = legality(spec_of(config, adapter=GATHER_M))
    assert "A_idx picks lines of 128 bytes" in str(verdict.reason) and verdict.alternative == "tile_k=64"
    assert legality(spec_of(TURNS, adapter=GATHER_M)).ok


def test_inputs_of_any_major_but_fp8():
    small = GemmConfig(128, 64, pingpong=True, cluster_m=1)
    for dtype in (Dtype.BF16, Dtype.FP16, Dtype.FP32):
        for majors in ("kkn", "mkn", "knn", "mnn"):
            assert legality(spec_of(small, operands(dtype, majors=majors))).ok, (dtype, majors)
    assert not legality(spec_of(small, operands(Dtype.E4M3, majors="knn"))).ok


def test_works_are_drawn_by_cancelling_where_the_hardware_can():
    drawn = spec_of(replace(TURNS, is_dynamic_persistent=True))
    assert drawn.cancels and clusters_to_launch(drawn, 170) == MAX_CLUSTERS
    assert clusters_to_launch(drawn, 170, works=1000) == 1000  # of grouped problems
    assert not spec_of(TURNS).cancels and clusters_to_launch(spec_of(TURNS), 170) == 170
    assert not replace(drawn, target="sm_90a").cancels
    assert not drawn.on("sm_90a").cancels and drawn.on("sm_100a").cancels
    parts = split_spec(drawn, SplitKMode.SERIAL)
    assert not parts.cancels and clusters_to_launch(parts, 170) == 170  # they wait in the order of the counter


def test_another_target_is_asked_for_and_part_of_the_key():
    plain = spec_of(TURNS)
    crossed = replace(plain, target="sm_90a")
    assert legality(crossed).ok and cache_key(crossed) != cache_key(plain)
    for target in ("sm_80", "sm_100a"):
        verdict = legality(replace(plain, target=target))
        assert verdict.reason == f"the kernel for sm_120a does not run on {target}"
    hopper = replace(plain, arch="sm_90a", target="sm_100a")
    assert "does not run on sm_100a" in str(legality(hopper).reason)


def test_devices_run_their_own_kernels_unless_asked():
    tensor = torch.zeros(8, 8)
    with quack.emulator.use("sm90"):
        assert device.device_of(tensor)[1:] == ("sm_90a", 132, None)
        plain = device.kernel_key(tensor)
        with kernels_of("sm_120a"):
            assert device.device_of(tensor)[1:] == ("sm_120a", 132, "sm_90a")
            assert device.kernel_key(tensor) != plain
        assert device.kernel_key(tensor) == plain
        with kernels_of("sm_90a"):
            assert device.device_of(tensor).target is None


def test_a_kernel_that_does_not_run_there_is_refused():
    A = torch.zeros(64, 64, dtype=torch.bfloat16)
    with (
        quack.emulator.use("sm120"),
        kernels_of("sm_90a"),
        pytest.raises(UnsupportedGemm, match="does not run on sm_120a"),
    ):
        quack.gemm_tuned.fn(A, A, torch.empty_like(A), config=GemmConfig(128, 128, cluster_m=1))
