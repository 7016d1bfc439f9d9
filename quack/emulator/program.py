"""A kernel made executable: every instruction becomes a closure over slots of the warp's register list.

Slots hold registers, special registers, symbols and constants alike, so that an instruction reads every operand with
`regs[slot]`. Which closure an opcode becomes is decided by the builders in `isa/`, found through `opcodes.find`.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple, Optional, Union

from . import opcodes
from .errors import EmulationError, UnknownInstruction
from .memory import PARAM_WINDOW
from .ptx import TYPE_BITS, Instruction, Kernel, Variable, literal, split_operands
from .values import MASK, Value, where

Execute = Callable[[Any], Any]

SPECIAL_BITS = {"%clock64": 64, "%globaltimer": 64, "%gridid": 64, "%is_explicit_cluster": 1}
# What `Warp.specials` defines; clocks are for `mov` only.
_SPECIAL = re.compile(
    r"%((n?tid|n?ctaid|n?clusterid|cluster_n?ctaid)\.[xyz]|laneid|n?warpid|n?smid|gridid|cluster_n?ctarank"
    r"|is_explicit_cluster|(dynamic|total)_smem_size|lanemask_(eq|lt|le|gt|ge))"
)
CLOCKS = ("%clock", "%clock_hi", "%clock64", "%globaltimer", "%globaltimer_lo", "%globaltimer_hi")


class Address(NamedTuple):
    """`regs[slot] + offset`; `bits` of the register (32: a window address, 64: generic or global)."""

    slot: int
    offset: int
    bits: int


class Accesses(NamedTuple):
    """Slots of the registers that an instruction reads (its guard included) and writes."""

    reads: tuple[int, ...]
    writes: tuple[int, ...]


class Program:
    """Slots and closures of one kernel; holds no state of a launch, so it is built once per kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.instructions = kernel.instructions
        self.slot_bits = list(kernel.register_bits)
        self.sink = self._new_slot(64)
        self.special_slots: dict[str, int] = {}
        self.symbol_slots: dict[str, int] = {}
        self.constants: dict[tuple[int, int], int] = {}
        self.constant_values: dict[int, Value] = {}
        self.accesses: list[Accesses] = []  # registers of each instruction, for checkers
        self.code: list[Execute] = [self._build(i) for i in kernel.instructions]

    # ---- slots --------------------------------------------------------------------------------------------------------

    def _new_slot(self, bits: int) -> int:
        self.slot_bits.append(bits)
        return len(self.slot_bits) - 1

    def constant(self, value: int, bits: int) -> int:
        """The slot that holds a constant of this width."""
        key = (value & MASK[bits], bits)
        if key not in self.constants:
            slot = self.constants[key] = self._new_slot(bits)
            self.constant_values[slot] = bool(key[0]) if bits == 1 else key[0]
        return self.constants[key]

    def special(self, name: str) -> int:
        """The slot of a special register."""
        if name not in self.special_slots:
            if not _SPECIAL.fullmatch(name):
                raise UnknownInstruction(f"register or special register {name} is not known")
            self.special_slots[name] = self._new_slot(SPECIAL_BITS.get(name, 32))
        return self.special_slots[name]

    def symbol(self, name: str) -> int:
        """The slot that holds the address of a variable, or "variable+offset"."""
        if name not in self.symbol_slots:
            self.symbol_slots[name] = self._new_slot(64)
        return self.symbol_slots[name]

    def initial_registers(self, specials: dict[str, Value], symbols: dict[str, int]) -> list[Value]:
        """Registers of a new warp."""
        regs: list[Value] = [None] * len(self.slot_bits)
        for slot, value in self.constant_values.items():
            regs[slot] = value
        for name, slot in self.special_slots.items():
            if name not in specials:
                raise UnknownInstruction(f"special register {name}")
            regs[slot] = specials[name]
        for name, slot in self.symbol_slots.items():
            variable, _, offset = name.partition("+")
            regs[slot] = symbols[variable.strip()] + int(offset or "0", 0)
        return regs

    def variables(self, space: str) -> list[Variable]:
        """The variables of one state space, in order of declaration."""
        return [v for v in self.kernel.variables.values() if v.space == space]

    # ---- closures -----------------------------------------------------------------------------------------------------

    def _build(self, instruction: Instruction) -> Execute:
        try:
            opcode = opcodes.find(instruction.opcode)
            binder = Binder(self, instruction, opcode)
            execute = opcode.build(binder)
            binder.finish()
            if instruction.predicate is not None:
                binder.predicate()
        except EmulationError as error:
            raise type(error)(f"PTX line {instruction.line}: {instruction}: {error}") from None
        except (IndexError, KeyError, ValueError) as error:  # too few operands, a type that the opcode does not have
            raise UnknownInstruction(f"PTX line {instruction.line}: {instruction}: not a form known here") from error
        self.accesses.append(Accesses(tuple(binder.inputs), tuple(binder.outputs)))
        if instruction.predicate is None or opcode.handles_predicate:
            return execute
        return self._predicated(execute, binder)

    def _predicated(self, execute: Execute, binder: "Binder") -> Execute:
        predicate, negated = binder.predicate()
        outputs = [(slot, self.slot_bits[slot]) for slot in binder.outputs]

        def run(w: Any) -> Any:
            p = w.regs[predicate]
            if p is True or p is False:
                return execute(w) if p is not negated else None
            active = w.mask & (p if not negated else ~p) if p is not None else w.mask
            if not active.any():
                return None
            if (active == w.mask).all():
                return execute(w)
            regs = w.regs
            before = [regs[slot] for slot, _ in outputs]
            saved = w.mask, w.lanes, w.first, w.is_full
            w.mask, w.is_full = active, False
            w.lanes = active.nonzero()[0].tolist()
            w.first = w.lanes[0]
            try:
                result = execute(w)
            finally:
                w.mask, w.lanes, w.first, w.is_full = saved
            for (slot, bits), old in zip(outputs, before):
                regs[slot] = where(active, regs[slot], old, bits)
            return result

        return run


