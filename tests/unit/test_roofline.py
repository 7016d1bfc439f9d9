"""The lines of a tile: counted from the spec, in the right units, and what bounds."""

import json
import math
from dataclasses import replace

import pytest

from quack import heuristics
from quack.arch import ARCHES, Figure
from quack.gemm_config import Dtype, GemmConfig
from quack.heuristics.model import smem_ns, tile_ns, tuning_of
from quack.heuristics.work import drain_work, k_tile_work
from quack.roofline import Amount, Problem, Resource, Roof, as_dict, count, report, roof
from quack.roofline.cli import main, parse_config
from quack.runtime.spec import UnsupportedGemm
from tests.unit.ledger import full_epilogue, gemm, operands

KERNELS = [name for name, arch in ARCHES.items() if arch.has_kernel]
TILES = {"sm_90a": "128x256cl2x1", "sm_100a": "256x256cl2x1", "sm_120a": "128x128x64pp"}


def of(arch: str, tile: str, k: int = 4096, **options) -> Roof:
    return roof(*Problem(arch, 8192, 8192, k, **options).configured(parse_config(tile)(arch)))


@pytest.mark.parametrize(("arch", "tile"), TILES.items())
def test_flops_of_all_tiles_are_those_of_the_product(arch: str, tile: str):
    found = roof(*Problem(arch, 4096, 4096, 1024).configured(parse_config(tile)(arch)))
    config = found.spec.config
    ctas = 4096 * 4096 / (config.cta_tile_m * config.tile_n)
    mma = found.line(Resource.MMA)
    assert ctas * mma.modelled.total(found.k_tiles) == found.shape.flops
    clocks = ctas / found.chip.sms * mma.clocks.total(found.k_tiles)
    ideal_ns = found.shape.flops / found.chip.sms / found.chip.mma_flops_per_ns(16)
    assert clocks / found.chip[Figure.CLOCK_GHZ] == pytest.approx(ideal_ns)
    assert found.predicted_ns > ideal_ns


@pytest.mark.parametrize(("arch", "tile"), TILES.items())
def test_hbm_bytes_of_all_tiles_are_those_of_the_operands(arch: str, tile: str):
    found = roof(*Problem(arch, 4096, 4096, 1024, has_c=True).configured(parse_config(tile)(arch)))
    ctas = 4096 * 4096 / (found.spec.config.cta_tile_m * found.spec.config.tile_n)
    line = found.line(Resource.HBM)
    assert ctas * line.modelled.tile == pytest.approx(2 * (2 * 4096 * 1024 + 2 * 4096 * 4096))
    rate = line.rate * found.chip[Figure.CLOCK_GHZ] * found.chip.sms
    assert rate == pytest.approx(found.chip[Figure.HBM_BYTES_PER_NS])


@pytest.mark.parametrize("arch", KERNELS)
def test_clocks_of_a_tile_grow_with_k_and_not_its_epilogue(arch: str):
    several = [
        roof(*Problem(arch, 4096, 4096, k).configured(GemmConfig(128, 128, cluster_m=1))) for k in (64, 128, 4096)
    ]
    for line in several[0].lines:
        others = [found.line(line.resource) for found in several]
        totals = [other.clocks.total(found.k_tiles) for other, found in zip(others, several)]
        assert totals == sorted(totals)
        if line.resource is not Resource.HBM:
            assert len({(other.modelled.k_tile, other.modelled.tile) for other in others}) == 1


def test_main_loop_of_a_pair_takes_no_more_of_an_sm_than_the_mma_covers():
    """256 x 256 x 64 on sm_100a: the count of docs/roofline.md."""
    found = of("sm_100a", "256x256x64cl2x1")
    clocks = {line.resource: line.clocks for line in found.lines}
    assert clocks[Resource.MMA] == Amount(512, 0)
    assert clocks[Resource.SMEM] == Amount(256, 512)
    assert clocks[Resource.SMEM_ONE_PORT] == Amount(512, 1024)
    assert clocks[Resource.L2_LOADS] == Amount(512, 0)
    assert clocks[Resource.TMEM] == Amount(0, 256)
    assert found.k_tiles == 64 and found.is_drain_hidden
    assert found.main_loop_bound.resource is found.tile_bound.resource is Resource.MMA
    mma = clocks[Resource.MMA].total(64)
    for resource in (Resource.SMEM, Resource.L2_STORES, Resource.TMEM, Resource.CONVERSIONS, Resource.ISSUE):
        assert clocks[resource].total(64) < 0.52 * mma, resource
    assert clocks[Resource.SMEM_ONE_PORT].total(64) == pytest.approx(mma, rel=0.032)  # not so on an H200: 3.1 % over
    alone = of("sm_100a", "128x256x64cl2x1")
    assert alone.line(Resource.SMEM).clocks.k_tile == 384 and alone.line(Resource.SMEM_ONE_PORT).clocks.k_tile == 768


@pytest.mark.parametrize(("arch", "tile"), TILES.items())
def test_main_loops_of_the_best_tiles_are_bound_by_the_mma(arch: str, tile: str):
    assert of(arch, tile).main_loop_bound.resource is Resource.MMA


def test_narrow_tiles_are_bound_by_what_they_load():
    assert of("sm_90a", "64x64ppcl1x1").main_loop_bound.resource is Resource.L2_LOADS
    assert of("sm_100a", "128x64cl1x1").main_loop_bound.resource is Resource.L2_LOADS
    assert of("sm_100a", "128x64cl2x2").main_loop_bound.resource is Resource.SMEM


