"""Control flow, warp-level communication, and instructions that only tune (PTX ISA 9.7.12, 9.7.9.6, 9.7.13, 9.7.19)."""

from typing import Any

import numpy as np

from .. import floatmath
from ..errors import Misuse, UnknownInstruction
from ..opcodes import opcode
from ..program import Binder, Execute
from ..ptx import TYPE_BITS
from ..values import LANE, LANES, MASK, UNSIGNED, row, uniform
from ..warp import ALL_LANES, SWITCHED, YIELDED, NotConverged


@opcode("bra", section="9.7.12.3", handles_predicate=True)
def branch(b: Binder) -> Execute:
    """bra[.uni]; lanes that disagree become two paths."""
    is_uniform = b.flag("uni")
    target = b.label(0)
    if b.instruction.predicate is None:
        return lambda w: target
    predicate, negated = b.predicate()

    def run(w: Any) -> Any:
        p = w.regs[predicate]
        if p is True or p is False:
            return target if p is not negated else None
        taken = w.mask & (row(p, 1) if not negated else ~row(p, 1))
        if not taken.any():
            return None
        if (taken == w.mask).all():
            return target
        if is_uniform:
            raise Misuse("bra.uni diverges")
        w.split(taken, target)
        return SWITCHED

    return run


@opcode("ret", section="9.7.12.6", handles_predicate=True)
@opcode("exit", section="9.7.12.7", handles_predicate=True)
def leave(b: Binder) -> Execute:
    """ret and exit end the lanes that execute them (there are no function calls)."""
    b.ignore("uni")

    def everyone(w: Any) -> Any:
        w.exit_path()
        return SWITCHED

    if b.instruction.predicate is None:
        return everyone
    predicate, negated = b.predicate()

    def run(w: Any) -> Any:
        p = row(w.regs[predicate], 1)
        leaving = w.mask & (p if not negated else ~p)
        if not leaving.any():
            return None
        if (leaving == w.mask).all():
            return everyone(w)
        w.drop(leaving)
        return SWITCHED

    return run


@opcode("trap", section="9.7.19.4")
@opcode("brkpt", section="9.7.19.1")
def trap(b: Binder) -> Execute:
    """trap ends the launch with an error."""

    def run(w: Any) -> None:
        raise Misuse("the kernel executed trap")

    return run


@opcode("setmaxnreg", section="9.7.19.5")
def set_max_registers(b: Binder) -> Execute:
    """setmaxnreg.{inc,dec}: remembered per warp; the sum is checked by `checks`."""
    b.one_of("inc", "dec")
    b.ignore("sync", "aligned")
    b.type()
    count = b.immediate(0)
    if count % 8 or not 24 <= count <= 256:
        raise Misuse(f"setmaxnreg with {count} registers: must be a multiple of 8 from 24 to 256")

    def run(w: Any) -> None:
        require_converged(w)
        w.state["registers"] = count
        if w.machine.observer is not None:
            w.machine.observer.fence(w, "setmaxnreg")

    return run


def require_converged(w: Any) -> None:
    """For `.aligned` instructions: all 32 lanes must execute them together; those that are on their way are waited for."""
    if not w.is_full:
        if len(w.paths) > 1:
            raise NotConverged(w, ALL_LANES)
        if len(w.lanes) == w.machine.shape.block.size - LANES * w.number:
            return  # the last warp of a block whose size is no multiple of 32
        raise Misuse(f"an .aligned instruction is executed by lanes {w.lanes} only")


@opcode("nanosleep", section="9.7.19.2")
def sleep(b: Binder) -> Execute:
    """nanosleep: other warps, and other lanes of this one, get their turn."""
    b.type()
    b.src(0, 32)
    return lambda w: YIELDED


