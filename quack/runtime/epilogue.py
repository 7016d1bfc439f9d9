"""Epilogue mixins as the host states them: which class, which statics, which values on its ports.

The host names built-in mixins by string, because importing them would import CuTe DSL. `Term.signature` is what a cached
plan depends on, `op_spec` what the compiled code depends on.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import torch

from ..gemm_config import Dtype, Major, OperandSpec
from ..gemm_port import EpilogueOpSpec, PortKind, PortSource, PortSpec
from .budget import budget_of
from .operands import check_scalar, check_tensors, check_vector, dtype_of, is_injective, overlaps
from .spec import GemmShape, GemmSpec


class Allocated(enum.Enum):
    """The value of an output port that the call allocates."""

    PARTIALS = "partials"


@dataclass(frozen=True)
class Port:
    """A port and what the user gave. value: tensor, number, `Allocated`, or None for an optional port that is not used."""

    name: str
    kind: PortKind
    value: Any
    is_concat: bool = False
    is_halved: bool = False

    def signature(self) -> object:
        """Everything about the value that a plan depends on."""
        value = self.value
        if isinstance(value, torch.Tensor):
            facts = (value.shape, value.stride(), value.dtype, value.get_device(), value.data_ptr() & 15)
            return (self.kind, self.is_concat, self.is_halved, *facts)
        return self.kind, type(value)

    def kernel_value(self) -> Any:
        """What the kernel receives."""
        if self.kind is PortKind.SCALAR:
            return self.value.reshape(1) if isinstance(self.value, torch.Tensor) else float(self.value)
        return self.value


@dataclass(frozen=True)
class Term:
    """One mixin of a call. mixin: "module:qualname". statics: as in `EpilogueOpSpec`.

    swapped: the mixin that does the same to D^T (every port transposed with it); None if there is none.
    uses_c:  the mixin reads C, which is then not added to the accumulator.
    """

    mixin: str
    ports: tuple[Port, ...] = ()
    statics: tuple[tuple[str, Any], ...] = ()
    swapped: Optional[str] = None
    uses_c: bool = False

    def signature(self) -> object:
        """Everything that a plan depends on."""
        return self.mixin, self.statics, tuple(port.signature() for port in self.ports)


TileLayout = Callable[[str, torch.Tensor], OperandSpec]


def op_spec(term: Term, partials_ndim: int, tile_layout: TileLayout) -> EpilogueOpSpec:
    """What the kernel must know of a term. partials_ndim: as out's; tile_layout: describes a tensor that has the rows of out."""
    ports = tuple(_port_spec(port, partials_ndim, tile_layout) for port in term.ports)
    return EpilogueOpSpec(term.mixin, ports, term.statics)


def _port_spec(port: Port, partials_ndim: int, tile_layout: TileLayout) -> PortSpec:
    value = port.value
    if value is None:
        return PortSpec(port.kind, PortSource.ABSENT)
    if value is Allocated.PARTIALS:
        return PortSpec(port.kind, PortSource.DEVICE, Dtype.FP32, partials_ndim)
    if not isinstance(value, torch.Tensor):
        return PortSpec(port.kind, PortSource.HOST)
    if port.kind.is_tile:
        layout = replace(tile_layout(port.name, value), is_halved=port.is_halved)
        return PortSpec(port.kind, PortSource.DEVICE, layout=layout)
    ndim = 1 if port.kind is PortKind.SCALAR else value.dim()
    return PortSpec(port.kind, PortSource.DEVICE, dtype_of(port.name, value), ndim, port.is_concat)


_TRANSPOSED = {
    PortKind.ROW_VECTOR: PortKind.COL_VECTOR,
    PortKind.COL_VECTOR: PortKind.ROW_VECTOR,
    PortKind.ROW_PARTIALS: PortKind.COL_PARTIALS,
    PortKind.COL_PARTIALS: PortKind.ROW_PARTIALS,
}


