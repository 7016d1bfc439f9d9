"""The affine epilogue mixins: D = alpha * acc + beta * C + row bias + column bias, each term a mixin of its own."""

from dataclasses import dataclass

import cutlass.cute as cute
from cutlass import Float32

from ..gemm_config import GemmConfig
from .protocol import ColVector, EpilogueContext, EpilogueFragment, EpilogueMixin, RowVector, Scalar


@dataclass(frozen=True)
class ScaleAccumulator(EpilogueMixin):
    """acc <- alpha * acc."""

    alpha: Scalar

    def begin(self, ctx: EpilogueContext) -> Float32:
        return ctx.load_scalar(self.alpha)

    def visit(self, ctx: EpilogueContext, state: Float32, frag: EpilogueFragment) -> Float32:
        frag.acc.store(frag.acc.load() * state)
        return state


@dataclass(frozen=True)
class AddC(EpilogueMixin):
    """acc <- acc + C, C being the GEMM operand of that name (any output dtype)."""

    needs_c = True

    def visit(self, ctx: EpilogueContext, state: None, frag: EpilogueFragment) -> None:
        frag.acc.store(frag.acc.load() + frag.c.load())
        return state


@dataclass(frozen=True)
class AddScaledC(EpilogueMixin):
    """acc <- acc + beta * C."""

    beta: Scalar
    needs_c = True

    def begin(self, ctx: EpilogueContext) -> Float32:
        return ctx.load_scalar(self.beta)

    def visit(self, ctx: EpilogueContext, state: Float32, frag: EpilogueFragment) -> Float32:
        frag.acc.store(frag.acc.load() + frag.c.load() * state)
        return state


@dataclass(frozen=True)
class RowBias(EpilogueMixin):
    """acc[m, n] <- acc[m, n] + bias[n]."""

    bias: RowVector

    @classmethod
    def scratch_elements(cls, config: GemmConfig) -> int:
        return config.tile_n

    def begin(self, ctx: EpilogueContext) -> None:
        ctx.fill_scratch(self.bias, ctx.col, ctx.cols, ctx.config.tile_n)

    def visit(self, ctx: EpilogueContext, state: None, frag: EpilogueFragment) -> None:
        slab = cute.make_tensor(ctx.scratch.iterator, cute.make_layout((64, ctx.config.tile_n), stride=(0, 1)))
        frag.acc.store(frag.acc.load() + frag.gather(ctx.partition_slab(slab)).load())
        return state


@dataclass(frozen=True)
class ColBias(EpilogueMixin):
    """acc[m, n] <- acc[m, n] + bias[m]."""

    bias: ColVector

    @classmethod
    def scratch_elements(cls, config: GemmConfig) -> int:
        return config.tile_m

    def begin(self, ctx: EpilogueContext) -> None:
        ctx.fill_scratch(self.bias, ctx.row, ctx.rows, ctx.config.tile_m)

    def visit(self, ctx: EpilogueContext, state: None, frag: EpilogueFragment) -> None:
        slab = cute.make_tensor(
            ctx.scratch.iterator + ctx.slab_rows[frag.slab],
            cute.make_layout((64, ctx.config.tile_n), stride=(1, 0)),
        )
        frag.acc.store(frag.acc.load() + frag.gather(ctx.partition_slab(slab)).load())
        return state
