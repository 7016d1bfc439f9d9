"""Block-scaled operands (mxfp8, mxfp4, nvfp4) in `GemmSm100`: D = epilogue((A * scales) x (B * scales)^T).

The scales of a k tile come with it: the load warp brings the blocks of `block_scales` into the stage of A and B (the same barrier,
more bytes), and before the MMAs of the tile the MMA warp copies them to tensor memory, behind the accumulators. tcgen05.cp and
tcgen05.mma of one thread are executed in the order of issue, so nothing waits, and one set of columns is enough. Of a pair, each
CTA has the scales of its own rows of A and of all columns of B; one tcgen05.cp copies in both. The CTAs of a cluster that need the
same scales, both of a pair among them, load a share each for all; they wait for each other's MMA warps as A and B make them anyway.

Where rows of A are picked by index, a warp copies their scales (`scale_gather`). Where K is ragged, the MMAs of a group's last k tile
end with the group: what K-major loads bring from behind it, elements and scales, is not multiplied.

| format | kind of MMA | scale | k of an MMA | scales of it and row | blocks of a k tile of 128 bytes and 128 rows |
|---|---|---|---|---|---|
| mxfp8 | mxf8f6f4 | e8m0 for 32 | 32 | 1 | 1 |
| mxfp8 x mxfp4 | mxf8f6f4 | e8m0 for 32 | 32 | 1 | 1 |
| mxfp4 | mxf4 | e8m0 for 32 | 64 | 2 | 2 |
| nvfp4 | mxf4nvf4 | e4m3 for 16 | 64 | 4 | 4 |

fp4 beside fp8 is multiplied as bytes would be: TMA spreads 16 elements, 8 bytes, over 16 bytes of shared memory, and counts 8.

A block has 128 rows, so where tile_n is an odd multiple of 64, every other tile's columns begin in the middle of a block: its MMAs
find their scales two columns further on. tile_n is a multiple of 64, lest a tile of at most 128 columns need two blocks.

Tensor memory holds the accumulators of two tiles where the scales leave room: tile_n = 256 has one, and is drained between main
loops (nvfp4 needs 48 columns, mxfp8 12). Padding of blocks is read too: behind the end of K it is multiplied by zeros, so it must
not be NaN.
"""

from typing import NamedTuple, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64
from cutlass.cute.nvgpu import cpasync, tcgen05
from cutlass.utils import blockscaled_layout
from cutlass.utils import sm100 as sm100_utils

from ..block_scales import BLOCK_ROWS, BLOCK_SCALES, BLOCK_WORDS, MMA_K_BYTES, WORD_BYTES, scale_blocks
from ..cute_dtype import CUTE_DTYPE
from ..execution.clusters import CtaPlace, either
from ..execution.cta import GATHER_WARP, CtaContext, SmemTensors
from ..execution.load import ScaleLoad
from ..gemm_base import TmaOperand
from ..gemm_problem_adapter import Operand
from ..gemm_work import WorkDesc
from .gemm import CTA_M, GemmSm100, major_mode
from .resources import SCALE_BLOCK_COLUMNS
from .scale_gather import ScaleGatherRole

SCALES_OF = {Operand.A: Operand.A_SCALE, Operand.B: Operand.B_SCALE}
SMEM_ALIGN = 128  # bytes, of what TMA writes without a swizzle


class ScaleCopy(NamedTuple):
    """shared -> tensor memory of all blocks of a k tile."""

    copy: cute.TiledCopy
    source: cute.Tensor  # descriptors, last mode STAGE
    target: cute.Tensor


class ScaledFragments(NamedTuple):
    """Operands of the MMAs of one work. tSFA, tSFB: scales in tensor memory, (MMA, MMA_M or N, MMA_K)."""

    a: cute.Tensor
    b: cute.Tensor
    tSFA: cute.Tensor
    tSFB: cute.Tensor
    copies: tuple[ScaleCopy, ...]
    k: Optional[Int32]  # of the work, from its first k tile on, if there are others' behind


