"""ldmatrix, stmatrix and movmatrix against the layouts of the PTX ISA (9.7.14.5.15 to 9.7.14.5.17)."""

import numpy as np
import pytest

from quack.emulator.errors import IllegalAccess, UnknownInstruction
from tests.unit.emulator.ptx_kernels import lane_address, load_registers, run_kernel, store_registers

ROW, SLOTS = 16, 64  # shared memory: 64 slots of 16 bytes
REGISTERS = [f"%r{i}" for i in range(4)]

FILL = f"""
mov.b32 %r20, smem;
{lane_address("%rd2", "%in0", 32)}
shl.b32 %r21, %lane, 5;
add.u32 %r21, %r21, %r20;
ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%rd2];
st.shared.v4.b32 [%r21], {{%r10, %r11, %r12, %r13}};
ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%rd2+16];
st.shared.v4.b32 [%r21+16], {{%r10, %r11, %r12, %r13}};
{load_registers(["%r22"], "%in1", "%rd3")}
add.u32 %r22, %r22, %r20;
bar.sync 0;
"""
DUMP = """
bar.sync 0;
ld.shared.v4.b32 {%r10, %r11, %r12, %r13}, [%r21];
st.global.v4.b32 [%rd2], {%r10, %r11, %r12, %r13};
ld.shared.v4.b32 {%r10, %r11, %r12, %r13}, [%r21+16];
st.global.v4.b32 [%rd2+16], {%r10, %r11, %r12, %r13};
"""


def scattered(rng: np.random.Generator) -> np.ndarray:
    """A slot for each lane's row."""
    return rng.permutation(SLOTS)[:32]


def vector(count: int) -> str:
    return "{" + ", ".join(REGISTERS[:count]) + "}"


