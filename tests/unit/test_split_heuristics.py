"""When K is split, into how many parts, and how the workspace is counted: plain Python."""

import re
from dataclasses import replace

import pytest
import torch

import quack
from quack import heuristics
from quack.gemm_config import Dtype, GemmConfig
from quack.heuristics import split_k
from quack.runtime.legality import legality
from quack.runtime.plan import _swap
from quack.runtime.spec import GROUPED, VARLEN_M, GemmShape, GemmSpec, UnsupportedGemm
from quack.runtime.split_k import cluster_tiles, split_memory, split_spec, sum_spec
from quack.runtime.stream_k import stream_memory
from quack.split_k import SplitKMode
from tests.unit.ledger import full_epilogue, gemm, operands

SMS = 132


def choose(m: int, n: int, k: int, dtype: Dtype = Dtype.BF16, batch: int = 1) -> split_k.Choice:
    base = GemmSpec("sm_90a", operands(dtype, Dtype.BF16), GemmConfig(), fast_accum=not dtype.is_fp8)
    return split_k.choose(base, GemmShape(m, n, k, batch), SMS, _swap(base))


@pytest.mark.parametrize("dtype", [Dtype.BF16, Dtype.E4M3])
@pytest.mark.parametrize("shape", [(256, 256, 65536), (128, 128, 16384), (512, 512, 16384)], ids=str)
def test_few_tiles_and_much_k_are_split(shape, dtype):
    choice = choose(*shape, dtype)
    assert choice.splits > 1 and choice.mode.is_deterministic
    whole = heuristics.candidates(replace(choice.spec), GemmShape(*shape), SMS)[0]
    assert choice.predicted_ns < split_k.MIN_GAIN * whole.predicted_ns
    clusters = SMS // (choice.spec.config.cluster_m * choice.spec.config.cluster_n)
    assert choice.splits <= clusters
    assert legality(split_spec(choice.spec, choice.mode)).ok


@pytest.mark.parametrize("shape", [(2560, 1280, 4096), (1920, 1792, 8192), (3328, 1024, 4096)], ids=str)
def test_mostly_empty_last_waves_are_streamed(shape):
    choice = choose(*shape)
    assert choice.mode is SplitKMode.STREAM and choice.is_split and choice.describe() == "STREAM"
    assert legality(split_spec(choice.spec, choice.mode)).ok and not choice.spec.config.is_dynamic_persistent
    base = GemmSpec("sm_90a", operands(), GemmConfig())
    whole = heuristics.candidates(base, GemmShape(*shape), SMS, _swap(base))[0]
    assert choice.predicted_ns < split_k.MIN_GAIN * whole.predicted_ns
    # Whole waves of the same tiles gain nothing, and works that are drawn cannot be streamed.
    drawn = split_k.choose(base, GemmShape(*shape), SMS, _swap(base), is_drawn=True)
    assert drawn.mode is not SplitKMode.STREAM
    tiles = whole.spec.config
    full = GemmShape(tiles.tile_m * tiles.cluster_m * 11, tiles.tile_n * tiles.cluster_n * 6, shape[2])
    assert not any(c.mode is SplitKMode.STREAM for c in split_k.splits_of(whole.spec, full, SMS))


@pytest.mark.parametrize(
    "shape", [(8192, 8192, 8192), (4096, 4096, 4096), (128, 8192, 8192), (64, 64, 64), (2048, 2048, 512), (64, 64, 0)]
)
def test_full_devices_and_short_sums_are_not_split(shape):
    assert choose(*shape).splits == 1


def test_the_choice_without_a_split_is_that_of_before():
    base = GemmSpec("sm_90a", operands(), GemmConfig())
    for m, n, k in ((8192, 8192, 8192), (128, 8192, 8192), (300, 700, 300)):
        choice = choose(m, n, k)
        assert (
            choice.spec == heuristics.choose(base, GemmShape(m, n, k), SMS, _swap(base)) and choice.spec.combine is None
        )


