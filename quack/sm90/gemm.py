"""GEMM for Hopper: D (M, N, L) = epilogue(A (M, K, L) x B (N, K, L)^T), TMA in, wgmma, TMA out, warp-specialised, persistent.

Roles and barriers: see `execution.warpgroups`. wgmma reads both operands from shared memory; the accumulators of a warpgroup are
its slabs of 64 rows, one wgmma each. fp32 is multiplied in tf32; an M-major A goes through registers then, see `column_reader`.
"""

from typing import NamedTuple, Optional, Union

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32
from cutlass.cute.nvgpu import warpgroup
from cutlass.pipeline import PipelineState
from cutlass.utils import sm90 as sm90_utils

from ..dsl.barrier import WARPGROUP_THREADS
from ..dsl.compat import as_tf32, make_wgmma_tf32
from ..execution.cta import CtaContext, SmemTensors
from ..execution.transport import operand_layout
from ..execution.warpgroups import MmaTeam, WarpgroupGemm
from ..gemm_resources import SLAB_M
from .column_reader import ColumnReader, make_column_reader, make_fragments
from .resources import REGISTER_BLOCKS, has_a_in_registers, resources


class WgmmaOperands(NamedTuple):
    """tiled_mma adds to the accumulators, zeroing_mma overwrites them: two objects, because setting the flag of one inside a
    staged loop would leak a value out of it."""

    tiled_mma: cute.TiledMma
    zeroing_mma: cute.TiledMma
    tCrA: Union[cute.Tensor, ColumnReader]  # (MMA, MMA_M, MMA_K, STAGE)
    tCrB: cute.Tensor  # (MMA, MMA_N, MMA_K, STAGE)


