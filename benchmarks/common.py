"""Timing, checking and reporting for every benchmark here. Knows nothing of quack: rivals use the same code.

Method: each contender's calls are captured in a CUDA graph that walks through enough buffer sets to leave
nothing useful in L2. The graphs of all contenders are replayed in turn, forth and back, so that clock and
power drift hit all alike; the median over rounds is reported. The result that is checked is what a replay of
that same graph wrote over NaN.
"""

import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Optional

import torch

ROOT = Path(__file__).resolve().parents[1]
GRAPH_US = 4000.0  # length of one replay: long enough that its launch does not count
WARM_UP_US = 100_000.0  # all contenders run this long before the first timed round
TOLERANCE = {"fp8": 1e-2, "fp8_fast": 3e-2}  # relative error in norm; fp8 sums with fewer bits than float32
HOST_BATCH = 200  # calls between two synchronisations when host cost is measured; the launch queue holds more


@dataclass(frozen=True)
class Row:
    """One measurement: a line of the results file. `flops` is for the table only."""

    bench: str
    shape: str
    dtype: str
    layout: str
    config: str
    us: float
    baseline: str
    baseline_us: float
    rel_err: float
    flops: float

    @property
    def ratio(self) -> float:
        return self.baseline_us / self.us

    @property
    def is_wrong(self) -> bool:
        return not self.rel_err <= TOLERANCE.get(self.dtype, 5e-3)  # NaN is wrong

    def to_json(self, commit: str) -> str:
        fields = asdict(self)
        del fields["flops"]
        fields["us"], fields["baseline_us"] = round(self.us, 3), round(self.baseline_us, 3)
        fields["rel_err"] = float(f"{self.rel_err:.3e}") if math.isfinite(self.rel_err) else None
        order = "bench shape dtype layout config us baseline baseline_us ratio rel_err commit".split()
        fields |= {"ratio": round(self.ratio, 4), "commit": commit}
        return json.dumps({name: fields[name] for name in order}, allow_nan=False)


class Recorder:
    """Prints each row and appends it to a JSONL file at once: an interrupted run keeps what it measured."""

    def __init__(self, path: Path):
        self.path, self.commit = path, commit()
        self.rows: list[Row] = []
        path.parent.mkdir(parents=True, exist_ok=True)

    def header(self) -> None:
        print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, commit {self.commit}, {clocks()}")
        print(f"# random normal data, L2-cold, medians; {' '.join(sys.argv)}")
        print(f"{'bench':<11} {'problem':<32} {'us':>9} | {'TFLOP/s':>7} | {'x base':>8} | config", flush=True)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        problem = f"{row.shape} {row.dtype} {row.layout}"
        speed = f"{row.us:>9.2f} | {row.flops / row.us * 1e-6:>7.0f} | {row.ratio:>8.3f}"
        wrong = f"   WRONG RESULT: rel_err {row.rel_err:.2e}" if row.is_wrong else ""
        print(f"{row.bench:<11} {problem:<32} {speed} | {row.config}{wrong}", flush=True)
        with self.path.open("a") as file:
            file.write(row.to_json(self.commit) + "\n")

    def summary(self) -> bool:
        """Prints one line per bench and dtype. False: a result was wrong."""
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.bench, row.dtype), []).append(row)
        for (bench, dtype), rows in groups.items():
            mean = math.exp(statistics.fmean(math.log(row.ratio) for row in rows))
            worst = min(rows, key=lambda row: row.ratio)
            error = max(row.rel_err for row in rows)
            print(
                f"{bench} {dtype}: geomean {mean:.3f}x over {len(rows)} rows, "
                f"worst {worst.ratio:.3f}x at {worst.shape} {worst.layout}, rel_err up to {error:.1e}"
            )
        wrong = sum(row.is_wrong for row in self.rows)
        print(f"{len(self.rows)} rows -> {self.path}" + (f"; {wrong} WRONG" if wrong else ""), flush=True)
        return not wrong


