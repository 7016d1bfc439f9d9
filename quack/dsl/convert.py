"""Conversions in a form that ptxas handles well."""

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float16, Float32, Int32
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

HIGH_HALF = -65536  # 0xFFFF0000
PTX_NAMES = {BFloat16: "bf16x2", Float16: "f16x2"}


@dsl_user_op
def _packed(low: Float32, high: Float32, name: str, *, loc=None, ip=None) -> Int32:
    """Both rounded to nearest in one instruction, `low` in the low half."""
    operands = [high.ir_value(loc=loc, ip=ip), low.ir_value(loc=loc, ip=ip)]
    return Int32(llvm.inline_asm(T.i32(), operands, f"cvt.rn.{name}.f32 $0, $1, $2;", "=r,f,f", loc=loc, ip=ip))


@cute.jit
def convert_pair(low: Float32, high: Float32, dtype: cutlass.Constexpr) -> cute.Tensor:
    """(2,) registers of `dtype`; bf16 and fp16 by one instruction even where the two are then used one by one.

    LLVM makes that two conversions of `.to(dtype)`. Where such a conversion reads accumulators, ptxas serialises every
    wgmma of the kernel (C7514); see docs/measured_facts.md.
    """
    values = cute.make_rmem_tensor(2, dtype)
    if cutlass.const_expr(PTX_NAMES.get(dtype) is not None):
        cute.recast_tensor(values, Int32)[0] = _packed(low, high, PTX_NAMES[dtype])
    else:
        source = cute.make_rmem_tensor(2, Float32)
        source[0], source[1] = low, high
        values.store(source.load().to(dtype))
    return values


def as_bits(x: Float32) -> Int32:
    """The bits of x. No instruction."""
    return Int32(llvm.bitcast(T.i32(), x.ir_value()))


def as_float(bits: Int32) -> Float32:
    """The number with these bits. No instruction."""
    return Float32(llvm.bitcast(T.f32(), bits.ir_value()))


def unpack_pair(word: Float32, dtype: Any) -> tuple[Float32, Float32]:
    """The bf16 or fp16 numbers that the low and the high half of a 32-bit word are. Exact."""
    bits = as_bits(word)
    if dtype is BFloat16:
        return as_float(bits << 16), as_float(bits & HIGH_HALF)
    halves = cute.make_rmem_tensor(2, dtype)  # the other way round, one word has stride 0, and so have its halves
    cute.recast_tensor(halves, Int32)[0] = bits
    return halves[0].to(Float32), halves[1].to(Float32)


def pack_pair(low: Float32, high: Float32, dtype: Any) -> Float32:
    """Both rounded to bf16 or fp16, as the halves of a 32-bit word. The inverse of `unpack_pair`."""
    return as_float(_packed(low, high, PTX_NAMES[dtype]))
