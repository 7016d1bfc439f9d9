"""Barriers and fences (PTX ISA 9.7.13.1 to 9.7.13.4, 9.7.13.15)."""

from typing import Any, Optional

import numpy as np

from ..asynchrony import AsyncOp
from ..barriers import Mbarrier, NamedBarrier
from ..errors import Misuse, UnknownInstruction
from ..opcodes import opcode
from ..program import Address, Binder, Execute
from ..values import LANES, row, uniform
from ..warp import Wait
from .control import lanes_of_mask, require_converged
from .data import address_value, shared_place

_SEMANTICS = ("relaxed", "acquire", "release", "acq_rel", "cta", "cluster")
_SPACES = ("shared", "shared::cta", "shared::cluster", "b64")


def addresses(w: Any, address: Address) -> list[int]:
    """The address in each active lane."""
    value = address_value(w, address)
    if value.__class__ is int:
        return [value] * len(w.lanes)
    return [int(value[lane]) for lane in w.lanes]


def scattered(w: Any, values: list[Any], dtype: Any) -> np.ndarray:
    """A row with one of `values` in each active lane."""
    lanes = np.zeros(LANES, dtype)
    lanes[w.lanes] = values
    return lanes


def barrier_at(w: Any, address: int) -> Mbarrier:
    """The mbarrier that an address names, in any CTA of the cluster."""
    cta, offset = shared_place(w, address)
    return cta.mbarrier(offset)


def complete_transactions(w: Any, actor: Any, barrier: Mbarrier, count: int) -> None:
    """An asynchronous operation delivers `count` bytes to a barrier."""
    if w.machine.observer is not None:
        w.machine.observer.release(actor, barrier)
    barrier.complete(count)
    w.machine.version += 1


# ---- mbarrier ---------------------------------------------------------------------------------------------------------


@opcode("mbarrier.init", section="9.7.13.15.9")
def mbarrier_init(b: Binder) -> Execute:
    """mbarrier.init [addr], count."""
    b.ignore(*_SPACES)
    address, count = b.address(0), b.src(1, 32)

    def run(w: Any) -> None:
        counts = row(w.regs[count], 32)
        for lane, at in zip(w.lanes, addresses(w, address)):
            cta, offset = shared_place(w, at)
            cta.smem.check(offset, 8)
            if offset % 8:
                raise Misuse(f"mbarrier at offset {offset} is not aligned to 8 bytes")
            if cta is not w.cta:
                raise Misuse("mbarrier.init of a barrier in another CTA")
            if offset in cta.mbarriers:
                raise Misuse(f"{cta.mbarriers[offset]} is initialised again without mbarrier.inval")
            barrier = Mbarrier(cta.rank, offset, int(counts[lane]))
            cta.mbarriers[offset] = barrier
            w.machine.version += 1
            if w.machine.observer is not None:
                w.machine.observer.barrier_init(w, barrier)

    return run


@opcode("mbarrier.inval", section="9.7.13.15.10")
def mbarrier_inval(b: Binder) -> Execute:
    """mbarrier.inval [addr]."""
    b.ignore(*_SPACES)
    address = b.address(0)

    def run(w: Any) -> None:
        for at in addresses(w, address):
            cta, offset = shared_place(w, at)
            barrier = cta.mbarrier(offset)
            if w.machine.observer is not None:
                w.machine.observer.barrier_end(w, barrier)
            del cta.mbarriers[offset]

    return run


@opcode("mbarrier.expect_tx", section="9.7.13.15.11")
@opcode("mbarrier.complete_tx", section="9.7.13.15.12")
def mbarrier_transactions(b: Binder) -> Execute:
    """mbarrier.expect_tx and complete_tx [addr], bytes: relaxed, so they order nothing."""
    is_expect = "expect_tx" in b.instruction.opcode
    b.ignore(*_SEMANTICS, *_SPACES)
    address, count = b.address(0), b.src(1, 32)

    def run(w: Any) -> None:
        counts = row(w.regs[count], 32)
        for lane, at in zip(w.lanes, addresses(w, address)):
            barrier = barrier_at(w, at)
            if is_expect:
                barrier.expect(int(counts[lane]))
            else:
                barrier.complete(int(counts[lane]))
            w.machine.version += 1

    return run


