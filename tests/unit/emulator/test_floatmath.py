"""Float instructions against exact rational arithmetic, the C library, Python's floats and results of an H200."""

import ctypes
import ctypes.util
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from quack.emulator import floatmath, formats
from quack.emulator.floatmath import comparison, operation, predicate_value, property_test
from quack.emulator.formats import BF16, F16, F32, F64, FloatFormat

TYPES = {"f32": F32, "f64": F64, "f16": F16, "bf16": BF16}


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


def run(opcode: str, *operands: int) -> int:
    """One lane; the operands have the width of the opcode's last type."""
    kind = floatmath.TYPES[opcode.split(".")[-1]]
    word = f"u{kind.fmt.bits * kind.lanes // 8}"
    return int(operation(opcode)(*[np.array([o], word) for o in operands])[0])


def code(value: float, fmt: FloatFormat) -> int:
    return int(formats.encode(np.array([value]), fmt)[0])


# ---- exact reference ------------------------------------------------------------------------------------------------------


def rounded(exact: Fraction, fmt: FloatFormat, mode: str, negative_zero: bool) -> int:
    """Code of an exact number: whole steps of its binade by integer division, then a decision on the remainder."""
    if exact == 0:
        return fmt.sign if negative_zero else 0
    negative, magnitude = exact < 0, abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    while Fraction(2) ** exponent > magnitude:
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= magnitude:
        exponent += 1
    exponent = max(exponent, 1 - fmt.bias)
    steps, rest = divmod(magnitude / Fraction(2) ** (exponent - fmt.mantissa_bits), 1)
    away = {"rz": False, "rp": not negative, "rm": negative}.get(mode)
    if away is None:
        away = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and steps % 2 == 1)
    steps += away and rest != 0
    result = ((exponent + fmt.bias - 1) << fmt.mantissa_bits) + int(steps)
    if result >= fmt.infinity:
        to_infinity = mode == "rn" or {"rz": False, "rp": not negative, "rm": negative}[mode]
        result = fmt.infinity if to_infinity else fmt.largest
    return result | (fmt.sign if negative else 0)


def square_root(x: Fraction) -> Fraction:
    """At least 160 bits and a sticky one: rounds as the root does."""
    scaled = x * 4**700
    root = math.isqrt(scaled.numerator // scaled.denominator)
    return Fraction(2 * root + (root * root != scaled), 2**701)


EXACT = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "fma": lambda x, y, z: x * y + z,
    "div": lambda x, y: x / y,
    "rcp": lambda x: 1 / x,
    "sqrt": square_root,
}


def has_negative_zero(name: str, mode: str, values: list[float]) -> bool:
    """Sign of an exact zero result, after IEEE 754: sums of unlike signs are -0 only when rounding down."""
    negative = [math.copysign(1, v) < 0 for v in values]
    if name in ("mul", "div"):
        return negative[0] != negative[1]
    if name in ("rcp", "sqrt"):
        return negative[0]
    first, second = negative[0], negative[1] != (name == "sub")
    if name == "fma":
        first, second = negative[0] != negative[1], negative[2]
    return first if first == second else mode == "rm"


