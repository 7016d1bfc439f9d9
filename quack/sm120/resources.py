"""What sm_120 gives a CTA of `GemmSm120`: 99 KB of shared memory and the same register file as Hopper."""

from ..gemm_config import GemmConfig, Major, OperandSpecs
from ..gemm_port import EpilogueOpSpec
from ..gemm_resources import GemmResources, WarpgroupLimits, warpgroup_resources

SMEM_CAPACITY = 101376  # bytes a CTA may use on sm_120 (99 KB)
MMA_REGISTERS = {1: 240, 2: 232}
PRODUCER_REGISTERS = {1: 56, 2: 40}
# Where A is M-major, so that its columns may be gathered: with 40 registers that spills 32 bytes.
MMA_REGISTERS_M_MAJOR = {1: 240, 2: 224}
PRODUCER_REGISTERS_M_MAJOR = {1: 56, 2: 56}
MAIN_LOOP_REGISTERS = 16  # beside accumulators and fragments: 8 spill with 144 + 88, 16 do not with 104 + 112
PART_REGISTERS = (
    16  # more where a tile of two slabs that warpgroups share is put together from parts and has C: 16 bytes spilt
)
EPILOGUE_ROW_BYTES = 64  # of a staged subtile: half of what Hopper stages, so that operands keep two to five stages
LIMITS = {
    Major.INNER: WarpgroupLimits(SMEM_CAPACITY, MMA_REGISTERS, PRODUCER_REGISTERS, EPILOGUE_ROW_BYTES),
    Major.OUTER: WarpgroupLimits(SMEM_CAPACITY, MMA_REGISTERS_M_MAJOR, PRODUCER_REGISTERS_M_MAJOR, EPILOGUE_ROW_BYTES),
}  # by the major of A


def resources(
    operands: OperandSpecs, config: GemmConfig, fast_accum: bool = True, epilogue: tuple[EpilogueOpSpec, ...] = ()
) -> GemmResources:
    """Budget for one configuration; `ab_stages` < 2 means that it does not fit. mma.sync sums fp8 in fp32 anyway."""
    return warpgroup_resources(LIMITS[operands.a.major], operands, config, True, epilogue)


def fragment_registers(config: GemmConfig, budget: GemmResources) -> int:
    """Registers of a thread for what two k blocks hold of A (4 a slab) and of B (1 for 4 columns)."""
    return 2 * (4 * budget.slabs + config.tile_n // 4)
