"""Tile scheduler for problems that share N and K and split M among themselves at offsets known only on the device.

Problem g owns rows cu_seqlens[g] .. cu_seqlens[g + 1]. A cursor numbers the cluster tiles of all problems, problem after
problem; which problem a cursor falls into is found by one warp, 32 problems at a time: every lane counts the works of one
problem, a prefix sum over the lanes says where each begins. The search costs about as much as a few k tiles, so it runs in
the drawing warp, ahead of the other roles (`is_broadcast`).

Inside a problem the raster is that of `tile_scheduler`.
"""

from dataclasses import dataclass
from typing import NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32

from .gemm_config import RasterOrder
from .gemm_work import WorkDesc
from .tile_scheduler import TileScheduler

WARP = 32


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


class VarlenStaticScheduler(TileScheduler):
    """Persistent: cluster i of C takes the works i, i + C, i + 2C, ..."""

    is_broadcast = True

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
    def draw(self, params: VarlenSchedulerParams, counter: Optional[cute.Tensor], cursor: Int32) -> Int32:
        """Device. The next cursor of this cluster."""
        return cursor + self.num_clusters()

    @cute.jit
    def work_at(
        self, params: VarlenSchedulerParams, cursor: Int32, cta_in_cluster_m: Int32, cta_in_cluster_n: Int32
    ) -> WorkDesc:
        """Device, all 32 lanes of a warp. The work of `cursor` >= 0 as one CTA of a cluster sees it."""
        lane = cute.arch.lane_idx()
        first_problem, first_work = Int32(0), Int32(0)  # of the 32 problems that are looked at
        problem, in_problem, start, extent = Int32(0), Int32(0), Int32(0), Int32(0)
        is_found = Boolean(False)
        while first_problem < params.problems and not is_found:
            mine = first_problem + lane
            begin, rows = Int32(0), Int32(0)
            if mine < params.problems:
                group = self.problem_of(params, mine)
                begin = params.cu_seqlens[group]
                rows = params.cu_seqlens[group + 1] - begin
            works = cute.ceil_div(rows, params.cluster_tile_m) * params.clusters_n
            ends = first_work + prefix_sum(works, lane)
            behind = cute.arch.popc(cute.arch.vote_ballot_sync(ends <= cursor))  # problems that end before the cursor
            is_found = behind < WARP
            if is_found:
                problem = self.problem_of(params, first_problem + behind)
                start = cute.arch.shuffle_sync(begin, behind)
                extent = cute.arch.shuffle_sync(rows, behind)
                in_problem = cursor - cute.arch.shuffle_sync(ends - works, behind)
            first_work = cute.arch.shuffle_sync(ends, WARP - 1)
            first_problem += WARP
        clusters_m = cute.ceil_div(extent, params.cluster_tile_m)
        cluster_tile_m, cluster_tile_n = self.place(in_problem, clusters_m, params.clusters_n)
        return WorkDesc(
            tile_m=Int32(cluster_tile_m * self.cluster_m + cta_in_cluster_m),
            tile_n=Int32(cluster_tile_n * self.cluster_n + cta_in_cluster_n),
            problem=Int32(problem),
            start=Int32(start),
            extent=Int32(extent),
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


@cute.jit
def prefix_sum(value: Int32, lane: Int32) -> Int32:
    """Inclusive prefix sum over the lanes of a warp."""
    for step in cutlass.range_constexpr(5):
        other = cute.arch.shuffle_sync_up(value, 1 << step, mask_and_clamp=0)
        if lane >= 1 << step:
            value = value + other
    return value
