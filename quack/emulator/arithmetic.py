"""What a matrix instruction computes. The k products of one instruction are summed exactly with the accumulator, and the
sum is rounded once.

Sums are formed in float64: products of two operands of at most 11 significant bits are exact there, and what a sum of
them loses lies 29 bits below the f32 result. Real tensor cores keep fewer bits and cut instead of rounding, which the
conformance suite bounds (tests/emulated/test_conformance.py).
"""

from typing import Any

import numpy as np

from . import formats

INTEGER_FORMATS: dict[str, Any] = {"s8": np.int8, "u8": np.uint8}


def decode_operand(raw: np.ndarray, name: str) -> np.ndarray:
    """Raw elements as float64 (exact for every operand format)."""
    if name in INTEGER_FORMATS:
        return raw.astype(np.uint8).view(INTEGER_FORMATS[name]).astype(np.float64)
    return formats.decode(raw, formats.FORMATS[name]).astype(np.float64)


def multiply_accumulate(a: np.ndarray, b: np.ndarray, c: Any) -> np.ndarray:
    """a (m, k) @ b (n, k).T + c (m, n), float64 in, float64 out; c may be 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        return a @ b.T + c


def decode_accumulator(raw: np.ndarray, name: str) -> np.ndarray:
    """Raw accumulator elements (uint32; f16 in the low half) as float64."""
    if name == "f32":
        return raw.view(np.float32).astype(np.float64)
    if name == "s32":
        return raw.view(np.int32).astype(np.float64)
    return raw.astype(np.uint16).view(np.float16).astype(np.float64)


def encode_accumulator(values: np.ndarray, name: str, saturate: bool = False) -> np.ndarray:
    """Round once to the accumulator type; uint32."""
    with np.errstate(invalid="ignore", over="ignore"):
        if name == "f32":
            return values.astype(np.float32).view(np.uint32)
        if name == "s32":
            if saturate:
                values = np.clip(values, -(2.0**31), 2.0**31 - 1)
            return (values.astype(np.int64) & 0xFFFFFFFF).astype(np.uint32)
        return values.astype(np.float16).view(np.uint16).astype(np.uint32)
