"""Triangular schedulers without a GPU: every pair of mirror tiles once, for thousands of shapes; see test_tile_scheduler."""

from functools import cache

import cutlass
import cutlass.cute as cute
import numpy as np
import pytest
from cutlass import Int32

from quack.gemm_config import RasterOrder
from quack.triangular_scheduler import (
    TriangularDynamicScheduler,
    TriangularSingleTileScheduler,
    TriangularStaticScheduler,
    triangle,
    triangle_root,
)
from tests.unit.test_tile_scheduler import compiled, decode, facts, host_pointer, run_dynamic_launch

N = RasterOrder.ALONG_N
CLUSTERS = ((1, 1), (2, 1), (1, 2))
# (cluster_shape_mn, max_swizzle_size, raster): strips of 4, 8 and 12 lines, and one strip for all
STATICS = [(cluster, swizzle, N) for cluster in CLUSTERS for swizzle in (1, 8, 12, 2**31 - 1)]


def pairs_of(statics, tiles, problems):
    """(works, CTAs, 3): tile_m, tile_n, problem of every CTA of all valid works; checks that nothing is valid behind."""
    total, _ = facts(TriangularStaticScheduler, statics, (tiles, tiles, problems), 1)
    works = decode(statics, (tiles, tiles, problems), np.arange(total + 5), TriangularStaticScheduler)
    works = works.reshape(total + 5, -1, 4)
    assert (works[:total, :, 3] == 1).all() and (works[total:, :, 3] == 0).all(), (statics, tiles)
    return works[:total, :, :3]


