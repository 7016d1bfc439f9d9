"""The activations on the device: fp32 scalars in, fp32 scalars out, no branches, so they fit into unrolled register
loops.

Each activation `f` comes with its backward `df(x, dy)`, which also recomputes f(x); a gated one with `df(g, u, dy)`.
What is recomputed has the forward's bits: same operations, and no product and sum that ptxas could fuse only once.
`ACTIVATIONS` and `GATED_ACTIVATIONS` are the only maps from names to functions. To add an activation: a member in
`activation`, two functions and a line here, a reference in `activation_ref`; the tests then ask for its error bounds.

**Which approximations, and why.** Results mostly become bf16, whose half ulp is 2^-9 to 2^-8 of the number, so that is
what an error must stay below, relative to the *result*, small results included. The hardware has tanh.approx (one
special function, relative error 2^-11) and ex2 + rcp (two, about 2^-22).

- tanh: tanh.approx. A quarter of bf16's half ulp at worst. An fp16 output has half ulps of 2^-12 to 2^-11, an fp32
  output keeps the 2^-11: there one gets what the instruction gives.
- sigmoid, silu and all that contain them: ex2 + rcp. sigmoid(x) = tanh(x/2)/2 + 1/2 would save one special function,
  but its error is 2^-12 of *one*, not of the result: at x = -4 sigmoid is 0.018 and the error 1.3 % of it, two bf16
  ulps; from x = -9 on no digit is right. silu and gelu would inherit that for negative x.
- gelu: 1/2 (1 + tanh(v)) = sigmoid(2 v), for the same reason.
- The derivative of tanh is not 1 - tanh^2, which at x = 3 would be wrong by 10 % (2 * 2^-11 of one, and it is 0.0099
  there), but 4 e / (1 + e)^2 with e = exp(-2|x|); likewise 1 - sigmoid is e^-x * sigmoid, never a subtraction.
- Packed forms: fp32 has none on sm_90 (sm_100 has f32x2 add, mul and fma, but no special function); ex2 and tanh of
  f16x2 and bf16x2 are as inaccurate as their format, before the arithmetic that follows.

**Infinities and zeros.** x * sigmoid(x) is inf * 0 for x = -inf. So x is first clamped to where the sigmoid is 0 anyway
(flushed: below 2^-126) but e^-x still finite; the result is then -0, and derivatives at +-inf are their limits. One min
or max costs little beside the special functions. NaN stays NaN. What is flushed is less than 2^-118 of what it is
multiplied with.

**Errors** are relative to the result: bounds that follow from the PTX ISA's (derived in
tests/emulated/activation_sweep.py) and, in brackets, the worst of that sweep in the emulator, both with correctly
rounded special functions and with ones that err as much as the ISA allows, in either direction. Most of it is the
rounding of the exponent's argument, so large negative x are worst and |x| < 4 is below 2^-19. Slopes that cross zero
(silu, gelu) have an absolute bound within 0.3 of the crossing. Values below 2^-118, where factors are flushed, are
exempt. Measured on hardware: not yet (`python -m tests.emulated.activation_sweep` does it).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from cutlass import Float32

from .activation import Activation, GatedActivation
from .dsl.fast_math import absolute, exp2, maximum, minimum, reciprocal, select
from .dsl.fast_math import tanh as tanh_approx

LOG2_E = math.log2(math.e)
GELU_LINEAR = 2 * math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715 * GELU_LINEAR
OAI_SLOPE = 1.702

# Where e^-z is below 2^128 but 1 / (1 + e^-z) is below 2^-126 and flushed to 0: 87.34 < -z < 88.72.
SIGMOID_LIMIT = 88.0
GELU_LIMIT = 10.05  # GELU_LINEAR * x + GELU_CUBIC * x^3 = 88.5
OAI_LIMIT = SIGMOID_LIMIT / OAI_SLOPE


class ActivationGradient(NamedTuple):
    """dx = dy f'(x) and post = f(x)."""

    dx: Float32
    post: Float32


class GatedGradient(NamedTuple):
    """Of post = f(g) (u + offset): dg = dy (u + offset) f'(g), du = dy f(g), and post itself."""

    dg: Float32
    du: Float32
    post: Float32


class _ValueAndSlope(NamedTuple):
    value: Float32
    slope: Float32

    def gradient(self, dy: Float32) -> ActivationGradient:
        return ActivationGradient(dy * self.slope, self.value)

    def gate(self, up: Float32, dy: Float32) -> GatedGradient:
        return GatedGradient(dy * up * self.slope, dy * self.value, self.value * up)


class _Logistic(NamedTuple):
    """sigmoid(z) and 1 - sigmoid(z), both with a small relative error."""

    value: Float32
    complement: Float32


