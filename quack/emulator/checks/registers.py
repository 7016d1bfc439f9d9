"""Registers of wgmma operations in flight, missing wgmma.fence, and the register budget of setmaxnreg."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..asynchrony import AsyncOp
from ..errors import CheckFailed
from ..machine import LANES
from ..observer import Observer
from ..program import Execute
from ..ptx import Instruction

REGISTER_FILE = 65536  # 32-bit registers of an SM
_WARPGROUP = 4
_MMA = "wgmma.mma_async"


class _Hold(NamedTuple):
    """Why a register must not be touched."""

    op: AsyncOp
    is_accumulator: bool


class _Registers:
    """State of one warp. held: registers of operations in flight; written: by ordinary instructions since the last fence."""

    __slots__ = ("budgets", "held", "warp", "written")

    def __init__(self, warp: Any) -> None:
        self.warp = warp
        self.held: dict[int, _Hold] = {}
        self.written: dict[int, Instruction] = {}
        self.budgets: list[tuple[Instruction, int]] = []


class Registers(Observer):
    """Wraps the instructions that name a register which some wgmma of the kernel uses."""

    def start(self, machine: Any) -> None:
        self.warps: dict[int, _Registers] = {}

    def _of(self, warp: Any) -> _Registers:
        found = self.warps.get(warp.uid)
        if found is None:
            found = self.warps[warp.uid] = _Registers(warp)
        return found

    def instrument(self, machine: Any, code: list[Any]) -> list[Any]:
        program = machine.program
        used: set[int] = set()
        for instruction, accesses in zip(program.instructions, program.accesses):
            if instruction.opcode.startswith(_MMA):
                used.update(accesses.writes, _operand_a(instruction))
        if not used:
            return code
        wrapped = list(code)
        for i, (instruction, accesses) in enumerate(zip(program.instructions, program.accesses)):
            if instruction.opcode.startswith("wgmma."):
                continue
            reads, writes = used.intersection(accesses.reads), used.intersection(accesses.writes)
            if reads or writes:
                wrapped[i] = self._guarded(code[i], instruction, tuple(reads), tuple(writes))
        return wrapped

    def _guarded(
        self, execute: Execute, instruction: Instruction, reads: tuple[int, ...], writes: tuple[int, ...]
    ) -> Execute:
        runs = _guard(instruction)

        def run(w: Any) -> Any:
            state = self._of(w)
            if state.held and runs(w):
                for slot in reads:
                    hold = state.held.get(slot)
                    if hold is not None and hold.is_accumulator:
                        self._fail(instruction, hold, "reads")
                for slot in writes:
                    if slot in state.held:
                        self._fail(instruction, state.held[slot], "writes")
            if not writes:
                return execute(w)
            regs = w.regs
            before = [regs[slot] for slot in writes]
            result = execute(w)
            for slot, old in zip(writes, before):
                if regs[slot] is not old:
                    state.written[slot] = instruction
            return result

        return run

    @staticmethod
    def _fail(instruction: Instruction, hold: _Hold, verb: str) -> None:
        kind = "accumulator" if hold.is_accumulator else "operand A"
        raise CheckFailed(
            f"{instruction.opcode} {verb} a register that is {kind} of a wgmma in flight, PTX line {hold.op.site.line}: "  # type: ignore[attr-defined]
            f"{hold.op.site}; no wgmma.wait_group covers it yet"
        )

    def wgmma_issue(self, warp: Any, op: AsyncOp, accumulators: list[int], operands: list[int]) -> None:
        state = self._of(warp)
        for slot in operands:
            hold = state.held.get(slot)
            if hold is not None and hold.is_accumulator:
                self._fail(warp.instruction, hold, "reads")
        for slot in (*accumulators, *operands):
            if slot in state.written:
                writer = state.written[slot]
                kind = "operand A" if slot in operands else "an accumulator"
                raise CheckFailed(
                    f"missing wgmma.fence: a register of {kind} was written at PTX line {writer.line}: {writer}, "
                    "with no wgmma.fence since"
                )
        state.held.update(dict.fromkeys(operands, _Hold(op, False)))
        state.held.update(dict.fromkeys(accumulators, _Hold(op, True)))

    def wgmma_wait(self, warp: Any, ops: list[AsyncOp]) -> None:
        state = self._of(warp)
        done = set(map(id, ops))
        state.held = {slot: hold for slot, hold in state.held.items() if id(hold.op) not in done}

    # ---- fences and register budgets ----------------------------------------------------------------------------------

    def fence(self, warp: Any, kind: str) -> None:
        if kind == "wgmma":
            self._of(warp).written.clear()
        elif kind == "setmaxnreg":
            self._of(warp).budgets.append((warp.instruction, warp.state["registers"]))
            self._check_budget(warp)

    def _check_budget(self, warp: Any) -> None:
        threads = -(-warp.machine.shape.block.size // LANES) * LANES
        pool = min(REGISTER_FILE // threads // 8 * 8, 256) * threads
        mates = [w for w in warp.cta.cluster.warps if w.cta is warp.cta and "registers" in w.state]
        held = sum(w.state["registers"] for w in mates) * LANES
        if held > pool:
            asked: dict[int, list[int]] = {}
            for w in mates:
                asked.setdefault(w.state["registers"], []).append(w.number)
            raise CheckFailed(
                f"setmaxnreg: the warps of the CTA ask for {held} registers, {pool} are there for {threads} threads: "
                + ", ".join(f"{count} a thread in warps {numbers}" for count, numbers in asked.items())
            )

    def cluster_exit(self, cluster: Any) -> None:
        groups: dict[tuple[int, int], list[_Registers]] = {}
        for warp in cluster.warps:
            groups.setdefault((warp.cta.rank, warp.number // _WARPGROUP), []).append(self._of(warp))
            del self.warps[warp.uid]
        for members in groups.values():
            counts = [[count for _, count in m.budgets] for m in members]
            if any(c != counts[0] for c in counts[1:]):
                asked = ", ".join(f"warp {m.warp.number}: {c or 'none'}" for m, c in zip(members, counts))
                site = next(site for m in members for site, _ in m.budgets)
                raise CheckFailed(
                    f"setmaxnreg (PTX line {site.line}) was not executed alike by all warps of a warpgroup of CTA "
                    f"{members[0].warp.cta.rank}: {asked}"
                )


def _operand_a(instruction: Instruction) -> list[int]:
    """Slots of A, if it is in registers."""
    text = instruction.operands[1]
    if not text.startswith("{"):
        return []
    slots = (instruction.scope.register(name.strip()) for name in text[1:-1].split(","))
    return [slot for slot in slots if slot is not None]


def _guard(instruction: Instruction) -> Callable[[Any], bool]:
    """Whether the predicate lets some lane execute the instruction."""
    if instruction.predicate is None:
        return lambda w: True
    name, negated = instruction.predicate
    slot = instruction.scope.register(name)

    def runs(w: Any) -> bool:
        p = w.regs[slot]
        if p is None or p is True or p is False:
            return bool(p) is not negated
        return bool((w.mask & (np.asarray(p) != negated)).any())

    return runs
