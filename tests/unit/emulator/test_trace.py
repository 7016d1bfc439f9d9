"""Traces of `quack.emulator.trace`: what is in them, and that they are well formed."""

import json
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from quack.emulator.stats import Stats
from quack.emulator.trace import Trace
from tests.unit.emulator.ptx_kernels import SCHEDULES, aligned, run_kernel

COPY = """
setp.ne.u32 %p0, %lane, 0;
setp.ge.u32 %p1, %lane, 32;
@%p0 bra JOIN;
mbarrier.init.shared::cta.b64 [%smem+64], 1;
JOIN:
bar.sync 0;
@%p1 bra WAIT;
@%p0 bra DONE;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%smem+64], 512;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%smem+128], [%in0], 512, [%smem+64];
bra DONE;
WAIT:
mbarrier.try_wait.parity.shared::cta.b64 %p1, [%smem+64], 0;
@!%p1 bra WAIT;
mad.wide.u32 %rd0, %lane, 4, %in1;
st.global.b32 [%rd0], %lane;
DONE:
"""
WAIT_LINE, COPY_LINE = "mbarrier.try_wait", "cp.async.bulk"


def record(schedule: str, launches: int = 1, **options) -> tuple[Trace, Stats]:
    """Two warps of two CTAs: one copies, the other waits and stores."""
    trace, stats = Trace(**options), Stats()
    for _ in range(launches):
        for observer in (trace, stats):
            run_kernel(
                COPY, aligned(512, np.uint8), aligned(64, np.uint32), shared=1024, threads=64, grid=2,
                schedule=schedule, observer=observer,
            )  # fmt: skip
    return trace, stats


def saved(trace: Trace, tmp_path) -> list[dict[str, Any]]:
    trace.save(tmp_path / "trace.json")
    return json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def spans(events: list[dict[str, Any]], name: str = "") -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == "X" and event["name"].startswith(name)]


def track_names(events: list[dict[str, Any]]) -> dict[tuple[int, int], str]:
    return {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_spans_fill_tracks_without_overlap(schedule, tmp_path):
    trace, stats = record(schedule, launches=2)
    events = saved(trace, tmp_path)
    tracks = defaultdict(list)
    for event in spans(events):
        tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert set(tracks) <= set(track_names(events))
    for found in tracks.values():
        found.sort()
        assert all(end <= start for (_, end), (start, _) in zip(found, found[1:]))
    (kernel,) = stats.kernels.values()
    runs = [event for event in spans(events) if "instructions" in event["args"]]
    assert sum(event["dur"] for event in runs) == trace.clock == kernel.instructions()
    runs.sort(key=lambda event: event["ts"])
    assert all(a["ts"] + a["dur"] == b["ts"] for a, b in zip(runs, runs[1:])), "one warp runs at a time"


def test_names(tmp_path):
    events = saved(record("latest")[0], tmp_path)
    processes = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert processes == ["CTA (0,0,0) of launch 1", "CTA (1,0,0) of launch 1"]
    assert [name for (pid, _), name in track_names(events).items() if pid == 1] == [
        "TMA", "warp 0: loads (bulk)", "warp 1: stores (st.global)",
    ]  # fmt: skip
    assert {event["name"] for event in spans(events)} >= {"run", "run: bulk load", "bulk load", "run: st.global"}


def test_operation_in_flight_and_the_wait_that_it_ends(tmp_path):
    events = saved(record("latest")[0], tmp_path)
    waits, copies = spans(events, "wait: mbarrier 64"), spans(events, "bulk load")
    assert len(waits) == len(copies) == 2
    for wait, copy in zip(waits, copies):
        assert wait["args"]["instruction"].startswith(WAIT_LINE) and str(wait["args"]["PTX line"]) in wait["name"]
        assert copy["args"]["instruction"].startswith(COPY_LINE) and copy["args"]["warp"] == 0
        assert copy["ts"] + copy["dur"] >= wait["ts"]  # nothing could run any more, then the copy completed
    starts, ends = ([e for e in events if e["ph"] == phase] for phase in "sf")
    assert [e["id"] for e in starts] == [e["id"] for e in ends] == [0, 1]
    for start, end, wait, copy in zip(starts, ends, waits, copies):
        assert (start["pid"], start["tid"]) == (copy["pid"], copy["tid"])
        assert copy["ts"] <= start["ts"] < copy["ts"] + copy["dur"]
        assert (end["pid"], end["tid"]) == (wait["pid"], wait["tid"]) and start["ts"] <= end["ts"]


def test_eager_operations_are_as_long_as_an_instruction(tmp_path):
    events = saved(record("eager")[0], tmp_path)
    assert [event["dur"] for event in spans(events, "bulk load")] == [1, 1]


def test_launch_that_fails_leaves_a_trace(tmp_path):
    trace = Trace()
    with pytest.raises(Exception, match="no warp can run"):
        run_kernel("setp.lt.u32 %p0, %lane, 32;\n@%p0 bar.sync 0;", threads=64, observer=trace)
    (wait,) = spans(saved(trace, tmp_path), "wait: barrier 0")
    assert wait["args"]["unfinished"]


def test_limit(tmp_path):
    trace, _ = record("latest", limit=5)
    assert len(spans(saved(trace, tmp_path))) == 5 and trace.dropped > 0
