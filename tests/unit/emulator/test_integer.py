"""Integer arithmetic (PTX ISA 9.7.1) against Python integers: every type, lanes, uniform values and literals."""

import numpy as np
import pytest

from quack.emulator.errors import UnknownInstruction
from tests.unit.emulator.ptx_kernels import (
    Lanewise,
    check_lanewise,
    random_operands,
    run_kernel,
    signed,
    signed_literal,
)

SIZES = (16, 32, 64)


def reader(kind: str):
    """Raw bits to the number they stand for in a type such as "s32"."""
    bits = int(kind[1:])
    return (lambda v: signed(v, bits)) if kind[0] == "s" else (lambda v: v)


def binary(name: str, kind: str, function, out_bits: int = 0) -> Lanewise:
    """d = function(a, b) on numbers, wrapped to the width of d."""
    bits, read = int(kind[1:]), reader(kind)
    out_bits = out_bits or bits
    literal = signed_literal if kind[0] == "s" else lambda bits, value: hex(value)
    return Lanewise(
        f"{name}.{kind} {{d}}, {{0}}, {{1}};", (bits, bits), (out_bits,),
        lambda x, y: function(read(x), read(y)) & (1 << out_bits) - 1, literal,
    )  # fmt: skip


def unary(name: str, kind: str, function, out_bits: int = 0) -> Lanewise:
    bits, read = int(kind[1:]), reader(kind)
    out_bits = out_bits or bits
    text = f"{name}.{kind} {{d}}, {{0}};"
    return Lanewise(text, (bits,), (out_bits,), lambda x: function(read(x)) & (1 << out_bits) - 1)


def clamp(value: int) -> int:
    return min(max(value, -(1 << 31)), (1 << 31) - 1)


def quotient(x: int, y: int) -> int:
    """Rounded toward zero; by zero all ones (unspecified in the ISA)."""
    return (abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1) if y else -1


def multiply_add(part: str, kind: str) -> Lanewise:
    bits, read = int(kind[1:]), reader(kind)
    out = 2 * bits if part == "wide" else bits
    shift = bits if part == "hi" else 0
    return Lanewise(
        f"mad.{part}.{kind} {{d}}, {{0}}, {{1}}, {{2}};", (bits, bits, out), (out,),
        lambda x, y, z: ((read(x) * read(y) >> shift) + z) & (1 << out) - 1,
    )  # fmt: skip


def absolute_difference(kind: str) -> Lanewise:
    bits, read = int(kind[1:]), reader(kind)
    return Lanewise(
        f"sad.{kind} {{d}}, {{0}}, {{1}}, {{2}};", (bits,) * 3, (bits,),
        lambda x, y, z: (z + abs(read(x) - read(y))) & (1 << bits) - 1,
    )  # fmt: skip


def find_bit(x: int, bits: int, is_signed: bool, is_shift: bool) -> int:
    """The loop of 9.7.1.16."""
    if is_signed and x >> (bits - 1):
        x = ~x & (1 << bits) - 1
    found = next((i for i in reversed(range(bits)) if x >> i & 1), None)
    return 0xFFFFFFFF if found is None else bits - 1 - found if is_shift else found


def extract(x: int, position: int, length: int, bits: int, is_signed: bool) -> int:
    """The loop of 9.7.1.19."""
    top, position, length = bits - 1, position & 255, length & 255
    sign = x >> min(position + length - 1, top) & 1 if is_signed and length else 0
    picked = [x >> position + i & 1 if i < length and position + i <= top else sign for i in range(bits)]
    return sum(bit << i for i, bit in enumerate(picked))


def insert(x: int, base: int, position: int, length: int, bits: int) -> int:
    """The loop of 9.7.1.20."""
    position, length = position & 255, length & 255
    for i in range(length):
        if position + i < bits:
            base = base & ~(1 << position + i) | (x >> i & 1) << position + i
    return base


