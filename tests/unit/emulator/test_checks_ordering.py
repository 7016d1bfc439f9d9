"""What orders accesses and what does not: pairs of kernels as in test_checks.py, one subject each.

The part that differs is <<good|broken>>; the good one must run silently under every schedule.
"""

import re
from typing import Any, NamedTuple, Optional

import numpy as np
import pytest

from quack.emulator.checks import observers
from quack.emulator.checks.history import ALL_BYTES, History, Words
from quack.emulator.checks.ordering import Event
from quack.emulator.errors import CheckFailed, EmulationError, Misuse
from quack.emulator.fan_out import fan_out
from quack.emulator.tensor_map import ElementType, TensorMap
from tests.unit.emulator.ptx_kernels import aligned, run_kernel

SCHEDULES = ("eager", "latest", "random:1", "random:2")
FENCE = "fence.proxy.async.shared::cta;\n"
# %p1: warp 0, %p2: thread 0 of the CTA, %p4: CTA 0. %r3: this thread's word of shared memory.
NAMES = """
    shr.u32 %r1, %lane, 5;
    setp.eq.u32 %p1, %r1, 0;
    setp.eq.u32 %p2, %lane, 0;
    mov.u32 %r2, %cluster_ctarank;
    setp.eq.u32 %p4, %r2, 0;
    shl.b32 %r3, %lane, 2;
    add.u32 %r3, %r3, %smem;
"""
OUT = "mul.wide.u32 %rd1, %lane, 4;\nadd.u64 %rd1, %rd1, %in1;\n"


class Pair(NamedTuple):
    """pattern: what the error of the broken kernel says. grid, cluster, threads, target: of the launch.

    %in0: 4 x 32 floats, behind the descriptor %map0 in a parameter; %in1: results; %in2: a descriptor of %in0.
    """

    name: str
    body: str
    pattern: str
    error: type[EmulationError] = CheckFailed
    threads: int = 64
    grid: int = 1
    cluster: int = 1
    target: str = "sm_90a"

    def text(self, broken: bool) -> str:
        return NAMES + re.sub(r"<<(.*?)\|(.*?)>>", lambda m: m[2 if broken else 1], self.body, flags=re.S)


def init(count: int = 1, offset: int = 2048) -> str:
    return f"@%p2 mbarrier.init.shared.b64 [%smem+{offset}], {count};\n"


def wait(parity: int = 0, label: str = "W", offset: int = 2048) -> str:
    return f"{label}: mbarrier.try_wait.parity.shared.b64 %p7, [%smem+{offset}], {parity};\n@!%p7 bra {label};\n"


def load(descriptor: str = "%map0", by: str = "%p2") -> str:
    return f"""
    mov.b32 %r10, 512;
    @{by} mbarrier.arrive.expect_tx.shared.b64 _, [%smem+2048], %r10;
    mov.b32 %r11, 0;
    add.u32 %r13, %smem, 2048;
    @{by} cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%smem], [{descriptor}, {{%r11, %r11}}], [%r13];
    """  # noqa: E501


