"""Bulk copies: TMA tensor copies, linear bulk copies, their groups, and tensormap.replace (PTX ISA 9.7.9.25, 9.7.9.26).

A load reads global memory, writes shared memory and signals its mbarrier in one stage per destination CTA. A store first
reads shared memory (`wait_group.read` ends here), then writes global memory.
"""

import functools
import re
from typing import Any, NamedTuple, Optional

import numpy as np

from .. import tma_box
from ..asynchrony import AsyncOp
from ..errors import IllegalAccess, Misuse, UnknownInstruction
from ..memory import OFFSET_MASK, PARAM_WINDOW, RANK_SHIFT
from ..observer import Access, Proxy
from ..opcodes import opcode
from ..program import Binder, Execute
from ..ptx import split_operands
from ..tensor_map import ElementType, TensorMap, replace_field
from ..values import MASK, signed, uniform
from ..warp import Wait
from .data import shared_place, space_of
from .sync import addresses, complete_transactions

Reduction = tuple[str, ElementType]
_DIRECTIONS = ("shared::cluster", "shared::cta", "global")
_MODES = ("tile", "tile::gather4", "tile::scatter4", "im2col", "im2col::w", "im2col::w::128", "im2col_no_offs")


class Line(NamedTuple):
    """Operands of one tensor copy: the descriptor, the coordinates, and who takes part."""

    tensor_map: TensorMap
    coordinates: tuple[int, ...]
    gathered: bool

    @property
    def boxes(self) -> int:
        """gather4 and scatter4 move four boxes of one row."""
        return 4 if self.gathered else 1

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory that are written or read."""
        return self.tensor_map.shared_bytes * self.boxes


def read_tensor_map(w: Any, address: int) -> TensorMap:
    """The descriptor at a generic address (a kernel parameter or global memory)."""
    if address % 64:
        raise IllegalAccess(f"TMA descriptor at {address:#x}: must be aligned to 64 bytes")
    if space_of(address) == "param":
        start = address & (PARAM_WINDOW - 1)
        raw = w.machine.parameters[start : start + 128]
    else:
        raw = w.machine.memory.view(address, 128).tobytes()
        if w.machine.observer is not None:
            where = np.array([address], np.uint64)
            w.machine.observer.global_memory(w, where, 128, Access.READ, Proxy.TENSORMAP)
    try:
        return TensorMap.decode(raw[:64])
    except (ValueError, NotImplementedError) as error:
        raise Misuse(str(error)) from None


def _tensor_operand(b: Binder, text: str) -> tuple[int, list[int]]:
    """Slots of `[descriptor, {c0, c1, ...}]`."""
    descriptor, coordinates = split_operands(text[1:-1])
    return b.src(descriptor, 64), b.srcs(coordinates, 32)


def _coordinates(w: Any, slots: list[int], lane: int) -> tuple[int, ...]:
    return tuple(signed(uniform(w.regs[s], 32, lane) & MASK[32], 32) for s in slots)


def _direction(b: Binder) -> tuple[str, str]:
    """(destination, source) spaces, in the order in which they are written."""
    found = [m for m in b.modifiers if m in _DIRECTIONS]
    b.flag(*found)
    if len(found) != 2:
        raise UnknownInstruction(f"bulk copy between {found}")
    return found[0], found[1]


def _mode(b: Binder) -> bool:
    """Whether rows are gathered or scattered."""
    mode = b.one_of(*_MODES, default="tile")
    if mode.startswith("im2col"):
        raise UnknownInstruction("im2col copies are not implemented")
    return mode != "tile"


def _check_shared(offset: int) -> None:
    if offset % tma_box.SHARED_ALIGNMENT:
        raise IllegalAccess(f"TMA box at smem offset {offset:#x}: not a multiple of {tma_box.SHARED_ALIGNMENT} bytes")


# ---- tensor copies ----------------------------------------------------------------------------------------------------


@opcode("cp.async.bulk.tensor", section="9.7.9.25.5.2")
def tensor_copy(b: Binder) -> Execute:
    """cp.async.bulk.tensor.Nd: global to shared::{cta,cluster} with an mbarrier, or shared to global in a bulk group."""
    if b.match(r"[1-5]d") is None:
        raise UnknownInstruction("rank of a tensor copy")
    target, source = _direction(b)
    gathered = _mode(b)
    b.ignore("L2::cache_hint", "mbarrier::complete_tx::bytes", "bulk_group")
    if target == "global":
        return _tensor_store(b, None, gathered)
    group = b.one_of("cta_group::1", "cta_group::2", default="")
    multicast = b.flag("multicast::cluster")
    shared = b.address(0)
    descriptor, coordinates = _tensor_operand(b, b.operands[1])
    barrier = b.address(2)
    mask = b.src(3, 16) if multicast else None

    def run(w: Any) -> None:
        for lane, to, at in zip(list(w.lanes), addresses(w, shared), addresses(w, barrier)):
            tensor_map = read_tensor_map(w, uniform(w.regs[descriptor], 64, lane))
            line = Line(tensor_map, _coordinates(w, coordinates, lane), gathered)
            targets = None if mask is None else uniform(w.regs[mask], 16, lane) & MASK[16]
            _submit_load(w, line, to, at, targets, group == "cta_group::2")

    return run


def _submit_load(w: Any, line: Line, to: int, barrier: int, targets: Optional[int], is_pair: bool) -> None:
    cluster = w.cta.cluster
    ranks = [to >> RANK_SHIFT & 255] if targets is None else [r for r in range(16) if targets >> r & 1]
    offset, barrier_offset, barrier_rank = to & OFFSET_MASK, barrier & OFFSET_MASK, barrier >> RANK_SHIFT & 255
    _check_shared(offset)
    stages = []
    for rank in ranks:
        if targets is None:
            signalled = barrier_rank
            if signalled != rank and not is_pair:
                raise Misuse(f"TMA load to CTA {rank} with a barrier in CTA {signalled} needs .cta_group::2")
        else:
            # The signal goes to the same offset in each destination, or (cta_group::2) in the CTA of its pair whose
            # parity is that of the barrier operand.
            signalled = rank & ~1 | barrier_rank & 1 if is_pair else rank
        if max(rank, signalled) >= cluster.size:
            raise Misuse(f"TMA load to CTA {rank}, barrier in CTA {signalled}, of a cluster of {cluster.size}")
        stages.append(_load_stage(w, line, cluster.ctas[rank], offset, cluster.ctas[signalled], barrier_offset))
    op = AsyncOp("tma load", w, w.instruction, [])
    op.remaining.extend(functools.partial(stage, op) for stage in stages)
    w.machine.submit(op)


def _load_stage(w: Any, line: Line, cta: Any, offset: int, barrier_cta: Any, barrier_offset: int) -> Any:
    machine, tensor_map = w.machine, line.tensor_map
    read = tma_box.read_global_gather4 if line.gathered else tma_box.read_global
    nbytes = line.shared_bytes
    cta.smem.check(offset, nbytes)

    def run(op: AsyncOp) -> None:
        data = read(tensor_map, line.coordinates, machine.memory.view)
        if machine.observer is not None:
            _observe_rows(machine, op, line, Access.READ)
            machine.observer.shared(op, cta, np.array([offset]), nbytes, Access.WRITE, Proxy.ASYNC)
        tma_box.write_shared(tensor_map, data, cta.smem.bytes, offset)
        count = tensor_map.transaction_bytes * line.boxes
        complete_transactions(w, op, barrier_cta.mbarrier(barrier_offset), count)

    return run


def _observe_rows(machine: Any, op: AsyncOp, line: Line, access: Access) -> None:
    """Tell the observer what of global memory a box touches."""
    rows, nbytes = tma_box.touched_rows(line.tensor_map, line.coordinates, line.gathered, access is not Access.READ)
    if len(rows):
        machine.observer.global_memory(op, rows, nbytes, access, Proxy.ASYNC)


def _tensor_store(b: Binder, operation: Optional[str], gathered: bool) -> Execute:
    descriptor, coordinates = _tensor_operand(b, b.operands[0])
    shared = b.address(1)

    def run(w: Any) -> None:
        issued: dict[tuple[Any, ...], AsyncOp] = {}  # kernels often let all lanes store the same box: once is enough
        for lane, at in zip(list(w.lanes), addresses(w, shared)):
            box = (at, uniform(w.regs[descriptor], 64, lane), _coordinates(w, coordinates, lane))
            op = issued.get(box)
            if op is None or operation is not None:
                cta, offset = shared_place(w, at)
                _check_shared(offset)
                line = Line(read_tensor_map(w, box[1]), box[2], gathered)
                op = issued[box] = _submit_store(w, line, cta, offset, operation)
            w.bulk_groups.add(lane, op)

    return run


def _submit_store(w: Any, line: Line, cta: Any, offset: int, operation: Optional[str]) -> AsyncOp:
    machine, tensor_map, view = w.machine, line.tensor_map, w.machine.memory.view
    cta.smem.check(offset, line.shared_bytes)
    held: list[np.ndarray] = []

    def read() -> None:
        if machine.observer is not None:
            machine.observer.shared(op, cta, np.array([offset]), line.shared_bytes, Access.READ, Proxy.ASYNC)
        held.append(tma_box.read_shared(tensor_map, cta.smem.bytes, offset, line.boxes))

    def write() -> None:
        if machine.observer is not None:
            _observe_rows(machine, op, line, Access.WRITE if operation is None else Access.ATOMIC)
        if line.gathered:
            tma_box.write_global_scatter4(tensor_map, held[0], line.coordinates, view)
        elif operation is None:
            tma_box.write_global(tensor_map, held[0], line.coordinates, view)
        else:
            tma_box.reduce_global(tensor_map, held[0], line.coordinates, view, operation)

    op = AsyncOp("tma store", w, w.instruction, [read, write], reads_after=1)
    return machine.submit(op)


@opcode("cp.reduce.async.bulk.tensor", section="9.7.9.25.5.3")
def tensor_reduce(b: Binder) -> Execute:
    """cp.reduce.async.bulk.tensor.Nd.global.shared::cta.{add,min,max,inc,dec,and,or,xor}."""
    b.match(r"[1-5]d")
    _direction(b)
    gathered = _mode(b)
    b.ignore("L2::cache_hint", "bulk_group")
    operation = b.one_of("add", "min", "max", "inc", "dec", "and", "or", "xor")
    return _tensor_store(b, operation, gathered)


# ---- linear copies ----------------------------------------------------------------------------------------------------


@opcode("cp.async.bulk", section="9.7.9.25.4.1")
def bulk_copy(b: Binder) -> Execute:
    """cp.async.bulk between global and shared memory or between CTAs: a multiple of 16 bytes."""
    target, source = _direction(b)
    b.ignore("L2::cache_hint", "mbarrier::complete_tx::bytes", "bulk_group")
    multicast = b.flag("multicast::cluster")
    to, of, size = b.address(0), b.address(1), b.src(2, 32)
    if target == "global":
        return _linear_store(b, to, of, size, None)
    barrier = b.address(3)
    mask = b.src(4, 16) if multicast else None

    def run(w: Any) -> None:
        cluster = w.cta.cluster
        for lane, dst, src, at in zip(list(w.lanes), addresses(w, to), addresses(w, of), addresses(w, barrier)):
            nbytes = uniform(w.regs[size], 32, lane)
            _check_linear(dst, src, nbytes)
            if mask is None:
                targets = [(cluster.cta(dst & MASK[32]), cluster.cta(at & MASK[32]))]
            else:
                bits = uniform(w.regs[mask], 16, lane) & MASK[16]
                if bits >> cluster.size:
                    raise Misuse(f"bulk copy to CTAs {bits:#x} of a cluster of {cluster.size}")
                targets = [(cluster.ctas[r], cluster.ctas[r]) for r in range(16) if bits >> r & 1]
            op = AsyncOp("bulk load", w, w.instruction, [])
            for cta, barrier_cta in targets:
                op.remaining.append(
                    _linear_load_stage(
                        w, op, cta, dst & OFFSET_MASK, source, src, nbytes, barrier_cta, at & OFFSET_MASK
                    )
                )
            w.machine.submit(op)

    return run


def _check_linear(to: int, of: int, nbytes: int) -> None:
    if to % 16 or of % 16 or nbytes % 16:
        raise IllegalAccess(f"bulk copy of {nbytes} bytes from {of:#x} to {to:#x}: all must be multiples of 16")


def _linear_load_stage(
    w: Any, op: AsyncOp, cta: Any, offset: int, space: str, source: int, nbytes: int, barrier_cta: Any, barrier: int
) -> Any:
    machine = w.machine
    cta.smem.check(offset, nbytes)

    def run() -> None:
        if space == "global":
            data = machine.memory.view(source, nbytes)
            if machine.observer is not None:
                machine.observer.global_memory(op, np.array([source], np.uint64), nbytes, Access.READ, Proxy.ASYNC)
        else:
            from_cta, from_offset = shared_place(w, source)
            from_cta.smem.check(from_offset, nbytes)
            data = from_cta.smem.bytes[from_offset : from_offset + nbytes].copy()
            if machine.observer is not None:
                machine.observer.shared(op, from_cta, np.array([from_offset]), nbytes, Access.READ, Proxy.ASYNC)
        if machine.observer is not None:
            machine.observer.shared(op, cta, np.array([offset]), nbytes, Access.WRITE, Proxy.ASYNC)
        cta.smem.bytes[offset : offset + nbytes] = data
        complete_transactions(w, op, barrier_cta.mbarrier(barrier), nbytes)

    return run


def _linear_store(b: Binder, to: Any, of: Any, size: int, reduction: Optional[Reduction]) -> Execute:
    def run(w: Any) -> None:
        for lane, dst, src in zip(list(w.lanes), addresses(w, to), addresses(w, of)):
            nbytes = uniform(w.regs[size], 32, lane)
            _check_linear(dst, src, nbytes)
            cta, offset = shared_place(w, src)
            cta.smem.check(offset, nbytes)
            w.bulk_groups.add(lane, _submit_linear_store(w, cta, offset, dst, nbytes, reduction))

    return run


def _submit_linear_store(
    w: Any, cta: Any, offset: int, to: int, nbytes: int, reduction: Optional[Reduction]
) -> AsyncOp:
    machine = w.machine
    held: list[np.ndarray] = []

    def read() -> None:
        if machine.observer is not None:
            machine.observer.shared(op, cta, np.array([offset]), nbytes, Access.READ, Proxy.ASYNC)
        held.append(cta.smem.bytes[offset : offset + nbytes].copy())

    def write() -> None:
        view = machine.memory.view(to, nbytes)
        if machine.observer is not None:
            access = Access.WRITE if reduction is None else Access.ATOMIC
            machine.observer.global_memory(op, np.array([to], np.uint64), nbytes, access, Proxy.ASYNC)
        if reduction is None:
            view[:] = held[0]
        else:
            operation, element = reduction
            tma_box.reduce_bytes(operation, element, view, held[0])

    op = AsyncOp("bulk store", w, w.instruction, [read, write], reads_after=1)
    return machine.submit(op)


@opcode("cp.reduce.async.bulk", section="9.7.9.25.4.2")
def bulk_reduce(b: Binder) -> Execute:
    """cp.reduce.async.bulk.global.shared::cta: elementwise reduction into global memory."""
    target, _ = _direction(b)
    if target != "global":
        raise UnknownInstruction("cp.reduce.async.bulk into shared memory is not implemented")
    b.ignore("L2::cache_hint", "bulk_group", "noftz")
    operation = b.one_of("add", "min", "max", "inc", "dec", "and", "or", "xor")
    kind = b.type()
    return _linear_store(b, b.address(0), b.address(1), b.src(2, 32), (operation, tma_box.REDUCTION_TYPES[kind]))


# ---- groups -----------------------------------------------------------------------------------------------------------


@opcode("cp.async.bulk.commit_group", section="9.7.9.25.6.1")
def bulk_commit(b: Binder) -> Execute:
    """cp.async.bulk.commit_group, per thread."""

    def run(w: Any) -> None:
        w.bulk_groups.commit(w.lanes)

    return run


@opcode("cp.async.bulk.wait_group", section="9.7.9.25.6.2")
def bulk_wait(b: Binder) -> Execute:
    """cp.async.bulk.wait_group[.read] N."""
    reads_only = b.flag("read")
    keep = b.immediate(0, 32)

    def run(w: Any) -> Optional[Wait]:
        op = w.bulk_groups.pending(w.lanes, keep, reads_only)
        if op is None:
            if w.machine.observer is not None:
                w.machine.observer.bulk_wait(w, w.bulk_groups.waited(w.lanes, keep, reads_only), reads_only)
            return None
        ready = (lambda: op.has_read) if reads_only else (lambda: op.is_done)
        return Wait(ready, f"bulk group (issued at PTX line {op.site.line})")

    return run


# ---- cp.async ---------------------------------------------------------------------------------------------------------


@opcode("cp.async", section="9.7.9.25.3.1 / 9.7.9.25.3.2 / 9.7.9.25.3.3")
def copy_async(b: Binder) -> Execute:
    """cp.async.{ca,cg}.shared.global [dst], [src], 4 | 8 | 16[, src-size]; missing bytes are zeros."""
    if re.search(r"\.(commit_group|wait_group|wait_all)", b.instruction.opcode):
        return _copy_group(b)
    b.ignore("ca", "cg", "shared", "shared::cta", "global", "L2::cache_hint", "L2::64B", "L2::128B", "L2::256B")
    to, of, size = b.address(0), b.address(1), b.immediate(2, 32)
    has_policy = "L2::cache_hint" in b.modifiers  # the last operand
    actual = b.src(3, 32) if b.has_operand(3 + has_policy) else None
    is_flag = actual is not None and b.program.slot_bits[actual] == 1

    def run(w: Any) -> None:
        machine = w.machine
        moves = []
        for lane, dst, src in zip(w.lanes, addresses(w, to), addresses(w, of)):
            wanted = size
            if actual is not None:
                value = uniform(w.regs[actual], 1 if is_flag else 32, lane)
                wanted = (0 if value else size) if is_flag else min(int(value), size)
            if dst % size or (wanted and src % size):
                raise IllegalAccess(f"cp.async of {size} bytes from {src:#x} to {dst:#x}: both must be aligned to it")
            cta, offset = shared_place(w, dst)
            cta.smem.check(offset, size)
            moves.append((cta, offset, src, wanted))

        def copy() -> None:
            for cta, offset, src, wanted in moves:
                cta.smem.bytes[offset : offset + wanted] = machine.memory.view(src, wanted) if wanted else 0
                cta.smem.bytes[offset + wanted : offset + size] = 0
            if machine.observer is not None:
                offsets = np.array([offset for _, offset, _, _ in moves])
                machine.observer.shared(op, w.cta, offsets, size, Access.WRITE, Proxy.GENERIC)
                read = np.array([src for _, _, src, wanted in moves if wanted == size], np.uint64)
                if len(read):
                    machine.observer.global_memory(op, read, size, Access.READ, Proxy.GENERIC)

        op = AsyncOp("cp.async", w, w.instruction, [copy], queue=("cp.async", w.uid))
        for lane in w.lanes:
            w.copy_groups.add(lane, op)
        machine.submit(op)

    return run


def _copy_group(b: Binder) -> Execute:
    """cp.async.commit_group, wait_group N and wait_all (9.7.9.25.3.2, 9.7.9.25.3.3)."""
    name = b.one_of("commit_group", "wait_group", "wait_all")
    if name == "commit_group":

        def commit(w: Any) -> None:
            w.copy_groups.commit(w.lanes)

        return commit
    keep = b.immediate(0, 32) if name == "wait_group" else 0

    def run(w: Any) -> Optional[Wait]:
        if name == "wait_all":
            w.copy_groups.commit(w.lanes)
        op = w.copy_groups.pending(w.lanes, keep)
        if op is None:
            if w.machine.observer is not None:
                w.machine.observer.copy_wait(w, w.copy_groups.waited(w.lanes, keep))
            return None
        return Wait(lambda: op.is_done, f"cp.async group (issued at PTX line {op.site.line})")

    return run


# ---- tensormap --------------------------------------------------------------------------------------------------------


@opcode("tensormap.replace", section="9.7.9.26")
def tensormap_replace(b: Binder) -> Execute:
    """tensormap.replace.tile.FIELD.{global,shared::cta}.b1024.{b32,b64} [addr][, ordinal], value."""
    b.ignore("tile", "b1024")
    space = b.one_of("global", "shared::cta", default="")
    field = b.one_of(
        "global_address", "rank", "box_dim", "global_dim", "global_stride", "element_stride", "elemtype",
        "interleave_layout", "swizzle_mode", "swizzle_atomicity", "fill_mode",
    )  # fmt: skip
    bits = 64 if b.type() == "b64" else 32
    address = b.address(0)
    has_ordinal = len(b.operands) == 3
    ordinal = b.src(1, 32) if has_ordinal else None
    value = b.src(2 if has_ordinal else 1, bits)

    def run(w: Any) -> None:
        for lane, at in zip(w.lanes, addresses(w, address)):
            if space == "shared::cta" or (not space and space_of(at) == "shared"):
                cta, offset = shared_place(w, at)
                cta.smem.check(offset, 128)
                raw = cta.smem.bytes[offset : offset + 128]
                if w.machine.observer is not None:
                    w.machine.observer.shared(w, cta, np.array([offset]), 128, Access.WRITE, Proxy.GENERIC)
            else:
                raw = w.machine.memory.view(at, 128)
                if w.machine.observer is not None:
                    where = np.array([at], np.uint64)
                    w.machine.observer.global_memory(w, where, 128, Access.WRITE, Proxy.GENERIC)
            words = raw.view(np.uint32)
            index = 0 if ordinal is None else uniform(w.regs[ordinal], 32, lane)
            replace_field(words, field, uniform(w.regs[value], bits, lane), index)
        w.machine.version += 1

    return run


@opcode("tensormap.cp_fenceproxy", section="9.7.13.16")
def tensormap_copy(b: Binder) -> Execute:
    """tensormap.cp_fenceproxy.global.shared::cta...: the warp copies 128 bytes and fences the tensormap proxy."""
    b.unused.clear()
    to, of, size = b.address(0), b.address(1), b.immediate(2, 32)

    def run(w: Any) -> None:
        cta, offset = shared_place(w, addresses(w, of)[0])
        cta.smem.check(offset, size)
        if w.machine.observer is not None:
            target = np.array([addresses(w, to)[0]], np.uint64)
            w.machine.observer.shared(w, cta, np.array([offset]), size, Access.READ, Proxy.GENERIC)
            w.machine.observer.global_memory(w, target, size, Access.WRITE, Proxy.GENERIC)
            w.machine.observer.fence(w, "proxy.tensormap::generic.release")
        w.machine.memory.view(addresses(w, to)[0], size)[:] = cta.smem.bytes[offset : offset + size]
        w.machine.version += 1

    return run
