"""tcgen05.mma: dense matrix multiply with the accumulator in tensor memory, with block scaling too (PTX ISA 9.7.16.10).

One thread issues it for a CTA, or for a CTA pair, where each CTA holds half of the rows of A and D and half of the rows
of B (N), and both use all of B. Operands are read and D changes when the operation completes.

Where row m, column n of a CTA's D is (9.7.16.10.5; cute/atom/mma_traits_sm100_frag.hpp), h = 0 or 16 from the address:

| layout | instruction | rows of a CTA | TMEM lane | column |
|---|---|---|---|---|
| A, D | M = 256 of a pair, M = 128 of a CTA | 128 | m | n |
| B, E | M = 128 of a pair, .ws M = 64 | 64 | m + 64 (n / (N / 2)) | n % (N / 2) |
| F | M = 64 of a CTA | 64 | 32 (m / 16) + m % 16 + h | n |
| G | .ws M = 32 | 32 | m + 32 (n / (N / 4)) | n % (N / 4) |

A in tensor memory takes 8 columns (32 bytes of k) of the same lanes; in layouts B, E and G each quarter or half of the lanes
has a copy of A of its own.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .. import formats
from ..arithmetic import decode_accumulator, decode_operand, encode_accumulator, multiply_accumulate
from ..asynchrony import AsyncOp
from ..errors import Misuse, UnknownInstruction
from ..matrix_descriptor import (
    InstructionDescriptor,
    Major,
    MatrixDescriptor,
    chunk_indices,
    read_matrix,
    unpack_nibbles,
    unpack_padded,
)
from ..observer import Access, Proxy
from ..opcodes import opcode
from ..program import Binder, Execute
from ..tensor_memory import TensorAddress, tensor_memory
from ..values import MASK, uniform
from .tcgen05 import cta_group, participants, require_live_peer, submit

KINDS = ("f16", "tf32", "f8f6f4", "i8", "mxf8f6f4", "mxf4", "mxf4nvf4")
A_COLUMNS = 8
_BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e2m3": 6, "e3m2": 6, "e2m1": 4}  # others: 8
_PACKED_KINDS = ("mxf4", "mxf4nvf4")  # two 4-bit elements a byte; elsewhere 4 and 6-bit ones are padded
_COLLECTORS = tuple(
    f"collector::{buffer}::{use}"
    for buffer in ("a", "b0", "b1", "b2", "b3")
    for use in ("fill", "use", "lastuse", "discard")
)
T = TypeVar("T")


class Part(NamedTuple):
    """Rows and columns of a CTA's D that are one block of cells."""

    rows: slice
    columns: slice
    lanes: slice


class Operands(NamedTuple):
    """What one thread passed to one tcgen05.mma. a: descriptor bits, or the address in tensor memory if `a_is_tensor`."""

    d: TensorAddress
    a: int
    a_is_tensor: bool
    b: int
    instruction: InstructionDescriptor
    accumulates: bool
    scale_exponent: int
    disabled_lanes: int
    scale_a: int
    scale_b: int
    scales: int
    is_stationary: bool


@functools.lru_cache(maxsize=64)
def layout(rows: int, n: int, pair: bool, is_stationary: bool, half: int) -> tuple[Part, ...]:
    """The blocks of D in a CTA that has `rows` of its rows; half: 0 or 16, the lane of the address."""
    if rows == 128:
        return (Part(slice(0, 128), slice(0, n), slice(0, 128)),)
    if rows == 64 and not pair and not is_stationary:
        return tuple(
            Part(slice(16 * i, 16 * i + 16), slice(0, n), slice(32 * i + half, 32 * i + half + 16)) for i in range(4)
        )
    parts = 128 // rows
    width = n // parts
    return tuple(
        Part(slice(0, rows), slice(width * i, width * (i + 1)), slice(rows * i, rows * (i + 1))) for i in range(parts)
    )


