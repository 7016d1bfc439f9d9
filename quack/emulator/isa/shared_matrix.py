"""ldmatrix, stmatrix and movmatrix (PTX ISA 9.7.14.5.15 to 9.7.14.5.17)."""

from typing import Any

import numpy as np

from ..errors import IllegalAccess, UnknownInstruction
from ..memory import OFFSET_MASK, RANK_SHIFT
from ..observer import Access, Proxy
from ..opcodes import opcode
from ..program import Binder, Execute
from ..values import MASK, row
from .control import require_converged
from .data import address_value

_BYTES = np.arange(16)


def _rows(w: Any, address: Any, count: int, access: Access) -> tuple[Any, np.ndarray]:
    """(CTA, offsets): 16-byte rows whose addresses lanes 0 to count - 1 give."""
    require_converged(w)
    value = address_value(w, address)
    lanes = (row(value, 64) & np.uint64(MASK[32]))[:count]
    if (lanes >> np.uint64(RANK_SHIFT) != np.uint64(w.cta.rank)).any():
        raise IllegalAccess("ldmatrix and stmatrix reach only the CTA's own shared memory")
    offsets = (lanes & np.uint64(OFFSET_MASK)).astype(np.int64)
    if (offsets % 16).any():
        raise IllegalAccess("a matrix row does not start at a multiple of 16 bytes")
    w.cta.smem.check(int(offsets.min()), 16)
    w.cta.smem.check(int(offsets.max()), 16)
    if w.machine.observer is not None:
        w.machine.observer.shared(w, w.cta, offsets, 16, access, Proxy.GENERIC)
    return w.cta, offsets


def _shape(b: Binder) -> tuple[int, bool, int]:
    """(number of matrices, transposed, bits of an element)."""
    shape = b.one_of("m8n8", "m16n8", "m16n16", "m8n16")
    count = int(b.one_of("x1", "x2", "x4")[1:])
    b.ignore("sync", "aligned", "shared", "shared::cta", "shared::cluster")
    transposed = b.flag("trans")
    if b.flag("b8x16.b6x16_p32", "b8x16.b4x16_p64", "b8x16"):
        raise UnknownInstruction("unpacking matrix loads are not implemented")
    bits = 16 if b.type() == "b16" else 8
    expected = {"m8n8": 16, "m16n8": 8, "m16n16": 8}
    if expected.get(shape) != bits:
        raise UnknownInstruction(f"{shape} with {bits}-bit elements is not implemented")
    return count * (2 if shape == "m16n16" else 1), transposed, bits


@opcode("ldmatrix", section="9.7.14.5.15")
def load_matrix(b: Binder) -> Execute:
    """ldmatrix: 8x8 matrices of 16 bits (m8n8) or 16x16 of 8 bits transposed (m16n16, two registers a matrix)."""
    if "m16n16" in b.modifiers:
        return _load_matrix_8bit(b)
    count, transposed, _ = _shape(b)
    outs, address = b.outs(0), b.address(1)

    def run(w: Any) -> None:
        cta, offsets = _rows(w, address, 8 * count, Access.READ)
        halves = cta.smem.bytes[offsets[:, None] + _BYTES].view(np.uint16).reshape(count, 8, 8)
        if transposed:
            halves = np.ascontiguousarray(halves.transpose(0, 2, 1))
        words = halves.view(np.uint32).reshape(count, 32)
        for i, out in enumerate(outs):
            w.regs[out] = words[i]

    return run


def _load_matrix_8bit(b: Binder) -> Execute:
    """m16n16.trans.b8: lane l of matrix i gets, in two registers, elements of column l // 4 (+ 8), rows 4 (l % 4) ...

    The 16 rows of matrix i are addressed by lanes 16 i to 16 i + 15.
    """
    pairs, transposed, _ = _shape(b)
    if not transposed:
        raise UnknownInstruction("ldmatrix.m16n16 without .trans")
    count = pairs // 2
    outs, address = b.outs(0), b.address(1)

    def run(w: Any) -> None:
        cta, offsets = _rows(w, address, 16 * count, Access.READ)
        tiles = cta.smem.bytes[offsets[:, None] + _BYTES].reshape(count, 16, 16)
        turned = np.ascontiguousarray(tiles.transpose(0, 2, 1))  # [matrix, column, row]
        words = turned.view(np.uint32)  # (matrix, 16 columns, 4 groups of 4 rows)
        for i, out in enumerate(outs):
            half = words[i // 2, 8 * (i % 2) : 8 * (i % 2) + 8]
            w.regs[out] = np.ascontiguousarray(half).reshape(32)

    return run


@opcode("stmatrix", section="9.7.14.5.16")
def store_matrix(b: Binder) -> Execute:
    """stmatrix: 8x8 matrices of 16 bits (m8n8), or 16x8 of 8 bits (m16n8, always transposed)."""
    count, transposed, bits = _shape(b)
    address, sources = b.address(0), b.srcs(1, 32)

    def run(w: Any) -> None:
        words = np.stack([row(w.regs[s], 32) for s in sources])
        if bits == 16:
            cta, offsets = _rows(w, address, 8 * count, Access.WRITE)
            tiles = words.view(np.uint16).reshape(count, 8, 8)
            if transposed:
                tiles = tiles.transpose(0, 2, 1)
        else:
            # Lane l holds column l // 4, rows 4 (l % 4) to + 3 of a 16 x 8 matrix, which is stored as 8 rows of 16.
            cta, offsets = _rows(w, address, 8 * count, Access.WRITE)
            tiles = words.view(np.uint8).reshape(count, 8, 16)
        raw = np.ascontiguousarray(tiles).view(np.uint8).reshape(8 * count, 16)
        cta.smem.bytes[offsets[:, None] + _BYTES] = raw
        w.machine.version += 1

    return run


@opcode("movmatrix", section="9.7.14.5.17")
def move_matrix(b: Binder) -> Execute:
    """movmatrix.sync.aligned.m8n8.trans.b16."""
    b.ignore("sync", "aligned", "m8n8", "trans", "b16")
    out, x = b.out(0), b.src(1, 32)

    def run(w: Any) -> None:
        require_converged(w)
        matrix = row(w.regs[x], 32).copy().view(np.uint16).reshape(8, 8)
        w.regs[out] = np.ascontiguousarray(matrix.T).view(np.uint32).reshape(32)

    return run
