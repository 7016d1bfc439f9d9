"""One line for each thing of an SM that may limit a tile: how much of it a tile takes, at which rate, so how many clocks.

Rates are the chip's, of `quack.arch`: what the hardware does at best. (The times that heuristics predict are of sustained rates.)
"""

import enum
from dataclasses import dataclass
from typing import Optional

from .. import heuristics
from ..arch import ARCHES, FLOPS_OF_BITS, Chip, Figure
from ..heuristics.model import bytes_moved, hides_drain, tuning_of
from ..heuristics.split_k import cluster_tiles
from ..heuristics.work import drain_work, k_tile_work
from ..runtime.spec import GemmShape, GemmSpec


class Resource(enum.Enum):
    """What lines are about: (label, unit)."""

    MMA = ("MMA", "flop")
    SMEM_OPERAND_READS = ("smem: MMA reads A, B", "B")
    SMEM_OPERAND_WRITES = ("smem: A, B written", "B")
    SMEM_STAGED = ("smem: C, D in and out", "B")
    SMEM_CONFLICTS = ("smem: bank conflicts", "clk")
    SMEM = ("smem: reads or writes", "clk")
    SMEM_ONE_PORT = ("smem: if one port", "clk")
    L2_LOADS = ("L2 to SM", "B")
    L2_STORES = ("SM to L2", "B")
    HBM = ("HBM, least", "B")
    TMEM = ("TMEM to registers", "B")
    CONVERSIONS = ("epilogue: conversions", "instr")
    ISSUE = ("epilogue: issue", "instr")

    @property
    def label(self) -> str:
        return self.value[0]

    @property
    def unit(self) -> str:
        return self.value[1]


SMEM_PARTS = (
    Resource.SMEM_OPERAND_READS,
    Resource.SMEM_OPERAND_WRITES,
    Resource.SMEM_STAGED,
    Resource.SMEM_CONFLICTS,
)


@dataclass(frozen=True)
class Amount:
    """Of one CTA: for each k tile, and for each tile besides (its epilogue, and what else comes once)."""

    k_tile: float
    tile: float

    def total(self, k_tiles: int) -> float:
        return k_tiles * self.k_tile + self.tile

    def over(self, rate: float) -> "Amount":
        return Amount(self.k_tile / rate, self.tile / rate)


Counted = dict[Resource, Amount]


@dataclass(frozen=True)
class Line:
    """rate: units per clock and SM. counted: of the compiled kernel, None where nothing can be."""

    resource: Resource
    rate: float
    modelled: Amount
    counted: Optional[Amount] = None

    @property
    def clocks(self) -> Amount:
        return self.modelled.over(self.rate)

    @property
    def counted_clocks(self) -> Optional[Amount]:
        return self.counted.over(self.rate) if self.counted is not None else None


@dataclass(frozen=True)
class Roof:
    """All lines of one configuration. shape: in kernel terms; k_tiles: of a tile; predicted_ns: of the whole GEMM, by the
    heuristics; is_drain_hidden: behind another tile's main loop."""

    spec: GemmSpec
    shape: GemmShape
    lines: tuple[Line, ...]
    k_tiles: int
    predicted_ns: float
    is_drain_hidden: bool

    @property
    def chip(self) -> Chip:
        return ARCHES[self.spec.arch].chip

    @property
    def tflops(self) -> float:
        """Predicted."""
        return self.shape.flops / self.predicted_ns / 1e3

    def line(self, resource: Resource) -> Line:
        return next(line for line in self.lines if line.resource is resource)

    @property
    def main_loop_bound(self) -> Line:
        """The line with the most clocks for a k tile; the MMA where others take as many."""
        return max(self.limits, key=lambda line: line.clocks.k_tile)

    @property
    def drain_bound(self) -> Line:
        """The same of an epilogue alone."""
        return max((x for x in self.limits if x.resource is not Resource.HBM), key=lambda line: line.clocks.tile)

    @property
    def tile_bound(self) -> Line:
        """The same of a whole tile, its epilogue and its main loop side by side."""
        return max(self.limits, key=lambda line: line.clocks.total(self.k_tiles))

    @property
    def limits(self) -> list[Line]:
        """Lines that can limit on their own, the MMA first. Of shared memory the larger of reads and writes: an H200 has moved
        more of both together than 128 bytes a clock (docs/measured_facts.md)."""
        return [line for line in self.lines if line.resource not in (*SMEM_PARTS, Resource.SMEM_ONE_PORT)]


