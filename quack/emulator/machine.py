"""The machine: CTAs and clusters of one launch, and the loop that runs their warps to completion."""

from typing import Any, Optional

import numpy as np

from .asynchrony import EAGER, AsyncOp, PendingOps, Schedule
from .barriers import ClusterBarrier, Mbarrier, NamedBarrier
from .cluster_queue import ClusterQueue, Place
from .errors import Deadlock, EmulationError, IllegalAccess, Misuse
from .geometry import Dim3, LaunchShape
from .memory import LOCAL_WINDOW, OFFSET_MASK, RANK_SHIFT, SHARED_RESERVED, GlobalMemory, SharedMemory
from .observer import Observer
from .program import Program
from .values import LANES
from .warp import QUANTUM, Warp

# Passes over all warps without any visible effect before warps that still execute instructions count as stuck.
IDLE_PASSES = 64


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
    """CTAs that share a cluster barrier and each other's shared memory. `slot`: the first of the residency slots that it occupies,
    of which each holds a regular cluster."""

    def __init__(self, machine: "Machine", place: Place, slot: int) -> None:
        self.machine, self.index, self.slot = machine, place.index, slot
        self.dims = dims = place.dims
        self.size = dims.size
        origin = tuple(place.origin)
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
        self.waiting = ClusterQueue(shape, self.random)
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
        size = self.shape.cluster.size
        while (free := self._free_slots()) and (place := self.waiting.start(len(free) * size)) is not None:
            self.resident.append(Cluster(self, place, free[0]))

    @property
    def slots(self) -> int:
        """Regular clusters that the SMs hold at once; of a preferred one, at least its own."""
        size, least = self.shape.cluster.size, self.shape.preferred or self.shape.cluster
        return max(self.sms, least.size) // size

    def _free_slots(self) -> range:
        """The first run of them that a cluster may take."""
        size = self.shape.cluster.size
        used = {cluster.slot + i for cluster in self.resident for i in range(cluster.size // size)}
        most = (self.shape.preferred or self.shape.cluster).size // size
        first = next((slot for slot in range(self.slots) if slot not in used), self.slots)
        end = next((slot for slot in range(first, self.slots) if slot in used), self.slots)
        return range(first, min(end, first + most))

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
