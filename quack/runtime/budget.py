"""The budget of a spec's kernel, counted by the package that the table of architectures names for its arch."""

import functools
import importlib
from collections.abc import Callable

from ..arch import ARCHES
from ..gemm_resources import GemmResources
from .spec import GemmSpec


def budget_of(spec: GemmSpec) -> GemmResources:
    """Shared memory, stages and registers with the epilogue; ModuleNotFoundError if the arch has no kernel yet."""
    return _counter(spec.arch)(spec.operands, spec.config, spec.fast_accum, spec.epilogue)


@functools.cache
def _counter(arch: str) -> Callable[..., GemmResources]:
    return importlib.import_module(ARCHES[arch].execution.resources).resources
