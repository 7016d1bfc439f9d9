"""Kernels of one CTA that put single tensor core instructions before hardware and emulator alike.

D (M, N) = A (M, K) @ B (N, K)^T, accumulators (fp32, fp16 or int32) written as they are, operands copied to shared memory element
by element.
"""

from dataclasses import dataclass
from typing import Any

import cutlass
from cutlass import cute
from cutlass.cute.nvgpu import OperandMajorMode, warp, warpgroup
from cutlass.memory import SmemAllocator
from cutlass.utils import hopper_helpers as sm90_utils

from quack.dsl.compat import as_tf32, make_wgmma_tf32

THREADS = 128


@dataclass(frozen=True)
class WgmmaTile:
    """M = 64: wgmma over all of K, one instruction after the other, operands in swizzled layouts.

    swizzle: bytes of the swizzle span, 16 (none), 32, 64 or 128. a_from_registers: A is the register operand. fp32 operands are
    multiplied in tf32, B K-major, and A if it is not from registers.
    """

    n: int
    k: int
    a_dtype: Any
    b_dtype: Any
    a_major: OperandMajorMode
    b_major: OperandMajorMode
    swizzle: int = 128
    a_from_registers: bool = False
    acc_dtype: Any = cutlass.Float32

    def tiled_mma(self) -> cute.TiledMma:
        source = warpgroup.OperandSource.RMEM if self.a_from_registers else warpgroup.OperandSource.SMEM
        if self.a_dtype is cutlass.Float32:
            return make_wgmma_tf32((64, self.n), 1, source)
        return sm90_utils.make_trivial_tiled_mma(
            self.a_dtype, self.b_dtype, self.a_major, self.b_major, self.acc_dtype, (1, 1, 1), (64, self.n), source
        )

    def smem_layout(self, rows: int, dtype: Any, major: OperandMajorMode) -> Any:
        side = "K" if major == OperandMajorMode.K else "MN"
        kind = f"{side}_INTER" if self.swizzle == 16 else f"{side}_SW{self.swizzle}"
        atom = warpgroup.make_smem_layout_atom(getattr(warpgroup.SmemLayoutAtomKind, kind), dtype)
        return cute.tile_to_shape(atom, (rows, self.k), (0, 1))

    @cute.jit
    def __call__(self, a: cute.Tensor, b: cute.Tensor, d: cute.Tensor, stream):
        self.kernel(a, b, d).launch(grid=(1, 1, 1), block=(THREADS, 1, 1), stream=stream)

    @cute.kernel
    def kernel(self, a: cute.Tensor, b: cute.Tensor, d: cute.Tensor):
        thread, _, _ = cute.arch.thread_idx()
        tiled_mma = self.tiled_mma()
        allocator = SmemAllocator()
        a_layout = self.smem_layout(64, self.a_dtype, self.a_major)
        b_layout = self.smem_layout(self.n, self.b_dtype, self.b_major)
        sA = allocator.allocate_tensor(self.a_dtype, a_layout.outer, 1024, swizzle=a_layout.inner)
        sB = allocator.allocate_tensor(self.b_dtype, b_layout.outer, 1024, swizzle=b_layout.inner)
        for i in cutlass.range(thread, 64 * self.k, THREADS):
            sA[i // self.k, i % self.k] = a[i // self.k, i % self.k]
        for i in cutlass.range(thread, self.n * self.k, THREADS):
            sB[i // self.k, i % self.k] = b[i // self.k, i % self.k]
        cute.arch.fence_proxy("async.shared", space="cta")
        cute.arch.sync_threads()

        part = tiled_mma.get_slice(thread)
        is_tf32 = self.a_dtype is cutlass.Float32
        operand_a = as_tf32(sA, a_layout.inner) if cutlass.const_expr(is_tf32) else sA
        operand_b = as_tf32(sB, b_layout.inner) if cutlass.const_expr(is_tf32) else sB
        tCrB = tiled_mma.make_fragment_B(part.partition_B(operand_b))
        tCrA = tiled_mma.make_fragment_A(part.partition_A(operand_a))
        if cutlass.const_expr(self.a_from_registers):
            tCsA = part.partition_A(sA)
            words = cute.recast_tensor(tCrA, self.a_dtype)
            for i in cutlass.range_constexpr(cute.size(tCrA)):
                words[i] = tCsA[i]
        acc = cute.make_rmem_tensor(tiled_mma.partition_shape_C((64, self.n)), self.acc_dtype)
        warpgroup.fence()
        for k in cutlass.range_constexpr(cute.size(tCrB, mode=[2])):
            tiled_mma.set(warpgroup.Field.ACCUMULATE, k != 0)
            cute.gemm(tiled_mma, acc, tCrA[None, None, k], tCrB[None, None, k], acc)
        warpgroup.commit_group()
        warpgroup.wait_group(0)
        tCgD = part.partition_C(d)
        for i in cutlass.range_constexpr(cute.size(acc)):
            tCgD[i] = acc[i]


@dataclass(frozen=True)
class WarpMmaTile:
    """M = 16, N = 8: mma.sync m16n8k16 over all of K by one warp, operands straight from global memory."""

    k: int
    dtype: Any

    @cute.jit
    def __call__(self, a: cute.Tensor, b: cute.Tensor, d: cute.Tensor, stream):
        self.kernel(a, b, d).launch(grid=(1, 1, 1), block=(32, 1, 1), stream=stream)

    @cute.kernel
    def kernel(self, a: cute.Tensor, b: cute.Tensor, d: cute.Tensor):
        thread, _, _ = cute.arch.thread_idx()
        tiled_mma = cute.make_tiled_mma(warp.MmaF16BF16Op(self.dtype, cutlass.Float32, (16, 8, 16)))
        part = tiled_mma.get_slice(thread)
        tCgA, tCgB, tCgD = part.partition_A(a), part.partition_B(b), part.partition_C(d)
        tCrA, tCrB = tiled_mma.make_fragment_A(tCgA), tiled_mma.make_fragment_B(tCgB)
        for i in cutlass.range_constexpr(cute.size(tCrA)):
            tCrA[i] = tCgA[i]
        for i in cutlass.range_constexpr(cute.size(tCrB)):
            tCrB[i] = tCgB[i]
        acc = tiled_mma.make_fragment_C(tCgD)
        acc.fill(0.0)
        for k in cutlass.range_constexpr(cute.size(tCrA, mode=[2])):
            cute.gemm(tiled_mma, acc, tCrA[None, None, k], tCrB[None, None, k], acc)
        for i in cutlass.range_constexpr(cute.size(acc)):
            tCgD[i] = acc[i]
