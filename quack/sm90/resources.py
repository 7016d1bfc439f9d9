"""What sm_90a gives a CTA of `GemmSm90`."""

from dataclasses import replace

from ..gemm_config import Dtype, GemmConfig, Major, OperandSpecs
from ..gemm_port import EpilogueOpSpec
from ..gemm_resources import GemmResources, WarpgroupLimits, warpgroup_resources

SMEM_CAPACITY = 232448  # bytes a CTA may use on sm_90 (227 KB)
MMA_REGISTERS = {1: 240, 2: 232, 3: 160}
PRODUCER_REGISTERS = {1: 56, 2: 40, 3: 32}
REGISTER_BLOCKS = 2  # k blocks of a slab that one set of registers holds, where A is multiplied from registers
FRAGMENT_REGISTERS = 4  # of a slab and k block
LIMITS = WarpgroupLimits(SMEM_CAPACITY, MMA_REGISTERS, PRODUCER_REGISTERS)


def resources(
    operands: OperandSpecs, config: GemmConfig, fast_accum: bool = True, epilogue: tuple[EpilogueOpSpec, ...] = ()
) -> GemmResources:
    """Budget for one configuration; `ab_stages` < 2 means that it does not fit."""
    budget = warpgroup_resources(LIMITS, operands, config, fast_accum, epilogue)
    if has_a_in_registers(operands):
        budget = replace(budget, fragment_registers=2 * REGISTER_BLOCKS * FRAGMENT_REGISTERS * budget.slabs)
    return budget


def has_a_in_registers(operands: OperandSpecs) -> bool:
    """Whether A has to go through registers: wgmma reads 32-bit operands from shared memory K-major only."""
    return operands.a.dtype is Dtype.FP32 and operands.a.major is Major.OUTER
