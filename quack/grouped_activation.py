"""`gemm_act`, `gemm_gated`, `gemm_dact` and `gemm_dgated` of a list of problems, each with an M, N, K and strides of its own, in one
launch and without a copy: the experts of a layer whose tokens lie anywhere.

Lists hold one tensor for each problem, as in `gemm_grouped`; what they mean is as in `gemm_activation`, whose argument X is X_list
here. dynamic_scheduler, config, split_k and split_k_mode are as in `gemm_grouped`. `grouped_plan(..., of=gemm_grouped_act)` prepares
calls that repeat.
"""

from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

import torch

from .activation import GatedActivation
from .gemm_activation import gemm_act_ref, gemm_dact_ref
from .gemm_backward import BACKWARD, Backward
from .gemm_config import GemmConfig
from .gemm_forward import FORWARD, Forward
from .gemm_interface import COMPILING, writes_only
from .gemm_operands import ActivationName, activation_of, default_dtype, postact_shape, preact_shape
from .grouped import PLANNED
from .reduction import Reduction
from .runtime.grouped_call import GroupedCall, LaunchOptions, Tensors, grouped_call, with_scale_lists
from .runtime.grouped_partials import Totals
from .runtime.grouped_plan import run_once
from .split_k import SplitKMode

Outputs = tuple[Optional[list[torch.Tensor]], list[torch.Tensor]]
Gradients = tuple[Optional[list[torch.Tensor]], ...]


def gemm_grouped_act(
    A_list: Tensors,
    B_list: Tensors,
    C_list: Optional[Tensors] = None,
    bias_list: Optional[Tensors] = None,
    activation: ActivationName = None,
    preact_out_list: Optional[Tensors] = None,
    postact_out_list: Optional[Tensors] = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    store_preact: bool = True,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    *,
    config: Optional[GemmConfig] = None,
    split_k: Optional[int] = None,
    split_k_mode: SplitKMode = SplitKMode.SERIAL,
    A_scale_list: Optional[Tensors] = None,
    B_scale_list: Optional[Tensors] = None,
    _run: Callable[[GroupedCall], Any] = run_once,
) -> Outputs:
    """preact_i = A_i @ B_i + C_i + bias_i, postact_i = activation(preact_i). Returns (preact_list or None, postact_list).

    A_i (M_i, K_i), B_i (K_i, N_i), C_i and preact_i (M_i, N_i), bias_i (N_i,), postact_i (M_i, N_i), or (M_i, N_i / 2) of a gated
    activation; any extent may be 0. `preact_out_list[i] is C_list[i]` works in place. store_preact=False does not write preact.
    A_scale_list, B_scale_list: as in `gemm_grouped`.
    """
    if torch.compiler.is_compiling() and (config is not None or _run is not run_once):  # the op has no place for them
        eager = torch.compiler.disable(gemm_grouped_act, reason=COMPILING)
        return eager(
            A_list, B_list, C_list, bias_list, activation, preact_out_list, postact_out_list, out_dtype, postact_dtype,
            store_preact, dynamic_scheduler, config=config, split_k=split_k, split_k_mode=split_k_mode,
            A_scale_list=A_scale_list, B_scale_list=B_scale_list, _run=_run,
        )  # fmt: skip
    function = activation_of(activation)
    if torch.compiler.is_compiling():
        dtypes = (out_dtype, postact_dtype)
        launched = (dynamic_scheduler, split_k, split_k_mode.value, list(A_scale_list or ()), list(B_scale_list or ()))
        call = (C_list, bias_list, function.value, *launched)
        return _compiled_act(A_list, B_list, preact_out_list, postact_out_list, store_preact, dtypes, call)
    if preact_out_list is not None and not store_preact:
        raise ValueError("preact_out_list is given and store_preact is False: pass one of them")
    given = {
        "A_list": ("A", A_list),
        "B_list": ("B", B_list),
        "C_list": ("C", C_list),
        "bias_list": ("bias", bias_list),
        "preact_out_list": ("out", preact_out_list),
        "postact_out_list": ("postact_out", postact_out_list),
    }
    given = with_scale_lists(given, A_scale_list, B_scale_list)
    shared: dict[str, Any] = {"A_idx": None, "cu_seqlens_m": None}
    if not store_preact:
        del given["preact_out_list"]
        given["postact_out_list"] = ("out", postact_out_list)
        shared["postact_out"] = None
    form = Forward(function, store_preact, out_dtype, postact_dtype)
    launch = LaunchOptions(config, dynamic_scheduler or None, split_k, split_k_mode)
    results = ("out", "postact_out") if store_preact else (None, "out")
    return _run(grouped_call(FORWARD, form, given, shared, launch, results, vectors=("bias_list",)))


