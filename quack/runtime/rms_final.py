"""A prepared `rms_final_reduce`: which kernel, and how many lanes work on a row."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..gemm_config import Dtype
from .device import device_of
from .dispatch import get_function
from .kernel_spec import KernelSpec, Number, TensorSpec
from .operands import dtype_of

KERNEL = "quack.kernels.rms_final:RmsFinalReduce"
VECTOR_BYTES, SECTOR_BYTES = 16, 32
LOADS = {True: 4, False: 8}  # in flight per lane: of vectors, of elements
MAX_GROUP = 5  # 32 lanes
MAX_ROWS = 2**31 - 128  # row numbers are int32, also those of lanes without one


class RmsFinalPlan(NamedTuple):
    """Ready to run on any x with the same extents, strides, dtype, alignment and device."""

    function: Callable[..., None]
    group: int

    def run(self, x: torch.Tensor, out: torch.Tensor, scale: float, eps: float) -> None:
        """Launch on the current stream of x's device."""
        self.function(x, out, scale, eps, self.group)


def prepare_rms_final(x: torch.Tensor) -> RmsFinalPlan:
    """x (M, n) or (L, M, n), not empty, bf16, fp16 or fp32."""
    device = device_of(x)
    is_vector = has_vectors(x)
    spec = rms_final_spec(device.arch, dtype_of("x", x), x.dim(), is_vector)
    return RmsFinalPlan(get_function(spec, device.is_emulated), lane_group(x, is_vector))


def rms_final_spec(arch: str, dtype: Dtype, ndim: int, is_vector: bool) -> KernelSpec:
    """is_vector: x is read by 16 bytes, else element by element at any strides."""
    vector = VECTOR_BYTES // dtype.bytes if is_vector else 1
    x = TensorSpec(dtype, ndim, vector * dtype.bytes, is_contiguous=is_vector)
    out = TensorSpec(Dtype.FP32, ndim - 1, Dtype.FP32.bytes, is_contiguous=True)
    arguments = (x, out, Number.FP32, Number.FP32, Number.INT32)
    return KernelSpec(arch, KERNEL, (vector, LOADS[is_vector]), arguments)


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
