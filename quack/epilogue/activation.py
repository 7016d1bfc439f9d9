"""Activations on the accumulator, plain and gated. Functions and their error bounds are in `cute_activation`."""

from dataclasses import dataclass
from typing import Optional

import cutlass.cute as cute

from ..activation import Activation, GatedActivation
from ..cute_activation import ACTIVATIONS, GATED_ACTIVATIONS
from ..dsl.schedule import behind, unknown_zero
from .protocol import EpilogueContext, EpilogueFragment, EpilogueMixin, TileOutput


@dataclass(frozen=True)
class Activate(EpilogueMixin):
    """acc <- f(acc); or, with `postact`, postact = f(acc) and acc stays."""

    activation: Activation
    postact: Optional[TileOutput] = None

    def visit(self, ctx: EpilogueContext, state: None, frag: EpilogueFragment) -> None:
        function = ACTIVATIONS[self.activation].forward
        # Otherwise ptxas computes those of later subtiles early, while it keeps what waits to be stored, and spills.
        zero = unknown_zero(ctx.rows + ctx.thread)
        values = frag.mapped(lambda x: function(behind(zero, x)))
        if self.postact is None:
            frag.acc = values
        else:
            frag.put(self.postact, values)
        return state


@dataclass(frozen=True)
class Gate(EpilogueMixin):
    """Columns 2j and 2j + 1 are gate and up projection: acc <- f(gate, up), half the columns; or postact, and acc stays."""

    activation: GatedActivation
    postact: Optional[TileOutput] = None

    def visit(self, ctx: EpilogueContext, state: None, frag: EpilogueFragment) -> None:
        values: cute.Tensor = ctx.layout.halve(frag.acc, GATED_ACTIVATIONS[self.activation].forward)
        if self.postact is None:
            frag.acc = values
        else:
            frag.put(self.postact, values)
        return state
