"""Shared memory and registers of a GEMM kernel, in plain integers.

The kernel allocates exactly what is computed here and `legality` refuses what does not fit, so the two cannot differ. Each arch
has a function `resources(operands, config, fast_accum, epilogue) -> GemmResources`; what kernels have in common is counted here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .gemm_config import Dtype, GemmConfig, OperandSpec, OperandSpecs, mma_warpgroups
from .gemm_port import EpilogueOpSpec, PortKind, scratch_bytes, tile_layouts

RESERVED = (
    1024  # bytes of shared memory: barriers, work ring and the slack of aligning the operand buffers to 1024 bytes
)
SLAB_M = 64  # rows of one wgmma; the epilogue drains the accumulator slab by slab
MAX_AB_STAGES = 8
WORK_RING_STAGES = 4
MAX_GATHER_LAG = 3
EPILOGUE_REGISTERS = 40  # least number of registers next to the accumulators that compiles without spilling
SIDE_REGISTERS = 96  # the same where C is read or D is stored by element: fragments of C, 64-bit addresses, predicates
HALVES_REGISTERS = 112  # C and D both by element and halves (`is_concat`) among them or the vectors: more addresses
PARTIAL_REGISTERS = 8  # more for each reduction beside such an access, or beside another
# More for mixins that keep much at hand: exponentials of many elements, random words.
MIXIN_REGISTERS = {
    "quack.epilogue.reduction:RowLogSumExp": 56,
    "quack.epilogue.rounding:RoundStochastically": 56,
    "quack.epilogue.rounding:RoundStochasticallyTransposed": 72,
}


@dataclass(frozen=True)
class GemmResources:
    """What one CTA uses. Stage counts are those the kernel is built with, register counts are per thread."""

    mma_warpgroups: int  # that drain accumulators
    slabs: int  # of the accumulator that one draining warpgroup owns
    epi_n: int  # columns of one epilogue subtile (slab_m x epi_n)
    ab_stages: int
    c_stages: int
    d_stages: int  # per MMA warpgroup and output
    smem_bytes: int
    accumulator_registers: int  # with the partial sums of precise fp8 accumulation
    mma_registers: int
    producer_registers: int
    fragment_registers: int = 0  # of operands that are multiplied from registers; not beside the epilogue's
    slab_m: int = SLAB_M  # rows of a slab
    acc_stages: int = 1  # tiles whose accumulators fit: of two, one is drained while the other is multiplied

    @property
    def threads(self) -> int:
        return 128 * (1 + self.mma_warpgroups)

    @property
    def gather_lag(self) -> int:
        """k tiles that a copying warp issues before it waits for the first: long enough for the memory's latency, short
        enough to leave the MMA warps two stages that have landed."""
        return max(0, min(MAX_GATHER_LAG, self.ab_stages - 2))


@dataclass(frozen=True)
class WarpgroupLimits:
    """What an arch gives kernels of `execution.warpgroups`. smem_bytes: to a CTA; registers: by number of MMA warpgroups;
    epilogue_row_bytes: of a subtile, at most a 128-byte swizzle row."""

    smem_bytes: int
    mma_registers: Mapping[int, int]
    producer_registers: Mapping[int, int]
    epilogue_row_bytes: int = 128


def epilogue_columns(tile_n: int, d: Dtype, row_bytes: int = 128) -> int:
    """Widest subtile that divides the tile and whose rows of the widest dtype fit row_bytes."""
    for width in (64, 32, 16):
        if tile_n % width == 0 and width * d.bytes <= row_bytes:
            return width
    raise ValueError(f"tile_n={tile_n} is not a multiple of 16")


def warpgroup_resources(
    limits: WarpgroupLimits,
    operands: OperandSpecs,
    config: GemmConfig,
    fast_accum: bool = True,
    epilogue: tuple[EpilogueOpSpec, ...] = (),
) -> GemmResources:
    """Budget of `execution.warpgroups` for one configuration; `ab_stages` < 2 means that it does not fit."""
    config = config.with_tile_k(operands.a.dtype)
    assert config.tile_k is not None
    warpgroups = mma_warpgroups(config)
    slabs = config.tile_m // SLAB_M // (1 if config.pingpong else warpgroups)
    outputs = output_layouts(operands, epilogue)
    widest = max((s.dtype for s in (*outputs, operands.c) if s is not None), key=lambda t: t.bits)
    # A halved output is stored in steps of 16 columns, so of 32 of the tile's.
    row_bytes = 128 if any(output.is_halved for output in outputs) else limits.epilogue_row_bytes
    epi_n = epilogue_columns(config.tile_n, widest, row_bytes)
    subtile = SLAB_M * epi_n
    d_stages = 2 if any(output.is_tma for output in outputs) else 0
    has_c_tma = operands.c is not None and operands.c.is_tma
    c_stages = 2 * warpgroups if has_c_tma else 0
    staged = sum(subtile // (2 if o.is_halved else 1) * o.dtype.bytes for o in outputs if o.is_tma)
    fixed = RESERVED + warpgroups * (d_stages * staged + scratch_bytes(epilogue, config))
    if operands.c is not None:
        fixed += c_stages * subtile * operands.c.dtype.bytes
    stage = config.tile_k * (config.tile_m * operands.a.dtype.bytes + config.tile_n * operands.b.dtype.bytes)
    ab_stages = min(MAX_AB_STAGES, (limits.smem_bytes - fixed) // stage)
    accumulators = slabs * config.tile_n // 2 * (1 if fast_accum else 2)
    return GemmResources(
        mma_warpgroups=warpgroups,
        slabs=slabs,
        epi_n=epi_n,
        ab_stages=ab_stages,
        c_stages=c_stages,
        d_stages=d_stages,
        smem_bytes=fixed + ab_stages * stage,
        accumulator_registers=accumulators,
        mma_registers=limits.mma_registers[warpgroups],
        producer_registers=limits.producer_registers[warpgroups],
    )


def output_layouts(operands: OperandSpecs, epilogue: tuple[EpilogueOpSpec, ...]) -> tuple[OperandSpec, ...]:
    """What the epilogue stores: D, then the tile outputs of the mixins."""
    return (operands.d, *tile_layouts(epilogue, PortKind.TILE_OUTPUT))
