"""Matrix and instruction descriptors: against the canonical layouts of CUTLASS, and against what CuTe DSL compiles."""

import itertools
import random
import re

import cutlass
import cutlass.cute as cute
import cutlass.utils.blackwell_helpers as blackwell_helpers
import cutlass.utils.hopper_helpers as hopper_helpers
import numpy as np
import pytest
from cutlass.cute.nvgpu import OperandMajorMode, tcgen05, warpgroup
from cutlass.experimental.primitives import Tcgen05InstrDesc, Tcgen05MxInstrDesc, Tcgen05MxOmmaInstrDesc

from quack.emulator.matrix_descriptor import (
    InstructionDescriptor,
    Major,
    MatrixDescriptor,
    MatrixSwizzle,
    chunk_indices,
    element_offsets,
    read_matrix,
    unpack_nibbles,
    unpack_padded,
)

PATTERNS = {  # CuTe's Swizzle<B, M, S>
    MatrixSwizzle.NONE: (0, 4, 3),
    MatrixSwizzle.B32: (1, 4, 3),
    MatrixSwizzle.B64: (2, 4, 3),
    MatrixSwizzle.B128: (3, 4, 3),
    MatrixSwizzle.B128_BASE_32B: (2, 5, 2),
}


def swizzled(address: np.ndarray, pattern: tuple[int, int, int]) -> np.ndarray:
    bits, base, shift = pattern
    return address ^ (address & ((1 << bits) - 1 << base + shift)) >> shift


def index(coordinate: int, shape, stride) -> int:
    """CuTe's crd2idx of an integer in one mode, colexicographic."""
    if isinstance(shape, int):
        return coordinate * stride
    total = 0
    for i, (part, step) in enumerate(zip(shape, stride)):
        size = np.prod(cute_flatten(part), dtype=int)
        here = coordinate if i == len(shape) - 1 else coordinate % size
        total += index(here, part, step)
        coordinate //= size
    return total


def cute_flatten(shape) -> list[int]:
    return [shape] if isinstance(shape, int) else [x for part in shape for x in cute_flatten(part)]


def canonical(swizzle: MatrixSwizzle, major: Major, t: int, leading: int, stride: int):
    """((rows), (k)) shapes and strides in elements, from the comments of cute/atom/mma_traits_sm90_gmma.hpp and
    cute/arch/mma_sm100_desc.hpp (whose stride of B128_BASE32B is given there in 16-byte units as 8).

    t: elements in 16 bytes; leading, stride: in elements. The last mode of each is as long as it has to be.
    """
    w = {"NONE": 1, "B32": 2, "B64": 4, "B128": 8, "B128_BASE_32B": 8}[swizzle.name]
    if major is Major.K:
        along_k = (1, leading) if swizzle is MatrixSwizzle.NONE else (1, t)
        return ((8, 64), (t, 8)), ((w * t, stride), along_k)
    if swizzle is MatrixSwizzle.NONE:
        return ((t, 1, 64), (8, 64)), ((1, t, stride), (t, leading))
    lines = 4 if swizzle is MatrixSwizzle.B128_BASE_32B else 8
    return ((t, w, 64), (lines, 64)), ((1, t, leading), (w * t, stride))


CASES = [
    (swizzle, major, bits)
    for swizzle, major, bits in itertools.product(MatrixSwizzle, Major, (4, 8, 16, 32))
    if not (major is Major.MN and bits == 4) and not (major is Major.K and swizzle is MatrixSwizzle.B128_BASE_32B)
]


