"""Warpgroup matrix multiply (PTX ISA 9.7.15): wgmma.mma_async, fence, commit_group and wait_group of sm_90a.

The four warps of a warpgroup issue together. Operands in shared memory, and A in registers, are read when the operation
completes; accumulators change at that moment.
"""

from typing import Any, NamedTuple, Optional

import numpy as np

from ..arithmetic import adder_of, decode_accumulator, decode_operand, encode_accumulator, multiply_accumulate
from ..asynchrony import AsyncOp
from ..errors import Misuse, UnknownInstruction
from ..matrix_descriptor import Major, MatrixDescriptor, chunk_indices, read_matrix
from ..observer import Access, Proxy
from ..opcodes import opcode
from ..program import Binder, Execute
from ..values import row, uniform
from ..warp import Wait
from .control import require_converged

WARPS = 4
_FORMAT_BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8}
_FP8, _INT8 = ("e4m3", "e5m2"), ("s8", "u8")
# Types of A and B -> types of D.
_ACCUMULATORS: dict[tuple[str, str], tuple[str, ...]] = {
    ("f16", "f16"): ("f16", "f32"),
    ("bf16", "bf16"): ("f32",),
    ("tf32", "tf32"): ("f32",),
    **{(a, b): ("f16", "f32") for a in _FP8 for b in _FP8},
    **{(a, b): ("s32",) for a in _INT8 for b in _INT8},
}


class Shape(NamedTuple):
    """One wgmma: m64 n k, types of D, A, B, majors."""

    n: int
    k: int
    d: str
    a: str
    b: str
    major_a: Major
    major_b: Major
    negate: int
    saturate: bool


class Share(NamedTuple):
    """What one warp brings to a wgmma."""

    warp: Any
    registers: list[int]
    a_registers: Optional[list[int]]


class Collective:
    """A wgmma that some warps of the warpgroup have issued."""

    def __init__(self, key: tuple[Any, ...], op: AsyncOp) -> None:
        self.key, self.op = key, op
        self.shares: list[Share] = []


@opcode("wgmma.mma_async", section="9.7.15.5.2")
def mma_async(b: Binder) -> Execute:
    """wgmma.mma_async.sync.aligned.m64nNkK.dtype.atype.btype d, a, b, scale-d, ..."""
    b.ignore("sync", "aligned")
    if "sp" in b.modifiers:
        raise UnknownInstruction("sparse wgmma is not implemented")
    size = b.match(r"m64n(\d+)k(\d+)")
    if size is None:
        raise UnknownInstruction("wgmma shape")
    saturate = b.flag("satfinite")
    d, a_type, b_type = [m for m in b.modifiers if m in _FORMAT_BITS or m in ("f32", "s32")]
    b.flag(d, a_type, b_type)
    n, k = int(size[1]), int(size[2])
    if (
        d not in _ACCUMULATORS.get((a_type, b_type), ())
        or k * _FORMAT_BITS[a_type] != 256
        or n % 8
        or not 8 <= n <= 256
    ):
        raise UnknownInstruction(f"wgmma of {a_type} x {b_type} into {d} with n = {n}, k = {k}")
    registers = b.outs(0)
    expected = n // 4 if d == "f16" else n // 2
    if len(registers) != expected:
        raise UnknownInstruction(f"{len(registers)} accumulator registers, expected {expected}")
    a_registers = b.srcs(1, 32) if b.operands[1].startswith("{") else None
    descriptor_a = None if a_registers else b.src(1, 64)
    descriptor_b, scale = b.src(2, 64), b.src(3, 1)
    rest = [int(x, 0) for x in b.operands[4:]]
    transposed = (2 - (a_registers is not None)) * (_FORMAT_BITS[a_type] == 16)
    if len(rest) != (0 if d == "s32" else 2 + transposed):
        raise UnknownInstruction(f"{len(rest)} immediate operands of wgmma")
    signs, transposes = (rest[:2], rest[2:]) if d != "s32" else ([1, 1], [])
    if a_registers is None:
        major_a, major_b = (Major(t) for t in transposes) if transposes else (Major.K, Major.K)
    else:
        major_a, major_b = Major.K, Major(transposes[0]) if transposes else Major.K
    shape = Shape(n, k, d, a_type, b_type, major_a, major_b, signs[0] * signs[1], saturate)

    def run(w: Any) -> Optional[Wait]:
        if w.state.pop("joined wgmma", None) is not None:
            return None
        require_converged(w)
        regs = w.regs
        a_bits = None if descriptor_a is None else uniform(regs[descriptor_a], 64, 0)
        keep = bool(uniform(regs[scale], 1, 0))
        key = (w.instruction.index, a_bits, uniform(regs[descriptor_b], 64, 0), keep)
        op = _join(w, shape, key, Share(w, registers, a_registers))
        if op.is_done or not w.machine.is_eager:
            return None
        # "At once" includes the other three warps: CuTe DSL reads fp16 accumulators before wait_group, which ptxas mends.
        w.state["joined wgmma"] = op
        return Wait(lambda: op.is_done, "the other warps of its warpgroup to issue this wgmma")

    return run


