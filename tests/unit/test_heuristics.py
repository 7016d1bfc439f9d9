"""Legality and the choice of configurations: plain Python, checked over large grids."""

import itertools
import random
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from quack import heuristics
from quack.arch import ARCHES
from quack.compose import compose
from quack.epilogue import linear
from quack.gemm_config import Dtype, GemmConfig, Major
from quack.gemm_epilogue_plan import DefaultCommit
from quack.gemm_problem_adapter import DenseAdapter
from quack.heuristics import split_k, symmetric
from quack.runtime.legality import legality
from quack.runtime.plan import _swap
from quack.runtime.spec import GROUPED, VARLEN_M, GemmShape, UnsupportedGemm
from quack.runtime.symmetric import symmetric_spec
from quack.sm90.gemm import GemmSm90
from quack.sm90.resources import SMEM_CAPACITY, resources
from tests.unit.ledger import full_epilogue, gemm, operands

SMS = 132
OPERANDS = {
    "bf16": operands(),
    "bf16 mnn": operands(majors="mnn"),
    "fp16 -> fp32": operands(Dtype.FP16, Dtype.FP32),
    "fp8": operands(Dtype.E4M3),
    "unaligned": operands(align=2),
}


def test_legality_needs_neither_torch_nor_cute():
    code = "import sys, quack.runtime.legality; print([m for m in ('torch', 'cutlass') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", OPERANDS)
def test_every_configuration_is_legal_or_refused_with_a_reason(kind: str):
    verdicts = {True: 0, False: 0}
    grid = itertools.product(
        (64, 96, 128, 192, 256), range(8, 265, 8), (False, True), (1, 2, 3, 4), (1, 2), (None, 64, 128)
    )
    for tile_m, tile_n, pingpong, cluster_m, cluster_n, tile_k in grid:
        config = GemmConfig(tile_m, tile_n, tile_k, pingpong=pingpong, cluster_m=cluster_m, cluster_n=cluster_n)
        verdict = legality(gemm(config, OPERANDS[kind]))
        verdicts[verdict.ok] += 1
        if verdict.ok:
            budget = resources(OPERANDS[kind], config)
            assert budget.smem_bytes <= SMEM_CAPACITY and budget.ab_stages >= 2
            assert tile_m % 64 == 0 and tile_n % 16 == 0 and cluster_m * cluster_n <= 4
        else:
            assert verdict.reason and verdict.alternative
    assert min(verdicts.values()) > 100


def test_compose_caches_and_orders():
    mixins = (linear.ScaleAccumulator, linear.RowBias)
    kernel = compose(GemmSm90, DenseAdapter, DefaultCommit, *mixins)
    assert kernel is compose(GemmSm90, DenseAdapter, DefaultCommit, *mixins)
    assert kernel.epilogue == mixins and issubclass(kernel, GemmSm90) and issubclass(kernel, DenseAdapter)
    with pytest.raises(TypeError, match="int is not an EpilogueMixin"):
        compose(GemmSm90, DenseAdapter, DefaultCommit, int)


def test_choice_is_legal_and_quick_for_any_shape():
    rng, seconds, count = random.Random(0), 0.0, 0
    for kind, specs in OPERANDS.items():
        for fast_accum in (True, False) if kind == "fp8" else (True,):
            for epilogue in ((), full_epilogue()):
                with_c = specs._replace(c=specs.d) if epilogue else specs
                base = gemm(GemmConfig(), with_c, fast_accum=fast_accum, epilogue=epilogue)
                for _ in range(100):
                    shape = GemmShape(*(int(2 ** rng.uniform(0, 15)) for _ in range(3)), rng.choice((1, 1, 7)))
                    start = time.process_time()
                    spec = heuristics.choose(base, shape, SMS, _swap(base))
                    seconds, count = seconds + time.process_time() - start, count + 1
                    assert legality(spec).ok
                    extents = shape.swapped() if spec.config.swap_ab else shape
                    assert spec.config.cluster_m == 1 or extents.m > spec.config.tile_m
                    assert spec.config.cluster_n == 1 or extents.n > spec.config.tile_n
    assert seconds / count < 0.02  # 2 to 4 ms; of this process, for others share its cores


@pytest.mark.parametrize("arch", [name for name, arch in ARCHES.items() if arch.has_kernel])
def test_every_architecture_has_a_legal_choice_for_every_shape(arch: str):
    """Dense, ragged, grouped, symmetric and split; with its own sizes of tiles, clusters and device."""
    rng, sms = random.Random(1), ARCHES[arch].chip.sms
    for specs in OPERANDS.values():
        base = gemm(GemmConfig(), specs).on(arch)
        for _ in range(10):
            shape = GemmShape(*(int(2 ** rng.uniform(0, 14)) for _ in range(3)), rng.choice((1, 7)))
            found = [
                heuristics.choose(base, shape, sms, _swap(base)),
                split_k.choose(base, shape, sms, _swap(base)).spec,
            ]
            if specs.a.major is Major.INNER:
                ragged = replace(base, adapter=VARLEN_M)
                found.append(heuristics.choose(ragged, replace(shape, is_ragged_m=True), sms))
            grouped = replace(base, adapter=GROUPED)
            found.append(heuristics.choose_grouped(grouped, [shape, GemmShape(300, 500, 700)], sms, _swap(grouped)))
            if not specs.a.dtype.is_fp8:
                found.append(symmetric.choose(symmetric_spec(base), replace(shape, n=shape.m), sms))
            for spec in found:
                assert legality(spec).ok and spec.arch == arch
                assert spec.config.device_capacity == ARCHES[arch].capability[0]


def test_thin_problems_are_swapped():
    base = gemm(GemmConfig(), operands())
    for m in (1, 8, 16):
        assert heuristics.choose(base, GemmShape(m, 8192, 8192), SMS, _swap(base)).config.swap_ab


def test_prediction_grows_with_work():
    spec = gemm(GemmConfig(), operands())
    times = [heuristics.predict_ns(spec, GemmShape(4096, 4096, k), SMS) for k in (0, 64, 512, 4096, 32768)]
    assert times == sorted(times) and times[0] < times[-1]
    floor_ns = GemmShape(8192, 8192, 8192).flops / 990e3  # dense bf16 peak of the data sheet
    assert heuristics.predict_ns(spec, GemmShape(8192, 8192, 8192), SMS) > floor_ns


def test_refusal_of_a_combination_names_the_operand():
    specs = operands(Dtype.E4M3)
    base = gemm(GemmConfig(), specs._replace(b=replace(specs.b, major=Major.OUTER)))
    with pytest.raises(UnsupportedGemm, match="fp8 B is not K-major") as caught:
        heuristics.choose(base, GemmShape(64, 64, 64), SMS)
    assert "contiguous" in caught.value.alternative


def test_explain_lists_runners_up():
    text = heuristics.explain(gemm(GemmConfig(), operands()), GemmShape(4096, 4096, 4096), SMS)
    assert len(text.splitlines()) == 4 and "us" in text and "stages" in text
