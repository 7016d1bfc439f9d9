"""What sm_90a gives a CTA of `GemmSm90`."""

from ..gemm_config import GemmConfig, OperandSpecs
from ..gemm_port import EpilogueOpSpec
from ..gemm_resources import GemmResources, WarpgroupLimits, warpgroup_resources

SMEM_CAPACITY = 232448  # bytes a CTA may use on sm_90 (227 KB)
MMA_REGISTERS = {1: 240, 2: 232, 3: 160}
PRODUCER_REGISTERS = {1: 56, 2: 40, 3: 32}
LIMITS = WarpgroupLimits(SMEM_CAPACITY, MMA_REGISTERS, PRODUCER_REGISTERS)


def resources(
    operands: OperandSpecs, config: GemmConfig, fast_accum: bool = True, epilogue: tuple[EpilogueOpSpec, ...] = ()
) -> GemmResources:
    """Budget for one configuration; `ab_stages` < 2 means that it does not fit."""
    return warpgroup_resources(LIMITS, operands, config, fast_accum, epilogue)
