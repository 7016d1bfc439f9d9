"""Works that are parts of tiles, without a GPU: the schedulers' device code runs as host code, over thousands of shapes."""

from functools import cache

import cutlass
import cutlass.cute as cute
import numpy as np
import pytest
from cutlass import Int32

from quack.split_pieces import PieceGrid, PieceStaticScheduler
from quack.split_works import SplitProblems, SplitStaticScheduler, with_split
from quack.tile_scheduler import StaticPersistentScheduler
from tests.unit.test_tile_scheduler import M, N, host_pointer

STATICS = [((1, 1), 8, N), ((2, 1), 4, M), ((1, 2), 3, N), ((2, 2), 5, M)]
PIECES = PieceGrid(slabs=2, columns=3)
FIELDS = 7  # tile_m, tile_n, problem, split, split_count, slot, is_valid


class Shares(SplitProblems):
    """An adapter of which only the number of k tiles matters: it is passed as params."""

    def k_tiles(self, params, work, tile_k):
        return params


class Host:
    """Host entry points around one scheduler."""

    def __init__(self, kind, statics):
        self.scheduler = kind(*statics)
        self.is_piece = kind is PieceStaticScheduler
        if self.is_piece:
            self.scheduler.pieces = PIECES

    @cute.jit
    def decode(self, out: cute.Pointer, facts: cute.Pointer, count: Int32, m: Int32, n: Int32, l: Int32, splits: Int32):
        """out[i, cta] = the work of cursor i; facts = total works, grid.x for 132 clusters."""
        scheduler = self.scheduler
        params = scheduler.make_params(m, n, l, splits, None, None)
        ctas = 1 if self.is_piece else scheduler.cluster_m * scheduler.cluster_n
        out_t = cute.make_tensor(out, cute.make_layout((FIELDS, ctas, count)))
        facts_t = cute.make_tensor(facts, cute.make_layout(2))
        facts_t[0], facts_t[1] = scheduler.total_works(params), scheduler.grid(params, Int32(132))[0]
        for i in cutlass.range(count):
            for cta in cutlass.range_constexpr(ctas):
                cta_m, cta_n = cta % scheduler.cluster_m, cta // scheduler.cluster_m
                work = scheduler.work_at(params, i, Int32(cta_m), Int32(cta_n))
                fields = (work.tile_m, work.tile_n, work.problem, work.split, work.split_count, work.slot)
                for f in cutlass.range_constexpr(len(fields)):
                    out_t[f, cta, i] = fields[f]
                out_t[FIELDS - 1, cta, i] = Int32(work.is_valid)


@cute.jit
def shares(out: cute.Pointer, k_tiles: Int32, splits: Int32):
    """out[split] = first, count."""
    out_t = cute.make_tensor(out, cute.make_layout((2, splits)))
    whole = StaticPersistentScheduler().work_at(StaticPersistentScheduler().make_params(1, 1, 1), Int32(0), 0, 0)
    for split in cutlass.range(splits):
        k = Shares().k_range(k_tiles, with_split(whole, Int32(split), splits, Int32(0)), 64)
        out_t[0, split], out_t[1, split] = k.first, k.count


@cache
def compiled(kind, statics):
    pointer = host_pointer(np.zeros(1, np.int32))
    return cute.compile(Host(kind, statics).decode, pointer, pointer, *[Int32(1)] * 5)


