"""GEMMs with an activation in the epilogue: torch tensors in, torch tensors out.

Operands, dtypes, strides and errors as in `gemm_interface`. Activations (`quack.activation`): None, "relu", "relu_sq",
"gelu_tanh_approx", "silu", "tanh", "sigmoid"; gated: "swiglu", "swiglu_oai", "reglu", "geglu", "glu". Gated ones take columns
2j and 2j + 1 of the product as gate and up projection, so what they compute has N / 2 columns. Activations see the fp32
accumulator, not what is rounded for storing it. In messages of the GEMM underneath, `out` is the first matrix stored: preact,
or postact where there is no other.

These functions are not differentiable by themselves; `quack.linear` and `quack.mlp` are.
"""

from typing import Any, Optional, Union

import torch

from .activation import Activation, GatedActivation
from .activation_ref import reference
from .gemm_config import GemmConfig
from .gemm_interface import _split_names, launch_with_epilogue, writes_only
from .gemm_port import PortKind
from .runtime.concat import concat_names, interleaved
from .runtime.epilogue import Allocated, Port, Term
from .runtime.operands import DTYPE_OF_TORCH
from .runtime.plan import GemmRequest
from .runtime.spec import UnsupportedGemm

AnyActivation = Union[Activation, GatedActivation]
ActivationName = Union[str, None, AnyActivation]
Outputs = tuple[Optional[torch.Tensor], torch.Tensor]  # (preact, postact)
# (dx, postact) or (dx, postact, reduction)
Gradients = Union[
    tuple[torch.Tensor, Optional[torch.Tensor]], tuple[torch.Tensor, Optional[torch.Tensor], torch.Tensor]
]

_FORWARD, _BACKWARD = "quack.epilogue.activation:", "quack.epilogue.activation_backward:"
PAIR_DTYPES = (torch.bfloat16, torch.float16)


def gemm_act(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    activation: ActivationName = None,
    preact_out: Optional[torch.Tensor] = None,
    postact_out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    store_preact: bool = True,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    concat_layout: Optional[tuple[str, ...]] = None,
) -> Outputs:
    """preact = A @ B + C + bias, postact = activation(preact). Returns (preact or None, postact).

    preact (..., N); postact (..., N), or (..., N / 2) of a gated activation. Both have the dtype of A (bf16 if that is fp8)
    unless out_dtype (of preact) or postact_dtype says otherwise, and are allocated unless preact_out or postact_out is given.
    `preact_out is C` works in place. store_preact=False does not write preact, and returns None for it.
    cu_seqlens_m, A_idx, dynamic_scheduler: as in `gemm`. concat_layout: names out of "A", "B", "C", "bias" as in `gemm`; a
    gated W1 (2I, K) stored as [gates; ups] is B = W1.mT with concat_layout=("B",).
    """
    function = activation_of(activation)
    preact = None
    if store_preact:
        preact = _output_of("preact_out", preact_out, "out_dtype", out_dtype, product_shape(A, B, A_idx), A)
    elif preact_out is not None:
        raise ValueError("preact_out is given and store_preact is False: pass one of them")
    shape = postact_shape(function, product_shape(A, B, A_idx))
    postact = _output_of("postact_out", postact_out, "postact_dtype", postact_dtype, shape, A)
    names = _operand_names(concat_layout)
    if torch.compiler.is_compiling():
        c = C.clone() if C is not None and C is preact else C  # an op must not mutate what it reads under another name
        _gemm_act_op(
            A, B, preact, postact, c, bias, function.value, cu_seqlens_m, A_idx, dynamic_scheduler, ",".join(names or ())
        )  # fmt: skip
    else:
        _launch_forward(A, B, preact, postact, C, bias, function, cu_seqlens_m, A_idx, dynamic_scheduler, names)
    return preact, postact


