"""The activations in plain torch, in whatever precision their arguments have; autograd gives their gradients."""

import math
from collections.abc import Callable
from typing import Union

import torch
import torch.nn.functional as F
from torch import Tensor

from .activation import Activation, GatedActivation


def reference(activation: Union[Activation, GatedActivation]) -> Callable[..., Tensor]:
    """f(x) of an Activation, f(g, u) of a GatedActivation: elementwise, any float dtype and shape, differentiable."""
    return _REFERENCES[activation]


def _gelu_tanh_approx(x: Tensor) -> Tensor:
    """Through the sigmoid: `F.gelu(x, approximate="tanh")` subtracts from 1: no digit of float64 is left at x = -8."""
    return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))


_REFERENCES: dict[Union[Activation, GatedActivation], Callable[..., Tensor]] = {
    Activation.IDENTITY: lambda x: x,
    Activation.RELU: F.relu,
    Activation.RELU_SQ: lambda x: F.relu(x).square(),
    Activation.GELU_TANH_APPROX: _gelu_tanh_approx,
    Activation.SILU: F.silu,
    Activation.TANH: torch.tanh,
    Activation.SIGMOID: torch.sigmoid,
    GatedActivation.SWIGLU: lambda g, u: F.silu(g) * u,
    GatedActivation.SWIGLU_OAI: lambda g, u: g * torch.sigmoid(1.702 * g) * (u + 1),
    GatedActivation.REGLU: lambda g, u: F.relu(g) * u,
    GatedActivation.GEGLU: lambda g, u: _gelu_tanh_approx(g) * u,
    GatedActivation.GLU: lambda g, u: torch.sigmoid(g) * u,
}
