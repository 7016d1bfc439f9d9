"""Where the device table of grouped problems has what: the one place that says so, to the host that writes and kernels that read.

A problem is a row of int64 words, padded to whole lines of 128 bytes:

| M | N | K | number | A | B | D | scales of A, of B, if any | C, if any | each port of the mixins with a tensor for every problem |
|---|---|---|---|---|---|---|---|---|---|

M, N and K as the kernel has them, number: which problem of the call this is. A matrix has two words, its address and the pitch of
its strided mode in elements, a vector and scales one, the address. A kernel without C and without mixins has a prefix of the
words of one with them, so that two launches can share a table.

Beside the table every problem has a TMA descriptor (128 bytes) for each matrix that TMA moves, numbered in the same order.
"""

import enum
import functools
from typing import NamedTuple, Optional, Union

from .gemm_config import OperandSpec, OperandSpecs
from .gemm_port import EpilogueOpSpec, PortId, PortKind, PortSource, numbered_ports

LINE_WORDS = 16  # 128 bytes: what TMA asks of the address of a descriptor
SCALES = ("a_scale", "b_scale")
ORDER = ("a", "b", "d", *SCALES, "c")  # fields of `OperandSpecs`, and scales

Key = Union[str, PortId]  # an operand by its name in `ORDER`, or a port


class Word(enum.IntEnum):
    """Of every row."""

    M = 0
    N = 1
    K = 2
    NUMBER = 3
    FIRST_SLOT = 4


class Slot(NamedTuple):
    """What one tensor of a problem has. pitch: the word of it; descriptor: its number among those of the problem."""

    word: int
    pitch: Optional[int] = None
    descriptor: Optional[int] = None


class TableLayout(NamedTuple):
    """slots: in the order of their words. words: of a row. descriptors: of a problem."""

    slots: dict[Key, Slot]
    words: int
    descriptors: int


@functools.lru_cache(maxsize=1024)
def table_layout(operands: OperandSpecs, epilogue: tuple[EpilogueOpSpec, ...]) -> TableLayout:
    """What the table of a kernel with these operands and mixins looks like."""
    slots: dict[Key, Slot] = {}
    word, descriptors = int(Word.FIRST_SLOT), 0

    def add(key: Key, is_matrix: bool, is_moved_by_tma: bool) -> None:
        nonlocal word, descriptors
        slots[key] = Slot(word, word + 1 if is_matrix else None, descriptors if is_moved_by_tma else None)
        word += 2 if is_matrix else 1
        descriptors += is_moved_by_tma

    for name in ORDER:
        if name in SCALES:
            if operands.is_scaled:
                add(name, False, True)
            continue
        spec: Optional[OperandSpec] = getattr(operands, name)
        if spec is not None:
            add(name, True, spec.is_tma)
    for port_id, port in numbered_ports(epilogue):
        if port.source is PortSource.TABLE:
            is_vector = port.kind in (PortKind.ROW_VECTOR, PortKind.COL_VECTOR)
            is_stored = port.kind is PortKind.TILE_OUTPUT and port.layout is not None and port.layout.is_tma
            add(port_id, not is_vector, is_stored)
    return TableLayout(slots, -(-word // LINE_WORDS) * LINE_WORDS, descriptors)