def gemm_gated(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    preact_out: Optional[torch.Tensor] = None,
    postact_out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    store_preact: bool = True,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    concat_layout: Optional[tuple[str, ...]] = None,
) -> Outputs:
    """`gemm_act` with a gated activation."""
    return gemm_act(
        A, B, C, bias, GatedActivation.of(activation), preact_out, postact_out, out_dtype, postact_dtype, cu_seqlens_m,
        A_idx, store_preact, dynamic_scheduler, tuned, concat_layout,
    )  # fmt: skip


def gemm_act_out(
    A: torch.Tensor,
    B: torch.Tensor,
    preact_out: Optional[torch.Tensor],
    postact_out: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    activation: ActivationName = None,
    **options,
) -> None:
    """`gemm_act` into given outputs; preact is not stored if preact_out is None."""
    gemm_act(A, B, C, bias, activation, preact_out, postact_out, store_preact=preact_out is not None, **options)


def gemm_gated_out(
    A: torch.Tensor,
    B: torch.Tensor,
    preact_out: Optional[torch.Tensor],
    postact_out: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    **options,
) -> None:
    """`gemm_gated` into given outputs; preact is not stored if preact_out is None."""
    gemm_gated(A, B, C, bias, activation, preact_out, postact_out, store_preact=preact_out is not None, **options)


def gemm_dact(
    A: torch.Tensor,
    B: torch.Tensor,
    PreAct: torch.Tensor,
    activation: ActivationName = None,
    dx_out: Optional[torch.Tensor] = None,
    postact_out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    colvec_scale: Optional[torch.Tensor] = None,
    colvec_reduce: bool = False,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    *,
    store_postact: bool = True,
) -> Gradients:
    """dx = activation'(PreAct) * (A @ B), postact = activation(PreAct). Returns (dx, postact), and the reduction if asked for.

    A @ B (..., N) is the gradient of postact. PreAct and dx (..., N), or (..., 2 N) of a gated activation, gates and ups
    interleaved; those are bf16 or fp16, and the columns contiguous. dx may be PreAct (in place). Both outputs have the dtype of
    A unless out_dtype (of dx) or postact_dtype says otherwise. store_postact=False returns None for postact.
    colvec_scale (M,), (L, M) or (total_m,): postact was multiplied with it row by row. dx and the postact that is returned are,
    too. colvec_reduce=True also returns its gradient, fp32 of that shape: the sums over N of (A @ B) * activation(PreAct).
    cu_seqlens_m, A_idx, dynamic_scheduler: as in `gemm`.
    """
    function = activation_of(activation)
    shape = product_shape(A, B, A_idx)
    dx = _output_of("dx_out", dx_out, "out_dtype", out_dtype, preact_shape(function, shape), A)
    postact = None
    if store_postact:
        postact = _output_of("postact_out", postact_out, "postact_dtype", postact_dtype, shape, A)
    elif postact_out is not None:
        raise ValueError("postact_out is given and store_postact is False: pass one of them")
    sums = A.new_empty(shape[:-1], dtype=torch.float32) if colvec_reduce else None
    if torch.compiler.is_compiling():
        x = PreAct.clone() if PreAct is dx else PreAct
        _gemm_dact_op(
            A, B, x, dx, postact, sums, function.value, colvec_scale, cu_seqlens_m, A_idx, dynamic_scheduler
        )  # fmt: skip
    else:
        _launch_backward(
            A, B, PreAct, dx, postact, sums, function, colvec_scale, cu_seqlens_m, A_idx, dynamic_scheduler
        )  # fmt: skip
    return (dx, postact) if sums is None else (dx, postact, sums)


def gemm_dgated(
    A: torch.Tensor,
    B: torch.Tensor,
    PreAct: torch.Tensor,
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    dx_out: Optional[torch.Tensor] = None,
    postact_out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    colvec_scale: Optional[torch.Tensor] = None,
    colvec_reduce: bool = False,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    *,
    store_postact: bool = True,
) -> Gradients:
    """`gemm_dact` with a gated activation: PreAct and dx have 2 N columns."""
    return gemm_dact(
        A, B, PreAct, GatedActivation.of(activation), dx_out, postact_out, out_dtype, postact_dtype, colvec_scale,
        colvec_reduce, cu_seqlens_m, A_idx, dynamic_scheduler, tuned, store_postact=store_postact,
    )  # fmt: skip


