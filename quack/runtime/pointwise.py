"""`quack.pointwise`: a new epilogue in one line."""

import importlib
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union

import torch

from ..gemm_port import PortKind
from .user_code import content_of, register

LEGAL_KINDS = (
    PortKind.SCALAR, PortKind.INTEGER, PortKind.ROW_VECTOR, PortKind.COL_VECTOR, PortKind.TILE_INPUT,
)  # fmt: skip
LEGAL_NAMES = "quack.Scalar, Integer, RowVector, ColVector or TileInput"


@dataclass(frozen=True)
class PointwiseEpilogue:
    """A function with its arguments: what `gemm(..., epilogue=)` takes. values: by parameter, in order."""

    function: Callable[..., Any]
    kinds: tuple[tuple[str, PortKind], ...]
    values: tuple[Any, ...]

    def name(self) -> str:
        """The mixin's name in `GemmSpec`."""
        kinds, function = self.kinds, self.function
        content = content_of(function, is_parameterised=True)
        label = "-".join(("pointwise", *(kind.value for _, kind in kinds)))
        return register(label, content, lambda: importlib.import_module("quack.compose").pointwise(function, kinds))


class PointwiseFactory:
    """What `pointwise` returns: calling it with the parameters' values makes an epilogue."""

    def __init__(self, function: Callable[..., Any], kinds: dict[str, PortKind]):
        self.function, self.kinds = function, kinds
        self.signature = _parameters(function)
        for name in kinds:
            if name not in self.signature.parameters:
                raise TypeError(
                    f"{name} is no parameter of the function, which has {', '.join(self.signature.parameters) or 'none'} after "
                    "the accumulator"
                )
        self.ports = tuple((name, kinds.get(name, PortKind.SCALAR)) for name in self.signature.parameters)

    def __call__(self, *args: Any, **values: Any) -> PointwiseEpilogue:
        """A value for every parameter: a number or one-element tensor unless `pointwise` said what else it is."""
        if args or values.keys() != self.signature.parameters.keys():
            bound = self.signature.bind(*args, **values)
            bound.apply_defaults()
            values = bound.arguments
        arguments = tuple([values[name] for name, _ in self.ports])
        for (name, _), value in zip(self.ports, arguments):
            if name not in self.kinds:
                _check_scalar_value(name, value)
        return PointwiseEpilogue(self.function, self.ports, arguments)


def pointwise(function: Callable[..., Any], **kinds: Any) -> PointwiseFactory:
    """An epilogue from a function of one element: acc <- function(acc, ...), applied after alpha, C and bias.

        softcap = quack.pointwise(lambda acc, cap: cap * quack.ops.tanh(acc / cap))
        D = quack.gemm(A, B, epilogue=softcap(cap=30.0))

    kinds: what parameters that are no scalars are, as in
    `pointwise(lambda acc, scale, r: acc * scale + r, scale=quack.ColVector, r=quack.TileInput)`; values as on those ports.
    Scalars are run-time values: another number compiles nothing. What the function captures is compiled in.

    The function is traced once with fp32 registers (`cutlass.Float32`): use operators and `quack.ops`, `ops.where` instead of
    `if`. TypeError for parameters with * or **, and, at the call, for captured objects that are no constants.
    """
    found = {}
    for name, port in kinds.items():
        kind = getattr(port, "kind", None)
        if kind not in LEGAL_KINDS:
            raise TypeError(f"{name} is declared as {port!r}, expected {LEGAL_NAMES}")
        found[name] = kind
    return PointwiseFactory(function, found)


def _parameters(function: Callable[..., Any]) -> inspect.Signature:
    """The signature behind the accumulator."""
    if not isinstance(function, types.FunctionType):
        raise TypeError(f"pointwise takes a function or lambda, not a {type(function).__name__}")
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters:
        raise TypeError(
            "the function has no parameters, expected the accumulator first, as in `lambda acc, scale: acc * scale`"
        )
    for parameter in parameters:
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            raise TypeError(
                f"parameter {parameter} is not a plain one: every parameter of the function is an input by name"
            )
    return inspect.Signature(parameters[1:])


def _check_scalar_value(name: str, value: Union[float, torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise TypeError(
                f"{name} is a tensor of shape {tuple(value.shape)}; say what it is where the function is given: "
                f"quack.pointwise(function, {name}=quack.RowVector), or ColVector, TileInput"
            )
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"{name} is a {type(value).__name__}, expected a number or a one-element tensor; what decides the code is captured "
            "instead, as in `lambda acc: acc if flag else -acc`"
        )
