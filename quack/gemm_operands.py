"""What GEMMs with activations and norms share: names, shapes and outputs of a call, and their references."""

from typing import Any, Optional, Union

import torch

from .activation import Activation, GatedActivation
from .activation_ref import reference
from .runtime.concat import concat_names, interleaved
from .runtime.spec import UnsupportedGemm

AnyActivation = Union[Activation, GatedActivation]
ActivationName = Union[str, None, AnyActivation]
Outputs = tuple[Optional[torch.Tensor], torch.Tensor]  # (preact, postact)

_BY_NAME: dict[Optional[str], AnyActivation] = {f.value: f for f in (*Activation, *GatedActivation)}


def activation_of(name: ActivationName) -> AnyActivation:
    """The activation of this name, gated or not; ValueError names all of them. torch.compile can trace it: no enum is iterated."""
    if isinstance(name, (Activation, GatedActivation)):
        return name
    if (name is None or isinstance(name, str)) and name in _BY_NAME:
        return _BY_NAME[name]
    raise ValueError(f"activation is {name!r}, expected one of {', '.join(map(repr, _BY_NAME))}")


def with_scales(
    operands: dict[str, Any], A_scale: Optional[torch.Tensor], B_scale: Optional[torch.Tensor]
) -> dict[str, Any]:
    """operands, and the scales of block-scaled A and B if there are any."""
    if A_scale is not None or B_scale is not None:
        operands |= {"A_scale": A_scale, "B_scale": B_scale}
    return operands


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


def output_of(
    name: str,
    given: Optional[torch.Tensor],
    dtype_name: str,
    dtype: Optional[torch.dtype],
    shape: tuple[int, ...],
    A: torch.Tensor,
) -> torch.Tensor:
    """The given output, checked, or a new one. name, dtype_name: of the arguments."""
    if given is None:
        return A.new_empty(shape, dtype=dtype or default_dtype(A))
    if not isinstance(given, torch.Tensor):
        raise TypeError(f"{name} is a {type(given).__name__}, expected a torch.Tensor")
    if tuple(given.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(given.shape)}, expected {shape}")
    if dtype is not None and given.dtype != dtype:
        raise ValueError(f"{name} has dtype {given.dtype} and {dtype_name} is {dtype}: pass one of them")
    return given


def require_tensor(name: str, tensor: object) -> None:
    """TypeError where an output must be given."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch.Tensor")


def operand_names(concat_layout: Optional[tuple[str, ...]]) -> Optional[tuple[str, ...]]:
    """`concat_layout` in a fixed order, without outputs."""
    names = concat_names(concat_layout)
    if names and "out" in names:
        raise UnsupportedGemm(
            "concat_layout names out, but a GEMM with an activation stores preact and postact in logical order",
            'names out of "A", "B", "C", "bias"',
        )
    return names


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


def default_dtype(A: torch.Tensor) -> torch.dtype:
    """Of outputs that nothing else is said of."""
    return torch.bfloat16 if A.dtype.itemsize == 1 else A.dtype


def store_ref(result: torch.Tensor, out: Optional[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The result in `out`, or in a tensor of its own."""
    return result.to(dtype) if out is None else out.copy_(result)


def rows_ref(vector: torch.Tensor, cu_seqlens_m: Optional[torch.Tensor]) -> torch.Tensor:
    """A vector per column (N,), or one for each problem (L, N), so that it broadcasts to the product."""
    if vector.dim() == 1:
        return vector
    return vector.unsqueeze(-2) if cu_seqlens_m is None else vector.repeat_interleave(cu_seqlens_m.diff().long(), dim=0)


def logical(names: Optional[tuple[str, ...]], **operands: Optional[torch.Tensor]) -> list:
    """The operands, those that `concat_layout` names put in logical order."""
    return [t if t is None or name not in (names or ()) else interleaved(name, t) for name, t in operands.items()]
