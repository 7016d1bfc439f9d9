"""GEMMs with an activation in the epilogue: torch tensors in, torch tensors out.

Operands, dtypes, strides and errors as in `gemm_interface`. Activations (`quack.activation`): None, "relu", "relu_sq",
"gelu_tanh_approx", "silu", "tanh", "sigmoid"; gated: "swiglu", "swiglu_oai", "reglu", "geglu", "glu". Gated ones take columns
2j and 2j + 1 of the product as gate and up projection, so what they compute has N / 2 columns. Activations see the fp32
accumulator, not what is rounded for storing it. In messages of the GEMM underneath, `out` is the first matrix stored: preact,
or postact where there is no other.

These functions are not differentiable by themselves; `quack.linear` and `quack.mlp` are.
"""

from typing import Optional, Union

import torch

from .activation import GatedActivation
from .gemm_backward import Backward, launch_backward
from .gemm_config import GemmConfig
from .gemm_forward import Forward, launch_forward
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
    with_scales,
)

# (dx, postact) or (dx, postact, reduction)
Gradients = Union[
    tuple[torch.Tensor, Optional[torch.Tensor]], tuple[torch.Tensor, Optional[torch.Tensor], torch.Tensor]
]

_MIXINS = "quack.epilogue.activation_backward:"
PAIR_DTYPES = (torch.bfloat16, torch.float16)


def gemm_act(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    activation: ActivationName = None,
    preact_out: Optional[torch.Tensor] = None,
    postact_out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    store_preact: bool = True,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    concat_layout: Optional[tuple[str, ...]] = None,
    *,
    A_scale: Optional[torch.Tensor] = None,
    B_scale: Optional[torch.Tensor] = None,
) -> Outputs:
    """preact = A @ B + C + bias, postact = activation(preact). Returns (preact or None, postact).

    preact (..., N); postact (..., N), or (..., N / 2) of a gated activation. Both have the dtype of A (bf16 if that is fp8)
    unless out_dtype (of preact) or postact_dtype says otherwise, and are allocated unless preact_out or postact_out is given.
    `preact_out is C` works in place. store_preact=False does not write preact, and returns None for it.
    cu_seqlens_m, A_idx, dynamic_scheduler: as in `gemm`. concat_layout: names out of "A", "B", "C", "bias" as in `gemm`; a
    gated W1 (2I, K) stored as [gates; ups] is B = W1.mT with concat_layout=("B",).
    A_scale, B_scale: of block-scaled A and B, as in `gemm_blockscaled`.
    """
    if preact_out is not None and not store_preact:
        raise ValueError("preact_out is given and store_preact is False: pass one of them")
    function, names = activation_of(activation), operand_names(concat_layout)
    operands = {"A": A, "B": B, "C": C, "bias": bias, "cu_seqlens_m": cu_seqlens_m, "A_idx": A_idx}
    operands = with_scales(operands, A_scale, B_scale)
    call = Forward(function, store_preact, out_dtype, postact_dtype, dynamic_scheduler, names)
    return launch_forward(operands, preact_out, postact_out, call)


def gemm_gated(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    preact_out: Optional[torch.Tensor] = None,
    postact_out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    store_preact: bool = True,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    concat_layout: Optional[tuple[str, ...]] = None,
    *,
    A_scale: Optional[torch.Tensor] = None,
    B_scale: Optional[torch.Tensor] = None,
) -> Outputs:
    """`gemm_act` with a gated activation."""
    return gemm_act(
        A, B, C, bias, GatedActivation.of(activation), preact_out, postact_out, out_dtype, postact_dtype, cu_seqlens_m,
        A_idx, store_preact, dynamic_scheduler, tuned, concat_layout, A_scale=A_scale, B_scale=B_scale,
    )  # fmt: skip


def gemm_act_out(
    A: torch.Tensor,
    B: torch.Tensor,
    preact_out: Optional[torch.Tensor],
    postact_out: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    activation: ActivationName = None,
    **options,
) -> None:
    """`gemm_act` into given outputs; preact is not stored if preact_out is None."""
    gemm_act(A, B, C, bias, activation, preact_out, postact_out, store_preact=preact_out is not None, **options)


def gemm_gated_out(
    A: torch.Tensor,
    B: torch.Tensor,
    preact_out: Optional[torch.Tensor],
    postact_out: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    **options,
) -> None:
    """`gemm_gated` into given outputs; preact is not stored if preact_out is None."""
    gemm_gated(A, B, C, bias, activation, preact_out, postact_out, store_preact=preact_out is not None, **options)


