"""Moving one box of a tensor between global and shared memory: what cp.async.bulk.tensor (tile mode) does to bytes.

A transfer has two halves, so that an emulated TMA unit can run them at different times: `read_global` then `write_shared`
for loads, `read_shared` then `write_global` or `reduce_global` for stores. Between them the box is a 1-D array of 16-byte
chunks in the order of the box, dimension 0 fastest, without swizzle. `gather4` and `scatter4` are four boxes of one row.

Global memory is reached by address through `View`; shared memory is the uint8 array of a CTA's shared window, whose index
is the shared address: swizzling depends on it.

Measured on an H200: rows of a store that end inside a 16-byte chunk write that chunk as a whole; a box that does not begin
at a multiple of 16 bytes in dimension 0 is an illegal instruction; addresses wrap at 2^64. Assumed, not measured:
chunks are those of global memory, and reductions treat them alike; the NaN that fills is 0x7FF...; TF32 rounds to nearest
even; FTZ matters to FP32 additions only. Refused, because nothing tells what the hardware does: interleaved layouts,
96-byte swizzle and 8-byte flips, swizzled rows shorter than the span, element strides that do not divide the box.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np

from .tensor_map import Atomicity, ElementType, Interleave, Swizzle, TensorMap

CHUNK = 16
SHARED_ALIGNMENT = 128  # of the shared memory address of a box
View = Callable[[int, int], np.ndarray]
"""(address, bytes) to a writable uint8 array over that memory; raises if a byte of it may not be touched.

It is first asked for all bytes from the first to the last row at once. If it refuses that (there is a hole between rows),
it is asked row by row, and only for bytes that the transfer touches.
"""

_WIDE: Any = np.complex128  # any type of 16 bytes: numpy moves it as a whole, and never computes with it
_POISON = 0xA5  # padding of the packed types is left undefined by the hardware
_UNSIGNED: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


class _Window(NamedTuple):
    """The part of a box inside the tensor. Index 0 is dimension 0, in bytes; the others are in rows, images, ...

    address: of its first byte; first: where it begins in the box; counts: its size; steps: bytes between neighbours.
    """

    address: int
    first: tuple[int, ...]
    counts: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the rows, slowest dimension first, without dimension 0."""
        return self.counts[:0:-1]

    @property
    def slices(self) -> tuple[slice, ...]:
        """Selects the window in a box of bytes, slowest dimension first."""
        return tuple(slice(f, f + n) for f, n in zip(self.first[::-1], self.counts[::-1]))


def _refuse(tensor_map: TensorMap) -> None:
    """Raise for descriptors that are not emulated."""
    if tensor_map.interleave is not Interleave.NONE:
        raise NotImplementedError("TMA with an interleaved layout")
    if tensor_map.swizzle is not Swizzle.NONE:
        if tensor_map.swizzle is Swizzle.B96 or tensor_map.atomicity is Atomicity.B32_FLIP_8B:
            raise NotImplementedError(f"TMA swizzle {tensor_map.swizzle.name}, atomicity {tensor_map.atomicity.name}")
        if tensor_map.atomicity is not Atomicity.B16 and tensor_map.swizzle is not Swizzle.B128:
            raise ValueError(f"TMA swizzle {tensor_map.swizzle.name} with atomicity {tensor_map.atomicity.name}")
        if tensor_map.row_chunks * CHUNK != tensor_map.swizzle.span:
            raise NotImplementedError(
                f"rows of {tensor_map.row_chunks * CHUNK} bytes with a swizzle span of {tensor_map.swizzle.span} bytes"
            )


