"""The epilogue extension point: typed ports, the mixin lifecycle and the fragment that mixins work on.

A mixin is a small class whose annotated fields are *ports*: run-time inputs that the host passes and the device reads.

    @dataclass(frozen=True)
    class RowBias(EpilogueMixin):
        bias: RowVector                       # (N,) or (L, N), any float dtype

        def begin(self, ctx): ...             # once per tile
        def visit(self, ctx, state, frag): ...  # once per 64 x epi_n subtile, registers only
        def end(self, ctx, state): ...        # once per tile

On the host a port holds what the user gave (a torch tensor, a number); in the kernel the framework rebuilds the same
object with the ports bound to CuTe values, so `self.bias` is the device tensor. What is compiled depends only on the
class and on the `PortSpec`s, never on values.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from ..cute_dtype import CUTE_DTYPE
from ..gemm_config import GemmConfig
from ..gemm_port import EpilogueOpSpec, PortKind, PortSource, PortSpec


class Scalar:
    """Port: a Python float, or a device tensor with one element (read on the device, so no host synchronisation)."""

    kind = PortKind.SCALAR


class RowVector:
    """Port: one value per column of D, (N,) or (L, N); broadcast over rows."""

    kind = PortKind.ROW_VECTOR


class ColVector:
    """Port: one value per row of D, (M,) or (L, M); broadcast over columns."""

    kind = PortKind.COL_VECTOR


@dataclass(frozen=True)
class VectorTable:
    """A vector port of grouped problems: addresses (problems,) int64 of vectors of `dtype`."""

    addresses: cute.Tensor
    dtype: Any

    @cute.jit
    def of_problem(self, problem: Int32, length: Int32) -> cute.Tensor:
        """Device. The vector of one problem."""
        align = self.dtype.width // 8
        pointer = cute.make_ptr(self.dtype, self.addresses[problem], cute.AddressSpace.gmem, assumed_align=align)
        return cute.make_tensor(pointer, cute.make_layout(length))


@dataclass
class EpilogueFragment:
    """One thread's part of one subtile of the output tile.

    acc:   fp32 registers, the running value of D; mixins update it in place.
    c:     fp32 registers with the same part of C, or None.
    slab:  which of the warpgroup's 64-row slabs this is (trace-time int).
    base:  index of acc[0] in the thread's part of the slab (trace-time int).
    """

    acc: cute.Tensor
    c: Optional[cute.Tensor]
    slab: int
    base: int

    def gather(self, slab_view: cute.Tensor) -> cute.Tensor:
        """Registers with this fragment's elements of `slab_view`, a thread partition made by `ctx.partition_slab`."""
        values = cute.make_rmem_tensor(self.acc.shape, Float32)
        for v in range(cute.size(values)):
            values[v] = slab_view[self.base + v]
        return values


class EpilogueMixin:
    """Base of every epilogue mixin. Hooks are called by all threads of the warpgroups that drain the accumulator.

    Required: nothing; override what you need. Guaranteed: `begin`, then `visit` for every subtile in order, then
    `end`, each once per output tile, by the owner of the finished sum. `begin` may run before the accumulator is
    complete (on SM90 it runs before the mainloop, which hides its latency). Mixins run in the order given.
    """

    needs_c: ClassVar[bool] = False  # the framework loads C and passes it as `fragment.c`

    @classmethod
    def port_kinds(cls) -> dict[str, PortKind]:
        """The annotated port fields, in declaration order."""
        return {
            name: port.kind
            for base in reversed(cls.__mro__)
            for name, port in getattr(base, "__annotations__", {}).items()
            if port in (Scalar, RowVector, ColVector)
        }

    @classmethod
    def bind(cls, values: tuple[Any, ...]) -> "EpilogueMixin":
        """Device: the mixin with its ports bound to kernel arguments, in the order of `port_kinds`."""
        return cls(**dict(zip(cls.port_kinds(), values, strict=True)))

    @classmethod
    def scratch_elements(cls, config: GemmConfig) -> int:
        """Host: fp32 words of shared memory wanted per draining warpgroup, counted before stages are chosen."""
        return 0

    def begin(self, ctx: "EpilogueContext") -> Any:
        """Once per tile. Returns the mixin's state; may fill `ctx.scratch`, which is synchronised before `visit`."""
        return None

    def visit(self, ctx: "EpilogueContext", state: Any, frag: EpilogueFragment) -> Any:
        """Once per subtile; updates `frag.acc` in registers. Returns the new state."""
        return state

    def end(self, ctx: "EpilogueContext", state: Any) -> None:
        """Once per tile, after the last subtile: reductions leave here."""