def _join(w: Any, shape: Shape, key: tuple[Any, ...], share: Share) -> AsyncOp:
    """Add one warp to the wgmma that its warpgroup issues next; the fourth one starts it."""
    group = w.number // WARPS
    pending: list[Collective] = w.cta.state.setdefault(("wgmma", group), [])
    collective = next((c for c in pending if all(s.warp is not w for s in c.shares)), None)
    if collective is None:
        queue = ("wgmma", w.cta.cluster.index, w.cta.rank, group)
        collective = Collective(key, AsyncOp("wgmma", w, w.instruction, [], queue))
        collective.op.remaining.append(_computation(w.machine, shape, collective))
        pending.append(collective)
    if collective.key != key:
        raise Misuse(
            "the warps of a warpgroup disagree on a wgmma (instruction, descriptor of A and B, scale-d): "
            f"{collective.key} and {key}"
        )
    collective.shares.append(share)
    w.wgmma_open.append(collective.op)
    if w.machine.observer is not None:
        w.machine.observer.wgmma_issue(w, collective.op, share.registers, share.a_registers or [])
    if len(collective.shares) == WARPS:
        pending.remove(collective)
        w.machine.submit(collective.op)
    return collective.op


def _computation(machine: Any, shape: Shape, collective: Collective) -> Any:
    """The stage that reads the operands and changes the accumulators."""
    adder = adder_of(machine.program.kernel.target, shape.a, shape.d)

    def run() -> None:
        _, a_bits, b_bits, keep = collective.key
        shares = sorted(collective.shares, key=lambda s: s.warp.number)
        cta = shares[0].warp.cta
        op = collective.op
        b = _shared_operand(machine, op, cta, b_bits, shape.n, shape.k, shape.b, shape.major_b)
        if a_bits is None:
            a = np.concatenate([_register_operand(s, shape.a) for s in shares])
        else:
            a = _shared_operand(machine, op, cta, a_bits, 64, shape.k, shape.a, shape.major_a)
        if shape.negate < 0:
            a = -a
        old = np.concatenate([_accumulators(s, shape) for s in shares]) if keep else 0.0
        result = encode_accumulator(multiply_accumulate(a, b, old, adder), shape.d, shape.saturate)
        for i, share in enumerate(shares):
            _write_accumulators(share, result[16 * i : 16 * i + 16], shape)

    return run


def _shared_operand(
    machine: Any, op: AsyncOp, cta: Any, bits: int, rows: int, k: int, name: str, major: Major
) -> np.ndarray:
    descriptor = MatrixDescriptor.decode_wgmma(bits)
    size = _FORMAT_BITS[name]
    if machine.observer is not None:
        chunks = chunk_indices(descriptor, rows, k, size, major)
        machine.observer.shared(op, cta, chunks.reshape(-1) * 16, 16, Access.READ, Proxy.ASYNC)
    _check_range(cta, descriptor, rows, k, size, major)
    return decode_operand(read_matrix(cta.smem.bytes, descriptor, rows, k, size, major), name)


def _check_range(cta: Any, descriptor: MatrixDescriptor, rows: int, k: int, bits: int, major: Major) -> None:
    key = ("wgmma range", descriptor, rows, k, bits, major)
    if key not in cta.state:
        chunks = chunk_indices(descriptor, rows, k, bits, major)
        cta.smem.check(int(chunks.min()) * 16, 16)
        cta.smem.check(int(chunks.max()) * 16, 16)
        cta.state[key] = True


