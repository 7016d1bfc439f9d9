"""A warp and the paths that its lanes take.

A warp executes one path (a set of lanes with one program counter) at a time, always the one with the lowest program
counter that can run; paths that meet are merged. Each path has registers of its own, so code under divergence needs no
masks except for memory, and a path of one lane runs on plain integers.
"""

from collections.abc import Callable
from itertools import compress, count
from operator import is_not
from typing import Any, Optional

import numpy as np

from .asynchrony import AsyncOp, ThreadGroups
from .barriers import NamedBarrier
from .errors import EmulationError, Misuse
from .geometry import Dim3
from .memory import SHARED_RESERVED
from .values import LANE, LANES, Value, where

NEVER = 1 << 60  # a program counter that no path reaches
SWITCHED = NEVER + 1  # what an instruction returns after it changed the running path
YIELDED = NEVER + 2  # what it returns if others shall run before the next instruction
ALL_LANES = np.ones(LANES, bool)
QUANTUM = 4096  # instructions that a warp, or one of its paths, runs before others get their turn


class Wait:
    """Why a warp does not run. `is_soft`: it may be resumed without success (mbarrier.try_wait times out)."""

    __slots__ = ("is_soft", "on", "ready")

    def __init__(self, ready: Callable[[], bool], on: str, is_soft: bool = False) -> None:
        self.ready, self.on, self.is_soft = ready, on, is_soft


class NotConverged(Exception):
    """An instruction needs lanes of other paths of the warp: the running path stops until they come here or exit."""

    def __init__(self, warp: Any, members: np.ndarray) -> None:
        path = warp.path
        self.wait = Wait(
            lambda: not any((p.mask & members).any() for p in warp.paths if p is not path),
            "lanes of the same warp that have not come here",
        )


class Path:
    """Lanes of a warp that share a program counter."""

    __slots__ = ("first", "is_full", "lanes", "mask", "origin", "pc", "regs", "wait")

    def __init__(self, pc: int, mask: np.ndarray, regs: list[Value]) -> None:
        self.pc, self.mask, self.regs = pc, mask, regs
        self.lanes: list[int] = np.flatnonzero(mask).tolist()
        self.first = self.lanes[0]
        self.is_full = len(self.lanes) == LANES
        # What a register held before it was narrowed to this path's only lane: index -> (narrowed, row).
        self.origin: dict[int, tuple[Value, Value]] = {}
        self.wait: Optional[Wait] = None

    def narrow(self) -> None:
        """Turn rows into plain integers; the path has one lane."""
        lane, regs = self.first, self.regs
        for i, value in enumerate(regs):
            if value.__class__ is np.ndarray:
                narrow = value.item(lane)
                self.origin[i] = (narrow, value)
                regs[i] = narrow


