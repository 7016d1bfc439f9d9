"""`batch_idx_permute`: the order in which the problems of a batch, or the groups of a ragged GEMM, are worked through.

The l-th problem that a scheduler hands out becomes problem permutation[l]. That is decided where works are decoded, so every
role sees the same problem, and results do not depend on it: it only balances load (longest group first). Kernels without a
permutation contain none of this.

`PermutedProblems` goes before an adapter (see `compose.permuted`), a `Permuted...Scheduler` replaces its scheduler.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Optional

import cutlass.cute as cute
from cutlass import Int32

from .gemm_config import GemmConfig
from .gemm_problem_adapter import ProblemAdapter
from .search_scheduler import VarlenDynamicScheduler, VarlenSchedulerParams, VarlenStaticScheduler
from .tile_scheduler import (
    DynamicPersistentScheduler,
    SingleTileScheduler,
    StaticPersistentScheduler,
    TileScheduler,
    TileSchedulerParams,
)


@dataclass(frozen=True)
class PermutedTileParams(TileSchedulerParams):
    """permutation: int32 (problems,)."""

    permutation: cute.Tensor


@dataclass(frozen=True)
class PermutedVarlenParams(VarlenSchedulerParams):
    """permutation: int32 (problems,)."""

    permutation: cute.Tensor


class PermutedOrder(TileScheduler):
    """Scheduler mixin: the same works, problem after problem in the order of the permutation."""

    params_class: type = PermutedTileParams

    def make_params(self, *grid: Any):
        """Host. What the scheduler itself takes, then the permutation."""
        plain = super().make_params(*grid[:-1])
        values = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
        return self.params_class(**values, permutation=grid[-1])

    @cute.jit
    def problem_of(self, params: Any, ordinal: Int32) -> Int32:
        problem = Int32(ordinal)
        if ordinal < cute.size(params.permutation):  # not so for cursors behind the last work
            problem = params.permutation[ordinal]
        return problem


class PermutedSingleTileScheduler(PermutedOrder, SingleTileScheduler):
    """One cluster per work; the hardware starts them roughly in this order."""


class PermutedStaticScheduler(PermutedOrder, StaticPersistentScheduler):
    """Persistent, fixed stride."""


class PermutedDynamicScheduler(PermutedOrder, DynamicPersistentScheduler):
    """Persistent, drawn from a counter: with the longest problems first, the best balance."""


class PermutedVarlenStaticScheduler(PermutedOrder, VarlenStaticScheduler):
    """Ragged M: the search runs over the groups in the order of the permutation."""

    params_class = PermutedVarlenParams


class PermutedVarlenDynamicScheduler(PermutedOrder, VarlenDynamicScheduler):
    """Ragged M, drawn from a counter."""

    params_class = PermutedVarlenParams


PERMUTED_SCHEDULER: dict[type[TileScheduler], type[TileScheduler]] = {
    SingleTileScheduler: PermutedSingleTileScheduler,
    StaticPersistentScheduler: PermutedStaticScheduler,
    DynamicPersistentScheduler: PermutedDynamicScheduler,
    VarlenStaticScheduler: PermutedVarlenStaticScheduler,
    VarlenDynamicScheduler: PermutedVarlenDynamicScheduler,
}


class PermutedProblems(ProblemAdapter):
    """Adapter mixin: takes the permutation as one more argument, the last, and hands it to the scheduler."""

    def scheduler_class(self, config: GemmConfig) -> type[TileScheduler]:
        return PERMUTED_SCHEDULER[super().scheduler_class(config)]

    def make_params(self, a: cute.Tensor, b: cute.Tensor, d: cute.Tensor, arguments: Optional[tuple]):
        assert arguments is not None
        return super().make_params(a, b, d, arguments[:-1] or None)

    def scheduler_arguments(self, params: Any, arguments: Optional[tuple], tile_m: int, tile_n: int) -> tuple:
        assert arguments is not None
        return (*super().scheduler_arguments(params, arguments[:-1] or None, tile_m, tile_n), arguments[-1])
