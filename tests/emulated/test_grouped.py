"""Grouped GEMMs in the emulator: results, plans, tables, and the grouped scheduler's search on random extents."""

import gc
from typing import Any

import cutlass
import cutlass.cute as cute
import pytest
import torch
from cutlass import Int32
from cutlass.cute import runtime as cute_runtime

import quack
from quack.gemm_config import RasterOrder
from quack.search_scheduler import GroupedStaticScheduler
from tests.grouped_cases import MIXED, GroupedCase, GroupedOperands, cases, many, run, verify


@pytest.mark.parametrize("schedule, checks", [("eager", ()), ("latest", ("all",))], ids=["eager", "latest-checked"])
@pytest.mark.parametrize("case", cases(), ids=str)
def test_against_reference(case: GroupedCase, schedule: str, checks: tuple[str, ...]):
    t = GroupedOperands(case, "cpu")
    with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=4):
        run(t)
    verify(t)


def test_a_plan_sees_new_contents_and_new_addresses():
    case = GroupedCase(MIXED, bias=True)
    t, other = GroupedOperands(case, "cpu"), GroupedOperands(case, "cpu")
    with quack.emulator.use("sm90", sms=4):
        plan = quack.grouped_plan(**t.arguments())
        outs = plan(t.tensors.A, t.tensors.B)
        assert all(o is expected for o, expected in zip(outs, t.tensors.out))
        verify(t)
        for a in t.tensors.A:
            a.mul_(-0.5)
        plan()
        verify(t)
        for a in other.tensors.A:
            a.add_(1.0)
        plan(other.tensors.A, other.tensors.B, other.tensors.out, bias_list=other.tensors.bias)
        verify(other)
        plan(t.tensors.A, t.tensors.B, t.tensors.out, bias_list=t.tensors.bias)
        verify(t)


def test_a_plan_notices_exchanged_storage_in_debug_mode(monkeypatch):
    """`tensor.data = ...` keeps the object and changes the address."""
    monkeypatch.setenv("QUACK_DEBUG", "1")
    t = GroupedOperands(GroupedCase(((64, 64, 64), (40, 72, 24))), "cpu")
    with quack.emulator.use("sm90", sms=4):
        plan = quack.grouped_plan(**t.arguments())
        plan()
        t.tensors.A[0].data = (
            torch.randn(64, 72).bfloat16()[:, :64].mul_(3.0).as_strided((64, 64), t.tensors.A[0].stride())
        )
        plan()
        plan()
    verify(t)


def test_outputs_may_be_columns_of_one_matrix():
    shared = torch.full((70, 200), float("nan")).bfloat16()
    a = [torch.randn(70, 64).bfloat16() for _ in range(3)]
    b = [torch.randn(n, 64).bfloat16().T for n in (64, 104, 32)]
    with quack.emulator.use("sm90", sms=4):
        quack.gemm_grouped(a, b, list(shared.split((64, 104, 32), dim=1)))
    torch.testing.assert_close(shared, torch.cat([x @ y for x, y in zip(a, b)], dim=1), rtol=2e-2, atol=2e-2)


def test_a_program_keeps_no_operand_alive():
    """Cached programs hold tables, not the tensors of earlier calls, or training would not free its activations."""
    import weakref

    t = GroupedOperands(GroupedCase(((64, 64, 64), (40, 72, 24))), "cpu")
    with quack.emulator.use("sm90", sms=4):
        run(t)
    references = [weakref.ref(tensor) for tensor in t.tensors.flat()]
    del t
    gc.collect()
    assert not any(reference() is not None for reference in references)


class Visits:
    """Writes (tile_m, tile_n, problem, is_valid) of every cursor below `cursors`; one warp per cursor."""

    def __init__(self, scheduler: GroupedStaticScheduler):
        self.scheduler = scheduler

    @cute.jit
    def __call__(self, extents: cute.Tensor, out: cute.Tensor, total: cute.Tensor, stream):
        params = self.scheduler.make_params(extents, 64, 32)
        self.kernel(params, out, total).launch(grid=(cute.size(out, mode=[0]), 1, 1), block=(32, 1, 1), stream=stream)

    @cute.kernel
    def kernel(self, params: Any, out: cute.Tensor, total: cute.Tensor):
        cursor = cute.arch.block_idx()[0]
        work = self.scheduler.work_at(params, cursor, Int32(0), Int32(0))
        works = self.scheduler.total_works(params)
        if cute.arch.lane_idx() == 0:
            out[cursor, 0] = work.tile_m
            out[cursor, 1] = work.tile_n
            out[cursor, 2] = work.problem
            out[cursor, 3] = Int32(work.is_valid)
            total[0] = works


@pytest.mark.parametrize("cluster", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("raster", list(RasterOrder))
def test_every_tile_is_visited_once(cluster: tuple[int, int], raster: RasterOrder):
    kernel = Visits(GroupedStaticScheduler(cluster, 3, raster))
    fake = [
        cute_runtime.make_fake_tensor(cutlass.Int64, (cute.sym_int(), 3), (3, 1), assumed_align=8),
        cute_runtime.make_fake_tensor(cutlass.Int32, (cute.sym_int(), 4), (4, 1), assumed_align=4),
        cute_runtime.make_fake_tensor(cutlass.Int32, (1,), (1,), assumed_align=4),
    ]
    stream = cute_runtime.make_fake_stream(use_tvm_ffi_env_stream=True)
    compiled = cute.compile(kernel, *fake, stream, options=quack.emulator.compile_options("sm90"))
    for count in (1, 2, 31, 32, 33, 70):
        extents = torch.tensor(many(count, seed=count), dtype=torch.int64)
        step_m, step_n = 64 * cluster[0], 32 * cluster[1]
        expected = {
            (m, n, p)
            for p, (rows, cols, _) in enumerate(extents.tolist())
            for m in range(0, -(-rows // step_m) * cluster[0], cluster[0])
            for n in range(0, -(-cols // step_n) * cluster[1], cluster[1])
        }
        out = torch.full((len(expected) + 3, 4), -1, dtype=torch.int32)
        total = torch.full((1,), -1, dtype=torch.int32)
        quack.emulator.launch(compiled, extents, out, total, sms=4)
        visits = [tuple(row[:3]) for row in out.tolist() if row[3]]
        assert len(visits) == len(expected) and set(visits) == expected
        assert total.item() == len(expected)
        problems = out[out[:, 3] == 1, 2].tolist()
        assert problems == sorted(problems)