@opcode("tcgen05.mma", section="9.7.16.10.9")
def mma(b: Binder) -> Execute:
    """tcgen05.mma[.ws].cta_group.kind[.block_scale[.size]][.collector] [d], a, b, idesc, ..., enable-input-d[, scale]."""
    if b.flag("sp"):
        raise UnknownInstruction("sparse tcgen05.mma is not implemented")
    if b.flag("ashift"):
        raise UnknownInstruction("tcgen05.mma.ashift is not implemented")
    is_stationary = b.flag("ws")
    group = cta_group(b)
    kind = b.one_of(*(f"kind::{k}" for k in KINDS)).partition("::")[2]
    b.ignore(*_COLLECTORS)
    scales = _scales_per_row(b, kind)
    d, a_is_tensor = b.address(0).slot, b.operands[1].startswith("[")
    a = b.address(1).slot if a_is_tensor else b.src(1, 64)
    descriptor_b, idesc = b.src(2, 64), b.src(3, 32)
    scale_slots: list[int] = []
    masks: list[int] = []
    at = 4
    if scales:
        scale_slots, at = [b.address(4).slot, b.address(5).slot], 6
    elif b.operands[4].startswith("{"):
        masks, at = b.srcs(4, 32), 5
    enable = b.src(at, 1)
    scale_exponent = 0
    if b.has_operand(at + 1):
        if is_stationary:
            raise UnknownInstruction("tcgen05.mma.ws with a zero-column mask is not implemented")
        scale_exponent = b.immediate(at + 1, 32)

    def run(w: Any) -> None:
        ctas = participants(w, group)
        require_live_peer(w, ctas)
        regs = w.regs
        for lane in list(w.lanes):
            bits = uniform(regs[idesc], 32, lane) & MASK[32]
            disabled = sum((uniform(regs[m], 32, lane) & MASK[32]) << 32 * i for i, m in enumerate(masks))
            sf = [uniform(regs[s], 32, lane) & MASK[32] for s in scale_slots] or [0, 0]
            operands = Operands(
                TensorAddress.parse(uniform(regs[d], 32, lane)),
                uniform(regs[a], 32 if a_is_tensor else 64, lane),
                a_is_tensor,
                uniform(regs[descriptor_b], 64, lane),
                _valid(functools.partial(InstructionDescriptor.decode, bits, kind)),
                bool(uniform(regs[enable], 1, lane)),
                scale_exponent,
                disabled,
                sf[0],
                sf[1],
                scales,
                is_stationary,
            )
            _check(operands, group)
            submit(w, "tcgen05.mma", ctas, functools.partial(_compute, w.machine, ctas, operands))

    return run


def _scales_per_row(b: Binder, kind: str) -> int:
    """Scale factors of one row of A and one instruction; 0 without block scaling."""
    is_scaled = b.flag("block_scale")
    size = b.one_of("scale_vec::1X", "scale_vec::2X", "scale_vec::4X", "block16", "block32", default="")
    if not kind.startswith("mx"):
        if is_scaled:
            raise UnknownInstruction(f".block_scale with .kind::{kind}")
        return 0
    legal = {"mxf8f6f4": {"": 1, "scale_vec::1X": 1, "block32": 1}, "mxf4": {"": 2, "scale_vec::2X": 2, "block32": 2}}
    legal["mxf4nvf4"] = {"scale_vec::2X": 2, "block32": 2, "scale_vec::4X": 4, "block16": 4}
    if not is_scaled or size not in legal[kind]:
        raise UnknownInstruction(f".kind::{kind} with block scaling {size!r}")
    return legal[kind][size]


def _valid(decode: Callable[[], T]) -> T:
    """Errors of the descriptor module as errors of the kernel."""
    try:
        return decode()
    except ValueError as error:
        raise Misuse(str(error)) from None
    except NotImplementedError as error:
        raise UnknownInstruction(str(error)) from None


