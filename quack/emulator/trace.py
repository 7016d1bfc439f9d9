"""What happened in which order, as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open: an observer.

**Its clock is not time.** It counts warp instructions that the emulated machine has executed, one as 1 us, and warps take
turns: while one runs, all others stand still. An instruction of a warp and an MMA of a million flops cost the same. What the
trace shows is order: who waits for whom, what is in flight, how deep a pipeline runs ahead. Under the schedule `eager`
operations complete where they are issued; `latest` and `random:SEED` show them in flight.

A process is a CTA of a launch. Its tracks are its warps, named after their roles, with runs (named after what they execute)
and waits (barrier and PTX line), and its engines: TMA, tensor core, others, with as many tracks as operations overlap. Arrows
lead from the operation that completed a barrier to the wait that this ended.
"""

import json
import re
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from .asynchrony import AsyncOp
from .observer import Observer
from .program import Execute, Program
from .stats import Role, find_regions, find_roles, tool_of
from .warp import Wait

LIMIT = 1_000_000
_ENGINES = {
    "tma load": "TMA", "tma store": "TMA", "bulk load": "TMA", "bulk store": "TMA", "wgmma": "tensor core",
    "tcgen05.mma": "tensor core", "tcgen05.cp": "tensor core", "tcgen05.commit": "tensor core",
}  # fmt: skip
_ENGINE_ORDER = ("TMA", "tensor core", "others")
_FIRST_ENGINE, _LANES = 1000, 1000  # track numbers: warps below, then each engine's lanes
_LEAD = 0.25  # how far before its end an arrow touches a slice, so that it lies inside


class _Span:
    """Something on a track; `end` is None while it lasts."""

    __slots__ = ("args", "end", "name", "pid", "start", "tid")

    def __init__(self, name: str, pid: int, tid: int, start: int, args: dict[str, Any]) -> None:
        self.name, self.pid, self.tid, self.start, self.args = name, pid, tid, start, args
        self.end: Optional[int] = None

    @property
    def event(self) -> dict[str, Any]:
        end = self.start if self.end is None else self.end
        return {
            "ph": "X", "name": self.name, "pid": self.pid, "tid": self.tid, "ts": self.start, "dur": end - self.start,
            "args": self.args,
        }  # fmt: skip


class _Turn:
    """A warp's run so far: first and last PTX line, and what it used (in order)."""

    __slots__ = ("first", "last", "start", "tools", "warp")

    def __init__(self, warp: Any, start: int, line: int) -> None:
        self.warp, self.start, self.first, self.last = warp, start, line, line
        self.tools: dict[str, None] = {}


class _Process:
    """A CTA of a launch. lanes: engine -> the last operation on each of its tracks."""

    def __init__(self, pid: int, name: str, program: Program) -> None:
        self.pid, self.name, self.program = pid, name, program
        self.lanes: dict[str, list[_Span]] = {}
        self.warps: set[int] = set()


