"""`gemm_symmetric`: products whose result equals its transpose, such as A @ A.mT, for half the work."""

from typing import Optional

import torch

from .gemm_config import GemmConfig
from .gemm_interface import (
    Scalar,
    _check_out_dtype,
    _output,
    _split_scalar,
    add_output,
    gemm_add_ref,
    writes_only,
)
from .heuristics import symmetric as heuristics
from .runtime.call import Form, Operands, launch
from .runtime.device import device_of
from .runtime.plan import GemmRequest, describe_request
from .runtime.symmetric import is_transpose, prepare_symmetric, symmetric_spec


def _request(
    operands: Operands,
    out_dtype: Optional[torch.dtype],
    same_start: bool,
    config: Optional[GemmConfig],
    dynamic: bool,
) -> GemmRequest:
    return GemmRequest(**operands, config=config, dynamic=dynamic)


_FORM = Form(_request, add_output, prepare_symmetric)


def gemm_symmetric(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    dynamic_scheduler: bool = False,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    *,
    config: Optional[GemmConfig] = None,
) -> torch.Tensor:
    """out = alpha * A @ B + beta * C, where A @ B and C are symmetric. Returns `out`, allocated if not given.

    Shapes: A (M, K) or (L, M, K), B (K, M) or (L, K, M), C and out (M, M) or (L, M, M). A and B bf16 or fp16, C and out
    bf16, fp16 or fp32; strides, scalars and errors as of `gemm`; out may be C.

    B is A.mT, or anything that makes A @ B symmetric. That is not checked: only one tile of each pair that mirror each other
    is computed, and so is only one of C read; the other is its copy. So out[i, j] and out[j, i] are the same bits wherever the
    indices are of different tiles (of up to 128), and everywhere if B is A.mT bit by bit and C is symmetric bit by bit.
    If B is A.mT, the same memory, small products may run as `gemm` does, with the same bits on both sides of the diagonal.
    dynamic_scheduler: draw tiles from an atomic counter. config: run exactly this one; tile_m = tile_n.
    """
    if torch.compiler.is_compiling():
        if out is None:
            out = _output(A, B, out_dtype)
        else:
            _check_out_dtype(out, out_dtype)
        _run_opaque(A, B, C, out, dynamic_scheduler, alpha, beta)
        return out
    return _launch(A, B, C, out, dynamic_scheduler, alpha, beta, config, out_dtype)


def gemm_symmetric_out(
    A: torch.Tensor, B: torch.Tensor, out: torch.Tensor, C: Optional[torch.Tensor] = None, **options
) -> None:
    """`gemm_symmetric` into a given output."""
    gemm_symmetric(A, B, C, out, **options)


def gemm_symmetric_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
) -> torch.Tensor:
    """`gemm_symmetric` in plain torch, computed in fp32 and then made symmetric bit by bit: the oracle."""
    dtype = out.dtype if out is not None else out_dtype or A.dtype
    zero = torch.zeros((), device=A.device) if C is None else C
    whole = gemm_add_ref(A, B, zero, None, alpha, 0.0 if C is None else beta, torch.float32)
    result = (whole.tril() + whole.tril(-1).mT).to(dtype)
    return result if out is None else out.copy_(result)


def explain_symmetric(A: torch.Tensor, B: torch.Tensor, out_dtype: Optional[torch.dtype] = None) -> str:
    """What `gemm_symmetric(A, B)` could use, with predicted times, best first: half of the tiles, or the whole product."""
    shape, base, swapped, _ = describe_request(GemmRequest(A, B, _output(A, B, out_dtype)))
    device = device_of(A)
    assert swapped is not None
    base, swapped = (spec.on(device.arch, device.target) for spec in (base, swapped))
    whole = (base, swapped) if is_transpose(A, B) else None
    return heuristics.explain(symmetric_spec(base), shape, device.sms, whole)


def _launch(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor],
    out: Optional[torch.Tensor],
    dynamic: bool = False,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    config: Optional[GemmConfig] = None,
    out_dtype: Optional[torch.dtype] = None,
) -> torch.Tensor:
    """The path of every call: keep it short."""
    operands: Operands = {"A": A, "B": B, "out": out}
    if not (C is None and type(alpha) is float and alpha == 1.0):
        operands.update(C=C, alpha=alpha, beta=beta)
    try:
        same_start = A.data_ptr() == B.data_ptr()  # only then B may be A.mT, which has more plans to choose from
    except (AttributeError, RuntimeError):
        same_start = False  # no tensors: the launch says so
    launch(_FORM, operands, (out_dtype, same_start, config, dynamic))
    return operands["out"]


@torch.library.custom_op("quack::gemm_symmetric_out", mutates_args={"out"})
def _symmetric_op(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor],
    out: torch.Tensor,
    dynamic: bool,
    alpha: float,
    beta: float,
    alpha_tensor: Optional[torch.Tensor],
    beta_tensor: Optional[torch.Tensor],
) -> None:
    alpha_value = alpha if alpha_tensor is None else alpha_tensor
    _launch(A, B, C, out, dynamic, alpha_value, beta if beta_tensor is None else beta_tensor)


_symmetric_op.register_fake(writes_only)


@torch.library.custom_op("quack::gemm_symmetric_inplace", mutates_args={"out"})
def _symmetric_inplace_op(
    A: torch.Tensor,
    B: torch.Tensor,
    out: torch.Tensor,
    dynamic: bool,
    alpha: float,
    beta: float,
    alpha_tensor: Optional[torch.Tensor],
    beta_tensor: Optional[torch.Tensor],
) -> None:
    alpha_value = alpha if alpha_tensor is None else alpha_tensor
    _launch(A, B, out, out, dynamic, alpha_value, beta if beta_tensor is None else beta_tensor)


_symmetric_inplace_op.register_fake(writes_only)


def _run_opaque(
    A: torch.Tensor,
    B: torch.Tensor,
    C: Optional[torch.Tensor],
    out: torch.Tensor,
    dynamic: bool,
    alpha: Scalar,
    beta: Scalar,
) -> None:
    """Under torch.compile: one opaque op with a declared mutation; two where C is mutated as out."""
    (alpha_value, alpha_tensor), (beta_value, beta_tensor) = _split_scalar(alpha), _split_scalar(beta)
    scalars = alpha_value, beta_value, alpha_tensor, beta_tensor
    if C is out:
        _symmetric_inplace_op(A, B, out, dynamic, *scalars)
    else:
        _symmetric_op(A, B, C, out, dynamic, *scalars)
