"""Number formats of PTX and the conversions between them: what `cvt` and the operands of the matrix units need.

Everything works on numpy arrays of any shape: raw bits are unsigned integers of the format's storage width (`uint8` up to
8 bits, then `uint16`, `uint32`, `uint64`), values are `float32` (`float64` for f64), which hold every format exactly.
`encode` and `decode` are made for one call; a closure that runs often keeps `encoder(...)` or `decoder(...)` instead.
`converter(...)`, `float_to_int` and `int_to_float` are the three kinds of `cvt`.

Sources: PTX ISA 9.0, 5.2.3 (alternate formats) and 9.7.9.21 (cvt); the host code of CUDA's public cuda_fp8.hpp and
cuda_fp4.hpp for ue8m0 and e2m1, which need sm_100. The conversions that sm_90 has were compared with an H200 on edge cases
and random bits: all results that are not NaN agree, and NaN too where the ISA says which one. (By `cvt.rna.tf32` the H200
cuts the payload of a NaN, which can leave an infinity; here it stays NaN, as the ISA says.)

Infinities and NaN are ordinary inputs here. Callers run under `np.errstate(all="ignore")`: entering it costs as much as
several of these conversions, so they do not enter it themselves.
"""

import enum
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[Any]  # unsigned integers
Values = NDArray[Any]  # float32 or float64


class Rounding(enum.Enum):
    """A rounding modifier, by its PTX name. The last four round to an integral value."""

    RN = "rn"  # to nearest, ties to even
    RNA = "rna"  # to nearest, ties away from zero
    RZ = "rz"
    RP = "rp"
    RM = "rm"
    RS = "rs"  # stochastic: up in magnitude when random bits added to the discarded ones carry
    RNI = "rni"
    RZI = "rzi"
    RMI = "rmi"
    RPI = "rpi"


class Specials(enum.Enum):
    """What the largest codes of a format mean."""

    IEEE = "infinity and NaN in the top binade"
    NAN = "only the code of all ones is NaN"
    NONE = "every code is a number"


@dataclass(frozen=True, eq=False)  # one object a format: compared and hashed by identity
class FloatFormat:
    """Sign, exponent and mantissa from the top, value (-1)^s * 2^(e - bias) * 1.m, subnormal for e = 0.

    `sign`, `magnitude` (masks), `infinity`, `nan`, `largest` and `smallest_normal` (codes) are `bits` wide integers.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: Specials
    bits: int
    is_signed: bool = True
    has_subnormals: bool = True  # False: code 0 is 2^-bias, there is no zero
    unused_bits: int = 0  # below the mantissa: written as 0, ignored when read

    @functools.cached_property
    def dtype(self) -> Any:
        """Of arrays of raw bits."""
        return {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}[max(8, self.bits)]

    @functools.cached_property
    def sign(self) -> int:
        return 1 << (self.bits - 1) if self.is_signed else 0

    @functools.cached_property
    def magnitude(self) -> int:
        """Mask of exponent and mantissa."""
        return ((1 << (self.exponent_bits + self.mantissa_bits)) - 1) << self.unused_bits

    @functools.cached_property
    def infinity(self) -> Optional[int]:
        """Code of +infinity."""
        if self.specials is not Specials.IEEE:
            return None
        return ((1 << self.exponent_bits) - 1) << (self.mantissa_bits + self.unused_bits)

    @functools.cached_property
    def nan(self) -> Optional[int]:
        """The canonical NaN: a positive one of all ones, but for f64 the one that 0 * infinity gives."""
        if self.bits == 64:
            return 0xFFF8 << 48
        return None if self.specials is Specials.NONE else self.magnitude

    @functools.cached_property
    def largest(self) -> int:
        """Code of the largest finite number (MAX_NORM of the PTX ISA)."""
        if self.infinity is not None:
            return self.infinity - (1 << self.unused_bits)
        return self.magnitude - (self.specials is Specials.NAN)

    @functools.cached_property
    def smallest_normal(self) -> int:
        """Code of the smallest normal number; less in magnitude is subnormal or zero."""
        return int(self.has_subnormals) << (self.mantissa_bits + self.unused_bits)

    @functools.cached_property
    def lowest_exponent(self) -> int:
        """Power of two of the lowest binade of normal numbers."""
        return int(self.has_subnormals) - self.bias


F64 = FloatFormat("f64", 11, 52, 1023, Specials.IEEE, 64)
F32 = FloatFormat("f32", 8, 23, 127, Specials.IEEE, 32)
F16 = FloatFormat("f16", 5, 10, 15, Specials.IEEE, 16)
BF16 = FloatFormat("bf16", 8, 7, 127, Specials.IEEE, 16)
TF32 = FloatFormat("tf32", 8, 10, 127, Specials.IEEE, 32, unused_bits=13)
E4M3 = FloatFormat("e4m3", 4, 3, 7, Specials.NAN, 8)
E5M2 = FloatFormat("e5m2", 5, 2, 15, Specials.IEEE, 8)
E2M3 = FloatFormat("e2m3", 2, 3, 1, Specials.NONE, 6)
E3M2 = FloatFormat("e3m2", 3, 2, 3, Specials.NONE, 6)
E2M1 = FloatFormat("e2m1", 2, 1, 1, Specials.NONE, 4)
UE8M0 = FloatFormat("ue8m0", 8, 0, 127, Specials.NAN, 8, is_signed=False, has_subnormals=False)
UE4M3 = FloatFormat("ue4m3", 4, 3, 7, Specials.NAN, 7, is_signed=False)

FORMATS = {f.name: f for f in (F64, F32, F16, BF16, TF32, E4M3, E5M2, E2M3, E3M2, E2M1, UE8M0, UE4M3)}


# ---- reading ----------------------------------------------------------------------------------------------------------


def decode(bits: Bits, fmt: FloatFormat) -> Values:
    """Exact values of raw bits, same shape; bits above the format's width are ignored, NaN may change its payload."""
    return decoder(fmt)(bits)


