"""Epilogues in either fragment layout, and with accumulators in registers or in memory, against torch and each other."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Optional

import cutlass
import pytest
import torch
from cutlass import cute
from cutlass.cute import runtime as cute_runtime

from quack import emulator
from quack.activation import GatedActivation
from quack.cute_dtype import CUTE_DTYPE
from quack.epilogue.protocol import EpilogueMixin
from quack.gemm_config import Dtype, Major, OperandSpec
from quack.gemm_port import EpilogueOpSpec, PortKind, PortSource, PortSpec
from quack.reduction import Reduction
from quack.runtime.compile import resolve
from tests.emulated.drain import TILE_M, Drain
from tests.philox import round_stochastically

TORCH = {
    Dtype.BF16: torch.bfloat16,
    Dtype.FP16: torch.float16,
    Dtype.FP32: torch.float32,
    Dtype.E4M3: torch.float8_e4m3fn,
}
SHAPE = (208, 240)  # a whole tile and part of one in both directions; lines are whole 16 bytes, which TMA writes as one
BEYOND = 12345.0  # what accumulators hold outside the problem
SEED = 1234567
KINDS = {"mma": {"by_row": False}, "row": {"by_row": True}, "row, in memory": {"by_row": True, "is_in_memory": True}}


def matrix(dtype: Dtype = Dtype.FP32, major: Major = Major.INNER, **options: Any) -> OperandSpec:
    return OperandSpec(dtype, 2, False, major, **options)


def allocate(spec: OperandSpec, rows: int, cols: int) -> torch.Tensor:
    """(rows, cols) of NaN in the layout of `spec`: the contiguous mode is padded."""
    cols = cols // 2 if spec.is_halved else cols
    shape = (rows, cols) if spec.major is Major.INNER else (cols, rows)
    pitch = shape[1] + (-shape[1]) % 16 + (16 if spec.is_tma else 3)
    buffer = torch.full((shape[0], pitch), math.nan).to(TORCH[spec.dtype])[:, : shape[1]]
    return buffer if spec.major is Major.INNER else buffer.T


def fake(tensor: Optional[torch.Tensor], align: int = 16) -> Any:
    if tensor is None:
        return None
    dtype = next(CUTE_DTYPE[d] for d, t in TORCH.items() if t is tensor.dtype)
    divisibility = max(1, align // tensor.element_size())
    strides = tuple(1 if s == 1 else cute.sym_int64(divisibility=divisibility) for s in tensor.stride())
    shape = tuple(cute.sym_int() for _ in tensor.shape)
    return cute_runtime.make_fake_tensor(dtype, shape, strides, assumed_align=max(align, tensor.element_size()))


class Results(NamedTuple):
    d: torch.Tensor
    tiles: list[torch.Tensor]
    partials: list[torch.Tensor]
    spill: torch.Tensor


@dataclass(frozen=True)
class Epilogue:
    """A chain of mixins on X (SHAPE). arguments: one entry for each port, None for tile outputs and partials."""

    specs: tuple[EpilogueOpSpec, ...] = ()
    arguments: tuple = ()
    d: OperandSpec = field(default_factory=matrix)
    c: Optional[tuple[OperandSpec, torch.Tensor]] = None
    tile_n: int = 128
    epi_n: int = 32
    mixins: Optional[tuple[type[EpilogueMixin], ...]] = None

    def run(self, x: torch.Tensor, doubles: bool = False, **kind: bool) -> Results:
        mixins = self.mixins or tuple(resolve(op.mixin) for op in self.specs)
        c_spec, c = self.c or (None, None)
        rows, cols = x.shape
        drain = Drain(
            shape=(rows, cols),
            tile_n=self.tile_n,
            epi_n=self.epi_n,
            d=self.d,
            c=c_spec,
            specs=self.specs,
            mixins=mixins,
            doubles=doubles,
            **kind,
        )
        tiles_m, tiles_n = math.ceil(rows / TILE_M), math.ceil(cols / self.tile_n)
        padded = torch.full((tiles_m * TILE_M, tiles_n * self.tile_n), BEYOND)
        padded[:rows, :cols] = x
        outputs, inputs, others, partials = [allocate(self.d, rows, cols)], [], [], []
        ports = [port for op in self.specs for port in op.ports]
        for port, argument in zip(ports, self.arguments, strict=True):
            if port.source is PortSource.ABSENT:
                continue
            if port.kind is PortKind.TILE_OUTPUT:
                outputs.append(allocate(port.layout, rows, cols))
            elif port.kind is PortKind.TILE_INPUT:
                inputs.append(argument)
            elif port.kind in (PortKind.ROW_PARTIALS, PortKind.COL_PARTIALS):
                shape = (rows, tiles_n) if port.kind is PortKind.ROW_PARTIALS else (tiles_m, cols)
                partials.append(torch.full(shape, math.nan))
                others.append(partials[-1])
            else:
                others.append(argument)
        spill = torch.full((2 * tiles_m * tiles_n, self.tile_n, TILE_M), math.nan)
        others = tuple(others) or None
        compiled = cute.compile(
            drain,
            fake(padded),
            fake(c, 4),
            tuple(fake(t, 16 if s.is_tma else t.element_size()) for s, t in zip(drain.outputs, outputs)),
            tuple(fake(t, 4) for t in inputs) or None,
            others and tuple(cutlass.Int32(a) if isinstance(a, int) else fake(a, 4) for a in others),
            cute_runtime.make_fake_tensor(cutlass.Float32, tuple(spill.shape), spill.stride(), assumed_align=16),
            cute_runtime.make_fake_stream(use_tvm_ffi_env_stream=True),
            options=emulator.compile_options("sm90"),
        )
        arguments = (padded, c, tuple(outputs), tuple(inputs) or None, others, spill)
        emulator.launch(compiled, *arguments, schedule="latest", checks=("all",), sms=4)
        return Results(outputs[0], outputs[1:], partials, spill)


def port(kind: PortKind, layout: Optional[OperandSpec] = None, ndim: int = 1) -> PortSpec:
    return PortSpec(kind, PortSource.DEVICE, None if layout else Dtype.FP32, ndim, layout=layout)


def mixin(name: str, *ports: PortSpec, **statics: Any) -> EpilogueOpSpec:
    return EpilogueOpSpec(f"quack.epilogue.{name}", ports, tuple(statics.items()))


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    """Small integers, so that sums are exact in any order."""
    return torch.randint(-30, 31, SHAPE, generator=torch.Generator().manual_seed(3)).float()


def random(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.double(), b.double())


kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
rows_and_memory = pytest.mark.parametrize("kind", list(KINDS.values())[1:], ids=list(KINDS)[1:])

STORES = [matrix(dtype, major, align=align) for dtype in TORCH for major in Major for align in (16, dtype.bytes)]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("d", STORES, ids=lambda s: f"{s.dtype.value} {s.major.value} {s.align}")
def test_stores(x: torch.Tensor, d: OperandSpec):
    for epi_n, tile_n in ((32, 96),) if d.dtype is Dtype.FP32 else ((64, 128), (16, 48)):
        result = Epilogue(d=d, epi_n=epi_n, tile_n=tile_n).run(x, by_row=True)
        assert same(result.d, x.to(TORCH[d.dtype]))


@pytest.mark.one_in(5)
@kinds
@pytest.mark.parametrize("major", Major, ids=lambda m: m.value)
@pytest.mark.parametrize("dtype", [Dtype.BF16, Dtype.FP32], ids=lambda d: d.value)
def test_linear(x: torch.Tensor, kind: dict, major: Major, dtype: Dtype):
    """C through shared memory, a tile by element, vectors along both directions; a second, transposed output."""
    rows, cols = SHAPE
    layout = matrix(dtype, major)
    c = allocate(layout, rows, cols)
    c.copy_(random(rows, cols))
    bias, scale, tile = random(cols), random(rows, seed=6), random(rows, cols, seed=7)
    flipped = matrix(dtype, Major.INNER if major is Major.OUTER else Major.OUTER)
    specs = (
        mixin("linear:AddC"),
        mixin("linear:RowBias", port(PortKind.ROW_VECTOR)),
        mixin("scale:ScaleRows", port(PortKind.COL_VECTOR)),
        mixin("tile:AddTile", port(PortKind.TILE_INPUT, matrix()), PortSpec(PortKind.SCALAR, PortSource.ABSENT)),
        mixin("mirror:Mirror", port(PortKind.TILE_OUTPUT, flipped)),
    )
    epilogue = Epilogue(specs, (bias, scale, tile, None, None), matrix(dtype, major), (layout, c))
    result = epilogue.run(x, **kind)
    expected = (((x + c.float()) + bias) * scale[:, None] + tile).to(TORCH[dtype])
    assert same(result.d, expected) and same(result.tiles[0], expected)


@pytest.mark.one_in(2)
@kinds
@pytest.mark.parametrize("epi_n", [16, 32, 64])
def test_reductions(x: torch.Tensor, kind: dict, epi_n: int):
    specs, expected = [], []
    whole = torch.full((256, 256), math.nan)
    whole[: SHAPE[0], : SHAPE[1]] = x
    by_columns, by_rows = whole.view(256, 2, 128), whole.view(2, 128, 256)
    for reduction, function in {
        Reduction.SUM: torch.nansum,
        Reduction.SUM_OF_SQUARES: lambda t, dim: (t * t).nansum(dim),
        Reduction.MAX: lambda t, dim: t.nan_to_num(-math.inf).amax(dim),
    }.items():
        specs.append(mixin("reduction:RowReduce", port(PortKind.ROW_PARTIALS, ndim=2), reduction=reduction))
        specs.append(mixin("reduction:ColReduce", port(PortKind.COL_PARTIALS, ndim=2), reduction=reduction))
        expected.append(function(by_columns, dim=2)[: SHAPE[0]])
        expected.append(function(by_rows, dim=1)[:, : SHAPE[1]])
    result = Epilogue(tuple(specs), (None,) * len(specs), epi_n=epi_n).run(x, **kind)
    assert same(result.d, x)
    for got, want in zip(result.partials, expected, strict=True):
        assert same(got, want)


@rows_and_memory
def test_log_sum_exp(x: torch.Tensor, kind: dict):
    specs = (
        mixin("reduction:RowLogSumExp", port(PortKind.ROW_PARTIALS, ndim=2)),
        mixin("reduction:ColLogSumExp", port(PortKind.COL_PARTIALS, ndim=2), reduction=Reduction.LOG_SUM_EXP),
    )
    x = random(*SHAPE) * 4
    x[:, 5:7] = -math.inf
    whole = torch.full((256, 256), -math.inf, dtype=torch.float64)
    whole[: SHAPE[0], : SHAPE[1]] = x
    rows, cols = Epilogue(specs, (None, None)).run(x, **kind).partials
    torch.testing.assert_close(rows.double(), whole.view(256, 2, 128).logsumexp(2)[: SHAPE[0]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cols.double(), whole.view(2, 128, 256).logsumexp(1)[:, : SHAPE[1]], rtol=1e-5, atol=1e-5)


@pytest.mark.one_in(5)
@kinds
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("epi_n", [16, 64])
def test_stochastic_rounding(kind: dict, is_transposed: bool, epi_n: int):
    """The bits are those of the element's place in the user's D, whatever the layout."""
    x = random(*SHAPE) * 100
    x[3, 4], x[5, 6] = math.nan, math.inf
    name = "RoundStochastically" + "Transposed" * is_transposed
    specs = (mixin(f"rounding:{name}", PortSpec(PortKind.INTEGER, PortSource.HOST)),)
    result = Epilogue(specs, (SEED,), matrix(Dtype.BF16), epi_n=epi_n).run(x, **kind)
    of_user = x.T.contiguous() if is_transposed else x
    expected = round_stochastically(of_user, SEED)
    got = result.d.T if is_transposed else result.d
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.one_in(2)
@kinds
@pytest.mark.parametrize(
    "d", [matrix(Dtype.BF16, is_halved=True), matrix(Dtype.FP32, Major.OUTER, is_halved=True)], ids=str
)
def test_halves(x: torch.Tensor, kind: dict, d: OperandSpec):
    """D, and once more by element."""
    unaligned = replace(d, align=d.dtype.bytes)
    statics = {"activation": GatedActivation.REGLU}
    absent = PortSpec(PortKind.TILE_OUTPUT, PortSource.ABSENT)
    specs = (
        mixin("activation:Gate", port(PortKind.TILE_OUTPUT, unaligned), **statics),
        mixin("activation:Gate", absent, **statics),
    )
    result = Epilogue(specs, (None, None), d).run(x, **kind)
    expected = (x[:, ::2].relu() * x[:, 1::2]).to(TORCH[d.dtype])
    assert same(result.d, expected) and same(result.tiles[0], expected)


@dataclass(frozen=True)
class Place(EpilogueMixin):
    """acc <- 1000 row + column"""

    def visit(self, ctx, state, frag):
        for v, (row, col) in enumerate(ctx.coordinates(frag)):
            frag.acc[v] = cutlass.Float32(row * 1000 + col)
        return state


@kinds
def test_coordinates(x: torch.Tensor, kind: dict):
    epilogue = Epilogue((EpilogueOpSpec("tests:Place", ()),), mixins=(Place,))
    assert same(epilogue.run(x, **kind).d, torch.arange(SHAPE[0])[:, None] * 1000.0 + torch.arange(SHAPE[1]))


@kinds
def test_partial_sums(x: torch.Tensor, kind: dict):
    """The workspace is [slot][vector][thread][4]."""
    result = Epilogue(tile_n=96).run(x, doubles=True, **kind)
    assert same(result.d, 2 * x)
    first = result.spill[result.spill.shape[0] // 2].reshape(-1, TILE_M, 4)
    tile = 2 * x[:TILE_M, :96]
    if kind["by_row"]:
        assert same(first, tile.view(TILE_M, 24, 4).permute(1, 0, 2))
    else:  # of a slab and a warp: thread 4 r + q has 2 columns of rows r and r + 8 of a group of 8 columns
        parts = tile.view(2, 4, 2, 8, 12, 4, 2)  # slab, warp, half, r, group, q, column
        assert same(first, parts.permute(0, 4, 1, 3, 5, 2, 6).reshape(24, TILE_M, 4))
