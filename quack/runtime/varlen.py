"""Rules for ragged problems: shapes that involve `cu_seqlens`. Its values stay on the device and are not checked."""

from typing import Optional

import torch

from .gather import check_gather
from .operands import check_outputs, check_tensors, extent_k
from .spec import GemmShape


def _check_offsets(name: str, offsets: torch.Tensor, A: torch.Tensor) -> int:
    """(G + 1,) int32 on A's device; returns G."""
    if not isinstance(offsets, torch.Tensor):
        raise TypeError(f"{name} is a {type(offsets).__name__}, expected a torch.Tensor")
    if offsets.dtype != torch.int32:
        raise TypeError(f"{name} has dtype {offsets.dtype}, expected torch.int32")
    if offsets.dim() != 1 or offsets.numel() < 1 or not offsets.is_contiguous():
        raise ValueError(
            f"{name} has shape {tuple(offsets.shape)} and strides {offsets.stride()}, expected a contiguous (G + 1,)"
        )
    if offsets.device != A.device:
        raise ValueError(f"A is on {A.device} and {name} is on {offsets.device}: pass both on one device")
    return offsets.numel() - 1


def _check_operands(
    operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor, Optional[torch.Tensor]],
    dims: tuple[int, int, int],
    name: str,
    offsets: torch.Tensor,
) -> int:
    """Types, devices and dimensions (of A, B, and out and C) that the argument `name` asks for; the number of groups."""
    A, B, out, C = operands
    tensors = {"A": A, "B": B, "out": out} | ({"C": C} if C is not None else {})
    check_tensors(tensors)
    groups = _check_offsets(name, offsets, A)  # first, because a default `out` is made from them
    for (which, tensor), expected in zip(tensors.items(), (*dims, dims[2])):
        if tensor.dim() != expected:
            raise ValueError(f"{which} has {tensor.dim()} dimensions, expected {expected} with {name}")
    return groups


def check_varlen_m(
    A: torch.Tensor,
    B: torch.Tensor,
    out: torch.Tensor,
    C: Optional[torch.Tensor],
    cu_seqlens: torch.Tensor,
    A_idx: Optional[torch.Tensor] = None,
    is_halved: bool = False,
) -> GemmShape:
    """A (total_m, K), or (any, K) with A_idx (total_m,), B (G, K, N), out and C (total_m, N). The average m."""
    groups = _check_operands((A, B, out, C), (2, 3, 2), "cu_seqlens_m", cu_seqlens)
    gathered = check_gather(A, A_idx, "cu_seqlens_m")
    total = A.shape[0] if gathered is None else gathered
    if B.shape[0] != groups:
        raise ValueError(f"cu_seqlens_m has {groups + 1} elements for {groups} groups, B has {B.shape[0]} matrices")
    if extent_k(A, 1) != extent_k(B, 1):
        raise ValueError(f"A {tuple(A.shape)} and B {tuple(B.shape)} do not multiply: B is (groups, K, N)")
    check_outputs((total, B.shape[2]), out, C, is_halved)
    return GemmShape(-(-total // max(groups, 1)), B.shape[2], A.shape[1], groups, is_ragged_m=True)


def check_varlen_k(
    A: torch.Tensor,
    B: torch.Tensor,
    out: torch.Tensor,
    C: Optional[torch.Tensor],
    cu_seqlens: torch.Tensor,
    A_idx: Optional[torch.Tensor] = None,
    is_halved: bool = False,
) -> GemmShape:
    """A (M, total_k), or (M, any) with A_idx (total_k,), B (total_k, N), out and C (G, M, N). The average k."""
    groups = _check_operands((A, B, out, C), (2, 2, 3), "cu_seqlens_k", cu_seqlens)
    gathered = check_gather(A, A_idx, "cu_seqlens_k")
    total = extent_k(A, 1) if gathered is None else gathered
    if gathered is not None and gathered != B.shape[0]:
        raise ValueError(f"A_idx has {gathered} elements and B has shape {tuple(B.shape)}: B is (total_k, N)")
    if total != extent_k(B, 0):
        raise ValueError(f"A {tuple(A.shape)} and B {tuple(B.shape)} do not multiply: B is (total_k, N)")
    check_outputs((groups, A.shape[0], B.shape[1]), out, C, is_halved)
    return GemmShape(A.shape[0], B.shape[1], -(-total // max(groups, 1)), groups)
