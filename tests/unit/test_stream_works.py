"""Stream-K without a GPU: the scheduler's device code runs as host code, over thousands of shapes."""

from functools import cache

import cutlass
import cutlass.cute as cute
import numpy as np
import pytest
from cutlass import Int32

from quack.gemm_config import GemmConfig
from quack.runtime.spec import UnsupportedGemm
from quack.runtime.stream_k import StreamPlan, cluster_count, streamed_tiles
from quack.stream_works import StreamProblems, StreamStaticScheduler
from quack.tile_scheduler import StaticPersistentScheduler
from tests.unit.ledger import gemm, operands
from tests.unit.test_tile_scheduler import M, N, host_pointer

STATICS = [((1, 1), 8, N), ((2, 1), 4, M), ((1, 2), 3, N), ((2, 2), 5, M)]
FIELDS = 9
TILE_M, TILE_N, PROBLEM, SPLIT, COUNT, SLOT, K_FIRST, K_COUNT, VALID = range(FIELDS)


class Host:
    """Host entry points around one scheduler."""

    def __init__(self, kind, statics):
        self.scheduler = kind(*statics)

    @cute.jit
    def decode(
        self, out: cute.Pointer, facts: cute.Pointer, count: Int32, m: Int32, n: Int32, l: Int32, clusters: Int32,
        streamed: Int32, k_tiles: Int32,
    ):  # fmt: skip
        """out[cursor, cta] = the work; facts = grid.x for 10,000 clusters."""
        scheduler = self.scheduler
        params = scheduler.make_params(m, n, l, clusters, streamed, k_tiles, None, None)
        ctas = scheduler.cluster_m * scheduler.cluster_n
        out_t = cute.make_tensor(out, cute.make_layout((FIELDS, ctas, count)))
        cute.make_tensor(facts, cute.make_layout(1))[0] = scheduler.grid(params, Int32(10000))[0]
        for i in cutlass.range(count):
            for cta in cutlass.range_constexpr(ctas):
                cta_m, cta_n = cta % scheduler.cluster_m, cta // scheduler.cluster_m
                work = scheduler.work_at(params, i, Int32(cta_m), Int32(cta_n))
                k = StreamProblems().k_range(None, work, 64)
                fields = (
                    work.tile_m, work.tile_n, work.problem, work.split, work.split_count, work.slot, k.first, k.count,
                )  # fmt: skip
                for f in cutlass.range_constexpr(len(fields)):
                    out_t[f, cta, i] = fields[f]
                out_t[VALID, cta, i] = Int32(work.is_valid)


class HostTiles:
    """The same around the scheduler of whole tiles."""

    def __init__(self, statics):
        self.scheduler = StaticPersistentScheduler(*statics)

    @cute.jit
    def decode(self, out: cute.Pointer, count: Int32, m: Int32, n: Int32, l: Int32):
        params = self.scheduler.make_params(m, n, l)
        out_t = cute.make_tensor(out, cute.make_layout((3, count)))
        for i in cutlass.range(count):
            work = self.scheduler.work_at(params, i, Int32(0), Int32(0))
            out_t[0, i], out_t[1, i], out_t[2, i] = work.tile_m, work.tile_n, work.problem


@cache
def compiled(statics, kind=StreamStaticScheduler):
    pointer = host_pointer(np.zeros(1, np.int32))
    return cute.compile(Host(kind, statics).decode, pointer, pointer, *[Int32(1)] * 7)


@cache
def compiled_tiles(statics):
    return cute.compile(HostTiles(statics).decode, host_pointer(np.zeros(1, np.int32)), *[Int32(1)] * 4)


