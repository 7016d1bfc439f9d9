"""Roles: which warps of a CTA do the same, judged by the regions that they executed, and what to call it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..program import Program
from .regions import LOAD, MULTIPLY, STORE, find_regions, tool_of, wait_of

SAME_ROLE = 0.5  # of the instructions in regions that not every warp executes, how many two warps must have in common


class Role(NamedTuple):
    """Warps (numbers in their CTA) that execute the same code."""

    name: str
    warps: tuple[int, ...]


def find_roles(program: Program, counts: Mapping[int, np.ndarray]) -> list[Role]:
    """counts: warp number -> how often its warps executed each region."""
    if not counts:
        return []
    found = find_regions(program)
    sizes = np.array([r.end - r.first for r in found])
    executed = {number: counts[number] > 0 for number in sorted(counts)}
    common = np.logical_and.reduce(list(executed.values()))
    groups: list[list[int]] = []
    for number, mine in executed.items():
        for group in groups:
            other = executed[group[0]]
            either = int(sizes[(mine | other) & ~common].sum())
            if either == 0 or int(sizes[mine & other & ~common].sum()) >= SAME_ROLE * either:
                group.append(number)
                break
        else:
            groups.append([number])
    made = []
    for group in groups:
        regions_run = np.flatnonzero(np.logical_or.reduce([executed[number] for number in group]))
        opcodes = {i.opcode for r in regions_run for i in program.instructions[found[r].first : found[r].end]}
        made.append(Role(_role_name(opcodes), tuple(group)))
    return made


def _role_name(opcodes: set[str]) -> str:
    """What warps do, in the order of the data flow."""
    tools = {tool_of(opcode) for opcode in opcodes}

    def used(*names: str) -> list[str]:
        return [name for name in names if name in tools]

    loads, stores, schedules = [name.removesuffix(" load") for name in used(*LOAD)], used(*STORE), used("clc")
    is_math = bool(used(*MULTIPLY, "tcgen05.ld"))
    if is_math:
        # Who stores nothing but words to shared memory passes on an address, say.
        stores = [] if stores == ["st.shared"] else used("ld.global") + stores if stores else []
    else:
        loads += used("ld.global", "st.shared") if "ld.global" in tools else []
        stores = [name for name in stores if name != "st.shared"]
        if used("atom") and not loads:  # takes tiles from a counter in global memory
            schedules, stores = used("clc", "atom", "st.async"), []
    parts = {
        "schedules": schedules,
        "loads": loads,
        "multiply": used("tcgen05.cp", *MULTIPLY),
        "epilogue" if is_math else "stores": stores,
    }
    named = [f"{what} ({', '.join(how)})" for what, how in parts.items() if how]
    waits = {wait_of(opcode) for opcode in opcodes} - {None, "cluster barrier"}
    return ", ".join(named) or ("waits" if waits else "idle")


def letter(i: int) -> str:
    """A, B, ..., Z, A1, ..."""
    return chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "")


def role_of(roles: Sequence[Role], who: Any) -> str:
    """The letter of the role that a warp number belongs to; kinds of operations stay."""
    if isinstance(who, str):
        return who
    return next((letter(i) for i, role in enumerate(roles) if who in role.warps), f"warp {who}")
