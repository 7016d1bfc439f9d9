"""The last step of a fused RMS norm: from partial sums of squares to the reciprocal root mean square."""

import torch


def rms_final_reduce(x: torch.Tensor, scale: float, eps: float = 1e-6) -> torch.Tensor:
    """rsqrt(sum of x over its last dimension * scale + eps), fp32, x without its last dimension.

    x: (M, n) or (L, M, n), any float dtype: sums of squares of parts of a row, as `gemm_rms` makes them; scale is then 1 / N.
    """
    if not isinstance(x, torch.Tensor) or x.dim() < 1:
        raise TypeError(f"x is a {type(x).__name__}, expected a torch.Tensor of partial sums (M, n)")
    return x.sum(-1, dtype=torch.float32).mul_(scale).add_(eps).rsqrt_()
