"""The functions users call: torch tensors in, torch tensors out.

Shapes: A (M, K) or (L, M, K), B (K, N) or (L, K, N), C and out (M, N) or (L, M, N), bias (N,) or (L, N). Any operand may
have either of its last two dimensions contiguous. alpha and beta are floats or one-element device tensors. Inputs are
bf16, fp16, fp8 (e4m3, e5m2, also mixed; K-major) or fp32, which is multiplied in tf32: the tensor cores ignore the low
13 bits, and on sm_90a one operand must be K-major (B, where A and B cannot be swapped: cu_seqlens_m, gated activations).
Accumulation is fp32; out, C and bias are bf16, fp16, fp32 or (out, C) fp8. Strides or addresses that are not multiples of
16 bytes work: such an A or B is copied once, out and C are accessed element by element. These functions are not
differentiable by themselves.

Errors: ValueError or TypeError naming the argument and both values, `UnsupportedGemm` for combinations without a kernel;
all before anything is launched or written. M, N or L = 0 returns the empty output, K = 0 gives beta * C + bias.
"""

import importlib
from typing import Any, Optional, Union

import torch

import quack

from . import heuristics
from .gemm_config import GemmConfig
from .gemm_port import PortKind
from .heuristics import split_k as split_heuristics
from .rounding import RoundingMode
from .runtime.call import Form, Operands, launch
from .runtime.concat import concat_names, interleaved, store_halves
from .runtime.device import device_of
from .runtime.epilogue import Port, Term
from .runtime.plan import EmptyPlan, GemmRequest, describe_request, prepare
from .runtime.spec import UnsupportedGemm
from .runtime.split_k import check_split
from .runtime.user_epilogue import UserOptions, user_call
from .split_k import SplitKMode

Scalar = Union[float, torch.Tensor]
COMPILING = (
    "quack: config=, epilogue= and commit= take objects, which no op of a graph can; the call runs outside of it"
)
_STREAM = SplitKMode.STREAM  # an attribute of an enum takes time


def add_output(operands: Operands, out_dtype: Optional[torch.dtype], *options: Any) -> None:
    """`out`, allocated or checked; the first option of a call is what the user said of its dtype."""
    out = operands["out"]
    if out is None:
        operands["out"] = _output(
            operands["A"], operands["B"], out_dtype, operands.get("cu_seqlens_k"), operands.get("A_idx")
        )
    elif out_dtype is not None:
        _check_out_dtype(out, out_dtype)


def _linear(
    operands: Operands,
    out_dtype: Optional[torch.dtype],
    fast_accum: bool,
    config: Optional[GemmConfig],
    dynamic: bool,
    concat_layout: Optional[tuple[str, ...]],
    split_k: Optional[int],
    split_k_mode: Optional[SplitKMode],
) -> GemmRequest:
    fields, seed = dict(operands), operands.get("sr_seed")
    fields.pop("sr_seed", None)
    return GemmRequest(
        **fields, fast_accum=fast_accum, config=config, dynamic=dynamic, concat_layout=concat_layout, split_k=split_k,
        split_k_mode=split_k_mode or SplitKMode.SERIAL, epilogue=() if seed is None else (rounding_term(seed),),
    )  # fmt: skip


LINEAR = Form(_linear, add_output)


