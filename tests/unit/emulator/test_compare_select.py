"""setp, set, selp and testp (PTX ISA 9.7.3.1, 9.7.6, 9.7.7) against Python comparisons."""

import math
import struct

import numpy as np
import pytest

from quack.emulator.errors import UnknownInstruction
from tests.unit.emulator.ptx_kernels import (
    Lanewise,
    check_lanewise,
    float_literal,
    random_operands,
    run_kernel,
    signed,
    signed_literal,
)

RELATIONS = {
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
}
UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
BOOLEANS = {"and": lambda t, c: t and c, "or": lambda t, c: t or c, "xor": lambda t, c: bool(t) != bool(c)}
FLOAT_BITS = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64}


def number(raw: int, kind: str) -> float:
    """The value of raw bits: an integer or a float."""
    if kind not in FLOAT_BITS:
        return signed(raw, int(kind[1:])) if kind[0] == "s" else raw
    if kind == "bf16":
        raw, kind = raw << 16, "f32"
    code, integer = {"f16": ("e", "H"), "f32": ("f", "I"), "f64": ("d", "Q")}[kind]
    return struct.unpack(code, struct.pack(integer, raw))[0]


def flushed(value: float) -> float:
    return 0.0 if abs(value) < 2.0**-126 else value


def holds(relation: str, x: float, y: float) -> bool:
    """The tables of 9.3.1."""
    either_nan = math.isnan(x) or math.isnan(y)
    if relation in ("num", "nan"):
        return either_nan == (relation == "nan")
    if relation in UNSIGNED_NAMES:
        relation = UNSIGNED_NAMES[relation]
    if relation in RELATIONS:
        return not either_nan and RELATIONS[relation](x, y)
    return either_nan or RELATIONS[relation.removesuffix("u")](x, y)


def width(kind: str) -> int:
    return FLOAT_BITS.get(kind) or int(kind[1:])


def literal(kind: str):
    if kind in FLOAT_BITS:
        return float_literal if kind in ("f32", "f64") else None
    return signed_literal if kind[0] == "s" else lambda bits, value: hex(value)


def set_predicate(relation: str, kind: str, ftz: bool = False) -> Lanewise:
    def function(x: int, y: int) -> bool:
        p, q = number(x, kind), number(y, kind)
        return holds(relation, flushed(p) if ftz else p, flushed(q) if ftz else q)

    text = f"setp.{relation}{'.ftz' * ftz}.{kind} {{d}}, {{0}}, {{1}};"
    return Lanewise(text, (width(kind),) * 2, (1,), function, literal(kind))


def combined(relation: str, kind: str, boolean: str, negated: bool) -> Lanewise:
    """p|q, with a third operand."""

    def function(x: int, y: int, c: int) -> tuple[bool, bool]:
        t, third = holds(relation, number(x, kind), number(y, kind)), bool(c) != negated
        return bool(BOOLEANS[boolean](t, third)), bool(BOOLEANS[boolean](not t, third))

    text = f"setp.{relation}.{boolean}.{kind} {{d}}|{{e}}, {{0}}, {{1}}, {'!' * negated}{{2}};"
    return Lanewise(text, (width(kind), width(kind), 1), (1, 1), function, literal(kind))


def set_number(relation: str, target: str, kind: str) -> Lanewise:
    true = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80, "u16": 0xFFFF, "s16": 0xFFFF}.get(target, 0xFFFFFFFF)

    def function(x: int, y: int) -> int:
        return true if holds(relation, number(x, kind), number(y, kind)) else 0

    text = f"set.{relation}.{target}.{kind} {{d}}, {{0}}, {{1}};"
    return Lanewise(text, (width(kind),) * 2, (width(target),), function, literal(kind))


def select(kind: str) -> Lanewise:
    bits = width(kind)
    text = f"selp.{kind} {{d}}, {{0}}, {{1}}, {{2}};"
    return Lanewise(text, (bits, bits, 1), (bits,), lambda x, y, p: x if p else y, literal(kind))


PROPERTIES = {
    "finite": math.isfinite,
    "infinite": math.isinf,
    "number": lambda v: not math.isnan(v),
    "notanumber": math.isnan,
}


