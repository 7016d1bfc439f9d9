"""The epilogue extension point: typed ports, the mixin lifecycle and the fragment that mixins work on.

A mixin is a small class. Its fields annotated with a port type are *ports*: what the kernel reads or writes at run time.
Its other fields are *statics*, compiled into the kernel.

    @dataclass(frozen=True)
    class ScaledRelu(EpilogueMixin):
        scale: RowVector                        # (N,) or (L, N), any float dtype
        slope: float = 0.0                      # static

        def visit(self, ctx, state, frag):      # once per subtile, all rows of a slab x epi_n, registers only
            frag.update(lambda x, s: maximum(x * s, 0.0), ctx.values(self.scale, frag))
            return state

On the host a port holds what the user gave (a torch tensor, a number, None for an output that the framework allocates); in
the kernel the framework rebuilds the same object with handles that the methods of `EpilogueContext` take. What is
compiled depends only on the class, the statics and the `PortSpec`s, never on values.

| port | host value | the kernel's handle is for |
|---|---|---|
| `Scalar` | float, or 1-element tensor | `ctx.load_scalar` |
| `Integer` | int | `ctx.load_integer` |
| `RowVector` | (N,) or (L, N) | `ctx.values` |
| `ColVector` | (M,) or (L, M); (total_m,) if ragged | `ctx.values` |
| `TileInput` | shape of D | `ctx.load_tile` |
| `TileOutput` | shape of D, or half its columns | `frag.put` |
| `RowPartials` | fp32 (M, tiles of N), (L, M, ...) | `ctx.row_state`, `ctx.reduce_rows`, `ctx.store_rows` |
| `ColPartials` | fp32 (row blocks, N), (L, ...) | `ctx.reduce_cols`, `ctx.store_cols` |

A port annotated `Optional[...]` may be None on the host, and is None in the kernel then; an optional output is True on the
host to have the call allocate it. Other outputs need not be given.
"""

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from ..dsl.barrier import sync_warpgroup
from ..dsl.fast_math import select
from ..gemm_config import GemmConfig
from ..gemm_port import WARPS, EpilogueOpSpec, PortId, PortKind, PortSource, PortSpec
from .fragment_layout import FragmentLayout
from .tables import TensorTable

WARP_LANES = 32


class Scalar:
    """Port: a Python float, or a device tensor with one element (read on the device, so no host synchronisation)."""

    kind = PortKind.SCALAR


class Integer:
    """Port: a Python int, 0 <= i < 2^31, by value."""

    kind = PortKind.INTEGER


class RowVector:
    """Port: one value per column of D, (N,) or (L, N); broadcast over rows."""

    kind = PortKind.ROW_VECTOR


class ColVector:
    """Port: one value per row of D, (M,) or (L, M); broadcast over columns."""

    kind = PortKind.COL_VECTOR


class TileInput:
    """Port: a matrix of the shape of D, read element by element (the operand C comes faster, by TMA)."""

    kind = PortKind.TILE_INPUT


class TileOutput:
    """Port: a further output of the shape of D, or of half its columns, stored like D."""

    kind = PortKind.TILE_OUTPUT


class RowPartials:
    """Port: a value per row and tile of N, (M, tiles) fp32: a reduction over the columns of each tile."""

    kind = PortKind.ROW_PARTIALS


class ColPartials:
    """Port: a value per column and block of rows, (blocks, N) fp32: a reduction over the rows that one warpgroup drains."""

    kind = PortKind.COL_PARTIALS


PORT_TYPES = (Scalar, Integer, RowVector, ColVector, TileInput, TileOutput, RowPartials, ColPartials)
PORT_NAMES = {port.__name__: port for port in PORT_TYPES}


@dataclass(frozen=True)
class BoundPort:
    """What a port field holds in the kernel. value: the kernel argument, or where the problems' own are (None for tiles, which the
    kernel transports).

    scratch: first word of the port's shared memory among its warpgroup's; index: among the tiles of the same kind.
    """

    kind: PortKind
    value: Any
    scratch: int = 0
    index: int = 0


