"""The table of wrong calls on real CUDA tensors: the same errors, and no operand changes."""

import pytest
import torch

import quack
from tests.unit.test_bad_input import BF16, ROWS, Row, Tensors, assert_refused


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_refused(row: Row):
    t = Tensors("cuda", "cpu")
    assert_refused(row, t)
    torch.cuda.synchronize()
    t.assert_untouched()


def test_a_cached_plan_still_refuses():
    t = Tensors("cuda", "cpu")
    a, b = t(64, 64), t(64, 64)
    quack.gemm(a, b, out=torch.empty_like(a))
    for victim in (a, b, a.mT):
        with pytest.raises(ValueError, match="out overlaps"):
            quack.gemm(a, b, out=victim)
    torch.cuda.synchronize()
    t.assert_untouched()


def test_the_device_works_after_refusals():
    a = torch.randn(64, 64, device="cuda", dtype=BF16)
    with pytest.raises(ValueError):
        quack.gemm(a, a[:32])
    torch.testing.assert_close(quack.gemm(a, a), a @ a, rtol=2e-2, atol=2e-2)
