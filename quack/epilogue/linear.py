"""The affine epilogue mixins: D = alpha * acc + beta * C + row bias + column bias, each term a mixin of its own."""

from dataclasses import dataclass

from cutlass import Float32

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

    def visit(self, ctx: EpilogueContext, state: None, frag: EpilogueFragment) -> None:
        frag.acc.store(frag.acc.load() + ctx.values(self.bias, frag).load())
        return state


@dataclass(frozen=True)
class ColBias(EpilogueMixin):
    """acc[m, n] <- acc[m, n] + bias[m]."""

    bias: ColVector

    def visit(self, ctx: EpilogueContext, state: None, frag: EpilogueFragment) -> None:
        frag.acc.store(frag.acc.load() + ctx.values(self.bias, frag).load())
        return state