def _launch(
    A: torch.Tensor,
    B: torch.Tensor,
    out: Optional[torch.Tensor],
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    fast_accum: bool = False,
    config: Optional[GemmConfig] = None,
    dynamic: bool = False,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    cu_seqlens_k: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    concat_layout: Optional[tuple[str, ...]] = None,
    batch_idx_permute: Optional[torch.Tensor] = None,
    split_k: Optional[int] = None,
    split_k_mode: SplitKMode = SplitKMode.SERIAL,
    sr_seed: Optional[int] = None,
    out_dtype: Optional[torch.dtype] = None,
) -> torch.Tensor:
    """out = alpha * A @ B + beta * C + bias, rounded stochastically if there is a seed. The path of every call: keep it short."""
    operands: Operands = {"A": A, "B": B, "out": out}
    if not (
        C is None and bias is None and type(alpha) is float and alpha == 1.0 and cu_seqlens_m is None
        and cu_seqlens_k is None and A_idx is None and batch_idx_permute is None and sr_seed is None
    ):  # fmt: skip
        operands.update(
            C=C, bias=bias, alpha=alpha, beta=beta, cu_seqlens_m=cu_seqlens_m, cu_seqlens_k=cu_seqlens_k, A_idx=A_idx,
            batch_idx_permute=batch_idx_permute, sr_seed=sr_seed,
        )  # fmt: skip
    split = split_options(split_k, split_k_mode)
    launch(LINEAR, operands, (out_dtype, fast_accum, config, dynamic, concat_layout, *split))
    return operands["out"]


def split_options(split_k: Optional[int], mode: SplitKMode) -> tuple[Optional[int], Optional[SplitKMode]]:
    """As a call is known by: without parts to be made the mode says nothing, but for STREAM."""
    return split_k, mode if split_k is not None or mode is _STREAM else None


_ROUNDING = "quack.epilogue.rounding:RoundStochastically"


def rounding_term(seed: int) -> Term:
    """The mixin that rounds to a bf16 out stochastically."""
    return Term(_ROUNDING, (Port("sr_seed", PortKind.INTEGER, seed),), swapped=f"{_ROUNDING}Transposed")


def rounding_seed(rounding_mode: Optional[int], seed: object, out: object) -> Optional[int]:
    """The seed, if `rounding_mode` rounds stochastically; None for rounding to nearest, which is what stores do.

    ValueError: no such mode or seed; UnsupportedGemm: out is not bf16.
    """
    if rounding_mode is None or rounding_mode == RoundingMode.RN:
        return None
    if rounding_mode != RoundingMode.RS:
        legal = ", ".join(f"RoundingMode.{mode.name} ({mode.value})" for mode in RoundingMode)
        raise ValueError(f"rounding_mode is {rounding_mode!r}, expected one of {legal}")
    if isinstance(out, torch.Tensor) and out.dtype is not torch.bfloat16:
        raise UnsupportedGemm(
            f"rounding_mode=RoundingMode.RS rounds to bf16, and out has dtype {out.dtype}",
            "a bf16 out, or RoundingMode.RN",
        )
    if not isinstance(seed, int) or not 0 <= seed < 2**31:  # here, because a cached plan does not look at values
        raise ValueError(f"sr_seed is {seed!r}, expected an int in [0, 2^31)")
    return seed


def launch_with_user_epilogue(
    operands: Operands, options: UserOptions, epilogue: Any, commit: Optional[type], seed: Optional[int] = None
) -> Any:
    """A call with what the user defined: D, or (D, extra outputs). torch.compile leaves the graph for it.

    operands: out and the other tensors by their names in `GemmRequest`, alpha and beta. seed: of stochastic rounding.
    """
    if torch.compiler.is_compiling():
        disabled = torch.compiler.disable(launch_with_user_epilogue, reason=COMPILING)
        return disabled(operands, options, epilogue, commit, seed)
    terms = (rounding_term(seed),) if seed is not None else ()
    call = user_call(operands, epilogue, commit, terms, add_output)
    return call.results(launch(call.form, call.operands, options))


