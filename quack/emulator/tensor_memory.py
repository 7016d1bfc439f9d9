"""Tensor memory (TMEM) of a CTA: 128 lanes x 512 columns of 32 bits, allocated by columns (PTX ISA 9.7.16.1, 9.7.16.7).

Cells are poisoned until something writes them and again when their columns are freed. A CTA has an SM to itself here, so
only its own allocations compete. `cta_group::2` allocations are made by two warps, one in each CTA of a pair: the first
one waits for the other at a `PairDesk`.
"""

from collections import deque
from typing import Any, Literal, NamedTuple, Optional

import numpy as np

from .errors import IllegalAccess, Misuse
from .values import MASK, POISON

LANES = 128
COLUMNS = 512
UNIT = 32  # columns are allocated in multiples of this
CELL_POISON = POISON & MASK[32]  # a NaN as f32


class TensorAddress(NamedTuple):
    """A 32-bit TMEM address: lane << 16 | column."""

    lane: int
    column: int

    @classmethod
    def parse(cls, address: int) -> "TensorAddress":
        lane, column = address >> 16 & 0xFFFF, address & 0xFFFF
        if lane >= LANES or column >= COLUMNS:
            raise IllegalAccess(f"tensor memory address {address & MASK[32]:#010x}: lane {lane}, column {column}")
        return cls(lane, column)


class TensorMemory:
    """`cells`: (128, 512) uint32; `allocations`: first column -> number of columns; `has_permit`: may still allocate.

    What `allocations` holds when the CTA ends has leaked.
    """

    def __init__(self, rank: int) -> None:
        """rank: of the CTA, for messages."""
        self.rank = rank
        self.cells = np.full((LANES, COLUMNS), CELL_POISON, np.uint32)
        self.flat = self.cells.reshape(-1)
        self.allocations: dict[int, int] = {}
        self.has_permit = True
        self.allocated = 0  # bit i: column i
        self.last_size = COLUMNS

    def check(self, column: int, count: int) -> None:
        """Raise unless columns [column, column + count) are allocated."""
        needed = ((1 << count) - 1) << column
        if needed & ~self.allocated:
            held = ", ".join(f"[{c}, {c + n})" for c, n in sorted(self.allocations.items())) or "none"
            raise IllegalAccess(
                f"tensor memory columns [{column}, {column + count}) of CTA {self.rank} are not allocated; held: {held}"
            )

    def block(self, lanes: slice, column: int, count: int) -> np.ndarray:
        """View of the cells of some lanes and `count` allocated columns."""
        self.check(column, count)
        return self.cells[lanes, column : column + count]

    def check_request(self, count: int) -> None:
        """Raise unless this CTA may ask for `count` columns now."""
        if not self.has_permit:
            raise Misuse("tcgen05.alloc after tcgen05.relinquish_alloc_permit")
        if not UNIT <= count <= COLUMNS or count & (count - 1):
            raise Misuse(f"tcgen05.alloc of {count} columns: must be a power of two from {UNIT} to {COLUMNS}")
        if count > self.last_size:
            raise Misuse(f"tcgen05.alloc of {count} columns after one of {self.last_size}: sizes must not increase")

    def find(self, count: int, occupied: int = 0) -> Optional[int]:
        """The lowest free column where `count` columns fit; occupied: further columns that are taken."""
        taken, wanted = self.allocated | occupied, (1 << count) - 1
        return next((c for c in range(0, COLUMNS - count + 1, UNIT) if not taken & wanted << c), None)

    def take(self, column: int, count: int) -> None:
        """Allocate."""
        self.allocations[column] = self.last_size = count
        self.allocated |= ((1 << count) - 1) << column

    def free(self, column: int, count: int) -> None:
        """Give back an allocation as a whole."""
        if self.allocations.get(column) != count:
            held = self.allocations.get(column)
            what = "nothing" if held is None else f"{held} columns"
            raise Misuse(f"tcgen05.dealloc of {count} columns at column {column}: {what} was allocated there")
        del self.allocations[column]
        self.allocated &= ~(((1 << count) - 1) << column)
        self.cells[:, column : column + count] = CELL_POISON


def tensor_memory(cta: Any) -> TensorMemory:
    """The tensor memory of a CTA, made on first use."""
    if cta.tensor is None:
        cta.tensor = TensorMemory(cta.rank)
    memory: TensorMemory = cta.tensor
    return memory


class PairRequest:
    """What one warp of a CTA pair asks for. `column`: to free, or the answer once `is_done`."""

    __slots__ = ("column", "count", "is_done")

    def __init__(self, count: int, column: int = 0) -> None:
        self.count, self.column = count, column
        self.is_done = False


class PairDesk:
    """Where the warps of a CTA pair meet to allocate and to free; requests of the two CTAs are served in pairs."""

    def __init__(self, even: TensorMemory, odd: TensorMemory) -> None:
        self.memories = even, odd
        self.allocs: tuple[deque[PairRequest], deque[PairRequest]] = deque(), deque()
        self.frees: tuple[deque[PairRequest], deque[PairRequest]] = deque(), deque()

    def post(self, kind: Literal["alloc", "free"], parity: int, request: PairRequest) -> None:
        """A warp of the even (parity 0) or odd CTA arrives."""
        (self.allocs if kind == "alloc" else self.frees)[parity].append(request)
        self._serve()

    def _serve(self) -> None:
        even, odd = self.memories
        while all(self.frees):
            pair = self._agree(self.frees)
            even.free(pair[0].column, pair[0].count)
            odd.free(pair[1].column, pair[1].count)
            self._finish(self.frees)
        while all(self.allocs):
            pair = self._agree(self.allocs)
            column = even.find(pair[0].count, odd.allocated)
            if column is None:
                return
            for memory, request in zip(self.memories, pair):
                memory.take(column, request.count)
                request.column = column
            self._finish(self.allocs)

    @staticmethod
    def _agree(queues: tuple[deque[PairRequest], deque[PairRequest]]) -> tuple[PairRequest, PairRequest]:
        even, odd = queues[0][0], queues[1][0]
        if (even.count, even.column) != (odd.count, odd.column):
            raise Misuse(
                f"the CTAs of a pair disagree on an allocation: {even.count} columns at {even.column} in the even CTA, "
                f"{odd.count} at {odd.column} in the odd one"
            )
        return even, odd

    @staticmethod
    def _finish(queues: tuple[deque[PairRequest], deque[PairRequest]]) -> None:
        for queue in queues:
            queue.popleft().is_done = True
