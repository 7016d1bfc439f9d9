"""`gemm_symmetric` without kernels: what is refused and why, which kernel is chosen. Schedules: test_triangular_scheduler."""

import inspect
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import quack
from quack import gemm_symmetry, heuristics
from quack.gemm_config import Dtype, GemmConfig, Major
from quack.gemm_port import EpilogueOpSpec, PortKind, PortSource, PortSpec
from quack.heuristics import symmetric
from quack.runtime.legality import legality
from quack.runtime.plan import GemmRequest, _swap, describe_request
from quack.runtime.spec import DENSE, SYMMETRIC_COMMIT, VARLEN_M, GemmShape, GemmSpec
from quack.runtime.symmetric import is_transpose, symmetric_spec
from tests.unit.ledger import LINEAR, gemm, operands
from tests.unit.test_bad_input import E4M3, FP16, FP32, Row, Tensors, _bad, _unsupported, assert_refused

SMS = 132
SQUARE = GemmConfig(128, 128, pingpong=True)


def plain(config: GemmConfig = SQUARE, **changes) -> GemmSpec:
    return gemm(config, operands(**changes))


# ---- refused calls ----------------------------------------------------------------------------------------------------


def gram(t: Tensors, m: int = 64, k: int = 128, dtype: torch.dtype = torch.bfloat16, **options) -> torch.Tensor:
    a = t(m, k, dtype=dtype)
    return quack.gemm_symmetric(a, a.mT, **options)


def pinned(t: Tensors, **config) -> torch.Tensor:
    return gram(t, out=t(64, 64), config=GemmConfig(**{"tile_m": 64, "tile_n": 64, "cluster_m": 1, **config}))


def _rows() -> Iterator[Row]:
    yield _bad("not square", lambda t: quack.gemm_symmetric(t(64, 128), t(128, 72)), r"\(64, 128\).*64 x 72.*A\.mT")
    yield _bad("K", lambda t: quack.gemm_symmetric(t(64, 128), t(64, 64)), "K = 128, B has K = 64")
    yield _bad("C shape", lambda t: gram(t, C=t(64, 72)), r"C has shape \(64, 72\)")
    yield _bad("out shape", lambda t: gram(t, out=t(72, 64)), r"out has shape \(72, 64\)")
    yield _bad("out dtype", lambda t: gram(t, out=t(64, 64), out_dtype=FP16), "float16")
    yield _bad("C transposed view of out", _transposed_c, "partly overlaps C")
    yield _bad("out is A", _out_is_a, "out overlaps A")
    yield _bad("alpha", lambda t: gram(t, out=t(64, 64), alpha="2"), "alpha is a str", TypeError)
    yield _bad("alpha elements", lambda t: gram(t, out=t(64, 64), alpha=t(2, dtype=FP32)), "alpha has 2 elements")
    yield _bad("A type", lambda t: quack.gemm_symmetric([1], t(64, 64)), "A is a list", TypeError)
    yield _bad("C type", lambda t: gram(t, C=[1]), "C is a list", TypeError)
    yield _bad("out type", lambda t: gram(t, out=3), "out is a int", TypeError)
    yield _bad("config type", lambda t: gram(t, out=t(64, 64), config={}), "config is a dict", TypeError)
    yield _bad("C device", lambda t: gram(t, out=t(64, 64), C=t.elsewhere(64, 64)), "C is on")
    yield _unsupported("fp8 in", lambda t: gram(t, dtype=E4M3, out=t(64, 64)), "A is fp8_e4m3.*bf16, fp16 or fp32")
    yield _unsupported("fp8 out", lambda t: gram(t, out=t(64, 64, dtype=E4M3)), "out is fp8_e4m3.*fp32")
    yield _unsupported(
        "fp32 of columns",
        lambda t: quack.gemm_symmetric(t(128, 64, dtype=FP32).mT, t(128, 64, dtype=FP32)),
        "fp32 B is not K-major.*B with K contiguous",
    )
    yield _unsupported("tile", lambda t: pinned(t, tile_n=128), "tile_m=64 and tile_n=128.*square.*tile_n=64")
    yield _unsupported("swap", lambda t: pinned(t, swap_ab=True), "own transpose.*swap_ab=False")
    yield _unsupported("cluster", lambda t: pinned(t, cluster_m=2, cluster_n=2), r"\(2, 2\) has no schedule.*\(2, 1\)")
    yield _unsupported("cluster 4", lambda t: pinned(t, cluster_m=4), r"\(4, 1\) has no schedule")


