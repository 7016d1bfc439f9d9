"""GEMMs around an RMS norm: the one before it computes the statistics, the one behind it applies them.

y = rmsnorm(x W1) W2 with norm weight w is two launches and no pass of its own over the activations, because the norm's
factor per row commutes with the second product:

    h, rstd = gemm_rms(x, W1, norm_weight=w)          h = (x W1) * w, rstd = 1 / rms of the rows of x W1
    _, y    = gemm_norm_act(h, W2, rstd)              y = act(rstd * (h W2))

Shapes, dtypes, strides and errors as in `gemm_interface`. Not differentiable by themselves.
"""

from typing import Optional, Union

import torch

from .activation import Activation, GatedActivation
from .activation_ref import reference
from .gemm_config import GemmConfig
from .gemm_interface import _check_out_dtype, _output, launch_with_epilogue
from .gemm_port import PortKind
from .gemm_reduce import row_reduction
from .reduction import Reduction
from .rms_final_reduce import rms_final_reduce
from .runtime.concat import concat_names, interleaved
from .runtime.epilogue import Port, Term
from .runtime.plan import GemmRequest
from .runtime.spec import UnsupportedGemm

_SCALE = "quack.epilogue.scale:"
_ACTIVATION = "quack.epilogue.activation:"
AnyActivation = Union[Activation, GatedActivation]


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
    return rms_final_reduce(squares, 1.0 / max(1, B.shape[-1]), eps)


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """`gemm_rms` in plain torch: in fp32, or in float64 if A is."""
    product = _product_ref(A, B)
    if C is not None:
        product = product + C.to(product.dtype)
    rstd = (product.square().sum(-1) / max(1, product.shape[-1]) + eps).rsqrt()
    if norm_weight is not None:
        product = product * norm_weight.to(product.dtype).unsqueeze(-2)
    return _store_ref(product, out, out_dtype or _default_dtype(A)), rstd


# ---- the GEMM behind the norm -----------------------------------------------------------------------------------------


