"""GEMMs of block-scaled operands: mxfp8, mxfp4, both together, and nvfp4, on sm_100a and sm_103a.

| format | A and B | scales | elements of K per scale |
|---|---|---|---|
| mxfp8 | float8_e4m3fn, float8_e5m2, also mixed | float8_e8m0fnu | 32 |
| mxfp4 | float4_e2m1fn_x2, two elements a byte along K | float8_e8m0fnu | 32 |
| mxfp8 x mxfp4 | one of each, either way around; K a multiple of 128, rows of fp4 at multiples of 32 bytes | float8_e8m0fnu | 32 |
| nvfp4 | float4_e2m1fn_x2 | float8_e4m3fn | 16 |

Scales are passed in the blocks that tensor cores read, the same as for `torch._scaled_mm` and cuBLAS; `blocked_scales` makes them of
a plain matrix of scales. The factor that nvfp4 has for a whole tensor goes into alpha.
"""

from typing import Any, Optional

import torch

from .block_scales import BLOCK_BYTES, BLOCK_ROWS, BLOCK_SCALES
from .gemm_config import GemmConfig
from .gemm_interface import (
    COMPILING,
    Scalar,
    _split_scalar,
    add_output,
    launch_with_user_epilogue,
    split_options,
    writes_only,
)
from .gemm_operands import product_ref, rows_ref
from .ragged_scales import places
from .runtime.call import Form, Operands, launch
from .runtime.plan import GemmRequest
from .runtime.scales import SCALING_OF_TORCH
from .runtime.split_k import check_split
from .split_k import SplitKMode

_FOUR_BITS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def gemm_blockscaled(
    A: torch.Tensor,
    B: torch.Tensor,
    A_scale: torch.Tensor,
    B_scale: torch.Tensor,
    out: Optional[torch.Tensor] = None,
    out_dtype: Optional[torch.dtype] = None,
    alpha: Scalar = 1.0,
    C: Optional[torch.Tensor] = None,
    beta: Scalar = 1.0,
    bias: Optional[torch.Tensor] = None,
    *,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    cu_seqlens_k: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    batch_idx_permute: Optional[torch.Tensor] = None,
    dynamic_scheduler: bool = False,
    config: Optional[GemmConfig] = None,
    split_k: Optional[int] = None,
    split_k_mode: SplitKMode = SplitKMode.SERIAL,
    epilogue: Optional[Any] = None,
    commit: Optional[type] = None,
) -> Any:
    """out = alpha * (A * A_scale) @ (B * B_scale) + beta * C + bias. Returns `out`, allocated in out_dtype (bf16) if not given.

    A (M, K) or (L, M, K), K contiguous; B (K, N) or (L, K, N), K contiguous: the transposed view of an (N, K) weight. fp4 tensors
    have two elements a byte along K, so torch shows them with K / 2. dtypes: see the module.
    A_scale, B_scale: contiguous, what `blocked_scales` returns for one scale per row of A (column of B) and block of K; any
    shape with as many elements. Their padding must not be NaN, e4m3 scales not negative. K is a multiple of 16 or 32, the
    elements of a scale.
    cu_seqlens_m (G + 1,) int32: A is (total_m, K), B (G, K, N), out (total_m, N), as in `gemm`; A_scale is `blocked_scales(scales of A,
    cu_seqlens_m)`, the layout of `torch._scaled_grouped_mm`: only the device needs to know where its groups begin. QUACK_DEBUG=1
    checks that it has a block for each 128 rows of every group.
    cu_seqlens_k (G + 1,) int32: A is (M, total_k), B (total_k, N), out (G, M, N), as in `gemm`, but K contiguous here too. A_scale and
    B_scale are `blocked_scales(scales, cu_seqlens_k=cu_seqlens_k)`, the layout of `torch._scaled_grouped_mm`. The K of every group is
    a multiple of 32 (fp8), 64 (fp4) or 128 (one of each): an instruction and a scale belong to one group. QUACK_DEBUG=1 checks
    that; otherwise a group of another size is added up wrong.
    A_idx (total_m,) int32, with cu_seqlens_m: as in `gemm`; A_scale is `blocked_scales(scales of A)` then, one row for each row of A,
    wherever it is picked.
    batch_idx_permute: as in `gemm`.
    C, out (M, N) or (L, M, N), bias (N,) or (L, N), alpha, beta, dynamic_scheduler, split_k, split_k_mode, epilogue, commit: as
    in `gemm_add` and `gemm`. config: run exactly this one. Errors as of `gemm`; `UnsupportedGemm` on GPUs without such an
    instruction. Under torch.compile config, epilogue and commit break the graph.
    """
    if torch.compiler.is_compiling() and (config is not None or epilogue is not None or commit is not None):
        return torch.compiler.disable(gemm_blockscaled, reason=COMPILING)(
            A, B, A_scale, B_scale, out, out_dtype, alpha, C, beta, bias, dynamic_scheduler=dynamic_scheduler, config=config,
            cu_seqlens_m=cu_seqlens_m, cu_seqlens_k=cu_seqlens_k, A_idx=A_idx, batch_idx_permute=batch_idx_permute,
            split_k=split_k, split_k_mode=split_k_mode, epilogue=epilogue, commit=commit,
        )  # fmt: skip
    for name, scale in (("A_scale", A_scale), ("B_scale", B_scale)):
        if not isinstance(scale, torch.Tensor):
            raise TypeError(f"{name} is a {type(scale).__name__}, expected a torch.Tensor")
    check_split(split_k, split_k_mode)
    operands: Operands = {
        "A": A, "B": B, "out": out, "C": C, "bias": bias, "alpha": alpha, "beta": beta, "A_scale": A_scale, "B_scale": B_scale,
        "cu_seqlens_m": cu_seqlens_m, "cu_seqlens_k": cu_seqlens_k, "A_idx": A_idx, "batch_idx_permute": batch_idx_permute,
    }  # fmt: skip
    if epilogue is not None or commit is not None:
        split = split_options(split_k, split_k_mode)
        user_options = (out_dtype, False, config, dynamic_scheduler, None, *split)
        return launch_with_user_epilogue(operands, user_options, epilogue, commit)
    options = (out_dtype, config, dynamic_scheduler, split_k, split_k_mode)
    if torch.compiler.is_compiling():
        return _launch_in_graph(operands, options)
    launch(_FORM, operands, options)
    return operands["out"]


