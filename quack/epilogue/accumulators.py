"""Where the fp32 sums of a tile are until the epilogue has read them: registers, or memory behind an instruction."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import cutlass.cute as cute
from cutlass import Float32


class Accumulators(ABC):
    """What one warpgroup drains of one tile. A thread's elements are numbered slab after slab, each as `FragmentLayout` has it:
    element v of a slab is element slab * (elements of a slab) + v here.

    All methods are called by all threads of the warpgroup, with numbers known while tracing. A frozen dataclass, so that the
    tracer can carry it. Once per work, after the last other call, somebody calls `release`: `run_epilogue_plan`, right behind
    the load of the last subtile; the kernel, if the work does not run the epilogue.
    """

    @property
    @abstractmethod
    def elements(self) -> int:
        """Of one thread, all slabs."""

    @abstractmethod
    def load(self, first: int, count: int) -> cute.Tensor:
        """(count,) new fp32 registers with elements first ... first + count - 1. Usable when it returns."""

    @abstractmethod
    def store(self, first: int, values: cute.Tensor) -> None:
        """Replace the elements from `first` on; later loads see it."""

    def add(self, first: int, values: cute.Tensor) -> None:
        """Add to the elements from `first` on."""
        sums = self.load(first, cute.size(values))
        for v in range(cute.size(values)):
            sums[v] = sums[v] + values[v]
        self.store(first, sums)

    @abstractmethod
    def clear(self) -> None:
        """Make all elements 0, whatever they were."""

    @abstractmethod
    def release(self) -> None:
        """The next sums may overwrite these: nothing of them is read any more."""


@dataclass(frozen=True)
class RegisterAccumulators(Accumulators):
    """wgmma's and mma.sync's: registers of the threads that drain them, of any shape whose flat order is that of the elements."""

    registers: cute.Tensor

    @property
    def elements(self) -> int:
        return cute.size(self.registers)

    def load(self, first: int, count: int) -> cute.Tensor:
        values = cute.make_rmem_tensor(count, Float32)
        for v in range(count):
            values[v] = self.registers[first + v]
        return values

    def store(self, first: int, values: cute.Tensor) -> None:
        for v in range(cute.size(values)):
            self.registers[first + v] = values[v]

    def clear(self) -> None:
        self.registers.fill(0.0)

    def release(self) -> None:
        """The next main loop is this warpgroup's own and comes later."""