class BlockScaledGemmSm100(ScaleGatherRole, GemmSm100):
    """The main loop with scales; everything else is `GemmSm100`'s."""

    loaded = (Operand.A, Operand.B, Operand.A_SCALE, Operand.B_SCALE)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scaling = self.specs.a.scaling
        self.scale_dtype = CUTE_DTYPE[self.scaling.dtype]
        a_blocks, b_blocks = scale_blocks(self.specs, self.config)
        rows_b = -(-self.config.tile_n // BLOCK_ROWS)
        self.scale_boxes = ((1, a_blocks * BLOCK_WORDS), (rows_b, b_blocks // rows_b * BLOCK_WORDS))
        self.block_k = BLOCK_SCALES * self.scaling.block
        self.scale_columns = (SCALE_BLOCK_COLUMNS * a_blocks, SCALE_BLOCK_COLUMNS * b_blocks)

    # ---- loads ----------------------------------------------------------------------------------------------------

    def smem_layout_scales(self, box: tuple[int, int]) -> cute.Layout:
        """(row blocks, words, ab_stages): row block after row block, each with its blocks along K."""
        rows, words = box
        return cute.make_layout((rows, words, self.resources.ab_stages), stride=(words, 1, rows * words))

    def make_scales(self, a_scales: cute.Tensor, b_scales: cute.Tensor) -> tuple[TmaOperand, TmaOperand]:
        operands = []
        for which, tensor in ((Operand.A, a_scales), (Operand.B, b_scales)):
            i = which is Operand.B
            box, ctas = self.scale_boxes[i], self.scale_sharers[i]
            batch, rows, words = tensor.layout.shape
            batch_stride, row_stride, _ = tensor.layout.stride
            layout = cute.make_layout((rows, words, batch), stride=(row_stride, 1, batch_stride))
            modes = cute.make_tensor(tensor.iterator, layout)
            if self.gathers_a and which is Operand.A:
                operands.append(TmaOperand(None, modes))
                continue
            part = self.loaded_box(box)
            stage = cute.make_layout(part, stride=(part[1], 1))
            atom = cpasync.make_tiled_tma_atom(self.load_op(ctas), modes, stage, part, num_multicast=ctas)
            operands.append(TmaOperand(*atom))
        return tuple(operands)

    def loaded_box(self, box: tuple[int, int]) -> tuple[int, int]:
        """What one load brings: rows of blocks do not have the same length in all problems if K is ragged, so it is one of them."""
        rows, words = box
        return (1, words) if self.has_ragged_k else (rows, words)

    @property
    def scale_sharers(self) -> tuple[int, int]:
        """CTAs of the cluster with the same rows of A, and with the same columns of B: each loads its share for all."""
        return self.config.cluster_n, self.config.cluster_m

    @property
    def stage_bytes(self) -> int:
        by_tma = self.scale_boxes[1:] if self.gathers_a else self.scale_boxes
        scales = sum(rows * words for rows, words in by_tma) * WORD_BYTES
        return super().stage_bytes + self.mma_ctas * scales

    @property
    def copying_warps(self) -> int:
        return super().copying_warps + (self.mma_ctas if self.gathers_a else 0)

    @property
    def reading_warps(self) -> int:
        return super().reading_warps + (1 if self.gathers_a and self.multiplies else 0)

    @cute.jit
    def produce(self, cta: CtaContext, counter: Optional[cute.Tensor]):
        GemmSm100.produce(self, cta, counter)
        if cutlass.const_expr(self.gathers_a and self.multiplies):
            if cute.arch.make_warp_uniform(cute.arch.warp_idx()) == GATHER_WARP:
                self.gather_scales(cta)

    def allocate_smem(self, allocator) -> SmemTensors:
        tensors = super().allocate_smem(allocator)
        scales = [allocator.allocate_tensor(Int64, self.smem_layout_scales(b), SMEM_ALIGN) for b in self.scale_boxes]
        return tensors._replace(scales=tuple(scales))

    def partition_scales(self, cta: CtaContext, work: WorkDesc) -> tuple:
        coordinate = (cta.place.m, cta.place.n)
        first_rows = (work.tile_m, work.tile_n * self.config.tile_n // BLOCK_ROWS)
        parts = []
        for which, i in ((Operand.A, 0), (Operand.B, 1)):
            if cutlass.const_expr(self.gathers_a and which is Operand.A):
                continue
            operand, (rows, words) = cta.operands.scales[i], self.scale_boxes[i]
            box, sharers, mask = self.loaded_box(self.scale_boxes[i]), self.scale_sharers[i], None
            if sharers > 1:
                mask = self.scale_mask(cta.place, self.cluster_mn, mode=1 - i)
            if sharers > 1 and self.config.fallback_cluster is not None:
                smaller = self.scale_mask(cta.place, self.config.fallback_cluster, mode=1 - i)
                mask = either(cta.place, mask, smaller)
            for first in range(0, rows, box[0]):
                mS = self.scales(cta.problem, which, operand.tensor, work, Int32(first_rows[i] + first), self.block_k)
                gS = cute.local_tile(mS, box, (0, None))  # (row blocks, words, k tiles)
                layout = cute.make_layout((*box, self.resources.ab_stages), stride=(words, 1, rows * words))
                sS = cute.make_tensor(cta.smem.scales[i].iterator + first * words, layout)
                shares = self.shares(cta.place, operand.atom, (sS, gS), coordinate[1 - i], sharers, self.boxes[i])
                parts.append(ScaleLoad(operand, shares, mask, self.descriptor(cta.problem, SCALES_OF[which], work)))
        return tuple(parts)

    @staticmethod
    def scale_mask(place: CtaPlace, cluster_mn: tuple[int, int], mode: int):
        return cute.make_layout_image_mask(cute.make_layout(cluster_mn), (place.m, place.n), mode=mode)

    # ---- MMA ------------------------------------------------------------------------------------------------------

    def make_tiled_mma(self) -> cute.TiledMma:
        return sm100_utils.make_blockscaled_trivial_tiled_mma(
            self.a_dtype,
            self.b_dtype,
            major_mode(self.specs.a),
            major_mode(self.specs.b),
            self.scale_dtype,
            self.scaling.block,
            self.cta_group,
            (CTA_M * self.mma_ctas, self.config.tile_n),
        )

    def mma_fragments(
        self, cta: CtaContext, mma: cute.TiledMma, tCtAcc: cute.Tensor, work: WorkDesc
    ) -> ScaledFragments:
        a, b = super().mma_fragments(cta, mma, tCtAcc, work)
        stages, block = self.resources.ab_stages, self.scaling.block
        staged = (
            blockscaled_layout.make_smem_layout_sfa(mma, self.mma_tiler, block, stages),
            blockscaled_layout.make_smem_layout_sfb(mma, self.mma_tiler, block, stages),
        )
        one_a, one_b = (cute.slice_(layout, (None, None, None, 0)) for layout in staged)
        layouts = (
            blockscaled_layout.make_tmem_layout_sfa(mma, self.mma_tiler, block, one_a),
            blockscaled_layout.make_tmem_layout_sfb(mma, self.mma_tiler, block, one_b),
        )
        behind = tCtAcc.iterator + self.resources.acc_stages * self.config.tile_n
        pointers = (behind, behind + self.scale_columns[0])
        copies = tuple(
            self.scale_copy(smem, layout, cute.make_tensor(self.scale_pointer(pointer), tmem))
            for smem, layout, pointer, tmem in zip(cta.smem.scales, staged, pointers, layouts)
        )
        first = pointers[1]
        if self.config.tile_n % BLOCK_ROWS:
            first = first + work.tile_n % 2 * (SCALE_BLOCK_COLUMNS // 2)
        return ScaledFragments(
            a,
            b,
            cute.make_tensor(self.scale_pointer(pointers[0]), layouts[0]),
            cute.make_tensor(self.scale_pointer(first), layouts[1]),
            copies,
            self.k_left(cta, work),
        )

    @cute.jit
    def k_left(self, cta: CtaContext, work: WorkDesc) -> Optional[Int32]:
        """K of a work's problem from the work's first k tile on; None where zeros are behind it."""
        left = None
        if cutlass.const_expr(self.has_ragged_k):
            first, _ = self.k_range(cta.problem, work, self.config.tile_k)
            left = self.problem_shape(cta.problem, work).k - first * self.config.tile_k
        return left

    def scale_pointer(self, column: cute.Pointer) -> cute.Pointer:
        return cute.recast_ptr(column, dtype=self.scale_dtype)

    def scale_copy(self, smem: cute.Tensor, layout: cute.Layout, target: cute.Tensor) -> ScaleCopy:
        """layout: of `smem` in scales, as the MMA divides them."""
        source = cute.make_tensor(cute.recast_ptr(smem.iterator, dtype=self.scale_dtype), layout)
        source, target = cute.filter_zeros(source), cute.filter_zeros(target)
        atom = cute.make_copy_atom(tcgen05.Cp4x32x128bOp(self.cta_group), self.scale_dtype)
        copy = tcgen05.make_s2t_copy(atom, target)
        part = copy.get_slice(0)
        return ScaleCopy(
            copy, tcgen05.get_s2t_smem_desc_tensor(copy, part.partition_S(source)), part.partition_D(target)
        )

    @cute.jit
    def multiply_tile(
        self, mma: cute.TiledMma, fragments: ScaledFragments, into: cute.Tensor, stage: Int32, step: Int32
    ) -> cute.TiledMma:
        """With the scales of the k tile; where K is ragged, only as many MMAs as there is K left, so nothing of another problem."""
        f, mma_k = fragments, self.specs.a.dtype.elements_in(MMA_K_BYTES)
        for copy, source, target in f.copies:
            cute.copy(copy, source[None, None, None, None, stage], target)
        for k in cutlass.range_constexpr(cute.size(f.a, mode=[2])):
            mma.set(tcgen05.Field.ACCUMULATE, step != 0 if cutlass.const_expr(k == 0) else True)
            a, b = f.a[None, None, k, stage], f.b[None, None, k, stage]
            scaled = [a, f.tSFA[None, None, k]], [b, f.tSFB[None, None, k]]
            if cutlass.const_expr(f.k is None or k == 0):
                cute.gemm(mma, into, *scaled, into)
            else:
                if step * self.config.tile_k + k * mma_k < f.k:
                    cute.gemm(mma, into, *scaled, into)
        return mma
