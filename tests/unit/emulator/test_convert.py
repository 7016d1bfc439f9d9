"""cvt and cvt.pack (PTX ISA 9.7.9.21, 9.7.9.22): every pair of types, widths of registers, roundings, packed operands."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from quack.emulator.errors import UnknownInstruction
from tests.unit.emulator.ptx_kernels import (
    Lanewise,
    check_lanewise,
    load_registers,
    random_operands,
    run_kernel,
    signed,
    store_registers,
)
from tests.unit.emulator.test_floating import canonical_nan, finite_operands, flush, raw_of, value_of, width

INTEGERS = [f"{s}{n}" for s in "us" for n in (8, 16, 32, 64)]
FLOATS = ("f16", "bf16", "f32", "f64")


def bits_of(kind: str) -> int:
    return int(kind[1:]) if kind in INTEGERS else width(kind)


def limits(kind: str) -> tuple[int, int]:
    bits = int(kind[1:])
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)


def to_register(number: int, kind: str, register: int) -> int:
    """An integer of a type in a wider register: extended by its sign if the type has one."""
    bits = int(kind[1:])
    number &= (1 << bits) - 1
    return (signed(number, bits) if kind[0] == "s" else number) & (1 << register) - 1


def from_register(raw: int, kind: str) -> int:
    bits = int(kind[1:])
    raw &= (1 << bits) - 1
    return signed(raw, bits) if kind[0] == "s" else raw


def registers_for(bits: int) -> list[int]:
    """Widths of registers that may hold a type."""
    return [r for r in (16, 32, 64) if r >= bits]


def between_integers(target: str, source: str, sat: bool, out: int, into: int) -> Lanewise:
    def function(raw: int) -> int:
        number = from_register(raw, source)
        if sat:
            low, high = limits(target)
            number = min(max(number, low), high)
        return to_register(number, target, out)

    return Lanewise(f"cvt{'.sat' * sat}.{target}.{source} {{d}}, {{0}};", (into,), (out,), function, None)


def integer_cases() -> list[Lanewise]:
    cases = []
    for target in INTEGERS:
        for source in INTEGERS:
            pairs = [(o, i) for o in registers_for(bits_of(target)) for i in registers_for(bits_of(source))]
            first, last = pairs[0], pairs[-1]
            cases += [between_integers(target, source, False, *pair) for pair in {first, last}]
            cases.append(between_integers(target, source, True, *first))
    return cases


@pytest.mark.parametrize("case", integer_cases(), ids=lambda c: f"{c}-{c.outs[0]}-{c.sources[0]}")
def test_integer_to_integer(case):
    check_lanewise(case, random_operands(case, samples=2))


def round_integral(value: float, mode: str) -> int:
    whole: dict[str, Any] = {"rn": round, "rz": math.trunc, "rm": math.floor, "rp": math.ceil}
    return whole[mode[:2]](Fraction(value))


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("target", FLOATS)
def test_integer_to_float(target, source):
    for mode in ("rn", "rz") if target != "bf16" else ("rn",):
        for register in {registers_for(bits_of(source))[0], 64}:
            case = Lanewise(
                f"cvt.{mode}.{target}.{source} {{d}}, {{0}};", (register,), (width(target),),
                lambda raw, mode=mode: raw_of(Fraction(from_register(raw, source)), target, mode), None,
            )  # fmt: skip
            check_lanewise(case, random_operands(case, samples=2))


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", INTEGERS)
def test_float_to_integer(target, source):
    low, high = limits(target)

    def function(raw: int, mode: str, out: int) -> int:
        value = value_of(raw & (1 << width(source)) - 1, source)
        if math.isnan(value):
            return to_register(0 if source != "f64" and bits_of(target) < 64 else 1 << bits_of(target) - 1, target, out)
        if math.isinf(value):
            return to_register(high if value > 0 else low, target, out)
        return to_register(min(max(round_integral(value, mode), low), high), target, out)

    rng = np.random.default_rng(5)
    spread = [rng.uniform(-300, 300, 16), rng.uniform(low, high, 8), rng.integers(-9, 9, 8) / 2]
    values = [raw_of(float(v), source) for v in np.concatenate(spread)]
    values[:3] = [canonical_nan(source), raw_of(math.inf, source), raw_of(-math.inf, source)]
    for mode in ("rni", "rzi", "rmi", "rpi"):
        for out in {registers_for(bits_of(target))[0], 64}:
            case = Lanewise(
                f"cvt.{mode}.{target}.{source} {{d}}, {{0}};", (width(source),), (out,),
                lambda raw, mode=mode, out=out: function(raw, mode, out), None,
            )  # fmt: skip
            check_lanewise(case, np.array(values, np.uint64).reshape(1, 1, 32))


def float_case(opcode: str, source: int = 0) -> Lanewise:
    """cvt between two floats; the source may lie in a wider register."""
    _, *parts = opcode.split(".")
    target, kind = parts[-2:]
    mode = next((p for p in parts[:-2] if p[0] == "r" and p != "relu"), "rn")

    def function(raw: int) -> int:
        raw &= (1 << width(kind)) - 1
        if "ftz" in parts and kind == "f32":
            raw = flush(raw, kind)
        value = value_of(raw, kind)
        if mode.endswith("i") and math.isfinite(value):
            rounded = round_integral(value, mode)
            return raw_of(Fraction(rounded), target, negative_zero=math.copysign(1, value) < 0)
        code = raw_of(value, target, mode)
        if "ftz" in parts and target == "f32":
            code = flush(code, target)
        negative = code >> width(target) - 1 and not math.isnan(value)
        if "sat" in parts:
            one = raw_of(1.0, target)
            return 0 if negative or math.isnan(value) else min(code, one)
        infinity = raw_of(math.inf, target)
        if "satfinite" in parts and not math.isnan(value) and code & ~(1 << width(target) - 1) == infinity:
            code -= 1
        return 0 if negative and "relu" in parts else code

    return Lanewise(f"{opcode} {{d}}, {{0}};", (source or width(kind),), (width(target),), function, None)


FLOAT_CASES = [
    float_case("cvt.f32.f16"),
    float_case("cvt.f32.f16", 32),
    float_case("cvt.f32.bf16"),
    *(float_case(f"cvt.{mode}.f16.f32") for mode in ("rn", "rz", "rm", "rp")),
    *(float_case(f"cvt.{mode}.bf16.f32") for mode in ("rn", "rz")),
    float_case("cvt.f64.f32"),
    float_case("cvt.f64.f16"),
    *(float_case(f"cvt.{mode}.f32.f64") for mode in ("rn", "rz", "rm", "rp")),
    float_case("cvt.rn.f16.f64"),
    float_case("cvt.rn.bf16.f16"),
    float_case("cvt.rn.f16.bf16"),
    *(float_case(f"cvt.{mode}.{kind}.{kind}") for mode in ("rni", "rzi", "rmi", "rpi") for kind in ("f16", "f32", "f64")),
    float_case("cvt.ftz.f32.f32"),
    float_case("cvt.rn.ftz.f16.f32"),
    float_case("cvt.rn.ftz.f32.f64"),
    *(float_case(f"cvt.sat.{target}.{kind}") for target, kind in (("f32", "f32"), ("f32", "f16"), ("f64", "f64"))),
    float_case("cvt.rn.sat.f16.f32"),
    *(float_case(f"cvt.rn{option}.{kind}.f32") for kind in ("f16", "bf16") for option in (".relu", ".satfinite", ".relu.satfinite")),
]  # fmt: skip


@pytest.mark.parametrize("case", FLOAT_CASES, ids=lambda c: f"{c}-{c.sources[0]}")
def test_float_to_float(case):
    kind = str(case).rpartition(".")[2]
    operands = finite_operands(case, [kind])
    operands[1, 0, :2] = [raw_of(math.inf, kind), raw_of(-math.inf, kind)]
    if ".f64" not in str(case) and not str(case).endswith(".f32.bf16"):  # these NaN keep what payload they can
        operands[1, 0, 2] = canonical_nan(kind)
    if case.sources[0] > width(kind):
        operands |= np.random.default_rng(1).integers(0, 1 << 16, (3, 1, 32), np.uint64) << np.uint64(width(kind))
    check_lanewise(case, operands)


@pytest.mark.parametrize("mode", ["rna", "rn", "rz"])
def test_tf32(mode):
    case = Lanewise(
        f"cvt.{mode}.tf32.f32 {{d}}, {{0}};", (32,), (32,), lambda raw: raw_of(value_of(raw, "f32"), "tf32", mode) << 13
    )
    operands = finite_operands(case, ["f32"])
    check_lanewise(case._replace(literal=None), operands)


# ---- packed types -----------------------------------------------------------------------------------------------------


def cast(raw: int, kind: str) -> int:
    """f32 to another type to nearest, by torch."""
    dtype = {
        "f16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2,
    }[kind]  # fmt: skip
    limit = torch.finfo(dtype).max
    value = torch.tensor([value_of(raw, "f32")], dtype=torch.float32)
    if kind[0] == "e":  # always .satfinite
        value = value.clamp(-limit, limit)
    view = torch.uint8 if kind[0] == "e" else torch.int16
    return int(value.to(dtype).view(view)[0]) & (255 if kind[0] == "e" else 0xFFFF)


@pytest.mark.parametrize("kind, saturate", [("f16", ""), ("bf16", ""), ("e4m3", ".satfinite"), ("e5m2", ".satfinite")])
@pytest.mark.parametrize("relu", ["", ".relu"])
def test_two_floats(kind, saturate, relu):
    bits = 8 if kind[0] == "e" else 16

    def element(raw: int) -> int:
        return 0 if relu and raw >> 31 else cast(raw, kind)

    case = Lanewise(
        f"cvt.rn{saturate}{relu}.{kind}x2.f32 {{d}}, {{0}}, {{1}};", (32, 32), (2 * bits,),
        lambda a, b: element(a) << bits | element(b), lambda bits, value: f"0f{value:08X}",
    )  # fmt: skip
    check_lanewise(case, finite_operands(case, ["f32", "f32"]))


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_fp8_to_f16(kind):
    table = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn if kind == "e4m3" else torch.float8_e5m2)
    halves = table.to(torch.float16).view(torch.int16).numpy().astype(np.uint16)
    halves = np.where((halves & 0x7FFF) > 0x7C00, 0x7FFF, halves)
    case = Lanewise(
        f"cvt.rn.f16x2.{kind}x2 {{d}}, {{0}};", (16,), (32,),
        lambda raw: int(halves[raw >> 8]) << 16 | int(halves[raw & 255]), None,
    )  # fmt: skip
    check_lanewise(case, np.random.default_rng(6).integers(0, 1 << 16, (3, 1, 32), np.uint64))


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_f16_pair_to_fp8(kind):
    def element(raw: int) -> int:
        return cast(raw_of(value_of(raw, "f16"), "f32"), kind)

    case = Lanewise(
        f"cvt.rn.satfinite.{kind}x2.f16x2 {{d}}, {{0}};", (32,), (16,),
        lambda raw: element(raw >> 16) << 8 | element(raw & 0xFFFF), None,
    )  # fmt: skip
    check_lanewise(case, finite_operands(case, ["f16x2"]))


E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_fp4():
    """Two in a byte, the first operand in the upper half; and back."""

    def nearest(raw: int) -> int:
        value = value_of(raw, "f32")
        magnitude = min(abs(value), 6.0)
        code = min(range(8), key=lambda c: (abs(E2M1[c] - magnitude), c % 2))
        return code | (raw >> 31) << 3

    rng = np.random.default_rng(7)
    values = np.concatenate([rng.uniform(-8, 8, 20), [0.25, 0.75, -2.5, 3.5, 5, -5, 7, 0.0, -0.0, 1.25, 1.75, -0.25]])
    pair = np.stack([values, rng.permutation(values)], 1).astype(np.float32)
    out = np.zeros((32, 2), np.uint32)
    body = f"""
    {load_registers(["%r1", "%r2"], "%in0", "%rd1")}
    {{
    .reg .b8 %byte;
    cvt.rn.satfinite.e2m1x2.f32 %byte, %r1, %r2;
    mov.b16 %rs1, {{%byte, 0}};
    cvt.u32.u16 %r3, %rs1;
    cvt.rn.f16x2.e2m1x2 %r4, %byte;
    }}
    """
    run_kernel(body + store_registers(["%r3", "%r4"], "%in1", "%rd1"), pair, out)
    raw = pair.view(np.uint32)
    expected = [nearest(int(a)) << 4 | nearest(int(b)) for a, b in raw]
    np.testing.assert_array_equal(out[:, 0], expected)
    halves = out[:, 1].copy().view(np.float16).reshape(32, 2)
    signs = [[(-1) ** (e >> 3 & 1) * E2M1[e & 7], (-1) ** (e >> 7) * E2M1[e >> 4 & 7]] for e in expected]
    np.testing.assert_array_equal(halves, signs)


def test_scale_factors():
    """ue8m0: powers of two, rounded up or down; the pair goes back to bf16 exactly."""
    values = np.random.default_rng(8).uniform(0.01, 100, (32, 2)).astype(np.float32)
    out = np.zeros((32, 3), np.uint32)
    body = f"""
    {load_registers(["%r1", "%r2"], "%in0", "%rd1")}
    cvt.rp.satfinite.ue8m0x2.f32 %rs1, %r1, %r2;
    cvt.rz.ue8m0x2.f32 %rs2, %r1, %r2;
    cvt.rn.bf16x2.ue8m0x2 %r5, %rs1;
    cvt.u32.u16 %r3, %rs1;
    cvt.u32.u16 %r4, %rs2;
    """
    run_kernel(body + store_registers(["%r3", "%r4", "%r5"], "%in1", "%rd1"), values, out)
    up = np.ceil(np.log2(values)).astype(int) + 127
    down = np.floor(np.log2(values)).astype(int) + 127
    np.testing.assert_array_equal(out[:, 0], up[:, 0] << 8 | up[:, 1])
    np.testing.assert_array_equal(out[:, 1], down[:, 0] << 8 | down[:, 1])
    np.testing.assert_array_equal(out[:, 2], up[:, 0] << 23 | up[:, 1] << 7)


def test_stochastic_rounding():
    """cvt.rs: the upper half of the random bits belongs to the first operand."""

    def element(raw: int, random: int, kind: str, count: int) -> int:
        exact = Fraction(value_of(raw, "f32"))
        down = raw_of(exact, kind, "rz")
        low, high = Fraction(value_of(down, kind)), Fraction(value_of(down + 1, kind))
        share = (exact - low) / (high - low) * (1 << count)
        return down + (int(share) + random >= 1 << count)

    rng = np.random.default_rng(9)
    pair = rng.uniform(0.5, 4, (32, 2)).astype(np.float32)
    random = rng.integers(0, 1 << 32, 32, np.uint32)
    for kind, count in (("bf16", 16), ("f16", 13)):
        out = np.zeros(32, np.uint32)
        body = load_registers(["%r1", "%r2"], "%in0", "%rd1") + load_registers(["%r3"], "%in1", "%rd1")
        body += f"\ncvt.rs.{kind}x2.f32 %r4, %r1, %r2, %r3;\n" + store_registers(["%r4"], "%in2", "%rd1")
        run_kernel(body, pair, random, out)
        mask = (1 << count) - 1
        for (a, b), r, result in zip(pair.view(np.uint32).tolist(), random.tolist(), out.tolist()):
            assert result == element(a, r >> 16 & mask, kind, count) << 16 | element(b, r & mask, kind, count)


def pack(kind: str, has_rest: bool) -> Lanewise:
    bits = int(kind[1:])
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)

    def function(a: int, b: int, rest: int = 0) -> int:
        a, b = (min(max(signed(v, 32), low), high) & (1 << bits) - 1 for v in (a, b))
        return (rest << 2 * bits | a << bits | b) & 0xFFFFFFFF

    text = f"cvt.pack.sat.{kind}.s32{'.b32' * has_rest} {{d}}, {{0}}, {{1}}{', {2}' * has_rest};"
    return Lanewise(text, (32,) * (2 + has_rest), (32,), function)


PACKS = [*(pack(k, False) for k in ("u16", "s16")), *(pack(f"{s}{n}", True) for s in "us" for n in (8, 4, 2))]


@pytest.mark.parametrize("case", PACKS, ids=str)
def test_pack_integers(case):
    operands = random_operands(case)
    operands[0, :2] = np.random.default_rng(1).integers(-300, 300, (2, 32)).astype(np.int32).view(np.uint32)
    check_lanewise(case, operands)


@pytest.mark.parametrize(
    "text",
    [
        "cvt.rn.bf16x2.f32 %r1, %r2",
        "cvt.rn.f16.f32.f32 %rs1, %r2",
        "cvt.rni.f16.f32 %rs1, %r2",
        "cvt.rn.satfinite.scaled::n2::ue8m0.s2f6x2.f32 %rs1, %r2, %r3, %rs4",
        "cvt.rs.satfinite.e4m3x4.f32 %r1, {%r2, %r3, %r4, %r5}, %r6",
        "cvt.rn.e2m1x2.f32 %rs1, %r2, %r3",
    ],
)
def test_unknown_forms_are_refused(text):
    with pytest.raises(UnknownInstruction, match=f"PTX line .*{text.split()[0]}"):
        run_kernel(text + ";", np.zeros(1, np.uint32))
