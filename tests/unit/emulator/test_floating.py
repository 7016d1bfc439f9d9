"""Floating-point opcodes (PTX ISA 9.7.3 to 9.7.5): operands, types and modifiers, against exact rational arithmetic.

The functions themselves are tested, with every rounding and special value, in test_floatmath and test_formats.
"""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from quack.emulator.errors import UnknownInstruction
from tests.unit.emulator.ptx_kernels import (
    Lanewise,
    check_lanewise,
    float_literal,
    load_registers,
    run_kernel,
    store_registers,
)

# (exponent bits, mantissa bits); the bias is that of IEEE 754.
LAYOUTS = {"f16": (5, 10), "bf16": (8, 7), "f32": (8, 23), "f64": (11, 52), "tf32": (8, 10)}


def width(kind: str) -> int:
    return 1 + sum(LAYOUTS[kind])


def value_of(raw: int, kind: str) -> float:
    """Exact in a Python float."""
    exponent_bits, mantissa_bits = LAYOUTS[kind]
    mantissa, exponent = raw & (1 << mantissa_bits) - 1, raw >> mantissa_bits & (1 << exponent_bits) - 1
    sign = -1.0 if raw >> mantissa_bits + exponent_bits & 1 else 1.0
    if exponent == (1 << exponent_bits) - 1:
        return sign * math.inf if not mantissa else math.nan
    bias = (1 << exponent_bits - 1) - 1
    return sign * math.ldexp(mantissa | bool(exponent) << mantissa_bits, max(exponent, 1) - bias - mantissa_bits)


def canonical_nan(kind: str) -> int:
    return 0x7FF8 << 48 if kind == "f64" else (1 << width(kind) - 1) - 1


def raw_of(value, kind: str, mode: str = "rn", negative_zero: bool = False) -> int:
    """Raw bits of a Fraction or a float, rounded once. mode: rn, rna, rz, rm, rp."""
    exponent_bits, m = LAYOUTS[kind]
    bias, sign_bit = (1 << exponent_bits - 1) - 1, exponent_bits + m
    infinity = (1 << exponent_bits) - 1 << m
    if isinstance(value, float) and not math.isfinite(value):
        return canonical_nan(kind) if math.isnan(value) else infinity | (value < 0) << sign_bit
    if value == 0:
        negative = negative_zero or (isinstance(value, float) and math.copysign(1, value) < 0)
        return negative << sign_bit
    exact = Fraction(value)
    negative, magnitude = exact < 0, abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent
    exponent = max(exponent, 1 - bias)
    steps = magnitude / Fraction(2) ** (exponent - m)
    whole, rest = steps.numerator // steps.denominator, steps % 1
    away = {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole & 1),
        "rna": rest >= Fraction(1, 2),
        "rz": False,
        "rm": rest and negative,
        "rp": rest and not negative,
    }[mode]
    code = whole + bool(away) + ((exponent + bias - 1) << m)
    if code >= infinity:
        to_infinity = mode in ("rn", "rna") or (mode == "rm" and negative) or (mode == "rp" and not negative)
        code = infinity if to_infinity else infinity - 1
    return code | negative << sign_bit


# ---- arithmetic -------------------------------------------------------------------------------------------------------

EXACT: dict[str, Any] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "fma": lambda x, y, z: x * y + z,
    "mad": lambda x, y, z: x * y + z,
    "div": lambda x, y: x / y,
    "rcp": lambda x: 1 / x,
}


def compute(name: str, values: tuple[float, ...], kind: str, mode: str) -> int:
    """One operation on finite values, rounded once; zeros by the rules of IEEE 754 in float64."""
    if name == "sqrt":
        if values[0] < 0:
            return canonical_nan(kind)
        root = math.isqrt(int(Fraction(values[0]) * 2**2200)) if values[0] else 0
        return raw_of(Fraction(root, 2**1100), kind, mode, math.copysign(1, values[0]) < 0)
    if name in ("div", "rcp") and values[-1] == 0:
        top = values[0] if name == "div" else 1.0
        is_negative = (math.copysign(1, top) < 0) != (math.copysign(1, values[-1]) < 0)
        return raw_of(math.nan if top == 0 else -math.inf if is_negative else math.inf, kind)
    exact = EXACT[name](*map(Fraction, values))
    if name in ("mul", "div", "rcp"):
        negative = math.prod(math.copysign(1, v) for v in values) < 0
    else:
        x, y = (
            (values[0] * values[1], values[2])
            if len(values) == 3
            else (values[0], -values[1] if name == "sub" else values[1])
        )
        negative = (min if mode == "rm" else max)(math.copysign(1, x), math.copysign(1, y)) < 0
    return raw_of(exact, kind, mode, negative)