def property_of(name: str, kind: str) -> Lanewise:
    smallest = {"f32": 2.0**-126, "f64": 2.0**-1022}[kind]
    tests = PROPERTIES | {
        "normal": lambda v: math.isfinite(v) and (v == 0 or abs(v) >= smallest),
        "subnormal": lambda v: 0 < abs(v) < smallest,
    }
    bits = width(kind)
    return Lanewise(f"testp.{name}.{kind} {{d}}, {{0}};", (bits,), (1,), lambda x: tests[name](number(x, kind)), None)


INTEGERS = [f"{s}{n}" for s in "us" for n in (16, 32, 64)]
ORDERED = [*RELATIONS]
FLOAT_RELATIONS = [*RELATIONS, *(f"{r}u" for r in RELATIONS), "num", "nan"]
CASES = [
    *(set_predicate(relation, kind) for kind in INTEGERS for relation in RELATIONS),
    *(set_predicate(relation, f"u{n}") for n in (16, 32, 64) for relation in UNSIGNED_NAMES),
    *(set_predicate(relation, f"b{n}") for n in (16, 32, 64) for relation in ("eq", "ne")),
    *(set_predicate(relation, kind) for kind in FLOAT_BITS for relation in FLOAT_RELATIONS),
    *(set_predicate(relation, "f32", ftz=True) for relation in ("eq", "lt", "geu")),
    *(combined("lt", kind, boolean, n) for kind in ("s32", "f32") for boolean in BOOLEANS for n in (False, True)),
    *(set_number(relation, target, "f32") for target in ("u32", "s32", "f32") for relation in ("lt", "neu")),
    *(set_number("ge", target, kind) for kind in ("f16", "bf16") for target in ("u16", "s32", kind)),
    *(select(kind) for kind in ("b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64")),
    *(property_of(name, kind) for kind in ("f32", "f64") for name in (*PROPERTIES, "normal", "subnormal")),
]

SPECIALS = {
    "f16": [0, 0x8000, 1, 0x8001, 0x7C00, 0xFC00, 0x7E00, 0x3C00],
    "bf16": [0, 0x8000, 1, 0x8001, 0x7F80, 0xFF80, 0x7FC0, 0x3F80],
    "f32": [0, 1 << 31, 1, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x3F800000, 0x00800000],
    "f64": [0, 1 << 63, 1, 0x800FFFFFFFFFFFFF, 0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48, 0x3FF << 52, 1 << 52],
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_python(case):
    operands = random_operands(case)
    kind = str(case).rpartition(".")[2]
    if kind in SPECIALS:
        chosen = np.random.default_rng(1).choice(np.array(SPECIALS[kind], np.uint64), (2, operands.shape[1], 32))
        chosen[:, 1:2] = np.where(np.arange(32) % 3, chosen[:, 1:2], chosen[:, :1])  # equal now and then
        for k, bits in enumerate(case.sources):
            chosen[:, k] = chosen[:, k] if bits > 1 else chosen[:, k] & 1
        operands = np.concatenate([operands, chosen])
    operands[:, 1:2, ::4] = operands[:, :1, ::4]
    check_lanewise(case, operands)


def test_sink():
    """Either destination may be dropped."""
    out = np.zeros((32, 2), np.uint32)
    body = """
    setp.lt.u32 %p1|_, %lane, 7;
    setp.lt.u32 _|%p2, %lane, 7;
    selp.u32 %r1, 1, 0, %p1;
    selp.u32 %r2, 1, 0, %p2;
    mad.wide.u32 %rd1, %lane, 8, %in0;
    st.global.v2.b32 [%rd1], {%r1, %r2};
    """
    run_kernel(body, out)
    lanes = np.arange(32) < 7
    np.testing.assert_array_equal(out, np.stack([lanes, ~lanes], 1))


@pytest.mark.parametrize(
    "text",
    [
        "setp.lt.f16x2 %p1|%p2, %r1, %r2",
        "setp.almost.s32 %p1, %r1, %r2",
        "setp.ltu.s32 %p1, %r1, %r2",
        "set.lt.u32.s32 %r1, %r2, %r3",
        "set.lt.and.u32.f32 %r1, %r2, %r3, %p1",
        "slct.u32.s32 %r1, %r2, %r3, %r4",
        "testp.finite.f16 %p1, %rs1",
        "selp.b8 %rs1, %rs2, %rs3",
    ],
)
def test_unknown_forms_are_refused(text):
    with pytest.raises(UnknownInstruction, match=f"PTX line .*{text.split()[0]}"):
        run_kernel(text + ";", np.zeros(1, np.uint32))
