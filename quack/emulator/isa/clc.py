"""Cluster launch control: try_cancel and query_cancel (PTX ISA 9.7.13.17, 9.7.13.18).

A request takes the next cluster of the launch that has not started. The 16-byte response is opaque in the ISA; here its
words are ctaid.x, y, z of the first CTA of that cluster and 1, or zeros. A request may fail although clusters are left; under
random schedules it sometimes does. Where a launch has clusters of two shapes, see `cluster_queue`.
"""

import struct
from typing import Any

import numpy as np

from ..asynchrony import AsyncOp
from ..errors import IllegalAccess, Misuse, UnknownInstruction
from ..memory import OFFSET_MASK
from ..observer import Access, Proxy
from ..opcodes import opcode
from ..program import Binder, Execute
from ..values import MASK
from .data import shared_place
from .sync import addresses, complete_transactions

RESPONSE_BYTES = 16
FAILURE_RATE = 0.125  # of requests, under random schedules


@opcode("clusterlaunchcontrol.try_cancel", section="9.7.13.17")
def try_cancel(b: Binder) -> Execute:
    """clusterlaunchcontrol.try_cancel.async[.shared::cta].mbarrier::...[.multicast::cluster::all].b128 [addr], [mbar]."""
    b.ignore("async", "shared::cta", "b128")
    if not b.flag("mbarrier::complete_tx::bytes"):
        raise UnknownInstruction("try_cancel without .mbarrier::complete_tx::bytes")
    multicast = b.flag("multicast::cluster::all")
    response, barrier = b.address(0), b.address(1)

    def run(w: Any) -> None:
        for to, at in zip(addresses(w, response), addresses(w, barrier)):
            cta, offset = shared_place(w, to)
            if cta is not w.cta or shared_place(w, at)[0] is not w.cta:
                raise Misuse("try_cancel with an address or an mbarrier in another CTA")
            if offset % RESPONSE_BYTES:
                raise IllegalAccess(
                    f"response of try_cancel at offset {offset}: must be a multiple of {RESPONSE_BYTES}"
                )
            cta.smem.check(offset, RESPONSE_BYTES)
            targets = w.cta.cluster.ctas if multicast else [w.cta]
            op = AsyncOp("try_cancel", w, w.instruction, [])
            op.remaining.append(_cancellation(w, op, targets, offset, at & OFFSET_MASK))
            w.machine.submit(op)

    return run


def _cancellation(w: Any, op: AsyncOp, targets: list[Any], offset: int, barrier: int) -> Any:
    machine = w.machine

    def run() -> None:
        words = (0, 0, 0, 0)
        fails = machine.random is not None and machine.random.random() < FAILURE_RATE
        if not fails and (place := machine.waiting.take(w.cta.cluster.dims)) is not None:
            words = (*place.origin, 1)
        data = np.frombuffer(struct.pack("<4I", *words), np.uint8)
        for cta in targets:
            if machine.observer is not None:
                where = np.array([offset])
                machine.observer.shared(op, cta, where, RESPONSE_BYTES, Access.WRITE, Proxy.ASYNC)
            cta.smem.bytes[offset : offset + RESPONSE_BYTES] = data
            complete_transactions(w, op, cta.mbarrier(barrier), RESPONSE_BYTES)

    return run


@opcode("clusterlaunchcontrol.query_cancel", section="9.7.13.18")
def query_cancel(b: Binder) -> Execute:
    """clusterlaunchcontrol.query_cancel.{is_canceled, get_first_ctaid[::x,y,z]} of a response in a .b128 register."""
    fields = {"get_first_ctaid::x": 0, "get_first_ctaid::y": 1, "get_first_ctaid::z": 2, "get_first_ctaid": 0}
    what = b.one_of("is_canceled", *fields)
    b.ignore("pred", "b32", "b128", "v4")
    outs, source = b.outs(0), b.src(1, 128)
    first = 3 if what == "is_canceled" else fields[what]

    def run(w: Any) -> None:
        value = w.regs[source]
        for i, out in enumerate(outs):
            shift = 32 * (first + i) if i < 3 else 96  # the fourth element of .v4 is unspecified
            words: Any
            if value.__class__ is np.ndarray:
                words = np.array([int(v) >> shift & MASK[32] for v in value], np.uint32)
            else:
                words = (value or 0) >> shift & MASK[32]
            w.regs[out] = words != 0 if what == "is_canceled" else words

    return run
