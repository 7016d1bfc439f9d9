"""Lanes that go different ways: paths, reconvergence, guards; random structured programs against an interpreter per lane."""

import random
from typing import Any

import numpy as np
import pytest

from quack.emulator.errors import Deadlock, Misuse
from tests.unit.emulator.ptx_kernels import SCHEDULES, load_registers, run_kernel, store_registers

MASK = 0xFFFFFFFF
POISON = 0x7FF7DEAD


def run_lanes(body: str, schedule: str = "eager", threads: int = 32) -> list[int]:
    """%r1 of each lane at the end."""
    out = np.full(threads, 0xDEADBEEF, np.uint32)
    run_kernel(body + store_registers(["%r1"], "%in0", "%rd60"), out, threads=threads, schedule=schedule)
    return out.tolist()


# ---- chosen programs --------------------------------------------------------------------------------------------------

COLLATZ = """
add.u32 %r2, %lane, 1;
mov.b32 %r1, 0;
LOOP:
setp.eq.u32 %p1, %r2, 1;
@%p1 bra DONE;
and.b32 %r3, %r2, 1;
setp.eq.u32 %p2, %r3, 0;
@%p2 bra EVEN;
mad.lo.u32 %r2, %r2, 3, 1;
bra STEP;
EVEN:
shr.u32 %r2, %r2, 1;
STEP:
add.u32 %r1, %r1, 1;
bra LOOP;
DONE:
"""


def collatz(n: int) -> int:
    steps = 0
    while n != 1:
        n, steps = 3 * n + 1 if n % 2 else n // 2, steps + 1
    return steps


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_loops_with_different_trip_counts(schedule):
    assert run_lanes(COLLATZ, schedule) == [collatz(lane + 1) for lane in range(32)]


def test_nested_branches_reconverge():
    """After each join all lanes are active together; inside, those that took the same way."""
    body = """
    mov.b32 %r1, 0;
    and.b32 %r2, %lane, 1;
    setp.ne.u32 %p1, %r2, 0;
    @!%p1 bra OUTER_ELSE;
    setp.lt.u32 %p2, %lane, 8;
    @!%p2 bra INNER_ELSE;
    activemask.b32 %r1;
    bra INNER_JOIN;
    INNER_ELSE:
    mov.b32 %r1, 1;
    INNER_JOIN:
    activemask.b32 %r4;
    bra OUTER_JOIN;
    OUTER_ELSE:
    activemask.b32 %r4;
    OUTER_JOIN:
    activemask.b32 %r5;
    xor.b32 %r4, %r4, %r5;
    xor.b32 %r1, %r1, %r4;
    """
    odd, even = 0xAAAAAAAA, 0x55555555
    expected = [(0xAA if lane < 8 else 1) ^ even if lane % 2 else odd for lane in range(32)]
    assert run_lanes(body) == expected


@pytest.mark.parametrize("leave", ["ret", "exit", "@%p1 ret", "@!%p2 exit"])
@pytest.mark.parametrize("left", [0, 1, 5, 31, 32])
def test_lanes_that_leave(left, leave):
    """Some, one, all or no lanes return, by a branch or a guard; those that stay go on."""
    jump = "" if "@" in leave else "@%p2 bra STAY;"
    body = f"""
    mov.b32 %r1, 7;
    mad.wide.u32 %rd1, %lane, 4, %in0;
    setp.lt.u32 %p1, %lane, {left};
    not.pred %p2, %p1;
    @%p1 st.global.b32 [%rd1], %r1;
    {jump}
    {leave};
    STAY:
    activemask.b32 %r1;
    """
    stays = sum(1 << lane for lane in range(left, 32))
    assert run_lanes(body) == [7 if lane < left else stays for lane in range(32)]


