"""GEMM with row and column reductions of its result fused: column sums for bias gradients, row log-sum-exps for losses, ..."""

from typing import Optional, Union

import torch

from .gemm_config import GemmConfig
from .gemm_interface import Scalar, add_output
from .gemm_operands import with_scales
from .gemm_port import PortKind
from .reduction import Reduction
from .runtime.call import Form, Operands, launch
from .runtime.epilogue import Allocated, Port, Term
from .runtime.plan import GemmRequest
from .runtime.row_sum import sum_rows

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
    """The reduction of whole rows (dim -1) or columns (dim -2) from their partials; torch operations, fp32."""
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
    A_scale: Optional[torch.Tensor] = None,
    B_scale: Optional[torch.Tensor] = None,
) -> tuple[torch.Tensor, Optional[torch.Tensor], Optional[torch.Tensor]]:
    """(out, row, col): out = alpha * A @ B + beta * C + bias, and reductions of it before it is rounded to out's dtype.

    row, col: a `Reduction` or its name ("sum", "sum_of_squares", "max", "log_sum_exp"), None for none. The results are fp32,
    row (M,), (L, M) or (total_m,), col (N,) or (L, N). The bias gradient of a layer with weight gradient or input gradient GEMM
    is col="sum". Deterministic: partial results of tiles are combined in a fixed order. Shapes, dtypes and errors as in `gemm`;
    col is refused with cu_seqlens_m. A_scale, B_scale: of block-scaled A and B, as in `gemm_blockscaled`. torch.compile breaks the
    graph here.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.disable(gemm_reduce, reason="quack.gemm_reduce runs outside of graphs")(
            A, B, C, bias, row=row, col=col, out=out, out_dtype=out_dtype, alpha=alpha, beta=beta, config=config,
            cu_seqlens_m=cu_seqlens_m, cu_seqlens_k=cu_seqlens_k, A_idx=A_idx, dynamic_scheduler=dynamic_scheduler,
            A_scale=A_scale, B_scale=B_scale,
        )  # fmt: skip
    reductions = tuple([None if kind is None else Reduction.of(kind) for kind in (row, col)])
    operands: Operands = {
        "A": A, "B": B, "out": out, "C": C, "bias": bias, "alpha": alpha, "beta": beta, "cu_seqlens_m": cu_seqlens_m,
        "cu_seqlens_k": cu_seqlens_k, "A_idx": A_idx,
    }  # fmt: skip
    operands = with_scales(operands, A_scale, B_scale)
    partials = launch(REDUCE, operands, (out_dtype, *reductions, dynamic_scheduler, config))
    results = [_total(partials.get(name), kind, dim) for name, kind, dim in zip(("row", "col"), reductions, (-1, -2))]
    return operands["out"], results[0], results[1]


def _total(partials: Optional[torch.Tensor], reduction: Optional[Reduction], dim: int) -> Optional[torch.Tensor]:
    """`combine`; sums by a kernel, which starts under the tail of the GEMM."""
    if partials is None or reduction is None:
        return None
    if reduction in (Reduction.SUM, Reduction.SUM_OF_SQUARES):
        return sum_rows(partials if dim == -1 else partials.mT)
    return combine(partials, reduction, dim)


def _request(
    operands: Operands,
    out_dtype: Optional[torch.dtype],
    row: Optional[Reduction],
    col: Optional[Reduction],
    dynamic: bool,
    config: Optional[GemmConfig],
) -> GemmRequest:
    rows = () if row is None else (row_reduction("row", row),)
    columns = () if col is None else (col_reduction("col", col),)
    return GemmRequest(**operands, config=config, dynamic=dynamic, epilogue=(*rows, *columns))


REDUCE = Form(_request, add_output)
