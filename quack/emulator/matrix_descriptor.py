"""Operands of wgmma and tcgen05: the 64-bit descriptor of a matrix in shared memory, and the tcgen05 instruction descriptor.

Sources: PTX ISA, "Matrix descriptor format" of wgmma and "Shared memory descriptor", "Canonical layouts", "Instruction
descriptor" of tcgen05; the same in CUTLASS, cute/atom/mma_traits_sm90_gmma.hpp and cute/arch/mma_sm100_desc.hpp.

A matrix is (rows, k): rows is M of A or N of B. One row of 8 x `span` bytes is the pattern that repeats ("swizzle
atom"); LBO and SBO are the leading and stride byte offsets of the descriptor:

| major | swizzle | contiguous | next 8 of the other dimension | next atom along the contiguous one |
|---|---|---|---|---|
| K | none | 16 bytes of k | rows: SBO | k: LBO |
| K | 32 to 128 bytes | span bytes of k | rows: SBO | never: an instruction's k fits in one atom (LBO unused) |
| MN | none | 16 bytes of rows | k: LBO | rows: SBO |
| MN | 32 to 128 bytes | span bytes of rows | k: SBO | rows: LBO |

Within an atom, lines follow each other at `span` bytes. The swizzle then applies to the address as a whole.
"""

import enum
import functools
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

CHUNK = 16  # bytes that swizzling and LBO, SBO never split
_ADDRESS_MASK = 0x3FFFF  # matrix-descriptor-encode keeps 18 bits
_WIDE: Any = np.complex128  # any type of 16 bytes: numpy gathers it as a whole, and never computes with it
_UNSIGNED: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32}


class Major(enum.IntEnum):
    """The dimension along which elements are contiguous; the value of the transpose bits of the instructions."""

    K = 0
    MN = 1


class MatrixSwizzle(enum.Enum):
    """(span in bytes of one line, log2 of the unit that moves, exchanged bits, distance of the bits that choose)."""

    NONE = (16, 4, 0, 3)
    B32 = (32, 4, 1, 3)
    B64 = (64, 4, 2, 3)
    B128 = (128, 4, 3, 3)
    B128_BASE_32B = (128, 5, 2, 2)  # tcgen05, MN-major 32-bit elements; its atom has 4 lines

    @property
    def span(self) -> int:
        """Bytes of one line."""
        return self.value[0]

    @property
    def lines(self) -> int:
        """Lines of an atom."""
        return 4 if self is MatrixSwizzle.B128_BASE_32B else 8

    def apply(self, addresses: np.ndarray) -> np.ndarray:
        """Physical byte addresses of logical ones: Swizzle<bits, unit, distance> of CuTe."""
        _, unit, bits, distance = self.value
        chosen = (1 << bits) - 1 << unit
        return addresses ^ (addresses >> distance & chosen)


_WGMMA_SWIZZLE = (MatrixSwizzle.NONE, MatrixSwizzle.B128, MatrixSwizzle.B64, MatrixSwizzle.B32)
_TCGEN05_SWIZZLE = {
    0: MatrixSwizzle.NONE,
    1: MatrixSwizzle.B128_BASE_32B,
    2: MatrixSwizzle.B128,
    4: MatrixSwizzle.B64,
    6: MatrixSwizzle.B32,
}


@dataclass(frozen=True)
class MatrixDescriptor:
    """start, leading (LBO), stride (SBO): bytes, 18 bits each; start is an offset in the CTA's shared window.

    version: 1 in tcgen05 descriptors, 0 in wgmma's. is_leading_absolute: LBO is an address (sm_103a, k of 48 bytes).
    """

    start: int
    leading: int
    stride: int
    swizzle: MatrixSwizzle
    base_offset: int = 0
    version: int = 0
    is_leading_absolute: bool = False

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def decode_wgmma(bits: int) -> "MatrixDescriptor":
        """From the 64-bit operand of wgmma.mma_async. Reserved bits are ignored, as by the hardware."""
        return MatrixDescriptor(*_strides(bits), _WGMMA_SWIZZLE[bits >> 62 & 3], bits >> 49 & 7)

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def decode_tcgen05(bits: int) -> "MatrixDescriptor":
        """From the 64-bit operand of tcgen05.mma or tcgen05.cp."""
        mode, version = bits >> 61 & 7, bits >> 46 & 7
        if mode not in _TCGEN05_SWIZZLE or version != 1:
            raise ValueError(
                f"tcgen05 shared memory descriptor {bits:#018x}: swizzle mode {mode}, bits 46 to 48 {version}"
            )
        return MatrixDescriptor(*_strides(bits), _TCGEN05_SWIZZLE[mode], bits >> 49 & 7, version, bool(bits >> 52 & 1))