def gemm_dact_out(
    A: torch.Tensor,
    B: torch.Tensor,
    PreAct: torch.Tensor,
    dx_out: torch.Tensor,
    postact_out: Optional[torch.Tensor],
    activation: ActivationName = None,
    **options,
) -> Optional[torch.Tensor]:
    """`gemm_dact` into given outputs; postact is not stored if postact_out is None. Returns the reduction, if asked for."""
    stores = postact_out is not None
    results = gemm_dact(A, B, PreAct, activation, dx_out, postact_out, store_postact=stores, **options)
    return results[2] if len(results) == 3 else None


def gemm_dgated_out(
    A: torch.Tensor,
    B: torch.Tensor,
    PreAct: torch.Tensor,
    dx_out: torch.Tensor,
    postact_out: Optional[torch.Tensor],
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    **options,
) -> Optional[torch.Tensor]:
    """`gemm_dact_out` with a gated activation."""
    return gemm_dact_out(A, B, PreAct, dx_out, postact_out, GatedActivation.of(activation), **options)


class _ActTuned:
    """`gemm_act_tuned(...)` picks a configuration; `gemm_act_tuned.fn(..., config=...)` runs exactly that one."""

    def fn(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        preact_out: Optional[torch.Tensor],
        postact_out: torch.Tensor,
        C: Optional[torch.Tensor] = None,
        bias: Optional[torch.Tensor] = None,
        activation: ActivationName = None,
        cu_seqlens_m: Optional[torch.Tensor] = None,
        A_idx: Optional[torch.Tensor] = None,
        dynamic_scheduler: bool = False,
        config: Optional[GemmConfig] = None,
        concat_layout: Optional[tuple[str, ...]] = None,
    ) -> None:
        """`gemm_act` into given outputs; preact is not stored if preact_out is None."""
        function = activation_of(activation)
        shape = product_shape(A, B, A_idx)
        if preact_out is not None:
            _output_of("preact_out", preact_out, "out_dtype", None, shape, A)
        _output_of("postact_out", postact_out, "postact_dtype", None, postact_shape(function, shape), A)
        _launch_forward(
            A, B, preact_out, postact_out, C, bias, function, cu_seqlens_m, A_idx, dynamic_scheduler,
            _operand_names(concat_layout), config,
        )  # fmt: skip

    __call__ = fn


class _GatedTuned(_ActTuned):
    """The same for gated activations only."""

    def fn(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        preact_out: Optional[torch.Tensor],
        postact_out: torch.Tensor,
        C: Optional[torch.Tensor] = None,
        bias: Optional[torch.Tensor] = None,
        activation: ActivationName = GatedActivation.SWIGLU,
        cu_seqlens_m: Optional[torch.Tensor] = None,
        A_idx: Optional[torch.Tensor] = None,
        dynamic_scheduler: bool = False,
        config: Optional[GemmConfig] = None,
        concat_layout: Optional[tuple[str, ...]] = None,
    ) -> None:
        """`gemm_gated` into given outputs; preact is not stored if preact_out is None."""
        function = GatedActivation.of(activation)
        super().fn(
            A, B, preact_out, postact_out, C, bias, function, cu_seqlens_m, A_idx, dynamic_scheduler, config,
            concat_layout,
        )  # fmt: skip

    __call__ = fn