def test_everybody_leaves_early_and_late():
    assert run_lanes("ret;") == [0xDEADBEEF] * 32
    body = (
        "setp.lt.u32 %p1, %lane, 9;\n@%p1 bra A;\nexit;\nA:\nsetp.lt.u32 %p1, %lane, 4;\n@%p1 exit;\nmov.b32 %r1, 3;\n"
    )
    assert run_lanes(body) == [3 if 4 <= lane < 9 else 0xDEADBEEF for lane in range(32)]


def test_partial_warps():
    """40 threads: the second warp has 8 lanes."""
    assert run_lanes(COLLATZ, threads=40) == [collatz(lane + 1) for lane in range(40)]
    assert run_lanes("activemask.b32 %r1;\n", threads=40) == [MASK] * 32 + [255] * 8


@pytest.mark.parametrize("odd", [1, 16])
def test_guards_keep_the_other_lanes(odd):
    """Guarded instructions of every kind of result: registers, predicates, vectors, loads."""
    source = np.arange(64, dtype=np.uint32).reshape(32, 2) * 3
    out = np.zeros((32, 4), np.uint32)
    body = f"""
    and.b32 %r9, %lane, {odd};
    setp.ne.u32 %p1, %r9, 0;
    mov.b32 %r1, 100;
    mov.b32 %r2, 200;
    mov.b32 %r3, 300;
    setp.eq.u32 %p2, 0, 1;
    mad.wide.u32 %rd1, %lane, 8, %in0;
    @%p1 ld.global.v2.b32 {{%r1, %r2}}, [%rd1];
    @!%p1 add.u32 %r3, %r3, 1;
    @%p1 setp.lt.u32 %p2, %lane, 20;
    @%p1 mov.b64 {{%r5, %r6}}, %rd1;
    selp.u32 %r4, 1, 0, %p2;
    """
    run_kernel(body + store_registers(["%r1", "%r2", "%r3", "%r4"], "%in1", "%rd2"), source, out)
    for lane in range(32):
        taken = bool(lane & odd)
        expected = [*(source[lane] if taken else (100, 200)), 300 + (not taken), taken and lane < 20]
        assert out[lane].tolist() == expected


def test_one_lane_works_on_integers_and_joins_again():
    """What a path of one lane did not change is still the row that it was."""
    out = np.zeros((32, 3), np.uint32)
    body = f"""
    {load_registers(["%r1", "%r2"], "%in0", "%rd1")}
    mov.b32 %r3, 5;
    setp.ne.u32 %p1, %lane, 13;
    @%p1 bra JOIN;
    add.u32 %r1, %r1, 1000;
    mov.b32 %r3, %r2;
    sub.u32 %r3, %r3, %r2;
    add.u32 %r3, %r3, %lane;
    JOIN:
    """
    source = np.random.default_rng(1).integers(0, 1 << 31, (32, 2), np.uint32)
    run_kernel(body + store_registers(["%r1", "%r2", "%r3"], "%in1", "%rd1"), source, out)
    expected = np.column_stack([source, np.full(32, 5)])
    expected[13] += [1000, 0, 8]
    np.testing.assert_array_equal(out, expected)


def test_registers_never_written():
    """They read as a poison pattern; a path that wrote one does not disturb the lanes of others that did."""
    assert run_lanes("") == [POISON] * 32
    assert run_lanes("setp.lt.u32 %p1, %lane, 4;\n@%p1 mov.b32 %r1, 7;\n")[:4] == [7] * 4
    body = "setp.lt.u32 %p1, %lane, 4;\n@%p1 bra A;\nmov.b32 %r1, %lane;\nbra B;\nA:\nmov.b32 %r1, 1;\nB:\n"
    body += "add.u32 %r1, %r1, %r1;\n"
    assert run_lanes(body) == [2 if lane < 4 else 2 * lane for lane in range(32)]
    out = np.zeros(32, np.uint64)
    run_kernel(store_registers(["%rd5"], "%in0", "%rd1", 64), out)
    assert (out == 0x7FF7DEAD7FF7DEAD).all()