def tile_count(statics, shape):
    (cluster_m, cluster_n), *_ = statics
    return -(-shape[0] // cluster_m) * -(-shape[1] // cluster_n) * shape[2]


def decode(statics, shape, clusters, streamed, k_tiles, kind=StreamStaticScheduler):
    """(rounds, clusters, ctas, FIELDS): all cursors up to some behind the last work."""
    ctas = statics[0][0] * statics[0][1]
    rounds = tile_count(statics, shape) // clusters + 5
    out, facts = np.full((rounds * clusters, ctas, FIELDS), -1, np.int32), np.zeros(1, np.int32)
    compiled(statics, kind)(
        host_pointer(out), host_pointer(facts), rounds * clusters, *shape, clusters, streamed, k_tiles
    )
    assert facts[0] == clusters * statics[0][0]
    return out.reshape(rounds, clusters, ctas, FIELDS)


def tiles_in_order(statics, shape):
    out = np.full((tile_count(statics, shape), 3), -1, np.int32)
    compiled_tiles(statics)(host_pointer(out), len(out), *shape)
    return {tuple(tile): number for number, tile in enumerate(out.tolist())}


def check(statics, shape, clusters, k_tiles, kind=StreamStaticScheduler):
    """What the docstring of `stream_works` promises, and what the kernel relies on."""
    tiles = tile_count(statics, shape)
    streamed = streamed_tiles(tiles, clusters) if k_tiles else 0
    works = decode(statics, shape, clusters, streamed, k_tiles, kind)
    valid = works[..., 0, VALID] == 1
    assert (works[..., VALID] == works[..., :1, VALID]).all(), "all CTAs of a cluster end together"
    assert (valid[1:] <= valid[:-1]).all(), "a cluster's works end once"
    assert (works[..., [SPLIT, COUNT, K_FIRST, K_COUNT]] == works[..., :1, [SPLIT, COUNT, K_FIRST, K_COUNT]]).all()

    numbers, parts = tiles_in_order(statics, shape), {}
    for number, cluster in zip(*np.nonzero(valid)):
        work = works[number, cluster, 0]
        parts.setdefault(numbers[tuple(work[:3].tolist())], []).append((*work[SPLIT:VALID].tolist(), number, cluster))
    assert sorted(parts) == list(range(tiles)), "every tile"
    slots = set()
    for tile, found in parts.items():
        found.sort()
        assert [f[0] for f in found] == list(range(len(found))) and {f[1] for f in found} == {len(found)}
        begins, counts = [f[3] for f in found], [f[4] for f in found]
        assert begins == [sum(counts[:i]) for i in range(len(found))] and sum(counts) == k_tiles, "every k tile once"
        assert len(found) == 1 or (tile < streamed and min(counts) > 0)
        if streamed > clusters:
            assert len(found) <= 2
        for before, after in zip(found, found[1:]):
            assert before[6] == after[6] - 1 and before[5] == 0, "waits for a first work of the cluster before"
            assert after[5] == 0 or after[0] == len(found) - 1, "only last parts wait behind other works"
        if len(found) > 1:
            assert len({f[2] for f in found}) == 1 and found[0][2] not in slots
            slots.add(found[0][2])
    ctas = works.shape[2]
    assert all(0 <= slot and slot % ctas == 0 and slot < clusters * ctas for slot in slots)
    offsets = works[..., SLOT] - works[..., :1, SLOT]
    assert (np.sort(offsets[valid], -1) == np.arange(ctas)).all(), "CTAs have slots of their own"

    per_cluster = np.where(valid, works[..., 0, K_COUNT], 0).sum(0)
    whole = -(-(tiles - streamed) // clusters)
    assert per_cluster.max() == whole * k_tiles + -(-streamed * k_tiles // clusters), "the longest share"
    if streamed:
        assert (tiles - streamed) % clusters == 0
        assert per_cluster.max() <= -(-tiles * k_tiles // clusters), "no idle last wave"


@pytest.mark.parametrize("statics", STATICS, ids=str)
def test_every_k_tile_of_every_tile_once_and_waits_go_backwards(statics):
    rng = np.random.default_rng(STATICS.index(statics))
    edges = [
        ((1, 1, 1), 1, 1),
        ((1, 1, 1), 132, 5),
        ((1, 1, 1), 132, 1000),
        ((12, 11, 1), 132, 7),
        ((12, 12, 1), 132, 0),
    ]
    edges += [((23, 23, 1), 66, 1), ((12, 11, 2), 66, 64), ((7, 19, 1), 132, 64), ((133, 1, 1), 132, 3)]
    for shape, clusters, k_tiles in edges:
        check(statics, shape, clusters, k_tiles)
    for _ in range(600):
        shape = tuple(int(x) for x in rng.integers(1, rng.choice([4, 12, 30]), 2)) + (int(rng.integers(1, 4)),)
        clusters, k_tiles = int(rng.choice([1, 2, 3, 4, 33, 66, 132, rng.integers(1, 200)])), int(rng.integers(0, 200))
        check(statics, shape, clusters, k_tiles)


class Overlapping(StreamStaticScheduler):
    """Walks a range forwards, so that last parts come first."""

    @cute.jit
    def part_at(self, params, cursor: Int32):
        number, cluster = divmod(cursor, params.by_clusters)
        begin = cutlass.min(cluster * params.share, params.total)
        end = cutlass.min(begin + params.share, params.total)
        touched = (end - 1) // params.k_tiles - begin // params.k_tiles + 1
        forwards = (touched - 1 - number) * params.clusters + cluster if number < touched else cursor
        return super(StreamStaticScheduler, self).part_at(params, Int32(forwards))


def test_the_check_catches_a_wrong_order():
    with pytest.raises(AssertionError, match="waits for a first work"):
        check(STATICS[0], (5, 1, 1), 3, 4, Overlapping)


def test_the_example_of_the_docstring():
    works = decode(STATICS[0], (5, 1, 1), 3, streamed_tiles(5, 3), 4)[:, :, 0]
    seen = {
        (cluster, number): (work[TILE_M], work[K_FIRST], work[K_COUNT])
        for number, row in enumerate(works.tolist())
        for cluster, work in enumerate(row)
        if work[VALID]
    }
    assert seen == {
        (0, 0): (1, 0, 3), (0, 1): (0, 0, 4),
        (1, 0): (3, 0, 2), (1, 1): (2, 0, 4), (1, 2): (1, 3, 1),
        (2, 0): (4, 0, 4), (2, 1): (3, 2, 2),
    }  # fmt: skip


def test_how_many_tiles_are_streamed():
    assert [streamed_tiles(tiles, 4) for tiles in (1, 3, 4, 5, 7, 8, 9, 101)] == [1, 3, 0, 5, 7, 0, 5, 5]
    assert cluster_count(GemmConfig(128, 128, cluster_m=2, cluster_n=2), 132) == 30
    assert cluster_count(GemmConfig(128, 128, cluster_m=2, cluster_n=2), 2) == 1


def test_more_k_tiles_than_an_int32_counts_are_refused():
    class Device:
        sms, ordinal, is_emulated = 132, 0, False

    spec = gemm(GemmConfig(128, 128, cluster_m=1), operands())
    with pytest.raises(UnsupportedGemm, match="131 tiles of 16777216 are too many.*SplitKMode.SERIAL"):
        StreamPlan(spec, 131, 2**24, Device())
