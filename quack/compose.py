"""The one place where mixins become a class."""

import functools
from collections.abc import Callable

from .epilogue.pointwise import FIELD, Pointwise
from .epilogue.protocol import PORT_TYPES, EpilogueMixin
from .gemm_base import GemmBase
from .gemm_config import GemmConfig
from .gemm_epilogue_plan import EpiloguePlan
from .gemm_port import ArgumentKind, PortKind
from .gemm_problem_adapter import ProblemAdapter
from .problem_order import PermutedProblems
from .split_k_combine import StreamCombine
from .split_pieces import PieceProblems
from .split_works import SPLIT_ARGUMENTS, SplitProblems
from .stream_works import STREAM_ARGUMENTS, StreamProblems


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


@functools.cache
def split(adapter: type[ProblemAdapter], combine: type) -> type[ProblemAdapter]:
    """The adapter with several works to a tile, for a plan made by `combining` with the same `combine`."""
    name, problems, arguments = "Split", SplitProblems, SPLIT_ARGUMENTS
    if issubclass(combine, StreamCombine):
        name, problems, arguments = "Stream", StreamProblems, STREAM_ARGUMENTS
    return type(f"{name}{adapter.__name__}", (problems, adapter), {"arguments": adapter.arguments | arguments})


@functools.cache
def pieces(adapter: type[ProblemAdapter], tiles: GemmConfig) -> type[ProblemAdapter]:
    """The adapter for adding up the partial tiles that a launch with configuration `tiles` has stored."""
    arguments = adapter.arguments | SPLIT_ARGUMENTS
    return type(f"Pieces{adapter.__name__}", (PieceProblems, adapter), {"arguments": arguments, "pieces_of": tiles})


@functools.cache
def combining(combine: type, plan: type[EpiloguePlan]) -> type[EpiloguePlan]:
    """The commit policy, run once for all works of a tile; `combine` says how these meet (see `split_k_combine`)."""
    return type(f"{combine.__name__}{plan.__name__}", (combine, plan), {})
