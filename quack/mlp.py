"""The two-layer perceptron act(x @ weight1^T + bias1) @ weight2^T + bias2 with autograd; conventions as in `linear`."""

from typing import Any, Optional, Union

import torch
from torch.autograd.function import once_differentiable

from .activation import GatedActivation
from .gemm_operands import ActivationName, activation_of
from .linear import (
    Layer,
    Linear,
    Tensors,
    Wanted,
    activation_gradient,
    as_operand,
    check_gated,
    check_projection,
    check_weight,
    flat,
    gradients,
    incoming,
    operand_dtype,
    project,
    project_and_activate,
    unflat,
)

OPERANDS = 5  # x, weight1, bias1, weight2, bias2


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight1: torch.Tensor,
        bias1: Optional[torch.Tensor],
        weight2: torch.Tensor,
        bias2: Optional[torch.Tensor],
        layers: tuple[Layer, Layer],
        recompute: bool,
    ):
        needs = ctx.needs_input_grad
        first, second = layers
        ctx.layers = layers
        ctx.wanted1 = Wanted.of((x, weight1, bias1), needs[:3], first)
        ctx.wanted2 = Wanted.of((None, weight2, bias2), (False, *needs[3:OPERANDS]), second)
        ctx.needs_preact = any(needs[:3])
        x, weight1, weight2 = (as_operand(t, first.dtype) for t in (x, weight1, weight2))
        preact, postact = project_and_activate(x, weight1, bias1, first, ctx.needs_preact and not recompute)
        ctx.save_for_backward(*_kept(needs, (x, weight1, bias1, weight2), preact, postact, recompute))
        return project(postact, weight2, bias2, second)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor):
        x, weight1, bias1, weight2, preact, postact = ctx.saved_tensors
        first, second = ctx.layers
        dy = incoming(dy)
        of_first: Tensors = (None, None, None)
        if ctx.needs_preact:
            if preact is None:
                preact = project(x, weight1, bias1, first)
            needs_postact = ctx.wanted2.weight is not None
            dpreact, postact = activation_gradient(dy, weight2, preact, first.activation, first.tuned, needs_postact)
            of_first = gradients(dpreact, x, weight1, ctx.wanted1, first)
        elif ctx.wanted2.weight is not None and postact is None:
            _, postact = project_and_activate(x, weight1, bias1, first, store_preact=False)
        _, dweight2, dbias2 = gradients(dy, postact, None, ctx.wanted2, second)
        return *of_first, dweight2, dbias2, None, None


def _kept(
    needs: tuple[bool, ...], operands: Tensors, preact: Optional[torch.Tensor], postact: torch.Tensor, recompute: bool
) -> Tensors:
    """The tensors backward reads: x, weight1, bias1, weight2, preact, postact; None for those it does not."""
    x, weight1, bias1, weight2 = operands
    needs_x, needs_weight1, _, needs_weight2, _ = needs[:OPERANDS]
    needs_preact = any(needs[:3])
    is_repeated = recompute and (needs_preact or needs_weight2)  # the first GEMM
    return (
        x if needs_weight1 or is_repeated else None,
        weight1 if needs_x or is_repeated else None,
        bias1 if is_repeated else None,
        weight2 if needs_preact else None,
        preact,
        postact if needs_weight2 and not needs_preact and not recompute else None,
    )


def mlp_func(
    x: torch.Tensor,
    weight1: torch.Tensor,
    weight2: torch.Tensor,
    activation: ActivationName,
    fuse_grad_accum: bool = False,
    tuned: bool = True,
    recompute: bool = False,
    concat_layout: bool = False,
    *,
    bias1: Optional[torch.Tensor] = None,
    bias2: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """activation(x @ weight1^T + bias1) @ weight2^T + bias2: two GEMMs, in backward four, or five with `recompute`.

    x (..., in_features), weight1 (hidden, in_features), or (2 * hidden, in_features) with a gated activation, weight2
    (out_features, hidden), bias1 (rows of weight1,), bias2 (out_features,); returns (..., out_features).
    recompute: keep nothing as large as the hidden layer and run the first GEMM again in backward. concat_layout: weight1 and
    bias1 hold all gates, then all ups, instead of pairs of them. Errors as of `linear_func`.
    """
    kind = activation_of(activation)
    check_projection(x, weight1, bias1, weight_name="weight1")
    check_weight(weight2, bias2, "weight2")
    layer = Layer(operand_dtype(x, weight1=weight1, weight2=weight2), kind, concat_layout, fuse_grad_accum, tuned)
    check_gated(layer, weight1, "weight1")
    hidden = weight1.shape[0] // 2 if layer.is_gated else weight1.shape[0]
    if weight2.shape[1] != hidden:
        raise ValueError(
            f"weight2 has shape {tuple(weight2.shape)}, expected (out_features, {hidden}): weight1 has shape "
            f"{tuple(weight1.shape)} and activation is {kind.value!r}"
        )
    layers = (layer, Layer(layer.dtype, fuse_grad_accum=fuse_grad_accum, tuned=tuned))
    operands = (flat(x), weight1, bias1, weight2, bias2)
    has_graph = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    return unflat(_Mlp.apply(*operands, layers, recompute or not has_graph), x)


class MLP(torch.nn.Module):
    """`mlp_func` with parameters: `fc1.weight` (hidden, in_features), twice the rows if gated, and `fc2.weight` (out_features, hidden).

    hidden_features: 4 * in_features unless given, 8 * in_features / 3 if gated; rounded up to `multiple_of`. out_features:
    in_features unless given. Both layers run as one function: hooks on fc1 and fc2 do not.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Optional[int] = None,
        out_features: Optional[int] = None,
        bias1: bool = False,
        bias2: bool = False,
        activation: ActivationName = "gelu_tanh_approx",
        multiple_of: int = 1,
        device: Union[torch.device, str, None] = None,
        dtype: Optional[torch.dtype] = None,
        fuse_grad_accum: bool = False,
        tuned: bool = True,
        recompute: bool = False,
        concat_layout: bool = False,
    ) -> None:
        super().__init__()
        kind = activation_of(activation)
        is_gated = isinstance(kind, GatedActivation)
        if concat_layout and not is_gated:
            raise ValueError(
                f"concat_layout needs a gated activation, whose weight has two halves; activation is {kind.value!r}"
            )
        if multiple_of < 1:
            raise ValueError(f"multiple_of is {multiple_of}, expected at least 1")
        if hidden_features is None:
            hidden_features = 8 * in_features // 3 if is_gated else 4 * in_features
        hidden = -(-hidden_features // multiple_of) * multiple_of
        out_features = in_features if out_features is None else out_features
        self.activation = kind
        self.fuse_grad_accum, self.tuned = fuse_grad_accum, tuned
        self.recompute, self.concat_layout = recompute, concat_layout
        rows = 2 * hidden if is_gated else hidden
        self.fc1 = Linear(in_features, rows, bias1, device, dtype, fuse_grad_accum)
        self.fc2 = Linear(hidden, out_features, bias2, device, dtype, fuse_grad_accum)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`mlp_func` with the module's parameters; x (..., in_features), returns (..., out_features)."""
        return mlp_func(
            x,
            self.fc1.weight,
            self.fc2.weight,
            self.activation,
            fuse_grad_accum=self.fuse_grad_accum,
            tuned=self.tuned,
            recompute=self.recompute,
            concat_layout=self.concat_layout,
            bias1=self.fc1.bias,
            bias2=self.fc2.bias,
        )

    def extra_repr(self) -> str:
        """What the layers do not show."""
        return f"activation={self.activation.value}, recompute={self.recompute}, concat_layout={self.concat_layout}"
