"""Where drawn works come from: what the drawing warp of a cluster asks for its next cursor.

| source | a draw | clusters launched | works nobody draws |
|---|---|---|---|
| SchedulerDraws | the scheduler's own: a stride, or an atomic counter | at most resident | none |
| CancelDraws | cancels the launch of a cluster that has not started, and takes its first cursor | one per work | start as clusters |

The kernel picks one (see `GemmSpec.cancels`); schedulers know nothing of it. `RingStream.draw_all` calls `draw` once for every
valid cursor that the cluster holds, and `retire` with the first invalid one.

Cancelling (cluster launch control, from sm_100 on). The first cursor of a cluster is its number. A cluster is either started by
the hardware or cancelled, by exactly one running cluster, so every number is somebody's cursor exactly once, in whatever order
they are handed out. A request may fail although clusters are left, for example when something more urgent wants the SM: then this
cluster ends, and the hardware starts those clusters as it would have done anyway. Nothing is lost, and a failed request is never
followed by another one, which would be undefined. Clusters behind the last work, where their number is only an upper bound, end
at once, started or drawn; whoever draws one stops drawing.

There is no counter to return to zero, and works are not handed out in a documented order. So parts of a tile, which wait for
lower ones (`split_works`), are drawn from the counter.
"""

from dataclasses import dataclass
from typing import Any, Optional

import cutlass
import cutlass.cute as cute
from cutlass import Int32

RESPONSE_WORDS = 4  # of a cancellation, opaque; 16-byte aligned


@dataclass(frozen=True)
class SchedulerDraws:
    """As the scheduler says. counter: see `tile_scheduler.CounterDraw`."""

    counter: Optional[cute.Tensor]

    def draw(self, scheduler: Any, cursor: Int32, parity: Int32, corner: Any) -> tuple[Int32, Any]:
        return scheduler.draw(self.counter, cursor), corner

    def retire(self, scheduler: Any, params: Any, cursor: Int32):
        scheduler.retire(params, self.counter, cursor)


@dataclass(frozen=True)
class CancelDraws:
    """Shared memory of the drawing CTA: an mbarrier, and the response."""

    barrier: cute.Pointer
    response: cute.Pointer

    @cute.jit
    def initialise(self):
        """One thread of the CTA, before the barrier-init fence."""
        cute.arch.mbarrier_init(self.barrier, 1)

    @cute.jit
    def draw(self, scheduler: Any, cursor: Int32, parity: Int32, corner: Any) -> tuple[Int32, Any]:
        """All lanes of one warp. The number of the cluster that was cancelled, or of clusters launched, which is no work; and
        where in the work it would have been, if it may be less than one (corner is not None). parity: of how many draws came before."""
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive_and_expect_tx(self.barrier, RESPONSE_WORDS * 4)
            cute.arch.issue_clc_query(self.barrier, self.response, multicast=False)
        cute.arch.mbarrier_wait(self.barrier, parity)
        x, y, _, is_cancelled = cute.arch.clc_response(self.response)
        cute.arch.fence_proxy("async.shared", space="cta")  # the next response overwrites this one
        cute.arch.sync_warp()
        drawn = scheduler.num_clusters()
        if is_cancelled != 0:
            drawn = x // scheduler.cluster_m
        if cutlass.const_expr(corner is not None):
            corner = corner._replace(m=Int32(x % scheduler.cluster_m), n=Int32(y))
        return Int32(drawn), corner

    def retire(self, scheduler: Any, params: Any, cursor: Int32):
        """Nothing to clean up."""
