"""Reads of shared or tensor memory that nothing has written; stores and multiplications of registers never written.

Copies and arithmetic on such registers are let through: compilers leave undefined values where their results do not matter.
"""

import re
from typing import Any

import numpy as np

from ..errors import CheckFailed
from ..observer import Access, Observer, Proxy
from ..program import Execute
from ..ptx import Instruction
from ..tensor_memory import COLUMNS, LANES
from .guards import guard
from .history import WORD, Words
from .ordering import actor_name
from .places import shared_name

_USES = ("st.", "stmatrix.", "red.", "atom.", "mma.", "wgmma.mma_async.", "tcgen05.st.")


class Uninitialised(Observer):
    """Keeps one bit for each byte of shared memory and each cell of tensor memory."""

    def __init__(self, words: Words) -> None:
        self.words = words

    def start(self, machine: Any) -> None:
        self.shared_written: dict[Any, np.ndarray] = {}
        self.tensor_written: dict[Any, np.ndarray] = {}

    def instrument(self, machine: Any, code: list[Any]) -> list[Any]:
        program, wrapped = machine.program, list(code)
        registers = len(program.kernel.register_bits)
        for i, (instruction, accesses) in enumerate(zip(program.instructions, program.accesses)):
            if instruction.opcode.startswith(_USES):
                slots = tuple(slot for slot in accesses.reads if slot < registers)
                wrapped[i] = _checked(code[i], instruction, slots)
        return wrapped

    def shared(self, actor: Any, cta: Any, offsets: Any, size: int, access: Access, proxy: Proxy) -> None:
        written = self.shared_written.get(cta)
        if written is None:
            written = self.shared_written[cta] = np.zeros(len(cta.smem.bytes) // WORD, np.uint8)
        for where, mask in self.words(offsets, size):
            if access.is_read:
                missing = written[where] & mask != mask
                if missing.any():
                    raise CheckFailed(
                        f"{actor_name(actor)} reads {shared_name(cta, where, int(missing.argmax()))}, "
                        "which nothing has written"
                    )
            if access.is_write:
                written[where] |= np.uint8(mask)

    def tensor_memory(self, actor: Any, cta: Any, lanes: Any, columns: Any, access: Access) -> None:
        written = self.tensor_written.get(cta)
        if written is None:
            written = self.tensor_written[cta] = np.zeros((LANES, COLUMNS), bool)
        cells = written[lanes, columns]
        if access.is_read and not cells.all():
            lane, column = np.unravel_index(int(cells.argmin()), cells.shape)
            raise CheckFailed(
                f"{actor_name(actor)} reads tensor memory of CTA {cta.rank}, lane {lanes.start + lane}, "
                f"column {columns.start + column}, which nothing has written"
            )
        if access.is_write:
            cells[...] = True

    def tensor_free(self, warp: Any, cta: Any, column: int, count: int) -> None:
        written = self.tensor_written.get(cta)
        if written is not None:
            written[:, column : column + count] = False

    def cluster_exit(self, cluster: Any) -> None:
        for cta in cluster.ctas:
            self.shared_written.pop(cta, None)
            self.tensor_written.pop(cta, None)


def _checked(execute: Execute, instruction: Instruction, slots: tuple[int, ...]) -> Execute:
    """An instruction that refuses registers never written."""
    runs = guard(instruction)

    def run(w: Any) -> Any:
        regs = w.regs
        for slot in slots:
            if regs[slot] is None and runs(w):
                names = re.findall(r"[%\w$]+", " ".join(instruction.operands))
                name = next(n for n in names if instruction.scope.register(n) == slot)
                raise CheckFailed(f"register {name}, which nothing has written, is used")
        return execute(w)

    return run
