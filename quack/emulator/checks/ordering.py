"""What happened before what: vector clocks of warps, and sets of completed asynchronous operations.

A warp has a clock that ticks when it publishes something, and `Knowledge`: up to which tick of every other warp, and which
operations, are ordered before its next instruction. Barriers, waits, atomics and fences move knowledge from one warp to
another, as the PTX memory model orders them (8.9, 8.10); what really happened in this run does not matter, so that a
missing wait is found under the eager schedule, too. Operations that are complete form a set, not a clock, because the
completion of one says nothing of those before it. A store by TMA completes twice: its reads, then its writes.

All lanes of a warp count as one: races inside a warp are not seen.
"""

from typing import Any, NamedTuple, Optional

import numpy as np

from ..asynchrony import AsyncOp
from ..barriers import ClusterBarrier, Mbarrier, NamedBarrier
from ..observer import Access, Observer, Proxy
from ..values import LANES

# Rows of the clocks: what happened before; what of it is visible to the async proxy in shared and in global memory (there
# was a fence.proxy.async behind it); what was released, and then acquired, for the tensormap proxy; which mbarrier.init
# are visible in the cluster.
HAPPENED, SHARED, GLOBAL, RELEASED, TENSORMAP, INITIALISED = range(6)
_ROWS = 6
_OP_ROWS = 5

# Operations of one queue and one warp that also run in order of issue: later ones see what earlier ones did.
_PIPELINED = ("tcgen05.mma", "tcgen05.cp", "tcgen05.commit", "cp.async arrive")


class Knowledge(NamedTuple):
    """clocks: (rows, warps), never modified; ops: a bit set for each row but the last, see `flags`."""

    clocks: np.ndarray
    ops: tuple[int, ...]

    def joined(self, other: "Knowledge") -> "Knowledge":
        """What either knows."""
        if other is self:
            return self
        return Knowledge(np.maximum(self.clocks, other.clocks), tuple(a | b for a, b in zip(self.ops, other.ops)))

    def met(self, other: "Knowledge") -> "Knowledge":
        """What both know."""
        return Knowledge(np.minimum(self.clocks, other.clocks), tuple(a & b for a, b in zip(self.ops, other.ops)))

    def with_ops(self, flags: int) -> "Knowledge":
        """Knows that these operations are complete, too."""
        return Knowledge(self.clocks, (self.ops[HAPPENED] | flags, *self.ops[1:]))

    def fenced(self, row: int, source: int = HAPPENED) -> "Knowledge":
        """All of one row is in another one, too: what happened before becomes visible to another proxy."""
        clocks, ops = self.clocks.copy(), list(self.ops)
        np.maximum(clocks[row], clocks[source], out=clocks[row])
        ops[row] |= ops[source]
        return Knowledge(clocks, tuple(ops))


def flags(op: AsyncOp, reads: bool = True, writes: bool = True) -> int:
    """The bits of an operation's reads and writes."""
    return (reads | writes << 1) << 2 * op.ticket


class Event:
    """Accesses of one warp by one instruction in one tick, or of one operation. `flag`: 0 for warps."""

    __slots__ = ("flag", "index", "is_strong", "op", "site", "time", "warp")

    def __init__(self, warp: Any, site: Any, index: int, time: int, is_strong: bool) -> None:
        self.warp, self.site, self.index, self.time, self.is_strong = warp, site, index, time, is_strong
        self.flag = 0
        self.op: Optional[AsyncOp] = None

    @classmethod
    def of_op(cls, op: AsyncOp, is_write: bool, is_strong: bool) -> "Event":
        """An event of an asynchronous operation."""
        event = cls(op.issuer, op.site, -1, 0, is_strong)
        event.op, event.flag = op, flags(op, not is_write, is_write)
        return event

    def __str__(self) -> str:
        who = f"the {self.op.kind} of {self.warp}" if self.op is not None else f"{self.warp}"
        return f"{who}, PTX line {self.site.line}: {self.site}"


class View(NamedTuple):
    """Who looks: the knowledge at that point, and the clock of the warp (-1: an operation) or the operation."""

    knowledge: Knowledge
    actor: int
    op: Optional[AsyncOp]

    def knows(self, event: Event, row: int = HAPPENED) -> bool:
        """Whether the event is ordered before (and, for other rows, made visible)."""
        if event.flag:
            return event.op is self.op or bool(self.knowledge.ops[row] & event.flag)
        if event.index == self.actor and row == HAPPENED:
            return True
        return bool(self.knowledge.clocks[row, event.index] >= event.time)


