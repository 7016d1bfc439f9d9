"""Tile schedulers: which output tile does this cluster compute next?

A scheduler splits the question in two.

1. A *cursor* is one Int32 that numbers the works of a launch, 0 <= cursor < total_works; any larger one is
   invalid. A work is one cluster of output tiles of one problem. The first cursor of a cluster is its id in
   the launch; the schedulers differ only in how it gets the next one:

   | scheduler                  | next cursor                     | known to       | clusters launched |
   |----------------------------|---------------------------------|----------------|-------------------|
   | SingleTileScheduler        | none                            | every thread   | one per work      |
   | StaticPersistentScheduler  | cursor + clusters               | every thread   | at most resident  |
   | DynamicPersistentScheduler | clusters + atomic_add(count, 1) | drawing thread | at most resident  |

2. `work_at` decodes a cursor into a `WorkDesc`: one pure function, the same for all schedulers and all roles.

Raster. Problems are outermost. Inside a problem the grid of cluster tiles is cut into *groups*: strips that
run along the raster dimension from end to end and are `max_swizzle_size` cluster tiles thick (fewer in the
last). Works walk a strip lengthwise, one cross-section after the other. So G*G consecutive works form a G x G
square and read 2*G strips of A and B, not G*G + 1. ALONG_N with size G is Triton's GROUP_M = G; size 1 is the
plain row (ALONG_N) or column (ALONG_M) order:

    ALONG_N, max_swizzle_size = 2, 3 x 4 cluster tiles      0  2  4  6
    (rows m, columns n; the last group is 1 thick)          1  3  5  7
                                                            8  9 10 11

Launch. Cluster shape (cluster_m, cluster_n, 1), grid (cluster_m * clusters, cluster_n, 1): the cluster id is
blockIdx.x // cluster_m, and a CTA sits at (blockIdx.x % cluster_m, blockIdx.y) in its cluster. Clusters are
counted along x, which may reach 2^31 - 1, for z ends at 65535.

Everything is Int32 arithmetic: total_works + clusters must stay below 2^31. All of it but `initial_cursor`,
`num_clusters`, `draw` and `retire`, which read special registers or memory, also runs as host code; the unit tests use
that. No method changes its receiver: a loop shows `cursor = scheduler.next_cursor(params, cursor)`, so the
DSL cannot drop the step.
"""

from dataclasses import dataclass
from typing import Any, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32

from .gemm_config import RasterOrder
from .gemm_work import WorkDesc


@dataclass(frozen=True)
class TileSchedulerParams:
    """Run-time numbers of one launch, in works (= cluster tiles). Made by `make_params` on the host, a kernel
    argument, read only by the scheduler. A divisor that would be 0 is 1, so that no decode divides by zero.
    """

    total_works: Int32
    works_per_problem: cute.FastDivmodDivisorV2
    works_per_group: cute.FastDivmodDivisorV2
    """Of a full group: thickness * length."""
    full_groups: Int32
    """Per problem; also the index of the ragged last group, if there is one."""
    tail_thickness: cute.FastDivmodDivisorV2
    """Thickness of the ragged last group."""