@functools.cache
def decoder(fmt: FloatFormat) -> Callable[[Bits], Values]:
    """`decode` for one format. The result may share memory with the bits (f32, f64)."""
    if fmt is F64:
        return lambda bits: bits.view(np.float64)
    if fmt is F32:
        return lambda bits: bits.view(np.float32)
    if fmt is F16:
        return lambda bits: bits.view(np.float16).astype(np.float32)
    if fmt is BF16:
        return lambda bits: (bits.astype(np.uint32) << 16).view(np.float32)
    if fmt is TF32:
        return lambda bits: (bits & ~np.uint32(0x1FFF)).view(np.float32)
    table = _decode_table(fmt)
    return lambda bits: table.take(bits if bits.dtype == np.uint8 else bits.astype(np.uint8))


def _decode_table(fmt: FloatFormat) -> NDArray[np.float32]:
    """Value of each byte."""
    codes = np.arange(256)
    magnitude = codes & fmt.magnitude
    mantissa = magnitude & ((1 << fmt.mantissa_bits) - 1)
    exponent = magnitude >> fmt.mantissa_bits
    is_normal = magnitude >= fmt.smallest_normal
    values = np.ldexp(
        mantissa + (is_normal << fmt.mantissa_bits),
        np.maximum(exponent, fmt.lowest_exponent + fmt.bias) - fmt.bias - fmt.mantissa_bits,
    )
    if fmt.infinity is not None:
        values[magnitude == fmt.infinity] = np.inf
        values[magnitude > fmt.infinity] = np.nan
    elif fmt.nan is not None:
        values[magnitude == fmt.nan] = np.nan
    return np.where(codes & fmt.sign, -values, values).astype(np.float32)


# ---- rounding ---------------------------------------------------------------------------------------------------------


def _to_nearest_away(values: Values) -> Values:
    whole = np.trunc(values)  # adding 0.5 first would round 0.5 - 2^-54 up
    return whole + np.copysign(np.abs(values - whole) >= 0.5, values)


ROUND: dict[Rounding, Callable[[Values], Values]] = {
    Rounding.RN: np.rint,
    Rounding.RNA: _to_nearest_away,
    Rounding.RZ: np.trunc,
    Rounding.RP: np.ceil,
    Rounding.RM: np.floor,
    Rounding.RNI: np.rint,
    Rounding.RZI: np.trunc,
    Rounding.RPI: np.ceil,
    Rounding.RMI: np.floor,
}
INTEGRAL = (Rounding.RNI, Rounding.RZI, Rounding.RMI, Rounding.RPI)

# Random bits that one operand of `cvt.rs` uses. The 8, 6 and 4-bit formats share theirs among operands, in a way that the
# PTX ISA only draws.
RANDOM_BITS = {F16: 13, BF16: 16}


