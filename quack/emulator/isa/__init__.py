"""Instruction families. Importing this package fills the opcode table."""

from . import (
    atomics,
    bulk,
    control,
    convert,
    convert_scaled,
    data,
    floating,
    integer,
    mma,
    shared_matrix,
    sync,
    wgmma,
)

__all__ = [
    "atomics",
    "bulk",
    "control",
    "convert",
    "convert_scaled",
    "data",
    "floating",
    "integer",
    "mma",
    "shared_matrix",
    "sync",
    "wgmma",
]
