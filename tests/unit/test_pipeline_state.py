"""House style C3: CuTe DSL silently drops an `advance()` that it cannot see, and a ring index then stays constant.

The mbarrier waits and TMA transfers of the shipped kernels must use an address or a phase that depends on a register which
is written more than once: in PTX that is what a loop-carried value looks like.
"""

import re
from dataclasses import dataclass, replace

import cutlass
import pytest
from cutlass import Int32, cute
from cutlass.cute.runtime import make_fake_tensor

from quack.gemm_config import GemmConfig
from quack.runtime.compile import trace
from tests.unit.ledger import full_epilogue, gemm, operands

DEFINITION = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s+(\{[^}]*\}|%\w+(?:\|%\w+)?)\s*,(.*);", re.M)
NO_RESULT = ("st.", "red.", "bar.", "mbarrier.arrive.expect", "mbarrier.init", "cp.async", "stmatrix", "wgmma", "fence")


def definitions(ptx: str) -> dict[str, list[list[str]]]:
    """register -> for each instruction that writes it, the registers that instruction reads."""
    found: dict[str, list[list[str]]] = {}
    for opcode, targets, sources in DEFINITION.findall(ptx):
        if not opcode.startswith(NO_RESULT):
            for target in re.findall(r"%\w+", targets):
                found.setdefault(target, []).append(re.findall(r"%\w+", sources))
    return found


def is_carried(register: str, written: dict[str, list[list[str]]]) -> bool:
    """Whether the value depends on a register with several definitions."""
    seen, pending = set(), [register]
    while pending:
        current = pending.pop()
        if current not in seen:
            seen.add(current)
            if len(written.get(current, [])) > 1:
                return True
            pending += [source for sources in written.get(current, []) for source in sources]
    return False


def constant_waits(ptx: str) -> list[str]:
    """mbarrier waits of which neither the address nor the phase ever changes.

    Only one of them may be constant: a ring that a tile passes a whole number of times, unrolled, has constant addresses.
    """
    written = definitions(ptx)
    waits = re.findall(r"mbarrier\.try_wait\S*\s+\w+,\s*\[(%r\d+)(?:\+\d+)?\],\s*(%r\d+|\d+)", ptx)
    assert len(waits) >= 3
    return [wait for wait in waits if not any(is_carried(register, written) for register in wait)]


def carried_transfers(ptx: str, direction: str) -> list[bool]:
    """For each TMA instruction, whether its shared-memory address changes. direction: "shared" loads, "global" stores."""
    written = definitions(ptx)
    lines = re.findall(rf"cp\.async\.bulk\.tensor\.\dd\.{direction}.*", ptx)
    addresses = [re.findall(r"\[(%r\d+)(?:\+\d+)?\]", line)[0] for line in lines]
    return [is_carried(address, written) for address in addresses]


@dataclass(frozen=True)
class Hidden:
    """The broken form: a frozen bundle that advances its own state."""

    state: cutlass.pipeline.PipelineState

    @cute.jit
    def bump(self):
        self.state.advance()


class Ring:
    """Stores the ring index of each turn; `hidden` chooses the form that CuTe DSL drops."""

    def __init__(self, hidden: bool):
        self.hidden = hidden

    @cute.jit
    def __call__(self, out: cute.Tensor, n: Int32):
        self.kernel(out, n).launch(grid=[1, 1, 1], block=[32, 1, 1])

    @cute.kernel
    def kernel(self, out: cute.Tensor, n: Int32):
        state = cutlass.pipeline.make_pipeline_state(cutlass.pipeline.PipelineUserType.Consumer, 4)
        bundle = Hidden(state)
        for i in cutlass.range(n, unroll=1):
            if cutlass.const_expr(self.hidden):
                out[i] = bundle.state.index
                bundle.bump()
            else:
                out[i] = state.index
                state.advance()


@pytest.mark.parametrize("hidden", [False, True])
def test_checker_tells_the_broken_form(hidden: bool, tmp_path):
    out = make_fake_tensor(cutlass.Int32, (cute.sym_int(),), (1,), assumed_align=4)
    options = f"--enable-tvm-ffi --gpu-arch sm_90a --keep-ptx --dump-dir={tmp_path}"
    ptx = cute.compile(Ring(hidden), out, Int32(1), options=options).__ptx__
    stored = re.findall(r"st\.global\.b32\s+\[[^\]]*\],\s*(%r\d+|\d+)", ptx)
    assert stored
    written = definitions(ptx)
    assert any(value.startswith("%") and is_carried(value, written) for value in stored) != hidden


COOPERATIVE, PINGPONG = GemmConfig(128, 256), GemmConfig(128, 128, pingpong=True)
KERNELS = {
    "cooperative": gemm(COOPERATIVE, operands()),
    "ping-pong": gemm(PINGPONG, operands()),
    "C ring": gemm(GemmConfig(128, 192), operands()._replace(c=operands().d), epilogue=full_epilogue()),
    "C ring, ping-pong": gemm(PINGPONG, operands()._replace(c=operands().d), epilogue=full_epilogue()),
    "work ring": gemm(replace(COOPERATIVE, is_dynamic_persistent=True), operands()),
    "work ring, ping-pong": gemm(replace(PINGPONG, is_dynamic_persistent=True), operands()),
    "many subtiles": gemm(GemmConfig(128, 208, cluster_m=1), operands()),
}


@pytest.mark.parametrize("name", KERNELS)
def test_ring_indices_advance(name: str, tmp_path):
    ptx = trace(KERNELS[name], f"--keep-ptx --dump-dir={tmp_path}").__ptx__
    assert not constant_waits(ptx)
    loads = carried_transfers(ptx, "shared")
    if KERNELS[name].operands.c is None:
        assert len(loads) == 2 and all(loads)
    else:
        assert sum(loads) >= 2  # A and B; the C ring may be passed a whole number of times per tile


def test_epilogue_ring_advances_where_a_tile_does_not_fill_it(tmp_path):
    """13 subtiles through 2 stages."""
    ptx = trace(KERNELS["many subtiles"], f"--keep-ptx --dump-dir={tmp_path}").__ptx__
    stores = carried_transfers(ptx, "global")
    assert len(stores) == 13 and all(stores)
