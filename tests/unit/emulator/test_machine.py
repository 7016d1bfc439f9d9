"""The machine as a whole: geometry, special registers, residency, schedules, module-level variables, local memory."""

import numpy as np
import pytest

from quack.emulator.asynchrony import Schedule
from quack.emulator.errors import Deadlock, IllegalAccess, Misuse, UnknownInstruction
from quack.emulator.geometry import Dim3, LaunchShape
from quack.emulator.machine import Machine
from quack.emulator.memory import GlobalMemory
from quack.emulator.program import Program
from quack.emulator.ptx import parse
from tests.unit.emulator.ptx_kernels import SCHEDULES, aligned, kernel_text, run_kernel, store_registers


def machine_of(text: str, shape: LaunchShape, *buffers: np.ndarray, **options) -> Machine:
    """A machine for a whole PTX text."""
    parameters = b"".join(b.ctypes.data.to_bytes(8, "little") for b in buffers)
    memory = GlobalMemory([(b.ctypes.data, b.nbytes) for b in buffers])
    return Machine(Program(parse(text)["tiny"]), shape, parameters, memory, **options)


# ---- geometry ---------------------------------------------------------------------------------------------------------

DIMENSIONS = ["tid", "ntid", "ctaid", "nctaid", "clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid"]


def test_positions():
    """Every special register about the place of a thread, in a grid, clusters and blocks of three dimensions."""
    grid, cluster, block = Dim3(4, 6, 2), Dim3(2, 3, 1), Dim3(5, 4, 3)
    fields = [f"{name}.{axis}" for name in DIMENSIONS for axis in "xyz"]
    fields += ["laneid", "warpid", "nwarpid", "cluster_ctarank", "cluster_nctarank", "dynamic_smem_size"]
    fields += ["lanemask_eq", "lanemask_lt", "lanemask_le", "lanemask_gt", "lanemask_ge"]
    out = np.zeros((grid.size, block.size, len(fields)), np.uint32)
    body = """
    mov.u32 %r1, %ctaid.z; mov.u32 %r2, %nctaid.y; mov.u32 %r3, %ctaid.y; mad.lo.u32 %r1, %r1, %r2, %r3;
    mov.u32 %r2, %nctaid.x; mov.u32 %r3, %ctaid.x; mad.lo.u32 %r1, %r1, %r2, %r3;
    mov.u32 %r4, %tid.z; mov.u32 %r5, %ntid.y; mov.u32 %r6, %tid.y; mad.lo.u32 %r4, %r4, %r5, %r6;
    mov.u32 %r5, %ntid.x; mov.u32 %r6, %tid.x; mad.lo.u32 %r4, %r4, %r5, %r6;
    """
    body += f"mad.lo.u32 %r1, %r1, {block.size}, %r4;\nmad.wide.u32 %rd1, %r1, {4 * len(fields)}, %in0;\n"
    body += "\n".join(f"mov.u32 %r7, %{name};\nst.global.b32 [%rd1+{4 * i}], %r7;" for i, name in enumerate(fields))
    shape = [(d.x, d.y, d.z) for d in (grid, cluster, block)]
    run_kernel(body, out, grid=shape[0], cluster=shape[1], threads=shape[2], shared=4096)
    seen: dict[tuple[int, int, int], set[int]] = {}
    for rank in range(grid.size):
        at = grid.position(rank)
        for thread in range(block.size):
            place = block.position(thread)
            inside = Dim3(at.x % cluster.x, at.y % cluster.y, at.z % cluster.z)
            dims = [place, block, at, grid, Dim3(at.x // 2, at.y // 3, at.z), Dim3(2, 2, 2), inside, cluster]
            lane = thread % 32
            masks = [
                1 << lane,
                (1 << lane) - 1,
                (2 << lane) - 1,
                0xFFFFFFFF ^ (2 << lane) - 1,
                0xFFFFFFFF ^ (1 << lane) - 1,
            ]
            expected = [v for d in dims for v in (d.x, d.y, d.z)]
            expected += [lane, thread // 32, 2, inside.x + 2 * inside.y, 6, 4096, *masks]
            assert out[rank, thread].tolist() == expected
            seen.setdefault((at.x // 2, at.y // 3, at.z), set()).add(inside.x + 2 * inside.y)
    assert all(ranks == set(range(6)) for ranks in seen.values()) and len(seen) == 8


def test_other_special_registers():
    out = np.zeros(8, np.uint32)
    body = """
    mov.pred %p1, %is_explicit_cluster;
    selp.u32 %r1, 1, 0, %p1;
    mov.u32 %r2, %nsmid;
    mov.u32 %r3, %smid;
    mov.u32 %r4, %total_smem_size;
    mov.u64 %rd1, %gridid;
    mov.u32 %r5, %clock;
    mov.u64 %rd2, %clock64;
    mov.u64 %rd3, %globaltimer;
    cvt.u32.u64 %r6, %rd2;
    setp.gt.u32 %p2, %r6, %r5;
    selp.u32 %r6, 1, 0, %p2;
    st.global.v4.b32 [%in0], {%r1, %r2, %r3, %r4};
    st.global.b32 [%in0+16], %r6;
    """
    run_kernel(body, out, shared=500, sms=7)
    assert out[:5].tolist() == [0, 7, 0, 512, 1]  # shared memory is given out in units of 128 bytes


def test_geometry_errors():
    text = kernel_text("mov.b32 %r1, 0;", 0)
    for shape, message in (
        (LaunchShape(Dim3(3), Dim3(32), Dim3(2)), "not a multiple of the cluster"),
        (LaunchShape(Dim3(2, 3), Dim3(32), Dim3(2, 2)), "not a multiple of the cluster"),
    ):
        with pytest.raises(Misuse, match=message):
            machine_of(text, shape)
    required = text.replace(")\n{", ")\n.reqntid 64, 1, 1\n{")
    for block in (Dim3(65), Dim3(32), Dim3(32, 2)):
        with pytest.raises(Misuse, match="compiled for"):
            machine_of(required, LaunchShape(Dim3(), block))
    machine_of(required, LaunchShape(Dim3(), Dim3(64))).run()
    largest = text.replace(")\n{", ")\n.maxntid 64, 1, 1\n{")
    with pytest.raises(Misuse, match="compiled for"):
        machine_of(largest, LaunchShape(Dim3(), Dim3(96)))
    machine_of(largest, LaunchShape(Dim3(), Dim3(16, 2))).run()
    clustered = text.replace(")\n{", ")\n.reqnctapercluster 2, 1, 1\n{")
    with pytest.raises(Misuse, match="cluster"):
        machine_of(clustered, LaunchShape(Dim3(4), Dim3(32), Dim3(4)))
    machine_of(clustered, LaunchShape(Dim3(4), Dim3(32), Dim3(2))).run()


def test_missing_parameters():
    program = Program(parse(kernel_text("ret;", 2))["tiny"])
    with pytest.raises(Misuse, match="8 bytes of parameters, the kernel has 16"):
        Machine(program, LaunchShape(Dim3(), Dim3(32)), bytes(8), GlobalMemory([]))


def test_instructions_are_counted_and_programs_used_again():
    program = Program(parse(kernel_text("add.u32 %r1, %lane, 1;\nadd.u32 %r1, %r1, 1;", 0))["tiny"])
    counts = []
    for threads in (32, 64, 64):
        machine = Machine(program, LaunchShape(Dim3(3), Dim3(threads)), b"", GlobalMemory([]))
        machine.run()
        counts.append(machine.instructions)
    assert counts == [15, 30, 30]  # two moves, two additions and ret, in three CTAs


# ---- residency --------------------------------------------------------------------------------------------------------

# CTAs draw tickets, in the order in which they start.
TICKETS = """
mov.u32 %r1, %ctaid.x;
setp.eq.u32 %p1, %lane, 0;
@!%p1 ret;
atom.global.add.u32 %r2, [%in0], 1;
mov.u32 %r3, %smid;
mad.wide.u32 %rd1, %r1, 8, %in1;
st.global.v2.b32 [%rd1], {%r2, %r3};
"""


@pytest.mark.parametrize("cluster", [1, 2, 4])
def test_more_clusters_than_sms(cluster):
    """They start in order; a cluster occupies as many SMs as it has CTAs."""
    counter, out = np.zeros(1, np.uint32), np.zeros((24, 2), np.uint32)
    run_kernel(TICKETS, counter, out, grid=24, cluster=cluster, sms=7)
    assert out[:, 0].tolist() == list(range(24))
    slots = 7 // cluster
    assert set(out[:, 1]) == set(range(slots * cluster)) and counter[0] == 24
    assert (out[:, 1] % cluster == np.arange(24) % cluster).all()


# Every CTA waits until all have arrived.
GRID_BARRIER = """
setp.eq.u32 %p1, %lane, 0;
@!%p1 bra MEET;
red.release.gpu.global.add.u32 [%in0], 1;
SPIN:
ld.acquire.gpu.global.b32 %r1, [%in0];
mov.u32 %r2, %nctaid.x;
setp.lt.u32 %p2, %r1, %r2;
@%p2 bra SPIN;
MEET:
bar.sync 0;
mov.u32 %r3, %ctaid.x;
mad.wide.u32 %rd1, %r3, 4, %in1;
st.global.b32 [%rd1], %r3;
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_grid_barrier(schedule):
    counter, out = np.zeros(1, np.uint32), np.full(6, 99, np.uint32)
    run_kernel(GRID_BARRIER, counter, out, grid=6, threads=64, sms=6, schedule=schedule)
    assert out.tolist() == list(range(6))


def test_grid_barrier_without_room_for_all():
    """As on a GPU whose CTAs do not fit: a deadlock, which names the spinning warps."""
    counter, out = np.zeros(1, np.uint32), np.zeros(3, np.uint32)
    with pytest.raises(Deadlock, match=r"warp 0 of CTA \(1,0,0\) lanes \[0\].*runs without any effect"):
        run_kernel(GRID_BARRIER, counter, out, grid=3, sms=2)


TURNSTILE = """
mov.u32 %r1, %ctaid.x;
mov.u32 %r9, %nctaid.x;
sub.u32 %r1, %r9, %r1;
sub.u32 %r1, %r1, 1;
SPIN:
ld.acquire.gpu.global.b32 %r2, [%in0];
setp.ne.u32 %p1, %r2, %r1;
@%p1 bra SPIN;
ld.global.b32 %r3, [%in1];
mad.lo.u32 %r3, %r3, 3, %r1;
st.global.b32 [%in1], %r3;
add.u32 %r2, %r2, 1;
bar.sync 0;
setp.eq.u32 %p2, %lane, 0;
@%p2 st.release.gpu.global.b32 [%in0], %r2;
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_turnstile(schedule):
    """CTAs go one after the other; the last one comes first in the order of starting."""
    turn, value = np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    run_kernel(TURNSTILE, turn, value, grid=5, schedule=schedule)
    expected = 0
    for i in range(5):
        expected = 3 * expected + i
    assert (turn[0], value[0]) == (5, expected)


def test_long_loops_without_an_effect_are_no_deadlock():
    out = np.zeros(32, np.uint32)
    body = "mov.b32 %r1, 0;\nLOOP:\nadd.u32 %r1, %r1, 1;\nsetp.lt.u32 %p1, %r1, 20000;\n@%p1 bra LOOP;\n"
    for schedule in ("eager", "random:1"):
        run_kernel(body + store_registers(["%r1"], "%in0", "%rd1"), out, schedule=schedule)
        assert (out == 20000).all()


# ---- schedules --------------------------------------------------------------------------------------------------------


def test_names_of_schedules():
    names = {"eager": "eager", "latest": "latest", "random:12": "random:12", "random": "random:0"}
    assert {text: str(Schedule.parse(text)) for text in names} == names
    for text in ("", "late", "random:x", "eager:1", "latest:2", "random:-1"):
        with pytest.raises(ValueError, match="schedule"):
            Schedule.parse(text)


# The order in which warps come past a counter.
ORDER = """
and.b32 %r2, %lane, 31;
setp.eq.u32 %p1, %r2, 0;
@!%p1 ret;
mov.b32 %r3, 0;
LOOP:
atom.global.add.u32 %r1, [%in0], 1;
shr.u32 %r4, %lane, 5;
mad.wide.u32 %rd1, %r1, 4, %in1;
st.global.b32 [%rd1], %r4;
add.u32 %r3, %r3, 1;
setp.lt.u32 %p2, %r3, 200;
@%p2 bra LOOP;
"""


def order(schedule: str) -> list[int]:
    counter, out = np.zeros(1, np.uint32), np.zeros(800, np.uint32)
    run_kernel(ORDER, counter, out, threads=128, schedule=schedule)
    assert counter[0] == 800 and sorted(out.tolist()) == sorted([0, 1, 2, 3] * 200)
    return out.tolist()


def test_random_schedules_differ_and_repeat():
    orders = [order(f"random:{seed}") for seed in range(4)]
    assert order("random:2") == orders[2]
    assert len({tuple(o) for o in orders}) == 4
    assert order("eager") == order("latest") == sorted(orders[0])


# ---- memory -----------------------------------------------------------------------------------------------------------

MODULE = """
.global .align 256 .b8 counters[64];
.const .align 16 .b32 weights[4] = {1, 10, 100, 1000};
.global .align 8 .f64 half = 0d3FE0000000000000;
.shared .align 16 .b8 fixed[48];
.shared .align 8 .b64 word;
"""


def test_module_variables():
    """Global ones are shared by all CTAs and begin with their initial values at each launch; shared ones are per CTA."""
    for _ in range(2):
        out = aligned((4, 8), np.uint32)
        body = """
        mov.u32 %r1, %ctaid.x;
        mov.b64 %rd1, counters;
        mov.b32 %r2, fixed;
        mov.b32 %r3, word;
        setp.eq.u32 %p1, %lane, 0;
        @%p1 atom.global.add.u32 %r4, [counters+60], 7;
        @%p1 st.shared.b32 [fixed+44], %r1;
        @%p1 st.shared.b64 [word], %rd1;
        bar.sync 0;
        ld.const.v4.b32 {%r5, %r6, %r7, %r8}, [weights];
        add.u32 %r5, %r5, %r6;
        add.u32 %r7, %r7, %r8;
        add.u32 %r5, %r5, %r7;
        ld.global.f64 %fd1, [half];
        cvt.rn.f32.f64 %r9, %fd1;
        ld.shared.b32 %r10, [fixed+44];
        sub.u32 %r11, %smem, %r2;
        sub.u32 %r12, %r3, %r2;
        and.b64 %rd2, %rd1, 255;
        cvt.u32.u64 %r13, %rd2;
        mad.wide.u32 %rd3, %r1, 32, %in0;
        @%p1 st.global.v4.b32 [%rd3], {%r4, %r5, %r9, %r10};
        @%p1 st.global.v4.b32 [%rd3+16], {%r11, %r12, %r13, %r1};
        """
        run_kernel(body, out, grid=4, shared=256, module=MODULE)
        assert sorted(out[:, 0].tolist()) == [0, 7, 14, 21]
        assert (out[:, 1:3] == [1111, 0x3F000000]).all()
        np.testing.assert_array_equal(out[:, 3], np.arange(4))
        assert (out[:, 4:7] == [1024, 48, 0]).all(), "dynamic shared memory lies behind the variables, at its alignment"


def test_bounds_of_module_variables_and_shared_memory():
    for text, message in (
        ("st.global.b32 [counters+64], %r1;", "outside every tensor"),
        ("st.shared.b32 [%smem+256], %r1;", "the CTA has 1280 bytes"),
        ("ld.const.b32 %r1, [weights+16];", "outside every tensor"),
    ):
        with pytest.raises(IllegalAccess, match=message):
            run_kernel(text, shared=256, module=MODULE)


@pytest.mark.parametrize("schedule", ["eager", "random:3"])
def test_local_memory_belongs_to_threads(schedule):
    """An array of 8 words per thread, with an index that differs between lanes, and a second variable."""
    out = np.zeros(64, np.uint32)
    body = """
    .local .align 16 .b8 depot[32];
    .local .align 4 .b32 extra;
    mov.b64 %rd1, depot;
    cvta.local.u64 %rd2, %rd1;
    mov.b32 %r1, 0;
    st.local.b32 [extra], %lane;
    LOOP:
    mad.wide.u32 %rd3, %r1, 4, %rd2;
    mad.lo.u32 %r2, %r1, 100, %lane;
    st.b32 [%rd3], %r2;
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p1, %r1, 8;
    @%p1 bra LOOP;
    and.b32 %r3, %lane, 7;
    mad.wide.u32 %rd4, %r3, 4, %rd1;
    ld.local.b32 %r4, [%rd4];
    ld.local.b32 %r5, [extra];
    add.u32 %r4, %r4, %r5;
    """
    run_kernel(body + store_registers(["%r4"], "%in0", "%rd5"), out, threads=64, schedule=schedule)
    assert out.tolist() == [100 * (t % 8) + 2 * t for t in range(64)]


def test_shared_memory_starts_as_poison_and_is_new_for_each_cta():
    out = np.zeros(3, np.uint32)
    body = """
    ld.shared.b32 %r1, [%smem];
    mov.u32 %r2, %ctaid.x;
    mad.wide.u32 %rd1, %r2, 4, %in0;
    st.global.b32 [%rd1], %r1;
    st.shared.b32 [%smem], 7;
    """
    run_kernel(body, out, grid=3, sms=1, shared=16)
    assert (out == 0xA5A5A5A5).all()


def test_global_memory_is_restricted_to_what_was_passed():
    """Neighbours in one array of which only the middle was passed."""
    whole = np.zeros(48, np.uint32)
    for offset in (-4, 64):
        with pytest.raises(IllegalAccess, match="4 bytes before the start|0 bytes behind the end"):
            run_kernel(f"st.global.b32 [%in0+{offset}], 1;", whole[16:32])
    run_kernel("st.global.b32 [%in0+60], 1;", whole[16:32])
    assert whole.nonzero()[0].tolist() == [31]
    with pytest.raises(IllegalAccess, match="no tensor was passed"):
        run_kernel("mov.b64 %rd1, 4096;\nld.global.b32 %r1, [%rd1];")


def test_errors_name_the_cta_and_the_kernel():
    body = "mov.u32 %r1, %ctaid.y;\nsetp.eq.u32 %p1, %r1, 2;\n@%p1 ld.global.b32 %r2, [%in0+64];"
    with pytest.raises(
        IllegalAccess, match=r"warp 0 of CTA \(0,2,0\), PTX line \d+: @%p1 ld.global.b32.*\n  in kernel tiny"
    ):
        run_kernel(body, np.zeros(4, np.uint32), grid=(2, 3))


def test_special_registers_that_are_not_known():
    with pytest.raises(UnknownInstruction, match="PTX line .*%envreg3"):
        run_kernel("mov.u32 %r1, %envreg3;")
