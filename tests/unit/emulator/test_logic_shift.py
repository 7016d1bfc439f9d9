"""Logic, shifts and byte permutation (PTX ISA 9.7.8, 9.7.9.7) against Python integers."""

import numpy as np
import pytest

from quack.emulator.errors import UnknownInstruction
from tests.unit.emulator.ptx_kernels import Lanewise, check_lanewise, random_operands, run_kernel, signed


def kind_of(bits: int) -> str:
    return "pred" if bits == 1 else f"b{bits}"


def bitwise(name: str, bits: int, function) -> Lanewise:
    """and, or, xor, not on registers or predicates."""
    count = 1 if name == "not" else 2
    sources = ", ".join(f"{{{i}}}" for i in range(count))
    mask = (1 << bits) - 1
    return Lanewise(
        f"{name}.{kind_of(bits)} {{d}}, {sources};", (bits,) * count, (bits,), lambda *v: function(*v) & mask
    )


def ternary(table: int) -> Lanewise:
    """lop3: bit 4 a + 2 b + c of the table."""

    def function(x: int, y: int, z: int) -> int:
        bits = [table >> (4 * (x >> i & 1) + 2 * (y >> i & 1) + (z >> i & 1)) & 1 for i in range(32)]
        return sum(bit << i for i, bit in enumerate(bits))

    return Lanewise(f"lop3.b32 {{d}}, {{0}}, {{1}}, {{2}}, {table:#x};", (32, 32, 32), (32,), function)


def shift(name: str, kind: str) -> Lanewise:
    bits = int(kind[1:])

    def function(x: int, n: int) -> int:
        number = signed(x, bits) if kind[0] == "s" else x
        return (number << n if name == "shl" else number >> n) & (1 << bits) - 1

    return Lanewise(f"{name}.{kind} {{d}}, {{0}}, {{1}};", (bits, 32), (bits,), lambda x, n: function(x, min(n, bits)))


def funnel(direction: str, mode: str) -> Lanewise:
    def function(low: int, high: int, n: int) -> int:
        n = min(n, 32) if mode == "clamp" else n % 32
        both = high << 32 | low
        return (both << n >> 32 if direction == "l" else both >> n) % (1 << 32)

    return Lanewise(f"shf.{direction}.{mode}.b32 {{d}}, {{0}}, {{1}}, {{2}};", (32, 32, 32), (32,), function)


# Sources of bytes b3, b2, b1, b0 for selectors 0 to 3: the table of 9.7.9.7.
MODES = {
    "f4e": ("3210", "4321", "5432", "6543"),
    "b4e": ("5670", "6701", "7012", "0123"),
    "rc8": ("0000", "1111", "2222", "3333"),
    "ecl": ("3210", "3211", "3222", "3333"),
    "ecr": ("0000", "1110", "2210", "3210"),
    "rc16": ("1010", "3232", "1010", "3232"),
}


def permute(mode: str) -> Lanewise:
    def function(x: int, y: int, control: int) -> int:
        source = list(x.to_bytes(4, "little") + y.to_bytes(4, "little"))
        if mode:
            return int.from_bytes([source[int(digit)] for digit in MODES[mode][control & 3]], "big")
        picked = []
        for i in range(4):
            selector = control >> 4 * i & 15
            byte = source[selector & 7]
            picked.append((255 if byte > 127 else 0) if selector & 8 else byte)
        return int.from_bytes(picked, "little")

    text = f"prmt.b32{'.' * bool(mode)}{mode} {{d}}, {{0}}, {{1}}, {{2}};"
    return Lanewise(text, (32, 32, 32), (32,), function)


CASES = [
    *(bitwise("and", n, lambda x, y: x & y) for n in (1, 16, 32, 64)),
    *(bitwise("or", n, lambda x, y: x | y) for n in (1, 16, 32, 64)),
    *(bitwise("xor", n, lambda x, y: x ^ y) for n in (1, 16, 32, 64)),
    *(bitwise("not", n, lambda x: ~x) for n in (1, 16, 32, 64)),
    *(Lanewise(f"cnot.b{n} {{d}}, {{0}};", (n,), (n,), lambda x: int(x == 0)) for n in (16, 32, 64)),
    *(ternary(table) for table in (0x00, 0xFF, 0xF0, 0xCC, 0xAA, 0x80, 0xFE, 0x96, 0xE8, 0xCA, 0x2D, 0x41)),
    *(shift("shl", f"b{n}") for n in (16, 32, 64)),
    *(shift("shr", f"{s}{n}") for s in "bus" for n in (16, 32, 64)),
    *(funnel(direction, mode) for direction in "lr" for mode in ("clamp", "wrap")),
    *(permute(mode) for mode in ("", *MODES)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_python(case):
    check_lanewise(case, random_operands(case))


def test_permutation_with_one_selector_for_all_lanes():
    """A case of its own in the implementation; the selectors of other tests are rarely legal permutations."""
    for control in (0x5410, 0x7632, 0x3232, 0x0123, 0x8888, 0xFEDC):
        case = Lanewise(f"prmt.b32 {{d}}, {{0}}, {{1}}, {control:#x};", (32, 32), (32,), lambda x, y: 0)
        case = case._replace(reference=lambda x, y, c=control: permute("").reference(x, y, c))
        check_lanewise(case, random_operands(case, samples=1))


@pytest.mark.parametrize(
    "text",
    [
        "lop3.or.b32 %r1|%p1, %r2, %r3, %r4, 0x80, %p2",
        "shf.l.b32 %r1, %r2, %r3, %r4",
        "prmt.b32.f5e %r1, %r2, %r3, %r4",
        "and.b32.b16 %r1, %r2, %r3",
    ],
)
def test_unknown_forms_are_refused(text):
    with pytest.raises(UnknownInstruction, match=f"PTX line .*{text.split()[0]}"):
        run_kernel(text + ";", np.zeros(1, np.uint32))
