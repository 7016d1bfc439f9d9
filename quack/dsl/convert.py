"""Conversions in a form that ptxas handles well."""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float16, Float32, Int32
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

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