class Trace(Observer):
    """Records all launches that it observes, until there are `limit` spans; `save` writes the file."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.clock = 0
        self.launches = 0
        self.dropped = 0
        self.spans: list[_Span] = []
        self.arrows: list[tuple[_Span, _Span]] = []
        self.processes: list[_Process] = []
        self.ctas: dict[Any, _Process] = {}  # of the current launch
        self.executed: dict[Program, dict[int, np.ndarray]] = {}
        self.turn: Optional[_Turn] = None
        self.waiting: dict[Any, _Span] = {}
        self.in_flight: dict[AsyncOp, _Span] = {}
        self.signals: dict[Any, _Span] = {}
        self.resumed: dict[Any, tuple[_Span, Any]] = {}  # the wait that just ended, and its instruction

    # ---- launches and instructions ------------------------------------------------------------------------------------

    def instrument(self, machine: Any, code: list[Any]) -> list[Any]:
        self._close()
        self.launches += 1
        program = machine.program
        executed = self.executed.setdefault(program, {})
        found = find_regions(program)
        for warp in range(-(-machine.shape.block.size // 32)):
            executed.setdefault(warp, np.zeros(len(found), bool))
        wrapped = list(code)
        for number, region in enumerate(found):
            instructions = program.instructions[region.first : region.end]
            tools = dict.fromkeys(tool for i in instructions if (tool := tool_of(i.opcode)) is not None)
            lines = instructions[0].line, instructions[-1].line
            wrapped[region.first] = self._recording(
                code[region.first], executed, number, len(instructions), lines, tools
            )
        return wrapped

    def _recording(
        self, execute: Execute, executed: dict[int, np.ndarray], number: int, size: int, lines: tuple[int, int],
        tools: dict[str, None],
    ) -> Execute:  # fmt: skip
        first, last = lines

        def run(w: Any) -> Any:
            turn = self.turn
            if turn is None or turn.warp is not w:
                turn = self._begin_turn(w, first)
            result = execute(w)
            if result.__class__ is not Wait:
                self.clock += size
                executed[w.number][number] = True
                turn.last = last
                if tools:
                    turn.tools.update(tools)
            return result

        return run

    def finish(self, machine: Any) -> None:
        self._close()

    def _begin_turn(self, warp: Any, line: int) -> _Turn:
        self._end_turn()
        turn = self.turn = _Turn(warp, self.clock, line)
        return turn

    def _end_turn(self) -> None:
        turn, self.turn = self.turn, None
        if turn is not None and self.clock > turn.start:
            args = {"PTX lines": f"{turn.first} to {turn.last}", "instructions": self.clock - turn.start}
            name = f"run: {', '.join(turn.tools)}" if turn.tools else "run"
            span = self._on_warp(name, turn.warp, args)
            span.start, span.end = turn.start, self.clock

    def _close(self) -> None:
        """End what still lasts: a launch is over, or failed."""
        self._end_turn()
        for span in [*self.waiting.values(), *self.in_flight.values()]:
            span.end = max(self.clock, span.start)
            span.args["unfinished"] = True
        for state in (self.waiting, self.in_flight, self.signals, self.resumed, self.ctas):
            state.clear()

    # ---- spans --------------------------------------------------------------------------------------------------------

    def _process(self, cta: Any) -> _Process:
        process = self.ctas.get(cta)
        if process is None:
            x = cta.index
            name = f"CTA ({x.x},{x.y},{x.z}) of launch {self.launches}"
            process = _Process(len(self.processes) + 1, name, cta.cluster.machine.program)
            self.processes.append(process)
            self.ctas[cta] = process
        return process

    def _span(self, name: str, process: _Process, track: int, args: dict[str, Any]) -> _Span:
        """Begins now."""
        span = _Span(name, process.pid, track, self.clock, args)
        if len(self.spans) < self.limit:
            self.spans.append(span)
        else:
            self.dropped += 1
        return span

    def _on_warp(self, name: str, warp: Any, args: dict[str, Any]) -> _Span:
        process = self._process(warp.cta)
        process.warps.add(warp.number)
        return self._span(name, process, warp.number, args)

    def wait_begin(self, warp: Any, wait: Any) -> None:
        self._end_turn()
        site = warp.instruction
        args = {"for": wait.on, "PTX line": site.line, "instruction": str(site)}
        self.waiting[warp] = self._on_warp(f"wait: {_short(wait.on)}, line {site.line}", warp, args)

    def wait_end(self, warp: Any) -> None:
        self._end_turn()
        span = self.waiting.pop(warp, None)
        if span is not None:
            span.end = self.clock
            self.resumed[warp] = span, warp.instruction

    # ---- operations ---------------------------------------------------------------------------------------------------

    def issue(self, op: AsyncOp) -> None:
        issuer: Any = op.issuer
        site: Any = op.site
        process = self._process(issuer.cta)
        engine = _ENGINES.get(op.kind, "others")
        lanes = process.lanes.setdefault(engine, [])
        lane = next((i for i, s in enumerate(lanes) if s.end is not None and s.end <= self.clock), len(lanes))
        track = _FIRST_ENGINE + _LANES * _ENGINE_ORDER.index(engine) + lane
        shape = re.search(r"\.(m\d+n\d+k\d+)\.", site.opcode)
        name = f"{op.kind} {shape[1]}" if shape else op.kind
        args = {"warp": issuer.number, "PTX line": site.line, "instruction": str(site)}
        span = self.in_flight[op] = self._span(name, process, track, args)
        lanes[lane : lane + 1] = [span]

    def complete(self, op: AsyncOp) -> None:
        span = self.in_flight.pop(op, None)
        if span is not None:
            span.end = max(self.clock, span.start + 1)  # at least one instruction long, to be seen

    def release(self, actor: Any, sync: Any, relaxed: bool = False) -> None:
        span = self.in_flight.get(actor) if actor.__class__ is AsyncOp else None
        if span is not None:
            self.signals[sync] = span
        else:
            self.signals.pop(sync, None)

    def acquire(self, actor: Any, sync: Any, relaxed: bool = False) -> None:
        waited, site = self.resumed.pop(actor, (None, None))
        signal = self.signals.get(sync)
        if waited is not None and signal is not None and site is actor.instruction and not self.dropped:
            self.arrows.append((signal, waited))

    # ---- the file -----------------------------------------------------------------------------------------------------

    def save(self, path: Union[str, Path]) -> None:
        """Write what was recorded so far as JSON."""
        self._close()
        about = {"clock": "1 us = 1 warp instruction of the whole machine; not time", "spans left out": self.dropped}
        with open(path, "w") as file:
            json.dump({"traceEvents": self.events(), "otherData": about}, file, separators=(",", ":"))

    def events(self) -> list[dict[str, Any]]:
        """In the format of Chrome traces."""
        roles = {program: find_roles(program, executed) for program, executed in self.executed.items()}
        found = [event for process in self.processes for event in _names(process, roles[process.program])]
        found += [span.event for span in self.spans]
        for number, (signal, waited) in enumerate(self.arrows):
            arrow = {"name": "releases", "cat": "barrier", "id": number}
            for phase, span, lead in (("s", signal, 2 * _LEAD), ("f", waited, _LEAD)):
                at = max(span.start, span.start if span.end is None else span.end - lead)
                found.append({**arrow, "ph": phase, "bp": "e", "pid": span.pid, "tid": span.tid, "ts": at})
        return found


def _names(process: _Process, roles: list[Role]) -> list[dict[str, Any]]:
    """Of a process and its tracks."""
    names = {
        _FIRST_ENGINE + _LANES * _ENGINE_ORDER.index(engine) + lane: engine if not lane else f"{engine} ({lane + 1})"
        for engine, lanes in process.lanes.items()
        for lane in range(len(lanes))
    }
    for role in roles:
        names |= {number: f"warp {number}: {role.name}" for number in role.warps if number in process.warps}
    pid = process.pid
    return [
        {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": process.name}},
        {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}},
        *({"ph": "M", "name": "thread_name", "pid": pid, "tid": t, "args": {"name": n}} for t, n in names.items()),
        *({"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": t, "args": {"sort_index": t}} for t in names),
    ]


def _short(on: str) -> str:
    """What a wait is for, without what is in the arguments of its span."""
    return re.sub(r" \(.*?\)| at smem offset| of CTA \d+|, parity \d|^the ", "", on)