def operands(name: str, fmt: FloatFormat, count: int) -> list[np.ndarray]:
    """Finite numbers: all pairs of edges, random ones, and ones that nearly cancel or nearly tie."""
    rng = np.random.default_rng(len(name) * 131 + fmt.bits)
    one, step = fmt.bias << fmt.mantissa_bits, 1 << fmt.mantissa_bits
    edges = [0, 1, 2, step - 1, step, step + 1, one - 1, one, one + 1, one + step // 2, fmt.largest - 1, fmt.largest]
    edges = np.array([e | s for e in edges for s in (0, fmt.sign)], fmt.dtype)
    arity = floatmath.ARITY[name]
    grid = [g.ravel() for g in np.meshgrid(*[edges[:: 1 if arity < 3 else 2]] * arity)]
    near_one = [one + rng.integers(-3 * step, 3 * step, count).astype(fmt.dtype) for _ in range(arity)]
    near_one = [n ^ (rng.integers(0, 2, count).astype(fmt.dtype) << fmt.dtype(fmt.bits - 1)) for n in near_one]
    far = [n.copy() for n in near_one]
    far[-1] -= (rng.integers(0, min(60, fmt.bias // 2), count) << fmt.mantissa_bits).astype(fmt.dtype)
    close = [n.copy() for n in near_one]
    close[-1] = (close[0] ^ fmt.dtype(fmt.sign)) + rng.integers(0, 3, count).astype(fmt.dtype)
    columns = [np.concatenate(parts) for parts in zip(grid, near_one, far, close)]
    assert all(np.isfinite(formats.decode(c, fmt)).all() for c in columns)
    return columns


CASES = [
    *itertools.product(("add", "sub", "mul", "fma", "div", "rcp", "sqrt"), ("f32",), ("rn", "rz", "rm", "rp"), (200,)),
    *itertools.product(("add", "sub", "mul", "fma"), ("f16", "bf16"), ("rn",), (400,)),
    *itertools.product(("add", "mul", "fma", "div", "rcp", "sqrt"), ("f64",), ("rn", "rz", "rm", "rp"), (50,)),
]


@pytest.mark.parametrize(("name", "type_name", "mode", "count"), CASES)
def test_arithmetic_is_rounded_once(name, type_name, mode, count):
    fmt = TYPES[type_name]
    columns = operands(name, fmt, count)
    results = operation(f"{name}.{mode}.{type_name}")(*columns)
    values = [formats.decode(c, fmt).astype(np.float64).tolist() for c in columns]
    for *lane, result in zip(*values, results.tolist()):
        if (name in ("div", "rcp") and lane[-1] == 0) or (name == "sqrt" and lane[0] < 0):
            continue
        expected = rounded(EXACT[name](*map(Fraction, lane)), fmt, mode, has_negative_zero(name, mode, lane))
        assert result == expected, (lane, hex(result), hex(expected))


def test_fma_f32_agrees_with_the_c_library():
    fmaf = ctypes.CDLL(ctypes.util.find_library("m")).fmaf
    fmaf.restype, fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    rng = np.random.default_rng(5)
    a, b, c = rng.integers(0, 1 << 32, (3, 100_000), dtype=np.uint32).view(np.float32)
    c[:50_000] = (-(a * b) * (1 + rng.integers(-2, 3, a.size) * np.float32(2**-23))).astype(np.float32)[:50_000]
    expected = np.array([fmaf(*lane) for lane in zip(a.tolist(), b.tolist(), c.tolist())], np.float32)
    result = operation("fma.rn.f32")(a.view(np.uint32), b.view(np.uint32), c.view(np.uint32)).view(np.float32)
    is_nan = np.isnan(expected)
    assert np.array_equal(np.isnan(result), is_nan) and 1000 < np.count_nonzero(is_nan) < 50_000
    assert np.array_equal(result.view(np.uint32)[~is_nan], expected.view(np.uint32)[~is_nan])


def test_fma_of_a_tie_and_something_tiny():
    """The float64 sum is a tie of the result; only what that sum lost breaks it."""
    one_and_half_step = {"f32": (0x3F800800, 0x3F800800), "bf16": (0x3F88, 0x3F88), "f16": (0x3C20, 0x3C20)}
    for type_name, (a, b) in one_and_half_step.items():
        fmt = TYPES[type_name]
        product = float(formats.decode(np.array([a], fmt.dtype), fmt)[0]) ** 2
        tiny = fmt.dtype(1)
        for c, sign in ((tiny, 1), (tiny | fmt.dtype(fmt.sign), -1)):
            exact = Fraction(product) + sign * Fraction(2) ** (1 - fmt.bias - fmt.mantissa_bits)
            assert run(f"fma.rn.{type_name}", a, b, int(c)) == rounded(exact, fmt, "rn", False)
    # 513 units of 2^-149, and half a unit less 2^-46 of it.
    assert run("fma.rn.f32", 0x1A000001, 0x19FFFFFE, 513) == 513


# ---- special values and modifiers -----------------------------------------------------------------------------------------

INF, NINF, NAN, ONE, NONE, ZERO, NZERO = 0x7F800000, 0xFF800000, 0x7FFFFFFF, 0x3F800000, 0xBF800000, 0, 1 << 31
SIGNALING = 0xFF800001


@pytest.mark.parametrize(
    ("opcode", "lanes", "result"),
    [
        ("add.f32", (INF, NINF), NAN),
        ("add.f32", (SIGNALING, ONE), NAN),
        ("sub.rz.f32", (INF, ONE), INF),
        ("mul.f32", (ZERO, NINF), NAN),
        ("fma.rn.f32", (INF, ZERO, ONE), NAN),
        ("fma.rp.f32", (INF, ONE, NINF), NAN),
        ("fma.rn.f32", (0x7F7FFFFF, 0x7F7FFFFF, NINF), NINF),
        ("mad.rn.f32", (ONE, ONE, ONE), 0x40000000),
        ("fma.rn.f64", (0x7FEFFFFFFFFFFFFF, 0xFFEFFFFFFFFFFFFF, 0x7FF0 << 48), 0x7FF0 << 48),
        ("div.rn.f32", (ONE, NZERO), NINF),
        ("div.rn.f32", (ZERO, ZERO), NAN),
        ("sqrt.rn.f32", (NZERO,), NZERO),
        ("sqrt.rn.f32", (NONE,), NAN),
        ("rcp.rn.f32", (NZERO,), NINF),
        ("rcp.rm.f64", (0xFFF0 << 48,), 1 << 63),
        ("add.rm.f32", (ONE, NONE), NZERO),
        ("add.rm.f32", (ZERO, ZERO), ZERO),
        ("add.rn.f32", (ONE, NONE), ZERO),
        ("add.f16", (0x7C00, 0xFC00), 0x7FFF),
        ("fma.rn.bf16", (0x7F80, 0x0000, 0x3F80), 0x7FFF),
        ("add.sat.f32", (ONE, ONE), ONE),
        ("add.sat.f32", (NONE, ZERO), ZERO),
        ("mul.sat.f32", (NZERO, ONE), ZERO),
        ("fma.rn.sat.f32", (NAN, ONE, ONE), ZERO),
        ("fma.rn.sat.f32", (0x3F000000, ONE, ZERO), 0x3F000000),
        ("fma.rn.sat.f16", (0x3C00, 0x4000, 0x0000), 0x3C00),
        ("fma.rn.relu.f16", (0xBC00, 0x3C00, 0x0000), 0x0000),
        ("fma.rn.relu.f16", (0xFE00, 0x3C00, 0x0000), 0x7FFF),
        ("fma.rn.relu.bf16", (0x3F80, 0x3F80, 0x3F80), 0x4000),
        ("fma.rn.relu.bf16x2", (0xBF803F80, 0x3F803F80, 0x80000000), 0x00003F80),
        ("neg.f32", (ONE,), NONE),
        ("neg.f32", (SIGNALING,), NAN),
        ("neg.ftz.f32", (0x00000001,), NZERO),
        ("abs.f16x2", (0xBC008001,), 0x3C000001),
        ("abs.ftz.f16x2", (0xBC008001,), 0x3C000000),
        ("neg.bf16", (0x3F80,), 0xBF80),
        ("abs.f64", (0xBFF0 << 48,), 0x3FF0 << 48),
        ("copysign.f32", (NONE, 0x40000000), 0xC0000000),
        ("copysign.f64", (0, 0xBFF0 << 48), 0x3FF0 << 48),
    ],
)
def test_special_values(opcode, lanes, result):
    assert hex(run(opcode, *lanes)) == hex(result)


@pytest.mark.parametrize(
    ("opcode", "lanes", "result"),
    [  # recorded from an H200. Results are flushed if they are subnormal with the exponent unbounded.
        ("mul.rn.ftz.f32", (0x00800000, 0x3F7FFFFF), 0x00000000),
        ("mul.rn.ftz.f32", (0x3F7FAC75, 0x008029D3), 0x00800000),
        ("mul.rm.ftz.f32", (0x00800000, 0xBF7FFFFF), 0x80000000),
        ("mul.rp.ftz.f32", (0x3F7FFFFE, 0x00800001), 0x00800000),
        ("mul.rn.ftz.sat.f32", (0x00800000, 0x3F7FFFFF), 0x00000000),
        ("fma.rn.ftz.f32", (0x80800000, 0x00800000, 0x00800000), 0x00800000),
        ("fma.rn.ftz.f32", (0xBEFFFFFF, 0x01000000, 0x00000001), 0x80000000),
        ("fma.rp.ftz.f32", (0x3F53072F, 0x009B4726, 0x00000001), 0x00800000),
        ("div.rn.ftz.f32", (0x3F7FFFFF, 0x7E800000), 0x00000000),
        ("div.rm.ftz.f32", (0x80800001, 0x3F800002), 0x80000000),
        ("rcp.rp.ftz.f32", (0x7E800001,), 0x00000000),
        ("mul.rn.ftz.f16", (0x3BFE, 0x0401), 0x0400),
        ("mul.rn.ftz.f16x2", (0x04000400, 0xBBFF3BFF), 0x80000000),
        ("fma.rn.ftz.f16x2", (0x84008400, 0x04000400, 0x04000200), 0x04008000),
        ("div.approx.ftz.f32", (0x3F7FFFFF, 0xFE800000), 0x80000000),
    ],
)
def test_flush_of_results_as_the_h200_does_it(opcode, lanes, result):
    assert hex(run(opcode, *lanes)) == hex(result)


def test_ftz_flushes_operands():
    subnormal = 0x007FFFFF
    assert run("add.ftz.f32", subnormal, 0x80000000) == 0 and run("add.f32", subnormal, 0x80000000) == subnormal
    assert run("fma.rn.ftz.f32", subnormal, 0x7F000000, 0) == 0
    assert run("add.ftz.f16", 0x83FF, 0x8000) == 0x8000 and run("add.f16", 0x83FF, 0x8000) == 0x83FF
    assert run("max.ftz.f32", subnormal, 0x80000001) == 0 and run("max.f32", subnormal, 0x80000001) == subnormal
    assert run("rcp.approx.ftz.f32", 0x80000001) == NINF


def test_operands_are_left_alone():
    """The emulator's registers share these arrays."""
    for opcode in ("add.ftz.sat.f32", "max.NaN.xorsign.abs.f32", "neg.f32", "fma.rn.f32x2", "fma.rn.ftz.relu.f16x2"):
        arity = {"add": 2, "max": 2, "neg": 1, "fma": 3}[opcode.split(".")[0]]
        word = np.uint64 if "f32x2" in opcode else np.uint32
        lanes = [np.array([0x7F800001, 0x00000001, 0xBF800000, 0xFFFFFFFF], word) for _ in range(arity)]
        before = [x.copy() for x in lanes]
        result = operation(opcode)(*lanes)
        assert not any(np.shares_memory(result, x) for x in lanes)
        result[:] = 0
        assert all(np.array_equal(x, y) for x, y in zip(lanes, before))


# ---- packed and mixed types ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opcode", "arity"),
    [
        ("add.rn.ftz.f32x2", 2),
        ("fma.rz.f32x2", 3),
        ("fma.rn.f16x2", 3),
        ("mul.bf16x2", 2),
        ("max.NaN.bf16x2", 2),
        ("min.f16x2", 2),
        ("neg.f16x2", 1),
        ("ex2.approx.f16x2", 1),
        ("tanh.approx.bf16x2", 1),
    ],
)
def test_packed_types_are_two_elements(opcode, arity):
    rng = np.random.default_rng(6)
    bits = 64 if "f32x2" in opcode else 32
    registers = [rng.integers(0, 1 << bits, 64, dtype=np.uint64).astype(f"u{bits // 8}") for _ in range(arity)]
    strided = [np.repeat(r, 2)[::2] for r in registers]
    result = operation(opcode)(*strided)
    scalar = operation(opcode.removesuffix("x2"))
    half = np.dtype(f"u{bits // 16}").type
    low = scalar(*[r.astype(half) for r in registers])
    high = scalar(*[(r >> r.dtype.type(bits // 2)).astype(half) for r in registers])
    assert result.dtype == registers[0].dtype
    assert np.array_equal(result, (high.astype(result.dtype) << result.dtype.type(bits // 2)) | low)


def test_mixed_precision_converts_all_but_the_last_operand():
    half, bf16 = np.array([0x3C01], np.uint16), np.array([0x4040], np.uint16)
    c = np.array([0x40000000], np.uint32)
    assert operation("add.rn.f32.f16")(half, c)[0] == code(3 + 2.0**-10, F32)
    assert operation("sub.f32.bf16")(bf16, c)[0] == code(1.0, F32)
    assert operation("fma.rn.sat.f32.bf16")(bf16, bf16, c)[0] == ONE
    assert operation("fma.rz.f32.f16")(half, half, c)[0] == code((1 + 2.0**-10) ** 2 + 2, F32)


# ---- minimum and maximum ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opcode", "lanes", "result"),
    [
        ("max.f32", (ZERO, NZERO), ZERO),
        ("max.f32", (NZERO, ZERO), ZERO),
        ("min.f32", (ZERO, NZERO), NZERO),
        ("min.f32", (NZERO, ZERO), NZERO),
        ("max.f32", (NAN, NONE), NONE),
        ("max.f32", (NONE, SIGNALING), NONE),
        ("min.f32", (SIGNALING, 0xFFFFFFFF), NAN),
        ("min.NaN.f32", (ONE, SIGNALING), NAN),
        ("max.NaN.f32", (0xFFC00000, ONE), NAN),
        ("max.xorsign.abs.f32", (NONE, 0x40000000), 0xC0000000),
        ("max.xorsign.abs.f32", (NONE, 0xC0000000), 0x40000000),
        ("min.xorsign.abs.f32", (NONE, 0x40000000), NONE),
        ("min.xorsign.abs.f32", (NONE, NAN), NONE),
        ("min.NaN.xorsign.abs.f32", (NONE, NAN), NAN),
        ("max.f32", (ONE, NAN, 0x40000000), 0x40000000),
        ("max.NaN.f32", (ONE, NAN, 0x40000000), NAN),
        ("min.abs.f32", (0xC0000000, NONE, 0x40400000), ONE),
        ("max.f64", (1 << 63, 0), 0),
        ("max.f16", (0x3C00, 0xC000), 0x3C00),
        ("min.bf16x2", (0x3F80BF80, 0x40007FFF), 0x3F80BF80),
    ],
)
def test_min_and_max(opcode, lanes, result):
    assert hex(run(opcode, *lanes)) == hex(result)


@pytest.mark.parametrize("type_name", TYPES)
def test_min_and_max_choose_by_value(type_name):
    fmt = TYPES[type_name]
    a, b = operands("add", fmt, 500)
    x, y = formats.decode(a, fmt), formats.decode(b, fmt)
    differ = x != y
    assert np.array_equal(operation(f"max.{type_name}")(a, b)[differ], np.where(x > y, a, b)[differ])
    assert np.array_equal(operation(f"min.{type_name}")(a, b)[differ], np.where(x > y, b, a)[differ])


# ---- approximations -----------------------------------------------------------------------------------------------------

REFERENCE = {
    "rcp": lambda x: 1 / x,
    "sqrt": math.sqrt,
    "rsqrt": lambda x: 1 / math.sqrt(x),
    "ex2": lambda x: 2.0**x,
    "lg2": math.log2,
    "tanh": math.tanh,
    "sin": math.sin,
    "cos": math.cos,
}


@pytest.mark.parametrize("name", REFERENCE)
def test_approximations_are_the_nearest_numbers(name):
    rng = np.random.default_rng(7)
    x = np.concatenate([rng.uniform(0.01, 20, 500), np.exp(rng.uniform(-80, 80, 500)), [1, 0.5, 2, 2.0**-140]])
    if name in ("ex2", "sin", "cos", "tanh"):
        x = np.concatenate([rng.uniform(-126, 126, 1000), rng.uniform(-1, 1, 1000), [0, 1, -1]])
    x = x.astype(np.float32)
    result = operation(f"{name}.approx.f32")(x.view(np.uint32)).view(np.float32)
    expected = np.array([REFERENCE[name](v) for v in x.tolist()])
    nearest = expected.astype(np.float32)
    spacing = np.spacing(np.abs(nearest)).astype(np.float64)
    assert np.all((np.abs(result - expected) <= 0.5001 * spacing) | (result == nearest))
    for type_name in {"ex2": ("f16", "ftz.bf16"), "tanh": ("f16", "bf16")}.get(name, ()):
        fmt = TYPES[type_name.split(".")[-1]]
        codes = formats.encode(rng.uniform(-8, 8, 2000), fmt)
        got = formats.decode(operation(f"{name}.approx.{type_name}")(codes), fmt)
        values = np.array([REFERENCE[name](v) for v in formats.decode(codes, fmt).tolist()])
        assert np.array_equal(got, formats.decode(formats.encode(values, fmt), fmt))


@pytest.mark.parametrize(
    ("opcode", "table"),
    [  # the corner cases the PTX ISA lists
        ("rcp.approx.f32", {NINF: NZERO, NZERO: NINF, ZERO: INF, INF: ZERO, SIGNALING: NAN}),
        ("sqrt.approx.f32", {NINF: NAN, NONE: NAN, NZERO: NZERO, ZERO: ZERO, INF: INF, SIGNALING: NAN}),
        ("rsqrt.approx.f32", {NINF: NAN, NONE: NAN, NZERO: NINF, ZERO: INF, INF: ZERO, NAN: NAN}),
        ("ex2.approx.f32", {NINF: ZERO, NZERO: ONE, ZERO: ONE, INF: INF, NAN: NAN, 0x43000000: INF}),
        ("ex2.approx.ftz.f32", {0x807FFFFF: ONE, 0xC2FE0000: ZERO, 0xC2FC0000: 0x00800000}),
        ("lg2.approx.f32", {NINF: NAN, NONE: NAN, NZERO: NINF, ZERO: NINF, INF: INF, NAN: NAN, 1: 0xC3150000}),
        ("lg2.approx.ftz.f32", {1: NINF}),
        ("tanh.approx.f32", {NINF: NONE, NZERO: NZERO, ZERO: ZERO, INF: ONE, NAN: NAN, 1: 1}),
        ("sin.approx.f32", {NINF: NAN, NZERO: NZERO, ZERO: ZERO, INF: NAN, NAN: NAN}),
        ("cos.approx.f32", {NINF: NAN, NZERO: ONE, ZERO: ONE, INF: NAN, NAN: NAN}),
        ("ex2.approx.ftz.bf16", {0xFF80: 0, 0x807F: 0x3F80, 0x8000: 0x3F80, 0x7F80: 0x7F80, 0xFFFF: 0x7FFF, 0xC2FE: 0}),
        ("ex2.approx.f16", {0xFC00: 0, 0x8000: 0x3C00, 0x7C00: 0x7C00, 0x7C01: 0x7FFF, 0xCE00: 0x0001}),
        ("tanh.approx.f16", {0xFC00: 0xBC00, 0x8000: 0x8000, 0x7C00: 0x3C00, 0xFFFF: 0x7FFF}),
    ],
)
def test_corner_cases_of_approximations(opcode, table):
    assert {hex(x): hex(run(opcode, x)) for x in table} == {hex(x): hex(y) for x, y in table.items()}


def test_approximate_division():
    above = 0x7E800001  # just above 2^126
    assert run("div.approx.f32", ONE, 0x40000000) == run("div.full.f32", ONE, 0x40000000) == 0x3F000000
    assert run("div.approx.f32", ONE, above) == ZERO and run("div.approx.f32", NONE, above) == NZERO
    assert run("div.approx.f32", INF, above) == NAN and run("div.full.f32", INF, above) == INF
    assert run("div.full.f32", 0x7F000000, above) == 0x3FFFFFFE
    assert run("div.approx.f32", ONE, INF) == ZERO and run("div.approx.f32", ONE, NZERO) == NINF
    assert run("rsqrt.approx.f64", 0x4010 << 48) == 0x3FE0 << 48


# ---- comparisons --------------------------------------------------------------------------------------------------------

ORDERED = {
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
}


def compared(relation: str, x: float, y: float) -> bool:
    is_nan = math.isnan(x) or math.isnan(y)
    if relation in ("num", "nan"):
        return is_nan == (relation == "nan")
    return relation.endswith("u") if is_nan else ORDERED[relation.removesuffix("u")](x, y)


@pytest.mark.parametrize("type_name", TYPES)
def test_comparisons(type_name):
    fmt = TYPES[type_name]
    values = [0.0, -0.0, 1.0, -1.0, 1.5, math.inf, -math.inf, math.nan]
    pairs = list(itertools.product(values, values))
    a, b = (formats.encode(np.array(column), fmt) for column in zip(*pairs))
    assert len(floatmath.COMPARE) == 14
    for relation in floatmath.COMPARE:
        expected = [compared(relation, x, y) for x, y in pairs]
        assert comparison(relation, type_name)(a, b).tolist() == expected, relation


def test_comparison_flushes_and_unpacks():
    a, b = np.array([0x00000001], np.uint32), np.array([0x80000000], np.uint32)
    assert comparison("gt", "f32")(a, b)[0] and not comparison("gt", "f32", True)(a, b)[0]
    pair = comparison("lt", "f16x2")(np.array([0x3C004000], np.uint32), np.array([0x40003C00], np.uint32))
    assert pair.tolist() == [[False, True]]  # lower element first
    assert comparison("nan", "bf16x2")(np.array([0x7FFF3F80], np.uint32), b).tolist() == [[False, True]]


def test_property_tests():
    table = {  # finite, infinite, number, notanumber, normal, subnormal
        ZERO: "101010",
        NZERO: "101010",
        NONE: "101010",
        0x00800000: "101010",
        0x807FFFFF: "101001",
        0x00000001: "101001",
        0x7F7FFFFF: "101010",
        NINF: "011000",
        INF: "011000",
        SIGNALING: "000100",
        NAN: "000100",
    }
    names = ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    codes = np.array(list(table), np.uint32)
    got = np.array([property_test(name, "f32")(codes) for name in names]).T
    assert ["".join("01"[int(v)] for v in lane) for lane in got] == list(table.values())
    assert property_test("subnormal", "f64")(np.array([1, 0, 0x0010 << 48], np.uint64)).tolist() == [True, False, False]


def test_predicate_values():
    predicate = np.array([True, False])
    table = {
        "f32": ONE,
        "f16": 0x3C00,
        "bf16": 0x3F80,
        "u32": 0xFFFFFFFF,
        "s32": 0xFFFFFFFF,
        "u16": 0xFFFF,
        "s16": 0xFFFF,
    }
    for type_name, value in table.items():
        written = predicate_value(predicate, type_name)
        assert written.tolist() == [value, 0] and written.dtype.itemsize == int(type_name.lstrip("bfsu")) // 8


# ---- opcodes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opcode",
    [
        "add.s32",
        "add",
        "foo.f32",
        "fma.f32",
        "fma.rn.rz.f32",
        "fma.rn.oob.f16",
        "add.rz.f16",
        "add.ftz.bf16",
        "add.ftz.f64",
        "fma.rn.sat.f32x2",
        "fma.rn.relu.f32",
        "sqrt.f32",
        "sqrt.approx.rn.f32",
        "rcp.approx.ftz.f64",
        "ex2.f32",
        "lg2.approx.f16",
        "tanh.approx.ftz.f32",
        "max.rn.f32",
        "max.NaN.f64",
        "min.xorsign.f32",
        "mul.f32.bf16",
        "add.f16.f32",
        "neg.sat.f32",
    ],
)
def test_unknown_forms_are_refused(opcode):
    with pytest.raises(ValueError, match="known here|no form of"):
        operation(opcode)


def test_three_operands_take_no_xorsign():
    with pytest.raises(ValueError, match="3 operands"):
        run("max.xorsign.abs.f32", ONE, ONE, ONE)


def test_shapes_are_kept():
    for shape in ((1,), (4, 32), (0,)):
        lanes = np.full(shape, ONE, np.uint32)
        for opcode, arity in (("add.f32", 2), ("fma.rn.ftz.f32", 3), ("ex2.approx.ftz.f32", 1), ("fma.rn.bf16x2", 3)):
            assert operation(opcode)(*[lanes] * arity).shape == shape
