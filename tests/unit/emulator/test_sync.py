"""mbarrier, named barriers, the cluster barrier, fences and deadlocks (PTX ISA 9.7.13.1 to 9.7.13.4, 9.7.13.15)."""

import re

import numpy as np
import pytest

from quack.emulator.errors import Deadlock, EmulationError, IllegalAccess, Misuse, UnknownInstruction
from quack.emulator.machine import Machine
from tests.unit.emulator.ptx_kernels import SCHEDULES, run_kernel, store_registers

PROLOGUE = """
setp.eq.u32 %p7, %lane, 0;
shr.u32 %r60, %lane, 5;
and.b32 %r61, %lane, 31;
mov.u32 %r62, %cluster_ctarank;
"""  # %r60: warp, %r61: lane in it, %r62: CTA


def run(body: str, *buffers: np.ndarray, **options) -> Machine:
    """`run_kernel` of PROLOGUE and `body`."""
    return run_kernel(PROLOGUE + body, *buffers, **options)


def wait(barrier: str, parity: str, name: str) -> str:
    """Spin until the phase of this parity has completed."""
    return f"{name}:\nmbarrier.try_wait.parity.shared::cta.b64 %p6, [{barrier}], {parity};\n@!%p6 bra {name};"


# ---- mbarrier ---------------------------------------------------------------------------------------------------------