def _output(
    A: torch.Tensor,
    B: torch.Tensor,
    out_dtype: Optional[torch.dtype],
    cu_seqlens_k: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """A fresh output: dtype of A unless given, bf16 for fp8 inputs; one matrix a group with `cu_seqlens_k`, else one row
    an index with `A_idx`."""
    for name, tensor in (("A", A), ("B", B)):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch.Tensor")
        if tensor.dim() not in (2, 3):
            raise ValueError(
                f"{name} has {tensor.dim()} dimensions {tuple(tensor.shape)}, expected 2, or 3 with a batch"
            )
    if out_dtype is None:
        out_dtype = torch.bfloat16 if A.dtype.itemsize == 1 else A.dtype
    groups = (max(cu_seqlens_k.numel() - 1, 0),) if isinstance(cu_seqlens_k, torch.Tensor) else ()
    rows = A.shape[:-1]
    if isinstance(A_idx, torch.Tensor) and cu_seqlens_k is None:
        rows = torch.Size((A_idx.numel(),))
    return A.new_empty((*groups, *rows, B.shape[-1]), dtype=out_dtype)


def _check_out_dtype(out: torch.Tensor, out_dtype: Optional[torch.dtype]) -> None:
    if out_dtype is not None and out.dtype != out_dtype:
        raise ValueError(f"out has dtype {out.dtype} and out_dtype is {out_dtype}: pass one of them")


def _split_names(concat_layout: str) -> Optional[tuple[str, ...]]:
    """`concat_layout` as an op takes it: joined by commas, empty for None."""
    return tuple(concat_layout.split(",")) if concat_layout else None


def writes_only(*arguments: object, **options: object) -> None:
    """What torch.compile must know of an op that returns nothing: that."""


# torch.compile sees one opaque op with a declared mutation; eager calls never pass through the dispatcher.
@torch.library.custom_op("quack::gemm_out", mutates_args={"out"})
def _gemm_op(
    A: torch.Tensor,
    B: torch.Tensor,
    out: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    alpha_tensor: Optional[torch.Tensor] = None,
    beta_tensor: Optional[torch.Tensor] = None,
    fast_accum: bool = False,
    dynamic: bool = False,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    cu_seqlens_k: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    concat_layout: str = "",
    batch_idx_permute: Optional[torch.Tensor] = None,
    split_k: Optional[int] = None,
    split_k_mode: str = SplitKMode.SERIAL.value,
    rounding_mode: int = 0,
    sr_seed: int = 0,
) -> None:
    _launch(
        A,
        B,
        out,
        C,
        bias,
        alpha if alpha_tensor is None else alpha_tensor,
        beta if beta_tensor is None else beta_tensor,
        fast_accum,
        None,
        dynamic,
        cu_seqlens_m,
        cu_seqlens_k,
        A_idx,
        _split_names(concat_layout),
        batch_idx_permute,
        split_k,
        SplitKMode(split_k_mode),
        rounding_seed(rounding_mode, sr_seed, out),
    )


_gemm_op.register_fake(writes_only)


# torch functionalises an op that mutates two arguments with one value badly, so in-place addition is an op of its own.
@torch.library.custom_op("quack::gemm_add_inplace", mutates_args={"out"})
def _gemm_add_inplace_op(
    A: torch.Tensor,
    B: torch.Tensor,
    out: torch.Tensor,
    alpha: float = 1.0,
    beta: float = 1.0,
    alpha_tensor: Optional[torch.Tensor] = None,
    beta_tensor: Optional[torch.Tensor] = None,
    dynamic: bool = False,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    cu_seqlens_k: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    concat_layout: str = "",
    split_k: Optional[int] = None,
    split_k_mode: str = SplitKMode.SERIAL.value,
) -> None:
    alpha_value = alpha if alpha_tensor is None else alpha_tensor
    beta_value = beta if beta_tensor is None else beta_tensor
    special = (cu_seqlens_m, cu_seqlens_k, A_idx, _split_names(concat_layout), None, split_k, SplitKMode(split_k_mode))
    _launch(A, B, out, out, None, alpha_value, beta_value, False, None, dynamic, *special)


_gemm_add_inplace_op.register_fake(writes_only)


def _split_scalar(value: Scalar) -> tuple[float, Optional[torch.Tensor]]:
    return (1.0, value) if isinstance(value, torch.Tensor) else (float(value), None)


def gemm(
    A: torch.Tensor,
    B: torch.Tensor,
    out: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    alpha: Scalar = 1.0,
    out_dtype: Optional[torch.dtype] = None,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    cu_seqlens_k: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    batch_idx_permute: Optional[torch.Tensor] = None,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    rounding_mode: Optional[int] = None,
    sr_seed: int = 0,
    concat_layout: Optional[tuple[str, ...]] = None,
    split_k: Optional[int] = None,
    split_k_mode: SplitKMode = SplitKMode.SERIAL,
    *,
    fast_accum: bool = False,
    epilogue: Optional[Any] = None,
    commit: Optional[type] = None,
) -> Any:
    """out = alpha * A @ B + bias. Returns `out`, allocated if not given.

    fast_accum: fp8 only. True keeps sums inside the tensor cores (about 14 mantissa bits), False, as in
    `torch._scaled_mm`, adds partial sums of 128 products in fp32.
    dynamic_scheduler: draw tiles from an atomic counter (uneven clocks or a shared GPU).
    cu_seqlens_m (G + 1,) int32: A is (total_m, K), B (G, K, N), out (total_m, N); group g multiplies its rows by B[g].
    cu_seqlens_k (G + 1,) int32: A is (M, total_k), M contiguous, B (total_k, N), N contiguous, out (G, M, N): sums by group.
    The offsets are read on the device only: ascending, the first 0, the last total_m (total_k). Empty groups are fine.
    A_idx int32, with either of them: A is larger, (any, K) or (M, any), and row r of the product's A is A[A_idx[r]], A_idx
    (total_m,), or its column k is A[:, A_idx[k]], A_idx (total_k,). Indices may repeat and must be in range: QUACK_DEBUG=1
    in the environment checks that before each launch (IndexError; waits for the device), otherwise nothing does.
    batch_idx_permute (L,) int32: a permutation of the batch (group) indices, the order in which the device works through
    them; the result does not depend on it. The longest first, with dynamic_scheduler, balances groups best. The values
    are read on the device; QUACK_DEBUG=1 checks them. Needs a batch or groups.
    concat_layout: names out of "A", "B", "C", "bias", "out", whose dimension that is not contiguous (the last of bias)
    holds [first half; second half], meant as 0, n/2, 1, n/2 + 1, ... So a gated layer's W1 (2I, K) is B = W1.mT with
    concat_layout=("B",): columns 2j and 2j + 1 of out are the gate and the up projection. No copy is made. That dimension
    is even; names of operands that the call does not have mean nothing.
    rounding_mode: `RoundingMode.RS` rounds to a bf16 out stochastically, so that the expected value is exact. The random bits
    depend on sr_seed (an int in [0, 2^31)), problem, row and column alone: equal seeds give equal bits in every
    configuration, so take another for every step of a training run. None and RN round to nearest.
    epilogue: an instance of your own `EpilogueMixin`, of `quack.pointwise`, a function of the accumulator, or a tuple of
    these, applied to alpha * A @ B + bias in this order (docs/epilogues.md). With extra outputs the result is the tuple (out,
    *outputs). commit: your own `EpiloguePlan` class, which decides what is stored. Under torch.compile both break the graph.
    split_k: the sum over K of an output tile is made of so many parts, computed at the same time and put together as
    split_k_mode says (`SplitKMode`), where there are few tiles and much K. None has it chosen, always with a mode that gives
    the same bits every time; 1 splits nothing. More parts than the device holds clusters at once are not made. With
    split_k_mode=SplitKMode.STREAM leave it None: the work of a partly empty last wave is then shared out evenly.
    """
    check_split(split_k, split_k_mode)
    if concat_layout is not None:
        concat_layout = concat_names(concat_layout)
    is_compiling = torch.compiler.is_compiling()
    if out is None and (is_compiling or rounding_mode):
        out = _output(A, B, out_dtype, cu_seqlens_k, A_idx)
    elif is_compiling and out is not None:
        _check_out_dtype(out, out_dtype)
    if epilogue is not None or commit is not None:
        operands = {
            "A": A, "B": B, "out": out, "bias": bias, "alpha": alpha, "cu_seqlens_m": cu_seqlens_m,
            "cu_seqlens_k": cu_seqlens_k, "A_idx": A_idx, "batch_idx_permute": batch_idx_permute,
        }  # fmt: skip
        split = split_options(split_k, split_k_mode)
        options = (out_dtype, fast_accum, None, dynamic_scheduler, concat_layout, *split)
        seed = rounding_seed(rounding_mode, sr_seed, out)
        return launch_with_user_epilogue(operands, options, epilogue, commit, seed)
    if is_compiling:
        value, tensor = _split_scalar(alpha)
        _gemm_op(
            A, B, out, None, bias, value, 1.0, tensor, None, fast_accum, dynamic_scheduler, cu_seqlens_m, cu_seqlens_k,
            A_idx, ",".join(concat_layout or ()), batch_idx_permute, split_k, split_k_mode.value, int(rounding_mode or 0),
            sr_seed,
        )  # fmt: skip
        return out
    return _launch(
        A, B, out, None, bias, alpha, 1.0, fast_accum, None, dynamic_scheduler, cu_seqlens_m, cu_seqlens_k,
        A_idx, concat_layout, batch_idx_permute, split_k, split_k_mode,
        rounding_seed(rounding_mode, sr_seed, out) if rounding_mode else None, out_dtype,
    )  # fmt: skip


def gemm_add(
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    out: Optional[torch.Tensor] = None,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    out_dtype: Optional[torch.dtype] = None,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    concat_layout: Optional[tuple[str, ...]] = None,
    split_k: Optional[int] = None,
    split_k_mode: SplitKMode = SplitKMode.SERIAL,
    *,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    cu_seqlens_k: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    epilogue: Optional[Any] = None,
    commit: Optional[type] = None,
) -> Any:
    """out = alpha * A @ B + beta * C. C may have another dtype than out; `out is C` works in place.

    cu_seqlens_m, cu_seqlens_k, A_idx, split_k, split_k_mode: as in `gemm`; C has the shape of out.

    beta = 0.0 as a number does not read C (as in BLAS); a beta tensor that holds 0 does, so NaN in C propagates then.
    concat_layout: as in `gemm`; in place it names both C and out, or neither.
    epilogue, commit: as in `gemm`, behind beta * C. A mixin with `needs_c` reads C itself; then nothing adds it.
    """
    if concat_layout is not None:
        concat_layout = concat_names(concat_layout)
    if C is None:
        raise TypeError("C is a NoneType, expected a torch.Tensor; gemm(A, B) has no C")
    check_split(split_k, split_k_mode)
    ragged = (cu_seqlens_m, cu_seqlens_k, A_idx)
    if epilogue is not None or commit is not None:
        operands = {
            "A": A, "B": B, "out": out, "C": C, "alpha": alpha, "beta": beta, "cu_seqlens_m": cu_seqlens_m,
            "cu_seqlens_k": cu_seqlens_k, "A_idx": A_idx,
        }  # fmt: skip
        split = split_options(split_k, split_k_mode)
        options = (out_dtype, False, None, dynamic_scheduler, concat_layout, *split)
        return launch_with_user_epilogue(operands, options, epilogue, commit)
    if torch.compiler.is_compiling():
        if out is None:
            out = _output(A, B, out_dtype, cu_seqlens_k, A_idx)
        else:
            _check_out_dtype(out, out_dtype)
        alpha_value, alpha_tensor = _split_scalar(alpha)
        beta_value, beta_tensor = _split_scalar(beta)
        if out is C:
            _gemm_add_inplace_op(
                A, B, out, alpha_value, beta_value, alpha_tensor, beta_tensor, dynamic_scheduler, *ragged,
                ",".join(concat_layout or ()), split_k, split_k_mode.value,
            )  # fmt: skip
        else:
            _gemm_op(
                A, B, out, C, None, alpha_value, beta_value, alpha_tensor, beta_tensor, False, dynamic_scheduler,
                *ragged, ",".join(concat_layout or ()), None, split_k, split_k_mode.value,
            )  # fmt: skip
        return out
    return _launch(
        A, B, out, C, None, alpha, beta, False, None, dynamic_scheduler, *ragged, concat_layout, None, split_k,
        split_k_mode, None, out_dtype,
    )  # fmt: skip


def gemm_add_inplace(
    A: torch.Tensor,
    B: torch.Tensor,
    out: torch.Tensor,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    dynamic_scheduler: bool = False,
    tuned: bool = True,
    concat_layout: Optional[tuple[str, ...]] = None,
) -> None:
    """out = alpha * A @ B + beta * out. concat_layout: as in `gemm`."""
    if concat_layout is not None and "out" in concat_layout:
        concat_layout = (*concat_layout, "C")
    gemm_add(A, B, out, out, alpha, beta, dynamic_scheduler=dynamic_scheduler, concat_layout=concat_layout)


def gemm_out(A: torch.Tensor, B: torch.Tensor, out: torch.Tensor, **options) -> None:
    """`gemm` into a given output."""
    gemm(A, B, out, **options)


def gemm_add_out(A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, out: torch.Tensor, **options) -> None:
    """`gemm_add` into a given output."""
    gemm_add(A, B, C, out, **options)


def gemm_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    out: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    alpha: Scalar = 1.0,
    out_dtype: Optional[torch.dtype] = None,
    concat_layout: Optional[tuple[str, ...]] = None,
) -> torch.Tensor:
    """`gemm` in plain torch, computed in fp32: the oracle."""
    dtype = out.dtype if out is not None else out_dtype or (torch.bfloat16 if A.dtype.itemsize == 1 else A.dtype)
    names = concat_names(concat_layout) or ()
    A, B = (interleaved(name, t) if name in names else t for name, t in (("A", A), ("B", B)))
    if bias is not None and "bias" in names:
        bias = interleaved("bias", bias)
    result = alpha * (A.float() @ B.float())
    if bias is not None:
        result = result + bias.float().unsqueeze(-2)
    return _store_ref(result, out, dtype, "out" in names)


