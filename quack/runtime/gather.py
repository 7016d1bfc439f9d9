"""Rules for `A_idx`, the rows (or columns) of A that a ragged problem picks."""

from typing import Optional

import torch

from .debug import is_debugging

MAX_PITCH_BYTES = 1 << 31  # the kernel multiplies 32-bit indices by a 32-bit pitch, with a 64-bit result


def check_gather(A: torch.Tensor, A_idx: object, offsets_name: Optional[str]) -> Optional[int]:
    """A_idx: int32, contiguous (total,), on A's device; returns total. None without A_idx."""
    if A_idx is None:
        return None
    if offsets_name is None:
        raise ValueError("A_idx needs groups: pass cu_seqlens_m or cu_seqlens_k, or A[A_idx] for a dense product")
    if not isinstance(A_idx, torch.Tensor):
        raise TypeError(f"A_idx is a {type(A_idx).__name__}, expected a torch.Tensor")
    if A_idx.dtype != torch.int32:
        raise TypeError(f"A_idx has dtype {A_idx.dtype}, expected torch.int32")
    if A_idx.dim() != 1 or not A_idx.is_contiguous():
        total = "total_m" if offsets_name == "cu_seqlens_m" else "total_k"
        raise ValueError(
            f"A_idx has shape {tuple(A_idx.shape)} and strides {A_idx.stride()}, expected a contiguous ({total},)"
        )
    if A_idx.device != A.device:
        raise ValueError(f"A is on {A.device} and A_idx is on {A_idx.device}: pass both on one device")
    pitch = max((stride for stride, extent in zip(A.stride(), A.shape) if extent > 1), default=0)
    if pitch * A.element_size() >= MAX_PITCH_BYTES:
        raise ValueError(f"A has strides {A.stride()}: with A_idx a step must be below {MAX_PITCH_BYTES} bytes")
    return A_idx.numel()


def check_index_values(A: torch.Tensor, A_idx: torch.Tensor, gathered_dim: int) -> None:
    """With QUACK_DEBUG=1: every index names a row (or column) of A. Waits for the device."""
    if not is_debugging():
        return
    extent = A.shape[gathered_dim]
    bad = ((A_idx < 0) | (A_idx >= extent)).nonzero()
    if bad.numel():
        first = int(bad[0])
        raise IndexError(
            f"A_idx[{first}] is {int(A_idx[first])}, A has shape {tuple(A.shape)}: expected 0 <= index < {extent}"
        )
