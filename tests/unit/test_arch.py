"""The table of architectures: complete, consistent with the emulator and the budgets, and what everything else reads."""

import ast
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import quack
from quack import arch as table
from quack import heuristics
from quack.arch import ARCH_OF_CAPABILITY, ARCHES, Arch, Feature, Figure
from quack.emulator.runtime.device import DEVICES
from quack.gemm_config import Dtype, GemmConfig, Major
from quack.heuristics.model import tuning_of
from quack.runtime.legality import legality
from quack.runtime.spec import GATHER_M, GROUPED, SYMMETRIC, VARLEN_K, VARLEN_M, GemmShape, GemmSpec, UnsupportedGemm
from tests.unit.ledger import gemm, operands

ROOT = Path(quack.__file__).parent
BUILT = [name for name, arch in ARCHES.items() if arch.has_kernel]


@pytest.fixture(params=sorted(ARCHES))
def arch(request) -> Arch:
    return ARCHES[request.param]


def pretend_built(monkeypatch, arch: Arch) -> None:
    """As if the kernel existed, with Hopper's budget in place of its own."""
    execution = replace(arch.execution, package="quack.sm90", features=table.SEAMS)
    monkeypatch.setattr(table, "ARCHES", {**ARCHES, arch.name: replace(arch, execution=execution)})
    for module in ("quack.runtime.legality", "quack.runtime.budget", "quack.runtime.spec"):
        monkeypatch.setattr(sys.modules[module], "ARCHES", table.ARCHES)
    budget = sys.modules["quack.runtime.budget"]
    monkeypatch.setattr(budget, "_counter", budget._counter.__wrapped__)  # nothing of this stays in its cache


def test_every_figure_has_a_number_and_a_source(arch: Arch):
    assert set(arch.chip.figures) == set(Figure)
    for figure, (number, source) in arch.chip.figures.items():
        is_lacking = figure is Figure.TMEM_BYTES_PER_CLK and arch.execution.tmem_bytes == 0
        assert number > 0 or is_lacking or figure is Figure.FLOPS_4
        assert len(source) > 5, figure
        if "derived" in source or "data sheet" in source or "whitepaper" in source:
            assert re.search(r"\d|NVIDIA", source), (figure, source)


def test_peak_rates_are_those_of_the_data_sheets():
    """Dense TFLOPS: what NVIDIA publishes."""
    published = {
        ("sm_90a", 16): 989.5, ("sm_90a", 8): 1979, ("sm_100a", 16): 2250, ("sm_100a", 8): 4500, ("sm_100a", 4): 9000,
        ("sm_103a", 4): 13500, ("sm_120a", 16): 209.5, ("sm_120a", 8): 419, ("sm_120a", 4): 1676, ("sm_120a", 32): 104.8,
    }  # fmt: skip
    for (name, bits), tflops in published.items():
        chip = ARCHES[name].chip
        assert chip.mma_flops_per_ns(bits) * chip.sms / 1000 == pytest.approx(tflops, rel=0.01), (name, bits)


def test_emulated_devices_are_of_known_architectures():
    for family, device in DEVICES.items():
        arch = ARCHES[ARCH_OF_CAPABILITY[device.compute_capability]]
        assert arch.execution.package == f"quack.{family}"
        assert arch.execution.smem_bytes == device.smem_per_block


def test_limits_are_consistent(arch: Arch):
    execution = arch.execution
    assert (1, 1) in execution.clusters and all(m * n <= execution.max_cluster for m, n in execution.clusters)
    assert execution.k_major_only <= set(Dtype) and execution.inputs <= set(Dtype)
    assert Feature.TMA_GATHER not in execution.features or execution.has_tma_gather
    assert execution.kernel.startswith(execution.package + ".gemm:")
    assert ARCH_OF_CAPABILITY[arch.capability] == arch.name


def test_two_ctas_share_the_tallest_tile_of_tcgen05():
    config = GemmConfig(256, 128, device_capacity=10)
    assert config.is_pair and config.cta_tile_m == 128
    assert not replace(config, device_capacity=9).is_pair and replace(config, device_capacity=9).cta_tile_m == 256
    assert not replace(config, tile_m=128).is_pair