class _Actor:
    """A warp's clock and knowledge. is_used: something happened in this tick."""

    __slots__ = ("awaited", "event", "fence", "index", "is_used", "knowledge", "time", "warp")

    def __init__(self, warp: Any, index: int, time: int, knowledge: Knowledge) -> None:
        self.warp, self.index, self.time, self.knowledge = warp, index, time, knowledge
        self.fence: Optional[Knowledge] = None  # at the last fence
        self.awaited: Optional[Knowledge] = None  # learnt by relaxed accesses, to count from the next fence on
        self.event: Optional[Event] = None
        self.is_used = True


class _Sync:
    """What was released: to phases that are complete, and to those and the current one."""

    __slots__ = ("done", "pending", "phase")

    def __init__(self, phase: int) -> None:
        self.phase = phase
        self.done: Optional[Knowledge] = None
        self.pending: Optional[Knowledge] = None


def _phase(sync: Any) -> int:
    if isinstance(sync, Mbarrier):
        return sync.phase
    return sync.generation if isinstance(sync, (NamedBarrier, ClusterBarrier)) else -1


class Ordering(Observer):
    """Follows synchronisation; the checkers that need it share one and ask it."""

    def start(self, machine: Any) -> None:
        shape = machine.shape
        self.per_cluster = -(-shape.block.size // LANES) * shape.cluster.size
        clusters = shape.grid.size // shape.cluster.size
        slots = min(clusters, machine.slots)
        self.nothing = Knowledge(np.zeros((_ROWS, slots * self.per_cluster), np.int32), (0,) * _OP_ROWS)
        self.actors: dict[int, _Actor] = {}
        self.times = [0] * (slots * self.per_cluster)  # of the last warp that had this index
        self.syncs: dict[Any, _Sync] = {}
        self.pipelines: dict[Any, int] = {}
        self.op_event: Optional[Event] = None

    # ---- questions of checkers ----------------------------------------------------------------------------------------

    def actor(self, warp: Any) -> _Actor:
        found = self.actors.get(warp.uid)
        if found is None:
            cluster = warp.cta.cluster
            index = cluster.slot * self.per_cluster + warp.uid - cluster.warps[0].uid
            found = self.actors[warp.uid] = _Actor(warp, index, self.times[index] + 1, self.nothing)
        return found

    def view(self, who: Any) -> View:
        """The knowledge of a warp or an operation now."""
        if isinstance(who, AsyncOp):
            known = who.knowledge
            return View(known if isinstance(known, Knowledge) else self.nothing, -1, who)
        actor = self.actor(who)
        return View(actor.knowledge, actor.index, None)

    def event(self, who: Any, access: Access) -> Event:
        """What to remember of an access that happens now."""
        if isinstance(who, AsyncOp):
            event = self.op_event
            flag = flags(who, not access.is_write, access.is_write)
            if event is None or event.flag != flag or event.op is not who:
                event = self.op_event = Event.of_op(who, access.is_write, access.is_strong)
            return event
        actor = self.actor(who)
        event, site = actor.event, who.instruction
        if event is None or event.time != actor.time or event.site is not site or event.is_strong != access.is_strong:
            event = actor.event = Event(who, site, actor.index, actor.time, access.is_strong)
            actor.is_used = True
        return event

    # ---- bookkeeping --------------------------------------------------------------------------------------------------

    def _publish(self, actor: _Actor) -> Knowledge:
        """All that the warp knows and did. What it does from now on is not part of it."""
        if actor.is_used:
            clocks = actor.knowledge.clocks.copy()
            clocks[HAPPENED, actor.index] = actor.time
            actor.time += 1
            actor.is_used = False
            actor.knowledge = Knowledge(clocks, actor.knowledge.ops)
        return actor.knowledge

    def _sync(self, sync: Any) -> _Sync:
        phase = _phase(sync)
        state = self.syncs.get(sync)
        if state is None:
            state = self.syncs[sync] = _Sync(phase)
        if state.phase != phase or phase < 0:
            state.phase, state.done = phase, state.pending
        return state

    def release(self, actor: Any, sync: Any, relaxed: bool = False) -> None:
        state = self._sync(sync)
        if isinstance(actor, AsyncOp):
            known = self.view(actor).knowledge.with_ops(flags(actor))
        else:
            known = self._publish(self.actor(actor))
            if relaxed:
                clocks = (self.actor(actor).fence or self.nothing).clocks.copy()
                clocks[INITIALISED] = known.clocks[INITIALISED]
                known = Knowledge(clocks, (self.actor(actor).fence or self.nothing).ops)
        state.pending = known if state.pending is None else state.pending.joined(known)

    def acquire(self, actor: Any, sync: Any, relaxed: bool = False) -> None:
        known = self._sync(sync).done
        if known is None:
            return
        mine = self.actor(actor)
        if relaxed:
            mine.awaited = known if mine.awaited is None else mine.awaited.joined(known)
        else:
            mine.knowledge = mine.knowledge.joined(known)

    def fence(self, warp: Any, kind: str) -> None:
        actor = self.actor(warp)
        if kind.startswith("proxy.async"):
            known = self._publish(actor)
            if "global" not in kind:
                known = known.fenced(SHARED)
            if "shared" not in kind:
                known = known.fenced(GLOBAL)
            actor.knowledge = known
        elif kind.startswith("proxy.tensormap"):
            known = self._publish(actor)
            if "release" in kind:
                known = known.fenced(RELEASED)
            actor.knowledge = known.fenced(TENSORMAP, RELEASED) if "acquire" in kind else known
        elif kind.startswith("mbarrier_init"):
            clocks = self._publish(actor).clocks.copy()
            clocks[INITIALISED, actor.index] = clocks[HAPPENED, actor.index]
            actor.knowledge = Knowledge(clocks, actor.knowledge.ops)
        elif kind.startswith(("acq_rel", "sc", "acquire", "release", "gl", "cta", "sys")):
            if actor.awaited is not None:
                actor.knowledge = actor.knowledge.joined(actor.awaited)
                actor.awaited = None
            actor.fence = self._publish(actor)

    # ---- asynchronous operations --------------------------------------------------------------------------------------

    def issue(self, op: AsyncOp) -> None:
        if op.kind == "wgmma":
            return
        known = self._publish(self.actor(op.issuer))
        if op.kind in _PIPELINED:
            key = _pipeline(op)
            before = self.pipelines.get(key, 0)
            known = known.with_ops(before)
            self.pipelines[key] = before | flags(op)
        elif op.kind == "cp.async":
            self.pipelines[_pipeline(op)] = self.pipelines.get(_pipeline(op), 0) | flags(op)
        op.knowledge = known

    def wgmma_issue(self, warp: Any, op: AsyncOp, accumulators: list[int], operands: list[int]) -> None:
        # Each of the four warps must have waited for what the operation reads.
        known = self._publish(self.actor(warp))
        op.knowledge = known.met(op.knowledge) if isinstance(op.knowledge, Knowledge) else known

    def _completed(self, warp: Any, completed: int) -> None:
        actor = self.actor(warp)
        actor.knowledge = actor.knowledge.with_ops(completed)

    def wgmma_wait(self, warp: Any, ops: list[AsyncOp]) -> None:
        self._completed(warp, _all_flags(ops))

    def bulk_wait(self, warp: Any, ops: list[AsyncOp], reads_only: bool) -> None:
        self._completed(warp, _all_flags(ops, writes=not reads_only))

    def copy_wait(self, warp: Any, ops: list[AsyncOp]) -> None:
        self._completed(warp, _all_flags(ops))

    # ---- ends ---------------------------------------------------------------------------------------------------------

    def barrier_end(self, warp: Any, barrier: Mbarrier) -> None:
        self.syncs.pop(barrier, None)

    def warp_exit(self, warp: Any) -> None:
        self._publish(self.actor(warp))

    def cluster_exit(self, cluster: Any) -> None:
        gone = set(cluster.ctas)
        for cta in cluster.ctas:
            gone.update(cta.mbarriers.values(), cta.named_barriers.values())
        gone.add(cluster.barrier)
        self.syncs = {
            key: state
            for key, state in self.syncs.items()
            if key not in gone and not (isinstance(key, tuple) and key[0] in gone)
        }
        for warp in cluster.warps:
            actor = self.actors.pop(warp.uid, None)
            if actor is not None:
                self.times[actor.index] = actor.time


def _pipeline(op: AsyncOp) -> tuple[Any, ...]:
    return (op.queue, op.issuer.uid)  # type: ignore[attr-defined]


def _all_flags(ops: list[AsyncOp], writes: bool = True) -> int:
    total = 0
    for op in ops:
        total |= flags(op, True, writes)
    return total


def proxy_row(proxy: Proxy, is_shared: bool) -> int:
    """The row of the clocks that says what is visible to a proxy."""
    if proxy is Proxy.TENSORMAP:
        return TENSORMAP
    return HAPPENED if proxy is Proxy.GENERIC else SHARED if is_shared else GLOBAL


def actor_name(actor: Any) -> str:
    """Who does something now; the machine says where."""
    return f"the {actor.kind} of {actor.issuer}" if isinstance(actor, AsyncOp) else str(actor)
