"""Tile schedulers without a GPU: device code runs as host code, the step of the cursor is read off the PTX.

Static facts (cluster shape, swizzle, raster) cost one compile each; shapes are run-time numbers, so
thousands of them are cheap.
"""

import re
from functools import cache

import cutlass
import cutlass.cute as cute
import numpy as np
import pytest
from cutlass import Int32
from cutlass.cute.runtime import make_ptr

from quack.gemm_config import RasterOrder
from quack.tile_scheduler import (
    DynamicPersistentScheduler,
    SingleTileScheduler,
    StaticPersistentScheduler,
    TileSchedulerParams,
)

M, N = RasterOrder.ALONG_M, RasterOrder.ALONG_N

# (cluster_shape_mn, max_swizzle_size, raster)
STATICS = [
    ((1, 1), 1, M),
    ((1, 1), 1, N),
    ((1, 1), 2, N),
    ((1, 1), 8, M),
    ((1, 1), 8, N),
    ((1, 1), 2**31 - 1, M),
    ((2, 1), 4, M),
    ((2, 1), 8, N),
    ((1, 2), 3, N),
    ((1, 2), 8, M),
    ((2, 2), 5, M),
    ((2, 2), 16, N),
    ((4, 2), 2, M),
    ((3, 1), 7, N),
]
SHAPES_PER_STATIC = 800
PERSISTENT_STATICS = STATICS[4::3]


# The device code as host functions


class HostScheduler:
    """Host entry points around one scheduler. `out` and `cursors` are int32 arrays in host memory."""

    def __init__(self, scheduler):
        self.scheduler = scheduler

    @cute.jit
    def facts(self, out: cute.Pointer, tiles_m: Int32, tiles_n: Int32, problems: Int32, max_active: Int32):
        """out[0:4] = total_works, grid."""
        params = self.scheduler.make_params(tiles_m, tiles_n, problems)
        out_t = cute.make_tensor(out, cute.make_layout(4))
        out_t[0] = params.total_works
        out_t[1], out_t[2], out_t[3] = self.scheduler.grid(params, max_active)

    @cute.jit
    def decode(
        self,
        out: cute.Pointer,
        cursors: cute.Pointer,
        count: Int32,
        tiles_m: Int32,
        tiles_n: Int32,
        problems: Int32,
    ):
        """out[i, cta_n, cta_m] = tile_m, tile_n, problem, is_valid of cursors[i]."""
        scheduler = self.scheduler
        params = scheduler.make_params(tiles_m, tiles_n, problems)
        ctas = scheduler.cluster_m * scheduler.cluster_n
        out_t = cute.make_tensor(out, cute.make_layout((4, ctas, count)))
        cursors_t = cute.make_tensor(cursors, cute.make_layout(count))
        for i in cutlass.range(count):
            for cta in cutlass.range_constexpr(ctas):
                cta_m, cta_n = cta % scheduler.cluster_m, cta // scheduler.cluster_m
                work = scheduler.work_at(params, cursors_t[i], cta_m, cta_n)
                out_t[0, cta, i], out_t[1, cta, i], out_t[2, cta, i] = work.tile_m, work.tile_n, work.problem
                out_t[3, cta, i] = Int32(work.is_valid)

    @cute.jit
    def walk(self, out: cute.Pointer, clusters: Int32, tiles_m: Int32, tiles_n: Int32, problems: Int32):
        """Runs every cluster of a launch to its end. out[cursor] += 1 for each work it gets."""
        scheduler = self.scheduler
        params = scheduler.make_params(tiles_m, tiles_n, problems)
        visits = cute.make_tensor(out, cute.make_layout(params.total_works))
        for cluster in cutlass.range(clusters):
            cursor = Int32(cluster)
            work = scheduler.work_at(params, cursor, 0, 0)
            while work.is_valid:
                visits[cursor] += 1
                if cutlass.const_expr(isinstance(scheduler, SingleTileScheduler)):
                    cursor = scheduler.next_cursor(params, cursor)
                else:
                    cursor = scheduler.next_cursor(params, cursor, clusters)
                work = scheduler.work_at(params, cursor, 0, 0)

    @cute.jit
    def tickets(
        self,
        out: cute.Pointer,
        count: Int32,
        clusters: Int32,
        tiles_m: Int32,
        tiles_n: Int32,
        problems: Int32,
    ):
        """out[ticket] = cursor, is_last, is_valid of that cursor."""
        scheduler = self.scheduler
        params = scheduler.make_params(tiles_m, tiles_n, problems)
        out_t = cute.make_tensor(out, cute.make_layout((3, count)))
        for ticket in cutlass.range(count):
            cursor = scheduler.cursor_of_ticket(ticket, clusters)
            out_t[0, ticket] = cursor
            out_t[1, ticket] = Int32(scheduler.is_last_ticket(params, ticket))
            out_t[2, ticket] = Int32(scheduler.work_at(params, cursor, 0, 0).is_valid)