def gemm_add_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    out: Optional[torch.Tensor] = None,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    out_dtype: Optional[torch.dtype] = None,
    concat_layout: Optional[tuple[str, ...]] = None,
) -> torch.Tensor:
    """`gemm_add` in plain torch, computed in fp32: the oracle."""
    names = concat_names(concat_layout) or ()
    A, B, C = (interleaved(name, t) if name in names else t for name, t in (("A", A), ("B", B), ("C", C)))
    result = alpha * (A.float() @ B.float()) + beta * C.float()
    return _store_ref(result, out, out_dtype or A.dtype, "out" in names)


def gemm_add_inplace_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    out: torch.Tensor,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    concat_layout: Optional[tuple[str, ...]] = None,
) -> None:
    """`gemm_add_inplace` in plain torch, computed in fp32: the oracle."""
    names = (*concat_layout, "C") if concat_layout is not None and "out" in concat_layout else concat_layout
    gemm_add_ref(A, B, out.clone(), out, alpha, beta, concat_layout=names)


def _store_ref(result: torch.Tensor, out: Optional[torch.Tensor], dtype: torch.dtype, is_concat: bool) -> torch.Tensor:
    if out is None:
        out = torch.empty_like(result, dtype=dtype)
    return store_halves(out, result) if is_concat else out.copy_(result)