def _request(
    operands: Operands,
    out_dtype: Optional[torch.dtype],
    config: Optional[GemmConfig],
    dynamic: bool,
    split_k: Optional[int],
    split_k_mode: SplitKMode,
) -> GemmRequest:
    return GemmRequest(**operands, config=config, dynamic=dynamic, split_k=split_k, split_k_mode=split_k_mode)


_FORM = Form(_request, add_output)


def _launch_in_graph(operands: Operands, options: tuple) -> torch.Tensor:
    """`launch` of a call without objects, as one op of a graph."""
    add_output(operands, *options)
    _, _, dynamic, split_k, split_k_mode = options
    in_place = operands["C"] is operands["out"]
    for name in ("alpha", "beta"):
        operands[name], operands[f"{name}_tensor"] = _split_scalar(operands[name])
    if in_place:  # an op must not mutate what it reads under another name
        operands["C"] = None
    _op(**operands, in_place=in_place, dynamic=dynamic, split_k=split_k, split_k_mode=split_k_mode.value)
    return operands["out"]


# torch.compile sees one opaque op with a declared mutation; eager calls never pass through the dispatcher.
@torch.library.custom_op("quack::gemm_blockscaled_out", mutates_args={"out"})
def _op(
    A: torch.Tensor,
    B: torch.Tensor,
    out: torch.Tensor,
    A_scale: torch.Tensor,
    B_scale: torch.Tensor,
    C: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    alpha_tensor: Optional[torch.Tensor] = None,
    beta_tensor: Optional[torch.Tensor] = None,
    in_place: bool = False,
    dynamic: bool = False,
    split_k: Optional[int] = None,
    split_k_mode: str = SplitKMode.SERIAL.value,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    cu_seqlens_k: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
    batch_idx_permute: Optional[torch.Tensor] = None,
) -> None:
    alpha_value = alpha if alpha_tensor is None else alpha_tensor
    beta_value = beta if beta_tensor is None else beta_tensor
    operands: Operands = {
        "A": A, "B": B, "out": out, "C": out if in_place else C, "bias": bias, "alpha": alpha_value, "beta": beta_value,
        "A_scale": A_scale, "B_scale": B_scale, "cu_seqlens_m": cu_seqlens_m, "cu_seqlens_k": cu_seqlens_k, "A_idx": A_idx,
        "batch_idx_permute": batch_idx_permute,
    }  # fmt: skip
    launch(_FORM, operands, (None, None, dynamic, split_k, SplitKMode(split_k_mode)))


_op.register_fake(writes_only)