COPY = "add.u64 %rd2, %in0, %rd1;\nsub.u64 %rd2, %rd2, %in1;\ncp.async.ca.shared.global [%r3], [%rd2], 4;\n"
STORE = "@%p2 cp.async.bulk.global.shared::cta.bulk_group [%in1], [%smem], 256;\n@%p2 cp.async.bulk.commit_group;\n"
REPLACE = "@%p2 tensormap.replace.tile.global_dim.global.b1024.b32 [%in2], 1, 4;\n"
CLUSTER = "barrier.cluster.arrive<<.{0}|.relaxed>>;\nbarrier.cluster.wait;\n"
ALLOC = """
    @!%p1 bra ALLOCATED;
    tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%smem], 32;
    ALLOCATED: bar.sync 0;
    ld.shared.b32 %r20, [%smem];
    shl.b32 %r21, %r1, 21;
    add.u32 %r21, %r20, %r21;
"""
FREE = "@!%p1 bra FREED;\ntcgen05.dealloc.cta_group::1.sync.aligned.b32 %r20, 32;\nFREED:\n"
WGMMA = """
    st.shared.b32 [%r3], %lane;
    fence.proxy.async.shared::cta;
    bar.sync 0;
    mov.b32 %r30, 0x3f803f80; mov.b32 %r31, %r30; mov.b32 %r32, %r30; mov.b32 %r33, %r30;
    mov.b32 %r40, 0; mov.b32 %r41, %r40; mov.b32 %r42, %r40; mov.b32 %r43, %r40;
    shr.u32 %r50, %smem, 4;
    cvt.u64.u32 %rd10, %r50;
    or.b64 %rd10, %rd10, 0x800080000;
    setp.ne.b32 %p3, 1, 0;
"""
MULTIPLY = (
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r40, %r41, %r42, %r43}, {%r30, %r31, %r32, %r33}, "
    "%rd10, %p3, 1, 1, 0;\nwgmma.commit_group.sync.aligned;\n"
)