def gemm_norm_act(
    A: torch.Tensor,
    B: torch.Tensor,
    rstd: Optional[torch.Tensor] = None,
    C: Optional[torch.Tensor] = None,
    activation: Union[str, AnyActivation, None] = None,
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
) -> tuple[Optional[torch.Tensor], torch.Tensor]:
    """(preact, postact): preact = rstd[:, None] * (A @ B) + C, postact = activation(preact).

    rstd (M,), (L, M) or (total_m,), any float dtype, None for ones. activation: see `quack.activation`; gated ones combine
    columns 2j (gate) and 2j + 1 (up), so postact has N / 2 columns. preact is None unless `store_preact` or `preact_out` asks
    for it; out_dtype is its dtype. concat_layout: names out of "A", "B", "C", as in `gemm`.
    """
    kind = parse_activation(activation)
    for tensor, dtype in ((preact_out, out_dtype), (postact_out, postact_dtype)):
        if tensor is not None:
            _check_out_dtype(tensor, dtype)
    if preact_out is None and store_preact:
        preact_out = _output(A, B, out_dtype, None, A_idx)
    if postact_out is None:
        postact_out = _output(A, B, postact_dtype, None, A_idx)
        if isinstance(kind, GatedActivation):
            postact_out = postact_out.new_empty((*postact_out.shape[:-1], B.shape[-1] // 2))
    names = _input_names(concat_layout)
    if torch.compiler.is_compiling():
        _norm_act_op(
            A, B, preact_out, postact_out, C, rstd, kind.value, dynamic_scheduler, cu_seqlens_m, A_idx, ",".join(names)
        )
    else:
        _launch_norm_act(
            A, B, preact_out, postact_out, C, rstd, kind, dynamic_scheduler, cu_seqlens_m, A_idx, names or None
        )
    return preact_out, postact_out


def gemm_norm_act_out(
    A: torch.Tensor, B: torch.Tensor, preact_out: Optional[torch.Tensor], postact_out: torch.Tensor, **options
) -> None:
    """`gemm_norm_act` into given outputs; preact_out may be None."""
    gemm_norm_act(A, B, preact_out=preact_out, postact_out=postact_out, **options)


def parse_activation(name: Union[str, AnyActivation, None]) -> AnyActivation:
    """The activation of that name, plain or gated."""
    if isinstance(name, GatedActivation) or name in [member.value for member in GatedActivation]:
        return GatedActivation.of(name)
    return Activation.of(name)


def _input_names(concat_layout: Optional[tuple[str, ...]]) -> tuple[str, ...]:
    names = concat_names(concat_layout) or () if concat_layout is not None else ()
    for name in names:
        if name not in ("A", "B", "C"):
            raise UnsupportedGemm(
                f"concat_layout names {name}, which gemm_norm_act writes in logical order only", "A, B, C"
            )
    return names


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
    is_gated = isinstance(activation, GatedActivation)
    launch_with_epilogue(
        GemmRequest(
            A, B, postact if preact is None else preact, C, config=config, dynamic=dynamic, cu_seqlens_m=cu_seqlens_m,
            A_idx=A_idx, concat_layout=concat_layout, leading=leading,
            epilogue=_activation_terms(activation, None if preact is None else postact),
            halves_out=is_gated and preact is None,
        )
    )  # fmt: skip


def _activation_terms(activation: AnyActivation, postact: Optional[torch.Tensor]) -> tuple[Term, ...]:
    """postact = activation(acc); without a postact of its own, acc becomes it."""
    if activation is Activation.IDENTITY and postact is None:
        return ()
    is_gated = isinstance(activation, GatedActivation)
    port = Port("postact", PortKind.TILE_OUTPUT, postact, is_halved=is_gated)
    mixin = _ACTIVATION + ("Gate" if is_gated else "Activate")
    swapped = None if is_gated else mixin
    return (Term(mixin, (port,), (("activation", activation),), swapped=swapped),)


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
    names = tuple(concat_layout.split(",")) if concat_layout else None
    kind = parse_activation(activation)
    _launch_norm_act(A, B, preact, postact, C, rstd, kind, dynamic, cu_seqlens_m, A_idx, names)


@_norm_act_op.register_fake
def _(A, B, preact, postact, C, rstd, activation, dynamic, cu_seqlens_m, A_idx, concat_layout):
    return None


def gemm_norm_act_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    rstd: Optional[torch.Tensor] = None,
    C: Optional[torch.Tensor] = None,
    activation: Union[str, AnyActivation, None] = None,
    preact_out: Optional[torch.Tensor] = None,
    postact_out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    store_preact: bool = False,
    concat_layout: Optional[tuple[str, ...]] = None,
) -> tuple[Optional[torch.Tensor], torch.Tensor]:
    """`gemm_norm_act` in plain torch: in fp32, or in float64 if A is."""
    names = _input_names(concat_layout)
    A, B = (interleaved(name, t) if name in names else t for name, t in (("A", A), ("B", B)))
    product = _product_ref(A, B)
    if rstd is not None:
        product = product * rstd.to(product.dtype).unsqueeze(-1)
    if C is not None:
        product = product + (interleaved("C", C) if "C" in names else C).to(product.dtype)
    kind = parse_activation(activation)
    function = reference(kind)
    result = (
        function(product[..., 0::2], product[..., 1::2]) if isinstance(kind, GatedActivation) else function(product)
    )
    preact = None
    if store_preact or preact_out is not None:
        preact = _store_ref(product, preact_out, out_dtype or _default_dtype(A))
    return preact, _store_ref(result, postact_out, postact_dtype or _default_dtype(A))


def _product_ref(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if A.dtype is torch.float64 else torch.float32
    return A.to(dtype) @ B.to(dtype)


def _default_dtype(A: torch.Tensor) -> torch.dtype:
    return torch.bfloat16 if A.dtype.itemsize == 1 else A.dtype


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
        activation: Union[str, AnyActivation, None] = None,
        dynamic_scheduler: bool = False,
        config: Optional[GemmConfig] = None,
        *,
        cu_seqlens_m: Optional[torch.Tensor] = None,
        A_idx: Optional[torch.Tensor] = None,
        concat_layout: Optional[tuple[str, ...]] = None,
    ) -> None:
        """`gemm_norm_act` into given outputs; preact_out None: not stored."""
        names = _input_names(concat_layout) or None
        kind = parse_activation(activation)
        _launch_norm_act(
            A, B, preact_out, postact_out, C, rstd, kind, dynamic_scheduler, cu_seqlens_m, A_idx, names, config
        )

    __call__ = fn


gemm_norm_act_tuned = _NormActTuned()
