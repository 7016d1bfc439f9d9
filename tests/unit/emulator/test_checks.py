"""Every checker on a deliberately broken kernel, which it must catch, and on a twin that differs only in the defect.

A kernel is written once, with the part that carries the defect in <<good|broken>>.
"""

import re
from typing import Any, NamedTuple, Optional

import numpy as np
import pytest

from quack.emulator.checks import observers
from quack.emulator.errors import CheckFailed, Deadlock, EmulationError, IllegalAccess, Misuse
from quack.emulator.fan_out import fan_out
from quack.emulator.tensor_map import ElementType, TensorMap
from tests.unit.emulator.ptx_kernels import aligned, run_kernel

BOX_BYTES = 512  # 4 rows of 32 floats


class Pair(NamedTuple):
    """body: PTX with <<good|broken>>; error and pattern: what the broken one raises. schedules: under which it must.

    threads, shared, target: of the launch. with_map: the body uses %map0, a descriptor of the 4 x 32 floats of %in0.
    """

    name: str
    body: str
    error: type[EmulationError]
    pattern: str
    threads: int = 64
    shared: int = 4096
    target: str = "sm_90a"
    schedules: tuple[str, ...] = ("eager", "latest", "random:1")

    def text(self, broken: bool) -> str:
        return re.sub(r"<<(.*?)\|(.*?)>>", lambda m: m[2 if broken else 1], self.body, flags=re.S)


WARP = "shr.u32 %r1, %lane, 5;\nsetp.eq.u32 %p1, %r1, 0;\nsetp.eq.u32 %p2, %lane, 0;\n"  # p1: warp 0, p2: thread 0


def wait(barrier: str, parity: str, label: str) -> str:
    return f"""
    {label}: mbarrier.try_wait.parity.shared.b64 %p7, [{barrier}], {parity};
    @!%p7 bra {label};
    """


def init(count: str = "1", offset: int = 2048) -> str:
    """Thread 0 initialises the mbarrier at this offset; visible to everybody."""
    return (
        WARP
        + f"""
    @!%p2 bra INITIALISED{offset};
    mov.b32 %r2, {count};
    mbarrier.init.shared.b64 [%smem+{offset}], %r2;
    fence.mbarrier_init.release.cluster;
    INITIALISED{offset}:
    fence.proxy.async;
    bar.sync 0;
    """
    )


def load(expected: str = str(BOX_BYTES), to: str = "%smem", row: str = "0") -> str:
    """Thread 0 loads the box at (0, row) by TMA."""
    return f"""
    mov.b32 %r10, {expected};
    @%p2 mbarrier.arrive.expect_tx.shared.b64 _, [%smem+2048], %r10;
    mov.b32 %r11, 0;
    mov.b32 %r12, {row};
    add.u32 %r13, %smem, 2048;
    @%p2 cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes
        [{to}], [%map0, {{%r11, %r12}}], [%r13];
    """.replace("bytes\n        [", "bytes [")


READ = """
    shl.b32 %r20, %lane, 2;
    add.u32 %r20, %r20, %smem;
    ld.shared.b32 %r21, [%r20];
    mul.wide.u32 %rd1, %lane, 4;
    add.u64 %rd2, %in1, %rd1;
    st.global.b32 [%rd2], %r21;
"""
WRITE = "shl.b32 %r20, %lane, 2;\nadd.u32 %r20, %r20, %smem;\nst.shared.b32 [%r20], %lane;\n"
STORE = """
    @%p2 cp.async.bulk.global.shared::cta.bulk_group [%in1], [%smem], 256;
    @%p2 cp.async.bulk.commit_group;
"""
WGMMA = """
    mov.b32 %r30, 0x3f803f80;
    mov.b32 %r31, %r30; mov.b32 %r32, %r30; mov.b32 %r33, %r30;
    mov.f32 %r40, 0f00000000; mov.f32 %r41, %r40; mov.f32 %r42, %r40; mov.f32 %r43, %r40;
    shr.u32 %r50, %smem, 4;
    and.b32 %r50, %r50, 16383;
    cvt.u64.u32 %rd10, %r50;
    or.b64 %rd10, %rd10, 0x800080000;
    setp.ne.b32 %p3, 1, 0;
""".replace("mov.f32 %r40, 0f00000000", "mov.b32 %r40, 0").replace("mov.f32", "mov.b32")
MULTIPLY = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r40, %r41, %r42, %r43}, "
MULTIPLY += "{%r30, %r31, %r32, %r33}, %rd10, %p3, 1, 1, 0;"
RESULT = "mul.wide.u32 %rd1, %lane, 4;\nadd.u64 %rd2, %in1, %rd1;\nst.global.b32 [%rd2], %r40;\n"

