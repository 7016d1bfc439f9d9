"""Where accesses go: names of places for messages, and arrays that shadow the global memory of a launch."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..memory import SHARED_RESERVED, GlobalMemory
from .history import WORD, Where

BASE_ALIGNMENT = 256


def cell(where: Where, i: int) -> int:
    """Number of the i-th cell of an access."""
    if isinstance(where, slice):
        return int(where.start) + i
    assert isinstance(where, np.ndarray)
    return int(where.reshape(-1)[i])


def shared_name(cta: Any, where: Where, i: int) -> str:
    """The i-th cell of an access to shared memory."""
    return f"shared memory of CTA {cta.rank} at offset {cell(where, i) * WORD - SHARED_RESERVED}"


class GlobalShadow:
    """An array of `dtype` for every tensor, one item for four bytes, made when first asked for."""

    def __init__(self, memory: GlobalMemory, dtype: Any) -> None:
        self.memory, self.dtype = memory, dtype
        self.starts = np.array(memory.starts, np.uint64)
        self.cells: dict[int, np.ndarray] = {}

    def split(self, addresses: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(tensor, offsets in its array in bytes) of addresses; those outside all tensors are left out."""
        tensors = np.searchsorted(self.starts, addresses, "right") - 1
        for tensor in np.unique(tensors).tolist():
            if tensor >= 0:
                here = addresses if len(self.starts) == 1 else addresses[tensors == tensor]
                here = here[here < self.memory.ends[tensor]]
                yield tensor, (here - np.uint64(self.memory.bases[tensor])).astype(np.int64)

    def array(self, tensor: int) -> np.ndarray:
        """The array of a tensor."""
        if tensor not in self.cells:
            size = self.memory.ends[tensor] - self.memory.bases[tensor]
            self.cells[tensor] = np.zeros(size // WORD + BASE_ALIGNMENT, self.dtype)
        return self.cells[tensor]

    def name(self, tensor: int, where: Where, i: int) -> str:
        """The i-th cell of an access."""
        address = self.memory.bases[tensor] + cell(where, i) * WORD
        return f"global memory at {address:#x} ({address - self.memory.starts[tensor]} bytes into its tensor)"
