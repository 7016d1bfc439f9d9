"""Warp-level matrix multiply (PTX ISA 9.7.14.5): mma.sync of every dense type, with block scaling.

All types share one fragment layout. Cut each row of A (m x k) and of B (n x k) into words of one register, element 0 in
the lowest bits. Lane 4 g + t holds, in register r,

| operand | row | word of that row |
|---|---|---|
| A | g + 8 (r mod m / 8) | t + 4 (r div m / 8) |
| B | g | t + 4 r |

and element c (0 or 1) of D[g + 8 h][2 t + c] in register 2 h + c; f16 packs both in register h (Figures 49 to 96; the same
in CUTLASS, cute/atom/mma_traits_sm80.hpp, _sm89, _sm90, _sm120).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..arithmetic import (
    HOPPER_FP8,
    adder_of,
    decode_accumulator,
    decode_operand,
    encode_accumulator,
    multiply_accumulate,
    multiply_fp8_by_halves,
)
from ..errors import Misuse, UnknownInstruction
from ..opcodes import opcode
from ..program import Binder, Execute
from ..values import LANES, row
from .control import require_converged

N = 8  # columns of D, of every shape

Shapes = set[tuple[int, int]]  # (m, k)
_HALF: Shapes = {(16, 8), (16, 16)}
_BYTE: Shapes = {(8, 16), (16, 16), (16, 32)}
_NIBBLE: Shapes = {(8, 32), (16, 32), (16, 64)}
_FP8: Shapes = {(16, 16), (16, 32)}
_F8F6F4 = ("e4m3", "e5m2", "e2m3", "e3m2", "e2m1")

# .kind ("" if there is none) -> groups of operand types that A and B may mix -> shapes.
_DENSE: dict[str, dict[tuple[str, ...], Shapes]] = {
    "": {
        ("f16",): _HALF, ("bf16",): _HALF, ("tf32",): {(16, 4), (16, 8)}, ("f64",): {(8, 4), (16, 4), (16, 8), (16, 16)},
        ("s8", "u8"): _BYTE, ("s4", "u4"): _NIBBLE, ("e4m3", "e5m2"): _FP8,
    },
    "f8f6f4": {_F8F6F4: {(16, 32)}},
    "mxf8f6f4": {_F8F6F4: {(16, 32)}},
    "mxf4": {("e2m1",): {(16, 64)}},
    "mxf4nvf4": {("e2m1",): {(16, 64)}},
}  # fmt: skip
_BITS = {"f64": 64, "tf32": 32, "f16": 16, "bf16": 16, "s4": 4, "u4": 4} | dict.fromkeys(("s8", "u8", *_F8F6F4), 8)
_ACCUMULATORS = {"f64": ("f64",), "f16": ("f16", "f32"), "bf16": ("f32",), "tf32": ("f32",)}
_ACCUMULATORS |= dict.fromkeys(("s8", "u8", "s4", "u4"), ("s32",)) | dict.fromkeys(_F8F6F4, ("f16", "f32"))

# Block scaling (Table 36): .kind -> (type of the scales, scales along k); the default of .scale_vec comes first.
_SCALES = {
    "mxf8f6f4": (("ue8m0", 1),),
    "mxf4": (("ue8m0", 2),),
    "mxf4nvf4": (("ue8m0", 2), ("ue8m0", 4), ("ue4m3", 4)),
}


class Form(NamedTuple):
    """What one mma.sync computes: D (m x 8) = A (m x k) B (k x 8) + C. bits: of an element as it lies in a register."""

    m: int
    k: int
    a: str
    b: str
    d: str
    bits: int
    saturate: bool

    @property
    def word_bits(self) -> int:
        """Width of the registers of A and B."""
        return max(32, self.bits)

    @property
    def row_words(self) -> int:
        """Words of one row of A or B."""
        return self.k * self.bits // self.word_bits


class Selector(NamedTuple):
    """Where the scales of one operand lie: slots of the data and of byte-id and thread-id."""

    data: int
    byte: int
    thread: int


@opcode("mma", section="9.7.14.5")
def matrix_multiply(b: Binder) -> Execute:
    """mma.sync.aligned.shape.row.col[.kind][.block_scale][.scale_vec].dtype.atype.btype.ctype[.stype]."""
    if b.flag("sp", "sp::ordered_metadata"):
        raise UnknownInstruction("sparse mma is not implemented")
    b.ignore("sync", "aligned")
    kind = _suffix(b, "kind")
    form, scale_type = _form(b, kind)
    if not (b.flag("row") and b.flag("col")):
        raise UnknownInstruction("mma of other than .row.col operands")
    operands = b.srcs(1, form.word_bits) + b.srcs(2, form.word_bits)
    expected = (form.m + N) // 8 * form.row_words // 4
    if len(operands) != expected:
        raise UnknownInstruction(f"{len(operands)} registers of A and B, expected {expected}")
    return _accumulation(b, form, operands, _multiplication(b, form, kind, scale_type))


def _suffix(b: Binder, name: str) -> str:
    """`x` of the modifier .name::x, "" without one."""
    found = b.match(name + r"::(\w+)")
    return found[1] if found else ""


def _form(b: Binder, kind: str) -> tuple[Form, str]:
    """(form, type of the scales)."""
    size = b.match(r"m(8|16)n8k(\d+)")
    if size is None or kind not in _DENSE:
        raise UnknownInstruction(f"mma of this shape or kind: {b.modifiers}")
    m, k = int(size[1]), int(size[2])
    names = [x for x in b.modifiers if x in _BITS or x in ("f32", "s32", "ue8m0", "ue4m3")]
    b.flag(*names)
    if len(names) != (5 if kind in _SCALES else 4):
        raise UnknownInstruction(f"types {names} of an mma of kind {kind!r}")
    d, a_type, b_type, c = names[:4]
    group = next((g for g in _DENSE[kind] if a_type in g and b_type in g), None)
    if group is None or (m, k) not in _DENSE[kind][group]:
        raise UnknownInstruction(f"mma m{m}n8k{k} of {a_type} x {b_type}, kind {kind!r}")
    if d != c or d not in _ACCUMULATORS[a_type] or (kind in _SCALES and d != "f32"):
        raise UnknownInstruction(f"mma of {a_type} x {b_type} with accumulators {d}, {c}")
    bits = 4 if kind in ("mxf4", "mxf4nvf4") else _BITS[a_type]
    return Form(m, k, a_type, b_type, d, bits, b.flag("satfinite") and d == "s32"), names[-1]


# ---- operands ---------------------------------------------------------------------------------------------------------


@functools.cache
def _word_order(m: int, row_words: int) -> np.ndarray:
    """Of the words of all registers of A, then of B (register, lane), those of row 0 of A first, in order along k."""
    a = np.arange(m * row_words).reshape(row_words // 4, m // 8, 8, 4).transpose(1, 2, 0, 3)
    b = np.arange(N * row_words).reshape(row_words // 4, 8, 4).transpose(1, 0, 2)
    return np.concatenate([a.reshape(-1), m * row_words + b.reshape(-1)])


@functools.cache
@np.errstate(invalid="ignore")
def _decoder(name: str, bits: int) -> Callable[[np.ndarray], np.ndarray]:
    """From words to float64 elements, along k."""
    if bits == 64:
        return lambda words: words.view(np.float64)
    if bits == 32:
        return lambda words: decode_operand(words, name)
    if bits == 16:
        table = decode_operand(np.arange(1 << 16, dtype=np.uint16), name)
        return lambda words: table.take(words.view(np.uint16))
    codes = np.arange(256, dtype=np.uint8)
    if bits == 4:
        nibbles = np.stack([codes & 15, codes >> 4], axis=1)
        pairs = _decode_nibbles(nibbles, name)
        return lambda words: pairs.take(words.view(np.uint8), axis=0).reshape(-1)
    # An 8-bit container holds e2m1 in bits 2 to 5 and 6-bit elements in bits 0 to 5 (CUTLASS, fp4_shift_A).
    bytes_table = decode_operand(codes >> 2 & 15 if name == "e2m1" else codes, name)
    return lambda words: bytes_table.take(words.view(np.uint8))


def _decode_nibbles(nibbles: np.ndarray, name: str) -> np.ndarray:
    if name == "s4":
        return (nibbles ^ 8).astype(np.float64) - 8
    return nibbles.astype(np.float64) if name == "u4" else decode_operand(nibbles, name)


Multiply = Callable[[Any, np.ndarray, np.ndarray], np.ndarray]


def _multiplication(b: Binder, form: Form, kind: str, scale_type: str) -> Multiply:
    """From the warp, the words of A and B in order, and C in the order of its registers, to A B + C in that order."""
    m, k = form.m, form.k
    order = _element_order(form)
    a_words = m * form.row_words
    decode_a, decode_b = _decoder(form.a, form.bits), _decoder(form.b, form.bits)
    scale = _scaling(b, form, kind, scale_type) if kind in _SCALES else None
    is_uniform = form.a == form.b
    target = b.program.kernel.target
    adder = adder_of(target, form.a, form.d) if form.d == "f32" and form.bits > 8 else None
    is_split = form.d == "f32" and k == 32 and adder_of(target, form.a, form.d) == HOPPER_FP8
    natural = np.argsort(order).reshape(m, N)

    def multiply(w: Any, words: np.ndarray, c: np.ndarray) -> np.ndarray:
        if is_uniform:
            elements = decode_a(words)
            x, y = elements[: m * k].reshape(m, k), elements[m * k :].reshape(N, k)
        else:
            x, y = decode_a(words[:a_words]).reshape(m, k), decode_b(words[a_words:]).reshape(N, k)
        if scale is not None:
            x, y = scale(w, x, y)
        if is_split:
            return multiply_fp8_by_halves(x, y, c.take(natural)).take(order)
        if adder is not None:
            return multiply_accumulate(x, y, c.take(natural), adder).take(order)
        total: np.ndarray = x.dot(y.T).take(order)
        total += c
        return total

    return multiply


# ---- block scaling (9.7.14.3) -----------------------------------------------------------------------------------------


def _scaling(
    b: Binder, form: Form, kind: str, scale_type: str
) -> Callable[[Any, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A and B with each of the `count` pieces of a row multiplied by its scale (exact in float64)."""
    if not b.flag("block_scale"):
        raise UnknownInstruction(f"mma of kind {kind} without .block_scale")
    vector = _suffix(b, "scale_vec")
    if not vector and len(_SCALES[kind]) > 1:
        raise UnknownInstruction(f"mma of kind {kind} without .scale_vec")
    count = int(vector[:-1]) if vector else _SCALES[kind][0][1]
    if (scale_type, count) not in _SCALES[kind]:
        raise UnknownInstruction(f"scales {scale_type} with .scale_vec::{vector} of kind {kind}")
    selector_a, selector_b = _selector(b, 4), _selector(b, 6)
    table = decode_operand(np.arange(256, dtype=np.uint8), scale_type)
    rows = np.arange(form.m)
    # Of A, one pair of threads of each quad gives the scales of rows g and g + 8; of B, one thread.
    lanes_a, lanes_b = rows % 8 * 4 + rows // 8, np.arange(N) * 4

    def scales(w: Any, selector: Selector, lanes: np.ndarray, lane_step: int) -> np.ndarray:
        first = _identifier(w, selector.byte, "byte-id", range(0, 4, count))
        thread = _identifier(w, selector.thread, "thread-id", range(4 // lane_step))
        data = row(w.regs[selector.data], 32)[lanes + lane_step * thread]
        return table.take(data.view(np.uint8).reshape(-1, 4)[:, first : first + count, None])

    def scale(w: Any, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled_a = x.reshape(form.m, count, -1) * scales(w, selector_a, lanes_a, 2)
        scaled_b = y.reshape(N, count, -1) * scales(w, selector_b, lanes_b, 1)
        return scaled_a.reshape(form.m, form.k), scaled_b.reshape(N, form.k)

    return scale


def _selector(b: Binder, operand: int) -> Selector:
    data, identifiers = b.srcs(operand, 32), b.srcs(operand + 1, 16)
    if len(data) != 1 or len(identifiers) != 2:
        raise UnknownInstruction("scale operands other than data, {byte-id, thread-id}")
    return Selector(data[0], *identifiers)


def _identifier(w: Any, slot: int, name: str, allowed: range) -> int:
    """A byte-id or thread-id, the same in all lanes."""
    value = w.regs[slot]
    if value.__class__ is np.ndarray and (value == value[0]).all():
        value = int(value[0])
    if value not in allowed:
        raise Misuse(f"mma: {name} {value} must be one of {list(allowed)}")
    return int(value)


# ---- accumulators -----------------------------------------------------------------------------------------------------


@functools.cache
def _element_order(form: Form) -> np.ndarray:
    """Of the elements of D (m x 8), those of register 0 first, by lane; f16 has the two of a lane side by side."""
    order = np.arange(form.m * N).reshape(form.m // 8, 8, 4, 2)
    return (order if form.d == "f16" else order.transpose(0, 3, 1, 2)).reshape(-1)


def _accumulation(b: Binder, form: Form, operands: list[int], multiply: Multiply) -> Execute:
    """The closure that reads C, rounds once and writes D."""
    d, bits, width = form.d, form.word_bits, 64 if form.d == "f64" else 32
    sources, outs = b.srcs(3, width), b.outs(0)
    expected = form.m // 8 if d == "f16" else form.m // 4
    if len(sources) != expected or len(outs) != expected:
        raise UnknownInstruction(f"{len(outs)} registers of D and {len(sources)} of C, expected {expected}")
    words = _word_order(form.m, form.row_words)
    decode, encode = _accumulator_codec(form)

    def run(w: Any) -> None:
        require_converged(w)
        regs = w.regs
        raw = np.concatenate([row(regs[s], bits) for s in operands]).take(words)
        old = np.concatenate([row(regs[s], width) for s in sources])
        result = encode(multiply(w, raw, decode(old)))
        for out, lanes in zip(outs, result.reshape(-1, LANES)):
            regs[out] = lanes

    return run


def _accumulator_codec(form: Form) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """(registers to float64 elements, and back with one rounding)."""
    d = form.d
    if d == "f64":
        return lambda raw: raw.view(np.float64), lambda values: values.view(np.uint64)
    if d == "f16":
        return (
            lambda raw: decode_accumulator(raw.view(np.uint16), d),
            lambda values: encode_accumulator(values, d).astype(np.uint16).view(np.uint32),
        )
    return lambda raw: decode_accumulator(raw, d), lambda values: encode_accumulator(values, d, form.saturate)
