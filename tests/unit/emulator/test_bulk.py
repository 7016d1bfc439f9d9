"""Bulk and asynchronous copies as instructions (PTX ISA 9.7.9.25): operands, barriers, groups, multicast, schedules.

What one box moves is tested in test_tma_box; here references are slices of padded numpy arrays.
"""

from typing import Any

import numpy as np
import pytest

from quack.emulator.errors import IllegalAccess, Misuse, UnknownInstruction
from quack.emulator.tensor_map import ElementType, Swizzle, TensorMap
from tests.unit.emulator.ptx_kernels import SCHEDULES, aligned, run_kernel

FEW = ("eager", "latest", "random:4")
BARRIER = 32768  # offset of the mbarriers in shared memory, behind the data


def wait(parity: int = 0, name: str = "WAIT", barrier: str = f"%smem+{BARRIER}") -> str:
    return f"{name}:\nmbarrier.try_wait.parity.shared::cta.b64 %p6, [{barrier}], {parity};\n@!%p6 bra {name};"


def prologue(nbytes: int) -> str:
    """Lane 0 (in %p7) makes the barrier, at %r60, which awaits `nbytes`."""
    return f"""
    setp.eq.u32 %p7, %lane, 0;
    add.u32 %r60, %smem, {BARRIER};
    @%p7 mbarrier.init.shared::cta.b64 [%r60], 1;
    @%p7 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r60], {nbytes};
    fence.mbarrier_init.release.cluster;
    """


def dump(nbytes: int, base: str, name: str = "DUMP") -> str:
    """Shared memory [0, nbytes) to global memory, 512 bytes a round."""
    return f"""
    mov.b32 %r50, 0;
    {name}:
    mad.lo.u32 %r51, %lane, 16, %r50;
    setp.lt.u32 %p5, %r51, {nbytes};
    add.u32 %r52, %smem, %r51;
    @%p5 ld.shared.v4.b32 {{%r53, %r54, %r55, %r56}}, [%r52];
    cvt.u64.u32 %rd50, %r51;
    add.s64 %rd50, %rd50, {base};
    @%p5 st.global.v4.b32 [%rd50], {{%r53, %r54, %r55, %r56}};
    add.u32 %r50, %r50, 512;
    setp.lt.u32 %p4, %r50, {nbytes};
    @%p4 bra {name};
    """


def fill(nbytes: int, base: str, name: str = "FILL") -> str:
    """The opposite of `dump`, and the fence that TMA needs."""
    text = dump(nbytes, base, name)
    text = text.replace("ld.shared", "LOAD").replace("st.global", "ld.global").replace("LOAD", "st.shared")
    text = text.replace("@%p5 st.shared.v4.b32 {%r53, %r54, %r55, %r56}, [%r52];", "")
    text = text.replace("ld.global.v4.b32 [%rd50], {%r53, %r54, %r55, %r56};",
                        "ld.global.v4.b32 {%r53, %r54, %r55, %r56}, [%rd50];\n"
                        "    @%p5 st.shared.v4.b32 [%r52], {%r53, %r54, %r55, %r56};")  # fmt: skip
    return text + "fence.proxy.async.shared::cta;\nbar.sync 0;\n"


