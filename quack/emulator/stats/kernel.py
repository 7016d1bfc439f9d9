"""What is counted of one kernel, and what follows from the counts: opcodes, roles, MMAs, flops, work for a roofline."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import numpy as np

from ..program import Program
from .regions import find_regions, tool_of
from .roles import Role, find_roles

MATRICES = "ldmatrix, stmatrix"  # as means of `KernelStats.traffic`
Barrier = tuple[str, int]  # ("mbarrier", offset in shared memory), ("barrier", number), ("cluster barrier", 0), ...


class Shape(NamedTuple):
    """Of a launch."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    dynamic_smem: int

    def __str__(self) -> str:
        grid, block, cluster = ("x".join(map(str, x)) for x in (self.grid, self.block, self.cluster))
        return f"grid {grid}, block {block}, cluster {cluster}, {self.dynamic_smem:,} bytes of dynamic shared memory"


class Multiplication(NamedTuple):
    """A kind of MMA instruction; flops of one."""

    name: str
    flops: int

    @classmethod
    def of(cls, opcode: str) -> "Multiplication":
        """Of wgmma and mma.sync, whose opcodes tell it all."""
        m, n, k = extent(opcode)
        shape = f"m{m}n{n}k{k}"
        parts = opcode.split(".")
        types = [p for p in parts[parts.index(shape) + 1 :] if p not in ("row", "col", "satfinite", "block_scale")]
        return cls(f"{parts[0]} {shape} {'.'.join(types)}", 2 * m * n * k)


def extent(opcode: str) -> tuple[int, int, int]:
    """(m, n, k) of a wgmma or mma.sync."""
    m, n, k = re.findall(r"\.m(\d+)n(\d+)k(\d+)\.", opcode)[0]
    return int(m), int(n), int(k)


@dataclass
class Site:
    """Accesses to shared memory by one instruction."""

    accesses: int = 0
    ideal: int = 0
    actual: int = 0

    @property
    def excess(self) -> int:
        return self.actual - self.ideal


class KernelStats:
    """Counts of one kernel. `counts`, `epilogue`: warp number -> executions of each region, in all and in the epilogue.

    traffic: (space, means, "read" | "written" | "atomic") -> bytes. waits: (barrier, warp number, instruction) ->
    [found complete, had to block]. arrivals: (barrier, warp number or kind of operation) -> arrivals or completions. ctas:
    that ran (a kernel may cancel some of its grid). tiles: accumulations started from zero by one warpgroup (wgmma), CTA or
    pair (tcgen05) or warp (mma), more than output tiles where sums are promoted; elements: of all their accumulators.
    """

    def __init__(self, program: Program) -> None:
        self.program, self.regions = program, find_regions(program)
        self.sizes = np.array([r.end - r.first for r in self.regions])
        self.shapes: Counter[Shape] = Counter()
        self.ctas = self.completed = 0
        self.counts: dict[int, np.ndarray] = {}
        self.epilogue: dict[int, np.ndarray] = {}
        self.waits: dict[tuple[Barrier, int, int], list[int]] = {}
        self.arrivals: Counter[tuple[Barrier, Any]] = Counter()
        self.expected: dict[Barrier, int] = {}
        self.traffic: Counter[tuple[str, str, str]] = Counter()
        self.sites: dict[int, Site] = {}
        self.multiplications: Counter[Multiplication] = Counter()
        self.tiles = self.elements = 0

    @property
    def launches(self) -> int:
        return sum(self.shapes.values())

    @property
    def roles(self) -> list[Role]:
        return find_roles(self.program, self.counts)

    def executions(self, warps: Optional[Iterable[int]] = None) -> np.ndarray:
        """Of each region, by warps of these numbers, or by all."""
        numbers = self.counts if warps is None else warps
        return sum((self.counts[number] for number in numbers), np.zeros_like(self.sizes))

    def instructions(self, warps: Optional[Iterable[int]] = None) -> int:
        """Executed by warps of these numbers, or by all."""
        return int(self.executions(warps) @ self.sizes)

    def opcodes(self, warps: Optional[Iterable[int]] = None) -> Counter[str]:
        """Instructions by full opcode."""
        found: Counter[str] = Counter()
        for i, count in zip(self.program.instructions, np.repeat(self.executions(warps), self.sizes).tolist()):
            if count:
                found[i.opcode] += count
        return found

    @property
    def mma(self) -> Counter[Multiplication]:
        """Of all kinds; those of mma.sync are counted as instructions."""
        found = Counter(self.multiplications)
        for opcode, count in self.opcodes().items():
            if tool_of(opcode) == "mma":
                found[Multiplication.of(opcode)] += count
        return found

    @property
    def flops(self) -> int:
        return sum(m.flops * count for m, count in self.mma.items())

    @property
    def epilogue_instructions(self) -> int:
        """Executed by warps that multiply or read accumulators, from their last MMA of a tile to their last store of it."""
        numbers = [number for role in self.roles if "epilogue" in role.name for number in role.warps]
        return sum(int(self.epilogue[number] @ self.sizes) for number in numbers)

    @property
    def worst_sites(self) -> list[tuple[int, Site]]:
        """`sites`, those with the most bank conflicts first."""
        return sorted(self.sites.items(), key=lambda item: (-item[1].excess, item[0]))

    def bytes(self, space: str, means: str, direction: str) -> int:
        """Of one entry of `traffic`."""
        return self.traffic[space, means, direction]

    def work(self) -> dict[str, int]:
        """What a roofline needs."""
        tensor = ("TMA", "bulk")
        return {
            "mma_flops": self.flops,
            "mma_shared_bytes": sum(self.bytes("shared", means, "read") for means in ("MMA operands", MATRICES)),
            "tma_load_bytes": sum(self.bytes("shared", means, "written") for means in tensor),
            "tma_store_bytes": sum(self.bytes("shared", means, "read") for means in tensor),
            "epilogue_instructions": self.epilogue_instructions,
        }
