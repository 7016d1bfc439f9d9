"""Boxes moved by the emulated TMA unit, against references that go element by element."""

import dataclasses
import itertools
import random
import time

import numpy as np
import pytest

from quack.emulator import tma_box
from quack.emulator.tensor_map import Atomicity, ElementType, Interleave, Swizzle, TensorMap

SHARED = 64 * 1024


class Memory:
    """Global memory at made-up addresses; only `legal` intervals may be asked for."""

    def __init__(self, base: int, size: int, seed: int = 0) -> None:
        self.base = base
        self.bytes = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
        self.legal = [(base, base + size)]

    def view(self, address: int, size: int) -> np.ndarray:
        if not any(start <= address and address + size <= end for start, end in self.legal):
            raise PermissionError(f"{address:#x} + {size}")
        return self.bytes[address - self.base : address - self.base + size]


def physical(address: int, tensor_map: TensorMap) -> int:
    """Where byte `address` of an unswizzled box in shared memory goes: tables of PTX ISA, "Swizzling modes"."""
    line = address >> 7
    if tensor_map.atomicity is Atomicity.B32:
        return address ^ (line & 3) << 5
    if tensor_map.atomicity is Atomicity.B64:
        return address ^ (line & 1) << 6
    return address ^ (line & {"NONE": 0, "B32": 1, "B64": 3, "B128": 7}[tensor_map.swizzle.name]) << 4


