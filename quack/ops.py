"""Functions for epilogues: fp32 registers or Python numbers in, fp32 registers out, no branches.

    softcap = quack.pointwise(lambda acc, cap: cap * quack.ops.tanh(acc / cap))

Approximations are the special function unit's, with the error bounds of the PTX ISA (see `dsl.fast_math`, and
`cute_activation` for the activations). Arithmetic and comparisons are Python's operators; a condition goes into `where`, since
an `if` on a run-time value cannot be traced.
"""

import math

from cutlass import Boolean, Float32

from .cute_activation import geglu, gelu_tanh_approx, glu, reglu, relu, relu_sq, sigmoid, silu, swiglu, swiglu_oai
from .dsl.fast_math import absolute, select
from .dsl.fast_math import exp2 as exp2_approx
from .dsl.fast_math import log2 as log2_approx
from .dsl.fast_math import maximum as larger
from .dsl.fast_math import minimum as smaller
from .dsl.fast_math import reciprocal as reciprocal_approx
from .dsl.fast_math import rsqrt as rsqrt_approx
from .dsl.fast_math import sqrt as sqrt_approx
from .dsl.fast_math import tanh as tanh_approx

__all__ = [
    "abs", "exp", "exp2", "geglu", "gelu_tanh_approx", "glu", "log", "log2", "maximum", "minimum", "reciprocal", "reglu", "relu",
    "relu_sq", "rsqrt", "sigmoid", "silu", "sqrt", "swiglu", "swiglu_oai", "tanh", "where",
]  # fmt: skip


def tanh(x: float) -> Float32:
    """tanh(x); relative error at most 2^-11."""
    return tanh_approx(Float32(x))


def exp2(x: float) -> Float32:
    """2^x; at most 2 ulp, 0 below 2^-126."""
    return exp2_approx(Float32(x))


def exp(x: float) -> Float32:
    """e^x as 2^(x log2 e); relative error about |x| * 2^-24 + 2^-22."""
    return exp2_approx(Float32(x) * math.log2(math.e))


def log2(x: float) -> Float32:
    """log2(x); absolute error at most 2^-22 for x in [1/2, 2], else relative. -inf at 0, NaN below 0."""
    return log2_approx(Float32(x))


def log(x: float) -> Float32:
    """Natural logarithm, as log2(x) ln 2."""
    return log2_approx(Float32(x)) * math.log(2.0)


def rsqrt(x: float) -> Float32:
    """1 / sqrt(x); relative error at most 2^-22.9. inf at 0, NaN below."""
    return rsqrt_approx(Float32(x))


def sqrt(x: float) -> Float32:
    """sqrt(x); relative error at most 2^-22. NaN below 0."""
    return sqrt_approx(Float32(x))


def reciprocal(x: float) -> Float32:
    """1 / x; at most 1 ulp. Cheaper than a division."""
    return reciprocal_approx(Float32(x))


def maximum(x: float, y: float) -> Float32:
    """The larger; NaN if either is."""
    return larger(Float32(x), y)


def minimum(x: float, y: float) -> Float32:
    """The smaller; NaN if either is."""
    return smaller(Float32(x), y)


def abs(x: float) -> Float32:  # noqa: A001 - called as ops.abs
    """|x|."""
    return absolute(Float32(x))


def where(condition: Boolean, if_true: float, if_false: float) -> Float32:
    """if_true where the condition (a comparison) holds, else if_false; both are computed."""
    return select(condition, if_true, if_false)