@dataclass
class EpilogueFragment:
    """One thread's part of one subtile of the output tile.

    acc:   fp32 registers, the running value of D; mixins update it in place.
    c:     fp32 registers with the same part of C, or None.
    slab:  which of the warpgroup's slabs this is, `ctx.layout.slab_m` rows each (trace-time int).
    base:  index of acc[0] in the thread's part of the slab (trace-time int).
    subtile: which of the slab's subtiles (trace-time int).
    tiles: what mixins put for the tile outputs, by index.
    """

    acc: cute.Tensor
    c: Optional[cute.Tensor]
    slab: int
    base: int
    subtile: int
    tiles: dict = field(default_factory=dict)

    def update(self, function: Callable[..., Float32], *others: cute.Tensor) -> None:
        """acc[v] = function(acc[v], other[v], ...) for every element."""
        for v in range(cute.size(self.acc)):
            self.acc[v] = function(self.acc[v], *(other[v] for other in others))

    def mapped(self, function: Callable[..., Float32], *others: cute.Tensor) -> cute.Tensor:
        """function(acc[v], other[v], ...) for every element, in new registers."""
        values = cute.make_rmem_tensor(self.acc.shape, Float32)
        for v in range(cute.size(values)):
            values[v] = function(self.acc[v], *(other[v] for other in others))
        return values

    def put(self, port: BoundPort, values: cute.Tensor) -> None:
        """Hand `values`, a fragment (of half the columns if the tile has half), to a tile output. Once per visit."""
        self.tiles[port.index] = values


class EpilogueMixin:
    """Base of every epilogue mixin. Hooks are called by all threads of the warpgroups that drain the accumulator.

    Required: nothing; override what you need. Guaranteed: `begin`, then `visit` for every subtile in order, then
    `end`, each once per output tile, by the owner of the finished sum. `begin` may run before the accumulator is
    complete (on SM90 it runs before the mainloop, which hides its latency). Mixins run in the order given. Subclasses are
    frozen dataclasses; vectors are in shared memory before the first `visit`.
    """

    needs_c: ClassVar[bool] = False  # the framework loads C and passes it as `fragment.c`

    is_pointwise: ClassVar[bool] = False
    """What happens to an element depends on its own values alone, not on where it is."""

    def __init_subclass__(cls, **options: Any):
        """Output ports default to None: the call allocates them."""
        super().__init_subclass__(**options)
        for name, port in _annotations(cls).items():
            if port in PORT_TYPES and port.kind.is_output and not hasattr(cls, name):
                setattr(cls, name, dataclasses.field(default=None, kw_only=True))

    @classmethod
    def port_kinds(cls) -> dict[str, PortKind]:
        """The annotated port fields, in declaration order."""
        return {name: port.kind for name, port in _annotations(cls).items() if port in PORT_TYPES}

    @classmethod
    def optional_ports(cls) -> frozenset[str]:
        """The ports annotated `Optional[...]`."""
        return _optional(cls)

    def begin(self, ctx: "EpilogueContext") -> Any:
        """Once per tile. Returns the mixin's state."""
        return None

    def visit(self, ctx: "EpilogueContext", state: Any, frag: EpilogueFragment) -> Any:
        """Once per subtile; updates `frag.acc` in registers. Returns the new state."""
        return state

    def end(self, ctx: "EpilogueContext", state: Any) -> None:
        """Once per tile, after the last subtile: reductions leave here."""