def gemm_dact(
    A: torch.Tensor,
    B: torch.Tensor,
    PreAct: torch.Tensor,
    activation: ActivationName = None,
    dx_out: Optional[torch.Tensor] = None,
    postact_out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    colvec_scale: Optional[torch.Tensor] = None,
    colvec_reduce: bool = False,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    *,
    store_postact: bool = True,
    A_scale: Optional[torch.Tensor] = None,
    B_scale: Optional[torch.Tensor] = None,
) -> Gradients:
    """dx = activation'(PreAct) * (A @ B), postact = activation(PreAct). Returns (dx, postact), and the reduction if asked for.

    A @ B (..., N) is the gradient of postact. PreAct and dx (..., N), or (..., 2 N) of a gated activation, gates and ups
    interleaved; those are bf16 or fp16, and the columns contiguous. dx may be PreAct (in place). Both outputs have the dtype of
    A unless out_dtype (of dx) or postact_dtype says otherwise. store_postact=False returns None for postact.
    colvec_scale (M,), (L, M) or (total_m,): postact was multiplied with it row by row. dx and the postact that is returned are,
    too. colvec_reduce=True also returns its gradient, fp32 of that shape: the sums over N of (A @ B) * activation(PreAct).
    cu_seqlens_m, A_idx, dynamic_scheduler: as in `gemm`. A_scale, B_scale: of block-scaled A and B, as in `gemm_blockscaled`.
    """
    if postact_out is not None and not store_postact:
        raise ValueError("postact_out is given and store_postact is False: pass one of them")
    operands = {"A": A, "B": B, "colvec_scale": colvec_scale, "cu_seqlens_m": cu_seqlens_m, "A_idx": A_idx}
    operands = with_scales(operands, A_scale, B_scale)
    call = Backward(
        activation_of(activation), store_postact, colvec_reduce, out_dtype, postact_dtype, dynamic_scheduler
    )  # fmt: skip
    dx, postact, sums = launch_backward(operands, PreAct, dx_out, postact_out, call)
    return (dx, postact) if sums is None else (dx, postact, sums)


def gemm_dgated(
    A: torch.Tensor,
    B: torch.Tensor,
    PreAct: torch.Tensor,
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    dx_out: Optional[torch.Tensor] = None,
    postact_out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    colvec_scale: Optional[torch.Tensor] = None,
    colvec_reduce: bool = False,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    *,
    store_postact: bool = True,
    A_scale: Optional[torch.Tensor] = None,
    B_scale: Optional[torch.Tensor] = None,
) -> Gradients:
    """`gemm_dact` with a gated activation: PreAct and dx have 2 N columns."""
    return gemm_dact(
        A, B, PreAct, GatedActivation.of(activation), dx_out, postact_out, out_dtype, postact_dtype, colvec_scale,
        colvec_reduce, cu_seqlens_m, A_idx, dynamic_scheduler, tuned, store_postact=store_postact, A_scale=A_scale,
        B_scale=B_scale,
    )  # fmt: skip


def gemm_dact_out(
    A: torch.Tensor,
    B: torch.Tensor,
    PreAct: torch.Tensor,
    dx_out: torch.Tensor,
    postact_out: Optional[torch.Tensor],
    activation: ActivationName = None,
    **options,
) -> Optional[torch.Tensor]:
    """`gemm_dact` into given outputs; postact is not stored if postact_out is None. Returns the reduction, if asked for."""
    stores = postact_out is not None
    results = gemm_dact(A, B, PreAct, activation, dx_out, postact_out, store_postact=stores, **options)
    return results[2] if len(results) == 3 else None


def gemm_dgated_out(
    A: torch.Tensor,
    B: torch.Tensor,
    PreAct: torch.Tensor,
    dx_out: torch.Tensor,
    postact_out: Optional[torch.Tensor],
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    **options,
) -> Optional[torch.Tensor]:
    """`gemm_dact_out` with a gated activation."""
    return gemm_dact_out(A, B, PreAct, dx_out, postact_out, GatedActivation.of(activation), **options)


class _ActTuned:
    """`gemm_act_tuned(...)` picks a configuration; `gemm_act_tuned.fn(..., config=...)` runs exactly that one."""

    def fn(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        preact_out: Optional[torch.Tensor],
        postact_out: torch.Tensor,
        C: Optional[torch.Tensor] = None,
        bias: Optional[torch.Tensor] = None,
        activation: ActivationName = None,
        cu_seqlens_m: Optional[torch.Tensor] = None,
        A_idx: Optional[torch.Tensor] = None,
        dynamic_scheduler: bool = False,
        config: Optional[GemmConfig] = None,
        concat_layout: Optional[tuple[str, ...]] = None,
    ) -> None:
        """`gemm_act` into given outputs; preact is not stored if preact_out is None."""
        function, names = activation_of(activation), operand_names(concat_layout)
        operands = {"A": A, "B": B, "C": C, "bias": bias, "cu_seqlens_m": cu_seqlens_m, "A_idx": A_idx}
        require_tensor("postact_out", postact_out)
        call = Forward(function, preact_out is not None, None, None, dynamic_scheduler, names, config)
        launch_forward(operands, preact_out, postact_out, call)

    __call__ = fn


class _GatedTuned(_ActTuned):
    """The same for gated activations only."""

    def fn(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        preact_out: Optional[torch.Tensor],
        postact_out: torch.Tensor,
        C: Optional[torch.Tensor] = None,
        bias: Optional[torch.Tensor] = None,
        activation: ActivationName = GatedActivation.SWIGLU,
        cu_seqlens_m: Optional[torch.Tensor] = None,
        A_idx: Optional[torch.Tensor] = None,
        dynamic_scheduler: bool = False,
        config: Optional[GemmConfig] = None,
        concat_layout: Optional[tuple[str, ...]] = None,
    ) -> None:
        """`gemm_gated` into given outputs; preact is not stored if preact_out is None."""
        function = GatedActivation.of(activation)
        super().fn(
            A, B, preact_out, postact_out, C, bias, function, cu_seqlens_m, A_idx, dynamic_scheduler, config,
            concat_layout,
        )  # fmt: skip

    __call__ = fn


