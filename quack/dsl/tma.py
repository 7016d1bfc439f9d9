"""TMA instructions that CuTe's atoms issue from one thread only."""

import cutlass
import cutlass.cute as cute
from cutlass import AddressSpace, Int32, Int64
from cutlass._mlir.dialects import cute as _cute
from cutlass._mlir.dialects import cute_nvgpu, llvm

DESCRIPTOR_ALIGN = 64  # bytes, of TMA descriptors
FIRST_OF_PAIR = (
    -16777217
)  # 0xFEFFFFFF: clears the bit of a shared::cluster address that tells the two CTAs of a pair apart


def descriptor_address(atom: cute.CopyAtom) -> Int64:
    """The generic address of the TMA descriptor that an atom made on the host refers to."""
    kind = _cute.PtrType.get(cute_nvgpu.TmaDescriptorTiledType.get(), AddressSpace.generic, DESCRIPTOR_ALIGN)
    executable = cute_nvgpu.atom_make_exec_tma(atom._trait.value)
    return Int64(cute_nvgpu.get_tma_desc_addr(kind, executable).toint())


@cute.jit
def load_four_lines(
    shared: Int32, descriptor: Int64, element: Int32, lines: tuple, barrier: Int32, is_pair: cutlass.Constexpr[bool]
):
    """Each thread: four lines of a matrix from `element` on, as wide as the descriptor's box, to shared memory, one behind the other.

    lines: four numbers; those outside of the matrix give zeros. barrier: counts the bytes; of a pair, the first CTA's.
    """
    group = ".cta_group::2" if is_pair else ""
    if cutlass.const_expr(is_pair):
        barrier = barrier & FIRST_OF_PAIR
    operands = [shared, descriptor, element, *lines, barrier]
    llvm.inline_asm(
        None,
        [operand.ir_value() for operand in operands],
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile::gather4.mbarrier::complete_tx::bytes"
        f"{group} [$0], [$1, {{$2, $3, $4, $5, $6}}], [$7];",
        "r,l,r,r,r,r,r,r",
        has_side_effects=True,
        is_align_stack=False,
        asm_dialect=llvm.AsmDialect.AD_ATT,
    )