def flush(raw: int, kind: str) -> int:
    """Subnormals to zero."""
    exponent_bits, m = LAYOUTS[kind]
    return raw if raw >> m & (1 << exponent_bits) - 1 else raw >> m + exponent_bits << m + exponent_bits


def arithmetic(opcode: str) -> Lanewise:
    """From the opcode alone: name, rounding, .ftz, .sat, .relu, and one type (packed or not) or two (mixed)."""
    name, *parts = opcode.split(".")
    mode = next((p for p in parts if p in ("rn", "rz", "rm", "rp")), "rn")
    count = {"fma": 3, "mad": 3, "rcp": 1, "sqrt": 1}.get(name, 2)
    types = [p for p in parts if p.removesuffix("x2") in LAYOUTS]
    kind, is_packed = types[0].removesuffix("x2"), types[0].endswith("x2")
    kinds = [types[-1]] * (count - 1) + [kind] if len(types) == 2 else [kind] * count
    one = 0x3F800000 if kind == "f32" else 0x3C00

    def element(*raws: int) -> int:
        if "ftz" in parts:
            raws = tuple(flush(r, k) for r, k in zip(raws, kinds))
        raw = compute(name, tuple(value_of(r, k) for r, k in zip(raws, kinds)), kind, mode)
        raw = flush(raw, kind) if "ftz" in parts else raw
        is_negative = raw >> width(kind) - 1
        if "relu" in parts:
            return 0 if is_negative else raw
        return (0 if is_negative else min(raw, one)) if "sat" in parts else raw

    bits = [width(k) * (1 + is_packed) for k in kinds]
    sources = ", ".join(f"{{{i}}}" for i in range(count))
    literal = float_literal if len(set(types)) == 1 and kind in ("f32", "f64") and not is_packed else None

    def function(*raws: int) -> int:
        if not is_packed:
            return element(*raws)
        half = width(kind)
        parts_of = [[r >> half * i & (1 << half) - 1 for r in raws] for i in (0, 1)]
        return element(*parts_of[0]) | element(*parts_of[1]) << half

    return Lanewise(f"{opcode} {{d}}, {sources};", tuple(bits), (bits[-1],), function, literal)


def finite_operands(case: Lanewise, kinds: list[str], seed: int = 0, samples: int = 3) -> np.ndarray:
    """Random bits that are finite numbers, many of them of similar magnitude, and zeros."""
    rng = np.random.default_rng(seed)
    values = np.zeros((samples, len(kinds), 32), np.uint64)
    for index in np.ndindex(values.shape):
        kind = kinds[index[1]].removesuffix("x2")
        elements = []
        for _ in range(1 + kinds[index[1]].endswith("x2")):
            e, m = LAYOUTS[kind]
            top, middle = (1 << e) - 2, 1 << e - 1
            near = (middle + rng.integers(-3, 4, 8)).tolist()
            choices: list[int] = [0, 1, top, int(rng.integers(top)), *near]
            exponent = int(rng.choice(choices))
            mantissa = int(rng.choice([0, 1, (1 << m) - 1, int(rng.integers(1 << m))]))
            elements.append(int(rng.integers(2)) << e + m | exponent << m | mantissa)
        values[index] = elements[0] if len(elements) == 1 else elements[0] | elements[1] << width(kind)
    return values


ARITHMETIC = [
    *(f"{name}{mode}.{kind}" for name in ("add", "sub", "mul") for kind in ("f32", "f64") for mode in ("", ".rn", ".rz")),
    *(f"{name}.{kind}" for name in ("add", "sub", "mul") for kind in ("f16", "f16x2", "bf16", "bf16x2")),
    *(f"{name}.rn.f32x2" for name in ("add", "sub", "mul", "fma")),
    *(f"fma.{mode}.{kind}" for kind in ("f32", "f64") for mode in ("rn", "rz", "rm", "rp")),
    *(f"fma.rn{relu}.{kind}" for relu in ("", ".relu") for kind in ("f16", "f16x2", "bf16", "bf16x2")),
    "mad.rn.f32", "mad.rn.f64",
    *(f"{name}.ftz.f32" for name in ("add", "sub", "mul", "fma.rn")),
    *(f"{name}.sat.{kind}" for name in ("add", "mul", "fma.rn") for kind in ("f32", "f16")),
    "add.rn.ftz.sat.f16x2",
    *(f"{name}.rn.{kind}" for name in ("div", "rcp", "sqrt") for kind in ("f32", "f64")),
    *(f"{name}.rn.f32.{kind}" for name in ("add", "sub", "fma") for kind in ("f16", "bf16")),
]  # fmt: skip


