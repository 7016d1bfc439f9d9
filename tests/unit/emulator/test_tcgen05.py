"""tcgen05 on random data: ld and st shapes, cp, and mma of every kind and data path layout, against formulas written anew."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from quack.emulator.errors import IllegalAccess, Misuse, UnknownInstruction
from tests.unit.emulator.tensor_kernels import COLUMNS, IMAGE, run_tensor_kernel

RANDOM = np.random.default_rng(5)
SCHEDULES = ("eager", "latest", "random:1")


def random_cells(ctas: int = 1) -> np.ndarray:
    """Any bits: NaN among them shows what is read without being meant to be."""
    return RANDOM.integers(0, 1 << 32, (ctas, 128, COLUMNS), dtype=np.uint32)


# ---- ld and st --------------------------------------------------------------------------------------------------------

# shape: bits of a row, ((extent, stride) of the thread modes), ((extent, stride) of the value modes) for a repetition of n;
# they give the bit in a row-major image of 16 rows (32 for 32x32b), as cute/atom/copy_traits_sm100.hpp writes them.
LAYOUTS = {
    "32x32b": lambda n: (32 * n, [(32, 32 * n)], [(32, 1), (n, 32)]),
    "16x64b": lambda n: (64 * n, [(2, 512 * n), (2, 32), (8, 64 * n)], [(32, 1), (n, 64)]),
    "16x128b": lambda n: (128 * n, [(4, 32), (8, 128 * n)], [(32, 1), (2, 1024 * n), (n, 128)]),
    "16x256b": lambda n: (256 * n, [(4, 64), (8, 256 * n)], [(64, 1), (2, 2048 * n), (n, 256)]),
    "16x32bx2": lambda n: (64 * n, [(16, 64 * n), (2, 32 * n)], [(32, 1), (n, 32)]),
}


def unravel(index: int, modes: list[tuple[int, int]]) -> int:
    offset = 0
    for extent, stride in modes:
        offset += index % extent * stride
        index //= extent
    return offset


def cell_of(shape: str, n: int, thread: int, register: int) -> tuple[int, int]:
    """(row, column) of what register r of a thread holds."""
    row_bits, threads, values = LAYOUTS[shape](n)
    bit = unravel(thread, threads) + unravel(32 * register, values)
    return bit // row_bits, bit % row_bits // 32


def registers_of(shape: str, n: int) -> int:
    return n * {"16x128b": 2, "16x256b": 4}.get(shape, 1)


CASES = [
    ("32x32b", 1), ("32x32b", 128), ("16x64b", 1), ("16x64b", 16), ("16x128b", 2), ("16x128b", 8), ("16x256b", 1),
    ("16x256b", 4), ("16x32bx2", 1), ("16x32bx2", 8),
]  # fmt: skip


def transfer_code(shape: str, n: int, column: int, half: int, is_load: bool, packing: str = "") -> str:
    """Move the registers of all warps from or to `data`."""
    count = registers_of(shape, n)
    names = ", ".join(f"%v{i}" for i in range(count))
    split = {"16x32bx2": f", {n * (2 if packing else 1)}"}.get(shape, "")
    move = f"mad.wide.u32 %rd5, %thread, {4 * count}, %in2;\n"
    address = f"add.u32 %r7, %base, {half << 16 | column};\n"
    if is_load:
        stores = "\n".join(f"st.global.b32 [%rd5+{4 * i}], %v{i};" for i in range(count))
        load = f"tcgen05.ld.sync.aligned.{shape}.x{n}{packing}.b32 {{{names}}}, [%r7]{split};\n"
        return move + address + load + "tcgen05.wait::ld.sync.aligned;\n" + stores
    loads = "\n".join(f"ld.global.b32 %v{i}, [%rd5+{4 * i}];" for i in range(count))
    store = f"tcgen05.st.sync.aligned.{shape}.x{n}{packing}.b32 [%r7]{split}, {{{names}}};\n"
    return move + loads + "\n" + address + store + "tcgen05.wait::st.sync.aligned;"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape, n", CASES)
def test_load_and_store_place_registers(shape, n, schedule):
    cells = random_cells()
    half, column, count = 0 if shape == "32x32b" else 16, 40, registers_of(shape, n)
    loaded = np.zeros((128, count), np.uint32)
    after = run_tensor_kernel(
        cells, warp_code=transfer_code(shape, n, column, half, True), data=loaded, schedule=schedule
    )
    assert (after == cells).all()
    stored = RANDOM.integers(0, 1 << 32, (128, count), dtype=np.uint32)
    expected = cells.copy()
    for thread in range(128):
        for register in range(count):
            row, at = cell_of(shape, n, thread % 32, register)
            place = 0, thread // 32 * 32 + half + row, column + at
            assert loaded[thread, register] == cells[place]
            expected[place] = stored[thread, register]
    after = run_tensor_kernel(
        cells, warp_code=transfer_code(shape, n, column, half, False), data=stored, schedule=schedule
    )
    assert (after == expected).all()


@pytest.mark.parametrize("shape, n", [("32x32b", 4), ("16x64b", 2), ("16x256b", 2), ("16x32bx2", 2)])
def test_packing_halves_two_columns_into_a_register(shape, n):
    cells = random_cells()
    count = registers_of(shape, n)
    loaded = np.zeros((128, count), np.uint32)
    run_tensor_kernel(cells, warp_code=transfer_code(shape, n, 0, 0, True, ".pack::16b"), data=loaded)
    after = run_tensor_kernel(cells, warp_code=transfer_code(shape, n, 0, 0, False, ".unpack::16b"), data=loaded)
    expected = cells.copy()
    for thread in range(128):
        for register in range(count):
            row, at = cell_of(shape, n, thread % 32, register)
            lane = thread // 32 * 32 + row
            low, high = cells[0, lane, 2 * at] & 0xFFFF, cells[0, lane, 2 * at + 1] & 0xFFFF
            assert loaded[thread, register] == low | high << 16
            expected[0, lane, 2 * at : 2 * at + 2] = low, high
    assert (after == expected).all()


def test_warps_reach_only_their_lanes():
    with pytest.raises(Misuse, match="lanes 0 to 31 by warp 3, which reaches 96 to 127"):
        run_tensor_kernel(random_cells(), warp_code="tcgen05.ld.sync.aligned.32x32b.x1.b32 {%v0}, [%taddr];")
    with pytest.raises(Misuse, match="executed by lanes"):
        code = "setp.lt.u32 %p5, %lane, 5;\n@%p5 tcgen05.ld.sync.aligned.32x32b.x1.b32 {%v0}, [%base];"
        run_tensor_kernel(random_cells(), warp_code=code)
    with pytest.raises(IllegalAccess, match="not allocated"):
        code = "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%v0}, [%base];"
        run_tensor_kernel(
            random_cells(), warp_code=f"add.u32 %base, %base, 511;\n{code.replace('x1.b32 {%v0}', 'x2.b32 {%v0, %v1}')}"
        )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_registers_of_a_load_are_waited_for_without_wait_ld(schedule):
    """9.7.16.6.4.5: true register dependencies are respected."""
    cells, seen = random_cells(), np.zeros(128, np.uint32)
    code = """
    tcgen05.ld.sync.aligned.32x32b.x2.b32 {%v0, %v1}, [%base];
    xor.b32 %v2, %v0, %v1;
    mad.wide.u32 %rd5, %thread, 4, %in2;
    st.global.b32 [%rd5], %v2;
    """
    run_tensor_kernel(cells, warp_code=code, data=seen, schedule=schedule)
    assert (seen == cells[0, :, 0] ^ cells[0, :, 1]).all()


def test_store_then_load_needs_a_wait():
    """Without tcgen05.wait::st some schedule shows the old contents; with it none does."""
    cells = random_cells()
    store = "tcgen05.st.sync.aligned.32x32b.x1.b32 [%base], {%thread};\n"
    load = "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%v1}, [%base];\nmad.wide.u32 %rd5, %thread, 4, %in2;\nst.global.b32 [%rd5], %v1;"
    stale = {}
    for wait in ("", "tcgen05.wait::st.sync.aligned;\n"):
        seen = np.zeros((20, 128), np.uint32)
        for seed in range(20):
            run_tensor_kernel(cells, warp_code=store + wait + load, data=seen[seed], schedule=f"random:{seed}")
        stale[wait] = (seen != np.arange(128)).any()
    assert list(stale.values()) == [True, False]


# ---- cp ---------------------------------------------------------------------------------------------------------------


def descriptor(start: int, leading: int, stride: int, swizzle: int = 0) -> int:
    """Shared memory descriptor of tcgen05 (9.7.16.4.1); swizzle: value of bits 61 to 63."""
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | 1 << 46 | swizzle << 61


COPIES = {
    "128x256b": (128, 32, lambda r: [r]),
    "128x128b": (128, 16, lambda r: [r]),
    "4x256b": (4, 32, lambda r: [32 * r + 31]),
    "64x128b.warpx2::02_13": (64, 16, lambda r: [r, r + 64]),
    "64x128b.warpx2::01_23": (64, 16, lambda r: [64 * (r // 32) + r % 32 + 32 * i for i in range(2)]),
    "32x128b.warpx4": (32, 16, lambda r: [r + 32 * i for i in range(4)]),
}


@pytest.mark.parametrize("ctas, schedule", [(1, "eager"), (2, "latest")])
@pytest.mark.parametrize("shape", COPIES)
def test_copy_places_rows(shape, ctas, schedule):
    rows, nbytes, lanes = COPIES[shape]
    leading, stride, column = 2048, 160, 12
    cells, image = random_cells(ctas), RANDOM.integers(0, 256, (ctas, 6144), dtype=np.uint8)
    lane = 31 if shape == "4x256b" else 0
    code = f"tcgen05.cp.cta_group::{ctas}.{shape} [{lane << 16 | column}], {descriptor(IMAGE, leading, stride)};"
    after = run_tensor_kernel(cells, image=image, thread_code=code, schedule=schedule)
    expected = cells.copy()
    for cta in range(ctas):
        for row in range(rows):
            starts = [row // 8 * stride + row % 8 * 16 + leading * chunk for chunk in range(nbytes // 16)]
            words = np.concatenate([image[cta, s : s + 16] for s in starts]).view(np.uint32)
            for target in lanes(row):
                expected[cta, target, column : column + len(words)] = words
    assert (after == expected).all()


# ---- mma --------------------------------------------------------------------------------------------------------------

WIDTH = {"f16": 16, "bf16": 16, "tf32": 32, "e2m3": 6, "e3m2": 6, "e2m1": 4}
CODE = {
    "f16": 0, "bf16": 1, "tf32": 2, "e4m3": 0, "e5m2": 1, "e2m3": 3, "e3m2": 4, "e2m1": 5, "u8": 0, "s8": 1,
}  # fmt: skip
DEPTH = {"f16": 16, "tf32": 8, "f8f6f4": 32, "i8": 32, "mxf8f6f4": 32, "mxf4": 64, "mxf4nvf4": 64}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def small_float(codes: np.ndarray, exponent_bits: int, mantissa_bits: int, bias: int) -> np.ndarray:
    exponent, mantissa = codes >> mantissa_bits & (1 << exponent_bits) - 1, codes & (1 << mantissa_bits) - 1
    value = np.where(exponent > 0, 1.0, 0.0) + mantissa / 2**mantissa_bits
    value = value * 2.0 ** (np.maximum(exponent, 1) - bias)
    return np.where(codes >> (exponent_bits + mantissa_bits) & 1, -value, value)


def random_operand(name: str, rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes, values), both (rows, k); finite values of moderate size."""
    if name in ("s8", "u8"):
        codes = RANDOM.integers(0, 256, (rows, k), dtype=np.uint8)
        return codes, codes.view(np.int8 if name == "s8" else np.uint8).astype(float)
    if name in ("f16", "bf16", "tf32", "e4m3", "e5m2"):
        kind = {"f16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
        values = torch.from_numpy(RANDOM.normal(size=(rows, k)).astype(np.float32))
        if name == "tf32":
            codes = values.numpy().view(np.uint32)
            return codes, (codes & 0xFFFFE000).view(np.float32).astype(float)
        rounded = values.to(kind[name])
        raw = rounded.view(torch.uint8 if WIDTH.get(name, 8) == 8 else torch.int16).numpy()
        return raw.view(np.uint8 if raw.itemsize == 1 else np.uint16), rounded.double().numpy()
    codes = RANDOM.integers(0, 1 << WIDTH[name], (rows, k), dtype=np.uint8)
    if name == "e2m1":
        return codes, E2M1[codes & 7] * np.where(codes & 8, -1, 1)
    exponent_bits, bias = {"e2m3": (2, 1), "e3m2": (3, 3)}[name]
    return codes, small_float(codes.astype(int), exponent_bits, 5 - exponent_bits, bias)


def stored_rows(codes: np.ndarray, name: str, kind: str) -> np.ndarray:
    """The bytes of each row, as shared memory has them."""
    if name == "e2m1" and kind in ("mxf4", "mxf4nvf4"):
        return codes[:, 0::2] | codes[:, 1::2] << 4
    if WIDTH.get(name, 8) in (4, 6):  # 16 elements in 16 bytes, packed at the front (.b4x16_p64, .b6x16_p32)
        width = WIDTH[name]
        bits = (codes[..., None] >> np.arange(width)) & 1
        packed = np.packbits(bits.reshape(len(codes), -1, 16 * width), axis=-1, bitorder="little")
        return np.pad(packed, ((0, 0), (0, 0), (0, 16 - packed.shape[-1]))).reshape(len(codes), -1)
    return np.ascontiguousarray(codes).view(np.uint8).reshape(len(codes), -1)


def k_major_image(rows: np.ndarray) -> tuple[np.ndarray, int, int]:
    """(bytes, LBO, SBO) without swizzle: 8 rows of 16 bytes in a row, then the next 8 rows, then the next 16 bytes of k."""
    count, nbytes = rows.shape
    chunks = rows.reshape(count // 8, 8, nbytes // 16, 16).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(chunks).reshape(-1), 16 * count, 128


def mn_major_swizzled_image(codes: np.ndarray) -> tuple[np.ndarray, int, int]:
    """(bytes, LBO, SBO) of 16-bit elements with the 128-byte swizzle: lines of 64 rows, 8 of k an atom, then more k."""
    count, k = codes.shape
    lines = codes.T.reshape(k // 8, 8, count // 64, 64).transpose(2, 0, 1, 3)  # (row block, k block, line, row)
    linear = np.ascontiguousarray(lines).view(np.uint8).reshape(-1)
    address = np.arange(linear.size)
    image = np.empty_like(linear)
    image[address ^ (address >> 7 & 7) << 4] = linear
    return image, 1024 * (k // 8), 1024


@dataclass(frozen=True)
class Case:
    """One tcgen05.mma. a_at: column of A in tensor memory; scales: of a row; ids: which byte of the columns."""

    kind: str
    a: str
    b: str
    m: int
    n: int
    ctas: int = 1
    d: str = "f32"
    stationary: bool = False
    a_in_tensor_memory: bool = False
    accumulates: bool = True
    transposed: bool = False
    half: int = 0
    qualifier: str = ""
    scales: int = 0
    scale_format: str = "ue8m0"
    ids: tuple[int, int] = (0, 0)
    scale_input: int = 0
    disabled: tuple[int, ...] = ()

    @property
    def k(self) -> int:
        return DEPTH[self.kind]

    @property
    def instruction_descriptor(self) -> int:
        a, b = CODE[self.a], CODE[self.b]
        if self.kind in ("mxf4", "mxf4nvf4"):
            a = b = 1
        bits = a << 7 | b << 10 | self.n >> 3 << 17
        if self.scales:
            bits |= self.m >> 7 << 27 | self.ids[0] << 29 | self.ids[1] << 4
            return bits | (self.scale_format == "ue8m0") << 23
        transposed = 3 << 15 if self.transposed else 0
        return bits | {"f16": 0, "f32": 1, "s32": 2}[self.d] << 4 | self.m >> 4 << 24 | transposed

    def place(self, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(lane, column) of an element of D in the memory of its CTA (9.7.16.10.5)."""
        rows = self.m // self.ctas
        row = row % rows
        if rows == 128:
            return row, column
        if rows == 64 and self.ctas == 1 and not self.stationary:
            return row // 16 * 32 + row % 16 + self.half, column
        width = self.n * rows // 128
        return row + rows * (column // width), column % width


def decode_scales(codes: np.ndarray, name: str) -> np.ndarray:
    return 2.0 ** (codes - 127.0) if name == "ue8m0" else small_float(codes.astype(int), 4, 3, 7)


D_AT, A_AT, SFA_AT, SFB_AT = 8, 288, 320, 352


def put_scales(cells: np.ndarray, at: int, codes: np.ndarray, byte: int, lanes: tuple[int, ...]) -> None:
    """Scale factors (rows, count): row r in lane r % 32, column r // 32, from a byte on; in each of `lanes`."""
    words = cells.view(np.uint8).reshape(128, COLUMNS, 4)
    for row, factors in enumerate(codes):
        for lane in lanes:
            words[lane + row % 32, at + row // 32, byte : byte + len(factors)] = factors


def run_case(case: Case, schedule: str = "eager") -> None:
    """Run it on random operands and compare all of tensor memory."""
    rows, columns = case.m // case.ctas, case.n // case.ctas
    a_codes, a = random_operand(case.a, case.m, case.k)
    b_codes, b = random_operand(case.b, case.n, case.k)
    cells, images = random_cells(case.ctas), []
    for cta in range(case.ctas):
        own_a, own_b = a_codes[cta * rows : (cta + 1) * rows], b_codes[cta * columns : (cta + 1) * columns]
        if case.transposed:
            parts = [mn_major_swizzled_image(own_a), mn_major_swizzled_image(own_b)]
        else:
            parts = [
                k_major_image(stored_rows(own_a, case.a, case.kind)),
                k_major_image(stored_rows(own_b, case.b, case.kind)),
            ]
        images.append(np.concatenate([parts[0][0], parts[1][0]]))
    swizzle = 2 if case.transposed else 0
    descriptor_a = descriptor(IMAGE, *parts[0][1:], swizzle)
    descriptor_b = descriptor(IMAGE + len(parts[0][0]), *parts[1][1:], swizzle)
    old = initial_accumulator(case, cells)
    if case.a_in_tensor_memory:
        put_a(case, cells, a_codes)
    scaled_a, scaled_b = scale(case, cells, a, b)
    product = scaled_a @ scaled_b.T + old * 2.0**-case.scale_input
    after = run_tensor_kernel(
        cells, image=np.stack(images), thread_code=mma_code(case, descriptor_a, descriptor_b), schedule=schedule
    )
    compare(case, cells, after, product)


def grids(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(CTA, lane, column) of each element of D, (m, n) each."""
    row, column = np.meshgrid(np.arange(case.m), np.arange(case.n), indexing="ij")
    lane, at = case.place(row, column)
    return row // (case.m // case.ctas), lane, at + D_AT


def initial_accumulator(case: Case, cells: np.ndarray) -> np.ndarray:
    """Fill D with numbers; those that count."""
    values = RANDOM.normal(size=(case.m, case.n)).astype(np.float16).astype(np.float32)
    if case.d == "s32":
        values = np.round(values * 100)
        raw = values.astype(np.int32).view(np.uint32)
    else:
        raw = values.view(np.uint32) if case.d == "f32" else values.astype(np.float16).view(np.uint16).astype(np.uint32)
    if not case.accumulates:
        return np.zeros((case.m, case.n))
    cells[grids(case)] = raw
    return values.astype(float)


def put_a(case: Case, cells: np.ndarray, codes: np.ndarray) -> None:
    """A in the lanes of D; where D is folded, each fold has a copy."""
    words = np.ascontiguousarray(codes)
    if case.kind in ("mxf4", "mxf4nvf4"):
        words = stored_rows(codes, case.a, case.kind)
    words = words.view(np.uint32).reshape(case.m, 8)
    rows = case.m // case.ctas
    for row in range(case.m):
        for column in (0, case.n - 1):
            lane, _ = case.place(np.array(row), np.array(column))
            cells[row // rows, lane, A_AT : A_AT + 8] = words[row]


def scale(case: Case, cells: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not case.scales:
        return a, b
    low, high = (120, 134) if case.scale_format == "ue8m0" else (0x28, 0x48)
    sfa = RANDOM.integers(low, high, (case.m, case.scales), dtype=np.uint8)
    sfb = RANDOM.integers(low, high, (case.n, case.scales), dtype=np.uint8)
    rows = case.m // case.ctas
    for cta in range(case.ctas):
        put_scales(cells[cta], SFA_AT, sfa[cta * rows : (cta + 1) * rows], case.ids[0], (0, 32, 64, 96))
        if rows == 64:
            put_scales(cells[cta], SFB_AT, sfb[: case.n // 2], case.ids[1], (0, 32))
            put_scales(cells[cta], SFB_AT, sfb[case.n // 2 :], case.ids[1], (64, 96))
        else:
            put_scales(cells[cta], SFB_AT, sfb, case.ids[1], (0, 32, 64, 96))
    size = case.k // case.scales
    return (
        a * np.repeat(decode_scales(sfa, case.scale_format), size, axis=1),
        b * np.repeat(decode_scales(sfb, case.scale_format), size, axis=1),
    )


def mma_code(case: Case, descriptor_a: int, descriptor_b: int) -> str:
    a = f"[{case.half << 16 | A_AT}]" if case.a_in_tensor_memory else str(descriptor_a)
    extra = f"[{case.ids[0] << 30 | SFA_AT}], [{case.ids[1] << 30 | SFB_AT}], " if case.scales else ""
    if case.disabled:
        extra = "{" + ", ".join(map(str, case.disabled)) + "}, "
    tail = f", {case.scale_input}" if case.scale_input else ""
    ws = ".ws" if case.stationary else ""
    return (
        f"setp.eq.u32 %p6, {int(case.accumulates)}, 1;\n"
        f"tcgen05.mma{ws}.cta_group::{case.ctas}.kind::{case.kind}{case.qualifier} [{case.half << 16 | D_AT}], {a}, "
        f"{descriptor_b}, {case.instruction_descriptor}, {extra}%p6{tail};"
    )


def compare(case: Case, before: np.ndarray, after: np.ndarray, product: np.ndarray) -> None:
    where = grids(case)
    found = after[where]
    enabled = np.ones(product.shape, bool)
    if case.disabled:
        mask = sum(word << 32 * i for i, word in enumerate(case.disabled))
        enabled = np.array([not mask >> i & 1 for i in range(128 * case.ctas)])[128 * where[0] + where[1]]
        assert (found[~enabled] == before[where][~enabled]).all()
    if case.d == "s32":
        assert (found.view(np.int32) == product)[enabled].all()
    elif case.d == "f16":
        np.testing.assert_allclose(
            found.astype(np.uint16).view(np.float16)[enabled], product[enabled], rtol=1e-3, atol=1e-3
        )
    else:
        np.testing.assert_allclose(found.view(np.float32)[enabled], product[enabled], rtol=1e-6, atol=1e-5)
    untouched = np.ones(before.shape, bool)
    untouched[where] = False
    assert (after == before)[untouched].all()


MX = ".block_scale"
DENSE = {
    "bf16 layout D": Case("f16", "bf16", "bf16", 128, 64),
    "f16 into f16": Case("f16", "f16", "f16", 128, 48, d="f16"),
    "mixed f16 and bf16, overwrites": Case("f16", "f16", "bf16", 128, 16, accumulates=False),
    "layout F": Case("f16", "bf16", "bf16", 64, 40),
    "layout F, upper half": Case("f16", "bf16", "bf16", 64, 24, half=16),
    "layout A": Case("f16", "bf16", "bf16", 256, 256, 2),
    "layout B": Case("f16", "bf16", "bf16", 128, 64, 2),
    "layout E": Case("f16", "bf16", "bf16", 64, 128, stationary=True),
    "layout G": Case("f16", "bf16", "bf16", 32, 64, stationary=True),
    "MN-major": Case("f16", "bf16", "bf16", 128, 128, transposed=True),
    "MN-major pair": Case("f16", "f16", "f16", 256, 128, 2, transposed=True),
    "tf32": Case("tf32", "tf32", "tf32", 128, 32),
    "fp8": Case("f8f6f4", "e4m3", "e5m2", 128, 64),
    "fp8 pair": Case("f8f6f4", "e5m2", "e4m3", 256, 64, 2),
    "fp6 and fp4": Case("f8f6f4", "e2m3", "e2m1", 128, 32),
    "fp6 and fp8": Case("f8f6f4", "e3m2", "e4m3", 64, 16),
    "int8": Case("i8", "s8", "u8", 128, 32, d="s32"),
    "A in tensor memory": Case("f16", "bf16", "bf16", 128, 64, a_in_tensor_memory=True),
    "A in tensor memory, layout F": Case("f16", "bf16", "bf16", 64, 32, a_in_tensor_memory=True, half=16),
    "A in tensor memory, layout A": Case("f16", "f16", "f16", 256, 32, 2, a_in_tensor_memory=True),
    "A in tensor memory, layout B": Case("f16", "f16", "f16", 128, 32, 2, a_in_tensor_memory=True),
    "A in tensor memory, tf32": Case("tf32", "tf32", "tf32", 128, 16, a_in_tensor_memory=True),
    "A in tensor memory, fp8": Case("f8f6f4", "e4m3", "e4m3", 128, 16, a_in_tensor_memory=True),
    "scaled input": Case("f16", "bf16", "bf16", 128, 16, scale_input=3),
    "disabled lanes": Case("f16", "bf16", "bf16", 128, 16, disabled=(5, 0, 1 << 31, 0xFFFF)),
    "disabled lanes of a pair": Case("f16", "bf16", "bf16", 256, 32, 2, disabled=(1, 0, 0, 0, 2, 0, 0, 1 << 31)),
}
SCALED = {
    "mxfp8": Case("mxf8f6f4", "e4m3", "e5m2", 128, 64, qualifier=MX + ".block32", scales=1, ids=(2, 3)),
    "mxfp8, N = 48": Case("mxf8f6f4", "e4m3", "e4m3", 128, 48, qualifier=MX, scales=1, ids=(1, 0)),
    "mx with fp4": Case("mxf8f6f4", "e4m3", "e2m1", 128, 32, qualifier=MX + ".scale_vec::1X", scales=1),
    "mxfp4": Case("mxf4", "e2m1", "e2m1", 128, 64, qualifier=MX + ".block32", scales=2, ids=(2, 0)),
    "mxfp4, A in tensor memory": Case("mxf4", "e2m1", "e2m1", 128, 64, a_in_tensor_memory=True, qualifier=MX, scales=2),
    "nvfp4": Case(
        "mxf4nvf4", "e2m1", "e2m1", 128, 192, qualifier=MX + ".block16", scales=4, scale_format="ue4m3"
    ),
    "mxf4nvf4 of 32": Case("mxf4nvf4", "e2m1", "e2m1", 128, 32, qualifier=MX + ".scale_vec::2X", scales=2, ids=(0, 2)),
    "nvfp4 pair": Case("mxf4nvf4", "e2m1", "e2m1", 256, 256, 2, qualifier=MX + ".block16", scales=4, scale_format="ue4m3"),
    "mxfp8 pair, 2 x 2": Case("mxf8f6f4", "e4m3", "e4m3", 128, 128, 2, qualifier=MX + ".block32", scales=1, ids=(1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", [*DENSE, *SCALED])
def test_mma(name):
    run_case((DENSE | SCALED)[name])


@pytest.mark.parametrize("schedule", ["latest", "random:7"])
@pytest.mark.parametrize("name", ["layout F", "layout B", "A in tensor memory", "nvfp4 pair"])
def test_mma_in_other_schedules(name, schedule):
    run_case((DENSE | SCALED)[name], schedule)


@pytest.mark.parametrize("schedule, first_row", [("eager", 16), ("latest", 8)])
def test_mma_reads_operands_when_it_completes(schedule, first_row):
    """Half of row 0 of A is overwritten behind the issue."""
    case = replace(DENSE["bf16 layout D"], accumulates=False)
    ones = np.full((128, 16), 0x3F80, np.uint16).view(np.uint8)
    image, *strides = k_major_image(ones)
    code = mma_code(case, descriptor(IMAGE, *strides), descriptor(IMAGE + len(image), *strides))
    code += f"\nmov.b32 %r9, 0;\nst.shared.v4.b32 [%r0+{IMAGE - 1024}], {{%r9, %r9, %r9, %r9}};"
    after = run_tensor_kernel(random_cells(), image=np.tile(image, 2)[None], thread_code=code, schedule=schedule)
    product = after[0, :, D_AT : D_AT + case.n].view(np.float32)
    assert (product[0] == first_row).all() and (product[1:] == 16).all()


@pytest.mark.parametrize(
    "case, error, message",
    [
        (replace(DENSE["bf16 layout D"], m=64, ctas=2), Misuse, "M = 64 and .cta_group::2"),
        (replace(DENSE["bf16 layout D"], n=24), Misuse, "N = 24"),
        (replace(DENSE["bf16 layout D"], half=16), Misuse, "D at lane 16"),
        (replace(SCALED["mxfp4"], ids=(1, 0)), Misuse, "scale factor id 1"),
        (replace(SCALED["mxfp8"], qualifier=MX + ".block16"), UnknownInstruction, "block16"),
        (replace(DENSE["fp6 and fp4"], a_in_tensor_memory=True), UnknownInstruction, "e2m3 in tensor memory"),
        (replace(DENSE["fp8"], qualifier=".ashift"), UnknownInstruction, "ashift"),
    ],
)
def test_illegal_mma(case, error, message):
    operand = k_major_image(np.zeros((128, 32), np.uint8))
    code = mma_code(case, descriptor(IMAGE, *operand[1:]), descriptor(IMAGE, *operand[1:]))
    with pytest.raises(error, match=message):
        run_tensor_kernel(random_cells(case.ctas), image=np.stack([operand[0]] * case.ctas), thread_code=code)


def test_scale_factors_must_be_copied_to_all_quarters():
    case = SCALED["mxfp8"]
    operand = k_major_image(np.zeros((128, 32), np.uint8))
    code = mma_code(case, descriptor(IMAGE, *operand[1:]), descriptor(IMAGE, *operand[1:]))
    with pytest.raises(Misuse, match="quarters"):
        run_tensor_kernel(random_cells(), image=operand[0][None], thread_code=code)


@pytest.mark.parametrize(
    "code, message",
    [
        ("tcgen05.mma.sp.cta_group::1.kind::f16 [0], 0, 0, [64], 0, %p6;", "sparse"),
        ("tcgen05.shift.cta_group::1.down [0];", "shift"),
        ("tcgen05.cp.cta_group::1.128x128b.b8x16.b6x16_p32 [0], 0;", "decompression"),
    ],
)
def test_refused_instructions(code, message):
    with pytest.raises(UnknownInstruction, match=message):
        run_tensor_kernel(random_cells(), thread_code=code)


def test_groups_do_not_mix():
    with pytest.raises(Misuse, match="cta_group::1 and .cta_group::2"):
        run_tensor_kernel(
            random_cells(2), thread_code=f"tcgen05.cp.cta_group::1.128x128b [0], {descriptor(IMAGE, 0, 0)};"
        )