def random_bits_of(rbits: Bits, fmt: FloatFormat) -> tuple[Bits, Bits]:
    """The random bits for operands a and b out of the operand `rbits` (uint32) of `cvt.rs.{f16x2, bf16x2}.f32`."""
    mask = np.uint32((1 << RANDOM_BITS[fmt]) - 1)
    return (rbits >> 16) & mask, rbits & mask


def encode(
    values: Values,
    fmt: FloatFormat,
    rounding: Rounding = Rounding.RN,
    saturate: bool = False,
    relu: bool = False,
    random_bits: Optional[Bits] = None,
) -> Bits:
    """Raw bits of `values` (float32 or float64, same shape) rounded once to `fmt`.

    NaN becomes the canonical NaN, or the largest number where the format has none. A finite value too large becomes
    infinity or the largest number as IEEE 754 has it for the rounding, NaN where there is no infinity; `saturate`
    (.satfinite) makes these and infinities the largest number. `relu` turns negative results and -0 into +0. Formats
    without a sign take the magnitude. Without `saturate` a format that has no NaN is a ValueError.
    """
    convert = encoder(fmt, rounding, saturate, relu)
    if (rounding is Rounding.RS) != (random_bits is not None):
        raise ValueError(f".{rounding.value}: random bits go with .rs, and only with it")
    return convert(values) if random_bits is None else convert(values, random_bits)


@functools.cache
def encoder(
    fmt: FloatFormat, rounding: Rounding = Rounding.RN, saturate: bool = False, relu: bool = False
) -> Callable[..., Bits]:
    """`encode` for one format: a function of the values, and of the random bits for `Rounding.RS`. Never aliases."""
    if rounding in INTEGRAL:
        raise ValueError(f".{rounding.value} rounds to an integral value, not to {fmt.name}")
    if fmt.specials is Specials.NONE and not saturate:
        raise ValueError(f"{fmt.name} has neither infinity nor NaN: conversions to it need .satfinite")
    if rounding is Rounding.RS and fmt not in RANDOM_BITS:
        raise ValueError(f"the random bits of cvt.rs to {fmt.name} are not specified in words")
    exact = functools.partial(_encode_any, fmt, rounding, saturate, relu)
    if fmt in (F32, F64):
        if saturate or relu:
            raise ValueError(f"conversions to {fmt.name} have neither .satfinite nor .relu")
        is_exact = rounding is Rounding.RN or fmt is F64
        return lambda values: _widen(values, fmt) if is_exact or values.dtype == np.float32 else exact(values)
    if fmt in (BF16, TF32):
        from_f32 = _encode_prefix(fmt, rounding, saturate, relu)
    elif fmt is F16 and rounding is Rounding.RN:
        from_f32 = functools.partial(_encode_f16, saturate, relu)
    elif fmt is F16:
        return exact
    else:
        from_f32 = _encode_by_table(fmt, exact)
    return lambda values, *random: (from_f32 if values.dtype == np.float32 else exact)(values, *random)


def _widen(values: Values, fmt: FloatFormat) -> Bits:
    """To f32 or f64; from float64 to f32 to nearest, as numpy rounds."""
    bits = values.astype(np.float32 if fmt is F32 else np.float64).view(fmt.dtype)
    bits[values != values] = fmt.nan
    return bits


def _encode_f16(saturate: bool, relu: bool, values: Values) -> Bits:
    bits = values.astype(np.float16).view(np.uint16)
    if saturate:
        bits[(bits & 0x7FFF) == 0x7C00] -= np.uint16(1)
    if relu:
        bits[bits >= 0x8000] = 0
    bits[values != values] = 0x7FFF
    return bits


_HALFWORD = np.array(16, np.uint32)  # 0-dimensional operands: numpy converts a Python int anew at each call
_ONE = np.array(1, np.uint32)


