"""Ports of grouped problems: every problem has vectors and partials of its own, found through the table of problems."""

from dataclasses import dataclass
from typing import Any, Optional

import cutlass.cute as cute
from cutlass import Int32


@dataclass(frozen=True)
class TensorTable:
    """What `BoundPort.value` is for such a port. table (problems, words) int64: word `word` of a problem's row is the address of its
    tensor of `dtype`, word `pitch` that of a matrix in elements."""

    table: cute.Tensor
    dtype: Any
    word: int
    pitch: Optional[int] = None

    @cute.jit
    def vector(self, row: Int32, length: Int32) -> cute.Tensor:
        """Device. (length,) of the problem in this row of the table."""
        return cute.make_tensor(self.pointer(row), cute.make_layout(length))

    @cute.jit
    def matrix(self, row: Int32, lines: Int32) -> cute.Tensor:
        """Device. (lines, pitch) of the problem in this row of the table."""
        pitch = self.table[row, self.pitch]
        return cute.make_tensor(self.pointer(row), cute.make_layout((lines, Int32(pitch)), stride=(pitch, 1)))

    def pointer(self, row: Int32) -> cute.Pointer:
        """Device. To the first element of the problem in this row of the table."""
        align = self.dtype.width // 8
        return cute.make_ptr(self.dtype, self.table[row, self.word], cute.AddressSpace.gmem, assumed_align=align)