def _window(tensor_map: TensorMap, coordinates: Sequence[int], whole_chunks: bool) -> Optional[_Window]:
    """What of the box at `coordinates` (elements, dimension 0 first, any sign) lies in the tensor; None: nothing.

    whole_chunks: count all of a 16-byte chunk at the end of a row that belongs to the tensor in part.
    """
    if len(coordinates) != tensor_map.rank:
        raise ValueError(f"{len(coordinates)} coordinates for a tensor of rank {tensor_map.rank}")
    bits = tensor_map.element_type.bits
    start, rest = divmod(coordinates[0] * bits, 8)
    if rest or start % CHUNK:
        raise ValueError(
            f"a TMA box begins at element {coordinates[0]} of {bits} bits: not a multiple of {CHUNK} bytes, which is an "
            "illegal instruction"
        )
    end = tensor_map.dims[0] * bits // 8
    if whole_chunks:
        end = -(-end // CHUNK) * CHUNK
    low = max(0, -start)
    count = min(tensor_map.row_bytes, end - start) - low
    if count <= 0:
        return None
    address = tensor_map.address + start + low
    first, counts, steps = [low], [count], [1]
    for i in range(1, tensor_map.rank):
        start, size, every = coordinates[i], tensor_map.dims[i], tensor_map.element_strides[i]
        low = -(start // every) if start < 0 else 0
        count = min(tensor_map.counts[i], -((start - size) // every)) - low
        if count <= 0:
            return None
        stride = tensor_map.strides[i - 1]
        address += (start + low * every) * stride
        first.append(low)
        counts.append(count)
        steps.append(every * stride)
    return _Window(address % (1 << 64), tuple(first), tuple(counts), tuple(steps))


def _whole(window: _Window, view: View, dtype: Any) -> Optional[np.ndarray]:
    """The window as one strided array of `dtype` over global memory, slowest dimension first; None if it has holes."""
    size = window.counts[0]
    span = size + sum((n - 1) * step for n, step in zip(window.counts[1:], window.steps[1:]))
    try:
        raw = view(window.address, span)
    except Exception:
        if len(window.counts) == 1:
            raise
        return None
    item = np.dtype(dtype).itemsize
    strides = window.steps[:0:-1] + (item,)
    return np.ndarray(window.shape + (size // item,), dtype, raw, 0, strides)


def _rows(window: _Window, view: View) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """(index, bytes over global memory) of each row of the window, each checked on its own."""
    steps = window.steps[:0:-1]
    for index in itertools.product(*map(range, window.shape)):
        yield index, view(window.address + sum(map(int.__mul__, index, steps)), window.counts[0])


def read_global(tensor_map: TensorMap, coordinates: Sequence[int], view: View) -> np.ndarray:
    """Chunks of the box at `coordinates`, with zeros or NaNs outside the tensor."""
    _refuse(tensor_map)
    element = tensor_map.element_type
    window = _window(tensor_map, coordinates, whole_chunks=False)
    box = (tensor_map.row_bytes, *tensor_map.counts[1:])
    is_inside = window is not None and window.counts == box
    if window is not None and is_inside and element.chunk_bytes == CHUNK:
        source = _whole(window, view, _WIDE)
        if source is not None:
            return _converted(source.flatten(), element)
    data = _background(tensor_map).reshape(box[::-1])
    if window is not None:
        part = data[window.slices]
        source = _whole(window, view, np.uint8)
        if source is not None:
            part[...] = source
        else:
            for index, row in _rows(window, view):
                part[index] = row
    if element.chunk_bytes == CHUNK:
        return _converted(data.reshape(-1).view(_WIDE), element)
    chunks = np.full((tensor_map.rows * tensor_map.row_chunks, CHUNK), _POISON, np.uint8)
    chunks[:, : element.chunk_bytes] = data.reshape(-1, element.chunk_bytes)
    return chunks.reshape(-1).view(_WIDE)


def _background(tensor_map: TensorMap) -> np.ndarray:
    """Bytes of a box outside the tensor."""
    size = tensor_map.transaction_bytes
    if not tensor_map.nan_fill:
        return np.zeros(size, np.uint8)
    if not tensor_map.element_type.is_float:
        raise ValueError(f"NaN fill of {tensor_map.element_type.name} elements")
    bits = tensor_map.element_type.bits
    return np.full(size * 8 // bits, (1 << bits - 1) - 1, _UNSIGNED[bits]).view(np.uint8)


def _converted(chunks: np.ndarray, element: ElementType) -> np.ndarray:
    """Loads of TF32 tensors round FP32 to it, to nearest even; in place."""
    if element in (ElementType.TF32, ElementType.TF32_FTZ):
        words = chunks.view(np.uint32)
        magnitude = words & np.uint32(0x7FFFFFFF)
        is_finite = magnitude < 0x7F800000
        words[is_finite] += (0xFFF + (words[is_finite] >> 13 & 1)).astype(np.uint32)
        words &= np.uint32(0xFFFFE000)
        if element is ElementType.TF32_FTZ:
            words[magnitude < 0x00800000] &= np.uint32(0x80000000)
    return chunks


@functools.lru_cache(maxsize=512)
def _permutation(count: int, swizzle: Swizzle, atomicity: Atomicity, phase: int) -> np.ndarray:
    """Index of the chunk of a box that goes to each of `count` chunks of shared memory; its own inverse.

    phase: chunk number of the first one in the 1024-byte period of the swizzle pattern.
    """
    index = np.arange(count) + phase
    line = index >> 3  # of 128 bytes
    exchange = {
        Atomicity.B16: line & (1 << swizzle) - 1,
        Atomicity.B32: (line & 3) << 1,
        Atomicity.B64: (line & 1) << 2,
    }[atomicity]
    return (index ^ exchange) - phase


def _shared_part(tensor_map: TensorMap, chunks: int, shared: np.ndarray, offset: int) -> np.ndarray:
    """Chunks [offset, ...) of shared memory."""
    if offset % SHARED_ALIGNMENT:
        raise ValueError(f"shared memory address {offset:#x} of a TMA box is not a multiple of {SHARED_ALIGNMENT}")
    if offset < 0 or offset + chunks * CHUNK > len(shared):
        raise ValueError(
            f"TMA box of {chunks * CHUNK} bytes at {offset:#x} leaves shared memory of {len(shared)} bytes"
        )
    return shared[offset : offset + chunks * CHUNK].view(_WIDE)


def write_shared(tensor_map: TensorMap, chunks: np.ndarray, shared: np.ndarray, offset: int) -> None:
    """Put a box from `read_global` or `read_global_gather4` at `offset` in shared memory, swizzled."""
    target = _shared_part(tensor_map, len(chunks), shared, offset)
    if tensor_map.swizzle is Swizzle.NONE:
        target[:] = chunks
    else:
        order = _permutation(len(chunks), tensor_map.swizzle, tensor_map.atomicity, offset // CHUNK % 64)
        chunks.take(order, out=target, mode="clip")


def read_shared(tensor_map: TensorMap, shared: np.ndarray, offset: int, boxes: int = 1) -> np.ndarray:
    """A copy of the box at `offset` in shared memory, in the order of the box. boxes: 4 for scatter4."""
    _refuse(tensor_map)
    count = boxes * tensor_map.shared_bytes // CHUNK
    source = _shared_part(tensor_map, count, shared, offset)
    if tensor_map.swizzle is Swizzle.NONE:
        return source.copy()
    return source.take(_permutation(count, tensor_map.swizzle, tensor_map.atomicity, offset // CHUNK % 64))


def _stored(
    tensor_map: TensorMap, chunks: np.ndarray, coordinates: Sequence[int]
) -> tuple[Optional[_Window], np.ndarray]:
    """(window, bytes of the box slowest dimension first) of a store."""
    if tensor_map.element_type.chunk_bytes != CHUNK:
        raise NotImplementedError(f"TMA store of {tensor_map.element_type.name}")
    box = (*tensor_map.counts[:0:-1], tensor_map.row_bytes)
    return _window(tensor_map, coordinates, whole_chunks=True), chunks.view(np.uint8).reshape(box)


def write_global(tensor_map: TensorMap, chunks: np.ndarray, coordinates: Sequence[int], view: View) -> None:
    """Store a box from `read_shared`; what lies outside the tensor is dropped."""
    window, data = _stored(tensor_map, chunks, coordinates)
    if window is None:
        return
    if window.counts == data.shape[::-1]:
        target = _whole(window, view, _WIDE)
        if target is not None:
            target[...] = chunks.reshape(target.shape)
            return
    part = data[window.slices]
    target = _whole(window, view, np.uint8)
    if target is not None:
        target[...] = part
        return
    for index, row in _rows(window, view):
        row[:] = part[index]


def reduce_global(tensor_map: TensorMap, chunks: np.ndarray, coordinates: Sequence[int], view: View, op: str) -> None:
    """Combine a box from `read_shared` with global memory, element by element. op: as `reduce_elements`."""
    window, data = _stored(tensor_map, chunks, coordinates)
    element = tensor_map.element_type
    dtype = _reduction_dtype(element, op)
    if window is None:
        return
    part = data[window.slices]
    has_aliases = any(n > 1 and step == 0 for n, step in zip(window.counts, window.steps))
    target = None if has_aliases else _whole(window, view, dtype)
    if target is not None:
        target[...] = reduce_elements(op, element, target, np.ascontiguousarray(part).view(dtype))
        return
    for index, row in _rows(window, view):
        reduce_bytes(op, element, row, part[index])


def load_box(tensor_map: TensorMap, coordinates: Sequence[int], shared: np.ndarray, offset: int, view: View) -> int:
    """Global to shared memory, both halves. Returns the bytes that count on the mbarrier."""
    write_shared(tensor_map, read_global(tensor_map, coordinates, view), shared, offset)
    return tensor_map.transaction_bytes


def store_box(tensor_map: TensorMap, coordinates: Sequence[int], shared: np.ndarray, offset: int, view: View) -> None:
    """Shared to global memory, both halves."""
    write_global(tensor_map, read_shared(tensor_map, shared, offset), coordinates, view)


def reduce_box(
    tensor_map: TensorMap, coordinates: Sequence[int], shared: np.ndarray, offset: int, view: View, op: str
) -> None:
    """cp.reduce.async.bulk.tensor, both halves."""
    reduce_global(tensor_map, read_shared(tensor_map, shared, offset), coordinates, view, op)


def touched_rows(
    tensor_map: TensorMap, coordinates: Sequence[int], gathered: bool, is_store: bool
) -> tuple[np.ndarray, int]:
    """(addresses, bytes of each) of the rows of global memory that a load reads or a store writes; for checkers."""
    boxes = _row_coordinates(tensor_map, coordinates) if gathered else [tuple(coordinates)]
    windows = [w for w in (_window(tensor_map, box, is_store) for box in boxes) if w is not None]
    rows = []
    for window in windows:
        at = np.array([window.address], np.int64)
        for count, step in zip(window.counts[1:], window.steps[1:]):
            at = (np.arange(count, dtype=np.int64)[:, None] * step + at).reshape(-1)
        rows.append(at)
    if not windows:
        return np.zeros(0, np.uint64), 0
    return np.concatenate(rows).astype(np.uint64), windows[0].counts[0]


def _row_coordinates(tensor_map: TensorMap, coordinates: Sequence[int]) -> list[tuple[int, int]]:
    """(column, row) of each of the four boxes."""
    if tensor_map.rank != 2 or tensor_map.box[1] != 1 or len(coordinates) != 5:
        raise ValueError(
            f"gather4 and scatter4 take a column and 4 rows of a matrix, one row a box: box {tensor_map.box}"
        )
    return [(coordinates[0], row) for row in coordinates[1:]]


def read_global_gather4(tensor_map: TensorMap, coordinates: Sequence[int], view: View) -> np.ndarray:
    """.tile::gather4: rows coordinates[1:5] from column coordinates[0] on, one after the other.

    Counts 4 * `transaction_bytes` on the mbarrier.
    """
    return np.concatenate([read_global(tensor_map, box, view) for box in _row_coordinates(tensor_map, coordinates)])


def write_global_scatter4(tensor_map: TensorMap, chunks: np.ndarray, coordinates: Sequence[int], view: View) -> None:
    """.tile::scatter4: the inverse of gather4, of `read_shared(..., boxes=4)`."""
    boxes = _row_coordinates(tensor_map, coordinates)
    for box, row in zip(boxes, np.split(chunks, len(boxes))):
        write_global(tensor_map, row, box, view)


_INTEGERS = (ElementType.U32, ElementType.S32, ElementType.U64, ElementType.S64)
_HALVES = (ElementType.F16, ElementType.BF16)
_FLOATS = (ElementType.F32, ElementType.F32_FTZ, ElementType.F64)
_REDUCTIONS: dict[str, tuple[ElementType, ...]] = {
    "add": (*_INTEGERS, *_HALVES, *_FLOATS),
    "min": (*_INTEGERS, *_HALVES),
    "max": (*_INTEGERS, *_HALVES),
    "inc": (ElementType.U32,),
    "dec": (ElementType.U32,),
    "and": _INTEGERS,
    "or": _INTEGERS,
    "xor": _INTEGERS,
}

REDUCTION_TYPES = {
    "f16": ElementType.F16,
    "bf16": ElementType.BF16,
    "f32": ElementType.F32_FTZ,  # PTX ISA: add.f32 on global memory flushes subnormal inputs and results
    "f64": ElementType.F64,
    "u32": ElementType.U32,
    "s32": ElementType.S32,
    "u64": ElementType.U64,
    "s64": ElementType.S64,
    "b32": ElementType.U32,
    "b64": ElementType.U64,
}
"""Element type of each `.type` of cp.reduce.async.bulk."""


def _reduction_dtype(element: ElementType, op: str) -> Any:
    """Unsigned dtype of the elements; raises if the instruction does not exist."""
    if element not in _REDUCTIONS.get(op, ()):
        raise ValueError(f"TMA reduction {op} of {element.name}")
    return _UNSIGNED[element.bits]


def reduce_bytes(op: str, element: ElementType, target: np.ndarray, source: np.ndarray) -> None:
    """cp.reduce.async.bulk: target = op(target, source) of two uint8 arrays that hold whole elements."""
    dtype = _reduction_dtype(element, op)
    elements = target.view(dtype)
    elements[:] = reduce_elements(op, element, elements, np.ascontiguousarray(source).view(dtype))


def reduce_elements(op: str, element: ElementType, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """What memory holds after the reduction of `old` with the operand `new`, all as unsigned integers of the same size.

    op: add, min, max, inc, dec, and, or, xor. Floating point: to nearest even, subnormals kept except by F32_FTZ.
    """
    if op in ("and", "or", "xor"):
        return {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[op](old, new)
    if op == "inc":
        return np.where(old >= new, np.uint32(0), old + np.uint32(1))
    if op == "dec":
        return np.where((old == 0) | (old > new), new, old - np.uint32(1))
    if op == "add":
        return _add(element, old, new)
    if element in _HALVES:
        return _extremum_of_halves(op, element, old, new)
    pick = np.minimum if op == "min" else np.maximum
    if element in (ElementType.S32, ElementType.S64):
        signed = np.int32 if element is ElementType.S32 else np.int64
        return pick(old.view(signed), new.view(signed)).view(old.dtype)
    return pick(old, new)


def _add(element: ElementType, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    if element in _INTEGERS:
        return old + new
    with np.errstate(over="ignore", invalid="ignore"):
        if element is ElementType.BF16:
            # FP32 has more than twice the bits of BF16: rounding twice is the same as rounding once.
            total = (old.astype(np.uint32) << 16).view(np.float32) + (new.astype(np.uint32) << 16).view(np.float32)
            bits = total.view(np.uint32)
            rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
            return np.where(np.isnan(total), 0x7FFF, rounded).astype(np.uint16)
        dtype: Any = {16: np.float16, 32: np.float32, 64: np.float64}[element.bits]
        if element is ElementType.F32_FTZ:
            return _flushed((_flushed(old).view(dtype) + _flushed(new).view(dtype)).view(old.dtype))
        return (old.view(dtype) + new.view(dtype)).view(old.dtype)


def _flushed(bits: np.ndarray) -> np.ndarray:
    """FP32 with subnormals replaced by zeros of their sign."""
    return np.where(bits & np.uint32(0x7F800000), bits, bits & np.uint32(0x80000000))


def _extremum_of_halves(op: str, element: ElementType, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Like PTX min and max: -0 is below +0, and a NaN loses against a number."""
    infinity = 0x7C00 if element is ElementType.F16 else 0x7F80
    keys = [np.where(bits & 0x8000, ~bits, bits | np.uint16(0x8000)) for bits in (old, new)]  # ordered as unsigned
    old_is_nan, new_is_nan = ((bits & np.uint16(0x7FFF)) > infinity for bits in (old, new))
    takes_new = (keys[1] < keys[0]) if op == "min" else (keys[1] > keys[0])
    result = np.where((takes_new | old_is_nan) & ~new_is_nan, new, old)
    return np.where(old_is_nan & new_is_nan, np.uint16(0x7FFF), result)