def _register_operand(share: Share, name: str) -> np.ndarray:
    """(16, k) of one warp: register 2 i + j of lane 4 g + t holds row g + 8 j, bytes 16 i + 4 t to + 3 (Figure 153 ff.)."""
    assert share.a_registers is not None
    words = np.stack([row(v, 32) for v in share.warp.read_registers(share.a_registers)]).reshape(-1, 2, 8, 4)
    data = np.ascontiguousarray(words.transpose(1, 2, 0, 3)).view(np.uint8).reshape(16, -1)
    kinds: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32}
    return decode_operand(data.view(kinds[_FORMAT_BITS[name]]), name)


def _accumulators(share: Share, shape: Shape) -> np.ndarray:
    """(16, n) float64: register 4 j + 2 h + c of lane 4 g + t is D[g + 8 h][8 j + 2 t + c]; f16 packs c in one register."""
    registers = share.warp.read_registers(share.registers)
    cached = share.warp.state.get("wgmma accumulators")
    if cached is not None and all(found is v for found, v in zip(registers, cached[1])):
        words = cached[0]
    else:
        words = np.stack([row(v, 32) for v in registers])
    if shape.d == "f16":
        halves = words.reshape(-1, 2, 8, 4, 1).view(np.uint16)  # (j, h, g, t, c)
        tile = halves.transpose(1, 2, 0, 3, 4).reshape(16, shape.n)
    else:
        tile = words.reshape(-1, 2, 2, 8, 4).transpose(1, 3, 0, 4, 2).reshape(16, shape.n)
    return decode_accumulator(np.ascontiguousarray(tile), shape.d)


def _write_accumulators(share: Share, tile: np.ndarray, shape: Shape) -> None:
    """The inverse of `_accumulators`; tile is (16, n) uint32."""
    if shape.d == "f16":
        halves = tile.astype(np.uint16).reshape(2, 8, -1, 4, 2).transpose(2, 0, 1, 3, 4)
        words = np.ascontiguousarray(halves).view(np.uint32).reshape(-1, 32)
    else:
        words = np.ascontiguousarray(tile.reshape(2, 8, -1, 4, 2).transpose(2, 0, 4, 1, 3)).reshape(-1, 32)
    values = list(words)
    for register, value in zip(share.registers, values):
        share.warp.write_register(register, value)
    share.warp.state["wgmma accumulators"] = (words, values)


@opcode("wgmma.fence", section="9.7.15.7.1")
def wgmma_fence(b: Binder) -> Execute:
    """wgmma.fence.sync.aligned: orders register accesses; only checkers see it."""
    b.ignore("sync", "aligned")

    def run(w: Any) -> None:
        require_converged(w)
        if w.machine.observer is not None:
            w.machine.observer.fence(w, "wgmma")

    return run


@opcode("wgmma.commit_group", section="9.7.15.7.2")
def commit_group(b: Binder) -> Execute:
    """wgmma.commit_group.sync.aligned."""
    b.ignore("sync", "aligned")

    def run(w: Any) -> None:
        require_converged(w)
        w.wgmma_groups.append(w.wgmma_open)
        w.wgmma_open = []

    return run


@opcode("wgmma.wait_group", section="9.7.15.7.3")
def wait_group(b: Binder) -> Execute:
    """wgmma.wait_group.sync.aligned N: all but the N newest groups are done."""
    b.ignore("sync", "aligned")
    keep = b.immediate(0, 32)

    def run(w: Any) -> Optional[Wait]:
        require_converged(w)
        groups = w.wgmma_groups
        due = groups[: len(groups) - keep] if keep else groups
        pending = [op for group in due for op in group if not op.is_done]
        if pending:
            last = pending[-1]
            return Wait(lambda: last.is_done, f"wgmma group (issued at PTX line {last.site.line})")
        w.wgmma_groups = groups[len(groups) - keep :] if keep else []
        if w.machine.observer is not None:
            w.machine.observer.wgmma_wait(w, [op for group in due for op in group])
        return None

    return run
