"""From torch tensors to `OperandSpec`: which mode is contiguous, what alignment holds, and every complaint about inputs."""

from typing import Optional

import torch

from ..gemm_config import TMA_ALIGN_BYTES, Dtype, Major, OperandSpec
from .concat import concat_dim
from .device import why_unusable
from .spec import GemmShape, UnsupportedGemm

DTYPE_OF_TORCH = {
    torch.bfloat16: Dtype.BF16,
    torch.float16: Dtype.FP16,
    torch.float32: Dtype.FP32,
    torch.float8_e4m3fn: Dtype.E4M3,
    torch.float8_e5m2: Dtype.E5M2,
}
INPUT_DTYPE_OF_TORCH = {**DTYPE_OF_TORCH, torch.float4_e2m1fn_x2: Dtype.E2M1}  # of A and B


def dtype_of(name: str, tensor: torch.Tensor) -> Dtype:
    """The kernel dtype, or `UnsupportedGemm`."""
    known = INPUT_DTYPE_OF_TORCH if name in ("A", "B") else DTYPE_OF_TORCH
    try:
        return known[tensor.dtype]
    except KeyError:
        raise UnsupportedGemm(
            f"{name} has dtype {tensor.dtype}", "one of " + ", ".join(str(t) for t in known)
        ) from None


def extent_k(tensor: torch.Tensor, dim: int) -> int:
    """K: elements along a dimension, of which tensors of packed ones show half."""
    return tensor.shape[dim] * (2 if INPUT_DTYPE_OF_TORCH.get(tensor.dtype) is Dtype.E2M1 else 1)


def byte_span(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last; 0 if it is empty."""
    if tensor.numel() == 0:
        return 0
    last = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride()))
    return (last + 1) * tensor.element_size()


def describe(
    name: str,
    tensor: torch.Tensor,
    *,
    transposed: bool,
    prefer: Optional[Major] = None,
    is_ragged: bool = False,
    is_output: bool = False,
    is_concat: bool = False,
) -> tuple[OperandSpec, bool]:
    """(spec, needs_copy) of a matrix or batch of matrices.

    transposed: torch holds (inner, outer). prefer: the major to choose when extents of 1 leave a choice.
    is_ragged: no kernel takes another major than the preferred one, and the step between rows counts even if there is one.
    is_output: TMA stores write whole 16-byte chunks, also at the end of a row (measured on an H200), so the extent of the
    contiguous dimension must be a multiple of 16 bytes as well, or the elements behind it would be overwritten.
    is_concat: the other dimension holds two halves, see `concat`.
    needs_copy: strides or base address are not multiples of 16 bytes, which TMA loads need; the spec then describes the
    tensor as it is, with the alignment that it has.
    """
    size = tensor.element_size()
    last, other = tensor.dim() - 1, tensor.dim() - 2
    choices = []
    halves = concat_dim(name, tensor) if is_concat else None
    for unit, strided in ((last, other), (other, last)):
        if halves not in (None, strided):
            continue
        if tensor.stride(unit) == 1 or tensor.shape[unit] <= 1:
            inner_dim = other if transposed else last
            major = Major.INNER if unit == inner_dim else Major.OUTER
            steps = [strided] + ([0] if tensor.dim() == 3 else [])
            aligned = tensor.data_ptr() % TMA_ALIGN_BYTES == 0 and all(
                (tensor.shape[d] <= 1 and not is_ragged) or tensor.stride(d) * size % TMA_ALIGN_BYTES == 0
                for d in steps
            )
            if is_output:
                aligned = aligned and tensor.shape[unit] * size % TMA_ALIGN_BYTES == 0
            is_unit = tensor.stride(unit) == 1 and tensor.shape[unit] > 1
            # wgmma reads fp8 with the preferred major only, and fp32 better; otherwise being aligned spares a copy.
            wanted = major is prefer
            choices.append(
                ((wanted, aligned, is_unit) if size != 2 or is_ragged else (aligned, wanted, is_unit), aligned, major)
            )
    if not choices:
        raise ValueError(
            f"{name} with shape {tuple(tensor.shape)} has strides {tensor.stride()}: one of the last two must be 1; "
            f"pass {name}.contiguous()"
        )
    _, aligned, major = max(choices, key=lambda c: c[0])
    align = TMA_ALIGN_BYTES if aligned else size
    return OperandSpec(dtype_of(name, tensor), tensor.dim(), transposed, major, align, is_concat), not aligned


def aligned_copy(tensor: torch.Tensor, spec: OperandSpec) -> torch.Tensor:
    """The same values, same shape and same contiguous mode, with every other stride a multiple of 16 bytes."""
    unit = spec.unit_stride_dim
    shape = [tensor.shape[d] for d in range(tensor.dim()) if d != unit] + [tensor.shape[unit]]
    per_row = TMA_ALIGN_BYTES // tensor.element_size()
    shape[-1] = max(1, -(-shape[-1] // per_row)) * per_row
    copy = tensor.new_empty(shape).movedim(-1, unit).narrow(unit, 0, tensor.shape[unit])
    return copy.copy_(tensor)


def check_problem(
    A: torch.Tensor, B: torch.Tensor, out: torch.Tensor, C: Optional[torch.Tensor], is_halved: bool = False
) -> GemmShape:
    """Every rule about shapes and devices; returns the extents. is_halved: out has half the columns of A @ B."""
    tensors = {"A": A, "B": B, "out": out} | ({"C": C} if C is not None else {})
    check_tensors(tensors)
    if A.dim() != B.dim():
        raise ValueError(f"A has {A.dim()} dimensions and B has {B.dim()}: pass both 2-D, or both 3-D with a batch")
    if A.dim() == 3 and A.shape[0] != B.shape[0]:
        raise ValueError(f"A has batch size {A.shape[0]} and B has {B.shape[0]}: they must be equal")
    if extent_k(A, -1) != extent_k(B, -2):
        raise ValueError(
            f"A {tuple(A.shape)} and B {tuple(B.shape)} do not multiply: A has K = {extent_k(A, -1)}, B has K = "
            f"{extent_k(B, -2)}; B is (K, N), so a weight stored as (N, K) is passed as weight.mT"
        )
    check_outputs((*A.shape[:-1], B.shape[-1]), out, C, is_halved)
    return GemmShape(A.shape[-2], B.shape[-1], A.shape[-1], A.shape[0] if A.dim() == 3 else 1)


def check_outputs(product: tuple[int, ...], out: torch.Tensor, C: Optional[torch.Tensor], is_halved: bool) -> None:
    """Shapes of out and C where the product has this one; is_halved: out has half its columns."""
    if is_halved and product[-1] % 2:
        raise ValueError(f"N = {product[-1]} is odd: columns are pairs of gate and up projection")
    expected = {"out": (*product[:-1], product[-1] // 2) if is_halved else product, "C": product}
    for name, tensor in (("out", out), ("C", C)):
        if tensor is not None and tuple(tensor.shape) != expected[name]:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected[name]}: A @ B has {product}")
    if not is_injective(out):
        raise ValueError(
            f"out with strides {out.stride()} is expanded or overlaps itself: shape {tuple(out.shape)} has several "
            "elements at one address"
        )


def is_injective(tensor: torch.Tensor) -> bool:
    """Whether no two elements share an address (sufficient: each dimension steps over all smaller ones)."""
    reach = 0
    for stride, extent in sorted((s, e) for s, e in zip(tensor.stride(), tensor.shape) if e > 1):
        if stride <= reach:
            return False
        reach += (extent - 1) * stride
    return True


def check_tensors(tensors: dict[str, torch.Tensor]) -> None:
    """Types, dimensions, dtypes and devices."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch.Tensor")
        if tensor.dim() not in (2, 3):
            raise ValueError(
                f"{name} has {tensor.dim()} dimensions {tuple(tensor.shape)}, expected 2, or 3 with a batch"
            )
        dtype_of(name, tensor)
    first, device = next((name, tensor.device) for name, tensor in tensors.items())
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(f"{first} is on {device} and {name} is on {tensor.device}: pass both on one device")
    if fault := why_unusable(first, device):
        raise ValueError(fault)


