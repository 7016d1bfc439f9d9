"""Counts of `quack.emulator.stats` against counts by hand, and those of a GEMM against its tiles."""

import itertools
import json

import numpy as np
import pytest
import torch

import quack
from quack.emulator.stats import (
    WIDTH,
    KernelStats,
    Stats,
    find_roles,
    letter,
    number_list,
    tool_of,
    transactions,
    wait_of,
)
from quack.gemm_config import GemmConfig
from tests.unit.emulator.ptx_kernels import SCHEDULES, aligned, run_kernel

PROLOGUE = 2  # instructions of `kernel_text` besides one ld.param per buffer, and `ret` behind the body


def count(body: str, *buffers: np.ndarray, **options) -> KernelStats:
    """Run a kernel once."""
    stats = Stats()
    run_kernel(body, *buffers, observer=stats, **options)
    (kernel,) = stats.kernels.values()
    assert max(map(len, stats.report().splitlines())) <= WIDTH
    json.dumps(stats.as_dict())
    return kernel


def names(kernel: KernelStats) -> dict[str, tuple[int, ...]]:
    return {role.name: role.warps for role in kernel.roles}


# ---- instructions -----------------------------------------------------------------------------------------------------

LOOP = """
mov.u32 %r0, 0;
LOOP:
add.u32 %r0, %r0, 1;
setp.lt.u32 %p0, %r0, {turns};
@%p0 bra LOOP;
"""


@pytest.mark.parametrize("warps", [1, 3])
def test_loop(warps):
    kernel = count(LOOP.format(turns=7), threads=32 * warps)
    assert kernel.opcodes() == {"mov.u32": 2 * warps, "mov.b32": warps, "ret": warps} | dict.fromkeys(
        ("add.u32", "setp.lt.u32", "bra"), 7 * warps
    )
    assert kernel.instructions() == warps * (PROLOGUE + 1 + 3 * 7 + 1)
    assert kernel.ctas == kernel.launches == kernel.completed == 1


def test_grid_and_launches_add_up():
    stats = Stats()
    for _ in range(2):
        run_kernel(LOOP.format(turns=3), grid=5, observer=stats)
    (kernel,) = stats.kernels.values()
    assert (kernel.ctas, kernel.launches, kernel.completed) == (10, 2, 2)
    assert kernel.opcodes()["add.u32"] == 10 * 3


