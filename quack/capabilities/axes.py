"""The axes of the matrix, as data: what a cell's coordinates mean for a `GemmSpec`. A new dtype, adapter, commit policy or mixin
gets an entry here; `legality` decides the rest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Optional

from ..activation import Activation, GatedActivation
from ..arch import ARCHES
from ..gemm_config import BlockScaling, Dtype, GemmConfig, Major, OperandSpec, OperandSpecs
from ..gemm_port import EpilogueOpSpec, PortKind, PortSource, PortSpec
from ..reduction import Reduction
from ..runtime.pointwise import pointwise
from ..runtime.spec import DENSE, GATHER_K, GATHER_M, GROUPED, RAGGED_K, RAGGED_M, VARLEN_K, VARLEN_M, GemmSpec
from ..runtime.split_k import split_spec, sum_spec
from ..runtime.symmetric import symmetric_spec
from ..split_k import SplitKMode


class Cell(NamedTuple):
    """One combination: keys of `AXES`, in their order."""

    arch: str
    inputs: str
    adapter: str
    commit: str
    epilogue: str

    def __str__(self) -> str:
        return ", ".join(self)


@dataclass(frozen=True)
class Inputs:
    """dtypes of A and B, and the output that people ask for with them. precise: fp8 sums in fp32. scaling: of blocks of K."""

    a: Dtype
    b: Dtype
    d: Dtype = Dtype.BF16
    precise: bool = False
    scaling: Optional[BlockScaling] = None


INPUTS: Mapping[str, Inputs] = {
    "bf16": Inputs(Dtype.BF16, Dtype.BF16),
    "fp16": Inputs(Dtype.FP16, Dtype.FP16, Dtype.FP16),
    "tf32": Inputs(Dtype.FP32, Dtype.FP32, Dtype.FP32),
    "e4m3": Inputs(Dtype.E4M3, Dtype.E4M3),
    "e5m2 x e4m3": Inputs(Dtype.E5M2, Dtype.E4M3),
    "e4m3 precise": Inputs(Dtype.E4M3, Dtype.E4M3, precise=True),
    "mxfp8": Inputs(Dtype.E4M3, Dtype.E4M3, scaling=BlockScaling.MX),
    "mxfp8 x mxfp4": Inputs(Dtype.E4M3, Dtype.WIDE_E2M1, scaling=BlockScaling.MX),
    "mxfp4": Inputs(Dtype.E2M1, Dtype.E2M1, scaling=BlockScaling.MX),
    "nvfp4": Inputs(Dtype.E2M1, Dtype.E2M1, scaling=BlockScaling.NV),
}
ADAPTERS: Mapping[str, str] = {
    "dense": DENSE,
    "varlen M": VARLEN_M,
    "varlen K": VARLEN_K,
    "gathered M": GATHER_M,
    "gathered K": GATHER_K,
    "grouped": GROUPED,
}


def _split(mode: SplitKMode) -> Callable[[GemmSpec], tuple[GemmSpec, ...]]:
    """The kernels of a call with split tiles: for SEPARATE two, the second for enough tiles to fill the device."""

    def kernels(spec: GemmSpec) -> tuple[GemmSpec, ...]:
        first = split_spec(spec, mode)
        if mode is not SplitKMode.SEPARATE:
            return (first,)
        sms = ARCHES[spec.arch].chip.sms
        return first, sum_spec(spec, 8 * sms, sms)

    return kernels


def _symmetric(spec: GemmSpec) -> tuple[GemmSpec, ...]:
    """Of other adapters than the dense one, refused for its commit policy."""
    twice = symmetric_spec(spec)
    return (twice if spec.adapter == DENSE else replace(twice, adapter=spec.adapter),)


COMMITS: Mapping[str, Callable[[GemmSpec], tuple[GemmSpec, ...]]] = {
    "default": lambda spec: (spec,),
    "symmetric": _symmetric,
    "split-K serial": _split(SplitKMode.SERIAL),
    "split-K parallel": _split(SplitKMode.PARALLEL),
    "split-K separate": _split(SplitKMode.SEPARATE),
    "stream-K": _split(SplitKMode.STREAM),
}


class Ports:
    """Ports of the mixins for a GEMM with these operands and this adapter."""

    def __init__(self, operands: OperandSpecs, adapter: str):
        self.operands = operands
        self.source = PortSource.TABLE if adapter == GROUPED else PortSource.DEVICE
        self.halved = replace(operands.d, is_halved=True)

    def vector(self, kind: PortKind, dtype: Dtype) -> PortSpec:
        return PortSpec(kind, self.source, dtype, 1)

    def tile(self, kind: PortKind, layout: Optional[OperandSpec] = None) -> PortSpec:
        return PortSpec(kind, self.source, layout=layout or self.operands.d)

    def partials(self, kind: PortKind) -> PortSpec:
        return PortSpec(kind, self.source, Dtype.FP32, 2)

    @staticmethod
    def scalar(kind: PortKind = PortKind.SCALAR) -> PortSpec:
        return PortSpec(kind, PortSource.HOST)

    @staticmethod
    def absent(kind: PortKind) -> PortSpec:
        return PortSpec(kind, PortSource.ABSENT)


def _op(mixin: str, *ports: PortSpec, **statics: Any) -> EpilogueOpSpec:
    return EpilogueOpSpec(f"quack.epilogue.{mixin}", ports, tuple(statics.items()))


@dataclass(frozen=True)
class Family:
    """A family of mixins by a representative. reads_c, halves_d, packs_d: what it makes of C and D."""

    ops: Callable[[Ports], tuple[EpilogueOpSpec, ...]]
    reads_c: bool = False
    halves_d: bool = False  # D has half of the columns
    packs_d: bool = False  # C and D hold pairs of 16-bit values in fp32 words
    d: Optional[Dtype] = None  # where it is not that of `Inputs`

    def applied(self, spec: GemmSpec) -> GemmSpec:
        d = replace(spec.operands.d, is_halved=self.halves_d)
        if self.packs_d:
            d = replace(d, dtype=Dtype.FP32)
        elif self.d is not None:
            d = replace(d, dtype=self.d)
        plain = spec.operands._replace(d=d)
        operands = plain._replace(c=d if self.reads_c else None)
        return replace(spec, operands=operands, epilogue=self.ops(Ports(spec.operands, spec.adapter)))


_damped = pointwise(lambda acc, cap: acc / (1.0 + acc * acc / cap))
_BACKWARD = (PortKind.COL_VECTOR, PortKind.ROW_PARTIALS)
EPILOGUES: Mapping[str, Family] = {
    "none": Family(lambda p: ()),
    "alpha, beta * C": Family(
        lambda p: (_op("linear:ScaleAccumulator", p.scalar()), _op("linear:AddScaledC", p.scalar())), reads_c=True
    ),
    "bias": Family(lambda p: (_op("linear:RowBias", p.vector(PortKind.ROW_VECTOR, Dtype.BF16)),)),
    "activation": Family(
        lambda p: (
            _op(
                "activation:Activate",
                p.absent(PortKind.TILE_OUTPUT),
                activation=Activation.GELU_TANH_APPROX,
            ),
        )
    ),
    "activation, preact": Family(
        lambda p: (_op("activation:Activate", p.tile(PortKind.TILE_OUTPUT), activation=Activation.GELU_TANH_APPROX),)
    ),
    "gated": Family(
        lambda p: (_op("activation:Gate", p.absent(PortKind.TILE_OUTPUT), activation=GatedActivation.SWIGLU),),
        halves_d=True,
    ),
    "gated, preact": Family(
        lambda p: (_op("activation:Gate", p.tile(PortKind.TILE_OUTPUT, p.halved), activation=GatedActivation.SWIGLU),)
    ),
    "activation gradient": Family(
        lambda p: (
            _op(
                "activation_backward:ActivateBackward",
                p.tile(PortKind.TILE_OUTPUT),
                *map(p.absent, _BACKWARD),
                activation=Activation.GELU_TANH_APPROX,
            ),
        ),
        reads_c=True,
    ),
    "gated gradient": Family(
        lambda p: (
            _op(
                "activation_backward:GateBackward",
                replace(p.tile(PortKind.TILE_OUTPUT), layout=replace(p.operands.d, dtype=Dtype.BF16)),
                *map(p.absent, _BACKWARD),
                activation=GatedActivation.SWIGLU,
                pairs=Dtype.BF16,
                gradient_pairs=Dtype.BF16,
            ),
        ),
        reads_c=True,
        packs_d=True,
    ),
    "gradient and its row sums": Family(
        lambda p: (
            _op(
                "activation_backward:ActivateBackward",
                p.tile(PortKind.TILE_OUTPUT),
                p.vector(PortKind.COL_VECTOR, Dtype.FP32),
                p.partials(PortKind.ROW_PARTIALS),
                activation=Activation.GELU_TANH_APPROX,
            ),
        ),
        reads_c=True,
    ),
    "norm scales": Family(
        lambda p: (
            _op("scale:ScaleRows", p.vector(PortKind.COL_VECTOR, Dtype.FP32)),
            _op("scale:ScaleColumns", p.vector(PortKind.ROW_VECTOR, Dtype.FP32)),
        )
    ),
    "row reduction": Family(
        lambda p: (_op("reduction:RowReduce", p.partials(PortKind.ROW_PARTIALS), reduction=Reduction.SUM_OF_SQUARES),)
    ),
    "row log-sum-exp": Family(lambda p: (_op("reduction:RowLogSumExp", p.partials(PortKind.ROW_PARTIALS)),)),
    "column reduction": Family(
        lambda p: (_op("reduction:ColReduce", p.partials(PortKind.COL_PARTIALS), reduction=Reduction.SUM),)
    ),
    "stochastic rounding": Family(
        lambda p: (_op("rounding:RoundStochastically", p.scalar(PortKind.INTEGER)),), d=Dtype.BF16
    ),
    "further tiles": Family(
        lambda p: (
            _op("tile:AddTile", p.tile(PortKind.TILE_INPUT), p.absent(PortKind.SCALAR)),
            _op("tile:StoreTile", p.tile(PortKind.TILE_OUTPUT)),
        )
    ),
    "user's function": Family(lambda p: (EpilogueOpSpec(_damped(cap=30.0).name(), (p.scalar(),)),)),
}
AXES: Mapping[str, tuple[str, ...]] = {
    "arch": tuple(ARCHES),
    "inputs": tuple(INPUTS),
    "adapter": tuple(ADAPTERS),
    "commit": tuple(COMMITS),
    "epilogue": tuple(EPILOGUES),
}


def base_spec(cell: Cell) -> GemmSpec:
    """The cell without its commit policy; the configuration is still open."""
    inputs, adapter = INPUTS[cell.inputs], ADAPTERS[cell.adapter]
    # B has a matrix for each group where M is ragged, D where K is. A ragged K must be the strided mode, unless it is scaled.
    inner = Major.OUTER if adapter in RAGGED_K and inputs.scaling is None else Major.INNER
    operands = OperandSpecs(
        OperandSpec(inputs.a, 2, False, inner, scaling=inputs.scaling),
        OperandSpec(inputs.b, 3 if adapter in RAGGED_M else 2, True, inner, scaling=inputs.scaling),
        OperandSpec(inputs.d, 3 if adapter in RAGGED_K else 2, False, Major.INNER),
    )
    spec = GemmSpec("", operands, GemmConfig(), fast_accum=not inputs.precise, adapter=adapter).on(cell.arch)
    return EPILOGUES[cell.epilogue].applied(spec)
