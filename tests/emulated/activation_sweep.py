"""Every activation evaluated on the device over a dense sweep of numbers, with the error bounds that have to hold
there.

python -m tests.emulated.activation_sweep        prints measured errors, on a GPU if there is one, else emulated
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Optional, Union

import cutlass
import numpy as np
import torch
from cutlass import cute
from torch import Tensor

import quack
from quack.activation import Activation, GatedActivation
from quack.activation_ref import reference
from quack.cute_activation import ACTIVATIONS, GATED_ACTIVATIONS
from tests.emulated.conformance import fake

THREADS = 128
AnyActivation = Union[Activation, GatedActivation]
ALL: list[AnyActivation] = [*Activation, *GatedActivation]


# ---- kernels ---------------------------------------------------------------------------------------------------------


class ForwardSweep:
    """out[i] = i-th activation of x, or of (x, u). fp32 x, u (n,), out (activations, n), n a multiple of THREADS."""

    @cute.jit
    def __call__(self, x: cute.Tensor, u: cute.Tensor, out: cute.Tensor, stream):
        self.kernel(x, u, out).launch(grid=(cute.size(x) // THREADS, 1, 1), block=(THREADS, 1, 1), stream=stream)

    @cute.kernel
    def kernel(self, x: cute.Tensor, u: cute.Tensor, out: cute.Tensor):
        thread, _, _ = cute.arch.thread_idx()
        block, _, _ = cute.arch.block_idx()
        i = block * THREADS + thread
        rows = [f.forward(x[i]) for f in ACTIVATIONS.values()] + [
            f.forward(x[i], u[i]) for f in GATED_ACTIVATIONS.values()
        ]
        for row in cutlass.range_constexpr(len(rows)):
            out[row, i] = rows[row]


class BackwardSweep:
    """As ForwardSweep, with dy (n,); the rows of out (rows, n) are dx, post of each and dg, du, post of each."""

    @cute.jit
    def __call__(self, x: cute.Tensor, u: cute.Tensor, dy: cute.Tensor, out: cute.Tensor, stream):
        self.kernel(x, u, dy, out).launch(grid=(cute.size(x) // THREADS, 1, 1), block=(THREADS, 1, 1), stream=stream)

    @cute.kernel
    def kernel(self, x: cute.Tensor, u: cute.Tensor, dy: cute.Tensor, out: cute.Tensor):
        thread, _, _ = cute.arch.thread_idx()
        block, _, _ = cute.arch.block_idx()
        i = block * THREADS + thread
        gradients = [f.backward(x[i], dy[i]) for f in ACTIVATIONS.values()] + [
            f.backward(x[i], u[i], dy[i]) for f in GATED_ACTIVATIONS.values()
        ]
        rows = [value for gradient in gradients for value in gradient]
        for row in cutlass.range_constexpr(len(rows)):
            out[row, i] = rows[row]


BACKWARD_ROWS = 2 * len(ACTIVATIONS) + 3 * len(GATED_ACTIVATIONS)


@functools.cache
def compiled(kernel: type, count: int, rows: int, n: int, on_gpu: bool) -> Any:
    tensors = [torch.empty(n)] * count + [torch.empty(rows, n)]
    options = "--enable-tvm-ffi --gpu-arch sm_90a" if on_gpu else quack.emulator.compile_options("sm90")
    stream = cute.runtime.make_fake_stream(use_tvm_ffi_env_stream=True)
    return cute.compile(kernel(), *map(fake, tensors), stream, options=options)


def launch(kernel: type, rows: int, *inputs: Tensor) -> Tensor:
    """The kernel's output (rows, n), on the inputs' device."""
    out = torch.full((rows, inputs[0].numel()), float("nan"), device=inputs[0].device)
    function = compiled(kernel, len(inputs), rows, inputs[0].numel(), out.is_cuda)
    if out.is_cuda:
        function(*inputs, out)
    else:
        quack.emulator.launch(function, *inputs, out)
    return out


class Outputs(NamedTuple):
    """What the device made of one activation: gradients are (dx,) or (dg, du), post was recomputed by the backward."""

    value: Tensor
    gradients: tuple[Tensor, ...]
    post: Tensor


def evaluate(x: Tensor, u: Tensor, dy: Tensor) -> dict[AnyActivation, Outputs]:
    forward = launch(ForwardSweep, len(ALL), x, u).cpu()
    backward = iter(launch(BackwardSweep, BACKWARD_ROWS, x, u, dy).cpu())
    outputs = {}
    for activation, value in zip(ALL, forward):
        *gradients, post = (next(backward) for _ in range(2 + isinstance(activation, GatedActivation)))
        outputs[activation] = Outputs(value, tuple(gradients), post)
    return outputs


# ---- inputs ----------------------------------------------------------------------------------------------------------


def sweep() -> Tensor:
    """(n,) finite fp32 numbers: 0, subnormals, 1e-8 to 1e4 and far beyond, of both signs; half are bf16 numbers."""
    generator = torch.Generator().manual_seed(0)
    positive = torch.cat(
        [
            torch.tensor([0.0, 2.0**-149, 1e-40, 2.0**-126, 1e-30, 87.33, 87.34, 88.0, 88.7, 89.0, 1e8, 1e30, 3.3e38]),
            torch.logspace(-8, 4, 1027, dtype=torch.float64).float(),
            torch.linspace(0, 100, 1032),
            torch.linspace(0, 12, 1000),
            (torch.randn(1024, generator=generator) * 3).abs(),
        ]
    )  # 4096
    x = torch.cat([positive, -positive])
    return torch.cat([x, x.bfloat16().float().clamp(-3.3e38, 3.3e38)])


def companions(x: Tensor) -> tuple[Tensor, Tensor]:
    """u and dy for these x: normal, u also close to -1 (where u + 1 cancels) and over powers of two."""
    generator = torch.Generator().manual_seed(1)
    u, dy = torch.randn(2, x.numel(), generator=generator)
    u[::4] = -1 + u[::4] * 1e-4
    u[1::4] *= torch.randint(-20, 20, u[1::4].shape, generator=generator).float().exp2()
    return u, dy


# ---- bounds ----------------------------------------------------------------------------------------------------------


class Bound(NamedTuple):
    """|result - exact| <= (relative |exact|, or absolute within 0.3 of `root`) + floor.

    They follow from the PTX ISA's bounds for tanh, ex2 (2 ulp) and rcp (1 ulp); e = 2^-24 is one rounding.
    sigmoid: the argument of ex2 is off by 1.22 e (product, constant) of at most 87.34, so the exponential by
    107 e and its own 4 e, its sum with 1 by e, its reciprocal by 2 e: below 128 e = 2^-17. silu: one e more. gelu: the
    argument is off by 5 e, the exponential by 437 e: 2^-15. Slopes: as their sigmoid, and what 1 + x (1 - s) loses, at
    most fivefold 10 e away from its zero.
    """

    relative: float
    floor: float = 2.0**-149
    absolute: float = 0.0
    root: Optional[float] = None

    def allowed(self, x: Tensor, exact: Tensor, scale: Tensor) -> Tensor:
        """scale: what the function's own value was multiplied by to give `exact`."""
        error = self.relative * exact.abs()
        if self.root is not None:
            error = torch.where((x - self.root).abs() < 0.3, self.absolute * scale.abs(), error)
        return error + self.floor * scale.abs() + 2.0**-149


