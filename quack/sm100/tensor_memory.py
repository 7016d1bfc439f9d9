"""Accumulators in tensor memory, as the draining warpgroup reads and writes them."""

from dataclasses import dataclass
from typing import Optional

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32
from cutlass.cute.nvgpu import tcgen05
from cutlass.experimental.primitives import tcgen05_fence
from cutlass.pipeline import PipelineState, PipelineUmmaAsync

from ..epilogue.accumulators import Accumulators
from .resources import CTA_M

CLEARED = 16  # columns that one instruction sets to 0


@dataclass(frozen=True)
class TmemAccumulators(Accumulators):
    """One tile's, fp32 (128, tile_n): warp w of the warpgroup reaches lanes 32 w .. 32 w + 31, a thread its lane's columns.

    acc, state: the pipeline that the MMA warp fills and the stage of it that these are; None: nobody but this warpgroup uses
    the memory.
    """

    memory: cute.Tensor
    thread: Int32
    acc: Optional[PipelineUmmaAsync]
    state: Optional[PipelineState]

    @property
    def elements(self) -> int:
        return cute.size(self.memory, mode=[1])

    def load(self, first: int, count: int) -> cute.Tensor:
        part = self.columns(first, count)
        copy = tcgen05.make_tmem_copy(cute.make_copy_atom(tcgen05.Ld32x32bOp(repetition(count)), Float32), part)
        mine = copy.get_slice(self.thread)
        values = cute.make_rmem_tensor(mine.partition_D(cute.make_identity_tensor((CTA_M, count))).shape, Float32)
        cute.copy(copy, mine.partition_S(part), values)
        cute.arch.fence_view_async_tmem_load()
        return cute.make_tensor(values.iterator, cute.make_layout(count))

    def store(self, first: int, values: cute.Tensor) -> None:
        count = cute.size(values)
        part = self.columns(first, count)
        copy = tcgen05.make_tmem_copy(cute.make_copy_atom(tcgen05.St32x32bOp(repetition(count)), Float32), part)
        mine = copy.get_slice(self.thread)
        shape = mine.partition_S(cute.make_identity_tensor((CTA_M, count))).shape
        cute.copy(copy, cute.make_tensor(values.iterator, cute.make_layout(shape)), mine.partition_D(part))
        cute.arch.fence_view_async_tmem_store()

    def clear(self) -> None:
        zero = cute.make_rmem_tensor(CLEARED, Float32)
        zero.fill(0.0)
        for first in range(0, self.elements, CLEARED):
            self.store(first, zero)

    @cute.jit
    def release(self):
        if cutlass.const_expr(self.acc is not None):
            tcgen05_fence("before_thread_sync")
            with cute.arch.elect_one():
                self.acc.consumer_release(self.state)

    def columns(self, first: int, count: int) -> cute.Tensor:
        """(128, count), first being a multiple of count."""
        return cute.local_tile(self.memory, (CTA_M, count), (0, first // count))


def repetition(columns: int) -> tcgen05.Repetition:
    """Of 32-bit columns in one instruction: a power of two up to 128."""
    return getattr(tcgen05.Repetition, f"x{columns}")
