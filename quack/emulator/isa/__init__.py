"""Instruction families. Importing this package fills the opcode table."""

from . import atomics, bulk, control, convert, data, floating, integer, shared_matrix, sync, wgmma

__all__ = ["atomics", "bulk", "control", "convert", "data", "floating", "integer", "shared_matrix", "sync", "wgmma"]
