"""mov, ld, st and address conversion (PTX ISA 9.7.9.3 to 9.7.9.24): every width, vector and state space."""

import numpy as np
import pytest

from quack.emulator.errors import IllegalAccess, Misuse, UnknownInstruction
from tests.unit.emulator.ptx_kernels import (
    Lanewise,
    aligned,
    check_lanewise,
    lane_address,
    load_registers,
    random_operands,
    run_kernel,
    store_registers,
)

SLOT = 64  # bytes per lane
MODULE = f"""
.const .align 64 .b8 table[8] = {{1, 2, 0xF3, -4, 5, 6, 7, 8}};
.global .align 256 .b32 counter = 7;
.global .align 64 .b8 pool[{SLOT * 32}];
"""


def vectors(bits: int) -> list[int]:
    return [n for n in (1, 2, 4, 8) if n * bits <= 256 and (n < 8 or bits == 32)]


def names(prefix: str, count: int) -> str:
    listed = ", ".join(f"%{prefix}{i}" for i in range(count))
    return f"{{{listed}}}" if count > 1 else listed


def declare(bits: int, prefix: str = "v") -> str:
    return f".reg .b{max(bits, 16)} %{prefix}<8>;"


# Where a lane's slot is, in %at; %turn is a scattered lane number.
PLACES = {
    "global": "mov.b64 %base, pool;\nmad.wide.u32 %at, %turn, 64, %base;",
    "generic of global": "mov.b64 %base, pool;\ncvta.global.u64 %base, %base;\nmad.wide.u32 %at, %turn, 64, %base;",
    "shared": "cvt.u64.u32 %base, %smem;\nmad.wide.u32 %at, %turn, 64, %base;",
    "shared::cta": "mov.b64 %base, smem;\nmad.wide.u32 %at, %turn, 64, %base;",
    "generic of shared": "cvt.u64.u32 %base, %smem;\ncvta.shared.u64 %base, %base;\nmad.wide.u32 %at, %turn, 64, %base;",
    "local": ".local .align 64 .b8 own[128];\nmov.b64 %at, own;\nadd.s64 %at, %at, 64;",
    "generic of local": ".local .align 64 .b8 own[64];\nmov.b64 %base, own;\ncvta.local.u64 %at, %base;",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bits", [8, 16, 32, 64, 128])
def test_stores_and_loads(place, bits):
    """Each lane writes a slot element by element in one vector width and reads it in another."""
    space = "" if place.startswith("generic") else f".{place}"
    source, out = aligned((32, SLOT), np.uint8), aligned((32, SLOT), np.uint8)
    source[:] = np.random.default_rng(bits).integers(0, 256, (32, SLOT))
    for written in vectors(bits):
        for read in vectors(bits):
            out[:] = 0
            size, lines = bits // 8, []
            for at in range(0, SLOT, size * written):
                lines.append(
                    f"ld.global.{f'v{written}.' if written > 1 else ''}b{bits} {names('v', written)}, [%from+{at}];"
                )
                lines.append(
                    f"st{space}.{f'v{written}.' if written > 1 else ''}b{bits} [%at+{at}], {names('v', written)};"
                )
            for at in range(0, SLOT, size * read):
                lines.append(f"ld{space}.{f'v{read}.' if read > 1 else ''}b{bits} {names('v', read)}, [%at+{at}];")
                lines.append(f"st.global.{f'v{read}.' if read > 1 else ''}b{bits} [%to+{at}], {names('v', read)};")
            body = f"""
            {{
            {declare(bits)}
            .reg .b64 %at, %base, %from, %to;
            .reg .b32 %turn;
            mul.lo.u32 %turn, %lane, 7;
            and.b32 %turn, %turn, 31;
            {PLACES[place]}
            {lane_address("%from", "%in0", SLOT)}
            {lane_address("%to", "%in1", SLOT)}
            """
            run_kernel("\n".join([body, *lines, "}"]), source, out, shared=SLOT * 32, module=MODULE)
            np.testing.assert_array_equal(out, source)


@pytest.mark.parametrize("bits", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("space", ["global", "shared"])
def test_uniform_addresses(space, bits):
    """All lanes load the same elements; of lanes that store different values to one place one wins."""
    source, out = aligned(SLOT, np.uint8), aligned((32, SLOT), np.uint8)
    source[:] = np.random.default_rng(bits).integers(0, 256, SLOT)
    lanes = np.arange(32, dtype=np.uint32) * 0x01010101
    for count in vectors(bits):
        out[:], last = 0, np.zeros(1, np.uint32)
        vector = f"v{count}." if count > 1 else ""
        step = bits // 8 * count
        lines = [f"mov.b64 %at, {'pool' if space == 'global' else 'smem'};", lane_address("%to", "%in1", SLOT)]
        for at in range(0, SLOT, step):
            lines.append(f"ld.global.{vector}b{bits} {names('v', count)}, [%in0+{at}];")
            lines.append(f"st.{space}.{vector}b{bits} [%at+{at}], {names('v', count)};")
        for at in range(0, SLOT, step):
            lines.append(f"ld.{space}.{vector}b{bits} {names('v', count)}, [%at+{at}];")
            lines.append(f"st.global.{vector}b{bits} [%to+{at}], {names('v', count)};")
        lines.append("mul.lo.u32 %r1, %lane, 0x01010101;\nst.global.b32 [%in2], %r1;")
        body = "\n".join(["{", declare(bits), ".reg .b64 %at, %to;", *lines, "}"])
        run_kernel(body, source, out, last, shared=SLOT, module=MODULE)
        np.testing.assert_array_equal(out, np.tile(source, (32, 1)))
        assert last[0] in lanes


EXTENSIONS = [(f"{s}{n}", register) for s in "usb" for n in (8, 16, 32) for register in (16, 32, 64) if n <= register]


@pytest.mark.parametrize("is_uniform", [False, True])
@pytest.mark.parametrize("kind, register", EXTENSIONS)
def test_loads_extend_to_the_register(kind, register, is_uniform):
    """And stores of a narrower type drop what lies above it."""
    bits = int(kind[1:])
    source = np.random.default_rng(1).integers(0, 256, 32 * bits // 8, np.uint8)
    out, narrow = np.zeros(32, f"u{register // 8}"), np.zeros(32, f"u{bits // 8}")
    address = "%in0+8" if is_uniform else "%rd1"
    body = f"""
    {{
    {declare(register)}
    {lane_address("%rd1", "%in0", bits // 8)}
    {lane_address("%rd2", "%in2", bits // 8)}
    ld.global.{kind} %v1, [{address}];
    st.global.{kind} [%rd2], %v1;
    {store_registers(["%v1"], "%in1", "%rd3", register)}
    }}
    """
    run_kernel(body, source, out, narrow)
    elements = source.view(f"{'i' if kind[0] == 's' else 'u'}{bits // 8}")
    elements = np.full(32, elements[64 // bits], elements.dtype) if is_uniform else elements
    np.testing.assert_array_equal(out, elements.astype(f"{elements.dtype.kind}{register // 8}").view(out.dtype))
    np.testing.assert_array_equal(narrow, elements.view(narrow.dtype))


def test_parameters_and_constants():
    """Each way to a parameter: its name, its name with an offset, its address in a register, a generic address."""
    descriptor = np.arange(128, dtype=np.uint8)
    out = aligned(16, np.uint64)
    body = """
    ld.param.u64 %rd1, [d0+8];
    ld.param::entry.v2.u32 {%r1, %r2}, [d0+16];
    mov.b64 %rd2, d0;
    ld.param.u32 %r3, [%rd2+24];
    ld.u32 %r4, [%map0+28];
    ld.param.s8 %r5, [d0+127];
    ld.param.v4.b16 {%rs1, %rs2, %rs3, %rs4}, [d0+32];
    cvta.to.param.u64 %rd3, %map0;
    ld.param.v2.b64 {%rd4, %rd5}, [%rd3+48];
    ld.const.s8 %r6, [table+2];
    mov.b64 %rd6, table;
    cvta.const.u64 %rd7, %rd6;
    ld.u16 %rs5, [%rd7+4];
    ld.global.b32 %r7, [counter];
    mov.b64 %rd8, table+3;
    ld.const.s8 %r8, [%rd8];
    st.global.v2.b64 [%in0], {%rd1, %rd4};
    st.global.v4.b32 [%in0+16], {%r1, %r2, %r3, %r4};
    st.global.v4.b16 [%in0+32], {%rs1, %rs2, %rs3, %rs4};
    st.global.v4.b32 [%in0+48], {%r5, %r6, %r7, %r8};
    st.global.v2.b64 [%in0+64], {%rd5, %rd6};
    st.global.b16 [%in0+80], %rs5;
    """
    run_kernel(body, out, descriptors=[descriptor.tobytes()], module=MODULE)
    words = descriptor.view(np.uint32)
    np.testing.assert_array_equal(out[:2], descriptor.view(np.uint64)[[1, 6]])
    np.testing.assert_array_equal(out[2:4].view(np.uint32), words[4:8])
    np.testing.assert_array_equal(out[4:5].view(np.uint16), descriptor.view(np.uint16)[16:20])
    np.testing.assert_array_equal(out[6:8].view(np.int32), [127, -13, 7, -4])
    assert out[8] == descriptor.view(np.uint64)[7] and out[10] == 5 + 6 * 256
    assert out[9] % 64 == 0, "a variable lies where its .align says"


# ---- mov --------------------------------------------------------------------------------------------------------------


def packing(bits: int, parts: int) -> tuple[Lanewise, Lanewise]:
    """(pack, unpack the first and the last part)."""
    part = bits // parts
    mask = (1 << part) - 1
    sources = ", ".join(f"{{{i}}}" for i in range(parts))
    pack = Lanewise(
        f"mov.b{bits} {{d}}, {{{{{sources}}}}};", (part,) * parts, (bits,),
        lambda *v: sum(x << part * i for i, x in enumerate(v)),
    )  # fmt: skip
    middle = ["_"] * (parts - 2)
    targets = ", ".join(["{d}", *middle, "{e}"])
    unpack = Lanewise(
        f"mov.b{bits} {{{{{targets}}}}}, {{0}};", (bits,), (part, part), lambda x: (x & mask, x >> bits - part), None
    )
    return pack, unpack


PACKINGS = [p for bits, parts in ((16, 2), (32, 2), (32, 4), (64, 2), (64, 4)) for p in packing(bits, parts)]
MOVES = [
    Lanewise(f"mov.{kind} {{d}}, {{0}};", (bits,), (bits,), lambda x: x)
    for kind, bits in (("pred", 1), ("b16", 16), ("u32", 32), ("s32", 32), ("f32", 32), ("b64", 64), ("f64", 64))
]


@pytest.mark.parametrize("case", [*PACKINGS, *MOVES], ids=lambda case: case.text.replace(" ", ""))
def test_mov(case):
    check_lanewise(case, random_operands(case))


def test_unpack_what_was_loaded_into_a_wider_register():
    source = np.random.default_rng(3).integers(0, 256, (32, 2), np.uint8)
    out = np.zeros((32, 2), np.uint16)
    body = f"""
    {lane_address("%rd1", "%in0", 2)}
    ld.global.u16 %r1, [%rd1];
    mov.b32 {{%rs1, %rs2}}, %r1;
    """
    run_kernel(body + store_registers(["%rs1", "%rs2"], "%in1", "%rd2", 16), source, out)
    np.testing.assert_array_equal(out[:, 0], source.view(np.uint16)[:, 0])
    assert not out[:, 1].any()


@pytest.mark.parametrize("divergence", ["none", "guard", "branch", "one lane"])
def test_wide_registers(divergence):
    """.b128, whole and split in halves and quarters, also where lanes go different ways."""
    source = np.random.default_rng(4).integers(0, 1 << 64, (32, 2), np.uint64)
    out = np.zeros((32, 2), np.uint64)
    swap = "mov.b128 {%rd3, %rd4}, %wide;\nmov.b128 %wide, {%rd4, %rd3};"
    lines = {
        "none": swap,
        "guard": "mov.b128 {%rd3, %rd4}, %wide;\nsetp.lt.u32 %p1, %lane, 9;\n@%p1 mov.b128 %wide, {%rd4, %rd3};",
        "branch": f"setp.ge.u32 %p1, %lane, 9;\n@%p1 bra DONE;\n{swap}\nDONE:",
        "one lane": f"setp.ne.u32 %p1, %lane, 9;\n@%p1 bra DONE;\n{swap}\nDONE:",
    }[divergence]
    body = f"""
    {{
    .reg .b128 %wide;
    {lane_address("%rd1", "%in0", 16)}
    {lane_address("%rd2", "%in1", 16)}
    ld.global.b128 %wide, [%rd1];
    {lines}
    mov.b128 {{%r1, %r2, %r3, %r4}}, %wide;
    mov.b128 %wide, {{%r1, %r2, %r3, %r4}};
    st.global.b128 [%rd2], %wide;
    }}
    """
    run_kernel(body, source, out)
    lane = np.arange(32)
    swapped = {"none": lane >= 0, "one lane": lane == 9}.get(divergence, lane < 9)
    np.testing.assert_array_equal(out, np.where(swapped[:, None], source[:, ::-1], source))


# ---- addresses --------------------------------------------------------------------------------------------------------


def test_address_conversions_in_a_cluster():
    """cvta both ways, mapa, getctarank and isspacep of this CTA and of the next one."""
    out = aligned((4, 12), np.uint64)
    body = """
    {
    .local .align 8 .b8 own[8];
    mov.u32 %r1, %cluster_ctarank;
    add.u32 %r2, %r1, 1;
    and.b32 %r2, %r2, 3;
    add.u32 %r3, %smem, 24;
    mapa.shared::cluster.u32 %r4, %r3, %r2;
    getctarank.shared::cluster.u32 %r5, %r4;
    getctarank.shared::cluster.u32 %r6, %r3;
    cvt.u64.u32 %rd1, %r3;
    cvta.shared.u64 %rd1, %rd1;
    mapa.u64 %rd2, %rd1, %r2;
    getctarank.u64 %r7, %rd2;
    cvta.to.shared::cluster.u64 %rd3, %rd2;
    isspacep.shared::cta %p1, %rd1;
    isspacep.shared::cta %p2, %rd2;
    isspacep.shared::cluster %p3, %rd2;
    isspacep.global %p4, %in0;
    isspacep.global %p5, %rd2;
    mov.b64 %rd4, own;
    cvta.local.u64 %rd4, %rd4;
    isspacep.local %p6, %rd4;
    selp.u32 %r10, 1, 0, %p1;
    selp.u32 %r11, 2, 0, %p2;
    selp.u32 %r12, 4, 0, %p3;
    selp.u32 %r13, 8, 0, %p4;
    selp.u32 %r14, 16, 0, %p5;
    selp.u32 %r15, 32, 0, %p6;
    or.b32 %r10, %r10, %r11;
    or.b32 %r12, %r12, %r13;
    or.b32 %r14, %r14, %r15;
    or.b32 %r10, %r10, %r12;
    or.b32 %r10, %r10, %r14;
    cvt.u64.u32 %rd5, %r4;
    cvt.u64.u32 %rd10, %r5;
    cvt.u64.u32 %rd11, %r6;
    cvt.u64.u32 %rd12, %r7;
    cvt.u64.u32 %rd13, %r10;
    st.shared.b32 [%r3], %r1;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    ld.shared::cluster.u32 %r20, [%r4];
    ld.u32 %r21, [%rd2];
    cvt.u64.u32 %rd14, %r20;
    cvt.u64.u32 %rd15, %r21;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    mad.wide.u32 %rd6, %r1, 96, %in0;
    st.global.v4.b64 [%rd6], {%rd5, %rd3, %rd10, %rd11};
    st.global.v4.b64 [%rd6+32], {%rd12, %rd13, %rd14, %rd15};
    }
    """
    run_kernel(body, out, shared=64, grid=4, cluster=4)
    for rank, (window, back, of_next, of_self, of_generic, spaces, loaded, generic_loaded, *_) in enumerate(
        out.tolist()
    ):
        other = (rank + 1) % 4
        assert window == back and window >> 24 == other
        assert (of_next, of_self, of_generic) == (other, rank, other)
        assert spaces == 1 + 4 + 8 + 32
        assert loaded == generic_loaded == other


def test_addresses_that_differ_between_lanes():
    """Even lanes name shared memory of the CTA whose rank is their bit 1, odd lanes global memory."""
    out = aligned((64, 4), np.uint32)
    body = """
    and.b32 %r1, %lane, 1;
    setp.eq.u32 %p1, %r1, 0;
    shr.u32 %r2, %lane, 1;
    and.b32 %r2, %r2, 1;
    cvt.u64.u32 %rd1, %smem;
    cvta.shared.u64 %rd1, %rd1;
    mapa.u64 %rd2, %rd1, %r2;
    selp.b64 %rd3, %rd2, %in0, %p1;
    isspacep.shared::cluster %p2, %rd3;
    isspacep.shared::cta %p3, %rd3;
    isspacep.global %p4, %rd3;
    selp.u32 %r3, 1, 0, %p2;
    selp.u32 %r4, 1, 0, %p3;
    selp.u32 %r5, 1, 0, %p4;
    mapa.shared::cluster.u32 %r7, %smem, %r2;
    getctarank.shared::cluster.u32 %r6, %r7;
    mov.u32 %r8, %cluster_ctarank;
    shl.b32 %r8, %r8, 5;
    add.u32 %r8, %r8, %lane;
    mad.wide.u32 %rd4, %r8, 16, %in0;
    st.global.v4.b32 [%rd4], {%r3, %r4, %r5, %r6};
    """
    run_kernel(body, out, shared=64, grid=2, cluster=2)
    lane, rank = np.arange(64) % 32, np.arange(64) // 32
    is_shared, other = lane % 2 == 0, lane // 2 % 2
    np.testing.assert_array_equal(out.T, [is_shared, is_shared & (other == rank), ~is_shared, other])


def test_lanes_in_the_shared_memory_of_different_ctas():
    out = np.zeros((64,), np.uint32)
    body = """
    mov.u32 %r1, %cluster_ctarank;
    shl.b32 %r2, %lane, 2;
    add.u32 %r3, %smem, %r2;
    and.b32 %r4, %lane, 1;
    mapa.shared::cluster.u32 %r5, %r3, %r4;
    mad.lo.u32 %r6, %r1, 100, %lane;
    st.shared.b32 [%r3], %r6;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    ld.shared::cluster.b32 %r7, [%r5];
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    add.u32 %r7, %r7, 1000;
    setp.eq.u32 %p1, %r1, 0;
    @%p1 st.shared::cluster.b32 [%r5], %r7;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    ld.shared.b32 %r8, [%r3];
    mad.lo.u32 %r9, %r1, 32, %lane;
    mad.wide.u32 %rd1, %r9, 4, %in0;
    st.global.b32 [%rd1], %r8;
    """
    run_kernel(body, out, shared=128, grid=2, cluster=2)
    lane = np.arange(32)
    stored = 1000 + 100 * (lane % 2) + lane  # in the CTA of the lane's parity
    np.testing.assert_array_equal(out[:32], np.where(lane % 2 == 0, stored, lane))
    np.testing.assert_array_equal(out[32:], np.where(lane % 2 == 1, stored, 100 + lane))


# ---- errors -----------------------------------------------------------------------------------------------------------

ILLEGAL = {
    "behind a tensor": ("ld.global.b32 %r1, [%in0+64];", "0 bytes behind the end"),
    "across the end": ("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%in0+56];", "multiple of the 16 bytes"),
    "before a tensor": ("st.global.b32 [%in0+-4], %r1;", "4 bytes before the start"),
    "one lane": (f"{lane_address('%rd1', '%in0', 4)}\nld.global.b32 %r1, [%rd1];", "lane 16.*0 bytes behind the end"),
    "misaligned": ("ld.global.b32 %r1, [%in0+2];", "multiple of the 4 bytes"),
    "misaligned lane": (f"{lane_address('%rd1', '%in0', 2)}\nst.global.b32 [%rd1], %r1;", "multiple of the 4 bytes"),
    "misaligned vector": ("ld.shared.v2.b32 {%r1, %r2}, [%smem+4];", "multiple of the 8 bytes"),
    "shared": ("ld.shared.b32 %r1, [%smem+128];", "offset 128"),
    "shared, reserved": ("st.shared.b32 [%smem+-4], %r1;", "offset -4"),
    "shared, a lane": ("mad.lo.u32 %r1, %lane, 8, %smem;\nst.shared.b64 [%r1], %rd1;", "offset 248"),
    "shared, other CTA": ("or.b32 %r1, %smem, 0x3000000;\nld.shared::cluster.b32 %r2, [%r1];", "CTA 3 of a cluster of 1"),
    "local": (".local .align 4 .b8 own[8];\nst.local.b32 [own+8], %r1;", "local memory"),
    "local, a lane": (
        ".local .align 4 .b8 own[8];\nmov.b64 %rd1, own;\nmad.wide.u32 %rd1, %lane, 4, %rd1;\nld.local.b32 %r1, [%rd1];",
        "local memory",
    ),
    "parameter": ("ld.param.b64 %rd1, [p0+4];", "parameter"),
    "parameter by address": ("mov.b64 %rd1, p0;\nld.param.b64 %rd2, [%rd1+8];", "parameter"),
    "null": ("mov.b64 %rd1, 0;\nld.global.b32 %r1, [%rd1];", "outside every tensor"),
    "never written": ("ld.global.b32 %r1, [%rd1];", "0x7ff7dead7ff7dead"),
}  # fmt: skip


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_accesses(name):
    body, message = ILLEGAL[name]
    with pytest.raises((IllegalAccess, UnknownInstruction), match=f"(?s){message}.*PTX line|PTX line.*{message}"):
        run_kernel(body, np.zeros(16, np.uint32), shared=128)


def test_messages_name_warp_line_and_kernel():
    body = "mov.u32 %r1, 0;\n\nst.global.b32 [%in0+4096], %r1;"
    with pytest.raises(IllegalAccess) as caught:
        run_kernel(body, np.zeros(1, np.uint32), threads=(32, 2))
    text = str(caught.value)
    assert "warp 0 of CTA (0,0,0)" in text and "st.global.b32 [%in0+4096], %r1" in text and "kernel tiny" in text


@pytest.mark.parametrize(
    "text",
    [
        "ld.global.v3.b32 {%r1, %r2, %r3}, [%in0]",
        "ld.global.v2.b32 {%r1, %r2, %r3}, [%in0]",
        "st.global.v4.b32 [%in0], {%r1, %r2}",
        "ld.textured.b32 %r1, [%in0]",
        "ld.global.b32 %r1, %in0",
        "st.global.b32 [nowhere], %r1",
        "mov.b32 %r1, %nothing",
        "mapa.shared::cta.u32 %r1, %smem, 0",
    ],
)
def test_unknown_forms_are_refused(text):
    with pytest.raises(UnknownInstruction, match=f"PTX line .*{text.split()[0]}"):
        run_kernel(text + ";", np.zeros(1, np.uint32))


def test_mixed_generic_spaces_are_refused():
    """Lanes of one generic access that point into different state spaces."""
    body = """
    cvt.u64.u32 %rd1, %smem;
    cvta.shared.u64 %rd1, %rd1;
    setp.lt.u32 %p1, %lane, 4;
    selp.b64 %rd2, %rd1, %in0, %p1;
    ld.b32 %r1, [%rd2];
    """
    with pytest.raises((Misuse, UnknownInstruction), match="state spaces"):
        run_kernel(body, np.zeros(1, np.uint32), shared=64)


def test_two_tensors_in_one_access():
    """Lanes that access different tensors."""
    first, second, out = np.arange(16, dtype=np.uint32), np.arange(100, 116, dtype=np.uint32), np.zeros(32, np.uint32)
    body = """
    and.b32 %r1, %lane, 15;
    setp.lt.u32 %p1, %lane, 16;
    selp.b64 %rd1, %in0, %in1, %p1;
    mad.wide.u32 %rd2, %r1, 4, %rd1;
    ld.global.b32 %r2, [%rd2];
    add.u32 %r3, %r2, 1;
    st.global.b32 [%rd2], %r3;
    """
    run_kernel(body + store_registers(["%r2"], "%in2", "%rd3"), first, second, out)
    np.testing.assert_array_equal(out, np.concatenate([np.arange(16), np.arange(100, 116)]))
    np.testing.assert_array_equal(first, np.arange(1, 17))
    np.testing.assert_array_equal(second, np.arange(101, 117))


def test_qualifiers_that_only_order_or_hint():
    """Every order, scope and cache hint that compilers emit."""
    data, out = np.arange(8, dtype=np.uint32), np.zeros(8, np.uint32)
    loads = ["ld.volatile.global", "ld.relaxed.gpu.global", "ld.acquire.sys.global", "ld.global.nc",
             "ld.global.ca", "ld.global.L1::no_allocate.L2::128B", "ld.relaxed.cta", "ld.weak.global"]  # fmt: skip
    stores = ["st.volatile.global", "st.relaxed.gpu.global", "st.release.sys.global", "st.global.wt",
              "st.global.cs", "st.global.L1::evict_last", "st.release.cluster", "st.weak.global"]  # fmt: skip
    lines = []
    for i, (load, store) in enumerate(zip(loads, stores)):
        lines += [f"{load}.b32 %r1, [%in0+{4 * i}];", f"{store}.b32 [%in1+{4 * i}], %r1;"]
    lines.append("ld.global.L2::cache_hint.b32 %r1, [%in0], %rd1;\nst.global.L2::cache_hint.b32 [%in1], %r1, %rd1;")
    lines.append("ldu.global.b32 %r2, [%in0+4];\nst.global.b32 [%in1+4], %r2;")
    run_kernel("\n".join(lines), data, out)
    np.testing.assert_array_equal(out, data)


def test_hints_do_nothing():
    """prefetch and its like, createpolicy."""
    body = """
    createpolicy.fractional.L2::evict_last.b64 %rd1, 1.0;
    prefetch.global.L2 [%in0];
    prefetch.tensormap [%in0];
    prefetchu.L1 [%in0];
    applypriority.global.L2::evict_normal [%in0], 128;
    discard.global.L2 [%in0], 128;
    cp.async.bulk.prefetch.L2.global [%in0], 128;
    cp.async.bulk.prefetch.tensor.2d.L2.global [%in0, {%r1, %r2}];
    nanosleep.u32 20;
    pmevent 3;
    griddepcontrol.launch_dependents;
    griddepcontrol.wait;
    """
    run_kernel(body, np.zeros(32, np.uint32))


def test_load_registers_helper():
    source, out = np.arange(64, dtype=np.uint32).reshape(32, 2), np.zeros((32, 2), np.uint32)
    body = load_registers(["%r1", "%r2"], "%in0", "%rd1") + store_registers(["%r2", "%r1"], "%in1", "%rd1")
    run_kernel(body, source, out)
    np.testing.assert_array_equal(out, source[:, ::-1])
