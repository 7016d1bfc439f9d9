"""Registers of wgmma operations in flight, missing wgmma.fence, and the register budget of setmaxnreg."""

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

from ..asynchrony import AsyncOp
from ..errors import CheckFailed
from ..observer import Observer
from ..program import Accesses, Execute
from ..ptx import Instruction
from ..values import LANES, uniform
from .guards import guard

REGISTER_FILE = 65536  # 32-bit registers of an SM
MAX_REGISTERS = 255 // 8 * 8  # of a thread
_WARPGROUP = 4
_MMA = "wgmma.mma_async"


class _Hold(NamedTuple):
    """Why a register must not be touched."""

    op: AsyncOp
    is_accumulator: bool


class _Registers:
    """State of one warp. held: registers of operations in flight; written: by ordinary instructions since the last fence."""

    __slots__ = ("budgets", "has_fence", "held", "warp", "written")

    def __init__(self, warp: Any) -> None:
        self.warp = warp
        self.held: dict[int, _Hold] = {}
        self.written: dict[int, Instruction] = {}
        self.has_fence = False  # ever
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
        # Compilers place copies of registers where they like, also behind a fence: what counts is who made the value.
        copies = [a for i, a in zip(program.instructions, program.accesses) if _is_copy(i, a)]
        size = 0
        while size != len(used):
            size = len(used)
            used.update(copy.reads[0] for copy in copies if copy.writes[0] in used)
        wrapped = list(code)
        for i, (instruction, accesses) in enumerate(zip(program.instructions, program.accesses)):
            if instruction.opcode.startswith("wgmma."):
                continue
            reads, writes = used.intersection(accesses.reads), used.intersection(accesses.writes)
            if reads or writes:
                wrapped[i] = self._guarded(code[i], instruction, Accesses(tuple(reads), tuple(writes)))
        return wrapped

    def _guarded(self, execute: Execute, instruction: Instruction, accesses: Accesses) -> Execute:
        """accesses: to registers that matter."""
        reads, writes = accesses
        runs, writer_of = guard(instruction), _writer(instruction, accesses)

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
                if regs[slot] is old:
                    continue
                writer = writer_of(state.written)
                if writer is not None:
                    state.written[slot] = writer
                else:
                    state.written.pop(slot, None)
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
        if not state.has_fence:
            raise CheckFailed("missing wgmma.fence: this is the first wgmma of the warp, and no fence was before it")
        for slot in operands:
            hold = state.held.get(slot)
            if hold is not None and hold.is_accumulator:
                self._fail(warp.instruction, hold, "reads")
        # Without an accumulator to add to, its registers are only written.
        read = (*accumulators, *operands) if _accumulates(warp) else operands
        for slot in read:
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
            self._of(warp).has_fence = True
        elif kind == "setmaxnreg":
            self._of(warp).budgets.append((warp.instruction, warp.state["registers"]))
            _check_budget(warp.cta, 0)

    def cluster_exit(self, cluster: Any) -> None:
        for cta in cluster.ctas:
            _check_budget(cta, _share(cta))
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


def _share(cta: Any) -> int:
    """Registers of a thread at launch: with setmaxnreg, ptxas takes all that the launch bounds allow."""
    threads = -(-cta.cluster.machine.shape.block.size // LANES) * LANES
    return min(REGISTER_FILE // threads // 8 * 8, MAX_REGISTERS)


def _check_budget(cta: Any, default: int) -> None:
    """Raise if the warps of a CTA hold more registers than it has. default: of warps that did not ask."""
    asked: dict[int, list[int]] = {}
    warps = [w for w in cta.cluster.warps if w.cta is cta]
    for w in warps:
        asked.setdefault(w.state.get("registers", default), []).append(w.number)
    held = sum(count * len(numbers) for count, numbers in asked.items()) * LANES
    if held > _share(cta) * len(warps) * LANES:
        raise CheckFailed(
            f"setmaxnreg: the warps of CTA {cta.rank} ask for {held} registers, it has {_share(cta) * len(warps) * LANES}: "
            + ", ".join(f"{count} a thread in warps {numbers}" for count, numbers in asked.items())
        )


def _is_copy(instruction: Instruction, accesses: Accesses) -> bool:
    """Whether this is a move from one register to one other, unconditionally."""
    is_single = len(accesses.reads) == 1 and len(accesses.writes) == 1
    return is_single and instruction.opcode.startswith("mov.") and instruction.predicate is None


def _writer(instruction: Instruction, accesses: Accesses) -> Callable[[dict[int, Instruction]], Optional[Instruction]]:
    """From who wrote which register to who made the value that this instruction writes; None: a constant."""
    if not instruction.opcode.startswith("mov.") or len(accesses.writes) != 1:
        return lambda written: instruction
    if instruction.predicate is not None or instruction.operands[1].startswith("{"):
        return lambda written: instruction
    if not accesses.reads:
        return lambda written: None
    source = accesses.reads[0]
    return lambda written: written.get(source)


def _operand_a(instruction: Instruction) -> list[int]:
    """Slots of A, if it is in registers."""
    text = instruction.operands[1]
    if not text.startswith("{"):
        return []
    slots = (instruction.scope.register(name.strip()) for name in text[1:-1].split(","))
    return [slot for slot in slots if slot is not None]


def _accumulates(warp: Any) -> bool:
    """Whether scale-d of the wgmma that the warp executes is true."""
    instruction = warp.instruction
    value = warp.regs[instruction.scope.register(instruction.operands[3])]
    return bool(uniform(value, 1, warp.first))
