"""Linear layers with autograd: y = x @ weight^T + bias, alone or with the activation behind or in front of it.

Shapes: x (..., in_features), weight (out_features, in_features), bias (out_features,), results (..., out_features). A gated
activation combines columns 2j (gate) and 2j + 1 (up) of its argument, so a gated weight has 2 * hidden rows, in this order, or
with `concat_layout` all gates first, then all ups.

Dtypes: bf16, fp16 or fp32, the same for x and weight; bias may also be fp32. fp32 is multiplied in tf32; the backward pass of a
weight copies x or the gradient with K contiguous then. Under `torch.autocast` x and weight of any floating dtype are converted,
and gradients leave the GEMM in the dtype of what they belong to: an fp32 weight gets the fp32 sum.

Common arguments. fuse_grad_accum: where `weight` is a leaf that has a `.grad`, the GEMM of its gradient adds to it in place and
autograd sees no gradient from here; so hooks on the weight do not run and `torch.autograd.grad` finds nothing. Code compiled by
torch.compile returns the gradient as usual. tuned: passed on to the GEMMs.

Backward does only what `requires_grad` asks for, and cannot be differentiated again (RuntimeError). What is kept for it:

| function                 | for x's (preact's) gradient | for weight's gradient         |
|---|---|---|
| linear_func              | weight                      | x                             |
| linear_act_func          | weight, preact *            | x, preact *                   |
| act_linear_func          | weight, preact              | preact; x if preact has none  |
| mlp_func                 | weights, preact             | x, preact                     |
| mlp_func, recompute=True | weights                     | x, weight1                    |

* preact is a result as well; without `store_preact` it is computed again from x and weight. `gated` forms are the same.
"""

import math
from functools import partial
from typing import Any, NamedTuple, Optional, Union

import torch
from torch.autograd.function import once_differentiable

from .activation import Activation, GatedActivation
from .gemm_activation import gemm_act, gemm_dact, gemm_dgated, gemm_gated
from .gemm_interface import gemm, gemm_add_inplace
from .gemm_operands import ActivationName, AnyActivation, activation_of, apply_ref
from .runtime.spec import UnsupportedGemm

Tensors = tuple[Optional[torch.Tensor], ...]
OPERAND_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class Layer(NamedTuple):
    """How one projection is computed, forward and backward."""

    dtype: torch.dtype  # of the GEMM's operands and results
    activation: AnyActivation = Activation.IDENTITY
    is_concat: bool = False  # weight and bias hold all gates, then all ups
    fuse_grad_accum: bool = False
    tuned: bool = True

    @property
    def is_gated(self) -> bool:
        return isinstance(self.activation, GatedActivation)

    def layout(self, *names: str) -> Optional[tuple[str, ...]]:
        """`concat_layout` of a GEMM in which these operands belong to the weight."""
        return names if self.is_concat else None


def operand_dtype(x: torch.Tensor, **others: torch.Tensor) -> torch.dtype:
    """What the GEMMs read: the autocast dtype, or that of all operands. ValueError, UnsupportedGemm: there is none."""
    kind = x.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    else:
        dtype = x.dtype
        for name, tensor in others.items():
            if tensor.dtype != dtype:
                raise ValueError(
                    f"x has dtype {dtype} and {name} has dtype {tensor.dtype}: convert one of them, or use torch.autocast"
                )
    if dtype not in OPERAND_DTYPES:
        raise UnsupportedGemm(f"x has dtype {dtype}", "bf16, fp16, fp32, or torch.autocast with one of them")
    return dtype


def check_projection(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], weight_name: str = "weight"
) -> None:
    """Types and shapes of x (..., K), weight (N, K), bias (N,)."""
    check_weight(weight, bias, weight_name)
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x is a {type(x).__name__}, expected a torch.Tensor")
    if x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and {weight_name} {tuple(weight.shape)}: the last dimension of x must be "
            f"in_features = {weight.shape[1]}"
        )


