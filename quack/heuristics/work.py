"""What one tile asks of its CTA's SM, in flops, bytes and instructions: counted from the spec alone.

`k_tile_work` is the main loop's for one k tile, `drain_work` the epilogue's for one tile. `quack.roofline` prints both beside what
the emulator counts of the compiled kernel; the bytes and flops agree exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..arch import ARCHES
from ..block_scales import BLOCK_BYTES, scale_blocks
from ..gemm_config import OperandSpec
from ..gemm_port import PortKind, tile_layouts
from ..gemm_resources import output_layouts
from ..runtime.budget import budget_of
from ..runtime.spec import GemmSpec
from .tuning import Tuning

ACCESS_BYTES = 16  # of a thread, in one access to staged shared memory
# Of a warp for a byte of a staged row beside converting and moving (addresses, fences, barrier): 22 for 128 bytes on average over
# kernels compiled for three architectures, 18 to 24.
STAGING_INSTRUCTIONS = 0.175


@dataclass(frozen=True)
class KTileWork:
    """Of one CTA for one k tile.

    flops:         multiplications and additions.
    operand_reads: bytes of shared memory that the MMA, or what loads its registers, reads; of scales what is copied on.
    operand_bytes: bytes of A and B, and of their scales, that are written to this CTA's shared memory, by TMA or by copying warps.
    l2_bytes:      the same after multicast: what the cluster fetches, shared out among its CTAs.
    """

    flops: int
    operand_reads: int
    operand_bytes: int
    l2_bytes: float

    @property
    def smem_bytes(self) -> int:
        """Of shared memory, in the direction that is busier: reads and writes do not wait for each other."""
        return max(self.operand_reads, self.operand_bytes)


@dataclass(frozen=True)
class DrainWork:
    """Of one CTA for one tile.

    staged_in, staged_out: bytes of C, and of D and other outputs, that TMA moves by way of shared memory: written and read once.
    loads, stores:  bytes of all of them from and to the L2.
    tmem_bytes:     of accumulators, from tensor memory to registers.
    conversions:    warp instructions that round two accumulators per thread.
    instructions:   of warps, these among them, without mixins; an estimate.
    """

    staged_in: int
    staged_out: int
    loads: int
    stores: int
    tmem_bytes: int
    conversions: int
    instructions: int

    @property
    def smem_bytes(self) -> int:
        """Of shared memory, in either direction: what is staged is written and read once."""
        return self.staged_in + self.staged_out


def line_bytes(spec: GemmSpec) -> tuple[int, int]:
    """A row of A's and a column of B's k tile."""
    assert spec.config.tile_k is not None
    a, b, *_ = spec.operands
    return a.dtype.bytes_of(spec.config.tile_k), b.dtype.bytes_of(spec.config.tile_k)


def loaded_columns(spec: GemmSpec) -> int:
    """Columns of B that one CTA loads: half of those that a pair shares."""
    return spec.config.tile_n // (2 if spec.config.is_pair else 1)


def k_tile_work(tuning: Tuning, spec: GemmSpec) -> KTileWork:
    """tuning: of the spec's arch; the spec's tile_k is filled in."""
    config, (a_line, b_line) = spec.config, line_bytes(spec)
    assert config.tile_k is not None
    a_scales, b_scales = (blocks * BLOCK_BYTES for blocks in scale_blocks(spec.operands, config))
    a_bytes, b_bytes = config.cta_tile_m * a_line + a_scales, config.tile_n * b_line + b_scales
    return KTileWork(
        flops=2 * config.cta_tile_m * config.tile_n * config.tile_k,
        operand_reads=tuning.operand_reads(spec) + a_scales + b_scales,
        operand_bytes=a_bytes + loaded_columns(spec) * b_line + b_scales,
        l2_bytes=a_bytes / config.cluster_n + b_bytes / config.cluster_m,
    )


def drain_work(spec: GemmSpec) -> DrainWork:
    """With C and the tiles of mixins, whose own instructions are not counted."""
    elements = spec.config.cta_tile_m * spec.config.tile_n
    outputs = output_layouts(spec.operands, spec.epilogue)
    c = [spec.operands.c] if spec.operands.c is not None else []
    inputs = [*c, *tile_layouts(spec.epilogue, PortKind.TILE_INPUT)]
    has_tmem = ARCHES[spec.arch].execution.tmem_bytes > 0
    return DrainWork(
        staged_in=sum(tile_bytes(elements, x) for x in c if x.is_tma),
        staged_out=sum(tile_bytes(elements, x) for x in outputs if x.is_tma),
        loads=sum(tile_bytes(elements, x) for x in inputs),
        stores=sum(tile_bytes(elements, x) for x in outputs),
        tmem_bytes=4 * elements if has_tmem else 0,
        conversions=sum(elements // 64 for x in outputs if x.dtype.bits < 32),
        instructions=drain_instructions(spec, outputs, inputs, has_tmem),
    )


def tile_bytes(elements: int, tile: OperandSpec) -> int:
    """Of a tile with so many accumulators."""
    return elements * tile.dtype.bytes // (2 if tile.is_halved else 1)


def drain_instructions(
    spec: GemmSpec, outputs: Sequence[OperandSpec], inputs: Sequence[OperandSpec], has_tmem: bool
) -> int:
    """Per warp of 32 threads: a conversion for two elements of an output, an addition and a conversion for each of an input, an
    access for 16 bytes or, where TMA cannot go, for an element."""
    config, budget = spec.config, budget_of(spec)
    elements = config.cta_tile_m * config.tile_n
    count = 0.0
    for tile in (*outputs, *inputs):
        count += elements / 32 * (tile.dtype.bytes / ACCESS_BYTES if tile.is_tma else 1)
    for output in outputs:
        count += elements / 64 if output.dtype.bits < 32 else 0
    for tile in inputs:
        count += elements / 32 * (2 if tile.dtype.bits < 32 else 1)
    row_bytes = sum(tile_bytes(budget.epi_n, output) for output in outputs)
    subtiles = 4 * elements / (budget.slab_m * budget.epi_n)  # four warps drain one
    return round(count + subtiles * (STAGING_INSTRUCTIONS * row_bytes + (2 if has_tmem else 0)))
