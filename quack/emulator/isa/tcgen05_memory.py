"""tcgen05.ld, st and wait: tensor memory to and from registers (PTX ISA 9.7.16.2.3, 9.7.16.8).

Warp i of a warpgroup reaches lanes 32 i to 32 i + 31. Loads of a warp complete in order, so do its stores. A true register
dependency on a load is respected without tcgen05.wait::ld (9.7.16.6.4.5), as by the hardware: an instruction that names
a register which a load in flight will write waits for that load (`_guard`).

Registers of `.xN`, l the lane of the warp, j from 0 on (cute/atom/copy_traits_sm100.hpp):

| shape | register | TMEM lane | column |
|---|---|---|---|
| 32x32b | j | l | j |
| 16x64b | j | l / 4 + 8 (l % 2) | 2 j + l / 2 % 2 |
| 16x128b | 2 j + h | l / 4 + 8 h | 4 j + l % 4 |
| 16x256b | 4 j + 2 h + c | l / 4 + 8 h | 8 j + 2 (l % 4) + c |
| 16x32bx2 | j | l % 16 | j, for l >= 16: split + j |
"""

import functools
import re
import weakref
from typing import Any, NamedTuple, Optional

import numpy as np

from ..asynchrony import AsyncOp
from ..errors import Misuse, UnknownInstruction
from ..observer import Access
from ..opcodes import opcode
from ..program import Binder, Execute, Program
from ..ptx import Instruction
from ..tensor_memory import COLUMNS, TensorAddress, TensorMemory, tensor_memory
from ..values import LANE, row, uniform
from ..warp import Wait
from .control import require_converged

SHAPES = ("32x32b", "16x64b", "16x128b", "16x256b", "16x32bx2")
_REGISTERS = {"32x32b": 1, "16x64b": 1, "16x128b": 2, "16x256b": 4, "16x32bx2": 1}  # of .x1


class Fragment(NamedTuple):
    """What one instruction moves: cells[lane + ..., column + ...] by register and lane of the warp.

    offsets: (registers, 32) in the flat cells; lanes, columns: extent; split: 16x32bx2 accesses `columns` columns
    twice, here and `split` further on. is_packed: two 16-bit columns a register.
    """

    offsets: np.ndarray
    lanes: int
    columns: int
    split: Optional[int]
    is_packed: bool