class _DactTuned:
    """`gemm_dact_tuned(...)` picks a configuration; `gemm_dact_tuned.fn(..., config=...)` runs exactly that one."""

    def fn(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        PreAct: torch.Tensor,
        dx_out: torch.Tensor,
        postact_out: Optional[torch.Tensor],
        colvec_scale: Optional[torch.Tensor] = None,
        activation: ActivationName = None,
        colvec_reduce: bool = False,
        cu_seqlens_m: Optional[torch.Tensor] = None,
        A_idx: Optional[torch.Tensor] = None,
        dynamic_scheduler: bool = False,
        config: Optional[GemmConfig] = None,
    ) -> Optional[torch.Tensor]:
        """`gemm_dact_out`."""
        function, shape = activation_of(activation), product_shape(A, B, A_idx)
        _output_of("dx_out", dx_out, "out_dtype", None, preact_shape(function, shape), A)
        if postact_out is not None:
            _output_of("postact_out", postact_out, "postact_dtype", None, shape, A)
        sums = A.new_empty(shape[:-1], dtype=torch.float32) if colvec_reduce else None
        _launch_backward(
            A, B, PreAct, dx_out, postact_out, sums, function, colvec_scale, cu_seqlens_m, A_idx, dynamic_scheduler,
            config,
        )  # fmt: skip
        return sums

    __call__ = fn


class _DgatedTuned(_DactTuned):
    """The same for gated activations only."""

    def fn(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        PreAct: torch.Tensor,
        dx_out: torch.Tensor,
        postact_out: Optional[torch.Tensor],
        colvec_scale: Optional[torch.Tensor] = None,
        activation: ActivationName = GatedActivation.SWIGLU,
        colvec_reduce: bool = False,
        cu_seqlens_m: Optional[torch.Tensor] = None,
        A_idx: Optional[torch.Tensor] = None,
        dynamic_scheduler: bool = False,
        config: Optional[GemmConfig] = None,
    ) -> Optional[torch.Tensor]:
        """`gemm_dgated_out`."""
        function = GatedActivation.of(activation)
        return super().fn(
            A, B, PreAct, dx_out, postact_out, colvec_scale, function, colvec_reduce, cu_seqlens_m, A_idx,
            dynamic_scheduler, config,
        )  # fmt: skip

    __call__ = fn


gemm_act_tuned, gemm_gated_tuned = _ActTuned(), _GatedTuned()
gemm_dact_tuned, gemm_dgated_tuned = _DactTuned(), _DgatedTuned()


# ---- what the functions share -----------------------------------------------------------------------------------------


_BY_NAME: dict[Optional[str], AnyActivation] = {f.value: f for f in (*Activation, *GatedActivation)}


def activation_of(name: ActivationName) -> AnyActivation:
    """The activation of this name, gated or not; ValueError names all of them. torch.compile can trace it: no enum is iterated."""
    if isinstance(name, (Activation, GatedActivation)):
        return name
    if (name is None or isinstance(name, str)) and name in _BY_NAME:
        return _BY_NAME[name]
    raise ValueError(f"activation is {name!r}, expected one of {', '.join(map(repr, _BY_NAME))}")


def product_shape(A: torch.Tensor, B: torch.Tensor, A_idx: Optional[torch.Tensor]) -> tuple[int, ...]:
    """The shape of A @ B, or of A[A_idx] @ B."""
    for name, tensor in (("A", A), ("B", B)):  # before anything else is, because their shapes make those of the outputs
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch.Tensor")
        if tensor.dim() not in (2, 3):
            raise ValueError(f"{name} has {tensor.dim()} dimensions {tuple(tensor.shape)}, expected 2 or 3")
    rows = (A_idx.numel(),) if isinstance(A_idx, torch.Tensor) else A.shape[:-1]
    return (*rows, B.shape[-1])


