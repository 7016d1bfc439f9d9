"""The one place where mixins become a class."""

import functools
from collections.abc import Callable

from .epilogue.pointwise import FIELD, Pointwise
from .epilogue.protocol import PORT_TYPES, EpilogueMixin
from .gemm_base import GemmBase
from .gemm_epilogue_plan import EpiloguePlan
from .gemm_port import ArgumentKind, PortKind
from .gemm_problem_adapter import ProblemAdapter
from .problem_order import PermutedProblems


@functools.cache
def compose(
    arch: type[GemmBase],
    adapter: type[ProblemAdapter],
    plan: type[EpiloguePlan],
    *epilogue: type[EpilogueMixin],
) -> type[GemmBase]:
    """A kernel class: adapter and commit policy over the arch kernel, with the epilogue mixins in the given order."""
    for mixin in epilogue:
        if not issubclass(mixin, EpilogueMixin):
            raise TypeError(f"{mixin.__name__} is not an EpilogueMixin")
    name = "_".join(cls.__name__ for cls in (arch, adapter, plan, *epilogue))
    return type(name, (adapter, plan, arch), {"epilogue": epilogue})


@functools.cache
def permuted(adapter: type[ProblemAdapter]) -> type[ProblemAdapter]:
    """The adapter with its problems worked through in the order of one more argument (`batch_idx_permute`)."""
    arguments = adapter.arguments | {"batch_idx_permute": ArgumentKind.INT32_VECTOR}
    return type(f"Permuted{adapter.__name__}", (PermutedProblems, adapter), {"arguments": arguments})


def pointwise(function: Callable, kinds: tuple[tuple[str, PortKind], ...]) -> type[EpilogueMixin]:
    """The mixin that applies a function to every element; kinds: of its parameters after the accumulator, in order."""
    types = {port.kind: port for port in PORT_TYPES}
    ports = {FIELD + name: types[kind] for name, kind in kinds}
    return type("Pointwise", (Pointwise,), {"__annotations__": ports, "function": staticmethod(function)})