def _strides(bits: int) -> tuple[int, int, int]:
    """(start, LBO, SBO) in bytes."""
    return (bits & 0x3FFF) << 4, (bits >> 16 & 0x3FFF) << 4, (bits >> 32 & 0x3FFF) << 4


def _addresses(descriptor: MatrixDescriptor, row_bytes: np.ndarray, k: np.ndarray, major: Major) -> np.ndarray:
    """Physical addresses; row_bytes and k broadcast.

    K-major: row_bytes is the index of the row and k the byte along k; MN-major: the byte along rows and the index of k.
    """
    if descriptor.base_offset or descriptor.is_leading_absolute:
        raise NotImplementedError(f"matrix descriptor with a base offset or an absolute leading address: {descriptor}")
    swizzle = descriptor.swizzle
    inner, outer = (k, row_bytes) if major is Major.K else (row_bytes, k)
    span, lines = swizzle.span, swizzle.lines
    inner_step, outer_step = descriptor.leading, descriptor.stride
    if swizzle is MatrixSwizzle.NONE and major is Major.MN:
        inner_step, outer_step = outer_step, inner_step
    if swizzle is not MatrixSwizzle.NONE and major is Major.K and inner.max(initial=0) >= span:
        raise NotImplementedError(f"K-major operand whose k exceeds the swizzle span of {span} bytes")
    if swizzle is MatrixSwizzle.B128_BASE_32B and major is Major.K:
        raise ValueError("128-byte swizzle with 32-byte atomicity is for MN-major operands only")
    within = inner % span + outer % lines * span
    linear = descriptor.start + within + inner // span * inner_step + outer // lines * outer_step
    return swizzle.apply(linear & _ADDRESS_MASK)


