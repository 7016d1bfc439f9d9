"""Host-side description of what a kernel takes besides its operands: the ports of epilogue mixins, the tensors of adapters."""

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

from .gemm_config import Dtype, GemmConfig, OperandSpec


class PortKind(enum.Enum):
    """What a port means; see `epilogue.protocol`."""

    SCALAR = "scalar"
    INTEGER = "integer"
    ROW_VECTOR = "row_vector"
    COL_VECTOR = "col_vector"
    TILE_INPUT = "tile_input"
    TILE_OUTPUT = "tile_output"
    ROW_PARTIALS = "row_partials"
    COL_PARTIALS = "col_partials"

    @property
    def is_output(self) -> bool:
        """Whether the kernel writes it."""
        return self in (PortKind.TILE_OUTPUT, PortKind.ROW_PARTIALS, PortKind.COL_PARTIALS)

    @property
    def is_tile(self) -> bool:
        """Whether it has the shape of D, or half its columns."""
        return self in (PortKind.TILE_INPUT, PortKind.TILE_OUTPUT)

    def scratch_words(self, config: GemmConfig) -> int:
        """fp32 words of shared memory per draining warpgroup."""
        if self is PortKind.ROW_VECTOR:
            return config.tile_n
        if self is PortKind.COL_VECTOR:
            return config.cta_tile_m
        return WARPS * config.tile_n if self is PortKind.COL_PARTIALS else 0


WARPS = 4  # of a warpgroup; each reduces the columns of its own rows


class PortSource(enum.Enum):
    """Where a port's value lives at run time."""

    HOST = "host"  # a number passed by value
    DEVICE = "device"  # a tensor
    TABLE = "table"  # one tensor per problem, found through the table of grouped problems, see `grouped_table`
    ABSENT = "absent"  # an optional port that this composition does not use


class ArgumentKind(enum.Enum):
    """What a problem adapter can ask for besides the operands."""

    INT32_VECTOR = "int32 (any,)"
    INT64_ROWS = "int64 (any, any), rows 128-byte aligned"
    INT32 = "int32 by value"
    FP32_VECTOR = "fp32 (any,), 16-byte aligned"


@dataclass(frozen=True)
class PortSpec:
    """What the compiled code knows about one port. dtype and ndim describe vectors and partials only.

    is_concat: the vector is stored as [even half; odd half], see `OperandSpec`.
    layout: of a tile.
    """

    kind: PortKind
    source: PortSource
    dtype: Optional[Dtype] = None
    ndim: int = 0
    is_concat: bool = False
    layout: Optional[OperandSpec] = None


@dataclass(frozen=True)
class EpilogueOpSpec:
    """One mixin in a composition.

    mixin: "module:qualname", so that a compile worker can import it.
    ports: one entry for each port of the class, in order; ABSENT for optional ones that are None.
    statics: (name, value) of the fields that are not ports: enums, numbers, strings, booleans, None. They are compiled in.
    """

    mixin: str
    ports: tuple[PortSpec, ...]
    statics: tuple[tuple[str, Any], ...] = ()


class PortId(NamedTuple):
    """A port of a composition: which of those of its kind that are present."""

    kind: PortKind
    index: int


def present_ports(epilogue: tuple[EpilogueOpSpec, ...]) -> tuple[PortSpec, ...]:
    """The ports that are used, in the order of the mixins."""
    return tuple(port for op in epilogue for port in op.ports if port.source is not PortSource.ABSENT)


def numbered_ports(epilogue: tuple[EpilogueOpSpec, ...]) -> list[tuple[PortId, PortSpec]]:
    """`present_ports` with their names."""
    counts, found = dict.fromkeys(PortKind, 0), []
    for port in present_ports(epilogue):
        found.append((PortId(port.kind, counts[port.kind]), port))
        counts[port.kind] += 1
    return found


def argument_ports(epilogue: tuple[EpilogueOpSpec, ...]) -> tuple[PortSpec, ...]:
    """The ports that have a kernel argument, in the order of those. From a table come all but the tiles, of which one problem's
    tells the kernel what they look like."""
    return tuple(p for p in present_ports(epilogue) if p.source is not PortSource.TABLE or p.kind.is_tile)


def tile_layouts(epilogue: tuple[EpilogueOpSpec, ...], kind: PortKind) -> tuple[OperandSpec, ...]:
    """Layouts of the tiles of one kind, in the order of their indices."""
    return tuple(port.layout for port in present_ports(epilogue) if port.kind is kind and port.layout is not None)


def scratch_bytes(epilogue: tuple[EpilogueOpSpec, ...], config: GemmConfig) -> int:
    """Shared memory of all ports, per draining warpgroup."""
    return 4 * sum(port.kind.scratch_words(config) for port in present_ports(epilogue))