PAIRS = [
    Pair(
        "named barrier, arrive and sync",
        "@!%p1 bra CONSUMER;\nst.shared.b32 [%r3], %lane;\nbar.arrive <<1|2>>, 64;\nbra DONE;\n"
        "CONSUMER: <<bar.sync 1, 64;|>>\nadd.u32 %r4, %r3, -128;\nld.shared.b32 %r5, [%r4];\n" + OUT
        + "st.global.b32 [%rd1], %r5;\nDONE:",
        "data race|nothing has written",
    ),
    Pair(
        "arrivals of the next phase do not count",
        # Thread 0 arrives once more after the phase that warp 1 waits for; the others complete that phase at the end.
        init(32) + "fence.mbarrier_init.release.cluster;\nbar.sync 0;\n@!%p1 bra CONSUMER;\n"
        "<<st.shared.b32 [%r3], %lane;\n|>>mbarrier.arrive.shared.b64 _, [%smem+2048];\n"
        "<<|st.shared.b32 [%r3], %lane;\n>>@%p2 mbarrier.arrive.shared.b64 _, [%smem+2048];\nbra DONE;\nCONSUMER:\n"
        + wait() + "add.u32 %r4, %r3, -128;\nld.shared.b32 %r5, [%r4];\nsetp.ne.u32 %p5, %lane, 32;\n"
        "@%p5 mbarrier.arrive.shared.b64 _, [%smem+2048];\nDONE:",
        "data race|nothing has written",
    ),
    Pair(
        "relaxed arrival",
        init(32) + "fence.mbarrier_init.release.cluster;\nbar.sync 0;\n@!%p1 bra CONSUMER;\nst.shared.b32 [%r3], %lane;\n"
        "mbarrier.arrive<<|.relaxed.cluster>>.shared.b64 _, [%smem+2048];\nbra DONE;\nCONSUMER:\n" + wait()
        + "add.u32 %r4, %r3, -128;\nld.shared.b32 %r5, [%r4];\nDONE:",
        "data race",
    ),
    Pair(
        "initialisation of a remote barrier",
        init(64) + "<<fence.mbarrier_init.release.cluster;|>>\nbarrier.cluster.arrive.relaxed;\nbarrier.cluster.wait;\n"
        "xor.b32 %r2, %r2, 1;\nmapa.shared::cluster.u32 %r4, %smem, %r2;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r4+2048];\n" + wait(),
        "orders this after its initialisation",
        grid=2,
        cluster=2,
    ),
    Pair(
        "initialisation seen by TMA",
        init() + "<<fence.mbarrier_init.release.cluster;|>>\nbar.sync 0;\n" + load() + wait(),
        "no fence.mbarrier_init",
    ),
    Pair(
        "data behind a relaxed cluster barrier",
        "st.shared.b32 [%r3], %lane;\nbarrier.cluster.arrive<<|.relaxed>>;\nbarrier.cluster.wait;\n"
        "xor.b32 %r2, %r2, 1;\nmapa.shared::cluster.u32 %r4, %r3, %r2;\nld.shared::cluster.b32 %r5, [%r4];\n"
        "barrier.cluster.arrive;\nbarrier.cluster.wait;",
        "data race",
        grid=2,
        cluster=2,
    ),
    Pair(
        "exit before a remote read",
        "st.shared.b32 [%r3], %lane;\nbarrier.cluster.arrive;\nbarrier.cluster.wait;\n"
        "xor.b32 %r2, %r2, 1;\nmapa.shared::cluster.u32 %r4, %r3, %r2;\nld.shared::cluster.b32 %r5, [%r4];\n"
        "<<barrier.cluster.arrive;\nbarrier.cluster.wait;|>>",
        "may exit while its shared memory",
        grid=2,
        cluster=2,
    ),
    Pair(
        "exit before a remote arrival",
        init(64) + "barrier.cluster.arrive;\nbarrier.cluster.wait;\nxor.b32 %r2, %r2, 1;\n"
        "mapa.shared::cluster.u32 %r4, %smem, %r2;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r4+2048];\n<<" + wait() + "|>>",
        "may exit while its mbarrier",
        grid=2,
        cluster=2,
    ),
    Pair(
        "relaxed flag in global memory",
        # CTA 0 writes, fences, and raises a flag; CTA 1 spins on it.
        "mov.u32 %r2, %ctaid.x;\nsetp.ne.u32 %p4, %r2, 0;\n@%p4 bra READER;\n"
        "@%p2 st.global.b32 [%in1], 7;\n<<fence.acq_rel.gpu;|>>\n@%p2 red.relaxed.gpu.global.add.u32 [%in1+128], 1;\n"
        "bra DONE;\nREADER: ld.relaxed.gpu.global.b32 %r4, [%in1+128];\nsetp.eq.u32 %p5, %r4, 0;\n@%p5 bra READER;\n"
        "fence.acq_rel.gpu;\nld.global.b32 %r5, [%in1];\nDONE:",
        "data race.*global memory",
        threads=32,
        grid=2,
    ),
    Pair(
        "acquire without a release",
        "mov.u32 %r2, %ctaid.x;\nsetp.ne.u32 %p4, %r2, 0;\n@%p4 bra READER;\n"
        "@%p2 st.global.b32 [%in1], 7;\n@%p2 st.<<release|relaxed>>.gpu.global.b32 [%in1+128], 1;\n"
        "bra DONE;\nREADER: ld.acquire.gpu.global.b32 %r4, [%in1+128];\nsetp.eq.u32 %p5, %r4, 0;\n@%p5 bra READER;\n"
        "ld.global.b32 %r5, [%in1];\nDONE:",
        "data race.*global memory",
        threads=32,
        grid=2,
    ),
    Pair(
        "atomics",
        "<<red.global.add.u32 [%in1], 1;|@%p1 red.global.add.u32 [%in1], 1;\n@!%p1 st.global.b32 [%in1], 1;>>",
        "data race.*global memory",
    ),
    Pair(
        "bytes of one word",
        # One half of a word by each warp, or both the same half.
        "mul.lo.u32 %r4, %r1, <<2|0>>;\nadd.u32 %r4, %r4, %smem;\nst.shared.b16 [%r4], 0;",
        "data race",
    ),
    Pair(
        "two TMA stores to one place",
        "st.shared.b32 [%r3], %lane;\n" + FENCE + "bar.sync 0;\nand.b32 %r4, %lane, 31;\nsetp.eq.u32 %p5, %r4, 0;\n"
        "mul.wide.u32 %rd3, %r1, <<128|0>>;\nadd.u64 %rd3, %rd3, %in1;\n"
        "@%p5 cp.async.bulk.global.shared::cta.bulk_group [%rd3], [%smem], 128;\n"
        "@%p5 cp.async.bulk.commit_group;\n@%p5 cp.async.bulk.wait_group 0;",
        "data race.*global memory",
    ),
    Pair(
        "cp.async without a wait",
        OUT + COPY + "cp.async.commit_group;\n<<cp.async.wait_group 0;|>>\nld.shared.b32 %r5, [%r3];\ncp.async.wait_all;",
        "data race|nothing has written",
    ),
    Pair(
        "cp.async and the async proxy",
        OUT + COPY + "cp.async.wait_all;\n<<fence.proxy.async;|>>\nbar.sync 0;\n" + STORE
        + "@%p2 cp.async.bulk.wait_group.read 0;",
        "missing fence.proxy.async",
    ),
    Pair(
        "fence by the warp that stores",
        "st.shared.b32 [%r3], %lane;\n<<bar.sync 0;\n" + FENCE + "|" + FENCE.replace("shared::cta", "global")
        + "bar.sync 0;\n>>" + STORE + "@%p2 cp.async.bulk.wait_group.read 0;",
        "missing fence.proxy.async",
    ),
    Pair(
        "load over data of ordinary stores",
        init() + "st.shared.b32 [%r3], 0;\nfence.mbarrier_init.release.cluster;\n<<" + FENCE + "|>>bar.sync 0;\n" + load()
        + wait(),
        "missing fence.proxy.async",
    ),
    Pair(
        "descriptor changed",
        init() + "fence.mbarrier_init.release.cluster;\nbar.sync 0;\n" + REPLACE
        + "<<fence.proxy.tensormap::generic.release.gpu;\n|>>fence.proxy.tensormap::generic.acquire.gpu [%in2], 128;\n"
        + load("%in2") + wait(),
        "missing fence.proxy.tensormap",
    ),
    Pair(
        "descriptor changed by another warp",
        init() + "fence.mbarrier_init.release.cluster;\n" + REPLACE + "fence.proxy.tensormap::generic.release.gpu;\n"
        "bar.sync 0;\n<<fence.proxy.tensormap::generic.acquire.gpu [%in2], 128;\n|>>setp.eq.u32 %p6, %lane, 32;\n"
        + load("%in2", "%p6") + wait(),
        "missing fence.proxy.tensormap",
    ),
    Pair(
        "register never written",
        OUT + "@%p1 mov.b32 %r60, 1;\n<<@%p1 |>>st.global.b32 [%rd1], %r60;",
        "register %r60, which nothing has written",
    ),
    Pair(
        "operand A written without wgmma.fence",
        WGMMA + "wgmma.fence.sync.aligned;\n" + MULTIPLY + "wgmma.wait_group.sync.aligned 0;\nadd.u32 %r30, %r30, 1;\n"
        "<<wgmma.fence.sync.aligned;|>>\n" + MULTIPLY + "wgmma.wait_group.sync.aligned 0;",
        "missing wgmma.fence: a register of operand A was written",
        threads=128,
    ),
    Pair(
        "operand A copied without wgmma.fence",
        WGMMA + "wgmma.fence.sync.aligned;\nadd.u32 %r35, %lane, 1;\nmov.b32 %r31, <<7|%r35>>;\n" + MULTIPLY
        + "wgmma.wait_group.sync.aligned 0;",
        "missing wgmma.fence: a register of operand A was written .*add.u32 %r35",
        threads=128,
    ),
    Pair(
        "operand A overwritten in flight",
        WGMMA + "wgmma.fence.sync.aligned;\n" + MULTIPLY + "<<wgmma.wait_group.sync.aligned 0;|>>\nmov.b32 %r30, 0;\n"
        "wgmma.wait_group.sync.aligned 0;",
        "writes a register that is operand A of a wgmma in flight",
        threads=128,
    ),
    Pair(
        "wait of one warp of four",
        # The third warp multiplies what a load brings without having waited.
        init() + "fence.mbarrier_init.release.cluster;\nbar.sync 0;\n" + load() + WGMMA.replace("st.shared.b32 [%r3]", "//")
        + "<<|setp.eq.u32 %p5, %r1, 2;\n@%p5 bra HERE;\n>>" + wait() + "HERE: wgmma.fence.sync.aligned;\n" + MULTIPLY
        + "wgmma.wait_group.sync.aligned 0;",
        "data race|nothing has written",
        threads=128,
    ),
    Pair(
        "setmaxnreg of some warps",
        "<<|@%p1 bra DONE;\n>>setmaxnreg.dec.sync.aligned.u32 40;\nDONE:",
        "not executed alike",
        threads=128,
    ),
    Pair(
        "registers that are not there",
        "setp.lt.u32 %p5, %lane, 128;\n@%p5 bra FEWER;\nsetmaxnreg.inc.sync.aligned.u32 240;\nbra DONE;\n"
        "FEWER: <<setmaxnreg.dec.sync.aligned.u32 24;|>>\nDONE:",
        "ask for 82944 registers, it has 64512",
        threads=384,
    ),
    Pair(
        "tcgen05.ld behind tcgen05.st",
        ALLOC + "tcgen05.st.sync.aligned.32x32b.x1.b32 [%r21], %lane;\n<<tcgen05.wait::st.sync.aligned;|>>\n"
        "tcgen05.ld.sync.aligned.32x32b.x1.b32 %r22, [%r21];\ntcgen05.wait::ld.sync.aligned;\n"
        "tcgen05.wait::st.sync.aligned;\nbar.sync 0;\n" + FREE,
        "data race.*tensor memory|tensor memory.*nothing has written",
        target="sm_100a",
    ),
    Pair(
        "TMEM never written",
        ALLOC + "<<tcgen05.st.sync.aligned.32x32b.x1.b32 [%r21], %lane;\n|>>tcgen05.wait::st.sync.aligned;\n"
        "tcgen05.ld.sync.aligned.32x32b.x1.b32 %r22, [%r21];\ntcgen05.wait::ld.sync.aligned;\nbar.sync 0;\n" + FREE,
        "tensor memory of CTA 0, lane .*nothing has written",
        target="sm_100a",
    ),
    Pair(
        "TMEM freed under a reader",
        ALLOC + "tcgen05.st.sync.aligned.32x32b.x1.b32 [%r21], %lane;\ntcgen05.wait::st.sync.aligned;\n"
        "tcgen05.ld.sync.aligned.32x32b.x1.b32 %r22, [%r21];\ntcgen05.wait::ld.sync.aligned;\n<<bar.sync 0;|>>\n" + FREE,
        "data race.*tensor memory|not allocated",
        error=EmulationError,
        target="sm_100a",
    ),
    Pair(
        "TMEM allocated after the permit was given up",
        "@!%p1 bra DONE;\n<<|tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;\n>>"
        "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%smem], 32;\nld.shared.b32 %r20, [%smem];\n"
        "tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r20, 32;\nDONE:",
        "after tcgen05.relinquish_alloc_permit",
        error=Misuse,
        target="sm_100a",
    ),
    Pair(
        "TMEM freed twice",
        ALLOC + FREE + "<<|@!%p1 bra DONE;\ntcgen05.dealloc.cta_group::1.sync.aligned.b32 %r20, 32;\nDONE:>>",
        "nothing was allocated",
        error=Misuse,
        target="sm_100a",
    ),
    Pair(
        "wgmma by part of a warp",
        WGMMA + "wgmma.fence.sync.aligned;\nand.b32 %r5, %lane, <<0|1>>;\nsetp.ne.u32 %p5, %r5, 0;\n@%p5 bra SKIP;\n"
        + MULTIPLY + "SKIP: wgmma.wait_group.sync.aligned 0;",
        "aligned",
        error=EmulationError,
        threads=128,
    ),
]  # fmt: skip


