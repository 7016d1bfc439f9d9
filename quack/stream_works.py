"""Works of stream-K: the k tiles of some output tiles are shared out evenly, so that no cluster idles in a last wave.

T tiles, K k tiles each, C clusters. T mod C tiles would leave most of a last wave empty. So the first S tiles are *streamed*:
their S K k tiles, in the order of the tiles, are cut into one range a cluster, of W = ceil(S K / C) k tiles (the last ranges may
be shorter: the longest is what takes time). A range takes part in one tile or several neighbouring ones. All other tiles are
whole works: cluster i takes S + i, S + i + C, ... as ever. S is a number of the launch (`runtime.stream_k`): T mod C + C, or
T mod C if that is all of T. With one tile a cluster more than the remainder, W >= K, so that no tile has more than two parts.

A cluster walks its range backwards, tile by tile, then its whole tiles:

    K = 4, C = 3, T = S = 5 (W = 7)      tile      0         1         2         3         4
                                         cluster   0 0 0 0   0 0 0 1   1 1 1 1   1 1 2 2   2 2 2 2
                                         order     second    1st 3rd   second    1st 2nd   first

So a cluster begins with the first part of a tile, or with a tile of its own; and the last part of a tile is the end of its
cluster's range, W k tiles after the start, when the first part (at most K <= W of them) has been in memory for long. That hides
the fix-up. Being first in time, not last, puts the streamed works' stores beside other works' multiplications.

Waiting. Parts are added up in their order (`StreamCombine`), by clusters with consecutive numbers: part p waits for part p - 1,
of the cluster before. That one's range goes on to the end of the part and beyond no tile, so the part is the *first* work of its
cluster. Hence a first work waits, if at all (its range begins inside the tile), for the first work of the cluster before; any
other waits for a first work too, and so for a chain of first works of clusters with lower numbers. Clusters start in the order
of their numbers, and nothing precedes a first work in its cluster: the lowest unfinished first work waits for nothing, so all
first works end, and then everything does. Clusters need not be resident all at once. (With ping-pong a warpgroup that waits
has handed over its turn to multiply, and waits for no turn of the epilogue; loads and C come in the order of the works.)

Bits depend on T, K and C, not on time: they say which parts a tile has.
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
from .problem_order import PermutedStaticScheduler
from .tile_scheduler import StaticPersistentScheduler, TileScheduler


class StreamArguments(NamedTuple):
    """What a launch takes besides. clusters: how many are launched, >= 1; tiles: how many are streamed, the first ones;
    k_tiles: of every tile; tiles * k_tiles + clusters < 2^31. workspace fp32, semaphores int32: see `split_works`."""

    clusters: Int32
    tiles: Int32
    k_tiles: Int32
    workspace: cute.Tensor
    semaphores: cute.Tensor


STREAM_ARGUMENTS = {
    "clusters": ArgumentKind.INT32,
    "streamed_tiles": ArgumentKind.INT32,
    "k_tiles": ArgumentKind.INT32,
    "workspace": ArgumentKind.FP32_VECTOR,
    "semaphores": ArgumentKind.INT32_VECTOR,
}


@dataclass(frozen=True)
class StreamParams:
    """tiles: params of the scheduler of whole tiles; by_...: divisors, share being the k tiles of a range; streamed: tiles;
    total: their k tiles; the rest as in `StreamArguments`."""

    tiles: Any
    by_clusters: cute.FastDivmodDivisorV2
    by_share: cute.FastDivmodDivisorV2
    by_k_tiles: cute.FastDivmodDivisorV2
    clusters: Int32
    share: Int32
    k_tiles: Int32
    streamed: Int32
    total: Int32
    workspace: cute.Tensor
    semaphores: cute.Tensor


class StreamPart(NamedTuple):
    """A work before its tile is decoded. tile: whose number it is for the scheduler of whole tiles; the rest: see `WorkDesc`."""

    tile: Int32
    split: Int32
    split_count: Int32
    k_tile_begin: Int32
    k_tile_count: Int32
    first_cluster: Int32


class StreamWorks(TileScheduler):
    """Scheduler mixin, before a persistent scheduler of whole tiles with a fixed stride. Cursor c is the work number c // C of
    cluster c mod C."""

    splits_k = True

    # NOTE: in a `cute.jit` method super() is that of the instance's class, not of this one. So those that need it are plain.

    def make_params(self, *grid: Any) -> StreamParams:
        """Host. What the scheduler of whole tiles takes, then `StreamArguments`."""
        stream = StreamArguments(*grid[-len(STREAM_ARGUMENTS) :])
        total = stream.tiles * stream.k_tiles
        share = cutlass.max(cute.ceil_div(total, stream.clusters), 1)
        return StreamParams(
            tiles=super().make_params(*grid[: -len(STREAM_ARGUMENTS)]),
            by_clusters=cute.FastDivmodDivisorV2(stream.clusters),
            by_share=cute.FastDivmodDivisorV2(share),
            by_k_tiles=cute.FastDivmodDivisorV2(cutlass.max(stream.k_tiles, 1)),
            clusters=stream.clusters,
            share=share,
            k_tiles=stream.k_tiles,
            streamed=stream.tiles,
            total=total,
            workspace=stream.workspace,
            semaphores=stream.semaphores,
        )

    def _num_clusters_to_launch(self, params: StreamParams, max_active_clusters: Int32) -> Int32:
        return params.clusters

    @cute.jit
    def cta_slot(self, cta_in_cluster_m: Int32, cta_in_cluster_n: Int32) -> Int32:
        """Which of a cluster's slots belongs to this CTA."""
        return cta_in_cluster_m * self.cluster_n + cta_in_cluster_n

    @cute.jit
    def part_at(self, params: StreamParams, cursor: Int32) -> StreamPart:
        """Device or host. The part of a tile, or the whole one, that a cursor is. A whole tile may lie behind the last."""
        number, cluster = divmod(cursor, params.by_clusters)
        begin = cutlass.min(cluster * params.share, params.total)
        end = cutlass.min(begin + params.share, params.total)
        last_tile, first_tile = cutlass.max(end - 1, 0) // params.by_k_tiles, begin // params.by_k_tiles
        touched = last_tile - first_tile + 1 if begin < end else Int32(0)
        tile = Int32(params.streamed + (number - touched) * params.clusters + cluster)
        split, split_count, first_cluster = Int32(0), Int32(1), Int32(0)
        k_begin, k_count = Int32(0), params.k_tiles
        if number < touched:
            tile = Int32(last_tile - number)
            origin = tile * params.k_tiles
            first_cluster = Int32(origin // params.by_share)
            split = cluster - first_cluster
            split_count = (origin + params.k_tiles - 1) // params.by_share - first_cluster + 1
            k_begin = cutlass.max(begin - origin, 0)
            k_count = cutlass.min(end - origin, params.k_tiles) - k_begin
        return StreamPart(tile, split, split_count, k_begin, k_count, first_cluster)

    def work_at(
        self, params: StreamParams, cursor: Int32, cta_in_cluster_m: Int32, cta_in_cluster_n: Int32
    ) -> WorkDesc:
        """The slot of a tile in parts is its first cluster's: no other tile's first part ends that cluster's range."""
        part = self.part_at(params, cursor)
        whole = super().work_at(params.tiles, part.tile, cta_in_cluster_m, cta_in_cluster_n)
        slot = part.first_cluster * (self.cluster_m * self.cluster_n) + self.cta_slot(
            cta_in_cluster_m, cta_in_cluster_n
        )
        return dataclasses.replace(
            whole,
            split=Int32(part.split),
            split_count=Int32(part.split_count),
            k_tile_begin=Int32(part.k_tile_begin),
            k_tile_count=Int32(part.k_tile_count),
            slot=Int32(slot),
        )


class StreamStaticScheduler(StreamWorks, StaticPersistentScheduler):
    """Equal problems."""


class StreamPermutedScheduler(StreamWorks, PermutedStaticScheduler):
    """Equal problems in another order."""


STREAM_SCHEDULER: dict[type[TileScheduler], type[TileScheduler]] = {
    StaticPersistentScheduler: StreamStaticScheduler,
    PermutedStaticScheduler: StreamPermutedScheduler,
}


class StreamProblems(ProblemAdapter):
    """Adapter mixin: takes `StreamArguments` as its last arguments and hands them to the scheduler (see `compose.split`)."""

    def scheduler_class(self, config: GemmConfig) -> type[TileScheduler]:
        return STREAM_SCHEDULER[super().scheduler_class(config)]

    def make_params(self, a: cute.Tensor, b: cute.Tensor, d: cute.Tensor, arguments: Optional[tuple]):
        assert arguments is not None
        return super().make_params(a, b, d, arguments[: -len(STREAM_ARGUMENTS)] or None)

    def scheduler_arguments(self, params: Any, arguments: Optional[tuple], tile_m: int, tile_n: int) -> tuple:
        assert arguments is not None
        own, stream = arguments[: -len(STREAM_ARGUMENTS)], arguments[-len(STREAM_ARGUMENTS) :]
        return (*super().scheduler_arguments(params, own or None, tile_m, tile_n), *stream)

    def k_range(self, params: Any, work: WorkDesc, tile_k: int) -> KRange:
        """Of a part or of a whole tile: the scheduler knows both."""
        return KRange(work.k_tile_begin, work.k_tile_count)