@pytest.mark.parametrize("name", [n for n in ARCHES if n not in BUILT] + ["sm_80"])
def test_an_architecture_without_a_kernel_is_refused(name: str):
    verdict = legality(replace(gemm(GemmConfig(128, 128, cluster_m=1), operands()), arch=name))
    assert verdict.reason == f"no kernel for {name} yet" and "sm_90a" in str(verdict.alternative)
    if name in ARCHES:
        with pytest.raises(UnsupportedGemm, match=f"no kernel for {name}"):
            heuristics.choose(gemm(GemmConfig(), operands()).on(name), GemmShape(128, 128, 128), 100)


@pytest.mark.parametrize("name", BUILT)
def test_default_configuration_is_legal(name: str):
    spec = GemmSpec(name, operands(), GemmConfig())
    assert legality(spec.configured(heuristics.default_config(name))).ok
    if name == "sm_90a":
        assert heuristics.default_config(name) == GemmConfig(device_capacity=9)


def test_features_are_refused_by_name_until_the_table_has_them(monkeypatch):
    hopper = ARCHES["sm_90a"]
    bare = replace(hopper, execution=replace(hopper.execution, features=frozenset()))
    monkeypatch.setattr(sys.modules["quack.runtime.legality"], "ARCHES", {"sm_90a": bare})
    plain = gemm(GemmConfig(128, 128, cluster_m=1), operands())
    assert legality(plain).ok
    lacking = {
        Feature.VARLEN_M: replace(plain, adapter=VARLEN_M),
        Feature.VARLEN_K: replace(plain, adapter=VARLEN_K, operands=operands(majors="mnn")),
        Feature.GATHER_M: replace(plain, adapter=GATHER_M),
        Feature.GROUPED: replace(plain, adapter=GROUPED),
        Feature.SYMMETRIC: replace(plain, adapter=SYMMETRIC),
        Feature.PERMUTED: replace(plain, is_permuted=True),
        Feature.SPLIT_K: replace(plain, combine="quack.split_k_combine:SerialCombine"),
        Feature.PINGPONG: replace(plain, config=replace(plain.config, pingpong=True)),
        Feature.DYNAMIC: replace(plain, config=replace(plain.config, is_dynamic_persistent=True)),
    }
    for feature, spec in lacking.items():
        verdict = legality(spec)
        assert verdict.reason == f"{feature.label} has no kernel on sm_90a yet", (feature, verdict)
        assert verdict.alternative == feature.alternative


def test_limits_come_from_the_table(monkeypatch):
    """What is illegal on another architecture, by its entry alone."""
    limits = dict(tile_m=(64, 128), k_major_only=table.INPUTS_8 | {Dtype.FP32}, cluster_sizes=(1,), max_cluster=1)
    entry = ARCHES["sm_120a"]
    pretend_built(monkeypatch, replace(entry, execution=replace(entry.execution, **limits)))
    plain = GemmSpec("sm_120a", operands(), GemmConfig())

    def reason(config: GemmConfig, specs=None) -> str:
        return str(legality(replace(plain, operands=specs or plain.operands).configured(config)).reason)

    small = GemmConfig(128, 64, cluster_m=1)
    assert legality(plain.configured(small)).ok
    assert "cluster (2, 1) is not made of (1,)" in reason(replace(small, cluster_m=2))
    assert "tile_m=192 is not one of (64, 128)" in reason(replace(small, tile_m=192))
    assert "device_capacity=9 is for another GPU than sm_120a" in reason(replace(small, device_capacity=9))
    assert "mma.sync reads 8-bit operands K-major only" in reason(small, operands(Dtype.E4M3, majors="knn"))
    fp32 = operands(Dtype.FP32, Dtype.FP32)
    assert legality(replace(plain, operands=fp32).configured(small)).ok
    mixed = fp32._replace(b=operands().b)
    assert "mma.sync multiplies bf16 x bf16, fp16 x fp16, fp32 x fp32 or fp8 x fp8" in reason(small, mixed)