def test_paths_of_a_warp_count_each():
    body = """
    setp.lt.u32 %p0, %lane, 4;
    @%p0 bra FEW;
    sub.u32 %r0, %lane, 1;
    sub.u32 %r0, %lane, 1;
    bra MEET;
    FEW:
    xor.b32 %r0, %lane, 1;
    MEET:
    or.b32 %r0, %r0, 1;
    """
    opcodes = count(body).opcodes()
    assert (opcodes["sub.u32"], opcodes["xor.b32"], opcodes["or.b32"], opcodes["bra"]) == (2, 1, 1, 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lanes_that_come_late_to_a_warp_level_instruction(schedule):
    """Lane 0 waits at a barrier, the others at the vote: from there on the warp is one path."""
    body = """
    and.b32 %r1, %lane, 31;
    setp.eq.u32 %p0, %lane, 0;
    setp.ge.u32 %p1, %lane, 32;
    @%p0 mbarrier.init.shared::cta.b64 [%smem], 1;
    bar.sync 0;
    @%p1 bra SECOND;
    @!%p0 bra MEET;
    WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%smem], 0;
    @!%p2 bra WAIT;
    MEET:
    xor.b32 %r2, %r1, 1;
    vote.sync.ballot.b32 %r2, %p0, -1;
    or.b32 %r2, %r1, 1;
    ret;
    SECOND:
    setp.eq.u32 %p3, %lane, 32;
    @%p3 mbarrier.arrive.shared::cta.b64 _, [%smem];
    """
    opcodes = count(body, shared=16, threads=64, schedule=schedule).opcodes()
    assert (opcodes["vote.sync.ballot.b32"], opcodes["or.b32"]) == (1, 1)
    assert 1 <= opcodes["xor.b32"] <= 2  # each path on its own, unless lane 0 did not have to wait


def test_launch_that_fails_is_counted_up_to_there():
    stats = Stats()
    with pytest.raises(quack.emulator.Misuse):
        run_kernel("add.u32 %r0, %lane, 1;\ntrap;", observer=stats)
    run_kernel("add.u32 %r0, %lane, 2;", observer=stats)
    failed, ended = stats.kernels.values()
    assert (failed.launches, failed.completed, ended.completed) == (1, 0, 1)
    assert failed.opcodes()["add.u32"] == ended.opcodes()["add.u32"] == 1
    assert "1 of them did not end" in stats.report()


# ---- roles ------------------------------------------------------------------------------------------------------------

ROLES = """
setp.lt.u32 %p0, %lane, 32;
setp.lt.u32 %p1, %lane, 64;
setp.lt.u32 %p2, %lane, 128;
mad.wide.u32 %rd0, %lane, 4, %in0;
@%p0 bra LOAD;
@%p1 bra IDLE;
@%p2 bra STORE;
bar.sync 1, 32;
bra IDLE;
LOAD:
ld.global.b32 %r1, [%rd0];
st.shared.b32 [%smem+64], %r1;
bra IDLE;
STORE:
mov.u32 %r1, 5;
st.global.b32 [%rd0], %r1;
IDLE:
"""


def test_roles():
    kernel = count(ROLES, np.zeros(160, np.uint32), shared=96, threads=160)
    assert names(kernel) == {
        "loads (ld.global, st.shared)": (0,), "idle": (1,), "stores (st.global)": (2, 3), "waits": (4,),
    }  # fmt: skip
    assert find_roles(kernel.program, {}) == []
    assert sum(kernel.instructions(role.warps) for role in kernel.roles) == kernel.instructions()


@pytest.mark.parametrize(
    "opcode, tool",
    {
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes": "tma load",
        "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group": "tma store",
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group": "tma store",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes": "bulk load",
        "cp.async.bulk.wait_group.read": None,
        "cp.async.bulk.prefetch.tensor.2d.L2.global": None,
        "cp.async.cg.shared.global": "cp.async",
        "cp.async.mbarrier.arrive.noinc.shared::cta.b64": None,
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16": "wgmma",
        "wgmma.fence.sync.aligned": None,
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32": "mma",
        "tcgen05.mma.cta_group::1.kind::f16": "tcgen05.mma",
        "tcgen05.wait::ld.sync.aligned": None,
        "ld.param.u64": None,
        "ld.relaxed.gpu.global.s32": "ld.global",
        "ld.b32": "ld.global",
        "st.shared::cluster.b32": "st.shared",
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32": "st.async",
        "atom.global.add.u32": "atom",
        "red.shared.add.u32": "red.shared",
        "clusterlaunchcontrol.query_cancel.is_canceled.pred.b128": None,
    }.items(),
)
def test_tools(opcode, tool):
    assert tool_of(opcode) == tool


def test_waits_by_opcode():
    assert wait_of("bar.sync") == wait_of("barrier.cta.sync.aligned") == "barrier"
    assert wait_of("bar.warp.sync") is wait_of("bar.arrive") is wait_of("barrier.cluster.arrive") is None
    assert wait_of("cp.async.bulk.wait_group.read") == "bulk group, read"
    assert wait_of("tcgen05.wait::ld.sync.aligned") == "tcgen05.wait::ld"


def test_names_of_numbers():
    assert number_list([4, 0, 1, 2, 8]) == "0-2, 4, 8"
    assert [letter(i) for i in (0, 25, 26)] == ["A", "Z", "A1"]


# ---- barriers ---------------------------------------------------------------------------------------------------------


def test_waits():
    """Warp 0 blocks at the mbarrier at 8 until warp 1 arrives; that at 16 is complete when warp 0 comes to it."""
    body = """
    setp.ne.u32 %p0, %lane, 0;
    @%p0 bra READY;
    mbarrier.init.shared::cta.b64 [%smem+8], 32;
    mbarrier.init.shared::cta.b64 [%smem+16], 32;
    READY:
    bar.sync 3;
    setp.ge.u32 %p1, %lane, 32;
    @%p1 bra SECOND;
    bar.arrive 4, 64;
    WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%smem+8], 0;
    @!%p2 bra WAIT;
    LATER:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%smem+16], 0;
    @!%p2 bra LATER;
    ret;
    SECOND:
    bar.sync 4, 64;
    mbarrier.arrive.shared::cta.b64 _, [%smem+16];
    mbarrier.arrive.shared::cta.b64 _, [%smem+8];
    """
    kernel = count(body, shared=32, threads=64)
    waits = {(barrier, warp): found for (barrier, warp, _), found in kernel.waits.items()}
    assert waits == {
        (("barrier", 3), 0): [0, 1], (("barrier", 3), 1): [1, 0], (("mbarrier", 8), 0): [0, 1],
        (("mbarrier", 16), 0): [1, 0], (("barrier", 4), 1): [0, 1],
    }  # fmt: skip
    assert kernel.arrivals == {
        (("barrier", 3), 0): 1, (("barrier", 3), 1): 1, (("mbarrier", 8), 1): 32, (("mbarrier", 16), 1): 32,
        (("barrier", 4), 0): 1, (("barrier", 4), 1): 1,
    }  # fmt: skip
    assert kernel.opcodes()["mbarrier.try_wait.parity.shared::cta.b64"] == 2


# ---- bytes ------------------------------------------------------------------------------------------------------------


def test_loads_and_stores():
    body = """
    and.b32 %r9, %lane, 7;
    mad.wide.u32 %rd0, %r9, 16, %in0;
    mad.wide.u32 %rd1, %lane, 4, %in1;
    mad.lo.u32 %r8, %lane, 8, %smem;
    ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%rd0];
    ld.global.b64 %rd2, [%in0];
    st.shared.v2.b32 [%r8], {%r0, %r1};
    ld.shared.b16 %rs0, [%smem];
    st.global.b32 [%rd1], %r0;
    red.global.add.u32 [%in1], 1;
    """
    kernel = count(body, aligned(32, np.uint32), aligned(32, np.uint32), shared=256)
    assert kernel.traffic == {
        ("global", "ld, st", "read"): 8 * 16 + 8,
        ("global", "ld, st", "written"): 32 * 4,
        ("global", "ld, st", "atomic"): 4,
        ("shared", "ld, st", "written"): 32 * 8,
        ("shared", "ld, st", "read"): 2,
    }


BULK = """
setp.ne.u32 %p0, %lane, 0;
@%p0 bra JOIN;
mbarrier.init.shared::cta.b64 [%smem], 1;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%smem], 512;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%smem+128], [%in0], 512, [%smem];
JOIN:
bar.warp.sync -1;
WAIT:
mbarrier.try_wait.parity.shared::cta.b64 %p1, [%smem], 0;
@!%p1 bra WAIT;
@%p0 bra DONE;
cp.async.bulk.global.shared::cta.bulk_group [%in1], [%smem+128], 256;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;
DONE:
"""


@pytest.mark.parametrize("schedule", ["eager", "latest"])
def test_bulk_copies(schedule):
    kernel = count(BULK, aligned(512, np.uint8), aligned(512, np.uint8), shared=1024, schedule=schedule)
    assert kernel.traffic == {
        ("global", "bulk", "read"): 512, ("shared", "bulk", "written"): 512, ("shared", "bulk", "read"): 256,
        ("global", "bulk", "written"): 256,
    }  # fmt: skip
    blocks = schedule == "latest"
    assert {key[0]: found for key, found in kernel.waits.items()} == {
        ("mbarrier", 0): [not blocks, blocks], ("bulk group", 0): [not blocks, blocks],
    }  # fmt: skip
    assert kernel.arrivals == {(("mbarrier", 0), 0): 1, (("mbarrier", 0), "bulk load"): 1}


# ---- bank conflicts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, stride, ideal, actual",
    [
        (4, 4, 1, 1), (4, 0, 1, 1), (4, 8, 1, 2), (4, 16, 1, 4), (4, 128, 1, 32), (4, 132, 1, 1), (2, 2, 1, 1),
        (1, 1, 1, 1), (2, 256, 1, 32), (8, 8, 2, 2), (8, 16, 2, 4), (8, 128, 2, 32), (16, 16, 4, 4), (16, 128, 4, 32),
        (16, 144, 4, 4), (16, 32, 4, 8),
    ],
)  # fmt: skip
def test_transactions_by_stride(size, stride, ideal, actual):
    lanes = np.arange(32)
    assert transactions(lanes * stride, lanes, size)[:2] == (ideal, actual)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_transactions_of_random_accesses(size):
    rng = np.random.default_rng(size)
    for _ in range(50):
        lanes = np.sort(rng.choice(32, rng.integers(1, 33), replace=False))
        offsets = rng.integers(0, 64, len(lanes)) * size
        expected = [0, 0]
        for _, phase in itertools.groupby(zip(lanes, offsets), lambda lane: lane[0] // min(32, 128 // size)):
            words = {word for _, offset in phase for word in range(offset // 4, (offset + size + 3) // 4)}
            expected[0] += 1
            expected[1] += max(sum(word % 32 == bank for word in words) for bank in range(32))
        assert list(transactions(offsets, lanes, size)[:2]) == expected


def test_conflicts_are_found_and_sorted():
    body = """
    mad.lo.u32 %r0, %lane, 128, %smem;
    mad.lo.u32 %r1, %lane, 8, %smem;
    mad.lo.u32 %r2, %lane, 4, %smem;
    setp.lt.u32 %p0, %lane, 8;
    st.shared.b32 [%r2], %lane;
    st.shared.b32 [%r1], %lane;
    st.shared.b32 [%r0], %lane;
    @%p0 ld.shared.b32 %r3, [%r0];
    stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r0], {%r1, %r1, %r1, %r1};
    """
    stats = Stats()
    run_kernel(body, shared=4096, observer=stats)
    (found,) = stats.as_dict()["kernels"]
    accesses = [(a["instruction"].split()[0], a["ideal"], a["actual"]) for a in found["shared_accesses"]]
    assert accesses == [
        ("st.shared.b32", 1, 32), ("stmatrix.sync.aligned.m8n8.x4.shared.b16", 4, 32), ("@%p0", 1, 8),
        ("st.shared.b32", 1, 2), ("st.shared.b32", 1, 1),
    ]  # fmt: skip
    assert "BANK CONFLICTS at 4 of 5 places" in stats.report()


# ---- MMA --------------------------------------------------------------------------------------------------------------


def test_mma_sync():
    """Two tiles of two accumulators each, three steps of k."""
    step = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{{d}}}, {{%r0, %r1, %r2, %r3}}, {{%r4, %r5}}, {{{d}}};"
    accumulators = [", ".join(f"%r{i + j}" for j in range(4)) for i in (20, 24)]
    body = "\n".join(f"mov.b32 %r{i}, %lane;" for i in range(6))
    for _ in range(2):
        body += "\n".join(f"mov.b32 %r{i}, 0;" for i in range(20, 28))
        body += "\n".join(step.format(d=d) for _ in range(3) for d in accumulators)
    kernel = count(body, threads=64)
    (instruction,) = kernel.mma
    assert instruction.name == "mma m16n8k16 f32.bf16.bf16.f32"
    assert kernel.mma[instruction] == 2 * 12
    assert kernel.flops == 2 * 12 * 2 * 16 * 8 * 16
    assert (kernel.tiles, kernel.elements) == (2 * 2, 2 * 2 * 2 * 16 * 8)


TENSOR = """
.reg .b32 %base;
setp.eq.u32 %p0, %lane, 0;
setp.lt.u32 %p1, %lane, 32;
@%p0 mbarrier.init.shared::cta.b64 [%smem], 1;
@%p1 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%smem+8], 64;
bar.sync 0;
ld.shared.b32 %r0, [%smem+8];
add.u32 %r1, %r0, 32;
@!%p0 bra WAIT;
cvt.u64.u32 %rd0, %smem;
add.u64 %rd0, %rd0, 1024;
shr.u64 %rd0, %rd0, 4;
or.b64 %rd0, %rd0, {descriptor};
mov.b32 %r2, {instruction};
setp.ne.u32 %p2, %lane, 0;
setp.eq.u32 %p3, %lane, 0;
{multiply}
tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%smem];
WAIT:
mbarrier.try_wait.parity.shared::cta.b64 %p4, [%smem], 0;
@!%p4 bra WAIT;
shr.u32 %base, %lane, 5;
shl.b32 %base, %base, 21;
add.u32 %base, %base, %r0;
tcgen05.ld.sync.aligned.32x32b.x2.b32 {{%r4, %r5}}, [%base];
tcgen05.wait::ld.sync.aligned;
bar.sync 0;
@%p1 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r0, 64;
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tcgen05(schedule):
    """Two tiles of 128 x 32 in turn, three steps of k each; both operands are the same memory."""
    m, n, k, steps = 128, 32, 16, 3
    lines = [
        f"tcgen05.mma.cta_group::1.kind::f16 [%r{tile}], %rd0, %rd0, %r2, {'%p3' if step else '%p2'};"
        for tile in range(2)
        for step in range(steps)
    ]
    body = TENSOR.format(
        multiply="\n".join(lines),
        descriptor=1 << 46 | 128 >> 4 << 16 | 256 >> 4 << 32,  # core matrices side by side along k
        instruction=1 << 4 | 1 << 7 | 1 << 10 | n >> 3 << 17 | m >> 4 << 24,  # f32 += bf16 x bf16
    )
    kernel = count(body, shared=1024 + m * k * 2, threads=128, schedule=schedule)
    (instruction,) = kernel.mma
    assert instruction == (f"tcgen05.mma m{m}n{n}k{k} f32.bf16.bf16, 1 CTA", 2 * m * n * k)
    assert kernel.mma[instruction] == 2 * steps
    assert (kernel.tiles, kernel.elements) == (2, 2 * m * n)
    assert kernel.bytes("shared", "MMA operands", "read") == 2 * steps * (m + n) * k * 2
    assert kernel.bytes("tensor", "tcgen05.mma", "written") == 2 * steps * m * n * 4
    assert kernel.bytes("tensor", "tcgen05.mma", "read") == 2 * (steps - 1) * m * n * 4
    assert kernel.bytes("tensor", "tcgen05.ld", "read") == 128 * 2 * 4


# ---- a GEMM -----------------------------------------------------------------------------------------------------------


def test_gemm():
    """Two tiles for each of two CTAs, which share B."""
    m = n = 256
    k, tile = 128, 128
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.integers(-4, 5, shape).astype(np.float32)).bfloat16() for shape in ((m, k), (n, k)))
    d = torch.empty(m, n, dtype=torch.bfloat16)
    stats = Stats()
    with quack.emulator.use("sm90", sms=2, observers=[stats]):
        config = GemmConfig(tile, tile, cluster_m=2, pingpong=True)
        quack.gemm_tuned.fn(a, b.T, d, C=None, bias=None, alpha=1.0, beta=0.0, config=config, fast_accum=False)
    assert torch.equal(d, (a.float() @ b.float().T).bfloat16())
    (kernel,) = stats.kernels.values()
    operands, tiles = 2 * tile * k * 2, (m // tile) * (n // tile)
    assert kernel.flops == 2 * m * n * k
    assert (kernel.tiles, kernel.elements) == (tiles, m * n)
    assert kernel.bytes("shared", "TMA", "written") == tiles * operands
    assert kernel.bytes("global", "TMA", "read") == tiles * operands * 3 // 4
    assert kernel.bytes("shared", "TMA", "read") == kernel.bytes("global", "TMA", "written") == 2 * m * n
    assert kernel.bytes("shared", "MMA operands", "read") == tiles * (tile // 64) * (64 + tile) * k * 2
    assert kernel.sites and not any(site.excess for site in kernel.sites.values())
    assert set(names(kernel)) == {"loads (tma)", "idle", "multiply (wgmma), epilogue (stmatrix, tma store)"}
    assert kernel.instructions() == sum(kernel.opcodes().values())
    report = stats.report()
    assert "BANK CONFLICTS at 0 of" in report and max(map(len, report.splitlines())) <= WIDTH
    assert stats.as_dict()["kernels"][0]["work"]["mma_flops"] == kernel.flops
