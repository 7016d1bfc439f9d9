"""Ragged problems whose A is picked from a larger matrix by index (`A_idx`): no gathered copy of A is ever made.

| | A | logical A | indices |
|---|---|---|---|
| `GatherMAdapter` (MoE: tokens to experts) | (any, K), K contiguous | row r is A[indices[r]] | (total_m,) |
| `GatherKAdapter` (its weight gradient) | (M, any), M contiguous | column k is A[:, indices[k]] | (total_k,) |

Everything but the loads of A is as in `varlen_adapter`. An index outside of A reads whatever memory is there.
"""

from typing import NamedTuple, Optional

import cutlass.cute as cute
from cutlass import Int32

from .gemm_port import ArgumentKind
from .gemm_problem_adapter import GatheredLines
from .gemm_work import WorkDesc
from .varlen_adapter import VarlenKAdapter, VarlenMAdapter


class GatherMParams(NamedTuple):
    """`VarlenMParams` and indices (total_m,) int32."""

    cu_seqlens: cute.Tensor
    total_m: Int32
    n: Int32
    k: Int32
    indices: cute.Tensor


class GatherMAdapter(VarlenMAdapter):
    """M is split among the groups, and row r is row indices[r] of A."""

    arguments = {"cu_seqlens": ArgumentKind.INT32_VECTOR, "indices": ArgumentKind.INT32_VECTOR}
    gathers_a = True

    @cute.jit
    def make_params(self, a: cute.Tensor, b: cute.Tensor, d: cute.Tensor, arguments: Optional[tuple]) -> GatherMParams:
        return GatherMParams(*VarlenMAdapter.make_params(self, a, b, d, arguments), arguments[1])

    def gathered_lines(self, params: GatherMParams, work: WorkDesc) -> GatheredLines:
        return GatheredLines(params.indices, work.start, work.m)


class GatherKParams(NamedTuple):
    """`VarlenKParams` and indices (total_k,) int32."""

    cu_seqlens: cute.Tensor
    m: Int32
    n: Int32
    problems: Int32
    indices: cute.Tensor


class GatherKAdapter(VarlenKAdapter):
    """K is split among the groups, and column k is column indices[k] of A."""

    arguments = {"cu_seqlens": ArgumentKind.INT32_VECTOR, "indices": ArgumentKind.INT32_VECTOR}
    gathers_a = True

    @cute.jit
    def make_params(self, a: cute.Tensor, b: cute.Tensor, d: cute.Tensor, arguments: Optional[tuple]) -> GatherKParams:
        return GatherKParams(*VarlenKAdapter.make_params(self, a, b, d, arguments), arguments[1])

    @cute.jit
    def gathered_lines(self, params: GatherKParams, work: WorkDesc) -> GatheredLines:
        return GatheredLines(params.indices, params.cu_seqlens[work.problem], self.problem_shape(params, work).k)