class _Tuned:
    """`gemm_tuned(...)` picks a configuration; `gemm_tuned.fn(..., config=...)` runs exactly that one."""

    def fn(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        out: torch.Tensor,
        C: Optional[torch.Tensor] = None,
        bias: Optional[torch.Tensor] = None,
        alpha: Scalar = 1.0,
        beta: Scalar = 1.0,
        cu_seqlens_m: Optional[torch.Tensor] = None,
        cu_seqlens_k: Optional[torch.Tensor] = None,
        A_idx: Optional[torch.Tensor] = None,
        batch_idx_permute: Optional[torch.Tensor] = None,
        add_to_output: bool = False,
        dynamic_scheduler: bool = False,
        config: Optional[GemmConfig] = None,
        rounding_mode: Optional[int] = None,
        sr_seed: int = 0,
        concat_layout: Optional[tuple[str, ...]] = None,
        fast_accum: bool = False,
        epilogue: Optional[Any] = None,
        commit: Optional[type] = None,
        split_k: Optional[int] = None,
        split_k_mode: SplitKMode = SplitKMode.SERIAL,
    ) -> Any:
        """out = alpha * A @ B + beta * C + bias; add_to_output: C is out, also for concat_layout. Rounding as in `gemm`.

        Returns None; with epilogue or commit what `gemm` returns. split_k None is 1 if a configuration is given and
        split_k_mode is not STREAM, else as in `gemm`.
        """
        if concat_layout is not None:
            concat_layout = concat_names(
                (*concat_layout, "C") if add_to_output and "out" in concat_layout else concat_layout
            )
        if add_to_output:
            if C is not None:
                raise ValueError("add_to_output and C exclude each other: C is out then")
            C = out
        check_split(split_k, split_k_mode)
        if epilogue is not None or commit is not None:
            operands = {
                "A": A, "B": B, "out": out, "C": C, "bias": bias, "alpha": alpha, "beta": beta,
                "cu_seqlens_m": cu_seqlens_m, "cu_seqlens_k": cu_seqlens_k, "A_idx": A_idx,
                "batch_idx_permute": batch_idx_permute,
            }  # fmt: skip
            split = split_options(split_k, split_k_mode)
            options = (None, fast_accum, config, dynamic_scheduler, concat_layout, *split)
            seed = rounding_seed(rounding_mode, sr_seed, out)
            return launch_with_user_epilogue(operands, options, epilogue, commit, seed)
        if out is None:
            raise TypeError("out is a NoneType, expected a torch.Tensor; gemm(A, B) allocates one")
        _launch(
            A, B, out, C, bias, alpha, beta, fast_accum, config, dynamic_scheduler, cu_seqlens_m, cu_seqlens_k,
            A_idx, concat_layout, batch_idx_permute, split_k, split_k_mode,
            rounding_seed(rounding_mode, sr_seed, out),
        )  # fmt: skip

    __call__ = fn


