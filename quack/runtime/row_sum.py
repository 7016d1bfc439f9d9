"""Sums of rows that a GEMM's epilogue has reduced to a few partials each: which kernel, and how many lanes work on a row."""

from collections.abc import Callable
from typing import NamedTuple, Optional

import torch

from ..gemm_config import Dtype
from .device import device_of, kernel_key, why_unusable
from .dispatch import get_function
from .kernel_spec import KernelSpec, Number, TensorSpec
from .operands import DTYPE_OF_TORCH, dtype_of

KERNEL = "quack.kernels.row_sum:RowSum"
VECTOR_BYTES, SECTOR_BYTES = 16, 32
LOADS = {True: 4, False: 8}  # in flight per lane: of vectors, of elements
MAX_GROUP = 5  # 32 lanes
MAX_ROWS = 2**31 - 128  # row numbers are int32, also those of lanes without one
MAX_PLANS = 8192
READABLE = (torch.float32, torch.bfloat16, torch.float16)  # without a conversion first

_plans: dict[tuple, "RowSumPlan"] = {}


def sum_rows(
    x: torch.Tensor, rms: Optional[tuple[float, float]] = None, out: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """The fp32 sums of x over its last dimension, one launch on the current stream; with rms = (scale, eps) rsqrt(scale * sum + eps).

    x: at least one dimension, any strides, any float dtype; other ones than `READABLE` are converted first. out: where to, fp32
    with contiguous columns, x's shape without the last. ValueError: dtype, device, or more than MAX_ROWS rows.
    """
    key = (
        x.shape, x.stride(), x.dtype, x.get_device(), x.data_ptr() & 15, rms is None,
        kernel_key(x),
    )  # fmt: skip
    plan = _plans.get(key)
    if plan is None:
        check_rows(x)
    if out is None:
        out = x.new_empty(x.shape[:-1], dtype=torch.float32)
    if plan is None:
        if x.numel() == 0:
            return out.zero_() if rms is None else out.fill_(rms[1]).rsqrt_()
        if x.dim() not in (2, 3) or x.dtype not in READABLE:
            flat = x.reshape(-1, x.shape[-1]).float()
            return out.copy_(sum_rows(flat, rms).view(out.shape))
        plan = prepare_row_sum(x, rms is not None)
        if len(_plans) >= MAX_PLANS:
            _plans.clear()
        _plans[key] = plan
    scale, eps = (1.0, 0.0) if rms is None else rms
    plan.function(x, out, float(scale), float(eps), plan.group)
    return out


def check_rows(x: torch.Tensor) -> None:
    """What of x a kernel could not cope with."""
    if not x.dtype.is_floating_point:
        raise ValueError(f"x has dtype {x.dtype}, expected one of " + ", ".join(map(str, DTYPE_OF_TORCH)))
    if fault := why_unusable("x", x.device):
        raise ValueError(fault)
    if x.shape[-1] and x.numel() // x.shape[-1] > MAX_ROWS:
        raise ValueError(f"x has shape {tuple(x.shape)}: more than {MAX_ROWS} rows; pass parts of it")


class RowSumPlan(NamedTuple):
    """Ready to run on any x with the same extents, strides, dtype, alignment and device. group: log2 of the lanes of a row."""

    function: Callable[..., None]
    group: int


def prepare_row_sum(x: torch.Tensor, is_rms: bool) -> RowSumPlan:
    """x (M, n) or (L, M, n), not empty, of a `READABLE` dtype."""
    device = device_of(x)
    is_vector = has_vectors(x)
    spec = row_sum_spec(device.target or device.arch, dtype_of("x", x), x.dim(), is_vector, is_rms)
    return RowSumPlan(get_function(spec, device.is_emulated), lane_group(x, is_vector))


def row_sum_spec(arch: str, dtype: Dtype, ndim: int, is_vector: bool, is_rms: bool) -> KernelSpec:
    """is_vector: x is read by 16 bytes, else element by element at any strides."""
    vector = VECTOR_BYTES // dtype.bytes if is_vector else 1
    x = TensorSpec(dtype, ndim, vector * dtype.bytes, is_contiguous=is_vector)
    out = TensorSpec(Dtype.FP32, ndim - 1, Dtype.FP32.bytes, is_contiguous=True)
    arguments = (x, out, Number.FP32, Number.FP32, Number.INT32)
    return KernelSpec(arch, KERNEL, (vector, LOADS[is_vector], is_rms), arguments)


def has_vectors(x: torch.Tensor) -> bool:
    """Whether the rows of x are whole, aligned vectors of 16 bytes."""
    elements = VECTOR_BYTES // x.element_size()
    pitches = [stride for stride, extent in zip(x.stride()[:-1], x.shape) if extent > 1]
    aligned = x.data_ptr() % VECTOR_BYTES == 0 and all(pitch % elements == 0 for pitch in pitches)
    return aligned and x.stride(-1) == 1 and x.shape[-1] % elements == 0


def lane_group(x: torch.Tensor, is_vector: bool) -> int:
    """log2 of the lanes of a row. Contiguous rows: as many as load it at once, at least a sector's worth; others: one, for then
    neighbouring lanes hold neighbouring rows."""
    if x.stride(-1) != 1:
        return 0
    size = VECTOR_BYTES if is_vector else x.element_size()
    loads = x.shape[-1] * x.element_size() // size
    lanes = max(-(-loads // LOADS[is_vector]), min(loads, SECTOR_BYTES // size))
    return min((lanes - 1).bit_length(), MAX_GROUP)
