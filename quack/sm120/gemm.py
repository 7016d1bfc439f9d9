"""GEMM by mma.sync: D (M, N, L) = epilogue(A (M, K, L) x B (N, K, L)^T), TMA in, ldmatrix, mma.sync, TMA out, warp-specialised,
persistent. For GeForce Blackwell (sm_120a); every instruction exists on Hopper too, where tests on hardware run it (sm_90a).

Roles and barriers: see `execution.warpgroups`. The four warps of a warpgroup are stacked along M: warp w holds rows 16 w .. + 16
of each of its 64-row slabs, with accumulators where wgmma leaves them.

Main loop. Operands pass through registers, a *k block* (32 bytes of K: one mma.sync) at a time. The fragments of k block i + 1
are loaded while k block i is multiplied, across the border between stages too, so that only the first k block of a tile is
waited for. A stage goes back to the loading warp as soon as the fragments of its last k block have been loaded, one k block
before it has been multiplied; whether the next stage has landed is asked one k block earlier still.

Shared memory is what limits tiles, not the tensor cores' inputs. A k block of one warp with S slabs and N columns is

    loads  512 S bytes of A + 32 N bytes of B, at 128 bytes a clock and SM
    MMAs   S N / 8 of 16 x 8 x 16 (16-bit) = 256 S N FMA, at R FMA a clock and SM

| tile of a warpgroup | bytes | loads, clocks | MMA, Hopper (R = 1270: mma.sync reaches 0.62 of wgmma) | MMA, RTX 5090 (R = 256) |
|---------------------|-------|---------------|---------------------------------------------------------|-------------------------|
| 64 x 128            | 4608  | 36            | 26: bound by shared memory                              | 128                     |
| 128 x 64            | 3072  | 24            | 26                                                      | 128                     |
| 128 x 128           | 5120  | 40            | 52                                                      | 256                     |
| 64 x 256            | 8704  | 68            | 52: bound by shared memory, and 272 registers           | 256                     |

So two slabs a warpgroup: 128 x 128 ping-pong or 256 x 128 cooperative. On GeForce everything is bound by the tensor cores.
Registers of 128 x 128: 128 accumulators, 2 x 40 of fragments.

Stages of 32 KB (128 x 128 x 128 bytes of K) leave room for two of them beside the epilogue's 16 KB; on the RTX 5090 one lasts
4096 clocks, several times the latency of a load. Hopper multiplies it in 825 clocks and prefers tile_k of 64 bytes.

Measured on an H200 (bf16, 8192^3): 256 x 128 x 32 cooperative 430 TFLOP/s, 0.54 of GemmSm90; 128 x 128 ping-pong, where one warp
a scheduler multiplies at a time, 345; 128 x 128 cooperative (64 x 128 a warpgroup) 290, as counted above. fp8 is no faster than
16 bits there, 305: Hopper's tensor cores take fp8 from wgmma only, and mma.sync converts.
"""

from typing import Any, NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32
from cutlass.cute.nvgpu import CopyUniversalOp, warp
from cutlass.pipeline import PipelineState

from ..dsl.barrier import WARPGROUP_THREADS
from ..dsl.warp_mma import MMA_K_BYTES, warp_mma_op
from ..execution.cta import CtaContext, SmemTensors
from ..execution.warpgroups import MmaTeam, WarpgroupGemm
from ..gemm_base import is_inner_major
from ..gemm_config import OperandSpec
from ..gemm_resources import SLAB_M
from .resources import resources

STEP_N = 16  # columns that ldmatrix x4 loads of B: two MMAs


class FragmentSource(NamedTuple):
    """One operand on its way from shared memory to the registers that mma.sync reads.

    copy: ldmatrix, or plain loads where it cannot transpose. smem: this thread's part, (COPY, MMA_M or N, MMA_K, STAGE).
    target: the same registers as `fragments`, (MMA, MMA_M or N, MMA_K), as the copy fills them.
    """

    copy: cute.TiledCopy
    smem: cute.Tensor
    target: cute.Tensor
    fragments: cute.Tensor


class WarpMmaOperands(NamedTuple):
    """Only two k blocks of the fragments are alive at a time."""

    tiled_mma: cute.TiledMma
    a: FragmentSource
    b: FragmentSource


