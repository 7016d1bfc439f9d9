"""The table of opcodes: every entry has a test and names the sections of the PTX ISA that define it."""

import ast
import pathlib
import re

import pytest

from quack.emulator.errors import UnknownInstruction
from quack.emulator.opcodes import TABLE, find
from tests.unit.emulator import ptx_kernels as ptx_kernels  # fills the table

# Titles of the PTX ISA 9.0, as far as they name instructions. (9.1 numbers tensor copies, their groups and
# tensormap.replace differently.)
SECTIONS = {
    "9.7.1.1": "add", "9.7.1.2": "sub", "9.7.1.3": "mul", "9.7.1.4": "mad", "9.7.1.7": "sad", "9.7.1.8": "div",
    "9.7.1.9": "rem", "9.7.1.10": "abs", "9.7.1.11": "neg", "9.7.1.12": "min", "9.7.1.13": "max", "9.7.1.14": "popc",
    "9.7.1.15": "clz", "9.7.1.16": "bfind", "9.7.1.18": "brev", "9.7.1.19": "bfe", "9.7.1.20": "bfi",
    "9.7.3.1": "testp", "9.7.3.2": "copysign", "9.7.3.3": "add", "9.7.3.4": "sub", "9.7.3.5": "mul", "9.7.3.6": "fma",
    "9.7.3.7": "mad", "9.7.3.8": "div", "9.7.3.9": "abs", "9.7.3.10": "neg", "9.7.3.11": "min", "9.7.3.12": "max",
    "9.7.3.13": "rcp", "9.7.3.15": "sqrt", "9.7.3.16": "rsqrt", "9.7.3.18": "sin", "9.7.3.19": "cos", "9.7.3.20": "lg2",
    "9.7.3.21": "ex2", "9.7.3.22": "tanh",
    "9.7.4.1": "add", "9.7.4.2": "sub", "9.7.4.3": "mul", "9.7.4.4": "fma", "9.7.4.5": "neg", "9.7.4.6": "abs",
    "9.7.4.7": "min", "9.7.4.8": "max", "9.7.4.9": "tanh", "9.7.4.10": "ex2",
    "9.7.5.1": "add", "9.7.5.2": "sub", "9.7.5.3": "fma",
    "9.7.6.1": "set", "9.7.6.2": "setp", "9.7.6.3": "selp", "9.7.7.1": "set", "9.7.7.2": "setp",
    "9.7.8.1": "and", "9.7.8.2": "or", "9.7.8.3": "xor", "9.7.8.4": "not", "9.7.8.5": "cnot", "9.7.8.6": "lop3",
    "9.7.8.7": "shf", "9.7.8.8": "shl", "9.7.8.9": "shr",
    "9.7.9.3": "mov", "9.7.9.4": "mov", "9.7.9.6": "shfl", "9.7.9.7": "prmt", "9.7.9.8": "ld", "9.7.9.9": "ld",
    "9.7.9.10": "ldu", "9.7.9.11": "st", "9.7.9.12": "st.async", "9.7.9.15": "prefetch prefetchu",
    "9.7.9.16": "applypriority", "9.7.9.17": "discard", "9.7.9.18": "createpolicy", "9.7.9.19": "isspacep",
    "9.7.9.20": "cvta", "9.7.9.21": "cvt", "9.7.9.22": "cvt", "9.7.9.23": "mapa", "9.7.9.24": "getctarank",
    "9.7.9.25.3.1": "cp.async", "9.7.9.25.3.2": "cp.async", "9.7.9.25.3.3": "cp.async", "9.7.9.25.4.1": "cp.async.bulk",
    "9.7.9.25.4.2": "cp.reduce.async.bulk", "9.7.9.25.4.3": "cp.async.bulk.prefetch",
    "9.7.9.25.5.2": "cp.async.bulk.tensor", "9.7.9.25.5.3": "cp.reduce.async.bulk.tensor",
    "9.7.9.25.5.4": "cp.async.bulk.prefetch.tensor", "9.7.9.25.6.1": "cp.async.bulk.commit_group",
    "9.7.9.25.6.2": "cp.async.bulk.wait_group", "9.7.9.26": "tensormap.replace",
    "9.7.12.3": "bra", "9.7.12.6": "ret", "9.7.12.7": "exit",
    "9.7.13.1": "bar barrier", "9.7.13.2": "bar barrier", "9.7.13.3": "barrier.cluster", "9.7.13.4": "membar fence",
    "9.7.13.5": "atom", "9.7.13.6": "red", "9.7.13.7": "red.async", "9.7.13.9": "vote", "9.7.13.10": "match",
    "9.7.13.11": "activemask", "9.7.13.12": "redux", "9.7.13.13": "griddepcontrol", "9.7.13.14": "elect",
    "9.7.13.15.9": "mbarrier.init", "9.7.13.15.10": "mbarrier.inval", "9.7.13.15.11": "mbarrier.expect_tx",
    "9.7.13.15.12": "mbarrier.complete_tx", "9.7.13.15.13": "mbarrier.arrive", "9.7.13.15.14": "mbarrier.arrive_drop",
    "9.7.13.15.15": "cp.async.mbarrier.arrive", "9.7.13.15.16": "mbarrier.test_wait mbarrier.try_wait",
    "9.7.13.15.17": "mbarrier.pending_count", "9.7.13.16": "tensormap.cp_fenceproxy",
    "9.7.13.17": "clusterlaunchcontrol.try_cancel", "9.7.13.18": "clusterlaunchcontrol.query_cancel",
    "9.7.14.5": "mma", "9.7.14.5.14": "mma", "9.7.14.5.15": "ldmatrix", "9.7.14.5.16": "stmatrix",
    "9.7.14.5.17": "movmatrix",
    "9.7.15.5.2": "wgmma.mma_async", "9.7.15.7.1": "wgmma.fence", "9.7.15.7.2": "wgmma.commit_group",
    "9.7.15.7.3": "wgmma.wait_group",
    "9.7.16.7.1": "tcgen05.alloc tcgen05.dealloc tcgen05.relinquish_alloc_permit", "9.7.16.8.3": "tcgen05.ld",
    "9.7.16.8.4": "tcgen05.st", "9.7.16.8.5": "tcgen05.wait", "9.7.16.9.2": "tcgen05.cp", "9.7.16.9.3": "tcgen05.shift",
    "9.7.16.10.9": "tcgen05.mma", "9.7.16.10.9.1": "tcgen05.mma", "9.7.16.11": "tcgen05.fence",
    "9.7.16.11.1": "tcgen05.fence", "9.7.16.12.1": "tcgen05.commit",
    "9.7.19.1": "brkpt", "9.7.19.2": "nanosleep", "9.7.19.3": "pmevent", "9.7.19.4": "trap", "9.7.19.5": "setmaxnreg",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TABLE))
