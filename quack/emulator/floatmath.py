"""Floating-point instructions of PTX on raw bits: `operation("fma.rn.ftz.f32")` gives a function of unsigned arrays.

An operand is an array, of at least one dimension, of the type's register width: `uint16` for f16 and bf16, `uint32` for
f32, f16x2 and bf16x2, `uint64` for f64 and f32x2; so is the result, which never shares memory with an operand. Callers run
under `np.errstate(all="ignore")`, as for `formats`.

    add sub mul fma mad    rounded once, in any mode; `mad` is `fma`. Mixed precision: "fma.rn.f32.bf16".
    div rcp sqrt           `.rn .rz .rm .rp`, or `.approx`/`.full`
    rsqrt ex2 lg2 tanh sin cos    `.approx`
    min max                two or three operands; `.NaN`, `.abs`, `.xorsign.abs`
    neg abs copysign
    comparison("ltu", "f32"), property_test("finite", "f32")    give bools; `predicate_value` is what `set` writes

NaN results are canonical (`FloatFormat.nan`), but for copysign; the payload of a f64 NaN is whatever numpy makes it. All but
the approximations and what needs sm_100 (f32x2, mixed precision, three operands) was compared with an H200 on edge cases and
random bits: the same bits everywhere, save for the payloads of f64.

Approximations are computed in float64 and rounded to nearest, so they are better than the hardware's, never worse than the
bounds the PTX ISA (9.0, sections 9.7.3 and 9.7.4) gives the hardware:

    rcp.approx.f32    1 ulp                        div.approx.f32, div.full.f32   2 ulp
    sqrt.approx.f32   relative 2^-23               rsqrt.approx.f32    relative 2^-22.9
    ex2.approx.f32    2 ulp; f16 relative 2^-9.9, bf16 relative 2^-7
    lg2.approx.f32    absolute 2^-22 within (0.5, 2), else relative 2^-22
    tanh.approx.f32   relative 2^-11; f16 absolute 2^-10.987, bf16 absolute 2^-8
    sin, cos.approx.f32    absolute 2^-20.5 within 2 pi, 2^-14.7 within 100 pi
"""

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .formats import (
    BF16,
    F16,
    F32,
    F64,
    Bits,
    FloatFormat,
    Rounding,
    Values,
    clamp_to_unit,
    decoder,
    encoder,
    flusher,
    result_flusher,
)

Operation = Callable[..., Bits]


class FloatType(NamedTuple):
    """A PTX type suffix: `lanes` elements of `fmt` in a register, the lowest first."""

    fmt: FloatFormat
    lanes: int = 1


TYPES = {
    "f64": FloatType(F64),
    "f32": FloatType(F32),
    "f32x2": FloatType(F32, 2),
    "f16": FloatType(F16),
    "f16x2": FloatType(F16, 2),
    "bf16": FloatType(BF16),
    "bf16x2": FloatType(BF16, 2),
}
WIDE = frozenset({"f32", "f64"})
HALVES = frozenset({"f16", "f16x2", "bf16", "bf16x2"})

NEAREST = frozenset({"rn"})
DIRECTED = frozenset({"rn", "rz", "rm", "rp"})
FLUSH = frozenset({"ftz"})
FLUSH_SAT = frozenset({"ftz", "sat"})


# ---- results that round as the exact ones do --------------------------------------------------------------------------
# Every operand but f64 is exact in float64. Each function gives a float64 that any rounding to f32 or narrower takes to
# where it would take the exact result.


def _sum_odd(x: Values, y: Values) -> Values:
    """x + y rounded to odd: of the two neighbours of an inexact sum the one whose last bit is set (Boldo, Melquiond)."""
    total = x + y
    y_part = total - x
    error = (x - (total - y_part)) + (y - y_part)
    bits = total.view(np.int64)
    # NaN and infinite sums have a NaN error, for which neither comparison holds.
    steps = ((error > 0) | (error < 0)) & ((bits & 1) == 0)
    outward = (error > 0) == (total > 0)
    return (bits + (steps & outward) - (steps & ~outward)).view(np.float64)


