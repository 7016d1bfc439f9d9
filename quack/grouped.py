"""Grouped GEMMs: a list of problems, each with an M, N, K and strides of its own, in one launch and without a copy."""

from collections.abc import Callable
from typing import Any, Optional

import torch

from .gemm_config import GemmConfig
from .gemm_interface import (
    COMPILING,
    LINEAR,
    Scalar,
    _output,
    _split_scalar,
    add_output,
    gemm_ref,
    rounding_seed,
    rounding_term,
    writes_only,
)
from .gemm_operands import default_dtype
from .gemm_port import PortKind
from .runtime.grouped_call import GroupedCall, LaunchOptions, Tensors, grouped_call, with_scale_lists
from .runtime.grouped_plan import GroupedPlan, run_once
from .runtime.user_epilogue import user_call
from .split_k import SplitKMode

NUMBERS = (PortKind.SCALAR, PortKind.INTEGER)
VECTORS = (PortKind.ROW_VECTOR, PortKind.COL_VECTOR)


def gemm_grouped(
    A_list: Tensors,
    B_list: Tensors,
    out_list: Optional[Tensors] = None,
    alpha: Scalar = 1.0,
    out_dtype: Optional[torch.dtype] = None,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    *,
    C_list: Optional[Tensors] = None,
    bias_list: Optional[Tensors] = None,
    beta: Scalar = 1.0,
    fast_accum: bool = False,
    config: Optional[GemmConfig] = None,
    epilogue: Optional[Any] = None,
    split_k: Optional[int] = None,
    split_k_mode: SplitKMode = SplitKMode.SERIAL,
    rounding_mode: Optional[int] = None,
    sr_seed: int = 0,
    A_scale_list: Optional[Tensors] = None,
    B_scale_list: Optional[Tensors] = None,
    _run: Callable[[GroupedCall], Any] = run_once,
) -> Any:
    """out_i = alpha * A_i @ B_i + beta * C_i + bias_i for every i. Returns the outputs, allocated if not given.

    Shapes: A_i (M_i, K_i), B_i (K_i, N_i), C_i and out_i (M_i, N_i), bias_i (N_i,); any extent may be 0. Dtypes, strides
    and errors as of `gemm`; alpha and beta are shared. Nothing is padded or packed: the kernel reads a device table of
    addresses. Problems whose majors or dtypes differ run in a launch for each such kind. out_list[i] may be C_list[i]
    (in place), and outs may be disjoint column slices of one matrix; any other overlap is an error.

    dynamic_scheduler: draw tiles from a counter; without it that is done where the K_i differ. config: run exactly this one.
    split_k, split_k_mode: as of `gemm`, the same number of parts for all problems; None is 1.
    rounding_mode, sr_seed: as of `gemm`; the random bits of problem i are those of matrix i of a batch.
    A_scale_list, B_scale_list: of block-scaled A_i and B_i, as in `gemm_blockscaled`; their K_i is not 0.
    The first call with new addresses writes the table; see `grouped_plan` for calls that repeat.
    epilogue: as in `gemm`. A port with a tensor (vector, tile) holds a list, one tensor for each problem; numbers are shared.
    With extra outputs the result is (out_list, *lists), whose tensors are views of one allocation where the call makes them.
    """
    if torch.compiler.is_compiling():
        if epilogue is not None or config is not None or _run is not run_once:  # the op has no place for them
            eager = torch.compiler.disable(gemm_grouped, reason=COMPILING)
            return eager(
                A_list, B_list, out_list, alpha, out_dtype, dynamic_scheduler, C_list=C_list, bias_list=bias_list,
                beta=beta, fast_accum=fast_accum, config=config, epilogue=epilogue, split_k=split_k,
                split_k_mode=split_k_mode, rounding_mode=rounding_mode, sr_seed=sr_seed, A_scale_list=A_scale_list,
                B_scale_list=B_scale_list, _run=_run,
            )  # fmt: skip
        outs = [_output(a, b, out_dtype) for a, b in zip(A_list, B_list)] if out_list is None else list(out_list)
        numbers = (*_split_scalar(alpha), *_split_scalar(beta), fast_accum, dynamic_scheduler)
        split = (split_k, split_k_mode.value)
        _grouped_op(
            list(A_list), list(B_list), outs, list(C_list or ()), list(bias_list or ()), *numbers, *split,
            int(rounding_mode or 0), sr_seed, list(A_scale_list or ()), list(B_scale_list or ()),
        )  # fmt: skip
        return outs
    launch = LaunchOptions(config, dynamic_scheduler or None, split_k, split_k_mode)
    given = {
        "A_list": ("A", A_list),
        "B_list": ("B", B_list),
        "out_list": ("out", out_list),
        "C_list": ("C", C_list),
        "bias_list": ("bias", bias_list),
    }
    given = with_scale_lists(given, A_scale_list, B_scale_list)
    seed = None
    for i, A in enumerate(A_list if rounding_mode else ()):
        out = A.new_empty(0, dtype=out_dtype or default_dtype(A)) if out_list is None else out_list[i]
        seed = rounding_seed(rounding_mode, sr_seed, out)
    shared: dict[str, Any] = {"alpha": alpha, "beta": beta}
    options = (out_dtype, fast_accum, None, False, None, None, None)
    if epilogue is None:
        own = shared | {"sr_seed": seed}
        return _run(grouped_call(LINEAR, options, given, own, launch, "out", vectors=("bias_list",)))
    call = user_call({}, epilogue, None, () if seed is None else (rounding_term(seed),), add_output)
    vectors = ["bias_list"]
    for name, value in call.operands.items():
        kind = call.ports.get(name, PortKind.INTEGER)
        if kind in NUMBERS or value is None or value is True:
            shared[name] = value
        else:
            given[name] = (name, value)
            vectors += [name] if kind in VECTORS else []
    results = ("out", *call.outputs) if call.outputs else "out"
    return _run(grouped_call(call.form, options, given, shared, launch, results, vectors=tuple(vectors)))