def test_more_work_takes_longer():
    spec = gemm(GemmConfig(128, 128, pingpong=True), operands())
    for mode in (SplitKMode.SERIAL, SplitKMode.SEPARATE):
        times = [split_k.predict_ns(spec, GemmShape(256, 256, k), SMS, 8, mode) for k in (4096, 16384, 65536)]
        assert times == sorted(times) and times[0] < times[2]
    for m, k in ((128, 16384), (256, 4096), (1280, 4096), (2560, 4096), (2560, 8192)):
        shapes = GemmShape(m, 1280, k), GemmShape(m, 1280, k + 64)
        now, later = (split_k.predict_ns(spec, shape, SMS, 1, SplitKMode.STREAM) for shape in shapes)
        assert now <= later
    # A turnstile of many parts is slow, however little each of them has to do.
    shape = GemmShape(256, 256, 65536)
    serial, separate = (
        split_k.predict_ns(spec, shape, SMS, 32, mode) for mode in (SplitKMode.SERIAL, SplitKMode.SEPARATE)
    )
    assert serial > separate


def test_memory_is_counted_in_whole_tiles():
    spec = split_spec(gemm(GemmConfig(128, 192, cluster_m=2), operands()), SplitKMode.SERIAL)
    shape = GemmShape(300, 200, 1000, 3)
    works = cluster_tiles(shape, spec.config)
    assert works == 2 * 2 * 3
    assert split_memory(spec, works, 5) == (works * 2 * 128 * 192, works * 2 * 2)
    separate = split_spec(gemm(GemmConfig(128, 192, cluster_m=2), operands()), SplitKMode.SEPARATE)
    assert split_memory(separate, works, 5).workspace == 5 * works * 2 * 128 * 192
    # Ragged M: each of 3 groups may end in a tile that is not full.
    assert cluster_tiles(replace(shape, is_ragged_m=True), spec.config, total_m=900) == (900 // 256 + 3) * 2
    with pytest.raises(UnsupportedGemm, match="workspace"):
        split_memory(separate, 10**6, 132)


def test_memory_of_streams_does_not_depend_on_the_problem():
    spec = split_spec(gemm(GemmConfig(128, 192, cluster_m=2), operands()), SplitKMode.STREAM)
    assert stream_memory(spec, 66) == (132 * 128 * 192, 132 * 2)


@pytest.mark.parametrize("adapter", [VARLEN_M, GROUPED])
def test_ragged_problems_are_split_only_on_request(adapter):
    base = GemmSpec("sm_90a", operands(), GemmConfig(), adapter=adapter)
    assert split_k.choose(base, GemmShape(64, 64, 65536, 2), SMS).splits == 1


def test_both_launches_of_separate_parts():
    whole = gemm(GemmConfig(128, 192, pingpong=True), operands()._replace(c=operands().d), epilogue=full_epilogue())
    first = split_spec(whole, SplitKMode.SEPARATE)
    assert first.operands.c is None and first.epilogue == () and legality(first).ok
    for works, width in ((1000, 64), (11, 64), (10, 32), (4, 16), (1, 16)):
        second = sum_spec(whole, works, SMS)
        assert second.epilogue == whole.epilogue and second.operands == whole.operands and legality(second).ok
        assert second.config.tile_n == width and second.pieces_of == whole.config


def test_explain_names_the_split():
    with quack.emulator.use("sm90"):
        deep = quack.explain(torch.empty(256, 65536).bfloat16(), torch.empty(65536, 256).bfloat16())
        wave = quack.explain(torch.empty(2560, 4096).bfloat16(), torch.empty(4096, 1280).bfloat16())
        square = quack.explain(torch.empty(512, 512).bfloat16(), torch.empty(512, 512).bfloat16())
    assert re.match(r" +[\d.]+ us  .*split_k=\d+ (SERIAL|SEPARATE)\n", deep), deep
    assert re.match(r" +[\d.]+ us  128x128x64 pp .*  STREAM\n", wave), wave
    assert "split_k" not in square and "STREAM" not in square