def test_uniform_branches():
    body = "setp.lt.u32 %p1, 3, 4;\nmov.b32 %r1, 1;\n@%p1 bra.uni A;\nmov.b32 %r1, 2;\nA:\n"
    body += "@!%p1 bra.uni B;\nadd.u32 %r1, %r1, 10;\nB:\n"
    assert run_lanes(body) == [11] * 32
    row = "setp.lt.u32 %p1, %lane, 40;\nmov.b32 %r1, 1;\n@%p1 bra.uni A;\nmov.b32 %r1, 2;\nA:\n"
    assert run_lanes(row) == [1] * 32
    with pytest.raises(Misuse, match="bra.uni diverges\n.*PTX line"):
        run_lanes(row.replace("40", "30"))


def test_backward_branches_into_a_loop():
    """Two entries to one loop: lanes that enter in the middle meet the others."""
    body = """
    mov.b32 %r1, 0;
    mov.b32 %r2, 0;
    setp.lt.u32 %p1, %lane, 16;
    @%p1 bra MIDDLE;
    TOP:
    add.u32 %r1, %r1, 100;
    MIDDLE:
    add.u32 %r1, %r1, 1;
    add.u32 %r2, %r2, 1;
    and.b32 %r3, %lane, 3;
    setp.le.u32 %p2, %r2, %r3;
    @%p2 bra TOP;
    """
    expected = [(lane % 4 + 1) + 100 * (lane % 4 + (lane >= 16)) for lane in range(32)]
    assert run_lanes(body) == expected


# ---- lanes that depend on each other ------------------------------------------------------------------------------------

