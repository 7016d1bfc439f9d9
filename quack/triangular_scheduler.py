"""Tile schedulers of symmetric results: each pair of mirror tiles is computed once.

D = D^T is covered by square CTA tiles, so tile (i, j) and tile (j, i) are one piece of work and a problem of T x T tiles
has T (T + 1) / 2 *pairs* {i, j}; the kernel stores a pair twice, a diagonal tile (i = j) once. A work is `cluster size`
pairs that share one index, its *line*, whose operand strip the cluster loads once by multicast:

    cluster (2, 1): line = tile_n, the CTAs differ in tile_m        cluster (1, 2): line = tile_m, they differ in tile_n

Either triangle will do: a pair of line c and *partner* p is mostly p <= c, but a few are p = c + 1 (see below).

Raster. Lines are cut into *strips* of `strip` lines; strip s begins with line f = s * strip. Its works are first the
rectangle of partners 0 .. f - 1, walked along the partners, one cross-section of all its lines after the other, then the
triangle of partners f .. within the strip, line after line. So at any time a strip's lines stay in L2 and each partner is
read by all of them. strip is max_swizzle_size CTA tiles, rounded up to a multiple of 4.

Triangle of a strip, relative to f. One CTA: pairs in the order (0, 0), (0, 1), (1, 1), (0, 2), ... (partner, line). Two CTAs:
lines c = 4 b + e, e = 0 .. 3. No work may be half empty, although line c has c + 1 pairs, an odd number for every second c.
Hence the lines 4 b to 4 b + 3 hand one pair on to the line before:

    line 4 b     (0, 1), (2, 3), ..., (4 b - 2, 4 b - 1), (4 b,     4 b + 1)    takes {4 b, 4 b + 1}
    line 4 b + 1 (0, 1), (2, 3), ..., (4 b - 2, 4 b - 1), (4 b + 1, 4 b + 2)    takes {4 b + 1, 4 b + 2}
    line 4 b + 2 (0, 1), (2, 3), ..., (4 b - 2, 4 b - 1), (4 b,     4 b + 2)    the one that is not a neighbour
    line 4 b + 3 (0, 1), (2, 3), ..., (4 b - 2, 4 b - 1), (4 b, 4 b + 1), (4 b + 2, 4 b + 3)

These are 8 b + 5 works for 16 b + 10 pairs. If T (T + 1) / 2 is odd, the second CTA of one work lies beyond the edge of the
tile grid, where TMA clips its loads and stores; otherwise every CTA of every work has a pair of its own.

Everything is exact: `triangle_root` corrects the float it starts from. T <= 65535 tiles, and total_works + clusters must
stay below 2^31. Host code, too; see `tile_scheduler` for cursors, launch and the DSL's rules.
"""

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32

from .gemm_config import RasterOrder
from .gemm_work import WorkDesc
from .tile_scheduler import (
    DynamicPersistentScheduler,
    SingleTileScheduler,
    StaticPersistentScheduler,
    TileScheduler,
)

CLUSTERS = ((1, 1), (2, 1), (1, 2))
MAX_TILES = 65535  # per dimension


@dataclass(frozen=True)
class TriangularParams:
    """Run-time numbers of one launch. A divisor that would be 0 is 1."""

    total_works: Int32
    tiles: Int32
    """T."""
    works_per_problem: cute.FastDivmodDivisorV2
    full_strips: Int32
    """Per problem; also the index of the ragged last strip, if there is one."""
    tail_lines: cute.FastDivmodDivisorV2
    """Lines of the ragged last strip."""


