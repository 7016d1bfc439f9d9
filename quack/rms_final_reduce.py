"""The last step of a fused RMS norm: from partial sums of squares to the reciprocal root mean square."""

import torch

from .runtime.row_sum import sum_rows


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
    return sum_rows(x, (scale, eps))


def rms_final_reduce_ref(x: torch.Tensor, scale: float, eps: float = 1e-6) -> torch.Tensor:
    """`rms_final_reduce` in plain torch, in fp32, or in float64 if x is."""
    return (x.sum(-1, dtype=torch.promote_types(x.dtype, torch.float32)) * scale + eps).rsqrt()


# As the ops of the GEMMs: torch.compile sees one opaque op, eager calls never pass through the dispatcher.
@torch.library.custom_op("quack::rms_final_reduce", mutates_args=())
def _op(x: torch.Tensor, scale: float, eps: float) -> torch.Tensor:
    return sum_rows(x, (scale, eps))


@_op.register_fake
def _(x: torch.Tensor, scale: float, eps: float) -> torch.Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.float32)
