"""Every shipped kernel cross-compiles for its GPU, without spills, to the resources kept in ledger.json."""

import json
import re

import pytest

from quack.runtime.budget import budget_of
from quack.runtime.compile import toolchain, trace
from quack.runtime.legality import legality
from tests.unit.ledger import PATH, facts, shipped

LEDGER = json.loads(PATH.read_text())
SPECS = shipped()


def test_ledger_lists_what_is_shipped():
    assert sorted(LEDGER["kernels"]) == sorted(SPECS), "run `make ledger`"


@pytest.mark.one_in(7)
@pytest.mark.parametrize("name", sorted(SPECS))
def test_kernel_matches_the_ledger(name: str):
    spec = SPECS[name]
    assert legality(spec).ok, legality(spec)
    now = facts(spec)
    assert now["spill_bytes"] == 0
    assert now["wgmma_serialized"] == 0
    budget = budget_of(spec)
    assert now["smem_bytes"] <= budget.smem_bytes, "the kernel allocates more than legality promises"
    if LEDGER["toolchain"] == toolchain():
        assert now == LEDGER["kernels"][name], "changed deliberately? run `make ledger` and look at the difference"


@pytest.mark.parametrize(
    "name", ["sm_90a bf16 kkn 128x192x64 pp cl2x1 static sw8m", "sm_90a bf16 kkn 64x16x64 pp cl1x1 static sw8m"]
)
def test_ptx_has_the_instructions_that_the_configuration_names(name: str, tmp_path):
    spec = SPECS[name]
    ptx = trace(spec, f"--keep-ptx --dump-dir={tmp_path}").__ptx__
    shapes = set(re.findall(r"wgmma\.mma_async\.sync\.aligned\.(m64n\d+k\d+)", ptx))
    assert shapes == {f"m64n{spec.config.tile_n}k16"}
    budget = budget_of(spec)
    assert f".reqntid {budget.threads}," in ptx
    registers = {int(n) for n in re.findall(r"setmaxnreg\.\w+\.sync\.aligned\.u32\s+(\d+)", ptx)}
    assert registers == {budget.producer_registers, budget.mma_registers}
    multicast = spec.config.cluster_m * spec.config.cluster_n > 1
    assert ("multicast::cluster" in ptx) == multicast
    assert "griddepcontrol.wait" in ptx and "griddepcontrol.launch_dependents" in ptx