HANDOVER = """
setp.eq.u32 %p1, %lane, 0;
@!%p1 bra OTHERS;
SPIN:
ld.acquire.cta.shared.b32 %r1, [%smem];
setp.ne.u32 %p2, %r1, 99;
@%p2 bra SPIN;
bra JOIN;
OTHERS:
mov.b32 %r1, 99;
st.release.cta.shared.b32 [%smem], %r1;
JOIN:
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_lane_spins_on_what_another_one_will_store(schedule):
    """Independent thread scheduling: the spinning path does not starve the other."""
    out = np.zeros(32, np.uint32)
    run_kernel(HANDOVER + store_registers(["%r1"], "%in0", "%rd1"), out, shared=4, schedule=schedule)
    assert (out == 99).all()


LOCK = """
setp.lt.u32 %p1, %lane, 3;
@!%p1 ret;
SPIN:
atom.global.acquire.gpu.cas.b32 %r1, [%in0], 0, 1;
setp.ne.u32 %p2, %r1, 0;
@%p2 bra SPIN;
ld.global.b32 %r2, [%in0+4];
add.u32 %r2, %r2, 1;
st.global.b32 [%in0+4], %r2;
atom.global.release.gpu.exch.b32 %r3, [%in0], 0;
"""


@pytest.mark.parametrize("schedule", ["eager", "random:1"])
def test_lock_among_the_lanes_of_a_warp(schedule):
    memory = np.zeros(2, np.uint32)
    run_kernel(LOCK, memory, schedule=schedule)
    assert memory.tolist() == [0, 3]


def test_a_lock_that_nobody_releases_is_a_deadlock():
    with pytest.raises(Deadlock, match="spin"):
        run_kernel(LOCK, np.ones(2, np.uint32))


# ---- random programs --------------------------------------------------------------------------------------------------

REGISTERS = 5
OPERATIONS: dict[str, Any] = {
    "add.u32": lambda x, y: x + y,
    "sub.u32": lambda x, y: x - y,
    "xor.b32": lambda x, y: x ^ y,
    "and.b32": lambda x, y: x & y,
    "mul.lo.u32": lambda x, y: x * y,
    "min.u32": min,
}
RELATIONS = {"lt": lambda x, y: x < y, "eq": lambda x, y: x == y, "ge": lambda x, y: x >= y}


class Program:
    """A random structured program: as PTX, and run lane by lane.

    Statements: ("set", d, op, a, b), ("guard", p, negated, d, op, a, b), ("test", p, relation, a, b), ("if", p, negated,
    then, else), ("loop", depth, register, body), ("break", p), ("leave", p), ("sum", d). Operands: a register number, or
    ("literal", n). `sum` adds a register up over the lanes that live, so it tells whether they have met again.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.labels = 0
        self.budget = 80
        self.program = [statement for _ in range(3) for statement in self.block(0, False)]

    def operand(self):
        return ("literal", self.rng.randrange(8)) if self.rng.random() < 0.3 else self.rng.randrange(REGISTERS)

    def arithmetic(self) -> tuple:
        return self.rng.randrange(REGISTERS), self.rng.choice([*OPERATIONS]), self.operand(), self.operand()

    def block(self, depth: int, in_loop: bool) -> list[tuple]:
        return [self.statement(depth, in_loop) for _ in range(self.rng.randint(1, 5))]

    def statement(self, depth: int, in_loop: bool) -> tuple:
        rng = self.rng
        self.budget -= 1
        kinds = ["set", "set", "guard", "test"]
        if depth < 4 and self.budget > 0:
            kinds += ["if", "if", "loop"]
        kinds += ["break"] * in_loop + ["leave"] * (rng.random() < 0.1) + ["sum"] * (depth == 0)
        kind = rng.choice(kinds)
        p, negated = rng.randrange(3), rng.random() < 0.5
        if kind == "set":
            return ("set", *self.arithmetic())
        if kind == "guard":
            return ("guard", p, negated, *self.arithmetic())
        if kind == "test":
            return ("test", p, rng.choice([*RELATIONS]), self.operand(), self.operand())
        if kind == "if":
            return (
                "if",
                p,
                negated,
                self.block(depth + 1, in_loop),
                self.block(depth + 1, in_loop) if rng.random() < 0.6 else [],
            )
        if kind == "loop":
            return ("loop", depth, rng.randrange(REGISTERS), self.block(depth + 1, True))
        return (kind, rng.randrange(REGISTERS)) if kind == "sum" else (kind, p)

    # ---- as PTX -----------------------------------------------------------------------------------------------------

    def ptx(self) -> str:
        body = "\n".join(self.emit(s, "") for s in self.program)
        return f"{{\n.reg .b32 %x<{REGISTERS}>, %count<8>;\n{self.head}\n{body}\n{self.tail('')}\n}}"

    head = "\n".join(
        [
            *(
                f"mad.wide.u32 %rd1, %lane, {4 * REGISTERS}, %in0;\nld.global.b32 %x{i}, [%rd1+{4 * i}];"
                for i in range(3)
            ),
            *(f"ld.global.b32 %x{i}, [%in0+{4 * i}];" for i in range(3, REGISTERS)),
            "setp.eq.u32 %p0, 0, 1;\nsetp.lt.u32 %p1, %x0, %x1;\nsetp.eq.u32 %p2, 0, 0;",
        ]
    )

    @staticmethod
    def tail(guard: str) -> str:
        """Write the results."""
        stores = [f"{guard}st.global.b32 [%rd2+{4 * i}], %x{i};" for i in range(REGISTERS)]
        return "\n".join([f"mad.wide.u32 %rd2, %lane, {4 * REGISTERS}, %in1;", *stores])

    def label(self) -> str:
        self.labels += 1
        return f"L{self.labels}"

    @staticmethod
    def text(operand) -> str:
        return str(operand[1]) if isinstance(operand, tuple) else f"%x{operand}"

    def emit(self, statement: tuple, end: str) -> str:
        kind, *rest = statement
        if kind == "set":
            d, op, a, b = rest
            return f"{op} %x{d}, {self.text(a)}, {self.text(b)};"
        if kind == "guard":
            p, negated, d, op, a, b = rest
            return f"@{'!' * negated}%p{p} {op} %x{d}, {self.text(a)}, {self.text(b)};"
        if kind == "test":
            p, relation, a, b = rest
            return f"setp.{relation}.u32 %p{p}, {self.text(a)}, {self.text(b)};"
        if kind == "break":
            return f"@%p{rest[0]} bra {end};"
        if kind == "leave":
            return f"{self.tail(f'@%p{rest[0]} ')}\n@%p{rest[0]} ret;"
        if kind == "sum":
            return f"redux.sync.add.u32 %x{rest[0]}, %x{rest[0]}, 0xFFFFFFFF;"
        if kind == "if":
            p, negated, then, otherwise = rest
            other, join = self.label(), self.label()
            first = "\n".join(self.emit(s, end) for s in then)
            second = "\n".join(self.emit(s, end) for s in otherwise)
            return f"@{'!' * (not negated)}%p{p} bra {other};\n{first}\nbra {join};\n{other}:\n{second}\n{join}:"
        depth, register, body = rest
        top, out = self.label(), self.label()
        inside = "\n".join(self.emit(s, out) for s in body)
        return (
            f"and.b32 %count{depth}, %x{register}, 3;\n{top}:\nsetp.eq.u32 %p3, %count{depth}, 0;\n@%p3 bra {out};\n"
            f"sub.u32 %count{depth}, %count{depth}, 1;\n{inside}\nbra {top};\n{out}:"
        )

    # ---- interpreted ------------------------------------------------------------------------------------------------

    def lane(self, x: list[int]):
        """A generator: yields what it brings to a sum and is sent the total; returns its registers."""
        p = [False, x[0] < x[1], True]
        try:
            yield from self.run(self.program, x, p)
        except _Leave:
            pass
        return x

    def run(self, block: list[tuple], x: list[int], p: list[bool]):
        value = lambda operand: operand[1] if isinstance(operand, tuple) else x[operand]  # noqa: E731
        for kind, *rest in block:
            if kind in ("set", "guard"):
                if kind == "guard":
                    guard, negated, *rest = rest
                    if p[guard] == negated:
                        continue
                d, op, a, b = rest
                x[d] = OPERATIONS[op](value(a), value(b)) & MASK
            elif kind == "test":
                target, relation, a, b = rest
                p[target] = RELATIONS[relation](value(a), value(b))
            elif kind == "if":
                chosen, negated, then, otherwise = rest
                yield from self.run(then if p[chosen] != negated else otherwise, x, p)
            elif kind == "loop":
                _, register, body = rest
                try:
                    for _ in range(x[register] & 3):
                        yield from self.run(body, x, p)
                except _Break:
                    pass
            elif kind == "sum":
                x[rest[0]] = yield x[rest[0]]
            elif p[rest[0]]:
                raise _Break if kind == "break" else _Leave


