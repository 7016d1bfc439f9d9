"""atom, red, st.async and red.async (PTX ISA 9.7.9.12, 9.7.13.5 to 9.7.13.7) against lanes that take their turns."""

from typing import Any

import numpy as np
import pytest

from quack.emulator.errors import IllegalAccess, Misuse, UnknownInstruction
from tests.unit.emulator.ptx_kernels import SCHEDULES, aligned, edge_values, load_registers, run_kernel, signed
from tests.unit.emulator.test_floating import flush, raw_of, value_of, width

CELLS = 8
INTEGER_OPERATIONS: dict[str, Any] = {
    "add": lambda r, s: r + s,
    "min": min,
    "max": max,
    "and": lambda r, s: r & s,
    "or": lambda r, s: r | s,
    "xor": lambda r, s: r ^ s,
    "exch": lambda r, s: s,
    "inc": lambda r, s: 0 if r >= s else r + 1,
    "dec": lambda r, s: s if r == 0 or r > s else r - 1,
}
FLOAT_OPERATIONS: dict[str, Any] = {"add": lambda r, s: r + s, "min": min, "max": max}


def combine(operation: str, kind: str, is_global: bool):
    """(what memory holds, operand) to what it holds then, on raw bits."""
    if kind.endswith("x2"):
        half = combine(operation, kind[:-2], is_global)
        return lambda r, s: half(r & 0xFFFF, s & 0xFFFF) | half(r >> 16, s >> 16) << 16
    if "f" in kind:

        def on_floats(r: int, s: int) -> int:
            ftz = kind == "f32" and is_global and operation == "add"  # as the ISA says of global memory
            r, s = (flush(v, kind) if ftz else v for v in (r, s))
            raw = raw_of(FLOAT_OPERATIONS[operation](value_of(r, kind), value_of(s, kind)), kind)
            return flush(raw, kind) if ftz else raw

        return on_floats
    bits = int(kind[1:])
    read = (lambda v: signed(v, bits)) if kind[0] == "s" else (lambda v: v)
    return lambda r, s: INTEGER_OPERATIONS[operation](read(r), read(s)) & (1 << bits) - 1


def bits_of(kind: str) -> int:
    return width(kind.removesuffix("x2")) * (1 + kind.endswith("x2")) if "f" in kind else int(kind[1:])