def postact_shape(function: AnyActivation, product: tuple[int, ...]) -> tuple[int, ...]:
    """Half the columns of the product if the activation is gated."""
    if not isinstance(function, GatedActivation):
        return product
    if product[-1] % 2:
        raise ValueError(f"B has N = {product[-1]} columns: {function.value} takes pairs of them, pass an even N")
    return (*product[:-1], product[-1] // 2)


def preact_shape(function: AnyActivation, product: tuple[int, ...]) -> tuple[int, ...]:
    """Of a backward pass, whose product has the shape of postact."""
    return (*product[:-1], product[-1] * (2 if isinstance(function, GatedActivation) else 1))


def as_words(name: str, tensor: torch.Tensor, function: GatedActivation) -> torch.Tensor:
    """(..., 2 N) 16-bit numbers as (..., N) 32-bit words, each a gate and an up projection."""
    if tensor.dtype not in PAIR_DTYPES:
        raise UnsupportedGemm(
            f"{name} has dtype {tensor.dtype}: the gradient of {function.value} reads pairs of 16-bit numbers",
            f"{name}.bfloat16()",
        )
    strides = [step for step, extent in zip(tensor.stride()[:-1], tensor.shape) if extent > 1]
    if tensor.stride(-1) != 1 or any(step % 2 for step in strides) or tensor.data_ptr() % 4:
        raise UnsupportedGemm(
            f"{name} with strides {tensor.stride()} at an address that is {tensor.data_ptr() % 16} mod 16 has pairs of gate "
            f"and up projection that are no aligned 32-bit words",
            f"contiguous columns and even strides, as of {name}.contiguous()",
        )
    extents, steps = (*tensor.shape[:-1], tensor.shape[-1] // 2), (*(s // 2 for s in tensor.stride()[:-1]), 1)
    if tensor.numel() == 0:
        return tensor.new_empty(extents, dtype=torch.float32)
    flat = tensor.as_strided((1, 2), (2, 1))
    return flat.view(torch.float32).as_strided(extents, steps)


def _output_of(
    name: str,
    given: Optional[torch.Tensor],
    dtype_name: str,
    dtype: Optional[torch.dtype],
    shape: tuple[int, ...],
    A: torch.Tensor,
) -> torch.Tensor:
    """The given output, checked, or a new one. name, dtype_name: of the arguments."""
    if given is None:
        return A.new_empty(shape, dtype=dtype or _default_dtype(A))
    if not isinstance(given, torch.Tensor):
        raise TypeError(f"{name} is a {type(given).__name__}, expected a torch.Tensor")
    if tuple(given.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(given.shape)}, expected {shape}")
    if dtype is not None and given.dtype != dtype:
        raise ValueError(f"{name} has dtype {given.dtype} and {dtype_name} is {dtype}: pass one of them")
    return given


def _operand_names(concat_layout: Optional[tuple[str, ...]]) -> Optional[tuple[str, ...]]:
    """`concat_layout` in a fixed order, without outputs."""
    names = concat_names(concat_layout)
    if names and "out" in names:
        raise UnsupportedGemm(
            "concat_layout names out, but a GEMM with an activation stores preact and postact in logical order",
            'names out of "A", "B", "C", "bias"',
        )
    return names


# ---- launches ---------------------------------------------------------------------------------------------------------


def forward_request(
    A: torch.Tensor,
    B: torch.Tensor,
    preact: Optional[torch.Tensor],
    postact: torch.Tensor,
    function: AnyActivation,
    **options: Any,
) -> GemmRequest:
    """D is preact and postact a further output, or D is postact alone. options: further fields of the request."""
    is_gated = isinstance(function, GatedActivation)
    port = Port("postact_out", PortKind.TILE_OUTPUT, None if preact is None else postact, is_halved=is_gated)
    mixin = _FORWARD + ("Gate" if is_gated else "Activate")
    term = Term(mixin, (port,), (("activation", function),), swapped=None if is_gated else mixin)
    out, halves_out = (postact, is_gated) if preact is None else (preact, False)
    return GemmRequest(A, B, out, epilogue=(term,), halves_out=halves_out, **options)


def _launch_forward(
    A: torch.Tensor,
    B: torch.Tensor,
    preact: Optional[torch.Tensor],
    postact: torch.Tensor,
    C: Optional[torch.Tensor],
    bias: Optional[torch.Tensor],
    function: AnyActivation,
    cu_seqlens_m: Optional[torch.Tensor],
    A_idx: Optional[torch.Tensor],
    dynamic: bool,
    concat_layout: Optional[tuple[str, ...]],
    config: Optional[GemmConfig] = None,
    leading: tuple[Term, ...] = (),
) -> None:
    """As `forward_request`. leading: mixins before C."""
    launch_with_epilogue(
        forward_request(
            A, B, preact, postact, function, C=C, bias=bias, cu_seqlens_m=cu_seqlens_m, A_idx=A_idx, dynamic=dynamic,
            concat_layout=concat_layout, config=config, leading=leading,
        )
    )  # fmt: skip


# torch.compile sees one opaque op with declared mutations; eager calls never pass through the dispatcher.
@torch.library.custom_op("quack::gemm_act_out", mutates_args={"preact", "postact"})
def _gemm_act_op(
    A: torch.Tensor,
    B: torch.Tensor,
    preact: Optional[torch.Tensor],
    postact: torch.Tensor,
    C: Optional[torch.Tensor],
    bias: Optional[torch.Tensor],
    activation: Optional[str],
    cu_seqlens_m: Optional[torch.Tensor],
    A_idx: Optional[torch.Tensor],
    dynamic: bool,
    concat_layout: str,
) -> None:
    function, names = activation_of(activation), _split_names(concat_layout)
    _launch_forward(A, B, preact, postact, C, bias, function, cu_seqlens_m, A_idx, dynamic, names)


_gemm_act_op.register_fake(writes_only)


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
    """C is x and D dx; of gated activations both as 32-bit words, so that they have the shape of the product."""
    statics: tuple[tuple[str, object], ...] = (("activation", function),)
    mixin = _BACKWARD + "ActivateBackward"
    if isinstance(function, GatedActivation):
        words = as_words("PreAct", x, function), as_words("dx_out", dx, function)
        statics += (("pairs", DTYPE_OF_TORCH[x.dtype]), ("gradient_pairs", DTYPE_OF_TORCH[dx.dtype]))
        mixin = _BACKWARD + "GateBackward"
        x, dx = words
    ports = (
        Port("postact_out", PortKind.TILE_OUTPUT, postact),
        Port("colvec_scale", PortKind.COL_VECTOR, scale),
        Port("colvec_reduce", PortKind.ROW_PARTIALS, Allocated.PARTIALS if reduces else None),
    )
    is_pointwise = scale is None and not reduces
    term = Term(mixin, ports, statics, swapped=mixin if is_pointwise else None, uses_c=True)
    return GemmRequest(A, B, dx, x, epilogue=(term,), **options)


def _launch_backward(
    A: torch.Tensor,
    B: torch.Tensor,
    x: torch.Tensor,
    dx: torch.Tensor,
    postact: Optional[torch.Tensor],
    sums: Optional[torch.Tensor],
    function: AnyActivation,
    scale: Optional[torch.Tensor],
    cu_seqlens_m: Optional[torch.Tensor],
    A_idx: Optional[torch.Tensor],
    dynamic: bool,
    config: Optional[GemmConfig] = None,
) -> None:
    """sums: where the reduction goes."""
    shape = preact_shape(function, product_shape(A, B, A_idx))
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"PreAct is a {type(x).__name__}, expected a torch.Tensor")
    if tuple(x.shape) != shape:
        raise ValueError(f"PreAct has shape {tuple(x.shape)}, expected {shape}")
    partials = launch_with_epilogue(
        backward_request(
            A, B, x, dx, postact, function, scale, sums is not None, cu_seqlens_m=cu_seqlens_m, A_idx=A_idx,
            dynamic=dynamic, config=config,
        )
    )  # fmt: skip
    if sums is not None and 0 in shape:
        sums.zero_()
    elif sums is not None:
        torch.sum(partials["colvec_reduce"], -1, out=sums)


@torch.library.custom_op("quack::gemm_dact_out", mutates_args={"dx", "postact", "sums"})
def _gemm_dact_op(
    A: torch.Tensor,
    B: torch.Tensor,
    x: torch.Tensor,
    dx: torch.Tensor,
    postact: Optional[torch.Tensor],
    sums: Optional[torch.Tensor],
    activation: Optional[str],
    scale: Optional[torch.Tensor],
    cu_seqlens_m: Optional[torch.Tensor],
    A_idx: Optional[torch.Tensor],
    dynamic: bool,
) -> None:
    _launch_backward(A, B, x, dx, postact, sums, activation_of(activation), scale, cu_seqlens_m, A_idx, dynamic)


_gemm_dact_op.register_fake(writes_only)


# ---- references -------------------------------------------------------------------------------------------------------


def product_ref(
    A: torch.Tensor, B: torch.Tensor, cu_seqlens_m: Optional[torch.Tensor] = None, A_idx: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """A @ B in fp32, or in fp64 if that is what they are; group by group with cu_seqlens_m."""
    dtype = torch.promote_types(A.dtype, torch.float32) if A.dtype.itemsize > 1 else torch.float32
    A, B = A.to(dtype), B.to(dtype)
    if A_idx is not None:
        A = A[A_idx.long()]
    if cu_seqlens_m is None:
        return A @ B
    bounds = cu_seqlens_m.tolist()
    groups = [A[first:last] @ B[g] for g, (first, last) in enumerate(zip(bounds, bounds[1:]))]
    return torch.cat(groups) if groups else A.new_zeros((0, B.shape[-1]))


def apply_ref(function: AnyActivation, preact: torch.Tensor) -> torch.Tensor:
    """postact of preact (..., N)."""
    if isinstance(function, GatedActivation):
        return reference(function)(preact[..., 0::2], preact[..., 1::2])
    return reference(function)(preact)


def _default_dtype(A: torch.Tensor) -> torch.dtype:
    return torch.bfloat16 if A.dtype.itemsize == 1 else A.dtype


def gemm_act_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    activation: ActivationName = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    store_preact: bool = True,
    concat_layout: Optional[tuple[str, ...]] = None,
) -> Outputs:
    """`gemm_act` in plain torch, in fp32 (float64 if A is): the oracle."""
    function, names = activation_of(activation), _operand_names(concat_layout) or ()
    A, B = (interleaved(name, t) if name in names else t for name, t in (("A", A), ("B", B)))
    preact = product_ref(A, B, cu_seqlens_m, A_idx)
    if C is not None:
        preact = preact + (interleaved("C", C) if "C" in names else C).to(preact.dtype)
    if bias is not None:
        row = (interleaved("bias", bias) if "bias" in names else bias).to(preact.dtype)
        if cu_seqlens_m is not None and row.dim() == 2:
            row = row.repeat_interleave(cu_seqlens_m.diff().long(), dim=0)
        elif row.dim() == 2:
            row = row.unsqueeze(-2)
        preact = preact + row
    postact = apply_ref(function, preact).to(postact_dtype or _default_dtype(A))
    return preact.to(out_dtype or _default_dtype(A)) if store_preact else None, postact


def gemm_gated_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    **options,
) -> Outputs:
    """`gemm_gated` in plain torch."""
    return gemm_act_ref(A, B, C, bias, GatedActivation.of(activation), **options)


def gemm_dact_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    PreAct: torch.Tensor,
    activation: ActivationName = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    colvec_scale: Optional[torch.Tensor] = None,
    colvec_reduce: bool = False,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
) -> Gradients:
    """`gemm_dact` in plain torch, in fp32 (float64 if A is), with the gradient that autograd gives: the oracle."""
    function = activation_of(activation)
    gradient = product_ref(A, B, cu_seqlens_m, A_idx)
    scale = 1.0 if colvec_scale is None else colvec_scale.to(gradient.dtype).unsqueeze(-1)
    with torch.enable_grad():
        x = PreAct.detach().to(gradient.dtype).requires_grad_()
        values = apply_ref(function, x)
        (dx,) = torch.autograd.grad(values, x, gradient * scale)
    postact = (values.detach() * scale).to(postact_dtype or _default_dtype(A))
    dx = dx.to(out_dtype or _default_dtype(A))
    return (dx, postact, (gradient * values.detach()).sum(-1)) if colvec_reduce else (dx, postact)


def gemm_dgated_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    PreAct: torch.Tensor,
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    **options,
) -> Gradients:
    """`gemm_dgated` in plain torch."""
    return gemm_dact_ref(A, B, PreAct, GatedActivation.of(activation), **options)
