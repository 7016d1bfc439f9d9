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
        if self.postact is None:
            frag.acc = frag.mapped(function)
        else:
            # Otherwise ptxas computes those of later subtiles early, while it must keep acc as well, and spills.
            zero = unknown_zero(ctx.rows + ctx.thread)
            frag.put(self.postact, frag.mapped(lambda x: function(behind(zero, x))))
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
