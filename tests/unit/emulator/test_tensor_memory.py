"""Tensor memory: allocation by one CTA and by a pair, and what it refuses."""

import numpy as np
import pytest

from quack.emulator.errors import Deadlock, IllegalAccess, Misuse
from quack.emulator.tensor_memory import CELL_POISON, TensorAddress, TensorMemory
from tests.unit.emulator.ptx_kernels import run_kernel

SCHEDULES = ("eager", "latest", "random:1", "random:2")


def alloc(slot: int, count: int, group: int = 1) -> str:
    return f"tcgen05.alloc.cta_group::{group}.sync.aligned.shared::cta.b32 [%r0+{slot}], {count};\n"


def dealloc(address: str, count: int, group: int = 1) -> str:
    return f"tcgen05.dealloc.cta_group::{group}.sync.aligned.b32 {address}, {count};\n"


def run(code: str, threads: int = 32, ctas: int = 1, schedule: str = "eager") -> np.ndarray:
    """`code` with %r0: shared memory, %r1: rank of the CTA, %r2: warp; returns the words at shared 0 to 15 of each CTA."""
    words = np.zeros((ctas, 4), np.uint32)
    body = f"""
    mov.u32 %r0, smem;
    mov.u32 %r1, %cluster_ctarank;
    shr.u32 %r2, %lane, 5;
    setp.eq.u32 %p0, %r2, 0;
    setp.eq.u32 %p1, %r2, 1;
    {code}
    bar.sync 0;
    mad.wide.u32 %rd0, %r1, 16, %in0;
    ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [%r0];
    st.global.v4.b32 [%rd0], {{%r4, %r5, %r6, %r7}};
    """
    run_kernel(body, words, shared=16, threads=threads, grid=ctas, cluster=ctas, schedule=schedule)
    return words


def test_columns_are_given_out_from_the_lowest_free_one():
    words = run(alloc(0, 256) + alloc(4, 128) + dealloc("0", 256) + alloc(8, 64) + alloc(12, 64))
    assert words.tolist() == [[0, 256, 0, 64]]


def test_freed_columns_are_poisoned():
    memory = TensorMemory(0)
    memory.take(32, 64)
    memory.block(slice(0, 128), 40, 8)[:] = 7
    memory.free(32, 64)
    assert not memory.allocations and (memory.cells == CELL_POISON).all()
    with pytest.raises(IllegalAccess, match=r"columns \[32, 33\) of CTA 0 are not allocated; held: none"):
        memory.check(32, 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_alloc_waits_for_columns(schedule):
    """Warp 1 waits until warp 0, which goes on, has freed."""
    code = f"@%p0 {alloc(0, 512)}bar.sync 1;\n@%p1 {alloc(4, 512)}@%p0 {dealloc('0', 512)}"
    assert run(code, threads=64, schedule=schedule)[0, :2].tolist() == [0, 0]


def test_alloc_of_more_than_there_is_deadlocks():
    with pytest.raises(Deadlock, match="tcgen05.alloc: 256 columns to be freed"):
        run(alloc(0, 512) + alloc(4, 256))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_pairs_allocate_the_same_columns(schedule):
    """Also after one of the allocations was freed."""
    code = alloc(0, 128, 2) + alloc(4, 64, 2) + dealloc("0", 128, 2) + alloc(8, 32, 2)
    words = run(code, ctas=2, schedule=schedule)
    assert words[:, :3].tolist() == [[0, 128, 0]] * 2


def test_pair_waits_for_its_peer():
    code = f"setp.eq.u32 %p2, %r1, 1;\n@%p2 {alloc(0, 128, 2)}"
    with pytest.raises(Deadlock, match="tcgen05.alloc of 128 columns \\(peer CTA"):
        run(code, ctas=2)


def test_pairs_must_agree():
    with pytest.raises(Misuse, match="disagree on an allocation: 64 columns at 0 in the even CTA, 128"):
        run(f"mov.b32 %r3, 64;\nshl.b32 %r3, %r3, %r1;\n{alloc(0, 64, 2).replace('64;', '%r3;')}", ctas=2)


@pytest.mark.parametrize(
    "code, message",
    [
        (alloc(0, 48), "48 columns: must be a power of two"),
        (alloc(0, 16), "16 columns: must be a power of two"),
        (alloc(0, 32) + alloc(4, 64), "sizes must not increase"),
        ("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;\n" + alloc(0, 32), "relinquish_alloc_permit"),
        (alloc(0, 64) + dealloc("0", 32), "64 columns was allocated there"),
        (alloc(0, 64) + dealloc("32", 64), "nothing was allocated there"),
        (alloc(0, 64) + dealloc("65536", 64), "at lane 1"),
        (alloc(0, 64, 2), "has no peer"),
        (f"setp.lt.u32 %p3, %lane, 7;\n@%p3 {alloc(0, 64)}", "executed by lanes"),
    ],
)
def test_misuse(code, message):
    with pytest.raises(Misuse, match=message):
        run(code)


def test_addresses():
    assert TensorAddress.parse(5 << 16 | 17) == (5, 17)
    for bad in (128 << 16, 512):
        with pytest.raises(IllegalAccess):
            TensorAddress.parse(bad)
