"""Works that are parts of an output tile: S works a tile, each of which adds up a share of the tile's k tiles.

Whatever the scheduler of whole tiles does (raster, search, permutation, draws), the works of a launch are numbered anew:
cursor c is part c mod S of what is cursor c // S there. The S parts of a tile thus follow one another. S is a number of the
launch, not of the compiled code.

Waiting. The parts of a tile wait for lower parts of it (see `split_k_combine`), so a launch must not depend on CTAs that
cannot start before others end: clusters may be fewer than the device holds, or share it with other kernels. Clusters start in
the order of their numbers and are made a multiple of S. Then no tile has parts among the first cursors of the clusters and
among later ones, and

- the first works wait only for works of clusters with lower numbers, which have started;
- static stride: each later round of cursors, C of them, is a number of whole tiles likewise;
- drawn works wait only for lower tickets, which running clusters have drawn.

Every cluster works on its cursors in increasing order. So the lowest unfinished cursor that a running cluster holds never
waits, and all end. (With ping-pong a warpgroup that waits has handed over its turn to multiply; loads and C come in the order
of the works.)
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from .gemm_config import GemmConfig
from .gemm_port import ArgumentKind
from .gemm_problem_adapter import KRange, ProblemAdapter
from .gemm_work import WorkDesc
from .problem_order import (
    PermutedDynamicScheduler,
    PermutedStaticScheduler,
    PermutedVarlenDynamicScheduler,
    PermutedVarlenStaticScheduler,
)
from .search_scheduler import (
    GroupedDynamicScheduler,
    GroupedStaticScheduler,
    VarlenDynamicScheduler,
    VarlenStaticScheduler,
)
from .tile_scheduler import DynamicPersistentScheduler, StaticPersistentScheduler, TileScheduler


class SplitArguments(NamedTuple):
    """What a launch takes besides: the parts of a tile, and where they meet.

    splits >= 1; workspace fp32, semaphores int32, all of them zero before and after every launch. Sizes: see
    `runtime.split_workspace`.
    """

    splits: Int32
    workspace: cute.Tensor
    semaphores: cute.Tensor


SPLIT_ARGUMENTS = {
    "splits": ArgumentKind.INT32,
    "workspace": ArgumentKind.FP32_VECTOR,
    "semaphores": ArgumentKind.INT32_VECTOR,
}


@dataclass(frozen=True)
class SplitParams:
    """tiles: params of the scheduler of whole tiles; by_splits divides by splits; the rest as in `SplitArguments`."""

    tiles: Any
    by_splits: cute.FastDivmodDivisorV2
    splits: Int32
    workspace: cute.Tensor
    semaphores: cute.Tensor


class SplitWorks(TileScheduler):
    """Scheduler mixin, before a persistent scheduler of whole tiles."""

    splits_k = True

    # NOTE: in a `cute.jit` method super() is that of the instance's class, not of this one. So those that need it are plain.

    def make_params(self, *grid: Any) -> SplitParams:
        """Host. What the scheduler of whole tiles takes, then `SplitArguments`."""
        split = SplitArguments(*grid[-len(SPLIT_ARGUMENTS) :])
        tiles = super().make_params(*grid[: -len(SPLIT_ARGUMENTS)])
        return SplitParams(tiles, cute.FastDivmodDivisorV2(split.splits), *split)

    def _num_clusters_to_launch(self, params: SplitParams, max_active_clusters: Int32) -> Int32:
        whole = cutlass.max(max_active_clusters // params.splits, 1) * params.splits
        tiles = super()._num_clusters_to_launch(params.tiles, max_active_clusters)
        return cutlass.min(tiles * params.splits, whole)

    def total_works(self, params: SplitParams) -> Int32:
        return super().total_works(params.tiles) * params.splits

    @cute.jit
    def cta_slot(self, cta_in_cluster_m: Int32, cta_in_cluster_n: Int32) -> Int32:
        """Which of a cluster's slots belongs to this CTA."""
        return cta_in_cluster_m * self.cluster_n + cta_in_cluster_n

    def work_at(self, params: SplitParams, cursor: Int32, cta_in_cluster_m: Int32, cta_in_cluster_n: Int32) -> WorkDesc:
        tile, split = divmod(cursor, params.by_splits)
        whole = super().work_at(params.tiles, tile, cta_in_cluster_m, cta_in_cluster_n)
        slot = tile * (self.cluster_m * self.cluster_n) + self.cta_slot(cta_in_cluster_m, cta_in_cluster_n)
        return with_split(whole, Int32(split), params.splits, Int32(slot))