def gemm_blockscaled_ref(
    A: torch.Tensor,
    B: torch.Tensor,
    A_scale: torch.Tensor,
    B_scale: torch.Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
    alpha: Scalar = 1.0,
    C: Optional[torch.Tensor] = None,
    beta: Scalar = 1.0,
    bias: Optional[torch.Tensor] = None,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    cu_seqlens_k: Optional[torch.Tensor] = None,
    A_idx: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """`gemm_blockscaled` in plain torch, computed in float64 of rescaled operands: the oracle. Scales blocked, as there."""
    a = rescaled(A, A_scale, cu_seqlens_m if A_idx is None else None, cu_seqlens_k)
    b = rescaled(B.mT, B_scale, None, cu_seqlens_k).mT
    if cu_seqlens_k is not None:
        bounds = cu_seqlens_k.tolist()
        groups = [a[:, first:last] @ b[first:last] for first, last in zip(bounds, bounds[1:])]
        product = torch.stack(groups) if groups else a.new_zeros((0, a.shape[0], b.shape[1]))
    else:
        product = product_ref(a, b, cu_seqlens_m, A_idx)
    result = alpha * product
    if C is not None:
        result = result + beta * C.double()
    if bias is not None:
        result = result + rows_ref(bias.double(), cu_seqlens_m)
    return result.to(out_dtype)


def blocked_scales(
    scales: torch.Tensor, cu_seqlens_m: Optional[torch.Tensor] = None, cu_seqlens_k: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """One scale per row and block of K, (R, S) or (L, R, S) with any strides, in the order that tensor cores read.

    Returns (..., ceil(R / 128), ceil(S / 4), 32, 16), contiguous: scale j of row r is element (r % 128 % 32, r % 128 / 32 * 4 + j % 4)
    of block (r / 128, j / 4). What R and S are padded with is 0. float8_e8m0fnu or float8_e4m3fn.

    With the offsets of a ragged problem (in rows of A, or in elements of K as `gemm_blockscaled` takes them) scales are (R, S), and
    every group begins with a block of its own (`block_scales`): (row blocks, ceil(S / 4), 32, 16) or (blocks, 32, 16), with room
    for any offsets of so many groups. Nothing waits for the device.
    """
    if scales.dim() not in (2, 3) or scales.dtype.itemsize != 1:
        raise ValueError(
            f"scales is {scales.dtype} with shape {tuple(scales.shape)}, expected (R, S) or (L, R, S) of one byte each"
        )
    rows, count = scales.shape[-2:]
    if cu_seqlens_m is not None or cu_seqlens_k is not None:
        if scales.dim() != 2 or (cu_seqlens_m is not None and cu_seqlens_k is not None):
            raise ValueError(
                f"scales has shape {tuple(scales.shape)}, expected (R, S) with one of cu_seqlens_m and cu_seqlens_k"
            )
        where, shape = places(scales, rows, count, cu_seqlens_m, cu_seqlens_k)
        ragged = torch.zeros(shape, dtype=torch.uint8, device=scales.device)
        ragged.view(-1).scatter_(0, where.flatten(), scales.view(torch.uint8).flatten())
        return ragged.view(scales.dtype)
    row_blocks, blocks = -(-rows // BLOCK_ROWS), -(-count // BLOCK_SCALES)
    batch = scales.shape[:-2]
    padded = torch.zeros(
        (*batch, row_blocks * BLOCK_ROWS, blocks * BLOCK_SCALES), dtype=torch.uint8, device=scales.device
    )
    padded[..., :rows, :count] = scales.view(torch.uint8)
    quarters = padded.view(*batch, row_blocks, 4, 32, blocks, BLOCK_SCALES)
    ordered = quarters.movedim(-4, -2).movedim(-3, -4)  # quarter to the scales, blocks to the row blocks
    return ordered.reshape(*batch, row_blocks, blocks, 32, 4 * BLOCK_SCALES).contiguous().view(scales.dtype)


def plain_scales(
    blocked: torch.Tensor,
    rows: int,
    count: int,
    batch: Optional[int] = None,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    cu_seqlens_k: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """The inverse of `blocked_scales`: (rows, count), or (batch, rows, count), without the padding."""
    if cu_seqlens_m is not None or cu_seqlens_k is not None:
        where, _ = places(blocked, rows, count, cu_seqlens_m, cu_seqlens_k)
        return blocked.view(torch.uint8).flatten()[where].view(blocked.dtype)
    row_blocks, blocks = -(-rows // BLOCK_ROWS), -(-count // BLOCK_SCALES)
    outer = () if batch is None else (batch,)
    ordered = blocked.view(torch.uint8).view(*outer, row_blocks, blocks, BLOCK_BYTES // 16, 4, BLOCK_SCALES)
    quarters = ordered.movedim(-4, -3).movedim(-2, -4)
    plain = quarters.reshape(*outer, row_blocks * BLOCK_ROWS, blocks * BLOCK_SCALES)[..., :rows, :count]
    return plain.contiguous().view(blocked.dtype)


def rescaled(
    operand: torch.Tensor,
    scales: torch.Tensor,
    cu_seqlens_m: Optional[torch.Tensor] = None,
    cu_seqlens_k: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """operand (..., R, K) times its blocked scales, float64."""
    if operand.dtype is torch.float4_e2m1fn_x2:
        packed = operand.view(torch.uint8)
        codes = torch.stack((packed & 15, packed >> 4), -1).flatten(-2).long()  # the first of two in the low half
        table = torch.tensor([sign * value for sign in (1, -1) for value in _FOUR_BITS], dtype=torch.float64)
        values = table.to(operand.device)[codes]
    else:
        values = operand.double()
    block = SCALING_OF_TORCH[scales.dtype].block
    rows, k = values.shape[-2:]
    batch = values.shape[0] if values.dim() == 3 else None
    factors = plain_scales(scales, rows, k // block, batch, cu_seqlens_m, cu_seqlens_k).float().double()
    return values * factors.repeat_interleave(block, -1)