def gemm_grouped_gated(
    A_list: Tensors,
    B_list: Tensors,
    C_list: Optional[Tensors] = None,
    bias_list: Optional[Tensors] = None,
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    *arguments: Any,
    **options: Any,
) -> Outputs:
    """`gemm_grouped_act` with a gated activation; further arguments as there."""
    function = GatedActivation.of(activation)
    return gemm_grouped_act(A_list, B_list, C_list, bias_list, function, *arguments, **options)


def gemm_grouped_dact(
    A_list: Tensors,
    B_list: Tensors,
    PreAct_list: Tensors,
    activation: ActivationName = None,
    dx_out_list: Optional[Tensors] = None,
    postact_out_list: Optional[Tensors] = None,
    out_dtype: Optional[torch.dtype] = None,
    postact_dtype: Optional[torch.dtype] = None,
    colvec_scale_list: Optional[Tensors] = None,
    colvec_reduce: bool = False,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    *,
    store_postact: bool = True,
    config: Optional[GemmConfig] = None,
    split_k: Optional[int] = None,
    split_k_mode: SplitKMode = SplitKMode.SERIAL,
    A_scale_list: Optional[Tensors] = None,
    B_scale_list: Optional[Tensors] = None,
    _run: Callable[[GroupedCall], Any] = run_once,
) -> Gradients:
    """dx_i = activation'(PreAct_i) * (A_i @ B_i), postact_i = activation(PreAct_i). Returns (dx_list, postact_list or None), and the
    list of reductions if asked for.

    A_i (M_i, K_i), B_i (K_i, N_i), PreAct_i and dx_i (M_i, N_i), or (M_i, 2 N_i) of a gated activation, postact_i (M_i, N_i),
    colvec_scale_i (M_i,); the reductions are fp32 (M_i,), views of one tensor, and finished by one further launch for problems
    with about as many columns. dx_out_list[i] may be PreAct_list[i] (in place).
    A_scale_list, B_scale_list: as in `gemm_grouped`.
    """
    if torch.compiler.is_compiling() and (config is not None or _run is not run_once):  # the op has no place for them
        eager = torch.compiler.disable(gemm_grouped_dact, reason=COMPILING)
        return eager(
            A_list, B_list, PreAct_list, activation, dx_out_list, postact_out_list, out_dtype, postact_dtype,
            colvec_scale_list, colvec_reduce, dynamic_scheduler, store_postact=store_postact, config=config,
            split_k=split_k, split_k_mode=split_k_mode, A_scale_list=A_scale_list, B_scale_list=B_scale_list, _run=_run,
        )  # fmt: skip
    function = activation_of(activation)
    if torch.compiler.is_compiling():
        postacts = postact_out_list if store_postact else ()
        dtypes = (out_dtype, postact_dtype)
        launched = (dynamic_scheduler, split_k, split_k_mode.value, list(A_scale_list or ()), list(B_scale_list or ()))
        call = (colvec_scale_list, function, *launched)
        return _compiled_dact(A_list, B_list, PreAct_list, dx_out_list, postacts, colvec_reduce, dtypes, call)
    if postact_out_list is not None and not store_postact:
        raise ValueError("postact_out_list is given and store_postact is False: pass one of them")
    if PreAct_list is None:
        raise TypeError("PreAct_list is None, expected a list of tensors")
    given = {
        "A_list": ("A", A_list),
        "B_list": ("B", B_list),
        "PreAct_list": ("C", PreAct_list),
        "dx_out_list": ("out", dx_out_list),
        "postact_out_list": ("postact_out", postact_out_list),
        "colvec_scale_list": ("colvec_scale", colvec_scale_list),
    }
    given = with_scale_lists(given, A_scale_list, B_scale_list)
    # The row sums are finished for all problems at once, so no problem has some of its own.
    shared: dict[str, Any] = {"A_idx": None, "cu_seqlens_m": None, "sums": ()}
    form = Backward(function, store_postact, colvec_reduce, out_dtype, postact_dtype)
    launch = LaunchOptions(config, dynamic_scheduler or None, split_k, split_k_mode)
    results: tuple[Optional[str], ...] = ("out", "postact_out" if store_postact else None)
    totals: tuple[Totals, ...] = ()
    if colvec_reduce:
        results, totals = (*results, REDUCTION), (Totals(REDUCTION, Reduction.SUM),)
    return _run(grouped_call(BACKWARD, form, given, shared, launch, results, totals, ("colvec_scale_list",)))


