"""Where the scale factors of block-scaled operands are in memory. Plain data: no torch, no CuTe DSL.

An operand of `rows` x K elements has one scale for each row and each `BlockScaling.block` elements along K. 128 rows x 4 scales
along K are a block of 512 bytes, and blocks follow each other along K, then along the rows (then the batch); extents are padded
to whole blocks. Row r, scale j of a block is byte 16 (r % 32) + 4 (r / 32) + j. So tcgen05.cp takes blocks to tensor memory as
they are, each to 4 columns of 32 lanes. `torch._scaled_mm` and cuBLAS have the same order.

Of ragged problems every group begins with a block of its own, as in `torch._scaled_grouped_mm`: the blocks of the groups follow each
other, those of one in the order above, and only the scales are padded, never the elements.

- cu_seqlens_m: the scales of A are those of the groups' rows. A group of m rows has ceil(m / 128) rows of blocks.
- cu_seqlens_k: the scales of A and of B are one matrix of blocks for each group, of all rows and the group's part of K. Instructions
  do not reach across a group's end, so a group's part of K is a multiple of `k_unit`.
"""

from .gemm_config import BlockScaling, Dtype, GemmConfig, OperandSpecs

BLOCK_ROWS, BLOCK_SCALES, BLOCK_BYTES = 128, 4, 512
WORD_BYTES = 8  # TMA counts blocks in such words: no box has more than 256 of anything
BLOCK_WORDS = BLOCK_BYTES // WORD_BYTES
MMA_K_BYTES = 32  # of a row of A or B
# fp4 beside fp8: TMA spreads such elements out, 128 of them and rows that begin at multiples of 32 bytes.
WIDE_BOX, WIDE_ALIGN_BYTES = 128, 32


def blocks_of(rows: int, k: int, scaling: BlockScaling) -> tuple[int, int]:
    """(row blocks, blocks along K) of an operand."""
    return -(-rows // BLOCK_ROWS), -(-k // (BLOCK_SCALES * scaling.block))


def ragged_blocks(extent: int, groups: int, unit: int) -> range:
    """How many blocks of `unit` may be needed for `extent` in so many groups, each of which begins with a block of its own."""
    return range(-(-extent // unit), extent // unit + min(groups, extent) + 1)


def k_unit(a: Dtype, b: Dtype, scaling: BlockScaling, is_ragged: bool) -> int:
    """What K is a multiple of: whole scales; of groups behind each other, whole instructions; of fp4 beside fp8, what TMA takes."""
    if a.is_packed is not b.is_packed:
        return WIDE_BOX
    return max(scaling.block, a.elements_in(MMA_K_BYTES)) if is_ragged else scaling.block


def beside(dtype: Dtype, other: Dtype) -> Dtype:
    """The type of an operand as kernels know it that multiply it by the other."""
    return Dtype.WIDE_E2M1 if dtype is Dtype.E2M1 and not other.is_packed else dtype


def scale_blocks(operands: OperandSpecs, config: GemmConfig) -> tuple[int, int]:
    """Blocks of A and of B that a CTA needs for a k tile. Of a pair, both CTAs need those of all columns."""
    if operands.a.scaling is None or operands.b.scaling is None:
        return 0, 0
    assert config.tile_k is not None
    a_rows, a_k = blocks_of(config.cta_tile_m, config.tile_k, operands.a.scaling)
    b_rows, b_k = blocks_of(config.tile_n, config.tile_k, operands.b.scaling)
    return a_rows * a_k, b_rows * b_k