def test_fp8_of_either_major_where_the_mma_reads_it(monkeypatch):
    pretend_built(monkeypatch, ARCHES["sm_100a"])
    plain = GemmSpec("sm_100a", operands(Dtype.E4M3, majors="mnn"), GemmConfig())
    assert legality(plain.configured(GemmConfig(128, 128, cluster_m=1))).ok
    narrow = legality(plain.configured(GemmConfig(128, 48, cluster_m=1)))
    assert "48-wide tile of B" in str(narrow.reason) and "32 elements" in str(narrow.reason)
    halves = legality(plain.configured(GemmConfig(128, 192, cluster_m=2)))  # 96 columns of 128-byte rows
    assert "2 multicast slices" in str(halves.reason)
    assert plain.operands.a.major is Major.OUTER


def test_precise_sums_are_no_kernel_of_their_own_where_the_mma_is_precise():
    spec = gemm(GemmConfig(), operands(Dtype.E4M3), fast_accum=False)
    for name, arch in ARCHES.items():
        assert spec.on(name).fast_accum == arch.execution.precise_fp8
        assert spec.on(name).arch == name


def test_a_configuration_gets_the_capability_that_it_leaves_open():
    for name, arch in ARCHES.items():
        spec = gemm(GemmConfig(), operands()).on(name).configured(GemmConfig(128, 128))
        assert spec.config.device_capacity == arch.capability[0] and spec.config.tile_k == 64
        pinned = spec.configured(GemmConfig(128, 128, device_capacity=7))
        assert pinned.config.device_capacity == 7


def test_every_architecture_has_rates_and_tiles(arch: Arch):
    tuning, execution = tuning_of(arch.name), arch.execution
    tiles = {*tuning.fp8_precise, *(tile for tiles in tuning.tiles.values() for tile in tiles), tuning.smallest}
    for tile_m, tile_n, _ in tiles:
        assert tile_m in execution.tile_m and tile_n % execution.tile_n_step == 0 and tile_n <= execution.max_tile_n
    for clusters in (tuning.clusters, tuning.ragged_clusters, tuning.gather_clusters):
        assert set(clusters) <= set(execution.clusters)
    assert set(tuning.roofline.mma_flops_per_ns) >= {d.bits for d in execution.inputs}
    peak = arch.chip.mma_flops_per_ns(16)
    assert 0.7 * peak < tuning.roofline.mma_flops_per_ns[16] <= peak
    assert tuning.roofline.hbm_bytes_per_ns <= arch.chip[Figure.HBM_BYTES_PER_NS]


def test_shares_of_the_data_sheet_are_those_that_an_h200_sustains():
    """The roofline of an unmeasured chip, made for Hopper, gives Hopper's measured rates."""
    measured, derived = tuning_of("sm_90a").roofline, heuristics.tuning.Roofline.of(ARCHES["sm_90a"])
    for field in (
        "l2_bytes_per_ns", "hbm_bytes_per_ns", "store_bytes_per_ns", "partial_bytes_per_ns", "l2_total_bytes_per_ns",
        "l2_bytes", "grouped_l2_bytes_per_ns", "gather_bytes_per_ns",
    ):  # fmt: skip
        assert getattr(derived, field) == pytest.approx(getattr(measured, field), rel=0.05), field
    for bits in (16, 8):
        assert derived.mma_flops_per_ns[bits] == pytest.approx(measured.mma_flops_per_ns[bits], rel=0.02)


def test_the_table_is_plain_data():
    code = "import sys, quack.arch; print([m for m in ('torch', 'cutlass') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_architectures_are_named_in_the_table_only():
    """Elsewhere on the host no decision compares a name of an architecture."""
    allowed = {"arch.py", "gemm_config.py"}
    for path in ROOT.rglob("*.py"):
        inside = path.relative_to(ROOT).parts
        if inside[0] in ("emulator", "sm90", "sm100", "sm120") or inside[-1] in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Compare, ast.Dict)):
                names = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
                assert not names & set(ARCHES), f"{path}:{node.lineno} decides by {names & set(ARCHES)}"
