"""GEMM with row and column reductions of its result fused: column sums for bias gradients, row log-sum-exps for losses, ..."""

from typing import Optional, Union

import torch

from .gemm_config import GemmConfig
from .gemm_interface import Scalar, _check_out_dtype, _output, launch_with_epilogue
from .gemm_port import PortKind
from .reduction import Reduction
from .runtime.epilogue import Allocated, Port, Term
from .runtime.plan import GemmRequest

_MIXINS = "quack.epilogue.reduction:"
Kind = Union[Reduction, str, None]


def row_reduction(name: str, reduction: Reduction) -> Term:
    """The term that reduces each row of the accumulator; its partials are (M, n) and called `name`."""
    return _reduction(name, reduction, PortKind.ROW_PARTIALS, "Row", "Col")


def col_reduction(name: str, reduction: Reduction) -> Term:
    """The term that reduces each column of the accumulator; its partials are (n, N) and called `name`."""
    return _reduction(name, reduction, PortKind.COL_PARTIALS, "Col", "Row")


def _reduction(name: str, reduction: Reduction, kind: PortKind, own: str, other: str) -> Term:
    statics: tuple[tuple[str, object], ...] = (("reduction", reduction),)
    suffix = "Reduce"
    if reduction is Reduction.LOG_SUM_EXP:
        suffix, statics = "LogSumExp", ()
    port = Port(name, kind, Allocated.PARTIALS)
    return Term(_MIXINS + own + suffix, (port,), statics, swapped=_MIXINS + other + suffix)


def combine(partials: torch.Tensor, reduction: Reduction, dim: int) -> torch.Tensor:
    """The reduction of whole rows or columns from its partials along `dim`; torch operations, fp32."""
    if reduction is Reduction.MAX:
        return partials.amax(dim) if partials.shape[dim] else partials.new_full(_without(partials, dim), float("-inf"))
    return partials.logsumexp(dim) if reduction is Reduction.LOG_SUM_EXP else partials.sum(dim)


def _without(tensor: torch.Tensor, dim: int) -> list[int]:
    shape = list(tensor.shape)
    del shape[dim]
    return shape


def gemm_reduce(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    *,
    row: Kind = None,
    col: Kind = None,
    out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    cu_seqlens_k: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    dynamic_scheduler: bool = False,
    config: Optional[GemmConfig] = None,
) -> tuple[torch.Tensor, Optional[torch.Tensor], Optional[torch.Tensor]]:
    """(out, row, col): out = alpha * A @ B + beta * C + bias, and reductions of it before it is rounded to out's dtype.

    row, col: a `Reduction` or its name ("sum", "sum_of_squares", "max", "log_sum_exp"), None for none. The results are fp32,
    row (M,), (L, M) or (total_m,), col (N,) or (L, N). The bias gradient of a layer with weight gradient or input gradient GEMM
    is col="sum". Deterministic: partial results of tiles are combined in a fixed order. Shapes, dtypes and errors as in `gemm`;
    col is refused with cu_seqlens_m. torch.compile breaks the graph here.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.disable(gemm_reduce, reason="quack.gemm_reduce runs outside of graphs")(
            A, B, C, bias, row=row, col=col, out=out, out_dtype=out_dtype, alpha=alpha, beta=beta, config=config,
            cu_seqlens_m=cu_seqlens_m, cu_seqlens_k=cu_seqlens_k, A_idx=A_idx, dynamic_scheduler=dynamic_scheduler,
        )  # fmt: skip
    kinds = {"row": row, "col": col}
    reductions = {name: None if kind is None else Reduction.of(kind) for name, kind in kinds.items()}
    makers = {"row": row_reduction, "col": col_reduction}
    terms = tuple(makers[name](name, kind) for name, kind in reductions.items() if kind is not None)
    if out is None:
        out = _output(A, B, out_dtype, cu_seqlens_k, A_idx)
    else:
        _check_out_dtype(out, out_dtype)
    partials = launch_with_epilogue(
        GemmRequest(
            A, B, out, C, bias, alpha, beta, config=config, dynamic=dynamic_scheduler, cu_seqlens_m=cu_seqlens_m,
            cu_seqlens_k=cu_seqlens_k, A_idx=A_idx, epilogue=terms,
        )
    )  # fmt: skip
    results = {}
    for name, dim in (("row", -1), ("col", -2)):
        reduction = reductions[name]
        results[name] = None if reduction is None else combine(partials[name], reduction, dim)
    return out, results["row"], results["col"]