class Triangular(TileScheduler):
    """Scheduler mixin: the decode over pairs instead of tiles; how a cluster gets its next cursor stays."""

    def __init__(
        self,
        cluster_shape_mn: tuple[int, int] = (1, 1),
        max_swizzle_size: int = 8,
        raster: RasterOrder = RasterOrder.ALONG_N,
    ):
        """raster means nothing here: mirroring the result turns one order into the other."""
        super().__init__(cluster_shape_mn, max_swizzle_size, raster)
        if cluster_shape_mn not in CLUSTERS:
            raise ValueError(f"cluster_shape_mn={cluster_shape_mn} has no triangular schedule: one of {CLUSTERS}")
        self.ctas = self.cluster_m * self.cluster_n
        self.strip = min(-(-max_swizzle_size // 4) * 4, 65536)

    @cute.jit
    def make_params(self, tiles_m: Int32, tiles_n: Int32, problems: Int32) -> TriangularParams:
        """Host. tiles_m = tiles_n = T of each problem; any argument may be 0."""
        tiles = Int32(tiles_m)
        works = (triangle(tiles) + (self.ctas - 1)) // self.ctas
        return TriangularParams(
            total_works=works * problems,
            tiles=tiles,
            works_per_problem=cute.FastDivmodDivisorV2(cutlass.max(works, 1)),
            full_strips=tiles // self.strip,
            tail_lines=cute.FastDivmodDivisorV2(cutlass.max(tiles % self.strip, 1)),
        )

    @cute.jit
    def work_at(
        self, params: TriangularParams, cursor: Int32, cta_in_cluster_m: Int32, cta_in_cluster_n: Int32
    ) -> WorkDesc:
        """As in `TileScheduler`. The pair of this CTA: tile_m and tile_n are its indices, in either order."""
        problem, in_problem = divmod(cursor, params.works_per_problem)
        strip = triangle_root(Int32(in_problem) * self.ctas) // self.strip
        first = strip * self.strip
        # Both numbers are even where a work is two pairs: 4 divides `first`.
        in_strip = in_problem - triangle(first) // self.ctas
        cross_sections = first // self.ctas
        partner, line = Int32(in_strip // self.strip), Int32(in_strip % self.strip)
        if strip == params.full_strips:
            partner, line = Int32(in_strip // params.tail_lines), Int32(in_strip % params.tail_lines)
        in_triangle = in_strip - cross_sections * cutlass.min(self.strip, params.tiles - first)
        partner *= self.ctas
        if in_triangle >= 0:
            partner, line = self.in_triangle(in_triangle)
            partner += first
        line += first
        tile_m, tile_n = partner, line
        if cutlass.const_expr(self.cluster_n > 1):
            tile_m, tile_n = line, partner
        tile_m, tile_n = self.tile_of_cta(tile_m, tile_n, cta_in_cluster_m, cta_in_cluster_n)
        return WorkDesc(
            tile_m=tile_m,
            tile_n=tile_n,
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

    @cute.jit
    def in_triangle(self, index: Int32) -> tuple[Int32, Int32]:
        """(first partner, line) of a work in the triangle of a strip, both relative to the strip."""
        if cutlass.const_expr(self.ctas == 1):
            line = triangle_root(index)
            return index - triangle(line), line
        block = triangle_root(2 * index) // 4
        width = 2 * block + 1
        in_block = index - triangle(4 * block) // 2
        row = cutlass.min(in_block // width, 3)
        partner = 2 * (in_block - row * width)
        if row == 1 and partner == 4 * block:
            partner += 1
        return Int32(partner), Int32(4 * block + row)

    @cute.jit
    def tile_of_cta(
        self, tile_m: Int32, tile_n: Int32, cta_in_cluster_m: Int32, cta_in_cluster_n: Int32
    ) -> tuple[Int32, Int32]:
        """The neighbour, but for the one work of every fourth line that takes (4 b, 4 b + 2)."""
        if cutlass.const_expr(self.cluster_m > 1):
            step = cta_in_cluster_m
            if tile_n % 4 == 2 and tile_m == tile_n - 2:
                step = 2 * cta_in_cluster_m
            tile_m += step
        elif cutlass.const_expr(self.cluster_n > 1):
            step = cta_in_cluster_n
            if tile_m % 4 == 2 and tile_n == tile_m - 2:
                step = 2 * cta_in_cluster_n
            tile_n += step
        return Int32(tile_m), Int32(tile_n)


class TriangularSingleTileScheduler(Triangular, SingleTileScheduler):
    """Non-persistent."""


class TriangularStaticScheduler(Triangular, StaticPersistentScheduler):
    """Persistent, fixed stride."""


class TriangularDynamicScheduler(Triangular, DynamicPersistentScheduler):
    """Persistent, drawn from a counter."""


@cute.jit
def triangle(n: Int32) -> Int32:
    """0 + 1 + ... + n for 0 <= n <= 65535, without an intermediate value beyond the result."""
    n = Int32(n)
    return ((n + 1) // 2) * (n | 1)


@cute.jit
def triangle_root(index: Int32) -> Int32:
    """The largest n with triangle(n) <= index, 0 <= index < 2^31."""
    root = Int32(cute.math.sqrt(2.0 * Float32(index) + 0.25, fastmath=True) - 0.5)
    root = cutlass.min(root, MAX_TILES)
    # The float is wrong by less than 0.03 (relative error below 2^-21 of at most 65536), so by one at the most.
    above = index - triangle(root)
    if above < 0:
        root -= 1
    elif above > root:
        root += 1
    return Int32(root)