@pytest.mark.parametrize("opcode", ARITHMETIC)
def test_arithmetic(opcode):
    case = arithmetic(opcode)
    types = [p for p in opcode.split(".") if p.removesuffix("x2") in LAYOUTS]
    kinds = [types[-1]] * (len(case.sources) - 1) + [types[0]]
    operands = finite_operands(case, kinds)
    if "f64" in types:  # what its NaN look like is left to numpy
        operands = np.where(
            operands & np.uint64(1 << 63) == 0, operands, operands ^ np.uint64((opcode[0] == "s") << 63)
        )
        if opcode.startswith(("div", "rcp")):
            operands[:, -1] |= np.uint64(1 << 61)
    check_lanewise(case, operands)


# ---- minimum, maximum, signs ------------------------------------------------------------------------------------------


def extremum(opcode: str, count: int = 2) -> Lanewise:
    name, *parts = opcode.split(".")
    kind = parts[-1].removesuffix("x2")
    bits, sign = width(kind), 1 << width(kind) - 1

    def element(*raws: int) -> int:
        masked = [r & ~sign if "abs" in parts else r for r in raws]
        numbers = [r for r in masked if not math.isnan(value_of(r, kind))]
        if not numbers or ("NaN" in parts and len(numbers) < count):
            return canonical_nan(kind)
        key = lambda r: (value_of(r, kind), not r & sign)  # noqa: E731  (-0 is below +0)
        best = (min if name == "min" else max)(numbers, key=key)
        return best | (raws[0] ^ raws[1]) & sign if "xorsign" in parts else best

    def function(*raws: int) -> int:
        if not parts[-1].endswith("x2"):
            return element(*raws)
        low, high = ([r >> bits * i & (1 << bits) - 1 for r in raws] for i in (0, 1))
        return element(*low) | element(*high) << bits

    total = bits * (1 + parts[-1].endswith("x2"))
    sources = ", ".join(f"{{{i}}}" for i in range(count))
    return Lanewise(f"{opcode} {{d}}, {sources};", (total,) * count, (total,), function, None)


EXTREMA = [
    *(extremum(f"{n}{m}.{k}") for n in ("min", "max") for m in ("", ".NaN") for k in ("f32", "f16", "bf16", "f16x2", "bf16x2")),
    *(extremum(f"{n}.f64") for n in ("min", "max")),
    *(extremum(f"{n}.xorsign.abs.f32") for n in ("min", "max")),
    *(extremum(f"{n}{m}.f32", 3) for n in ("min", "max") for m in ("", ".NaN", ".abs")),
]  # fmt: skip


def sign_operation(opcode: str, function) -> Lanewise:
    kind = opcode.rpartition(".")[2]
    base, bits = kind.removesuffix("x2"), width(kind.removesuffix("x2"))
    count = 2 if opcode.startswith("copysign") else 1

    def element(*raws: int) -> int:
        if count == 1 and math.isnan(value_of(raws[0], base)):
            return canonical_nan(base)
        return function(*raws, 1 << bits - 1)

    def packed(*raws: int) -> int:
        if not kind.endswith("x2"):
            return element(*raws)
        return element(raws[0] & (1 << bits) - 1) | element(raws[0] >> bits) << bits

    total = bits * (1 + kind.endswith("x2"))
    sources = ", ".join(f"{{{i}}}" for i in range(count))
    return Lanewise(f"{opcode} {{d}}, {sources};", (total,) * count, (total,), packed, None)