class _Break(Exception):
    pass


class _Leave(Exception):
    pass


def interpret(program: Program, registers: np.ndarray) -> np.ndarray:
    """Final registers of 32 lanes."""
    lanes = [program.lane([int(v) for v in row[:3]] + [int(v) for v in registers[0, 3:]]) for row in registers]
    results, sent = [[0] * REGISTERS for _ in lanes], dict.fromkeys(range(len(lanes)))
    while sent:
        offered = {}
        for i, value in sent.items():
            try:
                offered[i] = lanes[i].send(value)
            except StopIteration as stop:
                results[i] = stop.value
        sent = dict.fromkeys(offered, sum(offered.values()) & MASK)
    return np.array(results, np.uint32)


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_random_programs(first):
    for seed in range(first, first + 50):
        program = Program(seed)
        rng = np.random.default_rng(seed)
        registers = rng.integers(0, 1 << 32 if seed % 2 else 6, (32, REGISTERS), np.uint32)
        expected, out = interpret(program, registers), np.zeros((32, REGISTERS), np.uint32)
        text = program.ptx()
        run_kernel(text, registers, out, schedule=SCHEDULES[seed % len(SCHEDULES)])
        assert (out == expected).all(), f"seed {seed}, lanes {np.flatnonzero((out != expected).any(1))}:\n{text}"
