"""What CuTe DSL 4.8.1 lacks and we need; each entry says what goes wrong without it. tests/unit/test_compat.py fails when one
can go."""

from dataclasses import dataclass
from typing import Any

import cutlass.cute as cute
from cutlass import Boolean, Float32, TFloat32
from cutlass._mlir.dialects import cute_nvgpu
from cutlass.cute.atom import make_atom
from cutlass.cute.core import _pack_shape
from cutlass.cute.nvgpu import OperandMajorMode
from cutlass.cute.nvgpu.warpgroup import OperandSource
from cutlass.cute.nvgpu.warpgroup.mma import MmaOp, MmaTraits

WGMMA_TF32_K = 8


@dataclass(frozen=True)
class WgmmaTF32Op(MmaOp):
    """wgmma m64nNk8 .f32.tf32.tf32. The compiler knows it, but `cute.nvgpu.warpgroup` has no operation for it and
    `make_trivial_tiled_mma` raises TypeError."""

    descriptive_name = "warpgroup TF32 MMA Operation"

    def _make_trait(self, *, loc: Any = None, ip: Any = None, **_: Any) -> MmaTraits:
        kind = cute_nvgpu.MmaAtomSM90Type.get(
            _pack_shape(self.shape_mnk, loc=loc, ip=ip).type.attribute,
            self.a_major_mode._to_ir(),
            self.b_major_mode._to_ir(),
            self.a_dtype.mlir_type,
            self.b_dtype.mlir_type,
            self.acc_dtype.mlir_type,
            self.a_src._to_ir(),
        )
        return MmaTraits(make_atom(kind, [Boolean(False).ir_value(loc=loc, ip=ip)], loc=loc, ip=ip))


def make_wgmma_tf32(mn: tuple[int, int], warpgroups: int, a_source: OperandSource) -> cute.TiledMma:
    """As `make_trivial_tiled_mma`, for operands that `as_tf32` has relabelled, `warpgroups` stacked along M.

    wgmma reads 32-bit operands from shared memory K-major only; A may be in registers instead, with any layout before."""
    major = OperandMajorMode.K
    operation = WgmmaTF32Op(TFloat32, TFloat32, Float32, (*mn, WGMMA_TF32_K), a_source, major, major)
    return cute.make_tiled_mma(cute.make_mma_atom(operation), (warpgroups, 1, 1))


def as_tf32(smem: cute.Tensor, swizzle: cute.Swizzle) -> cute.Tensor:
    """The same fp32 in shared memory, relabelled for the tensor cores, which ignore the low 13 bits.

    `cute.recast_tensor` would drop the pointer's swizzle, and no descriptor can be made without it."""
    return cute.make_tensor(cute.recast_ptr(smem.iterator, swizzle, dtype=TFloat32), smem.layout)


def first_stage(staged: cute.ComposedLayout) -> cute.ComposedLayout:
    """The layout of one stage of a swizzled (rows, columns, stages).

    `cute.slice_` of the whole aborts the process where a stage is an odd multiple of 512 elements, e.g. 176 x 32."""
    return cute.make_composed_layout(staged.inner, staged.offset, cute.slice_(staged.outer, (None, None, 0)))
