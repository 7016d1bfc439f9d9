"""Named barriers of a CTA: one registry of hardware ids (0 belongs to `sync_threads`), so that no two uses collide."""

import enum

import cutlass
import cutlass.cute as cute
from cutlass import Int32


class NamedBarrierId(enum.IntEnum):
    """First hardware id of each family; a family with one barrier per MMA warpgroup takes consecutive ids (3 at most)."""

    EPILOGUE = 1
    MMA_ORDER = 4
    C_ORDER = 6
    TMEM = 8


WARPGROUP_THREADS = 128


@cute.jit
def sync_warpgroup(warpgroup: Int32):
    """All 128 threads of one MMA warpgroup meet here."""
    cute.arch.barrier(barrier_id=warpgroup + int(NamedBarrierId.EPILOGUE), number_of_threads=WARPGROUP_THREADS)


@cute.jit
def wait_turn(warpgroup: Int32, order: cutlass.Constexpr = NamedBarrierId.MMA_ORDER):
    """Ping-pong: block until the other warpgroup has called `pass_turn(warpgroup)`."""
    cute.arch.barrier(barrier_id=warpgroup + int(order), number_of_threads=2 * WARPGROUP_THREADS)


@cute.jit
def pass_turn(warpgroup: Int32, order: cutlass.Constexpr = NamedBarrierId.MMA_ORDER):
    """Ping-pong: let `warpgroup` go on behind its `wait_turn`; does not block. Every call pairs with one `wait_turn`."""
    cute.arch.barrier_arrive(barrier_id=warpgroup + int(order), number_of_threads=2 * WARPGROUP_THREADS)
