"""dx = activation'(x) * (A @ B), postact = activation(x): what `gemm_dact` and `gemm_dgated` launch.

C is x and D dx; of gated activations both as 32-bit words, so that they have the shape of the product.
"""

from typing import Any, NamedTuple, Optional

import torch

from .activation import GatedActivation
from .gemm_config import GemmConfig
from .gemm_interface import writes_only
from .gemm_operands import AnyActivation, activation_of, output_of, preact_shape, product_shape, with_scales
from .gemm_port import PortKind
from .runtime.call import Form, Operands, launch
from .runtime.epilogue import Allocated, Port, Term
from .runtime.operands import DTYPE_OF_TORCH
from .runtime.plan import GemmRequest
from .runtime.row_sum import sum_rows
from .runtime.spec import UnsupportedGemm

_MIXINS = "quack.epilogue.activation_backward:"
PAIR_DTYPES = (torch.bfloat16, torch.float16)


class Backward(NamedTuple):
    """What a call computes besides its operands: the options of its form."""

    activation: AnyActivation
    stores_postact: bool
    reduces: bool
    out_dtype: Optional[torch.dtype] = None  # of dx
    postact_dtype: Optional[torch.dtype] = None
    dynamic: bool = False
    config: Optional[GemmConfig] = None


def as_words(tensor: torch.Tensor) -> torch.Tensor:
    """(..., 2 N) 16-bit numbers as (..., N) 32-bit words, each a gate and an up projection; see `check_words`."""
    *steps, _ = tensor.stride()
    if tensor.numel() and not (tensor.storage_offset() % 2 or any([step % 2 for step in steps])):
        return tensor.view(torch.float32)
    extents, steps = (*tensor.shape[:-1], tensor.shape[-1] // 2), [step // 2 for step in steps]
    if tensor.numel() == 0:
        return tensor.new_empty(extents, dtype=torch.float32)
    return tensor.as_strided((1, 2), (2, 1)).view(torch.float32).as_strided(extents, (*steps, 1))


def check_words(name: str, tensor: torch.Tensor, function: GatedActivation) -> None:
    """Whether pairs of numbers are aligned words."""
    if tensor.dtype not in PAIR_DTYPES:
        raise UnsupportedGemm(
            f"{name} has dtype {tensor.dtype}: the gradient of {function.value} reads pairs of 16-bit numbers",
            f"{name}.bfloat16()",
        )
    if tensor.numel() == 0:
        return
    strides = [step for step, extent in zip(tensor.stride()[:-1], tensor.shape) if extent > 1]
    if tensor.stride(-1) != 1 or any(step % 2 for step in strides) or tensor.data_ptr() % 4:
        raise UnsupportedGemm(
            f"{name} with strides {tensor.stride()} at an address that is {tensor.data_ptr() % 16} mod 16 has pairs of gate "
            f"and up projection that are no aligned 32-bit words",
            f"contiguous columns and even strides, as of {name}.contiguous()",
        )


def backward_request(
    A: torch.Tensor,
    B: torch.Tensor,
    x: torch.Tensor,
    dx: torch.Tensor,
    postact: Optional[torch.Tensor],
    function: AnyActivation,
    scale: Optional[torch.Tensor] = None,
    reduces: bool = False,
    **options: Any,
) -> GemmRequest:
    """options: further fields of the request."""
    statics: tuple[tuple[str, object], ...] = (("activation", function),)
    mixin = _MIXINS + "ActivateBackward"
    if isinstance(function, GatedActivation):
        check_words("PreAct", x, function)
        check_words("dx_out", dx, function)
        statics += (("pairs", DTYPE_OF_TORCH[x.dtype]), ("gradient_pairs", DTYPE_OF_TORCH[dx.dtype]))
        mixin = _MIXINS + "GateBackward"
        x, dx = as_words(x), as_words(dx)
    ports = (
        Port("postact_out", PortKind.TILE_OUTPUT, postact),
        Port("colvec_scale", PortKind.COL_VECTOR, scale),
        Port("colvec_reduce", PortKind.ROW_PARTIALS, Allocated.PARTIALS if reduces else None),
    )
    is_pointwise = scale is None and not reduces
    term = Term(mixin, ports, statics, swapped=mixin if is_pointwise else None, uses_c=True)
    return GemmRequest(A, B, dx, x, epilogue=(term,), **options)


def _outputs(operands: Operands, *options: Any) -> None:
    """out, postact_out and sums."""
    call, A, x = Backward(*options), operands["A"], operands["C"]
    shape = product_shape(A, operands["B"], operands["A_idx"])
    wide = preact_shape(call.activation, shape)
    operands["out"] = output_of("dx_out", operands["out"], "out_dtype", call.out_dtype, wide, A)
    if call.stores_postact:
        given = operands["postact_out"]
        operands["postact_out"] = output_of("postact_out", given, "postact_dtype", call.postact_dtype, shape, A)
    if call.reduces and operands["sums"] is None:
        operands["sums"] = A.new_empty(shape[:-1], dtype=torch.float32)
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"PreAct is a {type(x).__name__}, expected a torch.Tensor")
    if tuple(x.shape) != wide:
        raise ValueError(f"PreAct has shape {tuple(x.shape)}, expected {wide}")