def load(modifiers: str, registers: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(bytes (32, 16) of the rows that lanes 0 to 31 address, registers (32, n))."""
    rng = np.random.default_rng(seed)
    memory = rng.integers(0, 256, (SLOTS, ROW), np.uint8)
    slots = scattered(rng)
    out = np.zeros((32, registers), np.uint32)
    body = f"{FILL}\nldmatrix.sync.aligned.{modifiers} {vector(registers)}, [%r22];\n"
    body += store_registers(REGISTERS[:registers], "%in2", "%rd1")
    run_kernel(body, memory, (slots * ROW).astype(np.uint32), out, shared=SLOTS * ROW)
    return memory[slots], out


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_load_8x8(count, is_transposed):
    rows, out = load(f"m8n8.x{count}{'.trans' * is_transposed}.shared.b16", count)
    halves = out.view(np.uint16).reshape(32, count, 2)
    for lane in range(32):
        for i in range(count):
            matrix = rows[8 * i : 8 * i + 8].view(np.uint16)
            for c in range(2):
                row, column = lane // 4, 2 * (lane % 4) + c
                expected = matrix[column, row] if is_transposed else matrix[row, column]
                assert halves[lane, i, c] == expected


def unpacked(row: np.ndarray, bits: int) -> np.ndarray:
    """16 elements of a row, the lowest bits first."""
    whole = int.from_bytes(row.tobytes(), "little")
    return np.array([whole >> bits * i & ((1 << bits) - 1) for i in range(16)], np.uint8)


@pytest.mark.parametrize("source, bits", [("b8x16.b6x16_p32", 6), ("b8x16.b4x16_p64", 4)])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_load_8x16_unpacks(count, source, bits):
    rows, out = load(f"m8n16.x{count}.shared.{source}", count)
    elements = out.view(np.uint8).reshape(32, count, 4)
    for lane in range(32):
        for i in range(count):
            expected = unpacked(rows[8 * i + lane // 4], bits)[4 * (lane % 4) :][:4]
            np.testing.assert_array_equal(elements[lane, i], expected)


@pytest.mark.parametrize("source, bits", [("b8", 8), ("b8x16.b6x16_p32", 6), ("b8x16.b4x16_p64", 4)])
@pytest.mark.parametrize("count", [1, 2])
def test_load_16x16_transposes(count, source, bits):
    """Register 2 i + h of a lane: column lane / 4 + 8 h of matrix i, rows 4 (lane mod 4) to + 3."""
    rows, out = load(f"m16n16.x{count}.trans.shared.{source}", 2 * count)
    elements = out.view(np.uint8).reshape(32, count, 2, 4)
    for i in range(count):
        matrix = np.stack([unpacked(row, bits) for row in rows[16 * i : 16 * i + 16]])
        for lane in range(32):
            for h in range(2):
                expected = matrix[4 * (lane % 4) :, lane // 4 + 8 * h][:4]
                np.testing.assert_array_equal(elements[lane, i, h], expected)


def store(modifiers: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(registers (32, n), the rows (32, 16) that lanes 0 to 31 address, whether a slot of any other row changed)."""
    rng = np.random.default_rng(1)
    memory = rng.integers(0, 256, (SLOTS, ROW), np.uint8)
    before, slots = memory.copy(), scattered(rng)
    registers = rng.integers(0, 1 << 32, (32, count), np.uint32)
    body = FILL + load_registers(REGISTERS[:count], "%in2", "%rd1")
    body += f"\nstmatrix.sync.aligned.{modifiers} [%r22], {vector(count)};\n{DUMP}"
    run_kernel(body, memory, (slots * ROW).astype(np.uint32), registers, shared=SLOTS * ROW)
    others = np.setdiff1d(np.arange(SLOTS), slots[: 8 * count])
    return registers, memory[slots], (memory[others] != before[others]).any()


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_store_8x8(count, is_transposed):
    registers, rows, is_stray = store(f"m8n8.x{count}{'.trans' * is_transposed}.shared.b16", count)
    halves = registers.view(np.uint16).reshape(32, count, 2)
    for lane in range(32):
        for i in range(count):
            matrix = rows[8 * i : 8 * i + 8].view(np.uint16)
            for c in range(2):
                row, column = lane // 4, 2 * (lane % 4) + c
                stored = matrix[column, row] if is_transposed else matrix[row, column]
                assert stored == halves[lane, i, c]
    assert not is_stray


@pytest.mark.parametrize("count", [1, 2, 4])
def test_store_16x8(count):
    """A lane holds elements [g][2 t], [g][2 t + 1], [g + 8][2 t], [g + 8][2 t + 1], like an accumulator of mma."""
    registers, rows, is_stray = store(f"m16n8.x{count}.trans.shared.b8", count)
    elements = registers.view(np.uint8).reshape(32, count, 4)
    for lane in range(32):
        g, t = lane // 4, lane % 4
        for i in range(count):
            for e, (row, column) in enumerate(((g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1))):
                assert rows[8 * i + column, row] == elements[lane, i, e]
    assert not is_stray


def test_move_matrix():
    source = np.random.default_rng(2).integers(0, 1 << 32, 32, np.uint32)
    out = np.zeros(32, np.uint32)
    body = load_registers(["%r0"], "%in0", "%rd1") + "\nmovmatrix.sync.aligned.m8n8.trans.b16 %r1, %r0;\n"
    run_kernel(body + store_registers(["%r1"], "%in1", "%rd1"), source, out)
    np.testing.assert_array_equal(out.view(np.uint16).reshape(8, 8), source.view(np.uint16).reshape(8, 8).T)


@pytest.mark.parametrize(
    "text",
    [
        "ldmatrix.sync.aligned.m8n8.x1.shared.b8 {%r0}, [%r22]",
        "ldmatrix.sync.aligned.m16n16.x1.shared.b8 {%r0, %r1}, [%r22]",
        "ldmatrix.sync.aligned.m16n16.x4.trans.shared.b8 {%r0, %r1, %r2, %r3}, [%r22]",
        "ldmatrix.sync.aligned.m8n16.x1.trans.shared.b8x16.b4x16_p64 {%r0}, [%r22]",
        "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r0}, [%r22]",
        "stmatrix.sync.aligned.m16n8.x1.shared.b8 [%r22], {%r0}",
    ],
)
def test_refused(text):
    with pytest.raises(UnknownInstruction):
        run_kernel(text + ";", np.zeros(1, np.uint32))


@pytest.mark.parametrize(
    "offset, message", [(8, "multiple of 16"), (SLOTS * ROW, "bytes"), (1 << 24, "own shared memory")]
)
def test_illegal_address(offset, message):
    body = (
        f"mov.b32 %r20, smem;\nadd.u32 %r22, %r20, {offset};\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r0}}, [%r22];"
    )
    with pytest.raises(IllegalAccess, match=message):
        run_kernel(body, np.zeros(1, np.uint32), shared=SLOTS * ROW)