def check_pairs(statics, tiles, problems):
    """Each pair once; at most one CTA of a problem is beyond the edge; a cluster shares the operand it multicasts."""
    cluster_m, ctas = statics[0][0], statics[0][0] * statics[0][1]
    works = pairs_of(statics, tiles, problems)
    assert len(works) == -(-(tiles * (tiles + 1) // 2) // ctas) * problems, (statics, tiles)
    tile_m, tile_n, problem = np.moveaxis(works, -1, 0)
    shared = tile_n if cluster_m > 1 else tile_m
    assert (shared == shared[:, :1]).all() and (problem == problem[:, :1]).all()
    assert (np.diff(problem[:, 0]) >= 0).all()
    assert works[:, 0].max(initial=-1) < max(tiles, problems), "the first CTA always has a pair"
    inside = np.maximum(tile_m, tile_n) < tiles
    visits = np.zeros((problems, tiles, tiles), int)
    np.add.at(visits, (problem[inside], np.minimum(tile_m, tile_n)[inside], np.maximum(tile_m, tile_n)[inside]), 1)
    assert (visits == np.triu(np.ones((tiles, tiles), int))).all(), (statics, tiles, problems)
    return works


@pytest.mark.parametrize("statics", STATICS, ids=str)
def test_every_pair_once(statics):
    for tiles in range(70):
        check_pairs(statics, tiles, 1)
    rng = np.random.default_rng(STATICS.index(statics))
    for _ in range(200):
        check_pairs(statics, int(rng.integers(0, 40)), int(rng.integers(0, 6)))
    check_pairs(statics, 700, 1)


@pytest.mark.parametrize("statics", STATICS, ids=str)
def test_the_ring_can_derive_the_other_cta(statics):
    """`tile_of_cta` on what CTA (0, 0) got is what `work_at` gives: the ring broadcasts only the former."""

    class Derive:
        @cute.jit
        def __call__(self, out: cute.Pointer, first: cute.Pointer, count: Int32):
            scheduler = TriangularStaticScheduler(*statics)
            ctas = scheduler.cluster_m * scheduler.cluster_n
            out_t = cute.make_tensor(out, cute.make_layout((2, ctas, count)))
            first_t = cute.make_tensor(first, cute.make_layout((2, count)))
            for i in cutlass.range(count):
                for cta in cutlass.range_constexpr(ctas):
                    cta_m, cta_n = cta % scheduler.cluster_m, cta // scheduler.cluster_m
                    tile_m, tile_n = scheduler.tile_of_cta(first_t[0, i], first_t[1, i], Int32(cta_m), Int32(cta_n))
                    out_t[0, cta, i], out_t[1, cta, i] = tile_m, tile_n

    works = pairs_of(statics, 45, 1)[..., :2].astype(np.int32)
    first, out = np.ascontiguousarray(works[:, 0]), np.full_like(works, -1)
    cute.compile(Derive(), host_pointer(out), host_pointer(first), Int32(1))(
        host_pointer(out), host_pointer(first), len(works)
    )
    np.testing.assert_array_equal(out, works)


@pytest.mark.parametrize("statics", [STATICS[1], STATICS[5]], ids=str)
def test_order_within_a_strip(statics):
    """Rectangle before triangle, along the partners; so 64 consecutive pairs read few strips of A and B."""
    works = check_pairs(statics, 64, 1).reshape(-1, 3)[:, :2]
    lines, partners = works[:, 1], works[:, 0]
    strips = lines // 8
    assert (np.diff(strips) >= 0).all()
    for strip in range(8):
        rectangle = (partners[strips == strip] < strip * 8).astype(int)
        assert (np.diff(rectangle) <= 0).all(), "a pair of the rectangle follows one of the triangle"
        assert (np.diff(partners[strips == strip][: 64 * strip : statics[0][0]]) >= 0).all()
    for start in range(0, len(works) - 64, 64):
        touched = len(np.unique(lines[start : start + 64])) + len(np.unique(partners[start : start + 64]))
        assert touched <= 32, start


@cache
def host_roots():
    class Roots:
        @cute.jit
        def __call__(self, out: cute.Pointer, index: cute.Pointer, count: Int32):
            out_t = cute.make_tensor(out, cute.make_layout((2, count)))
            index_t = cute.make_tensor(index, cute.make_layout(count))
            for i in cutlass.range(count):
                root = triangle_root(index_t[i])
                out_t[0, i], out_t[1, i] = root, triangle(root)

    pointer = host_pointer(np.zeros(1, np.int32))
    return cute.compile(Roots(), pointer, pointer, Int32(1))


def test_triangle_root_is_exact_at_every_step():
    n = np.arange(65536, dtype=np.int64)
    steps = n * (n + 1) // 2
    index = np.unique(np.concatenate([steps - 1, steps, steps + 1, [2**31 - 1]]))
    index = index[(index >= 0) & (index < 2**31)]
    out, index32 = np.full((len(index), 2), -1, np.int32), index.astype(np.int32)
    host_roots()(host_pointer(out), host_pointer(index32), len(index))
    expected = np.searchsorted(steps, index, side="right") - 1
    np.testing.assert_array_equal(out[:, 0], expected)
    np.testing.assert_array_equal(out[:, 1], steps[expected])


@pytest.mark.parametrize("statics", [STATICS[0], STATICS[5], STATICS[11]], ids=str)
def test_decode_is_exact_up_to_the_largest_problem(statics):
    """Samples of T = 65535: in range, ordered by strip, and no pair twice; decoded pairs lead back to their cursor's strip."""
    (cluster_m, _), tiles = statics[0], 65535
    ctas = statics[0][0] * statics[0][1]
    total = -(-(tiles * (tiles + 1) // 2) // ctas)
    rng = np.random.default_rng(2)
    cursors = np.unique(np.concatenate([rng.integers(0, total, 4000), total - 1 - np.arange(2000), np.arange(2000)]))
    works = decode(statics, (tiles, tiles, 1), cursors, TriangularStaticScheduler).reshape(len(cursors), -1, 4)
    assert (works[..., 3] == 1).all()
    low, high = works[..., :2].min(-1).astype(np.int64), works[..., :2].max(-1).astype(np.int64)
    inside = high < tiles
    assert inside[:, 0].all() and (~inside).sum() <= 1 and (low >= 0).all()
    assert len(np.unique((high * 65536 + low)[inside])) == inside.sum()
    strip = min(-(-statics[1] // 4) * 4, 65536)
    line = works[:, 0, 1 if cluster_m > 1 or ctas == 1 else 0].astype(np.int64)
    first = line // strip * strip
    assert (cursors * ctas >= first * (first + 1) // 2).all()
    assert (cursors * ctas < (first + strip) * (first + strip + 1) // 2).all()


@pytest.mark.parametrize("statics", [STATICS[1], STATICS[5]], ids=str)
@pytest.mark.parametrize("scheduler_class", [TriangularSingleTileScheduler, TriangularStaticScheduler])
def test_clusters_share_the_works(scheduler_class, statics):
    rng = np.random.default_rng(4)
    for _ in range(200):
        tiles, problems, most = int(rng.integers(0, 30)), int(rng.integers(0, 4)), int(rng.choice([1, 2, 66, 5000]))
        shape = tiles, tiles, problems
        total, clusters = facts(scheduler_class, statics, shape, most)
        assert clusters == max(1, total if scheduler_class is TriangularSingleTileScheduler else min(total, most))
        visits = np.zeros(total + 1, np.int32)
        compiled(scheduler_class, statics, "walk")(host_pointer(visits), clusters, *shape)
        assert (visits[:total] == 1).all() and visits[total] == 0


def test_dynamic_draws_each_work_once():
    statics, rng, counter = STATICS[5], np.random.default_rng(5), 0
    for _ in range(200):
        shape = (tiles := int(rng.integers(0, 20)), tiles, int(rng.integers(0, 3)))
        total, clusters = facts(TriangularDynamicScheduler, statics, shape, int(rng.choice([1, 2, 16])))
        tickets = np.full((total + 1, 3), -1, np.int32)
        compiled(TriangularDynamicScheduler, statics, "tickets")(host_pointer(tickets), total + 1, clusters, *shape)
        visits, counter = run_dynamic_launch(total, clusters, tickets.tolist(), counter, rng)
        assert (visits == 1).all() and counter == 0


class SkipsAPair(TriangularStaticScheduler):
    """Forgets that the lines 4 b + 1 and 4 b + 2 take other partners than their neighbours."""

    @cute.jit
    def in_triangle(self, index: Int32) -> tuple[Int32, Int32]:
        block = triangle_root(2 * index) // 4
        width = 2 * block + 1
        in_block = index - triangle(4 * block) // 2
        row = cutlass.min(in_block // width, 3)
        return Int32(2 * (in_block - row * width)), Int32(4 * block + row)


def test_the_check_catches_a_wrong_decode(monkeypatch):
    monkeypatch.setattr("tests.unit.test_triangular_scheduler.TriangularStaticScheduler", SkipsAPair)
    with pytest.raises(AssertionError):
        check_pairs(STATICS[5], 6, 1)


@pytest.mark.parametrize("cluster", [(2, 2), (4, 1), (1, 4)])
def test_other_clusters_are_refused(cluster):
    with pytest.raises(ValueError, match="no triangular schedule"):
        TriangularStaticScheduler(cluster)
