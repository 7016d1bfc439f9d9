"""tcgen05.cp: shared to tensor memory (PTX ISA 9.7.16.9).

The source is a K-major matrix of rows of 16 or 32 bytes behind a shared memory descriptor; each CTA of a pair copies from
its own shared memory. Where row r goes (cute/atom/copy_traits_sm100.hpp, `SM100_UTCCP_*`):

| shape | rows | lanes, counted from that of the address |
|---|---|---|
| 128x256b, 128x128b | 128 | r |
| 4x256b | 4 | 32 r |
| 64x128b.warpx2::02_13 | 64 | r and r + 64 |
| 64x128b.warpx2::01_23 | 64 | r % 32 + 64 (r / 32), and 32 further on |
| 32x128b.warpx4 | 32 | r, r + 32, r + 64, r + 96 |
"""

from typing import Any, NamedTuple

import numpy as np

from ..asynchrony import AsyncOp
from ..errors import Misuse, UnknownInstruction
from ..matrix_descriptor import Major, MatrixDescriptor, chunk_indices, read_matrix
from ..observer import Access, Proxy
from ..opcodes import opcode
from ..program import Binder, Execute
from ..tensor_memory import LANES, TensorAddress, tensor_memory
from ..values import MASK, uniform
from .tcgen05 import cta_group, participants, require_live_peer, submit


class Shape(NamedTuple):
    """`nbytes` of a row; `targets`: (rows, first lane) of every run of consecutive rows that goes to consecutive lanes."""

    rows: int
    nbytes: int
    targets: tuple[tuple[slice, int], ...]


def _all(rows: int, *lanes: int) -> tuple[tuple[slice, int], ...]:
    return tuple((slice(0, rows), lane) for lane in lanes)


_LOW, _HIGH = slice(0, 32), slice(32, 64)
_SHAPES = {
    ("128x256b", ""): Shape(128, 32, _all(128, 0)),
    ("128x128b", ""): Shape(128, 16, _all(128, 0)),
    ("4x256b", ""): Shape(4, 32, tuple((slice(i, i + 1), 32 * i) for i in range(4))),
    ("64x128b", "warpx2::02_13"): Shape(64, 16, _all(64, 0, 64)),
    ("64x128b", "warpx2::01_23"): Shape(64, 16, ((_LOW, 0), (_LOW, 32), (_HIGH, 64), (_HIGH, 96))),
    ("32x128b", "warpx4"): Shape(32, 16, _all(32, 0, 32, 64, 96)),
}


@opcode("tcgen05.cp", section="9.7.16.9.2")
def copy(b: Binder) -> Execute:
    """tcgen05.cp.cta_group.shape[.multicast] [taddr], s-desc."""
    group = cta_group(b)
    if b.flag("b8x16", "b6x16_p32", "b4x16_p64"):
        raise UnknownInstruction("decompression by tcgen05.cp is not implemented")
    size = b.one_of(*{shape for shape, _ in _SHAPES})
    multicast = b.one_of("warpx4", "warpx2::02_13", "warpx2::01_23", default="")
    shape = _SHAPES.get((size, multicast))
    if shape is None:
        raise UnknownInstruction(f"tcgen05.cp.{size} with multicast {multicast!r}")
    address, source = b.address(0).slot, b.src(1, 64)

    def run(w: Any) -> None:
        ctas = participants(w, group)
        require_live_peer(w, ctas)
        for lane in list(w.lanes):
            at = TensorAddress.parse(uniform(w.regs[address], 32, lane))
            if at.lane + max(first + rows.stop - rows.start for rows, first in shape.targets) > LANES:
                raise Misuse(f"tcgen05.cp.{size} at lane {at.lane} reaches beyond lane {LANES - 1}")
            bits = uniform(w.regs[source], 64, lane) & MASK[64]
            try:
                descriptor = MatrixDescriptor.decode_tcgen05(bits)
            except ValueError as error:
                raise Misuse(str(error)) from None
            submit(w, "tcgen05.cp", ctas, _transfer(w.machine, ctas, shape, at, descriptor))

    return run


def _transfer(machine: Any, ctas: list[Any], shape: Shape, at: TensorAddress, descriptor: MatrixDescriptor) -> Any:
    """The stage that copies, in every CTA that takes part."""
    columns = shape.nbytes // 4

    def run(op: AsyncOp) -> None:
        chunks = chunk_indices(descriptor, shape.rows, shape.nbytes, 8, Major.K)
        for cta in ctas:
            cta.smem.check(int(chunks.min()) * 16, 16)
            cta.smem.check(int(chunks.max()) * 16, 16)
            if machine.observer is not None:
                machine.observer.shared(op, cta, chunks.reshape(-1) * 16, 16, Access.READ, Proxy.ASYNC)
            raw = read_matrix(cta.smem.bytes, descriptor, shape.rows, shape.nbytes, 8, Major.K)
            words = np.ascontiguousarray(raw).view(np.uint32)
            for rows, first in shape.targets:
                count = rows.stop - rows.start
                lanes = slice(at.lane + first, at.lane + first + count)
                tensor_memory(cta).block(lanes, at.column, columns)[:] = words[rows]
                if machine.observer is not None:
                    written = slice(at.column, at.column + columns)
                    machine.observer.tensor_memory(op, cta, lanes, written, Access.WRITE)

    return run


@opcode("tcgen05.shift", section="9.7.16.9.3")
def shift(b: Binder) -> Execute:
    """tcgen05.shift: which lanes move is only drawn in the ISA, so it is refused."""
    raise UnknownInstruction("tcgen05.shift is not implemented")
