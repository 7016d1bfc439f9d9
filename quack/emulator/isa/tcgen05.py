"""tcgen05: tensor memory allocation, fences and commit (PTX ISA 9.7.16.6, 9.7.16.7, 9.7.16.11), and what the family shares.

mma, cp and commit of a CTA, or of a CTA pair with `.cta_group::2`, form one pipeline: they complete in order of issue.
The ISA orders less (cp and mma before mma, all before commit); that real kernels reuse scale factor columns without a
wait shows that the hardware keeps this order too.
"""

from collections.abc import Hashable
from typing import Any, Literal, Optional

import numpy as np

from ..asynchrony import AsyncOp
from ..errors import Misuse, UnknownInstruction
from ..memory import OFFSET_MASK
from ..observer import Access, Proxy
from ..opcodes import opcode
from ..program import Binder, Execute
from ..tensor_memory import PairDesk, PairRequest, TensorAddress, tensor_memory
from ..values import MASK, uniform
from ..warp import Wait
from .control import require_converged
from .data import address_value, shared_place
from .sync import addresses

# ---- shared by the family ---------------------------------------------------------------------------------------------


def cta_group(b: Binder) -> int:
    """1 or 2 of the mandatory `.cta_group::N`."""
    return int(b.one_of("cta_group::1", "cta_group::2")[-1])


def participants(w: Any, group: int) -> list[Any]:
    """The CTA of a warp, or both CTAs of its pair, the even one first."""
    cta = w.cta
    if cta.state.setdefault("cta_group", group) != group:
        raise Misuse(f"tcgen05 instructions with .cta_group::1 and .cta_group::2 in CTA {cta.rank}")
    if group == 1:
        return [cta]
    ctas = cta.cluster.ctas
    even = cta.rank & ~1
    if even + 1 >= len(ctas):
        raise Misuse(f".cta_group::2 in a cluster of {len(ctas)}: CTA {cta.rank} has no peer")
    return [ctas[even], ctas[even + 1]]


def require_live_peer(w: Any, ctas: list[Any]) -> None:
    """Instructions of a pair reach into the peer CTA, which must not have exited."""
    if len(ctas) == 1:
        return
    peer = ctas[1 - (w.cta.rank & 1)]
    if peer.state.get("live warp") is None or peer.state["live warp"].is_done:
        live = next((x for x in w.cta.cluster.warps if x.cta is peer and not x.is_done), None)
        if live is None:
            raise Misuse(f"a .cta_group::2 instruction when all warps of the peer CTA {peer.rank} have exited")
        peer.state["live warp"] = live


def pipeline(ctas: list[Any]) -> Hashable:
    """The queue of mma, cp and commit."""
    return ("tcgen05", ctas[0].cluster.index, ctas[0].rank)


def submit(w: Any, kind: str, ctas: list[Any], stage: Any) -> AsyncOp:
    """Issue an operation of one stage, a function of the operation."""
    op = AsyncOp(kind, w, w.instruction, [], pipeline(ctas))
    op.remaining.append(lambda: stage(op))
    issued: AsyncOp = w.machine.submit(op)
    return issued


# ---- allocation -------------------------------------------------------------------------------------------------------


def _pair_desk(ctas: list[Any]) -> PairDesk:
    state = ctas[0].state
    if "tcgen05 desk" not in state:
        state["tcgen05 desk"] = PairDesk(tensor_memory(ctas[0]), tensor_memory(ctas[1]))
    desk: PairDesk = state["tcgen05 desk"]
    return desk


def _at_desk(w: Any, ctas: list[Any], kind: Literal["alloc", "free"], new: PairRequest) -> Optional[PairRequest]:
    """The answered request of this warp, or None while the peer or the columns are missing."""
    request: Optional[PairRequest] = w.state.get("tcgen05 request")
    if request is None:
        request = w.state["tcgen05 request"] = new
        _pair_desk(ctas).post(kind, w.cta.rank & 1, request)
        w.machine.version += 1
    if not request.is_done:
        return None
    w.state["tcgen05 request"] = None
    return request


