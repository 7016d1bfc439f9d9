"""GEMM without wgmma or tcgen05: D (M, N, L) = A (M, K, L) x B (N, K, L)^T. TMA in, ldmatrix and mma.sync, TMA out.

For sm_120a; compiles for sm_90a too. Warp-specialised; persistent, each CTA takes every `ctas`-th tile.

| role (warps)         | waits on        | signals                | owns                            |
|----------------------|-----------------|------------------------|---------------------------------|
| multiply, drain (4)  | `ab.full[s]`    | `ab.empty[s]`, a store | accumulators, `sD`              |
| load A/B (1)         | `ab.empty[s]`   | `ab.full[s]` by bytes  | `sA[s]`, `sB[s]` until full     |

| barrier         | stages | arrivals to complete | first wait passes for | reused when   |
|-----------------|--------|----------------------|-----------------------|---------------|
| `ab.full`       | stages | 1 + bytes of A and B | -                     | every k tile  |
| `ab.empty`      | stages | 4: one per MMA warp  | load warp             | every k tile  |
| DRAIN (named)   | -      | 128                  | -                     | twice a tile  |

Tail: the load warp waits until every stage is empty, the storing warp until the TMA has read `sD`. No deadlock: loads wait for
MMA warps only, MMA warps for loads only.

Names: m whole gmem, g gmem tile, s smem, r registers; tAsA = smem A as TMA partitions it, tCrA = A as the MMA partitions it, tXrA =
the same registers as ldmatrix fills them.
"""

from dataclasses import dataclass
from typing import Any

import cutlass
from cutlass import Float32, Int32, Int64, cute, pipeline
from cutlass.cute.nvgpu import cpasync, warp
from cutlass.memory import SmemAllocator
from cutlass.pipeline import PipelineState, PipelineTmaAsync, PipelineTmaStore, PipelineUserType, make_pipeline_state
from cutlass.tensor_utils import LayoutEnum
from cutlass.utils import sm90 as sm90_utils

MMA_WARPS = 4  # 2 along M x 2 along N
LOAD_WARP = MMA_WARPS
THREADS = 32 * (MMA_WARPS + 1)
STEP_M, STEP_N = 32, 32  # what the four warps multiply at once: 16 x 8 each, twice along N for ldmatrix x4
DRAIN = pipeline.NamedBarrier(barrier_id=1, num_threads=32 * MMA_WARPS)
SMEM_ALIGN = 1024  # bytes; the period of the 128-byte swizzle
SMEM_CAPACITY = 99 << 10  # bytes a CTA may use on sm_120
SMEM_RESERVED = 1024  # barriers
ROW_MAJOR = LayoutEnum.ROW_MAJOR  # K contiguous for A and B, N for D


