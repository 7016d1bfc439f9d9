"""What sm_100a and sm_103a give a CTA of `GemmSm100`."""

from dataclasses import dataclass

from ..gemm_config import GemmConfig, OperandSpecs
from ..gemm_port import EpilogueOpSpec, scratch_bytes
from ..gemm_resources import MAX_AB_STAGES, RESERVED, GemmResources, epilogue_columns, output_layouts

SMEM_CAPACITY = 232448  # bytes a CTA may use on sm_100 and sm_103 (227 KB)
CTA_M = 128  # rows of a CTA's accumulators: lanes of tensor memory
ACC_STAGES = 2  # tiles whose accumulators tensor memory holds: one is multiplied while the other is drained
MIN_TMEM_COLUMNS = 32
WARPS = 9  # four produce, four drain, one multiplies
REGISTERS = 224  # a thread: 65536 of the SM / (32 * 9), in steps of 8


@dataclass(frozen=True)
class Sm100Resources(GemmResources):
    """tmem_columns: of 128 lanes x 32 bits that a CTA allocates, a power of two. Registers hold one subtile at a time, not the
    accumulators."""

    tmem_columns: int = MIN_TMEM_COLUMNS

    @property
    def threads(self) -> int:
        return 32 * WARPS


def cta_ctas(config: GemmConfig) -> int:
    """CTAs that one MMA spans."""
    return config.tile_m // CTA_M


def resources(
    operands: OperandSpecs, config: GemmConfig, fast_accum: bool = True, epilogue: tuple[EpilogueOpSpec, ...] = ()
) -> Sm100Resources:
    """Budget for one configuration; `ab_stages` < 2 means that it does not fit. fp8 sums are fp32 whatever fast_accum says."""
    raise NotImplementedError