def decode(kind, statics, shape, splits, ctas):
    """(works, ctas, FIELDS) and the launched CTAs along x."""
    (cluster_m, cluster_n), *_ = statics
    tiles = -(-shape[0] // cluster_m) * -(-shape[1] // cluster_n) * shape[2]
    per_tile = splits if kind is SplitStaticScheduler else cluster_m * cluster_n * PIECES.slabs * PIECES.columns
    works = tiles * per_tile
    out, facts = np.full((works + 3, ctas, FIELDS), -1, np.int32), np.zeros(2, np.int32)
    compiled(kind, statics)(host_pointer(out), host_pointer(facts), works + 3, *shape, splits)
    assert facts[0] == works
    assert (out[:works, :, -1] == 1).all() and (out[works:, :, -1] == 0).all()
    return out[:works], int(facts[1])


def random_calls(seed, count):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield tuple(int(x) for x in rng.integers(1, 12, 2)) + (int(rng.integers(1, 4)),), int(rng.integers(1, 70))


@pytest.mark.parametrize("statics", STATICS, ids=str)
def test_every_part_of_every_tile_once(statics):
    """Parts of a tile follow one another, share its slot, and tiles do not share slots."""
    ctas = statics[0][0] * statics[0][1]
    for shape, splits in random_calls(STATICS.index(statics), 500):
        works, _ = decode(SplitStaticScheduler, statics, shape, splits, ctas)
        by_tile = works.reshape(-1, splits, ctas, FIELDS)
        assert (by_tile[..., :3] == by_tile[:, :1, :, :3]).all() and (by_tile[..., 5] == by_tile[:, :1, :, 5]).all()
        assert (by_tile[..., 3] == np.arange(splits)[None, :, None]).all() and (by_tile[..., 4] == splits).all()
        tiles = by_tile[:, 0].reshape(-1, FIELDS)
        assert len(np.unique(tiles[:, :3], axis=0)) == len(tiles)
        assert sorted(tiles[:, 5]) == list(range(len(tiles)))


@pytest.mark.parametrize("statics", STATICS, ids=str)
def test_clusters_are_a_multiple_of_the_parts(statics):
    """So that no tile has parts in two rounds: what waits, waits for clusters with lower numbers."""
    (cluster_m, cluster_n), *_ = statics
    for shape, splits in random_calls(7 + STATICS.index(statics), 500):
        works, grid = decode(SplitStaticScheduler, statics, shape, splits, cluster_m * cluster_n)
        clusters, rest = divmod(grid, cluster_m)
        assert rest == 0 and clusters % splits == 0 and splits <= clusters <= max(132 // splits, 1) * splits
        assert clusters == min(len(works), 132 // splits * splits)


@pytest.mark.parametrize("statics", STATICS, ids=str)
def test_pieces_cover_the_tiles_of_the_first_launch(statics):
    """Each 64-row piece once, as the last part, with the slot of the CTA tile it lies in."""
    ctas = statics[0][0] * statics[0][1]
    for shape, splits in random_calls(14 + STATICS.index(statics), 100):
        tiles, _ = decode(SplitStaticScheduler, statics, shape, splits, ctas)
        slot_of = {tuple(tile[:3]): tile[5] for tile in tiles[::splits].reshape(-1, FIELDS)}
        pieces = decode(PieceStaticScheduler, statics, shape, splits, 1)[0][:, 0]
        assert len(np.unique(pieces[:, :3], axis=0)) == len(pieces) == len(slot_of) * PIECES.slabs * PIECES.columns
        for tile_m, tile_n, problem, split, split_count, slot, _ in pieces[:: max(1, len(pieces) // 64)]:
            assert slot == slot_of[tile_m // PIECES.slabs, tile_n // PIECES.columns, problem]
            assert split == splits - 1 and split_count == splits


def test_shares_partition_the_k_tiles():
    """Also where a product of split and k tiles would not fit 32 bits, and where parts are empty."""
    function = cute.compile(shares, host_pointer(np.zeros(1, np.int32)), Int32(1), Int32(1))
    rng = np.random.default_rng(3)
    calls = [(0, 5), (1, 1), (3, 7), (2**25, 132), (2**31 - 1, 132)]
    calls += [(int(rng.integers(0, 3000)), int(rng.integers(1, 133))) for _ in range(3000)]
    for k_tiles, splits in calls:
        out = np.full((splits, 2), -1, np.int32)
        function(host_pointer(out), k_tiles, splits)
        firsts, counts = out[:, 0].astype(np.int64), out[:, 1].astype(np.int64)
        assert firsts[0] == 0 and (firsts[1:] == firsts[:-1] + counts[:-1]).all() and firsts[-1] + counts[-1] == k_tiles
        assert counts.max() - counts.min() <= 1 and counts.min() >= 0