def run(pair: Pair, broken: bool, schedule: str) -> Optional[EmulationError]:
    """The error of the kernel, if any."""
    source, out, maps = aligned((4, 32), np.float32), aligned(512, np.uint32), aligned(128, np.uint8)
    tensor_map = TensorMap(source.ctypes.data, ElementType.F32, (32, 4), (128,), (32, 4), (1, 1)).encode()
    maps[:] = np.frombuffer(tensor_map, np.uint8)
    launch: dict[str, Any] = {
        "threads": pair.threads, "grid": pair.grid, "cluster": pair.cluster, "target": pair.target
    }  # fmt: skip
    try:
        run_kernel(
            pair.text(broken), source, out, maps, shared=4096, descriptors=[tensor_map], schedule=schedule,
            observer=fan_out(observers(("all",))), **launch,
        )  # fmt: skip
    except EmulationError as error:
        return error
    return None


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: p.name.replace(" ", "-"))
def test_pair(pair: Pair):
    for schedule in SCHEDULES:
        assert (found := run(pair, False, schedule)) is None, f"{schedule}: {found}"
        error = run(pair, True, schedule)
        assert isinstance(error, pair.error), f"{schedule}: {error!r}"
        assert re.search(pair.pattern, str(error), re.S), f"{schedule}: {error}"