class Warp:
    """One warp. `regs`, `mask`, `lanes`, `first`, `is_full` are those of the path that runs."""

    def __init__(self, machine: Any, cta: Any, number: int, uid: int) -> None:
        self.machine, self.cta, self.number, self.uid = machine, cta, number, uid
        program = machine.program
        thread = number * LANES + LANE
        block = machine.shape.block
        live = thread < block.size
        self.paths = [Path(0, live, program.initial_registers(self.specials(thread), cta.symbols))]
        self.path = self.paths[0]
        self.enter(self.path)
        self.join = NEVER
        self.streak = 0  # instructions since the running path was chosen
        self.is_done = False
        self.is_waiting = False
        self.instructions = 0
        self.wgmma_open: list[AsyncOp] = []
        self.wgmma_groups: list[list[AsyncOp]] = []
        self.bulk_groups = ThreadGroups(remembers=machine.observer is not None)
        self.copy_groups = ThreadGroups(remembers=machine.observer is not None)
        self.cluster_generation: Optional[int] = None
        self.named_ticket: Optional[tuple[NamedBarrier, int]] = None
        self.local: Optional[np.ndarray] = None
        self.state: dict[str, Any] = {}  # private state of instruction families (register budget, ...)

    def specials(self, thread: np.ndarray) -> dict[str, Value]:
        """Values of the special registers."""
        shape, cta = self.machine.shape, self.cta
        block, grid, cluster = shape.block, shape.grid, cta.cluster.dims
        warps = -(-block.size // LANES)
        values: dict[str, Value] = {
            "%tid.x": thread % np.uint32(block.x),
            "%tid.y": thread // np.uint32(block.x) % np.uint32(block.y),
            "%tid.z": thread // np.uint32(block.x * block.y),
            "%laneid": LANE,
            "%warpid": self.number,
            "%nwarpid": warps,
            "%cluster_ctarank": cta.rank,
            "%cluster_nctarank": cluster.size,
            "%smid": cta.cluster.slot * shape.cluster.size + cta.rank,
            "%nsmid": self.machine.sms,
            "%gridid": 0,
            "%is_explicit_cluster": cluster.size > 1,
            "%dynamic_smem_size": shape.dynamic_smem,
            "%total_smem_size": -(-(cta.smem.size - SHARED_RESERVED) // 128) * 128,
            "%lanemask_eq": np.uint32(1) << LANE,
            "%lanemask_lt": (np.uint32(1) << LANE) - np.uint32(1),
            "%lanemask_le": np.uint32(0xFFFFFFFF) >> (np.uint32(31) - LANE),
            "%lanemask_gt": ~(np.uint32(0xFFFFFFFF) >> (np.uint32(31) - LANE)),
            "%lanemask_ge": ~((np.uint32(1) << LANE) - np.uint32(1)),
        }
        inside = cluster.position(cta.rank)
        clusters = Dim3(grid.x // cluster.x, grid.y // cluster.y, grid.z // cluster.z)
        for name, dims in {
            "%ntid": block, "%ctaid": cta.index, "%nctaid": grid, "%clusterid": cta.cluster.index,
            "%nclusterid": clusters, "%cluster_ctaid": inside, "%cluster_nctaid": cluster,
        }.items():  # fmt: skip
            values |= {f"{name}.x": dims.x, f"{name}.y": dims.y, f"{name}.z": dims.z}
        if block.y == block.z == 1:
            values["%tid.y"] = values["%tid.z"] = 0
        return values

    # ---- paths --------------------------------------------------------------------------------------------------------

    def enter(self, path: Path) -> None:
        """Make `path` the one that runs."""
        self.path = path
        self.regs, self.mask, self.lanes = path.regs, path.mask, path.lanes
        self.first, self.is_full = path.first, path.is_full

    def split(self, taken: np.ndarray, target: int) -> None:
        """The lanes of `taken` go on at `target`, the others at the next instruction."""
        path = self.path
        rest = Path(path.pc + 1, path.mask & ~taken, list(path.regs))
        jump = Path(target, taken, path.regs)
        for part in (rest, jump):
            part.origin = dict(path.origin)
            if len(part.lanes) == 1:
                part.narrow()
        self.paths.remove(path)
        self.paths += [rest, jump]
        self.switch()

    def switch(self) -> None:
        """Merge paths that met and enter the one with the lowest program counter that can run."""
        self._merge()
        runnable = [p for p in self.paths if p.wait is None or p.wait.ready()]
        path = min(runnable or self.paths, key=lambda p: p.pc)
        self.enter(path)
        self.join = min((p.pc for p in self.paths if p is not path), default=NEVER)
        self.streak = 0

    def _take_turns(self) -> None:
        """The running path may spin on what another one of this warp will do: let that run for a while."""
        self.paths.remove(self.path)
        self.paths.append(self.path)
        path = next(p for p in self.paths if p is self.path or p.wait is None or p.wait.ready())
        path.wait = None
        self.enter(path)
        self.join, self.streak = NEVER, 0

    def _merge(self) -> None:
        by_pc: dict[int, Path] = {}
        for path in self.paths:
            other = by_pc.get(path.pc)
            by_pc[path.pc] = path if other is None else self._merged(other, path)
        self.paths = list(by_pc.values())

    def _merged(self, left: Path, right: Path) -> Path:
        bits = self.machine.program.slot_bits
        regs = list(left.regs)
        for i in compress(count(), map(is_not, left.regs, right.regs)):
            x, y = left.regs[i], right.regs[i]
            # A value that was only narrowed to a path's lane is still the row it came from.
            if i in left.origin and left.origin[i][0] is x:
                x = left.origin[i][1]
            if i in right.origin and right.origin[i][0] is y:
                y = right.origin[i][1]
            regs[i] = x if x is y else where(right.mask, y, x, bits[i])
        # What either waited for may be the other one: the instruction runs again and decides.
        return Path(left.pc, left.mask | right.mask, regs)

    def exit_path(self) -> None:
        """The running path reached `ret` or `exit`."""
        self.paths.remove(self.path)
        if self.paths:
            self.switch()
        else:
            self.is_done = True

    def drop(self, lanes: np.ndarray) -> None:
        """Some lanes of the running path exit; the others go on at the next instruction."""
        path = self.path
        rest = Path(path.pc + 1, path.mask & ~lanes, path.regs)
        rest.origin = path.origin
        if len(rest.lanes) == 1:
            rest.narrow()
        self.paths[self.paths.index(path)] = rest
        self.switch()

    def read_registers(self, slots: list[int]) -> list[Value]:
        """Values in all lanes, on behalf of an asynchronous operation, whatever paths the warp has now."""
        if len(self.paths) == 1 and not self.paths[0].origin:
            return [self.paths[0].regs[slot] for slot in slots]
        bits = self.machine.program.slot_bits
        values: list[Value] = []
        for slot in slots:
            value: Value = None
            for path in self.paths:
                own = path.regs[slot]
                narrowed = path.origin.get(slot)
                if narrowed is not None and narrowed[0] is own:
                    own = narrowed[1]
                value = own if value is None or own is value else where(path.mask, own, value, bits[slot])
            values.append(value)
        return values

    def write_register(self, slot: int, value: Value) -> None:
        """Write on behalf of an asynchronous operation, in whatever paths the warp has now."""
        for path in self.paths:
            path.regs[slot] = value
            path.origin.pop(slot, None)

    # ---- running ------------------------------------------------------------------------------------------------------

    def run(self, quantum: int) -> int:
        """Execute until the warp blocks, exits, yields or has executed `quantum` instructions; returns how many."""
        code = self.machine.code
        left = quantum
        if self.path.wait is not None and len(self.paths) > 1:
            self.switch()
        path = self.path
        path.wait = None
        while left > 0:
            left -= 1
            try:
                jump = code[path.pc](self)
            except NotConverged as stop:
                jump = stop.wait
            except EmulationError as error:
                self.machine.annotate(error, self)
                raise
            except (ValueError, NotImplementedError) as error:  # from descriptors, formats and TMA boxes
                misuse = Misuse(str(error))
                self.machine.annotate(misuse, self)
                raise misuse from error
            if jump is None:
                path.pc += 1
            elif jump is YIELDED:
                path.pc += 1
                quantum, left = quantum - left, 0
                self.streak = QUANTUM
            elif jump is SWITCHED:
                if self.is_done:
                    break
                path = self.path
                path.wait = None
                continue
            elif jump.__class__ is Wait:
                path.wait = jump
                if len(self.paths) == 1:
                    break
                self.switch()
                path = self.path
                if path.wait is not None and not path.wait.ready():
                    break
                path.wait = None
                continue
            else:
                path.pc = jump
            if path.pc >= self.join:
                self.switch()
                path = self.path
                path.wait = None
        self.instructions += quantum - left
        self.streak += quantum - left
        if self.streak >= QUANTUM and len(self.paths) > 1 and left <= 0:
            self._take_turns()
        return quantum - left

    @property
    def is_ready(self) -> bool:
        """Whether some path can run."""
        return any(path.wait is None or path.wait.ready() for path in self.paths)

    @property
    def instruction(self) -> Any:
        """The instruction that the running path is at."""
        return self.machine.program.instructions[self.path.pc]

    def __str__(self) -> str:
        x = self.cta.index
        return f"warp {self.number} of CTA ({x.x},{x.y},{x.z})"