@dataclass(frozen=True)
class EpilogueContext:
    """What a mixin may know about the tile being drained. Read-only, rebuilt per tile.

    problem:      batch or group index.
    row, col:     element coordinates, within the problem, of the CTA tile's first element.
    rows, cols:   M and N of the problem.
    thread:       index of this thread among the 128 of its warpgroup.
    slab_rows:    per slab owned by this warpgroup, its first row within the CTA tile.
    scratch:      fp32 shared memory of the current mixin (None if it asked for none).
    thread_slice: partitions a (64, tile_n) view the way the accumulator registers are.
    """

    problem: Int32
    row: Int32
    col: Int32
    rows: Int32
    cols: Int32
    thread: Int32
    slab_rows: tuple
    config: GemmConfig
    thread_slice: Any
    scratch: Optional[cute.Tensor] = None

    def with_scratch(self, scratch: Optional[cute.Tensor]) -> "EpilogueContext":
        return replace(self, scratch=scratch)

    def partition_slab(self, slab: cute.Tensor) -> cute.Tensor:
        """This thread's elements of a (64, tile_n) tensor, in accumulator order."""
        return self.thread_slice.partition_C(slab)

    @cute.jit
    def load_scalar(self, value) -> Float32:
        """A Scalar port as fp32, whichever form the user passed."""
        if cutlass.const_expr(isinstance(value, cute.Tensor)):
            return value[0].to(Float32)
        return Float32(value)

    @cute.jit
    def fill_scratch(self, vector: Any, first: Int32, limit: Int32, length: cutlass.Constexpr[int]):
        """Copy vector[first : first + length] of this problem into scratch as fp32; 0 beyond `limit`."""
        if cutlass.const_expr(isinstance(vector, VectorTable)):
            vector = vector.of_problem(self.problem, limit)
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
                        value = vector[first + index].to(Float32)
                scratch[index] = value


def bind_epilogue(
    specs: tuple[EpilogueOpSpec, ...], mixins: tuple[type[EpilogueMixin], ...], arguments: Optional[tuple]
) -> tuple[EpilogueMixin, ...]:
    """Device: split the flat argument tuple among the mixins and bind each."""
    arguments = arguments or ()
    bound, start = [], 0
    for spec, mixin in zip(specs, mixins, strict=True):
        values = zip(arguments[start : start + len(spec.ports)], spec.ports, strict=True)
        bound.append(mixin.bind(tuple(bind_port(value, port) for value, port in values)))
        start += len(spec.ports)
    return tuple(bound)


def bind_port(value: Any, port: PortSpec) -> Any:
    """Device: what a mixin sees of one kernel argument."""
    if port.source is PortSource.TABLE:
        return VectorTable(value, CUTE_DTYPE[port.dtype])
    return in_logical_order(value) if port.is_concat else value


def in_logical_order(value: cute.Tensor) -> cute.Tensor:
    """Device: a vector stored as two halves, so that indexing it reads the elements interleaved."""
    half = value.shape[-1] // 2
    layout = cute.make_layout(
        (*value.shape[:-1], (2, half)), stride=(*value.stride[:-1], (half * value.stride[-1], value.stride[-1]))
    )
    return cute.make_tensor(value.iterator, layout)


__all__ = [
    "ColVector",
    "EpilogueContext",
    "EpilogueFragment",
    "EpilogueMixin",
    "PortKind",
    "PortSource",
    "RowVector",
    "Scalar",
    "bind_epilogue",
]
