"""Cluster launch control: each cluster of a grid is run or cancelled, and never both."""

import numpy as np
import pytest

from tests.unit.emulator.ptx_kernels import run_kernel

SCHEDULES = ("eager", "latest", "random:1", "random:2")

# Every CTA counts itself at its own index, then at the index that each successful request yields. Shared memory: mbarrier
# at 0, response at 16.
WORKER = """
mov.u32 %r0, smem;
mov.u32 %r1, %ctaid.x;
mov.u32 %r10, %ctaid.y;
mov.u32 %r2, %cluster_ctarank;
mov.u32 %r12, %nctaid.x;
mov.b32 %r3, 0;
mbarrier.init.shared::cta.b64 [%r0], 1;
atom.global.add.u32 %r4, [%in1], 1;
barrier.cluster.arrive;
barrier.cluster.wait;
WORK:
mad.lo.u32 %r13, %r10, %r12, %r1;
mad.wide.u32 %rd0, %r13, 4, %in0;
atom.global.add.u32 %r4, [%rd0], 1;
mbarrier.arrive.expect_tx.shared::cta.b64 %rd1, [%r0], 16;
setp.eq.u32 %p0, %r2, 0;
@%p0 clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytes{multicast}.b128 [%r0+16], [%r0];
WAIT:
mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r0], %r3;
@!%p1 bra WAIT;
xor.b32 %r3, %r3, 1;
{{
.reg .b128 %handle;
ld.shared.b128 %handle, [%r0+16];
clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 %p2, %handle;
{first}
}}
fence.proxy.async::generic.release.sync_restrict::shared::cta.cluster;
barrier.cluster.arrive;
barrier.cluster.wait;
@%p2 bra WORK;
"""
SEPARATE = """
clusterlaunchcontrol.query_cancel.get_first_ctaid::x.b32.b128 %r5, %handle;
clusterlaunchcontrol.query_cancel.get_first_ctaid::y.b32.b128 %r6, %handle;
add.u32 %r1, %r5, %r2;
mov.u32 %r10, %r6;
"""
VECTOR = """
@%p2 clusterlaunchcontrol.query_cancel.get_first_ctaid.v4.b32.b128 {%r5, %r6, %r7, _}, %handle;
add.u32 %r1, %r5, %r2;
mov.u32 %r10, %r6;
"""


def count_work(grid: tuple[int, int], cluster: int, sms: int, schedule: str, first: str) -> tuple[np.ndarray, int]:
    """(how often each CTA index was worked on, how many CTAs were started)."""
    work, started = np.zeros(grid[0] * grid[1], np.uint32), np.zeros(1, np.uint32)
    multicast = ".multicast::cluster::all" if cluster > 1 else ""
    body = WORKER.format(multicast=multicast, first=first)
    run_kernel(
        body, work, started, shared=32, threads=1, grid=grid, cluster=cluster, sms=sms, schedule=schedule
    )  # fmt: skip
    return work, int(started[0])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cluster, sms", [(1, 2), (1, 5), (2, 2), (2, 6)])
@pytest.mark.parametrize("first", [SEPARATE, VECTOR])
def test_every_cluster_is_worked_on_once(schedule, cluster, sms, first):
    work, started = count_work((6, 3), cluster, sms, schedule, first)
    assert (work == 1).all()
    assert started <= 18


def test_the_resident_clusters_do_all_the_work():
    """One cluster takes the work of all others when nothing else can start."""
    assert count_work((6, 3), 2, 2, "eager", SEPARATE)[1] == 2


def test_requests_that_fail_leave_the_cluster_to_start():
    """Under random schedules; otherwise two CTAs at a time would be all that ever start."""
    starts = []
    for seed in range(5):
        work, started = count_work((6, 3), 1, 2, f"random:{seed}", SEPARATE)
        assert (work == 1).all()
        starts.append(started)
    assert max(starts) > 2


def test_nothing_to_cancel():
    work, started = count_work((4, 1), 1, 4, "latest", SEPARATE)
    assert (work == 1).all() and started == 4