class Replay:
    """A CUDA graph of back-to-back calls `call(0), call(1), ...`, which walk through `sets` buffer sets."""

    def __init__(self, call: Callable[[int], object], sets: int):
        for i in range(sets):  # compiles, tunes and allocates outside the capture
            call(i)
        estimate = elapsed_us(lambda: [call(i) for i in range(sets)])
        self.calls = sets * max(1, math.ceil(GRAPH_US / estimate))
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for i in range(self.calls):
                call(i % sets)

    def run(self) -> None:
        self.graph.replay()


def elapsed_us(work: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def interleave(replays: Mapping[str, Replay], rounds: int, rest: float = 0.0) -> dict[str, float]:
    """Median microseconds per call of each contender. All rounds are queued at once: the GPU never waits.

    rest: seconds of idling before each replay instead, so that what follows a pause is not held back by the power limit.
    """
    names = list(replays)
    cycle_us = elapsed_us(lambda: [replays[name].run() for name in names])
    for _ in range(math.ceil(WARM_UP_US / max(cycle_us, 1.0))):
        for name in names:
            replays[name].run()
    events: dict[str, list] = {name: [] for name in names}
    for r in range(rounds):
        for name in names if r % 2 == 0 else reversed(names):
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            if rest > 0:
                torch.cuda.synchronize()
                time.sleep(rest)
            pair[0].record()
            replays[name].run()
            pair[1].record()
            events[name].append(pair)
    torch.cuda.synchronize()
    times = {name: [start.elapsed_time(end) * 1e3 for start, end in events[name]] for name in names}
    return {name: statistics.median(times[name]) / replays[name].calls for name in names}


def host_us(calls: Mapping[str, Callable[[], object]], rounds: int = 20) -> dict[str, float]:
    """Median host microseconds per call; the GPU's work must be shorter than the host's."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    gc.disable()
    try:
        for r in range(rounds + 1):  # the first round warms up
            for name, call in calls.items():
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(HOST_BATCH):
                    call()
                if r > 0:
                    spent[name].append((time.perf_counter() - start) * 1e6 / HOST_BATCH)
        torch.cuda.synchronize()
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in spent.items()}


def cold_sets(bytes_per_set: int, most: int = 512) -> int:
    """How many buffer sets to rotate through so that three times the L2 lies between two uses of one."""
    l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return min(most, max(2, math.ceil(3 * l2 / bytes_per_set)))


def relative_error(out: torch.Tensor, reference: Callable[[slice], torch.Tensor], rows: int = 2048) -> float:
    """||out - ref|| / ||ref||, where `reference` gives float32 rows of the result, chunk by chunk."""
    difference = norm = 0.0
    for start in range(0, out.shape[0], rows):
        chunk = slice(start, start + rows)
        expected = reference(chunk)
        difference += (out[chunk].float() - expected).norm(dtype=torch.float64).item() ** 2
        norm += expected.norm(dtype=torch.float64).item() ** 2
    return math.sqrt(difference / norm) if norm else math.sqrt(difference)


def poison(tensors: Iterable[torch.Tensor]) -> None:
    for tensor in tensors:
        tensor.fill_(float("nan"))


def commit() -> str:
    """QUACK_COMMIT, else the checkout's, else 'unknown' (a GPU host may have no .git)."""
    if from_environment := os.environ.get("QUACK_COMMIT"):
        return from_environment
    return ask("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*") or "unknown"


def clocks() -> str:
    query = "--query-gpu=clocks.sm,clocks.max.sm,power.limit"
    return ask("nvidia-smi", query, "--format=csv,noheader", "-i", "0") or "clocks unknown"


def ask(*command: str) -> Optional[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def results_path(bench: str) -> Path:
    gpu = torch.cuda.get_device_name().lower().replace("nvidia", "").strip().replace(" ", "-")
    return ROOT / "benchmarks" / "results" / f"{date.today()}-{gpu}-{bench}.jsonl"
