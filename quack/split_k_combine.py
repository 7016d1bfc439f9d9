"""Who adds up the parts of a tile: a policy between the main loop and the epilogue (mixins before the commit policy).

A *partial tile* in the workspace is padded to whole CTA tiles, so nothing is predicated, and lies as the accumulators do:
[slot][warpgroup of the tile][vector v][thread][4 fp32], v counting the registers of a thread by fours. Every access of a warp
is 512 consecutive bytes. Warpgroups never need each other's rows, so each has a semaphore word of its own: [slot][warpgroup].

| mode | part s of S | semaphore |
|---|---|---|
| SERIAL, STREAM | waits for s; adds the running sum to its own; stores it; sets s + 1 | turn |
| PARALLEL | adds its own to the zeroed workspace by red; arrives | number of arrivals |
| SEPARATE | stores its own in slot * S + s; a second launch adds up | - |

The last part, S - 1, waits (SERIAL: its turn, PARALLEL: for S - 1 arrivals), has the sum in its registers, puts everything back
to zero and runs the epilogue. Order in memory: 128 threads store, meet at the warpgroup's barrier, and one of them releases the
word (gpu scope); one thread acquires it, and its warpgroup meets before all its threads load. Stores before a barrier and a
release by one thread are visible to whoever acquires: causality is transitive.

Launches on one stream follow one another (griddepcontrol.wait comes before all of this), so the workspace is zero again for the
next. Why waiting ends: see `split_works` and `stream_works`.
"""

from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32, Int64

from .dsl.barrier import WARPGROUP_THREADS, sync_warpgroup
from .dsl.global_memory import VECTOR, add_vector, arrive, publish, wait_until
from .epilogue.accumulators import Accumulators
from .gemm_work import WorkDesc

IN_FLIGHT = 4  # vectors that a thread loads before it uses the first; with 8, tiles of 128 x 192 spill
SUM_REGISTERS = 64  # of such a thread besides those that are loaded
LOADS_IN_FLIGHT = 32  # vectors that a thread of the second launch has under way: 24 parts took 5.8 us with 8


@dataclass(frozen=True)
class PartialTile:
    """One warpgroup's accumulators of one work, and where they meet those of the tile's other works.

    params: the scheduler's, see `SplitParams`. thread: in the warpgroup. share: which of the `sharing` warpgroups of the tile;
    warpgroup: whose barrier.
    """

    accumulators: Accumulators
    work: WorkDesc
    params: Any
    thread: Int32
    warpgroup: Int32
    share: Int32
    sharing: int

    @property
    def vectors(self) -> int:
        """16-byte vectors of one thread."""
        return self.accumulators.elements // VECTOR

    @cute.jit
    def memory(self, slot: Int32) -> cute.Tensor:
        """(4, vectors) of this thread in the workspace."""
        words = WARPGROUP_THREADS * VECTOR * self.vectors
        first = (Int64(slot) * self.sharing + self.share) * words + self.thread * VECTOR
        pointer = self.params.workspace.iterator + cute.assume(first, divby=VECTOR)
        layout = cute.make_layout((VECTOR, self.vectors), stride=(1, WARPGROUP_THREADS * VECTOR))
        return cute.make_tensor(pointer, layout)

    @cute.jit
    def semaphore(self) -> cute.Pointer:
        return self.params.semaphores.iterator + (self.work.slot * self.sharing + self.share)

    def load(self, first: int) -> cute.Tensor:
        """(4, IN_FLIGHT or fewer): the accumulators of a chunk."""
        count = min(IN_FLIGHT, self.vectors - first)
        registers = self.accumulators.load(first * VECTOR, count * VECTOR)
        return cute.make_tensor(registers.iterator, cute.make_layout((VECTOR, count)))

    @cute.jit
    def add(self, memory: cute.Tensor):
        """accumulators += memory"""
        for first in cutlass.range_constexpr(0, self.vectors, IN_FLIGHT):
            count = min(IN_FLIGHT, self.vectors - first)
            loaded = cute.make_rmem_tensor(count * VECTOR, Float32)
            vectors = cute.make_tensor(loaded.iterator, cute.make_layout((VECTOR, count)))
            for v in cutlass.range_constexpr(count):
                cute.autovec_copy(memory[None, first + v], vectors[None, v])
            self.accumulators.add(first * VECTOR, loaded)

    @cute.jit
    def store(self, memory: cute.Tensor):
        """memory = accumulators"""
        for first in cutlass.range_constexpr(0, self.vectors, IN_FLIGHT):
            chunk = self.load(first)
            for v in cutlass.range_constexpr(chunk.shape[1]):
                cute.autovec_copy(chunk[None, v], memory[None, first + v])

    @cute.jit
    def reduce(self, memory: cute.Tensor):
        """memory += accumulators, element by element atomic"""
        for first in cutlass.range_constexpr(0, self.vectors, IN_FLIGHT):
            chunk = self.load(first)
            for v in cutlass.range_constexpr(chunk.shape[1]):
                add_vector(memory[None, first + v].iterator.toint(), chunk[None, v])

    @cute.jit
    def clear(self, memory: cute.Tensor):
        """memory = 0"""
        zero = cute.make_rmem_tensor(VECTOR, Float32)
        zero.fill(0.0)
        for v in cutlass.range_constexpr(self.vectors):
            cute.autovec_copy(zero, memory[None, v])

    @cute.jit
    def wait_for(self, value: Int32):
        """All threads of the warpgroup: until the semaphore is `value`."""
        if self.thread == 0:
            wait_until(self.semaphore(), value)
        sync_warpgroup(self.warpgroup)


