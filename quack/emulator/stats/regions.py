"""What an instruction is for, and regions: the runs of instructions that are executed together.

Counting a region where it begins counts all of its instructions at the price of one; and since a region is in one phase
(multiplies, stores, neither), what is counted in front of a phase and behind it are whole regions.
"""

import functools
from enum import Enum
from typing import NamedTuple, Optional

from ..program import Program

MULTIPLY = ("wgmma", "mma", "tcgen05.mma")
LOAD = ("tma load", "bulk load", "cp.async")
STORE = ("tcgen05.ld", "stmatrix", "st.shared", "tma store", "bulk store", "st.global", "red")


@functools.cache
def tool_of(opcode: str) -> Optional[str]:
    """What moves data or multiplies: "tma load", "wgmma", "st.global", ...; None for everything else."""
    parts = opcode.split(".")
    head, names = parts[0], [part.partition("::")[0] for part in parts]
    space = next((name for name in names if name in ("shared", "global", "param", "local", "const")), "global")
    if head == "mma" or opcode.startswith("wgmma.mma_async"):
        return head
    if head == "tcgen05":
        return f"tcgen05.{parts[1]}" if parts[1] in ("mma", "ld", "st", "cp") else None
    if head == "cp":
        if {"commit_group", "wait_group", "wait_all", "prefetch", "mbarrier"} & set(parts):
            return None
        engine = "tma" if "tensor" in parts else "bulk"
        return f"{engine} {'store' if space == 'global' else 'load'}" if "bulk" in parts else "cp.async"
    if head in ("ldmatrix", "stmatrix"):
        return head
    if head == "clusterlaunchcontrol":
        return "clc" if parts[1] == "try_cancel" else None
    if head in ("ld", "st", "red", "atom"):
        if "async" in parts:
            return "st.async"
        if space in ("param", "local", "const"):
            return None
        return head if head in ("red", "atom") and space == "global" else f"{head}.{space}"
    return None


@functools.cache
def wait_of(opcode: str) -> Optional[str]:
    """What an instruction waits for; None if it is not a wait."""
    parts = opcode.split(".")
    if parts[0] == "mbarrier" and parts[1] in ("try_wait", "test_wait"):
        return "mbarrier"
    if opcode.startswith("barrier.cluster"):
        return "cluster barrier" if "wait" in parts else None
    if parts[0] in ("bar", "barrier"):
        return "barrier" if "sync" in parts and "warp" not in parts else None
    if opcode.startswith("wgmma.wait_group"):
        return "wgmma group"
    if opcode.startswith("cp.async.bulk.wait_group"):
        return "bulk group, read" if "read" in parts else "bulk group"
    if opcode.startswith(("cp.async.wait_group", "cp.async.wait_all")):
        return "cp.async group"
    return ".".join(parts[:2]) if opcode.startswith("tcgen05.wait") else None


class Phase(Enum):
    """What a region does in a tile: multiplies, stores results, or neither."""

    PLAIN = 0
    MULTIPLY = 1
    STORE = 2


class Region(NamedTuple):
    """Instructions [first, end): whoever executes the first executes all of them."""

    first: int
    end: int
    phase: Phase


_MAY_STOP = set("bar barrier mbarrier wgmma tcgen05 cp elect shfl vote match redux setmaxnreg".split())


def find_regions(program: Program) -> list[Region]:
    """Cuts at branch targets, behind branches, around what may stop a path, and where the phase changes.

    A warp's paths meet where one of them stands still, which is the beginning of a region. (Only paths that spin for
    thousands of instructions, waiting for each other, may meet inside of one, whose rest then counts twice.)
    """
    count = len(program.instructions)
    phases = [_phase(i.opcode) for i in program.instructions]
    starts = {0, *(i for i in range(1, count) if phases[i] is not phases[i - 1])}
    for i in program.instructions:
        parts = i.parts
        if parts[0] == "bra":
            starts |= {i.index + 1, i.scope.label(i.operands[0]) or 0}
        elif parts[0] in ("ret", "exit", "trap", "brkpt"):
            starts.add(i.index + 1)
        elif parts[0] in _MAY_STOP or "sync" in parts or "aligned" in parts:
            starts |= {i.index, i.index + 1}
    cuts = [*sorted(start for start in starts if start < count), count]
    return [Region(first, end, phases[first]) for first, end in zip(cuts, cuts[1:])]


def _phase(opcode: str) -> Phase:
    tool = tool_of(opcode)
    return Phase.MULTIPLY if tool in MULTIPLY else Phase.STORE if tool in STORE else Phase.PLAIN