SIGNS = [
    *(sign_operation(f"neg.{k}", lambda x, sign: x ^ sign) for k in ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")),
    *(sign_operation(f"abs.{k}", lambda x, sign: x & ~sign) for k in ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")),
    *(sign_operation(f"copysign.{k}", lambda x, y, sign: y & ~sign | x & sign) for k in ("f32", "f64")),
]


@pytest.mark.parametrize("case", [*EXTREMA, *SIGNS], ids=lambda case: f"{case}-{len(case.sources)}")
def test_extrema_and_signs(case):
    kind = str(case).rpartition(".")[2]
    operands = finite_operands(case, [kind] * len(case.sources))
    if kind != "f64":
        special = [canonical_nan(kind.removesuffix("x2")), 0, 1 << width(kind.removesuffix("x2")) - 1]
        operands[1, :, ::2] = np.random.default_rng(2).choice(np.array(special, np.uint64), (len(case.sources), 16))
    check_lanewise(case, operands)


# ---- approximations ---------------------------------------------------------------------------------------------------

APPROXIMATIONS = [
    ("rcp.approx.f32", lambda x: 1 / x, 2.0**-23),
    ("rcp.approx.ftz.f32", lambda x: 1 / x, 2.0**-23),
    ("sqrt.approx.f32", np.sqrt, 2.0**-23),
    ("rsqrt.approx.f32", lambda x: 1 / np.sqrt(x), 2.0**-22),
    ("ex2.approx.f32", np.exp2, 2.0**-22),
    ("ex2.approx.ftz.f32", np.exp2, 2.0**-22),
    ("lg2.approx.f32", np.log2, 2.0**-20),
    ("tanh.approx.f32", np.tanh, 2.0**-11),
    ("sin.approx.f32", np.sin, 2.0**-15),
    ("cos.approx.f32", np.cos, 2.0**-15),
    ("div.approx.f32", lambda x: x / 3, 2.0**-22),
    ("div.full.f32", lambda x: x / 3, 2.0**-22),
]


@pytest.mark.parametrize("opcode, function, bound", APPROXIMATIONS)
def test_approximations(opcode, function, bound):
    x = np.random.default_rng(3).uniform(0.1, 5, 32).astype(np.float32)
    out = np.zeros((32, 2), np.float32)
    operand = ", 0f40400000" if opcode.startswith("div") else ""
    body = load_registers(["%r1"], "%in0", "%rd1") + f"\n{opcode} %r2, %r1{operand};\nld.global.b32 %r3, [%in0+20];\n"
    body += f"{opcode} %r4, %r3{operand};\n" + store_registers(["%r2", "%r4"], "%in1", "%rd1")
    run_kernel(body, x, out)
    expected = function(x.astype(np.float64))
    np.testing.assert_allclose(out[:, 0], expected, rtol=bound, atol=2.0**-20)
    np.testing.assert_array_equal(out[:, 1], out[5, 0])


@pytest.mark.parametrize("opcode", ["ex2.approx.f16", "ex2.approx.ftz.bf16", "tanh.approx.f16", "tanh.approx.bf16"])
def test_half_precision_approximations(opcode):
    kind = opcode.rpartition(".")[2]
    x = np.random.default_rng(4).uniform(-2, 2, 32)
    raw = np.array([raw_of(float(v), kind) for v in x], np.uint16)
    out = np.zeros((32, 2), np.uint16)
    body = load_registers(["%rs1"], "%in0", "%rd1", 16) + f"\n{opcode} %rs2, %rs1;\nmov.b32 %r1, {{%rs1, %rs1}};\n"
    packed = opcode + "x2"
    body += f"{packed} %r2, %r1;\nmov.b32 {{_, %rs3}}, %r2;\n" + store_registers(["%rs2", "%rs3"], "%in1", "%rd1", 16)
    run_kernel(body, raw, out)
    function = np.exp2 if opcode.startswith("ex2") else np.tanh
    expected = function(np.array([value_of(int(r), kind) for r in raw]))
    result = np.array([[value_of(int(r), kind) for r in pair] for pair in out])
    np.testing.assert_allclose(result[:, 0], expected, rtol=2.0**-7, atol=2.0**-8)
    np.testing.assert_array_equal(result[:, 1], result[:, 0])


@pytest.mark.parametrize(
    "text",
    [
        "add.rn.sat.bf16 %rs1, %rs2, %rs3",
        "fma.f32 %r1, %r2, %r3, %r4",
        "div.f32 %r1, %r2, %r3",
        "sin.f32 %r1, %r2",
        "add.rx.f32 %r1, %r2, %r3",
        "min.xorsign.f32 %r1, %r2, %r3",
        "rcp.approx.ftz.f64 %fd1, %fd2",
        "tanh.approx.f64 %fd1, %fd2",
    ],
)
def test_unknown_forms_are_refused(text):
    with pytest.raises(UnknownInstruction, match=f"PTX line .*{text.split()[0]}"):
        run_kernel(text + ";", np.zeros(1, np.uint32))