def _check(o: Operands, group: int) -> None:
    """Raise unless the ISA defines this combination and it is implemented."""
    i = o.instruction
    if o.is_stationary and (group == 2 or o.scales):
        raise UnknownInstruction("tcgen05.mma.ws with .cta_group::2 or block scaling")
    if i.is_sparse:
        raise UnknownInstruction("sparse tcgen05.mma is not implemented")
    if i.k == 96:
        raise UnknownInstruction("tcgen05.mma with K = 96 is not implemented")
    legal_m = (32, 64, 128) if o.is_stationary else (128, 256) if group == 2 else (64, 128)
    if i.m not in (legal_m if not o.scales else tuple(m for m in legal_m if m >= 128)):
        raise Misuse(f"tcgen05.mma with M = {i.m} and .cta_group::{group}")
    step = 64 if o.is_stationary else 8 if i.m == 64 else 16
    if i.n % step or not step <= i.n <= 256 or (o.is_stationary and i.n == 192):
        raise Misuse(f"tcgen05.mma with M = {i.m}, N = {i.n}")
    if o.d.lane not in ((0, 16) if i.m == 64 and not o.is_stationary else (0,)):
        raise Misuse(f"tcgen05.mma with M = {i.m} and D at lane {o.d.lane}")
    if o.a_is_tensor and (i.a_major is not Major.K or (o.is_stationary and i.m < 128)):
        raise UnknownInstruction("A in tensor memory that is transposed, or of .ws with M below 128")
    if o.a_is_tensor and _BITS.get(i.a_format, 8) in (4, 6) and i.kind not in _PACKED_KINDS:
        raise UnknownInstruction(f"A of {i.a_format} in tensor memory is not implemented")
    if o.scale_exponent and (i.kind not in ("f16", "tf32") or o.scale_exponent > 15):
        raise Misuse(f"scale-input-d of {o.scale_exponent} with .kind::{i.kind}")
    if 0 < o.scales < 4 and i.scale_format != "ue8m0":
        raise Misuse(f".kind::{i.kind} with scale factors of {i.scale_format}")
    for scale_id in (i.a_scale_id, i.b_scale_id) if o.scales else ():
        if scale_id % o.scales:
            raise Misuse(f"scale factor id {scale_id} where a row has {o.scales} scale factors")


# ---- execution --------------------------------------------------------------------------------------------------------


def _compute(machine: Any, ctas: list[Any], o: Operands, op: AsyncOp) -> None:
    i = o.instruction
    is_pair = len(ctas) == 2
    rows, columns = i.m // len(ctas), i.n // len(ctas)
    parts = layout(rows, i.n, is_pair, o.is_stationary, o.d.lane)
    b = np.concatenate([_shared_operand(machine, op, cta, o.b, columns, i, "b") for cta in ctas])
    for index, cta in enumerate(ctas):
        if o.a_is_tensor:
            factors = [_tensor_operand(machine, op, cta, o, part) for part in parts]
        else:
            factors = [_shared_operand(machine, op, cta, o.a, rows, i, "a")] * len(parts)
        scaled_b = b
        if o.scales:
            scale_a, scale_b = _scale_factors(machine, op, cta, o, rows)
            factors = [a * scale_a for a in factors]
            scaled_b = b * scale_b
        disabled = o.disabled_lanes >> 128 * index
        for part, a in zip(parts, factors):
            # All rows of A where each part of D has copies of them, else those of the part.
            own = a if o.a_is_tensor or len(parts) == 1 else a[part.rows]
            _update(machine, op, cta, o, part, own, scaled_b[part.columns], disabled)


def _update(
    machine: Any, op: AsyncOp, cta: Any, o: Operands, part: Part, a: np.ndarray, b: np.ndarray, disabled: int
) -> None:
    """D = A B + D in one block of cells."""
    i = o.instruction
    width = part.columns.stop - part.columns.start
    cells = tensor_memory(cta).block(part.lanes, o.d.column, width)
    columns = slice(o.d.column, o.d.column + width)
    old: Any = 0.0
    if o.accumulates:
        if machine.observer is not None:
            machine.observer.tensor_memory(op, cta, part.lanes, columns, Access.READ)
        old = decode_accumulator(cells, i.d_format)
        if o.scale_exponent:
            old *= 2.0**-o.scale_exponent
    if i.negate_a != i.negate_b:
        a = -a
    result = encode_accumulator(multiply_accumulate(a, b, old), i.d_format, i.saturates)
    if machine.observer is not None:
        machine.observer.tensor_memory(op, cta, part.lanes, columns, Access.WRITE)
    if not disabled:
        cells[:] = result
        return
    enabled = np.array([not disabled >> lane & 1 for lane in range(part.lanes.start, part.lanes.stop)])
    cells[enabled] = result[enabled]


def _shared_operand(
    machine: Any, op: AsyncOp, cta: Any, bits: int, rows: int, i: InstructionDescriptor, which: str
) -> np.ndarray:
    """(rows, k) float64 of A or B behind a descriptor."""
    name, major = (i.a_format, i.a_major) if which == "a" else (i.b_format, i.b_major)
    descriptor = _valid(lambda: MatrixDescriptor.decode_tcgen05(bits & MASK[64]))
    width = _BITS.get(name, 8)
    is_padded = width in (4, 6) and i.kind not in _PACKED_KINDS
    if width in (4, 6) and major is not Major.K:
        raise Misuse(f"transposed operand of {name}")
    stored = 8 if is_padded else width
    chunks = _valid(lambda: chunk_indices(descriptor, rows, i.k, stored, major))
    low, high = _extent(descriptor, rows, i.k, stored, major)
    cta.smem.check(low, 16)
    cta.smem.check(high, 16)
    if machine.observer is not None:
        machine.observer.shared(op, cta, chunks.reshape(-1) * 16, 16, Access.READ, Proxy.ASYNC)
    raw = read_matrix(cta.smem.bytes, descriptor, rows, i.k, stored, major)
    return decode_operand(unpack_padded(raw, width) if is_padded else raw, name)