def tensor(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Random bits, contiguous, with 16-byte rows; shape is slowest dimension first."""
    out = aligned(shape, dtype)
    out.reshape(-1).view(np.uint8)[:] = np.random.default_rng(seed).integers(0, 256, out.nbytes)
    return out


def tensor_map(
    array: np.ndarray, box: tuple[int, ...], element: ElementType, swizzle: Swizzle = Swizzle.NONE
) -> TensorMap:
    """box: slowest dimension first, like the array's shape."""
    return TensorMap(
        address=array.ctypes.data, element_type=element, dims=array.shape[::-1], strides=array.strides[-2::-1],
        box=box[::-1], element_strides=(1,) * array.ndim, swizzle=swizzle,
    )  # fmt: skip


def boxed(array: np.ndarray, box: tuple[int, ...], at: tuple[int, ...]) -> np.ndarray:
    """array[at : at + box] with zeros outside; `at` slowest first."""
    out = np.zeros(box, array.dtype)
    inside = [(max(a, 0), min(a + b, n)) for a, b, n in zip(at, box, array.shape)]
    if all(low < high for low, high in inside):
        target = tuple(slice(low - a, high - a) for (low, high), a in zip(inside, at))
        out[target] = array[tuple(slice(*bounds) for bounds in inside)]
    return out


def swizzled(data: bytes, mode: Swizzle) -> np.ndarray:
    """Bytes of a box where shared memory has them: bits 4 to 6 of the address are exchanged by bits 7 to 9."""
    mask = {Swizzle.NONE: 0, Swizzle.B32: 1, Swizzle.B64: 3, Swizzle.B128: 7}[mode]
    address = np.arange(len(data))
    out = np.zeros(len(data), np.uint8)
    out[address ^ (address >> 7 & mask) << 4] = np.frombuffer(data, np.uint8)
    return out


def coordinates(at: tuple[int, ...]) -> str:
    return "{" + ", ".join(map(str, at[::-1])) + "}"


# rank -> (shape, box, places), slowest first; the last dimension is contiguous.
SHAPES: dict[int, Any] = {
    1: ((40,), (32,), [(0,), (24,), (-8,), (64,)]),
    2: ((9, 40), (8, 32), [(0, 0), (3, 16), (-2, -8), (9, 0)]),
    3: ((5, 6, 40), (2, 4, 32), [(1, 1, 8), (4, 4, 32), (-1, -1, -16)]),
    4: ((3, 4, 5, 32), (2, 2, 2, 16), [(0, 1, 2, 8), (2, 3, 4, 24), (-1, -1, -1, -8)]),
    5: ((2, 3, 4, 5, 16), (2, 2, 2, 2, 8), [(0, 1, 1, 2, 8), (1, 2, 3, 4, 8), (-1, -1, -1, -1, 0)]),
}


@pytest.mark.parametrize("schedule", FEW)
@pytest.mark.parametrize("rank", SHAPES)
def test_tensor_loads(rank, schedule):
    """Inside and across the bounds, coordinates as literals and in registers, both spellings of the destination."""
    shape, box, places = SHAPES[rank]
    source = tensor(shape, "u2", rank)
    descriptor = tensor_map(source, box, ElementType.U16)
    for i, at in enumerate(places):
        nbytes = 2 * int(np.prod(box))
        out = np.zeros(nbytes, np.uint8)
        listed = coordinates(at)
        moves = ""
        if i % 2:
            moves = "\n".join(f"mov.b32 %r{10 + k}, {c};" for k, c in enumerate(at[::-1]))
            listed = "{" + ", ".join(f"%r{10 + k}" for k in range(rank)) + "}"
        space = "shared::cta" if i % 2 else "shared::cluster"
        body = f"""
        {prologue(nbytes)}
        {moves}
        @%p7 cp.async.bulk.tensor.{rank}d.{space}.global.tile.mbarrier::complete_tx::bytes
            [%smem], [%map0, {listed}], [%r60];
        {wait()}
        {dump(nbytes, "%in1")}
        """
        run_kernel(body, source, out, shared=BARRIER + 64, schedule=schedule, descriptors=[descriptor.encode()])
        np.testing.assert_array_equal(out, np.frombuffer(boxed(source, box, at).tobytes(), np.uint8))


@pytest.mark.parametrize("mode", [Swizzle.B32, Swizzle.B64, Swizzle.B128])
def test_swizzled_load_from_a_descriptor_in_global_memory(mode):
    source = tensor((20, 64), "u2")
    box = (16, mode.span // 2)
    descriptor = aligned(128, np.uint8)
    descriptor[:] = np.frombuffer(tensor_map(source, box, ElementType.F16, mode).encode(), np.uint8)
    nbytes = 2 * box[0] * box[1]
    out = np.zeros(nbytes, np.uint8)
    body = f"""
    {prologue(nbytes)}
    createpolicy.fractional.L2::evict_first.b64 %rd9, 1.0;
    @%p7 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint
        [%smem+1024], [%in2, {{16, 4}}], [%r60], %rd9;
    {wait()}
    add.u32 %smem, %smem, 1024;
    {dump(nbytes, "%in1")}
    """
    run_kernel(body, source, out, descriptor, shared=BARRIER + 64)
    np.testing.assert_array_equal(out, swizzled(boxed(source, box, (4, 16)).tobytes(), mode))


@pytest.mark.parametrize("schedule", FEW)
@pytest.mark.parametrize("rank", SHAPES)
def test_tensor_stores(rank, schedule):
    """What lies outside the tensor is dropped."""
    shape, box, places = SHAPES[rank]
    data = tensor(box, "u2", rank + 10)
    for at in places:
        target = tensor(shape, "u2", rank)
        expected = target.copy()
        inside = [(max(a, 0), min(a + b, n)) for a, b, n in zip(at, box, shape)]
        if all(low < high for low, high in inside):
            part = tuple(slice(low - a, high - a) for (low, high), a in zip(inside, at))
            expected[tuple(slice(*b) for b in inside)] = data[part]
        body = f"""
        setp.eq.u32 %p7, %lane, 0;
        {fill(data.nbytes, "%in1")}
        @%p7 cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group [%map0, {coordinates(at)}], [%smem];
        @%p7 cp.async.bulk.commit_group;
        @%p7 cp.async.bulk.wait_group 0;
        """
        descriptor = tensor_map(target, box, ElementType.U16).encode()
        run_kernel(body, target, data, shared=BARRIER, schedule=schedule, descriptors=[descriptor])
        np.testing.assert_array_equal(target, expected)


REDUCTIONS: dict[tuple[str, str], Any] = {
    ("add", "u32"): lambda r, s: r + s, ("min", "u32"): np.minimum, ("max", "u32"): np.maximum, ("and", "b32"): lambda r, s: r & s,
    ("or", "b32"): lambda r, s: r | s, ("xor", "b32"): lambda r, s: r ^ s,
    ("inc", "u32"): lambda r, s: np.where(r >= s, 0, r + 1), ("dec", "u32"): lambda r, s: np.where((r == 0) | (r > s), s, r - 1),
}  # fmt: skip


@pytest.mark.parametrize("operation, kind", REDUCTIONS)
@pytest.mark.parametrize("is_tensor", [True, False])
def test_reductions(operation, kind, is_tensor):
    """cp.reduce.async.bulk[.tensor] from shared to global memory."""
    target, data = tensor((8, 16), "u4", 1), tensor((8, 16), "u4", 2)
    target[::3], data[::2] = target[::3] % 8, data[::2] % 8
    expected = REDUCTIONS[operation, kind](target, data).astype(np.uint32)
    if is_tensor:
        text = (
            f"cp.reduce.async.bulk.tensor.2d.global.shared::cta.{operation}.tile.bulk_group [%map0, {{0, 0}}], [%smem]"
        )
    else:
        text = f"cp.reduce.async.bulk.global.shared::cta.bulk_group.{operation}.{kind} [%in0], [%smem], {data.nbytes}"
    body = f"""
    setp.eq.u32 %p7, %lane, 0;
    {fill(data.nbytes, "%in1")}
    @%p7 {text};
    @%p7 cp.async.bulk.commit_group;
    @%p7 cp.async.bulk.wait_group 0;
    """
    descriptor = tensor_map(target, (8, 16), ElementType.U32).encode()
    run_kernel(body, target, data, shared=BARRIER, schedule="latest", descriptors=[descriptor])
    np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize("kind, dtype", [("f32", np.float32), ("f16", np.float16), ("f64", np.float64)])
def test_reductions_of_floats(kind, dtype):
    noftz = ".noftz" if kind == "f16" else ""
    target, data = aligned(64, dtype), aligned(64, dtype)
    target[:], data[:] = np.random.default_rng(1).normal(size=(2, 64))
    expected = target + data
    body = f"""
    setp.eq.u32 %p7, %lane, 0;
    {fill(data.nbytes, "%in1")}
    @%p7 cp.reduce.async.bulk.global.shared::cta.bulk_group.add{noftz}.{kind} [%in0], [%smem], {data.nbytes};
    @%p7 cp.async.bulk.commit_group;
    @%p7 cp.async.bulk.wait_group 0;
    """
    run_kernel(body, target, data, shared=BARRIER)
    np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize("schedule", FEW)
def test_gather_and_scatter(schedule):
    source, target = tensor((30, 64), "u2", 1), tensor((30, 64), "u2", 2)
    expected = target.copy()
    rows = [7, 0, 29, 13]
    expected[rows, 32:48] = source[rows, 16:32]
    out = np.zeros(4 * 32, np.uint8)
    maps = [tensor_map(t, (1, 16), ElementType.BF16).encode() for t in (source, target)]
    listed = ", ".join(map(str, rows))
    body = f"""
    {prologue(4 * 32)}
    @%p7 cp.async.bulk.tensor.2d.shared::cta.global.tile::gather4.mbarrier::complete_tx::bytes
        [%smem], [%map0, {{16, {listed}}}], [%r60];
    {wait()}
    @%p7 cp.async.bulk.tensor.2d.global.shared::cta.tile::scatter4.bulk_group [%map1, {{32, {listed}}}], [%smem];
    @%p7 cp.async.bulk.commit_group;
    {dump(4 * 32, "%in2")}
    @%p7 cp.async.bulk.wait_group 0;
    """
    run_kernel(body, source, target, out, shared=BARRIER + 64, schedule=schedule, descriptors=maps)
    np.testing.assert_array_equal(out.view(np.uint16).reshape(4, 16), source[rows, 16:32])
    np.testing.assert_array_equal(target, expected)


# ---- clusters ---------------------------------------------------------------------------------------------------------

CLUSTER = """
mov.u32 %r61, %cluster_ctarank;
{prologue}
barrier.cluster.arrive.aligned;
barrier.cluster.wait.aligned;
{load}
mul.lo.u32 %r62, %r61, {nbytes};
cvt.u64.u32 %rd40, %r62;
add.s64 %rd40, %rd40, %in1;
{dump}
barrier.cluster.arrive.aligned;
barrier.cluster.wait.aligned;
"""


def in_cluster(
    load: str, nbytes: int, expected: int, source: np.ndarray, descriptor: TensorMap, schedule: str
) -> np.ndarray:
    """Run `load` and wait for its bytes in each CTA of a cluster of 4. %r61: rank.

    Returns the first `nbytes` of shared memory of each.
    """
    out = np.zeros((4, nbytes), np.uint8)
    body = CLUSTER.format(prologue=prologue(expected), load=load, nbytes=nbytes, dump=dump(nbytes, "%rd40"))
    run_kernel(
        body, source, out, shared=BARRIER + 64, grid=4, cluster=4, schedule=schedule, descriptors=[descriptor.encode()]
    )
    return out


@pytest.mark.parametrize("schedule", FEW)
def test_multicast(schedule):
    """CTA r loads slice r and sends it to all; every barrier counts four slices."""
    source = tensor((8, 16), "u4")
    load = """
    mul.lo.u32 %r10, %r61, 2;
    mad.lo.u32 %r11, %r61, 128, %smem;
    mov.b16 %rs1, 15;
    @%p7 cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster
        [%r11], [%map0, {0, %r10}], [%r60], %rs1;
    """ + wait()
    out = in_cluster(load, 512, 512, source, tensor_map(source, (2, 16), ElementType.U32), schedule)
    np.testing.assert_array_equal(out, [np.frombuffer(source.tobytes(), np.uint8)] * 4)


@pytest.mark.parametrize("schedule", FEW)
def test_multicast_to_some(schedule):
    """CTA 1 alone sends to CTAs 0, 1 and 3; CTA 2 loads for itself."""
    source = tensor((8, 16), "u4")
    load = """
    setp.eq.u32 %p1, %r61, 1;
    and.pred %p1, %p1, %p7;
    @%p1 cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster
        [%smem], [%map0, {0, 2}], [%r60], 11;
    setp.eq.u32 %p2, %r61, 2;
    and.pred %p2, %p2, %p7;
    @%p2 cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%smem], [%map0, {0, 4}], [%r60];
    """ + wait()
    out = in_cluster(load, 128, 128, source, tensor_map(source, (2, 16), ElementType.U32), schedule)
    rows = [source[4:6] if rank == 2 else source[2:4] for rank in range(4)]
    np.testing.assert_array_equal(out, [np.frombuffer(r.tobytes(), np.uint8) for r in rows])


@pytest.mark.parametrize("schedule", FEW)
@pytest.mark.parametrize("multicast", [False, True])
def test_pairs_signal_their_leader(schedule, multicast):
    """.cta_group::2: the even CTA of each pair counts the bytes of both; the odd one's barrier sees none.

    The odd CTA waits for nothing but the leader's arrival at its own barrier.
    """
    source = tensor((16, 16), "u4")
    leader = "and.b32 %r12, %r60, 0xFEFFFFFF;\n"  # the same barrier in the CTA of even rank
    if multicast:
        # Each CTA sends its two rows to itself and to the CTA two further on.
        load = f"""
        mul.lo.u32 %r10, %r61, 2;
        shr.u32 %r13, %r61, 1;
        mad.lo.u32 %r11, %r13, 128, %smem;
        and.b32 %r14, %r61, 1;
        shl.b32 %r14, 5, %r14;
        cvt.u16.u32 %rs1, %r14;
        mapa.shared::cluster.u32 %r60, %r60, %r61;
        {leader}
        @%p7 cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.cta_group::2
            [%r11], [%map0, {{0, %r10}}], [%r12], %rs1;
        """
    else:
        load = f"""
        mul.lo.u32 %r10, %r61, 4;
        mapa.shared::cluster.u32 %r60, %r60, %r61;
        {leader}
        @%p7 cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.cta_group::2
            [%smem], [%map0, {{0, %r10}}], [%r12];
        """
    box = (2, 16) if multicast else (4, 16)
    # Odd CTAs expect 16 bytes, which the leader delivers by hand once it has seen all of its 512.
    head = prologue(512).replace(
        "expect_tx.shared::cta.b64 _, [%r60], 512", "expect_tx.shared::cta.b64 _, [%r60], %r20"
    )
    head = (
        "mov.u32 %r61, %cluster_ctarank;\nand.b32 %r21, %r61, 1;\nsetp.eq.u32 %p3, %r21, 0;\nselp.b32 %r20, 512, 16, %p3;\n"
        + head
    )
    after = """
    add.u32 %r22, %r61, 1;
    mapa.shared::cluster.u32 %r23, %r60, %r22;
    and.pred %p3, %p3, %p7;
    @%p3 mbarrier.complete_tx.shared::cluster.b64 [%r23], 16;
    """
    out = np.zeros((4, 256), np.uint8)
    own = f"add.u32 %r24, %smem, {BARRIER};\n" + wait(barrier="%r24")
    body = CLUSTER.format(prologue=head, load=load + own + after, nbytes=256, dump=dump(256, "%rd40"))
    run_kernel(body, source, out, shared=BARRIER + 64, grid=4, cluster=4, schedule=schedule,
               descriptors=[tensor_map(source, box, ElementType.U32).encode()])  # fmt: skip
    if multicast:
        expected = [np.concatenate([source[2 * p : 2 * p + 2], source[2 * p + 4 : 2 * p + 6]]) for p in (0, 1, 0, 1)]
    else:
        expected = [source[4 * r : 4 * r + 4] for r in range(4)]
    np.testing.assert_array_equal(out, [np.frombuffer(e.tobytes(), np.uint8) for e in expected])


# ---- linear copies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", FEW)
@pytest.mark.parametrize("space", ["shared::cta", "shared::cluster"])
def test_linear_load_and_store(space, schedule):
    """Two copies on one barrier, then back by a bulk group."""
    source, target = tensor((256,), "u4", 1), tensor((256,), "u4", 2)
    body = f"""
    {prologue(1024)}
    @%p7 cp.async.bulk.{space}.global.mbarrier::complete_tx::bytes [%smem], [%in0], 512, [%r60];
    mov.b32 %r10, 512;
    @%p7 cp.async.bulk.{space}.global.mbarrier::complete_tx::bytes.L2::cache_hint [%smem+512], [%in0+512], %r10, [%r60], %rd9;
    {wait()}
    @%p7 cp.async.bulk.global.shared::cta.bulk_group [%in1], [%smem], %r10;
    @%p7 cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%in1+512], [%smem+512], 496, %rd9;
    @%p7 cp.async.bulk.commit_group;
    @%p7 cp.async.bulk.wait_group 0;
    """
    last = target[-4:].copy()
    run_kernel(body, source, target, shared=BARRIER + 64, schedule=schedule)
    np.testing.assert_array_equal(target, np.concatenate([source[:-4], last]))


@pytest.mark.parametrize("schedule", FEW)
def test_linear_multicast_and_copies_between_ctas(schedule):
    """CTA 0 sends 256 bytes to all; each CTA sends them on, 16 bytes shifted, to the next one."""
    source = tensor((64,), "u4")
    descriptor = tensor_map(source, (64,), ElementType.U32)
    load = f"""
    setp.eq.u32 %p1, %r61, 0;
    and.pred %p1, %p1, %p7;
    @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%smem], [%in0], 256, [%r60], 15;
    {wait(name="FIRST")}
    add.u32 %r10, %r61, 1;
    and.b32 %r10, %r10, 3;
    add.u32 %r11, %smem, 256;
    mapa.shared::cluster.u32 %r11, %r11, %r10;
    mapa.shared::cluster.u32 %r12, %r60, %r10;
    @%p7 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r60], 240;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    @%p7 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r11], [%smem+16], 240, [%r12];
    {wait(1, "SECOND")}
    """
    out = in_cluster(load, 496, 256, source, descriptor, schedule)
    raw = np.frombuffer(source.tobytes(), np.uint8)
    np.testing.assert_array_equal(out, [np.concatenate([raw, raw[16:]])] * 4)


# ---- groups -----------------------------------------------------------------------------------------------------------


def overwritten(wait_text: str, schedule: str) -> tuple[np.ndarray, np.ndarray]:
    """Store shared memory, wait in some way, overwrite it, wait for all: (what was stored, what global memory got)."""
    source, target = tensor((128,), "u4", 1), np.zeros(128, np.uint32)
    body = f"""
    setp.eq.u32 %p7, %lane, 0;
    {fill(512, "%in1")}
    @%p7 cp.async.bulk.global.shared::cta.bulk_group [%in0], [%smem], 512;
    @%p7 cp.async.bulk.commit_group;
    {wait_text}
    bar.warp.sync -1;
    mad.lo.u32 %r10, %lane, 16, %smem;
    st.shared.v4.b32 [%r10], {{0, 0, 0, 0}};
    @%p7 cp.async.bulk.wait_group 0;
    """
    run_kernel(body, target, source, shared=BARRIER, schedule=schedule)
    return source, target


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("text", ["@%p7 cp.async.bulk.wait_group.read 0;", "@%p7 cp.async.bulk.wait_group 0;"])
def test_sources_may_change_after_a_wait(text, schedule):
    source, target = overwritten(text, schedule)
    np.testing.assert_array_equal(target, source)


def test_a_missing_wait_shows_in_the_latest_schedule():
    source, target = overwritten("", "latest")
    assert not target.any() and source.any()
    source, target = overwritten("@%p7 cp.async.bulk.wait_group.read 1;", "latest")
    assert not target.any()
    np.testing.assert_array_equal(*overwritten("", "eager"))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_ring_of_stores(schedule):
    """Four stages, twelve stores; a stage is reused when all but the three newest groups have been read."""
    target = np.zeros((12, 32, 4), np.uint32)
    body = """
    setp.eq.u32 %p7, %lane, 0;
    mov.b32 %r1, 0;
    mov.b64 %rd1, %in0;
    ROUND:
    and.b32 %r2, %r1, 3;
    mad.lo.u32 %r3, %r2, 512, %smem;
    mad.lo.u32 %r4, %lane, 16, %r3;
    mad.lo.u32 %r5, %r1, 1000, %lane;
    st.shared.v4.b32 [%r4], {%r5, %r1, %lane, 7};
    fence.proxy.async.shared::cta;
    bar.warp.sync -1;
    @%p7 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r3], 512;
    @%p7 cp.async.bulk.commit_group;
    @%p7 cp.async.bulk.wait_group.read 3;
    bar.warp.sync -1;
    add.s64 %rd1, %rd1, 512;
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p1, %r1, 12;
    @%p1 bra ROUND;
    """
    run_kernel(body, target, shared=2048, schedule=schedule)
    rounds, lanes = np.ogrid[:12, :32]
    expected = np.stack(np.broadcast_arrays(1000 * rounds + lanes, rounds, lanes, 7), -1)
    np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_groups_belong_to_threads(schedule):
    """Each lane stores 16 bytes of its own and waits for its own groups only."""
    target = np.zeros((32, 4), np.uint32)
    body = """
    mad.lo.u32 %r1, %lane, 16, %smem;
    st.shared.v4.b32 [%r1], {%lane, 1, 2, 3};
    fence.proxy.async.shared::cta;
    mad.wide.u32 %rd1, %lane, 16, %in0;
    cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r1], 16;
    setp.lt.u32 %p1, %lane, 16;
    @%p1 cp.async.bulk.commit_group;
    @%p1 cp.async.bulk.wait_group 0;
    @!%p1 cp.async.bulk.commit_group;
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 1;
    """
    run_kernel(body, target, shared=512, schedule=schedule)
    np.testing.assert_array_equal(target, [[lane, 1, 2, 3] for lane in range(32)])


# ---- cp.async ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("size", [4, 8, 16])
def test_copies_of_lanes(size, schedule):
    """Whole, in part with zeros behind, not at all; by groups that are waited for one by one."""
    source, out = tensor((96, size), "u1"), np.zeros((96, size), np.uint8)
    cache = "cg" if size == 16 else "ca"
    body = f"""
    mad.lo.u32 %r1, %lane, {size}, %smem;
    mad.wide.u32 %rd1, %lane, {size}, %in0;
    cp.async.{cache}.shared.global [%r1], [%rd1], {size};
    cp.async.commit_group;
    rem.u32 %r2, %lane, {size + 1};
    cp.async.{cache}.shared::cta.global.L2::128B [%r1+{32 * size}], [%rd1+{32 * size}], {size}, %r2;
    cp.async.commit_group;
    and.b32 %r3, %lane, 1;
    setp.ne.u32 %p1, %r3, 0;
    cp.async.{cache}.shared.global.L2::cache_hint [%r1+{64 * size}], [%rd1+{64 * size}], {size}, %p1, %rd9;
    mad.wide.u32 %rd2, %lane, {size}, %in1;
    """
    steps = ["cp.async.wait_group 1;", "cp.async.wait_group 0;", "cp.async.wait_all;"]
    for i, step in enumerate(steps):
        words = range(32 * size * i, 32 * size * i + size, 4)
        body += (
            step + "".join(f"\nld.shared.b32 %r4, [%r1+{at}];\nst.global.b32 [%rd2+{at}], %r4;" for at in words) + "\n"
        )
    run_kernel(body, source, out, shared=96 * size, schedule=schedule)
    expected = source.copy()
    for lane in range(32):
        expected[32 + lane, lane % (size + 1) :] = 0
        if lane % 2:
            expected[64 + lane] = 0
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("schedule", FEW)
def test_copies_with_a_cache_policy(schedule):
    """The policy is the last operand, with and without a source size before it."""
    source, out = tensor((2, 32, 16), "u1"), np.zeros((2, 32, 16), np.uint8)
    body = """
    createpolicy.fractional.L2::evict_last.b64 %rd9, 0.5;
    mad.lo.u32 %r1, %lane, 16, %smem;
    mad.wide.u32 %rd1, %lane, 16, %in0;
    mad.wide.u32 %rd2, %lane, 16, %in1;
    cp.async.cg.shared.global.L2::cache_hint [%r1], [%rd1], 16, %rd9;
    cp.async.cg.shared.global.L2::cache_hint [%r1+512], [%rd1+512], 16, 12, %rd9;
    cp.async.wait_all;
    ld.shared.v4.b32 {%r2, %r3, %r4, %r5}, [%r1];
    st.global.v4.b32 [%rd2], {%r2, %r3, %r4, %r5};
    ld.shared.v4.b32 {%r2, %r3, %r4, %r5}, [%r1+512];
    st.global.v4.b32 [%rd2+512], {%r2, %r3, %r4, %r5};
    """
    run_kernel(body, source, out, shared=1024, schedule=schedule)
    source[1, :, 12:] = 0
    np.testing.assert_array_equal(out, source)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("noinc", [True, False])
def test_copies_that_arrive_at_a_barrier(noinc, schedule):
    """Warp 0 copies, warp 1 waits. Without .noinc the arrivals of the copies come on top of those of the threads."""
    source, out = tensor((64, 4), "u4"), np.zeros((64, 4), np.uint32)
    arrive = "" if noinc else "mbarrier.arrive.shared.b64 _, [%r60];"
    body = f"""
    add.u32 %r60, %smem, {BARRIER};
    setp.eq.u32 %p7, %lane, 0;
    @%p7 mbarrier.init.shared::cta.b64 [%r60], 32;
    bar.sync 0;
    and.b32 %r1, %lane, 31;
    mad.lo.u32 %r2, %r1, 16, %smem;
    mad.wide.u32 %rd1, %r1, 16, %in0;
    mad.wide.u32 %rd2, %r1, 16, %in1;
    setp.ge.u32 %p1, %lane, 32;
    @%p1 bra CONSUMER;
    cp.async.cg.shared.global [%r2], [%rd1], 16;
    cp.async.cg.shared.global [%r2+512], [%rd1+512], 16;
    cp.async.mbarrier.arrive{".noinc" * noinc}.shared::cta.b64 [%r60];
    {arrive}
    bra END;
    CONSUMER:
    {wait(barrier="%r60")}
    ld.shared.v4.b32 {{%r3, %r4, %r5, %r6}}, [%r2];
    st.global.v4.b32 [%rd2], {{%r3, %r4, %r5, %r6}};
    ld.shared.v4.b32 {{%r3, %r4, %r5, %r6}}, [%r2+512];
    st.global.v4.b32 [%rd2+512], {{%r3, %r4, %r5, %r6}};
    END:
    """
    run_kernel(body, source, out, shared=BARRIER + 64, threads=64, schedule=schedule)
    np.testing.assert_array_equal(out, source)


def test_a_missing_wait_for_copies_shows_in_the_latest_schedule():
    source = tensor((32,), "u4")
    for text, is_right in (
        ("", False),
        ("cp.async.commit_group;\ncp.async.wait_group 1;", False),
        ("cp.async.wait_all;", True),
    ):
        out = np.zeros(32, np.uint32)
        body = f"""
        mad.lo.u32 %r1, %lane, 4, %smem;
        mad.wide.u32 %rd1, %lane, 4, %in0;
        cp.async.ca.shared.global [%r1], [%rd1], 4;
        {text}
        ld.shared.b32 %r2, [%r1];
        mad.wide.u32 %rd2, %lane, 4, %in1;
        st.global.b32 [%rd2], %r2;
        """
        run_kernel(body, source, out, shared=128, schedule="latest")
        assert (out == source).all() == is_right


# ---- tensormap --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["global", "shared::cta", ""])
def test_replaced_descriptors(space):
    """Every field that a grouped GEMM replaces, in shared memory and then copied, or in global memory; then a load."""
    wrong, source = tensor((4, 8), "u1", 1), tensor((20, 96), "u2", 2)
    out = np.zeros(16 * 32, np.uint8)
    descriptor = aligned(128, np.uint8)
    descriptor[:] = np.frombuffer(
        TensorMap(wrong.ctypes.data, ElementType.U8, (64,), (), (16,), (1,)).encode(), np.uint8
    )
    in_shared = space != "global"
    at = "%smem+1024" if in_shared else "%in3"
    if space == "":
        at = "%rd6"
    dot = f".{space}" if space else ""
    fields = f"""
    tensormap.replace.tile.global_address{dot}.b1024.b64 [{at}], %in1;
    tensormap.replace.tile.rank{dot}.b1024.b32 [{at}], 1;
    tensormap.replace.tile.elemtype{dot}.b1024.b32 [{at}], 10;
    tensormap.replace.tile.swizzle_mode{dot}.b1024.b32 [{at}], 1;
    tensormap.replace.tile.interleave_layout{dot}.b1024.b32 [{at}], 0;
    tensormap.replace.tile.fill_mode{dot}.b1024.b32 [{at}], 0;
    tensormap.replace.tile.global_dim{dot}.b1024.b32 [{at}], 0, 96;
    mov.b32 %r10, 20;
    tensormap.replace.tile.global_dim{dot}.b1024.b32 [{at}], 1, %r10;
    mov.b64 %rd5, 192;
    tensormap.replace.tile.global_stride{dot}.b1024.b64 [{at}], 0, %rd5;
    tensormap.replace.tile.box_dim{dot}.b1024.b32 [{at}], 0, 16;
    tensormap.replace.tile.box_dim{dot}.b1024.b32 [{at}], 1, 16;
    tensormap.replace.tile.element_stride{dot}.b1024.b32 [{at}], 0, 1;
    tensormap.replace.tile.element_stride{dot}.b1024.b32 [{at}], 1, 1;
    """
    publish = """
    tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%in3], [%r11], 128;
    """
    body = f"""
    {prologue(512)}
    add.u32 %r11, %smem, 1024;
    cvt.u64.u32 %rd6, %r11;
    cvta.shared.u64 %rd6, %rd6;
    mad.lo.u32 %r12, %lane, 4, %r11;
    mad.wide.u32 %rd7, %lane, 4, %in3;
    ld.global.b32 %r13, [%rd7];
    st.shared.b32 [%r12], %r13;
    bar.warp.sync -1;
    @!%p7 bra REPLACED;
    {fields}
    REPLACED:
    bar.warp.sync -1;
    {publish if in_shared else ""}
    fence.proxy.tensormap::generic.acquire.gpu [%in3], 128;
    @%p7 cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%smem], [%in3, {{80, 6}}], [%r60];
    {wait()}
    {dump(512, "%in2")}
    """
    run_kernel(body, wrong, source, out, descriptor, shared=BARRIER + 64)
    np.testing.assert_array_equal(out, swizzled(boxed(source, (16, 16), (6, 80)).tobytes(), Swizzle.B32))


# ---- errors -----------------------------------------------------------------------------------------------------------

SOURCE, OTHER = tensor((8, 16), "u4"), tensor((8, 16), "u4")
MAP, MAP_OF_OTHER = (tensor_map(t, (2, 16), ElementType.U32) for t in (SOURCE, OTHER))
LOAD = "@%p7 cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
ILLEGAL = {
    "box misaligned": (f"{LOAD} [%smem+24], [%map0, {{0, 0}}], [%r60];", "multiple of"),
    "box outside shared memory": (f"{LOAD} [%smem+{BARRIER}], [%map0, {{0, 0}}], [%r60];", f"offset {BARRIER}"),
    "descriptor misaligned": (f"add.s64 %rd1, %map0, 32;\n{LOAD} [%smem], [%rd1, {{0, 0}}], [%r60];", "aligned to 64"),
    "no barrier": (f"{LOAD} [%smem], [%map0, {{0, 0}}], [%r60+8];", "no mbarrier"),
    "wrong rank": (f"{LOAD.replace('2d', '3d')} [%smem], [%map0, {{0, 0, 0}}], [%r60];", "3 coordinates.*rank 2"),
    "tensor not passed": (f"{LOAD} [%smem], [%map1, {{0, 0}}], [%r60];", "outside every tensor"),
    "CTA outside the cluster": (
        f"{LOAD}.multicast::cluster [%smem], [%map0, {{0, 0}}], [%r60], 3;",
        "of a cluster of 1",
    ),
    "linear, CTA outside the cluster": (
        "@%p7 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%smem], [%in0], 16, [%r60], 3;",
        "of a cluster of 1",
    ),
    "linear, size": (
        "@%p7 cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%smem], [%in0], 24, [%r60];",
        "multiples of 16",
    ),
    "linear, address": ("@%p7 cp.async.bulk.global.shared::cta.bulk_group [%in0], [%smem+8], 16;", "multiples of 16"),
    "linear, behind the tensor": (
        "@%p7 cp.async.bulk.global.shared::cta.bulk_group [%in0], [%smem], 256;",
        "across its end",
    ),
    "cp.async misaligned": ("cp.async.cg.shared.global [%smem+8], [%in0], 16;", "aligned"),
    "cp.async behind the tensor": ("cp.async.cg.shared.global [%smem], [%in0+128], 16;", "behind the end"),
    "field": ("tensormap.replace.tile.global_dim.global.b1024.b32 [%in0], 7, %r1;", "dimension 7"),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_copies(name):
    text, message = ILLEGAL[name]
    with pytest.raises((IllegalAccess, Misuse), match=f"(?s){message}.*PTX line"):
        buffers = aligned(32, np.uint32), SOURCE
        run_kernel(
            prologue(128) + text, *buffers, shared=BARRIER + 64, descriptors=[MAP.encode(), MAP_OF_OTHER.encode()]
        )


def test_a_barrier_in_another_cta_needs_a_pair():
    """.cta_group::1, the default: the barrier must lie in the CTA of the destination."""
    body = f"""
    {prologue(128)}
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    mov.b32 %r1, 1;
    mapa.shared::cluster.u32 %r2, %r60, %r1;
    mov.u32 %r3, %cluster_ctarank;
    setp.eq.u32 %p1, %r3, 0;
    and.pred %p7, %p7, %p1;
    {LOAD} [%smem], [%map0, {{0, 0}}], [%r2];
    """
    with pytest.raises(Misuse, match="(?s)cta_group.*PTX line"):
        run_kernel(body, SOURCE, shared=BARRIER + 64, grid=2, cluster=2, descriptors=[MAP.encode()])


@pytest.mark.parametrize(
    "text",
    [
        "cp.async.bulk.tensor.2d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%smem], [%map0, {0, 0}], [%r1], {%rs1}",
        "cp.async.bulk.tensor.6d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%smem], [%map0, {0, 0}], [%r1]",
        "cp.async.bulk.global.shared::cta.bulk_group.cp_mask [%in0], [%smem], 16, %rs1",
        "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.u32 [%smem], [%smem], 16, [%r1]",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.mul.u32 [%in0], [%smem], 16",
        "tensormap.replace.tile.colour.global.b1024.b32 [%in0], 1",
        "cp.async.cx.shared.global [%smem], [%in0], 16",
        "multimem.cp.async.bulk.global.shared::cta.bulk_group [%in0], [%smem], 16",
    ],
)
def test_unknown_forms_are_refused(text):
    with pytest.raises(UnknownInstruction, match=f"PTX line .*{text.split()[0]}"):
        run_kernel(text + ";", np.zeros(1, np.uint32), descriptors=[MAP.encode()])