def check_vector(
    name: str, vector: torch.Tensor, A: torch.Tensor, extent: int, problems: Optional[int], is_concat: bool = False
) -> None:
    """(extent,), or (problems, extent) where there are several, last dimension contiguous; extent even if is_concat."""
    if not isinstance(vector, torch.Tensor):
        raise TypeError(f"{name} is a {type(vector).__name__}, expected a torch.Tensor")
    dtype_of(name, vector)
    legal = [(extent,)] + ([(problems, extent)] if problems is not None else [])
    if tuple(vector.shape) not in legal:
        raise ValueError(f"{name} has shape {tuple(vector.shape)}, expected " + " or ".join(map(str, legal)))
    if vector.device != A.device:
        raise ValueError(f"A is on {A.device} and {name} is on {vector.device}: pass both on one device")
    if extent > 1 and vector.stride(-1) != 1:
        raise ValueError(f"{name} has strides {vector.stride()}: the last must be 1; pass {name}.contiguous()")
    if is_concat and extent % 2:
        raise ValueError(f"concat_layout names {name}, which holds two halves of N = {extent}: pass an even N")


def check_scalar(name: str, value: object, device: torch.device) -> None:
    """A float, or a one-element floating-point tensor on the device."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} has {value.numel()} elements, expected a float or a 1-element tensor")
        if value.device != device:
            raise ValueError(f"A is on {device} and {name} is on {value.device}: pass both on one device")
        dtype_of(name, value)
    elif not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a float or a 1-element tensor")


def overlaps(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether the address ranges meet."""
    first_x, first_y = x.data_ptr(), y.data_ptr()
    return first_x < first_y + byte_span(y) and first_y < first_x + byte_span(x)