def roof(spec: GemmSpec, shape: GemmShape, counted: Optional[Counted] = None) -> Roof:
    """spec: with a legal configuration, tile_k filled in; shape: in kernel terms; counted: see `count`."""
    chip, config = ARCHES[spec.arch].chip, spec.config
    assert config.tile_k is not None
    modelled = model(spec, shape)
    rates = rates_of(chip, spec.operands.a.dtype.bits)
    if counted is not None:
        counted = counted | shared_memory(counted, rates)
    modelled |= shared_memory(modelled, rates)
    lines = (Line(r, rates[r], modelled[r], counted.get(r) if counted else None) for r in Resource if r in rates)
    return Roof(
        spec,
        shape,
        tuple(lines),
        k_tiles=-(-shape.k // config.tile_k),
        predicted_ns=heuristics.predict_ns(spec, shape, chip.sms),
        is_drain_hidden=hides_drain(spec),
    )


def shared_memory(amounts: Counted, rates: dict[Resource, float]) -> Counted:
    """Clocks of the more of reads and writes, and of both together if one had to wait for the other. What is staged is written
    and read once."""
    reads, writes, staged, conflicts = (amounts[part].over(rates[part]) for part in SMEM_PARTS)
    parts = (reads, writes, staged, conflicts)
    return {
        Resource.SMEM: Amount(max(reads.k_tile, writes.k_tile) + conflicts.k_tile, staged.tile / 2 + conflicts.tile),
        Resource.SMEM_ONE_PORT: Amount(sum(part.k_tile for part in parts), sum(part.tile for part in parts)),
    }


def rates_of(chip: Chip, bits: int) -> dict[Resource, float]:
    """Of one SM, per clock, of what the chip has."""
    hbm = chip[Figure.HBM_BYTES_PER_NS] / chip[Figure.CLOCK_GHZ] / chip.sms
    rates = {
        Resource.MMA: chip[FLOPS_OF_BITS[bits]],
        Resource.SMEM_OPERAND_READS: chip[Figure.SMEM_BYTES_PER_CLK],
        Resource.SMEM_OPERAND_WRITES: chip[Figure.SMEM_BYTES_PER_CLK],
        Resource.SMEM_STAGED: chip[Figure.SMEM_BYTES_PER_CLK],
        Resource.SMEM_CONFLICTS: 1.0,
        Resource.SMEM: 1.0,
        Resource.SMEM_ONE_PORT: 1.0,
        Resource.L2_LOADS: chip[Figure.L2_BYTES_PER_CLK],
        Resource.L2_STORES: chip[Figure.L2_BYTES_PER_CLK],
        Resource.HBM: hbm,
        Resource.TMEM: chip[Figure.TMEM_BYTES_PER_CLK],
        Resource.CONVERSIONS: chip[Figure.CONVERSIONS_PER_CLK] / 32,
        Resource.ISSUE: chip[Figure.ISSUE_PER_CLK],
    }
    return {resource: rate for resource, rate in rates.items() if rate > 0}


def model(spec: GemmSpec, shape: GemmShape) -> Counted:
    """What a tile takes, from the spec alone. HBM: the least that the whole GEMM moves, shared out among the tiles."""
    k_tile, drain = k_tile_work(tuning_of(spec.arch), spec), drain_work(spec)
    ctas = cluster_tiles(shape, spec.config) * spec.config.cluster_m * spec.config.cluster_n
    return {
        Resource.MMA: Amount(k_tile.flops, 0),
        Resource.SMEM_OPERAND_READS: Amount(k_tile.operand_reads, 0),
        Resource.SMEM_OPERAND_WRITES: Amount(k_tile.operand_bytes, 0),
        Resource.SMEM_STAGED: Amount(0, 2 * drain.smem_bytes),
        Resource.SMEM_CONFLICTS: Amount(0, 0),
        Resource.L2_LOADS: Amount(k_tile.l2_bytes, drain.loads),
        Resource.L2_STORES: Amount(0, drain.stores),
        Resource.HBM: Amount(0, shape.batch * bytes_moved(spec, shape) / ctas),
        Resource.TMEM: Amount(0, drain.tmem_bytes),
        Resource.CONVERSIONS: Amount(0, drain.conversions),
        Resource.ISSUE: Amount(0, drain.instructions),
    }
