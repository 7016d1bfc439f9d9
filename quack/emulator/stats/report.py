"""What was counted of a kernel as tables for a terminal, and as a dict for JSON."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from .kernel import Barrier, KernelStats
from .roles import Role, letter, role_of

WIDTH = 110
_TOP = 14  # opcodes that are shown
_SITES = 12  # sites with bank conflicts that are shown


def as_dict(kernel: KernelStats) -> dict[str, Any]:
    """Everything, of types that JSON has."""
    roles, instructions = kernel.roles, kernel.program.instructions
    return {
        "kernel": kernel.program.kernel.name,
        "target": kernel.program.kernel.target,
        "launches": [{**shape._asdict(), "count": count} for shape, count in kernel.shapes.items()],
        "launches_completed": kernel.completed,
        "ctas": kernel.ctas,
        "instructions": kernel.instructions(),
        "roles": [
            {
                "name": role.name,
                "warps": list(role.warps),
                "instructions": kernel.instructions(role.warps),
                "opcodes": dict(kernel.opcodes(role.warps).most_common()),
            }
            for role in roles
        ],
        "waits": [
            {
                "barrier": barrier[0],
                "number": barrier[1],
                "warp": warp,
                "line": instructions[index].line,
                "found_complete": found[0],
                "blocked": found[1],
            }
            for (barrier, warp, index), found in sorted(kernel.waits.items())
        ],
        "arrivals": [
            {"barrier": barrier[0], "number": barrier[1], "by": who, "count": count}
            for (barrier, who), count in sorted(kernel.arrivals.items(), key=lambda item: str(item))
        ],
        "memory": [
            {"space": space, "means": means, "direction": direction, "bytes": count}
            for (space, means, direction), count in sorted(kernel.traffic.items())
        ],
        "mma": [{"instruction": m.name, "count": count, "flops": m.flops * count} for m, count in kernel.mma.items()],
        "shared_accesses": [
            {
                "line": instructions[index].line,
                "instruction": str(instructions[index]),
                **asdict(site),
            }
            for index, site in kernel.worst_sites
        ],
        "work": {"tiles": kernel.tiles, "accumulators": kernel.elements, **kernel.work()},
    }


class _Table:
    """Rows under a title; numbers to the right, text to the left, the last column cut to fit."""

    def __init__(self, title: str, *columns: str) -> None:
        self.title, self.rows = title, [list(columns)]
        self.is_number = [False] * len(columns)

    def add(self, *cells: Any) -> None:
        self.is_number = [isinstance(c, int) or old for c, old in zip(cells, self.is_number)]
        self.rows.append([f"{c:,}" if isinstance(c, int) else str(c) for c in cells])

    def __str__(self) -> str:
        if len(self.rows) == 1:
            return f"{self.title}: none"
        widths = [max(len(row[i]) for row in self.rows) for i in range(len(self.rows[0]))]
        lines = [self.title]
        for row in self.rows:
            cells = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, self.is_number)]
            line = "  " + "  ".join(cells).rstrip()
            lines.append(line if len(line) <= WIDTH else line[: WIDTH - 3] + "...")
        return "\n".join(lines)


def report(kernel: KernelStats) -> str:
    """Tables, at most 110 columns wide."""
    roles = kernel.roles
    tables = [
        _head(kernel), _roles_table(kernel, roles), _opcodes_table(kernel, roles), _waits_table(kernel, roles),
        _traffic_table(kernel), _mma_table(kernel), _conflicts_table(kernel), _work_table(kernel),
    ]  # fmt: skip
    return "\n\n".join(str(table) for table in tables)


def _head(kernel: KernelStats) -> str:
    name = kernel.program.kernel.name
    lines = [f"kernel {name}"[:WIDTH]]
    for shape, count in kernel.shapes.items():
        lines.append(f"{count} launch{'es' * (count > 1)}: {shape}")
    missing = kernel.launches - kernel.completed
    if missing:
        lines.append(f"{missing} of them did not end: counted up to there")
    lines.append(f"{kernel.instructions():,} warp instructions, {kernel.program.kernel.target}")
    return "\n".join(lines)


def _roles_table(kernel: KernelStats, roles: Sequence[Role]) -> _Table:
    table = _Table("ROLES", "", "warps", "instr.", "per warp", "does")
    for i, role in enumerate(roles):
        count = kernel.instructions(role.warps)
        per_warp = count // (len(role.warps) * max(1, kernel.ctas))
        table.add(letter(i), number_list(role.warps), count, per_warp, role.name)
    return table


def number_list(numbers: Iterable[int]) -> str:
    """As in "0-3, 8"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _opcodes_table(kernel: KernelStats, roles: Sequence[Role]) -> _Table:
    by_role = [kernel.opcodes(role.warps) for role in roles[:5]]
    table = _Table("TOP OPCODES", "opcode", "all", *map(letter, range(len(by_role))))
    for opcode, count in kernel.opcodes().most_common(_TOP):
        name = opcode if len(opcode) <= 48 else opcode[:45] + "..."
        table.add(name, count, *(opcodes[opcode] for opcodes in by_role))
    return table


