"""The last step of a fused RMS norm: from partial sums of squares to the reciprocal root mean square."""

from typing import Optional

import torch

from .runtime.device import emulation_key, why_unusable
from .runtime.operands import DTYPE_OF_TORCH
from .runtime.rms_final import MAX_ROWS, RmsFinalPlan, prepare_rms_final

MAX_PLANS = 8192

_plans: dict[tuple, RmsFinalPlan] = {}


def rms_final_reduce(x: torch.Tensor, scale: float, eps: float = 1e-6) -> torch.Tensor:
    """rsqrt(sum of x over its last dimension * scale + eps), fp32, x without its last dimension.

    x: (M, n) or (L, M, n), any strides: sums of squares of parts of a row, as `gemm_rms` makes them; scale is then 1 / N. bf16,
    fp16 and fp32 are read in place and added in fp32, in an order that is the same in every run; other float dtypes are converted
    to fp32 first. n = 0 gives rsqrt(eps). One kernel; not differentiable.

    TypeError: x is no tensor, scale or eps no number; ValueError: its dtype, its device, or more than 2^31 - 128 rows.
    """
    if not isinstance(x, torch.Tensor) or x.dim() < 1:
        what = "0-dimensional tensor" if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"x is a {what}, expected a torch.Tensor of partial sums (M, n)")
    for name, value in (("scale", scale), ("eps", eps)):
        if not isinstance(value, (int, float)):
            raise TypeError(f"{name} is a {type(value).__name__}, expected a float")
    if torch.compiler.is_compiling():
        return _op(x, float(scale), float(eps))
    return reduce_rows(x, scale, eps)


def rms_final_reduce_ref(x: torch.Tensor, scale: float, eps: float = 1e-6) -> torch.Tensor:
    """`rms_final_reduce` in plain torch, in fp32, or in float64 if x is."""
    return (x.sum(-1, dtype=torch.promote_types(x.dtype, torch.float32)) * scale + eps).rsqrt()


def reduce_rows(x: torch.Tensor, scale: float, eps: float, out: Optional[torch.Tensor] = None) -> torch.Tensor:
    """`rms_final_reduce`, types being right. out: where to, fp32 with contiguous columns."""
    key = (
        x.shape, x.stride(), x.dtype, x.get_device(), x.data_ptr() & 15, None if x.is_cuda else emulation_key(),
    )  # fmt: skip
    plan = _plans.get(key)
    if plan is None:
        _check(x)
    if out is None:
        out = x.new_empty(x.shape[:-1], dtype=torch.float32)
    if plan is None:
        if x.numel() == 0:
            return out.fill_(eps).rsqrt_()
        if x.dim() not in (2, 3) or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            reduce_rows(x.reshape(-1, x.shape[-1]).float(), scale, eps, out.view(-1))
            return out
        plan = prepare_rms_final(x)
        if len(_plans) >= MAX_PLANS:
            _plans.clear()
        _plans[key] = plan
    plan.run(x, out, float(scale), float(eps))
    return out


def _check(x: torch.Tensor) -> None:
    if not x.dtype.is_floating_point:
        raise ValueError(f"x has dtype {x.dtype}, expected one of " + ", ".join(map(str, DTYPE_OF_TORCH)))
    if fault := why_unusable("x", x.device):
        raise ValueError(fault)
    if x.shape[-1] and x.numel() // x.shape[-1] > MAX_ROWS:
        raise ValueError(f"x has shape {tuple(x.shape)}: more than {MAX_ROWS} rows; pass parts of it")


# As the ops of the GEMMs: torch.compile sees one opaque op, eager calls never pass through the dispatcher.
@torch.library.custom_op("quack::rms_final_reduce", mutates_args=())
def _op(x: torch.Tensor, scale: float, eps: float) -> torch.Tensor:
    return reduce_rows(x, scale, eps)


@_op.register_fake
def _(x: torch.Tensor, scale: float, eps: float) -> torch.Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.float32)
