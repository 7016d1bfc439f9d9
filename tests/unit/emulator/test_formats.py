"""Number formats against references that do not round by counting steps: tables of all codes, torch, exact integers."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from quack.emulator import formats
from quack.emulator.formats import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    F16,
    F32,
    F64,
    TF32,
    UE4M3,
    UE8M0,
    FloatFormat,
    Rounding,
)

SMALL = (E4M3, E5M2, E2M3, E3M2, E2M1, UE4M3)
ROUNDINGS = (Rounding.RN, Rounding.RNA, Rounding.RZ, Rounding.RP, Rounding.RM)
TORCH = {
    F16: torch.float16,
    BF16: torch.bfloat16,
    E4M3: torch.float8_e4m3fn,
    E5M2: torch.float8_e5m2,
    UE8M0: torch.float8_e8m0fnu,
}


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


def by_name(fmt: FloatFormat) -> str:
    return fmt.name


def random_f32(count: int, seed: int = 0) -> np.ndarray:
    """All exponents, most values near 1, and the edges."""
    rng = np.random.default_rng(seed)
    anywhere = rng.integers(0, 1 << 32, count // 2, dtype=np.uint32).view(np.float32)
    near_one = (rng.standard_normal(count // 2) * 10.0 ** rng.integers(-4, 4, count // 2)).astype(np.float32)
    edges = np.array(
        [0x0, 0x1, 0x7FFFFF, 0x800000, 0x3F800000, 0x477FE000, 0x477FF000, 0x477FEFFF, 0x7F7F7FFF, 0x7F7F8000]
        + [0x7F7F0000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x33000000, 0x33000001, 0x387FC000],
        np.uint32,
    )
    return np.concatenate([anywhere, near_one, edges.view(np.float32), (edges | 1 << 31).view(np.float32)])


# ---- decoding ---------------------------------------------------------------------------------------------------------


def value_of(code: int, fmt: FloatFormat) -> float:
    """Value by definition, without special codes."""
    mantissa = code & ((1 << fmt.mantissa_bits) - 1)
    exponent = (code >> fmt.mantissa_bits) & ((1 << fmt.exponent_bits) - 1)
    scale = Fraction(1, 1 << fmt.mantissa_bits)
    if exponent == 0 and fmt is not UE8M0:
        magnitude = Fraction(2) ** (1 - fmt.bias) * mantissa * scale
    else:
        magnitude = Fraction(2) ** (exponent - fmt.bias) * (1 + mantissa * scale)
    return -float(magnitude) if code & fmt.sign else float(magnitude)


SPECIAL_CODES = {
    E4M3: {0x7F: math.nan, 0xFF: math.nan},
    UE4M3: {0x7F: math.nan},
    UE8M0: {0xFF: math.nan},
    E5M2: {s | c: v for s in (0, 0x80) for c, v in ((0x7D, math.nan), (0x7E, math.nan), (0x7F, math.nan))}
    | {0x7C: math.inf, 0xFC: -math.inf},
}


@pytest.mark.parametrize("fmt", (*SMALL, UE8M0), ids=by_name)
def test_decode_every_code_of_the_small_formats(fmt):
    codes = np.arange(1 << fmt.bits, dtype=np.uint8)
    expected = [SPECIAL_CODES.get(fmt, {}).get(int(c), value_of(int(c), fmt)) for c in codes]
    np.testing.assert_array_equal(formats.decode(codes, fmt), np.array(expected, np.float32))
    assert np.array_equal(np.signbit(formats.decode(codes, fmt)), [bool(c & fmt.sign) for c in codes.tolist()])


def test_values_the_isa_names():
    assert formats.decode(np.arange(8, dtype=np.uint8), E2M1).tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    largest = {E4M3: 448, E5M2: 57344, E2M3: 7.5, E3M2: 28, E2M1: 6, UE4M3: 448, UE8M0: 2.0**127, F16: 65504}
    for fmt, value in largest.items():
        assert formats.decode(np.array([fmt.largest], fmt.dtype), fmt)[0] == value
    assert {f.name: f.nan for f in (F32, F16, BF16, TF32, E4M3, E5M2, UE8M0, UE4M3)} == {
        "f32": 0x7FFFFFFF,
        "f16": 0x7FFF,
        "bf16": 0x7FFF,
        "tf32": 0x7FFFE000,
        "e4m3": 0x7F,
        "e5m2": 0x7F,
        "ue8m0": 0xFF,
        "ue4m3": 0x7F,
    }


@pytest.mark.parametrize("fmt", TORCH, ids=by_name)
def test_decode_agrees_with_torch(fmt):
    codes = np.arange(1 << fmt.bits, dtype=fmt.dtype)
    expected = torch.from_numpy(codes.view(f"i{codes.itemsize}")).view(TORCH[fmt]).float().numpy()
    np.testing.assert_array_equal(formats.decode(codes, fmt), expected)


def test_decode_ignores_bits_beyond_the_format():
    assert formats.decode(np.array([0x3F801FFF], np.uint32), TF32)[0] == 1
    assert formats.decode(np.array([0xF2], np.uint16), E2M1)[0] == 1
    assert formats.decode(np.array([0xB8], np.uint8), UE4M3)[0] == 1


# ---- encoding: every rounding against a search in the table of all codes -------------------------------------------------


def search(values: np.ndarray, fmt: FloatFormat, rounding: Rounding, saturate: bool) -> np.ndarray:
    """Codes for float64 `values` that are not NaN, found among the magnitudes of all finite codes."""
    shift = fmt.unused_bits
    table = formats.decode(np.arange((fmt.largest >> shift) + 1).astype(fmt.dtype) << shift, fmt).astype(np.float64)
    step = table[-1] - table[-2]
    table = np.append(table, table[-1] + step if fmt is not UE8M0 else 2.0**128)  # what overflow rounds to
    magnitude, negative = np.abs(values), np.signbit(values)
    if not fmt.is_signed:
        negative = np.zeros_like(negative)
    below = np.clip(np.searchsorted(table, magnitude, side="right") - 1, 0, len(table) - 2)
    low, high = table[below], table[below + 1]
    distance_up, distance_down = high - magnitude, magnitude - low
    up = {
        Rounding.RN: (distance_up < distance_down) | ((distance_up == distance_down) & (below % 2 == 1)),
        Rounding.RNA: distance_up <= distance_down,
        Rounding.RZ: magnitude >= high,
        Rounding.RP: (magnitude > low) & ~negative | (magnitude >= high),
        Rounding.RM: (magnitude > low) & negative | (magnitude >= high),
    }[rounding]
    code = below + up
    if rounding in (Rounding.RZ, Rounding.RP, Rounding.RM):
        away = {Rounding.RZ: np.zeros_like(negative), Rounding.RP: ~negative, Rounding.RM: negative}[rounding]
        finite_stays = np.isfinite(values) & ~away
        code[(code == len(table) - 1) & finite_stays] -= 1
    if saturate:
        code = np.minimum(code, len(table) - 2)
    return ((code << shift) | np.where(negative, fmt.sign, 0)).astype(fmt.dtype)


def values_around(fmt: FloatFormat, stride: int = 1) -> np.ndarray:
    """float32: every number of `fmt`, every midpoint, their neighbours, beyond the largest, infinity; of both signs."""
    shift = fmt.unused_bits
    numbers = formats.decode(np.arange(0, (fmt.largest >> shift) + 1, stride).astype(fmt.dtype) << shift, fmt)
    largest = formats.decode(np.array([fmt.largest - (1 << shift), fmt.largest], fmt.dtype), fmt).astype(np.float64)
    beyond = np.minimum(largest[1] + (largest[1] - largest[0]) * np.array([0.5, 1, 1.5, 4]), 2.0**127 * 1.9999999)
    numbers = np.concatenate([numbers, beyond.astype(np.float32)])
    middle = ((numbers[:-1].astype(np.float64) + numbers[1:]) / 2).astype(np.float32)
    points = np.concatenate([numbers, middle])
    up, down = np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(0))
    extremes = np.array([np.inf, 3e38, 1e-45, 1e-38], np.float32)
    magnitudes = np.concatenate([points, up, down, extremes])
    return np.concatenate([magnitudes, -magnitudes])


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("fmt", (*SMALL, F16, BF16, TF32), ids=by_name)
def test_encode_numbers_midpoints_and_neighbours(fmt, rounding):
    values = values_around(fmt, 97 if fmt is TF32 else 1)
    for saturate in (True, False) if fmt.nan else (True,):
        expected = search(values.astype(np.float64), fmt, rounding, saturate)
        if fmt.specials is formats.Specials.NAN:
            beyond = (expected & fmt.magnitude) > fmt.largest
            expected[beyond] = fmt.nan | (expected[beyond] & fmt.sign)
        np.testing.assert_array_equal(formats.encode(values, fmt, rounding, saturate), expected)
        np.testing.assert_array_equal(formats.encode(values.astype(np.float64), fmt, rounding, saturate), expected)
        if fmt.is_signed:
            clamped = np.where(expected & fmt.sign, 0, expected)
            np.testing.assert_array_equal(formats.encode(values, fmt, rounding, saturate, relu=True), clamped)


@pytest.mark.parametrize("fmt", (F16, BF16), ids=by_name)
def test_every_code_survives_a_round_trip(fmt):
    codes = np.arange(1 << 16, dtype=np.uint16)
    values = formats.decode(codes, fmt)
    expected = np.where(np.isnan(values), fmt.nan, codes)
    for rounding in ROUNDINGS:
        np.testing.assert_array_equal(formats.encode(values, fmt, rounding), expected)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("fmt", (F16, BF16, TF32, *SMALL), ids=by_name)
def test_encode_random_numbers(fmt, rounding):
    values = random_f32(20_000, seed=1)
    values = values[~np.isnan(values)]
    expected = search(values.astype(np.float64), fmt, rounding, saturate=True)
    np.testing.assert_array_equal(formats.encode(values, fmt, rounding, saturate=True), expected)


@pytest.mark.parametrize("fmt", (F16, BF16, E5M2, E4M3), ids=by_name)
def test_encode_to_nearest_agrees_with_torch(fmt):
    values = random_f32(100_000)
    if fmt is E4M3:
        values = values[~(np.abs(values) > 448)]  # what torch makes of overflow depends on its version
    converted = torch.from_numpy(values).to(TORCH[fmt])
    expected = converted.view(torch.int16 if fmt.bits == 16 else torch.uint8).numpy().view(fmt.dtype)
    expected = np.where(np.isnan(values), fmt.nan, expected)
    np.testing.assert_array_equal(formats.encode(values, fmt), expected)


@pytest.mark.parametrize("fmt", (F32, TF32, F16, BF16, E4M3), ids=by_name)
def test_float64_is_rounded_once(fmt):
    """A midpoint and something below the precision of float32: rounding through float32 would lose it."""
    one_and_half_step = 1 + 2.0 ** -(fmt.mantissa_bits + 1)
    one = formats.encode(np.ones(1), fmt)[0]
    above, tie = formats.encode(np.array([one_and_half_step + 2.0**-50, one_and_half_step]), fmt)
    assert tie == one and above == one + (1 << fmt.unused_bits)


def test_float64_to_f32_in_every_direction():
    values = np.array([1 + 2.0**-24, 1 + 3 * 2.0**-24, 1 + 2.0**-30, 2.0**-149 * 0.75, 2.0**-150, 3.5e38, 2.0**128])
    values = np.concatenate([values, -values])
    for rounding in (Rounding.RZ, Rounding.RP, Rounding.RM):
        results = formats.encode(values, F32, rounding).view(np.float32)
        for value, result in zip(values.tolist(), results):
            toward = {Rounding.RZ: 0.0, Rounding.RP: math.inf, Rounding.RM: -math.inf}[rounding]
            upward = toward > value or (rounding is Rounding.RZ and value < 0)
            assert float(result) >= value if upward else float(result) <= value
            previous = float(np.nextafter(result, np.float32(-math.inf if upward else math.inf)))
            assert previous < value if upward else previous > value


# ---- special values and modifiers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", formats.FORMATS.values(), ids=by_name)
def test_nan_becomes_the_canonical_nan_or_the_largest_number(fmt):
    nans = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    expected = fmt.largest if fmt in (E2M1, E2M3, E3M2) else fmt.nan
    for values in (nans, nans.astype(np.float64)):
        for relu in (False, True) if fmt not in (F32, F64) else (False,):
            saturate = fmt not in (F32, F64)
            assert set(formats.encode(values, fmt, saturate=saturate, relu=relu).tolist()) == {expected}


def test_infinity_and_overflow():
    values = np.array([np.inf, -np.inf, 1e38], np.float32)
    assert formats.encode(values, F16).tolist() == [0x7C00, 0xFC00, 0x7C00]
    assert formats.encode(values, F16, saturate=True).tolist() == [0x7BFF, 0xFBFF, 0x7BFF]
    assert formats.encode(values, F16, Rounding.RZ).tolist() == [0x7C00, 0xFC00, 0x7BFF]
    assert formats.encode(values, BF16, saturate=True).tolist() == [0x7F7F, 0xFF7F, 0x7E96]
    assert formats.encode(values, TF32, Rounding.RNA, saturate=True).tolist() == [
        0x7F7FE000,
        0xFF7FE000,
        0x7E968000,
    ]
    assert formats.encode(values, E4M3).tolist() == [0x7F, 0xFF, 0x7F]
    assert formats.encode(values, E4M3, saturate=True).tolist() == [0x7E, 0xFE, 0x7E]
    assert formats.encode(values, E5M2).tolist() == [0x7C, 0xFC, 0x7C]
    assert formats.encode(values, E2M1, saturate=True).tolist() == [0x7, 0xF, 0x7]


def test_what_no_conversion_offers_is_refused():
    values = np.ones(1, np.float32)
    for fmt in (E2M1, E2M3, E3M2):
        with pytest.raises(ValueError, match="satfinite"):
            formats.encode(values, fmt)
    with pytest.raises(ValueError, match="integral"):
        formats.encode(values, F16, Rounding.RNI)
    with pytest.raises(ValueError, match="random bits"):
        formats.encode(values, E4M3, Rounding.RS, True, random_bits=np.zeros(1, np.uint32))
    with pytest.raises(ValueError, match="random bits"):
        formats.encode(values, BF16, Rounding.RS)
    with pytest.raises(ValueError, match="relu"):
        formats.encode(values, F32, relu=True)
    with pytest.raises(ValueError, match="the same"):
        formats.converter(F32, F16, Rounding.RZI)


@pytest.mark.parametrize(
    ("value", "toward_zero", "upward"),
    [  # code 0 is 2^-127; the sign is dropped; cuda_fp8.hpp has the same rules
        (0.0, 0, 0),
        (2.0**-140, 0, 0),
        (2.0**-127, 0, 0),
        (1.5 * 2.0**-127, 0, 1),
        (2.0**-126, 1, 1),
        (1.0, 127, 127),
        (1.0000001, 127, 128),
        (1.9999999, 127, 128),
        (-3.0, 128, 129),
        (2.0**127, 254, 254),
        (1.5 * 2.0**127, 254, None),
        (math.inf, None, None),
    ],
)
def test_ue8m0(value, toward_zero, upward):
    """None: NaN, or the largest number with .satfinite."""
    for rounding, code in ((Rounding.RZ, toward_zero), (Rounding.RP, upward)):
        for saturate, beyond in ((False, 0xFF), (True, 0xFE)):
            for dtype in (np.float32, np.float64):
                encoded = formats.encode(np.array([value], dtype), UE8M0, rounding, saturate)[0]
                assert encoded == (beyond if code is None else code)


@pytest.mark.parametrize(("fmt", "bits"), [(BF16, 16), (F16, 13)], ids=["bf16", "f16"])
def test_stochastic_rounding_carries_from_the_random_bits(fmt, bits):
    """All random numbers: as many round up as the discarded bits say."""
    random = np.arange(1 << bits, dtype=np.uint32)
    for discarded in (0, 1, 5 << (bits - 4), (1 << bits) - 1):
        for sign in (0, 1 << 31):
            raw = sign | 0x3FC00000 | discarded
            codes = formats.encode(
                np.full(random.shape, raw, np.uint32).view(np.float32), fmt, Rounding.RS, random_bits=random
            )
            down = formats.encode(np.array([raw], np.uint32).view(np.float32), fmt, Rounding.RZ)[0]
            assert np.array_equal(codes == down + 1, random + discarded >= 1 << bits)
            assert np.count_nonzero(codes == down) == (1 << bits) - discarded
    largest = formats.decode(np.array([fmt.largest], np.uint16), fmt)
    nearly = np.nextafter(largest, np.float32(np.inf)).repeat(2)
    codes = formats.encode(nearly, fmt, Rounding.RS, random_bits=np.array([0, (1 << bits) - 1], np.uint32))
    assert codes.tolist() == [fmt.largest, fmt.infinity]
    a, b = formats.random_bits_of(np.array([0xFFFF2001], np.uint32), fmt)
    assert (a[0], b[0]) == ((1 << bits) - 1, 0x2001 & ((1 << bits) - 1))


# ---- cvt ------------------------------------------------------------------------------------------------------------------


def convert(bits: int, source: FloatFormat, target: FloatFormat, *args, **modifiers) -> int:
    return int(formats.converter(source, target, *args, **modifiers)(np.array([bits], source.dtype))[0])


def test_converter_between_formats():
    codes = np.arange(256, dtype=np.uint8)
    halves = formats.converter(E4M3, F16)(codes)
    expected = formats.decode(codes, E4M3)
    np.testing.assert_array_equal(halves.view(np.float16).astype(np.float32), expected)
    assert set(halves[np.isnan(expected)].tolist()) == {0x7FFF}
    assert convert(0x00, UE8M0, BF16) == 0x0040 and convert(0xFF, UE8M0, BF16) == 0x7FFF
    assert convert(0x3C01, F16, F32) == 0x3F802000 and convert(0x3F81, BF16, F32) == 0x3F810000
    assert convert(0x7F81, BF16, F32) == 0x7F810000
    assert convert(0x3F800000, F32, F64) == 0x3FF0 << 48
    assert convert(0xBC00, F16, E4M3, saturate=True, relu=True) == 0
    assert convert(0x7FF8 << 48, F64, F32) == 0x7FFFFFFF


def test_flush_subnormals_keeps_signs_and_the_argument():
    codes = np.array([0, 1, 0x7FFFFF, 0x800000, 0x80000001, 0x80000000, 0x7FC00000], np.uint32)
    flushed = formats.flush_subnormals(codes, F32)
    assert flushed.tolist() == [0, 0, 0, 0x800000, 0x80000000, 0x80000000, 0x7FC00000] and codes[1] == 1
    halves = np.array([0x03FF, 0x0400, 0x8001], np.uint16)
    assert formats.flush_subnormals(halves, F16).tolist() == [0, 0x0400, 0x8000]


def test_converter_flushes_f32_only():
    assert convert(0x80000001, F32, F32, ftz=True) == 0x80000000
    assert convert(0x00400000, F32, F16, Rounding.RP, ftz=True) == 0
    assert convert(0x00400000, F32, F16, Rounding.RP) == 1
    assert convert(0x0001, F16, F32, ftz=True) == 0x33800000
    assert convert(0x0001, BF16, F32, ftz=True) == 0 and convert(0x0001, BF16, F32) == 0x10000
    two_to_minus_127 = 0x3800 << 48
    assert convert(two_to_minus_127, F64, F32, ftz=True) == 0 and convert(two_to_minus_127, F64, F32) == 0x00400000


@pytest.mark.parametrize(
    ("bits", "rounding", "result"),
    [  # recorded from an H200: cvt.{rounding}.ftz.f32.f64 just below the smallest normal number
        (0xB80FFFFFE5000000, Rounding.RN, 0x80000000),
        (0x380FFFFFF8000000, Rounding.RN, 0x00800000),
        (0xB80FFFFFD8000000, Rounding.RM, 0x80000000),
        (0x380FFFFFE0000000, Rounding.RP, 0x00000000),
    ],
)
def test_ftz_rounds_with_an_unbounded_exponent_to_decide(bits, rounding, result):
    assert convert(bits, F64, F32, rounding, ftz=True) == result


def test_converter_clamps_to_the_unit_interval():
    for source, target in ((F32, F32), (F32, F16), (F64, F32), (F64, F64)):
        one = formats.encode(np.ones(1, np.float32), target)[0]
        for value, expected in ((-1.0, 0), (-0.0, 0), (math.nan, 0), (2.0, one), (math.inf, one), (1.0, one)):
            bits = int(formats.encode(np.array([value]), source)[0])
            assert convert(bits, source, target, sat=True) == expected


def test_converter_rounds_to_integral_values():
    values = np.array([0.5, 1.5, -0.5, -1.5, 2.25, -2.75, 1e30, -0.0, 2.0**-149], np.float32)
    expected = {
        Rounding.RNI: [0.0, 2.0, -0.0, -2.0, 2.0, -3.0, 1e30, -0.0, 0.0],
        Rounding.RZI: [0.0, 1.0, -0.0, -1.0, 2.0, -2.0, 1e30, -0.0, 0.0],
        Rounding.RMI: [0.0, 1.0, -1.0, -2.0, 2.0, -3.0, 1e30, -0.0, 0.0],
        Rounding.RPI: [1.0, 2.0, -0.0, -1.0, 3.0, -2.0, 1e30, -0.0, 1.0],
    }
    for rounding, results in expected.items():
        got = formats.converter(F32, F32, rounding)(values.view(np.uint32))
        assert got.tolist() == np.array(results, np.float32).view(np.uint32).tolist()
    assert convert(1, F32, F32, Rounding.RPI, ftz=True) == 0
    assert convert(0x7F800001, F32, F32, Rounding.RNI) == 0x7FFFFFFF


INTEGERS = [(bits, signed) for bits in (8, 16, 32, 64) for signed in (False, True)]
TO_INTEGER = {
    Rounding.RNI: round,
    Rounding.RZI: math.trunc,
    Rounding.RMI: math.floor,
    Rounding.RPI: math.ceil,
}


@pytest.mark.parametrize(("bits", "signed"), INTEGERS)
def test_float_to_int_saturates(bits, signed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    edges = [e + d for e in (float(low), float(high), 0.0, 1.0) for d in (-1.5, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 1.5)]
    rng = np.random.default_rng(2)
    values = np.array([*edges, *(rng.standard_normal(200) * 10.0 ** rng.integers(0, 21, 200)), 1e30, -1e30])
    for rounding, reference in TO_INTEGER.items():
        for typed in (values, values.astype(np.float32)):
            expected = [min(max(reference(float(v)), low), high) % 2**bits for v in typed]
            assert formats.float_to_int(typed, bits, signed, rounding).tolist() == expected
    infinite = formats.float_to_int(np.array([np.inf, -np.inf], np.float32), bits, signed, Rounding.RZI)
    assert infinite.tolist() == [high, low % 2**bits]


@pytest.mark.parametrize(("bits", "signed"), INTEGERS)
def test_nan_to_int(bits, signed):
    """Zero from f32 to at most 32 bits, else only the top bit."""
    of_f32 = formats.float_to_int(np.array([np.nan], np.float32), bits, signed, Rounding.RNI)[0]
    of_f64 = formats.float_to_int(np.array([np.nan]), bits, signed, Rounding.RNI)[0]
    assert of_f64 == 2 ** (bits - 1) and of_f32 == (of_f64 if bits == 64 else 0)


@pytest.mark.parametrize("fmt", (F32, F64, F16, BF16), ids=by_name)
@pytest.mark.parametrize("signed", (False, True))
def test_int_to_float_rounds_once(fmt, signed):
    """The result and its neighbours enclose the integer as the rounding wants; ties go to even."""
    rng = np.random.default_rng(3)
    integers = rng.integers(0, 2**64, 600, dtype=np.uint64) >> rng.integers(0, 64, 600, dtype=np.uint64)
    ties = [(1 << k) + (1 << (k - fmt.mantissa_bits - 1)) + d for k in (55, 60, 62) for d in (-1, 0, 1)]
    edges = np.array([0, 1, 2**63, 2**63 - 1, 2**64 - 1, 2**24 + 1, 2**53 + 1, *ties], np.uint64)
    integers = np.concatenate([integers, edges])
    for rounding in (Rounding.RN, Rounding.RZ, Rounding.RP, Rounding.RM):
        codes = formats.int_to_float(integers, signed, fmt, rounding)
        for raw, code in zip(integers.tolist(), codes.tolist()):
            exact = raw - 2**64 if signed and raw >> 63 else raw
            assert_rounded(exact, code, fmt, rounding)


def assert_rounded(exact: int, code: int, fmt: FloatFormat, rounding: Rounding) -> None:
    """`code` is the magnitude's rounding; largest + 1 counts as one more binade."""
    sign, magnitude = code & fmt.sign, code & ~fmt.sign
    assert bool(sign) == (exact < 0)
    values = [value_of(c, fmt) for c in (max(magnitude - 1, 0), magnitude, magnitude + 1)]
    below, value, above = (Fraction(v) for v in values)
    target = Fraction(abs(exact))
    away = {Rounding.RP: exact > 0, Rounding.RM: exact < 0}.get(rounding, False)
    if rounding is Rounding.RN:
        beyond = magnitude == fmt.infinity and target > value
        assert beyond or abs(value - target) <= min(
            abs(above - target), abs(below - target) if magnitude else target + 1
        )
        if target != value and abs(value - target) == abs(above - target) or abs(value - target) == abs(below - target):
            assert magnitude % 2 == 0 or exact == 0
    elif away:
        assert below < target <= value or (magnitude == fmt.infinity and target > value)
    else:
        assert value <= target < above or (magnitude == fmt.largest and target > value)


