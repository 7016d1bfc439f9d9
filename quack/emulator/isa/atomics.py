"""atom, red and st.async / red.async (PTX ISA 9.7.13.5 to 9.7.13.7, 9.7.9.12)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..asynchrony import AsyncOp
from ..barriers import Mbarrier
from ..errors import IllegalAccess, UnknownInstruction
from ..observer import Access, Proxy
from ..opcodes import opcode
from ..program import Binder, Execute
from ..ptx import TYPE_BITS
from ..values import LANES, MASK, UNSIGNED, row, signed
from .data import CACHE_HINTS, ORDERS, SCOPES, SPACES, Transfer, blocks, shared_place, space_of, synchronise
from .sync import addresses, barrier_at, complete_transactions

_OPERATIONS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
_FLOATS: dict[str, Any] = {"f32": np.float32, "f64": np.float64, "f16": np.float16}


def _float_operation(operation: str, kind: str) -> Callable[[int, int], int]:
    """On raw bits. Packed halves are handled part by part."""
    if kind in ("f16x2", "bf16x2"):
        part = _float_operation(operation, kind[:-2])
        return lambda old, new: part(old & 0xFFFF, new & 0xFFFF) | part(old >> 16, new >> 16) << 16
    function: Any = {"add": lambda x, y: x + y, "min": np.fmin, "max": np.fmax}[operation]
    if kind == "bf16":

        def on_bf16(old: int, new: int) -> int:
            x, y = (np.uint32(v << 16).view(np.float32) for v in (old, new))
            bits = int(np.float32(function(x, y)).view(np.uint32))
            if bits & 0x7FFFFFFF > 0x7F800000:
                return 0x7FFF
            return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16

        return on_bf16
    view, raw = _FLOATS[kind], UNSIGNED[TYPE_BITS[kind]]

    def on_bits(old: int, new: int) -> int:
        with np.errstate(all="ignore"):
            return int(np.asarray(function(raw(old).view(view), raw(new).view(view)), view).view(raw))

    return on_bits


_add_f32 = _float_operation("add", "f32")


def _add_f32_flushing(old: int, new: int) -> int:
    """On global memory: subnormal operands and results become zeros of their sign."""
    return _flushed(_add_f32(_flushed(old), _flushed(new)))


def _flushed(bits: int) -> int:
    return bits if bits & 0x7F800000 else bits & 0x80000000


def atomic_function(operation: str, kind: str) -> Callable[..., int]:
    """From (old, operand[, new]) to what is stored, on raw bits."""
    bits = TYPE_BITS[kind]
    mask = MASK[bits]
    if "f" in kind and operation in ("add", "min", "max"):
        return _float_operation(operation, kind)
    read = (lambda v: signed(v, bits)) if kind[0] == "s" else (lambda v: v)
    functions: dict[str, Callable[..., int]] = {
        "add": lambda old, x: (old + x) & mask,
        "min": lambda old, x: min(read(old), read(x)) & mask,
        "max": lambda old, x: max(read(old), read(x)) & mask,
        "and": lambda old, x: old & x,
        "or": lambda old, x: old | x,
        "xor": lambda old, x: old ^ x,
        "exch": lambda old, x: x,
        "inc": lambda old, x: 0 if old >= x else old + 1,
        "dec": lambda old, x: x if old == 0 or old > x else old - 1,
        "cas": lambda old, expected, new: new if old == expected else old,
    }
    return functions[operation]


def _atomic(b: Binder, has_result: bool) -> Execute:
    operation = b.one_of(*_OPERATIONS)
    order = b.one_of(*ORDERS, default="relaxed")
    space = b.one_of(*SPACES, default="").partition("::")[0]
    b.ignore(*SCOPES, *CACHE_HINTS, "noftz")
    found = b.match(r"v([248])")
    count = int(found[1]) if found else 1
    kind = b.type()
    bits = TYPE_BITS[kind]
    first = 1 if has_result else 0
    outs = b.outs(0) if has_result else []
    t = Transfer(space, b.address(first), bits // 8, count, order)
    operands = [b.srcs(first + 1 + i, bits) for i in range(2 if operation == "cas" else 1)]
    function = atomic_function(operation, kind)
    flushes = operation == "add" and kind == "f32" and space != "shared"
    if bits == 128:
        raise UnknownInstruction("128-bit atomics are not implemented")

    def run(w: Any) -> None:
        machine = w.machine
        combine = function
        if flushes and (space or space_of(addresses(w, t.address)[0])) == "global":
            combine = _add_f32_flushing
        found = blocks(w, t, Access.ATOMIC)
        synchronise(w, t, Access.ATOMIC)
        has_effect = False
        values = [[row(w.regs[s], bits) for s in vector] for vector in operands]
        old = [np.zeros(LANES, UNSIGNED[bits]) for _ in range(count)]
        for block in found:
            lanes = w.lanes if block.lanes is None or block.index.__class__ is int else block.lanes.tolist()
            for k, lane in enumerate(lanes):
                index = block.index if block.index.__class__ is int else int(block.index[k])
                for i in range(count):
                    before = int(block.array[index + i])
                    old[i][lane] = before
                    after = combine(before, *(int(vector[i][lane]) for vector in values))
                    block.array[index + i] = after
                    has_effect |= after != before
        machine.version += has_effect  # a spin that changes nothing is no progress
        for out, lanes_old in zip(outs, old):
            w.regs[out] = lanes_old if len(w.lanes) > 1 else int(lanes_old[w.first])

    return run


@opcode("atom", section="9.7.13.5")
def atomic(b: Binder) -> Execute:
    """atom: lanes take their turns in order of lane number."""
    return _atomic(b, has_result=True)


@opcode("red", section="9.7.13.6")
def reduction(b: Binder) -> Execute:
    """red: atom without a result."""
    return _atomic(b, has_result=False)


@opcode("st.async", section="9.7.9.12")
@opcode("red.async", section="9.7.13.7")
def store_async(b: Binder) -> Execute:
    """st.async / red.async to shared::cluster, completing transactions on an mbarrier there."""
    is_reduction = b.instruction.opcode.startswith("red")
    b.ignore("weak", "relaxed", "cluster", "shared::cluster", "mbarrier::complete_tx::bytes")
    operation = b.one_of("add", "min", "max", "and", "or", "xor", "inc", "dec") if is_reduction else "exch"
    b.match(r"v[24]")
    kind = b.type()
    bits = TYPE_BITS[kind]
    address, sources, barrier_address = b.address(0), b.srcs(1, bits), b.address(2)
    function = atomic_function(operation, kind)

    def run(w: Any) -> None:
        values = [row(w.regs[s], bits) for s in sources]
        for lane, at, barrier in zip(w.lanes, addresses(w, address), addresses(w, barrier_address)):
            _submit(w, at, barrier_at(w, barrier), [int(v[lane]) for v in values], bits, function)

    return run


def _submit(
    w: Any, address: int, barrier: Mbarrier, values: list[int], bits: int, function: Callable[..., int]
) -> None:
    """One thread's asynchronous store of `values`, each of `bits`."""
    machine, size = w.machine, len(values) * bits // 8
    cta, offset = shared_place(w, address)
    cta.smem.check(offset, size)
    if offset % size:
        raise IllegalAccess(f"address {address:#x} is not a multiple of the {size} bytes accessed")
    array = cta.smem.views[UNSIGNED[bits]]

    def write() -> None:
        if machine.observer is not None:
            machine.observer.shared(op, cta, np.array([offset]), size, Access.WRITE, Proxy.GENERIC)
        for i, value in enumerate(values, offset * 8 // bits):
            array[i] = function(int(array[i]), value)
        complete_transactions(w, op, barrier, size)

    op = AsyncOp("st.async", w, w.instruction, [write])
    machine.submit(op)
