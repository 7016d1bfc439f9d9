"""`batch_idx_permute` in the emulator, and the order in which permuted schedulers hand out problems."""

from typing import Any

import cutlass
import cutlass.cute as cute
import pytest
import torch
from cutlass import Int32
from cutlass.cute import runtime as cute_runtime

import quack
from quack.compose import permuted
from quack.gemm_config import GemmConfig
from quack.problem_order import PermutedDynamicScheduler, PermutedStaticScheduler, PermutedVarlenStaticScheduler
from quack.runtime.compile import resolve
from quack.runtime.legality import PERMUTABLE
from quack.tile_scheduler import TileScheduler
from tests.order_cases import (
    SCHEDULES,
    OrderCase,
    cases,
    run_and_verify,
    run_and_verify_repeated,
    run_and_verify_repeated_ragged,
)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("schedule, checks", [("eager", ()), ("latest", ("all",))], ids=["eager", "latest-checked"])
@pytest.mark.parametrize("case", cases(), ids=str)
def test_against_reference(case: OrderCase, schedule: str, checks: tuple[str, ...]):
    with quack.emulator.use("sm90", schedule=schedule, checks=checks, sms=4):
        run_and_verify(case, "cpu")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_role_uses_the_vector(schedule: str):
    with quack.emulator.use("sm90", sms=4):
        run_and_verify_repeated(schedule, "cpu")


@pytest.mark.parametrize("kind", ["m", "k"])
def test_every_role_uses_the_vector_ragged(kind: str):
    with quack.emulator.use("sm90", sms=4):
        run_and_verify_repeated_ragged(kind, "cpu")


@pytest.mark.parametrize("name", PERMUTABLE)
def test_whatever_legality_admits_has_a_permuted_scheduler(name: str):
    for schedule in ({}, {"is_dynamic_persistent": True}, {"is_persistent": False}):
        config = GemmConfig(**schedule)
        plain = resolve(name)().scheduler_class(config)
        kind = permuted(resolve(name))().scheduler_class(config)
        assert issubclass(kind, plain) and kind is not plain


class Visits:
    """Writes (problem, is_valid) of every cursor; one warp per cursor. Groups have 64 rows where they are ragged."""

    def __init__(self, scheduler: TileScheduler):
        self.scheduler = scheduler

    @cute.jit
    def __call__(self, permutation: cute.Tensor, offsets: cute.Tensor, out: cute.Tensor, tiles: Int32, stream):
        problems = Int32(cute.size(permutation))
        if cutlass.const_expr(isinstance(self.scheduler, PermutedVarlenStaticScheduler)):
            params = self.scheduler.make_params(offsets, problems * tiles * 64, 64, Int32(1), permutation)
        else:
            params = self.scheduler.make_params(tiles, Int32(1), problems, permutation)
        self.kernel(params, out).launch(grid=(cute.size(out, mode=[0]), 1, 1), block=(32, 1, 1), stream=stream)

    @cute.kernel
    def kernel(self, params: Any, out: cute.Tensor):
        cursor = cute.arch.block_idx()[0]
        work = self.scheduler.work_at(params, cursor, Int32(0), Int32(0))
        if cute.arch.lane_idx() == 0:
            out[cursor, 0] = work.problem
            out[cursor, 1] = Int32(work.is_valid)


@pytest.mark.parametrize("kind", [PermutedStaticScheduler, PermutedDynamicScheduler, PermutedVarlenStaticScheduler])
def test_problems_come_in_the_given_order(kind: type[TileScheduler]):
    fake = [
        cute_runtime.make_fake_tensor(cutlass.Int32, (cute.sym_int(),), (1,), assumed_align=4),
        cute_runtime.make_fake_tensor(cutlass.Int32, (cute.sym_int(),), (1,), assumed_align=4),
        cute_runtime.make_fake_tensor(cutlass.Int32, (cute.sym_int(), 2), (2, 1), assumed_align=4),
    ]
    stream = cute_runtime.make_fake_stream(use_tvm_ffi_env_stream=True)
    options = quack.emulator.compile_options("sm90")
    compiled = cute.compile(Visits(kind((1, 1), 2)), *fake, Int32(1), stream, options=options)
    for problems, tiles in ((1, 1), (5, 3), (32, 1), (33, 2), (70, 1)):
        order = torch.randperm(problems, generator=torch.Generator().manual_seed(problems)).int()
        offsets = (torch.arange(problems + 1) * 64 * tiles).int()
        out = torch.full((problems * tiles + 3, 2), -1, dtype=torch.int32)
        quack.emulator.launch(compiled, order, offsets, out, tiles)
        assert out[:, 1].tolist() == [1] * (problems * tiles) + [0] * 3
        assert out[: problems * tiles, 0].tolist() == order.repeat_interleave(tiles).tolist()