class Binder:
    """What a builder sees of one instruction: its modifiers, each to be consumed, and its operands as slots."""

    def __init__(self, program: Program, instruction: Instruction, opcode: "opcodes.Opcode") -> None:
        self.program, self.instruction = program, instruction
        self.operands = list(instruction.operands)
        self.modifiers = list(instruction.parts[len(opcode.name.split(".")) :])
        self.unused = list(self.modifiers)
        self.inputs: list[int] = []
        self.outputs: list[int] = []

    # ---- modifiers ----------------------------------------------------------------------------------------------------

    def flag(self, *names: str) -> bool:
        """Whether any of these modifiers is there; consumes all of them."""
        found = [name for name in names if name in self.modifiers]
        self.unused = [m for m in self.unused if m not in found]
        return bool(found)

    ignore = flag

    def one_of(self, *names: str, default: Optional[str] = None) -> str:
        """The one modifier of `names` that is there."""
        found = [m for m in self.modifiers if m in names]
        if len(found) > 1 or (not found and default is None):
            raise UnknownInstruction(f"expected one of {names}, found {found}")
        self.flag(*names)
        return found[0] if found else str(default)

    def match(self, pattern: str) -> Optional[re.Match[str]]:
        """The first modifier that matches a regular expression as a whole."""
        for modifier in self.modifiers:
            found = re.fullmatch(pattern, modifier)
            if found:
                self.flag(modifier)
                return found
        return None

    def types(self) -> list[str]:
        """All type modifiers, in order."""
        found = [m for m in self.modifiers if m in TYPE_BITS or m in ("e4m3", "e5m2")]
        self.flag(*found)
        return found

    def type(self) -> str:
        """The only type modifier."""
        found = self.types()
        if len(found) != 1:
            raise UnknownInstruction(f"expected one type, found {found}")
        return found[0]

    def finish(self) -> None:
        """Every modifier must have been understood."""
        if self.unused:
            raise UnknownInstruction(f"modifiers {['.' + m for m in self.unused]} are not implemented")

    # ---- operands -----------------------------------------------------------------------------------------------------

    def predicate(self) -> tuple[int, bool]:
        """(slot, negated) of the guard."""
        assert self.instruction.predicate is not None
        name, negated = self.instruction.predicate
        return self.src(name, 1), negated

    def register(self, name: str) -> int:
        slot = self.instruction.scope.register(name)
        if slot is None:
            raise UnknownInstruction(f"register {name} is not declared")
        return slot

    def out(self, operand: Union[int, str]) -> int:
        """The slot of a destination register; `_` is a slot nobody reads."""
        text = self.operands[operand] if isinstance(operand, int) else operand
        slot = self.program.sink if text == "_" else self.register(text)
        self.outputs.append(slot)
        return slot

    def outs(self, operand: Union[int, str]) -> list[int]:
        """Destination slots of `{a, b, ...}`, or of a single register."""
        return [self.out(text) for text in self.vector(operand)]

    def src(self, operand: Union[int, str], bits: int) -> int:
        """The slot of a source: register, special register, symbol or immediate of this width."""
        text = self.operands[operand] if isinstance(operand, int) else operand
        slot = self.instruction.scope.register(text)
        if slot is not None:
            self.inputs.append(slot)
            return slot
        if text.startswith("%"):
            return self.program.special(text)
        kernel = self.program.kernel
        if text in kernel.parameters:
            return self.program.constant(PARAM_WINDOW | kernel.parameters[text].offset, 64)
        if text.partition("+")[0].strip() in kernel.variables:
            return self.program.symbol(text)
        return self.program.constant(self.immediate(text, bits), bits)

    def srcs(self, operand: Union[int, str], bits: int) -> list[int]:
        """Source slots of `{a, b, ...}`, or of a single operand."""
        return [self.src(text, bits) for text in self.vector(operand)]

    def vector(self, operand: Union[int, str]) -> list[str]:
        text = self.operands[operand] if isinstance(operand, int) else operand
        return split_operands(text[1:-1]) if text.startswith("{") else [text]

    def immediate(self, operand: Union[int, str], bits: int = 64) -> int:
        """A literal as raw bits (masked to the width)."""
        text = self.operands[operand] if isinstance(operand, int) else operand
        value = literal(text)
        if value is None:
            raise UnknownInstruction(f"operand {text!r}")
        return value & MASK[bits]

    def address(self, operand: Union[int, str]) -> Address:
        """`[register + constant]`, `[symbol + constant]` or `[constant]`."""
        text = self.operands[operand] if isinstance(operand, int) else operand
        if not (text.startswith("[") and text.endswith("]")):
            raise UnknownInstruction(f"expected an address, found {text!r}")
        base, _, offset = (part.strip() for part in text[1:-1].partition("+"))
        slot = self.src(base, 64)
        return Address(slot, int(offset, 0) if offset else 0, self.program.slot_bits[slot])

    def label(self, operand: int) -> int:
        """The index of the instruction that a label stands before."""
        target = self.instruction.scope.label(self.operands[operand])
        if target is None:
            raise UnknownInstruction(f"label {self.operands[operand]!r}")
        return target

    def has_operand(self, index: int) -> bool:
        return index < len(self.operands)