REDUCTION = "colvec_reduce"  # the port, as `gemm_backward` calls it


def gemm_grouped_dgated(
    A_list: Tensors,
    B_list: Tensors,
    PreAct_list: Tensors,
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    *arguments: Any,
    **options: Any,
) -> Gradients:
    """`gemm_grouped_dact` with a gated activation: PreAct_i and dx_i have 2 N_i columns. Further arguments as there."""
    return gemm_grouped_dact(A_list, B_list, PreAct_list, GatedActivation.of(activation), *arguments, **options)


PLANNED.update((gemm_grouped_act, gemm_grouped_gated, gemm_grouped_dact, gemm_grouped_dgated))


# ---- torch.compile: one opaque op each that mutates the outputs ----------------------------------------------------------


Dtypes = tuple[Optional[torch.dtype], Optional[torch.dtype]]


def _compiled_act(
    A_list: Tensors,
    B_list: Tensors,
    preact_out_list: Optional[Tensors],
    postact_out_list: Optional[Tensors],
    store_preact: bool,
    dtypes: Dtypes,
    call: tuple,
) -> Outputs:
    """call: C_list, bias_list, the activation's name, and how to launch."""
    C_list, bias_list, activation, *launch = call
    function, products = activation_of(activation), _products(A_list, B_list)
    preact: list[torch.Tensor] = []
    if store_preact:
        preact = _outputs(preact_out_list, A_list, products, dtypes[0])
    postact = _outputs(postact_out_list, A_list, [postact_shape(function, shape) for shape in products], dtypes[1])
    inputs = [c.clone() if preact and c is preact[i] else c for i, c in enumerate(C_list or ())]  # see `gemm_forward`
    _act_op(
        list(A_list), list(B_list), inputs, list(bias_list or ()), preact, postact, activation, store_preact, *launch
    )
    return preact if store_preact else None, postact


def _compiled_dact(
    A_list: Tensors,
    B_list: Tensors,
    PreAct_list: Tensors,
    dx_out_list: Optional[Tensors],
    postact_out_list: Optional[Tensors],
    reduces: bool,
    dtypes: Dtypes,
    call: tuple,
) -> Gradients:
    """postact_out_list: () if it is not stored. call: colvec_scale_list, the activation, and how to launch."""
    colvec_scale_list, function, *launch = call
    products = _products(A_list, B_list)
    dx = _outputs(dx_out_list, A_list, [preact_shape(function, shape) for shape in products], dtypes[0])
    stores = postact_out_list is None or len(postact_out_list) > 0
    postact = _outputs(postact_out_list, A_list, products, dtypes[1]) if stores else []
    rows = [a.shape[0] for a in A_list]
    sums = A_list[0].new_empty(sum(rows), dtype=torch.float32) if reduces and rows else None
    inputs = [x.clone() if x is d else x for x, d in zip(PreAct_list, dx)]
    _dact_op(
        list(A_list), list(B_list), inputs, dx, postact, list(colvec_scale_list or ()), sums, function.value, *launch
    )
    results = (dx, postact if stores else None)
    return (*results, [] if sums is None else list(sums.split(rows))) if reduces else results


def _products(A_list: Tensors, B_list: Tensors) -> list[tuple[int, int]]:
    return [(a.shape[0], b.shape[1]) for a, b in zip(A_list, B_list)]


def _outputs(
    given: Optional[Tensors], A_list: Tensors, shapes: Sequence[tuple[int, ...]], dtype: Optional[torch.dtype]
) -> list[torch.Tensor]:
    """Those given, or new ones."""
    if given is not None:
        return list(given)
    return [a.new_empty(shape, dtype=dtype or default_dtype(a)) for a, shape in zip(A_list, shapes)]


