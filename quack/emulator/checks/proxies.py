"""Writes by ordinary stores that the async proxy (TMA, wgmma, tcgen05) or the tensormap proxy accesses without a fence.

The fence counts wherever it stands on the way from the write to the issue of the operation: in the warp that wrote, or in
one that is ordered after it (PTX ISA 8.7 "Proxies"). Writes by asynchronous operations need none.
"""

from typing import Any

import numpy as np

from ..errors import CheckFailed
from ..observer import Access, Observer, Proxy
from .history import WORD, Where, Words
from .ordering import Event, Ordering, actor_name, proxy_row
from .places import GlobalShadow, shared_name

_FENCES = {Proxy.ASYNC: "fence.proxy.async", Proxy.TENSORMAP: "fence.proxy.tensormap::generic.release or .acquire"}


class Proxies(Observer):
    """Remembers the last generic write to each cell."""

    def __init__(self, ordering: Ordering, words: Words) -> None:
        self.ordering, self.words = ordering, words

    def start(self, machine: Any) -> None:
        self.events: list[Event] = []
        self.shared_writers: dict[Any, np.ndarray] = {}
        self.tensors = GlobalShadow(machine.memory, np.int32)

    def shared(self, actor: Any, cta: Any, offsets: Any, size: int, access: Access, proxy: Proxy) -> None:
        if proxy is Proxy.GENERIC and not access.is_write:
            return
        writers = self.shared_writers.get(cta)
        if writers is None:
            writers = self.shared_writers[cta] = np.zeros(len(cta.smem.bytes) // WORD, np.int32)
        for where, _ in self.words(offsets, size):
            self._access(writers, where, actor, access, proxy, True, lambda i, w=where: shared_name(cta, w, i))

    def global_memory(self, actor: Any, addresses: Any, size: int, access: Access, proxy: Proxy) -> None:
        if proxy is Proxy.GENERIC and not access.is_write:
            return
        for tensor, offsets in self.tensors.split(addresses):
            if proxy is not Proxy.GENERIC and tensor not in self.tensors.cells:
                continue
            writers = self.tensors.array(tensor)
            for where, _ in self.words(offsets, size):
                self._access(
                    writers, where, actor, access, proxy, False, lambda i, t=tensor, w=where: self.tensors.name(t, w, i)
                )

    def _access(
        self, writers: np.ndarray, where: Where, actor: Any, access: Access, proxy: Proxy, is_shared: bool, name: Any
    ) -> None:
        if proxy is Proxy.GENERIC:
            event = self.ordering.event(actor, access)
            if not self.events or self.events[-1] is not event:
                self.events.append(event)
            writers[where] = len(self.events)
            return
        numbers = writers[where]
        if numbers.any():
            view, row = self.ordering.view(actor), proxy_row(proxy, is_shared)
            for number in np.unique(numbers).tolist():
                if number and not view.knows(self.events[number - 1], row):
                    i = int(np.flatnonzero(numbers == number)[0])
                    who = actor_name(actor)
                    raise CheckFailed(
                        f"missing {_FENCES[proxy]}: {who} {'writes' if access.is_write else 'reads'} {name(i)}, "
                        f"which was written by {self.events[number - 1]}, with no such fence after it and "
                        "ordered before the operation was issued"
                    )
            if access.is_write:
                writers[where] = 0

    def cluster_exit(self, cluster: Any) -> None:
        for cta in cluster.ctas:
            self.shared_writers.pop(cta, None)
