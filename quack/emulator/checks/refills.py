"""Shared memory that threads read and the async proxy (TMA) then overwrites, without a fence.proxy.async in between.

An H200 lost this race: a ring of TMA tiles was read by `ld.shared`, handed back with an mbarrier arrival right behind the loads,
and refilled before they had returned their values. Loads whose values are used before the arrival (ldmatrix feeding an mma) have
returned, which this checker does not see; it is strict, and therefore not among "all". Of several readers of a cell the last is
looked at.
"""

from typing import Any

import numpy as np

from ..errors import CheckFailed
from ..observer import Access, Observer, Proxy
from .history import WORD, Words
from .ordering import Event, Ordering, actor_name, proxy_row
from .places import shared_name


class Refills(Observer):
    """Remembers the last generic read of each cell of shared memory."""

    def __init__(self, ordering: Ordering, words: Words) -> None:
        self.ordering, self.words = ordering, words

    def start(self, machine: Any) -> None:
        self.events: list[Event] = []
        self.readers: dict[Any, np.ndarray] = {}

    def shared(self, actor: Any, cta: Any, offsets: Any, size: int, access: Access, proxy: Proxy) -> None:
        is_read, is_refill = not access.is_write and proxy is Proxy.GENERIC, access.is_write and proxy is Proxy.ASYNC
        if not is_read and not is_refill:
            return
        readers = self.readers.get(cta)
        if readers is None:
            readers = self.readers[cta] = np.zeros(len(cta.smem.bytes) // WORD, np.int32)
        for where, _ in self.words(offsets, size):
            if is_read:
                event = self.ordering.event(actor, access)
                if not self.events or self.events[-1] is not event:
                    self.events.append(event)
                readers[where] = len(self.events)
                continue
            view, numbers = self.ordering.view(actor), readers[where]
            for number in np.unique(numbers).tolist():
                if number and not view.knows(self.events[number - 1], proxy_row(proxy, True)):
                    i = int(np.flatnonzero(numbers == number)[0])
                    raise CheckFailed(
                        f"missing fence.proxy.async: {actor_name(actor)} overwrites {shared_name(cta, where, i)}, which was read "
                        f"by {self.events[number - 1]}, with no such fence after it and ordered before the operation was issued"
                    )
            readers[where] = 0

    def cluster_exit(self, cluster: Any) -> None:
        for cta in cluster.ctas:
            self.readers.pop(cta, None)