def _transposed_c(t: Tensors) -> None:
    out = t(64, 64)
    gram(t, C=out.mT, out=out)


def _out_is_a(t: Tensors) -> None:
    a = t(64, 64)
    quack.gemm_symmetric(a, a.mT, out=a)


@pytest.mark.parametrize("row", list(_rows()), ids=str)
def test_refused(row: Row, launches: list[tuple]):
    with quack.emulator.use("sm90"):
        assert_refused(row, Tensors("cpu", "meta"))
    assert not launches


def test_signature_is_the_documented_one():
    parameters = inspect.signature(quack.gemm_symmetric).parameters.values()
    shown = [
        p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters if p.kind is not p.KEYWORD_ONLY
    ]
    documented = "A, B, C=None, out=None, out_dtype=None, dynamic_scheduler=False, alpha=1.0, beta=1.0"
    assert ", ".join(shown) == documented


@pytest.mark.parametrize("shape", [(0, 64), (3, 0, 64), (0, 64, 64)])
def test_nothing_to_compute(shape: tuple[int, ...], launches: list[tuple]):
    a = torch.empty(shape, dtype=torch.bfloat16)
    with quack.emulator.use("sm90"):
        assert quack.gemm_symmetric(a, a.mT).shape == (*shape[:-1], shape[-2])
    assert not launches


# ---- legality ---------------------------------------------------------------------------------------------------------


def test_what_the_epilogue_must_not_do():
    scalar, row = (
        PortSpec(PortKind.SCALAR, PortSource.HOST),
        PortSpec(PortKind.ROW_VECTOR, PortSource.DEVICE, Dtype.BF16, 1),
    )
    column = replace(row, kind=PortKind.COL_VECTOR)
    for mixin, port, reason in (
        (LINEAR + "ScaleAccumulator", scalar, None),
        (LINEAR + "RowBias", row, "RowBias adds a value per column"),
        (LINEAR + "ColBias", column, "ColBias adds a value per row"),
        ("elsewhere:Mine", scalar, "Mine is not known to treat rows and columns alike"),
    ):
        base = replace(plain(), epilogue=(EpilogueOpSpec(mixin, (port,)),))
        verdict = legality(symmetric_spec(base))
        assert verdict.ok == (reason is None) and (reason is None or reason in str(verdict.reason)), verdict


def test_adapter_plan_and_mirror_go_together():
    spec = symmetric_spec(plain())
    assert legality(spec).ok
    assert "stored twice" in str(legality(replace(spec, adapter=DENSE)).reason)
    assert "stored twice" in str(legality(replace(spec, adapter=VARLEN_M)).reason)
    assert "stored twice" in str(legality(replace(spec, plan=plain().plan)).reason)
    assert "Mirror as the last" in str(legality(replace(spec, epilogue=())).alternative)
    assert "Mirror as the last" in str(legality(replace(spec, epilogue=spec.epilogue * 2)).alternative)
    twice = EpilogueOpSpec(spec.epilogue[0].mixin, (replace(spec.epilogue[0].ports[0], layout=spec.operands.d),))
    assert "modes swapped" in str(legality(replace(spec, epilogue=(twice,))).reason)
    assert "batch_idx_permute" in str(legality(replace(spec, is_permuted=True)).reason)
    halves = spec.operands._replace(d=replace(spec.operands.d, is_concat=True))
    assert "concat_layout" in str(legality(replace(spec, operands=halves)).reason)