def _divide(x: Values, y: Values) -> Values:
    """A quotient of 24-bit numbers lies too far from any 25-bit number that it does not equal to be rounded onto it."""
    return x / y


EXACT: dict[str, Callable[..., Values]] = {
    "add": _sum_odd,
    "sub": lambda x, y: _sum_odd(x, -y),
    "mul": np.multiply,  # 24 + 24 bits
    "fma": lambda x, y, z: _sum_odd(x * y, z),
    "div": _divide,
    "rcp": lambda x: _divide(np.ones_like(x), x),
    "sqrt": np.sqrt,  # as for quotients
}
NATIVE: dict[str, Callable[..., Values]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
}
ARITY = {"add": 2, "sub": 2, "mul": 2, "fma": 3, "div": 2, "rcp": 1, "sqrt": 1}

# Computing in float32 and rounding that to nearest again is exact for these: float32 has over twice the bits, a sum in the
# subnormal range of bf16 is exact, and so is a product there that is half of bf16's smallest number or more.
NARROW_BY_F32 = ("add", "sub", "mul")


def _is_minus_zero_rounding_down(name: str, operands: tuple[Values, ...]) -> NDArray[np.bool_]:
    """Where an exact zero sum is -0 under `.rm`: everywhere but for +0 + +0 (IEEE 754, 6.3)."""
    if name == "fma":
        x, y = operands[0] * operands[1], operands[2]
    else:
        x, y = operands[0], operands[1] if name == "add" else -operands[1]
    return (x + y == 0) & (np.signbit(x) | np.signbit(y))


# ---- f64, where no wider type helps -----------------------------------------------------------------------------------

_EXACT_F64: dict[str, Callable[..., Fraction]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "fma": lambda x, y, z: x * y + z,
    "div": lambda x, y: x / y,
    "rcp": lambda x: 1 / x,
}


