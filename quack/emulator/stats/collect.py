"""The observer: what each hook of the machine adds to the counts of the kernel that runs.

A region is counted where its first instruction executes, in the warp that does; a warp's counts join those of its kernel when
it exits, or when the launch ends or fails.
"""

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

from ..asynchrony import AsyncOp
from ..barriers import ClusterBarrier, Mbarrier, NamedBarrier
from ..memory import SHARED_RESERVED
from ..observer import Access, Observer, Proxy
from ..program import Execute, Program
from ..ptx import Instruction
from ..warp import Wait
from .banks import transactions_of_warp
from .kernel import MATRICES, Barrier, KernelStats, Multiplication, Shape, Site
from .regions import Phase, tool_of, wait_of
from .report import as_dict, report
from .tiles import Tiles

_ENGINES = {"tma load": "TMA", "tma store": "TMA", "bulk load": "bulk", "bulk store": "bulk"}
_ENGINES |= {"wgmma": "MMA operands", "tcgen05.mma": "MMA operands"}
_LANES = tuple(range(32))


class _Live:
    """Counts of a warp that runs. before: at its last MMA; after: at its last store since then, empty if there was none."""

    __slots__ = ("after", "before", "counts", "epilogue")

    def __init__(self, size: int) -> None:
        self.counts = [0] * size
        self.before = self.counts.copy()
        self.after: list[int] = []
        self.epilogue = np.zeros(size, np.int64)

    def multiplied(self) -> None:
        """An MMA was issued."""
        self.close()
        self.before = self.counts.copy()

    def stored(self) -> None:
        """A store was executed."""
        self.after = self.counts.copy()

    def close(self) -> None:
        """An epilogue that had begun is over."""
        if self.after:
            self.epilogue += np.array(self.after) - np.array(self.before)
            self.after = []