def _hints(cls: type) -> dict[str, Any]:
    """What the fields of a mixin are annotated with, the bases' first."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found |= getattr(base, "__annotations__", {})
    return found


@functools.lru_cache(maxsize=1024)
def _annotations(cls: type) -> dict[str, Any]:
    """Fields of a mixin with their port types; `Optional[Port]` counts as the port."""
    return {name: _port_type(hint) for name, hint in _hints(cls).items()}


@functools.lru_cache(maxsize=1024)
def _optional(cls: type) -> frozenset[str]:
    return frozenset(name for name, hint in _hints(cls).items() if _port_type(hint) is not _required_type(hint))


def _required_type(hint: Any) -> Any:
    """The port type that an annotation names, if it is no `Optional`. Text is what `from __future__ import annotations` leaves."""
    return PORT_NAMES.get(hint.rpartition(".")[2], hint) if isinstance(hint, str) else hint


def _port_type(hint: Any) -> Any:
    """The port type that an annotation names, `Optional` or not; other annotations as they are."""
    if isinstance(hint, str):
        inner = re.fullmatch(r"(?:[\w.]+\.)?Optional\[([\w.]+)\]|([\w.]+) *\| *None|None *\| *([\w.]+)", hint.strip())
        return _required_type(next(filter(None, inner.groups())) if inner else hint)
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    is_optional = len(options) == 1 and typing.get_origin(hint) in (typing.Union, types.UnionType)
    return options[0] if is_optional else hint


@dataclass(frozen=True)
class EpilogueContext:
    """What a mixin may know about the tile being drained. Read-only, rebuilt per tile.

    problem:      batch or group index, as the caller knows it.
    table_row:    where the problem is in the tables of its launch, if there are some.
    row, col:     element coordinates, within the problem, of the CTA tile's first element.
    rows, cols:   M and N of the problem.
    first_row:    where the problem's rows begin in tensors that hold those of all problems (ragged M), else 0.
    tile_m, tile_n: coordinates of the CTA tile.
    warpgroup:    which of the CTA's draining warpgroups; share, shares: which of those that share the tile, and how many.
    thread:       index of this thread among the 128 of its warpgroup.
    slab_rows:    per slab owned by this warpgroup, its first row within the CTA tile.
    scratch:      fp32 shared memory of this warpgroup's ports (None without any).
    layout:       which elements this thread holds.
    inputs:       2-D views of the tile inputs for this problem.
    """

    problem: Int32
    table_row: Int32
    row: Int32
    col: Int32
    rows: Int32
    cols: Int32
    first_row: Int32
    tile_m: Int32
    tile_n: Int32
    warpgroup: Int32
    share: Int32
    shares: int
    thread: Int32
    slab_rows: tuple
    config: GemmConfig
    layout: FragmentLayout
    scratch: Optional[cute.Tensor] = None
    inputs: tuple = ()

    # ---- scalars and vectors ------------------------------------------------------------------------------------------

    @cute.jit
    def load_scalar(self, port: BoundPort) -> Float32:
        """A Scalar port as fp32, whichever form the user passed."""
        if cutlass.const_expr(isinstance(port.value, cute.Tensor)):
            return port.value[0].to(Float32)
        return Float32(port.value)

    def load_integer(self, port: BoundPort) -> Int32:
        """An Integer port."""
        return Int32(port.value)

    def values(self, port: BoundPort, frag: EpilogueFragment) -> cute.Tensor:
        """fp32 registers: for every element of the fragment, the vector's value at its column (row). In `visit`."""
        if port.kind is PortKind.ROW_VECTOR:
            first, stride = port.scratch, (0, 1)
        else:
            first, stride = port.scratch + self.slab_rows[frag.slab], (1, 0)
        shape = (self.layout.slab_m, self.config.tile_n)
        view = self.layout.partition(
            cute.make_tensor(self.scratch.iterator + first, cute.make_layout(shape, stride=stride))
        )
        values = cute.make_rmem_tensor(frag.acc.shape, Float32)
        for v in range(cute.size(values)):
            values[v] = view[frag.base + v]
        return values

    def slab_coordinates(self) -> cute.Tensor:
        """(row, column) within a slab of this thread's elements, in register order."""
        return self.layout.partition(cute.make_identity_tensor((self.layout.slab_m, self.config.tile_n)))

    def stage(self, port: BoundPort) -> None:
        """Framework: bring a vector port into shared memory."""
        if port.kind is PortKind.ROW_VECTOR:
            self.fill_scratch(port.value, port.scratch, Int32(0), self.col, self.cols, self.config.tile_n)
        elif port.kind is PortKind.COL_VECTOR:
            self.fill_scratch(port.value, port.scratch, self.first_row, self.row, self.rows, self.config.cta_tile_m)

    @cute.jit
    def fill_scratch(
        self,
        vector: Any,
        offset: cutlass.Constexpr[int],
        origin: Int32,
        first: Int32,
        limit: Int32,
        length: cutlass.Constexpr[int],
    ):
        """Copy vector[origin + first : origin + first + length] of this problem to scratch[offset:] as fp32; 0 from `limit` on."""
        if cutlass.const_expr(isinstance(vector, TensorTable)):
            vector = vector.vector(self.table_row, limit)
        # Locals, because the tracer would carry all of `self` through the `if`s.
        scratch, thread, problem = self.scratch, self.thread, self.problem
        for i in cutlass.range_constexpr((length + 127) // 128):
            index = thread + i * 128
            if index < length:
                value = Float32(0.0)
                if first + index < limit:
                    if cutlass.const_expr(cute.rank(vector) == 2):
                        value = vector[problem, first + index].to(Float32)
                    else:
                        value = vector[origin + first + index].to(Float32)
                scratch[offset + index] = value

    # ---- coordinates and tiles ----------------------------------------------------------------------------------------

    def coordinates(self, frag: EpilogueFragment) -> list[tuple[Int32, Int32]]:
        """(row, column) within the problem of every element of the fragment."""
        local = self.slab_coordinates()
        row = self.row + self.slab_rows[frag.slab]
        places = [local[frag.base + v] for v in range(cute.size(frag.acc))]
        return [(place[0] + row, place[1] + self.col) for place in places]

    @cute.jit
    def load_tile(self, port: BoundPort, frag: EpilogueFragment) -> cute.Tensor:
        """fp32 registers with the fragment's part of a TileInput; 0 outside the problem."""
        return load_elements(self.inputs[port.index], self, frag)

    # ---- reductions ---------------------------------------------------------------------------------------------------

    def row_state(self, fill: float) -> cute.Tensor:
        """Registers for one value per row that this thread holds elements of."""
        state = cute.make_rmem_tensor(len(self.slab_rows) * self.layout.rows_per_slab, Float32)
        state.fill(fill)
        return state

    def row_slot(self, frag: EpilogueFragment, element: int) -> int:
        """Index into a row state of an element's row."""
        return frag.slab * self.layout.rows_per_slab + self.layout.row_slot(element)

    def within_columns(self, frag: EpilogueFragment, values: cute.Tensor, fill: float) -> cute.Tensor:
        """`values` with `fill` in columns beyond the problem's last."""
        # The register's offset from the thread's first column is an immediate, so that predicates need no registers.
        remaining = self.cols - self.col - self.layout.first_column() - self.layout.columns_before(frag.base)
        masked = cute.make_rmem_tensor(frag.acc.shape, Float32)
        for v in range(cute.size(masked)):
            masked[v] = select(remaining > self.layout.column_offset(v), values[v], fill)
        return masked

    def within_rows(self, frag: EpilogueFragment, values: cute.Tensor, fill: float) -> cute.Tensor:
        """`values` with `fill` in rows beyond the problem's last."""
        places = self.coordinates(frag)
        firsts = [self.layout.first_element(slot) for slot in range(self.layout.rows_per_slab)]
        is_inside = [places[first][0] < self.rows for first in firsts]
        masked = cute.make_rmem_tensor(frag.acc.shape, Float32)
        for v in range(cute.size(masked)):
            masked[v] = select(is_inside[self.layout.row_slot(v)], values[v], fill)
        return masked

    def reduce_rows(
        self, state: cute.Tensor, frag: EpilogueFragment, values: cute.Tensor, op: Callable[[Float32, Float32], Float32]
    ) -> cute.Tensor:
        """Combine a fragment's values into the row state with an associative, commutative `op`; no communication."""
        for v in range(cute.size(values)):
            slot = self.row_slot(frag, v)
            state[slot] = op(state[slot], values[v])
        return state

    def share_rows(self, state: cute.Tensor, op: Callable[[Float32, Float32], Float32]) -> cute.Tensor:
        """Row state combined over the threads that hold elements of the same rows; all of them get the result."""
        for mask in self.layout.row_lanes:
            for i in range(cute.size(state)):
                state[i] = op(state[i], cute.arch.shuffle_sync_bfly(state[i], mask))
        return state

    @cute.jit
    def store_rows(self, port: BoundPort, state: cute.Tensor):
        """Write a shared row state to a RowPartials port: column `tile_n` of the rows of this tile."""
        partials, problem, tile_n, rows, cols = port.value, self.problem, self.tile_n, self.rows, self.cols
        if cutlass.const_expr(isinstance(partials, TensorTable)):
            partials = partials.matrix(self.table_row, rows)
        local = self.slab_coordinates()
        is_leader = cute.arch.lane_idx() & self.layout.row_leader == 0
        is_inside = self.col < cols
        for slot in cutlass.range_constexpr(cute.size(state)):
            slab, within = divmod(slot, self.layout.rows_per_slab)
            row = self.row + self.slab_rows[slab] + local[self.layout.first_element(within)][0]
            place = self.first_row + row
            if is_leader and is_inside and row < rows:
                if cutlass.const_expr(cute.rank(partials) == 3):
                    partials[problem, place, tile_n] = state[slot]
                else:
                    partials[place, tile_n] = state[slot]

    @cute.jit
    def reduce_cols(
        self,
        port: BoundPort,
        frag: EpilogueFragment,
        values: cute.Tensor,
        op: cutlass.Constexpr,
    ):
        """Combine a fragment's values over the rows of each warp into the port's shared memory."""
        warp = self.thread // WARP_LANES
        totals, columns, is_speaker = self.layout.fold_rows(values, op)
        first = self.layout.columns_before(frag.base)
        scratch, base = self.scratch, port.scratch + warp * self.config.tile_n + first
        if is_speaker:
            for i in cutlass.range_constexpr(len(totals)):
                if cutlass.const_expr(frag.slab == 0):
                    scratch[base + columns[i]] = totals[i]
                else:
                    scratch[base + columns[i]] = op(scratch[base + columns[i]], totals[i])

    @cute.jit
    def store_cols(self, port: BoundPort, op: cutlass.Constexpr):
        """Write what `reduce_cols` gathered to a ColPartials port: row `tile_m * shares + share`. All threads, in `end`."""
        partials, problem, scratch, cols = port.value, self.problem, self.scratch, self.cols
        block = self.tile_m * self.shares + self.share
        if cutlass.const_expr(isinstance(partials, TensorTable)):
            partials = partials.matrix(self.table_row, block + 1)
        is_inside = self.row < self.rows
        sync_warpgroup(self.warpgroup)
        for i in cutlass.range_constexpr((self.config.tile_n + 127) // 128):
            index = self.thread + i * 128
            col = self.col + index
            if index < self.config.tile_n and col < cols and is_inside:
                value = scratch[port.scratch + index]
                for warp in cutlass.range_constexpr(1, WARPS):
                    value = op(value, scratch[port.scratch + warp * self.config.tile_n + index])
                if cutlass.const_expr(cute.rank(partials) == 3):
                    partials[problem, block, col] = value
                else:
                    partials[block, col] = value


@cute.jit
def load_elements(tensor: cute.Tensor, ctx: EpilogueContext, frag: EpilogueFragment) -> cute.Tensor:
    """Predicated element loads of a (M, N) view as fp32; 0 outside the problem."""
    values = cute.make_rmem_tensor(frag.acc.shape, Float32)
    if cutlass.const_expr(ctx.layout.turns and has_contiguous_rows(tensor)):
        values.store(load_turned(tensor, ctx, frag).load().to(Float32))
        return values
    coordinates = ctx.slab_coordinates()
    base = frag.base  # locals: the tracer would carry the whole objects through the `if`
    row, col, rows, cols = ctx.row + ctx.slab_rows[frag.slab], ctx.col, ctx.rows, ctx.cols
    for v in cutlass.range_constexpr(cute.size(values)):
        m = coordinates[base + v][0] + row
        n = coordinates[base + v][1] + col
        value = Float32(0.0)
        if m < rows and n < cols:
            value = tensor[m, n].to(Float32)
        values[v] = value
    return values


def has_contiguous_rows(tensor: cute.Tensor) -> bool:
    """Whether the elements of a row of a (M, N) view are known to be neighbours in memory."""
    stride = tensor.stride[1]
    return isinstance(stride, int) and stride == 1


@cute.jit
def load_turned(tensor: cute.Tensor, ctx: EpilogueContext, frag: EpilogueFragment) -> cute.Tensor:
    """`load_elements` of contiguous rows by threads that hold rows; of the tensor's dtype."""
    values = cute.make_rmem_tensor(frag.acc.shape, tensor.element_type)
    places = ctx.layout.turned_places(cute.size(values), tensor.element_type.width)
    rows, cols = ctx.rows, ctx.cols
    row, col = ctx.row + ctx.slab_rows[frag.slab], ctx.col + ctx.layout.columns_before(frag.base)
    for v in cutlass.range_constexpr(cute.size(values)):
        m, n = places[v][0] + row, places[v][1] + col
        value = tensor.element_type(0.0)
        if m < rows and n < cols:
            value = tensor[m, n]
        values[v] = value
    ctx.layout.turn(values)
    return values


def bind_epilogue(
    specs: tuple[EpilogueOpSpec, ...],
    mixins: tuple[type[EpilogueMixin], ...],
    config: GemmConfig,
    arguments: Optional[tuple],
    table_of: Callable[[PortId, PortSpec], Any],
) -> tuple[EpilogueMixin, ...]:
    """Device: split the flat argument tuple among the mixins and bind each. Tiles are not among the arguments.
    table_of: the value of a port from a table, see `ProblemAdapter.port_table`."""
    remaining = iter(arguments or ())
    bound, scratch, counts = [], 0, dict.fromkeys(PortKind, 0)
    for spec, mixin in zip(specs, mixins, strict=True):
        fields: dict[str, Any] = dict(spec.statics)
        for name, port in zip(mixin.port_kinds(), spec.ports, strict=True):
            fields[name] = None
            if port.source is not PortSource.ABSENT:
                if port.kind.is_tile:
                    value = None
                elif port.source is PortSource.TABLE:
                    value = table_of(PortId(port.kind, counts[port.kind]), port)
                else:
                    value = bind_value(next(remaining), port)
                fields[name] = BoundPort(port.kind, value, scratch, counts[port.kind])
                scratch += port.kind.scratch_words(config)
                counts[port.kind] += 1
        bound.append(_bound(mixin, fields))
    return tuple(bound)


def _bound(mixin: type[EpilogueMixin], fields: dict[str, Any]) -> EpilogueMixin:
    """The object that the hooks see. Not by `__init__`: what a class checks in `__post_init__` are the host's values."""
    instance = object.__new__(mixin)
    for name, value in fields.items():
        object.__setattr__(instance, name, value)
    return instance


def bound_ports(mixin: EpilogueMixin) -> list[BoundPort]:
    """Device: the ports that a bound mixin has."""
    ports = (getattr(mixin, name) for name in mixin.port_kinds())
    return [port for port in ports if port is not None]


def bind_value(value: Any, port: PortSpec) -> Any:
    """Device: what a handle holds of one kernel argument."""
    return in_logical_order(value) if port.is_concat else value


def in_logical_order(value: cute.Tensor) -> cute.Tensor:
    """Device: a vector stored as two halves, so that indexing it reads the elements interleaved."""
    half = value.shape[-1] // 2
    layout = cute.make_layout(
        (*value.shape[:-1], (2, half)), stride=(*value.stride[:-1], (half * value.stride[-1], value.stride[-1]))
    )
    return cute.make_tensor(value.iterator, layout)


__all__ = [
    "BoundPort",
    "ColPartials",
    "ColVector",
    "EpilogueContext",
    "EpilogueFragment",
    "EpilogueMixin",
    "Integer",
    "PortKind",
    "PortSource",
    "RowPartials",
    "RowVector",
    "Scalar",
    "TileInput",
    "TileOutput",
    "bind_epilogue",
]
