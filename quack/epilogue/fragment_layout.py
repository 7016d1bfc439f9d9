"""The protocol between an arch kernel's accumulators and everything behind them: which elements of a tile a thread holds.

A warpgroup (128 threads) drains the rows of a tile that are its own slab after slab, `slab_m` rows each, and each slab subtile
after subtile, some columns of all of them. Register v of a thread counts its elements of a slab from 0 in an order that the
layout fixes, such that the elements of a subtile follow those of the subtile to its left; a fragment is the registers of one
subtile, `base` the first's v. Mixins never see any of this: they ask `EpilogueContext`.

| layout | accumulators |
|---|---|
| `fragment.MmaFragment` | wgmma, mma.sync: 64-row slabs, a row on four threads |
| `row_fragment.RowFragment` | tensor memory, read by tcgen05.ld.32x32b: 128-row slabs, a row on one thread |
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Optional

import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32

from ..dsl.barrier import WARPGROUP_THREADS
from ..dsl.fast_math import select
from ..gemm_config import OperandSpec


class BlockElement(NamedTuple):
    """An element of a 16 x 16 block of the tile, of which a thread holds eight or more.

    With (row, column) the thread's first element of the block: the row is row + 8 row_half where the thread holds elements in
    both halves; row_half None: they all are in the one half, known at run time. The column is column + 8 col_half + offset,
    0 <= offset < 8, and the block's first element is in its first 8 columns.
    """

    register: int
    row_half: Optional[int]
    col_half: int
    offset: int


class RowTotals(NamedTuple):
    """Totals over the rows of one warp. columns: of the fragment, which each total is of. is_speaker: whether this lane is the
    one that has them to tell; other lanes may hold the same ones."""

    totals: list[Float32]
    columns: list[Int32]
    is_speaker: Boolean


class FragmentLayout(ABC):
    """Static facts, and the little that depends on the thread. Everything is decided while tracing; methods are called by all
    threads of a warpgroup. A frozen dataclass, so that the tracer can carry it.

    Required: the class attributes and the abstract methods.
    """

    slab_m: ClassVar[int]
    """Rows of a slab."""

    rows_per_slab: ClassVar[int]
    """Rows of a slab of which one thread holds elements."""

    row_lanes: ClassVar[tuple[int, ...]]
    """lane ^ these: the other lanes that hold elements of my rows."""

    row_leader: ClassVar[int]
    """Lanes with none of these bits set speak for their rows."""

    @classmethod
    def registers(cls, columns: int) -> int:
        """Elements of one thread in a slab with so many columns."""
        return cls.slab_m * columns // WARPGROUP_THREADS

    is_by_subtile: ClassVar[bool] = False
    """Whether accumulators come into registers subtile by subtile."""

    turns: ClassVar[bool] = False
    """Whether the lanes of a warp hold elements of different rows, so that elements of contiguous rows in global memory are
    better moved after a `turn`."""

    # ---- where the elements are ---------------------------------------------------------------------------------------

    @abstractmethod
    def partition(self, slab: cute.Tensor) -> cute.Tensor:
        """This thread's elements of a (slab_m, any multiple of 16) tensor; flat index v is register v."""

    @abstractmethod
    def row_slot(self, element: int) -> int:
        """Which of the thread's rows of a slab the element is in, from 0 to rows_per_slab - 1."""

    @abstractmethod
    def first_element(self, slot: int) -> int:
        """A register of every fragment that is in the thread's `slot`-th row."""

    @abstractmethod
    def first_column(self) -> Int32:
        """The first of the columns of which this thread holds elements."""

    @abstractmethod
    def column_offset(self, element: int) -> int:
        """How far right of that column the element is."""

    @abstractmethod
    def columns_before(self, element: int) -> int:
        """How many columns precede the fragment that starts with this element."""

    @abstractmethod
    def blocks(self, elements: int) -> list[list[BlockElement]]:
        """The thread's elements of a fragment by 16 x 16 block of the tile, from left to right."""

    # ---- what threads do together -------------------------------------------------------------------------------------

    @abstractmethod
    def fold_rows(self, fragment: cute.Tensor, op: Callable[[Float32, Float32], Float32]) -> RowTotals:
        """Combine a fragment over the rows of each warp with an associative, commutative `op`."""

    @abstractmethod
    def halve(self, fragment: cute.Tensor, function: Callable[[Float32, Float32], Float32]) -> cute.Tensor:
        """A fragment of half as many columns: column j is function(column 2j, column 2j + 1), in the same layout."""

    def turn(self, values: cute.Tensor) -> None:
        """Where `turns`: exchange a fragment, of a dtype that has 8, 16 or 32 bits, within warps such that lanes of one register
        hold neighbours in a row, or put a fragment back that was exchanged."""
        raise NotImplementedError

    def turned_places(self, columns: int, width: int) -> list[tuple[Int32, Int32]]:
        """Where `turns`: (row, column) within the subtile of the elements after `turn`. width: bits of the dtype."""
        raise NotImplementedError

    # ---- transport ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def store_copy(self, spec: OperandSpec, columns: int) -> Any:
        """What `write_stage` needs to know, once a tile, about an output with subtiles of (slab_m, columns)."""

    @abstractmethod
    def write_stage(self, copy: Any, values: cute.Tensor, smem: cute.Tensor, stage: Int32) -> None:
        """A fragment of the output's dtype -> smem[:, :, stage], (slab_m, columns) in the layout that TMA takes."""

    @abstractmethod
    def load_copy(self, spec: OperandSpec, columns: int) -> Any:
        """As `store_copy`, for `read_stage`."""

    @abstractmethod
    def read_stage(self, copy: Any, smem: cute.Tensor, stage: Int32) -> cute.Tensor:
        """smem[:, :, stage] -> a fragment of its dtype; the inverse of `write_stage`."""


class Exchange(NamedTuple):
    """What a lane has after an exchange: totals of the consecutive items from `first` on."""

    totals: list[Float32]
    first: Int32
    is_speaker: Boolean


def exchange_halves(
    values: Sequence[Float32], masks: Sequence[int], op: Callable[[Float32, Float32], Float32]
) -> Exchange:
    """Combine every item over the lanes that differ in the bits `masks` alone; a power of two of items.

    At each step a lane keeps one half of what it holds and sends the other, so that 8 lanes combine 16 items with 8 + 4 + 2
    shuffles, not 3 x 16. With fewer items than lanes the last steps are ordinary, and one lane of each pair speaks.
    """
    lane = cute.arch.lane_idx()
    totals, first, is_speaker = list(values), Int32(0), Boolean(True)
    for mask in masks:
        is_upper = lane & mask != 0
        half = len(totals) // 2
        if half == 0:
            totals = [op(totals[0], cute.arch.shuffle_sync_bfly(totals[0], mask))]
            is_speaker = is_speaker & (lane & mask == 0)
            continue
        lower, upper = totals[:half], totals[half:]
        kept = [select(is_upper, high, low) for low, high in zip(lower, upper)]
        sent = [select(is_upper, low, high) for low, high in zip(lower, upper)]
        totals = [op(own, cute.arch.shuffle_sync_bfly(other, mask)) for own, other in zip(kept, sent)]
        first = first + Int32(is_upper) * half
    return Exchange(totals, first, is_speaker)