def _sigmoid_of_log2(z: Float32) -> Float32:
    """1 / (1 + 2^z), any z."""
    return reciprocal(1.0 + exp2(z))


def _logistic_of_log2(z: Float32) -> _Logistic:
    """1 / (1 + 2^z) and its complement; z < 128."""
    e = exp2(z)
    value = reciprocal(1.0 + e)
    return _Logistic(value, e * value)


# ---- one argument ----------------------------------------------------------------------------------------------------


def identity(x: Float32) -> Float32:
    """x."""
    return x


def didentity(x: Float32, dy: Float32) -> ActivationGradient:
    """dx = dy."""
    return ActivationGradient(dy, x)


def relu(x: Float32) -> Float32:
    """max(x, 0). Exact."""
    return maximum(x, 0.0)


def drelu(x: Float32, dy: Float32) -> ActivationGradient:
    """dx = dy where x > 0, else 0. Exact."""
    return _relu_slope(x).gradient(dy)


def _relu_slope(x: Float32) -> _ValueAndSlope:
    return _ValueAndSlope(relu(x), select(x > 0.0, 1.0, 0.0))


def relu_sq(x: Float32) -> Float32:
    """max(x, 0)^2. Rounded once: 2^-24."""
    positive = relu(x)
    return positive * positive


def drelu_sq(x: Float32, dy: Float32) -> ActivationGradient:
    """dx = 2 max(x, 0) dy. Rounded once."""
    positive = relu(x)
    return ActivationGradient(2.0 * positive * dy, positive * positive)


def tanh(x: Float32) -> Float32:
    """tanh(x). Error 2^-11, the instruction's; 2^-24 if that were exact."""
    return tanh_approx(x)


def dtanh(x: Float32, dy: Float32) -> ActivationGradient:
    """dx = dy / cosh(x)^2. Error 2^-16 [2^-17.9]."""
    e = exp2((-2 * LOG2_E) * absolute(x))
    r = reciprocal(1.0 + e)
    return ActivationGradient(dy * (4.0 * (e * r) * r), tanh(x))


def sigmoid(x: Float32) -> Float32:
    """1 / (1 + exp(-x)); 0 below -87.34. Error 2^-17 [2^-18.0]."""
    return _sigmoid_of_log2(-LOG2_E * x)


def dsigmoid(x: Float32, dy: Float32) -> ActivationGradient:
    """dx = dy s (1 - s) with s = sigmoid(x). Error 2^-16 [2^-17.9]."""
    s = _logistic_of_log2(-LOG2_E * maximum(x, -SIGMOID_LIMIT))
    return ActivationGradient(dy * (s.value * s.complement), s.value)


def silu(x: Float32) -> Float32:
    """x sigmoid(x); -0 below -87.34. Error 2^-17 [2^-18.0]."""
    return _scaled_silu(x, 1.0, SIGMOID_LIMIT)


def dsilu(x: Float32, dy: Float32) -> ActivationGradient:
    """dx = dy s (1 + x (1 - s)) with s = sigmoid(x). Error 2^-16 [2^-18.0], near x = -1.28 2^-20 dy."""
    return _scaled_silu_slope(x, 1.0, SIGMOID_LIMIT).gradient(dy)


def _scaled_silu(x: Float32, scale: float, limit: float) -> Float32:
    """x sigmoid(scale x), 0 from x = -limit down."""
    x = maximum(x, -limit)
    return x * _sigmoid_of_log2((-LOG2_E * scale) * x)


def _scaled_silu_slope(x: Float32, scale: float, limit: float) -> _ValueAndSlope:
    """The slope is s (1 + scale x (1 - s)); from x = limit up it is 1."""
    x = maximum(x, -limit)
    s = _logistic_of_log2((-LOG2_E * scale) * x)
    bounded = minimum(x, limit)
    return _ValueAndSlope(x * s.value, s.value * (1.0 + (scale * bounded) * s.complement))


def gelu_tanh_approx(x: Float32) -> Float32:
    """x/2 (1 + tanh(v)) = x sigmoid(2 v), v = sqrt(2/pi) (x + 0.044715 x^3); -0 below -10.0. Error 2^-15 [2^-17.0]."""
    x = maximum(x, -GELU_LIMIT)
    return x * _sigmoid_of_log2(_gelu_log2(x))


def dgelu_tanh_approx(x: Float32, dy: Float32) -> ActivationGradient:
    """dx = dy s (1 + 2 x v' (1 - s)) with s = sigmoid(2 v). Error 2^-14 [2^-17.0], near x = -0.75 2^-20 dy."""
    return _gelu_slope(x).gradient(dy)


