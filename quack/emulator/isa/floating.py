"""Floating-point arithmetic (PTX ISA 9.7.3, 9.7.4, 9.7.5) and the opcodes that integers and floats share."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import floatmath
from ..errors import UnknownInstruction
from ..opcodes import opcode
from ..program import Binder, Execute
from ..ptx import TYPE_BITS
from ..values import UNSIGNED, row
from . import integer
from .integer import write_predicates

_FLOATS = frozenset(floatmath.TYPES)


def _is_float(b: Binder) -> bool:
    return any(m in _FLOATS for m in b.modifiers)


def _float_operation(b: Binder) -> Execute:
    """Through `floatmath.operation`, which checks the modifiers."""
    name = b.instruction.opcode
    try:
        function = floatmath.operation(name)
    except ValueError as error:
        raise UnknownInstruction(str(error)) from None
    b.unused.clear()
    types = [m for m in b.modifiers if m in TYPE_BITS]
    count = len(b.operands) - 1
    # Mixed precision: all operands but the last are of the second type.
    kinds = [types[-1]] * (count - 1) + [types[0]] if len(types) == 2 else [types[0]] * count
    bits = [TYPE_BITS[kind] for kind in kinds]
    _check_operands(name, tuple(bits))
    out = b.out(0)
    sources = [b.src(1 + i, n) for i, n in enumerate(bits)]
    pairs = list(zip(sources, bits))

    def run(w: Any) -> None:
        regs = w.regs
        values = [regs[s] for s in sources]
        if all(v.__class__ is int for v in values):
            regs[out] = int(function(*(np.array([v], UNSIGNED[n]) for v, n in zip(values, bits)))[0])
        else:
            regs[out] = function(*(row(regs[s], n) for s, n in pairs))

    return run


@functools.cache
def _check_operands(name: str, bits: tuple[int, ...]) -> None:
    try:
        with np.errstate(all="ignore"):
            floatmath.operation(name)(*(np.zeros(1, UNSIGNED[n]) for n in bits))
    except (TypeError, ValueError):
        raise UnknownInstruction(f"{len(bits)} source operands") from None


def _either(on_integers: Callable[[Binder], Execute]) -> Callable[[Binder], Execute]:
    def build(b: Binder) -> Execute:
        return _float_operation(b) if _is_float(b) else on_integers(b)

    return build


opcode("add", section="9.7.1.1 / 9.7.3.3 / 9.7.4.1 / 9.7.5.1")(_either(integer.integer_add))
opcode("sub", section="9.7.1.2 / 9.7.3.4 / 9.7.4.2 / 9.7.5.2")(_either(integer.integer_sub))
opcode("mul", section="9.7.1.3 / 9.7.3.5 / 9.7.4.3")(_either(integer.integer_mul))
opcode("mad", section="9.7.1.4 / 9.7.3.7")(_either(integer.integer_mad))
opcode("div", section="9.7.1.8 / 9.7.3.8")(_either(integer.integer_div))
opcode("abs", section="9.7.1.10 / 9.7.3.9 / 9.7.4.6")(_either(integer.integer_abs))
opcode("neg", section="9.7.1.11 / 9.7.3.10 / 9.7.4.5")(_either(integer.integer_neg))
opcode("min", section="9.7.1.12 / 9.7.3.11 / 9.7.4.7")(_either(lambda b: integer.integer_min_max(b, "min")))
opcode("max", section="9.7.1.13 / 9.7.3.12 / 9.7.4.8")(_either(lambda b: integer.integer_min_max(b, "max")))
for _name, _section in {
    "copysign": "9.7.3.2", "fma": "9.7.3.6 / 9.7.4.4 / 9.7.5.3", "rcp": "9.7.3.13", "sqrt": "9.7.3.15", "rsqrt": "9.7.3.16",
    "sin": "9.7.3.18", "cos": "9.7.3.19", "lg2": "9.7.3.20", "ex2": "9.7.3.21 / 9.7.4.10", "tanh": "9.7.3.22 / 9.7.4.9",
}.items():  # fmt: skip
    opcode(_name, section=_section)(_float_operation)


@opcode("setp", section="9.7.6.2 / 9.7.7.2")
def set_predicate(b: Binder) -> Execute:
    """setp of integers and floats."""
    if not _is_float(b):
        return integer.integer_setp(b)
    relation = b.one_of(*floatmath.COMPARE)
    ftz = b.flag("ftz")
    kind = b.type()
    bits = TYPE_BITS[kind]
    compare = floatmath.comparison(relation, kind, ftz)
    x, y = b.src(1, bits), b.src(2, bits)
    if kind.endswith("x2"):
        raise UnknownInstruction("setp on packed types is not implemented")

    def run(regs: Any) -> Any:
        p, q = regs[x], regs[y]
        if p.__class__ is int and q.__class__ is int:
            return bool(compare(np.array([p], UNSIGNED[bits]), np.array([q], UNSIGNED[bits]))[0])
        return compare(row(p, bits), row(q, bits))

    return write_predicates(b, run, [x, y])


@opcode("set", section="9.7.6.1 / 9.7.7.1")
def set_value(b: Binder) -> Execute:
    """set.relation.dtype.ftype: a comparison as a number."""
    relation = b.one_of(*floatmath.COMPARE)
    ftz = b.flag("ftz")
    target, kind = b.types()
    if kind not in _FLOATS or kind.endswith("x2") or len(b.operands) != 3:
        raise UnknownInstruction("set of integers, of packed types and with a third operand is not implemented")
    bits = TYPE_BITS[kind]
    compare = floatmath.comparison(relation, kind, ftz)
    out, x, y = b.out(0), b.src(1, bits), b.src(2, bits)

    def run(w: Any) -> None:
        regs = w.regs
        result = compare(row(regs[x], bits), row(regs[y], bits))
        regs[out] = floatmath.predicate_value(result, target)

    return run


@opcode("testp", section="9.7.3.1")
def test_property(b: Binder) -> Execute:
    """testp.{finite,infinite,number,notanumber,normal,subnormal}."""
    name = b.one_of("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    kind = b.type()
    if kind not in ("f32", "f64"):
        raise UnknownInstruction(f"testp of .{kind}")
    test = floatmath.property_test(name, kind)
    bits = TYPE_BITS[kind]
    out, x = b.out(0), b.src(1, bits)

    def run(w: Any) -> None:
        w.regs[out] = test(row(w.regs[x], bits))

    return run
