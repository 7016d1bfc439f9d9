"""ldmatrix, stmatrix and movmatrix (PTX ISA 9.7.14.5.15 to 9.7.14.5.17).

A matrix is 8 rows (16 of .m16n16) of 16 bytes, the row i of matrix j at the address that lane rows * j + i gives. Loads
put word t of row g into lane 4 g + t, after .trans has exchanged rows and columns; rows 8 to 15 go to a second register.
The layouts agree with CUTLASS, cute/atom/copy_traits_sm75.hpp, _sm90.hpp and _sm100.hpp.
"""

from typing import Any, NamedTuple

import numpy as np

from ..errors import IllegalAccess, UnknownInstruction
from ..matrix_descriptor import unpack_padded
from ..memory import OFFSET_MASK, RANK_SHIFT
from ..observer import Access, Proxy
from ..opcodes import opcode
from ..program import Address, Binder, Execute
from ..values import LANES, MASK, UNSIGNED, row
from .control import require_converged
from .data import address_value

ROW = 16  # bytes
_WIDE: Any = np.complex128  # any type of 16 bytes: numpy moves it as a whole, and never computes with it
_WINDOW = np.uint64(MASK[32])

# (.shape, element type, .trans) -> bits of the elements that .trans exchanges. b6, b4: one padded to 16 bytes, see unpack.
_LOADS = {
    ("m8n8", "b16", False): 16, ("m8n8", "b16", True): 16, ("m16n16", "b8", True): 8, ("m16n16", "b6", True): 8,
    ("m16n16", "b4", True): 8, ("m8n16", "b6", False): 8, ("m8n16", "b4", False): 8,
}  # fmt: skip
_STORES = {("m8n8", "b16", False): 16, ("m8n8", "b16", True): 16, ("m16n8", "b8", True): 8}


class Matrices(NamedTuple):
    """What one instruction moves. bits: of an element in a register; stored_bits: in memory."""

    number: int
    rows: int
    bits: int
    stored_bits: int
    is_transposed: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of a row that hold elements."""
        return ROW * self.stored_bits // 8 if self.stored_bits < 8 else ROW


def _matrices(b: Binder, allowed: dict[tuple[str, str, bool], int]) -> Matrices:
    b.ignore("sync", "aligned", "shared", "shared::cta")
    shape = b.one_of("m8n8", "m16n8", "m16n16", "m8n16")
    count = int(b.one_of("x1", "x2", "x4")[1:])
    is_transposed = b.flag("trans")
    if b.flag("b8x16"):
        element = b.one_of("b6x16_p32", "b4x16_p64")[:2]
    else:
        element = b.type()
    if (shape, element, is_transposed) not in allowed or (shape == "m16n16" and count == 4):
        raise UnknownInstruction(f"matrices {shape}, {count} of {element}{', transposed' * is_transposed}")
    bits = allowed[shape, element, is_transposed]
    return Matrices(count, 16 if shape == "m16n16" else 8, bits, int(element[1:]), is_transposed)


def _locate(w: Any, address: Address, count: int, size: int, access: Access) -> np.ndarray:
    """Index, in units of 16 bytes, of the rows whose addresses lanes 0 to count - 1 give."""
    require_converged(w)
    window = (row(address_value(w, address), 64)[:count] & _WINDOW).astype(np.int64)
    low, high = int(window.min()), int(window.max())
    if low >> RANK_SHIFT != w.cta.rank or high >> RANK_SHIFT != w.cta.rank:
        raise IllegalAccess("ldmatrix and stmatrix reach only the CTA's own shared memory")
    if int(np.bitwise_or.reduce(window)) % ROW:
        raise IllegalAccess(f"a matrix row does not start at a multiple of {ROW} bytes")
    w.cta.smem.check(low & OFFSET_MASK, ROW)
    w.cta.smem.check(high & OFFSET_MASK, ROW)
    offsets = window & OFFSET_MASK
    if w.machine.observer is not None:
        w.machine.observer.shared(w, w.cta, offsets, size, access, Proxy.GENERIC)
    return offsets // ROW


@opcode("ldmatrix", section="9.7.14.5.15")
def load_matrix(b: Binder) -> Execute:
    """ldmatrix.sync.aligned.shape.num[.trans][.shared].type, or with .b8x16.{b6x16_p32,b4x16_p64} for .type.

    The latter reads 16 packed elements and ignores the padding behind them; each becomes the lowest bits of a byte.
    """
    what = _matrices(b, _LOADS)
    outs, address = b.outs(0), b.address(1)
    if len(outs) != what.number * what.rows // 8:
        raise UnknownInstruction(f"{len(outs)} registers")
    element = UNSIGNED[what.bits]
    rows = what.number * what.rows

    def run(w: Any) -> None:
        index = _locate(w, address, rows, what.row_bytes, Access.READ)
        raw = w.cta.smem.bytes.view(_WIDE).take(index).view(np.uint8)
        if what.stored_bits < 8:
            raw = unpack_padded(raw.reshape(rows, ROW), what.stored_bits)
        if what.is_transposed:
            tiles = raw.view(element).reshape(what.number, what.rows, -1)
            raw = np.ascontiguousarray(tiles.transpose(0, 2, 1))
        regs = w.regs
        for out, lanes in zip(outs, raw.view(np.uint32).reshape(-1, LANES)):
            regs[out] = lanes

    return run


@opcode("stmatrix", section="9.7.14.5.16")
def store_matrix(b: Binder) -> Execute:
    """stmatrix.sync.aligned.shape.num[.trans][.shared].type; a row is 16 bytes of one matrix in shared memory."""
    what = _matrices(b, _STORES)
    address, sources = b.address(0), b.srcs(1, 32)
    if len(sources) != what.number:
        raise UnknownInstruction(f"{len(sources)} registers")
    rows = what.number * what.rows

    def run(w: Any) -> None:
        index = _locate(w, address, rows, ROW, Access.WRITE)
        words = np.concatenate([row(w.regs[s], 32) for s in sources])
        if what.bits == 8:
            # Byte c + 2 h of lane 4 g + t is element [g + 8 h][2 t + c] of a 16 x 8 matrix, whose columns are stored.
            tiles = words.view(np.uint8).reshape(what.number, 8, 4, 2, 2).transpose(0, 2, 4, 3, 1)
            words = np.ascontiguousarray(tiles)
        elif what.is_transposed:
            tiles = words.view(np.uint16).reshape(what.number, 8, 8).transpose(0, 2, 1)
            words = np.ascontiguousarray(tiles)
        w.cta.smem.bytes.view(_WIDE)[index] = words.reshape(-1).view(_WIDE)
        w.machine.version += 1

    return run


@opcode("movmatrix", section="9.7.14.5.17")
def move_matrix(b: Binder) -> Execute:
    """movmatrix.sync.aligned.m8n8.trans.b16."""
    b.ignore("sync", "aligned", "m8n8", "trans", "b16")
    out, x = b.out(0), b.src(1, 32)

    def run(w: Any) -> None:
        require_converged(w)
        matrix = np.ascontiguousarray(row(w.regs[x], 32)).view(np.uint16).reshape(8, 8)
        w.regs[out] = np.ascontiguousarray(matrix.T).view(np.uint32).reshape(LANES)

    return run
