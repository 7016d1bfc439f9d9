"""Stochastic rounding to bf16: up with the probability that makes the expected result exact.

fp32 has 16 bits below bf16's last. Adding 16 uniformly random ones to them and dropping all 16 rounds x away from zero with
probability low / 65536, `low` being what is dropped: unbiased, and exact where x is a bf16 number. The store's own rounding
then has nothing left to round. Infinities stay, NaN stays NaN, and what exceeds the largest bf16 number becomes that or
infinity.

The random bits are a function of (seed, problem, row, column) alone: of no tile, schedule or architecture, and of the row and
column of the user's D where the kernel computes D^T. They are Philox4x32 with 7 rounds (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011; 7 rounds pass BigCrush there), whose 128 bits serve eight elements:

    counter = (row // 16 * 8 + row % 8, column // 16 * 4 + column % 8 // 2, problem, 0), key = (seed, 0)
    half    = row // 8 % 2 * 4 + column // 8 % 2 * 2 + column % 2        of the low halves of the four words, then the high

which are the eight that one thread holds of a 16 x 16 block of a wgmma or mma.sync accumulator: two wide multiplications and
two three-input xors a round, 3.5 instructions an element, and about five to apply the bits. A thread that holds one row of the
block needs its four counters for sixteen elements, eight counters where it is a column of the user's D.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, Uint32

from .fragment_layout import BlockElement
from .protocol import EpilogueContext, EpilogueFragment, EpilogueMixin, Integer

ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LINES, COLUMNS = 8, 4  # counters of a 16 x 16 block in either direction


def philox(counter: tuple[Uint32, Uint32, Uint32, Uint32], seed: Uint32) -> tuple[Uint32, Uint32, Uint32, Uint32]:
    """Philox4x32-7 with key (seed, 0): four random words."""
    c0, c1, c2, c3 = counter
    for i in range(ROUNDS):
        low_key, high_key = seed + Uint32(i * WEYL[0] & 0xFFFFFFFF), Uint32(i * WEYL[1] & 0xFFFFFFFF)
        product0 = cute.arch.mul_wide(c0, Uint32(MULTIPLIERS[0]))
        product1 = cute.arch.mul_wide(c2, Uint32(MULTIPLIERS[1]))
        high0, high1 = Uint32(product0 >> 32), Uint32(product1 >> 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ low_key, Uint32(product1), high0 ^ c3 ^ high_key, Uint32(product0)
    return c0, c1, c2, c3


@dataclass(frozen=True)
class RoundStochastically(EpilogueMixin):
    """acc <- a neighbouring bf16 number. The last mixin of a chain whose D is bf16 and has all columns.

    seed: 0 <= seed < 2^31.
    """

    seed: Integer

    def begin(self, ctx: EpilogueContext) -> Int32:
        return ctx.load_integer(self.seed)

    def visit(self, ctx: EpilogueContext, state: Int32, frag: EpilogueFragment) -> Int32:
        row, col = ctx.coordinates(frag)[0]
        bits = cute.recast_tensor(frag.acc, Uint32)
        for index, block in enumerate(ctx.layout.blocks(cute.size(frag.acc))):
            for register, noise in self.block_noise(Place(row, col, ctx.problem, state), index, block):
                is_number = frag.acc[register] == frag.acc[register]
                rounded = (bits[register] + noise) & Uint32(0xFFFF0000)
                bits[register] = pick(is_number, rounded, bits[register])
        return state

    def block_noise(self, first: "Place", index: int, block: list[BlockElement]) -> list[tuple[int, Uint32]]:
        """(register, 16 random bits) of every element of the fragment's block `index`, counted along the columns."""
        found = []
        for pair in sorted({e.offset // 2 for e in block}):
            words = random_words(first, 0, index * COLUMNS + pair)
            for e in block:
                if e.offset // 2 == pair:
                    word = 2 * e.col_half + e.offset % 2
                    if e.row_half is None:
                        noise = words[word] >> Uint32(first.row // 8 % 2 * 16) & Uint32(0xFFFF)
                    else:
                        noise = half_word(words, 4 * e.row_half + word)
                    found.append((e.register, noise))
        return found


@dataclass(frozen=True)
class RoundStochasticallyTransposed(RoundStochastically):
    """The same bits where the kernel computes D^T: its columns are D's rows, so each column of a block needs a counter."""

    def block_noise(self, first: "Place", index: int, block: list[BlockElement]) -> list[tuple[int, Uint32]]:
        turned = Place(first.col, first.row, first.problem, first.seed)
        is_odd, is_right = turned.col % 2 == 1, turned.col // 8 % 2 == 1
        found = []
        for offset in sorted({e.offset for e in block}):
            words = random_words(turned, index * LINES + offset, 0)
            for e in block:
                if e.offset == offset:
                    halves = [half_word(words, half) for half in range(4 * e.col_half, 4 * e.col_half + 4)]
                    if e.row_half is None:
                        even, odd = (pick(is_right, halves[i + 2], halves[i]) for i in range(2))
                    else:
                        even, odd = halves[2 * e.row_half : 2 * e.row_half + 2]
                    found.append((e.register, pick(is_odd, odd, even)))
        return found


class Place(NamedTuple):
    """An element of D and what else the random bits depend on."""

    row: Int32
    col: Int32
    problem: Int32
    seed: Int32


def random_words(place: Place, lines: int, columns: int) -> tuple[Uint32, Uint32, Uint32, Uint32]:
    """128 bits: those of the place's counter with so much added to its first two numbers."""
    line = place.row // 16 * LINES + place.row % 8 + lines
    column = place.col // 16 * COLUMNS + place.col % 8 // 2 + columns
    return philox((Uint32(line), Uint32(column), Uint32(place.problem), Uint32(0)), Uint32(place.seed))


def half_word(words: tuple[Uint32, ...], half: int) -> Uint32:
    """One of eight 16-bit numbers: the low halves of the words, then the high ones."""
    word = words[half % 4]
    return word & Uint32(0xFFFF) if half < 4 else word >> Uint32(16)


def pick(condition: Boolean, if_true: Uint32, if_false: Uint32) -> Uint32:
    """One of two, without a branch."""
    return Uint32(cutlass.select_(condition, if_true, if_false))
