"""`KernelSpec`: what decides the compiled code of a kernel that is no GEMM, as `GemmSpec` does of those."""

import enum
from dataclasses import dataclass
from typing import Any, Union

from ..gemm_config import Dtype


class Number(enum.Enum):
    """An argument that is passed by value."""

    INT32 = "int32"
    FP32 = "fp32"


@dataclass(frozen=True)
class TensorSpec:
    """A tensor argument. align: bytes, which its address and every stride that is not 1 are multiples of; is_contiguous: in its
    last dimension. Extents and other strides are open."""

    dtype: Dtype
    ndim: int
    align: int
    is_contiguous: bool


@dataclass(frozen=True)
class KernelSpec:
    """arch: as in `GemmSpec`. kernel: "module:qualname" of a class, made with `statics` and then called with `arguments` and the
    stream."""

    arch: str
    kernel: str
    statics: tuple[Any, ...]
    arguments: tuple[Union[TensorSpec, Number], ...]