def operands(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if "f" not in kind:
        bits = bits_of(kind)
        return np.array(edge_values(rng, bits, int(np.prod(shape))), f"u{bits // 8}").reshape(shape)
    base, lanes = kind.removesuffix("x2"), 1 + kind.endswith("x2")
    values = rng.integers(-64, 64, (*shape, lanes)) / 4
    raw = np.array([raw_of(float(v), base) for v in values.flat], f"u{width(base) // 8}").reshape(values.shape)
    if base == "f32":
        raw[rng.random(raw.shape) < 0.2] = 3  # subnormal
    return raw.reshape(*shape[:-1], -1).view(f"u{bits_of(kind) // 8}").reshape(shape)


# Which cell each lane works on.
PLACES = {"one": lambda lane: 5, "own group": lambda lane: lane % CELLS, "a few": lambda lane: 7 if lane % 3 else 2}


def run_atomic(instruction: str, kind: str, space: str, place: str, guard: bool = False):
    """Every lane executes the instruction on its cell; returns (cells before, cells after, operands, results)."""
    bits = bits_of(kind)
    before, values = operands(kind, (CELLS,), 1), operands(kind, (32, 2), 2)
    values[::4, 0] = before[[PLACES[place](lane) for lane in range(0, 32, 4)]]  # now and then what cas compares with
    cells, results = before.copy(), np.zeros(32, f"u{bits // 8}")
    index = np.array([PLACES[place](lane) for lane in range(32)], np.uint32)
    reg = {16: "%rs", 32: "%r", 64: "%rd"}[bits]
    base = {16: 1, 32: 50, 64: 50}[bits]
    old, x, y, cell = (f"{reg}{base + i}" for i in range(4))
    at = f"mov.b32 %r1, {PLACES[place](0)};" if place == "one" else load_registers(["%r1"], "%in1", "%rd1")
    to_shared = "cvt.u64.u32 %rd3, %smem;\nmad.wide.u32 %rd3, %r1, {0}, %rd3;\nmad.wide.u32 %rd5, %lane, {0}, %in0;\n"
    to_shared += "cvt.u64.u32 %rd6, %smem;\nmad.wide.u32 %rd6, %lane, {0}, %rd6;\nsetp.lt.u32 %p1, %lane, 8;\n"
    to_shared += f"@%p1 ld.global.b{bits} {cell}, [%rd5];\n@%p1 st.shared.b{bits} [%rd6], {cell};\nbar.warp.sync -1;"
    to_global = "mad.wide.u32 %rd3, %r1, {0}, %in0;"
    is_shared = space.endswith("shared")
    generic = "cvta.shared.u64 %rd3, %rd3;" if space == "generic shared" else ""
    text = instruction.replace("SPACE", "" if space.startswith("generic") else f".{space}")
    body = f"""
    {at}
    {load_registers([x, y], "%in2", "%rd2", bits)}
    {(to_shared if is_shared else to_global).format(bits // 8)}
    {generic}
    setp.ge.u32 %p2, %lane, {9 if guard else 0};
    mov.b{bits} {old}, 0;
    @%p2 {text.format(d=old, a="[%rd3]", x=x, y=y)}
    bar.warp.sync -1;
    mad.wide.u32 %rd4, %lane, {bits // 8}, %in3;
    st.global.b{bits} [%rd4], {old};
    """
    if is_shared:
        body += f"@%p1 ld.shared.b{bits} {cell}, [%rd6];\n@%p1 st.global.b{bits} [%rd5], {cell};\n"
    run_kernel(body, cells, index, values, results, shared=128)
    return before, cells, values, results


def check(operation: str, kind: str, space: str, place: str, has_result: bool, guard: bool = False) -> None:
    noftz = ".noftz" if kind in ("f16", "bf16", "f16x2", "bf16x2") else ""
    name, target = ("atom", "{d}, ") if has_result else ("red", "")
    text = f"{name}SPACE.{operation}{noftz}.{kind} {target}{{a}}, {{x}}"
    if operation == "cas":
        text = text + ", {y}"
    before, cells, values, results = run_atomic(text + ";", kind, space, place, guard)
    expected, expected_results = before.copy(), np.zeros_like(results)
    function = None if operation == "cas" else combine(operation, kind, not space.endswith("shared"))
    for lane in range(9 if guard else 0, 32):
        cell = PLACES[place](lane)
        r, x, y = int(expected[cell]), int(values[lane, 0]), int(values[lane, 1])
        expected_results[lane] = r if has_result else 0
        expected[cell] = function(r, x) if function else (y if r == x else r)
    np.testing.assert_array_equal(cells, expected)
    np.testing.assert_array_equal(results, expected_results)


ATOMS = [
    *((op, kind) for kind in ("u32", "u64") for op in ("add", "min", "max")),
    ("add", "s32"), ("min", "s32"), ("max", "s32"), ("min", "s64"), ("max", "s64"), ("inc", "u32"), ("dec", "u32"),
    *((op, kind) for kind in ("b32", "b64") for op in ("and", "or", "xor", "exch", "cas")),
    ("cas", "b16"), ("add", "f32"), ("add", "f64"), ("add", "f16"), ("add", "bf16"), ("add", "f16x2"), ("add", "bf16x2"),
]  # fmt: skip


@pytest.mark.parametrize("operation, kind", ATOMS)
def test_atom(operation, kind):
    for space in ("global", "shared"):
        for place in PLACES:
            check(operation, kind, space, place, has_result=True)
    check(operation, kind, "generic global", "own group", has_result=True)
    check(operation, kind, "generic shared", "a few", has_result=True)
    check(operation, kind, "global", "one", has_result=True, guard=True)
    check(operation, kind, "shared", "a few", has_result=True, guard=True)


@pytest.mark.parametrize("operation, kind", [case for case in ATOMS if case[0] not in ("exch", "cas")])
def test_red(operation, kind):
    for space in ("global", "shared", "generic shared"):
        for place in PLACES:
            check(operation, kind, space, place, has_result=False)
    check(operation, kind, "global", "a few", has_result=False, guard=True)


@pytest.mark.parametrize("order", ["relaxed.gpu", "acquire.sys", "release.cta", "acq_rel.cluster"])
def test_orders_and_scopes(order):
    counter, out = np.zeros(1, np.uint32), np.zeros(32, np.uint32)
    body = f"""
    atom.{order}.global.add.u32 %r1, [%in0], 1;
    atom.global.{order}.add.u32 _, [%in0], 1;
    red.{order}.global.add.u32 [%in0], 1;
    red.global.{order}.add.L2::cache_hint.u32 [%in0], 1, %rd9;
    mad.wide.u32 %rd1, %lane, 4, %in1;
    st.global.b32 [%rd1], %r1;
    """
    run_kernel(body, counter, out)
    assert counter[0] == 128 and out.tolist() == list(range(32))


VECTORS = [(count, kind) for count in (2, 4, 8) for kind in ("f32", "f16", "bf16", "f16x2", "bf16x2")
           if count < {"f32": 8, "f16": 9, "bf16": 9}.get(kind, 8)]  # fmt: skip


@pytest.mark.parametrize("count, kind", VECTORS)
def test_vectors(count, kind):
    bits = bits_of(kind)
    noftz = "" if kind == "f32" else ".noftz"
    for operation in ("add",) if kind == "f32" else ("add", "min", "max"):
        before, values = operands(kind, (4, count), 3), operands(kind, (32, count), 4)
        memory, results = aligned((4, count), before.dtype), aligned((32, count), before.dtype)
        memory[:] = before
        reg, letter = ("%h", "b16") if bits == 16 else ("%w", "b32")
        old, new = (", ".join(f"{reg}{start + i}" for i in range(count)) for start in (0, 16))
        body = f"""
        {{
        .reg .{letter} {reg}<32>;
        and.b32 %r1, %lane, 3;
        mad.wide.u32 %rd1, %r1, {count * bits // 8}, %in0;
        {load_registers([f"{reg}{16 + i}" for i in range(count)], "%in1", "%rd2", bits)}
        atom.global.v{count}.{kind}.{operation}{noftz} {{{old}}}, [%rd1], {{{new}}};
        red.global.{operation}{noftz}.v{count}.{kind} [%rd1], {{{new}}};
        mad.wide.u32 %rd3, %lane, {count * bits // 8}, %in2;
        """
        body += "\n".join(f"st.global.b{bits} [%rd3+{i * bits // 8}], {reg}{i};" for i in range(count)) + "\n}"
        run_kernel(body, memory, values, results)
        function = combine(operation, kind, is_global=True)
        expected = before.copy()
        for lane in range(32):
            np.testing.assert_array_equal(results[lane], expected[lane % 4])
            expected[lane % 4] = [function(int(r), int(s)) for r, s in zip(expected[lane % 4], values[lane])]
        for lane in range(32):
            expected[lane % 4] = [function(int(r), int(s)) for r, s in zip(expected[lane % 4], values[lane])]
        np.testing.assert_array_equal(memory, expected)


def test_ctas_count_in_one_place():
    counter = np.zeros(2, np.uint64)
    run_kernel("atom.global.add.u64 %rd1, [%in0+8], 1;", counter, grid=(3, 2), threads=96, schedule="random:5", sms=2)
    assert counter.tolist() == [0, 6 * 96]


# ---- st.async, red.async ----------------------------------------------------------------------------------------------

REMOTE = """
mov.u32 %r1, %cluster_ctarank;
xor.b32 %r2, %r1, 1;
setp.eq.u32 %p1, %lane, 0;
add.u32 %r3, %smem, 1024;
@%p1 mbarrier.init.shared::cta.b64 [%r3], 1;
@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], {transactions};
mad.lo.u32 %r4, %lane, {size}, %smem;
{fill}
barrier.cluster.arrive.aligned;
barrier.cluster.wait.aligned;
mapa.shared::cluster.u32 %r5, %r4, %r2;
mapa.shared::cluster.u32 %r6, %r3, %r2;
mad.lo.u32 %r7, %r1, 100, %lane;
add.u32 %r8, %r7, 1000;
{instruction}
WAIT:
mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0;
@!%p2 bra WAIT;
mad.lo.u32 %r9, %r1, 32, %lane;
mad.wide.u32 %rd1, %r9, {size}, %in0;
{drain}
barrier.cluster.arrive.aligned;
barrier.cluster.wait.aligned;
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_asynchronous_stores(schedule):
    """Each thread stores to the other CTA, whose barrier counts the bytes."""
    source = np.add.outer(np.array([100, 0]), np.arange(32)).reshape(-1)
    for count in (1, 2, 4):
        out = aligned((64, 4), np.uint32)
        vector, listed = ("", "%r7") if count == 1 else (f".v{count}", ", ".join(["%r7", "%r8", "%r7", "%r8"][:count]))
        text = f"st.async.weak.shared::cluster.mbarrier::complete_tx::bytes{vector}.b32 [%r5], {{{listed}}}, [%r6];"
        body = REMOTE.format(
            transactions=128 * count, size=16, instruction=text.replace("{%r7}", "%r7"),
            fill="st.shared.v4.b32 [%r4], {0, 0, 0, 0};",
            drain="ld.shared.v4.b32 {%r20, %r21, %r22, %r23}, [%r4];\nst.global.v4.b32 [%rd1], {%r20, %r21, %r22, %r23};",
        )  # fmt: skip
        run_kernel(body, out, shared=2048, grid=2, cluster=2, schedule=schedule)
        expected = np.stack([source, source + 1000, source, source + 1000], 1)
        expected[:, count:] = 0
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("kind", ["add.u32", "max.s32", "xor.b32", "inc.u32", "add.u64"])
def test_asynchronous_reductions(kind):
    wide = kind.endswith("64")
    out = np.zeros(64, np.uint64 if wide else np.uint32)
    fill = "st.shared.b64 [%r4], 7;" if wide else "st.shared.b32 [%r4], 7;"
    drain = ("ld.shared.b64 %rd9, [%r4];\nst.global.b64 [%rd1], %rd9;" if wide
             else "ld.shared.b32 %r20, [%r4];\nst.global.b32 [%rd1], %r20;")  # fmt: skip
    operand = "%rd8" if wide else "%r7"
    qualifiers = "relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes"
    text = f"cvt.u64.u32 %rd8, %r7;\nred.async.{qualifiers}.{kind} [%r5], {operand}, [%r6];"
    size = 8 if wide else 4
    body = REMOTE.format(transactions=32 * size, size=size, instruction=text, fill=fill, drain=drain)
    run_kernel(body, out, shared=2048, grid=2, cluster=2, schedule="latest")
    name, typed = kind.split(".")
    function = combine(name, typed, is_global=False)
    source = np.add.outer(np.array([100, 0]), np.arange(32)).reshape(-1)
    assert out.tolist() == [function(7, int(s)) for s in source]


# ---- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "atom.global.mul.u32 %r1, [%in0], %r2",
        "atom.global.add.u32.u64 %r1, [%in0], %r2",
        "atom.global.exch.b128 %rd1, [%in0], %rd2",
        "red.global.cas.b32 [%in0], %r1",
        "red.async.release.gpu.global.add.u32 [%in0], %r1",
        "st.async.release.gpu.global.b32 [%in0], %r1",
        "multimem.red.add.u32 [%in0], %r1",
    ],
)
def test_unknown_forms_are_refused(text):
    with pytest.raises(UnknownInstruction, match=f"PTX line .*{text.split()[0]}"):
        run_kernel(text + ";", np.zeros(1, np.uint32))


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("atom.global.add.u64 %rd1, [%in0+4], 1;", IllegalAccess, "multiple of the 8 bytes"),
        ("red.global.add.u32 [%in0+8], 1;", IllegalAccess, "outside every tensor"),
        ("atom.shared.add.u32 %r1, [%smem+64], 1;", IllegalAccess, "offset 64"),
        ("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%smem+4], %rd1, [%smem];", (IllegalAccess, Misuse), "multiple of"),
        ("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%smem+8], %r1, [%smem+16];", Misuse, "no mbarrier"),
    ],
)  # fmt: skip
def test_illegal_accesses(text, error, message):
    body = f"setp.eq.u32 %p1, %lane, 0;\n@%p1 mbarrier.init.shared.b64 [%smem], 1;\n{text}"
    with pytest.raises(error, match=f"(?s){message}.*PTX line"):
        run_kernel(body, aligned(1, np.uint64), shared=64)