@opcode("mbarrier.arrive", section="9.7.13.15.13")
@opcode("mbarrier.arrive_drop", section="9.7.13.15.14")
def mbarrier_arrive(b: Binder) -> Execute:
    """mbarrier.arrive[_drop][.expect_tx][.noComplete] [state,] [addr][, count]."""
    is_drop = b.instruction.opcode.startswith("mbarrier.arrive_drop")
    expects = b.flag("expect_tx")
    is_relaxed = b.flag("relaxed")
    b.ignore("noComplete", *_SEMANTICS, *_SPACES)
    first = 0 if b.operands[0].startswith("[") else 1
    state = b.out(0) if first else None
    address = b.address(first)
    count = b.src(first + 1, 32) if b.has_operand(first + 1) else None

    def run(w: Any) -> None:
        counts = row(w.regs[count], 32) if count is not None else None
        phases = []
        for lane, at in zip(w.lanes, addresses(w, address)):
            barrier = barrier_at(w, at)
            phases.append(barrier.phase)
            if w.machine.observer is not None:
                w.machine.observer.release(w, barrier, is_relaxed)
            amount = 1 if counts is None else int(counts[lane])
            if expects:
                barrier.expect(amount)
                amount = 1
            if is_drop:
                barrier.drop(amount)
            barrier.arrive(amount)
            w.machine.version += 1
        if state is not None:
            w.regs[state] = phases[0] if len(set(phases)) == 1 else scattered(w, phases, np.uint64)

    return run


@opcode("mbarrier.try_wait", "mbarrier.test_wait", section="9.7.13.15.16")
def mbarrier_wait(b: Binder) -> Execute:
    """mbarrier.{try,test}_wait[.parity] p, [addr], phase[, hint].

    A failing wait stops the warp until the phase completes; should nothing else be able to run, it returns false (the
    time limit of try_wait passed). Random schedules also let it return false at once.
    """
    is_parity = b.flag("parity")
    is_relaxed = b.flag("relaxed")
    b.ignore(*_SEMANTICS, *_SPACES)
    out, address, phase = b.out(0), b.address(1), b.src(2, 32 if is_parity else 64)

    def own_barrier(w: Any, at: int) -> Mbarrier:
        cta, offset = shared_place(w, at)
        if cta is not w.cta:
            raise Misuse("mbarrier wait on a barrier in another CTA")
        return cta.mbarrier(offset)

    def each_lane(w: Any) -> Optional[Wait]:
        """Lanes with barriers or phases of their own: the warp stops only while all would fail."""
        waits = [
            (own_barrier(w, at), uniform(w.regs[phase], 64, lane) & 1)
            for lane, at in zip(w.lanes, addresses(w, address))
        ]
        passed = [barrier.has_passed(parity) for barrier, parity in waits]
        w.regs[out] = scattered(w, passed, np.bool_)
        if w.machine.observer is not None:
            for barrier in {id(barrier): barrier for (barrier, _), done in zip(waits, passed) if done}.values():
                w.machine.observer.acquire(w, barrier, is_relaxed)
        if any(passed):
            return None
        text = f"{waits[0][0]}, parity {waits[0][1]}, and other barriers in other lanes"
        return Wait(lambda: any(barrier.has_passed(parity) for barrier, parity in waits), text, is_soft=True)

    def run(w: Any) -> Optional[Wait]:
        value, token = address_value(w, address), w.regs[phase]
        at = value if value.__class__ is int else int(value[w.first])
        expected = uniform(token, 64, w.first)
        if value.__class__ is not int and (value[w.mask] != at).any():
            return each_lane(w)
        if token.__class__ is np.ndarray and (token[w.mask] != expected).any():
            return each_lane(w)
        barrier = own_barrier(w, at)
        # A state token names the phase in which it was taken.
        parity = expected & 1
        if barrier.phase & 1 != parity:
            w.regs[out] = True
            if w.machine.observer is not None:
                w.machine.observer.acquire(w, barrier, is_relaxed)
            return None
        w.regs[out] = False
        if w.machine.random is not None and w.machine.random.random() < 0.25:
            return None  # what it may always do: kernels that look once have to look again
        return Wait(lambda: barrier.phase & 1 != parity, f"{barrier}, parity {parity}", is_soft=True)

    return run


@opcode("mbarrier.pending_count", section="9.7.13.15.17")
def mbarrier_pending(b: Binder) -> Execute:
    """mbarrier.pending_count: tokens hold no count here, so it is refused."""
    raise UnknownInstruction("mbarrier.pending_count is not implemented")


@opcode("cp.async.mbarrier.arrive", section="9.7.13.15.15")
def mbarrier_arrive_on_copies(b: Binder) -> Execute:
    """cp.async.mbarrier.arrive[.noinc]: arrives when all earlier cp.async of the thread are done."""
    no_increment = b.flag("noinc")
    b.ignore(*_SPACES)
    address = b.address(0)

    def run(w: Any) -> None:
        targets = [barrier_at(w, at) for at in addresses(w, address)]
        if not no_increment:
            for barrier in targets:
                barrier.pending += 1

        def arrive() -> None:
            for barrier in targets:
                if w.machine.observer is not None:
                    w.machine.observer.release(op, barrier)
                barrier.arrive()

        op = AsyncOp("cp.async arrive", w, w.instruction, [arrive], queue=("cp.async", w.uid))
        w.machine.submit(op)

    return run