class GemmSm120(WarpgroupGemm):
    """Execution by mma.sync. Operands come from the adapter mixin, the commit from the plan mixin (see `compose`)."""

    budget = staticmethod(resources)

    def make_tiled_mma(self, warpgroups: Optional[int] = None) -> cute.TiledMma:
        """4 warps x `warpgroups` (default: all that share a tile) stacked along M."""
        warpgroups = warpgroups or self.sharing
        return cute.make_tiled_mma(
            warp_mma_op(self.a_dtype, self.b_dtype),
            (4 * warpgroups, 1, 1),
            permutation_mnk=(SLAB_M * warpgroups, STEP_N, MMA_K_BYTES * 8 // self.a_dtype.width),
        )

    def accumulator_shape(self, tiled_mma: cute.TiledMma):
        """As wgmma's: a slab's columns before the next slab."""
        return ((2, 2, self.config.tile_n // 8), self.resources.slabs, 1)

    def bind_mma(self, smem: SmemTensors, tiled_mma: cute.TiledMma, share: Int32) -> WarpMmaOperands:
        thread = share * WARPGROUP_THREADS + cute.arch.thread_idx()[0] % WARPGROUP_THREADS
        part = tiled_mma.get_slice(thread)
        copy_a = cute.make_tiled_copy_A(fragment_copy(self.specs.a, self.a_dtype), tiled_mma)
        copy_b = cute.make_tiled_copy_B(fragment_copy(self.specs.b, self.b_dtype), tiled_mma)
        tCrA = tiled_mma.make_fragment_A(part.partition_A(smem.a[None, None, 0]))
        tCrB = tiled_mma.make_fragment_B(part.partition_B(smem.b[None, None, 0]))
        return WarpMmaOperands(
            tiled_mma,
            FragmentSource(copy_a, copy_a.get_slice(thread).partition_S(smem.a), copy_a.retile(tCrA), tCrA),
            FragmentSource(copy_b, copy_b.get_slice(thread).partition_S(smem.b), copy_b.retile(tCrB), tCrB),
        )

    # ---- main loop ------------------------------------------------------------------------------------------------

    @cute.jit
    def multiply(
        self,
        cta: CtaContext,
        team: MmaTeam,
        slabs: cutlass.Constexpr[int],
        k_tiles: Int32,
        another_follows: Boolean,
        state: PipelineState,
    ) -> PipelineState:
        """The first `slabs` slabs; accumulators of the others become zero."""
        team.accumulators.fill(0.0)
        if cutlass.const_expr(slabs == 0):
            for _ in cutlass.range(k_tiles, unroll=1):
                cta.ab.consumer_wait(state)
                cta.ab.consumer_release(state)
                state.advance()
            self.hand_over(team, another_follows)
            return state
        if k_tiles > 0:
            cta.ab.consumer_wait(state)
            self.load_k_block(team, slabs, 0, Int32(0), state.index)
        k_blocks = self.config.tile_k * self.a_dtype.width // (8 * MMA_K_BYTES)
        steps, k_block = k_tiles * (k_blocks // 2), Int32(0)
        # NOTE: unrolled further, ptxas loads ever more k blocks ahead and spills.
        for step in cutlass.range(steps, unroll=1):
            self.load_k_block(team, slabs, 1, k_block + 1, state.index)
            following, is_landed = state.clone(), Boolean(True)
            k_block += 2
            ends_stage = k_block == k_blocks
            if ends_stage:
                following.advance()
                k_block = Int32(0)
                if step + 1 < steps:  # the answer arrives while the tensor cores are busy
                    is_landed = cta.ab.consumer_try_wait(following)
            self.multiply_k_block(team, slabs, 0)
            if ends_stage:
                self.release_stage(cta, state)
            if step + 1 < steps:
                cta.ab.consumer_wait(following, is_landed)
                self.load_k_block(team, slabs, 0, k_block, following.index)
            self.multiply_k_block(team, slabs, 1)
            state = following
        self.hand_over(team, another_follows)
        return state

    @cute.jit
    def load_k_block(
        self, team: MmaTeam, slabs: cutlass.Constexpr[int], half: cutlass.Constexpr[int], k_block: Int32, stage: Int32
    ):
        """Fragments of one k block of a stage, into one half of the registers for them."""
        a, b = team.mma.a, team.mma.b
        for slab in cutlass.range_constexpr(slabs):
            cute.copy(a.copy, a.smem[None, slab, k_block, stage], a.target[None, slab, half])
        cute.copy(b.copy, b.smem[None, None, k_block, stage], b.target[None, None, half])

    @cute.jit
    def release_stage(self, cta: CtaContext, state: PipelineState):
        """The warp has loaded its last fragments of the stage. Reads before the arrival are not ordered before TMA's next write,
        which is of the async proxy, unless a fence says so."""
        cute.arch.fence_proxy("async.shared", space="cta")
        cute.arch.sync_warp()
        cta.ab.consumer_release(state)

    @cute.jit
    def multiply_k_block(self, team: MmaTeam, slabs: cutlass.Constexpr[int], half: cutlass.Constexpr[int]):
        """Add the product of one k block to the first `slabs` slabs."""
        columns = self.config.tile_n // 8
        a, b = team.mma.a.fragments, team.mma.b.fragments
        for slab in cutlass.range_constexpr(slabs):
            first = team.accumulators.iterator + 4 * columns * slab
            sums = cute.make_tensor(first, cute.make_layout(((2, 2), 1, columns), stride=((1, 2), 0, 4)))
            tCrA = cute.append_ones(a[None, slab, half], up_to_rank=2)
            cute.gemm(team.mma.tiled_mma, sums, tCrA, b[None, None, half], sums)


def fragment_copy(spec: OperandSpec, dtype: Any) -> cute.CopyAtom:
    """ldmatrix of 16 x 32 bytes. It transposes 16-bit elements only: others that are M- or N-major are loaded one by one."""
    if is_inner_major(spec):
        return cute.make_copy_atom(warp.LdMatrix8x8x16bOp(False, 4), dtype)
    if dtype.width == 16:
        return cute.make_copy_atom(warp.LdMatrix8x8x16bOp(True, 4), dtype)
    return cute.make_copy_atom(CopyUniversalOp(), dtype)
