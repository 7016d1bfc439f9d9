"""Names and references of the activations; the device functions are tested in tests/emulated/test_activation.py."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from quack.activation import Activation, GatedActivation
from quack.activation_ref import reference

ALL = [*Activation, *GatedActivation]


@pytest.mark.parametrize("activation", ALL)
def test_public_names_and_members_parse(activation):
    assert type(activation).of(activation.value) is activation
    assert type(activation).of(activation) is activation


def test_no_activation_is_the_identity():
    assert Activation.of(None) is Activation.IDENTITY


@pytest.mark.parametrize("name", ["gelu", "SILU", "", 3, [], "identity"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match="None, 'relu', 'relu_sq', 'gelu_tanh_approx', 'silu', 'tanh', 'sigmoid'"):
        Activation.of(name)
    with pytest.raises(ValueError, match="'swiglu', 'swiglu_oai', 'reglu', 'geglu', 'glu'"):
        GatedActivation.of(name)


def test_the_other_kind_is_named():
    with pytest.raises(ValueError, match="'swiglu' is gated and belongs to .*gemm_gated"):
        Activation.of("swiglu")
    with pytest.raises(ValueError, match="'silu' is not gated and belongs to gemm_act"):
        GatedActivation.of("silu")
    with pytest.raises(ValueError, match="None is not gated"):
        GatedActivation.of(None)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4


@pytest.mark.parametrize(
    ("name", "torchs"),
    [
        (None, lambda x: x),
        ("relu", F.relu),
        ("relu_sq", lambda x: F.relu(x) ** 2),
        ("gelu_tanh_approx", lambda x: F.gelu(x, approximate="tanh")),
        ("silu", F.silu),
        ("tanh", lambda x: 1 - 2 / (1 + torch.exp(2 * x))),
        ("sigmoid", lambda x: 1 / (1 + torch.exp(-x))),
    ],
)
def test_references(name, torchs):
    x = numbers(1000).requires_grad_()
    ours, theirs = reference(Activation.of(name))(x), torchs(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    (ours_dx,), (theirs_dx,) = (torch.autograd.grad(y.sum(), x) for y in (ours, theirs))
    torch.testing.assert_close(ours_dx, theirs_dx, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "torchs"),
    [
        ("swiglu", lambda g, u: F.silu(g) * u),
        ("swiglu_oai", lambda g, u: g / (1 + torch.exp(-1.702 * g)) * (u + 1)),
        ("reglu", lambda g, u: F.relu(g) * u),
        ("geglu", lambda g, u: F.gelu(g, approximate="tanh") * u),
        ("glu", lambda g, u: F.glu(torch.cat([u, g]), dim=0)),
    ],
)
def test_gated_references(name, torchs):
    g, u = numbers(2, 1000)
    torch.testing.assert_close(reference(GatedActivation.of(name))(g, u), torchs(g, u), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("activation", ALL)
def test_references_keep_the_dtype(activation):
    arguments = numbers(1 + isinstance(activation, GatedActivation), 8).bfloat16()
    assert reference(activation)(*arguments).dtype is torch.bfloat16


def test_names_and_references_need_no_cute_dsl():
    code = "import sys, quack.activation_ref; assert 'cutlass' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
