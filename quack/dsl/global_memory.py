"""Global memory that CTAs share while they run: vectors of four fp32, and words that say that data is there."""

import cutlass.cute as cute
from cutlass import Float32, Int32, Int64
from cutlass._mlir.dialects import llvm, nvvm

VECTOR = 4  # fp32 of one 16-byte access
POLL_NS = 32  # between two looks at a word: what another CTA writes takes longer to arrive


@cute.jit
def add_vector(address: Int64, values: cute.Tensor):
    """One thread: adds 4 fp32 to memory at a multiple of 16 bytes, element by element atomic, in no order."""
    llvm.inline_asm(
        None,
        [address.ir_value(), *(Float32(values[i]).ir_value() for i in range(VECTOR))],
        "red.relaxed.gpu.global.add.v4.f32 [$0], {$1, $2, $3, $4};",
        "l,f,f,f,f",
        has_side_effects=True,
        is_align_stack=False,
        asm_dialect=llvm.AsmDialect.AD_ATT,
    )


@cute.jit
def wait_until(word: cute.Pointer, value: Int32):
    """One thread: until the word is `value`. What was written before it was set is visible then, and after a barrier to all
    threads that meet there."""
    found = cute.arch.load(word, Int32, sem="acquire", scope="gpu")
    while found != value:
        nvvm.nanosleep(Int32(POLL_NS).ir_value())
        found = cute.arch.load(word, Int32, sem="acquire", scope="gpu")


@cute.jit
def publish(word: cute.Pointer, value: Int32):
    """One thread: sets the word, after a barrier behind the writes that it announces."""
    cute.arch.store(word, value, sem="release", scope="gpu")


@cute.jit
def arrive(word: cute.Pointer):
    """One thread: adds 1 to the word, after a barrier behind the writes that it announces."""
    cute.arch.red(word, Int32(1), op="add", dtype="s32", sem="release", scope="gpu")