@pytest.mark.parametrize("majors", ["kkn", "kkm"])
def test_c_and_d_are_taken_as_n_major(majors: str):
    specs = operands(majors=majors)
    for c in (specs.d, replace(specs.d, major=Major.OUTER), replace(specs.d, major=Major.INNER)):
        spec = symmetric_spec(gemm(SQUARE, specs._replace(c=c)))
        assert spec.operands.d.major is spec.operands.c.major is Major.INNER
        assert spec.operands.d.unit_stride_dim == specs.d.unit_stride_dim, "the memory is the same"
        assert spec.operands.c.unit_stride_dim == c.unit_stride_dim
        assert spec.epilogue[-1].ports[0].layout.major is Major.OUTER


# ---- choice -----------------------------------------------------------------------------------------------------------


def choose(m: int, k: int, whole: bool = True, batch: int = 1, **changes) -> GemmSpec:
    base = plain(**changes)
    swapped = _swap(base)
    assert swapped is not None
    return symmetric.choose(symmetric_spec(base), GemmShape(m, m, k, batch), SMS, (base, swapped) if whole else None)


@pytest.mark.parametrize("m, is_half", [(512, False), (1024, False), (4096, True), (8192, True), (16384, True)])
def test_half_of_the_tiles_is_taken_where_it_saves_waves(m: int, is_half: bool):
    spec = choose(m, m)
    assert (spec.plan == SYMMETRIC_COMMIT) == is_half
    assert legality(spec).ok
    if is_half:
        assert (spec.config.tile_m, spec.config.tile_n, spec.config.pingpong) == (128, 128, True)


def test_without_a_transpose_only_half_of_the_tiles_is_symmetric():
    for m in (1, 64, 200, 512, 1024, 2048, 8192):
        for changes in ({}, dict(d=Dtype.FP32), dict(align=2), dict(majors="mnn"), dict(majors="mkm")):
            spec = choose(m, 512, whole=False, **changes)
            assert spec.plan == SYMMETRIC_COMMIT and legality(spec).ok


def test_predicted_waves():
    """32 x 32 tiles make 528 pairs: four waves of 132, with clusters of two as well, for no CTA of them is idle."""
    spec = symmetric_spec(plain(SQUARE.with_tile_k(Dtype.BF16)))
    shape = GemmShape(4096, 4096, 4096)
    assert symmetric.works(shape, SQUARE) == 264 == 4 * 66
    assert symmetric.works(shape, replace(SQUARE, cluster_m=1)) == 528
    assert symmetric.works(GemmShape(129, 129, 8, batch=3), SQUARE) == 6, "3 pairs are 2 works of each problem"
    four = symmetric.predict_ns(spec, shape, SMS)
    five = symmetric.predict_ns(spec, GemmShape(4097, 4097, 4096), SMS)
    assert 1.2 < five / four < 1.3
    whole = min(c.predicted_ns for c in heuristics.candidates(plain(), shape, SMS))
    assert 1.7 < whole / four < 2.2


def test_explain_lists_both_kinds():
    a = torch.empty(2048, 512, dtype=torch.bfloat16)
    with quack.emulator.use("sm90", sms=SMS):
        text = gemm_symmetry.explain_symmetric(a, a.mT)
        other = gemm_symmetry.explain_symmetric(a, torch.empty_like(a).mT)
    assert "half" in text and "whole" in text and "whole" not in other


def test_transposes_are_recognised():
    a = torch.empty(3, 40, 72)
    assert is_transpose(a, a.mT) and is_transpose(a.mT, a) and is_transpose(a[:, 1:], a[:, 1:].mT)
    for other in (a.mT.contiguous(), a.clone().mT, a[:, :, :40], a[1:].mT, a.mT[:, :, 1:], a.view(torch.int32).mT):
        assert not is_transpose(a, other)


def test_the_spec_says_everything():
    a = torch.empty(136, 72, dtype=torch.bfloat16)
    with quack.emulator.use("sm90"):
        _, base, _, _ = describe_request(GemmRequest(a, a.mT, torch.empty(136, 136, dtype=torch.bfloat16)))
    assert symmetric_spec(base).digest() != base.digest()