@opcode("tcgen05.alloc", section="9.7.16.7.1")
def allocate(b: Binder) -> Execute:
    """tcgen05.alloc.cta_group.sync.aligned[.shared::cta].b32 [dst], nCols: blocks until the columns are free."""
    group = cta_group(b)
    b.ignore("sync", "aligned", "shared::cta", "b32")
    to, columns = b.address(0), b.src(1, 32)

    def find(w: Any) -> Optional[int]:
        ctas = participants(w, group)
        memory = tensor_memory(w.cta)
        count = uniform(w.regs[columns], 32, w.first)
        if group == 2:
            if w.state.get("tcgen05 request") is None:
                memory.check_request(count)
            done = _at_desk(w, ctas, "alloc", PairRequest(count))
            return None if done is None else done.column
        memory.check_request(count)
        column = memory.find(count)
        if column is not None:
            memory.take(column, count)
        return column

    def run(w: Any) -> Optional[Wait]:
        require_converged(w)
        column = find(w)
        if column is None:
            request, memory = w.state.get("tcgen05 request"), tensor_memory(w.cta)
            count = uniform(w.regs[columns], 32, w.first)
            if request is not None:
                return Wait(
                    lambda: request.is_done, f"tcgen05.alloc of {count} columns (peer CTA, or columns to be freed)"
                )
            return Wait(lambda: memory.find(count) is not None, f"tcgen05.alloc: {count} columns to be freed")
        value = address_value(w, to)
        cta, offset = shared_place(w, value if value.__class__ is int else int(value[w.first]))
        if cta is not w.cta or offset % 4:
            raise Misuse("tcgen05.alloc writes its address to an aligned word of the CTA's own shared memory")
        cta.smem.check(offset, 4)
        if w.machine.observer is not None:
            w.machine.observer.tensor_alloc(w, cta, column, uniform(w.regs[columns], 32, w.first))
            w.machine.observer.shared(w, cta, np.array([offset]), 4, Access.WRITE, Proxy.GENERIC)
        cta.smem.views[np.uint32][offset // 4] = column
        w.machine.version += 1
        return None

    return run


@opcode("tcgen05.dealloc", section="9.7.16.7.1")
def deallocate(b: Binder) -> Execute:
    """tcgen05.dealloc.cta_group.sync.aligned.b32 taddr, nCols. A pair frees when both CTAs have come."""
    group = cta_group(b)
    b.ignore("sync", "aligned", "b32")
    address, columns = b.src(0, 32), b.src(1, 32)

    def run(w: Any) -> Optional[Wait]:
        require_converged(w)
        ctas = participants(w, group)
        at = TensorAddress.parse(uniform(w.regs[address], 32, w.first))
        count = uniform(w.regs[columns], 32, w.first)
        if at.lane:
            raise Misuse(f"tcgen05.dealloc at lane {at.lane}")
        if w.machine.observer is not None and w.state.get("tcgen05 request") is None:
            w.machine.observer.tensor_free(w, w.cta, at.column, count)
        if group == 1:
            tensor_memory(w.cta).free(at.column, count)
            w.machine.version += 1
        elif _at_desk(w, ctas, "free", PairRequest(count, at.column)) is None:
            request = w.state["tcgen05 request"]
            return Wait(lambda: request.is_done, "tcgen05.dealloc (peer CTA)")
        return None

    return run


@opcode("tcgen05.relinquish_alloc_permit", section="9.7.16.7.1")
def relinquish(b: Binder) -> Execute:
    """tcgen05.relinquish_alloc_permit: this CTA allocates no more."""
    group = cta_group(b)
    b.ignore("sync", "aligned")

    def run(w: Any) -> None:
        require_converged(w)
        participants(w, group)
        tensor_memory(w.cta).has_permit = False

    return run


# ---- ordering ---------------------------------------------------------------------------------------------------------


@opcode("tcgen05.fence::before_thread_sync", "tcgen05.fence::after_thread_sync", section="9.7.16.11")
def fence(b: Binder) -> Execute:
    """tcgen05.fence::*: order tcgen05 operations of different threads; only checkers see them."""
    kind = b.instruction.opcode

    def run(w: Any) -> None:
        if w.machine.observer is not None:
            w.machine.observer.fence(w, kind)

    return run


@opcode("tcgen05.commit", section="9.7.16.12.1")
def commit(b: Binder) -> Execute:
    """tcgen05.commit.cta_group.mbarrier::arrive::one[.shared::cluster][.multicast::cluster].b64 [mbar][, ctaMask].

    One arrival at the mbarrier, or at the same offset in each CTA of the mask, when all earlier mma and cp are done.
    """
    group = cta_group(b)
    if not b.flag("mbarrier::arrive::one"):
        raise UnknownInstruction("tcgen05.commit without .mbarrier::arrive::one")
    b.ignore("shared::cluster", "b64")
    multicast = b.flag("multicast::cluster")
    address = b.address(0)
    mask = b.src(1, 16) if multicast else None

    def run(w: Any) -> None:
        ctas = participants(w, group)
        cluster = w.cta.cluster
        for lane, at in zip(list(w.lanes), addresses(w, address)):
            if mask is None:
                targets = [shared_place(w, at)[0]]
            else:
                bits = uniform(w.regs[mask], 16, lane) & MASK[16]
                if bits >> cluster.size:
                    raise Misuse(f"CTA mask {bits:#x} of tcgen05.commit in a cluster of {cluster.size}")
                targets = [cta for cta in cluster.ctas if bits >> cta.rank & 1]
            submit(w, "tcgen05.commit", ctas, _arrival(w.machine, targets, at & OFFSET_MASK))

    return run


def _arrival(machine: Any, targets: list[Any], offset: int) -> Any:
    def run(op: AsyncOp) -> None:
        for cta in targets:
            barrier = cta.mbarrier(offset)
            if machine.observer is not None:
                machine.observer.release(op, barrier)
            barrier.arrive()
        machine.version += 1

    return run