def host_pointer(array):
    assert array.dtype == np.int32 and array.flags.c_contiguous
    return make_ptr(Int32, array.ctypes.data, cutlass.AddressSpace.generic, assumed_align=4)


@cache
def compiled(scheduler_class, statics, entry):
    """One host function per scheduler, static facts and entry point."""
    host = HostScheduler(scheduler_class(*statics))
    pointer = host_pointer(np.zeros(1, np.int32))
    num_pointers, num_ints = {"facts": (1, 4), "decode": (2, 4), "walk": (1, 4), "tickets": (1, 5)}[entry]
    return cute.compile(getattr(host, entry), *[pointer] * num_pointers, *[Int32(1)] * num_ints)


def facts(scheduler_class, statics, shape, max_active):
    """total_works, number of clusters launched."""
    out = np.full(4, -1, np.int32)
    compiled(scheduler_class, statics, "facts")(host_pointer(out), *shape, max_active)
    (cluster_m, cluster_n), total, grid = statics[0], out[0], out[1:]
    assert grid[0] % cluster_m == 0 and tuple(grid[1:]) == (cluster_n, 1)
    return int(total), int(grid[0] // cluster_m)


def decode(statics, shape, cursors, scheduler_class=StaticPersistentScheduler):
    """(len(cursors), cluster_n, cluster_m, 4)"""
    (cluster_m, cluster_n), cursors = statics[0], np.asarray(cursors, np.int32)
    out = np.full((len(cursors), cluster_n, cluster_m, 4), -7, np.int32)
    compiled(scheduler_class, statics, "decode")(host_pointer(out), host_pointer(cursors), len(cursors), *shape)
    return out


# Reference


def expected_order(statics, clusters_m, clusters_n):
    """(works, 2): cluster tiles of one problem in the order of the definition, with no division."""
    (_, thickness, raster), order = statics, []
    length, width = (clusters_m, clusters_n) if raster is M else (clusters_n, clusters_m)
    for first in range(0, width, thickness):
        for lengthwise in range(length):
            for across in range(first, min(first + thickness, width)):
                order.append((lengthwise, across) if raster is M else (across, lengthwise))
    return np.array(order).reshape(-1, 2)


def random_shapes(seed, count, max_works=1500):
    """tiles_m, tiles_n, problems: all edge cases first, then random ones, many of them thin."""
    edges = [(m, n, p) for m in (0, 1, 2, 8, 9) for n in (0, 1, 7, 16) for p in (0, 1, 3)]
    rng, shapes = np.random.default_rng(seed), edges
    while len(shapes) < count:
        limits = (
            rng.choice([1, 2, 5, 20, 100, 1500]),
            rng.choice([1, 2, 5, 20, 100, 1500]),
            rng.choice([1, 2, 9]),
        )
        shape = tuple(int(rng.integers(1, limit + 1)) for limit in limits)
        if np.prod(shape) <= max_works:
            shapes.append(shape)
    return shapes[:count]


def check_decode(statics, shape, scheduler_class=StaticPersistentScheduler):
    """Every CTA tile exactly once, in the defined order, and nothing valid after the last."""
    (cluster_m, cluster_n), (tiles_m, tiles_n, problems) = statics[0], shape
    clusters_m, clusters_n = -(-tiles_m // cluster_m), -(-tiles_n // cluster_n)
    total, _ = facts(scheduler_class, statics, shape, 1)
    assert total == clusters_m * clusters_n * problems, shape
    works = decode(statics, shape, np.arange(total + 5), scheduler_class)
    assert (works[:total, ..., 3] == 1).all() and (works[total:, ..., 3] == 0).all(), shape

    tile_m, tile_n, problem = np.moveaxis(works[:total, ..., :3], -1, 0)
    padded = problems, clusters_m * cluster_m, clusters_n * cluster_n
    visits = np.zeros(padded, np.int32)
    np.add.at(visits, (problem, tile_m, tile_n), 1)
    assert (visits == 1).all(), shape

    order = np.tile(expected_order(statics, clusters_m, clusters_n), (problems, 1))
    np.testing.assert_array_equal(np.stack([tile_m[:, 0, 0], tile_n[:, 0, 0]], 1), order * statics[0], str(shape))
    assert (np.diff(problem[:, 0, 0]) >= 0).all(), shape


# Decode


@pytest.mark.parametrize("statics", STATICS, ids=str)
def test_every_tile_once_in_order(statics):
    for shape in random_shapes(seed=STATICS.index(statics), count=SHAPES_PER_STATIC):
        check_decode(statics, shape)


def test_example_of_the_docstring():
    works = decode(((1, 1), 2, N), (3, 4, 1), np.arange(12))[:, 0, 0]
    picture = np.zeros((3, 4), int)
    picture[works[:, 0], works[:, 1]] = np.arange(12)
    assert picture.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("statics", [STATICS[5], STATICS[8], STATICS[11]], ids=str)
def test_decode_is_exact_up_to_int32_limit(statics):
    (cluster_m, cluster_n), swizzle, raster = statics
    rng = np.random.default_rng(1)
    for clusters_m, clusters_n, problems in [
        (46340, 46340, 1),
        (1, 2**31 - 2, 1),
        (2**30, 1, 1),
        (7, 13, 23_000_000),
    ]:
        shape = clusters_m * cluster_m, clusters_n * cluster_n, problems
        if max(shape) >= 2**31:
            continue
        total = clusters_m * clusters_n * problems
        cursors = np.concatenate([rng.integers(0, total, 2000), total - 1 - np.arange(100), np.arange(100)])
        length, width = (clusters_m, clusters_n) if raster is M else (clusters_n, clusters_m)
        problem, rest = np.divmod(cursors, length * width)
        group, rest = np.divmod(rest, length * swizzle)
        lengthwise, across = np.divmod(rest, np.minimum(swizzle, width - group * swizzle))
        across += group * swizzle
        tile_m, tile_n = (lengthwise, across) if raster is M else (across, lengthwise)
        expected = np.stack([tile_m * cluster_m, tile_n * cluster_n, problem, np.ones_like(problem)], 1)
        np.testing.assert_array_equal(decode(statics, shape, cursors)[:, 0, 0], expected, str(shape))


@pytest.mark.parametrize("statics", [((1, 1), 8, M), ((2, 1), 8, N), ((2, 2), 5, M)], ids=str)
def test_consecutive_works_share_operand_strips(statics):
    """G*G consecutive works read about 2G strips of A and B; without swizzle it would be more than G*G."""
    (cluster_m, cluster_n), swizzle, _ = statics
    works = decode(statics, (64 * cluster_m, 64 * cluster_n, 1), np.arange(64 * 64))[:, 0, 0]
    for start in range(0, 64 * 64 - swizzle**2, swizzle**2):
        window = works[start : start + swizzle**2]
        strips = len(np.unique(window[:, 0])) + len(np.unique(window[:, 1]))
        assert strips <= 4 * swizzle, start  # a window over the seam of two groups has two squares
        assert start > 0 or strips == 2 * swizzle


class OffByOneScheduler(StaticPersistentScheduler):
    """Takes the last full group for the ragged one."""

    @cute.jit
    def make_params(self, tiles_m: Int32, tiles_n: Int32, problems: Int32) -> TileSchedulerParams:
        params = super().make_params(tiles_m, tiles_n, problems)
        return TileSchedulerParams(
            params.total_works,
            params.works_per_problem,
            params.works_per_group,
            params.full_groups - 1,
            params.tail_thickness,
        )


def test_the_check_catches_a_wrong_decode():
    with pytest.raises((AssertionError, IndexError)):
        check_decode(((1, 1), 8, N), (19, 5, 2), OffByOneScheduler)


# Cursors


@pytest.mark.parametrize("statics", PERSISTENT_STATICS, ids=str)
@pytest.mark.parametrize("scheduler_class", [SingleTileScheduler, StaticPersistentScheduler])
def test_clusters_share_the_works(scheduler_class, statics):
    rng = np.random.default_rng(STATICS.index(statics))
    for shape in random_shapes(seed=rng, count=SHAPES_PER_STATIC):
        max_active = int(rng.choice([1, 2, 3, 66, 132, 5000]))
        total, clusters = facts(scheduler_class, statics, shape, max_active)
        limit = total if scheduler_class is SingleTileScheduler else min(total, max_active)
        assert clusters == max(limit, 1), (shape, max_active)
        visits = np.zeros(total + 1, np.int32)  # + 1: also catches a write past the end, and is not empty
        compiled(scheduler_class, statics, "walk")(host_pointer(visits), clusters, *shape)
        assert (visits[:total] == 1).all() and visits[total] == 0, (shape, max_active)


def run_dynamic_launch(total, clusters, tickets, counter, rng):
    """Plays one launch in a random interleaving of clusters; returns (visits, counter).

    A reset is an event of its own, later than the draw that asks for it.
    tickets[t] = cursor, is_last, is_valid as the DSL code computes them.
    """
    visits = np.zeros(total, int)
    visits[: min(clusters, total)] += 1  # first cursors = cluster ids
    running, pending_resets = list(range(min(clusters, total))), 0
    while running or pending_resets:
        event = int(rng.integers(len(running) + pending_resets))
        if event >= len(running):
            counter, pending_resets = 0, pending_resets - 1
            continue
        cursor, is_last, is_valid = tickets[counter]
        counter += 1
        pending_resets += is_last
        if is_valid:
            visits[cursor] += 1
        else:
            running.pop(event)
    return visits, counter


@pytest.mark.parametrize("statics", PERSISTENT_STATICS[:2], ids=str)
def test_dynamic_draws_each_work_once_and_leaves_the_counter_at_zero(statics):
    scheduler_class, rng, counter = (
        DynamicPersistentScheduler,
        np.random.default_rng(STATICS.index(statics)),
        0,
    )
    for shape in random_shapes(seed=rng, count=SHAPES_PER_STATIC, max_works=200):
        max_active = int(rng.choice([1, 2, 3, 16, 132]))
        total, clusters = facts(scheduler_class, statics, shape, max_active)
        tickets = np.full((total + 1, 3), -1, np.int32)
        compiled(scheduler_class, statics, "tickets")(host_pointer(tickets), total + 1, clusters, *shape)
        visits, counter = run_dynamic_launch(total, clusters, tickets.tolist(), counter, rng)
        assert (visits == 1).all() and counter == 0, (shape, max_active)


@pytest.mark.parametrize("wrong", [{"cluster_shape_mn": (0, 1)}, {"max_swizzle_size": 0}])
def test_wrong_static_facts_are_refused(wrong):
    with pytest.raises(ValueError):
        StaticPersistentScheduler(**wrong)


# Compiled kernels


class TileLoop:
    """The smallest persistent kernel: out[cursor] = some function of the work."""

    def __init__(self, scheduler):
        self.scheduler = scheduler

    @cute.jit
    def __call__(self, out: cute.Pointer, counter: cute.Pointer, tiles_m: Int32, tiles_n: Int32, problems: Int32):
        scheduler = self.scheduler
        params = scheduler.make_params(tiles_m, tiles_n, problems)
        cluster = (scheduler.cluster_m, scheduler.cluster_n, 1)
        self.kernel(out, counter, params).launch(
            grid=scheduler.grid(params, 132 // (cluster[0] * cluster[1])), block=(32, 1, 1), cluster=cluster
        )

    @cute.kernel
    def kernel(self, out: cute.Pointer, counter: cute.Pointer, params: TileSchedulerParams):
        scheduler = self.scheduler
        out_t = cute.make_tensor(out, cute.make_layout(2**30))
        block_x, cta_n, _ = cute.arch.block_idx()
        cta_m = block_x % scheduler.cluster_m
        cursor = scheduler.initial_cursor()
        work = scheduler.work_at(params, cursor, cta_m, cta_n)
        draws = work.is_valid
        counter_t = cute.make_tensor(counter, cute.make_layout(1))
        while work.is_valid:
            out_t[cursor] = work.tile_m ^ (work.tile_n << 10) ^ (work.problem << 20)
            if cutlass.const_expr(scheduler.is_broadcast):
                cursor = scheduler.draw(counter_t, cursor)
            else:
                cursor = scheduler.next_cursor(params, cursor)
            work = scheduler.work_at(params, cursor, cta_m, cta_n)
        if cutlass.const_expr(scheduler.is_broadcast):
            if draws:
                scheduler.retire(params, counter_t, cursor)


def compile_tile_loop(scheduler, arch, dump_dir):
    pointer = make_ptr(Int32, 16, cutlass.AddressSpace.gmem, assumed_align=4)
    options = f"--gpu-arch {arch} --keep-ptx --dump-dir={dump_dir}"
    return cute.compile(TileLoop(scheduler), pointer, pointer, *[Int32(1)] * 3, options=options).__ptx__


def loop_of(ptx):
    """Instructions (before, inside) the only loop of a kernel, each as (opcode, destination, [sources])."""
    lines = [line.strip() for line in ptx.split("{", 1)[1].splitlines()]
    label_at = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\$L\w+:", line)}
    branches = [(i, re.search(r"bra(?:\.uni)?\s+(\$L\w+);", line)) for i, line in enumerate(lines)]
    backward = [(label_at[m[1]], i) for i, m in branches if m and label_at[m[1]] < i]
    assert len(backward) == 1, f"expected one loop, found {len(backward)}"
    begin, end = backward[0]

    def parse(part):
        found = [re.fullmatch(r"(?:@!?%p\d+ )?([\w.:]+)\s+(.*);", line) for line in part]
        operands = [(m[1], re.findall(r"%[\w.]+|-?\d+", m[2])) for m in found if m]
        return [(opcode, names[0], names[1:]) for opcode, names in operands if names]

    return parse(lines[:begin]), parse(lines[begin : end + 1])


def loop_steps_by_grid_size(ptx):
    """Whether the number in the loop condition is redefined in the loop as itself plus f(%nctaid.x)."""
    before, inside = loop_of(ptx)
    sources = {}
    for _, destination, operands in before:
        sources.setdefault(destination, set()).update(operands)

    def depends_on(register, name, seen=()):
        return register == name or any(
            depends_on(r, name, (*seen, register)) for r in sources.get(register, ()) if r not in seen
        )

    condition = {r for opcode, _, operands in inside if opcode.startswith("setp.") for r in operands}
    steps = [(d, ops) for opcode, d, ops in inside if opcode == "add.s32" and d in condition and d in ops]
    return any(depends_on(r, "%nctaid.x") for d, ops in steps for r in ops if r != d)


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a", "sm_120a"])
def test_kernel_advances_the_cursor(arch, tmp_path):
    assert loop_steps_by_grid_size(compile_tile_loop(StaticPersistentScheduler((2, 1)), arch, tmp_path))


def test_kernel_draws_in_the_loop(tmp_path):
    ptx = compile_tile_loop(DynamicPersistentScheduler((2, 1)), "sm_90a", tmp_path)
    before, inside = loop_of(ptx)
    tickets = [d for opcode, d, _ in inside if opcode.startswith("atom.") and ".add." in opcode]
    assert len(tickets) == 1 and not any(opcode.startswith("atom.") for opcode, *_ in before)
    assert any(tickets[0] in operands for _, _, operands in inside), "the ticket is used"
    assert ptx.count("st.relaxed.gpu") == 1, "the counter is reset in one place"
    assert not any(opcode.startswith("st.relaxed.gpu") for opcode, *_ in before + inside), "and behind the loop"


def test_single_tile_kernel_has_no_loop(tmp_path):
    ptx = compile_tile_loop(SingleTileScheduler((1, 2)), "sm_90a", tmp_path)
    with pytest.raises(AssertionError, match="found 0"):
        loop_of(ptx)


class StuckScheduler(StaticPersistentScheduler):
    """Computes the step and drops it, as the DSL does with a hidden `advance()`."""

    @cute.jit
    def next_cursor(self, params: TileSchedulerParams, cursor: Int32) -> Int32:
        super().next_cursor(params, cursor)
        return cursor


def test_the_ptx_check_catches_a_dropped_step(tmp_path):
    assert not loop_steps_by_grid_size(compile_tile_loop(StuckScheduler((2, 1)), "sm_90a", tmp_path))