class GemmSm90(WarpgroupGemm):
    """Execution on sm_90a. Operands come from the adapter mixin, the commit from the plan mixin (see `compose`)."""

    budget = staticmethod(resources)

    @property
    def has_a_in_registers(self) -> bool:
        return has_a_in_registers(self.specs)

    def make_tiled_mma(self, warpgroups: Optional[int] = None, accumulate: bool = True) -> cute.TiledMma:
        """wgmma 64 x tile_n per warpgroup, `warpgroups` (default: all that share a tile) stacked along M."""
        warpgroups, tiler = warpgroups or self.sharing, (SLAB_M, self.config.tile_n)
        if self.a_dtype is Float32:
            source = warpgroup.OperandSource.RMEM if self.has_a_in_registers else warpgroup.OperandSource.SMEM
            mma = make_wgmma_tf32(tiler, warpgroups, source)
        else:
            mma = sm90_utils.make_trivial_tiled_mma(
                self.a_dtype,
                self.b_dtype,
                operand_layout(self.specs.a).sm90_mma_major_mode(),
                operand_layout(self.specs.b).sm90_mma_major_mode(),
                Float32,
                (warpgroups, 1, 1),
                tiler_mn=tiler,
            )
        mma.set(warpgroup.Field.ACCUMULATE, accumulate)
        return mma

    def bind_mma(self, smem: SmemTensors, tiled_mma: cute.TiledMma, share: Int32) -> WgmmaOperands:
        thread_mma = tiled_mma.get_slice(share * WARPGROUP_THREADS)
        sA, sB = smem.a, smem.b
        if self.a_dtype is Float32:
            sB = as_tf32(sB, self.smem_layout_b().inner)
        if self.has_a_in_registers:
            tCrA = make_column_reader(sA, (self.config.tile_m, self.config.tile_k), share, self.sharing)
        else:
            if self.a_dtype is Float32:
                sA = as_tf32(sA, self.smem_layout_a().inner)
            tCrA = tiled_mma.make_fragment_A(thread_mma.partition_A(sA))
        return WgmmaOperands(
            tiled_mma=tiled_mma,
            zeroing_mma=self.make_tiled_mma(accumulate=False),
            tCrA=tCrA,
            tCrB=tiled_mma.make_fragment_B(thread_mma.partition_B(sB)),
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
        """The wgmma of the first `slabs` slabs, one k tile in flight behind the one being issued. Accumulators of other
        slabs become zero, afterwards: before, that made ptxas serialise wgmma in some kernels."""
        if cutlass.const_expr(not self.fast_accum):
            return self.multiply_promoting(cta, team, k_tiles, another_follows, state)
        if k_tiles == 0:
            team.accumulators.fill(0.0)
        if cutlass.const_expr(slabs == 0):
            team.accumulators.fill(0.0)
            for _ in cutlass.range(k_tiles, unroll=1):
                cta.ab.consumer_wait(state)
                cta.ab.consumer_release(state)
                state.advance()
            self.hand_over(team, another_follows)
            return state
        release = state.clone()
        warpgroup.fence()
        for _ in cutlass.range(cutlass.min(k_tiles, 1), unroll=1):
            cta.ab.consumer_wait(state)
            self.issue_k_tile(team, team.accumulators, slabs, state.index, from_zero=True)
            state.advance()
        for _ in cutlass.range(1, k_tiles, unroll=1):
            cta.ab.consumer_wait(state)
            self.issue_k_tile(team, team.accumulators, slabs, state.index, from_zero=False)
            warpgroup.wait_group(1)
            cta.ab.consumer_release(release)
            release.advance()
            state.advance()
        self.hand_over(team, another_follows)
        warpgroup.wait_group(0)
        for slab in cutlass.range_constexpr(slabs, self.resources.slabs):
            team.accumulators[None, slab, 0].fill(0.0)
        if k_tiles > 0:
            last = state.clone()
            last.reverse()
            cta.ab.consumer_release(last)
        return state

    @cute.jit
    def multiply_promoting(
        self, cta: CtaContext, team: MmaTeam, k_tiles: Int32, another_follows: Boolean, state: PipelineState
    ) -> PipelineState:
        """fp8 with full-precision accumulation: wgmma keeps few mantissa bits of an fp8 sum, so every k tile (128
        elements) is summed from zero and added to the fp32 accumulators by the CUDA cores. Completes the tile.

        The other warpgroup of the tile multiplies meanwhile. NOTE: keeping a second partial sum of this warpgroup in
        flight makes ptxas serialise every wgmma (C7514), 30 % slower; see docs/measured_facts.md.
        """
        team.accumulators.fill(0.0)
        partial = cute.make_rmem_tensor(team.accumulators.shape, Float32)
        for _ in cutlass.range(k_tiles, unroll=1):
            cta.ab.consumer_wait(state)
            warpgroup.fence()
            self.issue_k_tile(team, partial, self.resources.slabs, state.index, from_zero=True)
            warpgroup.wait_group(0)
            cta.ab.consumer_release(state)
            team.accumulators.store(team.accumulators.load() + partial.load())
            state.advance()
        self.hand_over(team, another_follows)
        return state

    @cute.jit
    def issue_k_tile(
        self,
        team: MmaTeam,
        accumulators: cute.Tensor,
        slabs: cutlass.Constexpr[int],
        stage: Int32,
        from_zero: cutlass.Constexpr[bool],
    ):
        """The wgmma of one k tile for the first `slabs` slabs as one group, or several of which all but the last are done;
        from_zero: ignore the old accumulators."""
        if cutlass.const_expr(self.has_a_in_registers):
            self.issue_from_registers(team, accumulators, slabs, stage, from_zero)
        else:
            self.issue_from_smem(team, accumulators, slabs, stage, from_zero)

    @cute.jit
    def issue_from_smem(
        self,
        team: MmaTeam,
        accumulators: cute.Tensor,
        slabs: cutlass.Constexpr[int],
        stage: Int32,
        from_zero: cutlass.Constexpr[bool],
    ):
        for k_block in cutlass.range_constexpr(cute.size(team.mma.tCrA, mode=[2])):
            mma = team.mma.zeroing_mma if cutlass.const_expr(from_zero and k_block == 0) else team.mma.tiled_mma
            for slab in cutlass.range_constexpr(slabs):
                acc = cute.append_ones(accumulators[None, slab, 0], up_to_rank=3)
                tCrA = cute.append_ones(team.mma.tCrA[None, slab, k_block, stage], up_to_rank=2)
                cute.gemm(mma, acc, tCrA, team.mma.tCrB[None, None, k_block, stage], acc)
        warpgroup.commit_group()

    @cute.jit
    def issue_from_registers(
        self,
        team: MmaTeam,
        accumulators: cute.Tensor,
        slabs: cutlass.Constexpr[int],
        stage: Int32,
        from_zero: cutlass.Constexpr[bool],
    ):
        """Groups of `REGISTER_BLOCKS` k blocks take turns with two sets of registers: while the tensor cores read one, the other
        is loaded."""
        reader = team.mma.tCrA
        for group in cutlass.range_constexpr(reader.k_blocks // REGISTER_BLOCKS):
            tCrA = make_fragments(slabs, REGISTER_BLOCKS)
            reader.load(tCrA, slabs, group * REGISTER_BLOCKS, stage)
            warpgroup.fence()
            for block in cutlass.range_constexpr(REGISTER_BLOCKS):
                k_block = group * REGISTER_BLOCKS + block
                mma = team.mma.zeroing_mma if cutlass.const_expr(from_zero and k_block == 0) else team.mma.tiled_mma
                for slab in cutlass.range_constexpr(slabs):
                    acc = cute.append_ones(accumulators[None, slab, 0], up_to_rank=3)
                    fragment = cute.append_ones(tCrA[None, slab, block], up_to_rank=2)
                    cute.gemm(mma, acc, fragment, team.mma.tCrB[None, None, k_block, stage], acc)
            warpgroup.commit_group()
            warpgroup.wait_group(1)
