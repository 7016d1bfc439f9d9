"""Communication inside a warp (PTX ISA 9.7.9.6, 9.7.13.9 to 9.7.13.14): shfl, vote, match, activemask, redux, elect."""

import functools
import math
from typing import Any

import numpy as np
import pytest

from quack.emulator.errors import Misuse, UnknownInstruction
from tests.unit.emulator.ptx_kernels import edge_values, load_registers, run_kernel, signed, store_registers
from tests.unit.emulator.test_floating import canonical_nan, raw_of, value_of


def shuffled(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """(lane that is read, whether it is in range): the semantics of 9.7.9.6."""
    step, clamp, segment = b & 31, c & 31, c >> 8 & 31
    highest = lane & segment | clamp & ~segment & 31
    lowest = lane & segment
    source = {"up": lane - step, "down": lane + step, "bfly": lane ^ step, "idx": lowest | step & ~segment & 31}[mode]
    in_range = source >= highest if mode == "up" else source <= highest
    return (source if in_range else lane), in_range


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffle(mode):
    """Every step, clamp values that CUDA uses and odd ones, sub-warps; operands uniform, literal and per lane."""
    rng = np.random.default_rng(1)
    values = rng.integers(0, 1 << 32, 32, np.uint32)
    controls = [
        c | 0x40000000 * (i % 2) for i, c in enumerate((0, 31, 15, 0x101F, 0x181F, 0x1800, 0x1C07, 0x1F1F, 0x0410))
    ]
    lines = [load_registers(["%r1"], "%in0", "%rd1"), "mad.wide.u32 %rd2, %lane, 4, %in2;"]
    expected: list[Any] = []
    steps = rng.integers(0, 64, (2 * len(controls), 32), np.uint32)
    for i, c in enumerate(controls):
        literal = int(rng.integers(0, 40))
        for kind in ("literal", "register", "lane"):
            if kind == "literal":
                step, per_lane = str(literal), np.full(32, literal)
            elif kind == "register":
                lines.append(f"ld.global.b32 %r2, [%in1+{128 * i}];")
                step, per_lane = "%r2", np.full(32, steps[i, 0])
            else:
                lines.append(
                    f"mad.wide.u32 %rd3, %lane, 4, %in1;\nld.global.b32 %r2, [%rd3+{128 * (i + len(controls))}];"
                )
                step, per_lane = "%r2", steps[i + len(controls)]
            at = 256 * len(expected)
            lines.append(f"shfl.sync.{mode}.b32 %r3|%p1, %r1, {step}, {c:#x}, 0xFFFFFFFF;")
            lines.append(f"shfl.sync.{mode}.b32 %r4, %r1, {step}, {c:#x}, -1;\nselp.u32 %r5, 1, 0, %p1;")
            lines.append(f"xor.b32 %r4, %r4, %r3;\nadd.u32 %r5, %r5, %r4;\nst.global.b32 [%rd2+{at}], %r3;")
            lines.append(f"st.global.b32 [%rd2+{at + 128}], %r5;")
            found = [shuffled(mode, lane, int(per_lane[lane]), c) for lane in range(32)]
            expected.append([[values[source] for source, _ in found], [in_range for _, in_range in found]])
    out = np.zeros((len(expected), 2, 32), np.uint32)
    run_kernel("\n".join(lines), values, steps, out)
    np.testing.assert_array_equal(out, expected)


def test_shuffle_of_a_uniform_value():
    out = np.zeros((32, 2), np.uint32)
    body = "mov.b32 %r1, 77;\nshfl.sync.down.b32 %r2|%p1, %r1, 8, 31, -1;\nselp.u32 %r3, 1, 0, %p1;\n"
    run_kernel(body + store_registers(["%r2", "%r3"], "%in0", "%rd1"), out)
    np.testing.assert_array_equal(out, [[77, lane < 24] for lane in range(32)])


SOME = 0xFFFF00F0  # a membermask; the lanes outside it go another way
INSIDE = [lane for lane in range(32) if SOME >> lane & 1]


def members_only(instruction: str) -> str:
    """Lanes outside SOME jump over the instruction."""
    return f"""
    shr.u32 %r9, {SOME:#x}, %lane;
    and.b32 %r9, %r9, 1;
    setp.eq.u32 %p7, %r9, 0;
    @%p7 bra OVER;
    {instruction}
    OVER:
    """


def test_shuffle_among_some_lanes():
    out = np.zeros(32, np.uint32)
    body = "mov.b32 %r2, 0;" + members_only(f"shfl.sync.bfly.b32 %r2, %lane, 1, 31, {SOME:#x};")
    run_kernel(body + store_registers(["%r2"], "%in0", "%rd1"), out)
    assert out.tolist() == [lane ^ 1 if lane in INSIDE else 0 for lane in range(32)]


def test_shuffle_from_a_lane_that_does_not_take_part():
    with pytest.raises(Misuse, match="does not take part.*PTX line|(?s:does not take part.*PTX line)"):
        run_kernel(members_only(f"shfl.sync.down.b32 %r2, %lane, 4, 31, {SOME:#x};"), np.zeros(1, np.uint32))


# ---- vote, match, redux -----------------------------------------------------------------------------------------------

PATTERNS = [0, 0xFFFFFFFF, 1, 0x80000000, 0x7FFFFFFF, 0x12345678]


@pytest.mark.parametrize("members", [0xFFFFFFFF, SOME])
def test_vote(members):
    inside = [lane for lane in range(32) if members >> lane & 1]
    for pattern in PATTERNS:
        for negated in (False, True):
            out = np.zeros((32, 4), np.uint32)
            sign = "!" * negated
            body = f"shr.u32 %r1, {pattern:#x}, %lane;\nand.b32 %r1, %r1, 1;\nsetp.ne.u32 %p1, %r1, 0;\n"
            votes = [
                f"vote.sync.{m}.pred %p{i}, {sign}%p1, {members:#x};" for i, m in enumerate(("all", "any", "uni"), 2)
            ]
            votes.append(f"vote.sync.ballot.b32 %r5, {sign}%p1, {members:#x};")
            votes += [f"selp.u32 %r{i}, 1, 0, %p{i};" for i in (2, 3, 4)]
            votes.append(store_registers(["%r2", "%r3", "%r4", "%r5"], "%in0", "%rd1"))
            text = "\n".join(votes)
            run_kernel(body + (text if members == 0xFFFFFFFF else members_only(text)), out)
            held = [bool(pattern >> lane & 1) != negated for lane in inside]
            ballot = sum(1 << lane for lane, h in zip(inside, held) if h)
            row = [all(held), any(held), len(set(held)) == 1, ballot]
            np.testing.assert_array_equal(out, [row if lane in inside else [0] * 4 for lane in range(32)])


@pytest.mark.parametrize("value", [True, False])
def test_vote_on_a_uniform_predicate(value):
    out = np.zeros((32, 3), np.uint32)
    body = f"setp.eq.u32 %p1, 1, {int(value)};\nvote.sync.ballot.b32 %r1, %p1, -1;\nvote.sync.any.pred %p2, %p1, -1;\n"
    body += "vote.sync.uni.pred %p3, !%p1, -1;\nselp.u32 %r2, 1, 0, %p2;\nselp.u32 %r3, 1, 0, %p3;\n"
    run_kernel(body + store_registers(["%r1", "%r2", "%r3"], "%in0", "%rd1"), out)
    assert (out == [0xFFFFFFFF * value, value, 1]).all()


@pytest.mark.parametrize("members", [0xFFFFFFFF, SOME])
@pytest.mark.parametrize("bits", [32, 64])
def test_match(bits, members):
    inside = [lane for lane in range(32) if members >> lane & 1]
    rng = np.random.default_rng(2)
    for values in (
        rng.integers(0, 4, 32),
        np.full(32, 9),
        np.where(np.arange(32) == 20, 1, 0),
        rng.integers(0, 2, 32) << bits - 1,
    ):
        words, out = values.astype(f"u{bits // 8}"), np.zeros((32, 3), np.uint32)
        reg = "%r10" if bits == 32 else "%rd10"
        text = f"""
        match.any.sync.b{bits} %r1, {reg}, {members:#x};
        match.all.sync.b{bits} %r2|%p1, {reg}, {members:#x};
        match.all.sync.b{bits} %r4, {reg}, {members:#x};
        selp.u32 %r3, 1, 0, %p1;
        xor.b32 %r4, %r4, %r2;
        add.u32 %r3, %r3, %r4;
        """ + store_registers(["%r1", "%r2", "%r3"], "%in1", "%rd1")
        load = load_registers([reg], "%in0", "%rd2", bits)
        run_kernel(load + (text if members == 0xFFFFFFFF else members_only(text)), words, out)
        same = len({int(words[lane]) for lane in inside}) == 1
        for lane in range(32):
            equal = sum(1 << other for other in inside if words[other] == words[lane])
            expected = [equal, members if same else 0, same] if lane in inside else [0, 0, 0]
            assert out[lane].tolist() == expected


REDUCTIONS: dict[str, Any] = {
    "add.u32": lambda v: sum(v),
    "add.s32": lambda v: sum(v),
    "min.u32": min,
    "max.u32": max,
    "min.s32": lambda v: min(signed(x, 32) for x in v),
    "max.s32": lambda v: max(signed(x, 32) for x in v),
    "and.b32": lambda v: functools.reduce(lambda x, y: x & y, v),
    "or.b32": lambda v: functools.reduce(lambda x, y: x | y, v),
    "xor.b32": lambda v: functools.reduce(lambda x, y: x ^ y, v),
}


@pytest.mark.parametrize("members", [0xFFFFFFFF, SOME])
@pytest.mark.parametrize("operation", REDUCTIONS)
def test_redux(operation, members):
    inside = [lane for lane in range(32) if members >> lane & 1]
    for seed in range(3):
        values, out = (
            np.array(edge_values(np.random.default_rng(seed), 32, 32), np.uint32),
            np.zeros((32, 2), np.uint32),
        )
        if operation == "and.b32":
            values |= 0xF0F0F0F0
        text = f"redux.sync.{operation} %r2, %r1, {members:#x};\nmov.b32 %r3, 5;\nredux.sync.{operation} %r3, %r3, {members:#x};\n"
        text += store_registers(["%r2", "%r3"], "%in1", "%rd1")
        body = load_registers(["%r1"], "%in0", "%rd2") + (text if members == 0xFFFFFFFF else members_only(text))
        run_kernel(body, values, out)
        reduce = REDUCTIONS[operation]
        row = [reduce(v) & 0xFFFFFFFF for v in ([int(values[lane]) for lane in inside], [5] * len(inside))]
        np.testing.assert_array_equal(out, [row if lane in inside else [0, 0] for lane in range(32)])


@pytest.mark.parametrize(
    "operation", [f"{m}{a}{n}" for m in ("min", "max") for a in ("", ".abs") for n in ("", ".NaN")]
)
def test_redux_of_floats(operation):
    """sm_100: -0 below +0, NaN loses, or wins with .NaN."""
    nan = canonical_nan("f32")
    rng = np.random.default_rng(3)
    numbers = [raw_of(float(v), "f32") for v in rng.normal(size=32)]
    cases = [numbers, [nan, *numbers[1:]], [0x7FC00001] * 32, [0, 1 << 31] * 16, [0x80000001, *[1 << 31] * 30, 0xFFC00000],
             [raw_of(-math.inf, "f32"), *numbers[1:]]]  # fmt: skip
    for case in cases:
        values, out = np.array(case, np.uint32), np.zeros(32, np.uint32)
        body = load_registers(["%r1"], "%in0", "%rd1") + f"\nredux.sync.{operation}.f32 %r2, %r1, -1;\n"
        run_kernel(body + store_registers(["%r2"], "%in1", "%rd1"), values, out)
        raws = [v & 0x7FFFFFFF if ".abs" in operation else v for v in case]
        kept = [v for v in raws if not math.isnan(value_of(v, "f32"))]
        if not kept or (".NaN" in operation and len(kept) < 32):
            expected = nan
        else:
            pick = min if operation.startswith("min") else max
            expected = pick(kept, key=lambda v: (value_of(v, "f32"), not v >> 31))
        assert (out == expected).all(), f"{operation} of {[hex(v) for v in case]}: {out[0]:#x}, expected {expected:#x}"


# ---- active lanes -----------------------------------------------------------------------------------------------------


def test_active_mask():
    """All lanes, those of a branch, those of a guard."""
    out = np.zeros((32, 4), np.uint32)
    body = """
    activemask.b32 %r1;
    setp.lt.u32 %p1, %lane, 10;
    mov.b32 %r2, 0;
    @%p1 activemask.b32 %r2;
    @%p1 bra LOW;
    activemask.b32 %r3;
    bra JOIN;
    LOW:
    activemask.b32 %r3;
    JOIN:
    activemask.b32 %r4;
    """
    run_kernel(body + store_registers(["%r1", "%r2", "%r3", "%r4"], "%in0", "%rd1"), out)
    low, high, everyone = (1 << 10) - 1, 0xFFFFFFFF ^ (1 << 10) - 1, 0xFFFFFFFF
    np.testing.assert_array_equal(out[:10], [[everyone, low, low, everyone]] * 10)
    np.testing.assert_array_equal(out[10:], [[everyone, 0, high, everyone]] * 22)


@pytest.mark.parametrize("members", [0xFFFFFFFF, SOME])
def test_elect(members):
    """One lane of the members, which learns it; everybody learns which."""
    out = np.full((32, 2), 99, np.uint32)
    text = f"""
    elect.sync %r1|%p1, {members:#x};
    selp.u32 %r2, 1, 0, %p1;
    elect.sync _|%p2, {members:#x};
    @%p2 add.u32 %r2, %r2, 10;
    """ + store_registers(["%r1", "%r2"], "%in0", "%rd1")
    run_kernel(text if members == 0xFFFFFFFF else members_only(text), out)
    inside = [lane for lane in range(32) if members >> lane & 1]
    leader = inside[0]
    expected = [[leader, 11 * (lane == leader)] if lane in inside else [99, 99] for lane in range(32)]
    np.testing.assert_array_equal(out, expected)


def test_elect_in_a_branch_of_one_lane():
    out = np.zeros(32, np.uint32)
    body = """
    mov.b32 %r2, 0;
    setp.ne.u32 %p1, %lane, 17;
    @%p1 bra OVER;
    elect.sync %r1|%p2, 0x20000;
    @%p2 add.u32 %r2, %r1, 1;
    OVER:
    """
    run_kernel(body + store_registers(["%r2"], "%in0", "%rd1"), out)
    assert out.tolist() == [18 * (lane == 17) for lane in range(32)]


def test_warp_barrier_orders_lanes():
    """What lanes of one branch wrote is read by all behind the barrier."""
    out = np.zeros(32, np.uint32)
    body = """
    shl.b32 %r1, %lane, 2;
    add.u32 %r1, %r1, %smem;
    xor.b32 %r2, %r1, 4;
    add.u32 %r3, %lane, 100;
    setp.lt.u32 %p1, %lane, 16;
    @%p1 bra LOW;
    st.shared.b32 [%r1], %r3;
    bra JOIN;
    LOW:
    st.shared.b32 [%r1], %lane;
    JOIN:
    bar.warp.sync 0xFFFFFFFF;
    ld.shared.b32 %r4, [%r2];
    """
    run_kernel(body + store_registers(["%r4"], "%in0", "%rd1"), out, shared=128)
    assert out.tolist() == [(lane ^ 1) + 100 * (lane >= 16) for lane in range(32)]


def test_several_warps_do_not_mix():
    out = np.zeros(96, np.uint32)
    body = """
    redux.sync.min.u32 %r1, %lane, -1;
    shfl.sync.idx.b32 %r2, %lane, 3, 31, -1;
    add.u32 %r1, %r1, %r2;
    """
    run_kernel(body + store_registers(["%r1"], "%in0", "%rd1"), out, threads=96)
    assert out.tolist() == [2 * (t // 32 * 32) + 3 for t in range(96)]


@pytest.mark.parametrize(
    "text",
    [
        "shfl.sync.left.b32 %r1, %r2, 1, 31, -1",
        "shfl.sync.up.b64 %rd1, %rd2, 1, 31, -1",
        "vote.sync.most.pred %p1, %p2, -1",
        "match.some.sync.b32 %r1, %r2, -1",
        "redux.sync.mul.s32 %r1, %r2, -1",
        "redux.sync.add.f32 %r1, %r2, -1",
        "redux.sync.min.abs.s32 %r1, %r2, -1",
        "bar.warp.arrive -1",
    ],
)
def test_unknown_forms_are_refused(text):
    with pytest.raises(UnknownInstruction, match=f"PTX line .*{text.split()[0]}"):
        run_kernel(text + ";", np.zeros(1, np.uint32))
