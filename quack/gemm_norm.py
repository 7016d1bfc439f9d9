"""GEMMs around an RMS norm: the one before it computes the statistics, the one behind it applies them.

y = rmsnorm(x W1) W2 with norm weight w is two launches and no pass of its own over the activations, because the norm's
factor per row commutes with the second product:

    h, rstd = gemm_rms(x, W1, norm_weight=w)          h = (x W1) * w, rstd = 1 / rms of the rows of x W1
    _, y    = gemm_norm_act(h, W2, rstd)              y = act(rstd * (h W2))

Shapes, dtypes, strides and errors as in `gemm_interface`. Not differentiable by themselves.
"""

from typing import Optional

import torch

from .gemm_activation import (
    ActivationName,
    AnyActivation,
    Outputs,
    _default_dtype,
    _launch_forward,
    _operand_names,
    _output_of,
    activation_of,
    apply_ref,
    postact_shape,
    product_ref,
    product_shape,
)
from .gemm_config import GemmConfig
from .gemm_interface import _check_out_dtype, _output, _split_names, launch_with_epilogue, writes_only
from .gemm_port import PortKind
from .gemm_reduction import row_reduction
from .reduction import Reduction
from .rms_final_reduce import reduce_rows
from .runtime.concat import interleaved
from .runtime.epilogue import Port, Term
from .runtime.plan import GemmRequest
from .runtime.spec import UnsupportedGemm

_SCALE = "quack.epilogue.scale:"


def scale_rows(name: str, scale: torch.Tensor) -> Term:
    """acc[m, n] * scale[m]; scale (M,), (L, M) or (total_m,)."""
    return Term(_SCALE + "ScaleRows", (Port(name, PortKind.COL_VECTOR, scale),), swapped=_SCALE + "ScaleColumns")


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """(D, rstd): rstd = rsqrt(mean over N of (A @ B + C)^2 + eps), D = (A @ B + C) * norm_weight.

    norm_weight (N,) or (L, N), None for ones. rstd is fp32 (M,), (L, M) or (total_m,), computed from the fp32 sums before they
    are scaled and rounded to D's dtype, in an order that is the same in every run. C has the shape of D and may be it.
    cu_seqlens_m, A_idx: as in `gemm`. N = 0 gives rstd = rsqrt(eps).
    """
    if out is None:
        out = _output(A, B, out_dtype, None, A_idx)
    else:
        _check_out_dtype(out, out_dtype)
    if torch.compiler.is_compiling():
        if out is C:
            raise UnsupportedGemm("gemm_rms in place (out is C) has no form for torch.compile", "an out of its own")
        if config is not None:
            raise UnsupportedGemm("config cannot be pinned under torch.compile", "config=None")
        return out, _rms_op(A, B, out, C, norm_weight, eps, dynamic_scheduler, cu_seqlens_m, A_idx)
    return out, _launch_rms(A, B, out, C, norm_weight, eps, dynamic_scheduler, cu_seqlens_m, A_idx, config)


def gemm_rms_out(A: torch.Tensor, B: torch.Tensor, out: torch.Tensor, rstd: torch.Tensor, **options) -> None:
    """`gemm_rms` into a given D and a given fp32 rstd."""
    expected = out.shape[:-1]
    if rstd.shape != expected or rstd.dtype is not torch.float32:
        raise ValueError(
            f"rstd has shape {tuple(rstd.shape)} and dtype {rstd.dtype}, expected {tuple(expected)} and torch.float32"
        )
    rstd.copy_(gemm_rms(A, B, out=out, **options)[1])


def _launch_rms(
    A: torch.Tensor,
    B: torch.Tensor,
    out: torch.Tensor,
    C: Optional[torch.Tensor],
    norm_weight: Optional[torch.Tensor],
    eps: float,
    dynamic: bool,
    cu_seqlens_m: Optional[torch.Tensor],
    A_idx: Optional[torch.Tensor],
    config: Optional[GemmConfig] = None,
) -> torch.Tensor:
    terms = [row_reduction("squares", Reduction.SUM_OF_SQUARES)]
    if norm_weight is not None:
        terms.append(scale_columns("norm_weight", norm_weight))
    request = GemmRequest(
        A, B, out, C, config=config, dynamic=dynamic, cu_seqlens_m=cu_seqlens_m, A_idx=A_idx, epilogue=tuple(terms)
    )
    squares = launch_with_epilogue(request)["squares"]
    return reduce_rows(squares, 1.0 / max(1, B.shape[-1]), eps)


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
) -> torch.Tensor:
    return _launch_rms(A, B, out, C, norm_weight, eps, dynamic, cu_seqlens_m, A_idx)