# ---- parts ------------------------------------------------------------------------------------------------------------


def test_a_race_names_both_sides():
    error = run(next(p for p in PAIRS if p.name == "data behind a relaxed cluster barrier"), True, "eager")
    text = str(error)
    assert re.search(r"was written by warp \d of CTA \(\d,0,0\), PTX line \d+: st.shared.b32 \[%r3\], %lane;", text)
    assert re.search(r"at warp \d of CTA \(\d,0,0\), PTX line \d+: ld.shared::cluster.b32", text)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 48])
def test_words_cover_the_bytes_accessed(size: int):
    offsets = np.random.default_rng(size).permutation(64)[:20] * max(size, 2)
    cells = np.zeros((1024, 4), bool)
    for where, mask in Words()(offsets, size):
        cells[where] |= [bool(mask >> i & 1) for i in range(4)]
    expected = np.zeros(4096, bool)
    expected[(offsets[:, None] + np.arange(size)).reshape(-1)] = True
    assert (cells.reshape(-1) == expected).all()


def _event(index: int, strong: bool = False) -> Event:
    return Event(None, None, index, 1, strong)


def _refuse(event: Event, was_write: bool, i: int) -> None:
    raise CheckFailed(f"{event.index} {was_write} {i}")


def test_history_finds_every_conflict():
    """Against a plain list of accesses, on random ones."""
    random = np.random.default_rng(0)
    for _ in range(300):
        history, cells = History(), np.zeros(6, np.int32)
        log: list[tuple[Event, set[int], int, bool]] = []
        known: set[Event] = set()
        for number in range(8):
            event = _event(number, bool(random.random() < 0.2))
            where = np.flatnonzero(random.random(6) < 0.5)
            mask, is_write = int(random.integers(1, 16)), bool(random.random() < 0.4)
            # Knowledge only grows, as that of one warp that synchronises with others.
            known |= {e for e, _, _, _ in log if random.random() < 0.7}
            conflict = any(
                e not in known and m & mask and set(where.tolist()) & w and (is_write or wrote)
                and not (e.is_strong and event.is_strong)
                for e, w, m, wrote in log
            )  # fmt: skip
            try:
                history.access(cells, where, mask, event, is_write, known.__contains__, _refuse)
                assert not conflict
            except CheckFailed:
                assert conflict
                break
            log.append((event, set(where.tolist()), mask, is_write))


def test_history_forgets_states_that_no_cell_has():
    history, cells = History(), np.zeros(4, np.int32)
    for number in range(50):
        history.access(cells, slice(0, 2), ALL_BYTES, _event(number), True, lambda e: True, _refuse)
    history.limit = 10
    before = [history.states[i] for i in cells]
    history.compact([cells])
    assert len(history.states) == 2 and [history.states[i] for i in cells] == before