def check_weight(weight: torch.Tensor, bias: Optional[torch.Tensor], weight_name: str = "weight") -> None:
    """Types and shapes of weight (N, K) and bias (N,)."""
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{weight_name} is a {type(weight).__name__}, expected a torch.Tensor")
    if weight.dim() != 2:
        raise ValueError(f"{weight_name} has shape {tuple(weight.shape)}, expected (out_features, in_features)")
    if bias is None:
        return
    bias_name = weight_name.replace("weight", "bias")
    if not isinstance(bias, torch.Tensor):
        raise TypeError(f"{bias_name} is a {type(bias).__name__}, expected a torch.Tensor")
    if tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"{bias_name} has shape {tuple(bias.shape)}, expected ({weight.shape[0]},)")


def check_gated(layer: Layer, weight: torch.Tensor, weight_name: str = "weight") -> None:
    """A gated layer's weight has rows in pairs; only a gated one's may be stored as halves."""
    if layer.is_concat and not layer.is_gated:
        raise ValueError(
            f"concat_layout needs a gated activation, whose weight has two halves; activation is {layer.activation.value!r}"
        )
    if layer.is_gated and weight.shape[0] % 2:
        raise ValueError(
            f"{weight_name} has {weight.shape[0]} rows, expected an even number: {layer.activation.value!r} combines pairs"
        )


def flat(x: torch.Tensor) -> torch.Tensor:
    """(..., K) as (rows, K)."""
    return x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def unflat(y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(rows, N) with the leading dimensions of `like`."""
    return y if like.dim() == 2 else y.reshape(*like.shape[:-1], y.shape[-1])


def as_operand(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In the GEMM's dtype and with a contiguous dimension; the tensor itself where it is so already."""
    if tensor.dtype == dtype and tensor.is_contiguous():
        return tensor
    tensor = tensor.to(dtype)
    spread = [stride for stride, extent in zip(tensor.stride(), tensor.shape) if extent > 1]
    return tensor.contiguous() if spread and (1 not in spread or 0 in spread) else tensor


def incoming(dy: torch.Tensor) -> torch.Tensor:
    """A gradient as an operand. torch.compile traces this before it knows the strides, which may be those of an expanded scalar."""
    return dy.contiguous() if torch.compiler.is_compiling() else as_operand(dy, dy.dtype)


def k_major(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """x (M, K), copied so that K is contiguous if both are fp32 in which it is not; other (K, N). In tf32 one may be strided."""
    is_strided = x.dtype is torch.float32 and x.stride(1) != 1 and other.stride(0) != 1
    return x.contiguous() if is_strided else x


def project(x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], layer: Layer) -> torch.Tensor:
    """x @ weight^T + bias without the activation; (rows, K) and (N, K)."""
    return gemm(k_major(x, weight.mT), weight.mT, bias=bias, tuned=layer.tuned, concat_layout=layer.layout("B", "bias"))


def project_and_activate(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], layer: Layer, store_preact: bool
) -> tuple[Optional[torch.Tensor], torch.Tensor]:
    """(preact, postact) in one GEMM; preact is None unless it is to be stored."""
    function = gemm_gated if layer.is_gated else gemm_act
    if weight.dtype is torch.float32 and layer.is_gated and not layer.is_concat:
        weight = weight.contiguous()  # its product has no form that leaves a strided one in registers
    return function(
        k_major(x, weight.mT),
        weight.mT,
        bias=bias,
        activation=layer.activation.value,
        store_preact=store_preact,
        tuned=layer.tuned,
        concat_layout=layer.layout("B", "bias"),
    )


def activation_gradient(
    dy: torch.Tensor,
    weight: torch.Tensor,
    preact: torch.Tensor,
    activation: AnyActivation,
    tuned: bool,
    store_postact: bool,
) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
    """(d preact, postact) where y = f(preact) @ weight^T: one GEMM, which computes postact again on the way if it is wanted. Not
    of gated activations in fp32: the GEMM reads and writes pairs of 16-bit numbers."""
    dy = k_major(dy, weight)
    if dy.dtype is torch.float32 and isinstance(activation, GatedActivation):
        dpreact = elementwise_gradient(gemm(dy, weight, tuned=tuned), preact, activation)
        return dpreact, apply_ref(activation, preact) if store_postact else None
    function = gemm_dgated if isinstance(activation, GatedActivation) else gemm_dact
    results = function(dy, weight, preact, activation=activation.value, tuned=tuned, store_postact=store_postact)
    dpreact, postact = results[:2]
    assert dpreact is not None
    return dpreact, postact


