"""Each entry of `quack.dsl.compat` goes when CuTe DSL does without it: then one of these fails."""

import subprocess
import sys
from pathlib import Path

import cutlass
import pytest
from cutlass import cute
from cutlass.cute.nvgpu import OperandMajorMode
from cutlass.utils import sm90 as sm90_utils

CUT = """
import cutlass
from cutlass import cute
from cutlass.tensor_utils import LayoutEnum
from cutlass.utils import sm90

@cute.jit
def cut():
    cute.slice_(sm90.make_smem_layout_b(LayoutEnum.ROW_MAJOR, (64, {rows}, 32), cutlass.Float32, 3), (None, None, 0))

cute.compile(cut, options="--gpu-arch sm_90a")
"""


def test_upstream_has_no_tf32_wgmma():
    @cute.jit
    def make():
        major = OperandMajorMode.K
        sm90_utils.make_trivial_tiled_mma(
            cutlass.TFloat32, cutlass.TFloat32, major, major, cutlass.Float32, (1, 1, 1), (64, 64)
        )

    with pytest.raises(Exception, match="unsupported a_dtype"):
        cute.compile(make, options="--gpu-arch sm_90a")


@pytest.mark.parametrize("rows, works", [(160, True), (176, False)])
def test_slicing_stages_of_odd_multiples_of_512_elements_aborts(rows: int, works: bool, tmp_path: Path):
    script = tmp_path / "cut.py"
    script.write_text(CUT.format(rows=rows))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=100)
    assert (done.returncode == 0) == works, done.stderr.decode()