ROUNDING = 2.0**-24
FLUSHED = 2.0**-118  # what a factor below 2^-126 that became 0 can have been multiplied by: 88, or gelu's 10 * 23
CANCELLED = 2.0**-51  # float64 autograd computes 1 - s and 1 - tanh^2 by subtraction
TANH = 2.0**-11 * (1 + 2.0**-10)
SILU_ROOT, GELU_ROOT = -1.2784645, -0.7517916
FORWARD = {
    Activation.IDENTITY: Bound(0),
    Activation.RELU: Bound(0),
    Activation.RELU_SQ: Bound(ROUNDING),
    Activation.GELU_TANH_APPROX: Bound(2.0**-15, FLUSHED),
    Activation.SILU: Bound(2.0**-17, FLUSHED),
    Activation.TANH: Bound(TANH),
    Activation.SIGMOID: Bound(2.0**-17, FLUSHED),
}
SLOPE = {
    Activation.IDENTITY: Bound(ROUNDING),
    Activation.RELU: Bound(ROUNDING),
    Activation.RELU_SQ: Bound(2 * ROUNDING),
    Activation.GELU_TANH_APPROX: Bound(2.0**-14, FLUSHED, 2.0**-20, GELU_ROOT),
    Activation.SILU: Bound(2.0**-16, FLUSHED, 2.0**-20, SILU_ROOT),
    Activation.TANH: Bound(2.0**-16, CANCELLED),
    Activation.SIGMOID: Bound(2.0**-16, CANCELLED),
}
INNER = {
    GatedActivation.SWIGLU: Activation.SILU,
    GatedActivation.SWIGLU_OAI: Activation.SILU,
    GatedActivation.REGLU: Activation.RELU,
    GatedActivation.GEGLU: Activation.GELU_TANH_APPROX,
    GatedActivation.GLU: Activation.SIGMOID,
}