def elements(tensor_map: TensorMap, coordinates, offset: int):
    """(global address, is inside the tensor, is inside or in the last started chunk of a row, shared address)."""
    size = tensor_map.element_type.bits // 8
    end_of_row = -(-tensor_map.dims[0] * size // 16) * 16
    steps = [range(0, b, e) for b, e in zip(tensor_map.box, tensor_map.element_strides)]
    for linear, index in enumerate(itertools.product(*steps[::-1])):
        position = [c + i for c, i in zip(coordinates, index[::-1])]
        inside = all(0 <= p < n for p, n in zip(position, tensor_map.dims))
        rows_inside = all(0 <= p < n for p, n in zip(position[1:], tensor_map.dims[1:]))
        stored = rows_inside and 0 <= position[0] * size < end_of_row
        address = tensor_map.address + position[0] * size
        address += sum(p * s for p, s in zip(position[1:], tensor_map.strides))
        yield address, inside, stored, physical(offset + linear * size, tensor_map)


def random_case(rng: random.Random, element: ElementType, swizzle: Swizzle, rank: int):
    """(tensor map, coordinates, shared offset, memory): a small tensor with padding, a box across its edges."""
    size = element.bits // 8
    span = swizzle.span or rng.choice([16, 48, 80])
    box = [span // size] + [rng.randint(1, 4) for _ in range(rank - 1)]
    element_strides = [1] + [rng.choice([1, 1, 2]) for _ in range(rank - 1)]
    box = [b * e for b, e in zip(box, element_strides)]
    dims = [rng.randint(1, 150 // size)] + [rng.randint(1, 6) for _ in range(rank - 1)]
    strides, pitch = [], -(-dims[0] * size // 16) * 16
    for n in dims[1:]:
        pitch += 16 * rng.randint(0, 2)
        strides.append(pitch)
        pitch *= n
    memory = Memory(0x7F0000000000, pitch + 16, rng.getrandbits(30))
    tensor_map = TensorMap(
        address=memory.base,
        element_type=element,
        dims=tuple(dims),
        strides=tuple(strides),
        box=tuple(box),
        element_strides=tuple(element_strides),
        swizzle=swizzle,
        atomicity=rng.choice([Atomicity.B16, Atomicity.B32, Atomicity.B64])
        if swizzle is Swizzle.B128
        else Atomicity.B16,
    )
    coordinates = [rng.randint(-b, d + 1) for b, d in zip(box, dims)]
    coordinates[0] -= coordinates[0] % (16 // size)  # what the hardware asks for
    return tensor_map, coordinates, 1024 + 128 * rng.randint(0, 20), memory


CASES = [
    (element, swizzle, rank)
    for element in (ElementType.U8, ElementType.BF16, ElementType.F32, ElementType.S64)
    for swizzle in (Swizzle.NONE, Swizzle.B32, Swizzle.B64, Swizzle.B128)
    for rank in (1, 2, 3, 5)
]


@pytest.mark.parametrize("element, swizzle, rank", CASES)
def test_loads_and_stores_against_single_elements(element, swizzle, rank):
    rng = random.Random(f"{element} {swizzle} {rank}")
    size = element.bits // 8
    for _ in range(6):
        tensor_map, coordinates, offset, memory = random_case(rng, element, swizzle, rank)
        shared = np.random.default_rng(3).integers(0, 256, SHARED, dtype=np.uint8)
        loaded = shared.copy()
        stored = memory.bytes.copy()
        for address, inside, writes, there in elements(tensor_map, coordinates, offset):
            here = address - memory.base
            loaded[there : there + size] = memory.bytes[here : here + size] if inside else 0
            if writes:
                stored[here : here + size] = shared[there : there + size]
        actual = shared.copy()
        count = tma_box.load_box(tensor_map, coordinates, actual, offset, memory.view)
        np.testing.assert_array_equal(actual, loaded)
        assert count == tensor_map.transaction_bytes == tensor_map.shared_bytes
        tma_box.store_box(tensor_map, coordinates, shared, offset, memory.view)
        np.testing.assert_array_equal(memory.bytes, stored)


def test_the_last_chunk_of_a_row_is_stored_as_a_whole():
    """Measured on an H200: 13 BF16 elements end in the middle of the second chunk."""
    memory = Memory(0x10000, 4 * 64)
    before = memory.bytes.copy()
    tensor_map = TensorMap(0x10000, ElementType.BF16, (13, 4), (64,), (32, 4), (1, 1))
    shared = np.arange(SHARED, dtype=np.uint32).astype(np.uint8)
    tma_box.store_box(tensor_map, (0, 0), shared, 1024, memory.view)
    rows, source = memory.bytes.reshape(4, 64), shared[1024:][:256].reshape(4, 64)
    np.testing.assert_array_equal(rows[:, :32], source[:, :32])
    np.testing.assert_array_equal(rows[:, 32:], before.reshape(4, 64)[:, 32:])


def test_only_bytes_that_are_touched_are_asked_for():
    """Rows in separate allocations with holes between them, and a box that ends behind the last one."""
    memory = Memory(0x10000, 8 * 256)
    tensor_map = TensorMap(0x10000, ElementType.BF16, (60, 8), (256,), (64, 4), (1, 1), Swizzle.B128)
    memory.legal = [(0x10000 + 256 * row, 0x10000 + 256 * row + 128) for row in range(8)]
    shared = np.zeros(SHARED, np.uint8)
    tma_box.load_box(tensor_map, (0, 6), shared, 1024, memory.view)
    assert shared[1024:][:256].any() and not shared[1024 + 256 :].any()
    before = memory.bytes.copy()
    tma_box.store_box(tensor_map, (0, 2), shared, 1024, memory.view)
    tma_box.reduce_box(
        dataclasses.replace(tensor_map, element_type=ElementType.F16), (0, 2), shared, 1024, memory.view, "add"
    )
    rows = before.reshape(8, 256)
    np.testing.assert_array_equal(memory.bytes.reshape(8, 256)[:, 128:], rows[:, 128:])
    np.testing.assert_array_equal(memory.bytes.reshape(8, 256)[[0, 1, 6, 7]], rows[[0, 1, 6, 7]])

    memory.legal = [(0x10000 + 256 * row, 0x10000 + 256 * row + 120) for row in range(8)]
    tma_box.load_box(tensor_map, (0, 0), shared, 1024, memory.view)  # reads 60 elements
    with pytest.raises(PermissionError):
        tma_box.store_box(tensor_map, (0, 0), shared, 1024, memory.view)  # writes 64
    memory.legal = []
    assert tma_box.load_box(tensor_map, (64, 0), shared, 1024, memory.view) == 512
    assert not shared[1024:][:512].any(), "a box outside the tensor touches no global memory"


@pytest.mark.parametrize("element", [ElementType.F16, ElementType.BF16, ElementType.F32, ElementType.F64])
def test_nan_fill(element):
    memory = Memory(0x10000, 1024)
    memory.bytes[:] = 0
    tensor_map = TensorMap(0x10000, element, (3, 2), (128,), (16, 4), (1, 1), nan_fill=True)
    before = 16 * 8 // element.bits
    chunks = tma_box.read_global(tensor_map, (-before, 0), memory.view)
    bits = chunks.view({16: np.uint16, 32: np.uint32, 64: np.uint64}[element.bits]).reshape(4, 16)
    assert (bits[:2, before : before + 3] == 0).all()
    outside = np.ones((4, 16), bool)
    outside[:2, before : before + 3] = False
    dtype = {ElementType.F16: np.float16, ElementType.F32: np.float32, ElementType.F64: np.float64}.get(element)
    values = bits.view(dtype) if dtype else (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.isnan(values[outside]).all()
    with pytest.raises(ValueError, match="NaN fill"):
        tma_box.read_global(dataclasses.replace(tensor_map, element_type=ElementType.U16), (-8, 0), memory.view)


def test_loads_round_to_tf32():
    memory = Memory(0x10000, 256)
    values = np.array(
        [1.0, 1 + 2**-11, 1 + 2**-10 + 2**-11, -(1 + 2**-11 + 2**-20), np.inf, np.nan, 1e-40, 0], np.float32
    )
    memory.bytes[:32] = values.view(np.uint8)
    tensor_map = TensorMap(0x10000, ElementType.TF32, (8,), (), (8,), (1,))
    loaded = tma_box.read_global(tensor_map, (0,), memory.view).view(np.float32)
    expected = np.array([1.0, 1.0, 1 + 2**-9, -(1 + 2**-10), np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(loaded[:6], expected)
    assert not (loaded.view(np.uint32) & 0x1FFF).any() and loaded[6] > 0
    flushing = dataclasses.replace(tensor_map, element_type=ElementType.TF32_FTZ)
    assert tma_box.read_global(flushing, (0,), memory.view).view(np.float32)[6] == 0


@pytest.mark.parametrize(
    "element, data", [(ElementType.B4X16_P64, 8), (ElementType.B6X16_P32, 12), (ElementType.B4X16, 16)]
)
def test_packed_types(element, data):
    memory = Memory(0x10000, 4096)
    tensor_map = TensorMap(0x10000, element, (256, 6), (256,), (128, 4), (1, 1), Swizzle.NONE)
    shared = np.zeros(SHARED, np.uint8)
    count = tma_box.load_box(tensor_map, (128, 4), shared, 1024, memory.view)
    row = 128 * element.bits // 8
    assert count == 4 * row
    box = shared[1024:][: tensor_map.shared_bytes].reshape(4, -1, 16)
    rows = memory.bytes.reshape(16, 256)[4:6, row : 2 * row].reshape(2, -1, data)
    np.testing.assert_array_equal(box[:2, :, :data], rows)
    assert not box[2:, :, :data].any()
    if element is ElementType.B4X16:
        before = memory.bytes.copy()
        tma_box.store_box(tensor_map, (128, 0), shared, 1024, memory.view)
        changed = np.flatnonzero((memory.bytes != before).reshape(16, 256).any(0))
        assert changed.min() >= row and changed.max() < 2 * row
    else:
        with pytest.raises(NotImplementedError, match="store"):
            tma_box.store_box(tensor_map, (0, 0), shared, 1024, memory.view)


def test_gather_and_scatter_four_rows():
    memory = Memory(0x10000, 16 * 256)
    tensor_map = TensorMap(0x10000, ElementType.BF16, (128, 16), (256,), (64, 1), (1, 1), Swizzle.B128)
    whole = dataclasses.replace(tensor_map, box=(64, 4))
    rows = memory.bytes.reshape(16, 256)
    coordinates = (32, 9, 2, 16, 2)
    chunks = tma_box.read_global_gather4(tensor_map, coordinates, memory.view)
    shared = np.zeros(SHARED, np.uint8)
    tma_box.write_shared(tensor_map, chunks, shared, 1024 + 256)
    box = tma_box.read_shared(whole, shared, 1024 + 256).view(np.uint8).reshape(4, 128)
    np.testing.assert_array_equal(box[:2], rows[[9, 2], 64:192])
    assert not box[2].any(), "row 16 is outside"
    np.testing.assert_array_equal(box[3], rows[2, 64:192])

    before = rows.copy()
    chunks = tma_box.read_shared(tensor_map, shared, 1024 + 256, boxes=4)
    tma_box.write_global_scatter4(tensor_map, chunks, (0, 5, 4, 3, -1), memory.view)
    np.testing.assert_array_equal(rows[[5, 4, 3], :128], box[:3])
    before[[5, 4, 3], :128] = box[:3]
    np.testing.assert_array_equal(rows, before)
    with pytest.raises(ValueError, match="gather4"):
        tma_box.read_global_gather4(whole, coordinates, memory.view)


def as_floats(bits: np.ndarray, element: ElementType) -> np.ndarray:
    if element is ElementType.BF16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


@pytest.mark.parametrize("element", [ElementType.F16, ElementType.BF16])
def test_half_reductions(element):
    """All pairs of a few special values and random ones, against float64 and an exact search of the nearest value."""
    rng = np.random.default_rng(5)
    special = np.array(
        [0, 0x8000, 1, 0x8001, 0x7C00, 0xFC00, 0x7F80, 0xFF80, 0x7FC0, 0x7E00, 0x3C00, 0x3F80], np.uint16
    )
    bits = np.concatenate([special, rng.integers(0, 1 << 16, 60, dtype=np.uint16)])
    old, new = (x.ravel() for x in np.meshgrid(bits, bits))
    a, b = as_floats(old, element).astype(np.float64), as_floats(new, element).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        total = a + b
        added = as_floats(tma_box.reduce_elements("add", element, old, new), element).astype(np.float64)
        np.testing.assert_array_equal(np.isnan(added), np.isnan(total))
        all_values = as_floats(np.arange(1 << 16, dtype=np.uint32).astype(np.uint16), element).astype(np.float64)
        finite = np.unique(all_values[np.isfinite(all_values)])
        ok = np.isfinite(added) & np.isfinite(total)
        right = np.clip(np.searchsorted(finite, total[ok]), 1, len(finite) - 1)
        nearest = np.minimum(abs(finite[right] - total[ok]), abs(finite[right - 1] - total[ok]))
        np.testing.assert_array_equal(abs(added[ok] - total[ok]), nearest)
    for op, pick in (("min", np.fmin), ("max", np.fmax)):
        result = tma_box.reduce_elements(op, element, old, new)
        np.testing.assert_array_equal(as_floats(result, element).astype(np.float64), pick(a, b))
    zeros = np.array([0, 0x8000], np.uint16)
    assert tma_box.reduce_elements("min", element, zeros, zeros[::-1]).tolist() == [0x8000, 0x8000]
    assert tma_box.reduce_elements("max", element, zeros, zeros[::-1]).tolist() == [0, 0]


INTEGER_OPS = {
    "add": lambda a, b, signed, bits: a + b,
    "min": lambda a, b, signed, bits: min(signed(a), signed(b)),
    "max": lambda a, b, signed, bits: max(signed(a), signed(b)),
    "and": lambda a, b, signed, bits: a & b,
    "or": lambda a, b, signed, bits: a | b,
    "xor": lambda a, b, signed, bits: a ^ b,
    "inc": lambda a, b, signed, bits: 0 if a >= b else a + 1,
    "dec": lambda a, b, signed, bits: b if a == 0 or a > b else a - 1,
}


@pytest.mark.parametrize("op", INTEGER_OPS)
@pytest.mark.parametrize("element", [ElementType.U32, ElementType.S32, ElementType.U64, ElementType.S64])
def test_integer_reductions(op, element):
    bits = element.bits
    dtype = np.uint32 if bits == 32 else np.uint64
    rng = random.Random(7)
    edge = [0, 1, 2, (1 << bits) - 1, 1 << bits - 1, (1 << bits - 1) - 1]
    values = edge + [rng.getrandbits(bits) for _ in range(6)]
    old, new = (np.array(x, dtype) for x in zip(*itertools.product(values, values)))
    if op in ("inc", "dec") and element is not ElementType.U32:
        with pytest.raises(ValueError, match=op):
            tma_box.reduce_bytes(op, element, old.view(np.uint8), new.view(np.uint8))
        return
    is_signed = element in (ElementType.S32, ElementType.S64)
    signed = (lambda x: x - (1 << bits) if x >> bits - 1 else x) if is_signed else int
    expected = [INTEGER_OPS[op](int(a), int(b), signed, bits) % (1 << bits) for a, b in zip(old, new)]
    tma_box.reduce_bytes(op, element, old.view(np.uint8), new.view(np.uint8))
    assert old.tolist() == expected


def test_fp32_reductions():
    tiny = np.array([1e-40, -1e-40, 1.5e-38, 3.0], np.float32)
    other = np.array([1e-40, -1e-40, -1.4e-38, 1e-8], np.float32)
    old, new = tiny.view(np.uint32), other.view(np.uint32)
    kept = tma_box.reduce_elements("add", ElementType.F32, old, new).view(np.float32)
    np.testing.assert_array_equal(kept, tiny + other)
    flushed = tma_box.reduce_elements("add", tma_box.REDUCTION_TYPES["f32"], old, new)
    assert flushed.tolist() == [0, 0x80000000, 0, (tiny + other).view(np.uint32)[3]]
    with pytest.raises(ValueError, match="min"):
        tma_box.reduce_bytes("min", ElementType.F32, old.view(np.uint8), new.view(np.uint8))


def test_reduction_of_a_clipped_box():
    memory = Memory(0x10000, 8 * 256)
    memory.bytes[:] = np.random.default_rng(1).standard_normal(512).astype(np.float32).view(np.uint8)
    before = memory.bytes.view(np.float32).reshape(8, 64).copy()
    tensor_map = TensorMap(0x10000, ElementType.F32, (40, 5), (256,), (32, 4), (1, 1), Swizzle.B128)
    shared = np.zeros(SHARED, np.uint8)
    shared[1024:][:512] = np.random.default_rng(2).standard_normal(128).astype(np.float32).view(np.uint8)
    box = tma_box.read_shared(tensor_map, shared, 1024).view(np.float32).reshape(4, 32)
    tma_box.reduce_box(tensor_map, (16, -2), shared, 1024, memory.view, "add")
    before[:2, 16:40] += box[2:4, :24]
    np.testing.assert_array_equal(memory.bytes.view(np.float32).reshape(8, 64), before)


def test_reduction_of_rows_that_share_memory():
    memory = Memory(0x10000, 64)
    memory.bytes[:] = 0
    tensor_map = TensorMap(0x10000, ElementType.S32, (8, 5), (0,), (8, 4), (1, 1))
    shared = np.ones(SHARED // 4, np.int32).view(np.uint8)
    tma_box.reduce_box(tensor_map, (0, 0), shared, 1024, memory.view, "add")
    assert memory.bytes.view(np.int32).tolist() == [4] * 8 + [0] * 8


@pytest.mark.parametrize(
    "change, error",
    [
        (dict(interleave=Interleave.B16), NotImplementedError),
        (dict(swizzle=Swizzle.B96), NotImplementedError),
        (dict(swizzle=Swizzle.B128, atomicity=Atomicity.B32_FLIP_8B), NotImplementedError),
        (dict(swizzle=Swizzle.B64, box=(32, 4), atomicity=Atomicity.B32), ValueError),
        (dict(swizzle=Swizzle.B128, box=(32, 4)), NotImplementedError),
        (dict(element_strides=(1, 3)), NotImplementedError),
        (dict(dims=(64, 64, 64), strides=(256, 256), box=(64, 4, 1), element_strides=(1, 1, 1)), ValueError),
        (dict(element_type=ElementType.B4X16, box=(128, 4)), ValueError),
    ],
)
def test_what_is_not_emulated_is_refused(change, error):
    memory = Memory(0x10000, 64 * 256)
    tensor_map = TensorMap(0x10000, ElementType.BF16, (64, 64), (256,), (64, 4), (1, 1))
    with pytest.raises(error):
        tma_box.read_global(dataclasses.replace(tensor_map, **change), (8, 0), memory.view)


@pytest.mark.parametrize("first", [1, 4, 12, -4])
def test_boxes_begin_at_16_bytes(first):
    tensor_map = TensorMap(0x10000, ElementType.BF16, (64, 64), (256,), (64, 4), (1, 1))
    with pytest.raises(ValueError, match="illegal instruction"):
        tma_box.read_global(tensor_map, (first, 0), Memory(0x10000, 64 * 256).view)


def test_shared_addresses():
    tensor_map = TensorMap(0x10000, ElementType.BF16, (64, 64), (256,), (64, 4), (1, 1))
    with pytest.raises(ValueError, match="multiple of 128"):
        tma_box.read_shared(tensor_map, np.zeros(SHARED, np.uint8), 1024 + 64)
    with pytest.raises(ValueError, match="leaves shared memory"):
        tma_box.read_shared(tensor_map, np.zeros(SHARED, np.uint8), SHARED - 256)


def test_a_load_is_fast():
    """A 16 KiB box costs about 10 microseconds; the bound leaves room for a busy machine."""
    memory = Memory(0x10000, 256 * 8192)
    tensor_map = TensorMap(0x10000, ElementType.BF16, (4096, 256), (8192,), (64, 128), (1, 1), Swizzle.B128)
    shared = np.zeros(SHARED, np.uint8)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        tma_box.load_box(tensor_map, (64, 64), shared, 1024, memory.view)
        times.append(time.perf_counter() - start)
    assert min(times) < 60e-6