gemm_tuned = _Tuned()


def __getattr__(name: str) -> object:
    """The rest of the interface has modules of its own, which import this one."""
    home = quack._HOME.get(name)
    if home is not None:
        return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def default_config(device: torch.device) -> GemmConfig:
    """A configuration that is legal for plain 16-bit GEMMs on `device`."""
    return heuristics.default_config(device_of(torch.empty(0, device=device)).arch)


def explain(A: torch.Tensor, B: torch.Tensor, out_dtype: Optional[torch.dtype] = None, fast_accum: bool = False) -> str:
    """Which configuration `gemm(A, B)` uses, its predicted time and resources, and the runners-up; first of all the parts of K
    where it is split."""
    request = GemmRequest(A, B, _output(A, B, out_dtype), fast_accum=fast_accum)
    shape, base, swapped, _ = describe_request(request)
    device = device_of(A)
    assert swapped is not None
    base, swapped = (spec.on(device.arch, device.target) for spec in (base, swapped))
    whole = heuristics.explain(base, shape, device.sms, swapped)
    split = split_heuristics.choose(base, shape, device.sms, swapped)
    if not split.is_split:
        return whole
    return f"{split.predicted_ns / 1e3:9.1f} us  {split.spec.config}  {split.describe()}\n{whole}"


def explain_config(A: torch.Tensor, B: torch.Tensor, fast_accum: bool = False) -> str:
    """The configuration that `gemm(A, B)` uses, as one short string."""
    plan = prepare(GemmRequest(A, B, _output(A, B, None), fast_accum=fast_accum))
    return "empty" if isinstance(plan, EmptyPlan) else str(plan.spec.config)
