"""wgmma (PTX ISA 9.7.15): every combination of types, layouts and sources of A, and groups that complete late.

Operands are numbers whose products sum exactly in any order and width, so that results do not depend on how tensor cores
add. Layouts are written down here from the tables of canonical layouts (9.7.15.5.1.2.1.3) and the figures of fragments.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from quack.emulator.errors import IllegalAccess, Misuse, UnknownInstruction
from tests.unit.emulator.ptx_kernels import SCHEDULES, aligned, run_kernel

THREADS = 128
BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8}
SPANS = {0: 16, 1: 128, 2: 64, 3: 32}  # swizzling mode of the descriptor -> bytes of one line
B_AT = 49152  # where B lies in shared memory; A begins at 0
SHARED = 163840


def encode(values: np.ndarray, kind: str) -> np.ndarray:
    """Small numbers as raw elements."""
    if kind in ("s8", "u8"):
        return values.astype(np.int8).view(np.uint8)
    if kind == "tf32":  # the hardware ignores the low 13 bits
        return values.astype(np.float32).view(np.uint32) | np.uint32(0x1234)
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[kind]
    raw = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(dtype)
    return raw.view(torch.uint8 if BITS[kind] == 8 else torch.int16).numpy().view(f"u{BITS[kind] // 8}")


def random_values(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    if kind == "s8":
        return rng.integers(-128, 128, shape)
    if kind == "u8":
        return rng.integers(0, 256, shape)
    if kind in ("e4m3", "e5m2"):
        return rng.choice([0, 0.5, -0.5, 1, -1, 2, -2], shape)
    return rng.integers(-8, 9, shape)


class Layout(NamedTuple):
    """One operand in shared memory. mode: swizzling mode; start: bytes from where the operand's area begins."""

    mode: int = 1
    is_mn_major: bool = False
    start: int = 0

    def strides(self, size: int, k: int, bits: int) -> tuple[int, int]:
        """(LBO, SBO) in bytes, with gaps wherever a stride is free."""
        span = SPANS[self.mode]
        if not self.is_mn_major:
            if self.mode == 0:  # ((8, m), (T, 2)) : ((1T, SBO), (1, LBO))
                return -(-size // 8) * 160 + 48, 160
            return 16, 8 * span + (1024 if size <= 64 else 0)  # ((8, m), (T, 2k)) : ((wT, SBO), (1, T)); LBO unused
        groups = -(-size * bits // 8 // span)
        if self.mode == 0:  # ((T, 1, m), (8, k)) : ((1, T, SBO), (1T, LBO))
            return groups * 144 + 16, 144
        return 8 * span, groups * 8 * span  # ((T, w, m), (8, k)) : ((1, T, LBO), (wT, SBO))

    def place(self, row: np.ndarray, column: np.ndarray, size: int, k: int, bits: int) -> np.ndarray:
        """Offsets of elements (row, column) of a (size, k) operand."""
        leading, stride = self.strides(size, k, bits)
        span, width = SPANS[self.mode], bits // 8
        if not self.is_mn_major:
            byte = column * width
            if self.mode == 0:
                address = row % 8 * 16 + row // 8 * stride + byte % 16 + byte // 16 * leading
            else:
                address = row % 8 * span + row // 8 * stride + byte
        else:
            byte = row * width
            if self.mode == 0:
                address = byte % 16 + byte // 16 * stride + column % 8 * 16 + column // 8 * leading
            else:
                address = byte % span + byte // span * leading + column % 8 * span + column // 8 * stride
        return self.start + address

    def swizzle(self, address: np.ndarray) -> np.ndarray:
        """16-byte units of an address in shared memory are exchanged by the bits above."""
        return address ^ (address >> 7 & SPANS[self.mode] // 16 - 1) << 4

    def descriptor(self, size: int, k: int, bits: int) -> int:
        """Without the address."""
        leading, stride = self.strides(size, k, bits)
        return leading >> 4 << 16 | stride >> 4 << 32 | self.mode << 62


def write_operand(memory: np.ndarray, at: int, layout: Layout, raw: np.ndarray) -> None:
    """Put raw elements (size, k) into an image of shared memory, whose first byte lies at 1024."""
    size, k = raw.shape
    row, column = np.ogrid[:size, :k]
    address = layout.swizzle(1024 + at + layout.place(row, column, size, k, 8 * raw.dtype.itemsize)) - 1024
    for i in range(raw.dtype.itemsize):
        memory[address + i] = raw >> 8 * i & 255


def place_of_d(thread: np.ndarray, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of elements i of a thread's accumulators."""
    warp, g, t = thread // 32, thread % 32 // 4, thread % 4
    return 16 * warp + g + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * t + i % 2


def place_of_a(thread: np.ndarray, i: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of elements i of A in registers."""
    warp, g, t = thread // 32, thread % 32 // 4, thread % 4
    per_register = 32 // bits
    register, part = np.divmod(i, per_register)
    return 16 * warp + g + 8 * (register % 2), (register // 2 * 4 + t) * per_register + part


def fragments(matrix: np.ndarray, place, count: int) -> np.ndarray:
    """(128, n) registers of a raw matrix."""
    thread, i = np.ogrid[:THREADS, :count]
    return np.ascontiguousarray(matrix[place(thread, i)]).view(np.uint32)


def names(prefix: str, count: int, first: int = 0) -> str:
    return "{" + ", ".join(f"%{prefix}{first + i}" for i in range(count)) + "}"


def fill(size: int) -> str:
    """Shared memory from the image; a barrier lies behind it."""
    return f"""
    setp.eq.u32 %p1, %lane, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%smem+{size}], 1;
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%smem+{size}], {size};
    @%p1 cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%smem], [%in0], {size}, [%smem+{size}];
    bar.sync 0;
    FILLED:
    mbarrier.try_wait.parity.shared::cta.b64 %p1, [%smem+{size}], 0;
    @!%p1 bra FILLED;
    """


def move(count: int, base: str, prefix: str, is_load: bool) -> str:
    """Registers of each thread from or to a (128, count) array."""
    lines = [f"mad.wide.u32 %rd2, %lane, {4 * count}, {base};"]
    for i in range(count):
        register, address = f"%{prefix}{i}", f"[%rd2+{4 * i}]"
        lines.append(f"ld.global.b32 {register}, {address};" if is_load else f"st.global.b32 {address}, {register};")
    return "\n".join(lines)


def descriptor_text(register: str, at: int, bits: int) -> str:
    return f"""
    add.u32 %r10, %smem, {at};
    shr.u32 %r10, %r10, 4;
    cvt.u64.u32 {register}, %r10;
    or.b64 {register}, {register}, {bits:#x};
    """


class Case(NamedTuple):
    """One wgmma. flags: .satfinite; signs: imm-scale-a, imm-scale-b; accumulates: scale-d."""

    d: str
    a: str
    b: str
    n: int
    layout_a: Layout = Layout()
    layout_b: Layout = Layout()
    from_registers: bool = False
    signs: tuple[int, int] = (1, 1)
    accumulates: bool = True
    flags: str = ""

    @property
    def k(self) -> int:
        return 256 // BITS[self.a]

    @property
    def registers(self) -> int:
        """Accumulator registers of a thread."""
        return self.n // 4 if self.d == "f16" else self.n // 2

    def instruction(self, d: str, scale: str = "%p2") -> str:
        a = names("a", 4) if self.from_registers else "%rd10"
        text = f"wgmma.mma_async.sync.aligned.m64n{self.n}k{self.k}{self.flags}.{self.d}.{self.a}.{self.b} {d}, {a}, %rd11, {scale}"
        if self.d != "s32":
            text += f", {self.signs[0]}, {self.signs[1]}"
            if BITS[self.a] == 16:
                majors = [self.layout_a.is_mn_major] * (not self.from_registers) + [self.layout_b.is_mn_major]
                text += "".join(f", {int(m)}" for m in majors)
        return text + ";"


def operands(case: Case, seed: int):
    """(A, B, C as numbers, image of shared memory, raw A)."""
    rng = np.random.default_rng(seed)
    a, b = random_values(rng, case.a, (64, case.k)), random_values(rng, case.b, (case.n, case.k))
    c = rng.integers(-100, 100, (64, case.n))
    memory = aligned(SHARED, np.uint8)
    memory[:] = rng.integers(0, 256, SHARED)
    write_operand(memory, 0, case.layout_a, encode(a, case.a))
    write_operand(memory, B_AT, case.layout_b, encode(b, case.b))
    return a, b, c, memory, encode(a, case.a)


ACCUMULATOR = {"f16": np.float16, "f32": np.float32, "s32": np.int32}


def run_case(case: Case, schedule: str = "eager", seed: int = 0) -> None:
    a, b, c, memory, raw_a = operands(case, seed)
    dtype = ACCUMULATOR[case.d]
    elements = case.n // 2
    inputs = fragments(c.astype(dtype), place_of_d, elements)
    bits = BITS[case.a]
    a_registers = fragments(raw_a, lambda thread, i: place_of_a(thread, i, bits), 128 // bits)
    out = np.zeros_like(inputs)
    size = B_AT + 98304
    body = f"""
    {{
    .reg .b32 %a<4>, %d<{case.registers}>;
    {fill(size)}
    {move(4, "%in1", "a", True)}
    {move(case.registers, "%in2", "d", True)}
    {descriptor_text("%rd10", case.layout_a.start, case.layout_a.descriptor(64, case.k, bits))}
    {descriptor_text("%rd11", B_AT + case.layout_b.start, case.layout_b.descriptor(case.n, case.k, bits))}
    setp.ne.u32 %p2, {int(case.accumulates)}, 0;
    wgmma.fence.sync.aligned;
    {case.instruction(names("d", case.registers))}
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    {move(case.registers, "%in3", "d", False)}
    }}
    """
    run_kernel(
        body, memory, a_registers, inputs, out, shared=size + 8, threads=THREADS, schedule=schedule, target="sm_90a"
    )
    product = (case.signs[0] * a.astype(np.float64)) @ (case.signs[1] * b.astype(np.float64)).T
    expected = product + (c if case.accumulates else 0)
    result = np.zeros((64, case.n), dtype)
    thread, i = np.ogrid[:THREADS, :elements]
    result[place_of_d(thread, i)] = out.view(dtype)
    np.testing.assert_array_equal(result, expected.astype(dtype))


TYPES = [
    ("f16", "f16", "f16"), ("f32", "f16", "f16"), ("f32", "bf16", "bf16"), ("f32", "tf32", "tf32"),
    *((d, a, b) for d in ("f16", "f32") for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2")),
    *(("s32", a, b) for a in ("s8", "u8") for b in ("s8", "u8")),
]  # fmt: skip


@pytest.mark.parametrize("from_registers", [False, True], ids=["SS", "RS"])
@pytest.mark.parametrize("types", TYPES, ids="-".join)
def test_types(types, from_registers):
    """All widths of N, each with another swizzle and part of the swizzle span."""
    d, a, b = types
    for n, mode, start in ((8, 0, 0), (64, 1, 96), (96, 2, 32), (256, 3, 0)):
        layout = Layout(mode, start=start)
        run_case(Case(d, a, b, n, layout, layout, from_registers), seed=n)


def fits(size: int, mode: int) -> bool:
    """Whether a 16-bit MN-major operand fills whole spans."""
    return size * 2 % SPANS[mode] == 0


MAJORS = [
    (n, a, b)
    for n in (8, 64, 96, 256)
    for a in (Layout(0, True), Layout(1, True), Layout(2, True), Layout(3, True), Layout(0), Layout(1, start=64))
    for b in (Layout(0, True), Layout(1, True), Layout(2, True), Layout(3, True), Layout(0), Layout(2))
    if (not b.is_mn_major or fits(n, b.mode)) and (a.is_mn_major or b.is_mn_major)
    and (n == 64 or (n + 7 * a.mode + 3 * a.is_mn_major + b.mode) % 4 == 0)
]  # fmt: skip


@pytest.mark.parametrize("n, layout_a, layout_b", MAJORS)
def test_majors(n, layout_a, layout_b):
    run_case(Case("f32", "bf16", "bf16", n, layout_a, layout_b), seed=1)


@pytest.mark.parametrize("layout_b", [Layout(mode, True) for mode in range(4)])
def test_mn_major_b_with_a_in_registers(layout_b):
    run_case(Case("f16", "f16", "f16", 64, layout_b=layout_b, from_registers=True), "latest")


@pytest.mark.parametrize("from_registers", [False, True], ids=["SS", "RS"])
@pytest.mark.parametrize("signs", [(1, -1), (-1, 1), (-1, -1)])
def test_negation_and_scale_d(signs, from_registers):
    for d, a, b in (("f16", "f16", "f16"), ("f32", "tf32", "tf32"), ("f32", "e4m3", "e5m2")):
        for accumulates in (False, True):
            run_case(Case(d, a, b, 64, from_registers=from_registers, signs=signs, accumulates=accumulates))


@pytest.mark.parametrize("types", [("s32", "s8", "u8"), ("f32", "bf16", "bf16")], ids="-".join)
def test_scale_d_false_ignores_the_accumulators(types):
    d, a, b = types
    run_case(Case(d, a, b, 96, accumulates=False))


@pytest.mark.parametrize("flags", ["", ".satfinite"])
def test_integer_overflow(flags):
    """C is the largest integer; sums wrap, or are clamped."""
    case = Case("s32", "u8", "u8", 8, flags=flags)
    memory = aligned(SHARED, np.uint8)
    write_operand(memory, 0, case.layout_a, np.full((64, 32), 255, np.uint8))
    write_operand(memory, B_AT, case.layout_b, np.full((8, 32), 3, np.uint8))
    c, out = np.full((THREADS, 4), 2**31 - 1, np.uint32), np.zeros((THREADS, 4), np.uint32)
    body = f"""
    {{
    .reg .b32 %d<4>;
    {fill(B_AT + 4096)}
    {move(4, "%in1", "d", True)}
    {descriptor_text("%rd10", 0, case.layout_a.descriptor(64, 32, 8))}
    {descriptor_text("%rd11", B_AT, case.layout_b.descriptor(8, 32, 8))}
    setp.eq.u32 %p2, 0, 0;
    wgmma.fence.sync.aligned;
    {case.instruction(names("d", 4))}
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    {move(4, "%in2", "d", False)}
    }}
    """
    run_kernel(body, memory, c, out, shared=B_AT + 4104, threads=THREADS, target="sm_90a")
    total = 2**31 - 1 + 32 * 255 * 3
    assert (out.view(np.int32) == (2**31 - 1 if flags else total - 2**32)).all()


# ---- groups -----------------------------------------------------------------------------------------------------------


def chain(schedule: str, waits: list[str], warpgroups: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two accumulators, two wgmmas each, in four groups; after `waits[i]` accumulator i is stored.

    Returns (found, expected) where expected is 2 A B for both, and what they held before.
    """
    case = Case("f32", "bf16", "bf16", 8)
    a, b, _, memory, _ = operands(case, 5)
    found = np.zeros((2, warpgroups * THREADS, 4), np.float32)
    size = B_AT + 4096
    issue = [case.instruction(names(prefix, 4)) + "\nwgmma.commit_group.sync.aligned;" for prefix in "xyxy"]
    address = "mad.wide.u32 %rd2, %lane, 16, %in1;\n"
    offsets = [[found[0].nbytes * i + 4 * j for j in range(4)] for i in range(2)]
    store = [
        address + "\n".join(f"st.global.b32 [%rd2+{at}], %{p}{j};" for j, at in enumerate(row))
        for p, row in zip("xy", offsets)
    ]
    zero = "\n".join(f"mov.b32 %{p}{j}, 0f40E00000;" for p in "xy" for j in range(4))
    body = f"""
    {{
    .reg .b32 %x<4>, %y<4>;
    {fill(size)}
    {zero}
    {descriptor_text("%rd10", 0, case.layout_a.descriptor(64, 16, 16))}
    {descriptor_text("%rd11", B_AT, case.layout_b.descriptor(8, 16, 16))}
    setp.eq.u32 %p2, 0, 0;
    wgmma.fence.sync.aligned;
    {issue[0]}
    {issue[1]}
    {issue[2]}
    {issue[3]}
    {waits[0]}
    {store[0]}
    {waits[1]}
    {store[1]}
    wgmma.wait_group.sync.aligned 0;
    }}
    """
    run_kernel(body, memory, found, shared=size + 8, threads=warpgroups * THREADS, schedule=schedule, target="sm_90a")
    product = 7 + 2 * (a @ b.T).astype(np.float32)
    thread, i = np.ogrid[:THREADS, :4]
    return found, np.tile(product[place_of_d(thread, i)], (2, warpgroups, 1)), np.full_like(found, 7)


WAIT = "wgmma.wait_group.sync.aligned {};"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warpgroups", [1, 3])
def test_groups_are_waited_for(schedule, warpgroups):
    found, expected, _ = chain(schedule, [WAIT.format(1), WAIT.format(0)], warpgroups)
    np.testing.assert_array_equal(found, expected)


def test_missing_waits_show_in_the_latest_schedule():
    found, expected, before = chain("latest", ["", ""])
    np.testing.assert_array_equal(found, before)
    found, expected, before = chain("latest", [WAIT.format(4), WAIT.format(0)])
    np.testing.assert_array_equal(found[0], before[0])
    np.testing.assert_array_equal(found[1], expected[1])
    found, expected, _ = chain("latest", [WAIT.format(1), WAIT.format(1)])
    assert (found[0] == expected[0]).all() and not (found[1] == expected[1]).all()


# ---- errors -----------------------------------------------------------------------------------------------------------

GOOD = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r1, %r2, %r3, %r4}, %rd10, %rd11, %p2, 1, 1, 0, 0;"
MISUSE = {
    "diverged": ("setp.lt.u32 %p1, %lane, 16;\n@%p1 " + GOOD, "aligned"),
    "different descriptors": (f"cvt.u64.u32 %rd10, %lane;\nand.b64 %rd10, %rd10, 32;\n{GOOD}", "disagree"),
    "outside shared memory": (
        f"mov.b64 %rd10, 0x4000004000003000;\n{GOOD}\nwgmma.commit_group.sync.aligned;",
        "shared memory",
    ),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    text, message = MISUSE[name]
    with pytest.raises((Misuse, IllegalAccess), match=f"(?s){message}.*PTX line"):
        run_kernel(
            "mov.b64 %rd10, 0x40;\nmov.b64 %rd11, 0x40;\nsetp.eq.u32 %p2, 0, 0;\n" + text, shared=4096, threads=THREADS
        )


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("k16", "k8"),
        GOOD.replace("{%r1, %r2, %r3, %r4}", "{%r1, %r2}"),
        GOOD.replace("mma_async", "mma_async.sp"),
        GOOD.replace("m64n8k16", "m64n12k16"),
        GOOD.replace("f32.bf16.bf16", "f32.bf16.f16"),
        GOOD.replace("f32.bf16.bf16", "f16.bf16.bf16").replace("{%r1, %r2, %r3, %r4}", "{%r1, %r2}"),
        GOOD.replace("f32.bf16.bf16", "f32.e4m3.e4m3").replace("k16", "k32"),
        "wgmma.mma_async.sync.aligned.m64n8k256.s32.b1.b1.and.popc {%r1, %r2, %r3, %r4}, %rd10, %rd11, %p2;",
        "wgmma.wait_all.sync.aligned;",
    ],
)
def test_unknown_forms_are_refused(text):
    with pytest.raises(UnknownInstruction, match=f"PTX line .*{text.split()[0].rstrip(';')}"):
        run_kernel(text, np.zeros(1, np.uint32), threads=THREADS)
