"""The search of the ragged and grouped schedulers: thousands of random inputs, every tile once.

The search is a warp's work, so it runs in the emulator: one launch for all inputs of a kind, one warp per (input, cursor).
"""

from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
import pytest
import torch
from cutlass import Int32
from cutlass.cute import runtime as cute_runtime

import quack
from quack.gemm_config import RasterOrder
from quack.search_scheduler import GroupedStaticScheduler, SearchScheduler, VarlenStaticScheduler

TILE_M, TILE_N, TILES_N = 64, 32, 3
INPUTS = 170  # per kind, cluster shape and raster
MOST_PROBLEMS = 70  # more than two times 32, what the search looks at together


class Visits:
    """out[cursor] = (tile_m, tile_n, problem, is_valid, total works), as `origins[cursor]`, (input, cursor), asks."""

    def __init__(self, scheduler: SearchScheduler):
        self.scheduler = scheduler

    @cute.jit
    def __call__(self, inputs: cute.Tensor, sizes: cute.Tensor, origins: cute.Tensor, out: cute.Tensor, stream):
        grid = (cute.size(out, mode=[0]), 1, 1)
        self.kernel(inputs, sizes, origins, out).launch(grid=grid, block=(32, 1, 1), stream=stream)

    @cute.kernel
    def kernel(self, inputs: cute.Tensor, sizes: cute.Tensor, origins: cute.Tensor, out: cute.Tensor):
        block = cute.arch.block_idx()[0]
        which, cursor = origins[block, 0], origins[block, 1]
        params = self.params(inputs, sizes, which)
        work = self.scheduler.work_at(params, cursor, Int32(0), Int32(0))
        total = self.scheduler.total_works(params)
        if cute.arch.lane_idx() == 0:
            values = (work.tile_m, work.tile_n, work.problem, Int32(work.is_valid), total)
            for i in cutlass.range_constexpr(len(values)):
                out[block, i] = values[i]

    @cute.jit
    def params(self, inputs: cute.Tensor, sizes: cute.Tensor, which: Int32) -> Any:
        """inputs (input, problem + 1, 3): an offset, or M, N and K, of each problem; sizes (input,): its problems."""
        rows = inputs[which, None, None]
        if cutlass.const_expr(isinstance(self.scheduler, VarlenStaticScheduler)):
            offsets = cute.make_tensor(rows.iterator, cute.make_layout(sizes[which] + 1, stride=rows.stride[0]))
            return self.scheduler.make_params(offsets, offsets[sizes[which]], TILE_M, Int32(TILES_N))
        extents = cute.make_tensor(rows.iterator, cute.make_layout((sizes[which], 3), stride=rows.stride))
        return self.scheduler.make_params(extents, TILE_M, TILE_N)


class Problems(NamedTuple):
    """One input: (M, N) of every problem."""

    extents: list[tuple[int, int]]

    def tiles(self, cluster: tuple[int, int]) -> set[tuple[int, int, int]]:
        """First tile (m, n) of every cluster tile, and its problem."""
        return {
            (m, n, problem)
            for problem, (rows, cols) in enumerate(self.extents)
            for m in range(0, -(-rows // (TILE_M * cluster[0])) * cluster[0], cluster[0])
            for n in range(0, -(-cols // (TILE_N * cluster[1])) * cluster[1], cluster[1])
        }


def draw(kind: type[SearchScheduler], generator: torch.Generator) -> Problems:
    """Random extents; about half of the problems are empty, and one input in eight has many problems."""

    def number(most: int) -> int:
        return int(torch.randint(0, most + 1, (), generator=generator))

    count = number(4) if number(7) else number(MOST_PROBLEMS)
    columns = TILE_N * TILES_N
    return Problems(
        [
            (number(200) * number(1), columns if kind is VarlenStaticScheduler else number(120))
            for _ in range(max(count, 1))
        ]
    )


@pytest.mark.one_in(2)
@pytest.mark.parametrize("cluster", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("raster", list(RasterOrder))
@pytest.mark.parametrize("kind", [VarlenStaticScheduler, GroupedStaticScheduler])
def test_every_tile_is_visited_once(kind: type[SearchScheduler], raster: RasterOrder, cluster: tuple[int, int]):
    generator = torch.Generator().manual_seed(cluster[0] + 2 * cluster[1])
    problems = [draw(kind, generator) for _ in range(INPUTS)]
    inputs = torch.zeros(INPUTS, MOST_PROBLEMS + 1, 3, dtype=torch.int32)
    origins = []
    for i, drawn in enumerate(problems):
        extents = torch.tensor(drawn.extents, dtype=torch.int32)
        if kind is VarlenStaticScheduler:
            inputs[i, 1 : len(extents) + 1, 0] = extents[:, 0].cumsum(0)
        else:
            inputs[i, : len(extents), :2] = extents
        origins += [(i, cursor) for cursor in range(len(drawn.tiles(cluster)) + 2)]
    sizes = torch.tensor([len(drawn.extents) for drawn in problems], dtype=torch.int32)
    out = torch.full((len(origins), 5), -1, dtype=torch.int32)

    def fake(shape: tuple[Any, ...], stride: tuple[int, ...]) -> Any:
        return cute_runtime.make_fake_tensor(cutlass.Int32, shape, stride, assumed_align=4)

    any_size = cute.sym_int()
    row = (3 * (MOST_PROBLEMS + 1), 3, 1)
    fakes = [fake((cute.sym_int(), MOST_PROBLEMS + 1, 3), row), fake((cute.sym_int(),), (1,))]
    fakes += [fake((any_size, 2), (2, 1)), fake((any_size, 5), (5, 1))]
    stream = cute_runtime.make_fake_stream(use_tvm_ffi_env_stream=True)
    visits = Visits(kind(cluster, 3, raster))
    compiled = cute.compile(visits, *fakes, stream, options=quack.emulator.compile_options("sm90"))
    quack.emulator.launch(compiled, inputs, sizes, torch.tensor(origins, dtype=torch.int32), out, sms=64)

    first = 0
    for i, drawn in enumerate(problems):
        expected = drawn.tiles(cluster)
        rows = out[first : first + len(expected) + 2]
        first += len(rows)
        seen = [tuple(r[:3]) for r in rows.tolist() if r[3]]
        assert len(seen) == len(expected) and set(seen) == expected, f"input {i}: {drawn}"
        assert (rows[:, 4] == len(expected)).all()
        assert [r[2] for r in seen] == sorted(r[2] for r in seen), "problem after problem"