@opcode("prefetch", "prefetchu", section="9.7.9.15")
@opcode("applypriority", section="9.7.9.16")
@opcode("discard", section="9.7.9.17")
@opcode("createpolicy", section="9.7.9.18")
@opcode("cp.async.bulk.prefetch", section="9.7.9.25.4.3")
@opcode("cp.async.bulk.prefetch.tensor", section="9.7.9.25.5.4")
@opcode("pmevent", section="9.7.19.3")
def hint(b: Binder) -> Execute:
    """Hints without an architectural effect; createpolicy yields an opaque zero."""
    b.unused.clear()
    if b.instruction.opcode.startswith("createpolicy"):
        out = b.out(0)

        def run(w: Any) -> None:
            w.regs[out] = 0

        return run
    return lambda w: None


@opcode("griddepcontrol", section="9.7.13.13")
def grid_dependency(b: Binder) -> Execute:
    """griddepcontrol: launches run one after another here, so the wait is over at once."""
    b.one_of("launch_dependents", "wait")
    return lambda w: None


# ---- warp level -------------------------------------------------------------------------------------------------------


@opcode("elect", section="9.7.13.14")
def elect(b: Binder) -> Execute:
    """elect.sync d|p, mask: one lane of the active ones (the lowest) gets True."""
    b.ignore("sync")
    names = [name.strip() for name in b.operands[0].split("|")]
    lane_out, out, members = b.out(names[0]), b.out(names[1]), b.src(1, 32)
    masks = [LANE == lane for lane in range(32)]

    def run(w: Any) -> None:
        await_members(w, members)
        w.regs[lane_out] = w.first
        w.regs[out] = masks[w.first] if len(w.lanes) > 1 else True

    return run


@opcode("activemask", section="9.7.13.11")
def active_mask(b: Binder) -> Execute:
    """activemask.b32."""
    b.type()
    out = b.out(0)

    def run(w: Any) -> None:
        w.regs[out] = sum(1 << lane for lane in w.lanes)

    return run


def await_members(w: Any, slot: int) -> None:
    """`.sync`: lanes that the membermask names and that are still elsewhere are waited for."""
    if len(w.paths) > 1:
        members = (np.uint32(uniform(w.regs[slot], 32, w.first)) >> LANE & np.uint32(1)).astype(bool)
        if any((path.mask & members).any() for path in w.paths if path is not w.path):
            raise NotConverged(w, members)


def lanes_of_mask(w: Any, slot: int) -> list[int]:
    """Active lanes named by a membermask; all of them must be here, since a warp-level operation waits for them."""
    await_members(w, slot)
    mask = uniform(w.regs[slot], 32, w.first)
    here = [lane for lane in w.lanes if mask >> lane & 1]
    if mask != MASK[32] and len(here) != mask.bit_count():
        missing = [lane for lane in range(32) if mask >> lane & 1 and lane not in here]
        raise Misuse(f"lanes {missing} of membermask {mask:#x} do not take part")
    return here


@opcode("shfl", section="9.7.9.6")
def shuffle(b: Binder) -> Execute:
    """shfl.sync.{up,down,bfly,idx}.b32 d[|p], a, b, c, membermask."""
    b.ignore("sync")
    mode = b.one_of("up", "down", "bfly", "idx")
    if TYPE_BITS[b.type()] != 32:
        raise UnknownInstruction("shfl of other than 32 bits")
    names = [name.strip() for name in b.operands[0].split("|")]
    outs = [b.out(name) for name in names]
    x, step, clamp, members = b.src(1, 32), b.src(2, 32), b.src(3, 32), b.src(4, 32)
    lane = LANE.astype(np.int64)

    def run(w: Any) -> None:
        await_members(w, members)
        regs = w.regs
        value, n, c = regs[x], regs[step], regs[clamp]
        if value.__class__ is int and len(outs) == 1:
            regs[outs[0]] = value
            return
        n, c = row(n, 32).astype(np.int64) & 31, row(c, 32).astype(np.int64)
        segment, limit = c >> 8 & 31, c & 31
        low = (lane & segment) | (limit & ~segment & 31) if mode == "up" else lane & segment
        high = (lane & segment) | (limit & ~segment & 31)
        if mode == "up":
            source, valid = lane - n, lane - n >= high
        elif mode == "down":
            source, valid = lane + n, lane + n <= high
        elif mode == "bfly":
            source, valid = lane ^ n, (lane ^ n) <= high
        else:
            source = low | (n & ~segment & 31)
            valid = source <= high
        source = np.where(valid, source, lane)
        if not w.is_full and not w.mask[source[w.mask]].all():
            raise Misuse("shfl.sync reads a lane that does not take part")
        regs[outs[0]] = row(value, 32)[source]
        if len(outs) > 1:
            regs[outs[1]] = valid

    return run


