"""What a matrix instruction computes: how tensor cores add the k products of one instruction to the accumulator.

Measured on an H200 (tests/emulated/conformance.py; every recording is reproduced bit by bit): the products and the
accumulator are aligned to the largest exponent among them and cut (towards zero) to a number of fraction bits below it,
the cut terms are summed exactly, and the sum is cut to an fp32 or rounded to an fp16 accumulator.

| operands on sm_90 | fraction bits of a term | of the sum, fp32 accumulator | fp16 accumulator |
|---|---|---|---|
| bf16, fp16, tf32 (wgmma k = 16 or 8, mma.sync m16n8k16) | 25 | 23 | rounded to nearest even |
| fp8 (wgmma k = 32) | 13 | 13 | rounded to nearest even |

mma.sync m16n8k32 on fp8 does not use that adder there: it is two 16-bit multiplications from zero, of k % 4 < 2 and then of
the others, and an fp32 addition to the accumulator (`multiply_fp8_by_halves`).

The exponent of a product is e(a) + e(b), not normalised: a product may be up to 4 * 2^e. tf32 is added as 16-bit operands are.
Exponents count as -126 at least and fp32 accumulators end at 2^-149; of sums that small a fifth still differs from what the H200
wrote, by up to 4 * 2^-149. On sm_100 and sm_120 nothing could be measured: there the exact sum is rounded once.
"""

from typing import Any, NamedTuple, Optional

import numpy as np

from . import formats

INTEGER_FORMATS: dict[str, Any] = {"s8": np.int8, "u8": np.uint8}
_NO_EXPONENT = -10000  # of a zero: below that of every product
MIN_EXPONENT = -126  # of fp32
_SMALL = 1 << 13  # products of one instruction that are formed all at once, which is faster for mma.sync


class Adder(NamedTuple):
    """term: fraction bits kept of each term below the largest exponent; total: fraction bits kept of the sum."""

    term: int
    total: int


HOPPER_WIDE, HOPPER_FP8 = Adder(25, 23), Adder(13, 13)
_HOPPER = {"bf16": HOPPER_WIDE, "f16": HOPPER_WIDE, "tf32": HOPPER_WIDE, "e4m3": HOPPER_FP8, "e5m2": HOPPER_FP8}


_UNCUT = 52  # fraction bits of float64


def adder_of(target: str, operand_format: str, accumulator: str) -> Optional[Adder]:
    """The adder of the tensor cores of a PTX target; None: exact sums, rounded once."""
    adder = _HOPPER.get(operand_format) if target.startswith("sm_90") else None
    return adder._replace(total=_UNCUT) if adder is not None and accumulator == "f16" else adder


def decode_operand(raw: np.ndarray, name: str) -> np.ndarray:
    """Raw elements as float64 (exact for every operand format)."""
    if name in INTEGER_FORMATS:
        return raw.astype(np.uint8).view(INTEGER_FORMATS[name]).astype(np.float64)
    return formats.decode(raw, formats.FORMATS[name]).astype(np.float64)


# OpenBLAS shares out larger products among threads, which costs milliseconds where other processes use the cores.
_ONE_THREAD = 1 << 18


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a (m, k) @ b (n, k).T, in blocks of columns that BLAS computes with one thread."""
    step = max(8, _ONE_THREAD // a.size)
    if step >= len(b):
        return a @ b.T
    out = np.empty((len(a), len(b)), a.dtype)
    for n in range(0, len(b), step):
        np.matmul(a, b[n : n + step].T, out=out[:, n : n + step])
    return out


def multiply_accumulate(a: np.ndarray, b: np.ndarray, c: Any, adder: Optional[Adder] = None) -> np.ndarray:
    """a (m, k) @ b (n, k).T + c (m, n), float64 in and out; c may be 0.

    With an adder the result is what it leaves. Without, it is the sum in float64, in which products of operands of at most
    11 significant bits are exact and sums lose 29 bits below fp32. To be called under `np.errstate(all="ignore")`.
    """
    if adder is None:
        return _product(a, b) + c
    old = np.broadcast_to(np.asarray(c, np.float64), (len(a), len(b)))
    if np.isfinite(a).all() and np.isfinite(b).all() and np.isfinite(old).all():
        return _aligned_sum(a, b, old, adder)
    special = _product(a, b) + old
    a, b, old = (np.where(np.isfinite(x), x, 0.0) for x in (a, b, old))
    finite = _aligned_sum(a, b, old, adder)
    return np.where(np.isfinite(special), finite, special)


def multiply_fp8_by_halves(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """mma.sync m16n8k32 of fp8 on sm_90, as `multiply_accumulate`; the result is still to be rounded to fp32."""
    is_second = np.arange(a.shape[1]) % 4 >= 2
    total = multiply_accumulate(a[:, ~is_second], b[:, ~is_second], 0.0, HOPPER_WIDE)
    return c + multiply_accumulate(a[:, is_second], b[:, is_second], total, HOPPER_WIDE)


def _aligned_sum(a: np.ndarray, b: np.ndarray, c: np.ndarray, adder: Adder) -> np.ndarray:
    exponents_a, exponents_b, top = _exponents(a), _exponents(b), _exponents(c)
    is_small = a.size * len(b) <= _SMALL
    if is_small:
        np.maximum(top, (exponents_a[:, None, :] + exponents_b).max(axis=2), out=top)
    else:
        for k in range(a.shape[1]):
            np.maximum(top, exponents_a[:, k, None] + exponents_b[None, :, k], out=top)
    scale = np.ldexp(1.0, adder.term - np.maximum(top, MIN_EXPONENT).astype(np.int32))
    total = np.trunc(c * scale)
    if is_small:
        terms = a[:, None, :] * b
        terms *= scale[:, :, None]
        total += np.trunc(terms, out=terms).sum(axis=2)
    else:
        term = np.empty_like(total)
        for k in range(a.shape[1]):
            np.multiply(a[:, k, None], b[None, :, k], out=term)
            term *= scale
            np.trunc(term, out=term)
            total += term
    total /= scale
    if adder.total == _UNCUT:
        return total
    dropped = _UNCUT - adder.total
    total = (total.view(np.int64) >> dropped << dropped).view(np.float64)
    return np.trunc(total * 2.0**149) * 2.0**-149  # no finer than fp32


def _exponents(values: np.ndarray) -> np.ndarray:
    """floor(log2 |x|) as int16."""
    exponents = np.frexp(values)[1].astype(np.int16) - np.int16(1)
    exponents[values == 0] = _NO_EXPONENT
    return exponents


def decode_accumulator(raw: np.ndarray, name: str) -> np.ndarray:
    """Raw accumulator elements (uint32; f16 in the low half) as float64."""
    if name == "f32":
        return raw.view(np.float32).astype(np.float64)
    if name == "s32":
        return raw.view(np.int32).astype(np.float64)
    return raw.astype(np.uint16).view(np.float16).astype(np.float64)


def encode_accumulator(values: np.ndarray, name: str, saturate: bool = False) -> np.ndarray:
    """Round once to the accumulator type; uint32. NaN becomes the one that tensor cores write."""
    if name == "s32":
        if saturate:
            values = np.clip(values, -(2.0**31), 2.0**31 - 1)
        return (values.astype(np.int64) & 0xFFFFFFFF).astype(np.uint32)
    kind, word, nan = (np.float32, np.uint32, 0x7FFFFFFF) if name == "f32" else (np.float16, np.uint16, 0x7FFF)
    bits: np.ndarray = values.astype(kind).view(word)
    is_nan = values != values
    if is_nan.any():
        bits[is_nan] = nan
    return bits.astype(np.uint32)
