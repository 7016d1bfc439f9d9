"""The kernel of sm_120a on Hopper, which has all its instructions: every family of cases of the other GPU tests."""

from typing import Any

import pytest
import torch

from quack.runtime.device import kernels_of
from tests.cases import gemm_cases
from tests.families import FAMILIES
from tests.sm120_cases import REFUSED, case_here, here


@pytest.fixture(autouse=True)
def warp_mma():
    torch.manual_seed(0)
    with kernels_of("sm_120a"):
        yield


@pytest.mark.filterwarnings("ignore:.*Everything.* spills")
@pytest.mark.parametrize("family, case", [(name, case) for name in FAMILIES for case in here(FAMILIES[name])], ids=str)
def test_family(family: str, case: Any):
    FAMILIES[family].run_or_refuse(case, "cuda", REFUSED)


@pytest.mark.parametrize("case", list({str(c): c for c in map(case_here, gemm_cases())}.values()), ids=str)
def test_dense(case: Any):
    FAMILIES["dense"].run_or_refuse(case, "cuda", REFUSED)
