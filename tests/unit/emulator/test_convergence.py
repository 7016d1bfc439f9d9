"""Warp-level instructions wait for lanes of the warp that are still elsewhere."""

import numpy as np
import pytest

from quack.emulator.cluster_queue import Place
from quack.emulator.errors import Deadlock, Misuse
from quack.emulator.geometry import Dim3
from quack.emulator.machine import Cluster
from tests.unit.emulator.ptx_kernels import run_kernel

# Lane 0 waits for a barrier that warp 1 completes; the others run ahead to the instruction and must stop there.
LATE_LANE = """
mov.u32 %r0, smem;
and.b32 %r1, %lane, 31;
setp.eq.u32 %p0, %lane, 0;
setp.ge.u32 %p1, %lane, 32;
@%p0 mbarrier.init.shared::cta.b64 [%r0], 1;
bar.sync 0;
@%p1 bra SECOND;
@!%p0 bra MEET;
WAIT:
mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r0], 0;
@!%p2 bra WAIT;
MEET:
{instruction}
mad.wide.u32 %rd0, %lane, 4, %in0;
st.global.b32 [%rd0], %r2;
ret;
SECOND:
nanosleep.u32 10;
setp.eq.u32 %p3, %lane, 32;
@%p3 mbarrier.arrive.shared::cta.b64 _, [%r0];
"""
INSTRUCTIONS = {
    "shfl": ("shfl.sync.idx.b32 %r2, %r1, 5, 31, -1;", lambda lane: 5),
    "shfl of a uniform value": ("shfl.sync.bfly.b32 %r2, %r0, 1, 31, -1;\nsub.u32 %r2, %r2, %r0;", lambda lane: 0),
    "vote": ("vote.sync.ballot.b32 %r2, %p0, -1;", lambda lane: 1),
    "redux": ("redux.sync.add.u32 %r2, %r1, -1;", lambda lane: 496),
    "elect": ("mov.b32 %r2, 0;\nelect.sync %r3|%p4, -1;\n@%p4 mov.b32 %r2, 7;", lambda lane: 7 * (lane == 0)),
    "bar.warp.sync": ("bar.warp.sync -1;\nactivemask.b32 %r2;", lambda lane: 0xFFFFFFFF),
    "aligned": ("barrier.sync.aligned 1, 32;\nactivemask.b32 %r2;", lambda lane: 0xFFFFFFFF),
}


@pytest.mark.parametrize("schedule", ["eager", "latest", "random:1", "random:2", "random:3"])
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_late_lane_is_waited_for(name, schedule):
    instruction, expected = INSTRUCTIONS[name]
    found = np.full(32, 0xDEAD, np.uint32)
    run_kernel(LATE_LANE.format(instruction=instruction), found, shared=16, threads=64, schedule=schedule)
    assert found.tolist() == [expected(lane) for lane in range(32)]


def test_members_elsewhere_for_ever():
    code = "setp.lt.u32 %p0, %lane, 4;\n@%p0 bra A;\nB:\nbra B;\nA:\nbar.warp.sync -1;"
    with pytest.raises(Deadlock):
        run_kernel(code)


def test_aligned_without_lanes_that_have_exited():
    with pytest.raises(Misuse, match=r"executed by lanes \[0, 1, 2, 3\] only"):
        run_kernel("setp.ge.u32 %p0, %lane, 4;\n@%p0 ret;\nbar.sync 0;")


def test_some_lanes_exit():
    for first in (1, 4):
        found = np.zeros(32, np.uint32)
        code = f"""
        mad.wide.u32 %rd0, %lane, 4, %in0;
        setp.ge.u32 %p0, %lane, {first};
        @%p0 ret;
        activemask.b32 %r0;
        st.global.b32 [%rd0], %r0;
        """
        run_kernel(code, found)
        assert found.tolist() == [2**first - 1] * first + [0] * (32 - first)


def test_asynchronous_operations_see_all_lanes_of_a_diverged_warp():
    """A path of one lane holds plain integers; reading and writing for an operation go around that."""
    warp = Cluster(run_kernel("mov.u32 %r0, %lane;"), Place(Dim3(0, 0, 0), Dim3(1)), 0).warps[0]
    values = np.arange(100, 132, dtype=np.uint32)
    warp.regs[3] = values
    warp.split(np.arange(32) == 7, 5)
    assert len(warp.paths) == 2 and any(path.regs[3] == 107 for path in warp.paths if len(path.lanes) == 1)
    assert warp.read_registers([3])[0].tolist() == values.tolist()
    warp.write_register(3, values + np.uint32(1))
    assert warp.read_registers([3])[0].tolist() == (values + 1).tolist()