class Wanted(NamedTuple):
    """What the backward of one projection returns: the dtype of each gradient that is needed, None for the others."""

    x: Optional[torch.dtype]
    weight: Optional[torch.dtype]
    bias: Optional[torch.dtype]
    leaf: Optional[torch.Tensor] = None  # the weight's gradient is added to its `.grad`, if it has one

    @classmethod
    def of(cls, operands: Tensors, needs: tuple[bool, ...], layer: Layer) -> "Wanted":
        """operands and needs: of x, weight, bias."""
        x, weight, bias = (None if t is None or not need else t.dtype for t, need in zip(operands, needs))
        leaf = operands[1]
        is_fused = layer.fuse_grad_accum and not torch.compiler.is_compiling() and leaf is not None and leaf.is_leaf
        return cls(x, weight, bias, leaf if is_fused else None)


def gradients(
    dy: torch.Tensor, x: Optional[torch.Tensor], weight: Optional[torch.Tensor], wanted: Wanted, layer: Layer
) -> Tensors:
    """(dx, dweight, dbias) of y = x @ weight^T + bias; dy (rows, N). x is read for dweight only, weight for dx only."""
    dx = dweight = dbias = None
    if wanted.x is not None:
        assert weight is not None, "weight was not kept"
        dx = gemm(k_major(dy, weight), weight, out_dtype=wanted.x, tuned=layer.tuned, concat_layout=layer.layout("B"))
    if wanted.weight is not None:
        assert x is not None, "x was not kept"
        dweight = weight_gradient(dy, x, wanted, layer)
    if wanted.bias is not None:
        dbias = dy.sum(0, dtype=torch.promote_types(dy.dtype, wanted.bias))  # added in fp32 at least, as torch does
        if layer.is_concat:
            dbias = dbias.view(dy.shape[1] // 2, 2).mT.flatten()
        dbias = dbias.to(wanted.bias)
    return dx, dweight, dbias


def weight_gradient(dy: torch.Tensor, x: torch.Tensor, wanted: Wanted, layer: Layer) -> Optional[torch.Tensor]:
    """dy^T @ x, (N, K); None if it was added to the leaf's `.grad`."""
    layout = layer.layout("out")
    turned = dy.mT
    if x.numel() < dy.numel():
        x = k_major(x.mT, dy).mT
    else:
        turned = k_major(turned, x)
    if wanted.leaf is not None and wanted.leaf.grad is not None:
        gemm_add_inplace(turned, x, wanted.leaf.grad, tuned=layer.tuned, concat_layout=layout)
        return None
    return gemm(turned, x, out_dtype=wanted.weight, tuned=layer.tuned, concat_layout=layout)


def elementwise_gradient(dpostact: torch.Tensor, preact: torch.Tensor, activation: AnyActivation) -> torch.Tensor:
    """d preact where no GEMM is at hand to do it on the way; plain torch in fp32."""
    dtype = torch.promote_types(preact.dtype, torch.float32)
    pull_back = torch.func.vjp(partial(apply_ref, activation), preact.to(dtype))[1]
    (gradient,) = pull_back(dpostact.to(dtype))
    return gradient.to(preact.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], layer: Layer):
        ctx.layer, ctx.wanted = layer, Wanted.of((x, weight, bias), ctx.needs_input_grad[:3], layer)
        x, weight = as_operand(x, layer.dtype), as_operand(weight, layer.dtype)
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        return project(x, weight, bias, layer)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor):
        x, weight = ctx.saved_tensors
        return *gradients(incoming(dy), x, weight, ctx.wanted, ctx.layer), None


