"""GEMM with tcgen05: D (M, N, L) = A (M, K, L) x B (N, K, L)^T. TMA in, tcgen05.mma into tensor memory, TMA out.

For sm_100a. Warp-specialised; persistent: each cluster takes every n-th tile or, dynamically, the tiles of clusters whose launch it
cancels. With CTA pairs (cta_group 2) one MMA warp multiplies for both CTAs, each of which holds its 128 rows of the accumulators
and half of B.

| role (warps)                    | waits on                      | signals                              | owns                      |
|---------------------------------|-------------------------------|--------------------------------------|---------------------------|
| drain (4)                       | `acc.full[t]`                 | `acc.empty[t]`, a store              | sD, tensor memory         |
| multiply (1, first of a pair)   | `ab.full[s]`, `acc.empty[t]`  | `ab.empty[s]`, `acc.full[t]` (commit)| accumulators until full   |
| load A/B (1)                    | `ab.empty[s]`                 | `ab.full[s]` by bytes                | sA[s], sB[s] until full   |
| cancel (1 of the cluster, if    | `next.empty`                  | `next.full` by bytes, in every CTA   | the response              |
|   dynamic)                      |                               |                                      |                           |

If dynamic, all roles also wait on `next.full` and signal `next.empty` of the first CTA once a tile.

| barrier       | stages | arrivals to complete                     | in                  | first wait passes for |
|---------------|--------|------------------------------------------|---------------------|-----------------------|
| `ab.full`     | stages | 1 + bytes of A and B of the pair         | first CTA of a pair | -                     |
| `ab.empty`    | stages | MMA warps that read what this CTA loaded | every CTA           | load warp             |
| `acc.full`    | 2      | 1                                        | every CTA           | -                     |
| `acc.empty`   | 2      | drain warps of the pair                  | first CTA of a pair | MMA warp              |
| `next.full`   | 1      | 1 + 16 bytes                             | every CTA           | -                     |
| `next.empty`  | 1      | every reading warp of the cluster        | first CTA           | cancelling warp       |
| DRAIN (named) | -      | 128                                      |                     |                       |
| TMEM (named)  | -      | 160: drain and multiply                  |                     |                       |

Tail: load and MMA warps wait until what they filled is empty, since peers signal these barriers; the cancelling warp reads the last
response itself. No deadlock: load waits for multiply, multiply for load and for the drain of an earlier tile, drain for multiply.

Names: m whole gmem, g gmem tile, s smem, t tensor memory, r registers; tAsA = smem A as TMA partitions it, tCrA = descriptors of A as
the MMA takes them, tTR = tensor memory to registers, tRS = registers to smem, bSG = smem to gmem by TMA.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import cutlass
from cutlass import Boolean, Float32, Int32, cute, pipeline
from cutlass.cute.nvgpu import OperandMajorMode, cpasync, make_tiled_tma_atom_A, make_tiled_tma_atom_B, tcgen05
from cutlass.experimental.primitives import tcgen05_fence
from cutlass.memory import SmemAllocator, TmemAllocator
from cutlass.pipeline import PipelineState, PipelineUserType, make_pipeline_state
from cutlass.tensor_utils import LayoutEnum
from cutlass.utils import sm100 as sm100_utils

DRAIN_WARPS = 4
MMA_WARP, LOAD_WARP, CANCEL_WARP = 4, 5, 6
CTA_M, EPILOGUE_N = 128, 32  # rows of a CTA's accumulators; columns that are stored at once
ACC_STAGES, D_STAGES = 2, 2
RESPONSE_BYTES = 16
DRAIN = pipeline.NamedBarrier(barrier_id=1, num_threads=32 * DRAIN_WARPS)
TMEM = pipeline.NamedBarrier(barrier_id=2, num_threads=32 * (DRAIN_WARPS + 1))
SMEM_CAPACITY = 227 << 10  # bytes a CTA may use on sm_100
SMEM_RESERVED = 1024  # barriers and the response
SMEM_ALIGN = 1024  # bytes; the period of the 128-byte swizzle
ROW_MAJOR = LayoutEnum.ROW_MAJOR


class Cursor(NamedTuple):
    """The tile of a cluster that a role works on. response: which one tells the next tile, if dynamic."""

    tile: Int32
    is_valid: Boolean
    response: PipelineState


@dataclass(frozen=True)
class Cta:
    """What the roles of a CTA share. coordinate: (CTA in its pair, pair along M, CTA along N, 0) within the cluster."""

    tiles_mnl: tuple  # of clusters
    coordinate: tuple
    ab: pipeline.PipelineTmaUmma
    acc: pipeline.PipelineUmmaAsync
    next: Any  # PipelineClcFetchAsync or None
    response: Any  # pointer into smem


@dataclass(frozen=True)
class Sm100Gemm:
    """dtype (of A and B): bf16, fp16, fp32 (multiplied as tf32), e4m3 or e5m2. out_dtype: what fp32 accumulators convert to.

    tile_m: 128 x cta_group; tile_n: columns of an MMA; cluster: CTAs along M and N. is_dynamic: by cluster launch control.
    """

    tile_m: int
    tile_n: int
    dtype: Any
    out_dtype: Any
    cta_group: int = 1
    cluster: tuple[int, int] = (1, 1)
    stages: int = 3
    is_dynamic: bool = False

    def __post_init__(self):
        if self.tile_m != CTA_M * self.cta_group or self.tile_n % EPILOGUE_N or not 0 < self.tile_n <= 256:
            raise ValueError(f"tile {self.tile_m} x {self.tile_n} with cta_group {self.cta_group}")
        if self.cluster[0] % self.cta_group:
            raise ValueError(f"cluster {self.cluster}: M must be a multiple of {self.cta_group}, the CTAs of an MMA")
        used = self.stages * self.stage_bytes // self.cta_group + SMEM_RESERVED
        used += D_STAGES * CTA_M * EPILOGUE_N * self.out_dtype.width // 8
        if used > SMEM_CAPACITY:
            raise ValueError(f"{used} bytes of shared memory; sm_100 has {SMEM_CAPACITY}")

    @property
    def tile_mnk(self) -> tuple[int, int, int]:
        """K: one row of the 128-byte swizzle."""
        return self.tile_m, self.tile_n, 1024 // self.dtype.width

    @property
    def stage_bytes(self) -> int:
        """A and B of an MMA; of two CTAs if it is a pair's."""
        return (self.tile_m + self.tile_n) * self.tile_mnk[2] * self.dtype.width // 8

    @property
    def pairs_mn(self) -> tuple[int, int]:
        """MMA tiles of a cluster."""
        return self.cluster[0] // self.cta_group, self.cluster[1]

    @property
    def tmem_columns(self) -> int:
        """Allocations are powers of two."""
        return 1 << (ACC_STAGES * self.tile_n - 1).bit_length()

    # ---- host -----------------------------------------------------------------------------------------------------

    def tiled_mma(self) -> cute.TiledMma:
        group = tcgen05.CtaGroup.TWO if self.cta_group == 2 else tcgen05.CtaGroup.ONE
        majors = (OperandMajorMode.K, OperandMajorMode.K)
        return sm100_utils.make_trivial_tiled_mma(
            self.dtype, self.dtype, *majors, Float32, group, (self.tile_m, self.tile_n)
        )

    def cluster_layout(self, tiled_mma: cute.TiledMma) -> cute.Layout:
        """(CTA of a pair, pairs along M, CTAs along N, 1)"""
        return cute.tiled_divide(cute.make_layout((*self.cluster, 1)), (tiled_mma.thr_id.shape,))

    def smem_layouts(self, tiled_mma: cute.TiledMma) -> tuple[Any, Any, Any]:
        """A and B: (MMA, MMA_M or N, MMA_K, stages); D: (rows, columns, stages)."""
        return (
            sm100_utils.make_smem_layout_a(tiled_mma, self.tile_mnk, self.dtype, self.stages),
            sm100_utils.make_smem_layout_b(tiled_mma, self.tile_mnk, self.dtype, self.stages),
            sm100_utils.make_smem_layout_epi(self.out_dtype, ROW_MAJOR, (CTA_M, EPILOGUE_N), D_STAGES),
        )

    @cute.jit
    def __call__(self, mA: cute.Tensor, mB: cute.Tensor, mD: cute.Tensor, clusters: Int32, stream):
        """A (M, K, L), B (N, K, L), D (M, N, L); K and N contiguous, all other strides multiples of 16 bytes.

        clusters: launch at most so many, unless dynamic.
        """
        mma = self.tiled_mma()
        a_layout, b_layout, d_layout = self.smem_layouts(mma)
        cluster_vmnk = self.cluster_layout(mma).shape
        a_load = sm100_utils.cluster_shape_to_tma_atom_A(self.cluster, mma.thr_id)
        b_load = sm100_utils.cluster_shape_to_tma_atom_B(self.cluster, mma.thr_id)
        kind = cutlass.TFloat32 if self.dtype is Float32 else None
        a = make_tiled_tma_atom_A(a_load, mA, a_layout, self.tile_mnk, mma, cluster_vmnk, internal_type=kind)
        b = make_tiled_tma_atom_B(b_load, mB, b_layout, self.tile_mnk, mma, cluster_vmnk, internal_type=kind)
        d_layout = cute.slice_(d_layout, (None, None, 0))
        d = cpasync.make_tiled_tma_atom(cpasync.CopyBulkTensorTileS2GOp(), mD, d_layout, (CTA_M, EPILOGUE_N))
        tiles_m = cute.ceil_div(mD.shape[0], self.tile_m * self.pairs_mn[0])
        tiles_n = cute.ceil_div(mD.shape[1], self.tile_n * self.pairs_mn[1])
        launched = tiles_m * tiles_n * mD.shape[2]
        if cutlass.const_expr(not self.is_dynamic):
            launched = cutlass.min(launched, clusters)
        tiles_mnl = (tiles_m, tiles_n, mD.shape[2])
        self.kernel((a.atom, b.atom, d.atom), a.tma_tensor, b.tma_tensor, d.tma_tensor, tiles_mnl).launch(
            grid=(launched * self.cluster[0], self.cluster[1], 1),
            block=(32 * (CANCEL_WARP + self.is_dynamic), 1, 1),
            cluster=(*self.cluster, 1),
            stream=stream,
        )

    # ---- device ---------------------------------------------------------------------------------------------------

    @cute.kernel
    def kernel(self, atoms: tuple, mA: cute.Tensor, mB: cute.Tensor, mD: cute.Tensor, tiles_mnl: tuple):
        """Set up shared memory and barriers, then hand each warp its role."""
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        rank = cute.arch.make_warp_uniform(cute.arch.block_idx_in_cluster())
        mma = self.tiled_mma()
        layout = self.cluster_layout(mma)
        allocator = SmemAllocator()
        response = allocator.allocate_array(Int32, RESPONSE_BYTES // 4, byte_alignment=RESPONSE_BYTES)
        sA, sB, sD = [
            allocator.allocate_tensor(dtype, smem.outer, SMEM_ALIGN, swizzle=smem.inner)
            for dtype, smem in zip((self.dtype, self.dtype, self.out_dtype), self.smem_layouts(mma))
        ]
        tmem = TmemAllocator(barrier_for_retrieve=TMEM, is_two_cta=self.cta_group == 2)
        cta = Cta(tiles_mnl, layout.get_flat_coord(rank), *self.make_pipelines(layout), response)
        cluster_mn = cute.make_layout(self.cluster)
        pipeline.pipeline_init_arrive(cluster_mn, is_relaxed=True)
        pipeline.pipeline_init_wait(cluster_mn)

        if warp == LOAD_WARP:
            self.load(cta, mma, atoms[0], atoms[1], sA, sB, mA, mB)
        elif warp == MMA_WARP:
            self.multiply(cta, tmem, sA, sB, cute.ceil_div(mA.shape[1], self.tile_mnk[2]))
        elif warp < DRAIN_WARPS:
            self.drain(cta, tmem, mma, atoms[2], sD, mD)
        elif cutlass.const_expr(self.is_dynamic):
            if rank == 0:
                self.cancel(cta)

    def make_pipelines(self, layout: cute.Layout) -> tuple:
        """ab, acc, next."""
        pairs_m, pairs_n = self.pairs_mn

        def ring(kind, stages: int, consumers: int, **transactions):
            groups = {"producer_group": threads(1), "consumer_group": threads(consumers)}
            return kind.create(num_stages=stages, cta_layout_vmnk=layout, defer_sync=True, **groups, **transactions)

        ab = ring(pipeline.PipelineTmaUmma, self.stages, pairs_m + pairs_n - 1, tx_count=self.stage_bytes)
        acc = ring(pipeline.PipelineUmmaAsync, ACC_STAGES, DRAIN_WARPS * self.cta_group)
        if not self.is_dynamic:
            return ab, acc, None
        readers = 1 + (DRAIN_WARPS + 2) * self.cluster[0] * self.cluster[1]
        return ab, acc, ring(pipeline.PipelineClcFetchAsync, 1, readers, tx_count=RESPONSE_BYTES)

    # ---- tiles ----------------------------------------------------------------------------------------------------

    def first(self) -> Cursor:
        tile = cute.arch.block_idx()[0] // self.cluster[0]
        return Cursor(tile, Boolean(True), make_pipeline_state(PipelineUserType.Consumer, 1))

    @cute.jit
    def next(self, cta: Cta, cursor: Cursor) -> Cursor:
        """The following tile of this cluster; all lanes of a warp call it."""
        response = cursor.response
        if cutlass.const_expr(self.is_dynamic):
            cta.next.consumer_wait(response)
            x, _, _, is_valid = cute.arch.clc_response(cta.response)
            cute.arch.fence_proxy("async.shared", space="cta")  # the next response overwrites this one
            with cute.arch.elect_one():
                cta.next.consumer_release(response)
            response.advance()
            return Cursor(x // self.cluster[0], is_valid != 0, response)
        tile = cursor.tile + cute.arch.grid_dim()[0] // self.cluster[0]
        return Cursor(tile, tile < cta.tiles_mnl[0] * cta.tiles_mnl[1] * cta.tiles_mnl[2], response)

    def locate(self, cta: Cta, cursor: Cursor) -> tuple[Int32, Int32, Int32]:
        """(m, n, l) of this CTA's MMA tile. Beyond the matrix, where a cluster sticks out, TMA moves nothing."""
        tiles_m, tiles_n, _ = cta.tiles_mnl
        m, n, l = cursor.tile % tiles_m, cursor.tile // tiles_m % tiles_n, cursor.tile // (tiles_m * tiles_n)
        return m * self.pairs_mn[0] + cta.coordinate[1], n * self.pairs_mn[1] + cta.coordinate[2], l

    @cute.jit
    def cancel(self, cta: Cta):
        """One warp of the cluster: ask for the next tile as soon as everybody knows this one."""
        state = make_pipeline_state(PipelineUserType.Producer, 1)
        cursor = self.first()
        while cursor.is_valid:
            cta.next.producer_acquire(state)
            with cute.arch.elect_one():
                cute.arch.issue_clc_query(cta.next.producer_get_barrier(state), cta.response)
            state.advance()
            cursor = self.next(cta, cursor)
        cta.next.producer_tail(state)

    # ---- roles ----------------------------------------------------------------------------------------------------

    @cute.jit
    def load(self, cta: Cta, mma: cute.TiledMma, a_atom, b_atom, sA, sB, mA: cute.Tensor, mB: cute.Tensor):
        """One warp: stream the k tiles of every tile through the ring; A goes to all CTAs along N, B along M."""
        v, pair_m, pair_n, _ = cta.coordinate
        layout, part = self.cluster_layout(mma), mma.get_slice(v)
        gA = cute.local_tile(mA, (self.tile_mnk[0], self.tile_mnk[2]), (None, None, None))
        gB = cute.local_tile(mB, self.tile_mnk[1:], (None, None, None))
        tAsA, tAgA = partition_tma(a_atom, pair_n, self.pairs_mn[1], sA, part.partition_A(gA), 3)  # (TMA, m, k tile, l)
        tBsB, tBgB = partition_tma(b_atom, pair_m, self.pairs_mn[0], sB, part.partition_B(gB), 3)
        a_mask = b_mask = None
        if cutlass.const_expr(self.pairs_mn[1] > 1):
            a_mask = cpasync.create_tma_multicast_mask(layout, cta.coordinate, mcast_mode=2)
        if cutlass.const_expr(self.pairs_mn[0] > 1):
            b_mask = cpasync.create_tma_multicast_mask(layout, cta.coordinate, mcast_mode=1)
        state = make_pipeline_state(PipelineUserType.Producer, self.stages)
        cursor = self.first()
        while cursor.is_valid:
            m, n, l = self.locate(cta, cursor)
            for k_tile in cutlass.range(cute.size(gA, mode=[3]), unroll=1):
                cta.ab.producer_acquire(state)
                full = cta.ab.producer_get_barrier(state)
                to = (None, state.index)
                cute.copy(a_atom, tAgA[None, m, k_tile, l], tAsA[to], tma_bar_ptr=full, mcast_mask=a_mask)
                cute.copy(b_atom, tBgB[None, n, k_tile, l], tBsB[to], tma_bar_ptr=full, mcast_mask=b_mask)
                state.advance()
            cursor = self.next(cta, cursor)
        cta.ab.producer_tail(state)

    @cute.jit
    def multiply(self, cta: Cta, tmem: TmemAllocator, sA, sB, k_tiles: Int32):
        """One warp; the first CTA's of a pair multiplies for both."""
        mma = self.tiled_mma()
        tCrA, tCrB = mma.make_fragment_A(sA), mma.make_fragment_B(sB)  # (MMA, MMA_M or N, MMA_K, STAGE)
        tmem.wait_for_alloc()
        tCtAcc = self.accumulators(mma, tmem.retrieve_ptr(Float32))
        ab = make_pipeline_state(PipelineUserType.Consumer, self.stages)
        acc = make_pipeline_state(PipelineUserType.Producer, ACC_STAGES)
        cursor = self.first()
        while cursor.is_valid:
            if cta.coordinate[0] == 0:
                cta.acc.producer_acquire(acc)
                tcgen05_fence("after_thread_sync")
                for k_tile in cutlass.range(k_tiles, unroll=1):
                    cta.ab.consumer_wait(ab)
                    for k in cutlass.range_constexpr(cute.size(tCrA, mode=[2])):
                        mma.set(tcgen05.Field.ACCUMULATE, k_tile != 0 if k == 0 else True)
                        into = tCtAcc[None, None, None, acc.index]
                        cute.gemm(mma, into, tCrA[None, None, k, ab.index], tCrB[None, None, k, ab.index], into)
                    cta.ab.consumer_release(ab)
                    ab.advance()
                cta.acc.producer_commit(acc)
                acc.advance()
            cursor = self.next(cta, cursor)
        cta.acc.producer_tail(acc)

    @cute.jit
    def drain(self, cta: Cta, tmem: TmemAllocator, mma: cute.TiledMma, d_atom, sD, mD: cute.Tensor):
        """Four warps: allocate tensor memory, move each tile from there through registers and sD to D, free it."""
        thread = cute.arch.thread_idx()[0]
        is_storing = cute.arch.make_warp_uniform(cute.arch.warp_idx()) == 0
        tmem.allocate(self.tmem_columns)
        tmem.relinquish_alloc_permit()
        tmem.wait_for_alloc()
        pointer = tmem.retrieve_ptr(Float32)
        tCtAcc = self.accumulators(mma, pointer)[(None, None), 0, 0, None]  # (128, tile_n, STAGE)
        tAcc = cute.flat_divide(tCtAcc, (CTA_M, EPILOGUE_N))[None, None, 0, None, None]  # (128, 32, subtile, STAGE)
        load = cute.make_copy_atom(tcgen05.Ld32x32bOp(tcgen05.Repetition.x32), Float32)
        copy_acc = tcgen05.make_tmem_copy(load, tAcc[None, None, 0, 0])
        store = sm100_utils.get_smem_store_op(ROW_MAJOR, self.out_dtype, Float32, copy_acc)
        copy_d = cute.make_tiled_copy_D(store, copy_acc)
        tTR_tAcc, tRS_sD = copy_acc.get_slice(thread).partition_S(tAcc), copy_d.get_slice(thread).partition_D(sD)
        tTR_rAcc = cute.make_rmem_tensor(copy_acc.get_slice(thread).partition_D(sD)[None, None, None, 0].shape, Float32)
        tTR_rD = cute.make_rmem_tensor(tTR_rAcc.shape, self.out_dtype)
        gD = cute.local_tile(mD, (CTA_M, EPILOGUE_N), (None, None, None))
        bSG_sD, bSG_gD = partition_tma(d_atom, 0, 1, sD, gD, 2)
        stores = pipeline.PipelineTmaStore.create(num_stages=D_STAGES, producer_group=threads(1))
        subtiles = self.tile_n // EPILOGUE_N
        acc = make_pipeline_state(PipelineUserType.Consumer, ACC_STAGES)
        turn = Int32(0)
        cursor = self.first()
        while cursor.is_valid:
            m, n, l = self.locate(cta, cursor)
            cta.acc.consumer_wait(acc)
            tcgen05_fence("after_thread_sync")
            for subtile in cutlass.range_constexpr(subtiles):
                cute.copy(copy_acc, tTR_tAcc[None, None, None, subtile, acc.index], tTR_rAcc)
                if cutlass.const_expr(subtile == subtiles - 1):
                    cute.arch.fence_view_async_tmem_load()
                    tcgen05_fence("before_thread_sync")
                    with cute.arch.elect_one():
                        cta.acc.consumer_release(acc)
                tTR_rD.store(tTR_rAcc.load().to(self.out_dtype))
                if is_storing:
                    stores.producer_acquire()  # the store before the last has left its half of sD
                DRAIN.arrive_and_wait()
                cute.copy(copy_d, copy_d.retile(tTR_rD), tRS_sD[None, None, None, turn])
                cute.arch.fence_proxy("async.shared", space="cta")
                DRAIN.arrive_and_wait()
                if is_storing:
                    row, column = m * self.cta_group + cta.coordinate[0], n * subtiles + subtile
                    cute.copy(d_atom, bSG_sD[None, turn], bSG_gD[None, row, column, l])
                    stores.producer_commit()
                turn = (turn + 1) % D_STAGES
            acc.advance()
            cursor = self.next(cta, cursor)
        if is_storing:
            stores.producer_tail()
        tmem.free(pointer, self.tmem_columns)  # all four warps came to the last DRAIN after their last load from it

    def accumulators(self, mma: cute.TiledMma, pointer: cute.Pointer) -> cute.Tensor:
        """(MMA, MMA_M, MMA_N, STAGE) of this CTA in tensor memory."""
        shape = mma.partition_shape_C((self.tile_m, self.tile_n))
        return cute.make_tensor(pointer, mma.make_fragment_C(cute.append(shape, ACC_STAGES)).layout)


def threads(count: int) -> pipeline.CooperativeGroup:
    return pipeline.CooperativeGroup(pipeline.Agent.Thread, count)


def partition_tma(atom: cute.CopyAtom, cta: Int32, ctas: int, smem: cute.Tensor, gmem: cute.Tensor, modes: int):
    """Tiles of `modes` modes as this CTA of a multicast group moves them: (TMA, ...)."""
    return cpasync.tma_partition(
        atom, cta, cute.make_layout(ctas), cute.group_modes(smem, 0, modes), cute.group_modes(gmem, 0, modes)
    )
