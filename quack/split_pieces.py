"""Works of the launch that adds up partial tiles (`SplitKMode.SEPARATE`): pieces, smaller than the tiles that were split.

A few large tiles would leave most of the device idle while partial sums are read. Each piece of a CTA tile of the first
launch, one slab high and tile_n wide, is a work: cursor c is piece c mod P of the cluster tile c // P there, and what finds
that tile (raster, search, permutation) is the first launch's scheduler. Nothing waits for anything.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from .epilogue.fragment_layout import FragmentLayout
from .gemm_config import GemmConfig
from .gemm_work import WorkDesc
from .problem_order import PermutedStaticScheduler, PermutedVarlenStaticScheduler
from .search_scheduler import GroupedStaticScheduler, VarlenStaticScheduler
from .split_works import SplitProblems, SplitWorks, with_split
from .tile_scheduler import StaticPersistentScheduler, TileScheduler


class PieceGrid(NamedTuple):
    """Pieces of a CTA tile: rows of one slab, columns of the second launch's tile_n."""

    slabs: int
    columns: int


class PieceWorks(SplitWorks):
    """Scheduler mixin. The scheduler is that of the first launch, cluster shape included."""

    pieces: PieceGrid

    @property
    def works_per_tile(self) -> int:
        return self.cluster_m * self.cluster_n * self.pieces.slabs * self.pieces.columns

    def grid(self, params: Any, max_active_clusters: Int32) -> tuple[Int32, int, int]:
        """Host. A CTA a work, or as many as the device holds."""
        tiles = super(SplitWorks, self)._num_clusters_to_launch(params.tiles, max_active_clusters)
        return cutlass.max(cutlass.min(tiles * self.works_per_tile, max_active_clusters), 1), 1, 1

    @cute.jit
    def num_clusters(self) -> Int32:
        return cute.arch.grid_dim()[0]

    @cute.jit
    def initial_cursor(self) -> Int32:
        return cute.arch.block_idx()[0]

    def total_works(self, params: Any) -> Int32:
        return super(SplitWorks, self).total_works(params.tiles) * self.works_per_tile

    def work_at(self, params: Any, cursor: Int32, cta_in_cluster_m: Int32, cta_in_cluster_n: Int32) -> WorkDesc:
        """The piece, as the last part of its tile: it finishes it."""
        rest, column = cursor // self.pieces.columns, cursor % self.pieces.columns
        rest, slab = rest // self.pieces.slabs, rest % self.pieces.slabs
        rest, cta_n = rest // self.cluster_n, rest % self.cluster_n
        tile, cta_m = rest // self.cluster_m, rest % self.cluster_m
        whole = super(SplitWorks, self).work_at(params.tiles, Int32(tile), Int32(cta_m), Int32(cta_n))
        slot = tile * (self.cluster_m * self.cluster_n) + self.cta_slot(Int32(cta_m), Int32(cta_n))
        piece = dataclasses.replace(
            whole,
            tile_m=Int32(whole.tile_m * self.pieces.slabs + slab),
            tile_n=Int32(whole.tile_n * self.pieces.columns + column),
        )
        return with_split(piece, params.splits - 1, params.splits, Int32(slot))


class PieceStaticScheduler(PieceWorks, StaticPersistentScheduler):
    """Equal problems."""


class PieceVarlenScheduler(PieceWorks, VarlenStaticScheduler):
    """Ragged M."""


class PieceGroupedScheduler(PieceWorks, GroupedStaticScheduler):
    """Problems of their own."""


class PiecePermutedScheduler(PieceWorks, PermutedStaticScheduler):
    """Equal problems in another order."""


class PiecePermutedVarlenScheduler(PieceWorks, PermutedVarlenStaticScheduler):
    """Ragged M in another order."""


PIECE_SCHEDULER: dict[type[TileScheduler], type[PieceWorks]] = {
    StaticPersistentScheduler: PieceStaticScheduler,
    VarlenStaticScheduler: PieceVarlenScheduler,
    GroupedStaticScheduler: PieceGroupedScheduler,
    PermutedStaticScheduler: PiecePermutedScheduler,
    PermutedVarlenStaticScheduler: PiecePermutedVarlenScheduler,
}


class PieceProblems(SplitProblems):
    """Adapter mixin of the second launch (see `compose.pieces`). pieces_of: the configuration of the first."""

    pieces_of: ClassVar[GemmConfig]
    layout_class: ClassVar[type[FragmentLayout]]  # the arch kernel's

    def make_scheduler(self) -> TileScheduler:
        tiles, config = self.pieces_of, self.config
        kind = PIECE_SCHEDULER[super(SplitProblems, self).scheduler_class(config)]
        scheduler = kind((tiles.cluster_m, tiles.cluster_n), tiles.max_swizzle_size, tiles.raster)
        scheduler.pieces = PieceGrid(tiles.cta_tile_m // self.layout_class.slab_m, tiles.tile_n // config.tile_n)
        return scheduler

    def scheduler_arguments(self, params: Any, arguments: Optional[tuple], tile_m: int, tile_n: int) -> tuple:
        return super().scheduler_arguments(params, arguments, self.pieces_of.cta_tile_m, self.pieces_of.tile_n)
