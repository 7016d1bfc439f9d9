"""The warp-level MMA for two operand dtypes."""

from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass._mlir.dialects.cute_nvgpu as cute_nvgpu_ir
from cutlass import Float32
from cutlass.cute.atom import MmaOp, make_atom
from cutlass.cute.core import _pack_shape
from cutlass.cute.nvgpu import warp

MMA_M, MMA_N, MMA_K_BYTES = 16, 8, 32  # of one mma.sync


@dataclass(frozen=True)
class MixedFp8Op(MmaOp):
    """mma.sync of e4m3 with e5m2. NOTE: `warp.MmaFP8Op` of CuTe DSL 4.8.1 has one dtype for both, the instruction has two."""

    a_dtype: Any
    b_dtype: Any

    def _make_trait(self, *, loc: Any = None, ip: Any = None, **_: Any) -> Any:
        shape = _pack_shape((MMA_M, MMA_N, MMA_K_BYTES), loc=loc, ip=ip)
        types = (self.a_dtype.mlir_type, self.b_dtype.mlir_type, Float32.mlir_type)
        atom_type = cute_nvgpu_ir.MmaAtomSM89Type.get(shape.type.attribute, *types)
        return warp.mma.MmaFP8Trait(make_atom(atom_type, loc=loc, ip=ip))

    def _verify_fragment_A(self, *_: Any, **__: Any) -> bool:
        return True

    def _verify_fragment_B(self, *_: Any, **__: Any) -> bool:
        return True


def warp_mma_op(a_dtype: Any, b_dtype: Any) -> MmaOp:
    """m16n8 and 32 bytes of K, fp32 sums: bf16, fp16, fp32 (as tf32: the low 13 bits of the mantissa are ignored), or e4m3 and
    e5m2 in any mix."""
    shape = (MMA_M, MMA_N, MMA_K_BYTES * 8 // a_dtype.width)
    if a_dtype is cutlass.Float32:
        return warp.MmaTF32Op(shape)
    if a_dtype.width == 16:
        return warp.MmaF16BF16Op(a_dtype, Float32, shape)
    return warp.MmaFP8Op(a_dtype, Float32, shape) if a_dtype is b_dtype else MixedFp8Op(a_dtype, b_dtype)