def test_sections_are_about_the_opcode(name):
    """Entries such as cvt.rn.… for one form of an instruction belong to its section."""
    for section in TABLE[name].section.split(" / "):
        assert section in SECTIONS, f"{name}: section {section}"
        instructions = SECTIONS[section].split()
        assert any(name == i or name.startswith((i + ".", i + "::")) for i in instructions), (
            f"{name}: section {section} is about {instructions}"
        )


def literals(path: pathlib.Path) -> list[str]:
    """String literals of a file but for docstrings; of f-strings the constant parts."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in prose]
    return [node.value for node in constants if isinstance(node.value, str)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    here = pathlib.Path(__file__)
    others = [path for path in here.parent.glob("*.py") if path.name not in (here.name, "ptx_kernels.py")]
    return [text for path in others for text in literals(path)]


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_opcode_has_a_test(name, texts):
    """Somewhere a test spells it: alone in a table of names, or with modifiers, operands or a semicolon behind it."""
    if name.endswith("s2f6x2"):  # its forms are put together from their modifiers
        name = ".bf16x2.s2f6x2"
    pattern = re.compile(rf"(?<![\w.%$]){re.escape(name)}(?=[.:](?:[A-Za-z0-9]|$)|;|\s+[\[\d%{{]|$)")
    assert any(pattern.search(text) for text in texts), f"no test of {name}"


def test_the_longest_name_is_found():
    assert find("cp.async.bulk.tensor.2d.global.shared::cta").name == "cp.async.bulk.tensor"
    assert find("cp.async.bulk.global.shared::cta.bulk_group").name == "cp.async.bulk"
    assert find("cp.async.ca.shared.global").name == "cp.async"
    assert find("barrier.cluster.arrive").name == "barrier.cluster" and find("barrier.cta.sync").name == "barrier"
    assert find("st.async.weak.b32").name == "st.async" and find("st.global.b32").name == "st"


@pytest.mark.parametrize("name", ["", "a", "add2.u32", "cp", "tensormap", "tcgen05", "mbarrier.sleep.b64"])
def test_unknown_opcodes(name):
    with pytest.raises(UnknownInstruction, match=f"opcode {re.escape(name)} is not implemented"):
        find(name)