@functools.lru_cache(maxsize=512)
def element_offsets(descriptor: MatrixDescriptor, rows: int, k: int, element_bits: int, major: Major) -> np.ndarray:
    """int32 (rows, k): offset in the shared window of the byte that holds each element (read-only array).

    element_bits: 8, 16 or 32; 4 for packed FP4 (K-major), element k in the low half of its byte if k is even.
    """
    row = np.arange(rows, dtype=np.int64)[:, None]
    column = np.arange(k, dtype=np.int64)[None, :]
    if major is Major.K:
        column = column * element_bits // 8
    elif element_bits >= 8:
        row = row * (element_bits // 8)
    else:
        raise ValueError("packed 4-bit elements are K-major only")
    offsets = _addresses(descriptor, row, column, major).astype(np.int32)
    offsets.flags.writeable = False
    return offsets


@functools.lru_cache(maxsize=4096)
def chunk_indices(descriptor: MatrixDescriptor, rows: int, k: int, element_bits: int, major: Major) -> np.ndarray:
    """Offsets / 16 of the 16-byte chunks that hold the matrix: (rows, chunks) if K-major, (k, chunks) if MN-major.

    For checkers the bytes that the instruction reads; for `read_matrix` the gather.
    """
    contiguous, lines = (k, rows) if major is Major.K else (rows, k)
    starts = np.arange(0, -(-contiguous * element_bits // 8), CHUNK, dtype=np.int64)[None, :]
    others = np.arange(lines, dtype=np.int64)[:, None]
    inner_outer = (others, starts) if major is Major.K else (starts, others)
    indices = (_addresses(descriptor, *inner_outer, major) // CHUNK).astype(np.intp)
    indices.flags.writeable = False
    return indices


def read_matrix(
    shared: np.ndarray, descriptor: MatrixDescriptor, rows: int, k: int, element_bits: int, major: Major
) -> np.ndarray:
    """(rows, k) raw elements: uint8, uint16 or uint32; 4-bit elements as uint8 below 16.

    shared: uint8, the shared window of a CTA, a multiple of 16 bytes.
    """
    indices = chunk_indices(descriptor, rows, k, element_bits, major)
    chunks = shared.view(_WIDE).take(indices)
    if element_bits == 4:
        return unpack_nibbles(chunks.view(np.uint8))[:, :k]
    elements = chunks.view(_UNSIGNED[element_bits])
    return elements[:, :k] if major is Major.K else elements[:, :rows].T


def unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    """(..., n) bytes to (..., 2 n) 4-bit values, the low half first."""
    return np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:-1], -1)


def unpack_padded(raw: np.ndarray, element_bits: int) -> np.ndarray:
    """Elements of the .b4x16_p64 and .b6x16_p32 formats, which kind::f8f6f4 reads: 16 of them in each 16-byte chunk.

    raw: (rows, n) bytes as `read_matrix` with 8-bit elements returns them; result: (rows, n), one element per byte.
    """
    chunks = raw.reshape(*raw.shape[:-1], -1, CHUNK)
    if element_bits == 4:
        return unpack_nibbles(chunks[..., :8]).reshape(raw.shape)
    if element_bits != 6:
        raise ValueError(f"padded format of {element_bits}-bit elements")
    triples = chunks[..., :12].reshape(*chunks.shape[:-1], 4, 3).astype(np.uint32)
    words = triples[..., 0] | triples[..., 1] << 8 | triples[..., 2] << 16  # 4 elements of 6 bits
    shifts = np.arange(0, 24, 6, dtype=np.uint32)
    return (words[..., None] >> shifts & 63).astype(np.uint8).reshape(raw.shape)


_F8F6F4 = {0: "e4m3", 1: "e5m2", 3: "e2m3", 4: "e3m2", 5: "e2m1"}
_E2M1 = {1: "e2m1"}
# Formats of A and B by .kind, and k of one dense instruction.
_INPUTS = {
    "f16": ({0: "f16", 1: "bf16"}, 16),
    "tf32": ({2: "tf32"}, 8),
    "f8f6f4": (_F8F6F4, 32),
    "i8": ({0: "u8", 1: "s8"}, 32),
    "mxf8f6f4": (_F8F6F4, 32),
    "mxf4": (_E2M1, 64),
    "mxf4nvf4": (_E2M1, 64),
}
_OUTPUTS = {0: "f16", 1: "f32", 2: "s32"}
_SCALES = {0: "ue4m3", 1: "ue8m0"}


@dataclass(frozen=True)
class InstructionDescriptor:
    """What one tcgen05.mma computes. m, n, k: of the instruction as a whole, both CTAs of a pair together.

    a_format, b_format, d_format: PTX type names. a_major, b_major: of the operands in shared memory. sparse_selector: which
    columns of the sparsity metadata. max_shift: columns that .ws may shift B. scale_format: None without block scaling;
    a_scale_id, b_scale_id: byte of the 32-bit scale factor columns.
    """

    kind: str
    a_format: str
    b_format: str
    d_format: str
    m: int
    n: int
    k: int
    a_major: Major
    b_major: Major
    negate_a: bool
    negate_b: bool
    is_sparse: bool
    sparse_selector: int = 0
    saturates: bool = False
    max_shift: int = 0
    scale_format: Optional[str] = None
    a_scale_id: int = 0
    b_scale_id: int = 0

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def decode(bits: int, kind: str) -> "InstructionDescriptor":
        """bits: the 32-bit operand; kind: `.kind` of the instruction ("f16", "mxf4nvf4", ...).

        Raises ValueError for values that the PTX ISA does not define.
        """
        if kind not in _INPUTS:
            raise ValueError(f"tcgen05.mma .kind::{kind}")
        formats, dense_k = _INPUTS[kind]
        is_scaled = kind.startswith("mx")
        a, b = bits >> 7 & 7, bits >> 10 & (3 if kind in ("mxf4", "mxf4nvf4") else 7)
        d = 1 if is_scaled else bits >> 4 & 3
        if a not in formats or b not in formats or d not in _OUTPUTS:
            raise ValueError(f"tcgen05 instruction descriptor {bits:#010x}: formats {a}, {b}, {d} with .kind::{kind}")
        is_sparse = bool(bits >> 2 & 1)
        k = dense_k * (1 + is_sparse)
        if is_scaled and bits >> 31:
            if k != 64:
                raise ValueError(f"tcgen05 instruction descriptor {bits:#010x}: bit 31 with .kind::{kind}")
            k = 96
        shift = 0 if is_scaled else bits >> 30 & 3
        return InstructionDescriptor(
            kind=kind,
            a_format=formats[a],
            b_format=formats[b],
            d_format=_OUTPUTS[d],
            m=(bits >> 27 & 3) << 7 if is_scaled else (bits >> 24 & 31) << 4,
            n=(bits >> 17 & 63) << 3,
            k=k,
            a_major=Major(bits >> 15 & 1),
            b_major=Major(bits >> 16 & 1),
            negate_a=bool(bits >> 13 & 1),
            negate_b=bool(bits >> 14 & 1),
            is_sparse=is_sparse,
            sparse_selector=bits & 3,
            saturates=kind == "i8" and bool(bits >> 3 & 1),
            max_shift=4 << shift if shift else 0,
            scale_format=_SCALES[bits >> 23 & 1] if is_scaled else None,
            a_scale_id=bits >> 29 & 3 if is_scaled else 0,
            b_scale_id=bits >> 4 & 3 if is_scaled else 0,
        )
