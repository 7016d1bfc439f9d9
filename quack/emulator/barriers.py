"""mbarrier objects, named CTA barriers and the cluster barrier. Pure state; who waits is the scheduler's business.

PTX ISA 9.7.13.15 (mbarrier), 9.7.13.1 (bar, barrier), 9.7.13.3 (barrier.cluster).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from .errors import Misuse

MAX_COUNT = (1 << 20) - 1


class Mbarrier:
    """Phase, pending arrivals and pending transaction bytes of one mbarrier."""

    __slots__ = ("count", "pending", "phase", "rank", "offset", "transactions")

    def __init__(self, rank: int, offset: int, count: int) -> None:
        """count: arrivals that complete a phase; rank, offset: CTA and place in its shared memory."""
        if not 1 <= count <= MAX_COUNT:
            raise Misuse(f"mbarrier.init with count {count}: must be 1 to {MAX_COUNT}")
        self.rank, self.offset = rank, offset
        self.count = self.pending = count
        self.transactions = 0
        self.phase = 0

    def arrive(self, count: int = 1) -> bool:
        """Count arrivals; returns whether this completed the phase."""
        if count > self.pending:
            raise Misuse(f"{self}: {count} arrivals on a phase that waits for {self.pending} of {self.count}")
        self.pending -= count
        return self._try_complete()

    def expect(self, transactions: int) -> None:
        """Raise the transaction count of the current phase."""
        self.transactions += transactions
        if abs(self.transactions) > MAX_COUNT:
            raise Misuse(f"{self}: transaction count {self.transactions} overflows")

    def complete(self, transactions: int) -> bool:
        """`transactions` bytes arrived; returns whether this completed the phase."""
        self.transactions -= transactions
        if abs(self.transactions) > MAX_COUNT:
            raise Misuse(f"{self}: transaction count {self.transactions} overflows")
        return self._try_complete()

    def has_passed(self, parity: int) -> bool:
        """Whether the phase of this parity, current or the one before, has completed."""
        return self.phase & 1 != parity & 1

    def drop(self, count: int = 1) -> None:
        """`count` participants less from the next phase on."""
        if count > self.count:
            raise Misuse(f"{self}: {count} of {self.count} participants drop out")
        self.count -= count

    def _try_complete(self) -> bool:
        if self.pending or self.transactions:
            return False
        self.phase += 1
        self.pending = self.count
        return True

    def __str__(self) -> str:
        return f"mbarrier at smem offset {self.offset - 1024} of CTA {self.rank} (phase {self.phase})"


@dataclass(eq=False)
class NamedBarrier:
    """One of the 16 barriers of a CTA. `expected` in threads, fixed by the first arrival of a generation."""

    number: int
    expected: int = 0
    arrived: int = 0
    generation: int = 0
    warps: list[int] = field(default_factory=list)

    def arrive(self, warp: int, threads: int, expected: int) -> bool:
        """Count `threads` of one warp; returns whether this completed the barrier."""
        if self.arrived == 0:
            self.expected = expected
        elif expected != self.expected:
            raise Misuse(f"barrier {self.number}: warp {warp} expects {expected} threads, others {self.expected}")
        if warp in self.warps:
            raise Misuse(f"barrier {self.number}: warp {warp} arrives twice in one phase")
        self.warps.append(warp)
        self.arrived += threads
        if self.arrived > self.expected:
            raise Misuse(f"barrier {self.number}: {self.arrived} threads arrived, {self.expected} expected")
        if self.arrived < self.expected:
            return False
        self.arrived = 0
        self.warps.clear()
        self.generation += 1
        return True


class ClusterBarrier:
    """barrier.cluster: every thread of every CTA of the cluster that has not exited."""

    def __init__(self, warps: Iterable[int]) -> None:
        self.expected = set(warps)
        self.arrived: set[int] = set()
        self.generation = 0

    def arrive(self, warp: int) -> bool:
        """Returns whether this completed the phase."""
        if warp in self.arrived:
            raise Misuse("barrier.cluster.arrive twice without a wait")
        self.arrived.add(warp)
        return self._try_complete()

    def leave(self, warp: int) -> bool:
        """A warp exited: it counts as arrived from now on. Returns whether this completed the phase."""
        self.expected.discard(warp)
        return bool(self.arrived) and self._try_complete()

    def _try_complete(self) -> bool:
        if not self.expected <= self.arrived:
            return False
        self.arrived.clear()
        self.generation += 1
        return True
