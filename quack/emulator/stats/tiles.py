"""Accumulator tiles: which MMA starts one and which adds to one.

mma.sync starts one where its C is zero; wgmma and tcgen05.mma have an operand that says whether to add.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from ..matrix_descriptor import InstructionDescriptor
from ..program import Execute
from ..ptx import Instruction, literal
from ..values import MASK, uniform
from .kernel import KernelStats, Multiplication, extent


class _Accumulators:
    """Which accumulators the tile in work has started, and whether the last MMA added to them."""

    __slots__ = ("is_adding", "started")

    def __init__(self) -> None:
        self.started: set[int] = set()
        self.is_adding = False


class Tiles:
    """Counts the tiles of one launch; of tcgen05.mma also the instructions, which do not show in their opcodes."""

    def __init__(self, kernel: KernelStats) -> None:
        self.kernel = kernel
        self.accumulators: dict[Any, _Accumulators] = defaultdict(_Accumulators)

    def counting(self, execute: Execute, instruction: Instruction) -> Execute:
        """An mma.sync; it starts a tile where its C is a register that holds zero in all lanes."""
        first_c, first_d = (instruction.operands[i].strip("{} ").split(",")[0] for i in (3, 0))
        read, target = _reader(instruction, first_c), instruction.scope.register(first_d.strip()) or 0
        m, n, _ = extent(instruction.opcode)

        def run(w: Any) -> Any:
            value = read(w)
            result = execute(w)
            self._accumulate(w, target, m * n, value.__class__ is int and value == 0)
            return result

        return run

    def wgmma(self, op: Any, accumulator: int) -> None:
        """accumulator: the first register (slot)."""
        warp, site = op.issuer, op.site
        m, n, _ = extent(site.opcode)
        is_start = not uniform(_reader(site, site.operands[3])(warp), 1, 0)
        self._accumulate((warp.cta, warp.number // 4), accumulator, m * n, is_start)

    def tcgen05(self, op: Any) -> None:
        """Its instruction descriptor says what it multiplies."""
        warp, site = op.issuer, op.site

        def read(operand: str, bits: int) -> Any:
            return uniform(_reader(site, operand)(warp), bits, warp.first)

        kind = next(p for p in site.parts if p.startswith("kind::"))
        what = InstructionDescriptor.decode(read(site.operands[3], 32) & MASK[32], kind.partition("::")[2])
        group = "2 CTAs" if "cta_group::2" in site.parts else "1 CTA"
        name = f"tcgen05.mma m{what.m}n{what.n}k{what.k} {what.d_format}.{what.a_format}.{what.b_format}, {group}"
        self.kernel.multiplications[Multiplication(name, 2 * what.m * what.n * what.k)] += 1
        at = 6 if "block_scale" in site.opcode else 5 if site.operands[4].startswith("{") else 4
        is_start = not read(site.operands[at], 1)
        self._accumulate(warp.cta, read(site.operands[0].strip("[]"), 32), what.m * what.n, is_start, splits=True)

    def _accumulate(self, owner: Any, d: int, elements: int, is_start: bool, splits: bool = False) -> None:
        """An MMA on accumulators `d`, adding to them or not.

        A tile ends where one of its accumulators is started again; in tensor memory, whose tiles take turns, also where
        any is started after an MMA that added (splits).
        """
        state = self.accumulators[owner]
        if is_start:
            if not state.started or d in state.started or (splits and state.is_adding):
                self.kernel.tiles += 1
                state.started.clear()
            state.started.add(d)
            self.kernel.elements += elements
        state.is_adding = not is_start


def _reader(instruction: Instruction, operand: str) -> Callable[[Any], Any]:
    """Reads an operand, a register or a literal, from a warp."""
    slot = instruction.scope.register(operand.strip())
    if slot is None:
        value = literal(operand)
        return lambda w: value
    return lambda w: w.regs[slot]
