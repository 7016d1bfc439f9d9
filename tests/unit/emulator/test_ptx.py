"""The parser: text to kernels, and the errors for what it does not know."""

import re

import numpy as np
import pytest

from quack.emulator.errors import UnknownInstruction
from quack.emulator.program import Program
from quack.emulator.ptx import Kernel, Variable, parse, split_operands
from tests.unit.emulator.ptx_kernels import kernel_text, run_kernel, store_registers

HEADER = ".version 9.0\n.target sm_90a\n.address_size 64\n"


def entry(body: str, parameters: str = "", name: str = "k", directives: str = "") -> str:
    return f".visible .entry {name}({parameters})\n{directives}\n{{\n{body}\n}}\n"


def kernel(body: str, parameters: str = "", directives: str = "", module: str = "") -> Kernel:
    return parse(HEADER + module + entry(body, parameters, directives=directives))["k"]


def opcodes(parsed: Kernel) -> list[str]:
    return [i.opcode for i in parsed.instructions]


# ---- declarations -----------------------------------------------------------------------------------------------------

PARAMETERS = """
    .param .u64 plain,
    .param .u64 .ptr .global .align 16 pointer_0,
    .param .u64 .ptr .align 1 pointer_1,
    .param .u64 .ptr pointer_2,
    .param .b8 small,
    .param .align 64 .b8 descriptor[128],
    .param .b16 half,
    .param .f32 alpha,
    .param .align 8 .b8 three[3],
    .param .u64 $last
"""


def test_parameters_lie_at_their_alignment():
    parsed = kernel("ret;", PARAMETERS)
    offsets = {name: (p.offset, p.size) for name, p in parsed.parameters.items()}
    assert offsets == {
        "plain": (0, 8), "pointer_0": (8, 8), "pointer_1": (16, 8), "pointer_2": (24, 8), "small": (32, 1),
        "descriptor": (64, 128), "half": (192, 2), "alpha": (196, 4), "three": (200, 3), "$last": (208, 8),
    }  # fmt: skip
    assert parsed.parameter_bytes == 216


def test_no_parameters_and_several_kernels():
    kernels = parse(HEADER + entry("ret;", name="first") + entry("add.u32 %a, %b, 1;\nret;", name="second_$1"))
    assert list(kernels) == ["first", "second_$1"]
    assert opcodes(kernels["second_$1"]) == ["add.u32", "ret"] and kernels["first"].target == "sm_90a"


def test_directives_of_a_kernel():
    parsed = kernel("ret;", directives=".explicitcluster\n.reqntid 128, 2, 1\n.reqnctapercluster 2, 1, 1")
    assert (parsed.block, parsed.cluster) == ((128, 2, 1), (2, 1, 1))
    assert kernel("ret;", directives=".maxntid 256").block == (256, 1, 1)
    assert (kernel("ret;").block, kernel("ret;").cluster) == (None, None)


def test_variables():
    module = """
    .extern .shared .align 1024 .b8 dynamic[];
    .shared .align 16 .b8 fixed[48];
    .global .align 4 .u32 counter = 7;
    .visible .global .align 8 .b64 pair[2] = {1, -1};
    .const .align 2 .b16 few[4] = {0x10, 0xFFFFU};
    .global .f32 scale = 0f3F800000;
    .global .attribute(.managed) .b32 shared_with_host;
    """
    parsed = kernel(".local .align 8 .b8 depot[24];\n.shared .b32 word;\nret;", module=module)
    assert parsed.variables == {
        "dynamic": Variable("dynamic", "shared", 1024, 0),
        "fixed": Variable("fixed", "shared", 16, 48),
        "counter": Variable("counter", "global", 4, 4, bytes([7, 0, 0, 0])),
        "pair": Variable("pair", "global", 8, 16, bytes([1, *[0] * 7, *[255] * 8])),
        "few": Variable("few", "const", 2, 8, bytes([0x10, 0, 0xFF, 0xFF])),
        "scale": Variable("scale", "global", 4, 4, bytes([0, 0, 0x80, 0x3F])),
        "shared_with_host": Variable("shared_with_host", "global", 4, 4),
        "depot": Variable("depot", "local", 8, 24),
        "word": Variable("word", "shared", 4, 4),
    }


