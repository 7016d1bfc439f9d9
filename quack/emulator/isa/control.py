"""Control flow, warp-level communication, and instructions that only tune (PTX ISA 9.7.12, 9.7.9.6, 9.7.13, 9.7.19)."""

from typing import Any

import numpy as np

from ..errors import Misuse
from ..machine import SWITCHED
from ..opcodes import opcode
from ..program import Binder, Execute
from ..ptx import TYPE_BITS
from ..values import LANE, MASK, UNSIGNED, row, uniform


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


@opcode("ret", "exit", section="9.7.12.6 / 9.7.12.7", handles_predicate=True)
def leave(b: Binder) -> Execute:
    """ret and exit end the lanes that execute them (there are no function calls)."""
    b.ignore("uni")
    index = b.instruction.index

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
        w.split(~leaving & w.mask, index + 1)
        gone = next(path for path in w.paths if path.mask[leaving].all() and not path.mask[~leaving].any())
        w.enter(gone)
        return everyone(w)

    return run


@opcode("trap", "brkpt", section="9.7.19.4")
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
    """For `.aligned` instructions: all 32 lanes must execute them together."""
    if not w.is_full:
        raise Misuse(f"an .aligned instruction is executed by lanes {w.lanes} only")


@opcode(
    "prefetch", "prefetchu", "nanosleep", "pmevent", "discard", "applypriority", "cp.async.bulk.prefetch",
    "cp.async.bulk.prefetch.tensor", "createpolicy", section="9.7.9.15 to 9.7.9.27",
)  # fmt: skip
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
    lane_out, out = b.out(names[0]), b.out(names[1])
    masks = [LANE == lane for lane in range(32)]

    def run(w: Any) -> None:
        w.regs[lane_out] = w.first
        w.regs[out] = masks[w.first] if len(w.lanes) > 1 else True

    return run


@opcode("activemask", section="9.7.13.10")
def active_mask(b: Binder) -> Execute:
    """activemask.b32."""
    b.type()
    out = b.out(0)

    def run(w: Any) -> None:
        w.regs[out] = sum(1 << lane for lane in w.lanes)

    return run


def lanes_of_mask(w: Any, slot: int) -> list[int]:
    """Active lanes named by a membermask; all of them must be here, since a warp-level operation waits for them."""
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
    b.type()
    names = [name.strip() for name in b.operands[0].split("|")]
    outs = [b.out(name) for name in names]
    x, step, clamp = b.src(1, 32), b.src(2, 32), b.src(3, 32)
    lane = LANE.astype(np.int64)

    def run(w: Any) -> None:
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


@opcode("vote", section="9.7.13.7")
def vote(b: Binder) -> Execute:
    """vote.sync.{all,any,uni}.pred and .ballot.b32."""
    b.ignore("sync")
    mode = b.one_of("all", "any", "uni", "ballot")
    b.type()
    out, p = b.out(0), b.src(b.operands[1].lstrip("!"), 1)
    negated = b.operands[1].startswith("!")

    def run(w: Any) -> None:
        values = row(w.regs[p], 1)[w.mask] != negated
        if mode == "ballot":
            w.regs[out] = sum(1 << lane for lane, v in zip(w.lanes, values) if v)
        else:
            w.regs[out] = bool({"all": values.all(), "any": values.any()}.get(mode, values.all() or not values.any()))

    return run


@opcode("match", section="9.7.13.8")
def match(b: Binder) -> Execute:
    """match.sync.{any,all}."""
    b.ignore("sync")
    mode = b.one_of("any", "all")
    bits = TYPE_BITS[b.type()]
    names = [name.strip() for name in b.operands[0].split("|")]
    outs = [b.out(name) for name in names]
    x = b.src(1, bits)

    def run(w: Any) -> None:
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


@opcode("redux", section="9.7.13.9")
def warp_reduce(b: Binder) -> Execute:
    """redux.sync.{add,min,max,and,or,xor} on integers, {min,max}[.abs][.NaN] on f32."""
    b.ignore("sync")
    mode = b.one_of("add", "min", "max", "and", "or", "xor")
    absolute, keep_nan = b.flag("abs"), b.flag("NaN")
    kind = b.type()
    out, x = b.out(0), b.src(1, 32)
    function: Any = {
        "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[mode]  # fmt: skip
    view: Any = {"s32": np.int32, "f32": np.float32}.get(kind, np.uint32)
    if kind == "f32" and not keep_nan:
        function = np.fmin if mode == "min" else np.fmax

    def run(w: Any) -> None:
        values = row(w.regs[x], 32).view(view)[w.mask]
        if absolute:
            values = np.abs(values)
        result = values[0]
        for value in values[1:]:
            with np.errstate(over="ignore"):
                result = function(result, value)
        w.regs[out] = int(np.asarray(result, view).view(UNSIGNED[32]))

    return run
