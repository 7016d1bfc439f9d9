"""Scalar fp32 functions that are one instruction each: the special function unit's approximations, and min and max.

Error bounds are those of the PTX ISA (9.0, sections 9.7.3.x). The unit makes 16 results a clock and SM on Hopper (an
FMA: 128), so these, not the arithmetic around them, are what an activation costs.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32


def tanh(x: Float32) -> Float32:
    """tanh.approx.f32: relative error at most 2^-11; subnormals kept, tanh(+-inf) = +-1."""
    return Float32(cute.math.tanh(x, approx=True))


def exp2(x: Float32) -> Float32:
    """ex2.approx.ftz.f32: at most 2 ulp; 0 where 2^x is subnormal, inf from x = 128 on."""
    return Float32(cute.math.exp2(x, approx=True, ftz=True))


def log2(x: Float32) -> Float32:
    """lg2.approx.ftz.f32: absolute error at most 2^-22 for x in [0.5, 2], relative error 2^-22 elsewhere; -inf at 0."""
    return Float32(cute.math.log2(x, approx=True, ftz=True))


def reciprocal(x: Float32) -> Float32:
    """rcp.approx.ftz.f32: at most 1 ulp; 0 where 1/x is subnormal, that is for |x| > 2^126."""
    return cute.arch.rcp_approx(x)


def maximum(x: Float32, y: float) -> Float32:
    """max.NaN.f32: unlike max.f32 it is NaN where x is."""
    return cute.arch.fmax(x, y, nan=True)


def minimum(x: Float32, y: float) -> Float32:
    """min.NaN.f32: unlike min.f32 it is NaN where x is."""
    return cute.arch.fmin(x, y, nan=True)


def absolute(x: Float32) -> Float32:
    """abs.f32; free as an operand of the next instruction."""
    return Float32(cute.math.absf(x))


def multiply_add(x: Float32, y: float, z: Float32) -> Float32:
    """fma.rn.f32: x * y + z rounded once."""
    return Float32(cute.math.fma(Float32(x), Float32(y), Float32(z)))


def select(condition: Boolean, if_true: float, if_false: float) -> Float32:
    """selp.f32, where `a if c else b` would be a branch to the tracer."""
    return Float32(cutlass.select_(condition, Float32(if_true), Float32(if_false)))


def rsqrt(x: Float32) -> Float32:
    """rsqrt.approx.ftz.f32: relative error at most 2^-22.9; inf for subnormals."""
    return Float32(cute.math.rsqrt(x, approx=True, ftz=True))


def sqrt(x: Float32) -> Float32:
    """sqrt.approx.ftz.f32: relative error at most 2^-22; 0 for subnormals."""
    return Float32(cute.math.sqrt(x, approx=True, ftz=True))
