"""Asynchronous operations (TMA, wgmma, tcgen05, cp.async) and the schedules that decide when they and the warps run.

An operation is a list of stages, each a callable with an effect on memory or registers. Between issue and completion its
sources may still be read and its results are not there yet; when each stage runs is up to the schedule:

eager          at once, in program order: fastest, for results
latest         only when no warp can run any more, oldest operation first: shows missing waits and fences
random:SEED    warps and operations interleave in a seeded random order
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Optional

Stage = Callable[[], None]


class AsyncOp:
    """One asynchronous operation.

    kind: "tma load", "tma store", "wgmma", "tcgen05.mma", ...; queue: operations of one queue run in order of issue.
    `reads_done`: stages after which all sources have been read (TMA stores can be waited for at that point).
    """

    __slots__ = ("issuer", "kind", "knowledge", "queue", "reads_after", "remaining", "site", "ticket")

    def __init__(
        self, kind: str, issuer: object, site: object, stages: list[Stage], queue: Hashable = None, reads_after: int = 0
    ) -> None:
        self.kind, self.issuer, self.site, self.queue = kind, issuer, site, queue
        self.remaining = deque(stages)
        self.reads_after = len(stages) - reads_after if reads_after else 0
        self.ticket = -1  # set by the machine: position in the order of issue
        self.knowledge: object = None  # for checkers: what had happened before the issue

    @property
    def is_done(self) -> bool:
        return not self.remaining

    @property
    def has_read(self) -> bool:
        """Whether all sources have been read."""
        return len(self.remaining) <= self.reads_after

    def step(self) -> None:
        """Run the next stage."""
        stage = self.remaining[0]
        stage()
        self.remaining.popleft()


class PendingOps:
    """Operations in flight, by queue. `heads`: those that may run next, the first of each queue, in no certain order."""

    def __init__(self) -> None:
        self.queues: dict[Hashable, deque[AsyncOp]] = {}
        self.heads: list[AsyncOp] = []
        self._places: dict[AsyncOp, int] = {}  # of heads in the list
        self._by_age: list[tuple[int, AsyncOp]] = []  # a heap of heads, and of operations already done
        self._count = 0

    def add(self, op: AsyncOp) -> None:
        """Issue, with a ticket newer than all before."""
        queue = self.queues.setdefault(op if op.queue is None else op.queue, deque())
        queue.append(op)
        self._count += 1
        if len(queue) == 1:
            self._append_head(op)

    def oldest(self) -> AsyncOp:
        """The head issued first."""
        while self._by_age[0][1] not in self._places:
            heapq.heappop(self._by_age)
        return self._by_age[0][1]

    def finish(self, op: AsyncOp) -> None:
        """Remove a completed operation from the head of its queue."""
        place, last = self._places.pop(op), self.heads.pop()
        if last is not op:
            self.heads[place] = last
            self._places[last] = place
        self._count -= 1
        key: Hashable = op if op.queue is None else op.queue
        queue = self.queues[key]
        queue.popleft()
        if queue:
            self._append_head(queue[0])
        else:
            del self.queues[key]

    def _append_head(self, op: AsyncOp) -> None:
        self._places[op] = len(self.heads)
        self.heads.append(op)
        heapq.heappush(self._by_age, (op.ticket, op))

    def __len__(self) -> int:
        return self._count


@dataclass(frozen=True)
class Schedule:
    """kind: "eager", "latest" or "random"."""

    kind: str = "eager"
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """From "eager", "latest" or "random:SEED"."""
        kind, _, seed = text.partition(":")
        if kind not in ("eager", "latest", "random") or (seed and kind != "random") or not (seed or "0").isdigit():
            raise ValueError(f"schedule {text!r}: expected eager, latest or random:SEED")
        return cls(kind, int(seed or 0))

    @property
    def is_eager(self) -> bool:
        return self.kind == "eager"

    def generator(self) -> Optional[random.Random]:
        """The source of random choices, None for the fixed schedules."""
        return random.Random(self.seed) if self.kind == "random" else None

    def __str__(self) -> str:
        return f"random:{self.seed}" if self.kind == "random" else self.kind


EAGER = Schedule()


class ThreadGroups:
    """Async-groups per thread of one warp: cp.async (9.7.9.25.3) and cp.async.bulk (9.7.9.25.4) keep one each.

    remembers: operations stay on record until a wait for their completion has returned, for `waited`.
    """

    def __init__(self, lanes: int = 32, remembers: bool = False) -> None:
        self.lanes, self.remembers = lanes, remembers
        self.committed = [0] * lanes
        self.open: list[tuple[int, AsyncOp]] = []
        self.closed: list[tuple[int, int, AsyncOp]] = []

    def add(self, lane: int, op: AsyncOp) -> None:
        self.open.append((lane, op))

    def commit(self, active: list[int]) -> None:
        """Close the open group of the active lanes."""
        lanes = set(active)
        self.closed += [(lane, self.committed[lane], op) for lane, op in self.open if lane in lanes]
        self.open = [(lane, op) for lane, op in self.open if lane not in lanes]
        for lane in active:
            self.committed[lane] += 1

    def pending(self, active: list[int], keep: int, reads_only: bool = False) -> Optional[AsyncOp]:
        """An operation that an active lane must still wait for, if all but its `keep` newest groups must be done."""
        if not self.remembers:
            self.closed = [entry for entry in self.closed if not entry[2].is_done]
        lanes = set(active)
        for lane, index, op in self.closed:
            if op.is_done or (reads_only and op.has_read):
                continue
            if lane in lanes and index < self.committed[lane] - keep:
                return op
        return None

    def waited(self, active: list[int], keep: int, reads_only: bool = False) -> list[AsyncOp]:
        """The operations that a wait of the active lanes, which has returned, covers."""
        lanes = set(active)
        due = [e for e in self.closed if e[0] in lanes and e[1] < self.committed[e[0]] - keep]
        if not reads_only:
            gone = set(map(id, due))
            self.closed = [e for e in self.closed if id(e) not in gone]
        return [op for _, _, op in due]
