"""Host-side description of what a kernel takes besides its operands: the ports of epilogue mixins, the tensors of adapters."""

import enum
from dataclasses import dataclass
from typing import Optional

from .gemm_config import Dtype


class PortKind(enum.Enum):
    """What a port means; see `epilogue.protocol`."""

    SCALAR = "scalar"
    ROW_VECTOR = "row_vector"
    COL_VECTOR = "col_vector"


class PortSource(enum.Enum):
    """Where a port's value lives at run time."""

    HOST = "host"  # a float passed by value
    DEVICE = "device"  # a tensor
    TABLE = "table"  # one tensor per problem, found through a device table of addresses


class ArgumentKind(enum.Enum):
    """What a problem adapter can ask for besides the operands."""

    INT32_VECTOR = "int32 (any,)"
    INT64_ROWS = "int64 (any, 16), 128-byte aligned"
    INT32 = "int32 by value"
    FP32_VECTOR = "fp32 (any,), 16-byte aligned"


GROUPED_WORDS = 16  # columns of INT64_ROWS: 128 bytes


@dataclass(frozen=True)
class PortSpec:
    """What the compiled code knows about one port. dtype and ndim describe tensors only.

    is_concat: the vector is stored as [even half; odd half], see `OperandSpec`.
    """

    kind: PortKind
    source: PortSource
    dtype: Optional[Dtype] = None
    ndim: int = 0
    is_concat: bool = False


@dataclass(frozen=True)
class EpilogueOpSpec:
    """One mixin in a composition. `mixin` is "module:qualname", so that a compile worker can import it."""

    mixin: str
    ports: tuple[PortSpec, ...]
