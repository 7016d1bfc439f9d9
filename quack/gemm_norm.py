"""GEMMs around an RMS norm: the one before it computes the statistics, the one behind it applies them.

y = rmsnorm(x W1) W2 with norm weight w is two launches and no pass of its own over the activations, because the norm's
factor per row commutes with the second product:

    h, rstd = gemm_rms(x, W1, norm_weight=w)          h = (x W1) * w, rstd = 1 / rms of the rows of x W1
    _, y    = gemm_norm_act(h, W2, rstd)              y = act(rstd * (h W2))

Shapes, dtypes, strides and errors as in `gemm_interface`. Not differentiable by themselves.
"""

from typing import Any, Optional

import torch

from .gemm_config import GemmConfig
from .gemm_forward import Forward, launch_forward
from .gemm_interface import add_output
from .gemm_operands import (
    ActivationName,
    Outputs,
    activation_of,
    apply_ref,
    default_dtype,
    logical,
    operand_names,
    product_ref,
    require_tensor,
    rows_ref,
    store_ref,
    with_scales,
)
from .gemm_port import PortKind
from .gemm_reduction import row_reduction
from .reduction import Reduction
from .runtime.call import Form, Operands, launch
from .runtime.epilogue import Port, Term
from .runtime.plan import GemmRequest
from .runtime.row_sum import sum_rows
from .runtime.spec import UnsupportedGemm

_SCALE = "quack.epilogue.scale:"


def scale_columns(name: str, scale: torch.Tensor) -> Term:
    """acc[m, n] * scale[n]; scale (N,) or (L, N)."""
    return Term(_SCALE + "ScaleColumns", (Port(name, PortKind.ROW_VECTOR, scale),), swapped=_SCALE + "ScaleRows")


# ---- the GEMM before the norm -----------------------------------------------------------------------------------------