@_rms_op.register_fake
def _(A, B, out, C, norm_weight, eps, dynamic, cu_seqlens_m, A_idx):
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
        weight = norm_weight.to(product.dtype)
        if cu_seqlens_m is not None and weight.dim() == 2:
            product = product * weight.repeat_interleave(cu_seqlens_m.diff().long(), dim=0)
        else:
            product = product * weight.unsqueeze(-2)
    return _store_ref(product, out, out_dtype or _default_dtype(A)), rstd


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
) -> Outputs:
    """(preact, postact): preact = rstd[:, None] * (A @ B) + C, postact = activation(preact).

    rstd (M,), (L, M) or (total_m,), any float dtype, None for ones. activation: see `quack.activation`; gated ones combine
    columns 2j (gate) and 2j + 1 (up), so postact has N / 2 columns. preact is None unless `store_preact` or `preact_out` asks
    for it; out_dtype is its dtype. concat_layout: names out of "A", "B", "C", as in `gemm`.
    """
    function, names = activation_of(activation), _operand_names(concat_layout)
    shape = product_shape(A, B, A_idx)
    postact = _output_of("postact_out", postact_out, "postact_dtype", postact_dtype, postact_shape(function, shape), A)
    preact = None
    if store_preact or preact_out is not None:
        preact = _output_of("preact_out", preact_out, "out_dtype", out_dtype, shape, A)
    if torch.compiler.is_compiling():
        _norm_act_op(
            A,
            B,
            preact,
            postact,
            C,
            rstd,
            function.value,
            dynamic_scheduler,
            cu_seqlens_m,
            A_idx,
            ",".join(names or ()),
        )
    else:
        _launch_norm_act(A, B, preact, postact, C, rstd, function, dynamic_scheduler, cu_seqlens_m, A_idx, names)
    return preact, postact


def gemm_norm_act_out(
    A: torch.Tensor, B: torch.Tensor, preact_out: Optional[torch.Tensor], postact_out: torch.Tensor, **options
) -> None:
    """`gemm_norm_act` into given outputs; preact_out may be None."""
    gemm_norm_act(A, B, preact_out=preact_out, postact_out=postact_out, **options)


def _launch_norm_act(
    A: torch.Tensor,
    B: torch.Tensor,
    preact: Optional[torch.Tensor],
    postact: torch.Tensor,
    C: Optional[torch.Tensor],
    rstd: Optional[torch.Tensor],
    activation: AnyActivation,
    dynamic: bool,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    concat_layout: Optional[tuple[str, ...]] = None,
    config: Optional[GemmConfig] = None,
) -> None:
    leading = () if rstd is None else (scale_rows("rstd", rstd),)
    _launch_forward(
        A, B, preact, postact, C, None, activation, cu_seqlens_m, A_idx, dynamic, concat_layout, config, leading
    )


@torch.library.custom_op("quack::gemm_norm_act_out", mutates_args={"preact", "postact"})
def _norm_act_op(
    A: torch.Tensor,
    B: torch.Tensor,
    preact: Optional[torch.Tensor],
    postact: torch.Tensor,
    C: Optional[torch.Tensor],
    rstd: Optional[torch.Tensor],
    activation: Optional[str],
    dynamic: bool,
    cu_seqlens_m: Optional[torch.Tensor],
    A_idx: Optional[torch.Tensor],
    concat_layout: str,
) -> None:
    function, names = activation_of(activation), _split_names(concat_layout)
    _launch_norm_act(A, B, preact, postact, C, rstd, function, dynamic, cu_seqlens_m, A_idx, names)


_norm_act_op.register_fake(writes_only)


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
    function, names = activation_of(activation), _operand_names(concat_layout) or ()
    A, B = (interleaved(name, t) if name in names else t for name, t in (("A", A), ("B", B)))
    values = product_ref(A, B, cu_seqlens_m, A_idx)
    if rstd is not None:
        values = values * rstd.to(values.dtype).unsqueeze(-1)
    if C is not None:
        values = values + (interleaved("C", C) if "C" in names else C).to(values.dtype)
    preact = None
    if store_preact or preact_out is not None:
        preact = _store_ref(values, preact_out, out_dtype or _default_dtype(A))
    return preact, _store_ref(apply_ref(function, values), postact_out, postact_dtype or _default_dtype(A))


def _store_ref(result: torch.Tensor, out: Optional[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    return result.to(dtype) if out is None else out.copy_(result)


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
        function, names = activation_of(activation), _operand_names(concat_layout)
        _launch_norm_act(
            A, B, preact_out, postact_out, C, rstd, function, dynamic_scheduler, cu_seqlens_m, A_idx, names, config
        )

    __call__ = fn


gemm_norm_act_tuned = _NormActTuned()