def test_phases_and_results_of_waits():
    """One thread walks through phases: each test_wait says what the ISA says."""
    out = np.zeros(12, np.uint32)
    lines, number = ["@!%p7 bra END;\nmbarrier.init.shared::cta.b64 [%smem], 2;"], 0

    def test(operands: str) -> None:
        nonlocal number
        lines.append(
            f"mbarrier.test_wait{operands};\nselp.u32 %r1, 1, 0, %p1;\nst.global.b32 [%in0+{4 * number}], %r1;"
        )
        number += 1

    test(".parity.shared.b64 %p1, [%smem], 0")  # phase 0 is current: false
    test(".parity.shared.b64 %p1, [%smem], 1")  # the phase before the first one: true
    lines.append("mbarrier.arrive.shared.b64 %rd1, [%smem];")
    test(".shared.b64 %p1, [%smem], %rd1")
    lines.append("mbarrier.arrive.shared::cta.b64 %rd2, [%smem];")
    test(".shared.b64 %p1, [%smem], %rd1")
    test(".parity.shared.b64 %p1, [%smem], 0")
    test(".parity.acquire.cta.shared::cta.b64 %p1, [%smem], 1")
    lines.append("mbarrier.arrive.noComplete.shared.b64 %rd3, [%smem], 1;")
    test(".relaxed.cta.shared::cta.b64 %p1, [%smem], %rd3")
    lines.append("mbarrier.arrive.release.cta.b64 _, [%rd5], 1;")
    lines.insert(0, "cvt.u64.u32 %rd5, %smem;\ncvta.shared.u64 %rd5, %rd5;")
    test(".b64 %p1, [%rd5], %rd3")
    test(".parity.shared.b64 %p1, [%smem], 1")
    lines.append("mbarrier.arrive.shared.b64 %rd4, [%smem], 2;\nmbarrier.inval.shared.b64 [%smem];")
    lines.append("mbarrier.init.shared.b64 [%smem], 1;")
    test(".parity.shared.b64 %p1, [%smem], 0")
    run("\n".join([*lines, "END:"]), out, shared=8)
    assert out[:number].tolist() == [0, 1, 0, 1, 1, 0, 0, 1, 1, 0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_producer_and_consumer(schedule):
    """A ring of three slots between two warps, by full and empty barriers, eight rounds."""
    out = np.zeros((8, 32), np.uint32)
    body = f"""
    @%p7 mbarrier.init.shared::cta.b64 [%smem+512], 32;
    @%p7 mbarrier.init.shared::cta.b64 [%smem+520], 32;
    @%p7 mbarrier.init.shared::cta.b64 [%smem+528], 32;
    @%p7 mbarrier.init.shared::cta.b64 [%smem+536], 1;
    @%p7 mbarrier.init.shared::cta.b64 [%smem+544], 1;
    @%p7 mbarrier.init.shared::cta.b64 [%smem+552], 1;
    fence.mbarrier_init.release.cluster;
    bar.sync 0;
    mov.b32 %r1, 0;
    setp.eq.u32 %p1, %r60, 1;
    ROUND:
    rem.u32 %r2, %r1, 3;
    div.u32 %r3, %r1, 3;
    and.b32 %r3, %r3, 1;
    mad.lo.u32 %r4, %r2, 8, %smem;
    mad.lo.u32 %r5, %r2, 128, %smem;
    mad.lo.u32 %r5, %r61, 4, %r5;
    @%p1 bra CONSUMER;
    xor.b32 %r6, %r3, 1;
    {wait("%r4+536", "%r6", "EMPTY")}
    mad.lo.u32 %r7, %r1, 100, %lane;
    st.shared.b32 [%r5], %r7;
    mbarrier.arrive.shared::cta.b64 _, [%r4+512];
    bra.uni NEXT;
    CONSUMER:
    {wait("%r4+512", "%r3", "FULL")}
    ld.shared.b32 %r8, [%r5];
    mad.lo.u32 %r9, %r1, 32, %r61;
    mad.wide.u32 %rd1, %r9, 4, %in0;
    st.global.b32 [%rd1], %r8;
    elect.sync _|%p2, -1;
    @%p2 mbarrier.arrive.shared::cta.b64 _, [%r4+536];
    NEXT:
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p3, %r1, 8;
    @%p3 bra ROUND;
    """
    run(body, out, shared=1024, threads=64, schedule=schedule)
    np.testing.assert_array_equal(out, np.add.outer(100 * np.arange(8), np.arange(32)))


def test_transactions():
    """Bytes may arrive before they are expected; a phase needs arrivals and bytes."""
    out = np.zeros(6, np.uint32)
    steps = [
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%smem], 48;",
        "mbarrier.complete_tx.shared::cta.b64 [%smem], 32;",
        "mbarrier.complete_tx.relaxed.cta.b64 [%rd5], 16;",
        "mbarrier.complete_tx.shared::cta.b64 [%smem], 64;\nmbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%smem], 64;",
        "mbarrier.expect_tx.shared::cta.b64 [%smem], 8;\nmbarrier.arrive.release.cta.shared::cta.b64 _, [%smem];",
        "mbarrier.complete_tx.shared::cta.b64 [%smem], 8;",
    ]
    body = (
        "cvt.u64.u32 %rd5, %smem;\ncvta.shared.u64 %rd5, %rd5;\n@!%p7 bra END;\nmbarrier.init.shared.b64 [%smem], 1;\n"
    )
    for i, step in enumerate(steps):
        parity = 0 if i < 3 else 1
        body += f"{step}\nmbarrier.test_wait.parity.shared.b64 %p1, [%smem], {parity};\nselp.u32 %r1, 1, 0, %p1;\n"
        body += f"st.global.b32 [%in0+{4 * i}], %r1;\n"
    run(body + "END:\n", out, shared=8)
    assert out.tolist() == [0, 0, 1, 0, 0, 1]


def test_arrivals_of_lanes():
    """Each lane arrives; with two phases in one instruction the tokens differ; counts may differ, too."""
    out = np.zeros((32, 3), np.uint32)
    body = """
    @%p7 mbarrier.init.shared.b64 [%smem], 20;
    @%p7 mbarrier.init.shared.b64 [%smem+8], 496;
    bar.warp.sync -1;
    mbarrier.arrive.shared.b64 %rd1, [%smem];
    mbarrier.test_wait.shared.b64 %p1, [%smem], %rd1;
    setp.ne.u32 %p2, %lane, 0;
    @%p2 mbarrier.arrive.shared.b64 _, [%smem+8], %lane;
    mbarrier.test_wait.parity.shared.b64 %p3, [%smem+8], 0;
    setp.lt.u32 %p4, %lane, 8;
    @%p4 mbarrier.arrive.shared.b64 _, [%smem];
    mbarrier.test_wait.parity.shared.b64 %p5, [%smem], 1;
    selp.u32 %r1, 1, 0, %p1;
    selp.u32 %r2, 1, 0, %p3;
    selp.u32 %r3, 1, 0, %p5;
    """
    run(body + store_registers(["%r1", "%r2", "%r3"], "%in0", "%rd2"), out, shared=16)
    # Lanes 0 to 19 completed phase 0, the other 12 belong to phase 1, which 8 more lanes complete.
    assert out[:, 0].tolist() == [1] * 20 + [0] * 12
    assert (out[:, 1:] == 1).all()


