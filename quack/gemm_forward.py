"""postact = activation(preact), preact = rstd * (A @ B) + C + bias: what `gemm_act` and `gemm_norm_act` launch.

D is preact and postact a further output, or D is postact alone.
"""

from typing import Any, NamedTuple, Optional

import torch

from .activation import GatedActivation
from .gemm_config import GemmConfig
from .gemm_interface import _split_names, writes_only
from .gemm_operands import AnyActivation, Outputs, activation_of, output_of, postact_shape, product_shape, with_scales
from .gemm_port import PortKind
from .runtime.call import Form, Operands, launch
from .runtime.epilogue import Port, Term
from .runtime.plan import GemmRequest

_MIXINS, _SCALE = "quack.epilogue.activation:", "quack.epilogue.scale:"
Names = Optional[tuple[str, ...]]


def scale_rows(name: str, scale: torch.Tensor) -> Term:
    """acc[m, n] * scale[m]; scale (M,), (L, M) or (total_m,)."""
    return Term(_SCALE + "ScaleRows", (Port(name, PortKind.COL_VECTOR, scale),), swapped=_SCALE + "ScaleColumns")


def forward_request(
    A: torch.Tensor,
    B: torch.Tensor,
    preact: Optional[torch.Tensor],
    postact: torch.Tensor,
    function: AnyActivation,
    rstd: Optional[torch.Tensor] = None,
    **options: Any,
) -> GemmRequest:
    """options: further fields of the request."""
    is_gated = isinstance(function, GatedActivation)
    port = Port("postact_out", PortKind.TILE_OUTPUT, None if preact is None else postact, is_halved=is_gated)
    mixin = _MIXINS + ("Gate" if is_gated else "Activate")
    term = Term(mixin, (port,), (("activation", function),), swapped=None if is_gated else mixin)
    out, halves_out = (postact, is_gated) if preact is None else (preact, False)
    leading = () if rstd is None else (scale_rows("rstd", rstd),)
    return GemmRequest(A, B, out, leading=leading, epilogue=(term,), halves_out=halves_out, **options)


class Forward(NamedTuple):
    """What a call computes besides its operands: the options of its form. stores_preact: also if no preact_out is given."""

    activation: AnyActivation
    stores_preact: bool
    out_dtype: Optional[torch.dtype] = None  # of preact
    postact_dtype: Optional[torch.dtype] = None
    dynamic: bool = False
    concat_layout: Names = None
    config: Optional[GemmConfig] = None


def _outputs(operands: Operands, *options: Any) -> None:
    """out and postact_out; out is postact, where that is all."""
    call = Forward(*options)
    A = operands["A"]
    shape = product_shape(A, operands["B"], operands["A_idx"])
    narrow = postact_shape(call.activation, shape)
    if call.stores_preact:
        operands["out"] = output_of("preact_out", operands["out"], "out_dtype", call.out_dtype, shape, A)
    name = "postact_out" if call.stores_preact else "out"
    operands[name] = output_of("postact_out", operands[name], "postact_dtype", call.postact_dtype, narrow, A)


def _request(operands: Operands, *options: Any) -> GemmRequest:
    fields, call = dict(operands), Forward(*options)
    out, postact = fields.pop("out"), fields.pop("postact_out")
    preact, postact = (out, postact) if call.stores_preact else (None, out)
    fields.update(dynamic=call.dynamic, concat_layout=call.concat_layout, config=call.config)
    return forward_request(preact=preact, postact=postact, function=call.activation, **fields)


FORWARD = Form(_request, _outputs)


def launch_forward(
    operands: Operands, preact: Optional[torch.Tensor], postact: Optional[torch.Tensor], call: Forward
) -> Outputs:
    """(preact, postact), allocated if not given. operands: A, B, C, bias or rstd, cu_seqlens_m, A_idx."""
    operands["out"], operands["postact_out"] = (preact, postact) if call.stores_preact else (postact, None)
    if not torch.compiler.is_compiling():
        launch(FORWARD, operands, call)
        out = operands["out"]
        return (out, operands["postact_out"]) if call.stores_preact else (None, out)
    _outputs(operands, *call)
    out, postact = operands.pop("out"), operands.pop("postact_out")
    preact, postact = (out, postact) if call.stores_preact else (None, out)
    if operands["C"] is not None and operands["C"] is preact:
        operands["C"] = preact.clone()  # an op must not mutate what it reads under another name
    names = ",".join(call.concat_layout or ())
    _op(
        **operands,
        preact=preact,
        postact=postact,
        activation=call.activation.value,
        dynamic=call.dynamic,
        concat_layout=names,
    )
    return preact, postact


# torch.compile sees one opaque op with declared mutations; eager calls never pass through the dispatcher.
@torch.library.custom_op("quack::gemm_act_out", mutates_args={"preact", "postact"})
def _op(
    A: torch.Tensor,
    B: torch.Tensor,
    preact: Optional[torch.Tensor],
    postact: torch.Tensor,
    activation: Optional[str],
    dynamic: bool,
    concat_layout: str,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    rstd: Optional[torch.Tensor] = None,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    A_scale: Optional[torch.Tensor] = None,
    B_scale: Optional[torch.Tensor] = None,
) -> None:
    operands = {"A": A, "B": B, "C": C, "bias": bias, "rstd": rstd, "cu_seqlens_m": cu_seqlens_m, "A_idx": A_idx}
    operands = with_scales(operands, A_scale, B_scale)
    function, names = activation_of(activation), _split_names(concat_layout)
    launch_forward(operands, preact, postact, Forward(function, preact is not None, None, None, dynamic, names))


_op.register_fake(writes_only)
