"""Where the scales of ragged operands go, in plain torch without waiting for the device: see `block_scales`."""

from typing import Optional

import torch

from .block_scales import BLOCK_BYTES, BLOCK_ROWS, BLOCK_SCALES, ragged_blocks
from .runtime.scales import SCALING_OF_TORCH


def places(
    scales: torch.Tensor,
    rows: int,
    count: int,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    cu_seqlens_k: Optional[torch.Tensor] = None,
) -> tuple[torch.Tensor, tuple[int, ...]]:
    """(rows, count): the byte of every scale; the shape of the blocks, as many as so many groups may need.

    scales: any tensor of them, for dtype and device. Either of the offsets, in rows or in elements of K, must be given.
    """
    offsets = cu_seqlens_m if cu_seqlens_m is not None else cu_seqlens_k
    assert offsets is not None
    row = torch.arange(rows, device=scales.device).unsqueeze(1)
    column = torch.arange(count, device=scales.device).unsqueeze(0)
    if cu_seqlens_m is not None:
        blocks = -(-count // BLOCK_SCALES)
        group, first, _ = _groups(offsets, row, BLOCK_ROWS)
        row = row - offsets.long()[group] + first[group] * BLOCK_ROWS
        block = row // BLOCK_ROWS * blocks + column // BLOCK_SCALES
        shape: tuple[int, ...] = (ragged_blocks(rows, offsets.numel() - 1, BLOCK_ROWS)[-1], blocks)
    else:
        row_blocks = -(-rows // BLOCK_ROWS)
        offsets = offsets // SCALING_OF_TORCH[scales.dtype].block
        group, first, blocks_of_group = _groups(offsets, column, BLOCK_SCALES)
        column = column - offsets.long()[group]
        block = first[group] * row_blocks + row // BLOCK_ROWS * blocks_of_group[group] + column // BLOCK_SCALES
        shape = (row_blocks * ragged_blocks(count, offsets.numel() - 1, BLOCK_SCALES)[-1],)
    in_block = row % 32 * 16 + row % BLOCK_ROWS // 32 * BLOCK_SCALES + column % BLOCK_SCALES
    return block * BLOCK_BYTES + in_block, (*shape, 32, 16)


def _groups(
    offsets: torch.Tensor, positions: torch.Tensor, unit: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(the group that each position is in, the first block of each group, its blocks)."""
    group = torch.searchsorted(offsets[1:].contiguous(), positions.to(offsets.dtype), right=True)
    blocks = (offsets.diff().long() + unit - 1) // unit
    return group.clamp(max=max(offsets.numel() - 2, 0)), blocks.cumsum(0) - blocks, blocks