@dataclass(frozen=True)
class Sm120Gemm:
    """dtype (of A and B): bf16, fp16, e4m3 or e5m2. out_dtype: what fp32 accumulators convert to. stages: of the A/B ring.

    Raises ValueError for tiles that the warps do not divide or that need more shared memory than there is.
    """

    tile_m: int
    tile_n: int
    tile_k: int
    dtype: Any
    out_dtype: Any
    stages: int

    def __post_init__(self):
        if self.tile_m % STEP_M or self.tile_n % STEP_N or self.tile_k % self.step_k:
            raise ValueError(f"tile {self.tile_mnk}: must be multiples of {STEP_M, STEP_N, self.step_k}")
        used = self.stages * self.stage_bytes + self.tile_m * self.tile_n * self.out_dtype.width // 8 + SMEM_RESERVED
        if used > SMEM_CAPACITY:
            raise ValueError(f"{used} bytes of shared memory; sm_120 has {SMEM_CAPACITY}")

    @property
    def tile_mnk(self) -> tuple[int, int, int]:
        return self.tile_m, self.tile_n, self.tile_k

    @property
    def step_k(self) -> int:
        """K of one mma.sync: 32 bytes."""
        return 256 // self.dtype.width

    @property
    def stage_bytes(self) -> int:
        return (self.tile_m + self.tile_n) * self.tile_k * self.dtype.width // 8

    # ---- host -----------------------------------------------------------------------------------------------------

    def tiled_mma(self) -> cute.TiledMma:
        op = warp.MmaFP8Op if self.dtype.width == 8 else warp.MmaF16BF16Op
        return cute.make_tiled_mma(
            op(self.dtype, Float32, (16, 8, self.step_k)), (2, 2, 1), permutation_mnk=(STEP_M, STEP_N, self.step_k)
        )

    def smem_layouts(self) -> tuple[Any, Any, Any]:
        """Swizzled, of A and B (rows, k, stages) and D (rows, columns, 1)."""
        return (
            sm90_utils.make_smem_layout_a(ROW_MAJOR, self.tile_mnk, self.dtype, self.stages),
            sm90_utils.make_smem_layout_b(ROW_MAJOR, self.tile_mnk, self.dtype, self.stages),
            sm90_utils.make_smem_layout_epi(self.out_dtype, ROW_MAJOR, (self.tile_m, self.tile_n), 1),
        )

    @cute.jit
    def __call__(self, mA: cute.Tensor, mB: cute.Tensor, mD: cute.Tensor, ctas: Int32, stream):
        """A (M, K, L), B (N, K, L), D (M, N, L); K and N contiguous, all other strides multiples of 16 bytes.

        ctas: launch at most so many.
        """
        one_stage = [cute.slice_(layout, (None, None, 0)) for layout in self.smem_layouts()]
        load, store = cpasync.CopyBulkTensorTileG2SOp(), cpasync.CopyBulkTensorTileS2GOp()
        a_atom, tma_a = cpasync.make_tiled_tma_atom(load, mA, one_stage[0], (self.tile_m, self.tile_k))
        b_atom, tma_b = cpasync.make_tiled_tma_atom(load, mB, one_stage[1], (self.tile_n, self.tile_k))
        d_atom, tma_d = cpasync.make_tiled_tma_atom(store, mD, one_stage[2], (self.tile_m, self.tile_n))
        tiles_m, tiles_n = cute.ceil_div(mD.shape[0], self.tile_m), cute.ceil_div(mD.shape[1], self.tile_n)
        tiles = tiles_m * tiles_n * mD.shape[2]
        self.kernel((a_atom, b_atom, d_atom), tma_a, tma_b, tma_d).launch(
            grid=(cutlass.min(tiles, ctas), 1, 1), block=(THREADS, 1, 1), stream=stream
        )

    # ---- device ---------------------------------------------------------------------------------------------------

    @cute.kernel
    def kernel(self, atoms: tuple, mA: cute.Tensor, mB: cute.Tensor, mD: cute.Tensor):
        """Set up shared memory and the ring, then hand each warp its role."""
        warp_index = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        allocator = SmemAllocator()
        barriers = allocator.allocate_array(Int64, 2 * self.stages)
        sA, sB, sD = [
            allocator.allocate_tensor(dtype, layout.outer, SMEM_ALIGN, swizzle=layout.inner)
            for dtype, layout in zip((self.dtype, self.dtype, self.out_dtype), self.smem_layouts())
        ]
        ab = PipelineTmaAsync.create(
            num_stages=self.stages,
            producer_group=pipeline.CooperativeGroup(pipeline.Agent.Thread),
            consumer_group=pipeline.CooperativeGroup(pipeline.Agent.Thread, MMA_WARPS),
            tx_count=self.stage_bytes,
            barrier_storage=barriers,
            cta_layout_vmnk=cute.make_layout((1, 1, 1, 1)),
        )
        gA = cute.local_tile(
            mA, (self.tile_m, self.tile_k), (None, None, None)
        )  # (tile_m, tile_k, tiles_m, k tiles, L)
        gB = cute.local_tile(mB, (self.tile_n, self.tile_k), (None, None, None))
        gD = cute.local_tile(mD, (self.tile_m, self.tile_n), (None, None, None))
        a_atom, b_atom, d_atom = atoms
        if warp_index == LOAD_WARP:
            self.load(ab, a_atom, b_atom, sA, sB, gA, gB)
        else:
            self.multiply(ab, d_atom, sA, sB, sD, gD, cute.size(gA, mode=[3]))

    @cute.jit
    def load(self, ab: PipelineTmaAsync, a_atom, b_atom, sA, sB, gA: cute.Tensor, gB: cute.Tensor):
        """One warp: stream the k tiles of every tile through the ring."""
        tAsA, tAgA = partition_tma(a_atom, sA, gA)  # (TMA, STAGE), (TMA, tiles_m, k tiles, L)
        tBsB, tBgB = partition_tma(b_atom, sB, gB)
        state = make_pipeline_state(PipelineUserType.Producer, self.stages)
        tiles_m, tiles_n = cute.size(gA, mode=[2]), cute.size(gB, mode=[2])
        for tile in cutlass.range(first_tile(), tiles_m * tiles_n * cute.size(gA, mode=[4]), tile_step(), unroll=1):
            m, n, l = tile % tiles_m, tile // tiles_m % tiles_n, tile // (tiles_m * tiles_n)
            for k_tile in cutlass.range(cute.size(gA, mode=[3]), unroll=1):
                ab.producer_acquire(state)
                full = ab.producer_get_barrier(state)
                cute.copy(a_atom, tAgA[None, m, k_tile, l], tAsA[None, state.index], tma_bar_ptr=full)
                cute.copy(b_atom, tBgB[None, n, k_tile, l], tBsB[None, state.index], tma_bar_ptr=full)
                state.advance()
        ab.producer_tail(state)

    @cute.jit
    def multiply(self, ab: PipelineTmaAsync, d_atom, sA, sB, sD, gD: cute.Tensor, k_tiles: Int32):
        """Four warps: sum up each tile in registers, convert it, store it through sD."""
        thread = cute.arch.thread_idx()[0]
        tiled_mma = self.tiled_mma()
        acc = cute.make_rmem_tensor(tiled_mma.partition_shape_C((self.tile_m, self.tile_n)), Float32)
        store_atom = sm90_utils.sm90_get_smem_store_op(ROW_MAJOR, self.out_dtype, Float32)
        copy_d = cute.make_tiled_copy_C(store_atom, tiled_mma)
        tRS_rAcc, tRS_sD = copy_d.retile(acc), copy_d.get_slice(thread).partition_D(sD[None, None, 0])
        tRS_rD = cute.make_rmem_tensor(tRS_rAcc.shape, self.out_dtype)
        bSG_sD, bSG_gD = partition_tma(d_atom, sD, gD)  # (TMA, 1), (TMA, tiles_m, tiles_n, L)
        stores = PipelineTmaStore.create(num_stages=1, producer_group=pipeline.CooperativeGroup(pipeline.Agent.Thread))
        is_storing = cute.arch.make_warp_uniform(cute.arch.warp_idx()) == 0

        state = make_pipeline_state(PipelineUserType.Consumer, self.stages)
        tiles_m, tiles_n = cute.size(gD, mode=[2]), cute.size(gD, mode=[3])
        for tile in cutlass.range(first_tile(), tiles_m * tiles_n * cute.size(gD, mode=[4]), tile_step(), unroll=1):
            m, n, l = tile % tiles_m, tile // tiles_m % tiles_n, tile // (tiles_m * tiles_n)
            state = self.sum_up(ab, sA, sB, tiled_mma, acc, k_tiles, state)
            tRS_rD.store(tRS_rAcc.load().to(self.out_dtype))
            if is_storing:
                stores.producer_acquire()  # the previous tile has left sD
            DRAIN.arrive_and_wait()
            cute.copy(copy_d, tRS_rD, tRS_sD)
            cute.arch.fence_proxy("async.shared", space="cta")
            DRAIN.arrive_and_wait()
            if is_storing:
                cute.copy(d_atom, bSG_sD[None, 0], bSG_gD[None, m, n, l])
                stores.producer_commit()
        if is_storing:
            stores.producer_tail()

    @cute.jit
    def sum_up(
        self,
        ab: PipelineTmaAsync,
        sA,
        sB,
        tiled_mma: cute.TiledMma,
        acc: cute.Tensor,
        k_tiles: Int32,
        state: PipelineState,
    ) -> PipelineState:
        """acc = the sum over all k tiles."""
        thread = cute.arch.thread_idx()[0]
        part = tiled_mma.get_slice(thread)
        tCrA = tiled_mma.make_fragment_A(part.partition_A(sA[None, None, 0]))  # (MMA, MMA_M, MMA_K)
        tCrB = tiled_mma.make_fragment_B(part.partition_B(sB[None, None, 0]))
        matrices = cute.make_copy_atom(warp.LdMatrix8x8x16bOp(False, 4), self.dtype)
        copy_a, copy_b = cute.make_tiled_copy_A(matrices, tiled_mma), cute.make_tiled_copy_B(matrices, tiled_mma)
        tXsA, tXrA = copy_a.get_slice(thread).partition_S(sA), copy_a.retile(tCrA)
        tXsB, tXrB = copy_b.get_slice(thread).partition_S(sB), copy_b.retile(tCrB)
        acc.fill(0.0)
        for _ in cutlass.range(k_tiles, unroll=1):
            ab.consumer_wait(state)
            for k in cutlass.range_constexpr(cute.size(tCrA, mode=[2])):
                cute.copy(copy_a, tXsA[None, None, k, state.index], tXrA[None, None, k])
                cute.copy(copy_b, tXsB[None, None, k, state.index], tXrB[None, None, k])
                cute.gemm(tiled_mma, acc, tCrA[None, None, k], tCrB[None, None, k], acc)
            ab.consumer_release(state)
            state.advance()
        return state


def first_tile() -> Int32:
    return cute.arch.block_idx()[0]


def tile_step() -> Int32:
    return cute.arch.grid_dim()[0]


def partition_tma(atom: cute.CopyAtom, smem: cute.Tensor, gmem: cute.Tensor) -> tuple[cute.Tensor, cute.Tensor]:
    """Tiles (rows, columns, ...) as TMA moves them: (TMA, ...)."""
    return cpasync.tma_partition(
        atom, 0, cute.make_layout(1), cute.group_modes(smem, 0, 2), cute.group_modes(gmem, 0, 2)
    )
