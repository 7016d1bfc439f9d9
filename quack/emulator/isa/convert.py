"""cvt (PTX ISA 9.7.9.21, 9.7.9.22) between all integer and floating-point types, packed ones included."""

from typing import Any

import numpy as np

from .. import formats
from ..errors import UnknownInstruction
from ..formats import FORMATS, FloatFormat, Rounding
from ..opcodes import opcode
from ..program import Binder, Execute
from ..ptx import TYPE_BITS
from ..values import MASK, SIGNED, UNSIGNED, row, signed
from .integer import pure

# Packed types: (format, elements).
_PACKED = {
    "f16x2": ("f16", 2), "bf16x2": ("bf16", 2), "e4m3x2": ("e4m3", 2), "e5m2x2": ("e5m2", 2), "e2m1x2": ("e2m1", 2),
    "e2m3x2": ("e2m3", 2), "e3m2x2": ("e3m2", 2), "ue8m0x2": ("ue8m0", 2), "e4m3x4": ("e4m3", 4), "e5m2x4": ("e5m2", 4),
    "e2m1x4": ("e2m1", 4), "e2m3x4": ("e2m3", 4), "e3m2x4": ("e3m2", 4),
}  # fmt: skip
_FLOATS = ("f16", "bf16", "tf32", "f32", "f64")
_INTEGERS = tuple(f"{kind}{bits}" for kind in "us" for bits in (8, 16, 32, 64))
_ROUNDINGS = {r.value: r for r in Rounding}


@opcode("cvt", section="9.7.9.21 / 9.7.9.22")
def convert(b: Binder) -> Execute:
    """cvt[.rounding][.ftz][.sat][.satfinite][.relu].dtype.atype."""
    if b.flag("pack"):
        return _pack_integers(b)
    if any(m.startswith("scaled::") for m in b.modifiers):
        raise UnknownInstruction("scaled conversions are not implemented")
    names = [m for m in b.modifiers if m in _PACKED or m in _FLOATS or m in _INTEGERS]
    if len(names) != 2:
        raise UnknownInstruction(f"conversion between {names}")
    b.flag(*names)
    target, source = names
    found = b.one_of(*_ROUNDINGS, default="")
    rounding = _ROUNDINGS[found] if found else Rounding.RN
    options = dict(ftz=b.flag("ftz"), sat=b.flag("sat"), saturate=b.flag("satfinite"), relu=b.flag("relu"))
    if target in _INTEGERS and source in _INTEGERS:
        return _integer_to_integer(b, target, source, bool(options["sat"]))
    if target in _PACKED or source in _PACKED:
        return _packed(b, target, source, rounding, options)
    if source in _INTEGERS:
        return _from_integer(b, target, source, rounding)
    if target in _INTEGERS:
        return _to_integer(b, target, source, rounding, bool(options["ftz"]))
    convert_bits = formats.converter(FORMATS[source], FORMATS[target], rounding, **options)
    bits = 32 if source == "tf32" else TYPE_BITS[source]
    return _rows(b, b.out(0), [b.src(1, bits)], [bits], convert_bits)


def _rows(b: Binder, out: int, sources: list[int], bits: list[int], function: Any) -> Execute:
    """Through a function of rows; a uniform value is converted once."""

    def one(*values: int) -> int:
        return int(function(*(np.array([v & MASK[n]], UNSIGNED[n]) for v, n in zip(values, bits)))[0])

    return pure(b, out, sources, bits, one, function)


def _integer_to_integer(b: Binder, target: str, source: str, saturate: bool) -> Execute:
    out_bits, bits = TYPE_BITS[target], TYPE_BITS[source]
    is_signed, wide = source[0] == "s", b.program.slot_bits
    out, x = b.out(0), b.src(1, bits)
    register_bits = max(wide[out], out_bits)
    low, high = (-(1 << (out_bits - 1)), (1 << (out_bits - 1)) - 1) if target[0] == "s" else (0, MASK[out_bits])
    sign_fill = target[0] == "s"

    def one(value: int) -> int:
        value &= MASK[bits]
        number = signed(value, bits) if is_signed else value
        if saturate:
            number = min(max(number, low), high)
        number &= MASK[out_bits]
        # A destination register wider than the type is filled by extension.
        return (signed(number, out_bits) if sign_fill else number) & MASK[register_bits]

    def rows(values: np.ndarray) -> np.ndarray:
        numbers: Any = values.astype(UNSIGNED[bits])
        if is_signed:
            numbers = numbers.view(SIGNED[bits])
        if saturate:
            numbers = np.array([min(max(int(v), low), high) for v in numbers], object).astype(
                SIGNED[out_bits] if sign_fill else UNSIGNED[out_bits]
            )
        kind = SIGNED[out_bits] if sign_fill else UNSIGNED[out_bits]
        numbers = numbers.astype(kind)
        return numbers.astype(SIGNED[register_bits] if sign_fill else UNSIGNED[register_bits]).view(
            UNSIGNED[register_bits]
        )

    return pure(b, out, [x], [wide[x] if wide[x] > 1 else bits], one, rows)


