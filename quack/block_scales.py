"""Where the scale factors of block-scaled operands are in memory. Plain data: no torch, no CuTe DSL.

An operand of `rows` x K elements has one scale for each row and each `BlockScaling.block` elements along K. 128 rows x 4 scales
along K are a block of 512 bytes, and blocks follow each other along K, then along the rows (then the batch); extents are padded
to whole blocks. Row r, scale j of a block is byte 16 (r % 32) + 4 (r / 32) + j. So tcgen05.cp takes blocks to tensor memory as
they are, each to 4 columns of 32 lanes. `torch._scaled_mm` and cuBLAS have the same order.
"""

from .gemm_config import BlockScaling, GemmConfig, OperandSpecs

BLOCK_ROWS, BLOCK_SCALES, BLOCK_BYTES = 128, 4, 512
WORD_BYTES = 8  # TMA counts blocks in such words: no box has more than 256 of anything
BLOCK_WORDS = BLOCK_BYTES // WORD_BYTES


def blocks_of(rows: int, k: int, scaling: BlockScaling) -> tuple[int, int]:
    """(row blocks, blocks along K) of an operand."""
    return -(-rows // BLOCK_ROWS), -(-k // (BLOCK_SCALES * scaling.block))


def scale_blocks(operands: OperandSpecs, config: GemmConfig) -> tuple[int, int]:
    """Blocks of A and of B that a CTA needs for a k tile. Of a pair, both CTAs need those of all columns."""
    if operands.a.scaling is None or operands.b.scaling is None:
        return 0, 0
    assert config.tile_k is not None
    a_rows, a_k = blocks_of(config.cta_tile_m, config.tile_k, operands.a.scaling)
    b_rows, b_k = blocks_of(config.tile_n, config.tile_k, operands.b.scaling)
    return a_rows * a_k, b_rows * b_k
