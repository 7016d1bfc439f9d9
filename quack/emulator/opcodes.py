"""The table of opcodes. Each family registers its builder here with the section of the PTX ISA (9.0) that defines it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .errors import UnknownInstruction


class Opcode(NamedTuple):
    """name: leading parts of the opcode; build: from a `Binder` to a closure over a warp.

    handles_predicate: the closure tests the guard itself (branches). The closure returns None to go on with the next
    instruction, the index of another one, `SWITCHED`, `YIELDED`, or a `Wait`.
    """

    name: str
    section: str
    build: Callable[[Any], Callable[[Any], Any]]
    handles_predicate: bool = False


TABLE: dict[str, Opcode] = {}


def opcode(*names: str, section: str, handles_predicate: bool = False) -> Callable[[Any], Any]:
    """Register the decorated builder under `names`."""

    def register(build: Callable[[Any], Callable[[Any], Any]]) -> Callable[[Any], Any]:
        for name in names:
            if name in TABLE:
                raise ValueError(f"opcode {name} is registered twice")
            TABLE[name] = Opcode(name, section, build, handles_predicate)
        return build

    return register


def find(full_name: str) -> Opcode:
    """The entry with the longest name that `full_name` begins with."""
    parts = full_name.split(".")
    for count in range(len(parts), 0, -1):
        entry = TABLE.get(".".join(parts[:count]))
        if entry is not None:
            return entry
    raise UnknownInstruction(f"opcode {full_name} is not implemented")
