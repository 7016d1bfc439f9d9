"""Gradients of activations: the accumulator is the gradient of postact, C the pre-activation.

With a row scale s (mixtures of experts weigh each token's postact by its router score) postact = s f(x), so that
dx = s dy f'(x), and the gradient of s is the sum of dy f(x) over the row (SonicMoE, arXiv 2512.14080).
"""

from dataclasses import dataclass
from operator import add
from typing import Any, NamedTuple, Optional

import cutlass.cute as cute
from cutlass import Float32

from ..activation import Activation, GatedActivation
from ..cute_activation import ACTIVATIONS, GATED_ACTIVATIONS
from ..cute_dtype import CUTE_DTYPE
from ..dsl.convert import pack_pair, unpack_pair
from ..dsl.schedule import behind, unknown_zero
from ..gemm_config import Dtype
from .protocol import ColVector, EpilogueContext, EpilogueFragment, EpilogueMixin, RowPartials, TileOutput


class ElementGradient(NamedTuple):
    """dx, as it is stored, and f(x)."""

    dx: Float32
    post: Float32


@dataclass(frozen=True, kw_only=True)
class ActivationBackward(EpilogueMixin):
    """acc <- scale acc f'(C); postact = scale f(C); reduction = row sums of acc f(C). Required: `gradient`."""

    postact: Optional[TileOutput] = None
    scale: Optional[ColVector] = None
    reduction: Optional[RowPartials] = None
    needs_c = True

    def gradient(self, x: Float32, dy: Float32) -> ElementGradient:
        """Of one element of C."""
        raise NotImplementedError

    def begin(self, ctx: EpilogueContext) -> Any:
        """The row sums."""
        return None if self.reduction is None else ctx.row_state(0.0)

    def visit(self, ctx: EpilogueContext, state: Any, frag: EpilogueFragment) -> Any:
        scales = None if self.scale is None else ctx.values(self.scale, frag)
        dx, values, products = (cute.make_rmem_tensor(frag.acc.shape, Float32) for _ in range(3))
        # Not before the sums of the subtile before: ptxas would keep the products of many, to add them up at leisure.
        sums = [] if self.reduction is None else [state[i] for i in range(cute.size(state))]
        zero = unknown_zero(ctx.rows + ctx.thread, *sums)
        for v in range(cute.size(frag.acc)):
            dy = behind(zero, frag.acc[v])
            dx[v], post = self.gradient(behind(zero, frag.c[v]), dy if scales is None else dy * scales[v])
            values[v] = post if scales is None else post * scales[v]
            products[v] = dy * post
        frag.acc = dx
        if self.postact is not None:
            frag.put(self.postact, values)
        if self.reduction is not None:
            state = ctx.reduce_rows(state, frag, ctx.within_columns(frag, products, 0.0), add)
        return state

    def end(self, ctx: EpilogueContext, state: Any) -> None:
        if self.reduction is not None:
            ctx.store_rows(self.reduction, ctx.share_rows(state, add))


@dataclass(frozen=True, kw_only=True)
class ActivateBackward(ActivationBackward):
    """Of `Activate`."""

    activation: Activation

    def gradient(self, x: Float32, dy: Float32) -> ElementGradient:
        return ElementGradient(*ACTIVATIONS[self.activation].backward(x, dy))


@dataclass(frozen=True, kw_only=True)
class GateBackward(ActivationBackward):
    """Of `Gate`. An element of C, and of D, is a 32-bit word of two 16-bit numbers, of which the low half is the gate and the
    high half the up projection, or their gradients. Words are moved as fp32, which keeps all bits.

    pairs, gradient_pairs: the dtypes of the halves of C and D.
    """

    activation: GatedActivation
    pairs: Dtype
    gradient_pairs: Dtype

    def gradient(self, x: Float32, dy: Float32) -> ElementGradient:
        gate, up = unpack_pair(x, CUTE_DTYPE[self.pairs])
        dg, du, post = GATED_ACTIVATIONS[self.activation].backward(gate, up, dy)
        return ElementGradient(pack_pair(dg, du, CUTE_DTYPE[self.gradient_pairs]), post)
