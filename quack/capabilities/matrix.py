"""From cells to verdicts: is there a configuration with which `legality` admits all kernels of the cell?"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Optional

from ..arch import ARCHES
from ..heuristics.model import tuning_of, with_tile
from ..runtime.legality import Legality, legality
from ..runtime.spec import GemmSpec
from .axes import AXES, COMMITS, Cell, base_spec

USUAL = Cell("sm_90a", "bf16", "dense", "default", "none")


@dataclass(frozen=True)
class Verdict:
    """kernels: one legal choice of what the cell compiles, empty if refused. alternative: what the reason suggests;
    nearest: the cell that is legal with the fewest coordinates changed."""

    cell: Cell
    kernels: tuple[GemmSpec, ...] = ()
    reason: Optional[str] = None
    alternative: Optional[str] = None
    nearest: Optional[Cell] = None

    @property
    def ok(self) -> bool:
        return bool(self.kernels)


def cells(arches: Iterable[str] = AXES["arch"]) -> Iterator[Cell]:
    """Every cell of these architectures. Accumulation is one axis of nothing where the instruction is precise by itself."""
    for arch, *others in itertools.product(arches, *list(AXES.values())[1:]):
        cell = Cell(arch, *others)
        if not (cell.inputs == "e4m3 precise" and ARCHES[arch].execution.precise_fp8):
            yield cell


def judge(cell: Cell) -> Verdict:
    """Legal with the first of the heuristics' tiles and clusters that is, or refused for what most of them are refused for."""
    found, refusal = _kernels(cell)
    if refusal is None:
        return Verdict(cell, found)
    return Verdict(cell, (), refusal.reason, refusal.alternative, nearest(cell))


@functools.cache
def _kernels(cell: Cell) -> tuple[tuple[GemmSpec, ...], Optional[Legality]]:
    base, refusals = base_spec(cell), []
    tuning = tuning_of(cell.arch)
    for tile in _tiles(cell, base):
        # The refusal of this tile with the fewest CTAs, of its parts rather than of the whole.
        simplest: list[tuple[tuple[bool, int], Legality]] = []
        for cluster in tuning.clusters_of(base, "M" in cell.adapter):
            whole = with_tile(base, tile, cluster)
            refusal = Legality() if cell.commit == "symmetric" else legality(whole)  # as calls ask before they split
            is_whole = not refusal.ok
            if refusal.ok:
                kernels = COMMITS[cell.commit](whole)
                refusal = next((verdict for verdict in map(legality, kernels) if not verdict.ok), refusal)
            if refusal.ok:
                return kernels, None
            if not ARCHES[cell.arch].has_kernel:
                return (), refusal
            simplest.append(((is_whole, cluster[0] * cluster[1]), refusal))
        refusals.append(min(simplest, key=lambda found: found[0])[1])
    # Tiles are refused with numbers of their own, the cell for what is left when these are taken away.
    kinds = Counter(re.sub(r"\d+", "#", refusal.reason or "") for refusal in refusals)
    commonest = kinds.most_common(1)[0][0]
    return (), next(r for r in reversed(refusals) if re.sub(r"\d+", "#", r.reason or "") == commonest)


def _tiles(cell: Cell, base: GemmSpec):
    tuning = tuning_of(cell.arch)
    if cell.commit == "symmetric":
        return [(tile, tile, pingpong) for tile, pingpong in tuning.symmetric_tiles]
    return tuning.tiles_of(base)


@functools.cache
def nearest(cell: Cell) -> Optional[Cell]:
    """A legal cell with as few coordinates as possible made usual: epilogue before commit, adapter, inputs and architecture."""
    axes = Cell._fields[::-1]
    for count in range(1, len(axes) + 1):
        for changed in itertools.combinations(axes, count):
            other = cell._replace(**{axis: getattr(USUAL, axis) for axis in changed})
            if other != cell and _kernels(other)[1] is None:
                return other
    return None
