"""Misuse of mbarriers that the state of a barrier alone does not show (that is `Misuse`, raised at once).

Use before the initialisation is visible, memory of a live barrier written as data, and a phase that has begun (arrivals or
transaction bytes) and is not complete when the CTA exits. A correct kernel could leave such a phase behind; of some fifty
that were tried none does.
"""

from typing import Any

import numpy as np

from ..asynchrony import AsyncOp
from ..barriers import Mbarrier
from ..errors import CheckFailed
from ..observer import Access, Observer, Proxy
from .history import WORD, Words
from .ordering import INITIALISED, SHARED, Event, Ordering, actor_name
from .places import cell

BARRIER_BYTES = 8


class Barriers(Observer):
    """Remembers who initialised each barrier, and where barriers lie."""

    def __init__(self, ordering: Ordering, words: Words) -> None:
        self.ordering, self.words = ordering, words

    def start(self, machine: Any) -> None:
        self.inits: dict[Mbarrier, Event] = {}
        self.seen: set[tuple[int, Mbarrier]] = set()  # (warp, barrier it may use)
        self.occupied: dict[Any, np.ndarray] = {}

    def barrier_init(self, warp: Any, barrier: Mbarrier) -> None:
        self.inits[barrier] = self.ordering.event(warp, Access.WRITE)
        if warp.cta not in self.occupied:
            self.occupied[warp.cta] = np.zeros(len(warp.cta.smem.bytes) // WORD, bool)
        self.occupied[warp.cta][_cells(barrier)] = True

    def barrier_end(self, warp: Any, barrier: Mbarrier) -> None:
        self.inits.pop(barrier, None)
        self.occupied[warp.cta][_cells(barrier)] = False

    def shared(self, actor: Any, cta: Any, offsets: Any, size: int, access: Access, proxy: Proxy) -> None:
        occupied = self.occupied.get(cta)
        if occupied is None or not access.is_write:
            return
        for where, _ in self.words(offsets, size):
            hit = occupied[where]
            if hit.any():
                offset = cell(where, int(hit.argmax())) * WORD // BARRIER_BYTES * BARRIER_BYTES
                barrier = cta.mbarriers[offset]
                raise CheckFailed(
                    f"{actor_name(actor)} writes data over {barrier}, which was initialised by {self.inits[barrier]}"
                )

    def release(self, actor: Any, sync: Any, relaxed: bool = False) -> None:
        if isinstance(sync, Mbarrier):
            self._use(actor, sync)

    def acquire(self, actor: Any, sync: Any, relaxed: bool = False) -> None:
        if isinstance(sync, Mbarrier):
            self._use(actor, sync)

    def _use(self, actor: Any, barrier: Mbarrier) -> None:
        event = self.inits.get(barrier)
        if event is None:
            return
        view = self.ordering.view(actor)
        if isinstance(actor, AsyncOp):
            if not view.knows(event, INITIALISED) and not view.knows(event, SHARED):
                raise CheckFailed(
                    f"the {actor.kind} of {actor.issuer} signals {barrier}, but its initialisation by {event} need not be "
                    "visible to it: no fence.mbarrier_init or fence.proxy.async after it and ordered before the issue"
                )
            return
        key = (actor.uid, barrier)
        if key in self.seen:
            return
        if not view.knows(event) and not view.knows(event, INITIALISED):
            raise CheckFailed(
                f"{actor} uses {barrier}, but nothing orders this after its initialisation by {event} "
                "(no barrier between them, or a relaxed one without fence.mbarrier_init)"
            )
        self.seen.add(key)

    def cluster_exit(self, cluster: Any) -> None:
        for cta in cluster.ctas:
            self.occupied.pop(cta, None)
            for barrier in cta.mbarriers.values():
                event = self.inits.pop(barrier, None)
                if barrier.transactions or barrier.pending != barrier.count:
                    index = cta.index
                    raise CheckFailed(
                        f"{barrier} is in the middle of a phase when CTA ({index.x},{index.y},{index.z}) exits: "
                        f"{barrier.pending} of {barrier.count} arrivals and {barrier.transactions} bytes outstanding; "
                        f"it was initialised by {event}"
                    )
        self.seen = {key for key in self.seen if key[1] in self.inits}


def _cells(barrier: Mbarrier) -> slice:
    return slice(barrier.offset // WORD, (barrier.offset + BARRIER_BYTES) // WORD)