def with_split(work: WorkDesc, split: Int32, split_count: Int32, slot: Int32) -> WorkDesc:
    """Part `split` of the tile that `work` is."""
    return dataclasses.replace(work, split=split, split_count=split_count, slot=slot)


class SplitStaticScheduler(SplitWorks, StaticPersistentScheduler):
    """Equal problems, fixed stride."""


class SplitDynamicScheduler(SplitWorks, DynamicPersistentScheduler):
    """Equal problems, drawn."""


class SplitVarlenStaticScheduler(SplitWorks, VarlenStaticScheduler):
    """Ragged M, fixed stride."""


class SplitVarlenDynamicScheduler(SplitWorks, VarlenDynamicScheduler):
    """Ragged M, drawn."""


class SplitGroupedStaticScheduler(SplitWorks, GroupedStaticScheduler):
    """Problems of their own, fixed stride."""


class SplitGroupedDynamicScheduler(SplitWorks, GroupedDynamicScheduler):
    """Problems of their own, drawn."""


class SplitPermutedStaticScheduler(SplitWorks, PermutedStaticScheduler):
    """Equal problems in another order, fixed stride."""


class SplitPermutedDynamicScheduler(SplitWorks, PermutedDynamicScheduler):
    """Equal problems in another order, drawn."""


class SplitPermutedVarlenStaticScheduler(SplitWorks, PermutedVarlenStaticScheduler):
    """Ragged M in another order, fixed stride."""


class SplitPermutedVarlenDynamicScheduler(SplitWorks, PermutedVarlenDynamicScheduler):
    """Ragged M in another order, drawn."""


SPLIT_SCHEDULER: dict[type[TileScheduler], type[TileScheduler]] = {
    StaticPersistentScheduler: SplitStaticScheduler,
    DynamicPersistentScheduler: SplitDynamicScheduler,
    VarlenStaticScheduler: SplitVarlenStaticScheduler,
    VarlenDynamicScheduler: SplitVarlenDynamicScheduler,
    GroupedStaticScheduler: SplitGroupedStaticScheduler,
    GroupedDynamicScheduler: SplitGroupedDynamicScheduler,
    PermutedStaticScheduler: SplitPermutedStaticScheduler,
    PermutedDynamicScheduler: SplitPermutedDynamicScheduler,
    PermutedVarlenStaticScheduler: SplitPermutedVarlenStaticScheduler,
    PermutedVarlenDynamicScheduler: SplitPermutedVarlenDynamicScheduler,
}


class SplitProblems(ProblemAdapter):
    """Adapter mixin: takes `SplitArguments` as its last arguments and hands them to the scheduler (see `compose.split`)."""

    def scheduler_class(self, config: GemmConfig) -> type[TileScheduler]:
        return SPLIT_SCHEDULER[super().scheduler_class(config)]

    def make_params(self, a: cute.Tensor, b: cute.Tensor, d: cute.Tensor, arguments: Optional[tuple]):
        assert arguments is not None
        return super().make_params(a, b, d, arguments[: -len(SPLIT_ARGUMENTS)] or None)

    def scheduler_arguments(self, params: Any, arguments: Optional[tuple], tile_m: int, tile_n: int) -> tuple:
        assert arguments is not None
        own, split = arguments[: -len(SPLIT_ARGUMENTS)], arguments[-len(SPLIT_ARGUMENTS) :]
        return (*super().scheduler_arguments(params, own or None, tile_m, tile_n), *split)

    @cute.jit
    def k_range(self, params: Any, work: WorkDesc, tile_k: int) -> KRange:
        """Shares differ by one k tile at most and may be empty. (work.split * k_tiles might overflow.)"""
        k_tiles = self.k_tiles(params, work, tile_k)
        share = k_tiles // work.split_count
        longer = k_tiles - share * work.split_count  # the first so many parts have one k tile more
        first = work.split * share + cutlass.min(work.split, longer)
        return KRange(first, share + Int32(work.split < longer))