@pytest.mark.parametrize("swizzle, major, bits", CASES)
def test_canonical_layouts_with_any_strides(swizzle, major, bits):
    """M or N of 64 to 256, k of one instruction (32 bytes); LBO and SBO at random, so that none can stand for the other."""
    rng = random.Random(f"{swizzle} {major} {bits}")
    k, t = 256 // bits, 128 // bits
    for rows in (8, 64, 80, 128, 256):
        leading, stride = (16 * rng.randint(1, 500) for _ in range(2))
        start = 16 * rng.randint(0, 16000) if swizzle is MatrixSwizzle.NONE else 1024 * rng.randint(1, 250)
        descriptor = MatrixDescriptor(start, leading, stride, swizzle)
        shape, strides = canonical(swizzle, major, t, leading * 8 // bits, stride * 8 // bits)
        row = np.array([index(i, shape[0], strides[0]) for i in range(rows)])
        column = np.array([index(j, shape[1], strides[1]) for j in range(k)])
        linear = start + (row[:, None] + column[None, :]) * bits // 8
        expected = swizzled(linear & 0x3FFFF, PATTERNS[swizzle])
        actual = element_offsets(descriptor, rows, k, bits, major)
        assert actual.dtype == np.int32 and actual.shape == (rows, k)
        np.testing.assert_array_equal(actual, expected)

        memory = np.random.default_rng(rows).integers(0, 256, 1 << 18, dtype=np.uint8)
        if bits == 4:
            values = memory[expected] >> 4 * (np.arange(k) & 1) & 15
        else:
            values = sum(memory[expected + i].astype(np.uint32) << 8 * i for i in range(bits // 8))
        np.testing.assert_array_equal(read_matrix(memory, descriptor, rows, k, bits, major), values)
        touched = set(chunk_indices(descriptor, rows, k, bits, major).ravel().tolist())
        assert touched >= set((expected // 16).ravel().tolist())


def test_sub_tiles_of_a_swizzled_tile():
    """A k step moves the start address inside the first line of the pattern; the swizzle still follows the address."""
    whole = element_offsets(MatrixDescriptor(2048, 16, 1024, MatrixSwizzle.B128), 64, 64, 16, Major.K)
    for step in range(4):
        part = MatrixDescriptor(2048 + 32 * step, 16, 1024, MatrixSwizzle.B128)
        expected = whole[:, 16 * step : 16 * step + 16]
        np.testing.assert_array_equal(element_offsets(part, 64, 16, 16, Major.K), expected)


def test_what_is_not_emulated_is_refused():
    descriptor = MatrixDescriptor(0, 16, 1024, MatrixSwizzle.B128, base_offset=1)
    with pytest.raises(NotImplementedError, match="base offset"):
        element_offsets(descriptor, 64, 16, 16, Major.K)
    with pytest.raises(NotImplementedError, match="exceeds the swizzle span"):
        element_offsets(MatrixDescriptor(0, 16, 256, MatrixSwizzle.B32), 64, 32, 16, Major.K)
    with pytest.raises(ValueError, match="K-major only"):
        element_offsets(MatrixDescriptor(0, 16, 256, MatrixSwizzle.B32), 64, 64, 4, Major.MN)
    with pytest.raises(ValueError, match="MN-major operands only"):
        element_offsets(MatrixDescriptor(0, 16, 512, MatrixSwizzle.B128_BASE_32B), 64, 8, 32, Major.K)
    with pytest.raises(ValueError, match="swizzle mode 3"):
        MatrixDescriptor.decode_tcgen05(3 << 61 | 1 << 46)
    with pytest.raises(ValueError, match="bits 46 to 48"):
        MatrixDescriptor.decode_tcgen05(2 << 61)


def test_fields_of_the_descriptors():
    bits = 0x1234 | 0x0567 << 16 | 0x2ABC << 32 | 5 << 49
    strides = (0x12340, 0x5670, 0x2ABC0)
    for mode, swizzle in enumerate((MatrixSwizzle.NONE, MatrixSwizzle.B128, MatrixSwizzle.B64, MatrixSwizzle.B32)):
        assert MatrixDescriptor.decode_wgmma(bits | mode << 62) == MatrixDescriptor(*strides, swizzle, 5)
    for mode, name in ((0, "NONE"), (1, "B128_BASE_32B"), (2, "B128"), (4, "B64"), (6, "B32")):
        expected = MatrixDescriptor(*strides, MatrixSwizzle[name], 5, 1, True)
        assert MatrixDescriptor.decode_tcgen05(bits | 1 << 46 | 1 << 52 | mode << 61) == expected


def test_packed_elements():
    packed = np.array([[0x21, 0x43]], np.uint8)
    assert unpack_nibbles(packed).tolist() == [[1, 2, 3, 4]]
    rng = np.random.default_rng(1)
    for bits in (4, 6):
        values = rng.integers(0, 1 << bits, (3, 32), dtype=np.uint8)
        raw = np.full((3, 32), 0xA5, np.uint8)
        for row, chunk in itertools.product(range(3), range(2)):
            number = sum(int(v) << bits * i for i, v in enumerate(values[row, 16 * chunk :][:16]))
            raw[row, 16 * chunk :][: 2 * bits] = list(number.to_bytes(2 * bits, "little"))
        np.testing.assert_array_equal(unpack_padded(raw, bits), values)
    with pytest.raises(ValueError, match="8-bit"):
        unpack_padded(raw, 8)


# --- what CuTe DSL compiles ------------------------------------------------------------------------------------------


def major_of(atom: str) -> Major:
    return Major.MN if atom.startswith("MN") else Major.K


class WgmmaTile:
    """Multiplies one (m, n, k) tile whose operands have the given layout atoms; only its PTX is of interest."""

    def __init__(self, dtype, atoms: tuple[str, str], tile: tuple[int, int, int]) -> None:
        self.dtype, self.atoms, self.tile = dtype, atoms, tile
        self.layouts: list = []

    @cute.kernel
    def kernel(self, tiled_mma, layout_a, layout_b):
        allocator = cutlass.memory.SmemAllocator()
        sA = allocator.allocate_tensor(self.dtype, layout_a.outer, 1024, swizzle=layout_a.inner)
        sB = allocator.allocate_tensor(self.dtype, layout_b.outer, 1024, swizzle=layout_b.inner)
        thread_mma = tiled_mma.get_slice(0)
        a = tiled_mma.make_fragment_A(thread_mma.partition_A(sA))
        b = tiled_mma.make_fragment_B(thread_mma.partition_B(sB))
        accumulator = tiled_mma.make_fragment_C(tiled_mma.partition_shape_C(self.tile[:2]))
        warpgroup.fence()
        for k in cutlass.range_constexpr(cute.size(a, mode=[2])):
            cute.gemm(tiled_mma, accumulator, a[None, None, k, 0], b[None, None, k, 0], accumulator)
        warpgroup.commit_group()
        warpgroup.wait_group(0)

    @cute.jit
    def __call__(self):
        m, n, k = self.tile
        majors = [OperandMajorMode[major_of(name).name] for name in self.atoms]
        tiled_mma = hopper_helpers.make_trivial_tiled_mma(
            self.dtype, self.dtype, majors[0], majors[1], cutlass.Float32, (1, 1, 1), (64, n)
        )
        layouts = []
        for name, rows in zip(self.atoms, (m, n)):
            atom = warpgroup.make_smem_layout_atom(warpgroup.SmemLayoutAtomKind[name], self.dtype)
            layouts.append(cute.tile_to_shape(atom, (rows, k, 1), order=(0, 1, 2)))
            self.layouts.append((layouts[-1].outer.shape, layouts[-1].outer.stride))
        self.kernel(tiled_mma, layouts[0], layouts[1]).launch(grid=(1, 1, 1), block=(128, 1, 1))

    @staticmethod
    def addresses(shape, strides, rows: int, columns: range) -> np.ndarray:
        """(rows, columns) offsets in elements by a layout of (row, k, stage)."""
        row = np.array([index(i, shape[0], strides[0]) for i in range(rows)])
        column = np.array([index(j, shape[1], strides[1]) for j in columns])
        return row[:, None] + column[None, :]


class Tcgen05Tile:
    """The same for sm_100a."""

    def __init__(self, dtype, atoms: tuple[str, str], tile: tuple[int, int, int]) -> None:
        self.dtype, self.atoms, self.tile = dtype, atoms, tile
        self.layouts: list = []

    @cute.kernel
    def kernel(self, tiled_mma, layout_a, layout_b):
        allocator = cutlass.memory.SmemAllocator()
        sA = allocator.allocate_tensor(self.dtype, layout_a.outer, 1024, swizzle=layout_a.inner)
        sB = allocator.allocate_tensor(self.dtype, layout_b.outer, 1024, swizzle=layout_b.inner)
        a, b = tiled_mma.make_fragment_A(sA), tiled_mma.make_fragment_B(sB)
        accumulator = tiled_mma.make_fragment_C(tiled_mma.partition_shape_C(self.tile[:2]))
        for k in cutlass.range_constexpr(cute.size(a, mode=[2])):
            cute.gemm(tiled_mma, accumulator, a[None, None, k, 0], b[None, None, k, 0], accumulator)

    @cute.jit
    def __call__(self):
        m, n, k = self.tile
        majors = [OperandMajorMode[major_of(name).name] for name in self.atoms]
        tiled_mma = blackwell_helpers.make_trivial_tiled_mma(
            self.dtype, self.dtype, majors[0], majors[1], cutlass.Float32, tcgen05.CtaGroup.ONE, (m, n)
        )
        shapes = (tiled_mma.partition_shape_A((m, k)), tiled_mma.partition_shape_B((n, k)))
        layouts = []
        for name, shape in zip(self.atoms, shapes):
            atom = tcgen05.make_smem_layout_atom(tcgen05.SmemLayoutAtomKind[name], self.dtype)
            layouts.append(tcgen05.tile_to_mma_shape(atom, cute.append(shape, 1), order=(1, 2, 3)))
            self.layouts.append((layouts[-1].outer.shape, layouts[-1].outer.stride))
        self.kernel(tiled_mma, layouts[0], layouts[1]).launch(grid=(1, 1, 1), block=(128, 1, 1))

    @staticmethod
    def addresses(shape, strides, rows: int, columns: range) -> np.ndarray:
        """The same by a layout of ((row, k), 1, step of k, stage)."""
        width = len(columns)
        row = np.array([index(i, shape[0][0], strides[0][0]) for i in range(rows)])
        column = np.array([index(j % width, shape[0][1], strides[0][1]) for j in columns])
        return row[:, None] + column[None, :] + index(columns.start // width, shape[2], strides[2])


CONSTANT = re.compile(r"(?:or|add)\.\w+\s+(%rd\d+), %rd\d+, (-?\d+);")


def descriptors_in(ptx: str, instruction: str) -> list[tuple[int, int]]:
    """(A, B) descriptors of each MMA in order, with start addresses relative to those of the tiles."""
    constants = {name: int(value) % (1 << 64) for name, value in CONSTANT.findall(ptx)}
    found = []
    for line in ptx.splitlines():
        if line.strip().startswith(instruction):
            operands = re.sub(r"\{[^}]*\}", "{}", line).split(None, 1)[1].split(", ")
            found.append((constants[operands[1]], constants[operands[2]]))
    return found


def check_tile(tile, instruction: str, arch: str, decode, scratch) -> str:
    """Each MMA of the compiled tile reads what the smem layouts say. Returns the PTX."""
    ptx = cute.compile(tile, options=f"--gpu-arch {arch} --keep-ptx --dump-dir={scratch}").__ptx__
    bits = tile.dtype.width
    k = 256 // bits
    found = descriptors_in(ptx, instruction)
    assert len(found) == tile.tile[2] // k
    for step, pair in enumerate(found):
        for (shape, strides), atom, rows, raw in zip(tile.layouts, tile.atoms, tile.tile, pair):
            descriptor = decode(raw)
            expected = tile.addresses(shape, strides, rows, range(k * step, k * step + k)) * bits // 8
            expected = swizzled(expected, PATTERNS[descriptor.swizzle])
            major = major_of(atom)
            np.testing.assert_array_equal(element_offsets(descriptor, rows, k, bits, major), expected, err_msg=atom)
    return ptx


BF16, FP8, FP32 = cutlass.BFloat16, cutlass.Float8E4M3FN, cutlass.Float32
WGMMA_TILES = [
    (BF16, ("K_SW128", "MN_SW128"), (64, 256, 64)),
    (BF16, ("MN_SW128", "K_SW64"), (64, 128, 64)),
    (BF16, ("MN_SW64", "K_SW32"), (64, 64, 64)),
    (BF16, ("MN_SW32", "MN_SW64"), (64, 192, 32)),
    (BF16, ("MN_INTER", "MN_SW32"), (64, 256, 64)),
    (BF16, ("K_INTER", "MN_INTER"), (64, 128, 64)),
    (BF16, ("K_SW32", "K_INTER"), (64, 96, 32)),
    (FP8, ("K_SW128", "K_SW64"), (64, 256, 128)),
    (FP8, ("K_INTER", "K_SW32"), (64, 64, 64)),
]
TCGEN05_TILES = [
    (BF16, ("K_SW128", "MN_SW128"), (128, 256, 64)),
    (BF16, ("MN_SW128", "K_SW64"), (128, 128, 64)),
    (BF16, ("MN_SW64", "K_SW32"), (64, 64, 64)),
    (BF16, ("MN_INTER", "MN_SW32"), (128, 256, 64)),
    (BF16, ("K_INTER", "MN_INTER"), (128, 128, 64)),
    (FP8, ("MN_SW64", "K_SW128"), (128, 128, 128)),
    (FP8, ("K_INTER", "MN_SW32"), (128, 64, 64)),
    (FP8, ("MN_SW128", "MN_INTER"), (128, 128, 128)),
    (FP32, ("MN_SW128_32B", "K_SW128"), (128, 128, 32)),
    (FP32, ("K_SW64", "MN_SW128_32B"), (128, 256, 32)),
    (FP32, ("MN_SW64", "MN_INTER"), (128, 64, 16)),
]


@pytest.mark.parametrize("dtype, atoms, tile", WGMMA_TILES)
def test_wgmma_descriptors_of_cute_dsl(dtype, atoms, tile, tmp_path):
    check_tile(WgmmaTile(dtype, atoms, tile), "wgmma.mma_async", "sm_90a", MatrixDescriptor.decode_wgmma, tmp_path)


@pytest.mark.parametrize("dtype, atoms, tile", TCGEN05_TILES)
def test_tcgen05_descriptors_of_cute_dsl(dtype, atoms, tile, tmp_path):
    kernel = Tcgen05Tile(dtype, atoms, tile)
    ptx = check_tile(kernel, "tcgen05.mma", "sm_100a", MatrixDescriptor.decode_tcgen05, tmp_path)
    # The negate flags are run-time fields of the atom: the constant without them is the last operand.
    (constant,) = re.findall(r"selp\.b32\s+%r\d+, \d{8,}, (\d{8,}), ", ptx)
    kind, a_format = {16: ("f16", "bf16"), 8: ("f8f6f4", "e4m3"), 32: ("tf32", "tf32")}[dtype.width]
    assert f".kind::{kind}" in ptx
    instruction = InstructionDescriptor.decode(int(constant), kind)
    assert (instruction.m, instruction.n, instruction.k) == (*tile[:2], 256 // dtype.width)
    assert (instruction.a_format, instruction.b_format, instruction.d_format) == (a_format, a_format, "f32")
    assert (instruction.a_major, instruction.b_major) == tuple(map(major_of, atoms))


# --- instruction descriptors -----------------------------------------------------------------------------------------


def test_fields_of_dense_instruction_descriptors():
    for dtype, kind, name in ((cutlass.Float16, "f16", "f16"), (cutlass.Float8E5M2, "f8f6f4", "e5m2")):
        raw = Tcgen05InstrDesc.build(
            c_dtype=cutlass.Float16, a_dtype=dtype, b_dtype=dtype, n_dim=248, m_dim=256, a_major=1, b_negate=1
        )
        decoded = InstructionDescriptor.decode(raw.value % (1 << 32), kind)
        assert decoded == InstructionDescriptor(
            kind, name, name, "f16", 256, 248, 16 if kind == "f16" else 32, Major.MN, Major.K, False, True, False
        )
    raw = Tcgen05InstrDesc.build(
        c_dtype=cutlass.Int32, a_dtype=cutlass.Int8, b_dtype=cutlass.Uint8, n_dim=16, m_dim=64, saturate=1, max_shift=3
    )
    decoded = InstructionDescriptor.decode(raw.value % (1 << 32), "i8")
    assert (decoded.a_format, decoded.b_format, decoded.d_format) == ("s8", "u8", "s32")
    assert (decoded.m, decoded.n, decoded.k, decoded.saturates, decoded.max_shift) == (64, 16, 32, True, 32)
    raw = Tcgen05InstrDesc.build(sparse_flag=1, sparse_id2=2, c_dtype=cutlass.Float32, n_dim=8, m_dim=128)
    decoded = InstructionDescriptor.decode(raw.value % (1 << 32), "f16")
    assert (decoded.is_sparse, decoded.sparse_selector, decoded.k) == (True, 2, 32)


def test_fields_of_block_scaled_instruction_descriptors():
    raw = Tcgen05MxInstrDesc.build(
        a_dtype=cutlass.Float8E5M2, b_dtype=cutlass.Float6E2M3FN, n_dim=192, m_dim=256, a_sf_id=2, b_sf_id=1, b_major=1
    )
    assert InstructionDescriptor.decode(raw.value % (1 << 32), "mxf8f6f4") == InstructionDescriptor(
        kind="mxf8f6f4",
        a_format="e5m2",
        b_format="e2m3",
        d_format="f32",
        m=256,
        n=192,
        k=32,
        a_major=Major.K,
        b_major=Major.MN,
        negate_a=False,
        negate_b=False,
        is_sparse=False,
        scale_format="ue8m0",
        a_scale_id=2,
        b_scale_id=1,
    )
    raw = Tcgen05MxOmmaInstrDesc.build(scale_format=0, n_dim=128, m_dim=128, a_sf_id=1, b_sf_id=3, a_negate=1)
    decoded = InstructionDescriptor.decode(raw.value % (1 << 32), "mxf4nvf4")
    assert (decoded.a_format, decoded.b_format, decoded.scale_format) == ("e2m1", "e2m1", "ue4m3")
    assert (decoded.m, decoded.n, decoded.k, decoded.negate_a) == (128, 128, 64, True)
    assert (decoded.a_scale_id, decoded.b_scale_id) == (1, 3)
    assert InstructionDescriptor.decode(raw.value % (1 << 31) | 1 << 31, "mxf4").k == 96


@pytest.mark.parametrize(
    "bits, kind",
    [(0, "f64"), (2 << 7 | 1 << 4, "f16"), (3 << 4, "f16"), (0, "tf32"), (2 << 10, "f8f6f4"), (1 << 31, "mxf8f6f4")],
)
def test_undefined_instruction_descriptors_are_refused(bits, kind):
    with pytest.raises(ValueError, match="tcgen05"):
        InstructionDescriptor.decode(bits, kind)