@functools.lru_cache(maxsize=4096)
def _extent(descriptor: MatrixDescriptor, rows: int, k: int, bits: int, major: Major) -> tuple[int, int]:
    """Offsets of the lowest and the highest 16 bytes."""
    chunks = chunk_indices(descriptor, rows, k, bits, major)
    return int(chunks.min()) * 16, int(chunks.max()) * 16


_WORDS: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32}


def _tensor_operand(machine: Any, op: AsyncOp, cta: Any, o: Operands, part: Part) -> np.ndarray:
    """(rows of the part, k) float64 of A in tensor memory."""
    i = o.instruction
    at = TensorAddress.parse(o.a)
    if at.lane != o.d.lane:
        raise Misuse(f"A at lane {at.lane} of tensor memory, D at lane {o.d.lane}")
    cells = np.ascontiguousarray(tensor_memory(cta).block(part.lanes, at.column, A_COLUMNS))
    if machine.observer is not None:
        columns = slice(at.column, at.column + A_COLUMNS)
        machine.observer.tensor_memory(op, cta, part.lanes, columns, Access.READ)
    if i.kind in _PACKED_KINDS:
        return decode_operand(unpack_nibbles(cells.view(np.uint8)), i.a_format)
    return decode_operand(cells.view(_WORDS[_BITS.get(i.a_format, 8)]), i.a_format)


# ---- scale factors ----------------------------------------------------------------------------------------------------


def _scale_factors(machine: Any, op: AsyncOp, cta: Any, o: Operands, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """What to multiply each element of A (rows, k) and of B (n, k) with.

    The factors of row r are bytes of lane r % 32, column r / 32, the first one in byte `scale id`; each quarter of the
    lanes has a copy. With M = 128 of a pair, the upper half of the lanes has those of the upper half of N.
    """
    i = o.instruction
    scale_a = _read_scales(machine, op, cta, o.scale_a, rows, i.a_scale_id, o, (0, 32, 64, 96))
    if rows == 64:
        halves = [
            _read_scales(machine, op, cta, o.scale_b, i.n // 2, i.b_scale_id, o, lanes) for lanes in ((0, 32), (64, 96))
        ]
        scale_b = np.concatenate(halves)
    else:
        scale_b = _read_scales(machine, op, cta, o.scale_b, i.n, i.b_scale_id, o, (0, 32, 64, 96))
    return scale_a, scale_b


def _read_scales(
    machine: Any, op: AsyncOp, cta: Any, address: int, rows: int, scale_id: int, o: Operands, copies: tuple[int, ...]
) -> np.ndarray:
    """(rows, k) float64. Bits 30 and 31 of the address repeat the scale factor id (cute/arch/mma_sm100_desc.hpp)."""
    i = o.instruction
    at = TensorAddress.parse(address & 0x3FFFFFFF)
    if at.lane:
        raise Misuse(f"scale factors at lane {at.lane} of tensor memory")
    columns = -(-rows // 32)
    memory = tensor_memory(cta)
    found = []
    for lane in copies:
        lanes = slice(lane, lane + min(rows, 32))
        cells = np.ascontiguousarray(memory.block(lanes, at.column, columns))
        if machine.observer is not None:
            read = slice(at.column, at.column + columns)
            machine.observer.tensor_memory(op, cta, lanes, read, Access.READ)
        used = cells.view(np.uint8).reshape(len(cells), columns, 4)[:, :, scale_id : scale_id + o.scales]
        found.append(used.transpose(1, 0, 2).reshape(-1, o.scales)[:rows])
    if any((copy != found[0]).any() for copy in found[1:]):
        raise Misuse("the copies of the scale factors in the 32-lane quarters of tensor memory differ")
    assert i.scale_format is not None
    values = formats.decode(found[0], formats.FORMATS[i.scale_format]).astype(np.float64)
    return np.repeat(values, i.k // o.scales, axis=1)
