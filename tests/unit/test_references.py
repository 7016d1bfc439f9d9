"""The oracles that users compare with, against float64; and every public name can be loaded."""

import pytest
import torch

import quack


def test_every_public_name_loads():
    for name in quack.__all__:
        assert getattr(quack, name) is not None, name


def test_gemm_add_inplace_ref():
    a, b, out = torch.randn(6, 10), torch.randn(10, 8), torch.randn(6, 8)
    expected = 0.5 * a.double() @ b.double() + 2.0 * out.double()
    assert quack.gemm_add_inplace_ref(a, b, out, 0.5, 2.0) is None
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    halves = torch.randn(6, 8)
    expected = a.double() @ b.double() + torch.stack([halves[:3], halves[3:]], 1).reshape(6, 8).double()
    quack.gemm_add_inplace_ref(a, b, halves, concat_layout=("out",))
    torch.testing.assert_close(
        torch.stack([halves[:3], halves[3:]], 1).reshape(6, 8).double(), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("given", [False, True])
def test_gemm_grouped_ref(given: bool):
    sizes = [(3, 4, 5), (0, 2, 7), (6, 1, 0)]
    a, b = [torch.randn(m, k) for m, n, k in sizes], [torch.randn(k, n) for m, n, k in sizes]
    c, bias = [torch.randn(m, n) for m, n, k in sizes], [torch.randn(n) for m, n, k in sizes]
    outs = [torch.empty(m, n) for m, n, k in sizes] if given else None
    got = quack.gemm_grouped_ref(a, b, outs, 0.5, C_list=c, bias_list=bias, beta=2.0)
    for i in range(len(sizes)):
        expected = 0.5 * a[i].double() @ b[i].double() + 2.0 * c[i].double() + bias[i].double()
        torch.testing.assert_close(got[i].double(), expected, rtol=1e-5, atol=1e-5)
        assert outs is None or got[i] is outs[i]