@torch.library.custom_op("quack::gemm_grouped_act_out", mutates_args={"preact_list", "postact_list"})
def _act_op(
    A_list: list[torch.Tensor],
    B_list: list[torch.Tensor],
    C_list: list[torch.Tensor],
    bias_list: list[torch.Tensor],
    preact_list: list[torch.Tensor],
    postact_list: list[torch.Tensor],
    activation: Optional[str],
    store_preact: bool,
    dynamic: bool,
    split_k: Optional[int],
    split_k_mode: str,
    A_scale_list: list[torch.Tensor],
    B_scale_list: list[torch.Tensor],
) -> None:
    gemm_grouped_act(
        A_list, B_list, C_list or None, bias_list or None, activation, preact_list if store_preact else None,
        postact_list, store_preact=store_preact, dynamic_scheduler=dynamic, split_k=split_k,
        split_k_mode=SplitKMode(split_k_mode), A_scale_list=A_scale_list or None, B_scale_list=B_scale_list or None,
    )  # fmt: skip


@torch.library.custom_op("quack::gemm_grouped_dact_out", mutates_args={"dx_list", "postact_list", "sums"})
def _dact_op(
    A_list: list[torch.Tensor],
    B_list: list[torch.Tensor],
    PreAct_list: list[torch.Tensor],
    dx_list: list[torch.Tensor],
    postact_list: list[torch.Tensor],
    colvec_scale_list: list[torch.Tensor],
    sums: Optional[torch.Tensor],
    activation: Optional[str],
    dynamic: bool,
    split_k: Optional[int],
    split_k_mode: str,
    A_scale_list: list[torch.Tensor],
    B_scale_list: list[torch.Tensor],
) -> None:
    results = gemm_grouped_dact(
        A_list, B_list, PreAct_list, activation, dx_list, postact_list or None,
        colvec_scale_list=colvec_scale_list or None, colvec_reduce=sums is not None, dynamic_scheduler=dynamic,
        store_postact=bool(postact_list), split_k=split_k, split_k_mode=SplitKMode(split_k_mode),
        A_scale_list=A_scale_list or None, B_scale_list=B_scale_list or None,
    )  # fmt: skip
    if sums is not None and results[2] is not None:
        torch.cat(results[2], out=sums)


_act_op.register_fake(writes_only)
_dact_op.register_fake(writes_only)


# ---- references ---------------------------------------------------------------------------------------------------------


def gemm_grouped_act_ref(
    A_list: Tensors,
    B_list: Tensors,
    C_list: Optional[Tensors] = None,
    bias_list: Optional[Tensors] = None,
    activation: ActivationName = None,
    **options: Any,
) -> Outputs:
    """`gemm_grouped_act` in plain torch: the oracle. options: as of `gemm_act_ref`."""
    preact, postact = [], []
    for i, (A, B) in enumerate(zip(A_list, B_list, strict=True)):
        C, bias = (None if lists is None else lists[i] for lists in (C_list, bias_list))
        before, after = gemm_act_ref(A, B, C, bias, activation, **options)
        preact += [] if before is None else [before]
        postact.append(after)
    return preact if options.get("store_preact", True) else None, postact


def gemm_grouped_gated_ref(
    A_list: Tensors,
    B_list: Tensors,
    C_list: Optional[Tensors] = None,
    bias_list: Optional[Tensors] = None,
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    **options: Any,
) -> Outputs:
    """`gemm_grouped_gated` in plain torch."""
    return gemm_grouped_act_ref(A_list, B_list, C_list, bias_list, GatedActivation.of(activation), **options)


def gemm_grouped_dact_ref(
    A_list: Tensors,
    B_list: Tensors,
    PreAct_list: Tensors,
    activation: ActivationName = None,
    colvec_scale_list: Optional[Tensors] = None,
    **options: Any,
) -> Gradients:
    """`gemm_grouped_dact` in plain torch: the oracle. options: as of `gemm_dact_ref`."""
    found = [
        gemm_dact_ref(
            A, B, x, activation, colvec_scale=None if colvec_scale_list is None else colvec_scale_list[i], **options
        )
        for i, (A, B, x) in enumerate(zip(A_list, B_list, PreAct_list, strict=True))
    ]
    count = 3 if options.get("colvec_reduce") else 2
    return tuple([list(family) for family in zip(*found)]) if found else tuple([] for _ in range(count))


def gemm_grouped_dgated_ref(
    A_list: Tensors,
    B_list: Tensors,
    PreAct_list: Tensors,
    activation: Union[str, GatedActivation] = GatedActivation.SWIGLU,
    colvec_scale_list: Optional[Tensors] = None,
    **options: Any,
) -> Gradients:
    """`gemm_grouped_dgated` in plain torch."""
    function = GatedActivation.of(activation)
    return gemm_grouped_dact_ref(A_list, B_list, PreAct_list, function, colvec_scale_list, **options)