def _gelu_log2(x: Float32) -> Float32:
    return x * ((-LOG2_E * GELU_CUBIC) * (x * x) + -LOG2_E * GELU_LINEAR)


def _gelu_slope(x: Float32) -> _ValueAndSlope:
    x = maximum(x, -GELU_LIMIT)
    s = _logistic_of_log2(_gelu_log2(x))
    bounded = minimum(x, GELU_LIMIT)
    inner = (3 * GELU_CUBIC) * (bounded * bounded) + GELU_LINEAR
    return _ValueAndSlope(x * s.value, s.value * (1.0 + (bounded * inner) * s.complement))


# ---- gated -----------------------------------------------------------------------------------------------------------


def swiglu(g: Float32, u: Float32) -> Float32:
    """silu(g) u. Error: as silu's, and a rounding."""
    return silu(g) * u


def dswiglu(g: Float32, u: Float32, dy: Float32) -> GatedGradient:
    """dg = dy u silu'(g), du = dy silu(g)."""
    return _scaled_silu_slope(g, 1.0, SIGMOID_LIMIT).gate(u, dy)


def swiglu_oai(g: Float32, u: Float32) -> Float32:
    """g sigmoid(1.702 g) (u + 1); nothing is clamped. Error 2^-16 [2^-18.0]."""
    return _scaled_silu(g, OAI_SLOPE, OAI_LIMIT) * (u + 1.0)


def dswiglu_oai(g: Float32, u: Float32, dy: Float32) -> GatedGradient:
    """dg = dy (u + 1) s (1 + 1.702 g (1 - s)), du = dy g s with s = sigmoid(1.702 g)."""
    return _scaled_silu_slope(g, OAI_SLOPE, OAI_LIMIT).gate(u + 1.0, dy)


def reglu(g: Float32, u: Float32) -> Float32:
    """relu(g) u. Rounded once."""
    return relu(g) * u


def dreglu(g: Float32, u: Float32, dy: Float32) -> GatedGradient:
    """dg = dy u where g > 0, else 0; du = dy relu(g)."""
    return _relu_slope(g).gate(u, dy)


def geglu(g: Float32, u: Float32) -> Float32:
    """gelu_tanh_approx(g) u. Error: as gelu's, and a rounding."""
    return gelu_tanh_approx(g) * u


def dgeglu(g: Float32, u: Float32, dy: Float32) -> GatedGradient:
    """dg = dy u gelu'(g), du = dy gelu(g)."""
    return _gelu_slope(g).gate(u, dy)


def glu(g: Float32, u: Float32) -> Float32:
    """sigmoid(g) u. Error: as sigmoid's, and a rounding."""
    return sigmoid(g) * u


def dglu(g: Float32, u: Float32, dy: Float32) -> GatedGradient:
    """dg = dy u s (1 - s), du = dy s with s = sigmoid(g)."""
    s = _logistic_of_log2(-LOG2_E * maximum(g, -SIGMOID_LIMIT))
    return _ValueAndSlope(s.value, s.value * s.complement).gate(u, dy)


# ---- by name ---------------------------------------------------------------------------------------------------------


class DeviceActivation(NamedTuple):
    """forward(x) -> f(x); backward(x, dy) -> ActivationGradient. Plain functions to be called while tracing."""

    forward: Callable[[Float32], Float32]
    backward: Callable[[Float32, Float32], ActivationGradient]


class DeviceGatedActivation(NamedTuple):
    """forward(g, u) -> f; backward(g, u, dy) -> GatedGradient. Plain functions to be called while tracing."""

    forward: Callable[[Float32, Float32], Float32]
    backward: Callable[[Float32, Float32, Float32], GatedGradient]


ACTIVATIONS = {
    Activation.IDENTITY: DeviceActivation(identity, didentity),
    Activation.RELU: DeviceActivation(relu, drelu),
    Activation.RELU_SQ: DeviceActivation(relu_sq, drelu_sq),
    Activation.GELU_TANH_APPROX: DeviceActivation(gelu_tanh_approx, dgelu_tanh_approx),
    Activation.SILU: DeviceActivation(silu, dsilu),
    Activation.TANH: DeviceActivation(tanh, dtanh),
    Activation.SIGMOID: DeviceActivation(sigmoid, dsigmoid),
}
GATED_ACTIVATIONS = {
    GatedActivation.SWIGLU: DeviceGatedActivation(swiglu, dswiglu),
    GatedActivation.SWIGLU_OAI: DeviceGatedActivation(swiglu_oai, dswiglu_oai),
    GatedActivation.REGLU: DeviceGatedActivation(reglu, dreglu),
    GatedActivation.GEGLU: DeviceGatedActivation(geglu, dgeglu),
    GatedActivation.GLU: DeviceGatedActivation(glu, dglu),
}
