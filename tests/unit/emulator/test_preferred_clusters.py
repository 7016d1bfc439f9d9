"""Launches with a preferred cluster shape: every CTA runs once, in a cluster of either shape, and sees its own shape."""

import random

import numpy as np
import pytest

from quack.emulator.cluster_queue import ClusterQueue
from quack.emulator.geometry import Dim3, LaunchShape
from quack.emulator.runtime.device import DEVICES
from quack.emulator.runtime.intercept import Extent, Launch, launch_fault
from tests.unit.emulator.ptx_kernels import run_kernel

SHAPES = [((8, 2), (2, 1), (4, 2)), ((8, 2), (1, 1), (2, 2)), ((12, 1), (2, 1), (4, 1)), ((4, 4), (4, 1), (4, 2))]
# Of every CTA: shape and place as it sees them.
PLACES = """
mov.u32 %r0, %ctaid.x;
mov.u32 %r1, %ctaid.y;
mov.u32 %r2, %nctaid.x;
mad.lo.u32 %r0, %r1, %r2, %r0;
mad.wide.u32 %rd0, %r0, 32, %in0;
mov.u32 %r3, %cluster_nctaid.x;
mov.u32 %r4, %cluster_nctaid.y;
mov.u32 %r5, %cluster_ctaid.x;
mov.u32 %r6, %cluster_ctaid.y;
st.global.v4.b32 [%rd0], {%r3, %r4, %r5, %r6};
mov.u32 %r3, %cluster_ctarank;
mov.u32 %r4, %cluster_nctarank;
mov.u32 %r5, %clusterid.x;
mov.u32 %r6, %nclusterid.x;
st.global.v4.b32 [%rd0+16], {%r3, %r4, %r5, %r6};
"""


@pytest.mark.parametrize("schedule", ["eager", "latest", "random:1", "random:5"])
@pytest.mark.parametrize("grid, cluster, preferred", SHAPES)
def test_a_cta_sees_the_shape_that_it_runs_in(grid, cluster, preferred, schedule: str):
    seen = np.zeros((grid[1], grid[0], 8), np.uint32)
    sms = cluster[0] * cluster[1] + preferred[0] * preferred[1]
    run_kernel(PLACES, seen, threads=1, grid=grid, cluster=cluster, preferred=preferred, schedule=schedule, sms=sms)
    shapes = set()
    for y in range(grid[1]):
        for x in range(grid[0]):
            dims, place, (rank, size, index, count) = seen[y, x, :2], seen[y, x, 2:4], seen[y, x, 4:]
            shapes.add(tuple(dims.tolist()))
            assert place.tolist() == [x % dims[0], y % dims[1]]
            assert rank == place[0] + dims[0] * place[1] and size == dims[0] * dims[1]
            assert index == x // dims[0] and count == grid[0] // dims[0]
    assert shapes <= {cluster, preferred} and (schedule.startswith("random") or len(shapes) == 2)


@pytest.mark.parametrize("grid, cluster, preferred", SHAPES)
def test_clusters_are_started_or_cancelled_once(grid, cluster, preferred):
    for seed in range(20):
        rng = random.Random(seed)
        dims = [Dim3(*cluster), Dim3(*preferred)]
        queue = ClusterQueue(LaunchShape(Dim3(*grid), Dim3(), dims[0], preferred=dims[1]), rng)
        seen = []
        while queue:
            place = queue.start(rng.randrange(1, 9)) if rng.random() < 0.5 else queue.take(rng.choice(dims))
            if place is not None:
                assert place.dims in dims
                at, inside = place.origin, [place.dims.position(i) for i in range(place.dims.size)]
                seen += [(at.x + i.x, at.y + i.y) for i in inside]
        assert sorted(seen) == [(x, y) for x in range(grid[0]) for y in range(grid[1])]


def test_a_request_gets_a_cluster_of_its_own_shape():
    small, large = Dim3(2), Dim3(4)
    queue = ClusterQueue(LaunchShape(Dim3(12), Dim3(), small, preferred=large), None)
    assert queue.take(large).origin.x == 0 and queue.take(small).origin.x == 4
    assert queue.take(large).origin.x == 8  # a whole one, not what is left of the second
    assert queue.take(large) is None and queue.take(small).origin.x == 6
    assert queue.take(small) is None and not queue


@pytest.mark.parametrize(
    "preferred, fault",
    [((4, 1), None), ((3, 1), "no multiple"), ((16, 1), "divide the grid"), ((32, 1), "more than 16")],
)
def test_what_a_launch_may_prefer(preferred: tuple[int, int], fault):
    launch = Launch(
        "kernel", Extent(8, 1, 1), Extent(32, 1, 1), Extent(2, 1, 1), 0, (), (), preferred_cluster=Extent(*preferred, 1)
    )
    found = launch_fault(launch, DEVICES["sm100"])
    assert found is None if fault is None else fault in found
