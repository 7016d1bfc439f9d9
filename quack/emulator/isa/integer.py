"""Integer arithmetic, logic, shifts, comparison and selection (PTX ISA 9.7.1, 9.7.6, 9.7.8, 9.7.9.7).

Each operation is given twice: on Python integers (raw unsigned bits) and on rows of 32 lanes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import UnknownInstruction
from ..opcodes import opcode
from ..program import Binder, Execute
from ..ptx import TYPE_BITS
from ..values import MASK, SIGNED, UNSIGNED, row, signed

Function = Callable[..., Any]


def pure(b: Binder, out: int, sources: list[int], bits: list[int], on_ints: Function, on_rows: Function) -> Execute:
    """A closure that writes `out` from `sources`, whose widths are `bits`; integer arguments take the fast way."""
    if len(sources) == 1:
        (x,), (nx,) = sources, bits

        def run_1(w: Any) -> None:
            regs = w.regs
            p = regs[x]
            regs[out] = on_ints(p) if p.__class__ is int else on_rows(row(p, nx))

        return run_1
    if len(sources) == 2:
        (x, y), (nx, ny) = sources, bits

        def run_2(w: Any) -> None:
            regs = w.regs
            p, q = regs[x], regs[y]
            if p.__class__ is int and q.__class__ is int:
                regs[out] = on_ints(p, q)
            else:
                regs[out] = on_rows(row(p, nx), row(q, ny))

        return run_2

    def run_n(w: Any) -> None:
        regs = w.regs
        values = [regs[s] for s in sources]
        if all(v.__class__ is int for v in values):
            regs[out] = on_ints(*values)
        else:
            regs[out] = on_rows(*(row(v, n) for v, n in zip(values, bits)))

    return run_n


def _integer_type(b: Binder) -> tuple[int, bool]:
    """(bits, is signed) of the only type."""
    name = b.type()
    if name[0] not in "bus" or name not in TYPE_BITS:
        raise UnknownInstruction(f"integer operation on .{name}")
    return TYPE_BITS[name], name[0] == "s"


def _simple(b: Binder, on_ints: Function, on_rows: Function, bits: int) -> Execute:
    count = _operands(b, on_ints)
    return pure(b, b.out(0), [b.src(1 + i, bits) for i in range(count)], [bits] * count, on_ints, on_rows)


def _operands(b: Binder, function: Any) -> int:
    """How many sources there are: as many as the function takes."""
    count = len(b.operands) - 1
    if count != function.__code__.co_argcount:
        raise UnknownInstruction(f"{count} source operands")
    return count


# ---- add, sub, mul, mad -----------------------------------------------------------------------------------------------


def _sum(b: Binder, sign: int) -> Execute:
    bits, is_signed = _integer_type(b)
    mask = MASK[bits]
    if b.flag("sat"):
        low, high = -(1 << 31), (1 << 31) - 1

        def saturated(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            wide = x.view(np.int32).astype(np.int64) + sign * y.view(np.int32).astype(np.int64)
            return np.clip(wide, low, high).astype(np.int32).view(np.uint32)

        return _simple(
            b, lambda x, y: min(max(signed(x, 32) + sign * signed(y, 32), low), high) & mask, saturated, bits
        )
    if sign > 0:
        return _simple(b, lambda x, y: (x + y) & mask, lambda x, y: x + y, bits)
    return _simple(b, lambda x, y: (x - y) & mask, lambda x, y: x - y, bits)


def integer_add(b: Binder) -> Execute:
    """add.{u,s}{16,32,64}[.sat]."""
    return _sum(b, 1)


def integer_sub(b: Binder) -> Execute:
    """sub.{u,s}{16,32,64}[.sat]."""
    return _sum(b, -1)


def _high_rows(x: np.ndarray, y: np.ndarray, bits: int, is_signed: bool) -> np.ndarray:
    """Upper half of the product."""
    if bits < 64:
        kind: Any = SIGNED[2 * bits] if is_signed else UNSIGNED[2 * bits]
        view: Any = SIGNED[bits] if is_signed else UNSIGNED[bits]
        wide = x.view(view).astype(kind) * y.view(view).astype(kind)
        return (wide >> kind(bits)).astype(view).view(UNSIGNED[bits])
    convert = (lambda v: signed(v, 64)) if is_signed else int
    products = [(convert(int(p)) * convert(int(q)) >> 64) & MASK[64] for p, q in zip(x, y)]
    return np.array(products, np.uint64)


def _product(bits: int, is_signed: bool, part: str) -> tuple[Function, Function, int]:
    """(on ints, on rows, result bits) of mul.{lo,hi,wide}."""
    mask = MASK[bits]
    if part == "lo":
        return lambda x, y: (x * y) & mask, lambda x, y: x * y, bits
    if part == "hi":
        if is_signed:
            ints = lambda x, y: (signed(x, bits) * signed(y, bits) >> bits) & mask  # noqa: E731
        else:
            ints = lambda x, y: (x * y) >> bits  # noqa: E731
        return ints, lambda x, y: _high_rows(x, y, bits, is_signed), bits
    wide: Any = SIGNED[2 * bits] if is_signed else UNSIGNED[2 * bits]
    view: Any = SIGNED[bits] if is_signed else UNSIGNED[bits]
    raw = UNSIGNED[2 * bits]
    if is_signed:
        ints = lambda x, y: (signed(x, bits) * signed(y, bits)) & MASK[2 * bits]  # noqa: E731
    else:
        ints = lambda x, y: x * y  # noqa: E731
    return ints, lambda x, y: (x.view(view).astype(wide) * y.view(view).astype(wide)).view(raw), 2 * bits


def integer_mul(b: Binder) -> Execute:
    """mul.{lo,hi,wide}."""
    part = b.one_of("lo", "hi", "wide")
    bits, is_signed = _integer_type(b)
    ints, rows, _ = _product(bits, is_signed, part)
    return _simple(b, ints, rows, bits)


def integer_mad(b: Binder) -> Execute:
    """mad.{lo,hi,wide}."""
    part = b.one_of("lo", "hi", "wide")
    bits, is_signed = _integer_type(b)
    ints, rows, out_bits = _product(bits, is_signed, part)
    mask = MASK[out_bits]
    sources = [b.src(1, bits), b.src(2, bits), b.src(3, out_bits)]
    return pure(
        b, b.out(0), sources, [bits, bits, out_bits],
        lambda x, y, z: (ints(x, y) + z) & mask, lambda x, y, z: rows(x, y) + z,
    )  # fmt: skip


def integer_div(b: Binder) -> Execute:
    """div of integers; division by zero gives all ones (unspecified by the ISA, what hardware returns)."""
    return _division(b, is_remainder=False)


@opcode("rem", section="9.7.1.9")
def remainder(b: Binder) -> Execute:
    """rem of integers; the sign is that of the dividend, x rem 0 is x."""
    return _division(b, is_remainder=True)


def _division(b: Binder, is_remainder: bool) -> Execute:
    bits, is_signed = _integer_type(b)
    mask = MASK[bits]

    def one(x: int, y: int) -> int:
        if y == 0:
            return x if is_remainder else mask
        if is_signed:
            x, y = signed(x, bits), signed(y, bits)
        quotient = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        return (x - quotient * y if is_remainder else quotient) & mask

    def rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.array([one(int(p), int(q)) for p, q in zip(x, y)], UNSIGNED[bits])

    return _simple(b, one, rows, bits)


def integer_abs(b: Binder) -> Execute:
    """abs.s{16,32,64}."""
    bits, _ = _integer_type(b)
    return _simple(
        b,
        lambda x: abs(signed(x, bits)) & MASK[bits],
        lambda x: np.abs(x.view(SIGNED[bits])).view(UNSIGNED[bits]),
        bits,
    )


def integer_neg(b: Binder) -> Execute:
    """neg.s{16,32,64}."""
    bits, _ = _integer_type(b)
    return _simple(b, lambda x: -x & MASK[bits], lambda x: UNSIGNED[bits](0) - x, bits)


def integer_min_max(b: Binder, name: str) -> Execute:
    """min, max of integers."""
    relu = b.flag("relu")
    bits, is_signed = _integer_type(b)
    pick, pick_rows = (min, np.minimum) if name == "min" else (max, np.maximum)
    view: Any = SIGNED[bits] if is_signed else UNSIGNED[bits]
    read = (lambda v: signed(v, bits)) if is_signed else (lambda v: v)
    floor = 0 if relu else -(1 << 64)

    def rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        picked = pick_rows(x.view(view), y.view(view))
        return (np.maximum(picked, view(0)) if relu else picked).view(UNSIGNED[bits])

    return _simple(b, lambda x, y: max(pick(read(x), read(y)), floor) & MASK[bits], rows, bits)


# ---- bits -------------------------------------------------------------------------------------------------------------


def _bitwise(b: Binder, on_bools: Function, on_ints: Function, on_rows: Function) -> Execute:
    name = b.type()
    if name != "pred":
        bits = TYPE_BITS[name]
        return _simple(b, on_ints, on_rows, bits)
    out, sources = b.out(0), [b.src(1 + i, 1) for i in range(_operands(b, on_bools))]

    def run(w: Any) -> None:
        values = [w.regs[s] for s in sources]
        if all(v is True or v is False for v in values):
            w.regs[out] = on_bools(*values)
        else:
            w.regs[out] = on_rows(*(row(v, 1) for v in values))

    return run


@opcode("and", section="9.7.8.1")
def bit_and(b: Binder) -> Execute:
    """and.{pred,b16,b32,b64}."""
    return _bitwise(b, lambda x, y: x and y, lambda x, y: x & y, lambda x, y: x & y)


@opcode("or", section="9.7.8.2")
def bit_or(b: Binder) -> Execute:
    """or.{pred,b16,b32,b64}."""
    return _bitwise(b, lambda x, y: x or y, lambda x, y: x | y, lambda x, y: x | y)


@opcode("xor", section="9.7.8.3")
def bit_xor(b: Binder) -> Execute:
    """xor.{pred,b16,b32,b64}."""
    return _bitwise(b, lambda x, y: x is not y, lambda x, y: x ^ y, lambda x, y: x ^ y)


@opcode("not", section="9.7.8.4")
def bit_not(b: Binder) -> Execute:
    """not.{pred,b16,b32,b64}."""
    mask = MASK[TYPE_BITS[b.modifiers[-1]]]
    return _bitwise(b, lambda x: not x, lambda x: x ^ mask, lambda x: ~x)


@opcode("cnot", section="9.7.8.5")
def logical_not(b: Binder) -> Execute:
    """cnot: 1 if zero, else 0."""
    bits, _ = _integer_type(b)
    return _simple(b, lambda x: int(x == 0), lambda x: (x == 0).astype(UNSIGNED[bits]), bits)


@opcode("lop3", section="9.7.8.6")
def lop3(b: Binder) -> Execute:
    """lop3.b32: any function of three bits, by its truth table."""
    b.type()
    table = b.immediate(4)

    def evaluate(x: Any, y: Any, z: Any, ones: Any) -> Any:
        result = x & 0
        for code in range(8):
            if table >> code & 1:
                result = result | (
                    (x if code & 4 else x ^ ones) & (y if code & 2 else y ^ ones) & (z if code & 1 else z ^ ones)
                )
        return result

    sources = [b.src(i, 32) for i in (1, 2, 3)]
    return pure(
        b, b.out(0), sources, [32] * 3,
        lambda x, y, z: evaluate(x, y, z, MASK[32]), lambda x, y, z: evaluate(x, y, z, np.uint32(MASK[32])),
    )  # fmt: skip


@opcode("shl", section="9.7.8.8")
def shift_left(b: Binder) -> Execute:
    """shl: amounts beyond the width give 0."""
    bits, _ = _integer_type(b)

    def rows(x: np.ndarray, n: np.ndarray) -> np.ndarray:
        kind = UNSIGNED[bits]
        return np.where(n < bits, x << np.minimum(n, bits - 1).astype(kind), kind(0))

    sources = [b.src(1, bits), b.src(2, 32)]
    return pure(b, b.out(0), sources, [bits, 32], lambda x, n: (x << n) & MASK[bits] if n < bits else 0, rows)


@opcode("shr", section="9.7.8.9")
def shift_right(b: Binder) -> Execute:
    """shr: arithmetic for signed types; amounts are clamped to the width."""
    bits, is_signed = _integer_type(b)
    kind, view = UNSIGNED[bits], SIGNED[bits]
    sources = [b.src(1, bits), b.src(2, 32)]
    if is_signed:
        return pure(
            b, b.out(0), sources, [bits, 32],
            lambda x, n: (signed(x, bits) >> min(n, bits)) & MASK[bits],
            lambda x, n: (x.view(view) >> np.minimum(n, bits - 1).astype(view)).view(kind),
        )  # fmt: skip
    return pure(
        b, b.out(0), sources, [bits, 32], lambda x, n: x >> min(n, bits),
        lambda x, n: np.where(n < bits, x >> np.minimum(n, bits - 1).astype(kind), kind(0)),
    )  # fmt: skip


@opcode("shf", section="9.7.8.7")
def funnel_shift(b: Binder) -> Execute:
    """shf.{l,r}.{wrap,clamp}.b32 d, lo, hi, n."""
    is_left = b.one_of("l", "r") == "l"
    is_wrap = b.one_of("wrap", "clamp") == "wrap"
    b.type()

    def one(low: int, high: int, n: int) -> int:
        n = n & 31 if is_wrap else min(n, 32)
        both = high << 32 | low
        return (both << n >> 32 if is_left else both >> n) & MASK[32]

    def rows(low: np.ndarray, high: np.ndarray, n: np.ndarray) -> np.ndarray:
        return np.array([one(int(p), int(q), int(k)) for p, q, k in zip(low, high, n)], np.uint32)

    return pure(b, b.out(0), [b.src(i, 32) for i in (1, 2, 3)], [32] * 3, one, rows)


def _per_lane(b: Binder, one: Function, bits: int, out_bits: int) -> Execute:
    """Rare operations: lane by lane."""
    count = _operands(b, one)
    sources = [b.src(1 + i, bits if i == 0 else 32) for i in range(count)]
    widths = [bits] + [32] * (count - 1)

    def rows(*values: np.ndarray) -> np.ndarray:
        return np.array([one(*map(int, lane)) for lane in zip(*values)], UNSIGNED[out_bits])

    return pure(b, b.out(0), sources, widths, one, rows)


@opcode("popc", section="9.7.1.14")
def population_count(b: Binder) -> Execute:
    """popc.{b32,b64}."""
    return _per_lane(b, lambda x: x.bit_count(), _integer_type(b)[0], 32)


@opcode("clz", section="9.7.1.15")
def count_leading_zeros(b: Binder) -> Execute:
    """clz.{b32,b64}."""
    bits, _ = _integer_type(b)
    return _per_lane(b, lambda x: bits - x.bit_length(), bits, 32)


@opcode("bfind", section="9.7.1.16")
def find_leading_bit(b: Binder) -> Execute:
    """bfind[.shiftamt]: position of the most significant non-sign bit, all ones if there is none."""
    is_shift = b.flag("shiftamt")
    bits, is_signed = _integer_type(b)

    def one(x: int) -> int:
        if is_signed and x >> (bits - 1):
            x ^= MASK[bits]
        found = x.bit_length() - 1
        return MASK[32] if found < 0 else (bits - 1 - found if is_shift else found)

    return _per_lane(b, one, bits, 32)


@opcode("brev", section="9.7.1.18")
def bit_reverse(b: Binder) -> Execute:
    """brev.{b32,b64}."""
    bits, _ = _integer_type(b)
    return _per_lane(b, lambda x: int(f"{x:0{bits}b}"[::-1], 2), bits, bits)


@opcode("bfe", section="9.7.1.19")
def bit_field_extract(b: Binder) -> Execute:
    """bfe d, a, position, length."""
    bits, is_signed = _integer_type(b)

    def one(x: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        field = x >> position & ((1 << length) - 1)
        if is_signed and length:
            sign = x >> min(position + length - 1, bits - 1) & 1
            if sign:
                field |= MASK[bits] << min(length, max(bits - position, 0)) & MASK[bits]
        return field & MASK[bits]

    return _per_lane(b, one, bits, bits)


@opcode("bfi", section="9.7.1.20")
def bit_field_insert(b: Binder) -> Execute:
    """bfi d, field, base, position, length."""
    bits, _ = _integer_type(b)

    def one(field: int, base: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        mask = ((1 << length) - 1) << position & MASK[bits]
        return base & ~mask | field << position & mask

    sources = [b.src(1, bits), b.src(2, bits), b.src(3, 32), b.src(4, 32)]
    return pure(
        b, b.out(0), sources, [bits, bits, 32, 32], one,
        lambda *rows: np.array([one(*map(int, lane)) for lane in zip(*rows)], UNSIGNED[bits]),
    )  # fmt: skip


@opcode("prmt", section="9.7.9.7")
def permute_bytes(b: Binder) -> Execute:
    """prmt.b32[.mode]: four bytes picked from eight, optionally with their sign replicated."""
    mode = b.one_of("f4e", "b4e", "rc8", "ecl", "ecr", "rc16", default="")
    b.type()

    def selectors(control: int) -> list[int]:
        k = control & 3
        tables = {
            "f4e": [k + i for i in range(4)],
            "b4e": [(k - i) % 8 for i in range(4)],
            "rc8": [k] * 4,
            "ecl": [max(i, k) for i in range(4)],
            "ecr": [min(i, k) for i in range(4)],
            "rc16": [0, 1, 0, 1] if not k & 1 else [2, 3, 2, 3],
        }
        return tables[mode] if mode else [control >> 4 * i & 15 for i in range(4)]

    def one(x: int, y: int, control: int) -> int:
        both, result = y << 32 | x, 0
        for i, pick in enumerate(selectors(control)):
            byte = both >> 8 * (pick & 7) & 255
            if pick & 8:
                byte = 255 if byte & 128 else 0
            result |= byte << 8 * i
        return result

    def rows(x: np.ndarray, y: np.ndarray, control: np.ndarray) -> np.ndarray:
        if (control == control[0]).all():
            pairs = np.stack([x, y], axis=1).view(np.uint8)  # (32, 8)
            picks = selectors(int(control[0]))
            picked = pairs[:, [p & 7 for p in picks]]
            for i, pick in enumerate(picks):
                if pick & 8:
                    picked[:, i] = np.where(picked[:, i] & 128, 255, 0)
            return np.ascontiguousarray(picked).view(np.uint32).reshape(-1)
        return np.array([one(int(p), int(q), int(c)) for p, q, c in zip(x, y, control)], np.uint32)

    return pure(b, b.out(0), [b.src(i, 32) for i in (1, 2, 3)], [32] * 3, one, rows)


# ---- comparison and selection -----------------------------------------------------------------------------------------

_ORDER: dict[str, Function] = {
    "eq": lambda x, y: x == y, "ne": lambda x, y: x != y, "lt": lambda x, y: x < y, "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y, "ge": lambda x, y: x >= y, "lo": lambda x, y: x < y, "ls": lambda x, y: x <= y,
    "hi": lambda x, y: x > y, "hs": lambda x, y: x >= y,
}  # fmt: skip
COMBINE: dict[str, Function] = {"and": lambda x, y: x & y, "or": lambda x, y: x | y, "xor": lambda x, y: x ^ y}


def write_predicates(b: Binder, compare: Function, sources: list[int]) -> Execute:
    """setp: `compare(regs)` gives bool or a row; writes p, and q = not p, after combining with a third operand."""
    combine = next((m for m in b.modifiers if m in COMBINE), None)
    if combine:
        b.flag(combine)
    names = [name.strip() for name in b.operands[0].split("|")]
    outs = [b.out(name) for name in names]
    function = COMBINE[combine] if combine else None
    negated = bool(combine) and b.operands[3].startswith("!")
    third = b.src(b.operands[3].lstrip("!"), 1) if combine else -1

    def run(w: Any) -> None:
        regs = w.regs
        result = compare(regs)
        inverse = not result if result.__class__ is bool else ~result
        if function is not None:
            c = regs[third]
            if negated:
                c = not c if c.__class__ is bool else ~row(c, 1)
            if c.__class__ is not bool:
                c = row(c, 1)
            result, inverse = function(result, c), function(inverse, c)
        regs[outs[0]] = result
        if len(outs) > 1:
            regs[outs[1]] = inverse

    return run


def integer_setp(b: Binder) -> Execute:
    """setp on integers, optionally combined with a predicate."""
    name = b.one_of(*_ORDER)
    compare = _ORDER[name]
    bits, is_signed = _integer_type(b)
    is_signed = is_signed and name in ("lt", "le", "gt", "ge")
    x, y = b.src(1, bits), b.src(2, bits)
    view: Any = SIGNED[bits] if bits > 1 else np.bool_

    def run(regs: Any) -> Any:
        p, q = regs[x], regs[y]
        if p.__class__ is int and q.__class__ is int:
            return compare(signed(p, bits), signed(q, bits)) if is_signed else compare(p, q)
        p, q = row(p, bits), row(q, bits)
        return compare(p.view(view), q.view(view)) if is_signed else compare(p, q)

    return write_predicates(b, run, [x, y])


@opcode("selp", section="9.7.6.3")
def select(b: Binder) -> Execute:
    """selp d, a, b, p."""
    bits = TYPE_BITS[b.type()]
    out, x, y, p = b.out(0), b.src(1, bits), b.src(2, bits), b.src(3, 1)

    def run(w: Any) -> None:
        regs = w.regs
        condition = regs[p]
        if condition is True:
            regs[out] = regs[x]
        elif condition is False:
            regs[out] = regs[y]
        else:
            regs[out] = np.where(row(condition, 1), row(regs[x], bits), row(regs[y], bits))

    return run


@opcode("sad", section="9.7.1.7")
def sum_of_absolute_difference(b: Binder) -> Execute:
    """sad: c + |a - b|."""
    bits, is_signed = _integer_type(b)
    read = (lambda v: signed(v, bits)) if is_signed else (lambda v: v)
    one = lambda x, y, z: (z + abs(read(x) - read(y))) & MASK[bits]  # noqa: E731
    return pure(
        b, b.out(0), [b.src(i, bits) for i in (1, 2, 3)], [bits] * 3, one,
        lambda *rows: np.array([one(*map(int, lane)) for lane in zip(*rows)], UNSIGNED[bits]),
    )  # fmt: skip