def _encode_prefix(fmt: FloatFormat, rounding: Rounding, saturate: bool, relu: bool) -> Callable[..., Bits]:
    """bf16 and tf32 are the upper bits of an f32: add what makes the dropped bits carry as the rounding wants, cut.

    A carry out of the largest number makes the code of infinity, as it should.
    """
    dropped = 23 - fmt.mantissa_bits
    shift, below = np.array(dropped, np.uint32), np.array((1 << dropped) - 1, np.uint32)
    half = np.array(1 << (dropped - 1), np.uint32)
    below_half = half - 1
    sign = np.array(31, np.uint32)

    def carried(raw: Bits, random: Sequence[Bits]) -> Bits:
        if rounding is Rounding.RN:
            odd = raw >> shift
            odd &= _ONE
            odd += below_half
            return odd + raw
        if rounding is Rounding.RNA:
            return raw + half
        if rounding is Rounding.RZ:
            return raw
        if rounding is Rounding.RS:
            return raw + random[0]
        upward = rounding is Rounding.RP
        return raw + below * ((raw >> sign) ^ _ONE if upward else raw >> sign)

    def convert(values: Values, *random: Bits) -> Bits:
        sums = carried(values.view(np.uint32), random)
        if fmt is BF16:
            bits: Bits = (sums >> _HALFWORD).astype(np.uint16)
        else:
            bits = sums & ~below
        if saturate:
            bits[(bits & fmt.dtype(fmt.magnitude)) == fmt.infinity] -= fmt.dtype(1 << fmt.unused_bits)
        if relu:
            bits[bits >= fmt.sign] = 0
        bits[values != values] = fmt.nan
        return bits

    return convert


def _encode_by_table(fmt: FloatFormat, exact: Callable[[Values], Bits]) -> Callable[[Values], Bits]:
    """Formats with at most five mantissa bits: the upper half of an f32 and one sticky bit decide every rounding."""
    low, zero = np.array(0xFFFF, np.uint32), np.array(0, np.uint32)

    @functools.cache
    def table() -> Bits:
        return exact((np.arange(1 << 16, dtype=np.uint32) << _HALFWORD).view(np.float32))

    def convert(values: Values) -> Bits:
        raw = values.view(np.uint32)
        sticky = (raw & low) != zero
        return table().take((raw >> _HALFWORD) | sticky)

    return convert


_F64_EXPONENT = 0x7FF << 52
_BEYOND_ALL = 2.0**129  # no format narrower than f64 has finite numbers this large


def _encode_any(
    fmt: FloatFormat, rounding: Rounding, saturate: bool, relu: bool, values: Values, random: Optional[Bits] = None
) -> Bits:
    """Any rounding to any format but f64, by counting steps of the binade that a value lies in."""
    wide = values.astype(np.float64) if fmt.is_signed else np.abs(values.astype(np.float64))
    is_nan, is_negative = wide != wide, np.signbit(wide)
    is_huge = ~(np.abs(wide) < _BEYOND_ALL)
    number = np.where(is_huge, 0.0, wide)
    mantissa = fmt.mantissa_bits
    # The exponent field of the value's binade, left where f64 has it; subnormals belong to the lowest binade.
    exponent = np.maximum(number.view(np.int64) & _F64_EXPONENT, (fmt.lowest_exponent + 1023) << 52)
    steps_per_unit = ((2046 << 52) - exponent + (mantissa << 52)).view(np.float64)
    steps = number * steps_per_unit  # exact: a product with a power of two
    count = _round_randomly(steps, random, RANDOM_BITS[fmt]) if random is not None else ROUND[rounding](steps)
    code = (exponent >> (52 - mantissa)) + ((fmt.bias - 1024) << mantissa) + np.abs(count).astype(np.int64)
    largest, unused = fmt.largest >> fmt.unused_bits, fmt.unused_bits
    if not fmt.has_subnormals:
        code = np.maximum(code, 0)
    overflows = is_huge | (code > largest)
    code[overflows] = largest
    if not saturate:
        beyond = fmt.infinity if fmt.infinity is not None else fmt.nan
        assert beyond is not None  # `encoder` has seen to it
        rounds_out = {Rounding.RZ: False, Rounding.RP: ~is_negative, Rounding.RM: is_negative}.get(rounding, True)
        code[overflows & (np.isinf(wide) | rounds_out)] = beyond >> unused
    code <<= unused
    code[is_negative] = 0 if relu else code[is_negative] | fmt.sign
    code[is_nan] = fmt.largest if fmt.nan is None else fmt.nan
    return code.astype(fmt.dtype)


def _round_randomly(steps: Values, random: Bits, random_bits: int) -> Values:
    """Toward zero, and one step further where the top discarded bits and the random ones carry (PTX ISA, `.rs`)."""
    whole = np.trunc(steps)
    discarded = np.floor(np.abs(steps - whole) * (1 << random_bits))
    return whole + np.copysign(discarded + random >= (1 << random_bits), steps)


