"""Ragged GEMMs in the emulator, and the ragged scheduler's search on random offsets."""

from typing import Any

import cutlass
import cutlass.cute as cute
import pytest
import torch
from cutlass import Int32
from cutlass.cute import runtime as cute_runtime

import quack
from quack.gemm_config import RasterOrder
from quack.search_scheduler import VarlenStaticScheduler
from tests.ragged_cases import RaggedCase, RaggedOperands, cases, run, verify


@pytest.mark.parametrize("schedule, checks", [("eager", ()), ("latest", ("all",))], ids=["eager", "latest-checked"])
@pytest.mark.parametrize("case", cases(), ids=str)
def test_against_reference(case: RaggedCase, schedule: str, checks: tuple[str, ...]):
    t = RaggedOperands(case, "cpu")
    with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=4):
        run(t)
    verify(t)


def test_changed_offsets_need_no_new_plan():
    """The offsets are read on the device: the same call with other contents gives the other result."""
    t = RaggedOperands(RaggedCase("m", (100, 37, 0, 200, 5), n=136, k=72), "cpu")
    other = RaggedOperands(RaggedCase("m", (0, 5, 300, 30, 7), n=136, k=72), "cpu")
    with quack.emulator.use("sm90", sms=4):
        run(t)
        plans = len(quack.gemm_interface._plans)
        run(other)
        assert len(quack.gemm_interface._plans) == plans
    verify(other)


@pytest.mark.parametrize("gathers", [False, True])
def test_one_row_of_any_pitch(gathers: bool):
    """Ragged views step by the pitch even where there is only one row, so it must be a multiple of 16 bytes then, too."""
    index = torch.zeros(1, dtype=torch.int32) if gathers else None
    offsets = torch.tensor([0, 0, 1, 1], dtype=torch.int32)
    row, other = torch.randn(1, 130).bfloat16(), torch.randn(1, 67).bfloat16()
    weight = torch.randn(3, 130, 64).bfloat16()
    buffer = torch.full((1, 69), float("nan")).bfloat16()
    with quack.emulator.use("sm90", checks=("all",), sms=4):
        outer = quack.gemm(row.mT, other, cu_seqlens_k=offsets, A_idx=index)
        quack.gemm(row, weight, out=buffer[:, :64], cu_seqlens_m=offsets, A_idx=index)
    torch.testing.assert_close(outer[1].double(), row.mT.double() @ other.double(), rtol=1e-2, atol=1e-3)
    assert not outer[[0, 2]].any()
    torch.testing.assert_close(buffer[:, :64].double(), row.double() @ weight[1].double(), rtol=1e-2, atol=5e-2)
    assert buffer[:, 64:].isnan().all()


class Visits:
    """Writes (tile_m, tile_n, problem, is_valid) of every cursor below `cursors`; one warp per cursor."""

    def __init__(self, scheduler: VarlenStaticScheduler):
        self.scheduler = scheduler

    @cute.jit
    def __call__(self, offsets: cute.Tensor, out: cute.Tensor, total: Int32, tiles_n: Int32, stream):
        params = self.scheduler.make_params(offsets, total, 64, tiles_n)
        self.kernel(params, out).launch(grid=(cute.size(out, mode=[0]), 1, 1), block=(32, 1, 1), stream=stream)

    @cute.kernel
    def kernel(self, params: Any, out: cute.Tensor):
        cursor = cute.arch.block_idx()[0]
        work = self.scheduler.work_at(params, cursor, Int32(0), Int32(0))
        if cute.arch.lane_idx() == 0:
            out[cursor, 0] = work.tile_m
            out[cursor, 1] = work.tile_n
            out[cursor, 2] = work.problem
            out[cursor, 3] = Int32(work.is_valid)


@pytest.mark.parametrize("cluster", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("raster", list(RasterOrder))
def test_every_tile_is_visited_once(cluster: tuple[int, int], raster: RasterOrder):
    kernel = Visits(VarlenStaticScheduler(cluster, 3, raster))
    fake = [
        cute_runtime.make_fake_tensor(cutlass.Int32, (cute.sym_int(),), (1,), assumed_align=4),
        cute_runtime.make_fake_tensor(cutlass.Int32, (cute.sym_int(), 4), (4, 1), assumed_align=4),
    ]
    stream = cute_runtime.make_fake_stream(use_tvm_ffi_env_stream=True)
    options = quack.emulator.compile_options("sm90")
    compiled = cute.compile(kernel, *fake, Int32(1), Int32(1), stream, options=options)
    generator = torch.Generator().manual_seed(1)
    for groups, most, tiles_n in ((1, 300, 1), (5, 200, 3), (32, 150, 2), (33, 100, 1), (70, 90, 2), (3, 0, 2)):
        sizes = torch.randint(0, most + 1, (groups,), generator=generator) * torch.randint(0, 2, (groups,))
        offsets = torch.cat([torch.zeros(1), sizes.cumsum(0)]).int()
        expected = {
            (m, n, g)
            for g, size in enumerate(sizes.tolist())
            for m in range(0, -(-size // (64 * cluster[0])) * cluster[0], cluster[0])
            for n in range(0, -(-tiles_n // cluster[1]) * cluster[1], cluster[1])
        }
        out = torch.full((len(expected) + 3, 4), -1, dtype=torch.int32)
        quack.emulator.launch(compiled, offsets, out, int(sizes.sum()), tiles_n)
        visited = [tuple(row[:3]) for row in out.tolist() if row[3]]
        assert len(visited) == len(expected) and set(visited) == expected
        assert not out[len(expected) :, 3].any(), "a cursor behind the last work is valid"
        problems = [row[2] for row in visited]
        assert problems == sorted(problems)