@functools.lru_cache(maxsize=64)
def fragment(shape: str, repeat: int, split: Optional[int], is_packed: bool) -> Fragment:
    """`split` only for 16x32bx2."""
    lane = LANE.astype(np.int64)
    j = np.arange(repeat)[:, None, None]
    h = np.arange(2)[None, :, None]
    if shape == "32x32b":
        rows, columns, width = lane + 0 * j, j + 0 * lane, 1
    elif shape == "16x64b":
        rows, columns, width = lane // 4 + 8 * (lane % 2) + 0 * j, 2 * j + lane // 2 % 2, 2
    elif shape == "16x128b":
        rows, columns, width = lane // 4 + 8 * h + 0 * j, 4 * j + lane % 4 + 0 * h, 4
    elif shape == "16x256b":
        c = np.array([0, 1, 0, 1])[None, :, None]
        h = np.array([0, 0, 1, 1])[None, :, None]
        rows, columns, width = lane // 4 + 8 * h + 0 * j, 8 * j + 2 * (lane % 4) + c, 8
    else:
        rows, columns, width = lane % 16 + 0 * j, j + 0 * lane, 1
    factor = 2 if is_packed else 1
    columns = columns * factor
    if split is not None:
        columns = columns + split * (lane // 16)
    index = (rows * COLUMNS + columns).reshape(-1, 32)
    return Fragment(index, int(rows.max()) + 1, width * repeat * factor, split, is_packed)


def _bind(b: Binder, packing: str, splits_at: int) -> Fragment:
    """The modifiers and the split offset; `splits_at` is its operand."""
    b.ignore("sync", "aligned", "b32")
    shape = b.one_of(*SHAPES)
    repeat = b.match(r"x(1|2|4|8|16|32|64|128)")
    if repeat is None or int(repeat[1]) * _REGISTERS[shape] > 128:
        raise UnknownInstruction(f"{shape} with repetition {repeat and repeat[0]}")
    split = b.immediate(splits_at, 32) if shape == "16x32bx2" else None
    return fragment(shape, int(repeat[1]), split, b.flag(packing))


def _place(w: Any, slot: int, f: Fragment, what: str) -> tuple[TensorMemory, TensorAddress]:
    """The tensor memory and the address, checked against what this warp may reach."""
    require_converged(w)
    value = w.regs[slot]
    if value.__class__ is np.ndarray and (value != value[0]).any():
        raise Misuse(f"the lanes of a {what} disagree on the address")
    at = TensorAddress.parse(uniform(value, 32, 0))
    own = 32 * (w.number % 4)
    if not own <= at.lane <= at.lane + f.lanes <= own + 32 or (at.lane % 16):
        raise Misuse(
            f"{what} of lanes {at.lane} to {at.lane + f.lanes - 1} by warp {w.number}, which reaches {own} to {own + 31}"
        )
    return tensor_memory(w.cta), at


def _touch(w: Any, actor: Any, memory: TensorMemory, at: TensorAddress, f: Fragment, access: Access) -> None:
    """Check the columns and tell the observer."""
    starts = [at.column] if f.split is None else [at.column, at.column + f.split]
    for start in starts:
        memory.check(start, f.columns)
    if w.machine.observer is not None:
        if f.split is None:
            lanes = slice(at.lane, at.lane + f.lanes)
            w.machine.observer.tensor_memory(actor, w.cta, lanes, slice(at.column, at.column + f.columns), access)
        else:
            for start in starts:
                lanes = slice(at.lane, at.lane + 16)
                w.machine.observer.tensor_memory(actor, w.cta, lanes, slice(start, start + f.columns), access)


def _issue(w: Any, kind: str, stage: Any) -> AsyncOp:
    """Issue a load or a store; waits look at the last one, since they complete in order."""
    op = AsyncOp(kind, w, w.instruction, [], (kind, w.uid))

    def run() -> None:
        stage(op)
        if w.machine.observer is not None:
            w.machine.observer.release(op, (kind, w.uid))

    op.remaining.append(run)
    w.state[kind] = op
    issued: AsyncOp = w.machine.submit(op)
    return issued


@opcode("tcgen05.ld", section="9.7.16.8.3")
def load(b: Binder) -> Execute:
    """tcgen05.ld.sync.aligned.shape.xN[.pack::16b].b32 r, [taddr][, split]."""
    if "red" in b.modifiers:
        raise UnknownInstruction("tcgen05.ld.red is not implemented")
    f = _bind(b, "pack::16b", 2)
    outs = b.outs(0)
    address = _tensor_operand(b, 1)
    if len(outs) != len(f.offsets):
        raise UnknownInstruction(f"{len(outs)} registers, expected {len(f.offsets)}")

    def run(w: Any) -> None:
        memory, at = _place(w, address, f, "tcgen05.ld")
        base = at.lane * COLUMNS + at.column

        def read(op: AsyncOp) -> None:
            _touch(w, op, memory, at, f, Access.READ)
            words = memory.flat.take(f.offsets + base)
            if f.is_packed:
                words = words & np.uint32(0xFFFF) | memory.flat.take(f.offsets + (base + 1)) << np.uint32(16)
            if len(w.paths) == 1 and w.path is w.paths[0] and not w.path.origin:
                regs = w.path.regs
                for out, value in zip(outs, words):
                    regs[out] = value
            else:
                for out, value in zip(outs, words):
                    w.write_register(out, value)

        observes = w.machine.observer is not None
        if not w.machine.is_eager or observes:
            _guard(w.machine)
        op = _issue(w, "tcgen05.ld", read)
        if not op.is_done or observes:
            w.state.setdefault("tcgen05 loads", {}).update(dict.fromkeys(outs, op))

    return run


@opcode("tcgen05.st", section="9.7.16.8.4")
def store(b: Binder) -> Execute:
    """tcgen05.st.sync.aligned.shape.xN[.unpack::16b].b32 [taddr], [split,] r."""
    f = _bind(b, "unpack::16b", 1)
    address = _tensor_operand(b, 0)
    sources = b.srcs(1 if f.split is None else 2, 32)
    if len(sources) != len(f.offsets):
        raise UnknownInstruction(f"{len(sources)} registers, expected {len(f.offsets)}")

    def run(w: Any) -> None:
        memory, at = _place(w, address, f, "tcgen05.st")
        base = at.lane * COLUMNS + at.column
        words = np.stack([row(w.regs[s], 32) for s in sources])

        def write(op: AsyncOp) -> None:
            _touch(w, op, memory, at, f, Access.WRITE)
            if f.is_packed:
                memory.flat[f.offsets + base] = words & np.uint32(0xFFFF)
                memory.flat[f.offsets + (base + 1)] = words >> np.uint32(16)
            else:
                memory.flat[f.offsets + base] = words

        _issue(w, "tcgen05.st", write)

    return run


def _tensor_operand(b: Binder, operand: int) -> int:
    """The slot of `[taddr]`."""
    address = b.address(operand)
    if address.offset:
        raise UnknownInstruction("tensor memory address with an offset")
    return address.slot


@opcode("tcgen05.wait::ld", "tcgen05.wait::st", section="9.7.16.8.5")
def wait(b: Binder) -> Execute:
    """tcgen05.wait::{ld,st}.sync.aligned: until the warp's loads (stores) are done."""
    kind = "tcgen05." + b.instruction.opcode.partition("::")[2].partition(".")[0]
    b.ignore("sync", "aligned")

    def run(w: Any) -> Optional[Wait]:
        require_converged(w)
        last: Any = w.state.get(kind)
        if last is None:
            return None
        if not last.is_done:
            return Wait(lambda: last.is_done, f"{kind} (issued at PTX line {last.site.line})")
        w.state[kind] = None
        if kind == "tcgen05.ld":
            w.state.pop("tcgen05 loads", None)
        if w.machine.observer is not None:
            w.machine.observer.acquire(w, (kind, w.uid))
        return None

    return run


# ---- register dependencies --------------------------------------------------------------------------------------------


def _guard(machine: Any) -> None:
    """Make every instruction that names a register which some tcgen05.ld writes wait for such a load.

    Done in the list of closures that runs, once: the first time that a load may not be done at once.
    """
    program: Program = machine.program
    code: list[Execute] = machine.code
    owner: Any = program if code is program.code else machine
    if owner in _GUARDED:
        return
    _GUARDED.add(owner)
    loads = [i for i in program.instructions if i.opcode.startswith("tcgen05.ld.")]
    written = {slot for i in loads for slot in _slots(i, i.operands[0])}
    for index, i in enumerate(program.instructions):
        guard = i.predicate[0] if i.predicate else ""
        hazards = _slots(i, *i.operands, guard) & written
        if hazards:
            code[index] = _waiting(code[index], tuple(hazards))


_GUARDED: "weakref.WeakSet[Any]" = weakref.WeakSet()


def _slots(instruction: Instruction, *texts: str) -> set[int]:
    """The slots of all registers that stand in some operands."""
    names = {name for text in texts for name in re.findall(r"[%\w$]+", text)}
    slots = {instruction.scope.register(name) for name in names}
    return {slot for slot in slots if slot is not None}


def _waiting(execute: Execute, hazards: tuple[int, ...]) -> Execute:
    def run(w: Any) -> Any:
        loads: Optional[dict[int, Any]] = w.state.get("tcgen05 loads")
        if loads:
            touched = {loads[slot] for slot in hazards if slot in loads}
            pending = next((op for op in touched if not op.is_done), None)
            if pending is not None:
                on = f"register of a tcgen05.ld (issued at PTX line {pending.site.line})"
                return Wait(lambda: pending.is_done, on)
            for slot in hazards:
                loads.pop(slot, None)
            if touched and w.machine.observer is not None:
                w.machine.observer.acquire(w, ("tcgen05.ld", w.uid))
        return execute(w)

    return run