# ---- cvt --------------------------------------------------------------------------------------------------------------


def flush_subnormals(bits: Bits, fmt: FloatFormat) -> Bits:
    """`.ftz`: subnormals become zeros of their sign. Returns its argument if there are none."""
    return flusher(fmt)(bits)


@functools.cache
def flusher(fmt: FloatFormat) -> Callable[[Bits], Bits]:
    """`flush_subnormals` for one format."""
    magnitude, one = np.array(fmt.magnitude, fmt.dtype), np.array(1, fmt.dtype)
    subnormals = np.array(fmt.smallest_normal - 1, fmt.dtype)
    sign = fmt.dtype(fmt.sign)

    def flush(bits: Bits) -> Bits:
        from_smallest = bits & magnitude
        from_smallest -= one  # zero needs no flush: it wraps around to the largest integer
        is_subnormal = from_smallest < subnormals
        if b"\1" not in is_subnormal.tobytes():  # several times faster than any() on a row
            return bits
        flushed = bits.copy()
        flushed[is_subnormal] &= sign
        return flushed

    return flush


@functools.cache
def result_flusher(fmt: FloatFormat, rounding: Rounding) -> Callable[[Bits, Callable[[], Values]], Bits]:
    """`.ftz` of results: what is subnormal when rounded with an unbounded exponent becomes zero (seen on an H200).

    So the smallest normal number stays only if the value, rounded to the normal number of bits, is that large. The second
    argument gives the float64 values before rounding; it is called only if such a result is there.
    """
    flush, write = flusher(fmt), encoder(fmt, rounding)
    magnitude, sign = np.array(fmt.magnitude, fmt.dtype), fmt.dtype(fmt.sign)
    smallest, twice = np.array(fmt.smallest_normal, fmt.dtype), np.array(2 * fmt.smallest_normal, fmt.dtype)

    def flush_result(bits: Bits, exact: Callable[[], Values]) -> Bits:
        bits = flush(bits)
        is_smallest = (bits & magnitude) == smallest
        if b"\1" in is_smallest.tobytes():
            bits[is_smallest & ((write(exact() * 2.0) & magnitude) < twice)] &= sign
        return bits

    return flush_result


def clamp_to_unit(bits: Bits, fmt: FloatFormat) -> Bits:
    """`.sat`, in place: to [+0, 1], NaN to +0. As unsigned integers, negative numbers and NaN lie above +infinity."""
    one = encode(np.ones(1, np.float32), fmt)[0]
    bits[bits > fmt.infinity] = 0
    bits[bits > one] = one
    return bits


@functools.cache
def converter(
    source: FloatFormat,
    target: FloatFormat,
    rounding: Rounding = Rounding.RN,
    *,
    ftz: bool = False,
    sat: bool = False,
    saturate: bool = False,
    relu: bool = False,
) -> Callable[..., Bits]:
    """`cvt` between two float formats, for one element: raw bits to raw bits (and random bits for `.rs`).

    `ftz` flushes f32 inputs and results, `sat` is `.sat`, `saturate` is `.satfinite`. A rounding to integral values needs
    both formats alike. A rounding is not needed where the target holds every number of the source.
    """
    read, flush_f32 = decoder(source), flusher(F32)
    flush_result = result_flusher(F32, Rounding.RN if rounding in INTEGRAL else rounding) if target is F32 else None
    is_integral = rounding in INTEGRAL
    if is_integral and source is not target:
        raise ValueError(f".{rounding.value} from {source.name} to {target.name}: the formats must be the same")
    write = encoder(target, Rounding.RN if is_integral else rounding, saturate, relu)
    round_value = ROUND.get(rounding)
    if source is BF16 and target is F32 and not (ftz or sat):
        return lambda bits: read(bits).view(np.uint32)  # NaN keeps its payload, as on the H200

    def convert(bits: Bits, *random: Bits) -> Bits:
        values = read(flush_f32(bits) if ftz and source is F32 else bits)
        if is_integral and round_value is not None:
            values = round_value(values)
        result = write(values, *random)
        if sat:
            clamp_to_unit(result, target)
        return flush_result(result, lambda: values.astype(np.float64)) if ftz and flush_result else result

    return convert


