"""mma.sync: each type and shape on random operands, placed by the formulas of the PTX ISA (9.7.14.5), against float64."""

from typing import NamedTuple

import numpy as np
import pytest

from quack.emulator.errors import Misuse, UnknownInstruction
from tests.unit.emulator.ptx_kernels import load_registers, run_kernel, store_registers

# name -> (exponent bits, mantissa bits, bias, whether the top exponent or code is no number)
FLOATS = {
    "f16": (5, 10, 15, "exponent"),
    "bf16": (8, 7, 127, "exponent"),
    "e4m3": (4, 3, 7, "code"),
    "e5m2": (5, 2, 15, "exponent"),
    "e2m3": (2, 3, 1, ""),
    "e3m2": (3, 2, 3, ""),
    "e2m1": (2, 1, 1, ""),
}
INTEGERS = {"s8": (8, True), "u8": (8, False), "s4": (4, True), "u4": (4, False)}
WIDTH = {"f64": 64, "tf32": 32, "f16": 16, "bf16": 16, "s4": 4, "u4": 4}  # of an element in a register; else 8


def decode(codes: np.ndarray, name: str) -> np.ndarray:
    """Values of codes, NaN for what is no finite number."""
    if name in INTEGERS:
        bits, is_signed = INTEGERS[name]
        return codes - (codes >= 1 << (bits - 1)) * float(is_signed << bits)
    exponent_bits, mantissa_bits, bias, special = FLOATS[name]
    mantissa = codes & ((1 << mantissa_bits) - 1)
    exponent = codes >> mantissa_bits & ((1 << exponent_bits) - 1)
    sign = codes >> (mantissa_bits + exponent_bits)
    fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
    values = (1.0 - 2 * sign) * fraction * 2.0 ** (np.maximum(exponent, 1) - bias)
    top = exponent == (1 << exponent_bits) - 1
    is_special = {"exponent": top, "code": top & (mantissa == (1 << mantissa_bits) - 1), "": top & False}[special]
    return np.where(is_special, np.nan, values)


def random_operand(rng: np.random.Generator, name: str, shape: tuple[int, ...], limit: float) -> tuple:
    """(codes, values) of finite elements up to `limit` in magnitude."""
    if name == "f64":
        values = rng.normal(size=shape)
        return values.view(np.uint64), values
    if name == "tf32":
        raw = rng.normal(size=shape).astype(np.float32).view(np.uint32)
        return raw, (raw & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)  # the low 13 bits are ignored
    codes = np.arange(1 << (INTEGERS[name][0] if name in INTEGERS else 1 + sum(FLOATS[name][:2])))
    usable = codes[np.abs(decode(codes, name)) <= limit]
    chosen = rng.choice(usable, shape)
    return chosen, decode(chosen, name)


# ---- fragments, as the ISA writes them: i counts the elements of a lane, g = lane / 4, t = lane % 4 ---------------------