# ---- named barriers and the cluster barrier ---------------------------------------------------------------------------


@opcode("bar", "barrier", section="9.7.13.1 / 9.7.13.2")
def named_barrier(b: Binder) -> Execute:
    """bar / barrier {.sync, .arrive}[.aligned] a[, threads]; bar.warp.sync; barrier.cluster is below."""
    if b.flag("warp"):
        b.flag("sync")
        mask = b.src(0, 32)

        def warp_sync(w: Any) -> None:
            lanes_of_mask(w, mask)

        return warp_sync
    b.ignore("cta")
    action = b.one_of("sync", "arrive", "red")
    is_aligned = b.instruction.opcode.startswith("bar.") or b.flag("aligned")
    if action == "red":
        raise UnknownInstruction("barrier.red is not implemented")
    number = b.src(0, 32)
    threads = b.src(1, 32) if b.has_operand(1) else None

    def run(w: Any) -> Optional[Wait]:
        observer = w.machine.observer
        if w.named_ticket is not None:
            barrier, generation = w.named_ticket
            if barrier.generation == generation:
                return Wait(lambda: barrier.generation != generation, _on_named(barrier))
            w.named_ticket = None
            if observer is not None:
                observer.acquire(w, barrier)
            return None
        if is_aligned:
            require_converged(w)
        index = uniform(w.regs[number], 32, w.first)
        if not 0 <= index < 16:
            raise Misuse(f"barrier {index}: a CTA has barriers 0 to 15")
        barrier = w.cta.named_barriers.setdefault(index, NamedBarrier(index))
        if threads is None:
            size = w.machine.shape.block.size
            expected = -(-size // LANES) * LANES
        else:
            expected = uniform(w.regs[threads], 32, w.first)
            if expected % LANES or not expected:
                raise Misuse(f"barrier {index} with {expected} threads: must be a positive multiple of {LANES}")
        generation = barrier.generation
        if observer is not None:
            observer.release(w, barrier)
        done = barrier.arrive(w.number, LANES, expected)
        w.machine.version += 1
        if action == "arrive":
            return None
        if done:
            if observer is not None:
                observer.acquire(w, barrier)
            return None
        w.named_ticket = (barrier, generation)
        return Wait(lambda: barrier.generation != generation, _on_named(barrier))

    return run


def _on_named(barrier: NamedBarrier) -> str:
    return f"barrier {barrier.number} ({barrier.arrived} of {barrier.expected} threads arrived)"


@opcode("barrier.cluster", section="9.7.13.3")
def cluster_barrier(b: Binder) -> Execute:
    """barrier.cluster.{arrive,wait}[.relaxed,.release,.acquire][.aligned]."""
    action = b.one_of("arrive", "wait")
    is_relaxed = b.flag("relaxed")
    b.ignore("release", "acquire")
    is_aligned = b.flag("aligned")

    def arrive(w: Any) -> None:
        if is_aligned:
            require_converged(w)
        barrier = w.cta.cluster.barrier
        if w.cluster_generation is not None:
            raise Misuse("barrier.cluster.arrive twice without a wait")
        if w.machine.observer is not None:
            w.machine.observer.release(w, barrier, relaxed=is_relaxed)
        w.cluster_generation = barrier.generation
        barrier.arrive(w.uid)
        w.machine.version += 1

    def wait(w: Any) -> Optional[Wait]:
        barrier, generation = w.cta.cluster.barrier, w.cluster_generation
        if generation is None:
            raise Misuse("barrier.cluster.wait without an arrive")
        if barrier.generation == generation:
            return Wait(
                lambda: barrier.generation != generation,
                f"the cluster barrier ({len(barrier.arrived)} of {len(barrier.expected)} warps arrived)",
            )
        w.cluster_generation = None
        if w.machine.observer is not None:
            w.machine.observer.acquire(w, barrier)
        return None

    return arrive if action == "arrive" else wait


# ---- fences -----------------------------------------------------------------------------------------------------------


@opcode("fence", "membar", section="9.7.13.4")
def fence(b: Binder) -> Execute:
    """fence.{sc,acq_rel,acquire,release}, fence.proxy.*, fence.mbarrier_init: only checkers see them."""
    kind = b.instruction.opcode.partition(".")[2]
    b.unused.clear()

    def run(w: Any) -> None:
        if w.machine.observer is not None:
            w.machine.observer.fence(w, kind)

    return run