def test_drop():
    """arrive_drop takes `count` participants away from the phases that follow."""
    out = np.zeros(5, np.uint32)
    steps = [
        "mbarrier.arrive_drop.shared.b64 _, [%smem], 3;",
        "mbarrier.arrive_drop.shared.b64 %rd1, [%smem];\nmbarrier.arrive.shared.b64 _, [%smem], 2;",
        "mbarrier.arrive.shared.b64 _, [%smem];",
        "mbarrier.arrive.shared.b64 _, [%smem];",
        "mbarrier.arrive_drop.expect_tx.shared.b64 _, [%smem], 16;\nmbarrier.arrive.shared.b64 _, [%smem];"
        "mbarrier.complete_tx.shared.b64 [%smem], 16;\nmbarrier.arrive.shared.b64 _, [%smem];",
    ]
    parities = [0, 0, 1, 1, 1]
    body = "@!%p7 bra END;\nmbarrier.init.shared.b64 [%smem], 6;\n"
    for i, (step, parity) in enumerate(zip(steps, parities)):
        body += f"{step}\nmbarrier.test_wait.parity.shared.b64 %p1, [%smem], {parity};\nselp.u32 %r1, 1, 0, %p1;\n"
        body += f"st.global.b32 [%in0+{4 * i}], %r1;\n"
    run(body + "END:\n", out, shared=8)
    # 6 participants, then 2, then (after the last phase) 1.
    assert out.tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_lane_waits_for_a_barrier_of_its_own(schedule):
    """32 barriers; warp 1 completes them in some order, warp 0 sees exactly those."""
    out = np.zeros(32, np.uint32)
    body = f"""
    mad.lo.u32 %r1, %r61, 8, %smem;
    mov.b32 %r2, 0;
    setp.eq.u32 %p1, %r60, 0;
    @%p1 mbarrier.init.shared.b64 [%r1], 1;
    @%p7 mbarrier.init.shared.b64 [%smem+256], 1;
    bar.sync 0;
    @%p1 bra WAIT;
    setp.lt.u32 %p2, %r61, 11;
    @%p2 mbarrier.arrive.shared.b64 _, [%r1];
    setp.eq.u32 %p3, %r61, 0;
    @%p3 mbarrier.arrive.shared.b64 _, [%smem+256];
    bra END;
    WAIT:
    {wait("%smem+256", "0", "ALL")}
    mbarrier.test_wait.parity.shared.b64 %p4, [%r1], 0;
    selp.u32 %r2, 1, 2, %p4;
    mad.wide.u32 %rd1, %r61, 4, %in0;
    st.global.b32 [%rd1], %r2;
    END:
    """
    run(body, out, shared=512, threads=64, schedule=schedule)
    assert out.tolist() == [1 if lane < 11 else 2 for lane in range(32)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lanes_wait_in_a_divergent_loop(schedule):
    """Lane by lane through its own barrier and phase."""
    out = np.zeros(32, np.uint32)
    body = """
    mad.lo.u32 %r1, %r61, 8, %smem;
    setp.eq.u32 %p1, %r60, 0;
    @%p1 mbarrier.init.shared.b64 [%r1], 1;
    bar.sync 0;
    @%p1 bra WAIT;
    mbarrier.arrive.shared.b64 _, [%r1];
    and.b32 %r3, %r61, 1;
    setp.eq.u32 %p2, %r3, 1;
    @%p2 mbarrier.arrive.shared.b64 _, [%r1];
    bra END;
    WAIT:
    and.b32 %r4, %r61, 1;
    LOOP:
    mbarrier.try_wait.parity.shared.b64 %p3, [%r1], %r4;
    @!%p3 bra LOOP;
    mad.wide.u32 %rd1, %r61, 4, %in0;
    st.global.b32 [%rd1], %r61;
    END:
    """
    run(body, out, shared=512, threads=64, schedule=schedule)
    assert out.tolist() == list(range(32))


def test_try_wait_times_out():
    """When nothing else can run, the wait returns false and the thread goes on."""
    out = np.full(32, 9, np.uint32)
    body = """
    @%p7 mbarrier.init.shared.b64 [%smem], 1;
    bar.warp.sync -1;
    mbarrier.try_wait.parity.shared.b64 %p1, [%smem], 0, 1000;
    selp.u32 %r1, 1, 0, %p1;
    """
    run(body + store_registers(["%r1"], "%in0", "%rd1"), out, shared=8)
    assert not out.any()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_remote_arrival(schedule):
    """Every CTA of a cluster of four arrives, with bytes, at the barrier of the next one, by window and generic addresses."""
    out = np.zeros((4, 32), np.uint32)
    body = f"""
    @%p7 mbarrier.init.shared::cta.b64 [%smem], 32;
    @%p7 mbarrier.init.shared::cta.b64 [%smem+8], 1;
    fence.mbarrier_init.release.cluster;
    barrier.cluster.arrive.relaxed.aligned;
    barrier.cluster.wait.acquire.aligned;
    add.u32 %r1, %r62, 1;
    and.b32 %r1, %r1, 3;
    mapa.shared::cluster.u32 %r2, %smem, %r1;
    mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r2];
    cvt.u64.u32 %rd1, %smem;
    cvta.shared.u64 %rd1, %rd1;
    mapa.u64 %rd2, %rd1, %r1;
    @%p7 mbarrier.arrive.expect_tx.release.cluster.b64 _, [%rd2+8], 24;
    @%p7 mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [%r2+8], 16;
    setp.eq.u32 %p1, %lane, 31;
    @%p1 mbarrier.complete_tx.shared::cluster.b64 [%r2+8], 8;
    {wait("%smem", "0", "FIRST")}
    {wait("%smem+8", "0", "SECOND")}
    mad.lo.u32 %r3, %r62, 32, %lane;
    mad.wide.u32 %rd3, %r3, 4, %in0;
    st.global.b32 [%rd3], %r62;
    barrier.cluster.arrive;
    barrier.cluster.wait;
    """
    run(body, out, shared=16, grid=4, cluster=4, schedule=schedule)
    np.testing.assert_array_equal(out, np.repeat(np.arange(4), 32).reshape(4, 32))


INIT = "mbarrier.init.shared::cta.b64 [%smem], 1;"
BARRIER_MISUSE = {
    "never initialised": (
        "mbarrier.arrive.shared.b64 _, [%smem];",
        "no mbarrier was initialised at smem offset 0 of CTA 0",
    ),
    "initialised twice": (f"{INIT}\n{INIT}", "initialised again"),
    "after inval": (
        f"{INIT}\nmbarrier.inval.shared.b64 [%smem];\nmbarrier.arrive.shared.b64 _, [%smem];",
        "no mbarrier",
    ),
    "no count": ("mbarrier.init.shared.b64 [%smem], 0;", "count 0"),
    "count too large": ("mbarrier.init.shared.b64 [%smem], 0x100000;", "count 1048576"),
    "misaligned": ("mbarrier.init.shared.b64 [%smem+4], 1;", "aligned to 8"),
    "too many arrivals": (
        f"{INIT}\nmbarrier.arrive.shared.b64 _, [%smem], 2;",
        "2 arrivals on a phase that waits for 1 of 1",
    ),
    "arrival while bytes are due": (
        f"{INIT}\nmbarrier.arrive.expect_tx.shared.b64 _, [%smem], 8;\nmbarrier.arrive.shared.b64 _, [%smem];",
        "waits for 0 of 1",
    ),
    "too many bytes": (f"{INIT}\nmbarrier.expect_tx.shared.b64 [%smem], 0x100000;", "overflows"),
    "too few bytes": (f"{INIT}\nmbarrier.complete_tx.shared.b64 [%smem], 0x100000;", "overflows"),
    "outside": ("mbarrier.init.shared.b64 [%smem+64], 1;", "offset 64"),
}


@pytest.mark.parametrize("name", BARRIER_MISUSE)
def test_misuse_of_mbarriers(name):
    text, message = BARRIER_MISUSE[name]
    with pytest.raises((Misuse, IllegalAccess), match=f"(?s){message}.*PTX line"):
        run(f"@!%p7 bra END;\n{text}\nEND:\n", shared=64)


@pytest.mark.parametrize(
    "text", ["mbarrier.init.shared::cta.b64 [%r2], 1;", "mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r2], 0;"]
)
def test_what_only_the_own_cta_may_do(text):
    body = f"{INIT.replace('mbar', '@%p7 mbar')}\nmov.b32 %r1, 1;\nmapa.shared::cluster.u32 %r2, %smem, %r1;\n@%p7 {text}\n"
    with pytest.raises(Misuse, match="in another CTA"):
        run(body, shared=64, grid=2, cluster=2)


# ---- named barriers ---------------------------------------------------------------------------------------------------

EXCHANGE = """
mad.lo.u32 %r1, %lane, 4, %smem;
st.shared.b32 [%r1], %lane;
{barrier}
xor.b32 %r2, %lane, {partner};
mad.lo.u32 %r3, %r2, 4, %smem;
ld.shared.b32 %r4, [%r3];
mad.wide.u32 %rd1, %lane, 4, %in0;
st.global.b32 [%rd1], %r4;
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "barrier",
    ["bar.sync 0;", "bar.cta.sync 3;", "barrier.sync 15;", "barrier.cta.sync.aligned 1, 128;", "mov.b32 %r9, 7;\nbar.sync %r9;",
     "mov.b32 %r9, 2;\nmov.b32 %r10, 128;\nbarrier.sync %r9, %r10;"],
)  # fmt: skip
def test_all_threads_meet(barrier, schedule):
    out = np.zeros(128, np.uint32)
    run(EXCHANGE.format(barrier=barrier, partner=96), out, shared=512, threads=128, schedule=schedule)
    assert out.tolist() == [t ^ 96 for t in range(128)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_groups_of_warps_meet(schedule):
    """Warps 0 and 1 at one barrier, 2 and 3 at another, its number in a register."""
    out = np.zeros(128, np.uint32)
    barrier = "shr.u32 %r9, %lane, 6;\nadd.u32 %r9, %r9, 4;\nbarrier.sync.aligned %r9, 64;"
    run(EXCHANGE.format(barrier=barrier, partner=32), out, shared=512, threads=128, schedule=schedule)
    assert out.tolist() == [t ^ 32 for t in range(128)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_last_warp_may_be_partial(schedule):
    """A block of 80 threads: a barrier counts its third warp as a whole."""
    out = np.zeros(80, np.uint32)
    run(
        EXCHANGE.format(barrier="bar.sync 0;\nbar.sync 1, 96;", partner=15),
        out,
        shared=512,
        threads=80,
        schedule=schedule,
    )
    assert out.tolist() == [t ^ 15 for t in range(80)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_arrive_and_sync(schedule):
    """A producer that waits for `free` and arrives at `filled`, a consumer the other way round; ids in registers."""
    out = np.zeros((6, 32), np.uint32)
    body = """
    mov.b32 %r1, 0;
    mov.b32 %r2, 1;
    mov.b32 %r3, 2;
    mad.lo.u32 %r4, %r61, 4, %smem;
    setp.eq.u32 %p1, %r60, 1;
    ROUND:
    @%p1 bra CONSUMER;
    setp.eq.u32 %p2, %r1, 0;
    @%p2 bra FIRST;
    bar.sync %r3, 64;
    FIRST:
    mad.lo.u32 %r5, %r1, 1000, %r61;
    st.shared.b32 [%r4], %r5;
    bar.arrive %r2, 64;
    bra NEXT;
    CONSUMER:
    bar.sync %r2, 64;
    ld.shared.b32 %r6, [%r4];
    mad.lo.u32 %r7, %r1, 32, %r61;
    mad.wide.u32 %rd1, %r7, 4, %in0;
    st.global.b32 [%rd1], %r6;
    setp.lt.u32 %p3, %r1, 5;
    @%p3 barrier.arrive.aligned %r3, 64;
    NEXT:
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p4, %r1, 6;
    @%p4 bra ROUND;
    """
    run(body, out, shared=128, threads=64, schedule=schedule)
    np.testing.assert_array_equal(out, np.add.outer(1000 * np.arange(6), np.arange(32)))


NAMED_MISUSE = {
    "number": ("bar.sync 16;", "barrier 16"),
    "threads": ("bar.sync 1, 40;", "multiple of 32"),
    "no threads": ("mov.b32 %r1, 0;\nbar.sync 1, %r1;", "multiple of 32"),
    "different counts": (
        "shl.b32 %r1, %r60, 5;\nadd.u32 %r1, %r1, 64;\nbar.sync 1, %r1;",
        "expects 96 threads, others 64",
    ),
    "twice": ("bar.arrive 1, 128;\nbar.arrive 1, 128;", "arrives twice"),
    "some lanes": ("setp.lt.u32 %p1, %r61, 3;\n@%p1 bar.sync 0;", "aligned"),
}


@pytest.mark.parametrize("name", NAMED_MISUSE)
def test_misuse_of_named_barriers(name):
    text, message = NAMED_MISUSE[name]
    with pytest.raises(Misuse, match=f"(?s){message}.*PTX line"):
        run(text, threads=64)


# ---- the cluster barrier ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "qualifiers", [("", ""), (".aligned", ".aligned"), (".release.aligned", ".acquire.aligned"), (".relaxed", "")]
)
def test_cluster_barrier(qualifiers, schedule):
    """Three rounds in which each CTA reads what its neighbour wrote; a relaxed arrive takes a fence."""
    out = np.zeros((3, 4, 64), np.uint32)
    arrive, wait_ = qualifiers
    fence = "fence.acq_rel.cluster;" if "relaxed" in arrive else ""
    meet = f"{fence}\nbarrier.cluster.arrive{arrive};\nbarrier.cluster.wait{wait_};"
    body = f"""
    mov.b32 %r1, 0;
    mad.lo.u32 %r2, %lane, 4, %smem;
    add.u32 %r3, %r62, 1;
    and.b32 %r3, %r3, 3;
    mapa.shared::cluster.u32 %r4, %r2, %r3;
    ROUND:
    mad.lo.u32 %r5, %r1, 1000, %lane;
    mad.lo.u32 %r5, %r62, 100, %r5;
    st.shared.b32 [%r2], %r5;
    {meet}
    ld.shared::cluster.b32 %r6, [%r4];
    mad.lo.u32 %r7, %r1, 4, %r62;
    mad.lo.u32 %r7, %r7, 64, %lane;
    mad.wide.u32 %rd1, %r7, 4, %in0;
    st.global.b32 [%rd1], %r6;
    {meet}
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p1, %r1, 3;
    @%p1 bra ROUND;
    """
    run(body, out, shared=256, threads=64, grid=4, cluster=4, schedule=schedule)
    rounds, ranks, lanes = np.ogrid[:3, :4, :64]
    np.testing.assert_array_equal(out, 1000 * rounds + 100 * ((ranks + 1) % 4) + lanes)


def test_warps_that_exited_count_as_arrived():
    body = "setp.eq.u32 %p1, %r60, 1;\n@%p1 ret;\nbarrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n"
    run(body, threads=96, grid=2, cluster=2)


@pytest.mark.parametrize(
    "text, message",
    [
        ("barrier.cluster.arrive.aligned;\nbarrier.cluster.arrive.aligned;", "twice without a wait"),
        ("barrier.cluster.wait.aligned;", "without an arrive"),
        ("setp.lt.u32 %p1, %lane, 3;\n@%p1 barrier.cluster.arrive.aligned;", "aligned"),
    ],
)
def test_misuse_of_the_cluster_barrier(text, message):
    with pytest.raises(Misuse, match=f"(?s){message}.*PTX line"):
        run(text, grid=2, cluster=2)


# ---- fences, setmaxnreg, trap -----------------------------------------------------------------------------------------


def test_fences():
    """All that CUTLASS and CuTe DSL emit; they only matter to checkers."""
    fences = """
    fence.acq_rel.gpu; fence.sc.sys; fence.acquire.sync_restrict::shared::cluster.cluster;
    fence.release.sync_restrict::shared::cta.cluster; fence.mbarrier_init.release.cluster; fence.proxy.alias;
    fence.proxy.async; fence.proxy.async.global; fence.proxy.async.shared::cta; fence.proxy.async.shared::cluster;
    fence.proxy.tensormap::generic.release.gpu; fence.proxy.tensormap::generic.acquire.gpu [%in0], 128;
    fence.proxy.async::generic.acquire.sync_restrict::shared::cluster.cluster; membar.cta; membar.gl; membar.sys;
    """
    run(fences, np.zeros(32, np.uint32))


def test_register_budget():
    machine = run("setmaxnreg.dec.sync.aligned.u32 40;\nsetmaxnreg.inc.sync.aligned.u32 232;")
    assert machine.instructions > 0
    with pytest.raises(EmulationError, match="multiple of 8"):
        run("setmaxnreg.inc.sync.aligned.u32 300;")


def test_trap():
    with pytest.raises(Misuse, match="trap"):
        run("setp.eq.u32 %p1, %lane, 31;\n@%p1 trap;")
    run("setp.eq.u32 %p1, %lane, 32;\n@%p1 trap;\n@%p1 brkpt;")


# ---- deadlock ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_deadlock_report(schedule):
    """Warp 0 waits for bytes that never come, warp 1 at a named barrier, warp 2 at the cluster barrier; warp 3 has gone."""
    body = f"""
    @%p7 mbarrier.init.shared.b64 [%smem+24], 2;
    @%p7 mbarrier.arrive.expect_tx.shared.b64 _, [%smem+24], 128;
    bar.sync 0;
    setp.eq.u32 %p1, %r60, 1;
    @%p1 bra ONE;
    setp.eq.u32 %p1, %r60, 2;
    @%p1 bra TWO;
    setp.eq.u32 %p1, %r60, 3;
    @%p1 ret;
    {wait("%smem+24", "0", "SPIN")}
    ret;
    ONE:
    bar.sync 5, 64;
    TWO:
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    """
    with pytest.raises(Deadlock) as caught:
        run(body, shared=32, threads=128, schedule=schedule)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("no warp can run")
    by_warp = {int(m[1]): m[0] for m in re.finditer(r"warp (\d) of CTA \(0,0,0\).*", str(caught.value))}
    assert sorted(by_warp) == [0, 1, 2]
    assert re.search(
        r"PTX line \d+: .*mbarrier.try_wait.*mbarrier at smem offset 24 of CTA 0 \(phase 0\), parity 0", by_warp[0]
    )
    assert re.search(r"PTX line \d+: bar.sync 5, 64: barrier 5 \(32 of 64 threads arrived\)", by_warp[1])
    assert re.search(
        r"PTX line \d+: barrier.cluster.wait.aligned: the cluster barrier \(\d of \d warps arrived\)", by_warp[2]
    )
    assert any("1 of 2 arrivals and 128 bytes outstanding" in line for line in lines)


def test_deadlock_of_a_spin_on_memory():
    body = "SPIN:\nld.acquire.gpu.global.b32 %r1, [%in0];\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 bra SPIN;"
    with pytest.raises(Deadlock, match="spin"):
        run(body, np.zeros(1, np.uint32))


def test_deadlock_report_names_diverged_lanes():
    body = f"""
    @%p7 mbarrier.init.shared.b64 [%smem], 1;
    setp.lt.u32 %p1, %lane, 2;
    @!%p1 bra OVER;
    {wait("%smem", "0", "SPIN")}
    OVER:
    bar.sync 0;
    """
    with pytest.raises(Deadlock, match=r"lanes \[0, 1\], PTX line"):
        run(body, shared=8)


@pytest.mark.parametrize(
    "text",
    [
        "mbarrier.pending_count.b64 %r1, %rd1",
        "bar.red.popc.u32 %r1, 0, %p1",
        "barrier.cluster.sync",
        "mbarrier.arrive.sideways.b64 _, [%smem]",
    ],
)
def test_unknown_forms_are_refused(text):
    with pytest.raises(UnknownInstruction, match=f"PTX line .*{text.split()[0]}"):
        run(text + ";", np.zeros(1, np.uint32))
