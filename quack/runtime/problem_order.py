"""Rules for `batch_idx_permute`, the order in which problems are worked through."""

from typing import Optional

import torch

from .debug import is_debugging


def check_permutation(permutation: torch.Tensor, problems: Optional[int], A: torch.Tensor) -> None:
    """(problems,) int32 on A's device; problems is None where there is a single one. Does not look at the values."""
    name = "batch_idx_permute"
    if not isinstance(permutation, torch.Tensor):
        raise TypeError(f"{name} is a {type(permutation).__name__}, expected a torch.Tensor")
    if problems is None:
        raise ValueError(f"{name} orders the problems of a batch, but A {tuple(A.shape)} is one: pass 3-D A and B")
    if permutation.dtype != torch.int32:
        raise TypeError(f"{name} has dtype {permutation.dtype}, expected torch.int32")
    if tuple(permutation.shape) != (problems,) or not permutation.is_contiguous():
        raise ValueError(
            f"{name} has shape {tuple(permutation.shape)} and strides {permutation.stride()}, expected a contiguous "
            f"({problems},)"
        )
    if permutation.device != A.device:
        raise ValueError(f"A is on {A.device} and {name} is on {permutation.device}: pass both on one device")


def check_permutation_values(permutation: torch.Tensor) -> None:
    """With QUACK_DEBUG=1: ValueError unless each index occurs once. Synchronises with the device."""
    if not is_debugging():
        return
    values = permutation.tolist()
    if sorted(values) != list(range(len(values))):
        raise ValueError(
            f"batch_idx_permute {values[:16]}{'...' if len(values) > 16 else ''} is not a permutation of 0 .. "
            f"{len(values) - 1}"
        )