def test_registers():
    parsed = kernel(".reg .pred %p<2>;\n.reg .b32 %r<3>, total, %x;\n.reg .b128 %wide;\n.reg .f16x2 %h;\nret;")
    assert parsed.register_bits == [1, 1, 32, 32, 32, 32, 32, 128, 32]


# ---- text -------------------------------------------------------------------------------------------------------------


def test_statements_may_span_and_share_lines():
    text = """
    // a comment; with { braces }
    add.u32 %r1, %r2,
        %r3; sub.u32 %r1, %r1, 1; /* several
    lines; */ LABEL: mul.lo.u32
      %r2, %r1, 3;
    @!%p1\tbra\tLABEL;
    mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], 0;
    { .reg .b32 %t; mov.b32 %t, 0; }
    .pragma "nounroll";
    ret;
    """
    parsed = kernel(text)
    assert opcodes(parsed) == [
        "add.u32", "sub.u32", "mul.lo.u32", "bra", "mbarrier.try_wait.parity.shared::cta.b64", "mov.b32", "ret",
    ]  # fmt: skip
    first = parsed.instructions[0].line
    assert [i.line - first for i in parsed.instructions] == [0, 1, 2, 4, 5, 6, 8]
    assert parsed.instructions[3].predicate == ("%p1", True) and parsed.instructions[3].operands == ("LABEL",)
    assert parsed.instructions[3].scope.label("LABEL") == 2
    assert str(parsed.instructions[3]) == "@!%p1 bra LABEL"


def test_debug_information_is_skipped():
    """.loc and .file end with their line, not with a semicolon."""
    text = """
    .loc 1 17 3
    mov.b32 %r1, 0;
    .loc 1 18 5, function_name $L__info_string0, inlined_at 1 17 3
    ret;
    """
    source = HEADER + '.file 1 "kernel.py"\n' + entry(text) + ".section .debug_abbrev\n{\n.b8 1\n}\n"
    parsed = parse(source)["k"]
    assert opcodes(parsed) == ["mov.b32", "ret"]
    assert [source.splitlines()[i.line - 1].split()[0] for i in parsed.instructions] == ["mov.b32", "ret;"]


def test_operands():
    text = "[%rd1, {%r1, %r2}], {%r3, %r4}, a, {b}, [c + 4] , _"
    assert split_operands(text) == ["[%rd1, {%r1, %r2}]", "{%r3, %r4}", "a", "{b}", "[c + 4]", "_"]
    assert split_operands("") == [] and split_operands(" x ") == ["x"]


def test_parts_of_an_opcode():
    parsed = kernel("cp.async.bulk.tensor.2d.shared::cluster.global.tile::gather4 [a];")
    assert parsed.instructions[0].parts == (
        "cp",
        "async",
        "bulk",
        "tensor",
        "2d",
        "shared::cluster",
        "global",
        "tile::gather4",
    )


# ---- scopes -----------------------------------------------------------------------------------------------------------


def test_inline_assembly_reuses_names():
    """Each pair of braces has registers and labels of its own, and sees those outside."""
    once = """
    {
    .reg .pred P;
    .reg .b32 t;
    mov.b32 t, 10;
    LOOP:
    add.u32 %r1, %r1, {step};
    sub.u32 t, t, 1;
    setp.ne.u32 P, t, 0;
    @P bra LOOP;
    {
    .reg .b32 t;
    LOOP:
    mov.b32 t, 1000;
    add.u32 %r1, %r1, t;
    }
    add.u32 %r1, %r1, t;
    }
    """
    out = np.zeros(32, np.uint32)
    body = "mov.b32 %r1, 0;" + once.replace("{step}", "1") + once.replace("{step}", "100")
    run_kernel(body + store_registers(["%r1"], "%in0", "%rd1"), out)
    assert (out == 10 + 1000 + 1000 + 1000).all()


