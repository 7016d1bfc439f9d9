"""A CTA that exits while others still use its shared memory, its mbarriers or its tensor memory.

Asynchronous operations, whoever issued them, and warps of other CTAs of the cluster: their last access must be ordered
before the exit of some warp of the CTA. A store by TMA need only have read.
"""

from typing import Any

from ..asynchrony import AsyncOp
from ..barriers import Mbarrier
from ..errors import CheckFailed
from ..observer import Access, Observer, Proxy
from .ordering import Event, Knowledge, Ordering, View


class Exits(Observer):
    """Remembers the last accesses from outside to each CTA."""

    def __init__(self, ordering: Ordering) -> None:
        self.ordering = ordering

    def start(self, machine: Any) -> None:
        self.known: dict[Any, Knowledge] = {}
        # By CTA: (warp, or ticket and kind of access) -> (last event, what it accesses).
        self.accesses: dict[Any, dict[Any, tuple[Event, str]]] = {}
        self.gone: set[Any] = set()

    def _note(self, actor: Any, cta: Any, access: Access, what: str) -> None:
        if isinstance(actor, AsyncOp):
            key: Any = (actor.ticket, access.is_write)
        elif actor.cta is not cta:
            key = actor.uid
        else:
            return
        event = self.ordering.event(actor, access)
        if cta in self.gone:
            raise CheckFailed(_message(cta, what, event))
        self.accesses.setdefault(cta, {})[key] = (event, what)

    def shared(self, actor: Any, cta: Any, offsets: Any, size: int, access: Access, proxy: Proxy) -> None:
        self._note(actor, cta, access, "shared memory")

    def tensor_memory(self, actor: Any, cta: Any, lanes: Any, columns: Any, access: Access) -> None:
        self._note(actor, cta, access, "tensor memory")

    def release(self, actor: Any, sync: Any, relaxed: bool = False) -> None:
        if isinstance(sync, Mbarrier):
            warp: Any = actor.issuer if isinstance(actor, AsyncOp) else actor
            self._note(actor, warp.cta.cluster.ctas[sync.rank], Access.WRITE, str(sync).partition(" of ")[0])

    def warp_exit(self, warp: Any) -> None:
        known = self.ordering.view(warp).knowledge
        before = self.known.get(warp.cta)
        self.known[warp.cta] = known if before is None else before.joined(known)

    def cluster_exit(self, cluster: Any) -> None:
        for cta in cluster.ctas:
            known = self.known.pop(cta, None)
            accesses = self.accesses.pop(cta, {})
            view = View(known or self.ordering.nothing, -1, None)
            for event, what in accesses.values():
                if not view.knows(event):
                    raise CheckFailed(_message(cta, what, event))
        # Operations in flight may still come.
        self.gone = {cta for cta in self.gone if cta.cluster.slot != cluster.slot} | set(cluster.ctas)


def _message(cta: Any, what: str, event: Event) -> str:
    index = cta.index
    return (
        f"CTA ({index.x},{index.y},{index.z}) may exit while its {what} is still in use by {event}: "
        "no warp of the CTA waits for that"
    )
