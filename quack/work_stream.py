"""How every role of a CTA sees the same sequence of works.

`LocalStream`: each role decodes the scheduler's cursor by itself; used when the next cursor is a formula.
`RingStream`:  one warp of the cluster draws cursors and broadcasts decoded works through a small shared-memory ring to
               every CTA of the cluster; used when a draw is an atomic or a search is expensive.

Both give `first() -> WorkCursor` and `next(cursor) -> WorkCursor`; a role loops `while cursor.work.is_valid`.

Ring protocol (S = `WORK_RING_STAGES`, n = reading warps per CTA):

| barrier | arrivals to complete | arrives | waits |
|---|---|---|---|
| `full[s]` of every CTA | 1 + 32 (split tiles: 48) bytes by st.async | the drawing warp, remotely | every reading warp of that CTA |
| the same where a CTA is a cluster of its own | 1, behind plain stores | the drawing warp | the same |
| `empty[s]` of CTA 0 | cluster size * n | lane 0 of every reading warp, remotely | the drawing warp |
| `begun` of CTA 0, if works are drawn from a common stock | 1 | its loading warp, with every work but the first | the drawing warp |

Pace: S works could be drawn ahead. Of a stock that others draw from too, a cluster takes the next work only when it begins to load
the last one that it took: else the first ones to start would take five works each before the others have two (4096^3 in 128 x 256
tiles, 3.9 works a cluster, took 207 us instead of 173).

Tail: the drawing warp leaves only when all slots are empty again, so no CTA exits while a peer still signals it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32

from .gemm_work import WorkDesc

SLOT_WORDS = 8  # tile_m, tile_n, problem, is_valid; start, m, n, k
SPLIT_SLOT_WORDS = 12  # and where tiles are split: split, slot, 0, 0
STORE_WORDS = 4  # of one st.async; a slot has a multiple of it


def slot_words(scheduler: Any) -> int:
    """int32 words of a work in the ring."""
    return SPLIT_SLOT_WORDS if scheduler.splits_k else SLOT_WORDS


class WorkCursor(NamedTuple):
    """A work and the place in the stream it came from (stream-specific: linear cursor, or ring slot and phase)."""

    work: WorkDesc
    position: Int32
    phase: Int32


class Corner(NamedTuple):
    """Where the first CTA of a cluster is in a work, in CTAs: where clusters may be smaller than works (`execution.clusters`)."""

    m: Int32
    n: Int32


def in_work(corner: Optional[Corner], cta_m: Int32, cta_n: Int32) -> tuple[Int32, Int32]:
    """Where a CTA is in a work."""
    return (cta_m, cta_n) if corner is None else (corner.m + cta_m, corner.n + cta_n)


@dataclass(frozen=True)
class LocalStream:
    """Every caller walks the schedule alone."""

    scheduler: Any
    params: Any
    cta_m: Int32
    cta_n: Int32
    corner: Optional[Corner] = None

    @cute.jit
    def first(self) -> WorkCursor:
        return self.at(self.scheduler.initial_cursor())

    @cute.jit
    def next(self, cursor: WorkCursor) -> WorkCursor:
        return self.at(self.scheduler.next_cursor(self.params, cursor.position))

    @cute.jit
    def at(self, position: Int32) -> WorkCursor:
        m, n = in_work(self.corner, self.cta_m, self.cta_n)
        return WorkCursor(self.scheduler.work_at(self.params, position, m, n), position, Int32(0))

    def mark_begun(self):
        """Nobody waits for it."""


@dataclass(frozen=True)
class WorkRing:
    """Shared memory of the ring in this CTA: mbarriers full[S], empty[S] and begun, and the slots. is_paced: see above."""

    barriers: cute.Pointer
    slots: cute.Pointer
    stages: int
    cluster_size: Union[int, Int32]
    reading_warps: int
    is_paced: bool

    def full(self, stage: Int32):
        return self.barriers + stage

    def empty(self, stage: Int32):
        return self.barriers + self.stages + stage

    def begun(self):
        return self.barriers + 2 * self.stages

    @cute.jit
    def initialise(self):
        """One thread of the CTA, before the cluster-wide barrier-init fence."""
        for s in cutlass.range_constexpr(self.stages):
            cute.arch.mbarrier_init(self.full(s), 1)
            cute.arch.mbarrier_init(self.empty(s), self.cluster_size * self.reading_warps)
        if cutlass.const_expr(self.is_paced):
            cute.arch.mbarrier_init(self.begun(), 1)

    @property
    def is_local(self) -> bool:
        """Whether its one CTA is a cluster. compute-sanitizer takes stores to the cluster's shared memory there for faults."""
        return isinstance(self.cluster_size, int) and self.cluster_size == 1

    @cute.jit
    def send(self, stage: Int32, cta: Int32, parts: list):
        """One lane, to one CTA. parts: the words of a slot, four by four."""
        slot = self.slots + stage * (len(parts) * STORE_WORDS)
        if cutlass.const_expr(self.is_local):
            words = [word for part in parts for word in part]
            target = cute.make_tensor(slot, len(words))
            for i, word in enumerate(words):
                target[i] = word
            cute.arch.mbarrier_arrive(self.full(stage))
        else:
            cute.arch.mbarrier_arrive_and_expect_tx(self.full(stage), len(parts) * STORE_WORDS * 4, cta)
            for i, part in enumerate(parts):
                target = (slot + i * STORE_WORDS).align(STORE_WORDS * 4)
                cute.arch.store_async_dsmem(target, part, self.full(stage), cta)

    @cute.jit
    def hand_back(self, stage: Int32):
        """All lanes of a reading warp, when they have read the slot."""
        cute.arch.sync_warp()
        with cute.arch.elect_one():
            if cutlass.const_expr(self.is_local):
                cute.arch.mbarrier_arrive(self.empty(stage))
            else:
                cute.arch.mbarrier_arrive(self.empty(stage), Int32(0))