PAIRS = [
    Pair(
        "missing wait",
        init() + load() + "<<" + wait("%smem+2048", "0", "W1") + "|>>" + READ,
        CheckFailed,
        "race|nothing has written",
    ),
    Pair(
        "wait of one warp only",
        init() + load() + "<<|@!%p1 bra SKIP;>>" + wait("%smem+2048", "0", "W1") + "SKIP:" + READ,
        CheckFailed,
        "race|nothing has written",
    ),
    Pair(
        "too many transaction bytes",
        init() + load("<<512|768>>") + wait("%smem+2048", "0", "W1") + READ,
        Deadlock,
        "256 bytes outstanding",
    ),
    Pair(
        "too few transaction bytes",
        init() + load("<<512|256>>") + wait("%smem+2048", "0", "W1") + READ,
        Deadlock,
        "-256 bytes outstanding",
    ),
    Pair(
        "arrival count too high",
        init("<<1|2>>") + load() + wait("%smem+2048", "0", "W1") + READ,
        Deadlock,
        "1 of 2 arrivals",
    ),
    Pair(
        "arrival count too low",
        # With room for the other warp's arrival the phase completes once both were there.
        init("<<65|64>>") + load() + "mbarrier.arrive.shared.b64 _, [%smem+2048];"
        + wait("%smem+2048", "0", "W1") + READ + "bar.sync 0;",
        EmulationError,
        "arrivals",
    ),
    Pair(
        "stage overwritten too early",
        init() + init("<<64|32>>", 2056) + load() + wait("%smem+2048", "0", "W1") + "bar.sync 0;" + READ
        + "<<|@!%p1 bra LATE;>> mbarrier.arrive.shared.b64 _, [%smem+2056]; <<|LATE:>>"
        + "@!%p1 bra DONE;" + wait("%smem+2056", "0", "W2") + load(row="4") + wait("%smem+2048", "1", "W3") + "DONE:",
        CheckFailed,
        "data race",
    ),
    Pair(
        "missing proxy fence",
        WARP + WRITE + "<<fence.proxy.async.shared::cta;|>> bar.sync 0;" + STORE
        + "@%p2 cp.async.bulk.wait_group.read 0;",
        CheckFailed,
        "fence.proxy.async",
    ),
    Pair(
        "missing barrier before a store",
        WARP + WRITE + "fence.proxy.async.shared::cta; <<bar.sync 0;|>>" + STORE
        + "@%p2 cp.async.bulk.wait_group.read 0;",
        CheckFailed,
        "race|nothing has written|proxy",
    ),
    Pair(
        "source of a store overwritten",
        WARP + WRITE + "fence.proxy.async.shared::cta; bar.sync 0;" + STORE
        + "<<@%p2 cp.async.bulk.wait_group.read 0;|>> bar.sync 0;" + WRITE
        + "@%p2 cp.async.bulk.wait_group 0;",
        CheckFailed,
        "data race|missing fence.proxy.async",  # late, the store meets the new data
    ),
    Pair(
        "exit before a store has read",
        WARP + WRITE + "fence.proxy.async.shared::cta; bar.sync 0;" + STORE + "<<@%p2 cp.async.bulk.wait_group.read 0;|>>",
        CheckFailed,
        "may exit while|nothing has written",
    ),
    Pair("race on smem", WARP + WRITE + "<<bar.sync 0;|>> xor.b32 %lane, %lane, 32;" + READ, CheckFailed, "race|nothing has written"),
    Pair(
        "race on global memory",
        "shr.u32 %r1, %lane, 5;\nmul.lo.u32 %r2, %r1, <<4|0>>;\ncvt.u64.u32 %rd1, %r2;\nadd.u64 %rd2, %in1, %rd1;\n"
        "st.global.b32 [%rd2], %r1;",
        CheckFailed,
        "data race.*global memory",
    ),
    Pair("uninitialised read", WARP + "<<" + WRITE + "|>> bar.sync 0;" + READ, CheckFailed, "nothing has written"),
    Pair(
        "out-of-bounds store",
        "mul.wide.u32 %rd1, %lane, <<4|8>>;\nadd.u64 %rd2, %in1, %rd1;\nst.global.b32 [%rd2], %lane;",
        IllegalAccess,
        "outside every tensor",
    ),
    Pair(
        "TMA box beyond shared memory",
        init() + "add.u32 %r3, %smem, <<0|3840>>;" + load(to="%r3") + wait("%smem+2048", "0", "W1"),
        IllegalAccess,
        "the CTA has 4096 bytes",
    ),
    Pair(
        "misaligned vector access",
        WARP + "add.u32 %r3, %smem, <<16|8>>;\nst.shared.v4.b32 [%r3], {%lane, %lane, %lane, %lane};",
        IllegalAccess,
        "not a multiple of the 16 bytes",
        threads=32,
    ),
    Pair(
        "divergent barrier",
        "and.b32 %r1, %lane, <<32|1>>;\nsetp.eq.u32 %p1, %r1, 0;\n<<bar.sync 0;|@%p1 bar.sync 0;>>",
        EmulationError,
        "lanes|aligned",
    ),
    Pair(
        "barrier in the middle of a phase at exit",
        init("<<64|65>>") + "mbarrier.arrive.shared.b64 _, [%smem+2048];\nbar.sync 0;",
        CheckFailed,
        "in the middle of a phase",
    ),
    Pair(
        "barrier used before it is initialised for all",
        WARP + "@!%p2 bra READY;\nmov.b32 %r2, 64;\nmbarrier.init.shared.b64 [%smem+2048], %r2;\nREADY:\n"
        "<<bar.sync 0;|>> mbarrier.arrive.shared.b64 _, [%smem+2048];\nbar.sync 0;",
        EmulationError,
        "orders this after its initialisation|no mbarrier was initialised",
    ),
    Pair(
        "barrier overwritten",
        init("64") + "mbarrier.arrive.shared.b64 _, [%smem+2048];\nbar.sync 0;\n@%p2 st.shared.b32 [%smem+<<2056|2052>>], 0;",
        CheckFailed,
        "writes data over mbarrier",
    ),
    Pair(
        "accumulators read before wait_group",
        WRITE + "fence.proxy.async.shared::cta; bar.sync 0;" + WGMMA + "wgmma.fence.sync.aligned;\n" + MULTIPLY
        + "wgmma.commit_group.sync.aligned;\n<<wgmma.wait_group.sync.aligned 0;|>>" + RESULT
        + "wgmma.wait_group.sync.aligned 0;",
        CheckFailed,
        "wait_group",
        threads=128,
    ),
    Pair(
        "wgmma without wgmma.fence",
        WRITE + "fence.proxy.async.shared::cta; bar.sync 0;" + WGMMA + "<<wgmma.fence.sync.aligned;|>>" + MULTIPLY
        + "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" + RESULT,
        CheckFailed,
        "wgmma.fence",
        threads=128,
    ),
    Pair(
        "register budget",
        "setmaxnreg.inc.sync.aligned.u32 <<232|256>>;\nbar.sync 0;",
        CheckFailed,
        "registers",
        threads=256,
        schedules=("eager",),
    ),
    Pair(
        "TMEM leak",
        "shr.u32 %r1, %lane, 5;\nsetp.ne.u32 %p1, %r1, 0;\n@%p1 bra ALLOCATED;\n"
        "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%smem], 64;\nALLOCATED:\nbar.sync 0;\n"
        "@%p1 bra FREED;\nld.shared.b32 %r2, [%smem];\n"
        "<<tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r2, 64;|>>\nFREED:",
        CheckFailed,
        "tensor memory|TMEM|columns",
        target="sm_100a",
    ),
]  # fmt: skip


