"""Copies that CuTe's atoms cannot express."""

from typing import Optional

import cutlass.cute as cute
from cutlass import AddressSpace, Int32, Int64, Uint8
from cutlass._mlir.dialects import nvvm

CHUNK_BYTES, COPY_WORD_BYTES = 16, 4


@cute.jit
def copy_chunk_async(shared: Int32, memory: Int64, size: Optional[Int32] = None):
    """One thread: 16 bytes at address `memory` to shared address `shared`, both multiples of 16. Goes around L1.

    size (0 to 16): copies only so many bytes and writes zeros behind them; 0 reads nothing, whatever `memory` is.
    """
    target = cute.make_ptr(Uint8, shared, AddressSpace.smem, assumed_align=CHUNK_BYTES)
    source = cute.make_ptr(Uint8, memory, AddressSpace.gmem, assumed_align=CHUNK_BYTES)
    nvvm.cp_async_shared_global(
        target.to_llvm_ptr(),
        source.to_llvm_ptr(),
        CHUNK_BYTES,
        nvvm.LoadCacheModifierKind.CG,
        cp_size=None if size is None else size.ir_value(),
    )


@cute.jit
def copy_word_async(shared: Int32, memory: Int64, size: Optional[Int32] = None):
    """One thread: 4 bytes, as `copy_chunk_async`, but through L1."""
    target = cute.make_ptr(Uint8, shared, AddressSpace.smem, assumed_align=COPY_WORD_BYTES)
    source = cute.make_ptr(Uint8, memory, AddressSpace.gmem, assumed_align=COPY_WORD_BYTES)
    nvvm.cp_async_shared_global(
        target.to_llvm_ptr(),
        source.to_llvm_ptr(),
        COPY_WORD_BYTES,
        nvvm.LoadCacheModifierKind.CA,
        cp_size=None if size is None else size.ir_value(),
    )
