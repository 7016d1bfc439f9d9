"""Data races: accesses of two warps or asynchronous operations to one place, one of them a write, in no order.

Found in shared, tensor and global memory. Thus a stage that a load by TMA overwrites while wgmma, ldmatrix or a store may
still read it, a stage that is read without a wait for its barrier, and results stored by two CTAs at once.
"""

from typing import Any

import numpy as np

from ..errors import CheckFailed
from ..observer import Access, Observer, Proxy
from ..tensor_memory import COLUMNS, LANES
from .history import History, Words
from .ordering import Event, Ordering, actor_name
from .places import GlobalShadow, shared_name


class Races(Observer):
    """Compares every access with the last ones to the same cells."""

    def __init__(self, ordering: Ordering, words: Words) -> None:
        self.ordering, self.words = ordering, words

    def start(self, machine: Any) -> None:
        self.history = History()
        self.shared_cells: dict[Any, np.ndarray] = {}
        self.tensor_cells: dict[Any, np.ndarray] = {}
        self.tensors = GlobalShadow(machine.memory, np.int32)

    def shared(self, actor: Any, cta: Any, offsets: Any, size: int, access: Access, proxy: Proxy) -> None:
        cells = self.shared_cells.get(cta)
        if cells is None:
            cells = self.shared_cells[cta] = np.zeros(len(cta.smem.bytes) // 4, np.int32)
        for where, mask in self.words(offsets, size):
            self._access(cells, where, mask, actor, access, lambda i, w=where: shared_name(cta, w, i))

    def tensor_memory(self, actor: Any, cta: Any, lanes: Any, columns: Any, access: Access) -> None:
        cells = self.tensor_cells.get(cta)
        if cells is None:
            cells = self.tensor_cells[cta] = np.zeros((LANES, COLUMNS), np.int32)

        def name(i: int) -> str:
            lane, column = divmod(i, columns.stop - columns.start)
            return f"tensor memory of CTA {cta.rank}, lane {lanes.start + lane}, column {columns.start + column}"

        self._access(cells, (lanes, columns), 1, actor, access, name)

    def tensor_free(self, warp: Any, cta: Any, column: int, count: int) -> None:
        self.tensor_memory(warp, cta, slice(0, LANES), slice(column, column + count), Access.WRITE)

    def global_memory(self, actor: Any, addresses: Any, size: int, access: Access, proxy: Proxy) -> None:
        for tensor, offsets in self.tensors.split(addresses):
            cells = self.tensors.array(tensor)
            for where, mask in self.words(offsets, size):
                self._access(cells, where, mask, actor, access, lambda i, t=tensor, w=where: self.tensors.name(t, w, i))

    def _access(self, cells: np.ndarray, where: Any, mask: int, actor: Any, access: Access, name: Any) -> None:
        view = self.ordering.view(actor)
        event = self.ordering.event(actor, access)

        def fail(other: Event, was_write: bool, i: int) -> None:
            what = "overwrites" if access.is_write else "reads"
            before = "was written" if was_write else "was read"
            raise CheckFailed(
                f"data race: {actor_name(actor)} {what} {name(i)}, which {before} by {other}; "
                "nothing orders the one before the other (no wait, barrier or release and acquire between them)"
            )

        self.history.access(cells, where, mask, event, access.is_write, view.knows, fail)

    def cluster_exit(self, cluster: Any) -> None:
        for cta in cluster.ctas:
            self.shared_cells.pop(cta, None)
            self.tensor_cells.pop(cta, None)
        self._compact()

    def wait_begin(self, warp: Any, wait: Any) -> None:
        self._compact()

    def _compact(self) -> None:
        arrays = [*self.shared_cells.values(), *self.tensor_cells.values(), *self.tensors.cells.values()]
        self.history.compact(arrays)