def run(pair: Pair, broken: bool, schedule: str, checks: tuple[str, ...] = ("all",)) -> Optional[EmulationError]:
    """The error of the kernel, if any."""
    source, out = aligned((8, 32), np.float32), aligned(256, np.uint32)
    source[:] = np.arange(256).reshape(8, 32)
    out = out[: 2 * pair.threads // 2]
    tensor_map = TensorMap(source.ctypes.data, ElementType.F32, (32, 8), (128,), (32, 4), (1, 1))
    options: dict[str, Any] = {"shared": pair.shared, "threads": pair.threads, "target": pair.target}
    try:
        run_kernel(
            pair.text(broken), source, out, descriptors=[tensor_map.encode()], schedule=schedule,
            observer=fan_out(observers(checks)), **options,
        )  # fmt: skip
    except EmulationError as error:
        return error
    return None


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: p.name.replace(" ", "-"))
def test_the_broken_kernel_is_caught_and_its_twin_is_not(pair: Pair):
    for schedule in pair.schedules:
        assert run(pair, False, schedule) is None
        error = run(pair, True, schedule)
        assert isinstance(error, pair.error), f"{schedule}: {error!r}"
        assert re.search(pair.pattern, str(error), re.S), f"{schedule}: {error}"
        assert "PTX line" in str(error)


def test_reads_before_a_refill_need_a_proxy_fence_where_that_is_asked():
    refilled = next(pair for pair in PAIRS if pair.name == "stage overwritten too early")
    fenced = Pair(
        "fenced", refilled.body.replace("<<|@!%p1 bra LATE;>>", "fence.proxy.async.shared::cta;"), CheckFailed, ""
    )
    for schedule in refilled.schedules:
        assert run(refilled, False, schedule) is None  # "all" lets it pass: most such loads have returned by then
        error = run(refilled, False, schedule, ("all", "refills"))
        assert isinstance(error, CheckFailed) and "overwrites shared memory" in str(error), error
        assert run(fenced, False, schedule, ("all", "refills")) is None


def test_without_checkers_most_defects_pass_unseen():
    """That is what the checkers are for: under the eager schedule these kernels even compute the right thing."""
    silent = {"missing proxy fence", "source of a store overwritten", "stage overwritten too early", "missing wait"}
    for pair in PAIRS:
        if pair.name in silent:
            assert run(pair, True, "eager", ()) is None, pair.name


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="race.*uninitialised"):
        observers(("race",))
    assert not issubclass(Misuse, CheckFailed)