def _from_integer(b: Binder, target: str, source: str, rounding: Rounding) -> Execute:
    bits = TYPE_BITS[source]
    fmt = FORMATS[target]
    x = b.src(1, bits)

    def rows(values: np.ndarray) -> np.ndarray:
        return formats.int_to_float(values.astype(UNSIGNED[bits]), source[0] == "s", fmt, rounding)

    width = max(b.program.slot_bits[x], bits)
    return _rows(b, b.out(0), [x], [width], rows)


def _to_integer(b: Binder, target: str, source: str, rounding: Rounding, ftz: bool) -> Execute:
    bits, out_bits = TYPE_BITS[source], TYPE_BITS[target]
    fmt = FORMATS[source]
    out = b.out(0)
    register = UNSIGNED[max(out_bits, b.program.slot_bits[out])]
    is_signed = target[0] == "s"

    def rows(values: np.ndarray) -> np.ndarray:
        if ftz and fmt is formats.F32:
            values = formats.flush_subnormals(values, fmt)
        numbers = formats.float_to_int(formats.decode(values, fmt), out_bits, is_signed, rounding)
        if is_signed and register is not UNSIGNED[out_bits]:
            kind: Any = SIGNED[8 * np.dtype(register).itemsize]
            return numbers.view(SIGNED[out_bits]).astype(kind).view(register)
        return numbers.astype(register)

    return _rows(b, out, [b.src(1, bits)], [bits], rows)


def _packed(b: Binder, target: str, source: str, rounding: Rounding, options: dict[str, Any]) -> Execute:
    """Two or four elements; the first operand goes to the upper bits."""
    out = b.out(0)
    register = UNSIGNED[b.program.slot_bits[out]]
    if source in _PACKED:
        name, count = _PACKED[source]
        target_name = _PACKED[target][0]
        read = FORMATS[name]
        write = formats.converter(read, FORMATS[target_name], rounding, **options)
        packed_bits = max(8, (4 if name == "e2m1" else FORMATS[name].bits if FORMATS[name].bits > 8 else 8) * count)
        x = b.src(1, packed_bits)
        bits = max(b.program.slot_bits[x], packed_bits)

        def unpacking(values: np.ndarray) -> np.ndarray:
            word = values.astype(UNSIGNED[packed_bits])
            parts = formats.unpack(word, read, count)
            return formats.pack([write(p) for p in parts], FORMATS[target_name]).astype(register)

        return _rows(b, out, [x], [bits], unpacking)
    name, count = _PACKED[target]
    fmt: FloatFormat = FORMATS[name]
    write = formats.converter(FORMATS[source], fmt, rounding, **options)
    elements = [text for operand in b.operands[1:] for text in b.vector(operand)]
    random = None
    if rounding is Rounding.RS:
        random = b.src(elements.pop(), 32)
    bits = TYPE_BITS[source]
    sources = [b.src(text, bits) for text in elements]
    if len(sources) != count:
        raise UnknownInstruction(f"{len(sources)} source elements for .{target}")
    if random is not None:
        return _stochastic(b, out, sources, random, fmt, write, register)
    if name == "bf16" and source == "f32" and rounding is Rounding.RN and not any(options.values()):
        return _bf16_pair(b, out, sources)

    def packing(*values: np.ndarray) -> np.ndarray:
        return formats.pack([write(v) for v in values], fmt).astype(register)

    return _rows(b, out, sources, [bits] * count, packing)


def _stochastic(
    b: Binder, out: int, sources: list[int], random: int, fmt: FloatFormat, write: Any, register: Any
) -> Execute:
    def rounding(*values: np.ndarray) -> np.ndarray:
        *elements, bits = values
        shares = formats.random_bits_of(bits, fmt)
        return formats.pack([write(v, r) for v, r in zip(elements, shares)], fmt).astype(register)

    return _rows(b, out, [*sources, random], [32] * (len(sources) + 1), rounding)


def _bf16_pair(b: Binder, out: int, sources: list[int]) -> Execute:
    """cvt.rn.bf16x2.f32, the commonest conversion: both operands at once."""
    upper, lower = sources
    write = formats.converter(formats.F32, formats.BF16, Rounding.RN)

    def run(w: Any) -> None:
        regs = w.regs
        pair = np.empty((32, 2), np.uint32)
        pair[:, 0], pair[:, 1] = row(regs[lower], 32), row(regs[upper], 32)
        regs[out] = write(pair).view(np.uint32).reshape(32)

    return run


def _pack_integers(b: Binder) -> Execute:
    """cvt.pack.sat.{u16,s16,u8,s8,...}.s32[.b32]: saturated narrow integers side by side."""
    b.flag("sat")
    target = b.modifiers[2]
    b.flag(*b.modifiers[2:])
    bits = int(target[1:])
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if target[0] == "s" else (0, (1 << bits) - 1)
    sources = [b.src(i, 32) for i in range(1, len(b.operands))]

    def one(first: int, second: int, rest: int = 0) -> int:
        clipped = [min(max(signed(v, 32), low), high) & ((1 << bits) - 1) for v in (first, second)]
        return (rest << 2 * bits | clipped[0] << bits | clipped[1]) & MASK[32]

    def rows(*values: np.ndarray) -> np.ndarray:
        return np.array([one(*map(int, lane)) for lane in zip(*values)], np.uint32)

    return pure(b, b.out(0), sources, [32] * len(sources), one, rows)