def test_labels_outside_are_seen_from_inside():
    out = np.zeros(32, np.uint32)
    body = "mov.b32 %r1, 1;\n{\n{\nbra.uni END;\n}\nmov.b32 %r1, 2;\n}\nmov.b32 %r1, 3;\nEND:\n"
    run_kernel(body + store_registers(["%r1"], "%in0", "%rd1"), out)
    assert (out == 1).all()


def test_labels_inside_are_not_seen_from_outside():
    with pytest.raises(UnknownInstruction, match="PTX line .*bra INNER: .*'INNER'"):
        run_kernel("bra INNER;\n{\nINNER:\nmov.b32 %r1, 0;\n}", np.zeros(1, np.uint32))


def test_registers_inside_are_not_seen_from_outside():
    with pytest.raises(UnknownInstruction, match="PTX line .*tmp"):
        run_kernel("{\n.reg .b32 tmp;\n}\nmov.b32 %r1, tmp;", np.zeros(1, np.uint32))


# ---- errors -----------------------------------------------------------------------------------------------------------

UNKNOWN = [
    ("frobnicate.b32 %r1, %r2", "frobnicate.b32"),
    ("add.u32.strange %r1, %r2, %r3", r"\.strange"),
    ("tex.2d.v4.f32.f32 {%r1, %r2, %r3, %r4}, [t, {%r5, %r6}]", "tex.2d"),
    ("call (ret), function, (%r1)", "call"),
    ("brx.idx %r1, targets", "brx.idx"),
    ("@%nothing add.u32 %r1, %r2, %r3", "%nothing"),
    ("add.u32 %r1, %r2, %r9999", "%r9999"),
    ("add.u32 %r1, %r2, 12q", "12q"),
    ("mov.b32 %r1, %tid.w", "%tid.w"),
    ("add.u32 %r1, %r2", "add.u32"),
    ("bra", "bra"),
    (".callprototype", "callprototype"),
    (".alias a, b", "alias"),
    (".reg .b7 %z", "b7"),
    (".reg .v4 .f32 %z", "v4"),
    (".shared .b8 odd[x]", "odd"),
]


@pytest.mark.parametrize("text, named", UNKNOWN)
def test_unknown_things_are_named_with_their_line(text, named):
    source = kernel_text(f"mov.b32 %r1, 0;\n{text};", 1)
    line = next(i for i, content in enumerate(source.splitlines(), 1) if content.startswith(text))
    with pytest.raises(UnknownInstruction, match=f"PTX line {line}.*{named}"):
        Program(parse(source)["tiny"])


@pytest.mark.parametrize("declaration", [".param .texref t", ".param .b8", ".reg .b32 r"])
def test_unknown_parameters(declaration):
    with pytest.raises(UnknownInstruction, match=re.escape(declaration)):
        kernel("ret;", declaration)


@pytest.mark.parametrize("text", [".global .u64 pointer = generic(other);", ".global .b32 x = {1 + 2};"])
def test_unknown_initialisers(text):
    with pytest.raises(UnknownInstruction, match="pointer|x = "):
        kernel("ret;", module=text)


LITERALS = [
    ("10", 10), ("-1", 0xFFFFFFFF), ("0x1F", 0x1F), ("0XFFU", 255), ("4294967295U", 0xFFFFFFFF), ("017", 15),
    ("0b101", 5), ("0f3F800000", 0x3F800000), ("0F40000000", 0x40000000),
]  # fmt: skip


@pytest.mark.parametrize("literal, value", LITERALS)
def test_literals(literal, value):
    out = np.zeros(32, np.uint32)
    run_kernel(f"mov.b32 %r1, {literal};" + store_registers(["%r1"], "%in0", "%rd1"), out)
    assert (out == value).all()


def test_text_without_kernels():
    assert parse(HEADER) == {}
