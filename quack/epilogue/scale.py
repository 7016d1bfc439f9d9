"""Scaling the accumulator by a vector: each row by its own factor (a norm's rstd), or each column (a norm's weight)."""

from dataclasses import dataclass

from .protocol import ColVector, EpilogueContext, EpilogueFragment, EpilogueMixin, RowVector


@dataclass(frozen=True)
class ScaleRows(EpilogueMixin):
    """acc[m, n] <- acc[m, n] * scale[m]."""

    scale: ColVector

    def visit(self, ctx: EpilogueContext, state: None, frag: EpilogueFragment) -> None:
        frag.acc.store(frag.acc.load() * ctx.values(self.scale, frag).load())
        return state


@dataclass(frozen=True)
class ScaleColumns(EpilogueMixin):
    """acc[m, n] <- acc[m, n] * scale[n]."""

    scale: RowVector

    def visit(self, ctx: EpilogueContext, state: None, frag: EpilogueFragment) -> None:
        frag.acc.store(frag.acc.load() * ctx.values(self.scale, frag).load())
        return state