class _LinearAct(torch.autograd.Function):
    """Results (preact or None, postact). preact's gradient comes from `_ActLinear`, postact's from anything else."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], layer: Layer, store_preact: bool
    ):
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.wanted = layer, Wanted.of((x, weight, bias), ctx.needs_input_grad[:3], layer)
        x, weight = as_operand(x, layer.dtype), as_operand(weight, layer.dtype)
        preact, postact = project_and_activate(x, weight, bias, layer, store_preact)
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        if store_preact:
            ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None, None, preact)
        else:
            ctx.save_for_backward(x, weight, bias, None)
        return preact, postact

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dpreact: Optional[torch.Tensor], dpostact: Optional[torch.Tensor]):
        x, weight, bias, preact = ctx.saved_tensors
        if dpostact is not None:
            if preact is None:
                preact = project(x, weight, bias, ctx.layer)
            through_postact = elementwise_gradient(dpostact, preact, ctx.layer.activation)
            dpreact = through_postact if dpreact is None else dpreact + through_postact
        if dpreact is None:
            return None, None, None, None, None
        return *gradients(incoming(dpreact), x, weight, ctx.wanted, ctx.layer), None, None


class _ActLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        preact: torch.Tensor,
        weight: torch.Tensor,
        x: torch.Tensor,
        bias: Optional[torch.Tensor],
        layer: Layer,
        activation: AnyActivation,
    ):
        needs_preact, needs_weight, _, needs_bias = ctx.needs_input_grad[:4]
        ctx.layer, ctx.activation, ctx.preact_dtype = layer, activation, preact.dtype
        ctx.wanted = Wanted.of((None, weight, bias), (False, needs_weight, needs_bias), layer)
        x, weight = as_operand(x, layer.dtype), as_operand(weight, layer.dtype)
        if needs_preact:
            ctx.save_for_backward(as_operand(preact, layer.dtype), weight, None)
        else:
            ctx.save_for_backward(None, None, x if needs_weight else None)
        return project(x, weight, bias, layer)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor):
        preact, weight, x = ctx.saved_tensors
        dy = incoming(dy)
        dpreact = None
        if preact is not None:
            needs_weight = ctx.wanted.weight is not None
            dpreact, x = activation_gradient(dy, weight, preact, ctx.activation, ctx.layer.tuned, needs_weight)
            dpreact = dpreact.to(ctx.preact_dtype)
        _, dweight, dbias = gradients(dy, x, None, ctx.wanted, ctx.layer)
        return dpreact, dweight, None, dbias, None, None


def linear_func(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor] = None,
    fuse_grad_accum: bool = False,
    tuned: bool = True,
) -> torch.Tensor:
    """x @ weight^T + bias.

    x (..., in_features), weight (out_features, in_features), bias (out_features,); returns (..., out_features). ValueError,
    TypeError: shapes, types or dtypes do not fit; UnsupportedGemm: a dtype without a kernel.
    """
    check_projection(x, weight, bias)
    layer = Layer(operand_dtype(x, weight=weight), fuse_grad_accum=fuse_grad_accum, tuned=tuned)
    return unflat(_Linear.apply(flat(x), weight, bias, layer), x)


def linear_act_func(
    x: torch.Tensor,
    weight: torch.Tensor,
    activation: ActivationName,
    bias: Optional[torch.Tensor] = None,
    store_preact: bool = True,
    fuse_grad_accum: bool = False,
    tuned: bool = True,
) -> tuple[Optional[torch.Tensor], torch.Tensor]:
    """(preact, postact): preact = x @ weight^T + bias, postact = activation(preact), in one GEMM.

    Shapes as of `linear_func`; a gated activation halves the columns of postact. Both results have gradients. Hand both to
    `act_linear_func`, the second half of an MLP: its backward fuses the activation's, which other uses of postact do in a pass
    of their own. store_preact=False returns None for preact, does not write it, and computes it again if backward needs it.
    """
    return _linear_act(x, weight, activation_of(activation), bias, store_preact, fuse_grad_accum, tuned, False)


def linear_gated_func(
    x: torch.Tensor,
    weight: torch.Tensor,
    activation: Union[str, GatedActivation],
    bias: Optional[torch.Tensor] = None,
    store_preact: bool = True,
    fuse_grad_accum: bool = False,
    tuned: bool = True,
    concat_layout: bool = False,
) -> tuple[Optional[torch.Tensor], torch.Tensor]:
    """`linear_act_func` with a gated activation: weight (2 * hidden, in_features), preact (..., 2 * hidden), postact (..., hidden).

    Rows 2j and 2j + 1 of weight (and bias) make gate and up of column j of postact. concat_layout: weight and bias hold all
    gates, then all ups, instead; they are read, and the gradient written, through that permutation. preact is interleaved
    either way.
    """
    gated = GatedActivation.of(activation)
    return _linear_act(x, weight, gated, bias, store_preact, fuse_grad_accum, tuned, concat_layout)


def _linear_act(
    x: torch.Tensor,
    weight: torch.Tensor,
    activation: AnyActivation,
    bias: Optional[torch.Tensor],
    store_preact: bool,
    fuse_grad_accum: bool,
    tuned: bool,
    is_concat: bool,
) -> tuple[Optional[torch.Tensor], torch.Tensor]:
    check_projection(x, weight, bias)
    layer = Layer(operand_dtype(x, weight=weight), activation, is_concat, fuse_grad_accum, tuned)
    check_gated(layer, weight)
    preact, postact = _LinearAct.apply(flat(x), weight, bias, layer, store_preact)
    return None if preact is None else unflat(preact, x), unflat(postact, x)


def act_linear_func(
    preact: torch.Tensor,
    weight: torch.Tensor,
    x: torch.Tensor,
    activation: ActivationName,
    fuse_grad_accum: bool = False,
    tuned: bool = True,
    *,
    bias: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """activation(preact) @ weight^T + bias, where x is activation(preact) already: the second half of an MLP.

    preact (..., in_features), or (..., 2 * in_features) interleaved if gated; x (..., in_features), both from
    `linear_act_func`; weight (out_features, in_features). Forward is the plain product with x. Backward gives preact its
    gradient straight from the GEMM, which applies the activation's derivative and computes x again on the way; so x is not
    kept, and has no gradient from here: it is preact's function, and the path through preact is the whole of it.
    """
    check_projection(x, weight, bias)
    kind = activation_of(activation)
    factor = 2 if isinstance(kind, GatedActivation) else 1
    if not isinstance(preact, torch.Tensor):
        raise TypeError(f"preact is a {type(preact).__name__}, expected a torch.Tensor; store_preact=True returns it")
    expected = (*x.shape[:-1], factor * x.shape[-1])
    if tuple(preact.shape) != expected:
        raise ValueError(
            f"preact has shape {tuple(preact.shape)}, expected {expected}: activation {kind.value!r} of it is x {tuple(x.shape)}"
        )
    layer = Layer(operand_dtype(x, weight=weight, preact=preact), fuse_grad_accum=fuse_grad_accum, tuned=tuned)
    return unflat(_ActLinear.apply(flat(preact), weight, flat(x), bias, layer, kind), x)


def gated_linear_func(
    preact: torch.Tensor,
    weight: torch.Tensor,
    x: torch.Tensor,
    activation: Union[str, GatedActivation],
    fuse_grad_accum: bool = False,
    tuned: bool = True,
    *,
    bias: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """`act_linear_func` with a gated activation: preact (..., 2 * in_features), gates and ups interleaved."""
    return act_linear_func(preact, weight, x, GatedActivation.of(activation), fuse_grad_accum, tuned, bias=bias)


class Linear(torch.nn.Linear):
    """`torch.nn.Linear` on quack's GEMM: same parameters, initialisation and state dict; without bias unless asked for.

    x (..., in_features) to (..., out_features), in bf16 or fp16, or in fp32 by way of tf32, unless under `torch.autocast`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: Union[torch.device, str, None] = None,
        dtype: Optional[torch.dtype] = None,
        fuse_grad_accum: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.fuse_grad_accum = fuse_grad_accum

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`linear_func` with the module's parameters."""
        return linear_func(x, self.weight, self.bias, fuse_grad_accum=self.fuse_grad_accum)
