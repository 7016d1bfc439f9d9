"""Reductions of the accumulator over rows and columns, one partial result per tile: the caller combines those.

Each is the sum, sum of squares, maximum or natural log-sum-exp of the fp32 values at its place in the chain of mixins; rows
and columns beyond the problem's last do not count. Partials of log-sum-exp are themselves log-sum-exps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cutlass.cute as cute
from cutlass import Float32

from ..dsl.fast_math import absolute, exp2, log2, maximum, multiply_add, select
from ..reduction import Reduction
from .protocol import ColPartials, EpilogueContext, EpilogueFragment, EpilogueMixin, RowPartials

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
CHUNK = 16  # registers that log-sum-exp takes in at once: few, to need few others, but each time rescales two sums


class Monoid(NamedTuple):
    """absorb(total, x) takes one element in, merge(total, other) another total; none is the total of nothing."""

    none: float
    absorb: Callable[[Float32, Float32], Float32]
    merge: Callable[[Float32, Float32], Float32]


def add(x: Float32, y: Float32) -> Float32:
    return x + y


def add_square(total: Float32, x: Float32) -> Float32:
    return multiply_add(x, x, total)


def finite_or_zero(x: Float32) -> Float32:
    """x; 0 if it is infinite or NaN, so that it can be subtracted from an infinity."""
    return select(absolute(x) < float("inf"), x, 0.0)


def log_add_exp(x: Float32, y: Float32) -> Float32:
    """log(e^x + e^y)."""
    base = finite_or_zero(maximum(x, y))
    return base + LN_2 * log2(exp2((x - base) * LOG2_E) + exp2((y - base) * LOG2_E))


MONOIDS = {
    Reduction.SUM: Monoid(0.0, add, add),
    Reduction.SUM_OF_SQUARES: Monoid(0.0, add_square, add),
    Reduction.MAX: Monoid(float("-inf"), maximum, maximum),
    Reduction.LOG_SUM_EXP: Monoid(float("-inf"), log_add_exp, log_add_exp),
}


@dataclass(frozen=True)
class RowReduce(EpilogueMixin):
    """partials[m, tile] = reduction of acc[m, columns of the tile]; acc stays. Log-sum-exp: see `RowLogSumExp`."""

    partials: RowPartials
    reduction: Reduction = Reduction.SUM

    def begin(self, ctx: EpilogueContext) -> cute.Tensor:
        return ctx.row_state(MONOIDS[self.reduction].none)

    def visit(self, ctx: EpilogueContext, state: cute.Tensor, frag: EpilogueFragment) -> cute.Tensor:
        # 0 is neutral to sums, also of squares.
        inside = ctx.within_columns(frag, frag.acc, MONOIDS[self.reduction].none)
        return ctx.reduce_rows(state, frag, inside, MONOIDS[self.reduction].absorb)

    def end(self, ctx: EpilogueContext, state: cute.Tensor) -> None:
        ctx.store_rows(self.partials, ctx.share_rows(state, MONOIDS[self.reduction].merge))


class LogSumExp(NamedTuple):
    """Per row that a thread holds elements of: the largest x, and the sum of e^(x - largest); base 0 if that is infinite."""

    largest: cute.Tensor
    sum: cute.Tensor


@dataclass(frozen=True)
class RowLogSumExp(EpilogueMixin):
    """partials[m, tile] = log(sum of e^acc[m, n] over the columns n of the tile); acc stays. One exponential an element."""

    partials: RowPartials

    def begin(self, ctx: EpilogueContext) -> LogSumExp:
        return LogSumExp(ctx.row_state(float("-inf")), ctx.row_state(0.0))

    def visit(self, ctx: EpilogueContext, state: LogSumExp, frag: EpilogueFragment) -> LogSumExp:
        inside = ctx.within_columns(frag, frag.acc, float("-inf"))
        elements = range(cute.size(inside))
        for first in elements[::CHUNK]:
            for slot in sorted({ctx.row_slot(frag, v) for v in elements}):
                self.absorb(
                    state, slot, [inside[v] for v in elements[first : first + CHUNK] if ctx.row_slot(frag, v) == slot]
                )
        return state

    def absorb(self, state: LogSumExp, slot: int, values: list[Float32]) -> None:
        """Take some elements of a row in."""
        largest = state.largest[slot]
        for x in values:
            largest = maximum(largest, x)
        base = -LOG2_E * finite_or_zero(largest)
        total = state.sum[slot] * exp2(multiply_add(state.largest[slot], LOG2_E, base))
        for x in values:
            total = total + exp2(multiply_add(x, LOG2_E, base))
        state.largest[slot], state.sum[slot] = largest, total

    def end(self, ctx: EpilogueContext, state: LogSumExp) -> None:
        total = cute.make_rmem_tensor(state.sum.shape, Float32)
        for slot in range(cute.size(total)):
            total[slot] = finite_or_zero(state.largest[slot]) + LN_2 * log2(state.sum[slot])
        ctx.store_rows(self.partials, ctx.share_rows(total, log_add_exp))


@dataclass(frozen=True)
class ColReduce(EpilogueMixin):
    """partials[block, n] = reduction of acc[rows of the block, n]; acc stays. A block: the rows one warpgroup drains of a tile."""

    partials: ColPartials
    reduction: Reduction = Reduction.SUM

    def visit(self, ctx: EpilogueContext, state: None, frag: EpilogueFragment) -> None:
        monoid = MONOIDS[self.reduction]
        values = ctx.within_rows(frag, frag.acc, monoid.none)
        if self.reduction is Reduction.SUM_OF_SQUARES:
            values.store(values.load() * values.load())
        ctx.reduce_cols(self.partials, frag, values, monoid.merge)
        return state

    def end(self, ctx: EpilogueContext, state: None) -> None:
        ctx.store_cols(self.partials, MONOIDS[self.reduction].merge)


@dataclass(frozen=True)
class ColLogSumExp(ColReduce):
    """`ColReduce` for log-sum-exp: what `RowLogSumExp` is of the transposed output."""

    reduction: Reduction = Reduction.LOG_SUM_EXP
