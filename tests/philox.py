"""A host model of stochastic rounding to bf16, bit by bit; see `quack.epilogue.rounding`."""

from typing import Optional

import numpy as np
import torch

MASK = np.uint64(0xFFFFFFFF)


def philox(counter: list[np.ndarray], key: tuple[int, int], rounds: int = 7) -> list[np.ndarray]:
    """Philox4x32: four words of 32 random bits (in uint64 arrays) per counter."""
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        high0, high1 = p0 >> np.uint64(32), p1 >> np.uint64(32)
        c0, c1, c2, c3 = high1 ^ c1 ^ np.uint64(k0), p1 & MASK, high0 ^ c3 ^ np.uint64(k1), p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [np.broadcast_to(c, np.broadcast(c0, c1, c2, c3).shape) for c in (c0, c1, c2, c3)]


def random_bits(rows: int, cols: int, problem: int, seed: int) -> np.ndarray:
    """(rows, cols) of 16 random bits, in uint64."""
    row, col = np.arange(rows)[:, None], np.arange(cols)[None, :]
    line, column = row // 16 * 8 + row % 8, col // 16 * 4 + col % 8 // 2
    words = np.stack(philox([line, column, np.full((1, 1), problem), np.zeros((1, 1))], (seed, 0)))
    half = row // 8 % 2 * 4 + col // 8 % 2 * 2 + col % 2
    word = np.take_along_axis(words, (half % 4)[None], 0)[0]
    return (word >> (half // 4 * 16).astype(np.uint64)) & np.uint64(0xFFFF)


def round_stochastically(x: torch.Tensor, seed: int, problem: Optional[int] = None) -> torch.Tensor:
    """fp32 (rows, cols) or, if `problem` is None, also (L, rows, cols), rounded to bf16."""
    if x.dim() == 3:
        return torch.stack([round_stochastically(part, seed, index) for index, part in enumerate(x)])
    bits = x.contiguous().numpy().view(np.uint32).astype(np.uint64)
    rounded = (bits + random_bits(*x.shape, problem or 0, seed)) & np.uint64(0xFFFF0000)
    values = torch.from_numpy((rounded & MASK).astype(np.uint32).view(np.float32))
    return torch.where(x.isnan(), x, values).bfloat16()
