"""What checkers, statistics and traces may see of a run. The machine calls these hooks; the default does nothing.

Actors: a `Warp` for what its instructions do at once, an `AsyncOp` for what a stage of it does.
"""

from enum import Enum
from typing import Any


class Proxy(Enum):
    """How memory is accessed: by loads and stores; by TMA, wgmma and tcgen05; as a TMA descriptor."""

    GENERIC = "generic"
    ASYNC = "async"
    TENSORMAP = "tensormap"


class Access(Enum):
    """READ and WRITE are weak; STRONG_READ, STRONG_WRITE (relaxed, acquire, release) and ATOMIC may meet their like."""

    READ = "read"
    WRITE = "write"
    STRONG_READ = "strong read"
    STRONG_WRITE = "strong write"
    ATOMIC = "atomic"

    @property
    def is_read(self) -> bool:
        return self in (Access.READ, Access.STRONG_READ, Access.ATOMIC)

    @property
    def is_write(self) -> bool:
        return self in (Access.WRITE, Access.STRONG_WRITE, Access.ATOMIC)

    @property
    def is_strong(self) -> bool:
        return self not in (Access.READ, Access.WRITE)

    @property
    def strengthened(self) -> "Access":
        """The same access by an instruction that is not weak."""
        return {Access.READ: Access.STRONG_READ, Access.WRITE: Access.STRONG_WRITE}.get(self, self)


class Observer:
    """Hooks; `sync` arguments are hashable names of what is synchronised on (a barrier, an address)."""

    def start(self, machine: Any) -> None:
        """A launch begins; nothing has run."""

    def finish(self, machine: Any) -> None:
        """The launch ended without an error."""

    def instrument(self, machine: Any, code: list[Any]) -> list[Any]:
        """The closures to run in place of `code`, one per instruction: each calls the original."""
        return code

    def shared(self, actor: Any, cta: Any, offsets: Any, size: int, access: Access, proxy: Proxy) -> None:
        """Accesses to shared memory: `size` bytes at each of `offsets` (array) of `cta`."""

    def tensor_memory(self, actor: Any, cta: Any, lanes: Any, columns: Any, access: Access) -> None:
        """Accesses to TMEM of `cta`: the cells lanes x columns (slices)."""

    def global_memory(self, actor: Any, addresses: Any, size: int, access: Access, proxy: Proxy) -> None:
        """Accesses to global memory: `size` bytes at each of `addresses` (array)."""

    def release(self, actor: Any, sync: Any, relaxed: bool = False) -> None:
        """`actor` publishes what it did and knows to whoever acquires `sync`; relaxed: only up to its last fence.

        sync: an `Mbarrier`, `NamedBarrier` or `ClusterBarrier` before the arrival is counted, or the name of an address.
        """

    def acquire(self, actor: Any, sync: Any, relaxed: bool = False) -> None:
        """`actor` learns what was released to `sync`; relaxed: at its next fence."""

    def fence(self, warp: Any, kind: str) -> None:
        """A fence instruction: "proxy.async", "mbarrier_init", "acq_rel", "view::async", ..."""

    def issue(self, op: Any) -> None:
        """An asynchronous operation was issued."""

    def step(self, op: Any) -> None:
        """A stage of an operation is about to run."""

    def complete(self, op: Any) -> None:
        """An operation is done."""

    def wait_begin(self, warp: Any, wait: Any) -> None:
        """A warp stops at its current instruction."""

    def wait_end(self, warp: Any) -> None:
        """A warp that had stopped goes on."""

    def barrier_init(self, warp: Any, barrier: Any) -> None:
        """mbarrier.init."""

    def barrier_end(self, warp: Any, barrier: Any) -> None:
        """mbarrier.inval."""

    def wgmma_issue(self, warp: Any, op: Any, accumulators: list[int], operands: list[int]) -> None:
        """A warp issued its part of a wgmma that will write and read these registers (slots)."""

    def wgmma_wait(self, warp: Any, ops: list[Any]) -> None:
        """wgmma.wait_group returned: these operations are done as far as this warp is concerned."""

    def bulk_wait(self, warp: Any, ops: list[Any], reads_only: bool) -> None:
        """cp.async.bulk.wait_group[.read] returned: these operations are done (have read) as far as this warp knows."""

    def copy_wait(self, warp: Any, ops: list[Any]) -> None:
        """cp.async.wait_group returned: these operations are done as far as this warp knows."""

    def tensor_alloc(self, warp: Any, cta: Any, column: int, count: int) -> None:
        """tcgen05.alloc returned: columns [column, column + count) of `cta`."""

    def tensor_free(self, warp: Any, cta: Any, column: int, count: int) -> None:
        """tcgen05.dealloc: columns [column, column + count) of `cta` are about to be freed."""

    def warp_exit(self, warp: Any) -> None:
        """A warp ended."""

    def cluster_exit(self, cluster: Any) -> None:
        """All warps of a cluster ended."""