@opcode("vote", section="9.7.13.9")
def vote(b: Binder) -> Execute:
    """vote.sync.{all,any,uni}.pred and .ballot.b32."""
    b.ignore("sync")
    mode = b.one_of("all", "any", "uni", "ballot")
    b.type()
    out, p, members = b.out(0), b.src(b.operands[1].lstrip("!"), 1), b.src(2, 32)
    negated = b.operands[1].startswith("!")

    def run(w: Any) -> None:
        await_members(w, members)
        values = row(w.regs[p], 1)[w.mask] != negated
        if mode == "ballot":
            w.regs[out] = sum(1 << lane for lane, v in zip(w.lanes, values) if v)
        else:
            w.regs[out] = bool({"all": values.all(), "any": values.any()}.get(mode, values.all() or not values.any()))

    return run


@opcode("match", section="9.7.13.10")
def match(b: Binder) -> Execute:
    """match.sync.{any,all}."""
    b.ignore("sync")
    mode = b.one_of("any", "all")
    bits = TYPE_BITS[b.type()]
    names = [name.strip() for name in b.operands[0].split("|")]
    outs = [b.out(name) for name in names]
    x, members = b.src(1, bits), b.src(2, 32)

    def run(w: Any) -> None:
        await_members(w, members)
        values = row(w.regs[x], bits)
        active = sum(1 << lane for lane in w.lanes)
        if mode == "all":
            same = len(set(values[w.mask].tolist())) == 1
            w.regs[outs[0]] = active if same else 0
            if len(outs) > 1:
                w.regs[outs[1]] = same
            return
        equal = (values[:, None] == values[None, :]) & w.mask[None, :]
        w.regs[outs[0]] = (equal * (np.uint64(1) << LANE.astype(np.uint64))).sum(1).astype(np.uint32)

    return run


@opcode("redux", section="9.7.13.12")
def warp_reduce(b: Binder) -> Execute:
    """redux.sync.{add,min,max,and,or,xor} on integers, {min,max}[.abs][.NaN] on f32."""
    b.ignore("sync")
    mode = b.one_of("add", "min", "max", "and", "or", "xor")
    absolute, keep_nan = b.flag("abs"), b.flag("NaN")
    kind = b.type()
    out, x, members = b.out(0), b.src(1, 32), b.src(2, 32)
    function: Any = {
        "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[mode]  # fmt: skip
    view: Any = np.int32 if kind == "s32" else np.uint32
    if kind == "f32" and mode not in ("min", "max") or kind != "f32" and (absolute or keep_nan):
        raise UnknownInstruction(f"redux {mode} of .{kind}")
    if kind == "f32":
        function = floatmath.operation(f"{mode}{'.NaN' * keep_nan}{'.abs' * absolute}.f32")

    def run(w: Any) -> None:
        await_members(w, members)
        values = row(w.regs[x], 32).view(view)[w.mask]
        # Of a lane with itself: its magnitude, the canonical NaN.
        result = function(values[:1], values[:1]) if mode in ("min", "max") else values[:1]
        for i in range(1, len(values)):
            result = function(result, values[i : i + 1])
        w.regs[out] = int(result.view(UNSIGNED[32])[0])

    return run
