"""Tile schedulers for problems of different sizes, which only the device knows.

A cursor numbers the cluster tiles of all problems, problem after problem. Which problem a cursor falls into is found by one
warp, 32 problems at a time: every lane measures one problem, a prefix sum over the lanes says where its works begin. The
search costs about as much as a few k tiles, so it runs in the drawing warp, ahead of the other roles (`is_broadcast`).

| scheduler | problem p | next cursor |
|---|---|---|
| VarlenStaticScheduler | rows cu_seqlens[p] .. cu_seqlens[p + 1], all of N | cursor + clusters |
| VarlenDynamicScheduler | the same | drawn from a counter |
| GroupedStaticScheduler | extents from row p of a table | cursor + clusters |
| GroupedDynamicScheduler | the same | drawn from a counter |

Inside a problem the raster is that of `tile_scheduler`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32

from .gemm_config import RasterOrder
from .gemm_work import WorkDesc
from .tile_scheduler import CounterDraw, TileScheduler

WARP = 32


class ProblemTiles(NamedTuple):
    """What one lane measures: `start`, `m`, `n` and `k` as in `WorkDesc`, and the cluster tiles of the problem."""

    start: Int32
    m: Int32
    n: Int32
    k: Int32
    clusters_m: Int32
    clusters_n: Int32


def no_tiles() -> ProblemTiles:
    """Of a problem that does not exist."""
    return ProblemTiles(*[Int32(0)] * 6)


class SearchScheduler(TileScheduler):
    """Base: the search. Subclasses measure one problem; params has `problems`, how many there are."""

    is_broadcast = True

    def measure(self, params: Any, problem: Int32) -> ProblemTiles:
        """Device, one lane. 0 <= problem < params.problems."""
        raise NotImplementedError

    @cute.jit
    def measure_or_nothing(self, params: Any, ordinal: Int32) -> ProblemTiles:
        """Device, one lane. The problem that is worked through at this place; beyond the last there are no tiles."""
        tiles = no_tiles()
        if ordinal < params.problems:
            tiles = self.measure(params, self.problem_of(params, ordinal))
        return tiles

    @cute.jit
    def total_works(self, params: Any) -> Int32:
        """Device, all 32 lanes of a warp. Works of the launch."""
        lane = cute.arch.lane_idx()
        total = Int32(0)
        for first in cutlass.range(0, params.problems, WARP, unroll=1):
            tiles = self.measure_or_nothing(params, first + lane)
            total += cute.arch.shuffle_sync(prefix_sum(tiles.clusters_m * tiles.clusters_n, lane), WARP - 1)
        return total

    @cute.jit
    def work_at(self, params: Any, cursor: Int32, cta_in_cluster_m: Int32, cta_in_cluster_n: Int32) -> WorkDesc:
        """Device, all 32 lanes of a warp. The work of `cursor` >= 0 as one CTA of a cluster sees it."""
        lane = cute.arch.lane_idx()
        first_problem, first_work = Int32(0), Int32(0)  # of the 32 problems that are looked at
        problem, in_problem = Int32(0), Int32(0)
        found = no_tiles()
        is_found = Boolean(False)
        while first_problem < params.problems and not is_found:
            tiles = self.measure_or_nothing(params, first_problem + lane)
            works = tiles.clusters_m * tiles.clusters_n
            ends = first_work + prefix_sum(works, lane)
            behind = cute.arch.popc(cute.arch.vote_ballot_sync(ends <= cursor))  # problems that end before the cursor
            is_found = behind < WARP
            if is_found:
                problem = self.problem_of(params, first_problem + behind)
                found = ProblemTiles(*(cute.arch.shuffle_sync(value, behind) for value in tiles))
                in_problem = cursor - cute.arch.shuffle_sync(ends - works, behind)
            first_work = cute.arch.shuffle_sync(ends, WARP - 1)
            first_problem += WARP
        cluster_tile_m, cluster_tile_n = self.place(in_problem, found.clusters_m, found.clusters_n)
        return WorkDesc(
            tile_m=Int32(cluster_tile_m * self.cluster_m + cta_in_cluster_m),
            tile_n=Int32(cluster_tile_n * self.cluster_n + cta_in_cluster_n),
            problem=Int32(problem),
            start=Int32(found.start),
            m=Int32(found.m),
            n=Int32(found.n),
            k=Int32(found.k),
            split=Int32(0),
            split_count=Int32(1),
            k_tile_begin=Int32(0),
            k_tile_count=Int32(0),
            slot=Int32(0),
            is_valid=is_found,
        )

    @cute.jit
    def place(self, in_problem: Int32, clusters_m: Int32, clusters_n: Int32) -> tuple[Int32, Int32]:
        """Device or host. Cluster tile (m, n) of the work `in_problem` of a problem with this many cluster tiles."""
        length, width = clusters_m, clusters_n
        if cutlass.const_expr(self.raster is RasterOrder.ALONG_N):
            length, width = clusters_n, clusters_m
        per_group = cutlass.max(length * self.max_swizzle_size, 1)
        group = in_problem // per_group
        in_group = in_problem - group * per_group
        first = group * self.max_swizzle_size
        thickness = cutlass.max(cutlass.min(width - first, self.max_swizzle_size), 1)
        lengthwise = in_group // thickness
        across = first + in_group - lengthwise * thickness
        if cutlass.const_expr(self.raster is RasterOrder.ALONG_N):
            return across, lengthwise
        return lengthwise, across


class StrideDraw:
    """Scheduler mixin: cluster i of C takes the works i, i + C, i + 2C, ..."""

    @cute.jit
    def draw(self, counter: Optional[cute.Tensor], cursor: Int32) -> Int32:
        """Device. The next cursor of this cluster."""
        return cursor + self.num_clusters()

    def retire(self, params: Any, counter: Optional[cute.Tensor], cursor: Int32):
        """Nothing to clean up."""


# ---- rows of one matrix ------------------------------------------------------------------------------------------------


class VarlenTileGrid(NamedTuple):
    """cu_seqlens (problems + 1,) int32, total_m rows in all; tile_m rows per CTA tile, tiles_n CTA tiles along N."""

    cu_seqlens: cute.Tensor
    total_m: Int32
    tile_m: int
    tiles_n: Int32


@dataclass(frozen=True)
class VarlenSchedulerParams:
    """Numbers of one launch. max_works bounds the works from above: only the device knows how many there are."""

    cu_seqlens: cute.Tensor
    problems: Int32
    clusters_n: Int32
    max_works: Int32
    cluster_tile_m: cutlass.Constexpr[int]


class VarlenScheduler(SearchScheduler):
    """Problems share N and K and split M among themselves."""

    @cute.jit
    def make_params(
        self, cu_seqlens: cute.Tensor, total_m: Int32, tile_m: int, tiles_n: Int32
    ) -> VarlenSchedulerParams:
        """Host. As `VarlenTileGrid`."""
        cluster_tile_m = tile_m * self.cluster_m
        problems = Int32(cute.size(cu_seqlens)) - 1
        clusters_n = cute.ceil_div(Int32(tiles_n), self.cluster_n)
        # Each problem has at most one tile that is not full.
        most_m = Int32(total_m) // cluster_tile_m + cutlass.min(problems, Int32(total_m))
        return VarlenSchedulerParams(cu_seqlens, problems, clusters_n, most_m * clusters_n, cluster_tile_m)

    def _num_clusters_to_launch(self, params: VarlenSchedulerParams, max_active_clusters: Int32) -> Int32:
        return cutlass.min(params.max_works, max_active_clusters)

    @cute.jit
    def measure(self, params: VarlenSchedulerParams, problem: Int32) -> ProblemTiles:
        start = params.cu_seqlens[problem]
        rows = params.cu_seqlens[problem + 1] - start
        clusters_m = cute.ceil_div(rows, params.cluster_tile_m)
        return ProblemTiles(start, rows, Int32(0), Int32(0), clusters_m, params.clusters_n)


class VarlenStaticScheduler(StrideDraw, VarlenScheduler):
    """Persistent."""


class VarlenDynamicScheduler(CounterDraw, VarlenScheduler):
    """Persistent, load balanced."""


# ---- matrices of their own ----------------------------------------------------------------------------------------------


class GroupedTileGrid(NamedTuple):
    """extents (problems, >= 3): M, N and K of every problem in columns 0 to 2; the CTA tile."""

    extents: cute.Tensor
    tile_m: int
    tile_n: int


@dataclass(frozen=True)
class GroupedSchedulerParams:
    """Numbers of one launch."""

    extents: cute.Tensor
    problems: Int32
    cluster_tile_m: cutlass.Constexpr[int]
    cluster_tile_n: cutlass.Constexpr[int]


class GroupedScheduler(SearchScheduler):
    """Problems have an M and N of their own."""

    @cute.jit
    def make_params(self, extents: cute.Tensor, tile_m: int, tile_n: int) -> GroupedSchedulerParams:
        """Host. As `GroupedTileGrid`."""
        problems = Int32(cute.size(extents, mode=[0]))
        return GroupedSchedulerParams(extents, problems, tile_m * self.cluster_m, tile_n * self.cluster_n)

    def _num_clusters_to_launch(self, params: GroupedSchedulerParams, max_active_clusters: Int32) -> Int32:
        return max_active_clusters

    @cute.jit
    def measure(self, params: GroupedSchedulerParams, problem: Int32) -> ProblemTiles:
        m, n, k = (Int32(params.extents[problem, i]) for i in range(3))
        clusters_m, clusters_n = cute.ceil_div(m, params.cluster_tile_m), cute.ceil_div(n, params.cluster_tile_n)
        return ProblemTiles(Int32(0), m, n, k, clusters_m, clusters_n)


class GroupedStaticScheduler(StrideDraw, GroupedScheduler):
    """Persistent."""


class GroupedDynamicScheduler(CounterDraw, GroupedScheduler):
    """Persistent, load balanced."""


@cute.jit
def prefix_sum(value: Int32, lane: Int32) -> Int32:
    """Inclusive prefix sum over the lanes of a warp."""
    for step in cutlass.range_constexpr(5):
        other = cute.arch.shuffle_sync_up(value, 1 << step, mask_and_clamp=0)
        if lane >= 1 << step:
            value = value + other
    return value