def swapped_ops(terms: Sequence[Term], ops: Sequence[EpilogueOpSpec]) -> Optional[tuple[EpilogueOpSpec, ...]]:
    """The composition for D^T; None if a term has no transposed form."""
    if any(term.swapped is None for term in terms):
        return None

    def turn(port: PortSpec) -> PortSpec:
        layout = None if port.layout is None else mirror(port.layout)
        return replace(port, kind=_TRANSPOSED.get(port.kind, port.kind), layout=layout)

    return tuple(
        EpilogueOpSpec(str(term.swapped), tuple(turn(port) for port in op.ports), op.statics)
        for term, op in zip(terms, ops)
    )


def mirror(output: OperandSpec) -> OperandSpec:
    """C or D (M, N) seen as (N, M). A and B need no such thing: (outer, K) stays (outer, K) when they change places."""
    major = Major.OUTER if output.major is Major.INNER else Major.INNER
    return replace(output, transposed=not output.transposed, major=major)


def partials_shape(kind: PortKind, spec: Optional[GemmSpec], shape: GemmShape, is_batched: bool) -> tuple[int, ...]:
    """Extents of partials as the kernel writes them, transposed if it computes D^T.

    spec: of the launch that runs the epilogue, None if nothing is computed; shape: the extents, of ragged M the sum of all.
    """
    extents: tuple[int, ...]
    if spec is not None and spec.config.swap_ab:
        kind, shape = _TRANSPOSED[kind], shape.swapped()
    if spec is None:  # nothing is computed: partials of no tiles
        extents = (shape.m, 0) if kind is PortKind.ROW_PARTIALS else (0, shape.n)
    elif kind is PortKind.ROW_PARTIALS:
        extents = (shape.m, -(-shape.n // spec.config.tile_n))
    else:
        config = spec.config
        shares = 1 if config.pingpong else budget_of(spec).mma_warpgroups
        extents = (-(-shape.m // config.cta_tile_m) * shares, shape.n)
    return (shape.batch, *extents) if is_batched else extents


def allocate_partials(extents: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """fp32, on the device of `like`."""
    return like.new_empty(extents, dtype=torch.float32)


def check_terms(
    terms: Sequence[Term], A: torch.Tensor, out: torch.Tensor, shape: GemmShape, rows: int, problems: Optional[int]
) -> None:
    """Every rule about the values on ports. rows: of D, all groups' if M is ragged; problems: None if there is one."""
    outputs: list[tuple[str, torch.Tensor]] = [("out", out)]
    for term in terms:
        for port in term.ports:
            check_port(port, A, out, shape, rows, problems)
            if port.kind is PortKind.TILE_OUTPUT and isinstance(port.value, torch.Tensor):
                outputs.append((port.name, port.value))
    for i, (name, tensor) in enumerate(outputs):
        for other_name, other in outputs[:i]:
            if overlaps(tensor, other):
                raise ValueError(f"{name} overlaps {other_name} in memory: pass a {name} of its own")


def check_port(
    port: Port, A: torch.Tensor, out: torch.Tensor, shape: GemmShape, rows: int, problems: Optional[int]
) -> None:
    """One port's value: type, shape, dtype, device, strides."""
    value, name = port.value, port.name
    if value is None or value is Allocated.PARTIALS:
        return
    if port.kind is PortKind.SCALAR:
        check_scalar(name, value, A.device)
    elif port.kind is PortKind.INTEGER:
        if not isinstance(value, int) or not 0 <= value < 2**31:
            raise ValueError(f"{name} is {value!r}, expected an int in [0, 2^31)")
    elif port.kind in (PortKind.ROW_VECTOR, PortKind.COL_VECTOR):
        extent = shape.n if port.kind is PortKind.ROW_VECTOR else rows
        legal_rows = problems if port.kind is PortKind.ROW_VECTOR or rows == shape.m else None
        check_vector(name, value, A, extent, legal_rows, port.is_concat)
    elif port.kind.is_tile:
        columns = shape.n // 2 if port.is_halved else shape.n
        expected = (*out.shape[:-1], columns)
        check_tensors({"A": A, name: value})
        if tuple(value.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {expected}")
        if port.kind is PortKind.TILE_OUTPUT and not is_injective(value):
            raise ValueError(f"{name} with strides {value.stride()} is expanded or overlaps itself")
    else:
        raise TypeError(f"{name} is allocated by the call: pass None")
