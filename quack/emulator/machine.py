"""The machine: warps, CTAs and clusters of one launch, and the loop that runs them to completion.

A warp executes one path (a set of lanes with one program counter) at a time, always the one with the lowest program
counter that can run; paths that meet are merged. Each path has registers of its own, so code under divergence needs no
masks except for memory, and a path of one lane runs on plain integers.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress, count
from operator import is_not
from typing import Any, Optional

import numpy as np

from .asynchrony import EAGER, AsyncOp, PendingOps, Schedule, ThreadGroups
from .barriers import ClusterBarrier, Mbarrier, NamedBarrier
from .errors import Deadlock, EmulationError, IllegalAccess, Misuse
from .memory import LOCAL_WINDOW, OFFSET_MASK, RANK_SHIFT, SHARED_RESERVED, GlobalMemory, SharedMemory
from .observer import Observer
from .program import Program
from .values import LANE, LANES, Value, where

NEVER = 1 << 60  # a program counter that no path reaches
SWITCHED = NEVER + 1  # what an instruction returns after it changed the running path
ALL_LANES = np.ones(LANES, bool)
QUANTUM = 4096
# Passes over all warps without any visible effect before warps that still execute instructions count as stuck.
IDLE_PASSES = 64


@dataclass(frozen=True)
class Dim3:
    """Extent or position in a grid."""

    x: int = 1
    y: int = 1
    z: int = 1

    @property
    def size(self) -> int:
        return self.x * self.y * self.z

    def position(self, rank: int) -> "Dim3":
        return Dim3(rank % self.x, rank // self.x % self.y, rank // (self.x * self.y))


@dataclass(frozen=True)
class LaunchShape:
    """Geometry of a launch; `dynamic_smem` in bytes."""

    grid: Dim3
    block: Dim3
    cluster: Dim3 = Dim3()
    dynamic_smem: int = 0


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

    def __init__(self, machine: "Machine", cta: "Cta", number: int, uid: int) -> None:
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
        block, grid, cluster = shape.block, shape.grid, shape.cluster
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
            "%smid": cta.cluster.slot * cluster.size + cta.rank,
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
        merged = Path(left.pc, left.mask | right.mask, regs)
        if left.wait is not None and right.wait is not None:
            merged.wait = left.wait
        return merged

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


class Cta:
    """One CTA of a cluster: shared memory, barriers, and what tcgen05 keeps (`tensor`, made on first use)."""

    def __init__(self, cluster: "Cluster", rank: int, index: Dim3) -> None:
        self.cluster, self.rank, self.index = cluster, rank, index
        machine = cluster.machine
        self.symbols, size = machine.layout_symbols(rank)
        self.smem = SharedMemory(size)
        self.mbarriers: dict[int, Mbarrier] = {}
        self.named_barriers: dict[int, NamedBarrier] = {}
        self.tensor: Any = None
        self.state: dict[str, Any] = {}  # private state of instruction families

    def mbarrier(self, address: int) -> Mbarrier:
        """The barrier object at a window address of this CTA."""
        offset = address & OFFSET_MASK
        barrier = self.mbarriers.get(offset)
        if barrier is None:
            raise Misuse(f"no mbarrier was initialised at smem offset {offset - SHARED_RESERVED} of CTA {self.rank}")
        return barrier


class Cluster:
    """CTAs that share a cluster barrier and each other's shared memory. `slot`: which residency slot it occupies."""

    def __init__(self, machine: "Machine", index: Dim3, slot: int) -> None:
        self.machine, self.index, self.slot = machine, index, slot
        dims = machine.shape.cluster
        self.size = dims.size
        origin = (index.x * dims.x, index.y * dims.y, index.z * dims.z)
        self.ctas: list[Cta] = []
        for rank in range(self.size):
            inside = dims.position(rank)
            self.ctas.append(Cta(self, rank, Dim3(origin[0] + inside.x, origin[1] + inside.y, origin[2] + inside.z)))
        per_cta = -(-machine.shape.block.size // LANES)
        self.warps = [Warp(machine, cta, number, machine.next_uid()) for cta in self.ctas for number in range(per_cta)]
        self.barrier = ClusterBarrier(w.uid for w in self.warps)

    def cta(self, address: int) -> Cta:
        """The CTA whose shared memory a shared::cluster address points into."""
        rank = address >> RANK_SHIFT
        if rank >= self.size:
            raise IllegalAccess(f"shared::cluster address {address:#x} names CTA {rank} of a cluster of {self.size}")
        return self.ctas[rank]


class Machine:
    """One launch.

    parameters: the parameter buffer. sms: bounds how many clusters are resident at once; the others start, in order of
    their index, as resident ones end. observers: see `observer`.
    """

    def __init__(
        self,
        program: Program,
        shape: LaunchShape,
        parameters: bytes,
        memory: GlobalMemory,
        schedule: Schedule = EAGER,
        observer: Optional[Observer] = None,
        sms: int = 132,
    ) -> None:
        self.program, self.shape, self.parameters, self.memory = program, shape, parameters, memory
        self.schedule, self.observer, self.sms = schedule, observer, sms
        self.is_eager = schedule.is_eager
        self.random = schedule.generator()
        self.code = program.code
        self.version = 0  # counts effects that another warp may wait for
        self.instructions = 0
        self.pending = PendingOps()
        self.tickets = 0
        self.uids = 0
        self.module_memory: dict[str, np.ndarray] = {}
        self._check_geometry()
        self._allocate_module_variables()
        dims = shape.cluster
        counts = Dim3(shape.grid.x // dims.x, shape.grid.y // dims.y, shape.grid.z // dims.z)
        self.waiting = deque(counts.position(i) for i in range(counts.size))
        self.resident: list[Cluster] = []

    def _check_geometry(self) -> None:
        shape, kernel = self.shape, self.program.kernel
        for axis in "xyz":
            if getattr(shape.grid, axis) % getattr(shape.cluster, axis):
                raise Misuse(f"grid {shape.grid} is not a multiple of the cluster {shape.cluster}")
        block, cluster = (None if dims is None else Dim3(*dims) for dims in (kernel.block, kernel.cluster))
        if block is not None and (block.size < shape.block.size or (kernel.is_block_required and block != shape.block)):
            raise Misuse(f"launched with {shape.block}, compiled for {block} threads")
        if cluster is not None and cluster != shape.cluster:
            raise Misuse(f"launched with a cluster of {shape.cluster}, compiled for {cluster}")
        if len(self.parameters) < kernel.parameter_bytes:
            raise Misuse(f"{len(self.parameters)} bytes of parameters, the kernel has {kernel.parameter_bytes}")

    def _allocate_module_variables(self) -> None:
        for variable in self.program.variables("global") + self.program.variables("const"):
            data = np.zeros(variable.size + variable.align, np.uint8)
            start = -data.ctypes.data % variable.align
            data = data[start : start + variable.size]
            data[: len(variable.init)] = np.frombuffer(variable.init, np.uint8)
            self.module_memory[variable.name] = data
        if self.module_memory:
            held = list(zip(self.memory.starts, (e - s for s, e in zip(self.memory.starts, self.memory.ends))))
            held += [(data.ctypes.data, data.nbytes) for data in self.module_memory.values()]
            self.memory = GlobalMemory(held)

    def layout_symbols(self, rank: int) -> tuple[dict[str, int], int]:
        """(address of every variable in CTA `rank`, bytes of shared memory)."""
        symbols = {name: data.ctypes.data for name, data in self.module_memory.items()}
        offset, dynamic = SHARED_RESERVED, [v for v in self.program.variables("shared") if v.size == 0]
        for variable in self.program.variables("shared"):
            if variable.size:
                offset = -(-offset // variable.align) * variable.align
                symbols[variable.name] = rank << RANK_SHIFT | offset
                offset += variable.size
        for variable in dynamic:
            start = -(-offset // variable.align) * variable.align
            symbols[variable.name] = rank << RANK_SHIFT | start
            offset = start
        symbols |= {name: LOCAL_WINDOW | start for name, start in self.local_offsets.items()}
        return symbols, offset - SHARED_RESERVED + self.shape.dynamic_smem

    @property
    def local_offsets(self) -> dict[str, int]:
        """Place of every `.local` variable in a lane's local memory."""
        offsets, position = {}, 0
        for variable in self.program.variables("local"):
            position = -(-position // variable.align) * variable.align
            offsets[variable.name] = position
            position += variable.size
        return offsets

    def next_uid(self) -> int:
        self.uids += 1
        return self.uids - 1

    # ---- asynchronous operations --------------------------------------------------------------------------------------

    def submit(self, op: AsyncOp) -> AsyncOp:
        """Issue an operation; in eager mode it completes at once."""
        op.ticket = self.tickets
        self.tickets += 1
        if self.observer is not None:
            self.observer.issue(op)
        if self.is_eager:
            while op.remaining:
                self._step(op)
        else:
            self.pending.add(op)
        return op

    def _step(self, op: AsyncOp) -> None:
        if self.observer is not None:
            self.observer.step(op)
        try:
            op.step()
        except EmulationError as error:
            self.annotate(error, op.issuer, op.site, f"during its {op.kind}")
            raise
        except (ValueError, NotImplementedError) as error:
            misuse = Misuse(str(error))
            self.annotate(misuse, op.issuer, op.site, f"during its {op.kind}")
            raise misuse from error
        self.version += 1
        if op.is_done and self.observer is not None:
            self.observer.complete(op)

    def _advance(self, op: AsyncOp) -> None:
        self._step(op)
        if op.is_done:
            self.pending.finish(op)

    # ---- running ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run the launch to completion."""
        if self.observer is not None:
            self.code = self.observer.instrument(self, self.code)
            self.observer.start(self)
        with np.errstate(all="ignore"):
            self._run_all()
        if self.observer is not None:
            self.observer.finish(self)

    def _run_all(self) -> None:
        self._fill()
        idle, timeouts = 0.0, 0
        while self.resident:
            before = self.version
            ran = self._pass_random() if self.random is not None else self._pass_in_order()
            self._retire()
            if self.version != before:
                idle, timeouts = 0.0, 0
                continue
            idle += 1 if self.random is None else ran / QUANTUM
            if len(self.pending):
                self._advance(self.pending.oldest())
            elif not ran or idle > IDLE_PASSES:
                timeouts += 1
                if idle > 2 * IDLE_PASSES or timeouts > 3 or not self._time_out():
                    raise Deadlock(self.report_deadlock())
        while len(self.pending):
            self._advance(self.pending.oldest())

    def _pass_in_order(self) -> int:
        ran = 0
        for cluster in self.resident:
            for warp in cluster.warps:
                if not warp.is_done and warp.is_ready:
                    ran += self._run(warp, QUANTUM)
        return ran

    def _pass_random(self) -> int:
        """As many steps as there are warps, each of a random warp or pending operation."""
        random = self.random
        assert random is not None
        live = [w for cluster in self.resident for w in cluster.warps if not w.is_done]
        ran = 0
        for _ in range(len(live)):
            if random.random() < 0.25 and len(self.pending):
                self._advance(random.choice(self.pending.heads))
            warp = random.choice(live)
            if not warp.is_done and warp.is_ready:
                ran += self._run(warp, random.randrange(1, 128))
        return ran or sum(self._run(w, QUANTUM) for w in live if not w.is_done and w.is_ready)

    def _run(self, warp: Warp, quantum: int) -> int:
        was_waiting = warp.is_waiting
        if was_waiting and self.observer is not None:
            self.observer.wait_end(warp)
        warp.is_waiting = False
        count = warp.run(quantum)
        self.instructions += count
        if warp.is_done:
            self.version += 1
            if self.observer is not None:
                self.observer.warp_exit(warp)
            if warp.cta.cluster.barrier.leave(warp.uid):
                self.version += 1
        elif warp.path.wait is not None:
            warp.is_waiting = True
            if self.observer is not None:
                self.observer.wait_begin(warp, warp.path.wait)
        return count

    def _time_out(self) -> bool:
        """Let every soft wait end without success; returns whether there was one."""
        found = False
        for cluster in self.resident:
            for warp in cluster.warps:
                for path in warp.paths:
                    if path.wait is not None and path.wait.is_soft:
                        path.wait, found = None, True
                        path.pc += 1
        return found

    def _fill(self) -> None:
        per_sm = 1
        capacity = max(1, self.sms * per_sm // self.shape.cluster.size)
        used = {cluster.slot for cluster in self.resident}
        for slot in range(capacity):
            if not self.waiting:
                return
            if slot not in used:
                self.resident.append(Cluster(self, self.waiting.popleft(), slot))

    def _retire(self) -> None:
        ended = [c for c in self.resident if all(w.is_done for w in c.warps)]
        if not ended:
            return
        self.version += 1
        for cluster in ended:
            if self.observer is not None:
                self.observer.cluster_exit(cluster)
        self.resident = [c for c in self.resident if c not in ended]
        self._fill()

    # ---- reports ------------------------------------------------------------------------------------------------------

    def annotate(self, error: EmulationError, warp: Any, site: Any = None, note: str = "") -> None:
        """Say where an error happened, once."""
        if not getattr(error, "is_located", False):
            error.is_located = True  # type: ignore[attr-defined]
            site = site or warp.instruction
            where_text = f"{warp}, PTX line {site.line}: {site}{' ' + note if note else ''}"
            error.args = (f"{error}\n  at {where_text}\n  in kernel {self.program.kernel.name}",)

    def report_deadlock(self) -> str:
        """Every live warp with its position and what it waits for."""
        lines = ["no warp can run and no asynchronous operation is pending"]
        for cluster in self.resident:
            for warp in cluster.warps:
                for path in warp.paths if not warp.is_done else []:
                    at = self.program.instructions[path.pc]
                    on = path.wait.on if path.wait is not None else "runs without any effect (a spin?)"
                    lanes = "" if path.is_full else f" lanes {path.lanes}"
                    lines.append(f"  {warp}{lanes}, PTX line {at.line}: {at}: {on}")
            for cta in cluster.ctas:
                lines += [
                    f"  {b}: {b.pending} of {b.count} arrivals and {b.transactions} bytes outstanding"
                    for b in cta.mbarriers.values()
                    if b.pending != b.count or b.transactions
                ]
        return "\n".join(lines)