def _request(operands: Operands, *options: Any) -> GemmRequest:
    fields, call = dict(operands), Backward(*options)
    fields.pop("sums")
    return backward_request(
        x=fields.pop("C"), dx=fields.pop("out"), postact=fields.pop("postact_out"), function=call.activation,
        scale=fields.pop("colvec_scale"), reduces=call.reduces, dynamic=call.dynamic, config=call.config, **fields,
    )  # fmt: skip


BACKWARD = Form(_request, _outputs, convert=as_words)
Gradients = tuple[torch.Tensor, Optional[torch.Tensor], Optional[torch.Tensor]]


def launch_backward(
    operands: Operands, x: torch.Tensor, dx: Optional[torch.Tensor], postact: Optional[torch.Tensor], call: Backward
) -> Gradients:
    """(dx, postact or None, sums or None), the first two allocated if not given. operands: A, B, colvec_scale, cu_seqlens_m, A_idx."""
    operands.update(out=dx, C=x, postact_out=postact, sums=None)
    if torch.compiler.is_compiling():
        _outputs(operands, *call)
        x, dx = operands.pop("C"), operands.pop("out")
        postact, sums = operands.pop("postact_out"), operands.pop("sums")
        x = x.clone() if x is dx else x
        _op(**operands, x=x, dx=dx, postact=postact, sums=sums, activation=call.activation.value, dynamic=call.dynamic)
        return dx, postact, sums
    return _run(operands, call)


def _run(operands: Operands, call: Backward) -> Gradients:
    partials = launch(BACKWARD, operands, call)
    sums = operands["sums"]
    if sums is not None:
        sum_rows(partials["colvec_reduce"], out=sums)
    return operands["out"], operands["postact_out"], sums


@torch.library.custom_op("quack::gemm_dact_out", mutates_args={"dx", "postact", "sums"})
def _op(
    A: torch.Tensor,
    B: torch.Tensor,
    x: torch.Tensor,
    dx: torch.Tensor,
    postact: Optional[torch.Tensor],
    sums: Optional[torch.Tensor],
    activation: Optional[str],
    dynamic: bool,
    colvec_scale: Optional[torch.Tensor],
    cu_seqlens_m: Optional[torch.Tensor],
    A_idx: Optional[torch.Tensor],
    A_scale: Optional[torch.Tensor] = None,
    B_scale: Optional[torch.Tensor] = None,
) -> None:
    operands = {
        "A": A, "B": B, "colvec_scale": colvec_scale, "cu_seqlens_m": cu_seqlens_m, "A_idx": A_idx, "out": dx, "C": x,
        "postact_out": postact, "sums": sums,
    }  # fmt: skip
    operands = with_scales(operands, A_scale, B_scale)
    _run(operands, Backward(activation_of(activation), postact is not None, sums is not None, dynamic=dynamic))


_op.register_fake(writes_only)