def fields() -> list[Lanewise]:
    cases = []
    for bits in (32, 64):
        for kind in (f"u{bits}", f"s{bits}"):
            for is_shift in (False, True):
                text = f"bfind{'.shiftamt' * is_shift}.{kind} {{d}}, {{0}};"
                find = lambda x, b=bits, k=kind, s=is_shift: find_bit(x, b, k[0] == "s", s)  # noqa: E731
                cases.append(Lanewise(text, (bits,), (32,), find))
            pick = lambda x, p, n, b=bits, k=kind: extract(x, p, n, b, k[0] == "s")  # noqa: E731
            cases.append(Lanewise(f"bfe.{kind} {{d}}, {{0}}, {{1}}, {{2}};", (bits, 32, 32), (bits,), pick))
        put = lambda x, base, p, n, b=bits: insert(x, base, p, n, b)  # noqa: E731
        text = f"bfi.b{bits} {{d}}, {{0}}, {{1}}, {{2}}, {{3}};"
        cases.append(Lanewise(text, (bits, bits, 32, 32), (bits,), put))
    return cases


CASES = [
    *(binary("add", f"{s}{n}", lambda x, y: x + y) for s in "us" for n in SIZES),
    *(binary("sub", f"{s}{n}", lambda x, y: x - y) for s in "us" for n in SIZES),
    binary("add.sat", "s32", lambda x, y: clamp(x + y)),
    binary("sub.sat", "s32", lambda x, y: clamp(x - y)),
    *(binary("mul.lo", f"{s}{n}", lambda x, y: x * y) for s in "us" for n in SIZES),
    *(binary("mul.hi", f"{s}{n}", lambda x, y, n=n: x * y >> n) for s in "us" for n in SIZES),
    *(binary("mul.wide", f"{s}{n}", lambda x, y: x * y, 2 * n) for s in "us" for n in (16, 32)),
    *(multiply_add(part, f"{s}{n}") for part in ("lo", "hi", "wide") for s in "us" for n in SIZES if part != "wide" or n < 64),
    *(absolute_difference(f"{s}{n}") for s in "us" for n in SIZES),
    *(binary("div", f"{s}{n}", quotient) for s in "us" for n in SIZES),
    *(binary("rem", f"{s}{n}", lambda x, y: x - quotient(x, y) * y) for s in "us" for n in SIZES),
    *(unary("abs", f"s{n}", abs) for n in SIZES),
    *(unary("neg", f"s{n}", lambda x: -x) for n in SIZES),
    *(binary("min", f"{s}{n}", min) for s in "us" for n in SIZES),
    *(binary("max", f"{s}{n}", max) for s in "us" for n in SIZES),
    binary("min.relu", "s32", lambda x, y: max(min(x, y), 0)),
    binary("max.relu", "s32", lambda x, y: max(x, y, 0)),
    *(unary("popc", f"b{n}", lambda x: bin(x).count("1"), 32) for n in (32, 64)),
    *(unary("clz", f"b{n}", lambda x, n=n: f"{x:0{n}b}1".index("1"), 32) for n in (32, 64)),
    *(unary("brev", f"b{n}", lambda x, n=n: sum((x >> i & 1) << n - 1 - i for i in range(n))) for n in (32, 64)),
    *fields(),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_python(case):
    check_lanewise(case, random_operands(case))


@pytest.mark.parametrize(
    "text",
    [
        "add.cc.u32 %r1, %r2, %r3",
        "addc.u32 %r1, %r2, %r3",
        "mad.lo.cc.u32 %r1, %r2, %r3, %r4",
        "mul24.lo.u32 %r1, %r2, %r3",
        "add.u16x2 %r1, %r2, %r3",
        "min.s16x2 %r1, %r2, %r3",
        "dp4a.u32.u32 %r1, %r2, %r3, %r4",
        "div.full.u32 %r1, %r2, %r3",
        "popc.u32.b32 %r1, %r2",
    ],
)
def test_unknown_forms_are_refused(text):
    with pytest.raises(UnknownInstruction, match=f"PTX line .*{text.split()[0]}"):
        run_kernel(text + ";", np.zeros(1, np.uint32))
