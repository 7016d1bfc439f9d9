"""Further matrices of the shape of D: one more to add, one more to store."""

from dataclasses import dataclass
from typing import Optional

from .protocol import EpilogueContext, EpilogueFragment, EpilogueMixin, Scalar, TileInput, TileOutput


@dataclass(frozen=True)
class AddTile(EpilogueMixin):
    """acc <- acc + scale * tile; without scale, acc + tile."""

    tile: TileInput
    scale: Optional[Scalar] = None

    def begin(self, ctx: EpilogueContext):
        return None if self.scale is None else ctx.load_scalar(self.scale)

    def visit(self, ctx: EpilogueContext, state, frag: EpilogueFragment):
        tile = ctx.load_tile(self.tile, frag).load()
        frag.acc.store(frag.acc.load() + (tile if state is None else tile * state))
        return state


@dataclass(frozen=True)
class StoreTile(EpilogueMixin):
    """tile = acc, as it is at this place in the chain; acc stays."""

    tile: TileOutput

    def visit(self, ctx: EpilogueContext, state: None, frag: EpilogueFragment) -> None:
        frag.put(self.tile, frag.mapped(lambda x: x))
        return state