@pytest.mark.parametrize(("bits", "signed"), INTEGERS)
def test_narrow_integers_are_read_with_their_sign(bits, signed):
    raw = np.array([0, 1, 2 ** (bits - 1), 2**bits - 1], f"u{bits // 8}")
    expected = [float(v - 2**bits) if signed and v >> (bits - 1) else float(v) for v in raw.tolist()]
    for fmt in (F32, F64):
        got = formats.decode(formats.int_to_float(raw, signed, fmt), fmt)
        assert got.tolist() == [float(np.float32(e)) if fmt is F32 else e for e in expected]


# ---- packing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fmt", "elements", "packed", "dtype"),
    [
        (BF16, (0x3F80, 0x4000), 0x3F804000, np.uint32),
        (E4M3, (0x38, 0xC0), 0x38C0, np.uint16),
        (E2M1, (0x2, 0x9), 0x29, np.uint8),
        (E2M3, (0x21, 0x3F), 0x213F, np.uint16),
        (E2M1, (1, 2, 3, 4), 0x1234, np.uint16),
        (E5M2, (1, 2, 3, 0xFF), 0x010203FF, np.uint32),
        (F32, (0x3F800000, 0x40000000), 0x3F80000040000000, np.uint64),
    ],
)
def test_pack_puts_the_first_element_on_top(fmt, elements, packed, dtype):
    arrays = [np.array([e], fmt.dtype) for e in elements]
    word = formats.pack(arrays, fmt)
    assert word.dtype == dtype and word.tolist() == [packed]
    assert [a.tolist() for a in formats.unpack(word, fmt, len(elements))] == [[e] for e in elements]
    assert [a.dtype for a in formats.unpack(word, fmt, len(elements))] == [fmt.dtype] * len(elements)
