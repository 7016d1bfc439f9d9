"""`gemm_reduce` of a list of problems, each with an M, N, K and strides of its own, in one launch and without a copy."""

from collections.abc import Callable
from typing import Any, Optional

import torch

from .gemm_config import GemmConfig
from .gemm_interface import Scalar
from .gemm_reduction import REDUCE, Kind, combine
from .grouped import PLANNED, gemm_grouped_ref
from .reduction import Reduction
from .runtime.grouped_call import GroupedCall, LaunchOptions, Tensors, grouped_call, with_scale_lists
from .runtime.grouped_partials import Totals
from .runtime.grouped_plan import run_once
from .split_k import SplitKMode

Results = tuple[list[torch.Tensor], Optional[list[torch.Tensor]], Optional[list[torch.Tensor]]]


def gemm_grouped_reduce(
    A_list: Tensors,
    B_list: Tensors,
    C_list: Optional[Tensors] = None,
    bias_list: Optional[Tensors] = None,
    *,
    row: Kind = None,
    col: Kind = None,
    out_list: Optional[Tensors] = None,
    out_dtype: Optional[torch.dtype] = None,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    dynamic_scheduler: bool = False,
    config: Optional[GemmConfig] = None,
    split_k: Optional[int] = None,
    split_k_mode: SplitKMode = SplitKMode.SERIAL,
    A_scale_list: Optional[Tensors] = None,
    B_scale_list: Optional[Tensors] = None,
    _run: Callable[[GroupedCall], Any] = run_once,
) -> Results:
    """(out_list, row_list or None, col_list or None): out_i = alpha * A_i @ B_i + beta * C_i + bias_i, and reductions of it before it
    is rounded, fp32 (M_i,) and (N_i,), as of `gemm_reduce`.

    Lists and launches as of `gemm_grouped`. The reductions are views of one tensor each; one further launch finishes them for all
    problems with about as many tiles along the dimension that is reduced. torch.compile breaks the graph here.
    """
    if torch.compiler.is_compiling():
        eager = torch.compiler.disable(gemm_grouped_reduce, reason="quack.gemm_grouped_reduce runs outside of graphs")
        return eager(
            A_list, B_list, C_list, bias_list, row=row, col=col, out_list=out_list, out_dtype=out_dtype, alpha=alpha,
            beta=beta, dynamic_scheduler=dynamic_scheduler, config=config, split_k=split_k, split_k_mode=split_k_mode,
            A_scale_list=A_scale_list, B_scale_list=B_scale_list,
        )  # fmt: skip
    given = {
        "A_list": ("A", A_list),
        "B_list": ("B", B_list),
        "C_list": ("C", C_list),
        "bias_list": ("bias", bias_list),
        "out_list": ("out", out_list),
    }
    given = with_scale_lists(given, A_scale_list, B_scale_list)
    kinds = {"row": None if row is None else Reduction.of(row), "col": None if col is None else Reduction.of(col)}
    totals = tuple(Totals(name, kind) for name, kind in kinds.items() if kind is not None)
    options = (out_dtype, *kinds.values(), False, None)
    launch = LaunchOptions(config, dynamic_scheduler or None, split_k, split_k_mode)
    results = ("out", *(None if kind is None else name for name, kind in kinds.items()))
    shared = {"alpha": alpha, "beta": beta}
    return _run(grouped_call(REDUCE, options, given, shared, launch, results, totals, ("bias_list",)))


PLANNED.add(gemm_grouped_reduce)


def gemm_grouped_reduce_ref(
    A_list: Tensors,
    B_list: Tensors,
    C_list: Optional[Tensors] = None,
    bias_list: Optional[Tensors] = None,
    *,
    row: Kind = None,
    col: Kind = None,
    out_dtype: Optional[torch.dtype] = None,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
) -> Results:
    """`gemm_grouped_reduce` in plain torch, computed in fp32: the oracle."""
    exact = gemm_grouped_ref(A_list, B_list, None, alpha, torch.float32, C_list=C_list, bias_list=bias_list, beta=beta)
    outs = gemm_grouped_ref(A_list, B_list, None, alpha, out_dtype, C_list=C_list, bias_list=bias_list, beta=beta)

    def reduced(kind: Kind, dim: int) -> Optional[list[torch.Tensor]]:
        if kind is None:
            return None
        reduction = Reduction.of(kind)
        squares = reduction is Reduction.SUM_OF_SQUARES
        return [combine(x.square() if squares else x, reduction, dim) for x in exact]

    return outs, reduced(row, -1), reduced(col, -2)