class _DactTuned:
    """`gemm_dact_tuned(...)` picks a configuration; `gemm_dact_tuned.fn(..., config=...)` runs exactly that one."""

    def fn(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        PreAct: torch.Tensor,
        dx_out: torch.Tensor,
        postact_out: Optional[torch.Tensor],
        colvec_scale: Optional[torch.Tensor] = None,
        activation: ActivationName = None,
        colvec_reduce: bool = False,
        cu_seqlens_m: Optional[torch.Tensor] = None,
        A_idx: Optional[torch.Tensor] = None,
        dynamic_scheduler: bool = False,
        config: Optional[GemmConfig] = None,
    ) -> Optional[torch.Tensor]:
        """`gemm_dact_out`."""
        operands = {"A": A, "B": B, "colvec_scale": colvec_scale, "cu_seqlens_m": cu_seqlens_m, "A_idx": A_idx}
        require_tensor("dx_out", dx_out)
        stores = postact_out is not None
        call = Backward(activation_of(activation), stores, colvec_reduce, None, None, dynamic_scheduler, config)
        return launch_backward(operands, PreAct, dx_out, postact_out, call)[2]

    __call__ = fn


class _DgatedTuned(_DactTuned):
    """The same for gated activations only."""

    def fn(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        PreAct: torch.Tensor,
        dx_out: torch.Tensor,
        postact_out: Optional[torch.Tensor],
        colvec_scale: Optional[torch.Tensor] = None,
        activation: ActivationName = GatedActivation.SWIGLU,
        colvec_reduce: bool = False,
        cu_seqlens_m: Optional[torch.Tensor] = None,
        A_idx: Optional[torch.Tensor] = None,
        dynamic_scheduler: bool = False,
        config: Optional[GemmConfig] = None,
    ) -> Optional[torch.Tensor]:
        """`gemm_dgated_out`."""
        function = GatedActivation.of(activation)
        return super().fn(
            A, B, PreAct, dx_out, postact_out, colvec_scale, function, colvec_reduce, cu_seqlens_m, A_idx,
            dynamic_scheduler, config,
        )  # fmt: skip

    __call__ = fn


gemm_act_tuned, gemm_gated_tuned = _ActTuned(), _GatedTuned()
gemm_dact_tuned, gemm_dgated_tuned = _DactTuned(), _DgatedTuned()


# ---- references -------------------------------------------------------------------------------------------------------


def gemm_act_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    activation: ActivationName = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    store_preact: bool = True,
    concat_layout: Optional[tuple[str, ...]] = None,
) -> Outputs:
    """`gemm_act` in plain torch, in fp32 (float64 if A is): the oracle."""
    function = activation_of(activation)
    A, B, C, bias = logical(operand_names(concat_layout), A=A, B=B, C=C, bias=bias)
    preact = product_ref(A, B, cu_seqlens_m, A_idx)
    if C is not None:
        preact = preact + C.to(preact.dtype)
    if bias is not None:
        preact = preact + rows_ref(bias.to(preact.dtype), cu_seqlens_m)
    postact = apply_ref(function, preact).to(postact_dtype or default_dtype(A))
    return preact.to(out_dtype or default_dtype(A)) if store_preact else None, postact


def gemm_gated_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    **options,
) -> Outputs:
    """`gemm_gated` in plain torch."""
    return gemm_act_ref(A, B, C, bias, GatedActivation.of(activation), **options)


def gemm_dact_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    PreAct: torch.Tensor,
    activation: ActivationName = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    colvec_scale: Optional[torch.Tensor] = None,
    colvec_reduce: bool = False,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
) -> Gradients:
    """`gemm_dact` in plain torch, in fp32 (float64 if A is), with the gradient that autograd gives: the oracle."""
    function = activation_of(activation)
    gradient = product_ref(A, B, cu_seqlens_m, A_idx)
    scale = 1.0 if colvec_scale is None else colvec_scale.to(gradient.dtype).unsqueeze(-1)
    with torch.enable_grad():
        x = PreAct.detach().to(gradient.dtype).requires_grad_()
        values = apply_ref(function, x)
        (dx,) = torch.autograd.grad(values, x, gradient * scale)
    postact = (values.detach() * scale).to(postact_dtype or default_dtype(A))
    dx = dx.to(out_dtype or default_dtype(A))
    return (dx, postact, (gradient * values.detach()).sum(-1)) if colvec_reduce else (dx, postact)


def gemm_dgated_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    PreAct: torch.Tensor,
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    **options,
) -> Gradients:
    """`gemm_dgated` in plain torch."""
    return gemm_dact_ref(A, B, PreAct, GatedActivation.of(activation), **options)
