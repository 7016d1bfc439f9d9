"""Scaled conversions (PTX ISA 9.1, cvt): from the fixed-point format s2f6 to bf16.

s2f6 is a signed byte in units of 2^-6 (5.2.4). Each of the two elements is multiplied by its ue8m0 scale, the low bytes
by each other; without an operand of scales they are 1. Every product is exact in bf16, subnormals included, or too large.
Conversions to s2f6 are refused: the text that would say which way their scale works was not to be had.
"""

from typing import Any

import numpy as np

from .. import formats
from ..errors import UnknownInstruction
from ..formats import BF16, UE8M0
from ..opcodes import opcode
from ..program import Binder, Execute
from ..values import row

_ONES = 0x7F7F

_NAMES = [
    f"cvt.rn{saturate}{relu}{scaled}.bf16x2.s2f6x2"
    for saturate in ("", ".satfinite")
    for relu in ("", ".relu")
    for scaled in ("", ".scaled::n2::ue8m0")
]


@opcode(*_NAMES, section="9.7.9.21")
def fixed_point_to_bf16(b: Binder) -> Execute:
    """cvt.rn[.satfinite][.relu][.scaled::n2::ue8m0].bf16x2.s2f6x2 d, a[, scale-factor]."""
    parts = b.instruction.parts
    is_scaled = "scaled::n2::ue8m0" in parts
    if len(b.operands) != 2 + is_scaled:
        raise UnknownInstruction(f"{len(b.operands)} operands")
    out, x = b.out(0), b.src(1, 16)
    scales = b.src(2, 16) if is_scaled else b.program.constant(_ONES, 16)
    write = formats.encoder(BF16, saturate="satfinite" in parts, relu="relu" in parts)
    read_scale = formats.decoder(UE8M0)

    def run(w: Any) -> None:
        regs = w.regs
        elements = row(regs[x], 16).view(np.int8).astype(np.float32) * np.float32(2.0**-6)
        factors = read_scale(row(regs[scales], 16).view(np.uint8))
        regs[out] = write(elements * factors).view(np.uint32)

    return run
