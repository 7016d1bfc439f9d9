"""`concat_layout`: operands stored as [first half; second half] along the dimension that the GEMM means interleaved.

Logical index j of that dimension, of extent n, is memory index j // 2 + (j % 2) * n // 2. For a matrix it is the one of the
last two dimensions that is not contiguous, for bias its only one.
"""

from collections.abc import Iterable
from typing import Optional

import torch

NAMES = ("A", "B", "C", "bias", "out")


def concat_names(concat_layout: Optional[Iterable[str]]) -> Optional[tuple[str, ...]]:
    """The names once each in a fixed order, None for none of them; TypeError or ValueError for anything else."""
    if concat_layout is None:
        return None
    if isinstance(concat_layout, str) or not isinstance(concat_layout, Iterable):
        raise TypeError(f"concat_layout is {concat_layout!r}, expected a tuple of names out of {NAMES}")
    names = tuple(concat_layout)
    for name in names:
        if name not in NAMES:
            raise ValueError(f"concat_layout has {name!r}, expected names out of {NAMES}")
    return tuple(name for name in NAMES if name in names) or None


def concat_dim(name: str, tensor: torch.Tensor) -> Optional[int]:
    """The dimension that holds the two halves; None if no dimension is contiguous; ValueError if it is odd.

    Where extents of 1 leave a choice of the contiguous dimension, the other one must be even.
    """
    last, other = tensor.dim() - 1, tensor.dim() - 2
    choices = [
        strided
        for unit, strided in ((last, other), (other, last))
        if tensor.stride(unit) == 1 or tensor.shape[unit] <= 1
    ]
    for dim in choices:
        if tensor.shape[dim] % 2 == 0:
            return dim
    if choices:
        raise ValueError(
            f"concat_layout names {name}, whose dimension {choices[0]} holds two halves, but {name} has shape "
            f"{tuple(tensor.shape)}: pass an even extent there"
        )
    return None


def halves_as_pairs(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """A view with `dim` split into (n / 2, 2), in logical order."""
    dim %= tensor.dim()
    return tensor.unflatten(dim, (2, tensor.shape[dim] // 2)).transpose(dim, dim + 1)


def interleaved(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the operand `name` in logical order; what a kernel reads through the permutation."""
    dim = tensor.dim() - 1 if name == "bias" else concat_dim(name, tensor)
    assert dim is not None, f"{name} has strides {tensor.stride()}: no contiguous dimension"
    return halves_as_pairs(tensor, dim).flatten(dim, dim + 1)


def store_halves(out: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Write `values`, in logical order, into `out` as halves."""
    dim = concat_dim("out", out)
    assert dim is not None, f"out has strides {out.stride()}: no contiguous dimension"
    halves_as_pairs(out, dim).copy_(values.unflatten(dim, (out.shape[dim] // 2, 2)))
    return out