def test_operands_that_a_cta_reads():
    """Bytes of shared memory for a k tile of 128 bytes a row."""
    reads = {
        ("sm_90a", "128x256"): 2 * (64 + 256) * 128,  # each wgmma reads B for its 64 rows
        ("sm_90a", "192x128cl1x1"): 3 * (64 + 128) * 128,
        ("sm_100a", "256x256"): (128 + 128) * 128,  # half of B for both CTAs
        ("sm_100a", "128x256"): (128 + 256) * 128,
        ("sm_120a", "128x128x64pp"): (128 + 4 * 128) * 128,  # every warp reads B
        ("sm_120a", "256x64x64"): (256 + 8 * 64) * 128,  # of both warpgroups that share the tile
    }
    for (arch, tile), expected in reads.items():
        spec = of(arch, tile).spec
        assert k_tile_work(tuning_of(arch), spec).operand_reads == expected, (arch, tile)


def test_multicast_saves_fetches_and_no_writes():
    config = GemmConfig(128, 256, cluster_m=1)
    alone, shared = (
        k_tile_work(tuning_of("sm_90a"), Problem("sm_90a", 4096, 4096, 64).configured(c)[0])
        for c in (config, replace(config, cluster_m=2))
    )
    assert alone.operand_bytes == shared.operand_bytes == alone.l2_bytes == (128 + 256) * 128
    assert shared.l2_bytes == (128 + 128) * 128


def test_what_a_drain_moves():
    plain = drain_work(gemm(GemmConfig(128, 128), operands()))
    assert (plain.staged_in, plain.staged_out, plain.loads, plain.stores) == (0, 32768, 0, 32768)
    assert plain.conversions == 128 * 128 / 64 and plain.tmem_bytes == 0
    unaligned = drain_work(gemm(GemmConfig(128, 128), operands(align=2)))
    assert unaligned.smem_bytes == 0 and unaligned.stores == 32768 and unaligned.instructions > 0
    single = drain_work(gemm(GemmConfig(128, 128), operands(Dtype.BF16, Dtype.FP32)))
    assert single.stores == 65536 and single.conversions == 0
    specs = operands()
    full = drain_work(gemm(GemmConfig(128, 128), specs._replace(c=specs.d), epilogue=full_epilogue()))
    assert full.staged_in == full.loads == 32768 and full.instructions > plain.instructions
    assert drain_work(Problem("sm_100a", 256, 256, 64).configured(GemmConfig(128, 128))[0]).tmem_bytes == 4 * 128 * 128


@pytest.mark.parametrize("arch", KERNELS)
def test_heuristics_wait_for_shared_memory(arch: str):
    """A tile takes at least as long as its operands go through shared memory."""
    spec, _ = Problem(arch, 4096, 4096, 4096).configured(GemmConfig(128, 64, cluster_m=1))
    rates = heuristics.model.roofline_of(arch)
    slow = replace(rates, smem_bytes_per_ns=rates.smem_bytes_per_ns / 100)
    assert tile_ns(spec, 4096, slow) >= smem_ns(spec, 4096, slow) > tile_ns(spec, 4096, rates)
    assert smem_ns(spec, 8192, rates) > smem_ns(spec, 4096, rates) > 0
    peak = ARCHES[arch].chip[Figure.SMEM_BYTES_PER_CLK] * ARCHES[arch].chip[Figure.CLOCK_GHZ]
    assert rates.smem_bytes_per_ns == pytest.approx(peak, rel=0.1)


def test_pairs_are_chosen_where_one_cta_would_wait_for_shared_memory():
    spec, _ = Problem("sm_100a", 8192, 8192, 4096).configured()
    assert spec.config.is_pair and spec.config.tile_n == 256


@pytest.mark.parametrize(("arch", "tile"), TILES.items())
def test_report_fits_a_terminal_and_json_says_the_same(arch: str, tile: str):
    found = of(arch, tile)
    lines = report(found).splitlines()
    assert max(map(len, lines)) <= 110
    data = json.loads(json.dumps(as_dict(found)))
    assert len(data["lines"]) == len(found.lines) and data["main_loop_bound"] == "mma"
    for line, entry in zip(found.lines, data["lines"]):
        assert entry["modelled"]["k_tile"] == line.modelled.k_tile and entry["counted"] is None
        assert any(text.startswith(line.resource.label) for text in lines)
        assert math.isclose(entry["clocks"]["tile"] * line.rate, line.modelled.tile)


def test_command_line(capsys):
    assert main("--arch sm_90a --shape 4096x4096x4096 --config 128x256 128x192pp --format json".split()) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["cta_tile"] == [128, 256, 64] and second["cta_tile"] == [128, 192, 64]
    assert main("--arch sm_90a --shape 4096x4096x4096 --config 256x256".split()) == 2
    assert "256x256" in capsys.readouterr().err
    for wrong in ("--shape 4096x4096", "--shape 64x64x64 --config 128", "--shape 64x64x64 --dtype int8"):
        with pytest.raises(SystemExit, match="2"):
            main(["--arch", "sm_90a", *wrong.split()])
        assert "expected" in capsys.readouterr().err


def test_only_what_whole_tiles_share_is_counted():
    problem = Problem("sm_90a", 8192, 50257, 768)
    with pytest.raises(UnsupportedGemm, match="rows of D"):
        count(problem, problem.configured()[0])


def test_illegal_configurations_are_refused():
    with pytest.raises(UnsupportedGemm, match="tile"):
        Problem("sm_120a", 4096, 4096, 4096).configured(GemmConfig(256, 256, cluster_m=1))
