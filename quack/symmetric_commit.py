"""The commit policy of symmetric results: each subtile goes to its tile and, transposed, to the mirror of that tile."""

from dataclasses import replace

import cutlass.cute as cute

from .epilogue.protocol import EpilogueContext, EpilogueFragment
from .gemm_epilogue_plan import DefaultCommit, EpilogueIO, EpilogueState, store_fragments


class SymmetricCommit(DefaultCommit):
    """D is an output twice: `Mirror` puts the same fragment for D with its modes swapped. Goes with `SymmetricAdapter`.

    A diagonal tile is its own mirror and stored once.

    C may be D. An element of C is read by the one CTA that computes the pair it belongs to, and only on that pair's side of
    the diagonal, (i, j). That CTA writes it only after it has read it, subtile by subtile; the other side, (j, i), nobody
    reads. On the diagonal both sides are one tile, whose mirror would overwrite elements that are still to be read: one more
    reason to store it once.
    """

    @cute.jit
    def commit(
        self, ctx: EpilogueContext, io: EpilogueIO, frag: EpilogueFragment, state: EpilogueState
    ) -> EpilogueState:
        tile, mirror = io.outputs
        outputs = (tile, replace(mirror, is_wanted=ctx.tile_m != ctx.tile_n))
        return store_fragments(ctx, io, frag, [frag.acc, frag.tiles[0]], outputs, state)