class TileScheduler:
    """Base: static facts, decode, launch grid. Subclasses say how a cluster gets its next cursor.

    A subclass has either `next_cursor(params, cursor) -> Int32`, which any thread can evaluate, or, if
    `is_broadcast`, `draw(counter, cursor) -> Int32`, which one warp per cluster evaluates for all, and `retire`.
    """

    is_broadcast: bool = False
    """True: one warp of the cluster draws and decodes works for all roles. False: each role does it by itself."""

    draws_from_stock: bool = False
    """Whether what one cluster draws is lost to others, so that it should not draw far ahead."""

    splits_k: bool = False
    """Whether several works may share an output tile; see `split_works`."""

    def __init__(
        self,
        cluster_shape_mn: tuple[int, int] = (1, 1),
        max_swizzle_size: int = 8,
        raster: RasterOrder = RasterOrder.ALONG_N,
    ):
        if min(cluster_shape_mn) < 1:
            raise ValueError(f"cluster_shape_mn must be at least (1, 1), got {cluster_shape_mn}")
        if max_swizzle_size < 1:
            raise ValueError(f"max_swizzle_size must be at least 1 cluster tile, got {max_swizzle_size}")
        self.cluster_m, self.cluster_n = cluster_shape_mn
        self.max_swizzle_size = max_swizzle_size
        self.raster = raster

    # NOTE: a scheduler has no run-time part. Saying so lets the DSL carry a local variable or parameter that
    # holds one through a dynamic loop; without it `scheduler.work_at(...)` there is an error,
    # `self.scheduler...` is not.

    def __extract_mlir_values__(self) -> list:
        return []

    def __new_from_mlir_values__(self, values: list) -> "TileScheduler":
        return self

    # Host

    @cute.jit
    def make_params(self, tiles_m: Int32, tiles_n: Int32, problems: Int32) -> TileSchedulerParams:
        """Host. tiles_m, tiles_n: CTA tiles per problem, ceil(extent / cta_tile). Any argument may be 0."""
        clusters_m = cute.ceil_div(Int32(tiles_m), self.cluster_m)
        clusters_n = cute.ceil_div(Int32(tiles_n), self.cluster_n)
        length, width = clusters_m, clusters_n
        if cutlass.const_expr(self.raster is RasterOrder.ALONG_N):
            length, width = clusters_n, clusters_m
        thickness = cutlass.min(width, self.max_swizzle_size)
        return TileSchedulerParams(
            total_works=length * width * problems,
            works_per_problem=_divisor(length * width),
            works_per_group=_divisor(length * thickness),
            full_groups=width // self.max_swizzle_size,
            tail_thickness=_divisor(width % self.max_swizzle_size),
        )

    @cute.jit
    def grid(self, params: TileSchedulerParams, max_active_clusters: Int32) -> tuple[Int32, int, int]:
        """Host. Launch grid in CTAs. max_active_clusters: how many clusters the device holds at once, >= 1.

        One cluster is launched even for no works, because a grid of zero CTAs is an error; it finds nothing
        to do.
        """
        clusters = cutlass.max(self._num_clusters_to_launch(params, Int32(max_active_clusters)), 1)
        return self.cluster_m * clusters, self.cluster_n, 1

    def _num_clusters_to_launch(self, params: TileSchedulerParams, max_active_clusters: Int32) -> Int32:
        return cutlass.min(params.total_works, max_active_clusters)

    # Device

    @cute.jit
    def total_works(self, params: TileSchedulerParams) -> Int32:
        """Device or host. Works of the launch."""
        return params.total_works

    @cute.jit
    def num_clusters(self) -> Int32:
        """Device, any thread. Number of clusters of this launch."""
        return cute.arch.grid_dim()[0] // self.cluster_m

    @cute.jit
    def initial_cursor(self) -> Int32:
        """Device, any thread. This cluster's first cursor, its id: no communication before the first work."""
        return cute.arch.block_idx()[0] // self.cluster_m

    def problem_of(self, params, ordinal: Int32) -> Int32:
        """Device or host. The problem that is worked through as the `ordinal`-th; see `problem_order`."""
        return ordinal

    def tile_of_cta(
        self, tile_m: Int32, tile_n: Int32, cta_in_cluster_m: Int32, cta_in_cluster_n: Int32
    ) -> tuple[Int32, Int32]:
        """Device or host. (tile_m, tile_n) of a CTA whose cluster's CTA (0, 0) has the given ones."""
        return tile_m + cta_in_cluster_m, tile_n + cta_in_cluster_n

    @cute.jit
    def work_at(
        self,
        params: TileSchedulerParams,
        cursor: Int32,
        cta_in_cluster_m: Int32,
        cta_in_cluster_n: Int32,
    ) -> WorkDesc:
        """Device or host, any thread, every role. The work of `cursor` >= 0 as one CTA of a cluster sees it.

        Invalid if cursor >= total_works. A CTA whose tile lies beyond the edge of the tile grid (cluster
        rounding) gets a valid work, see `WorkDesc`.
        """
        problem, in_problem = divmod(cursor, params.works_per_problem)
        group, in_group = divmod(in_problem, params.works_per_group)
        lengthwise = Int32(in_group // self.max_swizzle_size)
        across = Int32(in_group % self.max_swizzle_size)
        if group == params.full_groups:
            lengthwise = Int32(in_group // params.tail_thickness)
            across = Int32(in_group % params.tail_thickness)
        across += group * self.max_swizzle_size
        cluster_tile_m, cluster_tile_n = lengthwise, across
        if cutlass.const_expr(self.raster is RasterOrder.ALONG_N):
            cluster_tile_m, cluster_tile_n = across, lengthwise
        return WorkDesc(
            tile_m=Int32(cluster_tile_m * self.cluster_m + cta_in_cluster_m),
            tile_n=Int32(cluster_tile_n * self.cluster_n + cta_in_cluster_n),
            problem=Int32(self.problem_of(params, problem)),
            start=Int32(0),
            m=Int32(0),
            n=Int32(0),
            k=Int32(0),
            split=Int32(0),
            split_count=Int32(1),
            k_tile_begin=Int32(0),
            k_tile_count=Int32(0),
            slot=Int32(0),
            is_valid=Boolean(cursor < params.total_works),
        )


class SingleTileScheduler(TileScheduler):
    """Non-persistent: one cluster per work, which ends after it."""

    def _num_clusters_to_launch(self, params: TileSchedulerParams, max_active_clusters: Int32) -> Int32:
        return params.total_works

    @cute.jit
    def next_cursor(self, params: TileSchedulerParams, cursor: Int32) -> Int32:
        """Device or host. Always the first invalid cursor."""
        return params.total_works


class StaticPersistentScheduler(TileScheduler):
    """Persistent, no communication: cluster i of C takes the works i, i + C, i + 2C, ..."""

    @cute.jit
    def next_cursor(self, params: TileSchedulerParams, cursor: Int32, num_clusters: Optional[Int32] = None) -> Int32:
        """Device, any thread; or host, given num_clusters (None: read from the launch)."""
        if cutlass.const_expr(num_clusters is None):
            num_clusters = self.num_clusters()
        return cursor + num_clusters


class CounterDraw:
    """Scheduler mixin: a cluster draws its next cursor from a global counter when it can take one.

    Counter: one int32 in global memory, 0 before the first launch and, as shown here, 0 after each, so
    neither a launch nor a CUDA-graph replay needs a memset. Launches that may overlap need counters of their
    own; under PDL, draw after griddepcontrol.wait.

    INVARIANT (the kernel's part): a cluster draws exactly once for each valid cursor it holds, the first one
    included, and never after an invalid one, which it retires instead: `while work.is_valid: ...; cursor =
    draw(...)`, then, if it drew at all, `retire(cursor)`. It may draw ahead.

    Let T = total works, C = clusters launched; C > T is fine.
    - A draw is one atomic_add of 1, so draws return the tickets 0, 1, 2, ... without gaps, and ticket t is
      turned into cursor C + t. Cursors 0 .. C-1 are the cluster ids. So no cursor goes out twice and none is
      left out.
    - Each valid cursor causes one draw, so the launch makes exactly T draws, tickets 0 .. T-1. Since C >= 1,
      ticket T-1 is cursor C + T-1 >= T: it is invalid, and some cluster retires it.
    - So whoever retires ticket T-1 knows that its atomic_add was the last one of the launch. It stores 0, and
      the next access to the counter is the next launch's.
    - T = 0: no cluster holds a valid cursor and none draws; the counter stays 0.
    """

    is_broadcast = True
    draws_from_stock = True

    @cute.jit
    def draw(self, counter: Optional[cute.Tensor], cursor: Int32) -> Int32:
        """Device, one warp per cluster, once per valid cursor held. The next cursor, to be broadcast."""
        ticket = Int32(0)
        if cute.arch.lane_idx() == 0:
            ticket = cute.arch.atomic_add(counter.iterator, Int32(1), sem="relaxed", scope="gpu")
        return self.cursor_of_ticket(cute.arch.shuffle_sync(ticket, 0), self.num_clusters())

    @cute.jit
    def retire(self, params: Any, counter: Optional[cute.Tensor], cursor: Int32):
        """Device, one warp per cluster, once, with the invalid cursor that it drew."""
        is_last = self.is_last_ticket(params, cursor - self.num_clusters())
        if cute.arch.lane_idx() == 0 and is_last:
            cute.arch.store(counter.iterator, Int32(0), sem="relaxed", scope="gpu")

    @cute.jit
    def is_last_ticket(self, params: Any, ticket: Int32) -> Boolean:
        """Device or host. Whether no draw of this launch can come after this one."""
        return ticket == self.total_works(params) - 1

    @cute.jit
    def cursor_of_ticket(self, ticket: Int32, num_clusters: Int32) -> Int32:
        """Device or host. Tickets continue where the first cursors, the cluster ids, end."""
        return num_clusters + ticket


class DynamicPersistentScheduler(CounterDraw, TileScheduler):
    """Persistent, load balanced."""


def _divisor(value: Int32) -> cute.FastDivmodDivisorV2:
    return cute.FastDivmodDivisorV2(cutlass.max(Int32(value), 1))
