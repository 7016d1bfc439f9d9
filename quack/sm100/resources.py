"""What sm_100a and sm_103a give a CTA of `GemmSm100`."""

from dataclasses import dataclass

from ..block_scales import BLOCK_BYTES, scale_blocks
from ..gemm_config import Dtype, GemmConfig, OperandSpecs
from ..gemm_port import EpilogueOpSpec, PortKind, PortSource, present_ports, scratch_bytes
from ..gemm_resources import MAX_AB_STAGES, MIXIN_REGISTERS, RESERVED, GemmResources, epilogue_columns, output_layouts

SMEM_CAPACITY = 232448  # bytes a CTA may use on sm_100 and sm_103 (227 KB)
CTA_M = 128  # rows of a CTA's accumulators: lanes of tensor memory
MAX_ACC_STAGES = 2  # tiles whose accumulators tensor memory holds: one is multiplied while the other is drained
TMEM_COLUMNS = 512
SCALE_BLOCK_COLUMNS = 4  # of tensor memory, for a block of scales
MIN_TMEM_COLUMNS = 32
WARPS = 9  # four produce, four drain, one multiplies
HEAVY_COLUMNS = 32  # of a subtile where the epilogue holds much; 64 spill 2.5 KB with C, a second output and row sums
SCATTERED_COLUMNS = (
    16  # where matrices are accessed by element (32 spill 2.2 KB with two fp32 ones) or rounded at random
)
BACKWARD = "quack.epilogue.activation_backward:"
GATE_BACKWARD = BACKWARD + "GateBackward"
WEIGHED = {PortKind.COL_VECTOR, PortKind.ROW_PARTIALS}
HELD = {PortKind.TILE_OUTPUT, PortKind.ROW_PARTIALS, PortKind.COL_PARTIALS}
REGISTERS = 168  # a thread: 65536 of the SM / (32 * 12), in steps of 8: they are given to four warps at a time


@dataclass(frozen=True)
class Sm100Resources(GemmResources):
    """tmem_columns: of 128 lanes x 32 bits that a CTA allocates, a power of two: accumulators of acc_stages tiles, two
    where that leaves room for the scales of a k tile. Registers hold one subtile at a time, not the accumulators."""

    tmem_columns: int = MIN_TMEM_COLUMNS
    slab_m: int = CTA_M

    @property
    def threads(self) -> int:
        return 32 * WARPS


def is_scattered(operands: OperandSpecs, epilogue: tuple[EpilogueOpSpec, ...]) -> bool:
    """Whether a matrix is read or written element by element, whose addresses ptxas keeps, or a mixin keeps as much: random
    words, exponentials, both gradients of a gated activation beside their scales or sums (32 columns spill 160 bytes and more)."""
    if any(op.mixin in MIXIN_REGISTERS for op in epilogue):
        return True
    gated = (op.ports for op in epilogue if op.mixin == GATE_BACKWARD)
    if any(p.kind in WEIGHED and p.source is not PortSource.ABSENT for ports in gated for p in ports):
        return True
    reduces_gradient = any(
        p.kind is PortKind.ROW_PARTIALS and p.source is not PortSource.ABSENT
        for op in epilogue
        if op.mixin.startswith(BACKWARD)
        for p in op.ports
    )
    if reduces_gradient and operands.d.dtype is Dtype.FP32:  # 384 bytes with grouped problems
        return True
    by_tma = all(spec is None or spec.is_tma for spec in (operands.c, *output_layouts(operands, epilogue)))
    return not by_tma or any(port.kind is PortKind.TILE_INPUT for port in present_ports(epilogue))


def is_heavy(operands: OperandSpecs, epilogue: tuple[EpilogueOpSpec, ...]) -> bool:
    """Whether a thread holds more of a subtile than the accumulators: C, tiles, what is reduced."""
    return operands.c is not None or bool({port.kind for port in present_ports(epilogue)} & HELD)


def resources(
    operands: OperandSpecs, config: GemmConfig, fast_accum: bool = True, epilogue: tuple[EpilogueOpSpec, ...] = ()
) -> Sm100Resources:
    """Budget for one configuration; `ab_stages` < 2 means that it does not fit. fp8 sums are fp32 whatever fast_accum says."""
    config = config.with_tile_k(operands.a.dtype)
    assert config.tile_k is not None
    outputs = output_layouts(operands, epilogue)
    widest = max((s.dtype for s in (*outputs, operands.c) if s is not None), key=lambda t: t.bits)
    epi_n = epilogue_columns(config.tile_n, widest)
    if is_scattered(operands, epilogue) and not any(output.is_halved for output in outputs):
        epi_n = min(epi_n, SCATTERED_COLUMNS)
    elif is_scattered(operands, epilogue) or is_heavy(operands, epilogue):
        epi_n = min(epi_n, HEAVY_COLUMNS)
    subtile = CTA_M * epi_n
    d_stages = 2 if any(output.is_tma for output in outputs) else 0
    c_stages = 2 if operands.c is not None and operands.c.is_tma else 0
    staged = sum(subtile // (2 if o.is_halved else 1) * o.dtype.bytes for o in outputs if o.is_tma)
    fixed = RESERVED + d_stages * staged + scratch_bytes(epilogue, config)
    if operands.c is not None:
        fixed += c_stages * subtile * operands.c.dtype.bytes
    b_rows = config.tile_n // (2 if config.is_pair else 1)
    scales = sum(scale_blocks(operands, config))
    stage = operands.a.dtype.bytes_of(config.tile_k * CTA_M) + operands.b.dtype.bytes_of(config.tile_k * b_rows)
    stage += scales * BLOCK_BYTES
    scale_columns = SCALE_BLOCK_COLUMNS * scales
    acc_stages = min(MAX_ACC_STAGES, (TMEM_COLUMNS - scale_columns) // config.tile_n)
    ab_stages = min(MAX_AB_STAGES, (SMEM_CAPACITY - fixed) // stage)
    return Sm100Resources(
        mma_warpgroups=1,
        slabs=1,
        epi_n=epi_n,
        ab_stages=ab_stages,
        c_stages=c_stages,
        d_stages=d_stages,
        smem_bytes=fixed + ab_stages * stage,
        accumulator_registers=0,
        mma_registers=REGISTERS,
        producer_registers=REGISTERS,
        tmem_columns=max(MIN_TMEM_COLUMNS, 1 << (acc_stages * config.tile_n + scale_columns - 1).bit_length()),
        acc_stages=acc_stages,
    )