def float_to_int(values: Values, bits: int, signed: bool, rounding: Rounding) -> Bits:
    """`cvt` to an integer of 8 to 64 bits, as raw bits of that width; out of range gives the nearest integer in range.

    `values` are float32 also for narrower sources, float64 for f64 only. NaN gives 0 if the source is not f64 and the
    integer not 64 bits wide, else only the top bit set (PTX ISA, cvt, integer notes).
    """
    unsigned: Any = np.dtype(f"u{bits // 8}")
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    whole = ROUND[rounding](values.astype(np.float64))
    # high + 1 is a power of two, so that `whole` compares with it exactly even where high itself is no float64.
    too_low, too_high = whole < low, whole >= float(high + 1)
    is_nan = whole != whole
    inside = np.where(too_low | too_high | is_nan, 0.0, whole)
    result = inside.astype(np.int64 if signed else np.uint64).view(np.uint64).astype(unsigned)
    mask = (1 << bits) - 1
    result[too_low], result[too_high] = low & mask, high & mask
    result[is_nan] = 1 << (bits - 1) if values.dtype == np.float64 or bits == 64 else 0
    return result


def int_to_float(integers: Bits, signed: bool, fmt: FloatFormat, rounding: Rounding = Rounding.RN) -> Bits:
    """`cvt` from integers, given as raw bits of their own width, to raw bits of `fmt`; rounded once."""
    numbers = integers.view(integers.dtype.str.replace("u", "i")) if signed else integers
    if integers.dtype.itemsize < 8:
        return encode(numbers.astype(np.float64), fmt, rounding)
    is_negative = numbers < 0
    unsigned = np.where(is_negative, ~integers + np.uint64(1), integers)
    if fmt is F64:
        return _integers_to_f64(unsigned, is_negative, rounding)
    # An odd bit in place of the lowest eleven leaves 53 bits that every narrower format rounds as it would the integer.
    low = np.uint64(0x7FF)
    odd = (unsigned & ~low) | ((unsigned & low) != 0).astype(np.uint64) << np.uint64(11)
    magnitude = np.where(unsigned >> np.uint64(53) != 0, odd, unsigned).astype(np.float64)
    return encode(np.where(is_negative, -magnitude, magnitude), fmt, rounding)


def _integers_to_f64(magnitude: Bits, is_negative: NDArray[np.bool_], rounding: Rounding) -> Bits:
    """Rounded to nearest by numpy, then one step where that went the wrong way."""
    nearest = magnitude.astype(np.float64)
    if rounding is not Rounding.RN:
        errors = [int(n) - int(m) for n, m in zip(nearest.flat, magnitude.flat)]
        error = np.array(errors, np.int64).reshape(magnitude.shape)
        outward = {Rounding.RZ: np.zeros_like(is_negative), Rounding.RP: ~is_negative, Rounding.RM: is_negative}[
            rounding
        ]
        nearest = np.where((error > 0) & ~outward, np.nextafter(nearest, 0.0), nearest)
        nearest = np.where((error < 0) & outward, np.nextafter(nearest, np.inf), nearest)
    return np.where(is_negative, -nearest, nearest).view(np.uint64)


# ---- packing ----------------------------------------------------------------------------------------------------------


def _slot_bits(fmt: FloatFormat) -> int:
    """Width of one element in a packed register: 4 for e2m1, 8 for the 6-bit formats."""
    return fmt.bits if fmt.bits == 4 else max(8, fmt.bits)


def pack(elements: Sequence[Bits], fmt: FloatFormat) -> Bits:
    """One register of two or four elements, the first in the upper bits (the order of cvt's operands a, b, e, f)."""
    width = _slot_bits(fmt)
    word: Any = np.dtype(f"u{max(8, width * len(elements)) // 8}")
    packed = elements[0].astype(word)
    for element in elements[1:]:
        packed <<= word.type(width)
        packed |= element.astype(word)
    return packed


def unpack(packed: Bits, fmt: FloatFormat, count: int) -> tuple[Bits, ...]:
    """The inverse of `pack`: `count` arrays of raw bits, from the upper bits down."""
    width = _slot_bits(fmt)
    word = packed.dtype.type
    mask = word((1 << fmt.bits) - 1)
    return tuple(((packed >> word(width * i)) & mask).astype(fmt.dtype) for i in reversed(range(count)))