def gemm_grouped_out(A_list: Tensors, B_list: Tensors, out_list: Tensors, **options: Any) -> None:
    """`gemm_grouped` into given outputs."""
    gemm_grouped(A_list, B_list, out_list, **options)


def gemm_grouped_ref(
    A_list: Tensors,
    B_list: Tensors,
    out_list: Optional[Tensors] = None,
    alpha: Scalar = 1.0,
    out_dtype: Optional[torch.dtype] = None,
    *,
    C_list: Optional[Tensors] = None,
    bias_list: Optional[Tensors] = None,
    beta: Scalar = 1.0,
) -> list[torch.Tensor]:
    """`gemm_grouped` in plain torch, computed in fp32: the oracle."""
    outs = []
    for i, (A, B) in enumerate(zip(A_list, B_list, strict=True)):
        bias = None if bias_list is None else bias_list[i]
        result = gemm_ref(A, B, None, bias, alpha, torch.float32)
        if C_list is not None:
            result = result + beta * C_list[i].float()
        dtype = out_dtype or (torch.bfloat16 if A.dtype.itemsize == 1 else A.dtype)
        outs.append(result.to(dtype) if out_list is None else out_list[i].copy_(result))
    return outs


def grouped_plan(
    A_list: Tensors, B_list: Tensors, *arguments: Any, of: Any = gemm_grouped, **options: Any
) -> GroupedPlan:
    """`of(A_list, B_list, *arguments, **options)` prepared for calls that repeat: a `GroupedPlan`. Launches nothing yet.

    of: `gemm_grouped`, `gemm_grouped_act`, `gemm_grouped_gated`, `gemm_grouped_dact`, `gemm_grouped_dgated` or `gemm_grouped_reduce`.
    """
    if of not in PLANNED:
        names = ", ".join(sorted(function.__name__ for function in PLANNED))
        raise TypeError(f"of is {of!r}, expected one of {names}")
    return of(A_list, B_list, *arguments, **options, _run=GroupedPlan)


PLANNED: set[Callable[..., Any]] = {gemm_grouped}  # what `grouped_plan` can prepare


# torch.compile sees one opaque op that mutates the outputs.
@torch.library.custom_op("quack::gemm_grouped_out", mutates_args={"out_list"})
def _grouped_op(
    A_list: list[torch.Tensor],
    B_list: list[torch.Tensor],
    out_list: list[torch.Tensor],
    C_list: list[torch.Tensor],
    bias_list: list[torch.Tensor],
    alpha: float,
    alpha_tensor: Optional[torch.Tensor],
    beta: float,
    beta_tensor: Optional[torch.Tensor],
    fast_accum: bool,
    dynamic: bool,
    split_k: Optional[int],
    split_k_mode: str,
    rounding_mode: int,
    sr_seed: int,
    A_scale_list: list[torch.Tensor],
    B_scale_list: list[torch.Tensor],
) -> None:
    gemm_grouped(
        A_list,
        B_list,
        out_list,
        alpha if alpha_tensor is None else alpha_tensor,
        dynamic_scheduler=dynamic,
        C_list=C_list or None,
        bias_list=bias_list or None,
        beta=beta if beta_tensor is None else beta_tensor,
        fast_accum=fast_accum,
        split_k=split_k,
        split_k_mode=SplitKMode(split_k_mode),
        rounding_mode=rounding_mode,
        sr_seed=sr_seed,
        A_scale_list=A_scale_list or None,
        B_scale_list=B_scale_list or None,
    )


_grouped_op.register_fake(writes_only)
