"""The second half of a symmetric result."""

from dataclasses import dataclass

from .protocol import EpilogueContext, EpilogueFragment, EpilogueMixin, TileOutput


@dataclass(frozen=True)
class Mirror(EpilogueMixin):
    """Stores D a second time, to the tile on the other side of the diagonal. The last mixin: it sees the final values.

    transposed: D itself, described with its modes swapped, so that row m and column n of the tile are D[n, m].
    """

    transposed: TileOutput

    def visit(self, ctx: EpilogueContext, state: None, frag: EpilogueFragment) -> None:
        frag.put(self.transposed, frag.acc)
        return state