def bounds(activation: AnyActivation) -> tuple[Bound, Bound]:
    """Of the value and of the slope with respect to x or g."""
    if isinstance(activation, Activation):
        return FORWARD[activation], SLOPE[activation]
    value, slope = FORWARD[INNER[activation]], SLOPE[INNER[activation]]
    value = value._replace(relative=value.relative + 2 * ROUNDING)
    slope = slope._replace(relative=slope.relative + 2 * ROUNDING)
    if activation is GatedActivation.SWIGLU_OAI:  # 1.702 log2(e) is rounded, too: 175 e where silu has 107 e
        value, slope = value._replace(relative=2 * value.relative), slope._replace(relative=2 * slope.relative)
        slope = slope._replace(root=SILU_ROOT / 1.702)
    return value, slope


class Check(NamedTuple):
    """One result against float64, and the error that is allowed, (n,) each."""

    what: str
    result: Tensor
    exact: Tensor
    allowed: Tensor

    def representable(self) -> Tensor:
        """Where the exact result is no overflow."""
        return self.exact.abs() < 3.402e38

    def errors(self) -> Tensor:
        return (self.result.double() - self.exact).abs()[self.representable()]


def checks(activation: AnyActivation, outputs: Outputs, x: Tensor, u: Tensor, dy: Tensor) -> list[Check]:
    """Values, recomputed values and gradients against float64 and torch.autograd."""
    arguments = [t.double().requires_grad_() for t in ((x, u) if isinstance(activation, GatedActivation) else (x,))]
    exact = reference(activation)(*arguments)
    gradients = torch.autograd.grad(exact, arguments, dy.double())
    exact, x, dy, one = exact.detach(), x.double(), dy.double(), torch.ones(())
    value, slope = bounds(activation)
    up = u.double() + (activation is GatedActivation.SWIGLU_OAI) if len(arguments) == 2 else one
    scales = [(slope, dy * up), (value, dy)]
    found = [
        Check("value", outputs.value, exact, value.allowed(x, exact, up)),
        Check("post", outputs.post, exact, value.allowed(x, exact, up)),
    ]
    for name, result, gradient, (bound, scale) in zip(("dx", "du"), outputs.gradients, gradients, scales):
        bound = bound._replace(relative=bound.relative + 2 * ROUNDING)  # dy, and what the gate multiplies
        found.append(Check(name, result, gradient, bound.allowed(x, gradient, scale)))
    return found


# ---- an adversary's special functions --------------------------------------------------------------------------------


def off_by(function: Callable[..., Any], ulps: float, relative: float = 0.0) -> Callable[..., Any]:
    """`function` with an error of `ulps` units in the last place of fp32, or a relative one; infinities and 0 stay."""

    def run(*values: Any) -> Any:
        exact = function(*values)
        size = np.abs(np.where(np.isfinite(exact), exact, 0.0)).clip(0, 3.4e38).astype(np.float32)
        return exact + ulps * np.where(size > 0, np.spacing(size), 0) + relative * np.where(size > 0, exact, 0)

    return run


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = sweep()
    u, dy = companions(x)
    outputs = evaluate(x.to(device), u.to(device), dy.to(device))
    print(f"{'activation':18} {'result':6} {'relative error (|exact| > 1e-30)':>34} {'of the bound':>14}")
    for activation in ALL:
        for check in checks(activation, outputs[activation], x, u, dy):
            exact, error = check.exact.abs()[check.representable()], check.errors()
            normal = exact > 1e-30
            relative = (error[normal] / exact[normal]).max().item()
            used = (error / check.allowed[check.representable()].clamp(min=2.0**-149)).max().item()
            size = f"2^{np.log2(relative):.1f}" if relative else "0"
            print(f"{activation.value!s:18} {check.what:6} {size:>34} {used:14.2f}")


if __name__ == "__main__":
    main()