def _nearest_f64(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def _element_f64(name: str, rounding: Rounding, simple: float, operands: tuple[float, ...]) -> float:
    """One lane in exact rational arithmetic. `simple`: the operation on floats, right where no rounding happens."""
    if not all(map(math.isfinite, operands)) or (name in ("div", "rcp") and operands[-1] == 0):
        return simple
    if name == "sqrt":
        if operands[0] <= 0:
            return simple
        nearest, is_positive = simple, True
        error = Fraction(simple) ** 2 - Fraction(operands[0])
    else:
        exact = _EXACT_F64[name](*map(Fraction, operands))
        if exact == 0:
            return simple
        nearest, is_positive = _nearest_f64(exact), exact > 0
        error = Fraction(nearest) - exact if math.isfinite(nearest) else Fraction(1 if is_positive else -1)
    downward = rounding is Rounding.RM or (rounding is Rounding.RZ and is_positive)
    if rounding is not Rounding.RN and (error > 0 if downward else error < 0):
        nearest = math.nextafter(nearest, -math.inf if downward else math.inf)
    return math.copysign(nearest, 1.0 if is_positive else -1.0)


def _fma_of_specials(x: Values, y: Values, z: Values) -> Values:
    """x * y + z where an operand is infinite or NaN, or the result 0; a finite product that overflows is no infinity."""
    return np.where(np.isinf(z) & np.isfinite(x) & np.isfinite(y), z, x * y + z)


def _slow_f64(name: str, rounding: Rounding) -> Operation:
    """`fma.f64` and the directed roundings of f64: tens of microseconds a lane, rare in the kernels this runs."""

    def run(*bits: Bits) -> Bits:
        operands = tuple(b.view(np.float64) for b in np.broadcast_arrays(*bits))
        simple = _fma_of_specials(*operands) if name == "fma" else NATIVE[name](*operands)
        if rounding is Rounding.RM and name in ("add", "sub", "fma"):
            simple = np.where(_is_minus_zero_rounding_down(name, operands), -0.0, simple)
        lanes = zip(simple.flat, *(o.flat for o in operands))
        results = [_element_f64(name, rounding, float(s), tuple(map(float, o))) for s, *o in lanes]
        return np.array(results).reshape(simple.shape).view(np.uint64)

    return run


# ---- arithmetic -------------------------------------------------------------------------------------------------------


def _rounding_of(modifiers: frozenset[str]) -> Rounding:
    return next((r for r in Rounding if r.value in modifiers), Rounding.RN)


def _arithmetic(name: str, fmt: FloatFormat, modifiers: frozenset[str]) -> Operation:
    """One of ARITY on elements, rounded once."""
    rounding = _rounding_of(modifiers)
    if fmt is F64:
        compute = _native(name, fmt) if rounding is Rounding.RN and name in NATIVE else _slow_f64(name, rounding)
    elif rounding is Rounding.RN and fmt is F32:
        compute = _native(name, fmt) if name in NATIVE else _fma_f32
    elif rounding is Rounding.RN and name in NARROW_BY_F32:
        compute = _through_f32(name, fmt)
    else:
        compute = _through_f64(name, fmt, rounding)
    return _with_modifiers(name, compute, fmt, modifiers)


def _native(name: str, fmt: FloatFormat) -> Operation:
    """Operations that numpy rounds as IEEE 754 asks."""
    function, floats, word = NATIVE[name], {F32: np.float32, F64: np.float64}[fmt], fmt.dtype
    return lambda *bits: function(*[b.view(floats) for b in bits]).view(word)


def _through_f32(name: str, fmt: FloatFormat) -> Operation:
    function, read, write = NATIVE[name], decoder(fmt), encoder(fmt)
    return lambda *bits: write(function(*[read(b) for b in bits]))


def _through_f64(name: str, fmt: FloatFormat, rounding: Rounding) -> Operation:
    function, read, write = EXACT[name], decoder(fmt), encoder(fmt, rounding)
    signs_zero = rounding is Rounding.RM and name in ("add", "sub", "fma")

    def run(*bits: Bits) -> Bits:
        operands = tuple(read(b).astype(np.float64) for b in bits)
        result = write(function(*operands))
        if signs_zero:
            result[_is_minus_zero_rounding_down(name, operands)] = fmt.sign
        return result

    return run


_TIE_BITS = np.array((1 << 29) - 1, np.int64)  # what f32 drops of a float64
_TIE = np.array(1 << 28, np.int64)
_SMALLEST_NORMAL = np.array(2.0**-126)


def _fma_f32(a: Bits, b: Bits, c: Bits) -> Bits:
    """The hot one. Rounding the float64 sum again is wrong only if that sum is a tie of f32 and was itself inexact."""
    product = a.view(np.float32).astype(np.float64)
    product *= b.view(np.float32)
    addend = c.view(np.float32)
    total = product + addend
    suspect = (total.view(np.int64) & _TIE_BITS) == _TIE
    suspect |= np.abs(total) < _SMALLEST_NORMAL  # f32 drops more bits of these
    if b"\1" in suspect.tobytes():  # several times faster than any() on a row
        total = _sum_odd(product, addend.astype(np.float64))
    return total.astype(np.float32).view(np.uint32)


def _with_modifiers(name: str, compute: Operation, fmt: FloatFormat, modifiers: frozenset[str]) -> Operation:
    """`.ftz` of operands, then of the result; canonical NaN; `.relu`; `.sat`. Results of `compute` are its own."""
    ftz, relu, sat = "ftz" in modifiers, "relu" in modifiers, "sat" in modifiers
    flush, flush_result = flusher(fmt), result_flusher(fmt, _rounding_of(modifiers))
    read, mark_nan = decoder(fmt), _nan_marker(fmt)

    def run(*bits: Bits) -> Bits:
        if not ftz:
            result = compute(*bits)
        else:
            operands = [flush(b) for b in bits]
            result = flush_result(
                compute(*operands), lambda: EXACT[name](*[read(o).astype(np.float64) for o in operands])
            )
        mark_nan(result)
        if relu:
            result[result >= fmt.sign] = 0
        return clamp_to_unit(result, fmt) if sat else result

    return run


def _nan_marker(fmt: FloatFormat) -> Callable[[Bits], None]:
    """Write the canonical NaN over all NaN, in place; f64 keeps what numpy computed."""
    if fmt is F64:
        return lambda bits: None
    magnitude, infinity = np.array(fmt.magnitude, fmt.dtype), np.array(fmt.infinity, fmt.dtype)
    nan = fmt.dtype(fmt.nan)

    def mark(bits: Bits) -> None:
        bits[(bits & magnitude) > infinity] = nan

    return mark


# ---- approximations ---------------------------------------------------------------------------------------------------


def _divide_approx(x: Values, y: Values) -> Values:
    """`div.approx`: a * (1/b), and 1/b is 0 for |b| > 2^126."""
    return np.where((np.abs(y) > 2.0**126) & ~np.isinf(y), x * np.copysign(0.0, y), x / y)


APPROXIMATIONS: dict[str, Callable[..., Values]] = {
    "div": _divide_approx,
    "div.full": np.divide,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "ex2": np.exp2,
    "lg2": np.log2,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
}


def _approximate(name: str, fmt: FloatFormat, modifiers: frozenset[str]) -> Operation:
    """One of APPROXIMATIONS."""
    function = APPROXIMATIONS[f"{name}.full" if "full" in modifiers else name]
    read, write, mark_nan = decoder(fmt), encoder(fmt), _nan_marker(fmt)
    ftz, flush, flush_result = "ftz" in modifiers, flusher(fmt), result_flusher(fmt, Rounding.RN)

    def run(*bits: Bits) -> Bits:
        values = function(*[read(flush(b) if ftz else b).astype(np.float64) for b in bits])
        result = flush_result(write(values), lambda: values) if ftz else write(values)
        mark_nan(result)
        return result

    return run


# ---- minimum, maximum, signs ------------------------------------------------------------------------------------------


def _extremum(name: str, fmt: FloatFormat, modifiers: frozenset[str]) -> Operation:
    """min and max of two or three; +0 > -0; a NaN operand loses, or wins with `.NaN`."""
    read, flush, is_max = decoder(fmt), flusher(fmt), name == "max"
    ftz, nan_wins, magnitudes, xorsign = (m in modifiers for m in ("ftz", "NaN", "abs", "xorsign"))
    if xorsign and not magnitudes:
        raise ValueError(f"no form of {name} takes .xorsign without .abs")
    sign = np.array(fmt.sign, fmt.dtype)

    def of_two(a: Bits, b: Bits) -> Bits:
        x, y = read(a), read(b)
        result = np.where(x > y if is_max else x < y, a, b)
        equal = x == y
        result[equal] = (a & b if is_max else a | b)[equal]  # alike but for the sign of zero
        a_is_nan, b_is_nan = x != x, y != y
        result[b_is_nan] = a[b_is_nan]
        result[a_is_nan | b_is_nan if nan_wins else a_is_nan & b_is_nan] = fmt.nan
        return result

    def run(*bits: Bits) -> Bits:
        if len(bits) not in (2, 3) or (xorsign and len(bits) == 3):
            raise ValueError(f"{name} of {len(bits)} operands with modifiers {sorted(modifiers)}")
        operands = [flush(b) for b in bits] if ftz else list(bits)
        if magnitudes:
            operands = [b & ~sign for b in operands]
        result = functools.reduce(of_two, operands)
        if xorsign:
            is_number = result <= fmt.infinity
            result[is_number] |= ((bits[0] ^ bits[1]) & sign)[is_number]
        return result

    return run


def _on_sign(name: str, fmt: FloatFormat, modifiers: frozenset[str]) -> Operation:
    """neg, abs, copysign (the sign of the first operand, the rest of the second, NaN or not)."""
    sign, flush, read = np.array(fmt.sign, fmt.dtype), flusher(fmt), decoder(fmt)
    if name == "copysign":
        return lambda a, b: (b & ~sign) | (a & sign)
    ftz, negates = "ftz" in modifiers, name == "neg"

    def run(a: Bits) -> Bits:
        values = read(a)
        operand = flush(a) if ftz else a
        result = operand ^ sign if negates else operand & ~sign
        result[values != values] = fmt.nan
        return result

    return run


# ---- opcodes ----------------------------------------------------------------------------------------------------------


class Family(NamedTuple):
    """A form of an instruction: the modifiers that select it, those it also takes, and on which types."""

    build: Callable[[str, FloatFormat, frozenset[str]], Operation]
    types: frozenset[str]
    takes: frozenset[str]
    needs: frozenset[str] = frozenset()  # one of them, unless empty


_SUMS = [  # add, sub, mul
    Family(_arithmetic, frozenset({"f32"}), DIRECTED | FLUSH_SAT),
    Family(_arithmetic, frozenset({"f32x2"}), DIRECTED | FLUSH),
    Family(_arithmetic, frozenset({"f64"}), DIRECTED),
    Family(_arithmetic, frozenset({"f16", "f16x2"}), NEAREST | FLUSH_SAT),
    Family(_arithmetic, frozenset({"bf16", "bf16x2"}), NEAREST),
]
_FUSED = [
    Family(_arithmetic, frozenset({"f32"}), FLUSH_SAT, DIRECTED),
    Family(_arithmetic, frozenset({"f32x2"}), FLUSH, DIRECTED),
    Family(_arithmetic, frozenset({"f64"}), frozenset(), DIRECTED),
    Family(_arithmetic, frozenset({"f16", "f16x2"}), FLUSH_SAT | {"relu"}, NEAREST),
    Family(_arithmetic, frozenset({"bf16", "bf16x2"}), frozenset({"relu"}), NEAREST),
]
_ROUNDED = [  # div, rcp, sqrt with IEEE rounding
    Family(_arithmetic, frozenset({"f32"}), FLUSH, DIRECTED),
    Family(_arithmetic, frozenset({"f64"}), frozenset(), DIRECTED),
]
_APPROX = frozenset({"approx"})
_APPROX_F32 = Family(_approximate, frozenset({"f32"}), FLUSH, _APPROX)
_EXTREMA = [
    Family(_extremum, frozenset({"f32", "f16", "f16x2"}), FLUSH | {"NaN", "xorsign", "abs"}),
    Family(_extremum, frozenset({"bf16", "bf16x2"}), frozenset({"NaN", "xorsign", "abs"})),
    Family(_extremum, frozenset({"f64"}), frozenset()),
]
_SIGNS = [
    Family(_on_sign, frozenset({"f32", "f16", "f16x2"}), FLUSH),
    Family(_on_sign, frozenset({"f64", "bf16", "bf16x2"}), frozenset()),
]
FAMILIES: dict[str, list[Family]] = {
    "add": _SUMS,
    "sub": _SUMS,
    "mul": _SUMS,
    "fma": _FUSED,
    "div": [*_ROUNDED, Family(_approximate, frozenset({"f32"}), FLUSH, frozenset({"approx", "full"}))],
    "rcp": [*_ROUNDED, _APPROX_F32],
    "sqrt": [*_ROUNDED, _APPROX_F32],
    "rsqrt": [_APPROX_F32, Family(_approximate, frozenset({"f64"}), frozenset(), _APPROX)],
    "ex2": [_APPROX_F32, Family(_approximate, HALVES, FLUSH, _APPROX)],
    "lg2": [_APPROX_F32],
    "sin": [_APPROX_F32],
    "cos": [_APPROX_F32],
    "tanh": [Family(_approximate, HALVES | {"f32"}, frozenset(), _APPROX)],
    "min": _EXTREMA,
    "max": _EXTREMA,
    "neg": _SIGNS,
    "abs": _SIGNS,
    "copysign": [Family(_on_sign, WIDE, frozenset())],
}


@functools.cache
def operation(opcode: str) -> Operation:
    """The function of an opcode as PTX spells it, from operand arrays to the result array.

    ValueError: an instruction, type or modifier that is not in FAMILIES.
    """
    name, *parts = opcode.split(".")
    name = "fma" if name == "mad" else name
    types = [p for p in parts if p in TYPES]
    modifiers = frozenset(p for p in parts if p not in TYPES)
    if name not in FAMILIES or not types:
        raise ValueError(f"{opcode}: not a floating-point instruction known here")
    if len(types) == 2 and types[0] == "f32" and types[1] in ("f16", "bf16") and name in ("add", "sub", "fma"):
        return _mixed(operation(".".join([name, *sorted(modifiers), "f32"])), decoder(TYPES[types[1]].fmt), ARITY[name])
    for family in FAMILIES[name]:
        chosen = modifiers & family.needs
        if types[0] in family.types and len(types) == 1 and modifiers <= family.takes | family.needs:
            if bool(chosen) == bool(family.needs) and len(modifiers & (DIRECTED | {"approx", "full"})) <= 1:
                return _on_lanes(family.build(name, TYPES[types[0]].fmt, modifiers), TYPES[types[0]])
    raise ValueError(f"{opcode}: no form of {name} takes modifiers {sorted(modifiers)} on {'.'.join(types)}")


def _on_lanes(element: Operation, kind: FloatType) -> Operation:
    """Packed types run as twice as many elements: little-endian memory has the lower element first."""
    if kind.lanes == 1:
        return element
    word = kind.fmt.dtype

    def run(*bits: Bits) -> Bits:
        result = element(*[np.ascontiguousarray(b).view(word) for b in bits])
        return result.view(bits[0].dtype)

    return run


def _mixed(element: Operation, read: Callable[[Bits], Values], arity: int) -> Operation:
    """Mixed precision (sm_100): all operands but the last are narrow and converted to f32 first."""

    def run(*bits: Bits) -> Bits:
        return element(*[read(b).view(np.uint32) for b in bits[: arity - 1]], *bits[arity - 1 :])

    return run


# ---- comparisons ------------------------------------------------------------------------------------------------------

Predicates = NDArray[np.bool_]

COMPARE: dict[str, Callable[[Values, Values], Predicates]] = {
    "eq": np.equal,
    "ne": lambda x, y: (x < y) | (x > y),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "equ": lambda x, y: ~((x < y) | (x > y)),
    "neu": np.not_equal,
    "ltu": lambda x, y: ~(x >= y),
    "leu": lambda x, y: ~(x > y),
    "gtu": lambda x, y: ~(x <= y),
    "geu": lambda x, y: ~(x < y),
    "num": lambda x, y: (x == x) & (y == y),
    "nan": lambda x, y: (x != x) | (y != y),
}

_TESTS: dict[str, Callable[[Bits, FloatFormat], Predicates]] = {
    "finite": lambda m, fmt: m < fmt.infinity,
    "infinite": lambda m, fmt: m == fmt.infinity,
    "number": lambda m, fmt: m <= fmt.infinity,
    "notanumber": lambda m, fmt: m > fmt.infinity,
    "normal": lambda m, fmt: ((m >= fmt.smallest_normal) & (m < fmt.infinity)) | (m == 0),
    "subnormal": lambda m, fmt: (m < fmt.smallest_normal) & (m != 0),
}


@functools.cache
def comparison(relation: str, type_name: str, ftz: bool = False) -> Callable[[Bits, Bits], Predicates]:
    """`setp` and `set`: a bool per operand; for packed types one more dimension of two, the lower element (p) first."""
    compare, (fmt, lanes) = COMPARE[relation], TYPES[type_name]
    read = decoder(fmt)

    def run(a: Bits, b: Bits) -> Predicates:
        operands = [np.ascontiguousarray(o).view(fmt.dtype) if lanes > 1 else o for o in (a, b)]
        if ftz:
            operands = [flusher(fmt)(o) for o in operands]
        result = compare(read(operands[0]), read(operands[1]))
        return result.reshape(*a.shape, lanes) if lanes > 1 else result

    return run


def property_test(property_name: str, type_name: str) -> Callable[[Bits], Predicates]:
    """`testp`: finite, infinite, number, notanumber, normal (zeros too) or subnormal."""
    test, fmt = _TESTS[property_name], TYPES[type_name].fmt
    return lambda bits: test(bits & fmt.dtype(fmt.magnitude), fmt)


def predicate_value(predicate: Predicates, type_name: str) -> Bits:
    """What `set` writes into a register of the type: 1.0 or 0 for floats, all ones or 0 for integers (u16 to s32)."""
    if type_name in TYPES:
        fmt = TYPES[type_name].fmt
        return predicate * encoder(fmt)(np.ones(1, np.float32))
    word: Any = np.dtype(f"u{int(type_name[1:]) // 8}")
    return np.where(predicate, ~word.type(0), word.type(0))