@cute.jit
def is_last_part(work: WorkDesc) -> Boolean:
    """Whether this work finishes its tile: it reads C and runs the epilogue."""
    return work.split == work.split_count - 1


class SerialCombine:
    """Plan mixin: a turnstile. The sum is ((p0 + p1) + p2) + ..., whatever the order in which works end."""

    combines = True

    @cute.jit
    def combine(self, tile: PartialTile) -> Boolean:
        """All threads of an MMA warpgroup, after the main loop. Whether the accumulators now are the whole sum."""
        split, is_last = tile.work.split, is_last_part(tile.work)
        memory = tile.memory(tile.work.slot)
        if split > 0:
            tile.wait_for(split)
            tile.add(memory)
        if not is_last:
            tile.store(memory)
            sync_warpgroup(tile.warpgroup)
        if tile.thread == 0 and tile.work.split_count > 1:
            publish(tile.semaphore(), Int32(0) if is_last else split + 1)
        return is_last


class StreamCombine(SerialCombine):
    """Plan mixin: the same turnstile for works of `stream_works`. Whole tiles are the only part of theirs, and have no slot."""


class ParallelCombine:
    """Plan mixin: reductions in memory. The order of additions, and so the last bits, differ from run to run for S > 2."""

    combines = True

    @cute.jit
    def combine(self, tile: PartialTile) -> Boolean:
        """As `SerialCombine.combine`."""
        others, is_last = tile.work.split_count - 1, is_last_part(tile.work)
        memory = tile.memory(tile.work.slot)
        if not is_last:
            tile.reduce(memory)
            sync_warpgroup(tile.warpgroup)
            if tile.thread == 0:
                arrive(tile.semaphore())
        elif others > 0:
            tile.wait_for(others)
            tile.add(memory)
            tile.clear(memory)
            if tile.thread == 0:
                publish(tile.semaphore(), Int32(0))
        return is_last


class StorePartials:
    """Plan mixin: every work is only a part, to be added up by `SumPartials` in a launch of its own."""

    combines = True
    finishes = False

    @cute.jit
    def combine(self, tile: PartialTile) -> Boolean:
        """As `SerialCombine.combine`; never."""
        tile.store(tile.memory(tile.work.slot * tile.work.split_count + tile.work.split))
        return Boolean(False)


class SumPartials:
    """Plan mixin of the second launch: adds up what `StorePartials` has stored, in the order of the parts."""

    combines = True
    multiplies = False

    @cute.jit
    def combine(self, tile: PartialTile) -> Boolean:
        """All threads of an MMA warpgroup: fills the accumulators. The work is a piece of one slab, see `split_pieces`."""
        tiles, sharing, slab_m = self.pieces_of, self.sharing_of(self.pieces_of), self.layout_class.slab_m
        columns, tile_columns = (self.layout_class.registers(n) // VECTOR for n in (self.config.tile_n, tiles.tile_n))
        of_warpgroup = tiles.cta_tile_m // slab_m // sharing * tile_columns
        slab = tile.work.tile_m % (tiles.cta_tile_m // slab_m)
        column = tile.work.tile_n % (tiles.tile_n // self.config.tile_n) * columns
        slot = Int64(tile.work.slot) * tile.work.split_count
        vector = (slot * sharing + slab % sharing) * of_warpgroup + slab // sharing * tile_columns + column
        stride = WARPGROUP_THREADS * VECTOR
        pointer = tile.params.workspace.iterator + cute.assume(vector * stride + tile.thread * VECTOR, divby=VECTOR)
        step = sharing * of_warpgroup * stride
        tile.accumulators.clear()
        parts = PartSums(tile, pointer, step, columns)
        loads = LOADS_IN_FLIGHT
        while cutlass.const_expr(VECTOR * loads > self.resources.mma_registers - SUM_REGISTERS):
            loads = loads // 2
        batch = max(1, loads // columns)
        whole = tile.work.split_count // batch * batch
        for first in cutlass.range(0, whole, batch, unroll=1):
            parts.add(first, batch)
        while cutlass.const_expr(batch > 1):
            batch = batch // 2
            if tile.work.split_count & batch != 0:
                parts.add(whole, batch)
            whole += tile.work.split_count & batch
        return Boolean(True)


@dataclass(frozen=True)
class PartSums:
    """One thread's piece of the partial tiles: part s has `vectors` vectors at pointer + s * step, a warpgroup's apart."""

    tile: PartialTile
    pointer: cute.Pointer
    step: int
    vectors: int

    @cute.jit
    def add(self, first: Int32, count: cutlass.Constexpr[int]):
        """Parts first .. first + count to the accumulators, one after the other; all loads are issued before the first sum."""
        layout = cute.make_layout((VECTOR, self.vectors), stride=(1, WARPGROUP_THREADS * VECTOR))
        elements = VECTOR * self.vectors
        loaded = cute.make_rmem_tensor(elements * count, Float32)
        registers = [cute.make_tensor(loaded.iterator + i * elements, cute.make_layout(elements)) for i in range(count)]
        for i in cutlass.range_constexpr(count):
            offset = cute.assume(Int64(first + i) * self.step, divby=VECTOR)
            part = cute.make_tensor(self.pointer + offset, layout)
            for v in cutlass.range_constexpr(self.vectors):
                target = cute.make_tensor(registers[i].iterator + v * VECTOR, cute.make_layout(VECTOR))
                cute.autovec_copy(part[None, v], target)
        for i in cutlass.range_constexpr(count):
            self.tile.accumulators.add(0, registers[i])
