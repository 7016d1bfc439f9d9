"""A function of one element as a mixin: what `quack.pointwise` makes of a lambda (see `compose.pointwise`)."""

from collections.abc import Callable
from typing import Any, ClassVar

import cutlass.cute as cute
from cutlass import Float32

from ..gemm_port import PortKind
from .protocol import BoundPort, EpilogueContext, EpilogueFragment, EpilogueMixin

FIELD = "port_"  # of a parameter's port, so that parameters may be called anything


class Pointwise(EpilogueMixin):
    """acc[m, n] <- function(acc[m, n], ...), every other argument a port's value for that element."""

    is_pointwise = True
    function: ClassVar[Callable[..., Float32]]

    def ports(self) -> list[BoundPort]:
        """In the order of the function's parameters."""
        return [getattr(self, name) for name in self.port_kinds()]

    def begin(self, ctx: EpilogueContext) -> list[Any]:
        """The arguments that are the same for the whole tile, None for the others."""
        load = {PortKind.SCALAR: ctx.load_scalar, PortKind.INTEGER: ctx.load_integer}
        return [load[port.kind](port) if port.kind in load else None for port in self.ports()]

    def visit(self, ctx: EpilogueContext, state: list[Any], frag: EpilogueFragment) -> list[Any]:
        arguments = [
            self.registers(ctx, port, frag) if value is None else value for port, value in zip(self.ports(), state)
        ]
        for v in range(cute.size(frag.acc)):
            others = (a[v] if isinstance(a, cute.Tensor) else a for a in arguments)
            frag.acc[v] = Float32(self.function(frag.acc[v], *others))
        return state

    def registers(self, ctx: EpilogueContext, port: BoundPort, frag: EpilogueFragment) -> cute.Tensor:
        """The values of a vector or tile for the elements of the fragment."""
        return ctx.load_tile(port, frag) if port.kind is PortKind.TILE_INPUT else ctx.values(port, frag)
