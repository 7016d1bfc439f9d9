"""Compiles every legal cell in several processes and keeps what was found, so that an interrupted sweep goes on where it was.

A result is keyed by the cell and the cache key of its kernels: spec, toolchain and the hash of the sources. What has changed
since is compiled again, and the results of what no longer exists are dropped.
"""

import functools
import itertools
import json
import multiprocessing
import os
import random
import threading
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Optional

from ..runtime.compile import cache_key, kernel_facts
from .axes import Cell
from .matrix import Verdict, cells, judge

LIMITS = ("spill_bytes", "wgmma_serialized")  # facts that must be 0


def key_of(verdict: Verdict) -> str:
    """Cell, then the cache keys of its kernels."""
    return " ".join([str(verdict.cell), *(cache_key(spec) for spec in verdict.kernels)])


def failure(result: dict[str, Any]) -> Optional[str]:
    """What is wrong with a compiled cell; None if nothing."""
    if "error" in result:
        return str(result["error"])
    bad = [f"{fact}={row[fact]}" for row in result["kernels"] for fact in LIMITS if row.get(fact)]
    return ", ".join(bad) or None


_facts = functools.cache(kernel_facts)  # many cells have the same second kernel of split-K


def compile_cell(cell: Cell) -> dict[str, Any]:
    """In this process: facts of each kernel, or the error."""
    try:
        return {"kernels": [_facts(spec) for spec in judge(cell).kernels]}
    except Exception as error:  # noqa: BLE001 - whatever CuTe DSL raises is the result
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def sample(arches: Iterable[str], count: int, seed: int = 0) -> list[Cell]:
    """Legal cells, the same every time, equally many of each architecture that has any; all if there are no more."""

    def drawn(arch: str) -> Iterator[Cell]:
        found = list(cells([arch]))
        random.Random(seed).shuffle(found)
        return (cell for cell in found if judge(cell).ok)  # judged as they are asked for

    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*map(drawn, arches)))
    return list(itertools.islice((cell for cell in in_turn if cell is not None), count))


def compile_all(arches: Iterable[str], path: Path, jobs: int, count: Optional[int] = None) -> list[str]:
    """Compile what `path` does not have yet; prints and returns the failures, old ones among them. count: of a sample only."""
    chosen = cells(arches) if count is None else sample(arches, count)
    wanted = {key_of(verdict): verdict.cell for verdict in map(judge, chosen) if verdict.ok}
    known = json.loads(path.read_text()) if path.exists() else {}
    sweep = Sweep({key: result for key, result in known.items() if key in wanted}, path)
    missing = [(key, cell) for key, cell in wanted.items() if key not in sweep.results]
    print(f"{len(wanted)} legal cells, {len(missing)} to compile")
    sweep.run(missing, jobs)
    failures = [f"{wanted[key]}: {why}" for key, result in sweep.results.items() if (why := failure(result))]
    print("\n".join([*failures, f"{len(failures)} of {len(sweep.results)} failed"]))
    return failures


class Sweep:
    """Processes at work on a list of cells; results go to the file at `path` now and then."""

    SAVE_EVERY = 20

    def __init__(self, results: dict[str, dict[str, Any]], path: Path):
        self.results, self.path = results, path
        self.lock = threading.Lock()
        self.pending: list[tuple[str, Cell]] = []

    def run(self, missing: list[tuple[str, Cell]], jobs: int) -> None:
        self.pending = missing[::-1]
        threads = [threading.Thread(target=self._drive) for _ in range(max(1, jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.save()

    def save(self) -> None:
        """Atomically, so that an interruption leaves the old file or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        lines = (f"{json.dumps(key)}: {json.dumps(result)}" for key, result in sorted(self.results.items()))
        partial.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        os.replace(partial, self.path)

    def _drive(self) -> None:
        """One process after the other: CuTe DSL may take its process down with it."""
        worker: Optional[tuple[Any, Connection]] = None
        while (job := self._next()) is not None:
            key, cell = job
            if worker is None:
                worker = _start()
            process, connection = worker
            try:
                connection.send(cell)
                result = connection.recv()
            except (EOFError, OSError):
                process.join()
                result, worker = {"error": f"the compiling process died with exit code {process.exitcode}"}, None
            with self.lock:
                self.results[key] = result
                if why := failure(result):
                    print(f"FAILED {cell}: {why.splitlines()[0]}", flush=True)
                if len(self.results) % self.SAVE_EVERY == 0:
                    print(f"{len(self.pending)} left", flush=True)
                    self.save()
        if worker is not None:
            worker[1].send(None)
            worker[0].join()

    def _next(self) -> Optional[tuple[str, Cell]]:
        with self.lock:
            return self.pending.pop() if self.pending else None


def _start() -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # so that its end is seen when the process dies
    return process, ours


def _serve(connection: Connection) -> None:
    while (cell := connection.recv()) is not None:
        connection.send(compile_cell(cell))