def _waits_table(kernel: KernelStats, roles: Sequence[Role]) -> _Table:
    """Neighbouring mbarriers that the same roles wait for and signal are one row."""
    table = _Table(
        "WAITS  (found complete or blocked: depends on the schedule; signals are those of threads and operations)",
        "barrier", "role", "complete", "blocked", "PTX lines", "signalled by",
    )  # fmt: skip
    waits: dict[Barrier, dict[str, list[tuple[int, int, int]]]] = defaultdict(lambda: defaultdict(list))
    for (barrier, warp, index), (complete, blocked) in kernel.waits.items():
        line = kernel.program.instructions[index].line
        waits[barrier][role_of(roles, warp)].append((line, complete, blocked))
    signals: dict[Barrier, Counter[str]] = defaultdict(Counter)
    for (barrier, who), count in kernel.arrivals.items():
        signals[barrier][role_of(roles, who)] += count
    for group in _neighbours(waits, lambda b: (sorted(waits[b]), sorted(signals[b]), kernel.expected.get(b))):
        arrivals = sum((signals[barrier] for barrier in group), Counter())
        by = ", ".join(f"{who} {count:,}" for who, count in sorted(arrivals.items()))
        for role in sorted(waits[group[0]]):
            at, complete_at, blocked_at = zip(*(found for barrier in group for found in waits[barrier][role]))
            lines = sorted(set(at))
            shown = ", ".join(map(str, lines[:3])) + (f" +{len(lines) - 3}" if len(lines) > 3 else "")
            table.add(_barrier_name(group), role, sum(complete_at), sum(blocked_at), shown, by)
    return table


def _neighbours(barriers: Iterable[Barrier], key: Callable[[Barrier], Any]) -> list[list[Barrier]]:
    """Groups of mbarriers side by side in shared memory that have the same key; all others alone."""
    groups: list[list[Barrier]] = []
    for barrier in sorted(barriers):
        last = groups[-1][-1] if groups else ("", 0)
        if barrier == ("mbarrier", last[1] + 8) and last[0] == "mbarrier" and key(last) == key(barrier):
            groups[-1].append(barrier)
        else:
            groups.append([barrier])
    return groups


def _barrier_name(group: Sequence[Barrier]) -> str:
    kind, number = group[0]
    if kind == "mbarrier":
        return f"mbarrier at {number}" if len(group) == 1 else f"mbarriers at {number}..{group[-1][1]} ({len(group)})"
    return f"barrier {number}" if kind == "barrier" else kind


def _traffic_table(kernel: KernelStats) -> _Table:
    directions = ("read", "written", "atomic")
    table = _Table("BYTES  (once per instruction and address)", "memory", "by", *directions)
    for space, means in sorted({(space, means) for space, means, _ in kernel.traffic}):
        table.add(space, means, *(kernel.bytes(space, means, direction) for direction in directions))
    return table


def _mma_table(kernel: KernelStats) -> _Table:
    table = _Table("MMA", "instruction", "count", "flops")
    for what, count in sorted(kernel.mma.items()):
        table.add(what.name, count, what.flops * count)
    return table


def _conflicts_table(kernel: KernelStats) -> _Table:
    sites = kernel.sites
    bad = [(kernel.program.instructions[index], site) for index, site in kernel.worst_sites if site.excess]
    ideal, actual = sum(s.ideal for s in sites.values()), sum(s.actual for s in sites.values())
    title = (
        f"BANK CONFLICTS at {len(bad)} of {len(sites)} places that access shared memory by ld, st, ldmatrix, stmatrix\n"
        f"  {actual:,} transactions, ideal {ideal:,}"
    )
    table = _Table(title, "line", "accesses", "ideal", "actual", "excess", "instruction")
    for i, site in bad[:_SITES]:
        table.add(str(i.line), site.accesses, site.ideal, site.actual, site.excess, i)
    return table


def _work_table(kernel: KernelStats) -> _Table:
    tiles = kernel.tiles
    size = f" of {kernel.elements // tiles:,} elements, each of one warpgroup, CTA or warp" if tiles else ""
    table = _Table(f"COUNTED WORK  ({tiles:,} accumulator tiles{size})", "", "all", "per CTA", "per tile")
    for name, count in kernel.work().items():
        per_tile: Any = count // tiles if tiles else "-"
        table.add(name.replace("_", " "), count, count // max(1, kernel.ctas), per_tile)
    return table