class Stats(Observer):
    """Counts over all launches that it observes; `report()` and `as_dict()` at any time."""

    kernel: KernelStats  # of the current launch, as are its tiles
    tiles: Tiles

    def __init__(self) -> None:
        self.kernels: dict[Program, KernelStats] = {}
        # Of the current launch:
        self.live: dict[Any, _Live] = {}
        self.blocked: set[tuple[Any, int]] = set()
        self.acquired: Any = None
        self.loading: set[AsyncOp] = set()

    # ---- launches and instructions ------------------------------------------------------------------------------------

    def instrument(self, machine: Any, code: list[Any]) -> list[Any]:
        self._settle()
        program, shape = machine.program, machine.shape
        if program not in self.kernels:
            self.kernels[program] = KernelStats(program)
        kernel = self.kernel = self.kernels[program]
        grid, block, cluster = ((d.x, d.y, d.z) for d in (shape.grid, shape.block, shape.cluster))
        kernel.shapes[Shape(grid, block, cluster, shape.dynamic_smem)] += 1
        self.live = defaultdict(functools.partial(_Live, len(kernel.regions)))
        self.blocked, self.loading, self.tiles = set(), set(), Tiles(kernel)
        wrapped = list(code)
        for number, region in enumerate(kernel.regions):
            instruction, execute = program.instructions[region.first], code[region.first]
            if tool_of(instruction.opcode) == "mma":
                execute = self.tiles.counting(execute, instruction)
            if wait_of(instruction.opcode) is not None:
                wrapped[region.first] = self._waiting(execute, instruction, number)
            else:
                wrapped[region.first] = self._counting(execute, number, region.phase)
        return wrapped

    def _counting(self, execute: Execute, number: int, phase: Phase) -> Execute:
        live = self.live
        mark = {Phase.MULTIPLY: _Live.multiplied, Phase.STORE: _Live.stored}.get(phase)

        def run(w: Any) -> Any:
            result = execute(w)
            if result.__class__ is not Wait:
                warp = live[w]
                warp.counts[number] += 1
                if mark is not None:
                    mark(warp)
            return result

        return run

    def _waiting(self, execute: Execute, instruction: Instruction, number: int) -> Execute:
        live, blocked, waits = self.live, self.blocked, self.kernel.waits
        group: Barrier = (wait_of(instruction.opcode) or "", 0)
        index = instruction.index

        def run(w: Any) -> Any:
            self.acquired = None
            result = execute(w)
            if result.__class__ is Wait:
                blocked.add((w, index))
                return result
            live[w].counts[number] += 1
            barrier = _barrier(self.acquired) or group
            found = waits.setdefault((barrier, w.number, index), [0, 0])
            found[(w, index) in blocked] += 1
            blocked.discard((w, index))
            return result

        return run

    def finish(self, machine: Any) -> None:
        self._settle()
        self.kernel.completed += 1

    def warp_exit(self, warp: Any) -> None:
        if warp in self.live:
            self._settle_warp(warp, self.live.pop(warp))

    def _settle(self) -> None:
        """Add up the warps that have not exited."""
        while self.live:
            self._settle_warp(*self.live.popitem())

    def _settle_warp(self, warp: Any, live: _Live) -> None:
        live.close()
        kernel = self.kernel
        kernel.ctas += warp.number == 0
        kernel.counts[warp.number] = kernel.counts.get(warp.number, 0) + np.array(live.counts)
        kernel.epilogue[warp.number] = kernel.epilogue.get(warp.number, 0) + live.epilogue

    # ---- barriers -----------------------------------------------------------------------------------------------------

    def acquire(self, actor: Any, sync: Any, relaxed: bool = False) -> None:
        self.acquired = sync

    def release(self, actor: Any, sync: Any, relaxed: bool = False) -> None:
        barrier = _barrier(sync)
        if barrier is not None:
            self.kernel.arrivals[barrier, actor.kind if actor.__class__ is AsyncOp else actor.number] += 1

    def barrier_init(self, warp: Any, barrier: Any) -> None:
        self.kernel.expected[_mbarrier(barrier)] = barrier.count

    # ---- memory -------------------------------------------------------------------------------------------------------

    def shared(self, actor: Any, cta: Any, offsets: Any, size: int, access: Access, proxy: Proxy) -> None:
        traffic = self.kernel.traffic
        if actor.__class__ is AsyncOp:
            means = _ENGINES.get(actor.kind, actor.kind)
            traffic["shared", means, _direction(access)] += len(offsets) * size
            return
        site = actor.instruction
        tool = site.opcode.partition(".")[0]
        is_matrix = tool in ("ldmatrix", "stmatrix")
        lanes: Sequence[int] = _LANES[: len(offsets)] if is_matrix or len(offsets) == 1 else actor.lanes
        if len(lanes) != len(offsets) or size > 16:
            traffic["shared", "ld, st", _direction(access)] += len(set(offsets.tolist())) * size
            return
        needed = transactions_of_warp(offsets, lanes, 16 if is_matrix else size)
        means = MATRICES if is_matrix else "ld, st" if cta is actor.cta else "ld, st, other CTA"
        traffic["shared", means, _direction(access)] += needed.distinct * size
        if (is_matrix or tool in ("ld", "st")) and cta is actor.cta:
            counted = self.kernel.sites.setdefault(site.index, Site())
            counted.accesses += 1
            counted.ideal += needed.ideal
            counted.actual += needed.actual

    def global_memory(self, actor: Any, addresses: Any, size: int, access: Access, proxy: Proxy) -> None:
        if actor.__class__ is AsyncOp:
            if actor in self.loading:
                return
            if len(actor.remaining) > 1 and access is Access.READ:  # a multicast load reads once for all destinations
                self.loading.add(actor)
            means, count = _ENGINES.get(actor.kind, actor.kind), len(addresses)
        else:
            means = "TMA descriptors" if proxy is Proxy.TENSORMAP else "ld, st"
            count = 1 if len(addresses) == 1 else len(set(addresses.tolist()))
        self.kernel.traffic["global", means, _direction(access)] += count * size

    def tensor_memory(self, actor: Any, cta: Any, lanes: Any, columns: Any, access: Access) -> None:
        cells = (lanes.stop - lanes.start) * (columns.stop - columns.start)
        means = actor.kind if actor.__class__ is AsyncOp else "tcgen05"
        self.kernel.traffic["tensor", means, _direction(access)] += 4 * cells

    # ---- operations ---------------------------------------------------------------------------------------------------

    def issue(self, op: Any) -> None:
        if op.kind == "wgmma":
            self.kernel.multiplications[Multiplication.of(op.site.opcode)] += 1
        elif op.kind == "tcgen05.mma":
            self.tiles.tcgen05(op)

    def wgmma_issue(self, warp: Any, op: Any, accumulators: list[int], operands: list[int]) -> None:
        if warp is op.issuer:
            self.tiles.wgmma(op, accumulators[0])

    def complete(self, op: AsyncOp) -> None:
        self.loading.discard(op)

    # ---- results ------------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Everything, of types that JSON has."""
        self._settle()
        return {"kernels": [as_dict(kernel) for kernel in self.kernels.values()]}

    def report(self) -> str:
        """Tables, at most 110 columns wide."""
        self._settle()
        return "\n\n".join(map(report, self.kernels.values())) or "no kernel was launched"


def _mbarrier(barrier: Mbarrier) -> Barrier:
    return "mbarrier", barrier.offset - SHARED_RESERVED


def _barrier(sync: Any) -> Optional[Barrier]:
    if isinstance(sync, Mbarrier):
        return _mbarrier(sync)
    if isinstance(sync, NamedBarrier):
        return "barrier", sync.number
    return ("cluster barrier", 0) if isinstance(sync, ClusterBarrier) else None


def _direction(access: Access) -> str:
    return "atomic" if access is Access.ATOMIC else "read" if access.is_read else "written"