def gemm_rms(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    norm_weight: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    eps: float = 1e-6,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    *,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    config: Optional[GemmConfig] = None,
    A_scale: Optional[torch.Tensor] = None,
    B_scale: Optional[torch.Tensor] = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(D, rstd): rstd = rsqrt(mean over N of (A @ B + C)^2 + eps), D = (A @ B + C) * norm_weight.

    norm_weight (N,) or (L, N), None for ones. rstd is fp32 (M,), (L, M) or (total_m,), computed from the fp32 sums before they
    are scaled and rounded to D's dtype, in an order that is the same in every run. C has the shape of D and may be it.
    cu_seqlens_m, A_idx: as in `gemm`. N = 0 gives rstd = rsqrt(eps). A_scale, B_scale: of block-scaled A and B, as in
    `gemm_blockscaled`.
    """
    operands: Operands = {
        "A": A, "B": B, "out": out, "C": C, "norm_weight": norm_weight, "cu_seqlens_m": cu_seqlens_m, "A_idx": A_idx,
    }  # fmt: skip
    operands = with_scales(operands, A_scale, B_scale)
    if torch.compiler.is_compiling():
        if out is not None and out is C:
            raise UnsupportedGemm("gemm_rms in place (out is C) has no form for torch.compile", "an out of its own")
        if config is not None:
            raise UnsupportedGemm("config cannot be pinned under torch.compile", "config=None")
        add_output(operands, out_dtype)
        return operands["out"], _rms_op(**operands, eps=eps, dynamic=dynamic_scheduler)
    return _launch_rms(operands, eps, out_dtype, dynamic_scheduler, config)


def gemm_rms_out(A: torch.Tensor, B: torch.Tensor, out: torch.Tensor, rstd: torch.Tensor, **options) -> None:
    """`gemm_rms` into a given D and a given fp32 rstd."""
    expected = out.shape[:-1]
    if rstd.shape != expected or rstd.dtype is not torch.float32:
        raise ValueError(
            f"rstd has shape {tuple(rstd.shape)} and dtype {rstd.dtype}, expected {tuple(expected)} and torch.float32"
        )
    rstd.copy_(gemm_rms(A, B, out=out, **options)[1])


def _rms_request(
    operands: Operands, out_dtype: Optional[torch.dtype], dynamic: bool, config: Optional[GemmConfig]
) -> GemmRequest:
    fields = dict(operands)
    weight = fields.pop("norm_weight")
    squares = row_reduction("squares", Reduction.SUM_OF_SQUARES)
    terms = (squares,) if weight is None else (squares, scale_columns("norm_weight", weight))
    return GemmRequest(**fields, config=config, dynamic=dynamic, epilogue=terms)


_RMS_FORM = Form(_rms_request, add_output)


def _launch_rms(operands: Operands, eps: float, *options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    squares = launch(_RMS_FORM, operands, options)["squares"]
    return operands["out"], sum_rows(squares, (1.0 / max(1, operands["B"].shape[-1]), eps))


@torch.library.custom_op("quack::gemm_rms_out", mutates_args={"out"})
def _rms_op(
    A: torch.Tensor,
    B: torch.Tensor,
    out: torch.Tensor,
    C: Optional[torch.Tensor],
    norm_weight: Optional[torch.Tensor],
    eps: float,
    dynamic: bool,
    cu_seqlens_m: Optional[torch.Tensor],
    A_idx: Optional[torch.Tensor],
    A_scale: Optional[torch.Tensor] = None,
    B_scale: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    operands = {
        "A": A,
        "B": B,
        "out": out,
        "C": C,
        "norm_weight": norm_weight,
        "cu_seqlens_m": cu_seqlens_m,
        "A_idx": A_idx,
    }
    operands = with_scales(operands, A_scale, B_scale)
    return _launch_rms(operands, eps, None, dynamic, None)[1]


@_rms_op.register_fake
def _(A, B, out, C, norm_weight, eps, dynamic, cu_seqlens_m, A_idx, A_scale=None, B_scale=None):
    return A.new_empty(out.shape[:-1], dtype=torch.float32)


def gemm_rms_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    norm_weight: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    eps: float = 1e-6,
    *,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`gemm_rms` in plain torch: in fp32, or in float64 if A is."""
    product = product_ref(A, B, cu_seqlens_m, A_idx)
    if C is not None:
        product = product + C.to(product.dtype)
    rstd = (product.square().sum(-1) / max(1, product.shape[-1]) + eps).rsqrt()
    if norm_weight is not None:
        product = product * rows_ref(norm_weight.to(product.dtype), cu_seqlens_m)
    return store_ref(product, out, out_dtype or default_dtype(A)), rstd


# ---- the GEMM behind the norm -----------------------------------------------------------------------------------------


def gemm_norm_act(
    A: torch.Tensor,
    B: torch.Tensor,
    rstd: Optional[torch.Tensor] = None,
    C: Optional[torch.Tensor] = None,
    activation: ActivationName = None,
    preact_out: Optional[torch.Tensor] = None,
    postact_out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    store_preact: bool = False,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    concat_layout: Optional[tuple[str, ...]] = None,
    *,
    A_scale: Optional[torch.Tensor] = None,
    B_scale: Optional[torch.Tensor] = None,
) -> Outputs:
    """(preact, postact): preact = rstd[:, None] * (A @ B) + C, postact = activation(preact).

    rstd (M,), (L, M) or (total_m,), any float dtype, None for ones. activation: see `quack.activation`; gated ones combine
    columns 2j (gate) and 2j + 1 (up), so postact has N / 2 columns. preact is None unless `store_preact` or `preact_out` asks
    for it; out_dtype is its dtype. concat_layout: names out of "A", "B", "C", as in `gemm`. A_scale, B_scale: of block-scaled A and
    B, as in `gemm_blockscaled`.
    """
    function, names = activation_of(activation), operand_names(concat_layout)
    operands = {"A": A, "B": B, "C": C, "rstd": rstd, "cu_seqlens_m": cu_seqlens_m, "A_idx": A_idx}
    operands = with_scales(operands, A_scale, B_scale)
    stores = store_preact or preact_out is not None
    call = Forward(function, stores, out_dtype, postact_dtype, dynamic_scheduler, names)
    return launch_forward(operands, preact_out, postact_out, call)


def gemm_norm_act_out(
    A: torch.Tensor, B: torch.Tensor, preact_out: Optional[torch.Tensor], postact_out: torch.Tensor, **options
) -> None:
    """`gemm_norm_act` into given outputs; preact_out may be None."""
    gemm_norm_act(A, B, preact_out=preact_out, postact_out=postact_out, **options)


def gemm_norm_act_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    rstd: Optional[torch.Tensor] = None,
    C: Optional[torch.Tensor] = None,
    activation: ActivationName = None,
    preact_out: Optional[torch.Tensor] = None,
    postact_out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    store_preact: bool = False,
    concat_layout: Optional[tuple[str, ...]] = None,
) -> Outputs:
    """`gemm_norm_act` in plain torch: in fp32, or in float64 if A is."""
    function = activation_of(activation)
    A, B, C = logical(operand_names(concat_layout), A=A, B=B, C=C)
    values = product_ref(A, B, cu_seqlens_m, A_idx)
    if rstd is not None:
        values = values * rstd.to(values.dtype).unsqueeze(-1)
    if C is not None:
        values = values + C.to(values.dtype)
    preact = None
    if store_preact or preact_out is not None:
        preact = store_ref(values, preact_out, out_dtype or default_dtype(A))
    return preact, store_ref(apply_ref(function, values), postact_out, postact_dtype or default_dtype(A))


class _NormActTuned:
    """`gemm_norm_act_tuned(...)` picks a configuration; `gemm_norm_act_tuned.fn(..., config=...)` runs exactly that one."""

    def fn(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        preact_out: Optional[torch.Tensor],
        postact_out: torch.Tensor,
        C: Optional[torch.Tensor] = None,
        rstd: Optional[torch.Tensor] = None,
        activation: ActivationName = None,
        dynamic_scheduler: bool = False,
        config: Optional[GemmConfig] = None,
        *,
        cu_seqlens_m: Optional[torch.Tensor] = None,
        A_idx: Optional[torch.Tensor] = None,
        concat_layout: Optional[tuple[str, ...]] = None,
    ) -> None:
        """`gemm_norm_act` into given outputs; preact_out None: not stored."""
        function, names = activation_of(activation), operand_names(concat_layout)
        operands = {"A": A, "B": B, "C": C, "rstd": rstd, "cu_seqlens_m": cu_seqlens_m, "A_idx": A_idx}
        require_tensor("postact_out", postact_out)
        call = Forward(function, preact_out is not None, None, None, dynamic_scheduler, names, config)
        launch_forward(operands, preact_out, postact_out, call)

    __call__ = fn


gemm_norm_act_tuned = _NormActTuned()