@dataclass(frozen=True)
class RingStream:
    """Reads what the drawing warp broadcast; the first work needs no draw."""

    scheduler: Any
    params: Any
    cta_m: Int32
    cta_n: Int32
    ring: WorkRing
    corner: Optional[Corner] = None  # of the first work

    @cute.jit
    def first(self) -> WorkCursor:
        m, n = in_work(self.corner, self.cta_m, self.cta_n)
        work = self.scheduler.work_at(self.params, self.scheduler.initial_cursor(), m, n)
        return WorkCursor(work, Int32(0), Int32(0))

    @cute.jit
    def next(self, cursor: WorkCursor) -> WorkCursor:
        """All 32 lanes of a reading warp."""
        cute.arch.mbarrier_wait(self.ring.full(cursor.position), cursor.phase)
        words = slot_words(self.scheduler)
        slot = cute.make_tensor(self.ring.slots + cursor.position * words, words)
        tile_m, tile_n = self.scheduler.tile_of_cta(slot[0], slot[1], self.cta_m, self.cta_n)
        split, split_count, tile_slot = Int32(0), Int32(1), Int32(0)
        if cutlass.const_expr(self.scheduler.splits_k):
            split, split_count = slot[8], self.params.splits
            tile_slot = slot[9] + self.scheduler.cta_slot(self.cta_m, self.cta_n)
        work = WorkDesc(
            tile_m=tile_m,
            tile_n=tile_n,
            problem=slot[2],
            start=slot[4],
            m=slot[5],
            n=slot[6],
            k=slot[7],
            split=split,
            split_count=split_count,
            k_tile_begin=Int32(0),
            k_tile_count=Int32(0),
            slot=tile_slot,
            is_valid=Boolean(slot[3] != 0),
        )
        self.ring.hand_back(cursor.position)
        wraps = cursor.position + 1 == self.ring.stages
        return WorkCursor(
            work,
            Int32(0) if wraps else cursor.position + 1,
            cursor.phase ^ 1 if wraps else cursor.phase,
        )

    @cute.jit
    def mark_begun(self):
        """The loading warp, with what `next` gave it."""
        if cutlass.const_expr(self.ring.is_paced):
            if cute.arch.make_warp_uniform(cute.arch.block_idx_in_cluster()) == 0:
                with cute.arch.elect_one():
                    cute.arch.mbarrier_arrive(self.ring.begun())

    @cute.jit
    def draw_all(self, draws: Any):
        """The drawing warp, in CTA 0 of the cluster: broadcast works until an invalid one, then wait for the readers.
        draws: see `draws`."""
        lane = cute.arch.lane_idx()
        stage, phase = Int32(0), Int32(1)
        position = self.scheduler.initial_cursor()
        has_drawn = self.first().work.is_valid
        is_valid = has_drawn
        parity = Int32(0)
        is_ahead = Boolean(False)  # of the loading warp: it begins with a work that needed no draw
        while is_valid:
            cute.arch.mbarrier_wait(self.ring.empty(stage), phase)
            if cutlass.const_expr(self.ring.is_paced):
                if is_ahead:
                    cute.arch.mbarrier_wait(self.ring.begun(), parity ^ 1)
                is_ahead = Boolean(True)
            position, corner = draws.draw(self.scheduler, position, parity, self.corner)
            parity ^= 1
            m, n = in_work(corner, Int32(0), Int32(0))
            work = self.scheduler.work_at(self.params, position, m, n)
            if lane < self.ring.cluster_size:
                place = (work.tile_m, work.tile_n, work.problem, Int32(work.is_valid))
                parts = [place, (work.start, work.m, work.n, work.k)]
                if cutlass.const_expr(self.scheduler.splits_k):
                    parts.append((work.split, work.slot, Int32(0), Int32(0)))
                self.ring.send(stage, lane, parts)
            is_valid = work.is_valid
            stage += 1
            if stage == self.ring.stages:
                stage = Int32(0)
                phase ^= 1
        if has_drawn:
            draws.retire(self.scheduler, self.params, position)
        for _ in cutlass.range_constexpr(self.ring.stages):
            cute.arch.mbarrier_wait(self.ring.empty(stage), phase)
            stage += 1
            if stage == self.ring.stages:
                stage = Int32(0)
                phase ^= 1
