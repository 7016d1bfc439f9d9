"""out[row] = sum of x[row, :], or rsqrt(scale * that + eps): what a GEMM that reduces rows in its epilogue leaves to be done, since
each of its tiles knows a part of a row only.

A group of 2^g neighbouring lanes works on a row. Lane i takes vectors i, i + 2^g, ... of it, a few at once; the lanes' sums meet in
a butterfly. So the order of additions follows from g and the extents, and every run gives the same bits.

PDL: every thread waits for the grid before it, the GEMM whose partials it reads, and so passes that grid's end on to the next.
"""

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from ..dsl.fast_math import multiply_add, select

THREADS = 128
MAX_GROUP = 5  # a warp


class RowSum:
    """A host function (x, out, scale, eps, g, stream). x (M, n) or (L, M, n), out fp32 without the last mode, none of them empty;
    g at most MAX_GROUP.

    vector: elements of x in one load: 1, or as many as 16 bytes hold. n, pitches and address are multiples of that then.
    loads: how many of them a lane has in flight, a power of two. is_rms: the second form; else scale and eps are not used.
    """

    def __init__(self, vector: int, loads: int, is_rms: bool):
        self.vector, self.loads, self.is_rms = vector, loads, is_rms

    @cute.jit
    def __call__(self, x: cute.Tensor, out: cute.Tensor, scale: Float32, eps: Float32, group: Int32, stream):
        blocks = cute.ceil_div(cute.size(out), Int32(THREADS) >> group)
        self.kernel(x, out, scale, eps, group).launch(
            grid=[blocks, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=True
        )

    @cute.kernel
    def kernel(self, x: cute.Tensor, out: cute.Tensor, scale: Float32, eps: Float32, group: Int32):
        thread, block = cute.arch.thread_idx()[0], cute.arch.block_idx()[0]
        lane = thread & ((Int32(1) << group) - 1)
        row = block * (Int32(THREADS) >> group) + (thread >> group)
        last = cute.size(out) - 1
        cute.arch.griddepcontrol_launch_dependents()
        cute.arch.griddepcontrol_wait()
        # Lanes behind the last row read that one, because all of a warp meet in the butterfly.
        total = self.lane_sum(x[(*self.place(out, cutlass.min(row, last)), None)], lane, group)
        for step in cutlass.range_constexpr(MAX_GROUP):
            other = cute.arch.shuffle_sync_bfly(total, 1 << step)
            total = total + select(step < group, other, 0.0)
        if lane == 0 and row <= last:
            if cutlass.const_expr(self.is_rms):
                total = Float32(cute.math.rsqrt(multiply_add(total, scale, eps), approx=True))
            out[self.place(out, row)] = total

    def place(self, out: cute.Tensor, row: Int32) -> tuple:
        """Coordinates of the row with this number."""
        if cute.rank(out) == 1:
            return (row,)
        per_batch = cute.size(out, mode=[1])
        return row // per_batch, row % per_batch

    @cute.jit
    def lane_sum(self, row: cute.Tensor, lane: Int32, group: Int32) -> Float32:
        """The sum of this lane's vectors. Loads behind the last one load that again: a branch would put them one after another."""
        vectors = cute.size(row) // self.vector
        span = Int32(self.loads) << group  # vectors that the group loads at once
        total = Float32(0.0)
        for chunk in cutlass.range((vectors + span - 1) >> (group + self.loads.bit_length() - 1), unroll=1):
            numbers = [lane + ((chunk * self.loads + u) << group) for u in range(self.loads)]
            loaded = [self.load(row, cutlass.min(i, vectors - 1)) for i in numbers]
            terms = [select(i < vectors, value, 0.0) for i, values in zip(numbers, loaded) for value in values]
            total = total + sum_of_pairs(terms)
        return total

    def load(self, row: cute.Tensor, i: Int32) -> list[Any]:
        """Vector i of the row in fp32."""
        if self.vector == 1:
            return [row[i].to(Float32)]
        first = cute.assume(i * self.vector, divby=self.vector)
        values = cute.make_rmem_tensor(self.vector, row.element_type)
        cute.autovec_copy(cute.make_tensor(row.iterator + first, cute.make_layout(self.vector)), values)
        return [values[v].to(Float32) for v in range(self.vector)]


def sum_of_pairs(terms: list[Float32]) -> Float32:
    """The sum of 2^i numbers as a tree: each is rounded i times at most, and few additions wait for another."""
    if len(terms) == 1:
        return terms[0]
    return sum_of_pairs([low + high for low, high in zip(terms[::2], terms[1::2])])
