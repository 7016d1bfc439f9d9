"""The oracle: the exact result in float64, and how far a correct kernel may be from it.

Error model. A kernel adds products in fp32 (or in the narrower adder of fp8 tensor cores) and rounds once on output:

    |out - exact| <= u * |exact| + c * acc * size

u     unit roundoff 2^-p of the output dtype, p significant bits: the largest relative error of one rounding. Over many
      elements its root mean square is 0.38 u to 0.42 u (1.5e-3 to 1.65e-3 for bf16), hence ROUNDING_RMS.
size  typical magnitude of the terms: alpha * sqrt(A^2 @ B^2) + |beta * C| + |bias|. It is what partial sums look like
      (about sqrt(K) for normal inputs) and does not vanish where the result happens to cancel.
acc   relative error of the accumulation, see `accumulation_error`. A single element may be `ELEMENT_FACTOR` times worse.
"""

from typing import NamedTuple, Optional

import torch

from tests.cases import Case, CaseOperands

SIGNIFICANT_BITS = {
    torch.float32: 24,
    torch.float16: 11,
    torch.bfloat16: 8,
    torch.float8_e4m3fn: 4,
    torch.float8_e5m2: 3,
}
ROUNDING_RMS = 0.5  # 0.42 with some room; only for outputs large enough for a root mean square to mean something
RMS_MIN_ELEMENTS = 4096
ELEMENT_FACTOR = 8.0
TF32_DROPPED_BITS = 13
HUGE = 1 << 28  # output elements beyond which the reference is computed in float32


class Reference(NamedTuple):
    exact: torch.Tensor
    size: torch.Tensor


def accumulation_error(case: Case) -> float:
    """Relative to the size of the sum.

    bf16, fp16: products are exact; each of the K / 16 wgmma steps truncates the running sum to about 24 bits, always
    towards zero, so errors add up: K / 16 * 2^-23 at worst, plus the alignment of the 16 products within a step.
    K = 2048 gives 1.9e-5. fp8 keeps about 14 bits instead and takes 32 products a step; K = 4096 gives 1.7e-2 with fast
    accumulation. Without it only 128 (or 256) products meet in that adder: 8 steps of 2^-13, 2e-3 with the products'.
    fp32 operands are multiplied in tf32 (`as_multiplied`), 8 products a step, added as 16-bit ones are.
    """
    if not case.is_fp8:
        return 4e-6 + case.k / (8 if case.a == "fp32" else 16) * 2.0**-23
    return 1e-3 + case.k / 32 * 2.0**-13 if case.fast_accum else 2e-3


def as_multiplied(x: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """An operand as the tensor cores see it: tf32 has fp32's sign, exponent and 10 upper mantissa bits."""
    if x.dtype is torch.float32:
        x = (x.view(torch.int32) & -(1 << TF32_DROPPED_BITS)).view(torch.float32)
    return x.to(dtype)


def reference(case: Case, operands: CaseOperands, C: Optional[torch.Tensor]) -> Reference:
    """C is passed by itself because an in-place case has overwritten it."""
    dtype = torch.float32 if case.m * case.n * (case.batch or 1) > HUGE else torch.float64
    a, b = as_multiplied(operands.A, dtype), as_multiplied(operands.B, dtype)
    # The kernel holds scalars in fp32.
    alpha = torch.as_tensor(operands.alpha, dtype=torch.float32).item()
    beta = torch.as_tensor(operands.beta, dtype=torch.float32).item()
    exact = alpha * (a @ b)
    size = abs(alpha) * ((a * a) @ (b * b)).sqrt()
    if C is not None:
        exact = exact + beta * C.to(dtype)
        size = size + abs(beta) * C.to(dtype).abs()
    if operands.bias is not None:
        row = operands.bias.to(dtype).unsqueeze(-2)
        exact = exact + row
        size = size + row.abs()
    return Reference(exact, size)


def relative_error(out: torch.Tensor, exact: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of the exact result."""
    difference = (out.to(exact.dtype) - exact).norm()
    return (difference / exact.norm().clamp_min(1e-30)).item()


def check(case: Case, out: torch.Tensor, expected: Reference) -> None:
    """Assert both bounds; the message says by how much and where."""
    exact, size = expected
    assert out.shape == exact.shape, f"{tuple(out.shape)} instead of {tuple(exact.shape)}"
    if out.numel() == 0:
        return
    got = out.to(exact.dtype)
    bad = ~torch.isfinite(got)
    assert not bad.any(), f"{int(bad.sum())} of {out.numel()} elements are NaN or inf, first at {_first(bad)}"
    u = 2.0 ** -SIGNIFICANT_BITS[out.dtype]
    acc = accumulation_error(case)
    error = (got - exact).abs()

    rounding = u * (ROUNDING_RMS if out.numel() >= RMS_MIN_ELEMENTS else 1.0)
    bound = rounding * exact.norm() + acc * size.norm()
    assert error.norm() <= bound, (
        f"Frobenius error {error.norm().item():.3e} > {bound.item():.3e} "
        f"(relative {relative_error(out, exact):.2e}, rounding {rounding:.1e}, accumulation {acc:.1e})"
    )
    subnormal = u * torch.finfo(out.dtype).smallest_normal  # half the step between numbers below that
    bounds = u * exact.abs() * 1.0001 + ELEMENT_FACTOR * acc * size + subnormal
    worse = error > bounds
    assert not worse.any(), (
        f"{int(worse.sum())} of {out.numel()} elements beyond their bound, first at {_first(worse)}: "
        f"got {got[worse][0].item()}, exact {exact[worse][0].item()}, bound {bounds[worse][0].item():.3e}"
    )


def _first(mask: torch.Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in mask.nonzero()[0])