def fragment_a(m: int, k: int, name: str, i: int, g: int, t: int) -> tuple[int, int]:
    """(row, column) of element ai."""
    if name == "f64":
        return {4: (g + 8 * i, t), 8: (g + 8 * (i % 2), t + 4 * (i // 2)), 16: (g + 8 * (i % 2), t + i // 2 * 4)}[k]
    if name == "tf32":
        return (g + 8 * i, t) if k == 4 else (g if i in (0, 2) else g + 8, t if i < 2 else t + 4)
    if name in ("f16", "bf16"):
        if k == 8:
            return g if i < 2 else g + 8, t * 2 + (i & 1)
        return g if i < 2 or 4 <= i < 6 else g + 8, t * 2 + (i & 1) + (8 if i >= 4 else 0)
    if name in ("s4", "u4") or k == 64:
        if m == 8 or k == 32:
            return g if i < 8 else g + 8, t * 8 + (i & 7)
        return g if i < 8 or 16 <= i < 24 else g + 8, t * 8 + (i & 7) + (32 if i >= 16 else 0)
    if m == 8 or k == 16:
        return g if i < 4 else g + 8, t * 4 + (i & 3)
    return g if i < 4 or 8 <= i < 12 else g + 8, t * 4 + (i & 3) + (16 if i >= 8 else 0)


def fragment_b(k: int, name: str, i: int, g: int, t: int) -> tuple[int, int]:
    """(row, column) of element bi of B (k x 8)."""
    if name in ("f64", "tf32"):
        return t + 4 * i, g
    if name in ("f16", "bf16"):
        return t * 2 + (i & 1) + (8 if i >= 2 else 0), g
    if name in ("s4", "u4") or k == 64:
        return t * 8 + (i & 7) + (32 if i >= 8 else 0), g
    return t * 4 + (i & 3) + (16 if i >= 4 else 0), g


def fragment_c(i: int, g: int, t: int) -> tuple[int, int]:
    """(row, column) of element ci."""
    return g if i < 2 else g + 8, t * 2 + (i & 1)


def pack(matrix: np.ndarray, place, elements: int, bits: int) -> np.ndarray:
    """Registers (32, n), uint32 or uint64, of codes that are `bits` wide; place(i, g, t) -> (row, column)."""
    word = 64 if bits == 64 else 32
    words = np.zeros((32, elements * bits // word), np.uint64)
    for lane in range(32):
        for i in range(elements):
            shift = i * bits % word
            words[lane, i * bits // word] |= np.uint64(int(matrix[place(i, lane // 4, lane % 4)]) << shift)
    return words if word == 64 else words.astype(np.uint32)


class Case(NamedTuple):
    """One instruction. flags: what stands before the shape; scale: type of the scales."""

    m: int
    k: int
    d: str
    a: str
    b: str
    flags: str = ""
    saturate: str = ""
    scale: str = ""

    def __str__(self) -> str:
        return f"m{self.m}n8k{self.k}.{self.d}.{self.a}.{self.b}{self.flags}{self.scale}"

    @property
    def opcode(self) -> str:
        types = f"{self.d}.{self.a}.{self.b}.{self.d}{self.scale}"
        return f"mma.sync.aligned{self.flags}.m{self.m}n8k{self.k}.row.col{self.saturate}.{types}"

    @property
    def bits(self) -> int:
        return 4 if self.k == 64 and self.a == "e2m1" else WIDTH.get(self.a, 8)

    def container(self, codes: np.ndarray, name: str) -> np.ndarray:
        """How codes lie in their containers: e2m1 in the middle of a byte."""
        return codes << 2 if name == "e2m1" and self.bits == 8 else codes


def run_mma(case: Case, a: np.ndarray, b: np.ndarray, c: np.ndarray, scales: str = "", data=()) -> np.ndarray:
    """D (m, 8) of codes a (m, k), b (k, 8) and c (m, 8) of the accumulator's dtype."""
    m, k, bits = case.m, case.k, case.bits
    word = 64 if bits == 64 else 32
    inputs = [
        pack(case.container(a, case.a), lambda i, g, t: fragment_a(m, k, case.a, i, g, t), m * k // 32, bits),
        pack(case.container(b, case.b), lambda i, g, t: fragment_b(k, case.b, i, g, t), k // 4, bits),
        pack(c.view(f"u{c.itemsize}"), fragment_c, m // 4, 8 * c.itemsize),
    ]
    d = np.zeros_like(inputs[2])
    prefix = "%fd" if word == 64 else "%r"
    names, first = [], 0
    for registers in [*inputs, d]:
        names.append([f"{prefix}{first + i}" for i in range(registers.shape[1])])
        first += registers.shape[1]
    ra, rb, rc, rd = ("{" + ", ".join(n) + "}" for n in names)
    loads = [load_registers(n, f"%in{i}", "%rd1", word) for i, n in enumerate(names[:3])]
    loads += [load_registers([f"%r{100 + i}"], f"%in{4 + i}", "%rd1") for i in range(len(data))]
    body = "\n".join([*loads, f"{case.opcode} {rd}, {ra}, {rb}, {rc}{scales};"])
    run_kernel(body + "\n" + store_registers(names[3], "%in3", "%rd1", word), *inputs, d, *data)
    result = np.zeros_like(c)
    elements = d.view(c.dtype).reshape(32, -1)
    for lane in range(32):
        for i in range(m // 4):
            result[fragment_c(i, lane // 4, lane % 4)] = elements[lane, i]
    return result


DENSE = [
    *(Case(16, k, d, "f16", "f16") for k in (8, 16) for d in ("f16", "f32")),
    *(Case(16, k, "f32", "bf16", "bf16") for k in (8, 16)),
    *(Case(16, k, "f32", "tf32", "tf32") for k in (4, 8)),
    *(Case(m, k, "f64", "f64", "f64") for m, k in ((8, 4), (16, 4), (16, 8), (16, 16))),
    *(Case(m, k, "s32", a, b) for m, k in ((8, 16), (16, 16), (16, 32)) for a in ("s8", "u8") for b in ("s8", "u8")),
    *(Case(m, k, "s32", a, b) for m, k in ((8, 32), (16, 32), (16, 64)) for a, b in (("s4", "u4"), ("u4", "s4"))),
    *(Case(16, k, d, a, b) for k in (16, 32) for d in ("f16", "f32") for a, b in (("e4m3", "e5m2"), ("e5m2", "e5m2"))),
    *(
        Case(16, 32, d, a, b, ".kind::f8f6f4")
        for d in ("f16", "f32")
        for a in ("e4m3", "e5m2", "e2m3", "e3m2", "e2m1")
        for b in ("e4m3", "e2m3", "e3m2", "e2m1")
    ),
]
ACCUMULATORS = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "s32": np.int32}


@pytest.mark.parametrize("case", DENSE, ids=str)
def test_dense(case):
    rng = np.random.default_rng(case.k)
    limit = 8.0 if case.d == "f16" else 1e4
    a_codes, a = random_operand(rng, case.a, (case.m, case.k), limit)
    b_codes, b = random_operand(rng, case.b, (case.k, 8), limit)
    dtype = ACCUMULATORS[case.d]
    c = rng.integers(-1000, 1000, (case.m, 8)).astype(dtype)
    result = run_mma(case, a_codes, b_codes, c)
    expected = a @ b + c.astype(np.float64)
    if case.d == "s32":
        np.testing.assert_array_equal(result, expected)
    else:
        one_step = {"f16": 2.0**-10, "f32": 2.0**-23, "f64": 1e-14}[case.d]
        np.testing.assert_allclose(result, expected.astype(dtype), rtol=one_step, atol=1e-12)


@pytest.mark.parametrize("saturate, expected", [("", -(2**31) + 126), (".satfinite", 2**31 - 1)])
def test_integer_overflow_wraps_or_saturates(saturate, expected):
    case = Case(16, 16, "s32", "u8", "u8", saturate=saturate)
    a, b = np.zeros((16, 16), int), np.zeros((16, 8), int)
    a[3, 5], b[5, 2] = 127, 1
    c = np.full((16, 8), 2**31 - 1, np.int32)
    assert run_mma(case, a, b, c)[3, 2] == expected


def test_products_are_rounded_once():
    """1 + 2^-24 + 2^-24 rounded after each sum is 1; rounded once it is the next number."""
    case = Case(16, 16, "f32", "bf16", "bf16")
    a, b = np.zeros((16, 16), int), np.zeros((16, 8), int)
    half_step = (127 - 24) << 7  # 2^-24
    a[0, 0] = a[0, 9] = half_step
    b[0, 0] = b[9, 0] = 127 << 7
    c = np.ones((16, 8), np.float32)
    assert run_mma(case, a, b, c)[0, 0] == np.float32(1 + 2.0**-23)


def test_infinity_and_nan():
    case = Case(16, 8, "f32", "f16", "f16")
    a, b = np.zeros((16, 8), int), np.full((8, 8), 0x3C00)
    a[1, 1], a[2, 2], b[2, 0] = 0x7C00, 0x7C00, 0
    result = run_mma(case, a, b, np.zeros((16, 8), np.float32))
    assert np.isinf(result[1]).all() and np.isnan(result[2, 0]) and np.isinf(result[2, 1:]).all()
    assert not result[0].any()


# ---- block scaling -----------------------------------------------------------------------------------------------------

UE8M0, UE4M3 = ".ue8m0", ".ue4m3"
SCALED = [
    *(
        Case(16, 32, "f32", a, b, ".kind::mxf8f6f4.block_scale.scale_vec::1X", scale=UE8M0)
        for a, b in (("e4m3", "e4m3"), ("e5m2", "e2m1"), ("e2m1", "e2m3"), ("e3m2", "e2m1"))
    ),
    *(
        Case(16, 64, "f32", "e2m1", "e2m1", f".kind::{kind}", scale=scale)
        for kind, scale in (
            ("mxf4.block_scale.scale_vec::2X", UE8M0),
            ("mxf4.block_scale", UE8M0),
            ("mxf4nvf4.block_scale.scale_vec::2X", UE8M0),
            ("mxf4nvf4.block_scale.scale_vec::4X", UE8M0),
            ("mxf4nvf4.block_scale.scale_vec::4X", UE4M3),
        )
    ),
]


def random_scales(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    if name == UE8M0:
        codes = rng.integers(120, 135, shape)
        return codes, 2.0 ** (codes - 127)
    codes = rng.integers(0, 0x7F, shape)
    return codes, decode(codes, "e4m3")


def scales_per_row(case: Case) -> int:
    return 4 if "4X" in case.flags else 1 if "1X" in case.flags else 2


SELECTED = [
    pytest.param(case, ids, id=f"{case}-{ids}")
    for case in SCALED
    for ids in ((0, 0, 0, 0), (0, 1, 0, 3), (2, 0, 2, 1), (3, 1, 1, 2))
    if all(byte_id % scales_per_row(case) == 0 for byte_id in ids[::2])
]


@pytest.mark.parametrize("case, ids", SELECTED)
def test_block_scaled(case, ids):
    """ids: byte-id-a, thread-id-a, byte-id-b, thread-id-b; bytes and lanes that they do not select hold NaN."""
    count = scales_per_row(case)
    rng = np.random.default_rng(7)
    a_codes, a = random_operand(rng, case.a, (16, case.k), 1e4)
    b_codes, b = random_operand(rng, case.b, (case.k, 8), 1e4)
    sfa_codes, sfa = random_scales(rng, case.scale, (16, count))
    sfb_codes, sfb = random_scales(rng, case.scale, (8, count))
    byte_a, thread_a, byte_b, thread_b = ids
    data_a, data_b = np.full((32, 4), 0xFF, np.uint8), np.full((32, 4), 0xFF, np.uint8)
    for g in range(8):
        for half in range(2):
            data_a[4 * g + 2 * thread_a + half, byte_a : byte_a + count] = sfa_codes[g + 8 * half]
        data_b[4 * g + thread_b, byte_b : byte_b + count] = sfb_codes[g]
    c = rng.normal(size=(16, 8)).astype(np.float32)
    scales = f", {{%r100}}, {{{byte_a}, {thread_a}}}, {{%r101}}, {{{byte_b}, {thread_b}}}"
    result = run_mma(case, a_codes, b_codes, c, scales, (data_a.view(np.uint32), data_b.view(np.uint32)))
    scaled_a = a * np.repeat(sfa, case.k // count, axis=1)
    scaled_b = b * np.repeat(sfb, case.k // count, axis=1).T
    expected = (scaled_a @ scaled_b + c).astype(np.float32)
    np.testing.assert_allclose(result, expected, rtol=2.0**-23, atol=1e-12)


# ---- what is refused ---------------------------------------------------------------------------------------------------

FOUR, TWO = "{%r0, %r1, %r2, %r3}", "{%r0, %r1}"


@pytest.mark.parametrize(
    "text",
    [
        f"mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {FOUR}, {FOUR}, {FOUR}, {FOUR}, %r4, 0",
        f"mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {FOUR}, {FOUR}, {FOUR}, {FOUR}, %r4, 0",
        f"mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32 {FOUR}, {FOUR}, {TWO}, {FOUR}",
        f"mma.sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16 {TWO}, {FOUR}, {TWO}, {TWO}",
        f"mma.sync.aligned.m16n8k16.row.row.f32.bf16.bf16.f32 {FOUR}, {FOUR}, {TWO}, {FOUR}",
        f"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {FOUR}, {TWO}, {TWO}, {FOUR}",
        f"mma.sync.aligned.m16n8k32.row.col.f32.e2m1.e2m1.f32 {FOUR}, {FOUR}, {TWO}, {FOUR}",
        f"mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.xor.popc {FOUR}, {TWO}, {{%r0}}, {FOUR}",
        f"mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {FOUR}, {TWO}, {TWO}, {FOUR}",
        f"mma.sync.aligned.kind::mxf4.m16n8k64.row.col.f32.e2m1.e2m1.f32.ue8m0 {FOUR}, {FOUR}, {TWO}, {FOUR}",
        "mma.sync.aligned.kind::mxf4nvf4.block_scale.m16n8k64.row.col.f32.e2m1.e2m1.f32.ue8m0 "
        f"{FOUR}, {FOUR}, {TWO}, {FOUR}, %r4, {{0, 0}}, %r5, {{0, 0}}",
    ],
)
def test_refused(text):
    with pytest.raises(UnknownInstruction):
        run_kernel(text + ";", np.zeros(4, np.uint32))


def test_illegal_selector():
    text = "mma.sync.aligned.kind::mxf4.block_scale.scale_vec::2X.m16n8k64.row.col.f32.e2m1.e2m1.f32.ue8m0"
    with pytest.raises(Misuse, match="byte-id"):
        run_kernel(f"{text} {FOUR}, {FOUR}, {TWO}, {FOUR}, %r4, {{1, 0}}, %r5, {{0, 0}};", np.zeros(4, np.uint32))


def test_diverged_warp():
    instruction = f"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {FOUR}, {FOUR}, {TWO}, {FOUR};"
    body = f"setp.lt.u32 %p0, %lane, 7;\n@%p0 {instruction}"
    with pytest.raises(Misuse, match="aligned"):
        run_kernel(body, np.zeros(4, np.uint32))
